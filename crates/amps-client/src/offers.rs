//! What the driver tells the task that calls the failed-write handler.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use amps_store::{PublishStore, Rejection};
use tokio::sync::Notify;
use tokio::time::{Instant, timeout_at};

/// Refusals looked at together.
pub(crate) const PAGE: usize = 64;

/// Refused messages whose attempts are remembered.
const COUNTED: usize = 1 << 16;

/// What the driver tells the task that calls handlers.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    state: Mutex<OfferState>,
    changed: Notify,
    /// A refusal needs no handler any more.
    returned: Notify,
}

#[derive(Debug, Default)]
struct OfferState {
    /// There is a handler, and the task that calls it.
    active: bool,
    /// The handler is at work on this one.
    running: Option<u64>,
    /// Refusals from here on may not have been offered yet.
    from: u64,
    /// Offered in this run and not taken over.
    declined: BTreeSet<u64>,
    /// How often each message refused in this run was sent, until somebody took it over.
    attempts: BTreeMap<u64, u32>,
    /// That these cannot be read was told.
    unreadable: BTreeSet<u64>,
    /// The application has the client, and the handler may be called.
    released: bool,
    /// End once nothing is left to offer.
    finish: bool,
    /// End now.
    stop: bool,
}

impl Offers {
    /// A refusal is in the log.
    pub(crate) fn refused(&self, sequence: u64, attempts: u32) {
        let mut state = self.lock();
        state.from = state.from.min(sequence);
        state.attempts.insert(sequence, attempts);
        if state.attempts.len() > COUNTED {
            state.attempts.pop_first();
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Whether it is to be told that this message cannot be read: once, whoever finds it first.
    pub(crate) fn tells_unreadable(&self, sequence: u64) -> bool {
        let mut state = self.lock();
        let new = state.unreadable.insert(sequence);
        if state.unreadable.len() > COUNTED {
            state.unreadable.pop_first();
        }
        new
    }

    /// The handler may be called from here on.
    pub(crate) fn release(&self) {
        self.lock().released = true;
        self.changed.notify_one();
    }

    /// Offers everything that waits once more.
    pub(crate) fn again(&self) {
        let mut state = self.lock();
        state.from = 0;
        state.declined.clear();
        state.unreadable.clear();
        drop(state);
        self.changed.notify_one();
    }

    /// Nobody needs to know of this refusal any more.
    pub(crate) fn forget(&self, sequence: u64) {
        let mut state = self.lock();
        state.declined.remove(&sequence);
        state.attempts.remove(&sequence);
        drop(state);
        self.returned.notify_waiters();
    }

    /// The handler is through with this one; with `declined`, it waits.
    pub(crate) fn is_through(&self, sequence: u64, declined: bool) {
        let mut state = self.lock();
        state.running = None;
        match declined {
            true => drop(state.declined.insert(sequence)),
            false => drop(state.attempts.remove(&sequence)),
        }
        drop(state);
        self.returned.notify_waiters();
    }

    /// Refusals up to `through` whose handler has not returned.
    pub(crate) fn open(&self, store: &dyn PublishStore, through: u64) -> u64 {
        let state = self.lock();
        state.open(store, through).count() as u64
    }

    /// Waits until the handler has returned for every refusal up to `through`, or nobody calls
    /// it any more: then they are known to wait. How many are left when the time is over.
    pub(crate) async fn returned(
        &self,
        store: &dyn PublishStore,
        through: u64,
        until: Option<Instant>,
    ) -> u64 {
        let done = || self.lock().open(store, through).next().is_none();
        loop {
            // Registered before the look: one that returns in between is not missed.
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if done() {
                return 0;
            }
            match until {
                None => returned.await,
                Some(until) => {
                    if timeout_at(until, returned).await.is_err() {
                        return self.open(store, through);
                    }
                }
            }
        }
    }

    /// Ends the task once everything that waits was offered.
    pub(crate) fn finish(&self) {
        self.lock().finish = true;
        self.changed.notify_one();
    }

    /// Ends the task once the handler that runs is done.
    pub(crate) fn stop(&self) {
        self.lock().stop = true;
        self.changed.notify_one();
    }

    /// There is a handler, and a task that calls it.
    pub(crate) fn begin(&self) {
        self.lock().active = true;
    }

    /// Nobody calls the handler any more.
    pub(crate) fn end(&self) {
        let mut state = self.lock();
        state.active = false;
        state.running = None;
        drop(state);
        self.returned.notify_waiters();
    }

    /// How often this run sent a message before it was refused.
    pub(crate) fn attempts(&self, sequence: u64) -> u32 {
        self.lock().attempts.get(&sequence).copied().unwrap_or(0)
    }

    /// The next refusal for the handler; waits for one. None: the task ends.
    pub(crate) async fn next(&self, store: &dyn PublishStore) -> Option<Rejection> {
        loop {
            {
                let mut state = self.lock();
                if state.stop {
                    return None;
                }
                while state.released {
                    let page = store.rejections(state.from, PAGE);
                    let Some(last) = page.last().map(|rejection| rejection.sequence) else {
                        break;
                    };
                    let open = page
                        .into_iter()
                        .find(|found| !state.declined.contains(&found.sequence));
                    if let Some(rejection) = open {
                        state.from = rejection.sequence;
                        state.running = Some(rejection.sequence);
                        return Some(rejection);
                    }
                    state.from = last + 1;
                }
                if state.finish {
                    return None;
                }
            }
            self.changed.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, OfferState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OfferState {
    /// Refusals up to `through` whose handler has not returned, in order of sequence.
    fn open<'a>(
        &'a self,
        store: &'a dyn PublishStore,
        through: u64,
    ) -> impl Iterator<Item = u64> + 'a {
        let running = self.running.filter(|sequence| *sequence <= through);
        let mut from = self.from;
        let pages = std::iter::from_fn(move || {
            let page = store.rejections(from, PAGE);
            from = page.last()?.sequence + 1;
            Some(page)
        });
        let waiting = pages
            .flatten()
            .map(|found| found.sequence)
            .take_while(move |sequence| *sequence <= through)
            .filter(move |sequence| !self.declined.contains(sequence))
            .filter(move |sequence| running != Some(*sequence));
        let waiting = self.active.then_some(waiting).into_iter().flatten();
        running.into_iter().chain(waiting)
    }
}
