//! How long the file is: growth ahead of need, the return of its end, and the superblock that
//! names what counts.

use std::sync::Arc;

use super::{Collecting, KEPT, Link, Return, Status, WANTED, WORTH_RETURNING, limit};
use crate::error::StoreError;
use crate::faults::planted::{self, Bug};
use crate::format::{SUPERBLOCKS, SegmentHeader, Superblock};
use crate::log::Log;
use crate::medium::Device;
use crate::options::FIRST_SEGMENTS;

impl Log {
    /// Room that is charged must be there, so the file grows one segment ahead of the charges;
    /// and, if freeing segments takes copies, one spare segment ahead of the writer. Otherwise
    /// the present segments are reused in turn, unless publishers are faster than the writes that
    /// free them.
    pub(crate) fn is_growth_wanted(&self) -> bool {
        let space = &self.space;
        let segments = space.status.len() as u64;
        let may_grow = segments < self.superblock.cap_segments
            && space.growing.is_none()
            && !space.resizing
            && !space.writing
            && (space.growth_error.is_none() || space.retry_growth);
        let ahead = self.state.charged() + space.usable();
        may_grow
            && (space.pressed
                || ahead > limit(&self.geometry, segments)
                || ((space.free() < WANTED || (space.demand && self.is_reserve_short()))
                    && !self.is_collection_cheap()))
    }

    /// No publish has come for long: what the file does not need may be given back.
    pub(crate) fn idle(&mut self) {
        self.space.idle_at = Some(self.next);
    }

    /// Whether the file is longer than necessary, but keeps its length until no publish has come
    /// for long: growing again would cost its zeros and their sync each time.
    pub(crate) fn waits_to_return(&self) -> bool {
        self.space.idle_at != Some(self.next) && self.length_to_keep().is_some()
    }

    /// The next step towards the length that the file should have. `None`: it has that length,
    /// something that is needed is in the way, or the store is in use.
    pub(super) fn next_return(&self) -> Option<Return> {
        if self.space.idle_at != Some(self.next) {
            return None;
        }
        let (space, keep) = (&self.space, self.length_to_keep()?);
        let is_beyond = |link: &Link| link.segment as u64 >= keep;
        if space.chain.iter().any(is_beyond) || (space.chain.len() + WANTED) as u64 > keep {
            if space.chain.len() > 1 && self.is_collection_cheap() {
                return Some(Return::Collect);
            }
            // A segment that holds records set aside must not be used instead.
            let is_nearer = space.pick_first().is_some_and(|s| (s as u64) < keep);
            let is_alone = space.chain.len() == 1 && space.ready() > KEPT;
            if is_alone && is_nearer && is_beyond(&space.chain[0]) {
                return Some(Return::Rotate);
            }
        }
        let is_busy = space.writing || space.resizing || space.growing.is_some();
        self.surplus(keep).filter(|_| !is_busy).map(Return::Name)
    }

    /// How many segments are left if those that are free at the end are given back.
    pub(super) fn surplus(&self, keep: u64) -> Option<u64> {
        let segments = self.space.status.len() as u64;
        let spare = self.space.ready().saturating_sub(WANTED) as u64;
        let returned = self.space.returnable().min(spare).min(segments - keep);
        (returned > 0).then_some(segments - returned)
    }

