//! Refused messages: how the application learns of them, and takes them over.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amps_store::{
    AppendError, EnvelopeError, Level, PublishStore, Rejection, StoreError, StoredMessage,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::client::Client;
use crate::event::Event;
use crate::mailbox::Ask;
use crate::message::Message;
use crate::panics;
use crate::protocol::{AckKind, Reason, Status};
use crate::shared::{Shared, unix_micros};

/// A message the server refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedWrite {
    /// Its sequence; 0 without a store.
    pub sequence: u64,
    /// Without a store: the command id that the message went out with, which
    /// [`Receipt::command_id`](crate::Receipt::command_id) tells.
    pub command_id: Option<String>,
    /// The server's reason, cut to 128 bytes.
    pub reason: Reason,
    /// The reason was longer.
    pub reason_cut: bool,
    /// When the refusal was received: microseconds since the Unix epoch.
    pub at: u64,
    /// It came after a success that covered the message; the receipt stays as resolved.
    pub late: bool,
    /// The message was published by an earlier run of this program.
    pub earlier_run: bool,
    /// How often this run handed the message to a transport until it was refused; 0 when the
    /// refusal comes from an earlier run, or from before 65,536 others that still wait.
    pub attempts: u32,
    /// The original message. `None` when its bytes are gone, which can happen to late
    /// refusals only, or when its envelope is not of a version this program knows
    /// ([`Event::Unreadable`]): no handler is offered that one, and [`Failed::page`] shows it. And
    /// always without a store, which alone would keep it.
    pub original: Option<Message>,
}

/// What nothing was there to take: an ack, a delivery, or a command of the server's that no client
/// knows. Of the records in one frame that no subscription takes, the frame is told once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnhandledAck {
    /// `ack`; `p`, `sow` or `oof` for a delivery; or the first 128 bytes of the unknown command's
    /// name.
    pub command: String,
    /// The kind of ack.
    pub kind: Option<AckKind>,
    /// What it says.
    pub status: Option<Status>,
    /// The server's reason, cut to 128 bytes.
    pub reason: Reason,
    /// The reason was longer.
    pub reason_cut: bool,
    /// The message concerned, if it is one of ours.
    pub sequence: Option<u64>,
    /// The server's own number, if it sent one.
    pub figure: Option<u64>,
    /// The ack's command id, its first 128 bytes if it has more.
    pub command_id: Option<String>,
    /// The subscription or query it names, if it names one, in the server's words: the first 128
    /// bytes.
    pub subscription: Option<String>,
    /// It is a refusal that waits in the store; see [`Failed`].
    pub waits_in_store: bool,
    /// It was refused in an earlier run, and this is what the log has of it: no kind of ack, no
    /// figure, no command id.
    pub earlier_run: bool,
}

/// In words, for a log; the whole of it but for what the application knows itself.
impl fmt::Display for UnhandledAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command)?;
        let kind = self.kind.map(AckKind::as_str);
        let status = self.status.map(Status::as_str);
        for word in kind.into_iter().chain(status) {
            write!(f, " {word}")?;
        }
        if let Some(sequence) = self.sequence {
            write!(f, ", message {sequence}")?;
        }
        if let Some(figure) = self.figure {
            write!(f, ", number {figure}")?;
        }
        if let Some(id) = &self.command_id {
            write!(f, ", command {id}")?;
        }
        if let Some(subscription) = &self.subscription {
            write!(f, ", subscription {subscription}")?;
        }
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, ": {reason}"),
        }
    }
}

/// Why a handler did not take a refusal over.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(FailedWrite) -> HandlerFuture + Send + Sync>;
pub(crate) type LastChance = Arc<dyn Fn(UnhandledAck) + Send + Sync>;

/// Refusals looked at together.
pub(crate) const PAGE: usize = 64;

/// Refused messages whose attempts are remembered.
const COUNTED: usize = 1 << 16;

tokio::task_local! {
    /// The client whose handler is running.
    static HANDLING: usize;
}

/// Whether the calling task is a handler of this client.
pub(crate) fn is_handling(shared: &Shared) -> bool {
    HANDLING
        .try_with(|client| *client == identity(shared))
        .unwrap_or(false)
}

/// `future` with the mark of the calling task, for a task of its own: what a handler has
/// done for it elsewhere is done inside the handler.
pub(crate) fn as_the_caller<F: Future>(future: F) -> impl Future<Output = F::Output> {
    let client = HANDLING.try_with(|client| *client).ok();
    async move {
        match client {
            Some(client) => HANDLING.scope(client, future).await,
            None => future.await,
        }
    }
}

