//! A model server: the sandbox's pure rules over a log in memory, with a device that takes
//! its time, and replication to peers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use amps_client::protocol::{Ack, AckKind, FrameDecoder, Header, Status, Verb};
use amps_sandbox::{Closing, Config, Journal, Operation, Output, Server};

use super::manners::{Manners, Said, Then};
use super::{Rng, ledger};

/// What a server decided about a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logged {
    pub name: String,
    pub wire: u64,
    pub refused: bool,
    pub body: Vec<u8>,
    /// End of its entry in the log.
    pub position: u64,
    start: u64,
    operation: Operation,
}

/// A server. What its log holds and is not yet on its device is lost when it dies, and is
/// never acked before.
pub struct Model {
    pub config: Config,
    pub server: Server,
    bytes: Vec<u8>,
    pub log: Vec<Logged>,
    /// Everything up to here survives a crash of the server.
    pub on_disk: u64,
    /// Everything up to here may be acked.
    announced: u64,
    writes: VecDeque<(Duration, u64)>,
    /// How long its device takes.
    pub device: Duration,
    pub up: bool,
    /// Servers whose copy must be there before an ack.
    pub waits_for: Vec<usize>,
    /// Per peer: end of what it was given.
    pub replicated: BTreeMap<usize, u64>,
    pub replicating: bool,
    pub manners: Manners,
    pub said: Said,
    rng: Rng,
    names: BTreeMap<amps_sandbox::Link, String>,
    /// Acks are lost or come late: an answer to a duplicate would overtake them.
    acks_are_late: bool,
    decoders: BTreeMap<amps_sandbox::Link, FrameDecoder>,
    highest: BTreeMap<String, u64>,
    pub forgets: u64,
}

/// What a step of a server sends and closes.
#[derive(Default)]
pub struct Effects {
    pub sends: Vec<(amps_sandbox::Link, Vec<u8>)>,
    pub closes: Vec<(amps_sandbox::Link, Closing)>,
}

impl Model {
    pub fn new(config: Config) -> Self {
        Model {
            server: Server::new(config.clone(), 0),
            config,
            bytes: Vec::new(),
            log: Vec::new(),
            on_disk: 0,
            announced: 0,
            writes: VecDeque::new(),
            device: Duration::ZERO,
            up: true,
            waits_for: Vec::new(),
            replicated: BTreeMap::new(),
            replicating: true,
            manners: Manners::default(),
            said: Said::default(),
            rng: Rng::new(0),
            names: BTreeMap::new(),
            acks_are_late: false,
            decoders: BTreeMap::new(),
            highest: BTreeMap::new(),
            forgets: 0,
        }
    }

    /// Gives it manners, which decide by this seed.
    pub fn behave(&mut self, manners: Manners, seed: u64) {
        self.manners = manners;
        self.rng = Rng::new(seed);
    }

    pub fn connect(&mut self, now: Duration) -> amps_sandbox::Link {
        let link = self.server.connect(now);
        self.decoders.insert(link, FrameDecoder::new());
        link
    }

    pub fn disconnect(&mut self, link: amps_sandbox::Link) {
        self.decoders.remove(&link);
        self.names.remove(&link);
        self.server.disconnect(link);
    }

    pub fn receive(&mut self, link: amps_sandbox::Link, bytes: &[u8], now: Duration) -> Effects {
        let mut out = Output::default();
        let mut effects = Effects::default();
        let Some(decoder) = self.decoders.get_mut(&link) else {
            return effects;
        };
        decoder.push(bytes);
        let mut frames = Vec::new();
        while let Some(frame) = decoder.next_frame().expect("clients send frames") {
            frames.push(frame);
        }
        let mut again = Vec::new();
        for frame in frames {
            self.duplicate(link, &frame, &mut again);
            self.server.receive(link, &frame, now, &mut out);
        }
        self.take(&mut out, now);
        self.collect(out, &mut effects);
        if !again.is_empty() {
            effects.sends.push((link, again));
        }
        self.settle(now, &mut effects);
        effects
    }

