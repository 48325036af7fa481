//! From bytes to what they mean: pure, bounded, and defined for any bytes (`store-format.md` §5).
//!
//! The log is walked record by record from its oldest segment. Where it does not go on,
//! everything intact behind the hole is gathered, and each gap is judged: it is bridged by an
//! epoch record, named by a lost record, damage (at or below the durable mark), or something that
//! a power cut may do.

mod apply;
mod bare;
mod header;
mod judge;
pub(crate) mod scan;
mod stand_in;
#[cfg(test)]
mod table;
mod told_start;
mod walk;

use std::collections::{BTreeSet, HashMap};
use std::io;

use crate::DamagedRange;
use crate::faults::planted::{self, Bug};
use crate::format::{LostBody, Opening, RECORD_HEADER, RecordHeader, RejectionBody, Superblock};
use crate::recover::bare::Bare;
use crate::recover::scan::{Geometry, Scanner, Seen, Source, Verdict};
use crate::report::Stop;
use crate::state::State;

pub(crate) use self::header::{Header, reach, read_header};
pub(crate) use self::stand_in::{StandIn, most_records, stand_in};
pub(crate) use self::told_start::told_start;

/// Why a file cannot be recovered at all.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A creation that was not finished, or not begun.
    NotCreated,
    NotAStore(String),
    /// A store, as its segment headers show, whose superblock copies are both damaged.
    NoSuperblock(String),
    /// A store that no open takes, not even with `Salvage`.
    Broken(String),
    Version(u32),
    Features(u32),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error)
    }
}

/// A segment of the log, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainSegment {
    pub(crate) segment: usize,
    pub(crate) first_ordinal: u64,
    pub(crate) last_ordinal: u64,
    /// The place behind its last record.
    pub(crate) end: u64,
}

/// A stretch without intact records, between two ordinals.
#[derive(Clone, Debug)]
struct Gap {
    range: DamagedRange,
    /// If every missing record must be a publish: their sequences, counted from the neighbours'.
    publishes: Option<(u64, u64)>,
}

/// The log as recovered.
pub(crate) struct Recovered {
    pub(crate) geometry: Geometry,
    pub(crate) state: State,
    /// Segments that hold the log, oldest first.
    pub(crate) chain: Vec<ChainSegment>,
    pub(crate) last_ordinal: u64,
    /// Highest ordinal of any intact record, including those set aside, and of a clean close.
    pub(crate) max_ordinal: u64,
    pub(crate) max_generation: u64,
    /// Highest sequence of any intact record or mark.
    pub(crate) max_sequence: u64,
    pub(crate) durable: u64,
    /// From the superblock and the marks of the log: it must start with this ordinal, or a lower
    /// one.
    pub(crate) oldest_needed: u64,
    pub(crate) next: u64,
    /// What marks say is settled. Nothing that merely follows from which records are left.
    pub(crate) marked_floor: u64,
    pub(crate) tag: Option<Vec<u8>>,
    pub(crate) stop: Stop,
    pub(crate) set_aside: Vec<Seen>,
    /// Records behind the walk that belong to an earlier lap of their segment.
    pub(crate) earlier_laps: Vec<Seen>,
    /// If something is damaged: records below `oldest_needed` that are needed all the same, in
    /// order, because the copies that were made of them are lost.
    pub(crate) stranded: Vec<Seen>,
    /// Damage that concerns records at or below the durable mark.
    pub(crate) damaged: Vec<DamagedRange>,
    /// Damage where it is proved that nothing needed stood.
    pub(crate) ignored: Vec<DamagedRange>,
    /// Ranges named by lost records.
    pub(crate) lost: Vec<LostBody>,
    /// An intact record whose body does not fit its kind, or an epoch that is not the first
    /// record of its run. No store writes either.
    pub(crate) meaningless: Option<Seen>,
    /// Two records with the same ordinal and the same run, which no store writes.
    pub(crate) twice: Option<(Seen, Seen)>,
    /// Bytes of the unfinished record at the end.
    pub(crate) torn_bytes: u64,
    /// Records are missing at the end, and no later record is known.
    pub(crate) tail_damaged: bool,
    pub(crate) bytes: u64,
}

