//! Every byte offset of the store, and nothing else: pure encoding and decoding.
//!
//! `store-format.md` is the normative page; this file is the only one that knows where a
//! field stands.

use std::fmt;

use crate::MAX_REASON;
use crate::MAX_TAG;
use crate::planted::{self, Bug};

/// Version written by this program.
pub(crate) const VERSION: u32 = 1;
/// First bytes of a superblock.
pub(crate) const MAGIC: [u8; 8] = *b"\x89AMPSTO\n";
/// Size of a superblock copy, and the granularity of segments.
pub(crate) const BLOCK: u64 = 4096;
/// Where the two superblock copies stand.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, BLOCK];
/// Where the first segment starts.
pub(crate) const SEGMENTS_AT: u64 = 2 * BLOCK;
/// Header of a segment; its first record follows.
pub(crate) const SEGMENT_HEADER: u64 = 64;
/// Header of a record.
pub(crate) const RECORD_HEADER: usize = 40;
/// Fewest segments under a cap.
pub(crate) const MIN_SEGMENTS: u64 = 6;
/// Most sequences in one settlement record.
pub(crate) const MAX_SETTLED: usize = 64;
/// Longest client name in bytes.
pub(crate) const MAX_NAME: usize = 512;
/// Longest host name kept in bytes.
const MAX_HOST: usize = 255;

/// Where the superblock says that the store was evacuated.
const RETIRED: usize = 888;
const PREALLOCATED: usize = 889;
/// Where the names stand in a superblock.
const NAMES: usize = 116;
/// Sequences, ordinals and generations stay below this, so adding one never overflows.
const NUMBERS_END: u64 = 1 << 63;
/// A store is opened with numbers below this one only: no run gets from here to the end.
pub(crate) const NUMBERS_LAST: u64 = NUMBERS_END - (1 << 48);
/// No grant and no wire number of a rebase begins above this: more numbers than a run gives out
/// are left to the ones that no open takes.
pub(crate) const GRANT_LAST: u64 = NUMBERS_LAST - (1 << 47);

pub(crate) const SEGMENT_MAGIC: [u8; 4] = *b"SEG1";
const MARK_TAG: usize = 40;
const MARK_BODY: usize = MARK_TAG + MAX_TAG;
const EPOCH_EXTRA: usize = 24;
const REJECTION_BODY: usize = 16;

/// Largest mark or epoch record, which opens every segment.
pub(crate) const MAX_OPENING: u64 = stride(RECORD_HEADER + EPOCH_EXTRA + MARK_BODY);
/// Settlement of one message.
pub(crate) const ONE_SETTLEMENT: u64 = stride(RECORD_HEADER + 8);
/// Largest rejection record.
pub(crate) const MAX_REJECTION: u64 = stride(RECORD_HEADER + REJECTION_BODY + MAX_REASON);
/// An acceptance record.
pub(crate) const ACCEPTANCE: u64 = stride(RECORD_HEADER);
/// What a publish is charged for its own future (charter §5.1).
pub(crate) const CHARGE: u64 = ONE_SETTLEMENT + MAX_REJECTION + ACCEPTANCE;

/// Bytes a record of this length takes in the log.
#[inline]
pub(crate) const fn stride(len: usize) -> u64 {
    (len as u64 + 7) & !7
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// The initial CRC register for bytes that stand at `offset`.
///
/// A CRC is a bijection of its initial register, so the same bytes never verify at a place
/// whose register differs; within 32 GiB no two places share one.
pub(crate) fn seed(key: u32, offset: u64) -> u32 {
    let place = offset / 8;
    key ^ (place as u32) ^ ((place >> 32) as u32).wrapping_mul(0x9E37_79B1)
}

/// What the file remembers outside the log: written rarely, always both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Rises with every write; the higher intact copy is in force.
    pub(crate) counter: u64,
    pub(crate) store_id: u64,
    pub(crate) key: u32,
    pub(crate) segment_size: u64,
    /// Segments that are in the file, filled and stamped.
    pub(crate) segments: u64,
    /// Segments the cap allows.
    pub(crate) cap_segments: u64,
    pub(crate) grant: u64,
    /// No sequence at or below this one is given out again.
    pub(crate) number_floor: u64,
    /// 0: no rebase.
    pub(crate) rebase_from: u64,
    pub(crate) rebase_delta: i64,
    pub(crate) generation: u64,
    /// Ordinal of the closing mark after a clean close, 0 while open: nothing follows it.
    pub(crate) closed_at: u64,
    /// Evacuated to another file: nobody opens this one any more.
    pub(crate) retired: bool,
    /// The file has had all its segments from the start, and keeps them.
    pub(crate) preallocated: bool,
    pub(crate) owner_pid: u32,
    pub(crate) owner_host: String,
    pub(crate) client_name: String,
}

