//! The queue of a publisher without a store: in memory, bounded, and empty after every link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use amps_store::{
    AppendError, Appended, Batch, Bounds, Durable, Envelope, EnvelopeError, Level, MessageRef,
    Numbers, Observer, PublishStore, ReadError, Rebase, Rejected, Rejection, Signal, StoreError,
    StoredMessage,
};

use crate::cut;

/// Bytes of messages that wait for their link; the last one may exceed them.
const MOST_BYTES: usize = 1 << 20;

/// What a message costs beside its bytes.
const EACH: usize = 128;

/// Messages that stand together, and their bytes.
const TOGETHER: (usize, usize) = (64, 16 << 10);

/// Most messages that may wait for their acks, whatever the application allows: a server that
/// acks nothing costs no more memory than these.
pub const MOST_UNACKED: u64 = 1 << 16;

/// The highest number there is: no grant is ever asked for.
const NO_GRANT: u64 = (1 << 63) - 1;

/// Where messages wait that no store keeps: until a link takes them, and those that ask for an ack
/// until it comes.
///
/// It takes messages while there is a link, and each goes out once at most: when the link ends,
/// what it did not take is gone, and of what it took and no ack named nothing is known. So it is a
/// [`PublishStore`] in form, which lets an [`Engine`](crate::Engine) send from it
/// ([`Engine::without_store`](crate::Engine::without_store)), and keeps none of the promises about
/// what outlives a link. A number is given out once in its life: an ack that comes too late names
/// no other message.
pub struct Queue {
    name: String,
    most_unacked: u64,
    state: Mutex<State>,
    observers: Mutex<Vec<Observer>>,
}

#[derive(Default)]
struct State {
    /// There is a link.
    open: bool,
    /// The highest number given out.
    last: u64,
    /// Everything up to here was handed to a link, or is gone with one.
    handed_over: u64,
    /// What was not handed over.
    waiting: VecDeque<Together>,
    /// One of those, empty.
    spare: Option<Batch>,
    /// What it costs.
    bytes: usize,
    /// Those of them that asked for nothing.
    unasked: u64,
    /// Asked for an ack and have none, handed over or not.
    asked: BTreeSet<u64>,
    /// Refused, and the application has not taken the refusal over. They keep their places: a slow
    /// handler holds publishers up, and no refusal is dropped.
    refused: BTreeMap<u64, Rejection>,
    /// Somebody was turned away for want of room.
    owed: bool,
}

struct Together {
    messages: Batch,
    /// So many of them were handed over.
    gone: usize,
}

/// Why a [`Queue`] did not take a message.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Turned {
    /// There is no link, and nothing to keep the message in.
    Offline,
    /// Too many bytes wait for the link.
    Full,
    /// So many messages wait for acks, as many as may, those refused among them that nobody took
    /// over.
    Unacked(u64),
    /// It cannot be written down.
    Envelope(EnvelopeError),
}

impl fmt::Display for Turned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Turned::Offline => {
                f.write_str("there is no link, and nothing to keep the message in; wait for one")
            }
            Turned::Full => f.write_str("too much waits for the link; wait until it took some"),
            Turned::Unacked(most) => write!(
                f,
                "{most} messages wait for their acks, as many as may; wait for some of them"
            ),
            Turned::Envelope(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for Turned {}

impl From<EnvelopeError> for Turned {
    fn from(error: EnvelopeError) -> Self {
        Turned::Envelope(error)
    }
}

/// What a link left behind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct LeftBehind {
    /// It concerns numbers up to here.
    pub(crate) through: u64,
    /// Messages of which nothing is known now.
    pub(crate) unknown: u64,
    /// Messages that the link never took.
    pub(crate) unsent: u64,
}

