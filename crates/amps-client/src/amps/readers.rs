//! The readers of subscriptions: who gets a message, and who was too slow.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};

use crate::error::CommandError;
use crate::requests::{Answer, Delivered};
use crate::subscription::{Subscription, SubscriptionEnd};

/// How a call that subscribes gets its subscription.
pub(crate) type Placing = oneshot::Sender<Result<Subscription, CommandError>>;

/// The driver's end of every subscription.
#[derive(Default)]
pub(crate) struct Readers {
    entries: BTreeMap<u64, Entry>,
}

pub(crate) struct Entry {
    pub(crate) messages: mpsc::Sender<(Delivered, usize)>,
    /// Bytes in the buffer, and the most that may be in it.
    pub(crate) held: Arc<AtomicUsize>,
    pub(crate) limit: usize,
    /// The topic of the last message, which the next one can share.
    pub(crate) topic: Arc<str>,
    pub(crate) end: oneshot::Sender<SubscriptionEnd>,
    pub(crate) placing: Option<(Placing, Subscription)>,
}

impl Readers {
    pub(crate) fn insert(&mut self, subscription: u64, entry: Entry) {
        self.entries.insert(subscription, entry);
    }

    pub(crate) fn remove(&mut self, subscription: u64) {
        self.entries.remove(&subscription);
    }

    /// The server answered the command that first placed a subscription.
    pub(crate) fn placed(&mut self, subscription: u64, result: Result<Answer, CommandError>) {
        let Some(entry) = self.entries.get_mut(&subscription) else {
            return;
        };
        let Some((reply, subscription)) = entry.placing.take() else {
            return;
        };
        let result = result.map(|_| subscription);
        // If the caller stopped waiting, the subscription is dropped here and unsubscribes.
        drop(reply.send(result));
    }

    /// Hands a message to its reader. `false`: the subscription ended, because its reader
    /// is too slow or gone, and the server must be told.
    pub(crate) fn deliver(&mut self, subscription: u64, message: Delivered) -> bool {
        let Some(entry) = self.entries.get_mut(&subscription) else {
            return true;
        };
        let mut bytes = message.bytes();
        if !Arc::ptr_eq(&entry.topic, &message.topic) {
            bytes += message.topic.len();
            entry.topic = message.topic.clone();
        }
        let held = entry.held.fetch_add(bytes, Ordering::Relaxed);
        let fits = held == 0 || held.saturating_add(bytes) <= entry.limit;
        let sent = match fits {
            true => entry.messages.try_send((message, bytes)),
            false => Err(TrySendError::Full((message, bytes))),
        };
        let end = match sent {
            Ok(()) => return true,
            Err(TrySendError::Full(_)) => Some(SubscriptionEnd::Lagged),
            Err(TrySendError::Closed(_)) => None,
        };
        self.end(subscription, end);
        false
    }

    /// No server can be asked to place a subscription: whoever waits for the first placing of one
    /// learns that. Returns their numbers.
    pub(crate) fn cannot_be_placed(&mut self, error: &CommandError) -> Vec<u64> {
        let entries = self.entries.iter();
        let waiting = entries.filter(|(_, entry)| entry.placing.is_some());
        let waiting: Vec<u64> = waiting.map(|(id, _)| *id).collect();
        for id in &waiting {
            self.end(*id, Some(SubscriptionEnd::Command(error.clone())));
        }
        waiting
    }

    pub(crate) fn end(&mut self, subscription: u64, end: Option<SubscriptionEnd>) {
        let Some(entry) = self.entries.remove(&subscription) else {
            return;
        };
        if let (Some((reply, _)), Some(SubscriptionEnd::Command(error))) = (entry.placing, &end) {
            // It was never placed, so the call itself fails.
            drop(reply.send(Err(error.clone())));
        }
        if let Some(end) = end {
            // Its reader may be gone.
            drop(entry.end.send(end));
        }
    }

    /// The client ends, and every subscription with it.
    pub(crate) fn close(&mut self) {
        for (_, entry) in std::mem::take(&mut self.entries) {
            drop(entry.end.send(SubscriptionEnd::Closed));
        }
    }
}
