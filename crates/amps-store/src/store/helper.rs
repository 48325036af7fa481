//! The thread beside the log: syncs as the level demands, and keeps segments ready.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::shared::{Core, Shared};
use crate::api::Level;
use crate::index::make_spares;
use crate::space::Chore;

/// How long publishers may wait for room before growth that failed is tried again: space may
/// have come meanwhile, and nothing else would tell.
const GROWTH_RETRY: Duration = Duration::from_secs(1);

impl Shared {
    /// The helper: syncs as the level demands, and keeps free segments ready.
    pub(super) fn help(&self) {
        let mut core = self.lock();
        loop {
            if core.stop {
                return;
            }
            let sync_in = self.sync_due(&core);
            let chore = match core.log.chore() {
                _ if sync_in == Some(Duration::ZERO) => Chore::Sync,
                chore => chore,
            };
            core = match chore {
                Chore::Idle if core.log.state.spares_wanted() > 0 => {
                    let wanted = core.log.state.spares_wanted();
                    drop(core);
                    let spares = make_spares(wanted);
                    let mut core = self.lock_last();
                    core.log.state.add_spares(spares);
                    core
                }
                Chore::Idle => {
                    core.helper_sleeps = true;
                    let retry_in = core.log.space.is_growth_awaited().then_some(GROWTH_RETRY);
                    let mut core = match sync_in.into_iter().chain(retry_in).min() {
                        Some(wait) => {
                            let (mut core, ended) = self
                                .work
                                .wait_timeout(core, wait)
                                .unwrap_or_else(PoisonError::into_inner);
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
                Chore::Sync => self.sync_once(core),
                Chore::Work => {
                    if let Err(error) = core.log.work() {
                        tracing::error!(%error, "the store's upkeep failed");
                        core.log.failed.get_or_insert_with(|| error.to_string());
                    }
                    self.tell(core);
                    self.lock_last()
                }
                Chore::Superblock => match core.log.begin_due_write() {
                    Ok(Some(write)) => {
                        drop(core);
                        let result = write.make(&*self.device);
                        let mut core = self.lock_last();
                        if let Err(error) = core.log.finish_write(write, result) {
                            tracing::error!(%error, "the store's upkeep failed");
                        }
                        self.progress.notify_all();
                        self.tell(core);
                        self.lock_last()
                    }
                    // A store that failed has nothing to do any more.
                    Ok(None) | Err(_) => core,
                },
                Chore::Reserve(from, to) => {
                    core.log.space.begin_resize();
                    drop(core);
                    let reserved = self.device.reserve(from, to);
                    let mut core = self.lock_last();
                    if let Err(error) = &reserved {
                        tracing::warn!(%error, "the store cannot grow");
                    }
                    core.log.reserved(to, reserved);
                    // A file that cannot grow has less room: perhaps a watermark is crossed.
                    self.tell(core);
                    self.lock_last()
                }
                Chore::Truncate(to) => {
                    core.log.space.begin_resize();
                    drop(core);
                    let truncated = self.device.truncate(to);
                    let mut core = self.lock_last();
                    core.log.truncated(to, truncated);
                    core
                }
                Chore::Prefault(from, len) => {
                    drop(core);
                    self.device.prefault(from, len);
                    let mut core = self.lock_last();
                    core.log.prefaulted(from + len);
                    core
                }
            };
        }
    }

    /// The helper panicked, perhaps in an observer: nobody syncs any more, and whoever waits
    /// for that must hear of it.
    #[cold]
    pub(super) fn lost_helper(&self) {
        let mut core = self.lock();
        core.log
            .failed
            .get_or_insert_with(|| "the store's helper thread panicked".to_owned());
        self.tell(core);
    }

    /// When the level or a caller wants the next sync; zero is now.
    fn sync_due(&self, core: &Core) -> Option<Duration> {
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

    fn sync_once<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        let ticket = core.log.begin_sync();
        drop(core);
        let result = ticket.extent.sync(&*self.device);
        let mut core = self.lock_last();
        core.last_sync = Instant::now();
        if let Err(error) = core.log.finish_sync(ticket, result) {
            tracing::error!(%error, "sync failed");
        }
        self.tell(core);
        self.lock_last()
    }
}
