//! Messages that are whole, and whose envelope this program does not know: another version
//! wrote them, or they were made by hand.

use amps_store::{Batch, EnvelopeError, MessageRef, PublishStore};

use super::{Delivery, Note, Now};

/// The reason kept with such a message.
const REASON: &str = "this program does not know its envelope, and cannot send it; requeue it with a program that does";

#[derive(Debug, Default)]
pub(super) struct Unreadable {
    /// Operation and topic of the last envelope that could be read: where they are the same,
    /// the next one can be read too.
    known: Vec<u8>,
    /// Told up to this message.
    told: u64,
    /// The refusal of one could not be logged on this link. It is not tried at every turn.
    stuck: bool,
}

impl Unreadable {
    fn judge(&mut self, message: &MessageRef<'_>) -> Result<(), EnvelopeError> {
        let subject = message.subject();
        if subject.is_some_and(|subject| subject == self.known) {
            return Ok(());
        }
        message.envelope()?;
        if let Some(subject) = subject {
            self.known.clear();
            self.known.extend_from_slice(subject);
        }
        Ok(())
    }

    /// Cuts a batch off before the first message that cannot be read; `false`: that is the
    /// first of all, and nothing is cut.
    pub(super) fn keep_readable(&mut self, batch: &mut Batch) -> bool {
        let bad = batch
            .iter()
            .position(|message| self.judge(&message).is_err());
        match bad {
            Some(0) => return false,
            Some(bad) => batch.truncate(bad),
            None => {}
        }
        true
    }

    /// A new link: what could not be logged is tried once more.
    pub(super) fn retry(&mut self) {
        self.stuck = false;
    }
}

impl Delivery {
    /// Takes the messages that cannot be read from the head of a batch, and empties it. They
    /// become refusals, as what an operator gives up on does: sent they cannot be, and what
    /// is behind them must not wait for ever. `false`: the store could not take one.
    pub(super) fn refuse_unreadable(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        batch: &mut Batch,
    ) -> bool {
        let messages = batch.iter();
        let heads = messages.map_while(|m| Some((m.sequence, m.envelope().err()?)));
        let heads: Vec<_> = heads.collect();
        batch.clear();
        let from = self.cursor;
        let mut ordinal = None;
        for (sequence, error) in heads {
            if self.unreadable.told < sequence {
                self.unreadable.told = sequence;
                self.note(Note::Unreadable { sequence, error });
            }
            if self.sync_failed && !self.store_gone {
                // Nothing can be made durable: a power cut would take the refusal, and the next
                // figure of the server cover a message that it never had.
                if !std::mem::replace(&mut self.stop_told, true) {
                    let through = sequence - 1;
                    self.note(Note::SendingStopped { through });
                }
                return false;
            }
            if self.unreadable.stuck {
                break;
            }
            let at = self.refuse(store, now, sequence, REASON, None);
            self.unreadable.stuck = store.is_unsettled(sequence);
            if self.unreadable.stuck {
                break;
            }
            ordinal = at;
            self.cursor = sequence + 1;
        }
        if self.cursor > from {
            self.hold_until_durable(store, ordinal);
        }
        !self.unreadable.stuck
    }
}
