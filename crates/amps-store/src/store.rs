//! The store as a handle: one lock around the log, one thread beside it.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::api::{
    Appended, Bounds, Durable, Level, Numbers, Observer, PublishStore, Rebase, Rejected, Rejection,
    Signal, StoredMessage,
};
use crate::batch::Batch;
use crate::durable_mark::DurableMark;
use crate::envelope::Envelope;
use crate::error::{AppendError, OpenError, ReadError, StoreError};
use crate::file::{self, Missing};
use crate::format::{GRANT_LAST, Superblock};
use crate::index::make_spares;
use crate::log::{Log, check, check_all};
use crate::medium::{Device, ForkGuard, Heap, Medium};
use crate::options::Options;
use crate::planted::{self, Bug};
use crate::report::RecoveryReport;
use crate::space::Chore;

/// A publish store in a file or in memory. Clones share it.
///
/// Dropping the last clone without [`close`](PublishStore::close) is what a process crash
/// is: nothing is lost, and the next open counts as unclean.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    report: RecoveryReport,
    helper: Mutex<Option<JoinHandle<()>>>,
}

struct Shared {
    core: Mutex<Core>,
    /// Threads that wait for the lock.
    waiting: AtomicU32,
    /// Wakes the helper.
    work: Condvar,
    /// Wakes callers that block for room or durability.
    progress: Condvar,
    device: Arc<dyn Device>,
    level: Level,
    durable: DurableMark,
    observers: Mutex<Vec<Observer>>,
    client_name: String,
    fork_guard: Option<ForkGuard>,
    upkeep: Upkeep,
}

/// How long publishers may wait for room before growth that failed is tried again: space may
/// have come meanwhile, and nothing else would tell.
const GROWTH_RETRY: Duration = Duration::from_secs(1);

/// How often a caller tries to get the lock before it sleeps: about as long as waking up takes,
/// and longer than any piece of work under the lock.
const SPINS: usize = 400;

/// How often the helper lets others run before it takes the lock from those who wait for it.
const PATIENCE: usize = 64;

/// Who does the chores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Upkeep {
    /// The helper thread.
    Thread,
    /// Whoever changes the log, right then: a store in memory, which makes nothing durable.
    Inline,
    /// Nobody, until asked: simulations.
    Steps,
}

struct Core {
    log: Log,
    /// Ordinal that somebody wants durable.
    wanted: u64,
    last_sync: Instant,
    helper_sleeps: bool,
    stop: bool,
    told: Told,
    /// Somebody is telling of watermarks: one at a time, so that they are told in order.
    telling: bool,
    /// Observers that came later than the crossing of the high one.
    untold: Vec<Observer>,
}

/// What callers and observers know of the log.
#[derive(Clone, Copy, Debug)]
struct Told {
    durable: u64,
    failed: bool,
    closed: bool,
}

/// What changed under the lock, to be told behind it.
#[derive(Clone, Copy, Debug)]
#[must_use]
struct News {
    room: bool,
    durable: bool,
    failed: bool,
    closed: bool,
    watermark: bool,
}

impl Store {
    /// Opens the store at `path`, creating it if there is none, and recovers it.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed.
    pub fn open(path: impl AsRef<Path>, options: Options) -> Result<Store, OpenError> {
        Self::open_file(path.as_ref(), &options, Missing::Create)
    }

    /// Opens the store at `path`, which must be there.
    ///
    /// # Errors
    /// See [`OpenError`]; nothing was changed.
    pub fn open_existing(path: impl AsRef<Path>, options: Options) -> Result<Store, OpenError> {
        Self::open_file(path.as_ref(), &options, Missing::Refuse)
    }

    fn open_file(path: &Path, options: &Options, missing: Missing) -> Result<Store, OpenError> {
        let (log, report) = file::open(path, options, missing)?;
        let io = |what| {
            move |error| OpenError::Io {
                path: path.to_owned(),
                what,
                error,
            }
        };
        let guard = ForkGuard::new().map_err(io("guard against fork for"))?;
        let store = Store::new(log, report, options, Some(guard), Upkeep::Thread);
        store
            .start_helper()
            .map_err(io("start the helper thread of"))?;
        tracing::info!(path = %path.display(), report = %store.inner.report, "store opened");
        Ok(store)
    }

