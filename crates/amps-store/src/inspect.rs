//! Looking into a store from outside: read-only, with `pread` alone, without the lock, even
//! while its owner is at work (charter S9).
//!
//! The picture is that of recovery, taken from the same bytes by the same code. Over a live
//! store it is a legal prefix of the log: what the owner appended while it was taken may be
//! missing, and nothing else.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::api::{Bounds, Numbers, Rebase, Rejection, StoredMessage};
use crate::error::{OpenError, ReadError, StoreError};
use crate::file::{FileSource, refused, report};
use crate::format::{
    RECORD_HEADER, RecordHeader, RejectionBody, SEGMENT_HEADER, SegmentHeader, Superblock,
    record_is_intact,
};
use crate::index::Entry;
use crate::log::{Place, check};
use crate::recover::{Recovered, Refusal, read_header, recover, recover_prefix};
use crate::report::RecoveryReport;
use crate::scan::Source as _;

/// Pictures tried of a store that changes while it is looked at.
const ATTEMPTS: usize = 32;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It waits for the server.
    Unsettled,
    /// It was persisted, or its refusal was accepted; its bytes are still there.
    Settled,
    /// It was refused, and the refusal waits for the application.
    Rejected,
}

/// A picture of a store.
pub struct Inspection {
    path: PathBuf,
    file: File,
    len: u64,
    superblock: Superblock,
    recovered: Recovered,
    report: RecoveryReport,
    moving: bool,
}

