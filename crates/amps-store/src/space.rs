//! Room for records: which segment is being written, which are free, and how they become free.
//!
//! Only the oldest segments are ever freed. What they still hold that is needed is copied to the
//! head of the log and synced; then both superblock copies name a start of the log behind them,
//! before a byte of them is used again. With a healthy link nothing is copied, and nothing is
//! synced. Device work is handed out as [`Chore`]s, so that whoever owns the log decides whether
//! to do it with the lock held.

mod job;
mod length;
mod reserve;
pub(crate) mod unsynced;
mod upkeep;

use std::collections::{BTreeSet, VecDeque};

use crate::error::StoreError;
use crate::faults::planted::{self, Bug};
use crate::format::{BLOCK, MAX_OPENING, Opening, SEGMENT_HEADER, SegmentHeader};
use crate::medium::Medium;
use crate::recover::scan::Geometry;
use crate::space::unsynced::{Extent, Unsynced};
use crate::state::State;

pub(crate) use self::job::Job;

/// Publishes leave this many segments to the log's own records and to recovery.
const KEPT: usize = 2;
/// How many free segments to aim for: one more than is kept, for publishers.
const WANTED: usize = KEPT + 1;
/// How many records are looked at while the lock is held once.
const BATCH: usize = 16;
/// Bytes at the end of a segment that only copies and epochs may use: so a run that dies while it
/// frees a segment leaves room for the epochs of the next runs.
const SLACK: u64 = 3 * MAX_OPENING;
/// A file is not cut for fewer segments than this, since it would soon grow again.
const WORTH_RETURNING: u64 = 2;
/// The file grows by pieces of this size, so that whoever waits for a sync waits for at most one
/// of them.
const PIECE: u64 = 4 << 20;
/// How far ahead of the writer pages are made ready.
const AHEAD: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Used,
    /// Stamped, in a part of the file that the superblock does not name yet.
    Grown,
    Ready,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    segment: usize,
    first_ordinal: u64,
    /// The place behind its last record; not known while the segment is written.
    end: Option<u64>,
    /// The messages in it have sequences from `lowest` to `highest`; while it is written, those
    /// being published into it may have higher ones.
    lowest: u64,
    highest: u64,
    /// What holds for everything before its first record, according to evidence that is before
    /// that record or durable.
    opening: Opening,
}

/// The segments of the file at start: how many there are, and which hold the log.
pub(crate) struct Segments {
    count: usize,
    chain: VecDeque<(usize, u64)>,
    /// Free segments that hold records set aside: reused last.
    last: Vec<usize>,
    /// What holds for everything recovered, all of which is durable.
    opening: Opening,
}

impl Segments {
    pub(crate) fn new(
        count: usize,
        chain: VecDeque<(usize, u64)>,
        last: Vec<usize>,
        opening: Opening,
    ) -> Self {
        Segments {
            count,
            chain,
            last,
            opening,
        }
    }
}

/// How far the oldest segments are on their way to being free.
#[derive(Clone, Copy, Debug)]
enum Collecting {
    /// Copying what is needed in the oldest one, from this place on.
    Copying(u64),
    /// Nothing in this many of them is needed. Waiting until this ordinal is durable: that of the
    /// last record that stands in for one of theirs.
    Covering { segments: usize, ordinal: u64 },
    /// The superblock has to name the start behind this many of them.
    Naming { segments: usize },
    /// That start is in force. Forgetting where the messages of this many of them stood, in the
    /// oldest one from this sequence on.
    Forgetting { segments: usize, from: u64 },
}

