//! The thread beside the log: syncs as the level demands, and keeps segments ready.

use std::collections::VecDeque;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shared::{Core, Shared};
use crate::api::Level;
use crate::error::StoreError;
use crate::medium::Device;
use crate::space::{Chore, Job};
use crate::state::index::make_spares;

/// How long publishers may wait for room before failed growth is tried again: there may be space
/// by now, and nothing else would tell.
const GROWTH_RETRY: Duration = Duration::from_secs(1);

/// How often to look whether the file is still where it was. A change must be reported within a
/// second, and a look takes its time.
const LOOK: Duration = Duration::from_millis(900);

/// How long no publish may have come before the file gives back what it does not need.
const IDLE: Duration = Duration::from_secs(30);

/// What the helper does next.
pub(super) enum Next {
    /// This job, without the lock.
    Job(Job),
    /// Something was done under the lock.
    Done,
    /// New bookkeeping is made without the lock, for this many segments.
    Spares(usize),
    /// Nothing, until it is woken or this time has passed.
    Sleep(Option<Duration>),
}

impl Shared {
    /// The helper: syncs as the level demands, and keeps free segments ready.
    pub(super) fn help(&self) {
        let mut core = self.lock();
        loop {
            if core.stop {
                return;
            }
            if self.look_due(&core) == Some(Duration::ZERO) {
                drop(core);
                // An error was logged, and the next look may succeed.
                let _ = self.look_around();
                core = self.lock_last();
                continue;
            }
            core = match self.begin(&mut core) {
                Ok(Next::Job(job)) => {
                    drop(core);
                    let result = self.make(&job);
                    // An error was logged, and is reported as news.
                    let _ = self.end_and_tell(self.lock_last(), job, result);
                    self.lock_last()
                }
                Ok(Next::Done) | Err(_) => {
                    self.tell(core);
                    self.lock_last()
                }
                Ok(Next::Spares(wanted)) => {
                    drop(core);
                    let spares = make_spares(wanted);
                    let mut core = self.lock_last();
                    core.log.state.add_spares(spares);
                    core
                }
                Ok(Next::Sleep(wait)) => self.sleep(core, wait),
            };
        }
    }

