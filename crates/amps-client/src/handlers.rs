//! Handlers: refusals are offered to one, acks that nothing takes go to the other, and the
//! application decides about refusals that wait.

use std::collections::BTreeSet;
use std::fmt;
use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_store::{AppendError, EnvelopeError, PublishStore, Rejection, StoreError, StoredMessage};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};
use tracing::Instrument;

use crate::event::Event;
use crate::failed::{FailedWrite, Handler, HandlerError, HandlerFuture, LastChance, UnhandledAck};
use crate::mailbox::Ask;
use crate::message::Message;
use crate::offers::PAGE;
use crate::panics;
use crate::protocol::Reason;
use crate::shared::{Shared, unix_micros};
use crate::unheard::Hearing;
use crate::wire::asked_id;

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

/// Marks `future`, which will run as a task of its own, like the calling task: what a handler has
/// done in another task still counts as done inside the handler.
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

/// Says that the handler is being called, until it is dropped: with the task, however that ends.
pub(crate) struct Offering(Arc<Shared>);

impl Offering {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        shared.offers.begin();
        Offering(shared)
    }
}

impl Drop for Offering {
    fn drop(&mut self) {
        self.0.offers.end();
    }
}

/// Calls the failed-write handler for every refusal that waits, one at a time, in order of
/// sequence, off the I/O path. Those found at open come first, before any network.
pub(crate) async fn offer_refusals(offering: Offering, handler: Handler) {
    let shared = &offering.0;
    let watched = &shared.watched;
    let keeps = shared.store().is_some();
    let mut durable = BTreeSet::new();
    while let Some(rejection) = shared.offers.next(watched.store.as_ref()).await {
        // A power cut must not take back what a handler has acted on (`docs/promises.md` S6).
        let at_disk = watched.store.level().is_durable_first();
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
            // A handler that accepted it would not have seen the message, whose bytes would be
            // lost then.
            let error = error.to_string();
            tracing::warn!(sequence, %error, "a refused message waits for an operator");
            if shared.offers.tells_unreadable(sequence) {
                shared.event(Event::Unreadable { sequence, error });
            }
            shared.offers.is_through(sequence, true);
            continue;
        }
        let failed = failed_write(shared, watched.store.as_ref(), rejection);
        let command_id = failed.command_id.clone();
        let result = call(shared, &handler, failed).await;
        // Without a store, what it does not take over is gone.
        let accepted = match result.is_ok() || !keeps {
            true => watched.store.accept(sequence).map(drop),
            false => Ok(()),
        };
        let error = match (result, accepted) {
            (Err(error), _) => Some(error.to_string()),
            (Ok(()), Err(error)) => Some(error.to_string()),
            (Ok(()), Ok(())) => None,
        };
        let declined = keeps && error.is_some();
        if let Some(error) = error {
            let sequence = shared.public(sequence);
            tracing::warn!(
                sequence,
                command_id,
                waits = keeps,
                %error,
                "a refused message was not taken over"
            );
            shared.event(Event::HandlerFailed { sequence, error });
        }
        shared.offers.is_through(sequence, declined);
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
    let asked = shared.store().is_none();
    FailedWrite {
        sequence: shared.public(sequence),
        command_id: asked.then(|| asked_id(sequence)),
        reason: Reason::new(rejection.reason),
        reason_cut: rejection.reason_cut,
        at: rejection.at,
        late: rejection.late,
        earlier_run: sequence < store.numbers().first_of_run,
        attempts: shared.offers.attempts(sequence),
        original,
    }
}

/// Passes acks that nothing else took to the client's last-chance handler, off the I/O path.
pub(crate) fn last_chance(
    shared: &Arc<Shared>,
    mut acks: mpsc::Receiver<UnhandledAck>,
    handler: LastChance,
) -> impl Future<Output = ()> + Send + use<> {
    let client = identity(shared);
    let hearing = Hearing::new(shared);
    // The event streams end with the client, so this task must not keep it alive.
    let shared = Arc::downgrade(shared);
    async move {
        while let Some(ack) = acks.recv().await {
            // More refusals of earlier runs may be left than fitted into the queue at once.
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
            hearing.heard();
        }
    }
}

