//! From bytes to what they mean: pure, bounded, total (`store-format.md`, "Recovery").
//!
//! The log is walked record by record from its oldest segment. Where it does not go on,
//! everything intact behind the hole is gathered, and each gap is judged: bridged by an
//! epoch record, named by a lost record, damage (at or below the durable mark), or what a
//! power cut may do.

use std::collections::HashMap;
use std::io;

use crate::DamagedRange;
use crate::bare::Bare;
use crate::envelope::{Envelope, Origin};
use crate::format::{
    BLOCK, Epoch, Kind, LostBody, MAGIC, Mark, RECORD_HEADER, RecordHeader, SEGMENT_HEADER,
    SEGMENTS_AT, SUPERBLOCKS, SegmentHeader, Superblock, SuperblockVerdict, max_record,
    settled_sequences,
};
use crate::index::Entry;
use crate::planted::{self, Bug};
use crate::report::Stop;
use crate::scan::{Geometry, Scanner, Seen, Source, Verdict};
use crate::state::State;

/// Why a file cannot be recovered at all.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A creation that never finished, or never began.
    NotCreated,
    NotAStore(String),
    Version(u32),
    Io(io::Error),
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Self {
        Refusal::Io(error)
    }
}

/// The superblock in force.
pub(crate) struct Header {
    pub(crate) superblock: Superblock,
    /// The other copy is damaged or behind.
    pub(crate) repair: bool,
    /// Where to write the next one: never first over the only copy that counts.
    pub(crate) order: [u64; 2],
}

/// A segment of the log, in order.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ChainSegment {
    pub(crate) segment: usize,
    pub(crate) first_ordinal: u64,
    pub(crate) last_ordinal: u64,
    /// Behind its last record.
    pub(crate) end: u64,
}

/// A stretch without intact records, between two ordinals.
#[derive(Clone, Debug)]
struct Gap {
    range: DamagedRange,
    /// Every missing record is a publish: its sequences, by the neighbours' count.
    publishes: Option<(u64, u64)>,
}

/// The log as recovered.
pub(crate) struct Recovered {
    pub(crate) geometry: Geometry,
    pub(crate) state: State,
    /// Segments that hold the log, oldest first.
    pub(crate) chain: Vec<ChainSegment>,
    pub(crate) last_ordinal: u64,
    /// Highest ordinal of any intact record, set aside ones included.
    pub(crate) max_ordinal: u64,
    pub(crate) max_generation: u64,
    /// Highest sequence of any intact record or mark.
    pub(crate) max_sequence: u64,
    pub(crate) durable: u64,
    /// By the marks of the log: the ordinal it must start with, or a lower one.
    pub(crate) oldest_needed: u64,
    pub(crate) next: u64,
    pub(crate) tag: Option<Vec<u8>>,
    pub(crate) stop: Stop,
    pub(crate) set_aside: Vec<Seen>,
    /// Damage that concerns records at or below the durable mark.
    pub(crate) damaged: Vec<DamagedRange>,
    /// Damage proved to concern nothing needed.
    pub(crate) ignored: Vec<DamagedRange>,
    /// Ranges named by lost records.
    pub(crate) lost: Vec<LostBody>,
    /// Bytes of the record that stands unfinished at the end.
    pub(crate) torn_bytes: u64,
    /// Records are missing at the end, and no later one is known.
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
    // Whole by its own checksum: whatever the other copy says, a newer program was here, and
    // what it wrote must not be written over.
    for verdict in &verdicts {
        match verdict {
            SuperblockVerdict::Version(v) => return Err(Refusal::Version(*v)),
            SuperblockVerdict::Features(f) => {
                return Err(Refusal::NotAStore(format!(
                    "it needs unknown features {f:#x}"
                )));
            }
            _ => {}
        }
    }
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
        let repair = verdicts
            .iter()
            .any(|v| *v != SuperblockVerdict::Intact(superblock.clone()));
        return Ok(Header {
            superblock: superblock.clone(),
            repair,
            order: match verdicts[0] == SuperblockVerdict::Intact(superblock.clone()) {
                true => [SUPERBLOCKS[1], SUPERBLOCKS[0]],
                false => SUPERBLOCKS,
            },
        });
    }
    if verdicts[1] == SuperblockVerdict::Blank && is_unfinished(source, len)? {
        return Err(Refusal::NotCreated);
    }
    let why = match (&verdicts[0], &verdicts[1]) {
        (SuperblockVerdict::Damaged(why), _) | (_, SuperblockVerdict::Damaged(why)) => why,
        _ => "both superblock copies are blank, and data follows",
    };
    Err(Refusal::NotAStore((*why).to_owned()))
}