    /// A store in memory: the same rules, and nothing survives the process. So nothing in it
    /// ever counts as durable: [`sync`](PublishStore::sync) and
    /// [`request_sync`](PublishStore::request_sync) answer [`StoreError::InMemory`].
    ///
    /// # Errors
    /// [`OpenError::Options`], also for any level but [`Level::Os`]; or no memory.
    pub fn memory(options: Options) -> Result<Store, OpenError> {
        if options.level != Level::Os {
            let why = "a store in memory makes nothing durable: use level Os, or a file";
            return Err(OpenError::Options(why.to_owned()));
        }
        Self::on_medium(
            Path::new("(memory)"),
            Box::new(Heap::new()),
            &options,
            false,
        )
    }

    /// A store without a helper thread. `by_steps`: its chores wait for [`Store::step`];
    /// otherwise whoever changes the log does them.
    pub(crate) fn on_medium(
        path: &Path,
        medium: Box<dyn Medium>,
        options: &Options,
        by_steps: bool,
    ) -> Result<Store, OpenError> {
        let (log, report) = file::open_medium(path, medium, options)?;
        let upkeep = if by_steps {
            Upkeep::Steps
        } else {
            Upkeep::Inline
        };
        Ok(Store::new(log, report, options, None, upkeep))
    }

    /// A store in a file, without a helper thread: its chores wait for [`Store::step`].
    #[cfg(feature = "testkit")]
    pub(crate) fn open_by_steps(path: &Path, options: &Options) -> Result<Store, OpenError> {
        let (log, report) = file::open(path, options, Missing::Create)?;
        Ok(Store::new(log, report, options, None, Upkeep::Steps))
    }

    /// Does one chore; false: there is none.
    #[cfg(feature = "testkit")]
    pub(crate) fn step(&self) -> Result<bool, StoreError> {
        let shared = &self.inner.shared;
        let mut core = shared.lock();
        let did = core.log.do_chore(&shared.device);
        // Nothing done is no news: whoever waits for room would try again for ever.
        if !matches!(did, Ok(false)) {
            shared.tell(core);
        }
        did
    }

    #[cfg(feature = "testkit")]
    pub(crate) fn has_failed(&self) -> bool {
        self.inner.shared.lock().log.failed.is_some()
    }

    #[cfg(feature = "testkit")]
    pub(crate) fn last_ordinal(&self) -> u64 {
        self.inner.shared.lock().log.ordinal
    }

    fn new(
        log: Log,
        report: RecoveryReport,
        options: &Options,
        fork_guard: Option<ForkGuard>,
        upkeep: Upkeep,
    ) -> Self {
        let durable = log.durable;
        let shared = Shared {
            device: log.medium.device(),
            level: options.level,
            durable: DurableMark::new(match upkeep {
                Upkeep::Inline => Durable::default(),
                Upkeep::Thread | Upkeep::Steps => Durable {
                    ordinal: durable.ordinal,
                    sequence: log.bounds().next - 1,
                },
            }),
            observers: Mutex::new(Vec::new()),
            client_name: log.superblock.client_name.clone(),
            upkeep,
            fork_guard,
            work: Condvar::new(),
            progress: Condvar::new(),
            waiting: AtomicU32::new(0),
            core: Mutex::new(Core {
                log,
                wanted: 0,
                last_sync: Instant::now(),
                helper_sleeps: false,
                stop: false,
                told: Told {
                    durable: durable.ordinal,
                    failed: false,
                    closed: false,
                },
                telling: false,
                untold: Vec::new(),
            }),
        };
        let inner = Inner {
            shared: Arc::new(shared),
            report,
            helper: Mutex::new(None),
        };
        Store {
            inner: Arc::new(inner),
        }
    }

    fn start_helper(&self) -> std::io::Result<()> {
        let shared = self.inner.shared.clone();
        let thread = std::thread::Builder::new()
            .name("amps-store".into())
            .spawn(move || {
                let helped = catch_unwind(AssertUnwindSafe(|| shared.help()));
                if let Err(panic) = helped {
                    shared.lost_helper();
                    resume_unwind(panic);
                }
            })?;
        *self
            .inner
            .helper
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(thread);
        Ok(())
    }

    /// What recovery found when this store was opened.
    pub fn report(&self) -> &RecoveryReport {
        &self.inner.report
    }

    /// As [`append`](PublishStore::append), waiting for room at most until `deadline`. For
    /// threads that may block.
    ///
    /// # Errors
    /// As `append`; [`AppendError::Full`] once the deadline passed.
    pub fn append_wait(
        &self,
        envelope: &Envelope<'_>,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        self.wait_for_room(deadline, || self.append(envelope, payload))
    }

