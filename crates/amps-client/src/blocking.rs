//! The client for programs without async: the same calls, blocking.
//!
//! It has two threads, each with a runtime of its own: one for the connection, and one for
//! handlers and the last-chance handler. It never enters a runtime of the caller's. So it can be
//! used and dropped anywhere: inside an async task (where its calls block the worker) and inside
//! its own handlers, whether async or blocking, since the connection goes on meanwhile. Handlers
//! and the last-chance handler run one at a time.

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::runtime::{Builder as RuntimeBuilder, Handle, Runtime};
use tokio::sync::{broadcast, watch};
use tokio::task::coop::unconstrained;

use crate::builder::Builder;
use crate::client::Health;
use crate::error::{
    CloseReport, CommandError, FlushError, FlushReport, LogonError, OpenError, PublishError,
    PublishFailure,
};
use crate::event::{Event, Events};
use crate::handlers::as_the_caller;
use crate::message::Message;
use crate::receipt::{Outcome, Receipt};
use crate::requests::{Answer, Delivered, Request, Subscribe};
use crate::subscription::SubscriptionEnd;

/// A [`crate::Client`] whose calls block. Dropping it without
/// [`close`](BlockingClient::close) ends it at once; what is unsettled stays in the store.
pub struct BlockingClient {
    client: crate::Client,
    runtime: Handle,
    /// Dropping it ends the threads.
    _stop: watch::Sender<()>,
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingClient")
            .field("name", &self.client.name())
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Starts the client on threads of its own, for blocking use.
    ///
    /// # Errors
    /// As [`open`](Builder::open), and when a thread cannot be started.
    pub fn open_blocking(self) -> Result<BlockingClient, OpenError> {
        let (io, handlers) = (Own::new()?, Own::new()?);
        let handle = io.handle.clone();
        // Dropped last, when the caller has the client.
        let (client, mut release) = self
            .runtime(handle.clone())
            .handlers_on(handlers.handle.clone())
            .start()?;
        let stop = watch::Sender::new(());
        for (own, what) in [(io, ""), (handlers, " handlers")] {
            let mut stopped = stop.subscribe();
            let events = client.shared.events.subscribe();
            let until = async move {
                // An error means that the sender is gone, and that is all there is to wait for.
                let _ = stopped.changed().await;
                drain(events).await;
            };
            own.run(format!("amps {}{what}", client.name()), until)?;
        }
        release.opened();
        Ok(BlockingClient {
            client,
            runtime: handle,
            _stop: stop,
        })
    }
}

/// A runtime of the client's own. Dropping a plain one inside another runtime panics; this one
/// does not wait for anything when it is dropped.
struct Own {
    handle: Handle,
    runtime: Option<Runtime>,
}

impl Own {
    fn new() -> Result<Self, OpenError> {
        let runtime = RuntimeBuilder::new_current_thread()
            .enable_all()
            .build()
            .map_err(no_thread)?;
        Ok(Own {
            handle: runtime.handle().clone(),
            runtime: Some(runtime),
        })
    }

    /// Runs it on a thread until `until` completes.
    fn run(
        self,
        name: String,
        until: impl Future<Output = ()> + Send + 'static,
    ) -> Result<(), OpenError> {
        let run = move || {
            if let Some(runtime) = &self.runtime {
                runtime.block_on(until);
            }
            // Dropped here, so that a handler that never ends does not keep the thread.
        };
        let started = thread::Builder::new().name(name).spawn(run);
        started.map(drop).map_err(no_thread)
    }
}

impl Drop for Own {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn no_thread(source: io::Error) -> OpenError {
    OpenError::NoThread { source }
}

/// Waits until the client has shut down, so that its store is closed cleanly.
async fn drain(mut events: broadcast::Receiver<Event>) {
    let all = async {
        while !matches!(
            events.recv().await,
            Err(broadcast::error::RecvError::Closed)
        ) {}
    };
    // A disk that hangs must not keep the thread.
    let _ = tokio::time::timeout(Duration::from_secs(5), all).await;
}

impl BlockingClient {
    /// The async client behind this one; its futures need a runtime to be polled on.
    pub fn client(&self) -> &crate::Client {
        &self.client
    }

    /// As [`Client::publish`](crate::Client::publish).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::publish(topic.to_owned(), payload))
    }

