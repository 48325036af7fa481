//! How a segment becomes free, and what the log's upkeep does next.

use super::reserve::FOR_THE_NEXT;
use super::{BATCH, Chore, Collecting, KEPT, Link, PIECE, Return, Status, WANTED};
use crate::error::StoreError;
use crate::faults::planted::{self, Bug};
use crate::format::{
    Kind, MAX_OPENING, MAX_REJECTION, Opening, RECORD_HEADER, RecordHeader, Superblock,
    record_is_intact,
};
use crate::log::Log;

impl Log {
    /// Opens the next segment for a publish; false: the background has to free one first.
    pub(crate) fn rotate_for_publish(&mut self) -> Result<bool, StoreError> {
        let kept = match planted::is(Bug::ReserveSpent) {
            true => FOR_THE_NEXT,
            false => KEPT,
        };
        if self.space.ready() <= kept {
            return Ok(false);
        }
        self.rotate()?;
        Ok(true)
    }

    pub(super) fn rotate(&mut self) -> Result<(), StoreError> {
        let segment = self.space.pick().ok_or_else(|| {
            let full = self.space.growth_error.clone();
            full.unwrap_or(StoreError::LogFull)
        })?;
        let (generation, ordinal) = (self.superblock.generation, self.ordinal + 1);
        let opening = Opening::of(&self.mark(false));
        self.space
            .open_segment(&mut *self.medium, segment, generation, ordinal, opening);
        self.write_mark(false)
    }

