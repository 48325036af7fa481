//! Acks without a store: those that messages asked for, and refusals that name none of them.

use super::Driver;
use crate::delivery::Totals;
use crate::direct::own_number;
use crate::event::Event;
use crate::failed::{FailedWrite, UnhandledAck};
use crate::protocol::Status;
use crate::receipt::Outcome;
use crate::session::{is_of_a_command, is_of_a_publish};
use crate::shared::unix_micros;

impl Driver {
    /// Takes in an ack that no command and no subscription takes; gives back what is left to
    /// pass on.
    pub(super) fn direct_ack(&mut self, ack: UnhandledAck) -> Option<UnhandledAck> {
        let judged = self.shared.direct().judge(&ack);
        let Some((number, outcome)) = judged else {
            self.unattributed_direct(&ack);
            return Some(ack);
        };
        let refused = match &outcome {
            Outcome::Rejected { reason } => Some(reason.clone()),
            _ => None,
        };
        self.count(|totals| match refused {
            Some(_) => totals.rejected += 1,
            None => totals.persisted += 1,
        });
        if let Some(reason) = &refused {
            self.shared.meter.rejected(reason.kind());
        }
        self.engine.counts_as_good();
        let to_handler = refused.is_some() && self.has_handler;
        if to_handler {
            // Before its receipt: a flush must find it in one place or the other.
            self.shared.offers.refused_direct(number, failed(&ack));
        }
        if self.shared.direct().settle(number, outcome, to_handler) {
            self.shared.room.notify_waiters();
        }
        self.shared.offers.settled();
        let reason = refused?;
        self.shared.event(Event::Refused {
            sequence: 0,
            reason: reason.clone(),
            late: false,
            earlier_run: false,
        });
        if to_handler {
            return None;
        }
        tracing::warn!(command_id = ack.command_id, %reason, "a message was refused; without a store it is gone");
        self.unhandled(ack);
        None
    }

    /// A refusal that may be of a publish and names none that waits is the only word about it
    /// that there will ever be.
    fn unattributed_direct(&mut self, ack: &UnhandledAck) {
        let refused = ack.command == "ack" && ack.status == Some(Status::Failure);
        let of_a_publish = match ack.command_id.as_deref() {
            None => true,
            Some(_) if own_number(ack).is_some() => true,
            Some(id) => is_of_a_publish(ack.kind) && !is_of_a_command(id),
        };
        if !refused || !of_a_publish || ack.subscription.is_some() {
            return;
        }
        tracing::error!(figure = ?ack.figure, command_id = ack.command_id, reason = %ack.reason, "a message was refused; without a store nothing says which");
        self.count(|totals| totals.unattributed += 1);
        self.shared.event(Event::Unattributed {
            figure: ack.figure,
            reason: ack.reason.clone(),
        });
    }

    fn count(&mut self, change: impl FnOnce(&mut Totals)) {
        let mut totals = self.shared.totals();
        change(&mut totals);
        self.shared.meter.totals(&mut self.work.counted, totals);
        self.shared.set_totals(totals);
    }
}

fn failed(ack: &UnhandledAck) -> FailedWrite {
    FailedWrite {
        sequence: 0,
        command_id: ack.command_id.clone(),
        reason: ack.reason.clone(),
        reason_cut: ack.reason_cut,
        at: unix_micros(),
        late: false,
        earlier_run: false,
        attempts: 1,
        original: None,
    }
}
