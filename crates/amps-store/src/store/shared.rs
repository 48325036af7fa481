//! What the handles share with the helper: one lock around the log, and who is told what.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::api::{Durable, Level, Observer, Signal};
use crate::error::{AppendError, StoreError};
use crate::faults::planted::{self, Bug};
use crate::log::Log;
use crate::medium::{Device, ForkGuard};
use crate::open::Place;
use crate::space::Chore;
use crate::store::durable_mark::DurableMark;

pub(super) struct Shared {
    pub(super) core: Mutex<Core>,
    /// Threads that wait for the lock.
    waiting: AtomicU32,
    /// Wakes the helper.
    pub(super) work: Condvar,
    /// Wakes callers that block until there is room or something is durable.
    pub(super) progress: Condvar,
    pub(super) device: Arc<dyn Device>,
    pub(super) level: Level,
    pub(super) durable: DurableMark,
    observers: Mutex<Vec<Observer>>,
    pub(super) client_name: String,
    /// How long the latest syncs took. Locked only for a moment, and last.
    pub(super) sync_times: Mutex<VecDeque<Duration>>,
    pub(super) fork_guard: Option<ForkGuard>,
    pub(super) upkeep: Upkeep,
    /// Where the file was opened, independent of the working directory; `None`: there is no file.
    path: Option<PathBuf>,
}

/// How often a caller tries to get the lock before it sleeps: for about as long as waking up
/// takes, and longer than any piece of work under the lock takes.
const SPINS: usize = 400;

/// How often the helper lets others go first before it takes the lock all the same.
const PATIENCE: usize = 64;

/// Who does the chores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Upkeep {
    /// The helper thread.
    Thread,
    /// Whoever changes the log, immediately: for a store in memory, which makes nothing durable.
    Inline,
    /// Nobody, until asked: for simulations.
    Steps,
}

pub(super) struct Core {
    pub(super) log: Log,
    /// The ordinal that somebody wants to be durable.
    pub(super) wanted: u64,
    pub(super) last_sync: Instant,
    /// Where the file is, and when that was last looked at.
    place: Place,
    pub(super) looked: Instant,
    /// The last look failed; that was logged.
    cannot_look: bool,
    pub(super) helper_sleeps: bool,
    pub(super) stop: bool,
    /// Threads that wait until nobody uses the device; the helper lets them go first.
    pub(super) in_line: u32,
    /// What the next number was when the helper found nothing to do, and since when it has been
    /// that.
    pub(super) idle_since: Option<(u64, Instant)>,
    /// What a simulation has begun and not ended yet.
    #[cfg(feature = "testkit")]
    pub(super) under_way: Option<super::steps::UnderWay>,
    /// The simulation says when something ends.
    #[cfg(feature = "testkit")]
    pub(super) takes_time: bool,
    told: Told,
    /// A thread is reporting watermarks: only one at a time, so that they are told in order.
    telling: bool,
    /// Observers that were registered after the high watermark was crossed.
    untold: Vec<Observer>,
}

/// What callers and observers have been told about the log.
#[derive(Clone, Copy, Debug)]
struct Told {
    durable: u64,
    failed: bool,
    closed: bool,
    place: Place,
}

/// What has changed under the lock and must be told after it is released.
#[derive(Clone, Copy, Debug)]
#[must_use]
struct News {
    room: bool,
    durable: bool,
    failed: bool,
    closed: bool,
    watermark: bool,
    moved: Option<Place>,
}