impl Recovered {
    /// Whether appending may go on right behind the last record.
    pub(crate) fn resumes_in_place(&self) -> bool {
        (self.set_aside.is_empty() || planted::is(Bug::NoEpoch))
            && !self.tail_damaged
            && !self.chain.is_empty()
    }
}

/// Recovers the log. Damage is reported, never acted on: the caller decides.
pub(crate) fn recover<S: Source + ?Sized>(
    source: &S,
    len: u64,
    superblock: &Superblock,
) -> Result<Recovered, Refusal> {
    Recovery::new(source, len, superblock).run(true)
}

/// Recovers the log up to its first hole and looks at nothing behind it. While its owner is
/// appending, what stands there may be younger than the hole.
pub(crate) fn recover_prefix<S: Source + ?Sized>(
    source: &S,
    len: u64,
    superblock: &Superblock,
) -> Result<Recovered, Refusal> {
    Recovery::new(source, len, superblock).run(false)
}

struct Recovery<'a, S: Source + ?Sized> {
    source: &'a S,
    scanner: Scanner<'a, S>,
    geometry: Geometry,
    segments: usize,
    missing: Option<DamagedRange>,
    out: Recovered,
    /// The resume tag of the last mark that had one.
    tag: Option<Vec<u8>>,
    /// Where the publishes behind the last mark stand that may have moved it.
    tagged: Vec<u64>,
    closed_at: u64,
    /// No record below it exists.
    start: u64,
    /// What holds for everything before the first record.
    opening: Opening,
    /// Generation of the last record. Along the log it never falls.
    generation: u64,
    /// Generation of the last record, and the sequence that comes next in it; `None` if no record
    /// behind the last gap tells it.
    counting: Option<(u64, u64)>,
    /// Epochs of the walk that skip ordinals, each with the last ordinal before it.
    jumps: Vec<(u64, Seen)>,
    /// Where each segment stands in the chain.
    in_chain: Vec<Option<usize>>,
    /// Epochs at the beginning of a segment, by the ordinal that they follow; oldest segment
    /// first. Collected when the first one is needed.
    bridges: Option<HashMap<u64, Vec<(usize, Seen)>>>,
    /// Segments whose header says that they hold nothing.
    free: Vec<usize>,
    /// The first ordinal of each segment, where nothing contradicts its header.
    opened_with: Vec<u64>,
    /// Which free segments really hold nothing, if that was checked.
    bare: Option<Bare>,
}

impl<'a, S: Source + ?Sized> Recovery<'a, S> {
    fn new(source: &'a S, len: u64, superblock: &Superblock) -> Self {
        let geometry = Geometry::of(superblock);
        let before = superblock.start.saturating_sub(1);
        let there = superblock.whole_segments(len);
        let segments = there.min(superblock.segments) as usize;
        // The superblock names a segment only after it was filled and synced.
        let cut = superblock.len_of(there).min(source.end());
        let whole = superblock.len_of(superblock.segments);
        let missing = (cut < whole).then(|| DamagedRange {
            offset: cut,
            bytes: whole - cut,
            first_ordinal: 0,
            last_ordinal: None,
            sequences: None,
            earlier: true,
        });
        Recovery {
            source,
            scanner: Scanner::new(source, geometry),
            geometry,
            segments,
            missing,
            tag: None,
            tagged: Vec::new(),
            closed_at: superblock.closed_at,
            start: match planted::is(Bug::NoStart) {
                true => 0,
                false => superblock.start,
            },
            opening: superblock.opening,
            generation: 0,
            counting: None,
            jumps: Vec::new(),
            in_chain: vec![None; segments],
            bridges: None,
            free: Vec::new(),
            opened_with: vec![0; segments],
            bare: None,
            out: Recovered {
                oldest_needed: superblock.start,
                geometry,
                state: State::new(geometry, segments),
                chain: Vec::new(),
                last_ordinal: before,
                // These records may be damaged; a salvage then goes on above them.
                max_ordinal: before.max(superblock.closed_at).max(superblock.durable),
                max_generation: superblock.generation,
                max_sequence: superblock.number_floor.max(superblock.grant),
                durable: match planted::is(Bug::NoNamedDurable) {
                    true => 0,
                    false => superblock.durable,
                },
                next: 1,
                marked_floor: 0,
                tag: None,
                stop: Stop::Unwritten,
                set_aside: Vec::new(),
                earlier_laps: Vec::new(),
                stranded: Vec::new(),
                damaged: Vec::new(),
                ignored: Vec::new(),
                lost: Vec::new(),
                meaningless: None,
                twice: None,
                torn_bytes: 0,
                tail_damaged: false,
                bytes: 0,
            },
        }
    }