/// What is found at the place of a superblock copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SuperblockVerdict {
    Intact(Superblock),
    /// All zero: never written.
    Blank,
    /// Another version's, whole by its own checksum.
    Version(u32),
    /// Features this version does not know, whole by its own checksum.
    Features(u32),
    Damaged(&'static str),
}

impl Superblock {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut b = vec![0; BLOCK as usize];
        put(&mut b, 0, &MAGIC);
        put(&mut b, 8, &VERSION.to_le_bytes());
        put(&mut b, 16, &self.counter.to_le_bytes());
        put(&mut b, 24, &self.store_id.to_le_bytes());
        put(&mut b, 32, &self.key.to_le_bytes());
        put(&mut b, 36, &self.owner_pid.to_le_bytes());
        put(&mut b, 40, &self.segment_size.to_le_bytes());
        put(&mut b, 48, &self.segments.to_le_bytes());
        put(&mut b, 56, &self.cap_segments.to_le_bytes());
        put(&mut b, 64, &self.grant.to_le_bytes());
        put(&mut b, 72, &self.number_floor.to_le_bytes());
        put(&mut b, 80, &self.rebase_from.to_le_bytes());
        put(&mut b, 88, &self.rebase_delta.to_le_bytes());
        put(&mut b, 96, &self.generation.to_le_bytes());
        let host = cut(&self.owner_host, MAX_HOST);
        put(&mut b, 104, &self.closed_at.to_le_bytes());
        put(&mut b, 112, &(host.len() as u16).to_le_bytes());
        put(&mut b, 114, &(self.client_name.len() as u16).to_le_bytes());
        put(&mut b, NAMES, host.as_bytes());
        put(&mut b, NAMES + MAX_HOST, self.client_name.as_bytes());
        b[RETIRED] = u8::from(self.retired);
        b[PREALLOCATED] = u8::from(self.preallocated);
        let crc = crc32fast::hash(&b[..BLOCK as usize - 4]);
        put(&mut b, BLOCK as usize - 4, &crc.to_le_bytes());
        b
    }

    /// Judges one copy. Magic, then checksum, then version: a copy of a later version is
    /// never called damage.
    pub(crate) fn decode(b: &[u8]) -> SuperblockVerdict {
        use SuperblockVerdict::{Blank, Damaged, Features, Intact, Version};
        if b.iter().all(|&x| x == 0) {
            return Blank;
        }
        if b.len() != BLOCK as usize || b[..8] != MAGIC {
            return Damaged("no store signature");
        }
        let end = BLOCK as usize - 4;
        if crc32fast::hash(&b[..end]) != u32_at(b, end) {
            return Damaged("superblock checksum");
        }
        if u32_at(b, 8) != VERSION {
            return Version(u32_at(b, 8));
        }
        if u32_at(b, 12) != 0 {
            return Features(u32_at(b, 12));
        }
        let (host, name) = (u16_at(b, 112) as usize, u16_at(b, 114) as usize);
        if host > MAX_HOST || name > MAX_NAME {
            return Damaged("superblock names");
        }
        let text = |at: usize, len: usize| String::from_utf8_lossy(&b[at..at + len]).into_owned();
        let superblock = Superblock {
            counter: u64_at(b, 16),
            store_id: u64_at(b, 24),
            key: u32_at(b, 32),
            owner_pid: u32_at(b, 36),
            segment_size: u64_at(b, 40),
            segments: u64_at(b, 48),
            cap_segments: u64_at(b, 56),
            grant: u64_at(b, 64),
            number_floor: u64_at(b, 72),
            rebase_from: u64_at(b, 80),
            rebase_delta: u64_at(b, 88).cast_signed(),
            generation: u64_at(b, 96),
            closed_at: u64_at(b, 104),
            retired: b[RETIRED] != 0,
            preallocated: b[PREALLOCATED] != 0,
            owner_host: text(NAMES, host),
            client_name: text(NAMES + MAX_HOST, name),
        };
        let numbers = [
            superblock.counter,
            superblock.grant,
            superblock.number_floor,
            superblock.rebase_from,
            superblock.generation,
            superblock.closed_at,
        ];
        if numbers.iter().any(|n| *n >= NUMBERS_END) {
            return Damaged("superblock numbers");
        }
        if !geometry_is_sound(
            superblock.segment_size,
            superblock.segments,
            superblock.cap_segments,
        ) {
            return Damaged("superblock geometry");
        }
        Intact(superblock)
    }
}