pub(crate) struct Space {
    geometry: Geometry,
    status: Vec<Status>,
    /// Those that are [`Status::Ready`].
    ready: BTreeSet<usize>,
    /// Segments that have grown but are not named yet.
    pending: Vec<usize>,
    /// The bytes of those are durable.
    is_growth_synced: bool,
    /// In order of reuse when ready.
    reuse_last: Vec<usize>,
    /// Oldest first; the last one is being written.
    chain: VecDeque<Link>,
    /// The segment that is written: the back of the chain.
    current: usize,
    position: u64,
    end: u64,
    collecting: Option<Collecting>,
    /// Number of syncs under way, made by threads that do not hold the lock.
    syncing: u32,
    /// Somebody found no room and may be waiting for it. They must be told of the next change,
    /// even if somebody else finds room meanwhile.
    owed: bool,
    /// More room is wanted than upkeep keeps ready anyway.
    demand: bool,
    /// Segments collected for that demand, which ends after two rounds.
    collected: usize,
    /// A publish had to wait for a start to be named, or would have had to if naming it had taken
    /// twice as long: another segment is worth its disk space.
    pressed: bool,
    /// Bytes that publishes could still take when the last write of a start began.
    free_at_write: u64,
    /// No publish has come for long: the last number given out when that was found. The end of
    /// the file may be given back.
    idle_at: Option<u64>,
    growth_error: Option<StoreError>,
    retry_growth: bool,
    /// A thread that does not hold the lock is changing the file's length.
    resizing: bool,
    /// The file is growing, and is filled up to here.
    growing: Option<u64>,
    /// A thread that does not hold the lock is writing the superblock.
    writing: bool,
    /// Where the file ends. Beyond the medium, while segments that were given up are being cut
    /// off.
    file_end: u64,
    /// The pages of the segment being written are ready for stores up to here.
    prefaulted: u64,
    /// A sync has made the page being written unready: the next store to it would take a page
    /// fault, which may wait for the file system's journal.
    protected: bool,
    /// The free segment that is being made ready and will be opened next, and how far it is
    /// ready.
    spare: Option<(usize, u64)>,
    unsynced: Unsynced,
    /// Upkeep is at work: the records that it writes may take any room.
    working: bool,
    /// Room in the segment being written that only copies may use.
    reserved: u64,
}

/// Something to be done for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// Nothing.
    Idle,
    /// A bounded piece of work on the log itself: [`Log::work`].
    Work,
    /// A superblock that names more segments, or fewer.
    Superblock,
    /// A sync of everything appended.
    Sync,
    /// A sync of a grown segment, from here to there, and of nothing else.
    SyncGrown(u64, u64),
    /// Growth of the file, from here to there.
    Reserve(u64, u64),
    /// Making pages ready for stores: where, and how many bytes.
    Prefault(u64, u64),
    /// Giving back a piece of the file's end, down to this length.
    Truncate(u64),
}

/// The next step towards a shorter file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    /// The oldest segment has to be freed.
    Collect,
    /// The writer has to leave a segment that will be given back.
    Rotate,
    /// The superblock has to name this many segments.
    Name(u64),
}

impl Space {
    pub(crate) fn new(geometry: Geometry, segments: Segments) -> Self {
        let mut status = vec![Status::Ready; segments.count];
        let chain: VecDeque<Link> = segments
            .chain
            .iter()
            .map(|&(segment, first_ordinal)| Link {
                segment,
                first_ordinal,
                end: None,
                lowest: 0,
                highest: u64::MAX,
                opening: segments.opening,
            })
            .collect();
        for link in &chain {
            status[link.segment] = Status::Used;
        }
        let ready = (0..status.len())
            .filter(|s| status[*s] == Status::Ready)
            .collect();
        Space {
            geometry,
            status,
            ready,
            pending: Vec::new(),
            is_growth_synced: false,
            reuse_last: segments.last,
            current: chain.back().map_or(0, |l| l.segment),
            chain,
            position: 0,
            end: 0,
            collecting: None,
            syncing: 0,
            owed: false,
            demand: false,
            collected: 0,
            pressed: false,
            free_at_write: 0,
            idle_at: None,
            growth_error: None,
            retry_growth: false,
            resizing: false,
            growing: None,
            writing: false,
            file_end: geometry.end_of(segments.count - 1),
            prefaulted: 0,
            protected: false,
            spare: None,
            unsynced: Unsynced::nothing(0),
            working: false,
            reserved: 0,
        }
    }

    /// Goes on writing behind the last record in the last segment.
    pub(crate) fn resume(&mut self, segment: usize, position: u64) {
        self.position = position;
        self.end = self.geometry.end_of(segment);
        self.prefaulted = position;
        self.unsynced = Unsynced::nothing(position);
    }

