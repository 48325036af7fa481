//! How long messages wait for their ack, measured on one message of each batch that is sent: at a
//! low rate that is every message, and at a high one it costs nothing.

use std::collections::VecDeque;
use std::time::Duration;

/// How many messages on their way are measured at most.
const MOST: usize = 1024;

/// Messages that are measured: sequence, and when each was published, in microseconds since the
/// Unix epoch. Sequences rise.
#[derive(Debug, Default)]
pub(crate) struct Sampled(VecDeque<(u64, u64)>);

impl Sampled {
    pub(crate) fn has_room(&self) -> bool {
        self.0.len() < MOST
    }

    /// A message is sent.
    pub(crate) fn sent(&mut self, sequence: u64, published_at: u64) {
        let follows = self.0.back().is_none_or(|(last, _)| *last < sequence);
        if published_at > 0 && follows && self.has_room() {
            self.0.push_back((sequence, published_at));
        }
    }

    /// Everything up to `through` is settled. Returns how long that took.
    pub(crate) fn settled_through(&mut self, through: u64, now: u64) -> Vec<Duration> {
        let settled = self.0.partition_point(|(sequence, _)| *sequence <= through);
        let ages = self.0.drain(..settled);
        ages.map(|(_, at)| age(at, now)).collect()
    }

    /// One message is settled or refused. Returns how long that took, if it was measured.
    pub(crate) fn settled(&mut self, sequence: u64, now: u64) -> Option<Duration> {
        let found = self
            .0
            .binary_search_by_key(&sequence, |(sequence, _)| *sequence);
        let (_, at) = self.0.remove(found.ok()?)?;
        Some(age(at, now))
    }

    /// The link is gone. What is sent again is measured again, from its publish.
    pub(crate) fn clear(&mut self) {
        self.0.clear();
    }
}

fn age(at: u64, now: u64) -> Duration {
    Duration::from_micros(now.saturating_sub(at))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_measured_once_and_few_at_a_time() {
        let mut sampled = Sampled::default();
        let micros = Duration::from_micros;
        for sequence in 1..=5 {
            sampled.sent(sequence, 10 * sequence);
        }
        sampled.sent(5, 1);
        sampled.sent(6, 0);
        assert_eq!(sampled.settled(3, 100), Some(micros(70)));
        assert_eq!(sampled.settled(3, 100), None);
        assert_eq!(sampled.settled_through(4, 100), [90, 80, 60].map(micros));
        assert_eq!(
            sampled.settled_through(6, 7),
            [micros(0)],
            "a clock set back"
        );
        for sequence in 0..2 * MOST as u64 {
            sampled.sent(sequence, 1);
        }
        assert!(!sampled.has_room());
        assert_eq!(sampled.settled_through(u64::MAX, 1).len(), MOST);
        sampled.sent(1, 1);
        sampled.clear();
        assert_eq!(sampled.settled(1, 1), None);
    }
}
