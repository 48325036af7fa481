//! What stands in for a superblock when both copies are damaged.
//!
//! A store made since format version 2 has an identity behind the superblocks. For an older one,
//! or if the identity is damaged too, the key of all checksums follows from any segment header: a
//! CRC can be run backwards, so the bytes behind a checksum and the checksum itself leave only
//! one value that the register can have begun with, which is made of the key and the place. The
//! key that most headers agree on, and that fits a record, is the store's. The distances between
//! segment headers tell the size of a segment.

use std::io;

use super::header::read_identity;
use super::{Refusal, reach};
use crate::format::{
    BLOCK, MIN_SEGMENTS, OLD_SEGMENTS_AT, Opening, RECORD_HEADER, RecordHeader, Reserved,
    SEGMENT_HEADER, SEGMENTS_AT, SUPERBLOCKS, SegmentHeader, Superblock, SuperblockRemains,
    VERSION, geometry_is_sound, most_segments, record_is_intact,
};
use crate::recover::scan::{Geometry, Scanner, Seen, Source};

/// The largest segment; a record in a larger one would not fit into an index word.
const LARGEST_SEGMENT: u64 = 128 << 20;
const LARGEST_RECORD: u64 = (1 << 25) - 8;

/// A store without any header up to here is given up: two of its segments lie before it, whatever
/// their size.
const FIRST_HEADERS: u64 = SEGMENTS_AT + 2 * LARGEST_SEGMENT;

/// The capacity that is assumed where nothing tells it, unless the file is longer.
const USUAL_CAPACITY: u64 = 256 << 20;

/// What stands in for a superblock.
pub(crate) struct StandIn {
    /// Key and geometry. No grant, no rebase, never closed, and no owner.
    pub(crate) superblock: Superblock,
    /// Segment headers that agree on the key.
    pub(crate) headers: u64,
    /// Segment headers that belong to another one.
    pub(crate) foreign: u64,
    /// The client name, from the identity, or where both copies still show the same one.
    pub(crate) client_name: Option<String>,
    /// The identity is intact: key, geometry and client name come from there.
    pub(crate) by_identity: bool,
    /// A copy says that the store was evacuated; it is damaged, so that may be wrong.
    pub(crate) says_evacuated: bool,
}

/// A segment header, and the key that follows from it.
#[derive(Clone, Copy)]
struct Told {
    key: u32,
    at: u64,
}

