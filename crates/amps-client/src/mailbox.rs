//! How handles reach the driver: questions in a queue, requests beside the queue, and a bell.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::delivery::Flushed;
use crate::doorbell::Doorbell;
use crate::error::FlushError;

/// Questions to the driver that may wait.
const ASKS: usize = 256;

/// The handles' side.
pub(crate) struct Mailbox {
    pub(crate) doorbell: Doorbell,
    pub(crate) asks: mpsc::Sender<Ask>,
    /// What must reach the driver however full its queue is.
    requests: Mutex<Requests>,
    /// Some requests wait: looked at without the lock above.
    pub(crate) requested: AtomicBool,
    /// The driver takes no more requests.
    pub(crate) finishing: AtomicBool,
    /// The application has the client.
    pub(crate) opened: AtomicBool,
    /// Refusals of earlier runs may wait until the last-chance handler has room for them.
    pub(crate) untold: AtomicBool,
    /// The last handle is gone.
    pub(crate) dropped: AtomicBool,
}

/// The driver's side.
pub(crate) struct Inbox {
    pub(crate) asks: mpsc::Receiver<Ask>,
}

impl Mailbox {
    pub(crate) fn new() -> (Self, Inbox) {
        let (asks, asked) = mpsc::channel(ASKS);
        let mailbox = Mailbox {
            doorbell: Doorbell::default(),
            asks,
            requests: Mutex::default(),
            requested: AtomicBool::new(false),
            finishing: AtomicBool::new(false),
            opened: AtomicBool::new(false),
            untold: AtomicBool::new(true),
            dropped: AtomicBool::new(false),
        };
        let inbox = Inbox { asks: asked };
        (mailbox, inbox)
    }

    /// Asks the driver for something that needs no place in its queue.
    pub(crate) fn request(&self, change: impl FnOnce(&mut Requests)) {
        change(&mut self.requests());
        self.requested.store(true, Ordering::Release);
        self.doorbell.ring_always();
    }

    pub(crate) fn requests(&self) -> MutexGuard<'_, Requests> {
        lock(&self.requests)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a handle asks the driver for.
pub(crate) enum Ask {
    Flush {
        /// The last sequence it covers.
        through: u64,
        until: Option<Instant>,
        /// Receives what became of them when nothing is left, or the time is up.
        reply: oneshot::Sender<Result<Counted, FlushError>>,
    },
    AllowRebase,
    GiveUp {
        sequence: u64,
        done: oneshot::Sender<bool>,
    },
}

/// What a flush counted. If it is dropped before it reached the caller, the next flush reports
/// it.
pub(crate) struct Counted {
    flushed: Flushed,
    /// What flushes counted but nobody was told.
    uncounted: Arc<Mutex<Flushed>>,
}

impl Counted {
    /// Together with what is left of earlier flushes.
    pub(crate) fn new(mut flushed: Flushed, uncounted: &Arc<Mutex<Flushed>>) -> Self {
        flushed.add(std::mem::take(&mut *lock(uncounted)));
        let uncounted = uncounted.clone();
        Counted { flushed, uncounted }
    }

    pub(crate) fn left(&self) -> u64 {
        self.flushed.left
    }

    /// Takes it, since it is reported now.
    pub(crate) fn tell(mut self) -> Flushed {
        std::mem::take(&mut self.flushed)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let flushed = std::mem::take(&mut self.flushed);
        lock(&self.uncounted).add(flushed);
    }
}

/// Requests that need no place in a queue, since one of each kind is enough.
#[derive(Debug, Default)]
pub(crate) struct Requests {
    pub(crate) close: Option<CloseRequest>,
}

/// To close: of several calls the earliest deadline counts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CloseRequest {
    pub(crate) until: Instant,
    pub(crate) wait_for_handler: bool,
}

impl CloseRequest {
    pub(crate) fn and(self, other: Option<CloseRequest>) -> Self {
        other.map_or(self, |other| CloseRequest {
            until: self.until.min(other.until),
            // If a handler closes, no close may wait for that handler.
            wait_for_handler: self.wait_for_handler && other.wait_for_handler,
        })
    }
}
