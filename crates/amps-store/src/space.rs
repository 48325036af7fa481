//! Room for records: which segment is written, which are free, and how they become free.
//!
//! Only the oldest segment is ever freed. What it still holds is copied to the head of the
//! log and synced together with the settlements that emptied it; then it is stamped free,
//! and that is synced before a byte of it is used again. Device work is handed out as
//! [`Chore`]s, so that whoever owns the log decides whether to do it with the lock held.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use crate::error::StoreError;
use crate::format::{
    Kind, MAX_OPENING, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SUPERBLOCKS, SegmentHeader,
    Superblock, record_is_intact,
};
use crate::log::Log;
use crate::medium::{Device, Medium};
use crate::options::FIRST_SEGMENTS;
use crate::planted::{self, Bug};
use crate::scan::Geometry;
use crate::state::State;
use crate::unsynced::{Extent, Unsynced};

/// Publishes leave this many segments to the log's own records and to recovery.
const KEPT: usize = 2;
/// Free segments worth having: one spare ahead of a publisher.
const WANTED: usize = KEPT + 1;
/// Records looked at in one hold of the lock.
const BATCH: usize = 64;
/// Bytes at the end of a segment that only copies and epochs take: a run that dies in the
/// middle of a collection leaves room for the epochs of the next ones.
const SLACK: u64 = 3 * MAX_OPENING;
/// A file is not cut for less than this many segments: it would grow again soon.
const WORTH_RETURNING: u64 = 2;
/// The file grows by pieces of this size: who waits for a sync waits for one of them at most.
const PIECE: u64 = 4 << 20;
/// Pages made ready ahead of the writer.
const AHEAD: u64 = 1 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Used,
    /// Stamped free; the stamp is durable after the sync with this number.
    Stamped(u64),
    /// Stamped in a part of the file that the superblock does not name yet.
    Grown(u64),
    Ready,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    segment: usize,
    first_ordinal: u64,
    /// Behind its last record; unknown while it is written.
    end: Option<u64>,
}

/// The segments of the file at start: how many, and which hold the log.
pub(crate) struct Segments {
    count: usize,
    chain: VecDeque<(usize, u64)>,
    /// Free ones that hold records set aside: reused last.
    last: Vec<usize>,
}

impl Segments {
    pub(crate) fn new(count: usize, chain: VecDeque<(usize, u64)>, last: Vec<usize>) -> Self {
        Segments { count, chain, last }
    }
}

/// How far the oldest segment is on its way to be free.
#[derive(Clone, Copy, Debug)]
enum Collecting {
    /// Copying what is needed, from this place on.
    Copying(u64),
    /// Waiting until this ordinal is durable.
    Covering(u64),
    /// Forgetting where its messages stood, from this sequence on.
    Forgetting(u64),
}

pub(crate) struct Space {
    geometry: Geometry,
    status: Vec<Status>,
    /// Those that are [`Status::Ready`].
    ready: BTreeSet<usize>,
    /// Those that a sync makes ready: stamped or grown.
    pending: Vec<usize>,
    /// In order of reuse when ready.
    reuse_last: Vec<usize>,
    /// Oldest first; the back is written.
    chain: VecDeque<Link>,
    /// The segment that is written: the back of the chain.
    current: usize,
    position: u64,
    end: u64,
    collecting: Option<Collecting>,
    syncs_started: u64,
    syncs_finished: u64,
    /// Somebody found no room.
    demand: bool,
    /// Segments collected for that demand: it ends after two rounds.
    collected: usize,
    growth_error: Option<StoreError>,
    retry_growth: bool,
    /// The file's length is being changed by somebody who does not hold the lock.
    resizing: bool,
    /// The file grows: up to here it is filled.
    growing: Option<u64>,
    /// The superblock is being written by somebody who does not hold the lock.
    writing: bool,
    /// Where the file ends: behind the medium while segments that were given up are cut off.
    file_end: u64,
    /// Pages of the segment that is written are ready for stores up to here.
    prefaulted: u64,
    /// The free segment that is made ready, and opened next; ready up to here.
    spare: Option<(usize, u64)>,
    unsynced: Unsynced,
    /// Upkeep is at work: the records it writes take what room there is.
    working: bool,
    /// Room in the segment that is written that only copies may take.
    reserved: u64,
}

/// Something to be done for the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Chore {
    /// Nothing.
    Idle,
    /// A bounded piece of work on the log itself: [`Log::work`].
    Work,
    /// The superblock names more segments, or fewer: [`Log::begin_due_write`], the write, then
    /// [`Log::finish_write`].
    Superblock,
    /// A sync of everything appended.
    Sync,
    /// Growth of the file: [`Device::reserve`], then [`Log::reserved`].
    Reserve(u64, u64),
    /// [`Device::prefault`], then [`Log::prefaulted`].
    Prefault(u64, u64),
    /// A piece of the end given back: [`Device::truncate`], then [`Log::truncated`].
    Truncate(u64),
}