/// Whether this is what a creation leaves that did not reach its end: the first superblock
/// perhaps in part, and behind the superblocks zeros and headers of free segments. Before
/// the superblocks are whole no record is written, so nothing can be lost with such a file.
fn is_unfinished<S: Source + ?Sized>(source: &S, len: u64) -> io::Result<bool> {
    let mut block = vec![0; BLOCK as usize];
    let mut at = 0;
    while at < len {
        let n = (len - at).min(BLOCK);
        let block = &mut block[..n as usize];
        source.fetch(at, block)?;
        let rest = if at == SUPERBLOCKS[0] && n == BLOCK && block.starts_with(&MAGIC) {
            // Its checksum, or the lack of a later sector, has told that it is not whole.
            &[]
        } else if at >= SEGMENTS_AT && n == BLOCK && SegmentHeader::may_be_free(block) {
            &block[SEGMENT_HEADER as usize..]
        } else {
            &*block
        };
        if rest.iter().any(|b| *b != 0) {
            return Ok(false);
        }
        at += n;
    }
    Ok(true)
}

/// Recovers the log. Damage is reported, never acted on: the caller decides.
pub(crate) fn recover<S: Source + ?Sized>(
    source: &S,
    len: u64,
    superblock: &Superblock,
) -> Result<Recovered, Refusal> {
    Recovery::new(source, len, superblock).run(true)
}

/// Recovers the log up to its first hole, and looks at nothing behind it: over a store that
/// its owner is appending to, what stands there may be younger than the hole.
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
    /// That of the last record: along the log it never falls.
    generation: u64,
    /// Generation of the last record, and the sequence that comes next in it; `None` where
    /// no record behind the last gap says so.
    counting: Option<(u64, u64)>,
    /// Where each segment stands in the chain.
    in_chain: Vec<Option<usize>>,
    /// Epochs that open a segment, by the ordinal they follow; oldest segment first. Looked for
    /// when the first one is needed.
    bridges: Option<HashMap<u64, Vec<(usize, Seen)>>>,
    /// Segments whose header says that they hold nothing.
    free: Vec<usize>,
    /// Which of them really do, where somebody looked.
    bare: Option<Bare>,
}

