//! What to do while nothing new is handed over: wait and start again, refuse what no server can
//! take, or leave a server that does not answer.

use std::collections::BTreeSet;
use std::task::{Context, Waker};
use std::time::Duration;

use amps_store::PublishStore;

use super::{Engine, Linked, Output, Place, Waits};
use crate::delivery::{self, Acks, Drained, Input, Note, Now};
use crate::event::LinkEnd;
use crate::link::{Heard, Sink};

/// Servers that can never take a message.
#[derive(Debug, Default)]
pub(super) struct TurnedDown {
    sequence: u64,
    /// Never more than there are servers, or one if their number is not known.
    servers: BTreeSet<String>,
}

impl TurnedDown {
    /// How many there are now.
    fn by(&mut self, sequence: u64, server: &str) -> usize {
        if self.sequence != sequence {
            self.sequence = sequence;
            self.servers.clear();
        }
        self.servers.insert(server.to_owned());
        self.servers.len()
    }
}

impl Linked {
    pub(super) fn deadline(&self) -> Option<Duration> {
        [self.link.deadline(), self.again_at, self.overdue_at]
            .into_iter()
            .flatten()
            .min()
    }

    fn has_single_acks(&self) -> bool {
        self.capabilities
            .as_ref()
            .is_some_and(|capabilities| capabilities.acks == Acks::Single)
    }
}

impl Engine {
    /// Looks whether what nothing is handed over for is over; whether messages may go out now.
    pub(super) fn look_at_hold(&mut self, store: &dyn PublishStore, now: Now) -> bool {
        let Place::Linked(linked) = &mut self.place else {
            return false;
        };
        if let Some(drained) = self.delivery.drained(store) {
            match drained {
                Drained::TurnedAway {
                    longest,
                    at_once,
                    progress,
                } => {
                    let delay = match at_once {
                        true => Some(Duration::ZERO),
                        false => self.attempts.delay(progress, longest),
                    };
                    linked.again_at = delay.map(|delay| now.at + delay);
                    self.carry_out(store, now);
                    if delay.is_none() {
                        self.ended(store, now, LinkEnd::TurnedAway);
                        return false;
                    }
                }
                Drained::Unsendable { sequence, why } => {
                    return self.unsendable(store, now, sequence, why);
                }
            }
        }
        let Place::Linked(linked) = &mut self.place else {
            return false;
        };
        if linked.again_at.is_none_or(|at| now.at < at) {
            return false;
        }
        linked.again_at = None;
        linked.overdue.again();
        self.input(store, now, Input::Again);
        true
    }

    /// This server can never take a message. If none of them can, and none can have it, it is
    /// refused here; else another server may take it, or an operator decides.
    fn unsendable(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        why: String,
    ) -> bool {
        let servers = self.turned_down.by(sequence, &self.server);
        let note = |what| Output::Told {
            what: delivery::Output::Note(what),
            answer: None,
        };
        self.outputs.push_back(note(Note::Unsendable {
            sequence,
            why: why.clone(),
        }));
        let by_all = self.servers > 0 && servers >= self.servers || self.delivery.sends_once();
        if by_all && self.delivery.was_never_sent(sequence) && !planted!(UnsendableLoops) {
            let refused = self.delivery.refuse_unsendable(store, now, sequence, &why);
            self.carry_out(store, now);
            return refused && self.is_linked();
        }
        self.outputs.push_back(note(Note::Stalled {
            sequence,
            links: servers as u32,
        }));
        self.ended(store, now, LinkEnd::Unsendable { sequence, why });
        false
    }

    /// Whether this end is for a message that none of the servers can take.
    pub(super) fn is_turned_down(&self, why: &LinkEnd) -> bool {
        matches!(why, LinkEnd::Unsendable { .. })
            && self.turned_down.servers.len() >= self.servers.max(1)
    }

    /// Notes when the server has taken too long to answer, and for which message. Where acks have
    /// figures, silence is the link's to judge.
    pub(super) fn note_overdue(&mut self, store: &dyn PublishStore) -> Option<u64> {
        let Place::Linked(linked) = &mut self.place else {
            return None;
        };
        if !linked.has_single_acks() {
            return None;
        }
        let (waits, sequence) = match self.delivery.unanswered(store) {
            _ if self.delivery.recall_waits() => (Waits::Recall, 0),
            Some((sequence, wire)) => (Waits::From(wire), sequence),
            None => (Waits::Nothing, 0),
        };
        linked.overdue_at = linked.overdue.at(waits);
        linked.overdue_at.map(|_| sequence)
    }

    /// Ends a link whose server has taken too long to answer: that is no failure, whatever became
    /// of the message. Whether it did.
    pub(super) fn look_at_overdue(&mut self, store: &dyn PublishStore, now: Now) -> bool {
        let Some(sequence) = self.note_overdue(store) else {
            return false;
        };
        if !matches!(&self.place, Place::Linked(linked) if linked.overdue_at <= Some(now.at)) {
            return false;
        }
        if planted!(OverdueIsFailure) {
            let reason = "it was not answered in time";
            self.input(store, now, Input::GiveUp { sequence, reason });
            return true;
        }
        self.ended(store, now, LinkEnd::AckOverdue { sequence });
        true
    }
}

/// What must never be done with a link that has ended.
pub(super) fn write_on(linked: &mut Linked, now: Now) {
    struct Deaf;
    impl Sink for Deaf {
        fn heard(&mut self, _: Heard<'_>) {}
    }
    let mut cx = Context::from_waker(Waker::noop());
    let _ = linked.link.poll(&mut cx, now, &mut Deaf);
}
