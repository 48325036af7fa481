//! Messages without a store: those on their way to the link, and those that wait for the ack
//! they asked for.

use std::collections::BTreeMap;

use amps_store::Operation;
use tokio::sync::oneshot;

use crate::delivery::{Totals, Via};
use crate::error::{FlushReport, PublishFailure};
use crate::failed::UnhandledAck;
use crate::message::Message;
use crate::protocol::{AckKind, AckKinds, Command, FrameError, Publish, Status};
use crate::receipt::{Outcome, Receipt};
use crate::session::number;

/// Bytes a client without a store holds for the link.
const LIMIT: usize = 1 << 20;

/// Most messages that may wait for their acks, whatever the application allows: a server that
/// acks nothing costs no more memory than these.
pub(crate) const MAX_UNACKED: u64 = 1 << 16;

/// Messages on their way without a store.
#[derive(Debug)]
pub(crate) struct Direct {
    pub(crate) bytes: Vec<u8>,
    /// How many they are.
    pub(crate) messages: u64,
    /// Flushes among them: they go in however full it is, but not without bound.
    pub(crate) flushes: usize,
    pub(crate) open: bool,
    unacked: Unacked,
    /// Accepted in this run, and nothing is known of them: no ack was asked for, or its link was
    /// lost.
    unknown: u64,
    /// What flushes have told.
    told: Tally,
}

/// Messages that wait for the acks they asked for, on this link.
#[derive(Debug)]
struct Unacked {
    max: u64,
    /// By the number in their command ids.
    waiting: BTreeMap<u64, oneshot::Sender<Outcome>>,
    /// Refused, and the failed-write handler has not returned. They keep their places: a slow
    /// handler holds publishers up, and no refusal is dropped.
    refused: u64,
    /// The last number given out. None is given out twice in the life of a client, so that an
    /// ack of an earlier link is about no message of this one.
    last: u64,
    /// Numbers up to here were handed to a link; an ack for a higher one is a guess.
    handed_over: u64,
}

/// What became of the messages of a run.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tally {
    persisted: u64,
    rejected: u64,
    unknown: u64,
}

impl Direct {
    /// With room for so many messages that wait for acks.
    pub(crate) fn new(max_unacked: u64) -> Self {
        Direct {
            bytes: Vec::new(),
            messages: 0,
            flushes: 0,
            open: false,
            unacked: Unacked {
                max: max_unacked.clamp(1, MAX_UNACKED),
                waiting: BTreeMap::new(),
                refused: 0,
                last: 0,
                handed_over: 0,
            },
            unknown: 0,
            told: Tally::default(),
        }
    }

    /// Takes a message, to be sent and, unless it asks for an ack, forgotten.
    pub(crate) fn send(&mut self, message: &Message) -> Result<Receipt, PublishFailure> {
        if !self.open {
            return Err(PublishFailure::NotConnected);
        }
        if self.bytes.len() >= LIMIT {
            return Err(PublishFailure::Full);
        }
        if message.asks_for_ack() && self.unacked.is_full() {
            return Err(PublishFailure::Unacked(self.unacked.max));
        }
        let id = message
            .asks_for_ack()
            .then(|| command_id(self.unacked.last + 1));
        if encode(message, id.as_deref(), &mut self.bytes).is_err() {
            let bytes = message.size();
            return Err(PublishFailure::TooLarge {
                bytes,
                max: u32::MAX as usize,
            });
        }
        self.messages += 1;
        let receipt = match id {
            None => {
                self.unknown += 1;
                Receipt::unknown()
            }
            Some(id) => {
                let (told, outcome) = oneshot::channel();
                self.unacked.last += 1;
                let number = self.unacked.last;
                self.unacked.waiting.insert(number, told);
                Receipt::asked(id, outcome)
            }
        };
        Ok(receipt)
    }

    /// Where a flush begins: the last message that it waits for, and what others have told.
    pub(crate) fn begin_flush(&self) -> (u64, Tally) {
        (self.unacked.last, self.told)
    }

    /// Messages up to this number that wait for their acks.
    pub(crate) fn unacked(&self, through: u64) -> u64 {
        self.unacked.waiting.range(..=through).count() as u64
    }

    /// What became known since `told`, for a flush that is over.
    pub(crate) fn end_flush(&mut self, told: Tally, totals: Totals) -> FlushReport {
        let now = Tally {
            persisted: totals.persisted,
            rejected: totals.rejected,
            unknown: self.unknown,
        };
        self.told = now;
        FlushReport {
            persisted: now.persisted - told.persisted,
            rejected: now.rejected - told.rejected,
            unknown: now.unknown - told.unknown,
            ..FlushReport::default()
        }
    }

