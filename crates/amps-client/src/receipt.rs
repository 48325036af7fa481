//! Receipts: what became of one message, for publishers that want to know.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use amps_store::{PublishStore, StoreError};
use tokio::sync::watch;

use crate::delivery::Via;
use crate::protocol::Reason;
use crate::wire::asked_id;

/// What became of a message, and on what evidence (`docs/promises.md`).
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Outcome {
    /// The server settled it as a success.
    Persisted {
        /// The evidence.
        via: Via,
    },
    /// The server refused it; the refusal is in the store, if there is one, until it is accepted.
    Rejected {
        /// The server's reason.
        reason: Reason,
    },
    /// Nothing is known. With a store: the message is still in it and will be sent again. Without
    /// one: no ack was asked for ([`Message::ask_ack`](crate::Message::ask_ack)), or the link or
    /// the client ended before the ack came.
    Unknown,
}

/// Tells a publisher what became of its message. Awaiting it gives the [`Outcome`], which is
/// [`Outcome::Unknown`] if the client is closed first. Dropping a receipt costs nothing and
/// changes nothing about the message.
pub struct Receipt {
    sequence: u64,
    of: Of,
    /// Its waker is stored in the book.
    waits: bool,
}

/// Where its outcome comes from.
enum Of {
    /// From nowhere: sent without a store, and without asking for an ack.
    Nothing,
    Stored(Arc<Held>),
    Asked(Box<Asked>),
}

/// Without a store: the ack that one message asked for.
struct Asked {
    command_id: String,
    number: u64,
    held: Arc<Held>,
}

/// Shared by all receipts for a chunk of numbers: its reference count tells how many are held, so
/// that a receipt more or less costs no lock.
struct Held {
    chunk: u64,
    watched: Arc<Watched>,
}

/// What receipts share with the client: one counter each, and nothing per message.
pub(crate) struct Watched {
    pub(crate) book: Book,
    pub(crate) store: Arc<dyn PublishStore>,
    /// Counts how often the store's durable mark moved, and what puts an end to that.
    pub(crate) durable: watch::Sender<u64>,
    /// The store's file was removed, and what was durable in it is lost.
    pub(crate) gone: AtomicBool,
    /// The store said that nothing becomes durable any more.
    pub(crate) sync_failed: AtomicBool,
}

impl Watched {
    pub(crate) fn new(store: Arc<dyn PublishStore>) -> Self {
        Watched {
            book: Book::default(),
            store,
            durable: watch::Sender::new(0),
            gone: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
        }
    }

    /// The client is gone: nobody waits any longer, for an outcome or for durability.
    pub(crate) fn close(&self) {
        self.book.close();
        self.durable.send_modify(|moves| *moves += 1);
    }
}

impl Receipt {
    /// For a message that went out without a store.
    pub(crate) fn unknown() -> Self {
        Receipt::of(0, Of::Nothing)
    }

    fn of(sequence: u64, of: Of) -> Self {
        Receipt {
            sequence,
            of,
            waits: false,
        }
    }

    /// Where its outcome is told.
    fn entry(&self) -> Option<(&Book, u64)> {
        match &self.of {
            Of::Nothing => None,
            Of::Stored(held) => Some((&held.watched.book, self.sequence)),
            Of::Asked(asked) => Some((&asked.held.watched.book, asked.number)),
        }
    }

    /// Without a store, of a message that [asked for an ack](crate::Message::ask_ack): the id it
    /// went out with, by which [`FailedWrite`](crate::FailedWrite) and
    /// [`UnhandledAck`](crate::UnhandledAck) name it. No other message of this client has it.
    pub fn command_id(&self) -> Option<&str> {
        match &self.of {
            Of::Asked(asked) => Some(&asked.command_id),
            Of::Nothing | Of::Stored(_) => None,
        }
    }

    /// The message's sequence, for the rest of its life; 0 without a store.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Waits until a power cut cannot lose the message any more. Works at every level; at
    /// `Level::Os` it asks for a sync.
    ///
    /// Cancel safe.
    ///
    /// # Errors
    /// A sync failed, now or before, so that nothing in the store can be made durable any more.
    /// Or its file was removed, with what was durable in it ([`StoreError::Gone`]). Or the store
    /// is in memory ([`StoreError::InMemory`]). Or the client was closed before the message was
    /// durable, or the message was sent without a store, which makes nothing durable
    /// ([`StoreError::Closed`]).
    pub async fn durable(&self) -> Result<(), StoreError> {
        let Of::Stored(held) = &self.of else {
            return Err(StoreError::Closed);
        };
        let watched = &held.watched;
        let mut moved = watched.durable.subscribe();
        loop {
            moved.borrow_and_update();
            if watched.gone.load(Ordering::Acquire) {
                return Err(StoreError::Gone);
            }
            if watched.store.durable().sequence >= self.sequence {
                return Ok(());
            }
            // First of all, since the store knows why nothing becomes durable any more.
            watched.store.request_sync()?;
            if watched.sync_failed.load(Ordering::Acquire) {
                return Err(StoreError::SyncFailed("so the store says".into()));
            }
            if watched.book.is_closed() {
                return Err(StoreError::Closed);
            }
            if moved.changed().await.is_err() {
                return Err(StoreError::Closed);
            }
        }
    }
}

