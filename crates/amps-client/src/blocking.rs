//! The client for programs without async: the same calls, blocking.
//!
//! It owns a thread with a runtime of its own and never enters the caller's, so it can be
//! used, and dropped, anywhere, inside an async task too (where its calls block the
//! worker).

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::mpsc::{SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::{Builder as RuntimeBuilder, Handle};
use tokio::sync::oneshot;

use crate::builder::Builder;
use crate::client::Health;
use crate::error::{
    CloseReport, CommandError, FlushError, FlushReport, LogonError, OpenError, PublishError,
};
use crate::message::Message;
use crate::receipt::{Outcome, Receipt};
use crate::subscribe::{Answer, Delivered, Request, Subscribe, SubscriptionEnd};

/// A [`crate::Client`] whose calls block. Dropping it without
/// [`close`](BlockingClient::close) ends it at once; what is unsettled stays in the store.
pub struct BlockingClient {
    client: crate::Client,
    runtime: Handle,
    /// Dropped with this value, which ends the thread.
    _stop: oneshot::Sender<()>,
}

impl fmt::Debug for BlockingClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockingClient")
            .field("name", &self.client.name())
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Starts the client on a thread of its own, for blocking use.
    ///
    /// # Errors
    /// As [`open`](Builder::open), and when the thread cannot be started.
    pub fn open_blocking(self) -> Result<BlockingClient, OpenError> {
        let failed = |error: io::Error| OpenError::Options(format!("no thread: {error}"));
        let runtime = RuntimeBuilder::new_current_thread()
            .enable_all()
            .build()
            .map_err(failed)?;
        let handle = runtime.handle().clone();
        let client = self.runtime(handle.clone()).start()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let events = client.events();
        thread::Builder::new()
            .name(format!("amps {}", client.name()))
            .spawn(move || {
                runtime.block_on(async move {
                    // An error is the sender's end, which is all there is to wait for.
                    let _ = stopped.await;
                    drain(events).await;
                });
                // A handler that never ends must not keep the thread.
                runtime.shutdown_background();
            })
            .map_err(failed)?;
        Ok(BlockingClient {
            client,
            runtime: handle,
            _stop: stop,
        })
    }
}