    /// The length, in segments, to which the file should be cut: what admission needs and one
    /// more, so that growth is not wanted again at once. `None`: it keeps its length, because it
    /// is preallocated or not half as long again as that; so a backlog that comes and goes rarely
    /// changes the length.
    pub(super) fn length_to_keep(&self) -> Option<u64> {
        let (charged, usable) = (self.state.charged(), self.space.usable());
        let segments = self.space.status.len() as u64;
        // This is asked after every settlement, so it does without a division.
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

    /// Gives back the segments from this one on: they are not used any more, the superblock that
    /// is returned does not name them, and then they are cut off.
    pub(super) fn give_up(&mut self, segments: u64) -> Superblock {
        if planted::is(Bug::CutBeforeNamed) {
            let end = self.geometry.segment_at(segments as usize);
            self.truncated(end, self.medium.device().truncate(end));
        }
        self.leave(segments);
        // Even if the write fails it may be in force, so this run goes on without these segments
        // in any case.
        self.superblock.segments = segments;
        self.superblock.clone()
    }

    /// Stops using the segments from this one on, which hold nothing.
    pub(super) fn leave(&mut self, segments: u64) {
        self.space.give_up(segments as usize);
        self.state.resize(segments as usize);
        self.medium
            .leave(self.geometry.segment_at(segments as usize));
    }

    /// Cuts off everything that the superblock does not name, at once: the run is over.
    pub(crate) fn cut_to_named(&mut self, device: &Arc<dyn Device>) {
        self.leave(self.superblock.segments);
        let end = self.medium.len();
        if self.space.file_end > end && !self.space.resizing {
            self.truncated(end, device.truncate(end));
        }
    }

    /// One segment of what was given up at a time, since cutting off much delays others that use
    /// the file.
    pub(super) fn piece_to_cut(&self) -> Option<u64> {
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
                // What is left lies behind everything that the superblock names: the next growth
                // fills it again, or the next open cuts it off.
                tracing::warn!(%error, "the end of the store's file cannot be given back");
                self.medium.len()
            }
        };
    }

    /// Begins the write that [`chore`](Self::chore) found to be due: grown segments are named
    /// once their bytes are durable, segments that were given up are no longer named, and a start
    /// that moved is named.
    pub(crate) fn begin_due_write(&mut self) -> Result<Option<Write>, StoreError> {
        let space = &self.space;
        let synced = space.is_growth_synced || planted::is(Bug::GrownUnsynced);
        let last_grown = space.pending.iter().copied().max().filter(|_| synced);
        let superblock = match (last_grown, self.next_return()) {
            (Some(last), _) => Superblock {
                segments: last as u64 + 1,
                ..self.superblock.clone()
            },
            _ if matches!(space.collecting, Some(Collecting::Naming { .. })) => {
                self.superblock.clone()
            }
            (None, Some(Return::Name(segments))) => self.give_up(segments),
            _ => return Ok(None),
        };
        self.begin_write(superblock).map(Some)
    }

    /// The file was extended, or could not be.
    pub(crate) fn reserved(&mut self, to: u64, result: std::io::Result<()>) {
        self.space.retry_growth = false;
        self.space.resizing = false;
        self.space.pressed = false;
        let grown_to = self.space.growing.take();
        if let Err(error) = result {
            tracing::warn!(%error, "the store cannot grow");
            // What was filled before that is cut off, like any end that is not named.
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
        let segment = self.space.status.len();
        let at = self.geometry.segment_at(segment);
        let header = SegmentHeader::Free.encode(self.geometry.key, at, self.superblock.generation);
        self.medium.write(at, &header);
        self.space.status.push(Status::Used);
        self.space.is_growth_synced = false;
        self.space.set(segment, Status::Grown);
        self.state.resize(self.space.status.len());
    }

    /// What grew was synced, and nothing else: this makes no record durable.
    pub(super) fn growth_synced(&mut self, result: std::io::Result<()>) -> Result<(), StoreError> {
        self.sync_ended(result)?;
        self.space.is_growth_synced = true;
        Ok(())
    }

    /// Puts a superblock into force right here.
    pub(crate) fn write_superblock(&mut self, superblock: Superblock) -> Result<(), StoreError> {
        let write = self.begin_write(superblock)?;
        let result = write.make(&*self.medium.device());
        self.finish_write(write, result)
    }

    /// What has to be written to put a superblock into force, together with a start that is due
    /// to be named. No other write may begin before [`finish_write`](Self::finish_write).
    pub(crate) fn begin_write(&mut self, mut superblock: Superblock) -> Result<Write, StoreError> {
        if let Some(why) = &self.failed {
            return Err(StoreError::SyncFailed(why.clone()));
        }
        debug_assert!(!self.space.is_device_at_work(), "one at a time");
        self.space.writing = true;
        superblock.counter += 1;
        self.name_in(&mut superblock);
        self.space.start_begun();
        Ok(Write(Box::new(superblock)))
    }

    /// A superblock was written, or could not be.
    pub(crate) fn finish_write(
        &mut self,
        write: Write,
        result: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        self.space.writing = false;
        if let Err(error) = result {
            // Either the old or the new one is in force: this run cannot know which one the next
            // run will find.
            self.failed.get_or_insert_with(|| error.to_string());
            return Err(StoreError::final_io("write the superblock", &error));
        }
        self.superblock = *write.0;
        self.start_named();
        let named = self.superblock.segments;
        let is_named =
            |s: &usize| (*s as u64) < named && matches!(self.space.status[*s], Status::Grown);
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

/// A superblock that is being put into force.
pub(crate) struct Write(Box<Superblock>);

impl Write {
    /// Writes both copies, one after the other, so that damage to one copy never takes a number
    /// back.
    ///
    /// # Errors
    /// As [`Device::write_around`].
    pub(crate) fn make(&self, device: &dyn Device) -> std::io::Result<()> {
        let bytes = self.0.encode();
        let copies = match planted::is(Bug::OneCopy) {
            true => &SUPERBLOCKS[..1],
            false => &SUPERBLOCKS[..],
        };
        copies
            .iter()
            .try_for_each(|at| device.write_around(*at, &bytes))
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::Options;
    use crate::envelope::Envelope;
    use crate::medium::Heap;
    use crate::space::{Chore, PIECE, Status};

    /// A publisher that waited for durability once had to wait for the zeros of a whole segment.
    #[test]
    fn a_large_segment_grows_in_pieces_and_a_sync_may_come_between_them() {
        let options = Options::new().capacity(64 << 20).segment_size(9 << 20);
        let medium = Box::new(Heap::new());
        let (mut log, _) = crate::open::open_medium(Path::new("heap"), medium, &options).unwrap();
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
        // If there is no space for a piece, the pieces before it have to be cut off.
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

    /// A thread that settles frees a segment itself if there is no other way. While the helper
    /// extends the file it must not extend it too: the stamp that the first one wrote was once
    /// filled with zeros by the second.
    #[test]
    fn one_thread_at_a_time_changes_the_length_of_the_file() {
        let options = Options::new().capacity(64 << 10);
        let medium = Box::new(Heap::new());
        let (mut log, _) = crate::open::open_medium(Path::new("heap"), medium, &options).unwrap();
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

    /// The message was once settled in memory, while its caller was told that it was not.
    #[test]
    fn a_settlement_whose_mark_finds_no_room_is_told() {
        let options = Options::new().capacity(64 << 10);
        let medium = Box::new(Heap::new());
        let (mut log, _) = crate::open::open_medium(Path::new("heap"), medium, &options).unwrap();
        log.append(&Envelope::publish("t"), b"x").unwrap();
        // Room for the settlement alone, no free segment, and no growth.
        for segment in log.space.ready.clone() {
            log.space.set(segment, Status::Used);
        }
        log.superblock.cap_segments = log.superblock.segments;
        log.space.reserved = 0;
        log.space.position = log.space.end - 48;
        assert_eq!(log.settle(&[1], false).unwrap(), 1);
        assert_eq!(log.state.unsettled(), 0);
        assert!(
            log.failed.is_some(),
            "nothing more becomes durable, which is told"
        );
    }
}