impl fmt::Debug for Queue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Queue")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Queue {
    /// An empty one, for the client of this name. `most_unacked`: so many messages may wait for
    /// their acks, at least 1 and at most [`MOST_UNACKED`].
    pub fn new(name: impl Into<String>, most_unacked: u64) -> Self {
        Queue {
            name: name.into(),
            most_unacked: most_unacked.clamp(1, MOST_UNACKED),
            state: Mutex::default(),
            observers: Mutex::default(),
        }
    }

    /// Takes a message, which goes out on the link that there is now or not at all; its number.
    /// `asks`: it asks for an ack.
    ///
    /// # Errors
    /// It is not taken. After [`Turned::Full`] and [`Turned::Unacked`] there is a
    /// [`Signal::Room`] when to try again.
    pub fn push(&self, envelope: &Envelope<'_>, payload: &[u8], asks: bool) -> Result<u64, Turned> {
        let state = &mut *self.state();
        if !state.open {
            return Err(Turned::Offline);
        }
        if state.bytes >= MOST_BYTES {
            state.owed = true;
            return Err(Turned::Full);
        }
        if asks && state.places() >= self.most_unacked {
            state.owed = true;
            return Err(Turned::Unacked(self.most_unacked));
        }
        let sequence = state.last + 1;
        let cost = state.put(sequence, envelope, payload)?;
        state.bytes += cost;
        state.last = sequence;
        match asks {
            true => drop(state.asked.insert(sequence)),
            false => state.unasked += 1,
        }
        Ok(sequence)
    }

    /// The highest number given out.
    pub fn last(&self) -> u64 {
        self.state().last
    }

    /// Whether everything up to `sequence` was handed to a link, or is gone with one.
    pub fn has_handed_over(&self, sequence: u64) -> bool {
        self.state().handed_over >= sequence
    }

    /// Messages up to `through` that asked for an ack and have none.
    pub fn unacked(&self, through: u64) -> u64 {
        self.state().asked.range(..=through).count() as u64
    }

    /// Whoever sent from it is gone: it takes nothing more, and what it held is gone as well.
    pub fn end(&self) {
        self.link_lost();
    }

    /// A link takes messages.
    pub(crate) fn open(&self) {
        self.state().open = true;
    }

    /// Those of `first..=last` that ask for an ack, in order, into `into`.
    pub(crate) fn asked(&self, first: u64, last: u64, into: &mut Vec<u64>) {
        into.clear();
        into.extend(self.state().asked.range(first..=last));
    }

    /// The link took everything up to `last`: what asked for no ack is done with that.
    pub(crate) fn handed_over(&self, last: u64) {
        let mut state = self.state();
        state.handed_over = state.handed_over.max(last);
        while state.take_out(last) {}
        self.tell_of_room(state);
    }

    /// The link is gone, and what it did not take with it.
    pub(crate) fn link_lost(&self) -> LeftBehind {
        let mut state = self.state();
        let unsent = state.last - state.handed_over;
        let left = LeftBehind {
            through: state.last,
            unknown: state.unasked + state.asked.len() as u64,
            unsent,
        };
        state.open = false;
        state.handed_over = state.last;
        state.waiting.clear();
        state.spare = None;
        state.bytes = 0;
        state.unasked = 0;
        state.asked.clear();
        // Who waits learns that there is no link.
        self.tell_of_room(state);
        left
    }

    fn tell_of_room(&self, mut state: MutexGuard<'_, State>) {
        if !std::mem::take(&mut state.owed) {
            return;
        }
        drop(state);
        let mut observers = self.observers();
        observers.retain(|observer| observer(Signal::Room).is_continue());
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn observers(&self) -> MutexGuard<'_, Vec<Observer>> {
        self.observers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Places for acks that are taken.
    fn places(&self) -> u64 {
        (self.asked.len() + self.refused.len()) as u64
    }

    /// What it costs.
    fn put(
        &mut self,
        sequence: u64,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<usize, EnvelopeError> {
        let fits = match self.waiting.back_mut() {
            Some(last) => last.messages.push(sequence, envelope, payload)?,
            None => false,
        };
        if !fits {
            let spare = self.spare.take();
            let mut messages = spare.unwrap_or_else(|| Batch::new(TOGETHER.0, TOGETHER.1));
            // An empty one takes any.
            messages.push(sequence, envelope, payload)?;
            self.waiting.push_back(Together { messages, gone: 0 });
        }
        let last = self.waiting.back().map(|last| &last.messages);
        let message = last.and_then(|messages| messages.get(messages.len() - 1));
        Ok(message.map_or(0, |message| cost(&message)))
    }

    /// Drops the first message that waits, unless it is behind `last`; whether there was one.
    fn take_out(&mut self, last: u64) -> bool {
        let Some(first) = self.waiting.front_mut() else {
            return false;
        };
        let Some(message) = first.messages.get(first.gone) else {
            return false;
        };
        if message.sequence > last {
            return false;
        }
        self.bytes -= cost(&message);
        self.unasked -= u64::from(!self.asked.contains(&message.sequence));
        first.gone += 1;
        if first.gone == first.messages.len()
            && let Some(mut empty) = self.waiting.pop_front()
        {
            empty.messages.clear();
            self.spare = Some(empty.messages);
        }
        true
    }

    /// The lowest number that is not settled.
    fn first_unsettled(&self) -> Option<u64> {
        let waits = (self.handed_over < self.last).then_some(self.handed_over + 1);
        let asked = self.asked.first().copied();
        [waits, asked].into_iter().flatten().min()
    }
}

fn cost(message: &MessageRef<'_>) -> usize {
    message.size() + EACH
}

/// What an [`Engine`](crate::Engine) needs to send from it. Settled is what is done with: an ack
/// came, or none was asked for and a link took the message.
impl PublishStore for Queue {
    /// As [`push`](Queue::push), of a message that asks for no ack.
    fn append(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError> {
        let pushed = self.push(envelope, payload, false);
        let sequence = pushed.map_err(|turned| match turned {
            Turned::Envelope(error) => AppendError::Envelope(error),
            _ => AppendError::Store(StoreError::Closed),
        })?;
        let ordinal = sequence;
        Ok(Appended { sequence, ordinal })
    }

    fn read_unsettled(&self, from: u64, through: u64, into: &mut Batch) -> Result<(), ReadError> {
        into.clear();
        let state = self.state();
        let waiting = state.waiting.iter().flat_map(|together| {
            let all = together.messages.iter();
            all.skip(together.gone)
        });
        for message in waiting {
            let follows = message.sequence >= from;
            if message.sequence > through || follows && !into.push_ref(&message) {
                break;
            }
        }
        Ok(())
    }

    /// Nothing keeps a message that was sent.
    fn get(&self, _: u64, _: &mut StoredMessage) -> Result<bool, ReadError> {
        Ok(false)
    }

    fn bounds(&self) -> Bounds {
        let state = self.state();
        let first_unsettled = state.first_unsettled();
        Bounds {
            first_unsettled,
            last: state.last,
            next: state.last + 1,
            floor: first_unsettled.map_or(state.last, |first| first - 1),
            unsettled: state.unasked + state.asked.len() as u64,
            rejections: state.refused.len() as u64,
            live_bytes: state.bytes as u64,
            limit_bytes: MOST_BYTES as u64,
        }
    }

    fn is_unsettled(&self, sequence: u64) -> bool {
        let state = self.state();
        let waits = sequence > state.handed_over && sequence <= state.last;
        waits || state.asked.contains(&sequence)
    }

    /// No figure of a server counts these numbers.
    fn settle_through(&self, _: u64) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn settle(&self, sequences: &[u64]) -> Result<u64, StoreError> {
        let mut state = self.state();
        let through = state.handed_over;
        let handed_over = sequences.iter().filter(|sequence| **sequence <= through);
        let settled = handed_over.filter(|sequence| state.asked.remove(sequence));
        let count = settled.count() as u64;
        self.tell_of_room(state);
        Ok(count)
    }

    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError> {
        let mut state = self.state();
        if state.refused.contains_key(&sequence) {
            return Ok(Rejected::Known);
        }
        if sequence > state.handed_over || !state.asked.remove(&sequence) {
            return Ok(Rejected::Unknown);
        }
        let kept = cut(reason);
        let rejection = Rejection {
            sequence,
            reason: kept.to_owned(),
            reason_cut: kept.len() < reason.len(),
            at,
            late: false,
        };
        state.refused.insert(sequence, rejection);
        let (ordinal, late) = (sequence, false);
        Ok(Rejected::Logged { ordinal, late })
    }

    fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        let mut state = self.state();
        let waited = state.refused.remove(&sequence).is_some();
        self.tell_of_room(state);
        Ok(waited)
    }

    fn requeue(&self, _: u64, _: u64) -> Result<Option<Appended>, AppendError> {
        Ok(None)
    }

    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        let state = self.state();
        let waiting = state.refused.range(from..).take(limit);
        waiting.map(|(_, rejection)| rejection.clone()).collect()
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            grant: NO_GRANT,
            first_of_run: 1,
            ..Numbers::default()
        }
    }

    fn raise_grant(&self, _: u64) -> Result<(), StoreError> {
        Err(StoreError::InMemory)
    }

    fn rebase(&self, _: u64) -> Result<Rebase, StoreError> {
        Err(StoreError::InMemory)
    }

    fn level(&self) -> Level {
        Level::Os
    }

    fn durable(&self) -> Durable {
        Durable::default()
    }

    fn request_sync(&self) -> Result<(), StoreError> {
        Err(StoreError::InMemory)
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        Err(StoreError::InMemory)
    }

    fn observe(&self, observer: Observer) {
        self.observers().push(observer);
    }

    fn client_name(&self) -> String {
        self.name.clone()
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        None
    }

    /// As [`end`](Queue::end).
    fn close(&self, _: u64) -> Result<(), StoreError> {
        self.end();
        Ok(())
    }
}