/// What can be known about a store whose superblock copies are both damaged; `None`: nothing
/// shows that it is a store.
///
/// # Errors
/// As [`reach`], or the file cannot be read.
pub(crate) fn stand_in<S: Source + ?Sized>(
    source: &S,
    len: u64,
) -> Result<Option<StandIn>, Refusal> {
    let told = segment_headers(source, len)?;
    let identity = read_identity(source, len)?;
    let known = identity.as_ref().map(|identity| identity.key);
    let key = match known {
        Some(key) => Some(key),
        None => key_of(source, len, &told)?,
    };
    let Some(key) = key else {
        return Ok(None);
    };
    let ours: Vec<u64> = told.iter().filter(|t| t.key == key).map(|t| t.at).collect();
    let is_old = identity.is_none() && ours.first() == Some(&OLD_SEGMENTS_AT);
    // If the first header is damaged, the distances between the others tell it.
    let places = match is_old {
        true => [OLD_SEGMENTS_AT, SEGMENTS_AT],
        false => [SEGMENTS_AT, OLD_SEGMENTS_AT],
    };
    let mut geometry = identity
        .as_ref()
        .map(|identity| (SEGMENTS_AT, identity.segment_size));
    for first in places {
        if geometry.is_none() && ours.iter().all(|at| *at >= first) && len > first {
            let size = segment_size(source, len, key, first, &ours)?;
            geometry = size.map(|size| (first, size));
        }
    }
    let Some((segments_at, segment_size)) = geometry else {
        return Ok(None);
    };
    let mut copies = Vec::new();
    for at in SUPERBLOCKS {
        let mut bytes = vec![0; BLOCK as usize];
        source.fetch(at, &mut bytes)?;
        copies.push(SuperblockRemains::of(&bytes));
    }
    let client_name = match copies[0].client_name == copies[1].client_name {
        true => copies[0].client_name.take(),
        false => None,
    };
    let client_name = match &identity {
        Some(identity) => Some(identity.client_name.clone()),
        None => client_name,
    };
    let segments = |len: u64| len.saturating_sub(segments_at) / segment_size;
    let by_identity = identity.is_some();
    let mut superblock = Superblock {
        version: VERSION,
        segments_at,
        counter: 0,
        store_id: identity.map_or(0, |identity| identity.store_id),
        key,
        segment_size,
        segments: segments(len).min(most_segments(segment_size)),
        cap_segments: copies[0].cap_segments,
        grant: 0,
        number_floor: 0,
        rebase_from: 0,
        rebase_delta: 0,
        generation: 0,
        closed_at: 0,
        retired: false,
        preallocated: false,
        owner_pid: 0,
        owner_host: String::new(),
        client_name: String::new(),
        start: 0,
        durable: 0,
        opening: Opening::default(),
        superseded: false,
        reserved: Reserved::default(),
    };
    // No segments are named that are not there.
    superblock.segments = segments(reach(source, len, &superblock)?).min(superblock.segments);
    let is_alike = copies[0].cap_segments == copies[1].cap_segments;
    if !is_alike || !geometry_is_sound(segment_size, superblock.segments, superblock.cap_segments) {
        let usual = (USUAL_CAPACITY - segments_at) / segment_size;
        superblock.cap_segments = superblock.segments.max(usual).max(MIN_SEGMENTS);
    }
    Ok(Some(StandIn {
        superblock,
        headers: ours.len() as u64,
        foreign: (told.len() - ours.len()) as u64,
        client_name,
        by_identity,
        says_evacuated: copies.iter().any(|copy| copy.retired),
    }))
}

/// Everything that has the form of a segment header, in order.
fn segment_headers<S: Source + ?Sized>(source: &S, len: u64) -> io::Result<Vec<Told>> {
    let mut told = Vec::new();
    let mut at = OLD_SEGMENTS_AT;
    let mut header = [0; SEGMENT_HEADER as usize];
    loop {
        at = (source.next_data(at)? / BLOCK * BLOCK).max(at);
        if at >= len || (told.is_empty() && at >= FIRST_HEADERS) {
            return Ok(told);
        }
        source.fetch(at, &mut header)?;
        told.extend(SegmentHeader::key_told(&header, at).map(|key| Told { key, at }));
        at += BLOCK;
    }
}

/// The key that headers agree on and that fits the record behind one of them. If there are
/// several, the one that most headers have, and of equally many the first. If no record fits, the
/// one that most headers have, provided that it is more than one: headers that are damaged alike
/// agree on a wrong key.
fn key_of<S: Source + ?Sized>(source: &S, len: u64, told: &[Told]) -> io::Result<Option<u32>> {
    let mut by_key = told.to_vec();
    by_key.sort_unstable_by_key(|t| (t.key, t.at));
    let mut groups: Vec<&[Told]> = by_key.chunk_by(|a, b| a.key == b.key).collect();
    groups.sort_unstable_by_key(|group| (std::cmp::Reverse(group.len()), group[0].at));
    let mut budget = search_budget(len);
    for header in groups.iter().copied().flatten() {
        match fits_behind(source, len, header, &mut budget)? {
            Some(true) => return Ok(Some(header.key)),
            Some(false) => {}
            None => break,
        }
    }
    let most = groups.first().filter(|group| group.len() > 1);
    Ok(most.map(|group| group[0].key))
}