    /// As [`Client::try_publish`](crate::Client::try_publish).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn try_publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.try_send(Message::publish(topic.to_owned(), payload))
    }

    /// As [`Client::delta_publish`](crate::Client::delta_publish).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn delta_publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::delta_publish(topic.to_owned(), payload))
    }

    /// As [`Client::sow_delete_by_filter`](crate::Client::sow_delete_by_filter).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn sow_delete_by_filter(
        &self,
        topic: &str,
        filter: impl Into<String>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::sow_delete_by_filter(topic.to_owned(), filter))
    }

    /// As [`Client::sow_delete_by_keys`](crate::Client::sow_delete_by_keys).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn sow_delete_by_keys<K: AsRef<str>>(
        &self,
        topic: &str,
        keys: impl IntoIterator<Item = K>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::sow_delete_by_keys(topic.to_owned(), keys))
    }

    /// As [`Client::sow_delete_by_data`](crate::Client::sow_delete_by_data).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn sow_delete_by_data(
        &self,
        topic: &str,
        data: impl Into<Bytes>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::sow_delete_by_data(topic.to_owned(), data))
    }

    /// As [`Client::send`](crate::Client::send). The message is stored on the caller's thread;
    /// the client's thread is involved only when it waits for room.
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn send(&self, message: Message) -> Result<BlockingReceipt, PublishError> {
        self.send_within(message, None)
    }

    /// As [`Client::send_deadline`](crate::Client::send_deadline).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn send_deadline(
        &self,
        message: Message,
        timeout: Duration,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send_within(message, Some(timeout))
    }

    fn send_within(
        &self,
        message: Message,
        timeout: Option<Duration>,
    ) -> Result<BlockingReceipt, PublishError> {
        let error = match self.client.try_send(message) {
            Err(error) if error.is_for_room() => error,
            sent => return sent.map(|receipt| BlockingReceipt { receipt }),
        };
        let (client, again) = (self.client.clone(), error.message.clone());
        let waited = self.run(async move {
            match timeout {
                Some(timeout) => client.send_deadline(*error.message, timeout).await,
                None => client.send(*error.message).await,
            }
        });
        let closed = || PublishError::new(PublishFailure::Closed, *again);
        let receipt = waited.unwrap_or_else(|| Err(closed()))?;
        Ok(BlockingReceipt { receipt })
    }

    /// As [`Client::try_send`](crate::Client::try_send).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn try_send(&self, message: Message) -> Result<BlockingReceipt, PublishError> {
        let receipt = self.client.try_send(message)?;
        Ok(BlockingReceipt { receipt })
    }

    /// As [`Client::wait_logged_on`](crate::Client::wait_logged_on).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn wait_logged_on(&self, deadline: Duration) -> Result<(), LogonError> {
        let client = self.client.clone();
        let wait = async move { client.wait_logged_on(deadline).await };
        self.run(wait).unwrap_or(Err(LogonError::Closed))
    }

    /// As [`Client::publish_flush`](crate::Client::publish_flush).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn publish_flush(&self, timeout: Duration) -> Result<FlushReport, FlushError> {
        let client = self.client.clone();
        let flush = async move { client.publish_flush(timeout).await };
        self.run(flush)
            .unwrap_or_else(|| Err(FlushError::Closed(self.client.report_now())))
    }

    /// As [`Client::command`](crate::Client::command).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn command(&self, request: Request) -> Result<Answer, CommandError> {
        let client = self.client.clone();
        self.run(async move { client.command(request).await })
            .unwrap_or(Err(CommandError::Closed))
    }

    /// As [`Client::subscribe`](crate::Client::subscribe).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn subscribe(&self, subscribe: Subscribe) -> Result<BlockingSubscription, CommandError> {
        let client = self.client.clone();
        let subscribed = self.run(async move { client.subscribe(subscribe).await });
        let subscription = subscribed.unwrap_or(Err(CommandError::Closed))?;
        Ok(BlockingSubscription { subscription })
    }

    /// As [`Client::health`](crate::Client::health).
    pub fn health(&self) -> Health {
        self.client.health()
    }

    /// As [`Client::events`](crate::Client::events).
    pub fn events(&self) -> BlockingEvents {
        BlockingEvents {
            events: self.client.events(),
        }
    }

    /// As [`Client::failed`](crate::Client::failed); to give up on a message, call
    /// [`give_up`](Self::give_up) here.
    pub fn failed(&self) -> crate::Failed<'_> {
        self.client.failed()
    }

    /// As [`Failed::give_up`](crate::Failed::give_up).
    pub fn give_up(&self, sequence: u64) -> bool {
        let client = self.client.clone();
        self.run(async move { client.failed().give_up(sequence).await })
            .unwrap_or(false)
    }

    /// As [`Client::allow_rebase`](crate::Client::allow_rebase).
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn allow_rebase(&self) -> Result<(), CommandError> {
        let client = self.client.clone();
        self.run(async move { client.allow_rebase().await })
            .unwrap_or(Err(CommandError::Closed))
    }

    /// As [`Client::close`](crate::Client::close).
    pub fn close(&self, deadline: Duration) -> CloseReport {
        let client = self.client.clone();
        self.run(async move { client.close(deadline).await })
            .unwrap_or_default()
    }

    fn run<T: Send + 'static>(
        &self,
        future: impl Future<Output = T> + Send + 'static,
    ) -> Option<T> {
        run(&self.runtime, future)
    }
}