    fn run(mut self, beyond: bool) -> Result<Recovered, Refusal> {
        let used = self.used_segments()?;
        self.begin_with_opening();
        let hole = match beyond && self.closed_at == 0 {
            true => self.walk_and_look(&used)?,
            // Only damage would be searched for.
            false => self.walk(&used)?,
        };
        let mut gaps = Vec::new();
        let start = used.first().map_or(1, |u| u.0);
        let headless = start > self.out.oldest_needed.max(1); // R5
        if !headless && self.out.stop == Stop::CleanClose {
            // The log is complete, so a segment whose header is damaged holds none of it.
            self.out.ignored.append(&mut self.out.damaged);
        }
        // A clean close says where the log ends, so nothing can stand behind it.
        if beyond && (headless || self.out.stop != Stop::CleanClose) {
            self.look_at_openings(&used)?;
            // The log must start with the oldest record that is needed. A power cut may have
            // taken that segment, or only its header.
            if headless {
                self.start_over(self.out.oldest_needed.max(1));
            }
            let hole = if headless {
                self.geometry.segments_at
            } else {
                hole
            };
            let rest = self.search(self.out.last_ordinal)?;
            self.judge(rest, hole, &mut gaps)?;
            if headless && self.out.chain.is_empty() {
                // The mark that said so is itself set aside, so the log starts where the
                // superblock says.
                self.out.oldest_needed = self.start;
                self.out.set_aside.clear();
                self.start_over(self.start.max(1));
                let rest = self.search(self.out.last_ordinal)?;
                self.judge(rest, hole, &mut gaps)?;
            }
        }
        // Only what a mark says counts as settled here. The floor that merely follows from which
        // records are left would take a missing first message for a settled one.
        let floor = self.out.state.floor();
        self.out.marked_floor = floor;
        self.out.state.replayed();
        self.sort_out(gaps, floor)?;
        self.out.damaged.extend(self.missing.take());
        if !self.out.damaged.is_empty() {
            self.find_stranded()?;
        }
        self.out.next = self.out.next.max(self.out.state.last() + 1);
        self.out.max_sequence = self.out.max_sequence.max(self.out.next - 1);
        self.out.tag = self.resume_tag()?;
        Ok(self.out)
    }

    fn find_stranded(&mut self) -> Result<(), Refusal> {
        let needed = self.out.oldest_needed;
        let links = self.out.chain.iter();
        for link in links.filter(|link| link.first_ordinal < needed) {
            let mut offset = self.geometry.records_at(link.segment);
            while offset < link.end {
                let Verdict::Intact(header) = self.scanner.look(offset, link.end)? else {
                    offset += 8;
                    continue;
                };
                if header.ordinal < needed && self.out.state.needs(&header, offset) {
                    self.out.stranded.push(Seen { offset, header });
                }
                offset += header.stride();
            }
        }
        Ok(())
    }