    /// What a server that answers duplicates says to one whose fate it knows.
    fn duplicate(&mut self, link: amps_sandbox::Link, frame: &[u8], out: &mut Vec<u8>) {
        let (header, body) = Header::parse(frame).expect("clients send headers");
        if header.verb == Some(Verb::Logon) {
            let name = header.client_name.as_deref().unwrap_or_default();
            self.names.insert(link, name.to_owned());
            return;
        }
        let answers = self.manners.acks_duplicates && !self.acks_are_late;
        let Some(wire) = header.sequence.filter(|_| answers) else {
            return;
        };
        let Some(name) = self
            .names
            .get(&link)
            .filter(|_| self.server.is_logged_on(link))
        else {
            return;
        };
        let known = wire <= self.server.settled(name);
        let mut log = self.log.iter().rev().filter(|_| known);
        let Some(entry) = log.find(|entry| entry.name == *name && entry.wire == wire) else {
            return;
        };
        self.said.duplicates += 1;
        let reason = ledger::refusal(body).filter(|_| entry.refused);
        let id = header.command_id.as_deref();
        let ack = match &reason {
            Some(reason) => Ack::refused(Some(wire), id, reason),
            None => Ack {
                command_id: id,
                ..Ack::persisted(wire)
            },
        };
        ack.encode(out).expect("small");
    }

    pub fn tick(&mut self, now: Duration) -> Effects {
        let mut effects = Effects::default();
        self.settle(now, &mut effects);
        let mut out = Output::default();
        self.server.tick(now, &mut out);
        self.take(&mut out, now);
        self.collect(out, &mut effects);
        effects
    }

    pub fn deadline(&self) -> Option<Duration> {
        let write = self.writes.front().map(|(at, _)| *at);
        [write, self.server.deadline()].into_iter().flatten().min()
    }

    /// Puts a fault in force.
    pub fn inject(&mut self, fault: &amps_sandbox::Fault, now: Duration) -> Effects {
        let mut out = Output::default();
        // A link that was struck stays as it is, whatever becomes of the fault.
        self.acks_are_late |= matches!(
            fault,
            amps_sandbox::Fault::LoseAcksAfter(_) | amps_sandbox::Fault::DelayAcks(_)
        );
        if let amps_sandbox::Fault::Forget(name) = fault {
            self.forgets += 1;
            self.highest.remove(name);
        }
        self.server.inject(fault, &mut out);
        self.take(&mut out, now);
        let mut effects = Effects::default();
        self.collect(out, &mut effects);
        effects
    }

    /// What it took so far is on its device, come what may.
    pub fn sync(&mut self) {
        self.on_disk = self.end();
    }

    /// The process of the server dies and starts again over what its device holds.
    pub fn restart(&mut self) {
        let keep = self.on_disk;
        self.log.retain(|entry| entry.position <= keep);
        self.bytes.truncate(keep as usize);
        self.writes.clear();
        self.decoders.clear();
        self.names.clear();
        self.acks_are_late = false;
        self.highest.clear();
        self.server = Server::new(self.config.clone(), 0);
        let mut journal = Journal::memory();
        journal.append(&self.bytes).expect("memory");
        let mut from = 0;
        while from < journal.end() {
            from = journal
                .read(from, 1 << 20, |entry, position| {
                    self.server.recover(entry, position);
                    if entry.operation == Operation::Forgotten {
                        self.highest.remove(entry.client_name);
                    } else {
                        let highest = self.highest.entry(entry.client_name.into()).or_default();
                        *highest = (*highest).max(entry.sequence.unwrap_or(0));
                    }
                    true
                })
                .expect("its own log");
        }
        // A replica that has less than this log is given it again; it knows duplicates.
        self.replicated
            .values_mut()
            .for_each(|end| *end = (*end).min(keep));
        self.server.resume_at(keep);
        self.announced = keep;
        let mut nothing = Output::default();
        self.server.persisted(keep, Duration::ZERO, &mut nothing);
    }

    /// Forgets what it owes any peer a wait.
    pub fn entries_after(&self, from: u64) -> Vec<Logged> {
        self.log
            .iter()
            .filter(|entry| entry.position > from && entry.position <= self.on_disk)
            .cloned()
            .collect()
    }

    pub fn raw(&self, entry: &Logged) -> &[u8] {
        &self.bytes[entry.start as usize..entry.position as usize]
    }

