//! Flushes: each covers what was stored when it was asked for, over any number of links.

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::Bounds;

use super::Output;

#[derive(Debug, Default)]
pub(super) struct Flushes {
    waiting: Vec<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    target: u64,
    left: u64,
    until: Option<Duration>,
}

impl Flushes {
    pub(super) fn start(
        &mut self,
        id: u64,
        through: u64,
        until: Option<Duration>,
        bounds: &Bounds,
    ) {
        let target = through.min(bounds.last);
        // What was stored behind the target is hardly settled yet; `report` does not rely on it.
        let behind = bounds.last - target;
        self.waiting.push(Waiting {
            id,
            target,
            left: bounds.unsettled.saturating_sub(behind),
            until,
        });
    }

    pub(super) fn cancel(&mut self, id: u64) {
        self.waiting.retain(|waiting| waiting.id != id);
    }

    /// `count` messages up to `through` left the queue.
    pub(super) fn settled_through(&mut self, through: u64, count: u64) {
        for waiting in &mut self.waiting {
            waiting.left = match through >= waiting.target {
                true => 0,
                false => waiting.left.saturating_sub(count),
            };
        }
    }

    /// One message left the queue.
    pub(super) fn settled_one(&mut self, sequence: u64) {
        for waiting in &mut self.waiting {
            if sequence <= waiting.target {
                waiting.left = waiting.left.saturating_sub(1);
            }
        }
    }

    /// Tells which flushes are over: nothing up to their target is unsettled, or their time
    /// has come.
    pub(super) fn report(
        &mut self,
        now: Duration,
        first_unsettled: impl FnOnce() -> Option<u64>,
        outputs: &mut VecDeque<Output>,
    ) {
        if self.waiting.is_empty() {
            return;
        }
        let first = first_unsettled();
        self.waiting.retain(|waiting| {
            let left = match first {
                Some(first) if first <= waiting.target => waiting.left.max(1),
                _ => 0,
            };
            let over = left == 0 || waiting.until.is_some_and(|until| now >= until);
            if over {
                outputs.push_back(Output::Flushed {
                    id: waiting.id,
                    left,
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
