//! How long a server may take to answer, where each message has an ack of its own.

use std::collections::VecDeque;
use std::time::Duration;

/// When messages were written, and when the server was heard of any: memory does not grow with
/// how many wait.
#[derive(Debug)]
pub(super) struct Overdue {
    limit: Duration,
    /// Messages up to the first were written at the second, or before; both rise.
    written: VecDeque<Written>,
    /// When the server last said what became of a message.
    heard: Duration,
    /// When it was asked for messages by their ids.
    asked: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Written {
    through: u64,
    from: Duration,
    at: Duration,
}

/// Parts of the limit in which what is written counts as written together. It counts as written
/// with the last of it, so that no deadline is early.
const PARTS: u32 = 8;

/// What has no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waits {
    /// This message, and perhaps some behind it.
    From(u64),
    /// An answer to a question by ids.
    Recall,
    /// Nothing.
    Nothing,
}

impl Overdue {
    pub(super) fn new(limit: Duration) -> Self {
        Overdue {
            limit,
            written: VecDeque::new(),
            heard: Duration::ZERO,
            asked: Duration::ZERO,
        }
    }

    /// Everything up to this number is written.
    pub(super) fn wrote(&mut self, through: u64, now: Duration) {
        match self.written.back_mut() {
            Some(last) if now.saturating_sub(last.from) < self.limit / PARTS => {
                last.through = last.through.max(through);
                last.at = now;
            }
            _ => self.written.push_back(Written {
                through,
                from: now,
                at: now,
            }),
        }
    }

    /// The server said what became of a message.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
    }

    /// The server was asked for messages.
    pub(super) fn asked(&mut self, now: Duration) {
        self.asked = now;
    }

    /// Messages go out again: what was written before says nothing of them.
    pub(super) fn again(&mut self) {
        self.written.clear();
    }

    /// When it is over, as long as nothing is heard.
    pub(super) fn at(&mut self, waits: Waits) -> Option<Duration> {
        let oldest = match waits {
            Waits::Nothing => {
                self.written.clear();
                return None;
            }
            Waits::Recall => return Some(self.asked.max(self.heard) + self.limit),
            Waits::From(oldest) => oldest,
        };
        while self.written.front().is_some_and(|w| w.through < oldest) {
            self.written.pop_front();
        }
        // None: it is not written yet.
        let written = self.written.front()?.at;
        let silent = written.max(self.heard) + self.limit;
        Some(silent.min(written + 3 * self.limit))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn silence_ends_it_after_the_limit_and_a_message_passed_over_after_three() {
        let mut overdue = Overdue::new(10 * SECOND);
        assert_eq!(overdue.at(Waits::From(1)), None, "nothing is written");
        overdue.wrote(5, 2 * SECOND);
        assert_eq!(overdue.at(Waits::From(1)), Some(12 * SECOND));
        // Others are acked all the time.
        overdue.heard(11 * SECOND);
        assert_eq!(overdue.at(Waits::From(1)), Some(21 * SECOND));
        overdue.heard(30 * SECOND);
        assert_eq!(overdue.at(Waits::From(1)), Some(32 * SECOND));
        // One behind it is younger.
        overdue.wrote(6, 29 * SECOND);
        assert_eq!(overdue.at(Waits::From(6)), Some(40 * SECOND));
        assert_eq!(overdue.at(Waits::Nothing), None);
        assert_eq!(overdue.at(Waits::From(7)), None, "it is not written yet");
    }

    #[test]
    fn no_deadline_is_early_and_memory_is_bounded() {
        let mut overdue = Overdue::new(8 * SECOND);
        for step in 0..24_000_u64 {
            let now = Duration::from_millis(step);
            overdue.wrote(step, now);
            overdue.heard(now);
            // The oldest one was written at the beginning.
            let at = overdue.at(Waits::From(0)).unwrap();
            assert!(
                at >= now.max(8 * SECOND).min(24 * SECOND),
                "{at:?} at {step}"
            );
        }
        assert!(overdue.written.len() <= 25, "{}", overdue.written.len());
    }

    #[test]
    fn an_answer_to_a_question_has_as_long() {
        let mut overdue = Overdue::new(10 * SECOND);
        overdue.asked(3 * SECOND);
        assert_eq!(overdue.at(Waits::Recall), Some(13 * SECOND));
        overdue.heard(5 * SECOND);
        assert_eq!(overdue.at(Waits::Recall), Some(15 * SECOND));
    }
}