/// The next step towards a shorter file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Return {
    /// The oldest segment is freed.
    Collect,
    /// The writer leaves a place that shall go.
    Rotate,
    /// The superblock names so many segments from now on.
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
            reuse_last: segments.last,
            current: chain.back().map_or(0, |l| l.segment),
            chain,
            position: 0,
            end: 0,
            collecting: None,
            syncs_started: 0,
            syncs_finished: 0,
            demand: false,
            collected: 0,
            growth_error: None,
            retry_growth: false,
            resizing: false,
            growing: None,
            writing: false,
            file_end: geometry.end_of(segments.count - 1),
            prefaulted: 0,
            spare: None,
            unsynced: Unsynced::everything(0),
            working: false,
            reserved: 0,
        }
    }

    /// Goes on writing behind the last record of the last segment.
    pub(crate) fn resume(&mut self, segment: usize, position: u64) {
        self.position = position;
        self.end = self.geometry.end_of(segment);
        self.prefaulted = position;
        self.unsynced = Unsynced::everything(position);
    }

    /// Whether a record fits into the segment that is written. While no segment is free,
    /// the room that copies of the oldest one need is theirs.
    #[inline]
    pub(crate) fn fits(&self, stride: u64) -> bool {
        self.position + stride + self.reserved <= self.end
    }

    /// Room that freeing the oldest segment takes when no other one is free: copies of what
    /// it holds, and the mark behind them.
    pub(crate) fn collection_needs(&self, state: &State) -> u64 {
        match self.chain.front() {
            Some(oldest) if self.chain.len() > 1 && self.is_starved() => {
                state.segment_live(oldest.segment) + MAX_OPENING
            }
            _ => 0,
        }
    }

    /// Keeps room for what only upkeep may write.
    pub(crate) fn reserve(&mut self, state: &State) {
        let copies = self.collection_needs(state).saturating_sub(MAX_OPENING);
        self.reserved = match self.working {
            false => SLACK + copies,
            // Only into the last segment upkeep writes to the end: so no segment ever holds
            // more than another one can take over.
            true if self.ready() > 0 => SLACK,
            true => 0,
        };
    }

    /// From here on, upkeep writes.
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

    /// Takes room that was found to fit.
    #[inline]
    pub(crate) fn take(&mut self, stride: u64) -> u64 {
        let offset = self.position;
        self.position += stride;
        debug_assert!(self.position <= self.end);
        offset
    }

    /// Bytes left in the segment that is written.
    #[inline]
    pub(crate) fn remaining(&self) -> u64 {
        self.end - self.position
    }

    /// Behind the last record and the commit word that was cleared with it.
    fn written(&self) -> u64 {
        (self.position + 8).min(self.end)
    }

    #[inline]
    pub(crate) fn current(&self) -> usize {
        self.current
    }

    /// Whether the writer nears pages that were not made ready.
    fn wants_prefault(&self) -> bool {
        // Nothing is left to make ready behind the last byte of a segment.
        let ready = self.prefaulted.max(self.position);
        ready < self.end && self.position + AHEAD / 2 > ready
    }

    /// The next piece to be made ready: what is left of the segment that is written, then
    /// the one to be opened next, so that a burst meets no page fault.
    fn piece_to_prefault(&self) -> Option<(u64, u64)> {
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

    fn prefaulted(&mut self, through: u64) {
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
            Status::Stamped(_) | Status::Grown(_) => self.pending.push(segment),
        }
    }

    fn free(&self) -> usize {
        self.status.len() - self.chain.len()
    }

    /// What surely fits into one segment, whatever the sizes of the records.
    fn usable(&self) -> u64 {
        usable(&self.geometry)
    }

    /// Most bytes that may be needed or charged at once.
    pub(crate) fn limit(&self, cap_segments: u64) -> u64 {
        let segments = match self.growth_error {
            Some(_) => self.status.len() as u64,
            None => cap_segments,
        };
        limit(&self.geometry, segments)
    }

    /// Ordinal below which no record is needed.
    pub(crate) fn oldest_needed(&self, state: &State) -> u64 {
        let first = self
            .chain
            .iter()
            .find(|l| state.segment_live(l.segment) > 0);
        first.or(self.chain.back()).map_or(1, |l| l.first_ordinal)
    }

    pub(crate) fn demand(&mut self) {
        if !self.demand {
            self.collected = 0;
        }
        self.demand = true;
        self.retry_growth();
    }

    /// A publish found room.
    #[inline]
    pub(crate) fn satisfied(&mut self) {
        self.demand = false;
    }

    /// Whether somebody waits for room.
    pub(crate) fn demanded(&self) -> bool {
        self.demand
    }

    pub(crate) fn growth_error(&self) -> Option<&StoreError> {
        self.growth_error.as_ref()
    }

    /// Somebody waits for room, and the file could not grow: space may have come meanwhile.
    pub(crate) fn is_growth_awaited(&self) -> bool {
        self.demand && self.growth_error.is_some()
    }

    /// Growth that failed is tried once more.
    pub(crate) fn retry_growth(&mut self) {
        self.retry_growth = self.growth_error.is_some();
    }

    /// Whether the superblock is being written without the lock: nobody else may write it, and
    /// the file's length stays as it is.
    pub(crate) fn is_being_written(&self) -> bool {
        self.writing
    }

    /// The file's length is about to be changed without the lock.
    pub(crate) fn begin_resize(&mut self) {
        self.resizing = true;
    }

    /// Numbers a sync that begins now, and says what it has to cover.
    pub(crate) fn sync_started(&mut self) -> (u64, Extent) {
        let alone = self.syncs_started == self.syncs_finished;
        let (end, next) = (self.written(), self.position);
        let extent = self.unsynced.begin_sync(end, next, alone);
        if extent == Extent::All {
            // It takes the readiness of every page.
            self.prefaulted = self.position;
            self.spare = None;
        }
        self.syncs_started += 1;
        (self.syncs_started, extent)
    }

    /// Several syncs may overlap; each vouches only for what was there when it began.
    pub(crate) fn sync_finished(&mut self, number: u64) {
        self.syncs_finished = self.syncs_finished.max(number);
        let finished = self.syncs_finished;
        let status = &self.status;
        let is_durable = |s: &usize| matches!(status[*s], Status::Stamped(n) if n <= finished);
        let durable: Vec<usize> = self.pending.iter().copied().filter(is_durable).collect();
        for segment in durable {
            self.set(segment, Status::Ready);
        }
    }

    /// How many of the segments at the end hold nothing, and nothing set aside either: what a
    /// repair could still save stays until the ring reuses it.
    fn returnable(&self) -> u64 {
        let last = self.reuse_last.iter().max();
        let segments = self.status.iter().enumerate().rev();
        let free = segments.take_while(|(s, status)| {
            **status == Status::Ready && last.is_none_or(|last| last < s)
        });
        free.count() as u64
    }

    /// Knows nothing any more of the segments from `count` on.
    fn give_up(&mut self, count: usize) {
        self.status.truncate(count);
        self.ready.retain(|s| *s < count);
        self.spare = self.spare.filter(|(s, _)| *s < count);
    }

    /// Opens a segment for the first record of a run. `fallback`: the place of the cut, to
    /// be written over when every segment holds some of the log.
    pub(crate) fn open_for_epoch(
        &mut self,
        medium: &mut dyn Medium,
        generation: u64,
        first_ordinal: u64,
        fallback: Option<(usize, u64)>,
    ) -> Result<(), StoreError> {
        if let Some(segment) = self.pick() {
            self.open_segment(medium, segment, generation, first_ordinal);
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
        let last: BTreeSet<usize> = self.reuse_last.iter().copied().collect();
        let plain = |s: &usize| !last.contains(s);
        let held = || self.reuse_last.iter().find(|s| self.ready.contains(s));
        self.ready.iter().copied().find(plain).or(held().copied())
    }

    fn open_segment(
        &mut self,
        medium: &mut dyn Medium,
        segment: usize,
        generation: u64,
        first_ordinal: u64,
    ) {
        if let Some(link) = self.chain.back_mut() {
            link.end = Some(self.position);
        }
        let (at, records) = (
            self.geometry.segment_at(segment),
            self.geometry.records_at(segment),
        );
        medium.commit(records, 0);
        let header = SegmentHeader::Used { first_ordinal };
        medium.write(at, &header.encode(self.geometry.key, at, generation));
        self.unsynced.jump(self.written(), at);
        self.set(segment, Status::Used);
        self.reuse_last.retain(|s| *s != segment);
        self.current = segment;
        self.chain.push_back(Link {
            segment,
            first_ordinal,
            end: None,
        });
        self.position = records;
        self.end = self.geometry.end_of(segment);
        self.prefaulted = match self.spare.take() {
            Some((spare, through)) if spare == segment => through,
            _ => at,
        };
    }
}