impl<'a, S: Source + ?Sized> Recovery<'a, S> {
    fn new(source: &'a S, len: u64, superblock: &Superblock) -> Self {
        let geometry = Geometry {
            key: superblock.key,
            segment_size: superblock.segment_size,
            max_record: max_record(superblock.segment_size),
        };
        let there = len.saturating_sub(SEGMENTS_AT) / superblock.segment_size;
        let segments = there.min(superblock.segments) as usize;
        // A segment is announced only after it was filled and synced.
        let missing = (there < superblock.segments).then(|| DamagedRange {
            offset: SEGMENTS_AT + there * superblock.segment_size,
            bytes: (superblock.segments - there) * superblock.segment_size,
            first_ordinal: 0,
            last_ordinal: None,
            sequences: None,
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
            generation: 0,
            counting: None,
            in_chain: vec![None; segments],
            bridges: None,
            free: Vec::new(),
            bare: None,
            out: Recovered {
                oldest_needed: 0,
                geometry,
                state: State::new(geometry, segments),
                chain: Vec::new(),
                last_ordinal: 0,
                max_ordinal: 0,
                max_generation: superblock.generation,
                max_sequence: superblock.number_floor.max(superblock.grant),
                durable: 0,
                next: 1,
                tag: None,
                stop: Stop::Unwritten,
                set_aside: Vec::new(),
                damaged: Vec::new(),
                ignored: Vec::new(),
                lost: Vec::new(),
                torn_bytes: 0,
                tail_damaged: false,
                bytes: 0,
            },
        }
    }

    fn run(mut self, beyond: bool) -> Result<Recovered, Refusal> {
        let used = self.used_segments()?;
        let hole = match beyond && self.closed_at == 0 {
            true => self.walk_and_look(&used)?,
            // Nothing will be searched, but for damage.
            false => self.walk(&used)?,
        };
        let mut gaps = Vec::new();
        let start = used.first().map_or(1, |u| u.0);
        let headless = start > self.out.oldest_needed.max(1);
        if !headless && self.out.stop == Stop::CleanClose {
            // The log is whole: a segment whose header is damaged holds none of it.
            self.out.ignored.append(&mut self.out.damaged);
        }
        // A clean close says where the log ends; nothing can stand behind it.
        if beyond && (headless || self.out.stop != Stop::CleanClose) {
            // The log must start with the oldest record that is needed. A power cut may have
            // taken that segment, or only its header.
            if headless {
                self.start_over(self.out.oldest_needed.max(1));
            }
            let hole = if headless { SEGMENTS_AT } else { hole };
            let rest = self.search(self.out.last_ordinal, hole, !headless)?;
            self.judge(rest, hole, &mut gaps)?;
            if headless && self.out.chain.is_empty() {
                // The mark that named that start is set aside itself. Freeing a segment
                // takes a sync, so none was freed yet: the log starts with the first record.
                self.out.oldest_needed = 0;
                self.out.set_aside.clear();
                self.start_over(1);
                let rest = self.search(0, hole, false)?;
                self.judge(rest, hole, &mut gaps)?;
            }
        }
        // Only what a mark says is settled: the floor that follows from what is left would
        // take a missing first message for a settled one.
        let floor = self.out.state.floor();
        self.out.state.replayed();
        self.sort_out(gaps, floor)?;
        self.out.damaged.extend(self.missing.take());
        self.out.next = self.out.next.max(self.out.state.last() + 1);
        self.out.max_sequence = self.out.max_sequence.max(self.out.next - 1);
        self.out.tag = self.resume_tag()?;
        Ok(self.out)
    }

    /// That of the newest publish that has one: a message without a tag does not move it.
    fn resume_tag(&mut self) -> Result<Option<Vec<u8>>, Refusal> {
        for offset in std::mem::take(&mut self.tagged).into_iter().rev() {
            let mut head = [0; RECORD_HEADER];
            self.source.fetch(offset, &mut head)?;
            let Some(header) = RecordHeader::decode(&head, self.geometry.max_record) else {
                // Over a live file: it was reused since.
                continue;
            };
            let tag = self.envelope(&Seen { offset, header })?.map(|e| e.user_tag);
            if let Some(tag) = tag.filter(|tag| !tag.is_empty()) {
                return Ok(Some(tag.into_owned()));
            }
        }
        Ok(self.tag.take())
    }

    /// Tells gaps in which nothing but settled publishes is missing, oldest first, from damage.
    fn sort_out(&mut self, gaps: Vec<Gap>, floor: u64) -> Result<(), Refusal> {
        let mut refusals = Vec::new();
        if gaps.iter().any(|gap| gap.publishes.is_some()) {
            for (&sequence, entry) in self.out.state.rejections() {
                let offset = entry.offset();
                let end = self.geometry.end_of(self.geometry.segment_of(offset));
                let ordinal = match self.scanner.look(offset, end)? {
                    Verdict::Intact(header) => header.ordinal,
                    _ => 0,
                };
                refusals.push((ordinal, sequence));
            }
            refusals.sort_unstable();
        }
        let mut refusals = refusals.into_iter().peekable();
        let mut lowest = u64::MAX;
        for gap in gaps {
            // A missing publish may have been a requeue, which accepts a refusal that was logged
            // before it; one that was logged later waits in any case.
            while let Some((_, sequence)) = refusals.next_if(|r| r.0 < gap.range.first_ordinal) {
                lowest = lowest.min(sequence);
            }
            let publishes = gap.publishes;
            match publishes.is_some_and(|(_, last)| last <= floor && last < lowest) {
                true => self.out.ignored.push(gap.range),
                false => self.out.damaged.push(gap.range),
            }
        }
        Ok(())
    }

    /// Segments that hold records, by their first ordinal. A header that cannot be read is
    /// replaced by the first record, which every segment opens with.
    fn used_segments(&mut self) -> Result<Vec<(u64, usize)>, Refusal> {
        let mut used = Vec::new();
        for segment in 0..self.segments {
            let at = self.geometry.segment_at(segment);
            let mut bytes = [0; SEGMENT_HEADER as usize];
            self.source.fetch(at, &mut bytes)?;
            match SegmentHeader::decode(&bytes, self.geometry.key, at) {
                Some(SegmentHeader::Free) => self.free.push(segment),
                Some(SegmentHeader::Used { first_ordinal }) => used.push((first_ordinal, segment)),
                None => {
                    let range = DamagedRange {
                        offset: at,
                        bytes: SEGMENT_HEADER,
                        first_ordinal: 0,
                        last_ordinal: None,
                        sequences: None,
                    };
                    let (first, end) = (
                        self.geometry.records_at(segment),
                        self.geometry.end_of(segment),
                    );
                    match self.scanner.look(first, end)? {
                        Verdict::Intact(header) => {
                            used.push((header.ordinal, segment));
                            self.out.ignored.push(range);
                        }
                        _ => self.out.damaged.push(range),
                    }
                }
            }
        }
        used.sort_unstable();
        Ok(used)
    }

    /// Walks, while another thread finds out which free segments are bare.
    fn walk_and_look(&mut self, used: &[(u64, usize)]) -> Result<u64, Refusal> {
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

    /// Follows the log as far as it goes, and returns where that is.
    fn walk(&mut self, used: &[(u64, usize)]) -> Result<u64, Refusal> {
        let Some(&(first, _)) = used.first() else {
            return Ok(SEGMENTS_AT);
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
                    clean &= self.out.last_ordinal == self.closed_at;
                    if let Verdict::Torn(header) = verdict {
                        self.out.torn_bytes = header.stride();
                    }
                    self.out.stop = stop_reason(verdict, position, clean);
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
            return Ok(false);
        }
        if seen.kind() == Kind::Epoch && seen.ordinal() > last {
            let first_of_log = self.out.chain.is_empty() && seen.ordinal() == last + 1;
            return Ok(first_of_log || self.epoch(seen)?.is_some_and(|e| e.follows == last));
        }
        Ok(seen.ordinal() == last + 1)
    }

    /// Gathers what is intact behind the end of the walk and judges each gap.
    fn judge(
        &mut self,
        mut beyond: Vec<Seen>,
        hole_at: u64,
        gaps: &mut Vec<Gap>,
    ) -> Result<(), Refusal> {
        let mut durable = self.out.durable.max(self.closed_at);
        let mut dead = Vec::new();
        let mut named = self.out.lost.clone();
        for seen in &beyond {
            self.out.max_ordinal = self.out.max_ordinal.max(seen.ordinal());
            self.out.max_generation = self.out.max_generation.max(seen.header.generation);
            if seen.kind() != Kind::Lost {
                self.out.max_sequence = self.out.max_sequence.max(seen.header.sequence);
            }
            if let Some(mark) = self.mark(seen)? {
                durable = durable.max(mark.durable);
                self.out.max_sequence = self.out.max_sequence.max(mark.next.saturating_sub(1));
            }
            if let Some(epoch) = self.epoch(seen)?
                && !is_of_earlier_run(seen, self.generation)
            {
                dead.push((epoch.follows, seen.ordinal()));
            }
            named.extend(self.lost(seen)?);
        }
        self.out.durable = durable;
        drop_between(&mut beyond, dead);
        named.sort_unstable_by_key(|l| l.first_ordinal);
        let mut to_come = named.iter().peekable();
        let mut named_through = 0;

        // What goes on, with the ordinals missing before it; then what is left is behind a
        // hole that a power cut may leave.
        let mut accepted: Vec<(Option<(u64, u64)>, Seen)> = Vec::with_capacity(beyond.len());
        let mut last = self.out.last_ordinal;
        let mut generation = self.generation;
        let mut oldest_needed = self.out.oldest_needed;
        for (i, seen) in beyond.iter().enumerate() {
            // Neither of an earlier lap nor of an earlier run.
            if seen.ordinal() <= last || is_of_earlier_run(seen, generation) {
                continue;
            }
            // The last missing ordinal: an epoch says itself what it follows.
            let through = match self.epoch(seen)? {
                Some(epoch) => epoch.follows.max(last),
                None => seen.ordinal() - 1,
            };
            let missing = (through > last).then_some((last + 1, through));
            let known = missing.is_none_or(|(first, through)| {
                while let Some(lost) = to_come.next_if(|l| l.first_ordinal <= first) {
                    named_through = lost.last_ordinal.max(named_through);
                }
                through <= named_through
            });
            if !known && last + 1 > durable {
                self.out.stop = Stop::Hole { offset: hole_at };
                let behind = beyond[i..].iter().copied();
                let behind = behind.filter(|s| !is_of_earlier_run(s, generation));
                self.out.set_aside = behind.collect();
                break;
            }
            if let Some(mark) = self.mark(seen)? {
                oldest_needed = oldest_needed.max(mark.oldest_needed);
            }
            accepted.push((missing.filter(|_| !known), *seen));
            last = seen.ordinal();
            generation = seen.header.generation;
        }
        if self.out.last_ordinal < oldest_needed {
            // The log starts behind everything walked: what settled that may be missing.
            self.out.next = self.out.next.max(self.out.state.last() + 1);
            self.out.state = State::new(self.geometry, self.segments);
        }
        let went_on = !accepted.is_empty();
        for (missing, seen) in accepted {
            if let Some((first, through)) = missing {
                let gap = self.gap(hole_at, first, Some(through), Some(&seen))?;
                if through < oldest_needed {
                    self.out.ignored.push(gap.range);
                } else {
                    gaps.push(gap);
                }
            }
            // Below that, what is found may be left from an earlier lap.
            if seen.ordinal() >= oldest_needed {
                self.apply(&seen)?;
                self.extend_chain(&seen);
            } else {
                self.counting = None;
            }
            self.generation = seen.header.generation;
            self.out.last_ordinal = seen.ordinal();
        }
        if !self.out.set_aside.is_empty() {
            return Ok(());
        }
        if went_on {
            // The log ends behind its last record, not at the gap before it.
            self.out.stop = Stop::Unwritten;
            self.out.torn_bytes = 0;
        }
        if self.out.last_ordinal < durable {
            let known = named.iter().any(|l| l.last_ordinal >= durable);
            if !known {
                let first = self.out.last_ordinal + 1;
                let gap = self.gap(hole_at, first, Some(durable), None)?;
                gaps.push(gap);
                self.out.tail_damaged = true;
            }
        }
        Ok(())
    }

    /// Forgets what was walked, to begin with another record.
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
    }

    /// Every intact record with an ordinal above `above`: in what lies behind `hole_at` in
    /// its segment, and in every segment that was not walked; or everywhere.
    fn search(&mut self, above: u64, hole_at: u64, behind: bool) -> Result<Vec<Seen>, Refusal> {
        let total = self.segments as u64 * self.geometry.segment_size;
        let mut budget = total.saturating_mul(4).saturating_add(1 << 20);
        let mut beyond = Vec::new();
        for segment in 0..self.segments {
            let from = if behind && self.geometry.segment_of(hole_at) == segment {
                hole_at.max(self.geometry.records_at(segment))
            } else if self.in_chain[segment].is_some() {
                continue;
            } else {
                self.geometry.records_at(segment)
            };
            let end = self.geometry.end_of(segment);
            self.out.bytes += end - from;
            if self.bare.as_ref().is_some_and(|bare| bare.is_bare(segment)) {
                continue;
            }
            let whole = self
                .scanner
                .search(from, end, above, &mut budget, &mut beyond)?;
            if !whole {
                // Only a file made for it holds so many near-records: say so, of every segment
                // in which one is met from here on.
                self.out.damaged.push(DamagedRange {
                    offset: from,
                    bytes: end - from,
                    first_ordinal: above + 1,
                    last_ordinal: None,
                    sequences: None,
                });
            }
        }
        // Of two with one ordinal the next open must take the same.
        beyond.sort_unstable_by_key(|s| (s.ordinal(), u64::MAX - s.header.generation, s.offset));
        Ok(beyond)
    }

    fn gap(
        &mut self,
        hole_at: u64,
        first: u64,
        last: Option<u64>,
        next: Option<&Seen>,
    ) -> Result<Gap, Refusal> {
        let (offset, bytes) = match next {
            Some(seen)
                if seen.offset > hole_at
                    && self.geometry.segment_of(seen.offset)
                        == self.geometry.segment_of(hole_at) =>
            {
                (hole_at, seen.offset - hole_at)
            }
            // The damage runs to the end of the last segment walked, or it fills the
            // beginning of the one in which the log goes on.
            _ => {
                let end = self.geometry.end_of(self.geometry.segment_of(hole_at));
                (hole_at, end - hole_at)
            }
        };
        let next_sequence = match next {
            Some(seen) if seen.kind() == Kind::Publish => Some(seen.header.sequence),
            Some(seen) => self.mark(seen)?.map(|m| m.next),
            None => None,
        };
        let known_next = self.out.next.max(self.out.state.last() + 1);
        let missing = last.map(|l| l - first + 1);
        // An epoch skips numbers: only within one generation does the count say that every
        // missing record took one.
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
            },
            publishes,
        })
    }

    fn extend_chain(&mut self, seen: &Seen) {
        let segment = self.geometry.segment_of(seen.offset);
        let end = seen.offset + seen.header.stride();
        // Only a file made for it returns to a segment; it holds its place in the ring once.
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

    /// Takes a record of the log into account; whether it is that of a clean close.
    fn apply(&mut self, seen: &Seen) -> Result<bool, Refusal> {
        let header = seen.header;
        let entry = Entry::new(seen.offset, header.stride());
        self.out.max_ordinal = self.out.max_ordinal.max(header.ordinal);
        self.out.max_generation = self.out.max_generation.max(header.generation);
        self.count(seen)?;
        match header.kind {
            Kind::Publish | Kind::Copy => {
                self.out.state.message(header.sequence, entry);
                // A copy accepts nothing: what its original accepted came before that one and is
                // gone with it, and what came between the two still waits.
                if header.kind == Kind::Publish && !header.quiet {
                    self.tagged.push(seen.offset);
                } else if header.kind == Kind::Publish
                    && let Some(Origin::Requeue { accepts }) =
                        self.envelope(seen)?.map(|e| e.origin)
                {
                    self.accept(accepts);
                }
            }
            Kind::Settlement => {
                let sequences: Option<Vec<u64>> =
                    settled_sequences(self.scanner.body(seen)?).map(Iterator::collect);
                self.out
                    .state
                    .settle(&sequences.unwrap_or_default(), |_, _| {});
            }
            Kind::Rejection => self.out.state.reject(header.sequence, entry),
            Kind::Acceptance => {
                self.accept(header.sequence);
            }
            Kind::Mark | Kind::Epoch => {
                if let Some(epoch) = self.epoch(seen)? {
                    self.out.next = self.out.next.max(epoch.first_after);
                }
                if let Some(mark) = self.mark(seen)? {
                    self.out.state.settle_through(mark.floor);
                    self.out.durable = self.out.durable.max(mark.durable);
                    self.out.oldest_needed = self.out.oldest_needed.max(mark.oldest_needed);
                    self.out.next = self.out.next.max(mark.next);
                    self.tagged.clear();
                    if let Some(tag) = mark.tag {
                        self.tag = Some(tag.as_bytes().to_vec());
                    }
                    return Ok(mark.clean);
                }
            }
            Kind::Lost => {
                let lost = self.lost(seen)?;
                self.out.lost.extend(lost);
            }
        }
        Ok(false)
    }

    /// Keeps the sequence that comes next in this generation.
    fn count(&mut self, seen: &Seen) -> Result<(), Refusal> {
        let generation = seen.header.generation;
        let follows = seen.ordinal() == self.out.last_ordinal + 1;
        let said = match seen.kind() {
            Kind::Publish => Some(seen.header.sequence + 1),
            Kind::Epoch => self.epoch(seen)?.map(|e| e.first_after),
            _ => self.mark(seen)?.map(|m| m.next),
        };
        self.counting = match said {
            Some(next) => Some((generation, next)),
            None => self.counting.filter(|c| follows && c.0 == generation),
        };
        Ok(())
    }

    /// An acceptance settles its message even where the refusal is not in the log any more:
    /// a collection copied the message while the refusal waited, and freed the refusal after
    /// it was accepted.
    fn accept(&mut self, sequence: u64) {
        if !self.out.state.accept(sequence) {
            self.out.state.accepted_before(sequence);
        }
    }

    fn envelope(&mut self, seen: &Seen) -> Result<Option<Envelope<'static>>, Refusal> {
        let len = seen.header.envelope_len as usize;
        let body = self.scanner.body(seen)?;
        Ok(Envelope::decode(&body[..len])
            .ok()
            .map(Envelope::into_owned))
    }

    fn epoch(&mut self, seen: &Seen) -> Result<Option<Epoch>, Refusal> {
        Ok(match seen.kind() {
            Kind::Epoch => Epoch::decode(self.scanner.body(seen)?),
            _ => None,
        })
    }

    fn mark(&mut self, seen: &Seen) -> Result<Option<Mark>, Refusal> {
        let mark = match seen.kind() {
            Kind::Mark => Mark::decode(self.scanner.body(seen)?),
            Kind::Epoch => Epoch::decode(self.scanner.body(seen)?).map(|e| e.mark),
            _ => None,
        };
        // A mark speaks of what was before it. One that does not is no mark: believing it
        // would make every later open skip what is written from now on.
        let last = seen.ordinal();
        Ok(mark.filter(|m| m.oldest_needed <= last && m.durable <= last))
    }

    fn lost(&mut self, seen: &Seen) -> Result<Option<LostBody>, Refusal> {
        Ok(match seen.kind() {
            Kind::Lost => LostBody::decode(self.scanner.body(seen)?),
            _ => None,
        })
    }
}

/// An epoch that skips ordinals declared those between it and the one it follows dead when it
/// was written. `beyond` goes by ordinal.
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

/// Along the log generations never fall: a record with a lower one than the record before it
/// was left behind by an earlier run.
fn is_of_earlier_run(seen: &Seen, generation: u64) -> bool {
    seen.header.generation < generation && !planted::is(Bug::NoEpoch)
}

fn stop_reason(verdict: Verdict, offset: u64, clean: bool) -> Stop {
    match verdict {
        _ if clean => Stop::CleanClose,
        Verdict::Unwritten | Verdict::SegmentEnd => Stop::Unwritten,
        Verdict::Torn(_) => Stop::Torn { offset },
        Verdict::Intact(_) | Verdict::Garbage => Stop::Stale { offset },
    }
}