    /// As [`requeue`](PublishStore::requeue), waiting for room at most until `deadline`. For
    /// threads that may block.
    ///
    /// # Errors
    /// As `requeue`; [`AppendError::Full`] once the deadline passed.
    pub fn requeue_wait(
        &self,
        sequence: u64,
        now: u64,
        deadline: Instant,
    ) -> Result<Option<Appended>, AppendError> {
        self.wait_for_room(deadline, || self.requeue(sequence, now))
    }

    fn wait_for_room<T>(
        &self,
        deadline: Instant,
        store: impl Fn() -> Result<T, AppendError>,
    ) -> Result<T, AppendError> {
        let shared = &self.inner.shared;
        loop {
            match store() {
                Err(error) if error.is_retryable() => {
                    let Some(left) = deadline.checked_duration_since(Instant::now()) else {
                        return Err(error);
                    };
                    let core = shared.lock();
                    // The slice bounds the harm of a wake that came before this wait.
                    let slice = left.min(Duration::from_millis(10));
                    drop(
                        shared
                            .progress
                            .wait_timeout(core, slice)
                            .unwrap_or_else(PoisonError::into_inner),
                    );
                }
                other => return other,
            }
        }
    }

    /// Does something to the log as a whole, with publishers waiting.
    pub(crate) fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> T) -> Result<T, StoreError> {
        self.inner.shared.not_forked()?;
        let mut core = self.inner.shared.lock_alone();
        let done = work(&mut core.log);
        self.inner.shared.after_change(core);
        Ok(done)
    }

    /// Puts a superblock into force, without holding the lock while the device works:
    /// publishers go on meanwhile. `plan` says nothing when nothing is to be written.
    fn write_superblock<T>(
        &self,
        plan: impl FnOnce(&Log) -> Result<(T, Option<Superblock>), StoreError>,
    ) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock_alone();
        let (done, superblock) = plan(&core.log)?;
        let Some(superblock) = superblock else {
            return Ok(done);
        };
        let write = core.log.begin_write(superblock)?;
        drop(core);
        let result = write.make(&*shared.device);
        let mut core = shared.lock();
        let written = core.log.finish_write(write, result);
        // The next one may write.
        shared.progress.notify_all();
        shared.after_change(core);
        written.map(|()| done)
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Log) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        self.inner.shared.not_forked()?;
        let mut core = self.inner.shared.lock();
        let result = change(&mut core.log);
        self.inner.shared.after_change(core);
        result
    }

    /// What the log says; nothing in a forked child, where the mapping is gone and the lock
    /// may be held for ever by a thread that was not forked.
    fn look<T: Default>(&self, at: impl FnOnce(&Log) -> T) -> T {
        match self.inner.shared.not_forked() {
            Ok(()) => at(&self.inner.shared.lock().log),
            Err(_) => T::default(),
        }
    }
}

impl PublishStore for Store {
    fn append(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock();
        let segment = core.log.space.current();
        let appended = match core.log.append(envelope, payload) {
            Ok(appended) => appended,
            Err(error) => return shared.not_appended(core, error, envelope, payload),
        };
        if shared.upkeep == Upkeep::Inline {
            shared.do_chores(&mut core);
        }
        let crossed = core.log.is_watermark_crossed();
        // At this level only these give the helper something to do.
        if shared.level != Level::Os
            || core.log.space.current() != segment
            || core.log.state.spares_wanted() > 0
        {
            shared.wake_helper(core);
        } else {
            drop(core);
        }
        if crossed {
            shared.tell_watermark();
        }
        Ok(appended)
    }

