//! The helper's work, one step at a time: a simulation says when a step begins and ends, and the
//! helper's own code decides what to do.

use std::sync::{Arc, MutexGuard};

use super::helper::{Next, make};
use super::shared::{Core, Shared, Upkeep};
use crate::error::StoreError;
use crate::medium::Device;
use crate::space::Job;
use crate::state::index::make_spares;

/// A piece of work that the device has begun.
pub(super) struct UnderWay {
    job: Job,
    /// The device, as this piece of work sees it.
    device: Arc<dyn Device>,
}

impl Shared {
    /// A sync is wanted. If nothing takes time in this simulation, it is done at once.
    pub(super) fn asked_for_a_sync(&self) {
        if self.upkeep == Upkeep::Steps && !self.lock().takes_time {
            // As with a thread, everybody is told the result.
            let _ = self.step();
        }
    }

    /// As [`begin_one`](Self::begin_one). From now on the simulation says when something ends.
    pub(super) fn begin_step(&self) -> Result<bool, StoreError> {
        self.lock().takes_time = true;
        self.begin_one()
    }

    /// Begins the helper's next piece of work, and leaves under way what the device has to do for
    /// it. If something is under way already, does one more piece beside it. False: there is
    /// nothing to do.
    fn begin_one(&self) -> Result<bool, StoreError> {
        let mut core = self.lock();
        match self.begin(&mut core) {
            Ok(Next::Job(job)) if core.under_way.is_none() => {
                let device = match job {
                    Job::Sync(_) | Job::SyncGrown(..) => self.device.begin_sync(),
                    _ => None,
                };
                let device = device.unwrap_or_else(|| self.device.clone());
                core.under_way = Some(UnderWay { job, device });
                Ok(true)
            }
            Ok(Next::Job(job)) => {
                drop(core);
                self.make_and_end(job, &*self.device).map(|()| true)
            }
            Ok(Next::Done) => {
                self.tell(core);
                Ok(true)
            }
            Ok(Next::Spares(wanted)) => {
                core.log.state.add_spares(make_spares(wanted));
                Ok(true)
            }
            // If nothing was done nothing is told: otherwise whoever waits for room would try
            // again for ever.
            Ok(Next::Sleep(_)) => Ok(false),
            Err(error) => {
                self.tell(core);
                Err(error)
            }
        }
    }

    /// Ends what is under way; false: there is nothing.
    pub(super) fn end_step(&self) -> Result<bool, StoreError> {
        let Some(UnderWay { job, device }) = self.lock().under_way.take() else {
            return Ok(false);
        };
        self.make_and_end(job, &*device).map(|()| true)
    }

    fn make_and_end(&self, job: Job, device: &dyn Device) -> Result<(), StoreError> {
        let result = make(&job, device);
        self.end_and_tell(self.lock(), job, result)
    }

    /// Ends what is under way, or otherwise does one piece of work from beginning to end.
    pub(super) fn step(&self) -> Result<bool, StoreError> {
        if self.end_step()? {
            return Ok(true);
        }
        let begun = self.begin_one()?;
        self.end_step()?;
        Ok(begun)
    }

    /// Where others would wait for the helper: does a step of its work.
    pub(super) fn step_instead(&self) -> MutexGuard<'_, Core> {
        // A failure shows in the log.
        if !matches!(self.step(), Ok(true)) {
            // Another thread does it.
            std::thread::yield_now();
        }
        self.lock()
    }

    /// Whether something is under way.
    pub(super) fn is_under_way(&self) -> bool {
        self.lock().under_way.is_some()
    }
}