impl Future for Receipt {
    type Output = Outcome;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Outcome> {
        let receipt = &mut *self;
        let Some((book, sequence)) = receipt.entry() else {
            return Poll::Ready(Outcome::Unknown);
        };
        let polled = book.poll(sequence, cx.waker());
        receipt.waits |= polled.is_pending();
        polled
    }
}

impl Drop for Receipt {
    fn drop(&mut self) {
        if let (true, Some((book, sequence))) = (self.waits, self.entry()) {
            book.waits_no_more(sequence);
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

/// The outcomes that held receipts may ask for.
///
/// Memory: successes are a few ranges, since acks are cumulative. Exceptions (refusals, single
/// settlements) and wakers are kept only for numbers from the oldest held receipt on. Held
/// receipts are counted in chunks of [`CHUNK`] numbers.
#[derive(Default)]
pub(crate) struct Book {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The chunk in which the next receipt will probably be counted.
    current: Option<Arc<Held>>,
    /// The chunks that receipts may hold, by number.
    held: VecDeque<(u64, Weak<Held>)>,
    /// Ends of ranges settled with the same evidence, rising; with none: nothing is known.
    ranges: VecDeque<(u64, Option<Via>)>,
    exceptions: BTreeMap<u64, Outcome>,
    waiting: BTreeMap<u64, Waker>,
    closed: bool,
}

const CHUNK: u64 = 256;

impl Watched {
    /// Calls `append` and counts the receipt in one step, so that no outcome can come in between.
    pub(crate) fn register<E>(
        self: &Arc<Self>,
        append: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Receipt, E> {
        let mut state = self.book.lock();
        let sequence = append()?;
        let held = state.hold(sequence, self);
        Ok(Receipt::of(sequence, Of::Stored(held)))
    }

    /// The same for a message that no store keeps, and that asks for an ack.
    pub(crate) fn register_asked<E>(
        self: &Arc<Self>,
        push: impl FnOnce() -> Result<u64, E>,
    ) -> Result<Receipt, E> {
        let mut state = self.book.lock();
        let number = push()?;
        let held = state.hold(number, self);
        drop(state);
        let command_id = asked_id(number);
        let asked = Asked {
            command_id,
            number,
            held,
        };
        Ok(Receipt::of(0, Of::Asked(Box::new(asked))))
    }
}

impl Book {
    pub(crate) fn settled_through(&self, through: u64, via: Via) {
        self.through(through, Some(via));
    }

    /// Nothing will be known of what has no outcome up to here.
    pub(crate) fn lost_through(&self, through: u64) {
        self.through(through, None);
    }

    fn through(&self, through: u64, via: Option<Via>) {
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
        state.forget();
        let woken = state.waiting.remove(&sequence);
        drop(state);
        if let Some(waker) = woken {
            waker.wake();
        }
    }

    /// From now on no outcome is told, and every receipt without one is [`Outcome::Unknown`].
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        // It holds a reference to this book.
        state.current = None;
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

    fn waits_no_more(&self, sequence: u64) {
        self.lock().waiting.remove(&sequence);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    #[inline]
    fn hold(&mut self, sequence: u64, watched: &Arc<Watched>) -> Arc<Held> {
        let chunk = sequence / CHUNK;
        match &self.current {
            Some(held) if held.chunk == chunk => held.clone(),
            _ => self.begin(chunk, watched),
        }
    }

    #[cold]
    fn begin(&mut self, chunk: u64, watched: &Arc<Watched>) -> Arc<Held> {
        let watched = watched.clone();
        let held = Arc::new(Held { chunk, watched });
        self.held.push_back((chunk, Arc::downgrade(&held)));
        // A closed client must be freed with its last receipt.
        self.current = (!self.closed).then(|| held.clone());
        self.forget();
        held
    }

    fn outcome(&self, sequence: u64) -> Option<Outcome> {
        if let Some(outcome) = self.exceptions.get(&sequence) {
            return Some(outcome.clone());
        }
        let range = self.ranges.iter().find(|(end, _)| sequence <= *end);
        range.map(|(_, via)| via.map_or(Outcome::Unknown, |via| Outcome::Persisted { via }))
    }

    fn is_held(&self, sequence: u64) -> bool {
        let chunk = sequence / CHUNK;
        // The book's own reference to the current chunk does not count.
        let nobody = match &self.current {
            Some(current) if current.chunk == chunk => 1,
            _ => 0,
        };
        let at = self.held.binary_search_by_key(&chunk, |(chunk, _)| *chunk);
        at.is_ok_and(|at| self.held[at].1.strong_count() > nobody)
    }

    /// Drops what no held receipt can ask for. The last range stays, since it says where the next
    /// one begins.
    fn forget(&mut self) {
        while self
            .held
            .front()
            .is_some_and(|(_, held)| held.strong_count() == 0)
        {
            self.held.pop_front();
        }
        let oldest = self
            .held
            .front()
            .map_or(u64::MAX, |(chunk, _)| chunk * CHUNK);
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

    fn watched() -> Arc<Watched> {
        let options = amps_store::Options::new().client_name("t");
        Arc::new(Watched::new(Arc::new(
            amps_store::Store::memory(options).unwrap(),
        )))
    }

    fn hold(watched: &Arc<Watched>, sequence: u64) -> Receipt {
        watched.register(|| Ok::<_, ()>(sequence)).unwrap()
    }

    fn look(book: &Book, sequence: u64) -> Poll<Outcome> {
        book.poll(sequence, Waker::noop())
    }

    #[test]
    fn each_outcome_keeps_its_evidence() {
        let watched = watched();
        let book = &watched.book;
        let _held: Vec<_> = (1..=6).map(|sequence| hold(&watched, sequence)).collect();
        book.settled_through(2, Via::Ack);
        book.settled_one(
            3,
            Outcome::Rejected {
                reason: Reason::new("no"),
            },
        );
        book.settled_through(5, Via::Logon);
        assert_eq!(
            look(book, 1),
            Poll::Ready(Outcome::Persisted { via: Via::Ack })
        );
        assert_eq!(
            look(book, 3),
            Poll::Ready(Outcome::Rejected {
                reason: Reason::new("no")
            })
        );
        assert_eq!(
            look(book, 4),
            Poll::Ready(Outcome::Persisted { via: Via::Logon })
        );
        assert_eq!(look(book, 6), Poll::Pending);
        book.close();
        assert_eq!(look(book, 6), Poll::Ready(Outcome::Unknown));
    }

    #[test]
    fn memory_follows_the_receipts_held_and_not_the_messages_sent() {
        let watched = watched();
        let book = &watched.book;
        for sequence in 1..100_000 {
            let receipt = hold(&watched, sequence);
            book.settled_one(sequence, Outcome::Persisted { via: Via::Ack });
            book.settled_through(
                sequence,
                if sequence % 2 == 0 {
                    Via::Ack
                } else {
                    Via::Logon
                },
            );
            drop(receipt);
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

    #[test]
    fn what_receipts_may_ask_for_stays_as_long_as_they_are_held() {
        let watched = watched();
        let book = &watched.book;
        let first = hold(&watched, 1);
        let later: Vec<_> = (2..5000).map(|sequence| hold(&watched, sequence)).collect();
        let single = Outcome::Persisted { via: Via::Logon };
        for sequence in 1..5000 {
            book.settled_one(sequence, single.clone());
        }
        drop(later);
        book.settled_through(5000, Via::Ack);
        let state = book.lock();
        assert_eq!(state.exceptions.len(), 4999);
        drop(state);
        assert_eq!(look(book, 1), Poll::Ready(single));
        drop(first);
        // What nobody can ask for any more is dropped with the next event.
        book.settled_through(5001, Via::Ack);
        let state = book.lock();
        assert_eq!(state.held.len(), 1, "the one where the next is counted");
        assert!(state.exceptions.len() <= CHUNK as usize);
    }

    #[test]
    fn a_receipt_that_is_dropped_leaves_no_waker() {
        let watched = watched();
        let mut receipt = hold(&watched, 1);
        let mut context = Context::from_waker(Waker::noop());
        assert!(Pin::new(&mut receipt).poll(&mut context).is_pending());
        assert_eq!(watched.book.lock().waiting.len(), 1);
        drop(receipt);
        assert!(watched.book.lock().waiting.is_empty());
    }

    #[test]
    fn a_closed_client_goes_with_its_last_receipt() {
        let watched = watched();
        let gone = Arc::downgrade(&watched);
        let before = hold(&watched, 1);
        watched.close();
        let after = hold(&watched, 2);
        drop(watched);
        drop(before);
        assert!(gone.upgrade().is_some());
        drop(after);
        assert!(gone.upgrade().is_none());
    }
}
