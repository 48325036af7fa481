//! How much may be on the way: in-flight bounds, and the pace of a replay.

use std::time::Duration;

use super::Config;

#[derive(Debug)]
pub(super) struct Flight {
    max_messages: u64,
    max_bytes: u64,
    messages: u64,
    bytes: u64,
    /// Time between two replayed messages.
    interval: Option<Duration>,
    /// No replayed message before this moment.
    next_at: Duration,
    /// A replayed message was held back until `next_at`.
    held: bool,
}

/// Unused time a paced replay may catch up on, so that a coarse timer keeps the rate.
const BURST: Duration = Duration::from_millis(50);

impl Flight {
    pub(super) fn new(config: &Config) -> Self {
        Flight {
            max_messages: config.max_in_flight.max(1),
            max_bytes: config.max_in_flight_bytes.max(1),
            messages: 0,
            bytes: 0,
            interval: config
                .replay_rate
                .filter(|rate| *rate > 0)
                .map(|rate| Duration::from_secs(1) / rate),
            next_at: Duration::ZERO,
            held: false,
        }
    }

    /// How many messages, and bytes but for the first of them, may be sent now.
    pub(super) fn room(&mut self, replaying: bool, now: Duration) -> Option<(usize, usize)> {
        let paced = replaying && self.interval.is_some();
        self.held = paced && now < self.next_at;
        if self.held || self.messages >= self.max_messages || self.bytes >= self.max_bytes {
            return None;
        }
        // The pace is decided anew for each.
        let messages = if paced {
            1
        } else {
            self.max_messages - self.messages
        };
        let bytes = self.max_bytes - self.bytes;
        let most = |room| usize::try_from(room).unwrap_or(usize::MAX);
        Some((most(messages), most(bytes)))
    }

    /// So many messages were sent: one, if there is a pace.
    pub(super) fn handed_over(&mut self, count: u64, bytes: u64, replaying: bool, now: Duration) {
        self.messages += count;
        self.bytes += bytes;
        if let (true, Some(interval)) = (replaying, self.interval) {
            self.next_at = self.next_at.max(now.saturating_sub(BURST)) + interval;
        }
    }

    /// Gives back the room of `count` settled messages. Which ones is not known per
    /// message (that would cost memory for each), so bytes go back at their mean size.
    pub(super) fn settled(&mut self, count: u64) {
        if count >= self.messages {
            return self.reset();
        }
        let mean = self.bytes / self.messages;
        self.messages -= count;
        self.bytes = self.bytes.saturating_sub(mean.saturating_mul(count));
    }

    pub(super) fn reset(&mut self) {
        self.messages = 0;
        self.bytes = 0;
        self.held = false;
    }

    pub(super) fn messages(&self) -> u64 {
        self.messages
    }

    pub(super) fn paced_until(&self) -> Option<Duration> {
        self.held.then_some(self.next_at)
    }
}
