//! The bytes of a store, for tests that change them: which records stand where, and checksums
//! that fit again, so that what a test changed is judged by what it says.

use std::io;

use crate::envelope::{Envelope, EnvelopeError};
use crate::format::{
    BLOCK, MAGIC, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SEGMENT_MAGIC, SUPERBLOCKS,
    SegmentHeader, Superblock, SuperblockVerdict, record_crc, record_is_intact, seed,
};
use crate::log::draft::Draft;
use crate::medium::sim::SimDisk;
use crate::recover::read_header;
use crate::recover::scan::{Geometry, Source};

/// An intact message somewhere in the bytes of a store, whether or not it is part of the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Intact {
    /// Where its record starts.
    pub offset: u64,
    /// Its sequence.
    pub sequence: u64,
    /// Its payload.
    pub payload: Vec<u8>,
}

/// Makes checksums fit: those of both superblocks, of every segment header, and of every record
/// whose header can be recognised. Bytes that are no store stay as they are.
pub fn resign(bytes: &mut [u8]) {
    for at in SUPERBLOCKS {
        let copy = bytes.get_mut(at as usize..(at + BLOCK) as usize);
        if let Some(copy) = copy.filter(|copy| copy[..8] == MAGIC) {
            let end = BLOCK as usize - 4;
            let crc = crc32fast::hash(&copy[..end]);
            copy[end..].copy_from_slice(&crc.to_le_bytes());
        }
    }
    let Some((geometry, segments)) = geometry(bytes) else {
        return;
    };
    for segment in 0..segments {
        let at = geometry.segment_at(segment) as usize;
        let header = &mut bytes[at..at + SEGMENT_HEADER as usize];
        if header[4..8] == SEGMENT_MAGIC {
            let mut crc = crc32fast::Hasher::new_with_initial(seed(geometry.key, at as u64));
            crc.update(&header[4..]);
            header[..4].copy_from_slice(&crc.finalize().to_le_bytes());
        }
    }
    for (offset, stride) in record_places(bytes) {
        let record = &mut bytes[offset as usize..(offset + stride) as usize];
        let crc = record_crc(geometry.key, offset, &record[4..]);
        record[..4].copy_from_slice(&crc.to_le_bytes());
    }
}

impl SimDisk {
    /// A segment that is in use again although, on the disk, it is still in its former use and
    /// not both superblocks name a start of the log that ends that use. They must be written
    /// before anything is written into the segment again, so there should be none.
    pub fn reused_before_its_stamp(&self) -> Option<u64> {
        self.look(|seen, durable| {
            let (geometry, segments) = geometry(seen)?;
            let first = |bytes: &[u8], at: u64| {
                let header = bytes.get(at as usize..(at + SEGMENT_HEADER) as usize)?;
                match SegmentHeader::decode(header, geometry.key, at)? {
                    SegmentHeader::Used { first_ordinal } => Some(first_ordinal),
                    SegmentHeader::Free => None,
                }
            };
            // A write that fails half-way leaves one of them.
            let copies = SUPERBLOCKS.into_iter().filter_map(|at| {
                let copy = durable.get(at as usize..(at + BLOCK) as usize)?;
                match Superblock::decode(copy) {
                    SuperblockVerdict::Intact(superblock) => Some(superblock.start),
                    _ => None,
                }
            });
            let start = copies.min().unwrap_or(0);
            let is_reused = |at: &u64| match (first(seen, *at), first(durable, *at)) {
                (Some(now), Some(before)) => before != now && before >= start,
                _ => false,
            };
            let places = (0..segments).map(|segment| geometry.segment_at(segment));
            places.filter(is_reused).min()
        })
    }
}

/// Offset and length, padding included, of everything that has the header of a record, segment by
/// segment. Checksums are not checked.
pub fn record_places(bytes: &[u8]) -> Vec<(u64, u64)> {
    let mut places = Vec::new();
    each_header(bytes, |offset, header| {
        places.push((offset, header.stride()));
        header.stride()
    });
    places
}

/// Every intact message, wherever it stands: an open can find no others.
pub fn intact_messages(bytes: &[u8]) -> Vec<Intact> {
    let Some((geometry, _)) = geometry(bytes) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    each_header(bytes, |offset, header| {
        let record = &bytes[offset as usize..][..header.stride() as usize];
        if header.kind.is_message() && record_is_intact(record, geometry.key, offset) {
            let payload = RECORD_HEADER + header.envelope_len as usize;
            found.push(Intact {
                offset,
                sequence: header.sequence,
                payload: record[payload..header.len as usize].to_vec(),
            });
        }
        8
    });
    found
}