    /// Takes an entry of a peer, unless it is a duplicate here.
    pub fn replicate(&mut self, entry: &Logged, raw: &[u8], now: Duration) -> Effects {
        let mut effects = Effects::default();
        let highest = self.highest.get(&entry.name).copied().unwrap_or(0);
        if entry.operation == Operation::Forgotten || entry.wire <= highest {
            return effects;
        }
        // What it took itself comes first.
        self.on_disk = self.end();
        self.writes.clear();
        self.settle(now, &mut effects);
        if self.announced < self.end() {
            // A synchronous replica of its own is behind: the next time.
            self.announce(self.end(), now, &mut effects);
        }
        self.append(raw);
        let mut journal = Journal::memory();
        journal.append(raw).expect("memory");
        let end = self.end();
        journal
            .read(0, 1 << 20, |entry, _| {
                self.server.recover(entry, end);
                true
            })
            .expect("a peer's entry");
        self.on_disk = end;
        self.announce(end, now, &mut effects);
        effects
    }

    pub fn end(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Whether the device holds this message as one it took.
    pub fn holds(&self, name: &str, body: &[u8]) -> bool {
        self.log.iter().any(|entry| {
            !entry.refused
                && entry.position <= self.on_disk
                && entry.name == name
                && entry.body == body
        })
    }

    /// Whether one of these numbers is in the log as refused.
    pub fn refused(&self, name: &str, wires: &BTreeSet<u64>) -> bool {
        self.log
            .iter()
            .any(|entry| entry.refused && entry.name == name && wires.contains(&entry.wire))
    }

    /// Bodies taken under a name, in order.
    pub fn bodies(&self, name: &str) -> Vec<&[u8]> {
        self.log
            .iter()
            .filter(|entry| {
                !entry.refused && entry.operation != Operation::Forgotten && entry.name == name
            })
            .map(|entry| entry.body.as_slice())
            .collect()
    }

    fn append(&mut self, raw: &[u8]) {
        let start = self.end();
        self.bytes.extend_from_slice(raw);
        let mut journal = Journal::memory();
        journal.append(raw).expect("memory");
        let mut from = 0;
        while from < journal.end() {
            let mut last = from;
            from = journal
                .read(from, 1 << 20, |entry, position| {
                    let wire = entry.sequence.unwrap_or(0);
                    self.log.push(Logged {
                        name: entry.client_name.to_owned(),
                        wire,
                        refused: entry.operation == Operation::Refused,
                        body: entry.body.to_vec(),
                        position: start + position,
                        start: start + last,
                        operation: entry.operation,
                    });
                    last = position;
                    if entry.operation != Operation::Forgotten {
                        let highest = self.highest.entry(entry.client_name.into()).or_default();
                        *highest = (*highest).max(wire);
                    }
                    true
                })
                .expect("its own entries");
        }
    }

    fn take(&mut self, out: &mut Output, now: Duration) {
        let raw = std::mem::take(&mut out.journal);
        if !raw.is_empty() {
            self.append(&raw);
            self.writes.push_back((now + self.device, self.end()));
        }
    }

    fn settle(&mut self, now: Duration, effects: &mut Effects) {
        while let Some((at, end)) = self.writes.front().copied() {
            if at > now {
                break;
            }
            self.writes.pop_front();
            self.on_disk = self.on_disk.max(end);
        }
        let copied = self
            .waits_for
            .iter()
            .map(|peer| self.replicated.get(peer).copied().unwrap_or(0))
            .min();
        let to = self.on_disk.min(copied.unwrap_or(u64::MAX));
        if to > self.announced {
            self.announce(to, now, effects);
        }
    }

    fn announce(&mut self, to: u64, now: Duration, effects: &mut Effects) {
        self.announced = self.announced.max(to);
        let mut out = Output::default();
        self.server.persisted(to, now, &mut out);
        self.take(&mut out, now);
        self.collect(out, effects);
    }

    fn collect(&mut self, out: Output, effects: &mut Effects) {
        for (link, bytes) in out.sends() {
            let logged_on = self.server.is_logged_on(link);
            let (rng, said) = (&mut self.rng, &mut self.said);
            let (bytes, then) = self.manners.put(bytes, logged_on, rng, said);
            effects.sends.push((link, bytes));
            if then == Then::Close {
                effects.closes.push((link, Closing::Graceful("no reason")));
            }
        }
        effects.closes.extend(out.closes);
    }
}

/// The frame of an ack for publishes, for scripts.
pub fn ack(figure: u64, refused: Option<&str>) -> Vec<u8> {
    let mut out = Vec::new();
    let ack = match refused {
        Some(reason) => Ack::refused(Some(figure), None, reason),
        None => Ack {
            sequence: Some(figure),
            ..Ack::new(AckKind::Persisted, Status::Success)
        },
    };
    ack.encode(&mut out).expect("small");
    out
}