/// Limits of the index word bound a segment to 128 MiB and a file to 8 TiB.
pub(crate) fn geometry_is_sound(segment_size: u64, segments: u64, cap_segments: u64) -> bool {
    (2 * BLOCK..=128 << 20).contains(&segment_size)
        && segment_size.is_multiple_of(BLOCK)
        && segments >= 1
        && segments <= cap_segments
        && cap_segments >= MIN_SEGMENTS
        && cap_segments < (1 << 43) / segment_size
}

/// Largest record a segment of this size takes: a quarter of it, as long as its length fits
/// into an index word.
pub(crate) fn max_record(segment_size: u64) -> u64 {
    (segment_size / 4).min((1 << 25) - 8)
}

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SegmentHeader {
    /// Its bytes may be reused.
    Free,
    /// It holds records from this ordinal on.
    Used { first_ordinal: u64 },
}

impl SegmentHeader {
    pub(crate) fn encode(self, key: u32, offset: u64, generation: u64) -> [u8; 64] {
        let mut b = [0; SEGMENT_HEADER as usize];
        put(&mut b, 4, &SEGMENT_MAGIC);
        if let SegmentHeader::Used { first_ordinal } = self {
            put(&mut b, 8, &first_ordinal.to_le_bytes());
            b[24] = 1;
        }
        put(&mut b, 16, &generation.to_le_bytes());
        let mut crc = crc32fast::Hasher::new_with_initial(seed(key, offset));
        crc.update(&b[4..]);
        put(&mut b, 0, &crc.finalize().to_le_bytes());
        b
    }

    /// Whether this looks like the header of a segment that was never used. Without the
    /// store's key its checksum says nothing.
    pub(crate) fn may_be_free(b: &[u8]) -> bool {
        b[4..8] == SEGMENT_MAGIC && b[8..SEGMENT_HEADER as usize].iter().all(|b| *b == 0)
    }

    /// `None`: damaged. A header lies in one sector, so a power cut cannot tear it.
    pub(crate) fn decode(b: &[u8], key: u32, offset: u64) -> Option<Self> {
        let mut crc = crc32fast::Hasher::new_with_initial(seed(key, offset));
        crc.update(&b[4..SEGMENT_HEADER as usize]);
        if b[4..8] != SEGMENT_MAGIC || crc.finalize() != u32_at(b, 0) {
            return None;
        }
        match b[24] {
            0 => Some(SegmentHeader::Free),
            1 if (1..NUMBERS_END).contains(&u64_at(b, 8)) => Some(SegmentHeader::Used {
                first_ordinal: u64_at(b, 8),
            }),
            _ => None,
        }
    }
}

/// Kinds of record. Zero is none of them: unwritten space never parses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(crate) enum Kind {
    /// A message.
    Publish = 1,
    /// Up to 64 messages settled one by one.
    Settlement = 2,
    /// A refusal.
    Rejection = 3,
    /// A refusal the application took over.
    Acceptance = 4,
    /// A message appended again so that its segment can be freed.
    Copy = 5,
    /// Floor, durable mark, next sequence, oldest needed ordinal, resume tag.
    Mark = 6,
    /// The first record of an open.
    Epoch = 7,
    /// A range given up by salvage.
    Lost = 8,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        use Kind::{Acceptance, Copy, Epoch, Lost, Mark, Publish, Rejection, Settlement};
        [
            Publish, Settlement, Rejection, Acceptance, Copy, Mark, Epoch, Lost,
        ]
        .into_iter()
        .find(|k| *k as u8 == byte)
    }

    /// Whether it carries a message.
    pub(crate) fn is_message(self) -> bool {
        matches!(self, Kind::Publish | Kind::Copy)
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
        })
    }
}

/// The fixed part of a record, less its checksum.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct RecordHeader {
    /// Header, envelope and payload, without padding.
    pub(crate) len: u32,
    pub(crate) kind: Kind,
    /// The message does not move the resume point: requeued or imported.
    pub(crate) quiet: bool,
    pub(crate) envelope_len: u32,
    pub(crate) sequence: u64,
    pub(crate) ordinal: u64,
    pub(crate) generation: u64,
}

impl RecordHeader {
    /// Writes the header to the beginning of `b`, but for its checksum, and with the seed in
    /// its length. A CRC adds its register to the first four bytes anyway; for the commit
    /// word, which comes last, the length is written once more.
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