    /// Whether a record fits into the segment being written. While no segment is free, room that
    /// copies of the oldest one need is reserved for them.
    #[inline]
    pub(crate) fn fits(&self, stride: u64) -> bool {
        self.position + stride + self.reserved <= self.end
    }

    /// Room that freeing the oldest segment takes if no other one is free: for copies of what it
    /// holds, and for the mark after them.
    pub(crate) fn collection_needs(&self, state: &State) -> u64 {
        match self.chain.front() {
            Some(oldest) if self.chain.len() > 1 && self.is_starved() => {
                state.segment_live(oldest.segment) + MAX_OPENING
            }
            _ => 0,
        }
    }

    /// Reserves room that only upkeep may use.
    pub(crate) fn reserve(&mut self, state: &State) {
        let copies = self.collection_needs(state).saturating_sub(MAX_OPENING);
        self.reserved = match self.working {
            false => SLACK + copies,
            // Upkeep writes to the very end only in the last free segment. So no segment ever
            // holds more than another one can take over.
            true if self.ready() > 0 => SLACK,
            true => 0,
        };
    }

    /// From here on it is upkeep that writes.
    pub(crate) fn begin_upkeep(&mut self, state: &State) {
        self.working = true;
        self.reserve(state);
    }

    /// The records of a new epoch may fill a segment to its end.
    pub(crate) fn begin_epoch(&mut self) {
        self.working = true;
        self.reserved = 0;
    }

    pub(crate) fn end_upkeep(&mut self, state: &State) {
        self.working = false;
        self.reserve(state);
    }

    /// Takes room after it was found to fit.
    #[inline]
    pub(crate) fn take(&mut self, stride: u64) -> u64 {
        let offset = self.position;
        self.position += stride;
        debug_assert!(self.position <= self.end);
        offset
    }

    /// A copy of a message was written.
    pub(crate) fn copied(&mut self, sequence: u64) {
        if let Some(link) = self.chain.back_mut() {
            link.lowest = link.lowest.min(sequence);
            link.highest = link.highest.max(sequence);
        }
    }

    /// Bytes left in the segment that is written.
    #[inline]
    pub(crate) fn remaining(&self) -> u64 {
        self.end - self.position
    }

    /// The place behind the last record and the commit word that was cleared with it.
    fn written(&self) -> u64 {
        (self.position + 8).min(self.end)
    }

    #[inline]
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// Whether the writer is getting close to pages that were not made ready.
    fn wants_prefault(&self) -> bool {
        // Behind the last byte of a segment there is nothing to make ready.
        let ready = self.prefaulted.max(self.position);
        ready < self.end && self.position + AHEAD / 2 > ready
    }

    /// The next piece to make ready: first the rest of the segment being written, then the
    /// segment that will be opened next, so that a burst meets no page fault.
    fn piece_to_prefault(&self) -> Option<(u64, u64)> {
        if self.protected && self.position < self.end && !self.wants_prefault() {
            return Some((self.position / BLOCK * BLOCK, BLOCK));
        }
        let from = self.prefaulted.max(self.position);
        if from < self.end {
            return Some((from, AHEAD.min(self.end - from)));
        }
        let spare = self.pick()?;
        let from = match self.spare {
            Some((segment, through)) if segment == spare => through,
            _ => self.geometry.segment_at(spare),
        };
        let end = self.geometry.end_of(spare);
        (from < end).then(|| (from, AHEAD.min(end - from)))
    }

    pub(crate) fn prefaulted(&mut self, through: u64) {
        self.protected = false;
        let segment = self.geometry.segment_of(through - 1);
        if segment == self.current() {
            self.prefaulted = self.prefaulted.max(through);
        } else {
            self.spare = Some((segment, through));
        }
    }

    /// Whether no segment is free.
    pub(crate) fn is_starved(&self) -> bool {
        self.ready() == 0
    }

    fn ready(&self) -> usize {
        self.ready.len()
    }

