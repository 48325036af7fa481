//! A subscription, as its reader holds it.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use tokio::sync::{mpsc, oneshot};

use crate::error::CommandError;
use crate::requests::Delivered;

/// Why a subscription ended before its reader dropped it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SubscriptionEnd {
    /// Its reader was too slow and the buffer overflowed. Subscribe again, from the last
    /// bookmark if there is one.
    #[error("the subscription's reader was too slow; its buffer overflowed")]
    Lagged,
    /// The server refused it, now or after a reconnect.
    #[error("the subscription ended: {0}")]
    Command(CommandError),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

/// A running subscription. Dropping it unsubscribes.
///
/// It is placed again after every reconnect.
#[derive(Debug)]
pub struct Subscription {
    pub(crate) id: u64,
    /// Each message with the number of bytes it counts for.
    pub(crate) messages: mpsc::Receiver<(Delivered, usize)>,
    /// Bytes in the buffer, shared with whoever fills it.
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) end: oneshot::Receiver<SubscriptionEnd>,
    pub(crate) ended: bool,
    pub(crate) query: bool,
    pub(crate) client: Weak<dyn Leave>,
}

/// Is told that the reader of a subscription is gone.
pub(crate) trait Leave: Send + Sync {
    fn leave(&self, subscription: u64);
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if let Some(client) = self.client.upgrade() {
            client.leave(self.id);
        }
    }
}

impl Subscription {
    /// The next message. `None` after the end of a query's answer, or after an error was
    /// returned.
    ///
    /// Cancel safe: a cancelled call takes no message.
    pub async fn next(&mut self) -> Option<Result<Delivered, SubscriptionEnd>> {
        if self.ended {
            return None;
        }
        if let Some((delivered, bytes)) = self.messages.recv().await {
            self.held.fetch_sub(bytes, Ordering::Relaxed);
            return Some(Ok(delivered));
        }
        self.ended = true;
        match (&mut self.end).await {
            Ok(end) => Some(Err(end)),
            Err(_) if self.query => None,
            Err(_) => Some(Err(SubscriptionEnd::Closed)),
        }
    }

    /// Number of this subscription, unique within the client.
    pub fn id(&self) -> u64 {
        self.id
    }
}
