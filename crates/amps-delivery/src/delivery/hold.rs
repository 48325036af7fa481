//! Messages that a server did not take for now, and one that a link can never take: nothing new
//! goes out until everything that is under way has its verdict.

use std::collections::BTreeSet;

use amps_store::PublishStore;

use super::{Delivery, Note, Now, Phase};
use crate::cut;

/// Why nothing is handed over.
#[derive(Debug)]
pub(super) struct Hold {
    /// Turned away since the hold began, by sequence: they have their verdict, and are unsettled.
    /// Never more than may be in flight.
    turned: BTreeSet<u64>,
    /// Something is wrong with the server, or with one of them.
    wait: bool,
    /// The server takes nothing, whatever it is.
    line: bool,
    /// This message can never go out on this link.
    unsendable: Option<(u64, String)>,
    /// The wait is under way.
    told: bool,
}

/// Rounds in which a server turned messages away.
#[derive(Debug, Default)]
pub(super) struct Rounds {
    /// One after the other without anything settled by a server in between.
    count: u32,
    /// What servers had settled then.
    settled: u64,
    /// What they had settled when it was told that a message was turned away, that the line
    /// stopped.
    turned_told: Option<u64>,
    line_told: Option<u64>,
}

/// Everything that was under way has its verdict, and nothing new was handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Messages were turned away. They go out again ([`Input::Again`](super::Input::Again)) after
    /// a delay.
    TurnedAway {
        /// Time alone will not mend it: the longest one.
        longest: bool,
        /// No delay: what was in the way is settled.
        at_once: bool,
        /// Something was settled since the round before: delays start anew.
        progress: bool,
    },
    /// The next message can never go out on this link.
    Unsendable {
        /// The message.
        sequence: u64,
        /// Why.
        why: String,
    },
}

impl Hold {
    fn new() -> Self {
        Hold {
            turned: BTreeSet::new(),
            wait: false,
            line: false,
            unsendable: None,
            told: false,
        }
    }

    /// How many up to this one were turned away; they are settled now.
    fn forget_through(&mut self, through: u64) -> u64 {
        let before = self.turned.len();
        self.turned = self.turned.split_off(&(through + 1));
        (before - self.turned.len()) as u64
    }
}

impl Delivery {
    /// The server did not take this message for now. One that goes out once is refused by that.
    pub(super) fn turned_away(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        wire: u64,
        why: &str,
        at_once: bool,
    ) {
        if self.phase != Phase::Live {
            return;
        }
        let Some(sequence) = self.sent_here(wire) else {
            return;
        };
        if self.sends_once() {
            return self.refused_by_server(store, now, sequence, why);
        }
        let answered = !store.is_unsettled(sequence) || self.pending.single.contains(sequence);
        // Behind the cursor: it was sent in an earlier round, and waits for its turn.
        if answered || self.doubts.contains(sequence) || sequence >= self.cursor {
            return;
        }
        let hold = self.hold.get_or_insert_with(Hold::new);
        if !hold.turned.insert(sequence) {
            return;
        }
        let first = !at_once && !hold.wait;
        hold.wait |= !at_once;
        self.flight.settled(1);
        let told = self.rounds.turned_told;
        if first && told.is_none_or(|settled| self.by_servers > settled) {
            self.rounds.turned_told = Some(self.by_servers);
            let why = cut(why).to_owned();
            self.note(Note::TurnedAway { sequence, why });
        }
    }

    /// The server takes nothing: as if it had turned the next message away.
    pub(super) fn line_stopped(&mut self, why: &str) {
        if self.phase != Phase::Live {
            return;
        }
        let hold = self.hold.get_or_insert_with(Hold::new);
        (hold.line, hold.wait, hold.told) = (true, true, false);
        let told = self.rounds.line_told;
        if told.is_none_or(|settled| self.by_servers > settled) {
            self.rounds.line_told = Some(self.by_servers);
            let why = cut(why).to_owned();
            self.note(Note::LineStopped { why });
        }
    }