    /// The tag of the newest publish that has one: a message without a tag does not move it.
    fn resume_tag(&mut self) -> Result<Option<Vec<u8>>, Refusal> {
        for offset in std::mem::take(&mut self.tagged).into_iter().rev() {
            let mut head = [0; RECORD_HEADER];
            self.source.fetch(offset, &mut head)?;
            let Some(header) = RecordHeader::decode(&head, self.geometry.max_record) else {
                // The file is in use, and this place was overwritten since.
                continue;
            };
            let tag = self.envelope(&Seen { offset, header })?.map(|e| e.user_tag);
            if let Some(tag) = tag.filter(|tag| !tag.is_empty()) {
                return Ok(Some(tag.into_owned()));
            }
        }
        Ok(self.tag.take())
    }

    /// Separates gaps in which nothing but settled publishes can be missing from damage, oldest
    /// first.
    fn sort_out(&mut self, gaps: Vec<Gap>, floor: u64) -> Result<(), Refusal> {
        let mut refusals = Vec::new();
        // These were refused before they were settled, so their messages were there then, and are
        // missing now.
        let mut without_original = BTreeSet::new();
        if gaps.iter().any(|gap| gap.publishes.is_some()) {
            for (&sequence, entry) in self.out.state.rejections() {
                let offset = entry.offset();
                let end = self.geometry.end_of(self.geometry.segment_of(offset));
                let mut ordinal = 0;
                if let Verdict::Intact(header) = self.scanner.look(offset, end)? {
                    ordinal = header.ordinal;
                    let body = self.scanner.body(&Seen { offset, header })?;
                    let in_time = RejectionBody::decode(body).is_some_and(|body| !body.late);
                    if in_time && self.out.state.get(sequence).is_none() {
                        without_original.insert(sequence);
                    }
                }
                refusals.push((ordinal, sequence));
            }
            refusals.sort_unstable();
        }
        let mut refusals = refusals.into_iter().peekable();
        let mut lowest = u64::MAX;
        for gap in gaps {
            // A missing publish may have been a requeue, which accepts a refusal that was logged
            // before it. A refusal that was logged later still waits.
            while let Some((_, sequence)) = refusals.next_if(|r| r.0 < gap.range.first_ordinal) {
                lowest = lowest.min(sequence);
            }
            let publishes = gap.publishes;
            let settled = publishes.filter(|(_, last)| *last <= floor && *last < lowest);
            let nobody_waits =
                |(first, last): (u64, u64)| without_original.range(first..=last).next().is_none();
            match settled.is_some_and(nobody_waits) {
                true => self.out.ignored.push(gap.range),  // G5
                false => self.out.damaged.push(gap.range), // G6
            }
        }
        Ok(())
    }

    /// Forgets what was walked, to begin again at another record.
    fn start_over(&mut self, first_ordinal: u64) {
        self.out.next = self.out.next.max(self.out.state.last() + 1);
        self.out.state = State::new(self.geometry, self.segments);
        self.out.chain.clear();
        self.in_chain.fill(None);
        self.out.lost.clear();
        self.out.last_ordinal = first_ordinal - 1;
        self.out.stop = Stop::Unwritten;
        self.out.torn_bytes = 0;
        self.tag = None;
        self.tagged.clear();
        self.generation = 0;
        self.counting = None;
        self.jumps.clear();
        self.begin_with_opening();
    }

    /// The superblock stands in for everything before the first record.
    fn begin_with_opening(&mut self) {
        let Opening { floor, next, tag } = self.opening;
        if floor > 0 {
            self.out.state.settle_through(floor);
        }
        self.out.next = self.out.next.max(next);
        self.tag = tag.map(|tag| tag.as_bytes().to_vec());
    }
}

/// Along the log generations never fall, so a record with a lower one than the record before it
/// was left behind by an earlier run.
fn is_of_earlier_run(seen: &Seen, generation: u64) -> bool {
    seen.header.generation < generation && !planted::is(Bug::NoEpoch)
}