/// Runs a closure with the same mark on another thread.
pub(crate) fn blocking_handler<F>(handler: Arc<F>, failed: FailedWrite) -> HandlerFuture
where
    F: Fn(FailedWrite) -> Result<(), HandlerError> + Send + Sync + 'static,
{
    Box::pin(async move {
        let client = HANDLING.try_with(|client| *client).unwrap_or_default();
        let span = tracing::Span::current();
        let run = move || span.in_scope(|| HANDLING.sync_scope(client, || handler(failed)));
        match tokio::task::spawn_blocking(run).await {
            Ok(result) => result,
            Err(error) => Err(panicked(error)),
        }
    })
}

fn identity(shared: &Shared) -> usize {
    std::ptr::from_ref(shared).addr()
}

fn panicked(error: tokio::task::JoinError) -> HandlerError {
    let Ok(panic) = error.try_into_panic() else {
        return "the handler was cancelled".into();
    };
    format!("the handler panicked: {}", panics::words(panic.as_ref())).into()
}

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
    /// Without a store: refusals that wait for the handler, by the number of the message. No
    /// more than may wait for acks.
    direct: VecDeque<(u64, FailedWrite)>,
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

    /// Without a store: a message was refused, and nothing but this keeps that.
    pub(crate) fn refused_direct(&self, number: u64, failed: FailedWrite) {
        self.lock().direct.push_back((number, failed));
        self.changed.notify_one();
    }

    /// The handler may be called from here on.
    pub(crate) fn release(&self) {
        self.lock().released = true;
        self.changed.notify_one();
    }

    /// Something became known that a flush may wait for.
    pub(crate) fn settled(&self) {
        self.returned.notify_waiters();
    }

    /// Offers everything that waits once more.
    fn again(&self) {
        let mut state = self.lock();
        state.from = 0;
        state.declined.clear();
        drop(state);
        self.changed.notify_one();
    }

    /// Nobody needs to know of this refusal any more.
    fn forget(&self, sequence: u64) {
        let mut state = self.lock();
        state.declined.remove(&sequence);
        state.attempts.remove(&sequence);
        drop(state);
        self.returned.notify_waiters();
    }

    /// The handler is through with this one; with `declined`, it waits.
    fn is_through(&self, sequence: u64, declined: bool) {
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

    /// Without a store: refusals of messages up to this number whose handler has not returned.
    pub(crate) fn open_direct(&self, through: u64) -> u64 {
        let state = self.lock();
        let waiting = state.direct.iter().map(|(number, _)| *number);
        let waiting = state.active.then_some(waiting).into_iter().flatten();
        let open = state.running.into_iter().chain(waiting);
        open.filter(|number| *number <= through).count() as u64
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
        match self.wait(until, done).await {
            true => 0,
            false => self.open(store, through),
        }
    }

    /// Waits until it is done, looked at whenever a handler has returned or something was
    /// settled; `false`: the time is over.
    pub(crate) async fn wait(&self, until: Option<Instant>, done: impl Fn() -> bool) -> bool {
        loop {
            // Registered before the look: one that returns in between is not missed.
            let returned = self.returned.notified();
            tokio::pin!(returned);
            returned.as_mut().enable();
            if done() {
                return true;
            }
            match until {
                None => returned.await,
                Some(until) => {
                    if timeout_at(until, returned).await.is_err() {
                        return done();
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

/// Says that the handler is called, until it is dropped: with the task, however that ends.
pub(crate) struct Offering(Arc<Shared>);

impl Offering {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.offers.lock().active = true;
        Offering(shared)
    }
}

impl Drop for Offering {
    fn drop(&mut self) {
        let mut state = self.0.offers.lock();
        state.active = false;
        state.running = None;
        drop(state);
        self.0.offers.returned.notify_waiters();
    }
}

/// Calls the failed-write handler for every refusal that waits, one at a time, in order of
/// sequence, off the I/O path. Those found at open come first, before any network.
pub(crate) async fn offer_refusals(offering: Offering, handler: Handler) {
    let shared = &offering.0;
    let Some(watched) = shared.watched.clone() else {
        return offer_direct(shared, &handler).await;
    };
    let mut durable = BTreeSet::new();
    while let Some(rejection) = next_offer(shared, watched.store.as_ref()).await {
        // A power cut must not take back what a handler has acted on (charter S6).
        let at_disk = watched.store.level() == Level::Disk;
        if at_disk && !durable.remove(&rejection.sequence) {
            durable.clear();
            let page = watched.store.rejections(rejection.sequence, PAGE);
            let store = watched.store.clone();
            let Some(helper) = &shared.helper else { return };
            let synced = helper.call(move || store.sync()).await;
            match synced.unwrap_or_else(|why| Err(why.of_store("make a refusal durable"))) {
                Ok(_) => durable.extend(page.iter().map(|found| found.sequence)),
                Err(error) => {
                    let error = error.to_string();
                    return shared.event(Event::StoreFailed {
                        doing: "make a refusal durable",
                        error,
                    });
                }
            }
            durable.remove(&rejection.sequence);
        }
        let sequence = rejection.sequence;
        if let Some(error) = unreadable(watched.store.as_ref(), sequence) {
            // Whoever took it over would have been shown no message, and its bytes would go.
            let error = error.to_string();
            tracing::warn!(sequence, %error, "a refused message waits for an operator");
            shared.event(Event::Unreadable { sequence, error });
            shared.offers.is_through(sequence, true);
            continue;
        }
        let failed = failed_write(shared, watched.store.as_ref(), rejection);
        let result = call(shared, &handler, failed).await;
        let error = match result {
            Ok(()) => match watched.store.accept(sequence) {
                Ok(_) => None,
                Err(error) => Some(error.to_string()),
            },
            Err(error) => Some(error.to_string()),
        };
        if let Some(error) = &error {
            tracing::warn!(
                sequence,
                %error,
                "a refused message was not taken over; it waits"
            );
            shared.event(Event::HandlerFailed {
                sequence,
                error: error.clone(),
            });
        }
        shared.offers.is_through(sequence, error.is_some());
    }
}

/// The same without a store: each refusal once, in order of arrival, and then it is gone.
async fn offer_direct(shared: &Arc<Shared>, handler: &Handler) {
    while let Some((number, failed)) = next_direct(shared).await {
        let command_id = failed.command_id.clone();
        if let Err(error) = call(shared, handler, failed).await {
            let error = error.to_string();
            tracing::warn!(command_id, %error, "a refused message was not taken over");
            shared.event(Event::HandlerFailed { sequence: 0, error });
        }
        shared.offers.is_through(number, false);
        shared.handled_direct();
    }
}

async fn next_direct(shared: &Shared) -> Option<(u64, FailedWrite)> {
    loop {
        {
            let mut state = shared.offers.lock();
            if state.stop {
                return None;
            }
            if let Some((number, failed)) = state.direct.pop_front() {
                state.running = Some(number);
                return Some((number, failed));
            }
            if state.finish {
                return None;
            }
        }
        shared.offers.changed.notified().await;
    }
}

/// Calls the handler on a task of its own, so that its panic ends nothing else.
async fn call(
    shared: &Arc<Shared>,
    handler: &Handler,
    failed: FailedWrite,
) -> Result<(), HandlerError> {
    let call = handler.clone();
    let span = match &failed.command_id {
        Some(command_id) => tracing::info_span!("failed_write", command_id),
        None => tracing::info_span!("failed_write", sequence = failed.sequence),
    };
    let run = HANDLING.scope(identity(shared), async move { call(failed).await });
    match tokio::spawn(run.instrument(span)).await {
        Ok(result) => result,
        Err(error) => Err(panicked(error)),
    }
}

async fn next_offer(shared: &Shared, store: &dyn PublishStore) -> Option<Rejection> {
    loop {
        {
            let mut state = shared.offers.lock();
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
        shared.offers.changed.notified().await;
    }
}

/// What is wrong with the envelope of a message whose record is intact.
fn unreadable(store: &dyn PublishStore, sequence: u64) -> Option<EnvelopeError> {
    let mut stored = StoredMessage::new();
    match store.get(sequence, &mut stored) {
        Ok(true) => stored.envelope().err(),
        _ => None,
    }
}

fn failed_write(shared: &Shared, store: &dyn PublishStore, rejection: Rejection) -> FailedWrite {
    let sequence = rejection.sequence;
    let mut stored = StoredMessage::new();
    let original = match store.get(sequence, &mut stored) {
        Ok(true) => Message::from_stored(&stored),
        Ok(false) => None,
        Err(error) => {
            shared.event(Event::Unreadable {
                sequence,
                error: error.to_string(),
            });
            None
        }
    };
    FailedWrite {
        sequence,
        command_id: None,
        reason: Reason::new(rejection.reason),
        reason_cut: rejection.reason_cut,
        at: rejection.at,
        late: rejection.late,
        earlier_run: sequence < store.numbers().first_of_run,
        attempts: shared
            .offers
            .lock()
            .attempts
            .get(&sequence)
            .copied()
            .unwrap_or(0),
        original,
    }
}

/// Passes acks that nothing took to the last-chance handler of a client, off the I/O path.
pub(crate) fn last_chance(
    shared: &Arc<Shared>,
    mut acks: mpsc::Receiver<UnhandledAck>,
    handler: LastChance,
) -> impl Future<Output = ()> + Send + use<> {
    let client = identity(shared);
    // The events end with the client, and must not wait for this task.
    let shared = Arc::downgrade(shared);
    async move {
        while let Some(ack) = acks.recv().await {
            // More refusals of earlier runs may be left than the queue took at once.
            if acks.is_empty()
                && let Some(shared) = shared.upgrade()
                && shared.mailbox.untold.load(Ordering::Acquire)
            {
                shared.mailbox.doorbell.ring_always();
            }
            let call = || HANDLING.sync_scope(client, || handler(ack));
            if let Err(panic) = catch_unwind(AssertUnwindSafe(call)) {
                let error = panics::words(panic.as_ref());
                tracing::warn!(%error, "the last-chance handler panicked");
                if let Some(shared) = shared.upgrade() {
                    shared.event(Event::LastChanceFailed { error });
                }
            }
        }
    }
}

/// The refusals that wait, and what can be done with them.
#[derive(Clone, Debug)]
pub struct Failed<'a> {
    pub(crate) client: &'a Client,
}

impl Failed<'_> {
    /// Refusals that wait, with sequence `from` or above, at most `limit` of them, each
    /// with its original message.
    pub fn page(&self, from: u64, limit: usize) -> Vec<FailedWrite> {
        let shared = &self.client.shared;
        let Some(store) = shared.store() else {
            return Vec::new();
        };
        let page = store.rejections(from, limit);
        page.into_iter()
            .map(|found| failed_write(shared, store.as_ref(), found))
            .collect()
    }

    /// All refusals that wait, without their messages.
    pub fn list(&self) -> Vec<Rejection> {
        let store = self.client.shared.store();
        store
            .map(|store| store.rejections(0, usize::MAX))
            .unwrap_or_default()
    }

    /// Takes a refusal over; it is gone afterwards. `false`: none waits under this number.
    ///
    /// # Errors
    /// The store cannot record it.
    pub fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        match self.client.shared.store() {
            Some(store) => {
                let accepted = store.accept(sequence)?;
                self.client.shared.offers.forget(sequence);
                Ok(accepted)
            }
            None => Ok(false),
        }
    }

    /// Publishes a refused message again, under a new sequence; the refusal is accepted in
    /// the same record, so a crash in between leaves one message, not two. `None`: none
    /// waits under this number, or its message is gone.
    ///
    /// # Errors
    /// The store cannot take it, for lack of room among others.
    pub fn requeue(&self, sequence: u64) -> Result<Option<u64>, AppendError> {
        let shared = &self.client.shared;
        let Some(store) = shared.store() else {
            return Ok(None);
        };
        let appended = store.requeue(sequence, unix_micros())?;
        shared.offers.forget(sequence);
        shared.mailbox.doorbell.ring();
        Ok(appended.map(|appended| appended.sequence))
    }

    /// As [`requeue`](Self::requeue), but waits for room as long as `timeout`; not inside a handler, which must not wait for what it may itself hold up.
    ///
    /// Cancel safe: cancelled while it waits, nothing happened.
    ///
    /// # Errors
    /// As [`requeue`](Self::requeue), with the last of them once the time is over.
    ///
    /// # Panics
    /// When it waits outside a tokio runtime with a clock.
    pub async fn requeue_wait(
        &self,
        sequence: u64,
        timeout: Duration,
    ) -> Result<Option<u64>, AppendError> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = &self.client.shared;
        let mut waits = false;
        loop {
            // Registered before the try: room that comes in between is not missed.
            let room = shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.requeue(sequence) {
                Err(error) if error.is_retryable() && !is_handling(shared) => {
                    if !std::mem::replace(&mut waits, true) {
                        shared.meter.waits_for_room();
                    }
                    match deadline {
                        // A time that overflows is no limit.
                        None => room.await,
                        Some(deadline) => {
                            if timeout_at(deadline, room).await.is_err() {
                                return Err(error);
                            }
                        }
                    }
                }
                done => return done,
            }
        }
    }

    /// Gives up on a message that no server will settle, such as one that breaks the link
    /// every time ([`Event::Stalled`]): it becomes a refusal that waits, and what is behind
    /// it goes on once that is durable. `false`: the message is settled, or never was, or a
    /// sync failed and nothing can be durable any more (an event says so).
    ///
    /// The server may have taken it all the same; nothing here can know.
    ///
    /// Cancelling the call leaves open whether it is done.
    pub async fn give_up(&self, sequence: u64) -> bool {
        let (done, given_up) = oneshot::channel();
        let ask = Ask::GiveUp { sequence, done };
        match self.client.shared.mailbox.asks.send(ask).await {
            Ok(()) => given_up.await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Offers everything that waits to the failed-write handler once more, what it refused
    /// to take included.
    pub fn offer_again(&self) {
        self.client.shared.offers.again();
    }
}
