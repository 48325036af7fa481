//! The superblock in force, before anything else is read. F1 to F12 are rows of
//! `store-format.md` §5.

use std::io;

use super::Refusal;
use crate::format::{
    BLOCK, IDENTITY_AT, Identity, MAGIC, OLD_SEGMENTS_AT, SEGMENT_HEADER, SUPERBLOCKS,
    SegmentHeader, Superblock, SuperblockVerdict,
};
use crate::recover::scan::Source;

/// The superblock in force.
pub(crate) struct Header {
    pub(crate) superblock: Superblock,
    /// The other copy is damaged, or behind.
    pub(crate) repair: bool,
    /// In which order to write the copies next: never first over the only one that counts.
    pub(crate) order: [u64; 2],
    /// The store's identity is not intact: its creation was not finished, or it is damaged.
    pub(crate) lacks_identity: bool,
}

/// The store's identity; `None`: there is no intact one.
pub(super) fn read_identity<S: Source + ?Sized>(
    source: &S,
    len: u64,
) -> io::Result<Option<Identity>> {
    if len < IDENTITY_AT + BLOCK {
        return Ok(None);
    }
    let mut bytes = vec![0; BLOCK as usize];
    source.fetch(IDENTITY_AT, &mut bytes)?;
    Ok(Identity::decode(&bytes))
}

/// Reads both superblock copies and takes the newer intact one.
pub(crate) fn read_header<S: Source + ?Sized>(source: &S, len: u64) -> Result<Header, Refusal> {
    let mut verdicts = Vec::with_capacity(2);
    for at in SUPERBLOCKS {
        let mut bytes = vec![0; BLOCK as usize];
        if at + BLOCK <= len {
            source.fetch(at, &mut bytes)?;
        }
        verdicts.push(Superblock::decode(&bytes));
    }
    // F4: the checksum fits, so a newer program wrote this copy. Whatever the other copy says, it
    // must not be overwritten.
    for verdict in &verdicts {
        match verdict {
            SuperblockVerdict::Version(v) => return Err(Refusal::Version(*v)),
            SuperblockVerdict::Features(f) => {
                return Err(Refusal::Features(*f));
            }
            _ => {}
        }
    }
    // F2, F3
    let newest = verdicts
        .iter()
        .filter_map(|v| {
            if let SuperblockVerdict::Intact(s) = v {
                Some(s)
            } else {
                None
            }
        })
        .max_by_key(|s| s.counter);
    if let Some(superblock) = newest {
        let is_in_force =
            |v: &SuperblockVerdict| matches!(v, SuperblockVerdict::Intact(s) if s == superblock);
        let mut lacks_identity = false;
        if let Some(identity) = superblock.identity() {
            lacks_identity = read_identity(source, len)? != Some(identity); // F12
        }
        return Ok(Header {
            lacks_identity,
            superblock: (**superblock).clone(),
            repair: !verdicts.iter().all(is_in_force),
            order: match is_in_force(&verdicts[0]) {
                true => [SUPERBLOCKS[1], SUPERBLOCKS[0]],
                false => SUPERBLOCKS,
            },
        });
    }
    if verdicts[1] == SuperblockVerdict::Blank && is_unfinished(source, len)? {
        return Err(Refusal::NotCreated); // F1
    }
    let why = match (&verdicts[0], &verdicts[1]) {
        (SuperblockVerdict::Damaged(why), _) | (_, SuperblockVerdict::Damaged(why)) => why,
        _ if len < SUPERBLOCKS[0] + BLOCK => "it is shorter than a superblock",
        _ => "both superblock copies are blank, and data follows",
    };
    let why = (*why).to_owned();
    match super::stand_in(source, len)? {
        Some(_) => Err(Refusal::NoSuperblock(why)), // F10
        None => Err(Refusal::NotAStore(why)),       // F5
    }
}

/// How many empty segments are looked at for each one that holds something, and how many besides.
/// Recovery keeps some 100 bytes for each, and a file can claim any number.
const EMPTY_PER_SEGMENT: u64 = 8;
const EMPTY_SEGMENTS: u64 = 1 << 16;

/// How far a file of `len` bytes goes. If holes take the last of its segments whole, the file
/// ends where the last one before ends, as if it had been cut there: a store's segments are
/// filled, and each has a header.
///
/// # Errors
/// The data lies so far apart that keeping account of the holes between would take more memory
/// than the file takes room.
pub(crate) fn reach<S: Source + ?Sized>(
    source: &S,
    len: u64,
    superblock: &Superblock,
) -> Result<u64, Refusal> {
    let there = superblock.whole_segments(len).min(superblock.segments);
    let (mut segments, mut filled) = (0, 0);
    while segments < there {
        let data = source.next_data(superblock.len_of(segments))?;
        let segment = superblock.whole_segments(data);
        if segment >= there {
            return Ok(superblock.len_of(segments));
        }
        filled += 1;
        segments = segment + 1;
        let empty = segments - filled;
        if empty > EMPTY_SEGMENTS + EMPTY_PER_SEGMENT * filled {
            return Err(Refusal::Broken(format!(
                "of its first {segments} segments {empty} are holes, which no store leaves"
            )));
        }
    }
    Ok(len)
}

/// Whether this is what an unfinished creation leaves: the first superblock, perhaps in part, and
/// behind the superblocks zeros and headers of free segments. No record is written before the
/// superblocks are complete, so nothing can be lost with such a file.
fn is_unfinished<S: Source + ?Sized>(source: &S, len: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(BLOCK);
        let block = &mut block[..n as usize];
        source.fetch(at, block)?;
        let rest = if at == SUPERBLOCKS[0] && n == BLOCK && block.starts_with(&MAGIC) {
            // Its checksum, or a missing later sector, has shown that it is not complete.
            &[]
        } else if at >= OLD_SEGMENTS_AT && n == BLOCK && SegmentHeader::may_be_free(block) {
            &block[SEGMENT_HEADER as usize..]
        } else {
            &*block
        };
        if rest.iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at += n;
        at = (source.next_data(at)? / BLOCK * BLOCK).max(at);
    }
    Ok(true)
}
