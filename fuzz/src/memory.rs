//! How much memory a piece of work takes.

use std::sync::{Mutex, PoisonError};

use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The peak belongs to the whole process: one piece of work at a time.
static ALONE: Mutex<()> = Mutex::new(());

/// Does something that may take so many bytes of heap at once.
pub fn bounded(bytes: usize, work: impl FnOnce()) {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    work();
    let taken = HEAP.peak_usage().saturating_sub(before);
    assert!(taken <= bytes, "{taken} bytes of heap, {bytes} are allowed");
}
