//! The header that every record begins with, and the checksum that binds it to its place.

use std::fmt;

use super::{NUMBERS_END, RECORD_HEADER, put, seed, stride, u32_at, u64_at};
use crate::faults::planted::{self, Bug};

/// Kinds of record. None is zero, so that unwritten space never parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A message.
    Publish = 1,
    /// Up to 64 messages settled one by one.
    Settlement = 2,
    /// A refusal.
    Rejection = 3,
    /// A refusal that the application accepted.
    Acceptance = 4,
    /// A message that was appended again so that its segment can be freed.
    Copy = 5,
    /// Floor, durable mark, next sequence, oldest needed ordinal, resume tag.
    Mark = 6,
    /// The first record of an open.
    Epoch = 7,
    /// A range that a salvage gave up.
    Lost = 8,
    /// A settled message that was appended again because a refusal of it follows, which must not
    /// lose it.
    Original = 9,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{Acceptance, Copy, Epoch, Lost, Mark, Original, Publish, Rejection, Settlement};
        [
            Publish, Settlement, Rejection, Acceptance, Copy, Mark, Epoch, Lost, Original,
        ]
        .into_iter()
        .find(|k| *k as u8 == byte)
    }

    /// Whether it concerns a message, whose sequence is in its header.
    pub(crate) fn has_sequence(self) -> bool {
        self.is_message() || matches!(self, Kind::Rejection | Kind::Acceptance)
    }

    /// Whether it carries a message.
    pub(crate) fn is_message(self) -> bool {
        matches!(self, Kind::Publish | Kind::Copy | Kind::Original)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Publish => "publish",
            Kind::Settlement => "settlement",
            Kind::Rejection => "rejection",
            Kind::Acceptance => "acceptance",
            Kind::Copy => "copy",
            Kind::Mark => "mark",
            Kind::Epoch => "epoch",
            Kind::Lost => "lost",
            Kind::Original => "original",
        })
    }
}

/// The fixed part of a record, without its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    /// Header, envelope and payload, without padding.
    pub(crate) len: u32,
    pub(crate) kind: Kind,
    /// The message does not move the resume point: it was requeued or imported.
    pub(crate) quiet: bool,
    pub(crate) envelope_len: u32,
    pub(crate) sequence: u64,
    pub(crate) ordinal: u64,
    pub(crate) generation: u64,
}

impl RecordHeader {
    /// Writes the header to the beginning of `b`, without its checksum and with the seed added to
    /// its length. A CRC adds its register to the first four bytes anyway, so this saves a step;
    /// the commit word, which is written last, overwrites the length.
    #[inline]
    pub(crate) fn encode_into(&self, b: &mut [u8], seed: u32) {
        let b = &mut b[..RECORD_HEADER];
        put(b, 4, &(self.len ^ seed).to_le_bytes());
        let kind = u64::from(self.kind as u8) | u64::from(self.quiet) << 8;
        put(
            b,
            8,
            &(kind | u64::from(self.envelope_len) << 32).to_le_bytes(),
        );
        put(b, 16, &self.sequence.to_le_bytes());
        put(b, 24, &self.ordinal.to_le_bytes());
        put(b, 32, &self.generation.to_le_bytes());
    }

    /// The header with an empty checksum.
    #[cfg(test)]
    pub(crate) fn encode(&self) -> [u8; RECORD_HEADER] {
        let mut b = [0; RECORD_HEADER];
        self.encode_into(&mut b, 0);
        b
    }

    /// A header that could be one: length within `max`, a known kind, unused bytes zero, a
    /// sequence where the kind has one. The checksum is not checked.
    pub(crate) fn decode(b: &[u8], max: u64) -> Option<Self> {
        let len = u32_at(b, 4);
        let envelope_len = u32_at(b, 12);
        let kind = Kind::from_byte(b[8])?;
        let sound = len as usize >= RECORD_HEADER
            && stride(len as usize) <= max
            && b[9] <= u8::from(kind.is_message())
            && b[10..12] == [0; 2]
            && envelope_len <= len - RECORD_HEADER as u32
            && (kind.is_message() || envelope_len == 0)
            && u64_at(b, 16) < NUMBERS_END
            && (u64_at(b, 16) != 0) == kind.has_sequence()
            && (1..NUMBERS_END).contains(&u64_at(b, 24))
            && (1..NUMBERS_END).contains(&u64_at(b, 32));
        sound.then(|| RecordHeader {
            len,
            kind,
            quiet: b[9] == 1,
            envelope_len,
            sequence: u64_at(b, 16),
            ordinal: u64_at(b, 24),
            generation: u64_at(b, 32),
        })
    }

    pub(crate) fn stride(&self) -> u64 {
        stride(self.len as usize)
    }
}

/// The checksum of a record: seeded by key and place, over everything except itself. `bytes` are
/// those of the record from offset 4 on, padding included.
#[inline]
pub(crate) fn record_crc(key: u32, offset: u64, mut bytes: &[u8]) -> u32 {
    let mut seed = seed(key, offset);
    if planted::is(Bug::ChecksumSkipsHeader) {
        (seed, bytes) = (0, &bytes[RECORD_HEADER - 4..]);
    }
    let mut crc = crc32fast::Hasher::new_with_initial(seed);
    crc.update(bytes);
    crc.finalize()
}

/// Computes the checksums of records that are written. It asks only once what this processor can
/// do.
pub(crate) struct Checksum(crc32fast::Hasher);

impl Checksum {
    pub(crate) fn new() -> Self {
        Checksum(crc32fast::Hasher::new())
    }

    /// As [`record_crc`], over both parts in turn. The first part begins with a length that has
    /// the seed added to it ([`RecordHeader::encode_into`]).
    #[inline(always)]
    pub(crate) fn of(&mut self, parts: [&[u8]; 3]) -> u32 {
        self.0.reset();
        for (i, mut part) in parts.into_iter().enumerate() {
            if i == 0 && planted::is(Bug::ChecksumSkipsHeader) {
                part = &part[RECORD_HEADER - 4..];
            }
            if i == 0 || !part.is_empty() {
                self.0.update(part);
            }
        }
        self.0.clone().finalize()
    }
}

/// The word that makes a record exist: checksum and length, written last.
pub(crate) fn commit_word(crc: u32, len: u32) -> u64 {
    u64::from(crc) | u64::from(len) << 32
}

/// The length that a commit word announces; 0 where nothing was written.
pub(crate) fn committed_len(b: &[u8]) -> u32 {
    u32_at(b, 4)
}

/// Whether a record's bytes, padding included, fit its checksum at this place.
pub(crate) fn record_is_intact(bytes: &[u8], key: u32, offset: u64) -> bool {
    if planted::is(Bug::NoChecksum) {
        return true;
    }
    record_crc(key, offset, &bytes[4..]) == u32_at(bytes, 0)
}
