//! Blocks 0 and 1: what the store is, whose, and which numbers it may not give out again.

use super::{
    BLOCK, MAGIC, MAX_NAME, MIN_SEGMENTS, NUMBERS_END, VERSION, cut, put, u16_at, u32_at, u64_at,
};

/// Where the superblock says that the store was evacuated.
const RETIRED: usize = 888;
const PREALLOCATED: usize = 889;
/// Where the names stand in a superblock.
const NAMES: usize = 116;
/// Longest host name kept in bytes.
const MAX_HOST: usize = 255;

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

/// What a damaged copy still shows, for what that is worth.
pub(crate) struct SuperblockRemains {
    pub(crate) cap_segments: u64,
    pub(crate) retired: bool,
    /// Where it has the form of one.
    pub(crate) client_name: Option<String>,
}

impl SuperblockRemains {
    /// Of a whole block.
    pub(crate) fn of(b: &[u8]) -> Self {
        let room = &b[NAMES + MAX_HOST..][..MAX_NAME];
        let (name, padding) = room.split_at((u16_at(b, 114) as usize).min(MAX_NAME));
        let has_form = !name.is_empty()
            && u16_at(b, 114) as usize <= MAX_NAME
            && padding.iter().all(|b| *b == 0);
        let name = String::from_utf8(name.to_vec()).ok();
        SuperblockRemains {
            cap_segments: u64_at(b, 56),
            retired: b[RETIRED] != 0,
            client_name: name.filter(|_| has_form),
        }
    }
}

/// Limits of the index word bound a segment to 128 MiB and a file to 8 TiB.
pub(crate) fn geometry_is_sound(segment_size: u64, segments: u64, cap_segments: u64) -> bool {
    (2 * BLOCK..=128 << 20).contains(&segment_size)
        && segment_size.is_multiple_of(BLOCK)
        && segments >= 1
        && segments <= cap_segments
        && cap_segments >= MIN_SEGMENTS
        && cap_segments <= most_segments(segment_size)
}

/// How many segments a file may have.
pub(crate) fn most_segments(segment_size: u64) -> u64 {
    (1 << 43) / segment_size - 1
}
