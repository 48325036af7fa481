//! What really happened, kept apart from everything under test: which bytes were published
//! under which number, what went over the wire, and what became of it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use amps_client::Via;
use amps_store::Rebase;

use super::Rng;

/// Numbers under which each message has ever been sent, per client name.
#[derive(Default)]
pub struct Wires {
    by_name: HashMap<String, HashMap<Vec<u8>, BTreeSet<u64>>>,
}

impl Wires {
    pub fn went_out(&mut self, name: &str, body: &[u8], wire: u64) {
        let bodies = self.by_name.entry(name.to_owned()).or_default();
        bodies.entry(body.to_vec()).or_default().insert(wire);
    }

    pub fn of(&self, name: &str, body: &[u8]) -> BTreeSet<u64> {
        let bodies = self.by_name.get(name);
        bodies
            .and_then(|b| b.get(body))
            .cloned()
            .unwrap_or_default()
    }
}

/// What is known to have become of a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    Unsettled,
    Persisted(Via),
    /// Refused, and in the log at this ordinal; `None`: in memory only, after a failed sync.
    Rejected(Option<u64>),
    /// A power cut took it before it was durable.
    Lost,
}

#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    /// Where its record is in the log.
    pub ordinal: u64,
    pub fate: Fate,
    /// A server persisted it at some time, whatever a power cut has made of that knowledge since.
    pub was_persisted: bool,
}

/// A refusal that waits for the application, or did.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub reason: String,
    pub ordinal: Option<u64>,
    pub late: bool,
    /// How often the handler saw it.
    pub handled: u32,
    /// The application accepted it.
    pub accepted: bool,
    /// The earlier one, which was accepted: a message that was given up can be refused as well,
    /// and a power cut may take only the second refusal.
    pub before: Option<Box<Refusal>>,
}

/// The truth about one store, as long as it is not replaced by an old copy of itself.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub lineage: u64,
    pub messages: BTreeMap<u64, Message>,
    pub refusals: BTreeMap<u64, Refusal>,
    /// What an operator gave up on.
    pub gave_up: BTreeSet<u64>,
    /// The number under which each message was last sent.
    pub sent: BTreeMap<u64, u64>,
    /// The same for what the original has sent, if this is a restored copy.
    pub elsewhere: BTreeMap<u64, u64>,
    /// The payload that each number on the wire belongs to.
    pub owners: BTreeMap<u64, Vec<u8>>,
    /// The durable send grant.
    pub grant: u64,
    /// The rebase in force.
    pub rebase: Option<Rebase>,
    /// Outcomes of this run: acked, covered at a logon, refused.
    pub counts: (u64, u64, u64),
}

impl Book {
    pub fn unsettled(&self) -> impl Iterator<Item = u64> {
        self.messages
            .iter()
            .filter(|(_, m)| m.fate == Fate::Unsettled)
            .map(|(s, _)| *s)
    }

    pub fn unsettled_through(&self, through: u64) -> Vec<u64> {
        self.messages
            .range(..=through)
            .filter(|(_, m)| m.fate == Fate::Unsettled)
            .map(|(s, _)| *s)
            .collect()
    }

    /// Whether an operator gave up on every message in this range that is known to exist, and on
    /// at least one.
    pub fn given_up(&self, first: u64, last: u64) -> bool {
        let mut there = self.messages.range(first..=last);
        self.gave_up.range(first..=last).next().is_some()
            && there.all(|(s, m)| m.fate == Fate::Lost || self.gave_up.contains(s))
    }

    pub fn waiting(&self) -> Vec<u64> {
        let waiting = self.refusals.iter().filter(|(_, r)| !r.accepted);
        waiting.map(|(s, _)| *s).collect()
    }

    pub fn appended(&mut self, sequence: u64, body: Vec<u8>, ordinal: u64) {
        if let Some(before) = self.messages.get(&sequence) {
            assert_eq!(
                before.fate,
                Fate::Lost,
                "sequence {sequence} was given out twice"
            );
            assert!(
                !self.sent.contains_key(&sequence),
                "sequence {sequence} was on the wire and is given out again"
            );
            self.refusals.remove(&sequence);
        }
        let message = Message {
            body,
            ordinal,
            fate: Fate::Unsettled,
            was_persisted: false,
        };
        self.messages.insert(sequence, message);
    }

    /// Notes that this number belongs to no message, unless a message has it.
    pub fn skipped(&mut self, sequence: u64) {
        self.messages.entry(sequence).or_insert(Message {
            body: Vec::new(),
            ordinal: 0,
            fate: Fate::Lost,
            was_persisted: false,
        });
    }

    pub fn went_out(&mut self, sequence: u64, wire: u64) {
        assert!(
            sequence <= self.grant,
            "sequence {sequence} goes out, the durable grant is {}",
            self.grant
        );
        let message = &self.messages[&sequence];
        assert_eq!(
            message.fate,
            Fate::Unsettled,
            "settled message {sequence} goes out"
        );
        let owner = self
            .owners
            .entry(wire)
            .or_insert_with(|| message.body.clone());
        assert!(
            *owner == message.body,
            "wire number {wire} is used for two messages"
        );
        self.sent.insert(sequence, wire);
    }

    /// The number under which a message is sent.
    pub fn wire(&self, sequence: u64) -> u64 {
        match self.rebase {
            Some(rebase) if sequence >= rebase.from => sequence.wrapping_add_signed(rebase.delta),
            _ => sequence,
        }
    }

    pub fn rebased(&mut self, rebase: Rebase) {
        self.sent.split_off(&rebase.from);
        self.elsewhere.split_off(&rebase.from);
        self.grant = rebase.from - 1;
        self.rebase = Some(rebase);
    }
}

/// The payload of a message, determined by these numbers alone. Servers refuse bodies that begin
/// with `R`.
pub fn body(seed: u64, publisher: usize, lineage: u64, run: u64, sequence: u64) -> Vec<u8> {
    let mut rng = Rng::new(
        seed ^ (publisher as u64).rotate_left(50)
            ^ lineage.rotate_left(40)
            ^ run.rotate_left(30)
            ^ sequence.rotate_left(8),
    );
    let kind = if rng.one_in(8) { 'R' } else { 'm' };
    let mut body = format!("{kind}{publisher}.{lineage}.{run}.{sequence} ").into_bytes();
    let length = if rng.one_in(12) {
        rng.below(1200)
    } else {
        rng.below(90)
    };
    body.extend((0..length).map(|_| rng.bits() as u8));
    body
}

/// Why servers refuse a body, if they do.
pub fn refusal(body: &[u8]) -> Option<String> {
    let refused = body.first() == Some(&b'R');
    let length = body.len() % 200;
    refused.then(|| format!("not today {}", "and not tomorrow ".repeat(length / 17)))
}
