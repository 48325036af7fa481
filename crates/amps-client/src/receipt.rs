//! Receipts: what became of one message, for whoever cares to ask.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use amps_store::{PublishStore, StoreError};
use tokio::sync::watch;

use crate::delivery::Via;
use crate::protocol::Reason;

/// What became of a message, and on what evidence (charter §1).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The server settled it as a success.
    Persisted {
        /// The evidence.
        via: Via,
    },
    /// The server refused it; the refusal is in the store until it is accepted.
    Rejected {
        /// The server's reason.
        reason: Reason,
    },
    /// Nothing is known: it is still in the store and will be resent, or it was sent
    /// without a store.
    Unknown,
}

/// Held by a publisher that wants to know what became of its message. Awaiting it gives the
/// [`Outcome`]; [`Outcome::Unknown`] if the client is closed first. A receipt that is
/// dropped costs nothing, and says nothing about the message, which stays on its way.
pub struct Receipt {
    sequence: u64,
    watched: Option<Arc<Watched>>,
}

/// What receipts share with the client: one counter each, and nothing per message.
pub(crate) struct Watched {
    pub(crate) book: Book,
    pub(crate) store: Arc<dyn PublishStore>,
    /// Counts the moves of the store's durable mark, a failed sync included.
    pub(crate) durable: watch::Sender<u64>,
    /// Apart from the book: the store may tell of a failed sync from inside an append, and
    /// appends run under the book's lock.
    sync_error: Mutex<Option<StoreError>>,
}

impl Watched {
    pub(crate) fn new(store: Arc<dyn PublishStore>) -> Self {
        Watched {
            book: Book::default(),
            store,
            durable: watch::Sender::new(0),
            sync_error: Mutex::new(None),
        }
    }

    /// The client is gone: nobody waits any longer, for an outcome or for durability.
    pub(crate) fn close(&self) {
        self.book.close();
        self.durable.send_modify(|moves| *moves += 1);
    }

    pub(crate) fn sync_failed(&self, error: StoreError) {
        self.sync_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get_or_insert(error);
    }

    fn sync_error(&self) -> Option<StoreError> {
        self.sync_error
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

impl Receipt {
    pub(crate) fn new(sequence: u64, watched: Arc<Watched>) -> Self {
        Receipt {
            sequence,
            watched: Some(watched),
        }
    }

    /// For a message that went out without a store.
    pub(crate) fn unknown() -> Self {
        Receipt {
            sequence: 0,
            watched: None,
        }
    }

    /// The message's sequence, for the rest of its life; 0 without a store.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Waits until a power cut cannot lose the message any more. Works at every level: at
    /// `Level::Os` it asks for a sync.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// A sync failed, now or before: the store can make nothing durable any more. Or the
    /// store is in memory ([`StoreError::InMemory`]). Or the client is closed and left the
    /// message undurable, or the message went out without a store, which makes nothing
    /// durable ([`StoreError::Closed`]).
    pub async fn durable(&self) -> Result<(), StoreError> {
        let Some(watched) = &self.watched else {
            return Err(StoreError::Closed);
        };
        let mut moved = watched.durable.subscribe();
        loop {
            moved.borrow_and_update();
            if watched.store.durable().sequence >= self.sequence {
                return Ok(());
            }
            if let Some(error) = watched.sync_error() {
                return Err(error);
            }
            if watched.book.is_closed() {
                return Err(StoreError::Closed);
            }
            watched.store.request_sync()?;
            if moved.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }
}

impl Future for Receipt {
    type Output = Outcome;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        match &self.watched {
            Some(watched) => watched.book.poll(self.sequence, cx.waker()),
            None => Poll::Ready(Outcome::Unknown),
        }
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let Some(watched) = &self.watched {
            watched.book.released(self.sequence);
        }
    }
}

impl fmt::Debug for Receipt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receipt")
            .field("sequence", &self.sequence)
            .finish_non_exhaustive()
    }
}

/// Outcomes for the receipts that are held.
///
/// Memory: successes are a few ranges, since acks are cumulative; exceptions (refusals,
/// single settlements) and wakers are kept only for numbers from the oldest held receipt
/// on. Held receipts are counted in chunks of [`CHUNK`] numbers.
#[derive(Debug, Default)]
pub(crate) struct Book {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    held: VecDeque<u32>,
    first_chunk: u64,
    /// Ends of ranges settled with the same evidence, rising.
    ranges: VecDeque<(u64, Via)>,
    exceptions: BTreeMap<u64, Outcome>,
    waiting: BTreeMap<u64, Waker>,
    closed: bool,
}

const CHUNK: u64 = 256;

impl Book {
    /// Appends with `append` and counts the receipt in one step, so that no outcome can
    /// come in between.
    pub(crate) fn register<E>(&self, append: impl FnOnce() -> Result<u64, E>) -> Result<u64, E> {
        let mut state = self.lock();
        let sequence = append()?;
        state.hold(sequence);
        Ok(sequence)
    }

    pub(crate) fn settled_through(&self, through: u64, via: Via) {
        let mut state = self.lock();
        match state.ranges.back_mut() {
            Some((end, with)) if *with == via => *end = through.max(*end),
            Some((end, _)) if *end >= through => {}
            _ => state.ranges.push_back((through, via)),
        }
        state.forget();
        let later = state.waiting.split_off(&(through + 1));
        let woken = std::mem::replace(&mut state.waiting, later);
        drop(state);
        woken.into_values().for_each(Waker::wake);
    }

