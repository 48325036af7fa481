//! Where the log begins in a store without a superblock, according to its marks.

use std::collections::HashMap;
use std::io;

use crate::format::{Epoch, Kind, Mark, Superblock};
use crate::recover::scan::{Geometry, Scanner, Source};

/// The ordinal below which nothing is needed: the highest that a mark names, if every record up
/// to that mark is there. Segments that were freed are not stamped, so what stands in them looks
/// like the beginning of the log, and what was written over it looks like a hole. For a mark
/// behind a hole it cannot be said whether what it passed over was copied: the copies may be what
/// is missing. 0: no mark tells.
///
/// # Errors
/// The file cannot be read.
pub(crate) fn told_start<S: Source + ?Sized>(
    source: &S,
    superblock: &Superblock,
) -> io::Result<u64> {
    let geometry = Geometry::of(superblock);
    let mut scanner = Scanner::new(source, geometry);
    let total = superblock.segments * superblock.segment_size;
    let mut budget = total.saturating_mul(4).saturating_add(1 << 20);
    let mut found = Vec::new();
    for segment in 0..superblock.segments as usize {
        let (from, end) = (geometry.records_at(segment), geometry.end_of(segment));
        if !scanner.search(from, end, 0, &mut budget, &mut found)? {
            return Ok(0);
        }
    }
    let mut marks = Vec::new();
    let mut follows = HashMap::new();
    for seen in &found {
        let ordinal = seen.ordinal();
        match seen.kind() {
            Kind::Mark => {
                let mark = Mark::decode(scanner.body(seen)?, ordinal);
                marks.extend(mark.map(|mark| (ordinal, mark.oldest_needed)));
            }
            Kind::Epoch => {
                if let Some(epoch) = Epoch::decode(scanner.body(seen)?, ordinal) {
                    marks.push((ordinal, epoch.mark.oldest_needed));
                    follows.insert(ordinal, epoch.follows);
                }
            }
            _ => {}
        }
    }
    let mut ordinals: Vec<u64> = found.iter().map(|seen| seen.ordinal()).collect();
    ordinals.sort_unstable();
    ordinals.dedup();
    // For each record, how far back none is missing.
    let mut back_to: Vec<u64> = Vec::with_capacity(ordinals.len());
    for (at, &ordinal) in ordinals.iter().enumerate() {
        let before = follows.get(&ordinal).copied().unwrap_or(ordinal - 1);
        let place = ordinals[..at].binary_search(&before);
        back_to.push(place.map_or(ordinal, |place| back_to[place]));
    }
    // A mark that an epoch declares dead counts for nothing.
    let is_dead = |ordinal: u64| {
        follows
            .iter()
            .any(|(epoch, last)| (last + 1..*epoch).contains(&ordinal))
    };
    marks.sort_unstable_by_key(|(ordinal, oldest)| std::cmp::Reverse((*oldest, *ordinal)));
    let told = marks.into_iter().find(|&(ordinal, oldest)| {
        let whole = ordinals
            .binary_search(&ordinal)
            .is_ok_and(|at| back_to[at] <= oldest);
        whole && !is_dead(ordinal)
    });
    Ok(told.map_or(0, |(_, oldest)| oldest))
}