fn usable(geometry: &Geometry) -> u64 {
    geometry.segment_size - SEGMENT_HEADER - MAX_OPENING - SLACK - geometry.max_record
}

/// Most bytes that may be needed or charged in this many segments.
pub(crate) fn limit(geometry: &Geometry, segments: u64) -> u64 {
    segments.saturating_sub(KEPT as u64) * usable(geometry)
}

impl Log {
    /// Opens the next segment for a publish; false: the background has to free one first.
    pub(crate) fn rotate_for_publish(&mut self) -> Result<bool, StoreError> {
        if self.space.ready() <= KEPT {
            return Ok(false);
        }
        self.rotate()?;
        Ok(true)
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        let segment = self.space.pick().ok_or_else(|| {
            let full = self.space.growth_error.clone();
            full.unwrap_or(StoreError::LogFull)
        })?;
        let (generation, ordinal) = (self.superblock.generation, self.ordinal + 1);
        self.space
            .open_segment(&mut *self.medium, segment, generation, ordinal);
        self.write_mark(false)
    }

    /// Makes room for one of the log's own records, freeing a segment here and now if
    /// there is no other way. The last free segment is left to the copies of a collection:
    /// they fit into one, since every segment opens with a record of the same size.
    pub(crate) fn make_room(&mut self, stride: u64) -> Result<(), StoreError> {
        if self.space.fits(stride) {
            return Ok(());
        }
        if self.space.ready() < KEPT && !self.space.working {
            self.space.demand();
            let device = self.medium.device();
            // Copying every segment once gains what there is to gain: a file that could not
            // grow may hold more than its segments can spare, and goes round for ever.
            let mut laps = self.space.chain.len();
            while self.space.ready() < KEPT && laps > 0 {
                let collecting = self.space.collecting.is_some();
                match self.do_chore(&device) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The device failed for good: what room is left decides below.
                    Err(_) if self.failed.is_some() => break,
                    Err(error) => return Err(error),
                }
                laps -= usize::from(collecting && self.space.collecting.is_none());
            }
            if self.space.fits(stride) {
                return Ok(());
            }
        }
        match &self.failed {
            // Nothing is freed any more: the rest belongs to the next open.
            Some(why) if !self.space.working && self.space.ready() <= KEPT => {
                Err(StoreError::SyncFailed(why.clone()))
            }
            _ => self.rotate(),
        }
    }

    /// Does one chore right here; false: there is none.
    pub(crate) fn do_chore(&mut self, device: &Arc<dyn Device>) -> Result<bool, StoreError> {
        match self.chore() {
            Chore::Idle => return Ok(false),
            Chore::Prefault(from, len) => {
                device.prefault(from, len);
                self.prefaulted(from + len);
            }
            Chore::Work => self.work()?,
            Chore::Superblock => {
                if let Some(write) = self.begin_due_write()? {
                    let result = write.make(&**device);
                    self.finish_write(write, result)?;
                }
            }
            Chore::Sync => {
                let ticket = self.begin_sync();
                let result = ticket.extent.sync(&**device);
                self.finish_sync(ticket, result)?;
            }
            Chore::Reserve(from, to) => self.reserved(to, device.reserve(from, to)),
            Chore::Truncate(to) => self.truncated(to, device.truncate(to)),
        }
        Ok(true)
    }

    /// The next thing to be done for the log.
    pub(crate) fn chore(&self) -> Chore {
        let space = &self.space;
        if self.failed.is_some() || self.closed {
            return Chore::Idle;
        }
        let prefault = space
            .piece_to_prefault()
            .map_or(Chore::Idle, |(from, len)| Chore::Prefault(from, len));
        if space.wants_prefault() {
            return prefault;
        }
        match space.collecting {
            Some(Collecting::Covering(ordinal))
                if self.durable.ordinal < ordinal && !planted::is(Bug::EarlyReuse) =>
            {
                return Chore::Sync;
            }
            Some(_) => return Chore::Work,
            None => {}
        }
        if let Some(&segment) = space.pending.first() {
            match space.status[segment] {
                Status::Grown(sync) if sync <= space.syncs_finished => {
                    if !space.writing {
                        return Chore::Superblock;
                    }
                }
                _ => return Chore::Sync,
            }
        }
        if (space.growing.is_some() && !space.resizing) || self.is_growth_wanted() {
            let whole = self.medium.len() + self.geometry.segment_size;
            let from = space.growing.unwrap_or(self.medium.len());
            return Chore::Reserve(from, whole.min(from + PIECE));
        }
        if let Some(to) = self.piece_to_cut() {
            return Chore::Truncate(to);
        }
        if self.is_collection_wanted() {
            return Chore::Work;
        }
        match self.next_return() {
            Some(Return::Name(_)) => Chore::Superblock,
            Some(_) => Chore::Work,
            None => prefault,
        }
    }

    fn is_collection_wanted(&self) -> bool {
        self.space.free() < WANTED && self.is_collection_useful()
    }

    /// The file grows one spare ahead of the writer and, since room that is charged must be
    /// there, one segment ahead of the charges.
    fn is_growth_wanted(&self) -> bool {
        let space = &self.space;
        let segments = space.status.len() as u64;
        let may_grow = segments < self.superblock.cap_segments
            && space.growing.is_none()
            && !space.resizing
            && !space.writing
            && (space.growth_error.is_none() || space.retry_growth);
        let ahead = self.state.charged() + space.usable();
        may_grow
            && (ahead > limit(&self.geometry, segments)
                || (space.free() < WANTED && !self.is_collection_cheap()))
    }

    /// Growing costs disk, collecting costs copies: collect while the oldest segment is
    /// mostly garbage.
    fn is_collection_cheap(&self) -> bool {
        let Some(oldest) = self
            .space
            .chain
            .front()
            .filter(|_| self.space.chain.len() > 1)
        else {
            return false;
        };
        self.state.segment_live(oldest.segment) <= self.geometry.segment_size / 4
    }

    /// Whether collecting can win anything: below two free segments it always must; above,
    /// only if it is cheap (the file does not grow then), if what is needed fits into fewer
    /// segments, or somebody waits for room.
    fn is_collection_useful(&self) -> bool {
        let space = &self.space;
        if space.chain.len() < 2 {
            return false;
        }
        let fewer = (space.chain.len() as u64).saturating_sub(2) * space.usable();
        space.free() < KEPT
            || self.is_collection_cheap()
            || self.state.live() <= fewer
            || (space.demand && space.collected < 2 * space.status.len())
    }

    /// Does a bounded piece of the work that [`chore`](Self::chore) found.
    pub(crate) fn work(&mut self) -> Result<(), StoreError> {
        self.space.begin_upkeep(&self.state);
        let done = self.work_on();
        self.space.end_upkeep(&self.state);
        done
    }

    fn work_on(&mut self) -> Result<(), StoreError> {
        match self.space.collecting {
            None => {
                match self.next_return().filter(|_| !self.is_collection_wanted()) {
                    Some(Return::Rotate) => {
                        self.space.spare = None;
                        self.rotate()?;
                    }
                    _ => self.collect(),
                }
                Ok(())
            }
            Some(Collecting::Copying(from)) => self.copy_survivors(from),
            Some(Collecting::Covering(_) | Collecting::Forgetting(_))
                if self.is_oldest_needed_again() =>
            {
                let oldest = self.space.chain.front().map_or(0, |l| l.segment);
                self.copy_again(oldest)
            }
            Some(Collecting::Covering(_)) => {
                self.space.collecting = Some(Collecting::Forgetting(0));
                Ok(())
            }
            Some(Collecting::Forgetting(from)) => {
                self.forget(from);
                Ok(())
            }
        }
    }

    /// Begins to free the oldest segment.
    fn collect(&mut self) {
        if let Some(oldest) = self.space.chain.front() {
            let first = self.geometry.records_at(oldest.segment);
            self.space.collecting = Some(Collecting::Copying(first));
            self.space.collected += 1;
        }
    }

    /// What brings the file nearer to the length it should have; `None`: it has it, or what
    /// is needed stands in the way.
    fn next_return(&self) -> Option<Return> {
        let (space, keep) = (&self.space, self.length_to_keep()?);
        let is_beyond = |link: &Link| link.segment as u64 >= keep;
        if space.chain.iter().any(is_beyond) || (space.chain.len() + WANTED) as u64 > keep {
            if space.chain.len() > 1 && self.is_collection_cheap() {
                return Some(Return::Collect);
            }
            if space.chain.len() == 1 && space.ready() > KEPT && is_beyond(&space.chain[0]) {
                return Some(Return::Rotate);
            }
        }
        let is_busy = space.writing || space.resizing || space.growing.is_some();
        self.surplus(keep).filter(|_| !is_busy).map(Return::Name)
    }

    /// The segments that are left when those that are free at the end go.
    fn surplus(&self, keep: u64) -> Option<u64> {
        let segments = self.space.status.len() as u64;
        let spare = self.space.ready().saturating_sub(WANTED) as u64;
        let returned = self.space.returnable().min(spare).min(segments - keep);
        (returned > 0).then_some(segments - returned)
    }

    /// The length in segments that the file should be cut to: what admission needs and one
    /// more, so that growth is not wanted again at once. `None`: it keeps its length, or is
    /// not by half longer than that, so that a backlog that comes and goes moves it rarely.
    fn length_to_keep(&self) -> Option<u64> {
        let (charged, usable) = (self.state.charged(), self.space.usable());
        let segments = self.space.status.len() as u64;
        // Asked after every settlement, so without a division.
        let most = (segments.saturating_sub(WORTH_RETURNING)).min((2 * segments + 1) / 3);
        if self.superblock.preallocated
            || most < FIRST_SEGMENTS
            || charged + 2 * usable > limit(&self.geometry, most)
        {
            return None;
        }
        let needed = (charged + usable).div_ceil(usable) + KEPT as u64;
        Some((needed + 1).max(FIRST_SEGMENTS))
    }

    /// At the end of a run: how many segments its last superblock should name.
    pub(crate) fn segments_at_close(&self) -> u64 {
        let keep = self.length_to_keep();
        keep.and_then(|keep| self.surplus(keep))
            .unwrap_or(self.superblock.segments)
    }

    /// Gives the segments from this one on back: out of reach, named no more by the superblock
    /// that this returns, then cut off.
    fn give_up(&mut self, segments: u64) -> Superblock {
        if planted::is(Bug::CutBeforeNamed) {
            let end = self.geometry.segment_at(segments as usize);
            self.truncated(end, self.medium.device().truncate(end));
        }
        self.leave(segments);
        // A write that fails may have put it into force all the same: this run goes on without
        // these segments in any case.
        self.superblock.segments = segments;
        self.superblock.clone()
    }

    /// Puts the segments from this one on, which hold nothing, out of reach.
    fn leave(&mut self, segments: u64) {
        self.space.give_up(segments as usize);
        self.state.resize(segments as usize);
        self.medium
            .leave(self.geometry.segment_at(segments as usize));
    }

    /// Cuts off all at once what the superblock names no more: the run is over.
    pub(crate) fn cut_to_named(&mut self, device: &Arc<dyn Device>) {
        self.leave(self.superblock.segments);
        let end = self.medium.len();
        if self.space.file_end > end && !self.space.resizing {
            self.truncated(end, device.truncate(end));
        }
    }

    /// One segment of what was given up at a time: cutting off much holds up who uses the file.
    fn piece_to_cut(&self) -> Option<u64> {
        let (end, size) = (self.medium.len(), self.geometry.segment_size);
        let space = &self.space;
        let is_busy = space.writing || space.resizing || space.growing.is_some();
        (space.file_end > end && !is_busy).then(|| end.max(space.file_end - size))
    }

    /// The file was cut to this length, or could not be.
    pub(crate) fn truncated(&mut self, to: u64, result: std::io::Result<()>) {
        self.space.resizing = false;
        self.space.file_end = match result {
            Ok(()) => to,
            Err(error) => {
                // What is left lies behind everything the superblock names: the next growth
                // fills it again, the next open cuts it off.
                tracing::warn!(%error, "the end of the store's file cannot be given back");
                self.medium.len()
            }
        };
    }

    /// A late refusal needs its message again, though that was settled when the segment was
    /// looked through.
    fn is_oldest_needed_again(&self) -> bool {
        let oldest = self.space.chain.front();
        oldest.is_some_and(|l| self.state.segment_live(l.segment) > 0)
            && !planted::is(Bug::NoCopies)
    }

    /// Goes back to the first needed record that was passed.
    fn copy_again(&mut self, oldest: usize) -> Result<(), StoreError> {
        let (from, end) = (
            self.geometry.segment_at(oldest),
            self.geometry.end_of(oldest),
        );
        let missed = self.state.needed_within(&(from..end));
        let offset = missed.map_or(from, |e| e.offset());
        match self.record_from(offset, end) {
            Some((at, _)) if at == offset => {
                self.space.collecting = Some(Collecting::Copying(offset));
                Ok(())
            }
            // It stands there no more: looking for it would never end.
            _ => self.found_damage(offset),
        }
    }

    /// Nothing more is freed: what is needed cannot be copied.
    fn found_damage(&mut self, offset: u64) -> Result<(), StoreError> {
        self.space.collecting = None;
        let why = StoreError::Damaged { offset };
        self.failed.get_or_insert_with(|| why.to_string());
        Err(why)
    }

    fn copy_survivors(&mut self, from: u64) -> Result<(), StoreError> {
        let Some(&oldest) = self.space.chain.front() else {
            return Ok(());
        };
        let end = self.end_of(&oldest);
        let mut at = if self.state.segment_live(oldest.segment) == 0 {
            end
        } else {
            from
        };
        let mut bytes = Vec::new();
        for _ in 0..BATCH {
            let Some((offset, header)) = self.record_from(at, end) else {
                at = end;
                break;
            };
            at = offset + header.stride();
            if self.is_needed_at(&header, offset) {
                bytes.resize(header.stride() as usize, 0);
                self.medium.read(offset, &mut bytes);
                if !record_is_intact(&bytes, self.geometry.key, offset) {
                    // Copying it would give wrong bytes a good checksum.
                    return self.found_damage(offset);
                }
                let body = &bytes[RECORD_HEADER..header.len as usize];
                let kind = if header.kind == Kind::Publish {
                    Kind::Copy
                } else {
                    header.kind
                };
                let (sequence, envelope) = (header.sequence, header.envelope_len as usize);
                let entry = self.write_kept(kind, header.quiet, sequence, envelope, body)?;
                if kind == Kind::Rejection {
                    self.state.reject(sequence, entry);
                } else {
                    self.state.message(sequence, entry);
                }
            }
        }
        if at >= end && self.is_oldest_needed_again() {
            return self.copy_again(oldest.segment);
        }
        self.space.collecting = if at >= end {
            // A mark says that the segment is no longer needed; it must be durable before the
            // stamp can be, or a recovery would miss the segment. One that says so already is
            // enough: runs that die before the stamp must not fill the log with marks.
            let needed = self.space.oldest_needed(&self.state);
            if self.needed_from < needed {
                self.write_mark(false)?;
            }
            Some(Collecting::Covering(self.ordinal))
        } else {
            Some(Collecting::Copying(at))
        };
        Ok(())
    }

    fn is_needed_at(&self, header: &RecordHeader, offset: u64) -> bool {
        if planted::is(Bug::NoCopies) {
            return false;
        }
        let newest = match header.kind {
            Kind::Publish | Kind::Copy => self.state.get(header.sequence).filter(|e| e.is_needed()),
            Kind::Rejection => self.state.rejection(header.sequence),
            _ => None,
        };
        newest.is_some_and(|e| e.offset() == offset)
    }

    fn forget(&mut self, from: u64) {
        let Some(&oldest) = self.space.chain.front() else {
            return;
        };
        let segment = oldest.segment;
        let bytes = self.geometry.segment_at(segment)..self.geometry.end_of(segment);
        if let Some(next) = self.state.forget(from, &bytes) {
            self.space.collecting = Some(Collecting::Forgetting(next));
            return;
        }
        let place = self.geometry.segment_at(oldest.segment);
        let header =
            SegmentHeader::Free.encode(self.geometry.key, place, self.superblock.generation);
        self.medium.write(place, &header);
        self.space.unsynced.touch(place, place + SEGMENT_HEADER);
        self.space.chain.pop_front();
        let status = match planted::is(Bug::EarlyReuse) {
            true => Status::Ready,
            false => Status::Stamped(self.space.syncs_started + 1),
        };
        self.space.set(oldest.segment, status);
        self.space.collecting = None;
    }

    fn end_of(&self, link: &Link) -> u64 {
        link.end
            .unwrap_or_else(|| self.geometry.end_of(link.segment))
    }

    /// The record at `at`, or the next one behind damage.
    fn record_from(&self, mut at: u64, end: u64) -> Option<(u64, RecordHeader)> {
        let mut head = [0; RECORD_HEADER];
        let oldest = self.space.chain.front()?.first_ordinal;
        let newest = self.space.chain.get(1)?.first_ordinal;
        while at + RECORD_HEADER as u64 <= end {
            self.medium.read(at, &mut head);
            let max = self.geometry.max_record.min(end - at);
            if let Some(header) = RecordHeader::decode(&head, max)
                && (oldest..newest).contains(&header.ordinal)
            {
                return Some((at, header));
            }
            at += 8;
        }
        None
    }

    /// Begins the write that [`chore`](Self::chore) found due: grown segments are named once
    /// their bytes are durable, and segments that are given up no more.
    pub(crate) fn begin_due_write(&mut self) -> Result<Option<Write>, StoreError> {
        let space = &self.space;
        let is_grown = |s: &usize| matches!(space.status[*s], Status::Grown(sync) if sync <= space.syncs_finished);
        let last_grown = space.pending.iter().copied().filter(is_grown).max();
        let superblock = match (last_grown, self.next_return()) {
            (Some(last), _) => Superblock {
                segments: last as u64 + 1,
                ..self.superblock.clone()
            },
            (None, Some(Return::Name(segments))) => self.give_up(segments),
            _ => return Ok(None),
        };
        self.begin_write(superblock).map(Some)
    }

    /// The file was extended, or could not be.
    pub(crate) fn reserved(&mut self, to: u64, result: std::io::Result<()>) {
        self.space.retry_growth = false;
        self.space.resizing = false;
        let grown_to = self.space.growing.take();
        if let Err(error) = result {
            // What was filled before is cut off like any end that is not named.
            self.space.file_end = grown_to.unwrap_or(self.medium.len());
            self.space.growth_error = Some(StoreError::io("grow the store", &error));
            self.watermark.limit(self.limit());
            return;
        }
        self.space.file_end = self.space.file_end.max(to);
        if to < self.medium.len() + self.geometry.segment_size {
            self.space.growing = Some(to);
            return;
        }
        self.space.growth_error = None;
        self.watermark.limit(self.limit());
        self.medium.adopt(to);
        // A sync of everything would take the readiness of every page.
        self.space
            .unsynced
            .touch(to - self.geometry.segment_size, to);
        let segment = self.space.status.len();
        let at = self.geometry.segment_at(segment);
        let header = SegmentHeader::Free.encode(self.geometry.key, at, self.superblock.generation);
        self.medium.write(at, &header);
        self.space.status.push(Status::Used);
        let grown = Status::Grown(self.space.syncs_started + 1);
        self.space.set(segment, grown);
        self.state.resize(self.space.status.len());
    }

    /// Pages up to here take stores without a fault.
    pub(crate) fn prefaulted(&mut self, through: u64) {
        self.space.prefaulted(through);
    }

    /// Puts a superblock into force, here and now.
    pub(crate) fn write_superblock(&mut self, superblock: Superblock) -> Result<(), StoreError> {
        let write = self.begin_write(superblock)?;
        let result = write.make(&*self.medium.device());
        self.finish_write(write, result)
    }

    /// What is to be written so that a superblock comes into force. Until
    /// [`finish_write`](Self::finish_write) no other one may begin.
    pub(crate) fn begin_write(&mut self, mut superblock: Superblock) -> Result<Write, StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::SyncFailed(why.clone()));
        }
        debug_assert!(!self.space.writing, "one write at a time");
        self.space.writing = true;
        superblock.counter += 1;
        Ok(Write(superblock))
    }

    /// A superblock was written, or could not be.
    pub(crate) fn finish_write(
        &mut self,
        write: Write,
        result: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        self.space.writing = false;
        if let Err(error) = result {
            // Old or new: this run cannot know what the next one will find.
            self.failed.get_or_insert_with(|| error.to_string());
            return Err(StoreError::final_io("write the superblock", &error));
        }
        self.superblock = write.0;
        let named = self.superblock.segments;
        let is_named =
            |s: &usize| (*s as u64) < named && matches!(self.space.status[*s], Status::Grown(_));
        let grown: Vec<usize> = self
            .space
            .pending
            .iter()
            .copied()
            .filter(is_named)
            .collect();
        for segment in grown {
            self.space.set(segment, Status::Ready);
        }
        Ok(())
    }
}

