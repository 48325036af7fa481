//! Waiting until something is durable: whoever waits first syncs on its own thread, and those who
//! come meanwhile wait for that sync, or for the next one. So a caller that is alone pays for its
//! sync and for no other thread to be woken, and many callers share syncs.

use std::sync::MutexGuard;

use super::shared::{Core, Shared, Upkeep};
use crate::api::Durable;
use crate::error::StoreError;
use crate::space::Job;

impl Shared {
    /// Returns when everything up to the ordinal `target` is durable.
    ///
    /// # Errors
    /// Nothing can become durable any more.
    pub(super) fn make_durable<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        target: u64,
    ) -> Result<Durable, StoreError> {
        let done = loop {
            if let Err(error) = self.may_sync(&core) {
                break Err(error);
            }
            if core.log.durable.ordinal >= target {
                break Ok(core.log.durable);
            }
            core = match self.may_lead(&core) {
                true => self.lead(core),
                false => {
                    // Whatever is under way began before this was written, so another sync has
                    // to follow; the helper sees to it if nobody leads.
                    core.wanted = core.wanted.max(target);
                    if core.helper_sleeps {
                        core.helper_sleeps = false;
                        self.work.notify_one();
                    }
                    self.wait(core)
                }
            };
        };
        if self.has_work(&core) || core.log.state.spares_wanted() > 0 {
            self.wake_helper(core);
        }
        done
    }

    /// Whether a caller may sync now. Those who stand in line for the device go first, and a
    /// simulation decides by itself when something is synced.
    fn may_lead(&self, core: &Core) -> bool {
        self.upkeep == Upkeep::Thread && core.in_line == 0 && !core.log.space.is_device_at_work()
    }

    fn lead<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        let job = Job::Sync(core.log.begin_sync());
        drop(core);
        let result = self.make(&job);
        // A failure was logged, and shows in the log.
        let _ = self.end_and_tell(self.lock(), job, result);
        self.lock()
    }
}