/// Runs a future on the client's thread and waits for it, without entering any runtime on the
/// caller's thread. `None`: the client's thread is gone.
fn run<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (done, result): (SyncSender<T>, _) = sync_channel(1);
    runtime.spawn(as_the_caller(async move {
        // The caller is waiting for it.
        let _ = done.send(future.await);
    }));
    result.recv().ok()
}

/// Waits for a future on the calling thread, until `deadline` at the latest. No runtime is needed
/// to complete it, so it may outlive the client and its threads.
fn block_on<F: Future>(future: F, deadline: Option<Instant>) -> Option<F::Output> {
    // Inside a task of the caller's that has used up its budget, the future would never become
    // ready.
    let mut future = pin!(unconstrained(future));
    let waker = Waker::from(Arc::new(Unpark(thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        if let Poll::Ready(output) = future.as_mut().poll(&mut context) {
            return Some(output);
        }
        match deadline {
            None => thread::park(),
            Some(deadline) => match deadline.checked_duration_since(Instant::now()) {
                Some(left) if !left.is_zero() => thread::park_timeout(left),
                _ => return None,
            },
        }
    }
}

struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

/// What became of a message, for callers that block. It outlives the client, and still tells what
/// was known of the message when the client ended.
#[derive(Debug)]
pub struct BlockingReceipt {
    receipt: Receipt,
}

impl BlockingReceipt {
    /// As [`Receipt::sequence`].
    pub fn sequence(&self) -> u64 {
        self.receipt.sequence()
    }

    /// As [`Receipt::command_id`].
    pub fn command_id(&self) -> Option<&str> {
        self.receipt.command_id()
    }

    /// Waits for the outcome.
    pub fn outcome(self) -> Outcome {
        block_on(self.receipt, None).unwrap_or(Outcome::Unknown)
    }

    /// Waits for the outcome at most this long; without one the receipt comes back.
    ///
    /// # Errors
    /// There is no outcome yet: the receipt, to ask again.
    pub fn outcome_within(mut self, timeout: Duration) -> Result<Outcome, BlockingReceipt> {
        // A timeout that overflows counts as no limit.
        let deadline = Instant::now().checked_add(timeout);
        block_on(&mut self.receipt, deadline).ok_or(self)
    }

    /// As [`Receipt::durable`].
    ///
    /// # Errors
    /// Those of the asynchronous call.
    pub fn durable(&self) -> Result<(), amps_store::StoreError> {
        block_on(self.receipt.durable(), None).unwrap_or(Err(amps_store::StoreError::Closed))
    }
}

/// A stream of [`Event`]s for callers that block. It ends with the client, once everything that
/// came before is read.
#[derive(Debug)]
pub struct BlockingEvents {
    events: Events,
}

impl BlockingEvents {
    /// The next event, if one comes within this time.
    pub fn next_within(&mut self, timeout: Duration) -> Option<Event> {
        block_on(self.events.next(), Instant::now().checked_add(timeout)).flatten()
    }

    /// As [`Events::try_next`].
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_next()
    }

    /// As [`Events::dropped`].
    pub fn dropped(&self) -> u64 {
        self.events.dropped()
    }
}

impl Iterator for BlockingEvents {
    type Item = Event;

    fn next(&mut self) -> Option<Event> {
        block_on(self.events.next(), None).flatten()
    }
}

/// A subscription for callers that block. Dropping it unsubscribes. It outlives the client: what
/// was delivered before the client ended is still read, and then why it ended.
#[derive(Debug)]
pub struct BlockingSubscription {
    subscription: crate::Subscription,
}

impl Iterator for BlockingSubscription {
    type Item = Result<Delivered, SubscriptionEnd>;

    fn next(&mut self) -> Option<Self::Item> {
        block_on(self.subscription.next(), None).flatten()
    }
}