    fn read_unsettled(&self, from: u64, through: u64, into: &mut Batch) -> Result<(), ReadError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        into.clear();
        let geometry = {
            let core = shared.lock();
            core.log.usable()?;
            core.log.copy_unsettled(from, through, into);
            core.log.geometry
        };
        check_all(&geometry, into)
    }

    fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let place = {
            let core = shared.lock();
            core.log.usable()?;
            core.log.copy_out(sequence, into)
        };
        match place {
            Some(place) => check(place, into).map(|()| true),
            None => Ok(false),
        }
    }

    fn bounds(&self) -> Bounds {
        self.look(Log::bounds)
    }

    fn is_unsettled(&self, sequence: u64) -> bool {
        self.look(|log| log.state.get(sequence).is_some_and(|e| !e.is_settled()))
    }

    fn settle_through(&self, sequence: u64) -> Result<u64, StoreError> {
        self.change(|log| log.settle_through(sequence))
    }

    fn settle(&self, sequences: &[u64]) -> Result<u64, StoreError> {
        self.change(|log| log.settle(sequences))
    }

    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError> {
        self.change(|log| log.reject(sequence, reason, at))
    }

    fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        self.change(|log| log.accept(sequence))
    }

    fn requeue(&self, sequence: u64, now: u64) -> Result<Option<Appended>, AppendError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock();
        let mut requeued = core.log.requeue(sequence, now);
        if shared.do_chores(&mut core) && requeued.as_ref().is_err_and(AppendError::is_retryable) {
            requeued = core.log.requeue(sequence, now);
        }
        shared.after_change(core);
        requeued
    }

    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        // The bytes of a closed store may be another owner's by now.
        self.look(|log| match log.closed {
            true => Vec::new(),
            false => log.rejections(from, limit),
        })
    }

    fn numbers(&self) -> Numbers {
        self.look(Log::numbers)
    }

    fn raise_grant(&self, to: u64) -> Result<(), StoreError> {
        if planted::is(Bug::GrantNotSynced) {
            return self.change(|log| {
                log.superblock.grant = log.superblock.grant.max(to);
                Ok(())
            });
        }
        self.write_superblock(|log| {
            log.usable()?;
            if to <= log.superblock.grant {
                return Ok(((), None));
            }
            if to > GRANT_LAST {
                return Err(StoreError::OutOfRange(to));
            }
            let mut superblock = log.superblock.clone();
            superblock.grant = to;
            Ok(((), Some(superblock)))
        })
    }

    fn rebase(&self, above: u64) -> Result<Rebase, StoreError> {
        self.write_superblock(|log| {
            let (rebase, superblock) = log.plan_rebase(above)?;
            Ok((rebase, Some(superblock)))
        })
    }

    fn level(&self) -> Level {
        self.inner.shared.level
    }

    fn durable(&self) -> Durable {
        self.inner.shared.durable.get()
    }

    fn request_sync(&self) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock();
        shared.may_sync(&core)?;
        core.wanted = core.log.ordinal;
        if shared.upkeep == Upkeep::Thread {
            shared.wake_helper(core);
            return Ok(());
        }
        let ticket = core.log.begin_sync();
        let result = ticket.extent.sync(&*shared.device);
        // As with a helper: what comes of it is told, to all.
        if let Err(error) = core.log.finish_sync(ticket, result) {
            tracing::error!(%error, "sync failed");
        }
        shared.tell(core);
        Ok(())
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        let shared = &self.inner.shared;
        if shared.upkeep != Upkeep::Thread {
            self.request_sync()?;
            let core = shared.lock();
            shared.may_sync(&core)?;
            return Ok(core.log.durable);
        }
        shared.not_forked()?;
        let mut core = shared.lock();
        let target = core.log.ordinal;
        loop {
            shared.may_sync(&core)?;
            if core.log.durable.ordinal >= target {
                return Ok(core.log.durable);
            }
            core.wanted = core.wanted.max(target);
            if core.helper_sleeps {
                core.helper_sleeps = false;
                shared.work.notify_one();
            }
            core = shared
                .progress
                .wait(core)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn recovery(&self) -> Option<&RecoveryReport> {
        Some(self.report())
    }

    fn observe(&self, observer: Observer) {
        if self.inner.shared.not_forked().is_err() {
            return;
        }
        self.inner
            .shared
            .observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(observer.clone());
        // Looked at behind the registration: a failure in between is told twice at worst.
        let mut core = self.inner.shared.lock();
        let failed = core.told.failed;
        core.untold.push(observer.clone());
        drop(core);
        if failed {
            let _ = observer(Signal::SyncFailed);
        }
        self.inner.shared.tell_watermark();
    }

    fn client_name(&self) -> String {
        self.inner.shared.client_name.clone()
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        self.look(Log::resume_tag)
    }

    fn close(&self, handed_over: u64) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        self.inner.stop_helper();
        let mut core = shared.lock_alone();
        let closed = core.log.close(&shared.device, handed_over);
        // Whatever failed: this run is over, and the next open sees an unclean stop.
        core.log.closed = true;
        // Handles may outlive the close; the file is free for the next owner.
        shared.device.release();
        shared.tell(core);
        closed
    }
}

