//! What is durable: syncs, and the close, after which everything is.

use std::sync::Arc;

use super::Log;
use crate::api::Durable;
use crate::error::StoreError;
use crate::faults::planted::{self, Bug};
use crate::medium::Device;
use crate::space::unsynced::Extent;

impl Log {
    /// Ends the log with a mark that says so, a sync, and a superblock that names the mark and
    /// gives unused numbers back.
    pub(crate) fn close(
        &mut self,
        device: &Arc<dyn Device>,
        handed_over: u64,
    ) -> Result<(), StoreError> {
        self.usable()?;
        self.write_mark(true)?;
        // What nothing needs is not synced: the same write that makes the rest count as durable
        // also lets the log begin behind it. Until then nothing new counts as durable, not even
        // the mark.
        let unneeded = self.unneeded();
        let left_out = unneeded + usize::from(planted::is(Bug::CloseLeavesOut));
        self.space.leave_unsynced(left_out);
        let ticket = self.begin_sync();
        let result = ticket.extent.sync(&**device);
        self.sync_ended(result)?;
        self.closed = true;
        let mut superblock = self.superblock.clone();
        self.pass(unneeded, &mut superblock);
        superblock.durable = self.ordinal;
        superblock.closed_at = self.ordinal;
        superblock.segments = self.segments_at_close();
        superblock.grant = superblock.grant.min(handed_over.max(self.state.floor()));
        self.write_superblock(superblock)?;
        self.durable = ticket.durable;
        self.cut_to_named(device);
        Ok(())
    }

    /// Syncs what this run has written, without calling any of it durable.
    ///
    /// # Errors
    /// As [`Device::sync`](crate::medium::Device::sync): the run is over.
    pub(crate) fn sync_beginning(&mut self) -> std::io::Result<()> {
        let ticket = self.begin_sync();
        let result = ticket.extent.sync(&*self.medium.device());
        self.space.sync_returned();
        result
    }

    /// A sync was started. Returns what it will cover.
    pub(crate) fn begin_sync(&mut self) -> Ticket {
        Ticket {
            extent: self.space.sync_started(),
            durable: self.written(),
            marks_only: self.unmarked <= self.durable.ordinal,
        }
    }

    /// What a sync that begins now covers.
    fn written(&self) -> Durable {
        Durable {
            ordinal: self.ordinal,
            sequence: self.next - 1,
        }
    }

    /// A sync ended. A failure is final: nothing is called durable from then on.
    pub(crate) fn finish_sync(
        &mut self,
        ticket: Ticket,
        result: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        self.sync_ended(result)?;
        if self.space.is_device_at_work() {
            // The other sync may be told of what this one could not write. So the one that ends
            // last decides for what both cover.
            return Ok(());
        }
        let durable = match planted::is(Bug::SyncVouchesForLater) {
            true => self.written(),
            false => ticket.durable,
        };
        if durable.ordinal > self.durable.ordinal {
            self.durable = durable;
        }
        self.space.reserve(&self.state);
        if !ticket.marks_only {
            let marked = self.write_mark(false);
            self.holds_in_memory(marked);
        }
        Ok(())
    }

    /// A sync ended, whatever it was for.
    pub(crate) fn sync_ended(&mut self, result: std::io::Result<()>) -> Result<(), StoreError> {
        self.space.sync_returned();
        if let Err(error) = result
            && !planted::is(Bug::SwallowedSyncError)
        {
            self.failed.get_or_insert_with(|| error.to_string());
        }
        match &self.failed {
            Some(why) => Err(StoreError::SyncFailed(why.clone())),
            None => Ok(()),
        }
    }
}

/// What a sync covers once it has returned.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    /// What must be written for that.
    pub(crate) extent: Extent,
    durable: Durable,
    marks_only: bool,
}
