//! The system calls that are made on a store's file, each of which a test can make fail. Without
//! the feature `testkit` the question is a constant, and none of this is compiled in.

use rustix::io::Errno;

/// A kind of system call that a store makes on its file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(feature = "testkit"),
    allow(
        dead_code,
        unreachable_pub,
        reason = "only a test can tell calls apart"
    )
)]
pub enum Call {
    /// `open`.
    Open,
    /// `fstat` and `stat`.
    Stat,
    /// `flock`.
    Lock,
    /// `pread`.
    Read,
    /// `mmap`.
    Map,
    /// `fallocate`.
    Allocate,
    /// `pwrite` of zeros into new blocks.
    Fill,
    /// `ftruncate`.
    Truncate,
    /// `pwritev2` of a superblock copy.
    WriteAround,
    /// `msync` of a part of the mapping.
    SyncRange,
    /// `fdatasync`.
    SyncData,
    /// `fsync` of the directory.
    SyncDirectory,
    /// `madvise` of the page that is wiped in forked children.
    WipeOnFork,
}

/// Which calls fail, and how.
#[cfg(feature = "testkit")]
#[derive(Clone, Copy, Debug)]
pub struct FailingCalls {
    /// The calls concerned.
    pub call: Call,
    /// How many of them succeed before the first that fails.
    pub after: u64,
    /// Whether all later ones fail as well.
    pub for_ever: bool,
    /// The error number of Linux, for instance 5 for `EIO`.
    pub errno: i32,
}

#[cfg(feature = "testkit")]
thread_local! {
    static FAILING: std::cell::Cell<Option<FailingCalls>> = const { std::cell::Cell::new(None) };
    static FAILED: std::cell::Cell<u64> = const { std::cell::Cell::new(0) };
    static WATCHING: std::cell::Cell<Option<Watcher>> = const { std::cell::Cell::new(None) };
}

/// Called before each call is made.
#[cfg(feature = "testkit")]
type Watcher = Box<dyn FnMut(Call)>;

/// Calls a function before each call of this thread, so that something can happen between two of
/// them, but not before calls that the function makes itself. `None`: no longer.
#[cfg(feature = "testkit")]
pub fn watch_calls(watcher: Option<Box<dyn FnMut(Call)>>) {
    WATCHING.set(watcher);
}

/// Makes calls of this thread fail before they reach the operating system; `None`: no longer.
/// Returns how many have failed since the last time.
#[cfg(feature = "testkit")]
pub fn fail_calls(failing: Option<FailingCalls>) -> u64 {
    FAILING.set(failing);
    FAILED.take()
}

#[cfg(feature = "testkit")]
static SLOWNESS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// Makes every call that waits for the device take so much longer, in all threads of this process;
/// zero: no longer. So a slow disk can be had on a fast one.
#[cfg(feature = "testkit")]
pub fn slow_syncs(by: std::time::Duration) {
    let nanos = by.as_nanos().try_into().unwrap_or(u64::MAX);
    SLOWNESS.store(nanos, std::sync::atomic::Ordering::Relaxed);
}

#[cfg(feature = "testkit")]
fn wait_for_the_device(call: Call) {
    use std::time::{Duration, Instant};
    /// The kernel wakes a thread some 50 microseconds late, so the rest of a sleep is burnt.
    const BURNT: Duration = Duration::from_micros(200);

    let slowness = SLOWNESS.load(std::sync::atomic::Ordering::Relaxed);
    let waits = match call {
        Call::WriteAround | Call::SyncRange | Call::SyncData | Call::SyncDirectory => true,
        Call::Open
        | Call::Stat
        | Call::Lock
        | Call::Read
        | Call::Map
        | Call::Allocate
        | Call::Fill
        | Call::Truncate
        | Call::WipeOnFork => false,
    };
    if slowness == 0 || !waits {
        return;
    }
    let (begun, by) = (Instant::now(), Duration::from_nanos(slowness));
    std::thread::sleep(by.saturating_sub(BURNT));
    while begun.elapsed() < by {
        std::hint::spin_loop();
    }
}

/// Asked before each call.
///
/// # Errors
/// A test wants it to fail.
#[cfg(feature = "testkit")]
pub(crate) fn check<E: From<Errno>>(call: Call) -> Result<(), E> {
    wait_for_the_device(call);
    if let Some(mut watcher) = WATCHING.take() {
        watcher(call);
        WATCHING.set(Some(watcher));
    }
    let Some(mut failing) = FAILING.get().filter(|f| f.call == call) else {
        return Ok(());
    };
    if failing.after > 0 {
        failing.after -= 1;
        FAILING.set(Some(failing));
        return Ok(());
    }
    FAILED.set(FAILED.get() + 1);
    FAILING.set(Some(failing).filter(|f| f.for_ever));
    Err(Errno::from_raw_os_error(failing.errno).into())
}

/// Asked before each call: none fails.
#[cfg(not(feature = "testkit"))]
#[inline]
pub(crate) fn check<E: From<Errno>>(_call: Call) -> Result<(), E> {
    Ok(())
}

#[cfg(feature = "testkit")]
static BYTES_READ: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);

/// How many bytes of files all threads of this process have read in recoveries and looks so far.
#[cfg(feature = "testkit")]
pub fn bytes_read() -> u64 {
    BYTES_READ.load(std::sync::atomic::Ordering::Relaxed)
}

/// Counts what was read.
#[inline]
pub(crate) fn count_read(_bytes: usize) {
    #[cfg(feature = "testkit")]
    BYTES_READ.fetch_add(_bytes as u64, std::sync::atomic::Ordering::Relaxed);
}