    /// A header that could be one: lengths within `max`, known kind, unused bytes zero.
    /// The checksum is not looked at.
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

/// The checksum of a record: seeded by key and place, over everything but itself.
/// `bytes` are the record's from offset 4 on, padding included.
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

/// Makes the checksums of records that are written, and asks only once what this processor
/// can do.
pub(crate) struct Checksum(crc32fast::Hasher);

impl Checksum {
    pub(crate) fn new() -> Self {
        Checksum(crc32fast::Hasher::new())
    }

    /// As [`record_crc`], of the parts one after the other, the first of which begins with a
    /// length that has the seed in it ([`RecordHeader::encode_into`]).
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

/// The length a commit word announces; 0 where nothing was written.
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

/// A user tag, of at most [`MAX_TAG`] bytes.
#[derive(Clone, Copy)]
pub(crate) struct UserTag {
    len: u8,
    bytes: [u8; MAX_TAG],
}

impl UserTag {
    pub(crate) fn new(tag: &[u8]) -> Self {
        let mut this = UserTag {
            len: 0,
            bytes: [0; MAX_TAG],
        };
        this.set(tag);
        this
    }

    #[inline]
    pub(crate) fn set(&mut self, tag: &[u8]) {
        let len = tag.len().min(MAX_TAG);
        self.len = len as u8;
        if len > 0 {
            self.bytes[..len].copy_from_slice(&tag[..len]);
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl PartialEq for UserTag {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for UserTag {}

impl fmt::Debug for UserTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().fmt(f)
    }
}

/// What a mark, and every epoch, says about the log before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Every sequence up to here is settled.
    pub(crate) floor: u64,
    /// Every ordinal up to here was on the device when this was written.
    pub(crate) durable: u64,
    /// The next sequence to be given out.
    pub(crate) next: u64,
    /// No record with a lower ordinal is needed.
    pub(crate) oldest_needed: u64,
    /// Last record of a clean close.
    pub(crate) clean: bool,
    /// User tag of the newest publish before this record.
    pub(crate) tag: Option<UserTag>,
}

impl Mark {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.floor.to_le_bytes());
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&self.oldest_needed.to_le_bytes());
        let flags = u32::from(self.clean) | u32::from(self.tag.is_some()) << 1;
        out.extend_from_slice(&flags.to_le_bytes());
        let tag = self.tag.as_ref().map_or(&[][..], UserTag::as_bytes);
        out.extend_from_slice(&(tag.len() as u32).to_le_bytes());
        // Always the same size: what one segment holds fits into another (`space.rs`).
        let mut field = [0; MAX_TAG];
        field[..tag.len()].copy_from_slice(tag);
        out.extend_from_slice(&field);
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        if b.len() != MARK_BODY {
            return None;
        }
        let (flags, tag_len) = (u32_at(b, 32), u32_at(b, 36) as usize);
        if (0..4).any(|i| u64_at(b, i * 8) >= NUMBERS_END) {
            return None;
        }
        if flags > 3 || tag_len > MAX_TAG {
            return None;
        }
        Some(Mark {
            floor: u64_at(b, 0),
            durable: u64_at(b, 8),
            next: u64_at(b, 16),
            oldest_needed: u64_at(b, 24),
            clean: flags & 1 != 0,
            tag: (flags & 2 != 0).then(|| UserTag::new(&b[MARK_TAG..MARK_TAG + tag_len])),
        })
    }
}

/// The first record of an open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// Ordinal of the record this one follows, however far its own lies above.
    pub(crate) follows: u64,
    /// Highest sequence before this open.
    pub(crate) last_before: u64,
    /// First sequence this open gives out.
    pub(crate) first_after: u64,
    pub(crate) mark: Mark,
}

impl Epoch {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.follows.to_le_bytes());
        out.extend_from_slice(&self.last_before.to_le_bytes());
        out.extend_from_slice(&self.first_after.to_le_bytes());
        self.mark.encode(out);
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < EPOCH_EXTRA || (0..3).any(|i| u64_at(b, i * 8) >= NUMBERS_END) {
            return None;
        }
        Some(Epoch {
            follows: u64_at(b, 0),
            last_before: u64_at(b, 8),
            first_after: u64_at(b, 16),
            mark: Mark::decode(&b[EPOCH_EXTRA..])?,
        })
    }
}

/// A refusal's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RejectionBody {
    pub(crate) at: u64,
    pub(crate) cut: bool,
    pub(crate) late: bool,
    pub(crate) reason: String,
}