impl Shared {
    pub(super) fn new(
        log: Log,
        level: Level,
        fork_guard: Option<ForkGuard>,
        upkeep: Upkeep,
        path: Option<PathBuf>,
    ) -> Self {
        let durable = log.durable;
        Shared {
            device: log.medium.device(),
            level,
            durable: DurableMark::new(match upkeep {
                Upkeep::Inline => Durable::default(),
                Upkeep::Thread | Upkeep::Steps => Durable {
                    ordinal: durable.ordinal,
                    sequence: log.bounds().next - 1,
                },
            }),
            observers: Mutex::new(Vec::new()),
            client_name: log.superblock.client_name.clone(),
            sync_times: Mutex::default(),
            upkeep,
            path,
            fork_guard,
            work: Condvar::new(),
            progress: Condvar::new(),
            waiting: AtomicU32::new(0),
            core: Mutex::new(Core {
                log,
                wanted: 0,
                last_sync: Instant::now(),
                place: Place::There,
                looked: Instant::now(),
                cannot_look: false,
                helper_sleeps: false,
                stop: false,
                in_line: 0,
                idle_since: None,
                #[cfg(feature = "testkit")]
                under_way: None,
                #[cfg(feature = "testkit")]
                takes_time: false,
                told: Told {
                    durable: durable.ordinal,
                    failed: false,
                    closed: false,
                    place: Place::There,
                },
                telling: false,
                untold: Vec::new(),
            }),
        }
    }

    /// A message found no room; perhaps there is some after a chore.
    #[cold]
    pub(super) fn not_stored<T>(
        &self,
        mut core: MutexGuard<'_, Core>,
        error: AppendError,
        again: impl FnOnce(&mut Log) -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        let mut result = Err(error);
        let did_chores = self.do_chores(&mut core);
        if did_chores && result.as_ref().is_err_and(AppendError::is_retryable) {
            result = again(&mut core.log);
        }
        if did_chores {
            // The room that these made may be for somebody else.
            self.after_change(core);
            return result;
        }
        // Nothing changed, so nothing is told: otherwise whoever waits for room would try again
        // for ever.
        let crossed = core.log.is_watermark_crossed();
        self.wake_helper(core);
        if crossed {
            self.tell_watermark();
        }
        result
    }

