//! Follows the log as far as it goes, from record to record and from segment to segment. R1 to R6
//! and S1 to S5 are rows of `store-format.md` §5.

use std::collections::HashMap;

use super::{ChainSegment, Recovery, Refusal, is_of_earlier_run};
use crate::DamagedRange;
use crate::faults::planted::{self, Bug};
use crate::format::{Kind, SEGMENT_HEADER, SegmentHeader};
use crate::recover::bare::Bare;
use crate::recover::scan::{Scanner, Seen, Source, Verdict};
use crate::report::Stop;

/// Damage where records may have been of which nothing is known.
fn without_header(offset: u64, bytes: u64) -> DamagedRange {
    DamagedRange {
        offset,
        bytes,
        first_ordinal: 0,
        last_ordinal: None,
        sequences: None,
        earlier: true,
    }
}

impl<S: Source + ?Sized> Recovery<'_, S> {
    /// Segments that hold records, by their first ordinal. If a header cannot be read, the first
    /// record stands in for it, since every segment begins with one.
    pub(super) fn used_segments(&mut self) -> Result<Vec<(u64, usize)>, Refusal> {
        let mut used = Vec::new();
        let mut segment = 0;
        while segment < self.segments {
            let at = self.geometry.segment_at(segment);
            let holes = self.holes_from(segment)?;
            if holes > 0 {
                let bytes = holes as u64 * self.geometry.segment_size;
                self.out.damaged.push(without_header(at, bytes));
                segment += holes;
                continue;
            }
            let mut bytes = [0; SEGMENT_HEADER as usize];
            self.source.fetch(at, &mut bytes)?;
            match SegmentHeader::decode(&bytes, self.geometry.key, at) {
                Some(SegmentHeader::Free) => self.free.push(segment), // S1
                // S5: it was freed. It was not stamped, because the superblock says so.
                Some(SegmentHeader::Used { first_ordinal }) if first_ordinal < self.start => {
                    self.free.push(segment);
                }
                // S2
                Some(SegmentHeader::Used { first_ordinal }) => used.push((first_ordinal, segment)),
                None => {
                    let range = without_header(at, SEGMENT_HEADER);
                    let (first, end) = (
                        self.geometry.records_at(segment),
                        self.geometry.end_of(segment),
                    );
                    match self.scanner.look(first, end)? {
                        // S3: the damaged header says nothing that its first record does not.
                        Verdict::Intact(header) if header.ordinal < self.start => {
                            self.free.push(segment);
                        }
                        Verdict::Intact(header) => {
                            used.push((header.ordinal, segment));
                            self.out.ignored.push(range);
                        }
                        _ => self.out.damaged.push(range), // S4
                    }
                }
            }
            segment += 1;
        }
        used.sort_unstable();
        Ok(used)
    }

    /// How many segments from this one on are holes from end to end.
    fn holes_from(&self, segment: usize) -> Result<usize, Refusal> {
        let data = self.source.next_data(self.geometry.segment_at(segment))?;
        let behind = data.saturating_sub(self.geometry.segments_at) / self.geometry.segment_size;
        Ok(behind.min(self.segments as u64) as usize - segment)
    }

    /// Walks, while another thread finds out which free segments hold nothing.
    pub(super) fn walk_and_look(&mut self, used: &[(u64, usize)]) -> Result<u64, Refusal> {
        let bare = Bare::new(&self.geometry, self.segments, &self.free);
        let (source, geometry) = (self.source, self.geometry);
        let Some(shared) = source.shared().filter(|_| bare.is_much()) else {
            return self.walk(used);
        };
        let hole = std::thread::scope(|scope| {
            let looking = std::thread::Builder::new()
                .name("amps-recovery".into())
                .spawn_scoped(scope, || bare.look(&mut Scanner::new(shared, geometry)));
            if let Err(error) = looking {
                tracing::debug!(%error, "recovery goes on without a second thread");
            }
            let hole = self.walk(used).inspect_err(|_| bare.stop())?;
            bare.look(&mut self.scanner);
            Ok(hole)
        });
        self.bare = Some(bare);
        hole
    }

    /// Follows the log as far as it goes, and returns that place.
    pub(super) fn walk(&mut self, used: &[(u64, usize)]) -> Result<u64, Refusal> {
        let Some(&(first, _)) = used.first() else {
            return Ok(self.geometry.segments_at);
        };
        self.out.last_ordinal = first.saturating_sub(1);
        let mut clean = false;
        let mut at = 0;
        loop {
            let (_, segment) = used[at];
            let end = self.geometry.end_of(segment);
            let mut position = self.geometry.records_at(segment);
            let before = self.out.last_ordinal;
            let verdict = loop {
                let verdict = self.scanner.look(position, end)?;
                let Verdict::Intact(header) = verdict else {
                    break verdict;
                };
                let seen = Seen {
                    offset: position,
                    header,
                };
                if !self.follows(&seen)? {
                    break verdict;
                }
                clean = self.apply(&seen)?;
                self.generation = header.generation;
                self.out.last_ordinal = header.ordinal;
                position += header.stride();
            };
            self.out.bytes += position - self.geometry.segment_at(segment);
            if self.out.last_ordinal > before || at == 0 {
                self.in_chain[segment] = Some(self.out.chain.len());
                self.out.chain.push(ChainSegment {
                    segment,
                    first_ordinal: before + 1,
                    last_ordinal: self.out.last_ordinal,
                    end: position,
                });
            }
            // The log goes on in the next segment, or in a later one whose epoch says so.
            let last = self.out.last_ordinal;
            let next = used.partition_point(|u| u.0 <= last).max(at + 1);
            let next = match used.get(next) {
                Some((first, _)) if *first == last + 1 => Some(next),
                _ => self.bridging_segment(used, at)?,
            };
            match next {
                Some(i) => at = i,
                None => {
                    // R4: both must say so. A mark alone may be that of a close whose superblock
                    // was never written, and the superblock alone may name a mark that is lost.
                    clean &= self.out.last_ordinal == self.closed_at;
                    self.ends(verdict, position, clean);
                    return Ok(position);
                }
            }
        }
    }

    /// The newest segment behind `at` that opens with an epoch following the last record.
    fn bridging_segment(
        &mut self,
        used: &[(u64, usize)],
        at: usize,
    ) -> Result<Option<usize>, Refusal> {
        if at + 1 == used.len() {
            return Ok(None);
        }
        let bridges = match self.bridges.take() {
            Some(bridges) => bridges,
            None => self.find_bridges(used)?,
        };
        let last = self.out.last_ordinal;
        let goes_on =
            |seen: &Seen| seen.ordinal() > last && !is_of_earlier_run(seen, self.generation);
        let mut here = bridges.get(&last).into_iter().flatten().rev();
        let found = here.find(|(i, seen)| *i > at && goes_on(seen));
        let found = found.map(|(i, _)| *i);
        self.bridges = Some(bridges);
        Ok(found)
    }

    fn find_bridges(
        &mut self,
        used: &[(u64, usize)],
    ) -> Result<HashMap<u64, Vec<(usize, Seen)>>, Refusal> {
        let mut bridges: HashMap<u64, Vec<(usize, Seen)>> = HashMap::new();
        for (i, &(_, segment)) in used.iter().enumerate() {
            let offset = self.geometry.records_at(segment);
            if let Verdict::Intact(header) =
                self.scanner.look(offset, self.geometry.end_of(segment))?
                && let Some(epoch) = self.epoch(&Seen { offset, header })?
            {
                let seen = Seen { offset, header };
                bridges.entry(epoch.follows).or_default().push((i, seen));
            }
        }
        Ok(bridges)
    }

    /// Whether a record is the next of the log: the next ordinal, or an epoch that names
    /// the last record.
    fn follows(&mut self, seen: &Seen) -> Result<bool, Refusal> {
        let last = self.out.last_ordinal;
        if planted::is(Bug::NoLapCheck) {
            return Ok(true);
        }
        if is_of_earlier_run(seen, self.generation) {
            return Ok(false); // R3
        }
        // R2: an epoch says itself which record it follows. An open skips ordinals whenever it
        // cuts the log, so that what it cut off can never seem to follow.
        if seen.kind() == Kind::Epoch && seen.ordinal() > last {
            // No record has been taken yet: every record has a generation above 0.
            let first_of_log = self.generation == 0 && seen.ordinal() == last + 1;
            let follows = first_of_log || self.epoch(seen)?.is_some_and(|e| e.follows == last);
            if follows && seen.ordinal() > last + 1 {
                self.jumps.push((last, *seen));
            }
            return Ok(follows);
        }
        Ok(seen.ordinal() == last + 1) // R1, or R3
    }

    /// Why the log ends here, by what stands at `offset`, behind the last record.
    pub(super) fn ends(&mut self, verdict: Verdict, offset: u64, clean: bool) {
        self.out.stop = match verdict {
            _ if clean => Stop::CleanClose,
            Verdict::Unwritten | Verdict::SegmentEnd => Stop::Unwritten,
            Verdict::Torn(_) => Stop::Torn { offset },
            Verdict::Intact(_) | Verdict::Garbage => Stop::Stale { offset },
        };
        self.out.torn_bytes = match (&self.out.stop, verdict) {
            (Stop::Torn { .. }, Verdict::Torn(header)) => header.stride(),
            _ => 0,
        };
    }
}