    pub(super) fn line_free(&mut self) {
        if let Some(hold) = &mut self.hold {
            hold.line = false;
            // What was turned away meanwhile has its own reasons to wait.
            hold.wait = !hold.turned.is_empty() && hold.wait;
            hold.told = false;
        }
    }

    /// What is to be done now that nothing is under way any more; told once.
    pub fn drained(&mut self, store: &dyn PublishStore) -> Option<Drained> {
        let hold = self.hold.as_mut()?;
        let waits = self.flight.messages() > 0 || !self.doubts.is_empty();
        if waits || !self.pending.single.is_empty() || hold.told {
            return None;
        }
        hold.told = true;
        let (line, wait) = (hold.line, hold.wait);
        // What was turned away is before it, and has to go out again; then it is met once more.
        if hold.turned.is_empty()
            && !line
            && let Some((sequence, why)) = hold.unsendable.clone()
        {
            return Some(Drained::Unsendable { sequence, why });
        }
        let progress = self.by_servers > self.rounds.settled;
        let rounds = &mut self.rounds;
        rounds.settled = self.by_servers;
        rounds.count = if progress { 1 } else { rounds.count + 1 };
        let count = rounds.count;
        let stalled = count >= self.config.stall_after.max(1);
        if let (true, Some(sequence)) = (stalled, store.bounds().first_unsettled) {
            self.note(Note::Stalled {
                sequence,
                links: count,
            });
        }
        Some(Drained::TurnedAway {
            longest: line || stalled,
            at_once: !wait && progress,
            progress,
        })
    }

    /// What was turned away goes out again, and everything behind it.
    pub(super) fn again(&mut self, store: &dyn PublishStore) {
        if self.phase == Phase::Live && self.hold.take().is_some() {
            let bounds = store.bounds();
            self.cursor = bounds.first_unsettled.unwrap_or(bounds.next);
            self.links.started(self.cursor);
            self.flight.reset();
        }
    }

    /// A link can never take this message, which was to be handed over next.
    pub fn unsendable(&mut self, sequence: u64, why: &str) {
        let hold = self.hold.get_or_insert_with(Hold::new);
        hold.unsendable = Some((sequence, cut(why).to_owned()));
        hold.told = false;
    }

    /// Whether no server can hold this message, whatever became of it.
    pub fn was_never_sent(&self, sequence: u64) -> bool {
        sequence > self.figures.sent()
    }

    /// No server that there is can take a message that none was ever sent: it becomes a refusal,
    /// as one that an operator gives up on, and is durable before anything behind it goes out.
    /// `false`: the store could not log it, and nothing goes out.
    pub fn refuse_unsendable(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        why: &str,
    ) -> bool {
        let reason = format!("not sent: {why}");
        self.passed_over(sequence);
        match planted!(UnsendableNotAwaited) {
            true => drop(self.refuse(store, now, sequence, &reason, None)),
            false => self.give_up(store, now, sequence, &reason),
        }
        let done = !store.is_unsettled(sequence);
        if done {
            self.hold = None;
        }
        done
    }

    /// So many messages up to this one were settled at once. Those among them that were turned
    /// away had left the flight before.
    pub(super) fn left_flight_through(&mut self, through: u64, count: u64) {
        let before = self.hold.as_mut().map(|hold| hold.forget_through(through));
        match before {
            // All that was under way.
            Some(_) if through >= self.cursor.saturating_sub(1) => self.flight.reset(),
            before => self
                .flight
                .settled(count.saturating_sub(before.unwrap_or(0))),
        }
    }

    /// This message was settled, or refused.
    pub(super) fn left_flight(&mut self, sequence: u64) {
        let hold = self.hold.as_mut();
        let had_left = hold.is_some_and(|hold| hold.turned.remove(&sequence));
        if !had_left && sequence < self.cursor {
            self.flight.settled(1);
        }
    }

    /// A link ended: what it turned away waits for the next one like everything else.
    pub(super) fn release(&mut self) {
        self.hold = None;
        self.rounds.count = 0;
    }

    /// Whether the server takes nothing, whatever it is.
    pub fn line_is_stopped(&self) -> bool {
        self.hold.as_ref().is_some_and(|hold| hold.line)
    }
}
