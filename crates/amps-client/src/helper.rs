//! Threads for calls that may block: a store's device, the system's name servers.

use std::fs;
use std::future::Future;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::pin::Pin;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread;

use amps_store::StoreError;
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::panics;

/// A thread for calls that block, made ahead of need: so a call is not lost where no thread can
/// be made any more (`ulimit -u`, `pids.max`) or where all threads of the runtime are taken.
///
/// Each call is given to the runtime's pool as well, and whichever is free first does it. So
/// calls run in parallel where they can, one that hangs does not hold up the next, and tokio's
/// paused clock stands still until a call is done, which programs rely on in their tests.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    calls: SyncSender<Arc<Call>>,
}

/// Calls that may wait for the thread; further ones have only the runtime's pool.
const WAITING: usize = 64;

type Work = Box<dyn FnOnce() + Send>;

/// Both the thread and the pool have it, and one of them does it. The lock is held meanwhile, so
/// that the other one does not finish first.
struct Call(Mutex<Option<Work>>);

impl Call {
    fn make(&self) {
        let mut work = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(work) = work.take() {
            work();
        }
    }
}

/// Why there is no result.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NotDone {
    /// The call panicked, with this message.
    Panicked(String),
    /// No thread was free to do it, or the runtime is shut down.
    NoThread,
}

impl NotDone {
    /// The error of a store that could not do this.
    pub(crate) fn of_store(&self, what: &'static str) -> StoreError {
        let error = self.to_string();
        StoreError::Io { what, error }
    }
}

impl std::fmt::Display for NotDone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NotDone::Panicked(words) => write!(f, "it panicked: {words}"),
            NotDone::NoThread => f.write_str("no thread was free for it"),
        }
    }
}

/// The result of a call. If this is dropped before a thread has begun the call, it is not made.
#[derive(Debug)]
pub(crate) struct Calling<T>(oneshot::Receiver<Result<T, NotDone>>);

impl<T> Future for Calling<T> {
    type Output = Result<T, NotDone>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let reply = Pin::new(&mut self.0).poll(cx);
        reply.map(|reply| reply.unwrap_or(Err(NotDone::NoThread)))
    }
}

impl Helper {
    /// Starts the thread. It ends with the last clone.
    ///
    /// # Errors
    /// No thread can be made.
    pub(crate) fn start(name: &str) -> io::Result<Helper> {
        let (calls, given) = sync_channel::<Arc<Call>>(WAITING);
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                while let Ok(call) = given.recv() {
                    call.make();
                }
            })?;
        Ok(Helper { calls })
    }

    /// Has `work` done by a thread that may block.
    pub(crate) fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Calling<T> {
        let (reply, result) = oneshot::channel();
        let work = move || {
            if reply.is_closed() {
                return;
            }
            let done = catch_unwind(AssertUnwindSafe(work));
            let done = done.map_err(|panic| NotDone::Panicked(panics::words(panic.as_ref())));
            // The caller may have stopped waiting.
            let _ = reply.send(done);
        };
        let call = Arc::new(Call(Mutex::new(Some(Box::new(work)))));
        let offered = Arc::clone(&call);
        if let Ok(runtime) = Handle::try_current() {
            let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
            if can_make_thread() {
                // If no thread can be made after all, the pool panics; then the call is left to
                // the helper's thread.
                let give = || drop(runtime.spawn_blocking(move || offered.make()));
                let _ = catch_unwind(AssertUnwindSafe(give));
            }
        }
        // If the queue is full only the pool has the call. If neither has it, dropping it is the
        // answer.
        let _ = self.calls.try_send(call);
        Calling(result)
    }
}

/// Held from the question whether a thread can be made until the pool has made one: otherwise two
/// callers could be promised the same last thread.
static TURN: Mutex<()> = Mutex::new(());

/// The pool is used only if this is true, since its panic would be printed on standard error.
fn can_make_thread() -> bool {
    // In `/proc` of Linux, where this thread is shown as `PID/task/TID`.
    let own_entry = || fs::read_link("/proc/thread-self").ok();
    let Ok(made) = thread::Builder::new().spawn(own_entry) else {
        return false;
    };
    match made.join() {
        Ok(Some(entry)) => is_gone(&Path::new("/proc").join(entry)),
        Ok(None) => true,
        Err(_) => false,
    }
}