    pub(crate) fn settled_one(&self, sequence: u64, outcome: Outcome) {
        let mut state = self.lock();
        if state.is_held(sequence) {
            state.exceptions.insert(sequence, outcome);
        }
        let woken = state.waiting.remove(&sequence);
        drop(state);
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    /// No outcome is told any more; every receipt without one is [`Outcome::Unknown`].
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        let woken = std::mem::take(&mut state.waiting);
        drop(state);
        woken.into_values().for_each(Waker::wake);
    }

    fn is_closed(&self) -> bool {
        self.lock().closed
    }

    fn poll(&self, sequence: u64, waker: &Waker) -> Poll<Outcome> {
        let mut state = self.lock();
        if let Some(outcome) = state.outcome(sequence) {
            return Poll::Ready(outcome);
        }
        if state.closed {
            return Poll::Ready(Outcome::Unknown);
        }
        state.waiting.insert(sequence, waker.clone());
        Poll::Pending
    }

    fn released(&self, sequence: u64) {
        let mut state = self.lock();
        state.waiting.remove(&sequence);
        let index = (sequence / CHUNK).checked_sub(state.first_chunk);
        if let Some(count) = index.and_then(|index| state.held.get_mut(index as usize)) {
            *count = count.saturating_sub(1);
        }
        // The last one stays: the next receipt is most likely counted there.
        if state.held.len() > 1 && state.held.front() == Some(&0) {
            while state.held.len() > 1 && state.held.front() == Some(&0) {
                state.held.pop_front();
                state.first_chunk += 1;
            }
            state.forget();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    #[inline]
    fn hold(&mut self, sequence: u64) {
        let chunk = sequence / CHUNK;
        if let Some(count) = self.held.get_mut((chunk - self.first_chunk) as usize) {
            *count += 1;
            return;
        }
        if self.held.iter().all(|count| *count == 0) {
            // Nobody asks for anything before.
            self.held.clear();
            self.first_chunk = chunk;
            self.forget();
        }
        let index = (chunk - self.first_chunk) as usize;
        self.held.resize(index + 1, 0);
        self.held[index] += 1;
    }

    fn outcome(&self, sequence: u64) -> Option<Outcome> {
        if let Some(outcome) = self.exceptions.get(&sequence) {
            return Some(outcome.clone());
        }
        let range = self.ranges.iter().find(|(end, _)| sequence <= *end);
        range.map(|(_, via)| Outcome::Persisted { via: *via })
    }

    fn is_held(&self, sequence: u64) -> bool {
        let index = (sequence / CHUNK).checked_sub(self.first_chunk);
        index
            .and_then(|index| self.held.get(index as usize))
            .is_some_and(|count| *count > 0)
    }

    /// Drops what no held receipt can ask for. Of the ranges the last one stays: it says
    /// where the next begins.
    fn forget(&mut self) {
        let oldest = match self.held.is_empty() {
            true => u64::MAX,
            false => self.first_chunk * CHUNK,
        };
        while self.ranges.len() > 1 && self.ranges.front().is_some_and(|(end, _)| *end < oldest) {
            self.ranges.pop_front();
        }
        if oldest == u64::MAX {
            self.exceptions.clear();
        } else if self
            .exceptions
            .first_key_value()
            .is_some_and(|(first, _)| *first < oldest)
        {
            self.exceptions = self.exceptions.split_off(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(book: &Book, sequence: u64) {
        let _ = book.register(|| Ok::<_, ()>(sequence));
    }

    fn look(book: &Book, sequence: u64) -> Poll<Outcome> {
        book.poll(sequence, Waker::noop())
    }

    #[test]
    fn each_outcome_keeps_its_evidence() {
        let book = Book::default();
        (1..=6).for_each(|sequence| hold(&book, sequence));
        book.settled_through(2, Via::Ack);
        book.settled_one(
            3,
            Outcome::Rejected {
                reason: Reason::new("no"),
            },
        );
        book.settled_through(5, Via::Logon);
        assert_eq!(
            look(&book, 1),
            Poll::Ready(Outcome::Persisted { via: Via::Ack })
        );
        assert_eq!(
            look(&book, 3),
            Poll::Ready(Outcome::Rejected {
                reason: Reason::new("no")
            })
        );
        assert_eq!(
            look(&book, 4),
            Poll::Ready(Outcome::Persisted { via: Via::Logon })
        );
        assert_eq!(look(&book, 6), Poll::Pending);
        book.close();
        assert_eq!(look(&book, 6), Poll::Ready(Outcome::Unknown));
    }

    #[test]
    fn memory_follows_the_receipts_held_and_not_the_messages_sent() {
        let book = Book::default();
        for sequence in 1..100_000 {
            hold(&book, sequence);
            book.settled_one(sequence, Outcome::Persisted { via: Via::Ack });
            book.settled_through(
                sequence,
                if sequence % 2 == 0 {
                    Via::Ack
                } else {
                    Via::Logon
                },
            );
            book.released(sequence);
        }
        let state = book.lock();
        assert!(state.held.len() <= 1);
        assert!(
            state.ranges.len() <= 2 + CHUNK as usize,
            "{}",
            state.ranges.len()
        );
        assert!(state.exceptions.len() <= CHUNK as usize);
        assert!(state.waiting.is_empty());
    }
}