impl Inner {
    fn stop_helper(&self) {
        if self.shared.not_forked().is_err() {
            // The child has no such thread, and the parent's shall go on.
            return;
        }
        let thread = self
            .helper
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(thread) = thread {
            let mut core = self.shared.lock();
            core.stop = true;
            drop(core);
            self.shared.work.notify_one();
            if thread.thread().id() != std::thread::current().id() && thread.join().is_err() {
                tracing::error!("the store's helper thread panicked");
            }
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop_helper();
    }
}

impl Shared {
    /// An append failed: perhaps there is room after a chore.
    #[cold]
    fn not_appended(
        &self,
        mut core: MutexGuard<'_, Core>,
        error: AppendError,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<Appended, AppendError> {
        let mut result = Err(error);
        if self.do_chores(&mut core) && result.as_ref().is_err_and(AppendError::is_retryable) {
            result = core.log.append(envelope, payload);
        }
        let crossed = core.log.is_watermark_crossed();
        self.wake_helper(core);
        if crossed {
            self.tell_watermark();
        }
        result
    }

    #[inline]
    fn lock(&self) -> MutexGuard<'_, Core> {
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
            // A panic under the lock is a defect; what the log holds is whole records,
            // but nothing more shall be promised by this run.
            core.log
                .failed
                .get_or_insert_with(|| "a panic under the store's lock".to_owned());
            core
        });
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        core
    }

    /// The lock for the helper's next piece of work, after whoever waits for it. A helper that
    /// takes it right back leaves them no moment between two pieces, so that they fall asleep,
    /// and waking up takes longer than any piece of work. They cannot keep it out for long.
    fn lock_last(&self) -> MutexGuard<'_, Core> {
        for _ in 0..PATIENCE {
            if self.waiting.load(Ordering::Relaxed) == 0 {
                break;
            }
            std::thread::yield_now();
        }
        self.lock()
    }

    /// The lock, while nobody writes the superblock without it.
    fn lock_alone(&self) -> MutexGuard<'_, Core> {
        let mut core = self.lock();
        while core.log.space.is_being_written() {
            core = self
                .progress
                .wait(core)
                .unwrap_or_else(PoisonError::into_inner);
        }
        core
    }

    fn not_forked(&self) -> Result<(), StoreError> {
        match &self.fork_guard {
            Some(guard) if guard.is_child() => Err(StoreError::Forked),
            _ => Ok(()),
        }
    }

    /// Without a helper, whoever changes the log does its chores; whether any was done.
    fn do_chores(&self, core: &mut Core) -> bool {
        let mut any = false;
        if self.upkeep != Upkeep::Inline {
            return any;
        }
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

    fn wake_helper(&self, mut core: MutexGuard<'_, Core>) {
        if core.helper_sleeps {
            core.helper_sleeps = false;
            drop(core);
            self.work.notify_one();
        }
    }

    /// Whether anything can become durable yet.
    fn may_sync(&self, core: &Core) -> Result<(), StoreError> {
        if self.upkeep == Upkeep::Inline {
            return Err(StoreError::InMemory);
        }
        if let Some(why) = &core.log.failed {
            return Err(StoreError::SyncFailed(why.clone()));
        }
        core.log.usable()
    }

    /// Room may have come, and work for the helper.
    fn after_change(&self, mut core: MutexGuard<'_, Core>) {
        self.do_chores(&mut core);
        let news = self.news(&mut core);
        if core.helper_sleeps && (self.level != Level::Os || core.log.chore() != Chore::Idle) {
            self.wake_helper(core);
        } else {
            drop(core);
        }
        self.spread(news);
    }

    /// Lets go of the lock and tells whatever changed under it.
    fn tell(&self, mut core: MutexGuard<'_, Core>) {
        let news = self.news(&mut core);
        drop(core);
        self.spread(news);
    }

    /// Whoever may have changed the log asks this before it lets go of the lock, so that
    /// nobody waits for what has happened already.
    fn news(&self, core: &mut Core) -> News {
        let (log, told) = (&core.log, core.told);
        core.told = Told {
            durable: log.durable.ordinal.max(told.durable),
            // What a closed store has not made durable never will be.
            failed: log.failed.is_some() || (log.closed && log.durable.ordinal < log.ordinal),
            closed: log.closed,
        };
        let durable = core.told.durable > told.durable && self.upkeep != Upkeep::Inline;
        if durable {
            self.durable.raise(log.durable);
        }
        News {
            room: log.space.demanded(),
            durable,
            failed: core.told.failed && !told.failed,
            closed: core.told.closed && !told.closed,
            watermark: log.is_watermark_crossed(),
        }
    }

    fn spread(&self, news: News) {
        if news.room || news.durable || news.failed || news.closed {
            self.progress.notify_all();
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

    /// Tells of watermarks that were crossed, unless another thread is about to.
    #[cold]
    fn tell_watermark(&self) {
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

    /// The helper: syncs as the level demands, and keeps free segments ready.
    fn help(&self) {
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
    fn lost_helper(&self) {
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use super::*;
    use crate::testkit::{Fault, SimDisk};

    /// With a helper that is too slow to do anything.
    fn without_helper(disk: &SimDisk) -> Store {
        let options = Options::new().capacity(64 << 10);
        let opened = file::open_medium(Path::new("(simulated disk)"), disk.medium(), &options);
        let (log, report) = opened.unwrap();
        Store::new(log, report, &options, None, Upkeep::Thread)
    }

    /// Does something as soon as another thread waits for a sync.
    fn while_a_sync_waits(store: &Store, work: impl FnOnce()) -> Result<Durable, StoreError> {
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| store.sync());
            // Whoever finds it wanted finds the lock free because the other one waits.
            while store.inner.shared.lock().wanted == 0 {
                std::thread::yield_now();
            }
            work();
            waiting.join().unwrap()
        })
    }

    /// A raise of the grant held the lock over two writes to the device; whoever published,
    /// or asked how full the store is, waited for them.
    #[test]
    fn publishers_go_on_while_a_superblock_is_written() {
        let disk = SimDisk::new();
        let store = without_helper(&disk);
        let shared = &store.inner.shared;
        // As another thread that raises the grant, which is in the middle of it.
        let write = {
            let mut core = shared.lock();
            let mut superblock = core.log.superblock.clone();
            superblock.grant = 7;
            core.log.begin_write(superblock).unwrap()
        };
        let first = store
            .append(&Envelope::publish("t"), b"x")
            .unwrap()
            .sequence;
        assert_eq!(store.bounds().unsettled, 1);
        store.settle_through(first).unwrap();
        assert_eq!(store.numbers().grant, 0, "not before it is durable");
        std::thread::scope(|scope| {
            // One at a time: this one builds on what the other one writes.
            let rebased = scope.spawn(|| store.rebase(100));
            let result = write.make(&*shared.device);
            shared.lock().log.finish_write(write, result).unwrap();
            shared.progress.notify_all();
            let rebase = rebased.join().unwrap().unwrap();
            assert_eq!((rebase.from, rebase.delta), (2, 99));
        });
        let superblock = shared.lock().log.superblock.clone();
        assert_eq!((superblock.grant, superblock.number_floor), (1, 7));
        drop(store);
        let found = without_helper(&disk).numbers();
        assert_eq!((found.grant, found.rebase.unwrap().from), (1, 2));
    }

    #[test]
    fn who_waits_for_a_sync_hears_of_a_failed_superblock_write() {
        let disk = SimDisk::new();
        let store = without_helper(&disk);
        store.append(&Envelope::publish("t"), b"x").unwrap();
        let synced = while_a_sync_waits(&store, || {
            disk.fail(Fault::WriteAround(0));
            assert!(store.raise_grant(7).is_err());
        });
        assert!(matches!(synced, Err(StoreError::SyncFailed(_))));
    }

    #[test]
    fn who_waits_for_a_sync_hears_that_the_helper_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let options = Options::new().capacity(64 << 10);
        let store = Store::open(dir.path().join("s"), options).unwrap();
        store.observe(Arc::new(|_| panic!("an observer must not")));
        store.append(&Envelope::publish("t"), b"x").unwrap();
        // Durable before the observers are told, or told of the end of the helper.
        let _ = store.sync();
        store.append(&Envelope::publish("t"), b"x").unwrap();
        assert!(matches!(store.sync(), Err(StoreError::SyncFailed(_))));
        assert!(store.request_sync().is_err());
    }

    #[test]
    fn who_waits_for_a_sync_hears_of_an_evacuation() {
        let dir = tempfile::tempdir().unwrap();
        let store = without_helper(&SimDisk::new());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let to = heard.clone();
        store.observe(Arc::new(move |signal| {
            to.lock().unwrap().push(signal);
            ControlFlow::Continue(())
        }));
        store.append(&Envelope::publish("t"), b"x").unwrap();
        let synced = while_a_sync_waits(&store, || {
            store.evacuate(dir.path().join("fresh"), Level::Os).unwrap();
        });
        assert!(matches!(synced, Err(StoreError::Closed)));
        assert_eq!(heard.lock().unwrap()[..], [Signal::SyncFailed]);
    }
}
