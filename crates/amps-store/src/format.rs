//! Every byte offset of the store, and nothing else: pure encoding and decoding.
//!
//! `store-format.md` is the normative page; nothing but this module knows where a field
//! stands.

mod body;
mod identity;
mod record;
mod superblock;
#[cfg(test)]
mod tests;

use crate::MAX_REASON;

use self::body::{EPOCH_EXTRA, MARK_BODY, REJECTION_BODY};
pub(crate) use self::body::{Epoch, LostBody, Mark, RejectionBody, UserTag, settled_sequences};
pub(crate) use self::identity::Identity;
pub(crate) use self::record::{
    Checksum, Kind, RecordHeader, commit_word, committed_len, record_is_intact,
};
// Records are made by hand in tests alone.
#[cfg(any(test, feature = "testkit"))]
pub(crate) use self::record::record_crc;
pub(crate) use self::superblock::{
    Opening, Reserved, Superblock, SuperblockRemains, SuperblockVerdict, geometry_is_sound,
    most_segments,
};

/// Version written by this program.
pub(crate) const VERSION: u32 = 2;
/// Versions that it reads. The first open that writes converts the file to the newest.
pub(crate) const READ_VERSIONS: std::ops::RangeInclusive<u32> = 1..=VERSION;
/// First bytes of a superblock.
pub(crate) const MAGIC: [u8; 8] = *b"\x89AMPSTO\n";
/// Size of a superblock copy, and the granularity of segments.
pub(crate) const BLOCK: u64 = 4096;
/// Where the two superblock copies stand.
pub(crate) const SUPERBLOCKS: [u64; 2] = [0, BLOCK];
/// Where a store's identity stands: what never changes about it.
pub(crate) const IDENTITY_AT: u64 = 2 * BLOCK;
/// Where the first segment of a new store starts.
pub(crate) const SEGMENTS_AT: u64 = 3 * BLOCK;
/// Where the first segment of a store of version 1 starts, which has no identity.
pub(crate) const OLD_SEGMENTS_AT: u64 = 2 * BLOCK;
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

/// Sequences, ordinals and generations stay below this, so adding one never overflows.
const NUMBERS_END: u64 = 1 << 63;
/// No store is opened with numbers at or above this one, so that no run can reach the end.
pub(crate) const NUMBERS_LAST: u64 = NUMBERS_END - (1 << 48);
/// No grant and no wire number of a rebase may begin above this. That leaves more numbers than
/// any run gives out before those with which no store is opened.
pub(crate) const GRANT_LAST: u64 = NUMBERS_LAST - (1 << 47);

pub(crate) const SEGMENT_MAGIC: [u8; 4] = *b"SEG1";

/// Largest mark or epoch record. Every segment begins with one.
pub(crate) const MAX_OPENING: u64 = stride(RECORD_HEADER + EPOCH_EXTRA + MARK_BODY);
/// Size of the settlement of one message.
pub(crate) const ONE_SETTLEMENT: u64 = stride(RECORD_HEADER + 8);
/// Largest settlement record.
pub(crate) const MAX_SETTLEMENT: u64 = stride(RECORD_HEADER + 8 * MAX_SETTLED);
/// Largest rejection record.
pub(crate) const MAX_REJECTION: u64 = stride(RECORD_HEADER + REJECTION_BODY + MAX_REASON);
/// Size of an acceptance record.
pub(crate) const ACCEPTANCE: u64 = stride(RECORD_HEADER);
/// What a publish is charged for its own future (`store-format.md` §4).
pub(crate) const CHARGE: u64 = ONE_SETTLEMENT + MAX_REJECTION + ACCEPTANCE;

/// Bytes that a record of this length takes in the log.
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

/// The longest prefix of at most `max` bytes that ends on a character border.
fn cut(text: &str, max: usize) -> &str {
    let mut end = text.len().min(max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The initial CRC register for bytes that stand at `offset`.
///
/// A CRC maps its initial register one to one, so the same bytes never verify at a place with a
/// different register. Within 32 GiB no two places share one.
pub(crate) fn seed(key: u32, offset: u64) -> u32 {
    let place = offset / 8;
    key ^ (place as u32) ^ ((place >> 32) as u32).wrapping_mul(0x9E37_79B1)
}

/// The initial register with which the CRC of these bytes is `crc`. There is exactly one.
fn unwound(crc: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0xEDB8_8320;
    let mut register = !crc;
    for byte in bytes.iter().rev() {
        for _ in 0..8 {
            // The polynomial has its highest bit set, which a shift has just cleared; so that bit
            // shows whether the polynomial was added.
            register = match register >> 31 {
                0 => register << 1,
                _ => (register ^ POLYNOMIAL) << 1 | 1,
            };
        }
        register ^= u32::from(*byte);
    }
    !register
}

/// Largest record that a segment of this size takes: a quarter of it, if that length fits into an
/// index word.
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

    /// The key with which the checksum fits at this place; `None`: it does not have the form of a
    /// header. A damaged header gives an arbitrary key.
    pub(crate) fn key_told(b: &[u8], offset: u64) -> Option<u32> {
        let has_form = b[4..8] == SEGMENT_MAGIC && b[24] <= 1;
        has_form.then(|| unwound(u32_at(b, 0), &b[4..SEGMENT_HEADER as usize]) ^ seed(0, offset))
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
