//! What stands behind a hole: whether the log goes on there, and what is missing before it.
//!
//! Points 1 to 7 are those of "Behind the walk" in `store-format.md` §5, and G1 to G8 its rows.
//! Here a gap is found, and named, ignored by place or cut; whether what is missing was settled
//! is decided when everything is read, in `recover.rs`.

use std::collections::HashMap;

use super::{ChainSegment, Gap, Recovery, Refusal, is_of_earlier_run};
use crate::DamagedRange;
use crate::format::{Kind, LostBody, RECORD_HEADER};
use crate::recover::scan::{Seen, Source, Verdict};
use crate::report::Stop;
use crate::state::State;

/// How the log goes on behind the walk.
struct Course {
    /// Its records, each with the missing ordinals before it that no lost record names.
    accepted: Vec<(Option<(u64, u64)>, Seen)>,
    /// Where a cut is, if there is one, in what was gathered.
    cut: Option<usize>,
    oldest_needed: u64,
}

impl Course {
    fn holds(&self, seen: &Seen) -> bool {
        let at = self
            .accepted
            .binary_search_by_key(&seen.ordinal(), |(_, seen)| seen.ordinal());
        at.is_ok_and(|at| self.accepted[at].1 == *seen)
    }
}

impl<S: Source + ?Sized> Recovery<'_, S> {
    /// Gathers what is intact behind the end of the walk, and judges each gap.
    pub(super) fn judge(
        &mut self,
        mut beyond: Vec<Seen>,
        hole_at: u64,
        gaps: &mut Vec<Gap>,
    ) -> Result<(), Refusal> {
        // Point 3: a mark that is set aside still proves what was durable when it was written, so
        // what is missing below may be damage even where the marks of the log do not say so.
        let mut durable = self.out.durable.max(self.closed_at);
        let mut dead = Vec::new();
        for seen in &beyond {
            self.meet(seen)?;
            if let Some(mark) = self.mark(seen)? {
                durable = durable.max(mark.durable);
            }
            if let Some(epoch) = self.epoch(seen)?
                && !is_of_earlier_run(seen, self.generation)
            {
                dead.push((epoch.follows, seen.ordinal()));
            }
        }
        self.out.durable = durable;
        drop_between(&mut beyond, dead); // Point 4
        let beyond = self.without_earlier_laps(beyond); // Point 5
        let mut believed = Vec::new();
        for seen in &beyond {
            believed.extend(self.lost(seen)?.map(|lost| (*seen, lost)));
        }
        // Point 7: a lost record that is no part of the log names nothing, since the salvage that
        // wrote it was not finished. But whether it is a part depends on which gaps are named.
        let mut all = true;
        let course = loop {
            let mut named = self.out.lost.clone();
            named.extend(believed.iter().map(|(_, lost)| *lost));
            named.sort_unstable_by_key(|l| l.first_ordinal);
            let course = self.course(&beyond, &named, durable)?;
            let before = believed.len();
            believed.retain(|(seen, _)| course.holds(seen));
            if believed.len() == before {
                break course;
            }
            if !all {
                // Only a file made on purpose holds more lost records that are no part of what is
                // left.
                believed.clear();
            }
            all = false;
        };
        let Course {
            accepted,
            cut,
            oldest_needed,
        } = course;
        if let Some(at) = cut {
            let generation = accepted
                .last()
                .map_or(self.generation, |(_, seen)| seen.header.generation);
            let behind = beyond[at..].iter().copied();
            let behind = behind.filter(|s| !is_of_earlier_run(s, generation));
            self.out.set_aside = behind.collect();
        }
        if self.out.last_ordinal < oldest_needed {
            // The log starts behind everything that was walked, since what settled that may be
            // missing.
            self.out.next = self.out.next.max(self.out.state.last() + 1);
            self.out.state = State::new(self.geometry, self.segments);
            self.begin_with_opening();
            // No segment that was walked is part of the log either: one in the middle might be
            // freed first.
            self.out.chain.clear();
            self.in_chain.fill(None);
        }
        let mut end = hole_at;
        for (missing, seen) in accepted {
            if let Some((first, through)) = missing {
                let gap = self.gap(end, first, Some(through), Some(&seen))?;
                if through < oldest_needed {
                    self.out.ignored.push(gap.range); // G4
                } else {
                    gaps.push(gap);
                }
            }
            // G4: below that, what is found may be a remainder of an earlier lap.
            if seen.ordinal() >= oldest_needed {
                self.apply(&seen)?;
                self.extend_chain(&seen);
            } else {
                self.counting = None;
            }
            self.generation = seen.header.generation;
            self.out.last_ordinal = seen.ordinal();
            end = seen.offset + seen.header.stride();
        }
        if end != hole_at {
            // The log ends behind its last record, not at the gap before it.
            let verdict = self.scanner.look(end, self.end_around(end))?;
            self.ends(verdict, end, false);
        }
        if !self.out.set_aside.is_empty() {
            self.out.stop = Stop::Hole { offset: end };
            return Ok(());
        }
        // No lost record names what comes after itself, so none can name this.
        if self.out.last_ordinal < durable {
            // G7
            let first = self.out.last_ordinal + 1;
            let gap = self.gap(end, first, Some(durable), None)?;
            gaps.push(gap);
            self.out.tail_damaged = true;
        }
        Ok(())
    }

    /// The records that continue the log behind the walk, each with the ordinals missing before
    /// it, up to a hole that a power cut may leave.
    fn course(
        &mut self,
        beyond: &[Seen],
        named: &[LostBody],
        durable: u64,
    ) -> Result<Course, Refusal> {
        let mut to_come = named.iter().peekable();
        let mut named_through = 0;
        let mut last = self.out.last_ordinal;
        let mut generation = self.generation;
        let mut course = Course {
            accepted: Vec::with_capacity(beyond.len()),
            cut: None,
            oldest_needed: self.out.oldest_needed,
        };
        for (i, seen) in beyond.iter().enumerate() {
            // Point 6: neither a record of an earlier lap nor one of an earlier run.
            if seen.ordinal() <= last || is_of_earlier_run(seen, generation) {
                continue;
            }
            // The last missing ordinal: an epoch itself says which one it follows.
            let through = match self.epoch(seen)? {
                Some(epoch) => epoch.follows.max(last),
                None => seen.ordinal() - 1,
            };
            let missing = (through > last).then_some((last + 1, through));
            let known = missing.is_none_or(|(first, through)| {
                while let Some(lost) = to_come.next_if(|l| l.first_ordinal <= first) {
                    named_through = lost.last_ordinal.max(named_through);
                }
                through <= named_through // G2
            });
            // G3: nothing of the gap need ever have been durable, so a power cut may have taken it.
            // What stands behind is not delivered: the application may publish again what is
            // missing, and later messages would have gone out before it.
            if !known && last + 1 > durable {
                course.cut = Some(i);
                break;
            }
            if let Some(mark) = self.mark(seen)? {
                course.oldest_needed = course.oldest_needed.max(mark.oldest_needed);
            }
            course.accepted.push((missing.filter(|_| !known), *seen));
            last = seen.ordinal();
            generation = seen.header.generation;
        }
        Ok(course)
    }

    /// Every intact record with an ordinal above `above`, in the segments that were not walked
    /// and in the rest of those that were.
    pub(super) fn search(&mut self, above: u64) -> Result<Vec<Seen>, Refusal> {
        let total = self.segments as u64 * self.geometry.segment_size;
        let mut budget = total.saturating_mul(4).saturating_add(1 << 20);
        let mut beyond = Vec::new();
        // Whether an epoch was the first record of its run shows only with what other epochs
        // declared dead.
        let dead = self.jumps.iter().map(|(last, _)| *last);
        let lowest = dead.fold(above, u64::min);
        for segment in 0..self.segments {
            let link = self.in_chain[segment].and_then(|at| self.out.chain.get(at));
            let from = link.map_or(self.geometry.records_at(segment), |link| link.end);
            let end = self.geometry.end_of(segment);
            self.out.bytes += end - from;
            if self.bare.as_ref().is_some_and(|bare| bare.is_bare(segment)) {
                continue;
            }
            let whole = self
                .scanner
                .search(from, end, lowest, &mut budget, &mut beyond)?;
            if !whole {
                // G8: only a file made on purpose holds so many near-records. Say so of every
                // segment in which one is met from here on.
                self.out.damaged.push(DamagedRange {
                    offset: from,
                    bytes: end - from,
                    first_ordinal: above + 1,
                    last_ordinal: None,
                    sequences: None,
                    earlier: true,
                });
            }
        }
        self.find_late_epoch(&beyond);
        beyond.retain(|seen| seen.ordinal() > above); // Point 1
        beyond.sort_unstable_by_key(in_order);
        let who = |seen: &Seen| (seen.ordinal(), seen.header.generation);
        let twice = beyond
            .windows(2)
            .find(|pair| who(&pair[0]) == who(&pair[1]));
        if let Some(pair) = twice {
            self.out.twice.get_or_insert((pair[0], pair[1]));
        }
        Ok(beyond)
    }

    /// The header of a segment is believed unless an intact record contradicts it: its first
    /// record may be damaged, or a power cut may have taken it.
    pub(super) fn look_at_openings(&mut self, used: &[(u64, usize)]) -> Result<(), Refusal> {
        for &(first, segment) in used {
            let at = self.geometry.records_at(segment);
            let verdict = self.scanner.look(at, self.geometry.end_of(segment))?;
            if !matches!(verdict, Verdict::Intact(header) if header.ordinal != first) {
                self.opened_with[segment] = first;
            }
        }
        Ok(())
    }

    /// Drops records of earlier laps. A segment is written from its beginning on, so anything
    /// older than the record or header before it was left there when the segment was opened
    /// again. The segment had been freed before that, so nothing in it was needed. The epoch that
    /// declared it dead may be damaged by now. `beyond` is in order of ordinals.
    fn without_earlier_laps(&mut self, mut beyond: Vec<Seen>) -> Vec<Seen> {
        let mut highest = self.opened_with.clone();
        beyond.sort_unstable_by_key(|seen| seen.offset);
        let (earlier, mut beyond): (Vec<_>, Vec<_>) = beyond.into_iter().partition(|seen| {
            let before = &mut highest[self.geometry.segment_of(seen.offset)];
            let is_earlier = seen.ordinal() < *before;
            *before = seen.ordinal().max(*before);
            is_earlier
        });
        self.out.earlier_laps = earlier;
        beyond.sort_unstable_by_key(in_order);
        beyond
    }

    /// An epoch that is not the first record of its run is not believed. Otherwise a salvage
    /// would give up what the next open finds.
    fn find_late_epoch(&mut self, beyond: &[Seen]) {
        let walked = self.jumps.iter().map(|(_, epoch)| epoch);
        let epochs = beyond.iter().filter(|seen| seen.kind() == Kind::Epoch);
        let epochs = walked.chain(epochs);
        let begun: HashMap<u64, &Seen> = epochs.map(|e| (e.header.generation, e)).collect();
        let late = beyond.iter().find_map(|seen| {
            let epoch = begun.get(&seen.header.generation)?;
            (seen.ordinal() < epoch.ordinal()).then_some(**epoch)
        });
        self.out.meaningless = self.out.meaningless.or(late);
    }

    /// The end of the segment that this place is in, or at whose end it is.
    fn end_around(&self, offset: u64) -> u64 {
        let inside = self.geometry.segments_at.max(offset - 1);
        self.geometry.end_of(self.geometry.segment_of(inside))
    }

    /// What is missing behind the log so far, which ends at `from`.
    fn gap(
        &mut self,
        from: u64,
        first: u64,
        last: Option<u64>,
        next: Option<&Seen>,
    ) -> Result<Gap, Refusal> {
        let end = self.end_around(from);
        let (offset, bytes) = match next {
            Some(seen) if (from..end).contains(&seen.offset) => (from, seen.offset - from),
            // The damage fills the beginning of the segment in which the log goes on.
            Some(seen) if end - from < RECORD_HEADER as u64 => {
                let segment = self.geometry.segment_of(seen.offset);
                let records = self.geometry.records_at(segment);
                (records, seen.offset - records)
            }
            _ => (from, end - from),
        };
        let next_sequence = match next {
            Some(seen) if seen.kind() == Kind::Publish => Some(seen.header.sequence),
            // An epoch may itself skip numbers.
            Some(seen) if seen.kind() == Kind::Epoch => {
                let epoch = self.epoch(seen)?;
                epoch.map(|e| e.last_before.saturating_add(1))
            }
            Some(seen) => self.mark(seen)?.map(|m| m.next),
            None => None,
        };
        let known_next = self.out.next.max(self.out.state.last() + 1);
        let missing = last.map(|l| l - first + 1);
        // An epoch skips numbers, so only within one generation does the count prove that every
        // missing record was a publish.
        let counted = next.zip(next_sequence).zip(self.counting);
        let publishes = counted.and_then(|((seen, next), (generation, known))| {
            let counts = seen.header.generation == generation
                && next > known
                && Some(next - known) == missing;
            counts.then(|| (known, next - 1))
        });
        let sequences = next_sequence
            .filter(|n| *n > known_next)
            .map(|n| (known_next, n - 1));
        Ok(Gap {
            range: DamagedRange {
                offset,
                bytes,
                first_ordinal: first,
                last_ordinal: last,
                sequences,
                earlier: publishes.is_none(),
            },
            publishes,
        })
    }

    fn extend_chain(&mut self, seen: &Seen) {
        let segment = self.geometry.segment_of(seen.offset);
        let end = seen.offset + seen.header.stride();
        // Only a file made on purpose returns to a segment; the segment then keeps its one place
        // in the ring.
        if let Some(link) = self.in_chain[segment].and_then(|at| self.out.chain.get_mut(at)) {
            link.last_ordinal = seen.ordinal();
            link.end = link.end.max(end);
            return;
        }
        self.in_chain[segment] = Some(self.out.chain.len());
        self.out.chain.push(ChainSegment {
            segment,
            first_ordinal: seen.ordinal(),
            last_ordinal: seen.ordinal(),
            end,
        });
    }
}

/// Point 2. By ordinal; for equal ordinals the highest generation first, and then by place, so
/// that the next open takes the same record.
fn in_order(seen: &Seen) -> (u64, u64, u64) {
    let newest_first = u64::MAX - seen.header.generation;
    (seen.ordinal(), newest_first, seen.offset)
}

/// An epoch that skips ordinals declared the skipped ones dead when it was written. `beyond` is
/// in order of ordinals.
fn drop_between(beyond: &mut Vec<Seen>, mut dead: Vec<(u64, u64)>) {
    dead.sort_unstable();
    let mut to_come = dead.into_iter().peekable();
    let mut alive_from = 0;
    beyond.retain(|seen| {
        while let Some((_, epoch)) = to_come.next_if(|(follows, _)| *follows < seen.ordinal()) {
            alive_from = epoch.max(alive_from);
        }
        seen.ordinal() >= alive_from
    });
}
