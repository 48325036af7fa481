//! How much heap a test may use, counted by the allocator.

#![allow(unreachable_pub)]

use std::future::Future;

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The peak is that of the whole process, so one test runs at a time.
pub static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs something that may use this many bytes of heap at a time.
pub async fn bounded<T>(bytes: usize, work: impl Future<Output = T>) -> T {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let done = work.await;
    let taken = HEAP.peak_usage().saturating_sub(before);
    assert!(taken <= bytes, "{taken} bytes of heap, {bytes} are allowed");
    done
}
