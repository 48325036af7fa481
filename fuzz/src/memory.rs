//! How much memory a piece of work takes.

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The peak is that of the whole process, so one piece of work runs at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Runs something that may use this many bytes of heap at a time.
pub fn bounded(bytes: usize, work: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    work();
    let taken = HEAP.peak_usage().saturating_sub(before);
    assert!(taken <= bytes, "{taken} bytes of heap, {bytes} are allowed");
}