    /// Everything in the buffer goes to the link now, behind what is in `out`; whether there was
    /// something.
    pub(crate) fn take(&mut self, out: &mut Vec<u8>) -> bool {
        if self.bytes.is_empty() || !self.open {
            return false;
        }
        match out.is_empty() {
            true => std::mem::swap(out, &mut self.bytes),
            false => out.append(&mut self.bytes),
        }
        self.handed_over();
        true
    }

    /// Everything in the buffer goes to the link now.
    pub(crate) fn handed_over(&mut self) {
        self.messages = 0;
        self.flushes = 0;
        self.unacked.handed_over = self.unacked.last;
    }

    /// The link is gone, and with it what any ack could have said: every receipt is
    /// [`Outcome::Unknown`] now. How many messages it never took.
    pub(crate) fn lose(&mut self) -> u64 {
        self.open = false;
        self.bytes.clear();
        self.flushes = 0;
        self.unknown += self.unacked.waiting.len() as u64;
        self.unacked.waiting.clear();
        self.unacked.handed_over = self.unacked.last;
        std::mem::take(&mut self.messages)
    }

    /// Messages that wait for their acks.
    pub(crate) fn waiting(&self) -> u64 {
        self.unacked.waiting.len() as u64
    }

    /// The server owes an ack.
    pub(crate) fn is_owed(&self) -> bool {
        let first = self.unacked.waiting.first_key_value();
        first.is_some_and(|(first, _)| *first <= self.unacked.handed_over)
    }

    /// What the ack says of a message that waits for one, and that message's number. `None`: it
    /// is about none, or says nothing that settles one.
    pub(crate) fn judge(&self, ack: &UnhandledAck) -> Option<(u64, Outcome)> {
        // With a subscription's name it is that one's progress (`docs/protocol.md` §7).
        if ack.command != "ack" || ack.subscription.is_some() {
            return None;
        }
        let id = own_number(ack)?;
        if id > self.unacked.handed_over || !self.unacked.waiting.contains_key(&id) {
            return None;
        }
        let outcome = match (ack.status?, ack.kind) {
            (Status::Failure, _) => Outcome::Rejected {
                reason: ack.reason.clone(),
            },
            (Status::Success, Some(AckKind::Persisted)) => Outcome::Persisted { via: Via::Ack },
            _ => return None,
        };
        Some((id, outcome))
    }

    /// Ends the waiting of a message; `to_handler`: its place is taken until the handler has
    /// returned. Whether somebody may wait for the place.
    pub(crate) fn settle(&mut self, id: u64, outcome: Outcome, to_handler: bool) -> bool {
        let was_full = self.unacked.is_full();
        if let Some(receipt) = self.unacked.waiting.remove(&id) {
            self.unacked.refused += u64::from(to_handler);
            // Nobody may hold the receipt.
            let _ = receipt.send(outcome);
        }
        was_full
    }

    /// The handler has returned for a refusal. Whether somebody may wait for its place.
    pub(crate) fn handled(&mut self) -> bool {
        let was_full = self.unacked.is_full();
        self.unacked.refused = self.unacked.refused.saturating_sub(1);
        was_full
    }
}

impl Unacked {
    fn is_full(&self) -> bool {
        self.waiting.len() as u64 + self.refused >= self.max
    }
}

/// Command ids of publishes without a store start with a letter of their own, so that none looks
/// like that of a session's command, or like a sequence.
fn command_id(number: u64) -> String {
    format!("p{number}")
}

/// The number in the command id of an ack, if it has the form of a publish's.
pub(crate) fn own_number(ack: &UnhandledAck) -> Option<u64> {
    number(ack.command_id.as_deref()?.strip_prefix('p')?)
}

fn encode(message: &Message, id: Option<&str>, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let envelope = message.envelope();
    let acks = match id {
        Some(_) => AckKinds::PERSISTED,
        None => AckKinds::NONE,
    };
    match envelope.operation {
        Operation::Publish | Operation::DeltaPublish => Publish {
            delta: envelope.operation == Operation::DeltaPublish,
            command_id: id,
            expiration: envelope.expiration,
            options: envelope.options.as_deref(),
            correlation_id: envelope.correlation_id.as_deref(),
            sow_key: envelope.sow_key.as_deref(),
            acks,
            ..Publish::new(&envelope.topic, message.payload())
        }
        .encode(out),
        operation => Command {
            command_id: id,
            acks,
            ..crate::wire::delete(
                operation,
                &envelope.topic,
                envelope.selector.as_deref(),
                envelope.options.as_deref(),
                message.payload(),
            )
        }
        .encode(out),
    }
}
