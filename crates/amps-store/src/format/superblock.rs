//! Blocks 0 and 1: what the store is, whose it is, and which numbers it may not give out again.

use super::{
    BLOCK, Identity, MAGIC, MAX_NAME, MIN_SEGMENTS, Mark, NUMBERS_END, OLD_SEGMENTS_AT,
    READ_VERSIONS, SEGMENTS_AT, UserTag, VERSION, cut, put, u16_at, u32_at, u64_at,
};

/// Where it says that the store was evacuated.
const RETIRED: usize = 888;
const PREALLOCATED: usize = 889;
/// Where it says that a store made of this one goes on in its place.
const SUPERSEDED: usize = 890;
/// Kind of transport, which stands behind the opening.
const TRANSPORT: usize = 891;
/// In blocks, where the first segment starts.
const SEGMENTS_FROM: usize = 892;
const START: usize = 896;
const DURABLE: usize = 904;
const OPENING: usize = 912;
const RESERVED: usize = OPENING + Mark::SIZE;
/// Where the names stand in a superblock.
const NAMES: usize = 116;
/// Longest host name kept in bytes.
const MAX_HOST: usize = 255;

/// What holds for everything before the first record of the log.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Opening {
    /// Every sequence up to here is settled.
    pub(crate) floor: u64,
    /// No lower number is given out.
    pub(crate) next: u64,
    /// User tag of the newest publish.
    pub(crate) tag: Option<UserTag>,
}

impl Opening {
    pub(crate) fn of(mark: &Mark) -> Self {
        Opening {
            floor: mark.floor,
            next: mark.next,
            tag: mark.tag,
        }
    }

    fn encode(&self) -> Vec<u8> {
        let mut body = Vec::with_capacity(Mark::SIZE);
        Mark {
            floor: self.floor,
            next: self.next,
            tag: self.tag,
            ..Mark::default()
        }
        .encode(&mut body);
        body
    }
}

/// Reserved for later programs: an identity that a store shares with those it was made of, and
/// the transport and stream that it is bound to. Kept as it was found.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Reserved {
    transport: u8,
    bytes: [u8; Self::SIZE],
}

impl Reserved {
    /// 16 bytes of identity, and 256 for the name of a stream.
    const SIZE: usize = 16 + 256;
}

impl Default for Reserved {
    fn default() -> Self {
        Reserved {
            transport: 0,
            bytes: [0; Self::SIZE],
        }
    }
}

impl std::fmt::Debug for Reserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let used = self.bytes.iter().filter(|b| **b != 0).count();
        write!(f, "Reserved({}, {used} bytes)", self.transport)
    }
}

/// What the file remembers outside the log, always in both copies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Version of the format, as found; whatever is written has [`VERSION`].
    pub(crate) version: u32,
    /// Where the first segment starts. In stores of version 1 there is no identity before it.
    pub(crate) segments_at: u64,
    /// Rises with every write; the intact copy with the higher counter is in force.
    pub(crate) counter: u64,
    pub(crate) store_id: u64,
    pub(crate) key: u32,
    pub(crate) segment_size: u64,
    /// Segments in the file, filled and stamped.
    pub(crate) segments: u64,
    /// Segments that the capacity allows.
    pub(crate) cap_segments: u64,
    pub(crate) grant: u64,
    /// No sequence at or below this one is given out again.
    pub(crate) number_floor: u64,
    /// 0: no rebase.
    pub(crate) rebase_from: u64,
    pub(crate) rebase_delta: i64,
    pub(crate) generation: u64,
    /// Ordinal of the closing mark after a clean close, 0 while the store is open. Nothing
    /// follows that mark.
    pub(crate) closed_at: u64,
    /// The store was evacuated to another file, and nobody may open this one any more.
    pub(crate) retired: bool,
    /// The file has had all its segments from the start, and keeps them.
    pub(crate) preallocated: bool,
    pub(crate) owner_pid: u32,
    pub(crate) owner_host: String,
    pub(crate) client_name: String,
    /// Ordinal of the first record of the log: no record with a lower one exists, wherever its
    /// bytes stand. 0 in a store of version 1.
    pub(crate) start: u64,
    /// Every ordinal from the start up to here was on the device.
    pub(crate) durable: u64,
    /// Read as if it were the record before `start`.
    pub(crate) opening: Opening,
    /// A repaired copy goes on in its place, and nobody may open this one any more.
    pub(crate) superseded: bool,
    pub(crate) reserved: Reserved,
}