/// Whether an intact record stands behind a header, with the key that this header gives; `None`:
/// the budget ran out.
fn fits_behind<S: Source + ?Sized>(
    source: &S,
    len: u64,
    header: &Told,
    budget: &mut u64,
) -> io::Result<Option<bool>> {
    let first = header.at + SEGMENT_HEADER;
    let mut head = [0; RECORD_HEADER];
    source.fetch(first, &mut head)?;
    let most = LARGEST_RECORD.min(len.saturating_sub(first));
    let Some(record) = RecordHeader::decode(&head, most) else {
        return Ok(Some(false));
    };
    let Some(left) = budget.checked_sub(record.stride()) else {
        return Ok(None);
    };
    *budget = left;
    let mut bytes = vec![0; record.stride() as usize];
    source.fetch(first, &mut bytes)?;
    Ok(Some(record_is_intact(&bytes, header.key, first)))
}

/// As in a recovery (`store-format.md` G8): bytes that may be checksummed in vain.
fn search_budget(len: u64) -> u64 {
    (1 << 20) + 4 * len
}

/// The size of the segments: the largest that divides all distances between headers. If a header
/// is missing at a place where this size expects one, the size may be wrong, and the records
/// decide: a segment begins where a record stands right behind room for a header that no record
/// reaches into.
fn segment_size<S: Source + ?Sized>(
    source: &S,
    len: u64,
    key: u32,
    first: u64,
    headers: &[u64],
) -> io::Result<Option<u64>> {
    let room = len - first;
    let by_headers = common_distance(first, headers);
    if is_size(by_headers) {
        let whole = |at: &&u64| **at + by_headers <= len;
        if headers.iter().filter(whole).count() as u64 == room / by_headers {
            return Ok(Some(by_headers));
        }
    }
    let mut starts = headers.to_vec();
    starts.extend(segments_begun(source, len, key, first)?);
    let by_records = common_distance(first, &starts);
    let known = [by_records, by_headers]
        .into_iter()
        .find(|size| is_size(*size));
    // Only the first segment shows anything, so whatever there is lies in that one.
    let whole = || (room / BLOCK * BLOCK).min(LARGEST_SEGMENT);
    let one = (by_records == 0).then(whole);
    Ok(known.or(one).filter(|size| is_size(*size) && *size <= room))
}

fn is_size(size: u64) -> bool {
    geometry_is_sound(size, 1, MIN_SEGMENTS)
}

fn common_distance(first: u64, starts: &[u64]) -> u64 {
    starts
        .iter()
        .fold(0, |size, start| common_divisor(size, start - first))
}

fn common_divisor(a: u64, b: u64) -> u64 {
    match b {
        0 => a,
        b => common_divisor(b, a % b),
    }
}

/// Where a segment seems to begin: a record stands behind what would be its header, and no record
/// lies in that.
fn segments_begun<S: Source + ?Sized>(
    source: &S,
    len: u64,
    key: u32,
    first: u64,
) -> io::Result<Vec<u64>> {
    let mut found: Vec<Seen> = Vec::new();
    let geometry = Geometry {
        key,
        segments_at: first,
        segment_size: LARGEST_SEGMENT,
        max_record: LARGEST_RECORD,
    };
    let mut scanner = Scanner::new(source, geometry);
    let mut budget = search_budget(len);
    // What was found before the budget ran out has to do.
    scanner.search(first, len, 0, &mut budget, &mut found)?;
    let mut begun = Vec::new();
    let mut end = 0;
    for seen in &found {
        let start = seen.offset - SEGMENT_HEADER;
        let opens = !seen.kind().has_sequence();
        if opens && start.is_multiple_of(BLOCK) && end <= start {
            begun.push(start);
        }
        end = seen.offset + seen.header.stride();
    }
    Ok(begun)
}

/// No file of this length holds more records.
pub(crate) fn most_records(len: u64) -> u64 {
    len / RECORD_HEADER as u64
}
