//! Flushes: each covers what was stored when it was asked for, over any number of links.

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::{Bounds, PublishStore};

use super::{Output, Via};

/// What became of the messages that a flush covers, but for those that an earlier flush has
/// counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flushed {
    /// Settled as a success by an ack.
    pub persisted: u64,
    /// Settled as a success at a logon.
    pub persisted_at_logon: u64,
    /// Settled because the server had seen the message's id before.
    pub duplicates: u64,
    /// Settled because the server was asked for the message by its id, and holds it.
    pub found: u64,
    /// Refused.
    pub rejected: u64,
    /// Unsettled still.
    pub left: u64,
    /// Without a store: nothing is known of them, for they asked for no ack, or their link ended
    /// first.
    pub unknown: u64,
}

impl Flushed {
    fn settled(&mut self, count: u64, via: Via) {
        match via {
            Via::Ack => self.persisted += count,
            Via::Logon => self.persisted_at_logon += count,
            Via::Duplicate => self.duplicates += count,
            Via::Found => self.found += count,
        }
    }

    /// Counts what another one counted, and what was left of that not at all.
    pub fn add(&mut self, other: Flushed) {
        self.persisted += other.persisted;
        self.persisted_at_logon += other.persisted_at_logon;
        self.duplicates += other.duplicates;
        self.found += other.found;
        self.rejected += other.rejected;
        self.unknown += other.unknown;
    }
}

#[derive(Debug, Default)]
pub(super) struct Flushes {
    waiting: Vec<Waiting>,
    /// What was settled and no flush has counted. The next one does: whoever publishes and then
    /// flushes is told of everything, however soon the answers came.
    uncounted: Flushed,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    target: u64,
    so_far: Flushed,
    until: Option<Duration>,
}

impl Flushes {
    pub(super) fn start(
        &mut self,
        id: u64,
        through: u64,
        until: Option<Duration>,
        store: &dyn PublishStore,
    ) {
        let bounds = store.bounds();
        let target = through.min(bounds.last);
        let behind = unsettled_behind(target, &bounds, store);
        let left = bounds.unsettled.saturating_sub(behind);
        self.waiting.push(Waiting {
            id,
            target,
            so_far: Flushed {
                left,
                ..std::mem::take(&mut self.uncounted)
            },
            until,
        });
    }

    pub(super) fn cancel(&mut self, id: u64) {
        let uncounted = &mut self.uncounted;
        self.waiting.retain(|waiting| {
            if waiting.id == id {
                uncounted.add(waiting.so_far);
            }
            waiting.id != id
        });
    }

    /// `count` messages up to `through` left the queue.
    pub(super) fn settled_through(&mut self, through: u64, count: u64, via: Via) {
        self.all(through, count, |so_far, count| so_far.settled(count, via));
    }

    /// Nothing will be known of `count` messages up to `through`.
    pub(super) fn unknown_through(&mut self, through: u64, count: u64) {
        self.all(through, count, |so_far, count| so_far.unknown += count);
    }

    fn all(&mut self, through: u64, count: u64, add: impl Fn(&mut Flushed, u64)) {
        let mut counted = 0;
        for waiting in &mut self.waiting {
            let so_far = &mut waiting.so_far;
            let covered = match through >= waiting.target {
                true => so_far.left,
                false => so_far.left.min(count),
            };
            so_far.left -= covered;
            add(so_far, covered);
            counted = covered.max(counted);
        }
        add(&mut self.uncounted, count.saturating_sub(counted));
    }

    /// One message was settled by itself.
    pub(super) fn settled_one(&mut self, sequence: u64, via: Via) {
        self.one(sequence, |so_far| so_far.settled(1, via));
    }

    /// One message was refused.
    pub(super) fn refused(&mut self, sequence: u64) {
        self.one(sequence, |so_far| so_far.rejected += 1);
    }

    /// Nothing will be known of one message.
    pub(super) fn unknown(&mut self, sequence: u64) {
        self.one(sequence, |so_far| so_far.unknown += 1);
    }

    fn one(&mut self, sequence: u64, count: impl Fn(&mut Flushed)) {
        let mut counted = false;
        for waiting in &mut self.waiting {
            if sequence <= waiting.target && waiting.so_far.left > 0 {
                waiting.so_far.left -= 1;
                count(&mut waiting.so_far);
                counted = true;
            }
        }
        if !counted {
            count(&mut self.uncounted);
        }
    }

    /// Tells which flushes are over: nothing up to their target is unsettled, or their time
    /// has come. With `None` for the time, all are.
    pub(super) fn report(
        &mut self,
        now: Option<Duration>,
        first_unsettled: impl FnOnce() -> Option<u64>,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        let first = first_unsettled();
        self.waiting.retain(|waiting| {
            let left = match first {
                Some(first) if first <= waiting.target => waiting.so_far.left.max(1),
                _ => 0,
            };
            let over = match now {
                Some(now) => left == 0 || waiting.until.is_some_and(|until| now >= until),
                None => true,
            };
            if over {
                outputs.push_back(Output::Flushed {
                    id: waiting.id,
                    result: Flushed {
                        left,
                        ..waiting.so_far
                    },
                });
            }
            !over
        });
    }

    pub(super) fn deadline(&self) -> Option<Duration> {
        self.waiting
            .iter()
            .filter_map(|waiting| waiting.until)
            .min()
    }
}

/// How many messages behind `target` are unsettled. It is the last one stored, but for what
/// came in between the call that flushes and this.
fn unsettled_behind(target: u64, bounds: &Bounds, store: &dyn PublishStore) -> u64 {
    match bounds.first_unsettled {
        Some(first) if first <= target => (target + 1..=bounds.last)
            .filter(|sequence| store.is_unsettled(*sequence))
            .count() as u64,
        _ => bounds.unsettled,
    }
}
