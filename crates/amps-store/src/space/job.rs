//! A chore, from its beginning to its end. What the device does in between needs no lock.

use std::io;
use std::sync::Arc;

use super::Chore;
use super::length::Write;
use crate::error::StoreError;
use crate::log::{Log, Ticket};
use crate::medium::Device;

/// What the device has to do for a chore that was begun.
pub(crate) enum Job {
    Sync(Ticket),
    SyncGrown(u64, u64),
    Superblock(Write),
    Reserve(u64, u64),
    Truncate(u64),
    Prefault(u64, u64),
}

impl Job {
    /// Lets the device do it, with or without the log's lock held.
    ///
    /// # Errors
    /// Those of the device. [`Log::end`] must be called in either case.
    pub(crate) fn make(&self, device: &dyn Device) -> io::Result<()> {
        match self {
            Job::Sync(ticket) => ticket.extent.sync(device),
            &Job::SyncGrown(from, to) => device.sync_range(from, to - from),
            Job::Superblock(write) => write.make(device),
            &Job::Reserve(from, to) => device.reserve(from, to),
            &Job::Truncate(to) => device.truncate(to),
            &Job::Prefault(from, len) => {
                device.prefault(from, len);
                Ok(())
            }
        }
    }
}

impl Log {
    /// Does the log's own part of a chore, and returns what is left for the device.
    pub(crate) fn begin(&mut self, chore: Chore) -> Result<Option<Job>, StoreError> {
        Ok(match chore {
            Chore::Idle => None,
            Chore::Work => {
                self.work()?;
                None
            }
            Chore::Superblock => self.begin_due_write()?.map(Job::Superblock),
            Chore::Sync => Some(Job::Sync(self.begin_sync())),
            Chore::SyncGrown(from, to) => {
                self.space.sync_beside_started();
                Some(Job::SyncGrown(from, to))
            }
            Chore::Reserve(from, to) => {
                self.space.begin_resize();
                Some(Job::Reserve(from, to))
            }
            Chore::Truncate(to) => {
                self.space.begin_resize();
                Some(Job::Truncate(to))
            }
            Chore::Prefault(from, len) => Some(Job::Prefault(from, len)),
        })
    }

    /// The device did what [`begin`](Self::begin) asked for, or could not.
    pub(crate) fn end(&mut self, job: Job, result: io::Result<()>) -> Result<(), StoreError> {
        match job {
            Job::Sync(ticket) => return self.finish_sync(ticket, result),
            Job::SyncGrown(..) => return self.growth_synced(result),
            Job::Superblock(write) => return self.finish_write(write, result),
            Job::Reserve(_, to) => self.reserved(to, result),
            Job::Truncate(to) => self.truncated(to, result),
            Job::Prefault(from, len) => self.space.prefaulted(from + len),
        }
        Ok(())
    }

    /// Does one chore right here; false: there is none.
    pub(crate) fn do_chore(&mut self, device: &Arc<dyn Device>) -> Result<bool, StoreError> {
        let chore = self.chore();
        if let Some(job) = self.begin(chore)? {
            let result = job.make(&**device);
            self.end(job, result)?;
        }
        Ok(chore != Chore::Idle)
    }
}