/// A superblock on its way into force.
pub(crate) struct Write(Superblock);

impl Write {
    /// Writes both copies, one after the other, so that one damaged copy never takes a number
    /// back.
    ///
    /// # Errors
    /// As [`Device::write_around`].
    pub(crate) fn make(&self, device: &dyn Device) -> std::io::Result<()> {
        let bytes = self.0.encode();
        SUPERBLOCKS
            .into_iter()
            .try_for_each(|at| device.write_around(at, &bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::Options;
    use crate::envelope::Envelope;
    use crate::medium::Heap;

    /// A thread that settles frees a segment itself when there is no other way. While the
    /// helper extends the file it must not do that too: the stamp that the first one wrote
    /// was filled with zeros by the second.
    /// A publisher that waited for durability waited for the zeros of a whole segment.
    #[test]
    fn a_large_segment_grows_in_pieces_and_a_sync_may_come_between_them() {
        let options = Options::new().capacity(64 << 20).segment_size(9 << 20);
        let medium = Box::new(Heap::new());
        let (mut log, _) = crate::file::open_medium(Path::new("heap"), medium, &options).unwrap();
        let device = log.medium.device();
        while log.append(&Envelope::publish("t"), &[7; 1 << 20]).is_ok() {}
        let (mut pieces, mut from) = (Vec::new(), log.medium.len());
        let segments = log.space.status.len();
        while log.space.status.len() == segments {
            match log.chore() {
                Chore::Reserve(at, to) => {
                    assert_eq!(at, from);
                    pieces.push(to - at);
                    from = to;
                    log.reserved(to, device.reserve(at, to));
                    let ticket = log.begin_sync();
                    log.finish_sync(ticket, Ok(())).unwrap();
                }
                _ => assert!(log.do_chore(&device).unwrap()),
            }
        }
        assert_eq!(pieces, [4 << 20, 4 << 20, 1 << 20]);
        // A piece that finds no space leaves the pieces before it to be cut off.
        while !matches!(log.chore(), Chore::Reserve(..)) {
            while log.append(&Envelope::publish("t"), &[7; 1 << 20]).is_ok() {}
            assert!(log.do_chore(&device).unwrap());
        }
        let named = log.medium.len();
        log.reserved(named + PIECE, Ok(()));
        log.reserved(
            named + 2 * PIECE,
            Err(std::io::ErrorKind::StorageFull.into()),
        );
        assert_eq!(log.chore(), Chore::Truncate(named));
    }

    #[test]
    fn one_thread_at_a_time_changes_the_length_of_the_file() {
        let options = Options::new().capacity(64 << 10);
        let medium = Box::new(Heap::new());
        let (mut log, _) = crate::file::open_medium(Path::new("heap"), medium, &options).unwrap();
        while log.append(&Envelope::publish("t"), &[7; 100]).is_ok() {}
        let device = log.medium.device();
        let (from, to) = loop {
            match log.chore() {
                Chore::Reserve(from, to) => break (from, to),
                Chore::Idle => panic!("a full store wants to grow"),
                _ => assert!(log.do_chore(&device).unwrap()),
            }
        };
        let segments = log.space.status.len();
        log.space.begin_resize();
        while log.do_chore(&device).unwrap() {}
        assert_eq!(log.space.status.len(), segments);
        log.reserved(to, device.reserve(from, to));
        while log.do_chore(&device).unwrap() {}
        assert!(log.space.status.len() > segments);
        log.append(&Envelope::publish("t"), &[7; 100]).unwrap();
    }
}
