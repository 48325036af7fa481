//! The store as a handle: one lock around the log, one thread beside it.

pub(crate) mod durable_mark;
mod helper;
mod leader;
mod looks;
mod shared;
#[cfg(feature = "testkit")]
mod steps;
#[cfg(test)]
mod tests;

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::api::{
    Appended, Bounds, Durable, Level, Numbers, Observer, PublishStore, Rebase, Rejected, Rejection,
    StoredMessage, Unrecorded,
};
use crate::batch::Batch;
use crate::envelope::Envelope;
use crate::error::{AppendDurableError, AppendError, OpenError, ReadError, StoreError};
use crate::faults::planted::{self, Bug};
use crate::format::{GRANT_LAST, MAX_SETTLED, Superblock};
use crate::log::{Log, check, check_all};
use crate::medium::{ForkGuard, Heap, Medium};
use crate::open::{self, Missing, Place};
use crate::options::Options;
use crate::report::RecoveryReport;

use self::shared::{Shared, Upkeep};

/// A publish store in a file or in memory. Clones share it.
///
/// Dropping the last clone without [`close`](PublishStore::close) is the same as a process crash:
/// nothing is lost, and the next open counts as unclean.
#[derive(Clone)]
pub struct Store {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    report: RecoveryReport,
    largest_record: u64,
    /// Mode of files that it creates.
    mode: Option<u32>,
    helper: Mutex<Option<JoinHandle<()>>>,
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
        let (log, report) = open::open(path, options, missing)?;
        let io = |what| {
            move |error| OpenError::Io {
                path: path.to_owned(),
                what,
                error,
            }
        };
        let guard = Some(ForkGuard::new());
        let place = std::path::absolute(path).map_err(io("find"))?;
        let store = Store::new(log, report, options, guard, Upkeep::Thread, Some(place));
        store
            .start_helper()
            .map_err(io("start the helper thread of"))?;
        tracing::info!(path = %path.display(), report = %store.inner.report, "store opened");
        Ok(store)
    }

    /// A store in memory: it follows the same rules, but nothing survives the process. So nothing
    /// in it ever counts as durable: [`sync`](PublishStore::sync) and
    /// [`request_sync`](PublishStore::request_sync) answer [`StoreError::InMemory`].
    ///
    /// # Errors
    /// [`OpenError::Options`], also for any level other than [`Level::Os`]; or there is no
    /// memory.
    pub fn memory(options: Options) -> Result<Store, OpenError> {
        if options.level.syncs() {
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
        let (log, report) = open::open_medium(path, medium, options)?;
        let upkeep = if by_steps {
            Upkeep::Steps
        } else {
            Upkeep::Inline
        };
        Ok(Store::new(log, report, options, None, upkeep, None))
    }

    /// A store in a file, without a helper thread: its chores wait for [`Store::step`].
    #[cfg(feature = "testkit")]
    pub(crate) fn open_by_steps(path: &Path, options: &Options) -> Result<Store, OpenError> {
        let (log, report) = open::open(path, options, Missing::Create)?;
        let place = Some(path.to_owned());
        Ok(Store::new(log, report, options, None, Upkeep::Steps, place))
    }

    /// Ends what is under way, or otherwise does one chore; false: there is none.
    #[cfg(feature = "testkit")]
    pub(crate) fn step(&self) -> Result<bool, StoreError> {
        self.inner.shared.step()
    }

    /// Begins one chore; false: there is none.
    #[cfg(feature = "testkit")]
    pub(crate) fn begin_step(&self) -> Result<bool, StoreError> {
        self.inner.shared.begin_step()
    }

    /// Ends what is under way; false: there is nothing.
    #[cfg(feature = "testkit")]
    pub(crate) fn end_step(&self) -> Result<bool, StoreError> {
        self.inner.shared.end_step()
    }

    /// Pretends that no publish has come for long.
    #[cfg(feature = "testkit")]
    pub(crate) fn idle(&self) {
        let mut core = self.inner.shared.lock();
        core.log.idle();
        self.inner.shared.after_change(core);
    }

    #[cfg(feature = "testkit")]
    pub(crate) fn is_under_way(&self) -> bool {
        self.inner.shared.is_under_way()
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
        path: Option<PathBuf>,
    ) -> Self {
        let level = options.level;
        let inner = Inner {
            largest_record: log.geometry.max_record,
            shared: Arc::new(Shared::new(log, level, fork_guard, upkeep, path)),
            report,
            mode: options.mode,
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

    /// Bytes of the largest record that the store takes: payload, envelope and 40 bytes. This was
    /// decided when the store was created.
    pub fn largest_record(&self) -> u64 {
        self.inner.largest_record
    }

    /// The mode of the files that it creates, if one was given.
    pub(crate) fn mode(&self) -> Option<u32> {
        self.inner.mode
    }

    /// What recovery found when this store was opened.
    pub fn report(&self) -> &RecoveryReport {
        &self.inner.report
    }

    /// Looks where the file is, as the store itself does once a second, and tells observers as it
    /// does then. A store in memory is always [`There`](Place::There).
    ///
    /// # Errors
    /// The file or its path cannot be looked at; or this process is a forked child.
    pub fn place(&self) -> Result<Place, StoreError> {
        self.inner.shared.not_forked()?;
        self.inner.shared.look_around()
    }

    /// As [`append`](PublishStore::append), but waits for room until `deadline`. For threads that
    /// may block.
    ///
    /// # Errors
    /// As `append`; once the deadline has passed, the last of these errors.
    pub fn append_wait(
        &self,
        envelope: &Envelope<'_>,
        payload: &[u8],
        deadline: Instant,
    ) -> Result<Appended, AppendError> {
        self.wait_for_room(deadline, || self.append(envelope, payload))
    }

    /// Stores a message and makes it durable, on this thread: sooner than by
    /// [`append`](PublishStore::append) and [`sync`](PublishStore::sync), since nobody else is
    /// asked to begin. Of several threads that call this at once, one syncs for all that wait.
    /// *Syncs.*
    ///
    /// # Errors
    /// [`NotStored`](AppendDurableError::NotStored) as `append`, with nothing stored;
    /// [`NotDurable`](AppendDurableError::NotDurable): the message is stored, and will be sent, but
    /// no sync is known to cover it.
    pub fn append_durable(
        &self,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<Appended, AppendDurableError> {
        let shared = &self.inner.shared;
        shared.not_forked().map_err(AppendError::from)?;
        let mut core = shared.lock();
        let appended = match core.log.append(envelope, payload) {
            Ok(appended) => appended,
            Err(error) => {
                let again = |log: &mut Log| log.append(envelope, payload);
                let appended = shared.not_stored(core, error, again)?;
                core = shared.lock();
                appended
            }
        };
        match shared.make_durable(core, appended.ordinal) {
            Ok(_) => Ok(appended),
            Err(why) => Err(AppendDurableError::NotDurable { appended, why }),
        }
    }

    /// As [`requeue`](PublishStore::requeue), but waits for room until `deadline`. For threads
    /// that may block.
    ///
    /// # Errors
    /// As `requeue`; once the deadline has passed, the last of these errors.
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
                    // The slice limits the harm done by a wake-up that came before this wait.
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

    /// Does something with the log as a whole, while publishers wait.
    pub(crate) fn with_log<T>(&self, work: impl FnOnce(&mut Log) -> T) -> Result<T, StoreError> {
        self.inner.shared.not_forked()?;
        let mut core = self.inner.shared.lock_alone();
        let done = work(&mut core.log);
        self.inner.shared.after_change(core);
        Ok(done)
    }

    /// Puts a superblock into force without holding the lock while the device works, so that
    /// publishers can go on. `plan` returns nothing if there is nothing to write.
    fn write_superblock<T>(
        &self,
        plan: impl FnOnce(&Log) -> Result<(T, Option<Superblock>), StoreError>,
    ) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock_alone();
        let begun = plan(&core.log).and_then(|(done, superblock)| {
            let write = superblock.map(|s| core.log.begin_write(s)).transpose()?;
            Ok((done, write))
        });
        let Ok((done, Some(write))) = begun else {
            shared.after_change(core);
            return begun.map(|(done, _)| done);
        };
        drop(core);
        let result = write.make(&*shared.device);
        let mut core = shared.lock();
        let written = core.log.finish_write(write, result);
        // The next one may begin.
        shared.progress.notify_all();
        shared.after_change(core);
        written.map(|()| done)
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Log) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.with_room(shared.lock());
        let result = change(&mut core.log);
        shared.after_change(core);
        result
    }

    /// Asks the log something. In a forked child the answer is empty: the mapping is gone there,
    /// and the lock may be held for ever by a thread that was not forked.
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
            Err(error) => {
                return shared.not_stored(core, error, |log| log.append(envelope, payload));
            }
        };
        if shared.do_chores(&mut core) {
            // The chores may have made room that somebody waits for.
            shared.after_change(core);
            return Ok(appended);
        }
        let crossed = core.log.is_watermark_crossed();
        // At this level only these give the helper something to do. Growth has to begin before a
        // message finds no room: small messages use up the store with their charges long before
        // they fill a segment.
        if shared.level.syncs()
            || core.log.space.current() != segment
            || core.log.state.spares_wanted() > 0
            || (core.helper_sleeps && core.log.is_growth_wanted())
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
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock();
        let mut settled = Ok(0);
        for batch in sequences.chunks(MAX_SETTLED) {
            core = shared.with_room(core);
            let begun = settled.as_ref().is_ok_and(|n| *n > 0);
            let more = core.log.settle(batch, begun);
            settled = settled.and_then(|n| more.map(|more| n + more));
            if settled.is_err() {
                break;
            }
        }
        shared.after_change(core);
        settled
    }

    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let core = shared.lock();
        // As it is now: what is done while this waits for room may free the segment of its
        // message.
        if let Some(answer) = core.log.refused_before(sequence)? {
            return Ok(answer);
        }
        let original = match shared.has_to_wait(&core) {
            true => core.log.original(sequence),
            false => None,
        };
        let mut core = shared.with_room(core);
        let result = core.log.reject(sequence, reason, at, original);
        shared.after_change(core);
        result
    }

    fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        self.change(|log| log.accept(sequence))
    }

    fn requeue(&self, sequence: u64, now: u64) -> Result<Option<Appended>, AppendError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let mut core = shared.lock();
        match core.log.requeue(sequence, now) {
            Ok(requeued) => {
                shared.after_change(core);
                Ok(requeued)
            }
            Err(error) => shared.not_stored(core, error, |log| log.requeue(sequence, now)),
        }
    }

    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        // The bytes of a closed store may belong to another owner by now.
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
        shared.wake_helper(core);
        #[cfg(feature = "testkit")]
        shared.asked_for_a_sync();
        Ok(())
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        let core = shared.lock();
        let target = core.log.ordinal;
        shared.make_durable(core, target)
    }

    fn sync_times(&self) -> Vec<Duration> {
        self.inner.shared.take_sync_times()
    }

    fn unrecorded(&self) -> Unrecorded {
        self.look(Log::unrecorded)
    }

    fn recovery(&self) -> Option<&RecoveryReport> {
        Some(self.report())
    }

    fn observe(&self, observer: Observer) {
        self.inner.shared.observe(&observer);
    }

    fn client_name(&self) -> String {
        self.inner.shared.client_name.clone()
    }

    fn identity(&self) -> Option<u64> {
        self.look(|log| Some(log.superblock.store_id))
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        self.look(Log::resume_tag)
    }

    fn close(&self, handed_over: u64) -> Result<(), StoreError> {
        let shared = &self.inner.shared;
        shared.not_forked()?;
        self.inner.stop_helper();
        let place = shared.look_around();
        let mut core = shared.lock_alone();
        let mut closed = core.log.close(&shared.device, handed_over);
        closed = closed.and(match place {
            // What was written and synced cannot be found any more.
            Ok(Place::Gone) => Err(StoreError::Gone),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        });
        // Whatever failed, this run is over, and the next open sees an unclean stop.
        core.log.closed = true;
        // Handles may outlive the close, but the file is free for the next owner.
        shared.device.release();
        shared.tell(core);
        closed
    }
}

impl Inner {
    fn stop_helper(&self) {
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
        if self.shared.not_forked().is_err() {
            // Another thread may have been in the middle of a change when the child was forked:
            // what is half changed must not be dropped. And the child does not have that thread
            // to finish it.
            std::mem::forget(self.shared.clone());
            let helper = self.helper.get_mut();
            std::mem::forget(helper.unwrap_or_else(PoisonError::into_inner).take());
            return;
        }
        self.stop_helper();
    }
}