impl RejectionBody {
    /// Cuts the reason where it must.
    pub(crate) fn new(reason: &str, at: u64, late: bool) -> Self {
        let kept = cut(reason, MAX_REASON);
        RejectionBody {
            at,
            cut: kept.len() < reason.len(),
            late,
            reason: kept.to_owned(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.to_le_bytes());
        let flags = u16::from(self.cut) | u16::from(self.late) << 1;
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&(self.reason.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.reason.as_bytes());
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < REJECTION_BODY || b.len() > REJECTION_BODY + MAX_REASON {
            return None;
        }
        let flags = u16_at(b, 8);
        if flags > 3 || u16_at(b, 10) as usize != b.len() - REJECTION_BODY {
            return None;
        }
        Some(RejectionBody {
            at: u64_at(b, 0),
            cut: flags & 1 != 0,
            late: flags & 2 != 0,
            reason: String::from_utf8_lossy(&b[REJECTION_BODY..]).into_owned(),
        })
    }
}

/// A range given up: ordinals and sequences that an intact neighbour no longer proves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostBody {
    pub(crate) first_ordinal: u64,
    pub(crate) last_ordinal: u64,
    pub(crate) first_sequence: u64,
    pub(crate) last_sequence: u64,
}

impl LostBody {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.first_ordinal,
            self.last_ordinal,
            self.first_sequence,
            self.last_sequence,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        let sound = b.len() == 32 && (0..4).all(|i| u64_at(b, i * 8) < NUMBERS_END);
        sound.then(|| LostBody {
            first_ordinal: u64_at(b, 0),
            last_ordinal: u64_at(b, 8),
            first_sequence: u64_at(b, 16),
            last_sequence: u64_at(b, 24),
        })
    }
}

/// The sequences of a settlement record.
pub(crate) fn settled_sequences(body: &[u8]) -> Option<impl Iterator<Item = u64> + '_> {
    let sound = body.len().is_multiple_of(8) && body.len() / 8 <= MAX_SETTLED && !body.is_empty();
    sound.then(|| body.chunks_exact(8).map(|word| u64_at(word, 0)))
}

/// The longest prefix of at most `max` bytes that ends on a character border.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn superblock() -> Superblock {
        Superblock {
            counter: 7,
            store_id: 1,
            key: 0xDEAD_BEEF,
            segment_size: 8192,
            segments: 7,
            cap_segments: 7,
            grant: 99,
            number_floor: 4,
            rebase_from: 5,
            rebase_delta: -3,
            generation: 2,
            closed_at: 11,
            retired: true,
            preallocated: true,
            owner_pid: 42,
            owner_host: "host".into(),
            client_name: "name".into(),
        }
    }

    #[test]
    fn a_superblock_survives_its_bytes_and_no_flipped_bit_does() {
        let bytes = superblock().encode();
        assert_eq!(
            Superblock::decode(&bytes),
            SuperblockVerdict::Intact(superblock())
        );
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(
                !matches!(Superblock::decode(&bad), SuperblockVerdict::Intact(_)),
                "bit {bit} went unnoticed"
            );
        }
    }

    #[test]
    fn the_checksum_is_crc32_iso_hdlc() {
        assert_eq!(crc32fast::hash(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn the_same_bytes_never_verify_elsewhere() {
        let bytes = [7u8; 64];
        let here = record_crc(1, 8192, &bytes);
        for offset in (0..1 << 16).step_by(8).filter(|o| *o != 8192) {
            assert_ne!(here, record_crc(1, offset, &bytes));
        }
    }

    #[test]
    fn zeros_and_ones_are_never_a_record() {
        assert_eq!(RecordHeader::decode(&[0; RECORD_HEADER], 4096), None);
        assert_eq!(RecordHeader::decode(&[0xFF; RECORD_HEADER], 4096), None);
    }

    #[test]
    fn a_reason_is_cut_on_a_character_border_and_says_so() {
        let long = "ü".repeat(100);
        let body = RejectionBody::new(&long, 1, false);
        assert!(body.cut && body.reason.len() <= MAX_REASON && long.starts_with(&body.reason));
        let mut bytes = Vec::new();
        body.encode(&mut bytes);
        assert_eq!(RejectionBody::decode(&bytes), Some(body));
    }

    #[test]
    fn marks_and_epochs_survive_their_bytes() {
        let mark = Mark {
            floor: 1,
            durable: 2,
            next: 3,
            oldest_needed: 4,
            clean: true,
            tag: Some(UserTag::new(&[9; 64])),
        };
        let epoch = Epoch {
            follows: 5,
            last_before: 6,
            first_after: 7,
            mark,
        };
        let mut bytes = Vec::new();
        epoch.encode(&mut bytes);
        assert_eq!(Epoch::decode(&bytes), Some(epoch));
        assert_eq!(Epoch::decode(&bytes[..bytes.len() - 1]), None);
    }
}