    /// Makes room for one of the log's own records, and frees a segment right here if there is no
    /// other way. The last free segment is reserved for the copies of a collection: they fit into
    /// one, since every segment begins with a record of the same size.
    pub(crate) fn make_room(&mut self, stride: u64) -> Result<(), StoreError> {
        if self.space.fits(stride) {
            return Ok(());
        }
        if self.space.ready() < KEPT && !self.space.working {
            self.space.demand();
            let device = self.medium.device();
            // Copying every segment once gains all that can be gained. A file that could not grow
            // may hold more than its segments can spare, and this would go on for ever.
            let mut laps = self.space.chain.len();
            while self.space.ready() < KEPT && laps > 0 {
                let collecting = self.space.collecting.is_some();
                match self.do_chore(&device) {
                    Ok(true) => {}
                    Ok(false) => break,
                    // The device has failed for good: the code below decides by the room that is
                    // left.
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
            Some(why) if !self.space.working && self.space.ready() <= FOR_THE_NEXT => {
                Err(StoreError::SyncFailed(why.clone()))
            }
            _ => self.rotate(),
        }
    }

    /// Whether any single change of the log finds its room in what is free already: the message
    /// of a late refusal, the refusal, and a mark. Otherwise it may have to sync to get room.
    pub(crate) fn is_room_sure(&self) -> bool {
        let most = self.geometry.max_record + MAX_REJECTION + 2 * MAX_OPENING;
        self.failed.is_some() || self.space.ready() >= KEPT || self.space.fits(most)
    }

    /// Somebody waits for room while the device is at work: does what can be done at the same
    /// time. False: there is nothing.
    pub(crate) fn work_for_room(&mut self) -> Result<bool, StoreError> {
        self.space.demand();
        match self.chore() {
            Chore::Work => self.work().map(|()| true),
            _ => Ok(false),
        }
    }

    /// The next thing that has to be done for the log and can be done now.
    pub(crate) fn chore(&self) -> Chore {
        match self.next_chore() {
            Chore::Sync | Chore::SyncGrown(..) | Chore::Superblock
                if self.space.is_device_at_work() =>
            {
                Chore::Idle
            }
            chore => chore,
        }
    }

    fn next_chore(&self) -> Chore {
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
            Some(Collecting::Covering { ordinal, .. }) if self.durable.ordinal < ordinal => {
                return Chore::Sync;
            }
            Some(Collecting::Naming { .. }) => return Chore::Superblock,
            Some(_) => return Chore::Work,
            None => {}
        }
        if let Some(&segment) = space.pending.first() {
            let (from, to) = (
                self.geometry.segment_at(segment),
                self.geometry.end_of(segment),
            );
            match space.is_growth_synced || planted::is(Bug::GrownUnsynced) {
                true if space.writing => {}
                true => return Chore::Superblock,
                false => return Chore::SyncGrown(from, to),
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

    pub(super) fn is_collection_wanted(&self) -> bool {
        let space = &self.space;
        // Each start costs two small writes, however much it frees, and while they are made the
        // writer goes on in what is free already.
        let half = WANTED.max(space.status.len() / 2);
        let is_short = || self.is_reserve_short();
        ((space.free() < half || is_short()) && self.unneeded() > 0)
            || ((space.free() < WANTED || (space.demand && is_short()))
                && self.is_collection_useful())
    }

    /// How many of the oldest segments hold nothing that is needed.
    pub(crate) fn unneeded(&self) -> usize {
        let chain = &self.space.chain;
        let written = chain.len().saturating_sub(1);
        let unneeded =
            |link: &&Link| self.state.segment_live(link.segment) == 0 || planted::is(Bug::NoCopies);
        chain.iter().take(written).take_while(unneeded).count()
    }

    /// Growing costs disk space, collecting costs copies: collect while most of the oldest
    /// segment is garbage.
    pub(super) fn is_collection_cheap(&self) -> bool {
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

    /// Whether collecting can gain anything. With fewer than two free segments it is always
    /// necessary. With more, only if it is cheap (then the file does not grow), if what is needed
    /// fits into fewer segments, or if somebody waits for room.
    pub(super) fn is_collection_useful(&self) -> bool {
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

    pub(super) fn work_on(&mut self) -> Result<(), StoreError> {
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
            Some(Collecting::Covering { segments, .. }) => match self.unneeded().min(segments) {
                0 => {
                    let oldest = self.space.chain.front().map_or(0, |l| l.segment);
                    self.copy_again(oldest)
                }
                segments => {
                    self.name_start(segments);
                    Ok(())
                }
            },
            // Only a write of the superblock leads further.
            Some(Collecting::Naming { .. }) => Ok(()),
            Some(Collecting::Forgetting { segments, from }) => {
                self.forget(segments, from);
                Ok(())
            }
        }
    }

    /// Begins to free the oldest segments: all that hold nothing needed, or otherwise the first.
    pub(super) fn collect(&mut self) {
        let Some(oldest) = self.space.chain.front() else {
            return;
        };
        let first = self.geometry.records_at(oldest.segment);
        self.space.collecting = Some(match self.unneeded() {
            0 => Collecting::Copying(first),
            _ => self.cover_unneeded(),
        });
        self.space.collected += 1;
    }

    /// What stands in for records of these segments must be durable before the start passes them.
    /// A record that is written later stands in for one that is needed now, and so is behind
    /// them, except for a late refusal; see [`look_through_again`](Self::look_through_again).
    fn cover_unneeded(&self) -> Collecting {
        Collecting::Covering {
            segments: self.unneeded(),
            ordinal: self.cover,
        }
    }

    /// A late refusal may need its message again, in a segment that is about to be passed. When
    /// that refusal is accepted or requeued, its message is not needed any more, but the record
    /// that says so is above everything that the start waits for. So that wait begins anew.
    pub(crate) fn look_through_again(&mut self) {
        if let Some(Collecting::Covering { segments, .. }) = self.space.collecting
            && self.unneeded() < segments
        {
            self.space.collecting = None;
        }
    }

    /// From here on a late refusal of a message before the new start brings its message along,
    /// whether the write of the superblock succeeds or not.
    fn name_start(&mut self, segments: usize) {
        let Some(first) = self.space.chain.get(segments) else {
            return;
        };
        if !planted::is(Bug::OriginalsLeftBehind) {
            self.needed_from = self.needed_from.max(first.first_ordinal);
        }
        self.space.collecting = Some(match planted::is(Bug::EarlyReuse) {
            true => self.forgetting(segments),
            false => Collecting::Naming { segments },
        });
    }

    fn forgetting(&self, segments: usize) -> Collecting {
        let from = self.space.chain.front().map_or(0, |l| l.lowest);
        Collecting::Forgetting { segments, from }
    }

    /// What the superblock has to say about the start that is due to be named.
    pub(super) fn name_in(&self, superblock: &mut Superblock) {
        let Some(Collecting::Naming { segments }) = self.space.collecting else {
            return;
        };
        self.begin_behind(segments, superblock);
        superblock.durable = superblock.durable.max(self.durable.ordinal);
    }

    /// What a superblock says about a log that begins behind this many segments.
    fn begin_behind(&self, segments: usize, superblock: &mut Superblock) {
        if let Some(first) = self.space.chain.get(segments) {
            superblock.start = first.first_ordinal;
            superblock.opening = first.opening;
            if planted::is(Bug::LatestFloor) {
                superblock.opening.floor = self.state.floor();
            }
            if planted::is(Bug::LatestTag) {
                superblock.opening.tag = self.mark(false).tag;
            }
        }
    }

    /// At the end of a run: makes its last superblock begin the log behind this many segments,
    /// which hold nothing that is needed. They count as free from now on.
    pub(crate) fn pass(&mut self, segments: usize, superblock: &mut Superblock) {
        self.begin_behind(segments, superblock);
        self.space.collecting = None;
        let passed: Vec<Link> = self.space.chain.drain(..segments).collect();
        for link in passed {
            self.space.set(link.segment, Status::Ready);
        }
    }

    /// A superblock is in force.
    pub(super) fn start_named(&mut self) {
        if let Some(Collecting::Naming { segments }) = self.space.collecting
            && let Some(first) = self.space.chain.get(segments)
            && first.first_ordinal == self.superblock.start
        {
            self.space.start_ended();
            self.space.collecting = Some(self.forgetting(segments));
        }
    }

    /// A late refusal needs its message again, although that was settled when the segment was
    /// looked through.
    pub(super) fn is_oldest_needed_again(&self) -> bool {
        let oldest = self.space.chain.front();
        oldest.is_some_and(|l| self.state.segment_live(l.segment) > 0)
            && !planted::is(Bug::NoCopies)
    }

    /// Goes back to the first needed record that was passed.
    pub(super) fn copy_again(&mut self, oldest: usize) -> Result<(), StoreError> {
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
            // It is not there any more, and looking for it would never end.
            _ => self.found_damage(offset),
        }
    }

    /// Nothing more is freed, because something that is needed cannot be copied.
    pub(super) fn found_damage(&mut self, offset: u64) -> Result<(), StoreError> {
        self.space.collecting = None;
        let why = StoreError::Damaged { offset };
        self.failed.get_or_insert_with(|| why.cause());
        Err(why)
    }

    pub(super) fn copy_survivors(&mut self, from: u64) -> Result<(), StoreError> {
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
            if self.state.needs(&header, offset) && !planted::is(Bug::NoCopies) {
                self.copy(offset, &header, &mut bytes)?;
            }
        }
        if at >= end && self.is_oldest_needed_again() {
            return self.copy_again(oldest.segment);
        }
        self.space.collecting = Some(match at >= end {
            true => self.cover_unneeded(),
            false => Collecting::Copying(at),
        });
        Ok(())
    }

    /// Writes a needed record again, at the head of the log.
    pub(crate) fn copy(
        &mut self,
        offset: u64,
        header: &RecordHeader,
        bytes: &mut Vec<u8>,
    ) -> Result<(), StoreError> {
        bytes.resize(header.stride() as usize, 0);
        self.medium.read(offset, bytes);
        if !record_is_intact(bytes, self.geometry.key, offset) {
            // Copying it would give wrong bytes a good checksum.
            return self.found_damage(offset);
        }
        let body = &bytes[RECORD_HEADER..header.len as usize];
        let kind = match header.kind.is_message() {
            true => Kind::Copy,
            false => header.kind,
        };
        let (sequence, envelope) = (header.sequence, header.envelope_len as usize);
        let entry = self.write_kept(kind, header.quiet, sequence, envelope, body)?;
        if !planted::is(Bug::CopiesUncovered) {
            self.cover = self.ordinal;
        }
        if kind == Kind::Rejection {
            self.state.reject(sequence, entry);
        } else {
            self.state.message(sequence, entry);
        }
        Ok(())
    }

    fn forget(&mut self, segments: usize, from: u64) {
        let Some(&oldest) = self.space.chain.front() else {
            return;
        };
        let segment = oldest.segment;
        let bytes = self.geometry.segment_at(segment)..self.geometry.end_of(segment);
        if from <= oldest.highest
            && let Some(next) = self.state.forget(from, &bytes)
        {
            self.space.collecting = Some(Collecting::Forgetting {
                segments,
                from: next,
            });
            return;
        }
        self.space.leave_unsynced(1);
        self.space.chain.pop_front();
        self.space.set(oldest.segment, Status::Ready);
        self.space.collecting = (segments > 1).then(|| self.forgetting(segments - 1));
    }

    pub(super) fn end_of(&self, link: &Link) -> u64 {
        link.end
            .unwrap_or_else(|| self.geometry.end_of(link.segment))
    }

    /// The record at `at`, or the next one behind damage.
    pub(super) fn record_from(&self, mut at: u64, end: u64) -> Option<(u64, RecordHeader)> {
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
}