    fn set(&mut self, segment: usize, status: Status) {
        self.status[segment] = status;
        self.ready.remove(&segment);
        self.pending.retain(|s| *s != segment);
        match status {
            Status::Used => {}
            Status::Ready => drop(self.ready.insert(segment)),
            Status::Grown => self.pending.push(segment),
        }
    }

    fn free(&self) -> usize {
        self.status.len() - self.chain.len()
    }

    fn usable(&self) -> u64 {
        usable(&self.geometry)
    }

    /// Bytes that publishes can take before a segment has to be freed.
    fn free_for_publishes(&self) -> u64 {
        let segments = self.ready().saturating_sub(KEPT) as u64;
        segments * self.geometry.segment_size + self.remaining()
    }

    /// A start is about to be named.
    fn start_begun(&mut self) {
        self.free_at_write = self.free_for_publishes();
    }

    /// A start was named; what it frees is not free yet.
    fn start_ended(&mut self) {
        let left = self.free_for_publishes();
        let taken = self.free_at_write.saturating_sub(left);
        self.pressed |= left < taken;
    }

    /// The most bytes that may be needed or charged at a time.
    pub(crate) fn limit(&self, cap_segments: u64) -> u64 {
        let segments = match self.growth_error {
            Some(_) => self.status.len() as u64,
            None => cap_segments,
        };
        limit(&self.geometry, segments)
    }

    /// The ordinal below which no record is needed.
    pub(crate) fn oldest_needed(&self, state: &State) -> u64 {
        let first = self
            .chain
            .iter()
            .find(|l| state.segment_live(l.segment) > 0);
        first.or(self.chain.back()).map_or(1, |l| l.first_ordinal)
    }

    /// Segments are not freed as fast as publishes take them.
    pub(crate) fn press(&mut self) {
        self.pressed = true;
    }

    /// A publish found no room.
    pub(crate) fn turned_away(&mut self) {
        self.owed = true;
        self.demand();
    }

    pub(crate) fn demand(&mut self) {
        if !self.demand {
            self.collected = 0;
        }
        self.demand = true;
        self.retry_growth();
    }

    /// A publish found room. That ends a demand only if nobody was turned away since everybody
    /// was told to try again: a larger message may be waiting for room that a smaller one did not
    /// need.
    #[inline]
    pub(crate) fn satisfied(&mut self) {
        self.demand &= self.owed;
    }

    /// Whether anybody was turned away since the last call. Whoever is told of room tries again,
    /// and is turned away again if it is still too early.
    pub(crate) fn take_owed(&mut self) -> bool {
        std::mem::take(&mut self.owed)
    }

    pub(crate) fn growth_error(&self) -> Option<&StoreError> {
        self.growth_error.as_ref()
    }

    /// Somebody waits for room, and the file could not grow; there may be space on the disk by
    /// now.
    pub(crate) fn is_growth_awaited(&self) -> bool {
        self.demand && self.growth_error.is_some()
    }

    /// Growth that failed is tried once more.
    pub(crate) fn retry_growth(&mut self) {
        self.retry_growth = self.growth_error.is_some();
    }

    /// Whether a sync or a write of the superblock is under way. No other one may begin then: the
    /// kernel tells of a failed write-back once, to whichever of two overlapping calls asks
    /// first, and the other one would vouch for what was lost.
    pub(crate) fn is_device_at_work(&self) -> bool {
        self.writing || (self.syncing > 0 && !planted::is(Bug::OverlappingSyncs))
    }

    /// The file's length is about to be changed by a thread without the lock.
    pub(crate) fn begin_resize(&mut self) {
        self.resizing = true;
    }

    /// A sync begins now. Returns what it has to cover.
    pub(crate) fn sync_started(&mut self) -> Extent {
        let (end, next) = (self.written(), self.position);
        self.syncing += 1;
        self.unsynced.begin_sync(end, next)
    }

    /// A sync of something that nobody appends to begins.
    pub(crate) fn sync_beside_started(&mut self) {
        self.syncing += 1;
    }

    /// A sync returned, with success or not.
    pub(crate) fn sync_returned(&mut self) {
        self.syncing -= 1;
        self.protected = true;
    }