/// The bytes of an envelope, as a record holds them.
///
/// # Errors
/// As for appending it.
pub fn encode_envelope(envelope: &Envelope<'_>) -> Result<Vec<u8>, EnvelopeError> {
    let mut draft = Draft::new();
    let len = draft.envelope(envelope)?;
    Ok(draft.encoded(len).to_vec())
}

/// Calls back with every possible header; `each` returns how many bytes to advance.
fn each_header(bytes: &[u8], mut each: impl FnMut(u64, RecordHeader) -> u64) {
    let Some((geometry, segments)) = geometry(bytes) else {
        return;
    };
    for segment in 0..segments {
        let end = geometry.end_of(segment);
        let mut at = geometry.records_at(segment);
        while at + RECORD_HEADER as u64 <= end {
            let head = &bytes[at as usize..][..RECORD_HEADER];
            at += match RecordHeader::decode(head, geometry.max_record.min(end - at)) {
                Some(header) => each(at, header),
                None => 8,
            };
        }
    }
}

/// Where whole segments lie.
fn geometry(bytes: &[u8]) -> Option<(Geometry, usize)> {
    let superblock = read_header(&Bytes(bytes), bytes.len() as u64)
        .ok()?
        .superblock;
    let there = superblock.whole_segments(bytes.len() as u64);
    let segments = there.min(superblock.segments) as usize;
    Some((Geometry::of(&superblock), segments))
}

struct Bytes<'a>(&'a [u8]);

impl Source for Bytes<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let from = usize::try_from(offset).unwrap_or(usize::MAX);
        let there = self.0.get(from..).unwrap_or(&[]);
        let n = there.len().min(into.len());
        into[..n].copy_from_slice(&there[..n]);
        into[n..].fill(0);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testkit::SimDisk;
    use crate::{Batch, OpenError, Options, PublishStore, Recovery, Store};

    fn store() -> (SimDisk, Options) {
        let disk = SimDisk::new();
        let options = Options::new().capacity(64 << 10);
        let options = options.preallocate(true).client_name("resigned");
        let store = disk.open(options.clone()).unwrap();
        for n in 0..50u8 {
            store.append(&Envelope::publish("t"), &[n; 60]).unwrap();
        }
        store.settle_through(3).unwrap();
        (disk, options)
    }

    fn first(store: &Store) -> Vec<u8> {
        let mut batch = Batch::default();
        store.read_unsettled(0, u64::MAX, &mut batch).unwrap();
        batch.get(0).unwrap().payload().to_vec()
    }

    #[test]
    fn signing_what_was_not_changed_changes_nothing() {
        let (disk, _) = store();
        let bytes = disk.bytes();
        let mut signed = bytes.clone();
        resign(&mut signed);
        assert!(bytes == signed);
        let found = intact_messages(&bytes);
        assert_eq!(found.len(), 50);
        assert!(record_places(&bytes).len() > 50);
    }

    #[test]
    fn a_changed_payload_is_damage_until_it_is_signed() {
        let (disk, options) = store();
        let mut bytes = disk.bytes();
        let fifth = intact_messages(&bytes)
            .into_iter()
            .find(|m| m.sequence == 4)
            .unwrap();
        let at = record_places(&bytes)
            .into_iter()
            .find(|p| p.0 == fifth.offset)
            .map(|(at, stride)| (at + stride - 8) as usize)
            .unwrap();
        bytes[at] ^= 0xFF;
        disk.restore(bytes.clone());
        match disk.open(options.clone().recovery(Recovery::Strict)) {
            // What was never synced may be lost. It is lost here, together with what settled 1 to
            // 3.
            Ok(store) => assert_eq!(store.bounds().unsettled, 3),
            Err(error) => assert!(matches!(error, OpenError::Damaged { .. }), "{error}"),
        }
        resign(&mut bytes);
        disk.restore(bytes);
        let store = disk.open(options).unwrap();
        assert_eq!(store.bounds().unsettled, 47);
        assert_ne!(first(&store), [3; 60]);
    }
}
