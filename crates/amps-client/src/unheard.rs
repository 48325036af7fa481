//! What was passed to the last-chance handler and has not returned from it: a flush and a close
//! wait for that, as they do for the failed-write handler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

use crate::shared::Shared;

#[derive(Debug, Default)]
pub(crate) struct Unheard {
    /// Acks that were put into the handler's queue, and those that it returned from.
    passed: AtomicU64,
    heard: AtomicU64,
    /// Nobody calls the handler any more.
    over: AtomicBool,
    changed: Notify,
}

impl Unheard {
    /// One more is in the queue, or will be at once.
    pub(crate) fn passed(&self) {
        self.passed.fetch_add(1, Ordering::AcqRel);
    }

    /// The handler returned from one, or the queue did not take it.
    pub(crate) fn heard(&self) {
        self.heard.fetch_add(1, Ordering::AcqRel);
        self.changed.notify_waiters();
    }

    /// Everything of earlier runs is in the queue by now.
    pub(crate) fn all_passed(&self) {
        self.changed.notify_waiters();
    }

    fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Of those passed so far, how many the handler has not returned from.
    pub(crate) fn open(&self) -> u64 {
        self.behind(self.passed.load(Ordering::Acquire))
    }

    fn behind(&self, passed: u64) -> u64 {
        match self.over.load(Ordering::Acquire) {
            true => 0,
            false => passed.saturating_sub(self.heard.load(Ordering::Acquire)),
        }
    }

    /// Waits until the handler has returned from everything that was passed to it before, and
    /// until nothing is left that `still_to_pass` knows of. How many are open when the time is
    /// over.
    pub(crate) async fn returned(
        &self,
        still_to_pass: impl Fn() -> bool,
        until: Option<Instant>,
    ) -> u64 {
        let mut passed = None;
        loop {
            // Registered before the look: one that returns in between is not missed.
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if passed.is_none() && !still_to_pass() {
                passed = Some(self.passed.load(Ordering::Acquire));
            }
            let left = passed.map(|passed| self.behind(passed));
            if left == Some(0) || self.over.load(Ordering::Acquire) {
                return 0;
            }
            match until {
                None => changed.await,
                Some(until) => {
                    if timeout_at(until, changed).await.is_err() {
                        return passed.map_or_else(|| self.open(), |passed| self.behind(passed));
                    }
                }
            }
        }
    }
}

/// Held by the task that calls the handler: however it ends, nobody waits for it then.
pub(crate) struct Hearing(Arc<Unheard>);

impl Hearing {
    pub(crate) fn new(shared: &Shared) -> Self {
        Hearing(shared.unheard.clone())
    }

    pub(crate) fn heard(&self) {
        self.0.heard();
    }
}

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.end();
    }
}
