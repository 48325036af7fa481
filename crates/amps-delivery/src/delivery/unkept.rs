//! A publisher without a store: what is different when messages stand in a [`Queue`].

use std::sync::Arc;

use amps_store::Batch;

use super::{AckWish, Config, Delivery, Output, Resume};
use crate::queue::Queue;

#[derive(Debug)]
pub(super) struct Unkept {
    queue: Arc<Queue>,
    /// Those of a batch that ask for an ack, in order.
    asked: Vec<u64>,
}

/// What a message asks for.
pub(super) fn wish(unkept: Option<&Unkept>, sequence: u64) -> AckWish {
    match unkept {
        None => AckWish::Kept,
        Some(unkept) if unkept.asks(sequence) => AckWish::Asked,
        Some(_) => AckWish::Unasked,
    }
}

impl Unkept {
    fn asks(&self, sequence: u64) -> bool {
        self.asked.binary_search(&sequence).is_ok()
    }
}

impl Delivery {
    /// A machine for what stands in a queue, which is the store that it is given from here on.
    ///
    /// The queue has its own bounds for what waits for acks, and what asks for none waits for
    /// nothing; there is nothing to replay.
    pub fn without_store(queue: Arc<Queue>, config: Config) -> Self {
        let config = Config {
            max_in_flight: u64::MAX,
            max_in_flight_bytes: u64::MAX,
            replay_rate: None,
            ..config
        };
        let asked = Vec::new();
        Delivery {
            unkept: Some(Unkept {
                queue: queue.clone(),
                asked,
            }),
            ..Delivery::new(queue.as_ref(), config)
        }
    }

    /// No figure of a server is about what no store numbers.
    pub(super) fn figure(&self, figure: Option<u64>) -> Option<u64> {
        figure.filter(|_| self.unkept.is_none())
    }

    /// What a server says of earlier messages: nothing is sent again that no store keeps.
    pub(super) fn resume(&self, resume: Resume) -> Resume {
        match self.unkept {
            None => resume,
            Some(_) => Resume::Unknown,
        }
    }

    /// Whether a message goes out on the link that there is, once, or not at all.
    pub fn sends_once(&self) -> bool {
        self.unkept.is_some()
    }

    /// The link can never take the next message, which waits for no other one.
    pub(super) fn passed_over(&mut self, sequence: u64) {
        let Some(unkept) = &self.unkept else { return };
        if unkept.queue.unacked(sequence) == unkept.queue.unacked(sequence - 1) {
            self.flushes.unknown(sequence);
        }
        unkept.queue.handed_over(sequence);
    }

    /// Messages may go out: the queue takes some.
    pub(super) fn open_queue(&self) {
        if let Some(unkept) = &self.unkept {
            unkept.queue.open();
        }
    }

    /// Looks which messages of a batch ask for an ack.
    pub(super) fn look_for_wishes(&mut self, batch: &Batch) {
        let (Some(unkept), Some(first)) = (&mut self.unkept, batch.get(0)) else {
            return;
        };
        let last = batch.get(batch.len() - 1).unwrap_or(first);
        unkept
            .queue
            .asked(first.sequence, last.sequence, &mut unkept.asked);
    }

    /// The link took a batch: what asked for no ack is done with that. How many wait for an
    /// answer.
    pub(super) fn done_unless_asked(&mut self, batch: &Batch) -> u64 {
        let (Some(unkept), Some(last)) = (&self.unkept, batch.len().checked_sub(1)) else {
            return batch.len() as u64;
        };
        let mut asked = 0;
        for message in batch.iter() {
            match unkept.asks(message.sequence) {
                true => asked += 1,
                false => self.flushes.unknown(message.sequence),
            }
        }
        if let Some(last) = batch.get(last) {
            unkept.queue.handed_over(last.sequence);
        }
        asked
    }

    /// The link is gone, and with it what it did not take and what any ack could have said.
    pub(super) fn leave_behind(&mut self) {
        let Some(unkept) = &self.unkept else { return };
        let left = unkept.queue.link_lost();
        if left.unknown == 0 && left.unsent == 0 {
            return;
        }
        self.flushes.unknown_through(left.through, left.unknown);
        self.outputs.push_back(Output::Lost {
            through: left.through,
            unsent: left.unsent,
        });
    }

    /// A success that settles nothing. With a store that is no news.
    pub(super) fn untaken(&mut self, sequence: u64) {
        if self.unkept.is_some() {
            self.outputs.push_back(Output::Untaken { sequence });
        }
    }
}