/// Waits until the client is shut down, so that its store is closed cleanly.
async fn drain(mut events: crate::Events) {
    let all = async { while events.next().await.is_some() {} };
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
    /// As there.
    pub fn publish(
        &self,
        topic: &str,
        payload: impl Into<Bytes>,
    ) -> Result<BlockingReceipt, PublishError> {
        self.send(Message::publish(topic.to_owned(), payload))
    }

    /// As [`Client::send`](crate::Client::send). The message is stored on the caller's
    /// thread; only waiting for room involves the other one.
    ///
    /// # Errors
    /// As there.
    pub fn send(&self, message: Message) -> Result<BlockingReceipt, PublishError> {
        let receipt = match self.client.try_send(message) {
            Err(error) if error.is_retryable() => {
                let client = self.client.clone();
                let again = error.message.clone();
                match self.run(async move { client.send(*error.message).await }) {
                    Some(result) => result?,
                    None => {
                        let closed = crate::PublishFailure::Closed;
                        return Err(PublishError {
                            reason: closed,
                            message: again,
                        });
                    }
                }
            }
            other => other?,
        };
        Ok(BlockingReceipt {
            receipt,
            runtime: self.runtime.clone(),
        })
    }

    /// As [`Client::try_send`](crate::Client::try_send).
    ///
    /// # Errors
    /// As there.
    pub fn try_send(&self, message: Message) -> Result<BlockingReceipt, PublishError> {
        let receipt = self.client.try_send(message)?;
        Ok(BlockingReceipt {
            receipt,
            runtime: self.runtime.clone(),
        })
    }

    /// As [`Client::wait_logged_on`](crate::Client::wait_logged_on).
    ///
    /// # Errors
    /// As there.
    pub fn wait_logged_on(&self, deadline: Duration) -> Result<(), LogonError> {
        let client = self.client.clone();
        let wait = async move { client.wait_logged_on(deadline).await };
        self.run(wait).unwrap_or(Err(LogonError::Closed))
    }

    /// As [`Client::publish_flush`](crate::Client::publish_flush).
    ///
    /// # Errors
    /// As there.
    pub fn publish_flush(&self, timeout: Duration) -> Result<FlushReport, FlushError> {
        let client = self.client.clone();
        let flush = async move { client.publish_flush(timeout).await };
        self.run(flush)
            .unwrap_or_else(|| Err(FlushError::Closed(FlushReport::default())))
    }

    /// As [`Client::command`](crate::Client::command).
    ///
    /// # Errors
    /// As there.
    pub fn command(&self, request: Request) -> Result<Answer, CommandError> {
        let client = self.client.clone();
        self.run(async move { client.command(request).await })
            .unwrap_or(Err(CommandError::Closed))
    }

    /// As [`Client::subscribe`](crate::Client::subscribe).
    ///
    /// # Errors
    /// As there.
    pub fn subscribe(&self, subscribe: Subscribe) -> Result<BlockingSubscription, CommandError> {
        let client = self.client.clone();
        let subscribed = self.run(async move { client.subscribe(subscribe).await });
        let subscription = subscribed.unwrap_or(Err(CommandError::Closed))?;
        Ok(BlockingSubscription {
            subscription: Some(subscription),
            runtime: self.runtime.clone(),
        })
    }

    /// As [`Client::health`](crate::Client::health).
    pub fn health(&self) -> Health {
        self.client.health()
    }

    /// As [`Client::failed`](crate::Client::failed).
    pub fn failed(&self) -> crate::Failed<'_> {
        self.client.failed()
    }

    /// As [`Client::close`](crate::Client::close).
    pub fn close(self, deadline: Duration) -> CloseReport {
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

/// Runs a future on the client's thread and waits for it, without entering any runtime on
/// the caller's. `None`: the thread is gone.
fn run<T: Send + 'static>(
    runtime: &Handle,
    future: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    let (done, result): (SyncSender<T>, _) = sync_channel(1);
    runtime.spawn(async move {
        // The caller waits until it is sent.
        let _ = done.send(future.await);
    });
    result.recv().ok()
}

/// What became of a message, for callers that block.
#[derive(Debug)]
pub struct BlockingReceipt {
    receipt: Receipt,
    runtime: Handle,
}

impl BlockingReceipt {
    /// As [`Receipt::sequence`].
    pub fn sequence(&self) -> u64 {
        self.receipt.sequence()
    }

    /// Waits for the outcome.
    pub fn outcome(self) -> Outcome {
        run(&self.runtime, self.receipt).unwrap_or(Outcome::Unknown)
    }

    /// Waits for the outcome at most this long; the receipt comes back if there is none.
    ///
    /// # Errors
    /// The receipt, to ask again.
    pub fn outcome_within(self, timeout: Duration) -> Result<Outcome, BlockingReceipt> {
        let mut receipt = self.receipt;
        let waited = run(&self.runtime, async move {
            match tokio::time::timeout(timeout, &mut receipt).await {
                Ok(outcome) => Ok(outcome),
                Err(_) => Err(receipt),
            }
        });
        match waited {
            Some(Ok(outcome)) => Ok(outcome),
            Some(Err(receipt)) => Err(BlockingReceipt {
                receipt,
                runtime: self.runtime,
            }),
            None => Ok(Outcome::Unknown),
        }
    }

    /// As [`Receipt::durable`].
    ///
    /// # Errors
    /// As there.
    pub fn durable(self) -> Result<(), amps_store::StoreError> {
        let receipt = self.receipt;
        let waited = run(&self.runtime, async move { receipt.durable().await });
        waited.unwrap_or(Err(amps_store::StoreError::Closed))
    }
}

/// A subscription for callers that block. Dropping it unsubscribes.
#[derive(Debug)]
pub struct BlockingSubscription {
    subscription: Option<crate::Subscription>,
    runtime: Handle,
}

impl Iterator for BlockingSubscription {
    type Item = Result<Delivered, SubscriptionEnd>;

    fn next(&mut self) -> Option<Self::Item> {
        let mut subscription = self.subscription.take()?;
        let (item, back) = run(&self.runtime, async move {
            let item = subscription.next().await;
            (item, subscription)
        })?;
        self.subscription = Some(back);
        item
    }
}