    /// This many of the oldest segments need not last: whatever frees them, no sync has to cover
    /// them.
    pub(crate) fn leave_unsynced(&mut self, segments: usize) {
        for link in self.chain.iter().take(segments) {
            let at = self.geometry.segment_at(link.segment);
            self.unsynced
                .forget(&(at..self.geometry.end_of(link.segment)));
        }
    }

    /// How many segments at the end hold nothing, and nothing set aside either, since a repair
    /// could still save that until the ring reuses its place.
    fn returnable(&self) -> u64 {
        let last = self.reuse_last.iter().max();
        let segments = self.status.iter().enumerate().rev();
        let free = segments.take_while(|(s, status)| {
            **status == Status::Ready && last.is_none_or(|last| last < s)
        });
        free.count() as u64
    }

    /// Forgets the segments from `count` on.
    fn give_up(&mut self, count: usize) {
        self.status.truncate(count);
        self.ready.retain(|s| *s < count);
        self.spare = self.spare.filter(|(s, _)| *s < count);
    }

    /// Opens a segment for the first record of a run. `fallback`: the place of the cut, which is
    /// written over if every segment holds part of the log.
    pub(crate) fn open_for_epoch(
        &mut self,
        medium: &mut dyn Medium,
        generation: u64,
        first_ordinal: u64,
        opening: Opening,
        fallback: Option<(usize, u64)>,
    ) -> Result<(), StoreError> {
        if let Some(segment) = self.pick() {
            self.open_segment(medium, segment, generation, first_ordinal, opening);
            return Ok(());
        }
        let (segment, position) = fallback.ok_or(StoreError::LogFull)?;
        self.resume(segment, position);
        if self.fits(2 * MAX_OPENING) {
            Ok(())
        } else {
            Err(StoreError::LogFull)
        }
    }

    fn pick(&self) -> Option<usize> {
        if let Some((spare, _)) = self.spare
            && self.ready.contains(&spare)
        {
            return Some(spare);
        }
        self.pick_first()
    }

    fn pick_first(&self) -> Option<usize> {
        let last: BTreeSet<usize> = self.reuse_last.iter().copied().collect();
        let plain = |s: &usize| !last.contains(s);
        let held = || self.reuse_last.iter().find(|s| self.ready.contains(s));
        self.ready.iter().copied().find(plain).or(held().copied())
    }

    /// Opens a segment; messages published from here on have sequences from `opening.next` on.
    fn open_segment(
        &mut self,
        medium: &mut dyn Medium,
        segment: usize,
        generation: u64,
        first_ordinal: u64,
        opening: Opening,
    ) {
        let next = opening.next;
        if let Some(link) = self.chain.back_mut() {
            link.end = Some(self.position);
            link.highest = link.highest.max(next - 1);
        }
        let (at, records) = (
            self.geometry.segment_at(segment),
            self.geometry.records_at(segment),
        );
        medium.commit(records, 0);
        let header = SegmentHeader::Used { first_ordinal };
        medium.write(at, &header.encode(self.geometry.key, at, generation));
        // To its end, so that neighbouring segments are one stretch.
        self.unsynced.jump(self.end, at);
        self.set(segment, Status::Used);
        self.reuse_last.retain(|s| *s != segment);
        self.current = segment;
        self.chain.push_back(Link {
            segment,
            first_ordinal,
            end: None,
            lowest: next,
            highest: 0,
            opening,
        });
        self.position = records;
        self.end = self.geometry.end_of(segment);
        self.prefaulted = match self.spare.take() {
            Some((spare, through)) if spare == segment => through,
            _ => at,
        };
    }
}

/// What certainly fits into one segment, whatever the sizes of the records.
pub(crate) fn usable(geometry: &Geometry) -> u64 {
    geometry.segment_size - SEGMENT_HEADER - MAX_OPENING - SLACK - geometry.max_record
}

/// The most bytes that may be needed or charged in this many segments.
pub(crate) fn limit(geometry: &Geometry, segments: u64) -> u64 {
    segments.saturating_sub(KEPT as u64) * usable(geometry)
}