    #[inline]
    pub(super) fn lock(&self) -> MutexGuard<'_, Core> {
        match self.core.try_lock() {
            Ok(core) => core,
            Err(_) => self.wait_for_lock(),
        }
    }

    #[cold]
    fn wait_for_lock(&self) -> MutexGuard<'_, Core> {
        self.waiting.fetch_add(1, Ordering::Relaxed);
        for _ in 0..SPINS {
            if let Ok(core) = self.core.try_lock() {
                self.waiting.fetch_sub(1, Ordering::Relaxed);
                return core;
            }
            std::hint::spin_loop();
        }
        let core = self.core.lock().unwrap_or_else(|poisoned| {
            let mut core = poisoned.into_inner();
            // A panic under the lock is a defect. What the log holds is complete records, but
            // this run must promise nothing more.
            core.log
                .failed
                .get_or_insert_with(|| "a panic under the store's lock".to_owned());
            core
        });
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        core
    }

    /// The lock for the helper's next piece of work, after whoever waits for it. A helper that
    /// takes it right back leaves them no chance between two pieces, so that they fall asleep,
    /// and waking up takes longer than any piece of work. They cannot keep the helper out for
    /// long.
    pub(super) fn lock_last(&self) -> MutexGuard<'_, Core> {
        for _ in 0..PATIENCE {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.lock()
    }

    /// The lock, while no sync and no write of the superblock is under way without it, so that
    /// the holder may begin one. If the holder does not call [`after_change`](Self::after_change)
    /// in the end, the helper stays asleep.
    pub(super) fn lock_alone(&self) -> MutexGuard<'_, Core> {
        let mut core = self.lock();
        while core.log.space.is_device_at_work() {
            core = self.stand_in_line(core);
        }
        core
    }

    /// Whether [`with_room`](Self::with_room) has something to do, or to wait for.
    pub(super) fn has_to_wait(&self, core: &Core) -> bool {
        core.log.space.is_device_at_work() && !core.log.is_room_sure() && !planted::is(Bug::NoTurn)
    }

    /// The lock for one change of the log. A change that may have to sync for its room waits for
    /// the sync that is under way, and meanwhile does what can be done beside it.
    pub(super) fn with_room<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        while self.has_to_wait(&core) {
            match core.log.work_for_room() {
                Ok(true) => {}
                Ok(false) => core = self.stand_in_line(core),
                Err(error) => {
                    tracing::error!(%error, "the store's upkeep failed");
                    core.log.failed.get_or_insert_with(|| error.to_string());
                }
            }
        }
        core
    }

    fn stand_in_line<'a>(&'a self, mut core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        core.in_line += 1;
        let mut core = self.wait(core);
        core.in_line -= 1;
        core
    }

    /// Waits until the log may have changed.
    pub(super) fn wait<'a>(&'a self, core: MutexGuard<'a, Core>) -> MutexGuard<'a, Core> {
        #[cfg(feature = "testkit")]
        if self.upkeep == Upkeep::Steps {
            drop(core);
            return self.step_instead();
        }
        self.progress
            .wait(core)
            .unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn not_forked(&self) -> Result<(), StoreError> {
        match &self.fork_guard {
            Some(guard) if guard.is_child() => Err(StoreError::Forked),
            _ => Ok(()),
        }
    }

    /// Without a helper, whoever changes the log does its chores; returns whether any was done.
    pub(super) fn do_chores(&self, core: &mut Core) -> bool {
        let mut any = false;
        if self.upkeep != Upkeep::Inline {
            return any;
        }
        // Memory can grow again at no cost.
        core.log.idle();
        loop {
            match core.log.do_chore(&self.device) {
                Ok(true) => any = true,
                Ok(false) => return any,
                Err(error) => {
                    core.log.failed.get_or_insert_with(|| error.to_string());
                    return any;
                }
            }
        }
    }

    pub(super) fn wake_helper(&self, mut core: MutexGuard<'_, Core>) {
        if core.helper_sleeps {
            core.helper_sleeps = false;
            drop(core);
            self.work.notify_one();
        }
    }

    /// Whether the helper has something to do, or to wait for.
    pub(super) fn has_work(&self, core: &Core) -> bool {
        self.sync_due(core).is_some() || core.log.chore() != Chore::Idle
    }

    /// Whether anything can still become durable.
    pub(super) fn may_sync(&self, core: &Core) -> Result<(), StoreError> {
        if self.upkeep == Upkeep::Inline {
            return Err(StoreError::InMemory);
        }
        if core.log.gone {
            return Err(StoreError::Gone);
        }
        if let Some(why) = &core.log.failed {
            return Err(StoreError::SyncFailed(why.clone()));
        }
        core.log.usable()
    }

    /// Whether somebody could move this store; one without a file cannot be moved.
    pub(super) fn has_path(&self) -> bool {
        self.path.is_some()
    }

    /// Looks where the file is, and tells those who must know. A file that is gone stays gone.
    pub(super) fn look_around(&self) -> Result<Place, StoreError> {
        let (Some(path), Some(file)) = (&self.path, self.device.file()) else {
            return Ok(Place::There);
        };
        let looked = file.place(path);
        let mut core = self.lock_last();
        core.looked = Instant::now();
        if core.place == Place::Gone {
            return Ok(Place::Gone);
        }
        let path = path.display();
        let place = match looked {
            Ok(place) => place,
            Err(error) => {
                if !std::mem::replace(&mut core.cannot_look, true) {
                    tracing::warn!(%path, %error, "cannot look where the store's file is");
                }
                return Err(StoreError::io("look where the store's file is", &error));
            }
        };
        core.cannot_look = false;
        if core.place != place {
            match place {
                Place::There => tracing::info!(%path, "the store's file is back in its place"),
                Place::Renamed | Place::Replaced => {
                    tracing::warn!(%path, ?place, "the store's file was moved; it stays in use");
                }
                Place::Gone => tracing::error!(%path, "the store's file was removed"),
            }
        }
        core.place = place;
        core.log.gone = place == Place::Gone;
        self.tell(core);
        Ok(place)
    }

    /// There may be new room, and work for the helper.
    pub(super) fn after_change(&self, mut core: MutexGuard<'_, Core>) {
        self.do_chores(&mut core);
        let news = self.news(&mut core);
        if core.helper_sleeps && self.has_work(&core) {
            self.wake_helper(core);
        } else {
            drop(core);
        }
        self.spread(news);
    }

    /// As [`tell`](Self::tell), for a change that made no room.
    pub(super) fn tell_of_no_room(&self, core: MutexGuard<'_, Core>) {
        let crossed = core.log.is_watermark_crossed();
        drop(core);
        if crossed {
            self.tell_watermark();
        }
    }

    /// Releases the lock and tells whatever has changed under it.
    pub(super) fn tell(&self, mut core: MutexGuard<'_, Core>) {
        let news = self.news(&mut core);
        drop(core);
        self.spread(news);
    }

    /// Called by whoever may have changed the log, before it releases the lock, so that nobody
    /// waits for something that has already happened.
    fn news(&self, core: &mut Core) -> News {
        let (log, told) = (&core.log, core.told);
        core.told = Told {
            // Nobody can open a file again that is gone.
            durable: match log.gone {
                true => told.durable,
                false => log.durable.ordinal.max(told.durable),
            },
            // What a closed store has not made durable never will be.
            failed: log.failed.is_some() || (log.closed && log.durable.ordinal < log.ordinal),
            closed: log.closed,
            place: core.place,
        };
        let durable = core.told.durable > told.durable && self.upkeep != Upkeep::Inline;
        if durable {
            self.durable.raise(log.durable);
        }
        let (failed, closed) = (
            core.told.failed && !told.failed,
            core.told.closed && !told.closed,
        );
        News {
            // Also room that cannot come any more: whoever waits finds that out by trying again.
            room: core.log.space.take_owed(),
            durable,
            failed,
            closed,
            watermark: core.log.is_watermark_crossed(),
            moved: (core.told.place != told.place).then_some(core.place),
        }
    }

    fn spread(&self, news: News) {
        if news.room || news.durable || news.failed || news.closed || news.moved.is_some() {
            self.progress.notify_all();
        }
        if let Some(place) = news.moved {
            self.signal(Signal::Moved(place));
        }
        for (happened, signal) in [
            (news.durable, Signal::Durable),
            (news.failed, Signal::SyncFailed),
            (news.room, Signal::Room),
        ] {
            if happened {
                self.signal(signal);
            }
        }
        if news.watermark {
            self.tell_watermark();
        }
    }

    pub(super) fn observe(&self, observer: &Observer) {
        if self.not_forked().is_err() {
            return;
        }
        self.observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer.clone());
        // Looked at after the registration: a failure in between is told twice at worst.
        let mut core = self.lock();
        let (failed, place) = (core.told.failed, core.told.place);
        core.untold.push(observer.clone());
        drop(core);
        if place != Place::There {
            let _ = observer(Signal::Moved(place));
        }
        if failed {
            let _ = observer(Signal::SyncFailed);
        }
        self.tell_watermark();
    }

    /// Reports watermarks that were crossed, unless another thread is about to.
    #[cold]
    pub(super) fn tell_watermark(&self) {
        let mut core = self.lock();
        if core.telling {
            return;
        }
        core.telling = true;
        loop {
            let crossed = core.log.cross_watermark();
            let untold = std::mem::take(&mut core.untold);
            let high = core.log.watermark.is_above();
            if !crossed && (untold.is_empty() || !high) {
                break;
            }
            let bounds = core.log.bounds();
            drop(core);
            let signal = Signal::Watermark {
                high,
                live_bytes: bounds.live_bytes,
                limit_bytes: bounds.limit_bytes,
            };
            if crossed {
                self.signal(signal);
            } else {
                self.signal_to(untold, signal);
            }
            core = self.lock();
        }
        core.telling = false;
    }

    fn signal(&self, signal: Signal) {
        let observers = self
            .observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        self.signal_to(observers, signal);
    }

    fn signal_to(&self, observers: Vec<Observer>, signal: Signal) {
        for observer in observers {
            if observer(signal).is_break() {
                self.observers
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .retain(|other| !Arc::ptr_eq(other, &observer));
            }
        }
    }
}
