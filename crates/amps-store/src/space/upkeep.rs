//! How a segment becomes free, and what the log's upkeep does next.

use super::{BATCH, Chore, Collecting, KEPT, Link, PIECE, Return, Status, WANTED};
use crate::error::StoreError;
use crate::format::{
    Kind, MAX_OPENING, MAX_REJECTION, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, SegmentHeader,
    record_is_intact,
};
use crate::log::Log;
use crate::planted::{self, Bug};

impl Log {
    /// Opens the next segment for a publish; false: the background has to free one first.
    pub(crate) fn rotate_for_publish(&mut self) -> Result<bool, StoreError> {
        if self.space.ready() <= KEPT {
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
        self.space
            .open_segment(&mut *self.medium, segment, generation, ordinal, self.next);
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

    /// Whether any one change of the log finds its room in what is free already: the message of a
    /// late refusal, the refusal and a mark. Otherwise it may have to sync for room.
    pub(crate) fn is_room_sure(&self) -> bool {
        let most = self.geometry.max_record + MAX_REJECTION + 2 * MAX_OPENING;
        self.failed.is_some() || self.space.ready() >= KEPT || self.space.fits(most)
    }

    /// Somebody waits for room while the device is at work: does what can be done beside that.
    /// False: nothing.
    pub(crate) fn work_for_room(&mut self) -> Result<bool, StoreError> {
        self.space.demand();
        match self.chore() {
            Chore::Work => self.work().map(|()| true),
            _ => Ok(false),
        }
    }

    /// The next thing to be done for the log, and possible now.
    pub(crate) fn chore(&self) -> Chore {
        match self.next_chore() {
            Chore::Sync | Chore::Superblock if self.space.is_device_at_work() => Chore::Idle,
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

    pub(super) fn is_collection_wanted(&self) -> bool {
        self.space.free() < WANTED && self.is_collection_useful()
    }

    /// Growing costs disk, collecting costs copies: collect while the oldest segment is
    /// mostly garbage.
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

    /// Whether collecting can win anything: below two free segments it always must; above,
    /// only if it is cheap (the file does not grow then), if what is needed fits into fewer
    /// segments, or somebody waits for room.
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
            Some(Collecting::Covering(_) | Collecting::Forgetting(_))
                if self.is_oldest_needed_again() =>
            {
                let oldest = self.space.chain.front().map_or(0, |l| l.segment);
                self.copy_again(oldest)
            }
            Some(Collecting::Covering(_)) => {
                let lowest = self.space.chain.front().map_or(0, |l| l.lowest);
                self.space.collecting = Some(Collecting::Forgetting(lowest));
                Ok(())
            }
            Some(Collecting::Forgetting(from)) => {
                self.forget(from);
                Ok(())
            }
        }
    }

    /// Begins to free the oldest segment.
    pub(super) fn collect(&mut self) {
        if let Some(oldest) = self.space.chain.front() {
            let first = self.geometry.records_at(oldest.segment);
            self.space.collecting = Some(Collecting::Copying(first));
            self.space.collected += 1;
        }
    }

    /// A late refusal needs its message again, though that was settled when the segment was
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
            // It stands there no more: looking for it would never end.
            _ => self.found_damage(offset),
        }
    }

    /// Nothing more is freed: what is needed cannot be copied.
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

    /// Writes a needed record once more, at the head of the log.
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
        if kind == Kind::Rejection {
            self.state.reject(sequence, entry);
        } else {
            self.state.message(sequence, entry);
        }
        Ok(())
    }

    pub(super) fn forget(&mut self, from: u64) {
        let Some(&oldest) = self.space.chain.front() else {
            return;
        };
        let segment = oldest.segment;
        let bytes = self.geometry.segment_at(segment)..self.geometry.end_of(segment);
        if from <= oldest.highest
            && let Some(next) = self.state.forget(from, &bytes)
        {
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
            // One that runs already began before the stamp was there.
            false if planted::is(Bug::StampInRunningSync) => {
                Status::Stamped(self.space.syncs_started)
            }
            false => Status::Stamped(self.space.syncs_started + 1),
        };
        self.space.set(oldest.segment, status);
        self.space.collecting = None;
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
