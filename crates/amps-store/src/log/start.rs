//! A new run: takes over what recovery found, and names what is lost.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Log;
use crate::api::Durable;
use crate::error::{DamagedRange, StoreError};
use crate::faults::planted::{self, Bug};
use crate::format::{
    Epoch, Kind, LostBody, MAX_OPENING, MAX_SETTLED, Opening, RECORD_HEADER, Superblock, UserTag,
    stride,
};
use crate::log::draft::Draft;
use crate::log::watermark::Watermark;
use crate::medium::Medium;
use crate::recover::Recovered;
use crate::space::{Segments, Space, usable};

/// The most lost records that one open writes.
const MAX_LOST: usize = 32;

/// Whether a new run needs no free segment: what it writes fits behind the log, and so do the
/// copies that free the oldest segment.
pub(crate) fn starts_in_last_segment(recovered: &Recovered) -> bool {
    let (Some(oldest), Some(last)) = (recovered.chain.first(), recovered.chain.last()) else {
        return false;
    };
    let lost = (recovered.damaged.len() + recovered.ignored.len()).min(MAX_LOST);
    let lost = lost as u64 * stride(RECORD_HEADER + LostBody::SIZE);
    let collection = recovered.state.segment_live(oldest.segment) + MAX_OPENING;
    let written = MAX_OPENING + stranded_bytes(recovered) + lost;
    last.end + written + collection <= recovered.geometry.end_of(last.segment)
}

/// The most segments that the copies of stranded records take.
pub(crate) fn segments_for_stranded(recovered: &Recovered) -> u64 {
    stranded_bytes(recovered).div_ceil(usable(&recovered.geometry))
}

fn stranded_bytes(recovered: &Recovered) -> u64 {
    let stranded = recovered.stranded.iter();
    stranded.map(|seen| seen.header.stride()).sum()
}

impl Log {
    /// Takes over what recovery found, and begins a new epoch behind it. The superblock already
    /// names this run; free segments are stamped and durable.
    pub(crate) fn start(
        medium: Box<dyn Medium>,
        superblock: Superblock,
        recovered: Recovered,
    ) -> Result<Log, StoreError> {
        let next = match planted::is(Bug::SequenceReset) {
            true => recovered.state.last() + 1,
            false => recovered.next.max(recovered.max_sequence + 1),
        };
        let in_place = recovered.resumes_in_place();
        let chain: VecDeque<_> = recovered
            .chain
            .iter()
            .map(|c| (c.segment, c.first_ordinal))
            .collect();
        let last: Vec<usize> = {
            let mut is_new = vec![true; superblock.segments as usize];
            let held = recovered.set_aside.iter();
            held.map(|s| recovered.geometry.segment_of(s.offset))
                .filter(|s| std::mem::take(&mut is_new[*s]))
                .collect()
        };
        let tail = recovered.chain.last().map(|c| (c.segment, c.end));
        // When damage is given up, damage that could be ignored is named too, since what proved
        // it harmless may be gone at the next open.
        let ignored = recovered.ignored.iter().map(|r| DamagedRange {
            sequences: None,
            ..r.clone()
        });
        let gives_up = !recovered.damaged.is_empty();
        let mut lost: Vec<LostBody> = recovered
            .damaged
            .iter()
            .cloned()
            .chain(ignored.filter(|_| gives_up))
            .filter(|r| r.first_ordinal != 0)
            .map(|r| LostBody {
                first_ordinal: r.first_ordinal,
                last_ordinal: r.last_ordinal.unwrap_or(r.first_ordinal),
                first_sequence: r.sequences.map_or(0, |s| s.0),
                last_sequence: r.sequences.map_or(0, |s| s.1),
            })
            .collect();
        if lost.len() > MAX_LOST {
            lost = name_together(lost);
        }
        let tag = recovered.tag.as_deref().map(UserTag::new);
        // Everything of a run that died was made durable before this one began, and this run
        // gives up what it gives up before it frees anything.
        let opening = Opening {
            floor: recovered.state.floor(),
            next,
            tag,
        };
        let mut log = Log {
            geometry: recovered.geometry,
            space: Space::new(
                recovered.geometry,
                Segments::new(superblock.segments as usize, chain, last, opening),
            ),
            generation: superblock.generation,
            ordinal: recovered.last_ordinal,
            unmarked: 0,
            needed_from: recovered.oldest_needed,
            cover: 0,
            next,
            first_of_run: next,
            found_grant: superblock.grant,
            tag,
            durable: Durable {
                ordinal: recovered.durable,
                sequence: 0,
            },
            failed: None,
            closed: false,
            gone: false,
            unlogged: BTreeMap::new(),
            unrecorded: BTreeSet::new(),
            watermark: Watermark::new(None, 0),
            draft: Draft::new(),
            body: Vec::with_capacity(MAX_SETTLED * 8),
            state: recovered.state,
            medium,
            superblock,
        };
        let follows = recovered.last_ordinal;
        let epoch = Epoch {
            follows,
            last_before: log.state.last(),
            first_after: next,
            mark: log.mark(false),
        };
        let mut body = Vec::new();
        epoch.encode(&mut body);
        if let Some((segment, end)) = tail {
            log.space.resume(segment, end);
        }
        log.space.begin_epoch();
        // If no segment is free, the room that is left is reserved for the collection that frees
        // one: epochs of runs that die while they open must not use it up.
        let kept = log.space.collection_needs(&log.state);
        let fits = in_place && log.space.fits(stride(RECORD_HEADER + body.len()) + kept);
        // The ordinals go on without a gap, so an epoch that finds no room does no harm: the
        // previous run died while it was freeing a segment, and this one continues with that.
        let nothing_else = lost.is_empty() && recovered.stranded.is_empty();
        let can_wait = in_place && log.space.is_starved() && nothing_else;
        if !fits && !can_wait {
            log.ordinal = if in_place {
                follows
            } else {
                recovered.max_ordinal
            };
            let fallback = tail.filter(|_| !in_place);
            let first_ordinal = log.ordinal + 1;
            log.space.open_for_epoch(
                &mut *log.medium,
                log.generation,
                first_ordinal,
                opening,
                fallback,
            )?;
        }
        if fits || !can_wait {
            log.write_internal(Kind::Epoch, 0, &body)?;
            log.needed_from = epoch.mark.oldest_needed;
        }
        // Before the losses are named: if this run dies in between, it has given up nothing.
        let mut bytes = Vec::new();
        for seen in recovered.stranded {
            log.copy(seen.offset, &seen.header, &mut bytes)?;
        }
        for range in lost {
            let mut body = Vec::new();
            range.encode(&mut body);
            log.write_internal(Kind::Lost, 0, &body)?;
        }
        log.space.end_upkeep(&log.state);
        Ok(log)
    }
}

/// Names neighbours in one record: more records might not find room in the segments that are
/// reserved for recovery.
fn name_together(mut lost: Vec<LostBody>) -> Vec<LostBody> {
    lost.sort_unstable_by_key(|l| l.first_ordinal);
    let join = |all: &[LostBody]| {
        let known = || all.iter().filter(|l| l.first_sequence != 0);
        LostBody {
            first_ordinal: all.iter().map(|l| l.first_ordinal).min().unwrap_or(0),
            last_ordinal: all.iter().map(|l| l.last_ordinal).max().unwrap_or(0),
            first_sequence: known().map(|l| l.first_sequence).min().unwrap_or(0),
            last_sequence: known().map(|l| l.last_sequence).max().unwrap_or(0),
        }
    };
    lost.chunks(lost.len().div_ceil(MAX_LOST))
        .map(join)
        .collect()
}
