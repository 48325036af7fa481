//! Messages that a server is asked for by their ids: after a link ended, before they go out again,
//! and when it refuses one that it may have stored before.

use std::collections::{BTreeMap, BTreeSet};

use amps_store::{Batch, PublishStore, ReadError};

use super::figures::Figure;
use super::{AckWish, Delivery, Now, Phase, Room, ToSend, Via, api};

/// What is asked for behind a link-up.
#[derive(Debug, Default)]
pub(super) struct Recall {
    /// What was not asked for yet, in what may have been sent.
    from: u64,
    through: u64,
    /// Asked for and not answered; no more than the link has room for.
    asked: BTreeSet<u64>,
}

/// Refusals of messages that were sent before, which are looked for first. Each is in flight.
#[derive(Debug, Default)]
pub(super) struct Doubts(BTreeMap<u64, String>);

impl Doubts {
    pub(super) fn add(&mut self, sequence: u64, reason: &str) {
        self.0.entry(sequence).or_insert_with(|| reason.to_owned());
    }

    pub(super) fn contains(&self, sequence: u64) -> bool {
        self.0.contains_key(&sequence)
    }

    pub(super) fn forget(&mut self, sequence: u64) {
        self.0.remove(&sequence);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl Delivery {
    /// Finds out what the server holds of what may have been sent, before anything goes out.
    pub(super) fn begin_recall(&mut self, store: &dyn PublishStore) {
        let through = self.figures.reach();
        match store.bounds().first_unsettled {
            Some(from) if from <= through => {
                self.phase = Phase::Recalling;
                self.recall = Recall {
                    from,
                    through,
                    asked: BTreeSet::new(),
                };
            }
            _ => self.go_live(store),
        }
    }

    /// Whether an answer to [`recall`](Self::recall) is still to come.
    pub fn recall_waits(&self) -> bool {
        !self.recall.asked.is_empty()
    }

    /// Gives `ask` messages that the server is to be asked for by their ids, as many as there is
    /// room for; whether it did, or moved on in another way. Each is to be answered by
    /// [`Input::Found`](super::Input::Found) or [`Input::Absent`](super::Input::Absent), and nothing
    /// else is asked for before.
    ///
    /// # Errors
    /// A record is damaged.
    pub fn recall(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        room: Room,
        batch: &mut Batch,
        ask: impl FnOnce(&[ToSend<'_>]),
    ) -> Result<bool, ReadError> {
        let wanted = match self.phase {
            Phase::Recalling => Some((self.recall.from, self.recall.through)),
            Phase::Live => self.doubts.0.keys().next().map(|one| (*one, *one)),
            _ => None,
        };
        let (Some((from, through)), false) = (wanted, self.recall_waits() || room.is_none()) else {
            return Ok(false);
        };
        batch.narrow(room.messages, room.bytes);
        store.read_unsettled(from, through, batch)?;
        let (rebase, again) = (self.figures.rebase(), true);
        // What cannot be read has no id. When its turn comes it is refused.
        let readable = batch.iter().filter(|message| message.envelope().is_ok());
        let messages: Vec<ToSend<'_>> = readable
            .map(|message| ToSend {
                sequence: message.sequence,
                wire: api::wire(rebase, message.sequence),
                again,
                ack: AckWish::Kept,
                message,
            })
            .collect();
        self.recall.asked = messages.iter().map(|message| message.sequence).collect();
        if !messages.is_empty() {
            ask(&messages);
        }
        if self.phase == Phase::Live {
            if messages.is_empty() {
                // It was settled meanwhile, or nothing can be asked about it.
                self.tell_doubt(store, now, from);
            }
            return Ok(true);
        }
        match batch.len().checked_sub(1).and_then(|at| batch.get(at)) {
            Some(last) => self.recall.from = last.sequence + 1,
            None => self.go_live(store),
        }
        Ok(true)
    }

    /// The sequence of a message that was asked for under this number.
    fn answered(&mut self, wire: u64) -> Option<u64> {
        match self.figures.on_ack(wire) {
            Figure::Within(sequence) if self.recall.asked.remove(&sequence) => Some(sequence),
            // Nobody asked, or it was answered before.
            _ => None,
        }
    }

    pub(super) fn found(&mut self, store: &dyn PublishStore, wire: u64) {
        if let Some(sequence) = self.answered(wire) {
            self.settled_single(store, sequence, Via::Found);
        }
    }

    pub(super) fn absent(&mut self, store: &dyn PublishStore, now: Now, wire: u64) {
        if let Some(sequence) = self.answered(wire)
            && let Some(reason) = self.doubts.0.remove(&sequence)
        {
            self.refused_by_server(store, now, sequence, &reason);
        }
    }

    /// Nobody can be asked any more whether these are stored: they are refused, and that is said.
    pub(super) fn tell_doubts(&mut self, store: &dyn PublishStore, now: Now) {
        while let Some(sequence) = self.doubts.0.keys().next().copied() {
            self.tell_doubt(store, now, sequence);
        }
    }

    fn tell_doubt(&mut self, store: &dyn PublishStore, now: Now, sequence: u64) {
        if let Some(reason) = self.doubts.0.remove(&sequence)
            && store.is_unsettled(sequence)
        {
            self.refuse_in_doubt(store, now, sequence, &reason);
        }
    }
}