/// Waits until the kernel counts a thread no more that has just been joined. A joined thread has
/// left its stack, but still takes a place under the limits for a moment: the pool would find none.
fn is_gone(entry: &Path) -> bool {
    (0..LOOKS).any(|_| {
        thread::yield_now();
        !entry.exists()
    })
}

/// A thread that is listed after so many looks is left alone, and the pool with it.
const LOOKS: u32 = 10_000;

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use super::*;

    /// A runtime whose pool has one thread, which is taken until the sender is dropped.
    fn crowded() -> (tokio::runtime::Runtime, std::sync::mpsc::Sender<()>) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .max_blocking_threads(1)
            .build()
            .unwrap();
        let (taken, free) = channel::<()>();
        let begun = Arc::new(Barrier::new(2));
        let begins = begun.clone();
        runtime.spawn_blocking(move || {
            begins.wait();
            let _ = free.recv();
        });
        begun.wait();
        (runtime, taken)
    }

    #[test]
    fn a_call_is_made_where_the_runtime_has_no_thread_for_it() {
        let helper = Helper::start("helper").unwrap();
        let (runtime, taken) = crowded();
        let name = || thread::current().name().map(str::to_owned);
        let by = runtime.block_on(async { helper.call(name).await });
        assert_eq!(by, Ok(Some("helper".to_owned())));
        drop(taken);
        // When the pool gets to it there is nothing left to do, and nobody is left waiting.
        runtime.shutdown_timeout(Duration::from_secs(30));
    }

    #[test]
    fn a_call_that_hangs_does_not_hold_up_the_next() {
        let helper = Helper::start("helper").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let (go, wait) = channel::<()>();
        runtime.block_on(async {
            let hangs = helper.call(move || wait.recv().is_ok());
            assert_eq!(helper.call(|| 2).await, Ok(2));
            go.send(()).unwrap();
            assert_eq!(hangs.await, Ok(true));
        });
    }

    #[test]
    fn a_panic_and_a_call_that_nobody_has_are_answers() {
        let helper = Helper::start("helper").unwrap();
        let (runtime, taken) = crowded();
        runtime.block_on(async {
            let panics = helper.call(|| -> u8 { panic!("at the disco") });
            let words = NotDone::Panicked("at the disco".to_owned());
            assert_eq!(panics.await, Err(words));
            assert_eq!(helper.call(|| 1).await, Ok(1), "the thread lives");
        });
        let (go, wait) = channel::<()>();
        let last = runtime.block_on(async {
            let begun = Arc::new(Barrier::new(2));
            let begins = begun.clone();
            let _hangs = helper.call(move || {
                begins.wait();
                wait.recv().is_ok()
            });
            begun.wait();
            let waiting: Vec<_> = (0..=WAITING).map(|n| helper.call(move || n)).collect();
            let last = waiting.into_iter().next_back();
            go.send(()).unwrap();
            last
        });
        drop(taken);
        drop(helper);
        runtime.shutdown_background();
        // It was one too many for the thread, and the pool came too late, or just in time.
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        let last = runtime.block_on(last.unwrap());
        assert!(
            matches!(last, Err(NotDone::NoThread) | Ok(WAITING)),
            "{last:?}"
        );
    }

    /// Timeouts in tests rely on this: none may elapse while the device is at work.
    #[tokio::test(start_paused = true)]
    async fn a_paused_clock_stands_still_while_a_call_is_made() {
        let helper = Helper::start("helper").unwrap();
        for _ in 0..100 {
            let slow = helper.call(|| thread::sleep(Duration::from_millis(1)));
            let begun = tokio::time::Instant::now();
            tokio::time::timeout(Duration::from_secs(1), slow)
                .await
                .expect("no time has passed")
                .unwrap();
            assert_eq!(begun.elapsed(), Duration::ZERO);
        }
    }
}