impl Inspection {
    /// Takes a picture of the store at `path`. Damage is part of the picture, not an error:
    /// see [`RecoveryReport::damaged`].
    ///
    /// Time and memory are bounded by the size of the file.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::NotAStore`], [`OpenError::Version`],
    /// [`OpenError::Io`]; [`OpenError::Busy`] when the owner reuses the file faster than it
    /// can be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let io = |what| move |error| OpenError::Io { path: path.to_owned(), what, error };
        let file = File::open(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => OpenError::Missing { path: path.to_owned() },
            _ => io("open")(error),
        })?;
        if !file.metadata().map_err(io("look at"))?.is_file() {
            let why = "not a regular file".to_owned();
            return Err(OpenError::NotAStore { path: path.to_owned(), why });
        }
        let mut before: Option<u64> = None;
        for _ in 0..ATTEMPTS {
            let taken = take(&file, before).map_err(|r| refused(path, r))?;
            let Taken { picture, sound, last_ordinal } = taken;
            if let (Some((len, superblock, recovered, moving)), true) = (picture, sound) {
                let mut report = report(&recovered);
                report.superblock_repaired = false;
                return Ok(Inspection {
                    path: path.to_owned(),
                    file,
                    len,
                    superblock,
                    recovered,
                    report,
                    moving,
                });
            }
            before = Some(last_ordinal);
        }
        Err(OpenError::Busy { path: path.to_owned() })
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What an open would find. Times are zero, and `next` is the lowest number the next
    /// owner could give out.
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// The store changed while the picture was taken: its owner is at work.
    pub fn is_moving(&self) -> bool {
        self.moving
    }

    /// The store was closed cleanly, and nobody has opened it since.
    pub fn is_closed(&self) -> bool {
        self.superblock.closed_at != 0
    }

    /// The client this store belongs to.
    pub fn client_name(&self) -> &str {
        &self.superblock.client_name
    }

    /// Process and host of the last open.
    pub fn last_opened_by(&self) -> (u32, &str) {
        (self.superblock.owner_pid, &self.superblock.owner_host)
    }

    /// A number given to the store at creation.
    pub fn id(&self) -> u64 {
        self.superblock.store_id
    }

    /// Opens so far.
    pub fn generation(&self) -> u64 {
        self.superblock.generation
    }

    /// Bytes of the file, and the most they may become.
    pub fn file_bytes(&self) -> (u64, u64) {
        let s = &self.superblock;
        (self.len, crate::format::SEGMENTS_AT + s.cap_segments * s.segment_size)
    }

    /// Bytes of one segment, segments in the file, and segments that hold the log.
    pub fn segments(&self) -> (u64, u64, u64) {
        let used = self.recovered.chain.len() as u64;
        (self.superblock.segment_size, self.superblock.segments, used)
    }

    /// The numbers of the store. `limit_bytes` is that of the whole file.
    pub fn bounds(&self) -> Bounds {
        let state = &self.recovered.state;
        Bounds {
            first_unsettled: state.first_unsettled(),
            last: state.last(),
            next: self.report.next,
            floor: state.floor(),
            unsettled: state.unsettled(),
            rejections: state.rejections().len() as u64,
            live_bytes: state.charged(),
            limit_bytes: self.file_bytes().1,
        }
    }

    /// Send grant and rebase. The picture has no run of its own: `found_grant` is the grant,
    /// `first_of_run` the next sequence.
    pub fn numbers(&self) -> Numbers {
        let s = &self.superblock;
        Numbers {
            grant: s.grant,
            found_grant: s.grant,
            first_of_run: self.report.next,
            rebase: (s.rebase_from != 0)
                .then_some(Rebase { from: s.rebase_from, delta: s.rebase_delta }),
        }
    }

    /// User tag of the resume point.
    pub fn resume_tag(&self) -> Option<&[u8]> {
        self.recovered.tag.as_deref()
    }

    /// What became of a message; `None` when it has no record (any more).
    pub fn standing(&self, sequence: u64) -> Option<Standing> {
        if self.recovered.state.rejection(sequence).is_some() {
            return Some(Standing::Rejected);
        }
        let entry = self.recovered.state.get(sequence)?;
        Some(if entry.is_settled() { Standing::Settled } else { Standing::Unsettled })
    }

    /// Where a message's record stands in the file.
    pub fn offset(&self, sequence: u64) -> Option<u64> {
        self.recovered.state.get(sequence).map(Entry::offset)
    }

    /// Reads the lowest unsettled message from `from` on. A message whose bytes the owner has
    /// reused since the picture was taken has been settled, and is passed over.
    ///
    /// # Errors
    /// The record is damaged, or the file cannot be read.
    pub fn next_unsettled(
        &self,
        from: u64,
        into: &mut StoredMessage,
    ) -> Result<Option<u64>, ReadError> {
        let mut from = from;
        while let Some((sequence, entry)) = self.recovered.state.next_unsettled(from, u64::MAX) {
            if self.load(sequence, entry, into)? {
                return Ok(Some(sequence));
            }
            from = sequence + 1;
        }
        Ok(None)
    }

    /// Reads one message, settled or not. `Ok(false)`: its bytes are not there (any more).
    ///
    /// # Errors
    /// As [`next_unsettled`](Self::next_unsettled).
    pub fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        match self.recovered.state.get(sequence) {
            Some(entry) => self.load(sequence, entry, into),
            None => Ok(false),
        }
    }

    /// Refusals that wait, with sequence `from` or above, at most `limit` of them.
    ///
    /// # Errors
    /// As [`next_unsettled`](Self::next_unsettled).
    pub fn rejections(&self, from: u64, limit: usize) -> Result<Vec<Rejection>, ReadError> {
        let mut out = Vec::new();
        for (&sequence, entry) in self.recovered.state.rejections().range(from..) {
            if out.len() == limit {
                break;
            }
            let mut bytes = vec![0; entry.stride() as usize];
            self.fetch(entry.offset(), &mut bytes)?;
            let geometry = self.recovered.geometry;
            let body = RecordHeader::decode(&bytes, geometry.max_record)
                .filter(|h| h.sequence == sequence)
                .filter(|_| record_is_intact(&bytes, geometry.key, entry.offset()))
                .and_then(|h| RejectionBody::decode(&bytes[RECORD_HEADER..h.len as usize]));
            match body {
                Some(body) => out.push(Rejection {
                    sequence,
                    reason: body.reason,
                    reason_cut: body.cut,
                    at: body.at,
                    late: body.late,
                }),
                None if self.was_reused(entry.offset())? => {}
                None => return Err(ReadError::Damaged { sequence, offset: entry.offset() }),
            }
        }
        Ok(out)
    }

    fn load(
        &self,
        sequence: u64,
        entry: Entry,
        into: &mut StoredMessage,
    ) -> Result<bool, ReadError> {
        let len = entry.stride() as usize;
        if into.bytes.len() < len {
            into.bytes.resize(len, 0);
        }
        into.sequence = sequence;
        into.len = len;
        let offset = entry.offset();
        self.fetch(offset, &mut into.bytes[..len])?;
        let geometry = self.recovered.geometry;
        let place = Place { offset, key: geometry.key, max: geometry.max_record };
        match check(place, into) {
            Ok(()) => Ok(true),
            Err(ReadError::Damaged { .. }) if self.was_reused(offset)? => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Whether the segment around `offset` holds something else by now.
    fn was_reused(&self, offset: u64) -> Result<bool, ReadError> {
        let geometry = self.recovered.geometry;
        let segment = geometry.segment_of(offset);
        let at = geometry.segment_at(segment);
        let mut bytes = [0; SEGMENT_HEADER as usize];
        self.fetch(at, &mut bytes)?;
        let now = SegmentHeader::decode(&bytes, geometry.key, at);
        let link = self.recovered.chain.iter().find(|link| link.segment == segment);
        Ok(match (now, link) {
            (Some(SegmentHeader::Used { first_ordinal }), Some(link)) => {
                first_ordinal != link.first_ordinal
            }
            (Some(SegmentHeader::Free), _) => true,
            _ => false,
        })
    }

    fn fetch(&self, offset: u64, into: &mut [u8]) -> Result<(), ReadError> {
        FileSource(&self.file)
            .fetch(offset, into)
            .map_err(|e| ReadError::Store(StoreError::io("read the store", &e)))
    }
}

struct Taken {
    picture: Option<(u64, Superblock, Recovered, bool)>,
    /// Nothing that the picture rests on changed while it was taken.
    sound: bool,
    last_ordinal: u64,
}

/// Takes one picture. `before` is the end of the log in an earlier one that was not sound:
/// damage that looks the same twice is damage, a log that went on is a live one, whose end
/// is then not searched for what a power cut may have left behind it.
fn take(file: &File, before: Option<u64>) -> Result<Taken, Refusal> {
    let source = FileSource(file);
    let len = file.metadata().map_err(Refusal::Io)?.size();
    let header = match read_header(&source, len) {
        // The two copies are written one after the other; one of them is whole at any time.
        Err(Refusal::NotAStore(_)) => read_header(&source, len)?,
        other => other?,
    };
    let superblock = header.superblock;
    let mut recovered = recover(&source, len, &superblock)?;
    let last_ordinal = recovered.last_ordinal;
    let whole = recovered.damaged.is_empty() && recovered.set_aside.is_empty();
    let moving = before.is_some_and(|before| before != last_ordinal);
    if !whole && moving {
        recovered = recover_prefix(&source, len, &superblock)?;
    }
    let kept = oldest_is_kept(&source, &recovered)?;
    let sound = kept && (whole || before.is_some());
    Ok(Taken { picture: Some((len, superblock, recovered, moving)), sound, last_ordinal })
}

/// Whether the oldest segment still is what it was: then no segment was freed meanwhile.
fn oldest_is_kept(source: &FileSource<'_>, recovered: &Recovered) -> Result<bool, Refusal> {
    let Some(oldest) = recovered.chain.first() else { return Ok(true) };
    let at = recovered.geometry.segment_at(oldest.segment);
    let mut bytes = [0; SEGMENT_HEADER as usize];
    source.fetch(at, &mut bytes)?;
    Ok(match SegmentHeader::decode(&bytes, recovered.geometry.key, at) {
        Some(SegmentHeader::Used { first_ordinal }) => first_ordinal == oldest.first_ordinal,
        Some(SegmentHeader::Free) => false,
        // A damaged header was damaged before: recovery went by the first record.
        None => true,
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::{Envelope, Options, PublishStore, Store};

    #[test]
    fn a_picture_says_what_the_store_says_and_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let store = Store::open(&path, Options::new().capacity(1 << 20).client_name("n")).unwrap();
        let mut envelope = Envelope::publish("t");
        for n in 1..=10_u64 {
            envelope.user_tag = n.to_string().into_bytes().into();
            store.append(&envelope, format!("payload {n}").as_bytes()).unwrap();
        }
        store.settle_through(3).unwrap();
        store.reject(5, "because", 77).unwrap();
        let before = std::fs::read(&path).unwrap();
        let seen = Inspection::open(&path).unwrap();
        let (ours, theirs) = (store.bounds(), seen.bounds());
        assert_eq!(ours.first_unsettled, theirs.first_unsettled);
        assert_eq!((ours.last, ours.floor), (theirs.last, theirs.floor));
        assert_eq!((ours.unsettled, ours.rejections), (theirs.unsettled, theirs.rejections));
        assert_eq!(ours.live_bytes, theirs.live_bytes);
        assert_eq!(seen.client_name(), "n");
        assert_eq!(seen.resume_tag(), Some(&b"10"[..]));
        assert_eq!(seen.standing(3), Some(Standing::Settled));
        assert_eq!(seen.standing(4), Some(Standing::Unsettled));
        assert_eq!(seen.standing(5), Some(Standing::Rejected));
        assert_eq!(seen.standing(11), None);
        assert_eq!(seen.rejections(0, 9).unwrap(), store.rejections(0, 9));
        let mut message = StoredMessage::new();
        let mut found = Vec::new();
        let mut from = 0;
        while let Some(sequence) = seen.next_unsettled(from, &mut message).unwrap() {
            assert_eq!(message.payload(), format!("payload {sequence}").as_bytes());
            found.push(sequence);
            from = sequence + 1;
        }
        assert_eq!(found, [4, 6, 7, 8, 9, 10]);
        assert!(seen.get(5, &mut message).unwrap());
        assert_eq!(message.payload(), b"payload 5");
        assert_eq!(std::fs::read(&path).unwrap(), before);
    }

    #[test]
    fn h35_an_inspector_over_turning_segments_is_busy_or_right() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let store = Store::open(&path, Options::new().capacity(128 << 10)).unwrap();
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let payload = [7; 300];
                while !stop.load(Ordering::Relaxed) {
                    if store.append(&Envelope::publish("t"), &payload).is_err() {
                        let bounds = store.bounds();
                        store.settle_through(bounds.last - bounds.unsettled / 2).unwrap();
                    }
                }
            });
            let mut message = StoredMessage::new();
            let mut pictures = 0;
            let mut through = 0;
            while pictures < 200 {
                let seen = match Inspection::open(&path) {
                    Ok(seen) => seen,
                    Err(OpenError::Busy { .. }) => continue,
                    Err(error) => panic!("{error}"),
                };
                pictures += 1;
                assert!(seen.report().damaged.is_empty(), "{}", seen.report());
                assert_eq!(seen.report().set_aside, 0, "{}", seen.report());
                let last = seen.bounds().last;
                assert!(last >= through, "the log went back from {through} to {last}");
                through = last;
                let (mut from, mut before) = (0, None);
                while let Some(sequence) = seen.next_unsettled(from, &mut message).unwrap() {
                    assert_eq!(message.payload(), [7; 300]);
                    assert!(before.is_none_or(|before| before < sequence));
                    (from, before) = (sequence + 1, Some(sequence));
                }
            }
            stop.store(true, Ordering::Relaxed);
        });
    }

    #[test]
    fn damage_is_told_and_is_not_busy() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let store = Store::open(&path, Options::new().capacity(1 << 20)).unwrap();
        for _ in 0..20 {
            store.append(&Envelope::publish("t"), b"a payload to be found").unwrap();
        }
        store.close(0).unwrap();
        let mut bytes = std::fs::read(&path).unwrap();
        let needle = b"a payload to be found";
        let at = bytes.windows(needle.len()).position(|w| w == needle).unwrap();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let seen = Inspection::open(&path).unwrap();
        assert_eq!(seen.report().damaged.len(), 1, "{:?}", seen.report());
        assert_eq!(seen.bounds().unsettled, 19);
    }
}