/// The refusals that wait, and what can be done with them.
#[derive(Clone)]
pub struct Failed<'a> {
    pub(crate) shared: &'a Shared,
}

impl fmt::Debug for Failed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failed")
            .field("client", &self.shared.name)
            .finish_non_exhaustive()
    }
}

impl Failed<'_> {
    /// Refusals that wait, with sequence `from` or above, at most `limit` of them, each
    /// with its original message.
    pub fn page(&self, from: u64, limit: usize) -> Vec<FailedWrite> {
        let shared = self.shared;
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
        let store = self.shared.store();
        store
            .map(|store| store.rejections(0, usize::MAX))
            .unwrap_or_default()
    }

    /// Accepts a refusal, which removes it. `false`: none waits under this number.
    ///
    /// # Errors
    /// The store cannot record it.
    pub fn accept(&self, sequence: u64) -> Result<bool, StoreError> {
        match self.shared.store() {
            Some(store) => {
                let accepted = store.accept(sequence)?;
                self.shared.offers.forget(sequence);
                Ok(accepted)
            }
            None => Ok(false),
        }
    }

    /// Publishes a refused message again, under a new sequence. The refusal is accepted in the
    /// same record, so a crash leaves one of the two, never both or none. `None`: none waits
    /// under this number, or its message is gone.
    ///
    /// # Errors
    /// The store cannot take it, for lack of room for instance.
    pub fn requeue(&self, sequence: u64) -> Result<Option<u64>, AppendError> {
        let shared = self.shared;
        let Some(store) = shared.store() else {
            return Ok(None);
        };
        let appended = store.requeue(sequence, unix_micros())?;
        shared.offers.forget(sequence);
        shared.mailbox.doorbell.ring();
        Ok(appended.map(|appended| appended.sequence))
    }

    /// As [`requeue`](Self::requeue), but waits for room as long as `timeout`. Inside a handler
    /// it does not wait, since the room may depend on that very handler.
    ///
    /// Cancel safe: cancelled while it waits, nothing happened.
    ///
    /// # Errors
    /// As [`requeue`](Self::requeue); once the time is up, the last of these errors.
    ///
    /// # Panics
    /// When it waits outside a tokio runtime with a clock.
    pub async fn requeue_wait(
        &self,
        sequence: u64,
        timeout: Duration,
    ) -> Result<Option<u64>, AppendError> {
        let deadline = Instant::now().checked_add(timeout);
        let shared = self.shared;
        let mut waits = false;
        loop {
            // Registered before the try, so that room that comes in between is not missed.
            let room = shared.room.notified();
            tokio::pin!(room);
            room.as_mut().enable();
            match self.requeue(sequence) {
                Err(error) if error.is_retryable() && !is_handling(shared) => {
                    if !std::mem::replace(&mut waits, true) {
                        shared.meter.waits_for_room();
                    }
                    match deadline {
                        // A timeout that overflows counts as no limit.
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

    /// Gives up on a message that no server will settle, such as one that breaks the link every
    /// time ([`Event::Stalled`]). It becomes a refusal that waits, and what is behind it is sent
    /// once that is durable. `false`: the message is settled, or there is none, or a sync failed
    /// and nothing can become durable any more (an event says so).
    ///
    /// The server may have taken the message all the same; that cannot be known here.
    ///
    /// If the call is cancelled, it may or may not be done.
    pub async fn give_up(&self, sequence: u64) -> bool {
        let (done, given_up) = oneshot::channel();
        let ask = Ask::GiveUp { sequence, done };
        match self.shared.mailbox.asks.send(ask).await {
            Ok(()) => given_up.await.unwrap_or(false),
            Err(_) => false,
        }
    }

    /// Offers everything that waits to the failed-write handler once more, including what it
    /// declined before.
    pub fn offer_again(&self) {
        self.shared.offers.again();
    }
}
