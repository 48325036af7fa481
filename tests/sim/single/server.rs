//! A model of servers that ack each message by itself: what they hold, what they remember, and what
//! they say.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amps_delivery::Resume;

use super::super::ledger;
use super::link::{ToClient, ToServer};

/// How a server resumes, and what it checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Each message names the one before it, and is stored behind that or not at all; a greeting
    /// names the last.
    Chained,
    /// Messages are looked for by their ids.
    ById,
    /// Nothing but that ids are remembered for a while.
    Window,
}

/// A message in a server's stream. Its id is its number on the wire.
#[derive(Clone, Debug)]
pub struct Entry {
    pub wire: u64,
    pub body: Vec<u8>,
    pub at: Duration,
}

/// One server with a stream of its own.
#[derive(Debug)]
pub struct Node {
    pub mode: Mode,
    pub up: bool,
    /// The largest body.
    pub largest: usize,
    /// Bytes that the stream has room for.
    pub room: usize,
    /// How long an id is remembered.
    pub window: Duration,
    /// Nothing is taken.
    pub line_stopped: bool,
    pub log: Vec<Entry>,
    ids: BTreeMap<u64, Duration>,
    /// The last message stored, whatever was purged since.
    last: u64,
    /// What it ever stored, and refused.
    pub ever: Vec<Entry>,
    pub refused: BTreeSet<Vec<u8>>,
    /// How often it lost what it had stored, or forgot an id.
    pub losses: u64,
}

impl Node {
    pub fn new(mode: Mode, largest: usize, room: usize, window: Duration) -> Self {
        Node {
            mode,
            up: true,
            largest,
            room,
            window,
            line_stopped: false,
            log: Vec::new(),
            ids: BTreeMap::new(),
            last: 0,
            ever: Vec::new(),
            refused: BTreeSet::new(),
            losses: 0,
        }
    }

    pub fn greeting(&self) -> ToClient {
        let resume = match self.mode {
            Mode::Chained => Resume::HighWater(self.last),
            Mode::ById => Resume::ById,
            Mode::Window => Resume::Unknown,
        };
        ToClient::Up {
            resume,
            largest: self.largest,
        }
    }

    pub fn last(&self) -> u64 {
        self.last
    }

    pub fn stored(&self, body: &[u8]) -> bool {
        self.ever.iter().any(|entry| entry.body == body)
    }

    fn is_full(&self, body: &[u8]) -> bool {
        let held: usize = self.log.iter().map(|entry| entry.body.len()).sum();
        held + body.len() > self.room
    }

    /// What it answers.
    pub fn takes(&mut self, now: Duration, what: ToServer) -> ToClient {
        let (wire, body, again, after) = match what {
            ToServer::Ask { wire } => {
                let holds = self.log.iter().any(|entry| entry.wire == wire);
                return match holds {
                    true => ToClient::Found(wire),
                    false => ToClient::Absent(wire),
                };
            }
            ToServer::Publish {
                wire,
                body,
                again,
                after,
            } => (wire, body, again, after),
        };
        // It took larger ones when this one was sent, and the link has ended since.
        if self.line_stopped || body.len() > self.largest {
            return ToClient::TryAgain {
                wire,
                at_once: false,
            };
        }
        if let Some(reason) = ledger::refusal(&body) {
            self.refused.insert(body);
            return ToClient::Refused {
                wire,
                reason,
                again,
            };
        }
        if self
            .ids
            .get(&wire)
            .is_some_and(|at| *at + self.window > now)
        {
            return ToClient::Duplicate(wire);
        }
        if after.is_some_and(|after| after != self.last) {
            return ToClient::TryAgain {
                wire,
                at_once: true,
            };
        }
        if self.is_full(&body) {
            return ToClient::TryAgain {
                wire,
                at_once: false,
            };
        }
        self.store(Entry {
            wire,
            body,
            at: now,
        });
        ToClient::Stored(wire)
    }

    fn store(&mut self, entry: Entry) {
        self.ids.insert(entry.wire, entry.at);
        self.last = entry.wire;
        self.ever.push(entry.clone());
        self.log.push(entry);
    }

    /// Somebody has read what is there.
    pub fn purge(&mut self) {
        self.log.clear();
    }

    /// Starts again, with its disk; what it remembers it reads there.
    pub fn restart(&mut self, now: Duration) {
        self.line_stopped = false;
        let before = self.ids.len();
        self.ids.retain(|wire, at| {
            let there = self.log.iter().any(|entry| entry.wire == *wire);
            there && *at + self.window > now
        });
        self.losses += (before - self.ids.len()) as u64;
    }

    /// Starts again, without anything.
    pub fn restart_empty(&mut self) {
        self.line_stopped = false;
        self.log.clear();
        self.ids.clear();
        self.last = 0;
        self.losses += 1;
    }

    /// Takes over what another one stored behind what it has itself, so many messages of it;
    /// whether there were any.
    pub fn follow(&mut self, now: Duration, other: &[Entry], mut count: usize) -> bool {
        let before = self.ever.len();
        for entry in other {
            let behind = self.mode == Mode::Chained && entry.wire <= self.last;
            if count == 0 || behind || self.ids.contains_key(&entry.wire) {
                continue;
            }
            count -= 1;
            self.store(Entry {
                at: now,
                ..entry.clone()
            });
        }
        self.ever.len() > before
    }
}
