//! A connection: two streams of bytes that arrive late, in pieces, cut, or not at all.

use std::collections::VecDeque;
use std::time::Duration;

use super::Rng;
use super::tap::Tap;

/// What arrives at an end of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Arrival {
    Bytes(Vec<u8>),
    End,
}

/// One direction.
#[derive(Clone, Debug, Default)]
pub struct Pipe {
    queue: VecDeque<(Duration, Arrival)>,
    latest: Duration,
    /// What is sent is lost: half of a half-open link.
    pub lost: bool,
    ended: bool,
}

impl Pipe {
    pub fn send(&mut self, at: Duration, bytes: Vec<u8>) {
        if self.lost || self.ended || bytes.is_empty() {
            return;
        }
        self.latest = self.latest.max(at);
        self.queue.push_back((self.latest, Arrival::Bytes(bytes)));
    }

    pub fn end(&mut self, at: Duration) {
        if self.lost || self.ended {
            return;
        }
        self.ended = true;
        self.latest = self.latest.max(at);
        self.queue.push_back((self.latest, Arrival::End));
    }

    /// Loses what is under way from some byte on, often in the middle of a frame.
    pub fn cut(&mut self, at: Duration, rng: &mut Rng) {
        let whole: usize = self.waiting();
        let mut keep = rng.below(whole as u64 + 1) as usize;
        for (_, arrival) in &mut self.queue {
            if let Arrival::Bytes(bytes) = arrival {
                bytes.truncate(keep);
                keep -= bytes.len();
            }
        }
        self.queue
            .retain(|(_, arrival)| !matches!(arrival, Arrival::Bytes(bytes) if bytes.is_empty()));
        self.end(at);
    }

    /// Bytes under way.
    pub fn waiting(&self) -> usize {
        self.queue
            .iter()
            .map(|(_, arrival)| match arrival {
                Arrival::Bytes(bytes) => bytes.len(),
                Arrival::End => 0,
            })
            .sum()
    }

    pub fn next(&mut self, now: Duration) -> Option<Arrival> {
        let due = self.queue.front().is_some_and(|(at, _)| *at <= now);
        due.then(|| self.queue.pop_front().map(|(_, arrival)| arrival))?
    }

    pub fn deadline(&self) -> Option<Duration> {
        self.queue.front().map(|(at, _)| *at)
    }
}

/// A link between a publisher and a server.
#[derive(Debug)]
pub struct Link {
    pub publisher: usize,
    pub server: usize,
    pub at_server: amps_sandbox::Link,
    /// To the server.
    pub up: Pipe,
    /// To the publisher.
    pub down: Pipe,
    /// Listens at the publisher's end.
    pub tap: Tap,
}

impl Link {
    /// The publisher writes this, and it arrives at `at`.
    pub fn write(&mut self, now: Duration, at: Duration, bytes: Vec<u8>) {
        self.tap.writes(now, &bytes);
        self.up.send(at, bytes);
    }

    pub fn is_lost(&self) -> bool {
        self.up.lost || self.down.lost
    }
}
