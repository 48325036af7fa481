//! Messages that were sent and have no answer yet, each under the name that its answer carries.

use std::collections::VecDeque;

/// Messages under way, in the order in which they went out.
#[derive(Debug, Default)]
pub(crate) struct Flight {
    /// The name of the first, and of the next one to be sent.
    first: u64,
    next: u64,
    sent: VecDeque<Option<Sent>>,
    waiting: usize,
}

/// A message under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sent {
    /// Its number.
    pub(crate) wire: u64,
    /// The place behind which it belongs, in a chain.
    pub(crate) expected: Option<u64>,
    /// It may have been sent before.
    pub(crate) again: bool,
    /// Nobody wants to know whether it is stored.
    pub(crate) unasked: bool,
}

impl Flight {
    /// Takes a message in; the name that its answer is to carry. Never the same twice.
    pub(crate) fn add(&mut self, sent: Sent) -> u64 {
        let name = self.next;
        self.next += 1;
        self.waiting += 1;
        self.sent.push_back(Some(sent));
        name
    }

    /// The message so named, if it has no answer.
    pub(crate) fn get(&self, name: u64) -> Option<Sent> {
        let at = usize::try_from(name.checked_sub(self.first)?).ok()?;
        *self.sent.get(at)?
    }

    /// The name that the next message gets.
    pub(crate) fn next(&self) -> u64 {
        self.next
    }

    /// It has its answer.
    pub(crate) fn answered(&mut self, name: u64) {
        let at = name.checked_sub(self.first).map(|at| at as usize);
        if let Some(sent) = at.and_then(|at| self.sent.get_mut(at))
            && sent.take().is_some()
        {
            self.waiting -= 1;
        }
        while let Some(None) = self.sent.front() {
            self.sent.pop_front();
            self.first += 1;
        }
    }

    /// How many have no answer.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting
    }

    /// How many there are room for in memory of so many: those behind one without an answer take
    /// room, too.
    pub(crate) fn room(&self, most: usize) -> usize {
        most.saturating_sub(self.sent.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(wire: u64) -> Sent {
        Sent {
            wire,
            expected: None,
            again: false,
            unasked: false,
        }
    }

    #[test]
    fn each_is_answered_once_in_any_order() {
        let mut flight = Flight::default();
        let names: Vec<u64> = (10..14).map(|wire| flight.add(sent(wire))).collect();
        assert_eq!(names, [0, 1, 2, 3]);
        flight.answered(2);
        flight.answered(2);
        assert_eq!((flight.waiting(), flight.room(5)), (3, 1));
        assert_eq!(flight.get(2), None);
        assert_eq!(flight.get(3), Some(sent(13)));
        flight.answered(0);
        flight.answered(1);
        assert_eq!((flight.waiting(), flight.room(5)), (1, 4));
        flight.answered(3);
        assert_eq!((flight.waiting(), flight.room(5)), (0, 5));
        for name in [0, 3, 4, u64::MAX] {
            assert_eq!(flight.get(name), None);
            flight.answered(name);
        }
        assert_eq!(flight.add(sent(9)), 4, "names are not used again");
    }
}