    fn sleep<'a>(
        &'a self,
        mut core: MutexGuard<'a, Core>,
        wait: Option<Duration>,
    ) -> MutexGuard<'a, Core> {
        let idle_in = self.idle_in(&mut core);
        if idle_in == Some(Duration::ZERO) {
            core.log.idle();
            return core;
        }
        core.helper_sleeps = true;
        let retry_in = core.log.space.is_growth_awaited().then_some(GROWTH_RETRY);
        let look = self.look_due(&core);
        let waits = [wait, retry_in, look, idle_in];
        let mut core = match waits.into_iter().flatten().min() {
            Some(wait) => {
                let (mut core, ended) = self
                    .work
                    .wait_timeout(core, wait)
                    .unwrap_or_else(PoisonError::into_inner);
                // Whichever of them it was: a look is due a little more often than a retry.
                if ended.timed_out() {
                    core.log.space.retry_growth();
                }
                core
            }
            None => self.work.wait(core).unwrap_or_else(PoisonError::into_inner),
        };
        core.helper_sleeps = false;
        core
    }

    /// When the store counts as idle, if that would change anything; zero means now.
    fn idle_in(&self, core: &mut Core) -> Option<Duration> {
        if !core.log.waits_to_return() {
            core.idle_since = None;
            return None;
        }
        let (next, now) = (core.log.next, Instant::now());
        let since = core.idle_since.filter(|since| since.0 == next);
        let (_, since) = *core.idle_since.insert(since.unwrap_or((next, now)));
        Some(IDLE.saturating_sub(now - since))
    }

    /// Decides what to do next, and does the part of it that needs the lock.
    ///
    /// # Errors
    /// The store has failed for good; that was logged.
    pub(super) fn begin(&self, core: &mut Core) -> Result<Next, StoreError> {
        let sync_in = self.sync_due(core);
        // Whoever waits for the device gets its turn between two pieces of the helper's work.
        let is_taken = core.in_line > 0 || core.log.space.is_device_at_work();
        let chore = match core.log.chore() {
            _ if sync_in == Some(Duration::ZERO) && !is_taken => Chore::Sync,
            Chore::Sync | Chore::SyncGrown(..) | Chore::Superblock if core.in_line > 0 => {
                Chore::Idle
            }
            chore => chore,
        };
        if chore == Chore::Idle {
            let wanted = core.log.state.spares_wanted();
            return Ok(match wanted {
                // When the device is done, somebody wakes the helper.
                0 => Next::Sleep(sync_in.filter(|_| !is_taken)),
                wanted => Next::Spares(wanted),
            });
        }
        let begun = core.log.begin(chore).inspect_err(|error| {
            tracing::error!(%error, "the store's upkeep failed");
            core.log.failed.get_or_insert_with(|| error.to_string());
        })?;
        Ok(begun.map_or(Next::Done, Next::Job))
    }

    /// The device did what was begun, or could not.
    ///
    /// # Errors
    /// The store has failed for good; that was logged.
    pub(super) fn end(
        &self,
        core: &mut Core,
        job: Job,
        result: io::Result<()>,
    ) -> Result<(), StoreError> {
        if matches!(job, Job::Sync(_)) {
            core.last_sync = Instant::now();
        }
        let ended = core.log.end(job, result);
        if core.in_line > 0 {
            self.progress.notify_all();
        }
        ended.inspect_err(|error| tracing::error!(%error, "the store's device failed"))
    }

    /// As [`end`](Self::end); also tells those concerned.
    ///
    /// # Errors
    /// The store has failed for good; that was logged.
    pub(super) fn end_and_tell(
        &self,
        mut core: MutexGuard<'_, Core>,
        job: Job,
        result: io::Result<()>,
    ) -> Result<(), StoreError> {
        let is_for_room = matches!(job, Job::Sync(_) | Job::Superblock(_));
        let limit = core.log.limit();
        let ended = self.end(&mut core, job, result);
        // Growth that fails is reported once, and again once it succeeds. If each try were
        // reported, each piece, and what is cut off afterwards, then whoever waits for room would
        // ask for another try each time, for ever.
        match is_for_room || ended.is_err() || core.log.limit() != limit {
            true => self.tell(core),
            false => self.tell_of_no_room(core),
        }
        ended
    }

    /// The helper panicked, perhaps in an observer: nothing is synced any more, and whoever waits
    /// for that must be told.
    #[cold]
    pub(super) fn lost_helper(&self) {
        let mut core = self.lock();
        core.log
            .failed
            .get_or_insert_with(|| "the store's helper thread panicked".to_owned());
        self.tell(core);
    }

    /// When to look where the file is; zero means now.
    fn look_due(&self, core: &Core) -> Option<Duration> {
        let is_over = core.log.gone || core.log.closed;
        (self.has_path() && !is_over).then(|| LOOK.saturating_sub(core.looked.elapsed()))
    }

    /// When the level or a caller wants the next sync; zero means now.
    pub(super) fn sync_due(&self, core: &Core) -> Option<Duration> {
        if core.log.failed.is_some() || core.log.closed {
            return None;
        }
        if core.wanted > core.log.durable.ordinal {
            return Some(Duration::ZERO);
        }
        if core.log.unmarked <= core.log.durable.ordinal {
            return None;
        }
        match self.level {
            Level::Os => None,
            Level::Disk => Some(Duration::ZERO),
            Level::Interval(every) => Some(every.saturating_sub(core.last_sync.elapsed())),
        }
    }
}

/// How many durations of syncs are kept for whoever asks.
const SYNCS_KEPT: usize = 1024;

impl Shared {
    /// Lets the device do a job, and keeps the time that a sync takes.
    pub(super) fn make(&self, job: &Job) -> io::Result<()> {
        let begun = Instant::now();
        let result = make(job, &*self.device);
        if matches!((job, &result), (Job::Sync(_), Ok(()))) {
            self.synced(begun.elapsed());
        }
        result
    }

    fn synced(&self, took: Duration) {
        let mut times = self.sync_times();
        if times.len() == SYNCS_KEPT {
            times.pop_front();
        }
        times.push_back(took);
    }

    pub(super) fn take_sync_times(&self) -> Vec<Duration> {
        std::mem::take(&mut *self.sync_times()).into()
    }

    fn sync_times(&self) -> MutexGuard<'_, VecDeque<Duration>> {
        self.sync_times
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets the device do a job. A panic there must not leave the job under way for ever.
pub(super) fn make(job: &Job, device: &dyn Device) -> io::Result<()> {
    catch_unwind(AssertUnwindSafe(|| job.make(device)))
        .unwrap_or_else(|_| Err(io::Error::other("the device's code panicked")))
}