/// What is found at the place of a superblock copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SuperblockVerdict {
    Intact(Box<Superblock>),
    /// All zero: never written.
    Blank,
    /// A copy of another version, whose checksum fits.
    Version(u32),
    /// A copy with features that this version does not know, whose checksum fits.
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
        b[SUPERSEDED] = u8::from(self.superseded);
        b[TRANSPORT] = self.reserved.transport;
        put(
            &mut b,
            SEGMENTS_FROM,
            &((self.segments_at / BLOCK) as u32).to_le_bytes(),
        );
        put(&mut b, START, &self.start.to_le_bytes());
        put(&mut b, DURABLE, &self.durable.to_le_bytes());
        put(&mut b, OPENING, &self.opening.encode());
        put(&mut b, RESERVED, &self.reserved.bytes);
        let crc = crc32fast::hash(&b[..BLOCK as usize - 4]);
        put(&mut b, BLOCK as usize - 4, &crc.to_le_bytes());
        b
    }

    /// Judges one copy by magic, then checksum, then version: a copy of a later version is never
    /// called damaged.
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
        let version = u32_at(b, 8);
        if !READ_VERSIONS.contains(&version) {
            return Version(version);
        }
        if u32_at(b, 12) != 0 {
            return Features(u32_at(b, 12));
        }
        let (host, name) = (u16_at(b, 112) as usize, u16_at(b, 114) as usize);
        if host > MAX_HOST || name > MAX_NAME {
            return Damaged("superblock names");
        }
        let behind = match version {
            1 => Behind::default(),
            _ => match Behind::decode(b) {
                Some(behind) => behind,
                None => return Damaged("superblock start"),
            },
        };
        let text = |at: usize, len: usize| String::from_utf8_lossy(&b[at..at + len]).into_owned();
        let superblock = Superblock {
            version,
            segments_at: behind.segments_at,
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
            start: behind.start,
            durable: behind.durable,
            opening: behind.opening,
            superseded: behind.superseded,
            reserved: behind.reserved,
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
        Intact(Box::new(superblock))
    }

    /// Whether another file goes on in its place.
    pub(crate) fn is_given_up(&self) -> bool {
        self.retired || self.superseded
    }

    /// How long a file with this many segments is.
    pub(crate) fn len_of(&self, segments: u64) -> u64 {
        self.segments_at + segments * self.segment_size
    }

    /// How many whole segments a file of this length has, of those that the superblock may name.
    pub(crate) fn whole_segments(&self, len: u64) -> u64 {
        len.saturating_sub(self.segments_at) / self.segment_size
    }

    /// The end of the last segment of which a file of this length has a part, of those that the
    /// superblock names.
    pub(crate) fn end_of_begun(&self, len: u64) -> u64 {
        let begun = len
            .saturating_sub(self.segments_at)
            .div_ceil(self.segment_size);
        self.len_of(begun.min(self.segments)).max(len)
    }

    /// The identity of a new store; `None`: the store is of version 1 and has no place for it.
    pub(crate) fn identity(&self) -> Option<Identity> {
        (self.segments_at == SEGMENTS_AT).then(|| Identity {
            store_id: self.store_id,
            key: self.key,
            segment_size: self.segment_size,
            client_name: self.client_name.clone(),
        })
    }
}

/// What stands behind the fields of version 1.
struct Behind {
    segments_at: u64,
    start: u64,
    durable: u64,
    opening: Opening,
    superseded: bool,
    reserved: Reserved,
}

impl Default for Behind {
    fn default() -> Self {
        Behind {
            segments_at: OLD_SEGMENTS_AT,
            start: 0,
            durable: 0,
            opening: Opening::default(),
            superseded: false,
            reserved: Reserved::default(),
        }
    }
}

impl Behind {
    /// `None`: no store writes this.
    fn decode(b: &[u8]) -> Option<Self> {
        let segments_at = u64::from(u32_at(b, SEGMENTS_FROM)) * BLOCK;
        let (start, durable) = (u64_at(b, START), u64_at(b, DURABLE));
        let numbers = start < NUMBERS_END && durable < NUMBERS_END;
        if !numbers || ![OLD_SEGMENTS_AT, SEGMENTS_AT].contains(&segments_at) {
            return None;
        }
        // The opening is a mark of what came before the log, and says nothing about the log.
        let opening = Mark::decode(&b[OPENING..RESERVED], 0)?;
        let mut bytes = [0; Reserved::SIZE];
        bytes.copy_from_slice(&b[RESERVED..RESERVED + Reserved::SIZE]);
        Some(Behind {
            segments_at,
            start,
            durable,
            opening: Opening::of(&opening),
            superseded: b[SUPERSEDED] != 0,
            reserved: Reserved {
                transport: b[TRANSPORT],
                bytes,
            },
        })
    }
}

/// What a damaged copy still shows. It may be wrong.
pub(crate) struct SuperblockRemains {
    pub(crate) cap_segments: u64,
    pub(crate) retired: bool,
    /// If it has the form of a client name.
    pub(crate) client_name: Option<String>,
}

impl SuperblockRemains {
    /// Reads it from a whole block.
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

/// The width of an index word limits a segment to 128 MiB and a file to 8 TiB.
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
