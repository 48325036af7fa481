//! The server without its sockets: frames in, log entries and frames out.

mod logon;
mod subscribing;
mod unsupported;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use amps_client::protocol::{Ack, AckKind, FrameError, Header, Status, Verb, encode_heartbeat};

use crate::fault::{Fault, Faults, parse_duration};
use crate::filter::Filter;
use crate::journal::{self, Entry, Journal, Operation};
use crate::rules::{Link, Notice, Rules, Verdict, Write};
use crate::sow::Sow;
use crate::subscription::Subscription;
use crate::{Candidate, Config, Dialect, Told};

/// A server as a state machine: no socket, no disk, no clock, no task.
///
/// The driver owns the log. It feeds frames in with [`Server::receive`], appends
/// [`Output::journal`] to the log, reports that with [`Server::persisted`], and only then sends
/// what is in the [`Output`], so that nothing is acked that the log does not hold. Time is
/// counted from a start that the driver chooses.
///
/// This is what the sandbox runs on sockets, and what a simulation can run without them.
#[derive(Debug)]
pub struct Server {
    config: Config,
    rules: Rules,
    sow: Sow,
    faults: Faults,
    peers: BTreeMap<Link, Peer>,
    next_link: u64,
    log_end: u64,
    delayed: VecDeque<(Duration, Link, Notice)>,
    /// In the order of the users in the configuration.
    attempts: Vec<logon::Attempts>,
}

/// What a step of the server wants to be done, in this order: log, send, close.
#[derive(Debug, Default)]
pub struct Output {
    /// Entries to append to the log.
    pub journal: Vec<u8>,
    sends: Vec<(Link, Vec<u8>)>,
    /// Links to close, and how.
    pub closes: Vec<(Link, Closing)>,
    /// What whoever runs the server may want to know.
    pub told: Vec<Told>,
}

/// How a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Send what is to be sent, then close. The text is the reason, in the words of AMPS' log.
    Graceful(&'static str),
    /// Close at once.
    Abrupt,
    /// Send half a frame, then close.
    MidFrame,
    /// Keep it open and never touch it again.
    Stall,
}

#[derive(Debug, Default)]
struct Peer {
    name: Option<String>,
    json: bool,
    gone: bool,
    muted: bool,
    messages: u64,
    challenges: u32,
    subscriptions: Vec<Subscription>,
    heartbeat: Option<Duration>,
    heard: Duration,
    told: Duration,
    connected: Duration,
}

impl Output {
    /// The frames for `link`, to append to.
    fn to(&mut self, link: Link) -> &mut Vec<u8> {
        let known = self.sends.iter().position(|(to, _)| *to == link);
        let index = known.unwrap_or_else(|| {
            self.sends.push((link, Vec::new()));
            self.sends.len() - 1
        });
        &mut self.sends[index].1
    }

    /// What to send: frames per link.
    pub fn sends(&self) -> impl Iterator<Item = (Link, &[u8])> {
        self.sends
            .iter()
            .map(|(link, bytes)| (*link, bytes.as_slice()))
    }
}

impl Server {
    /// A server over an empty log that ends at `log_end`.
    pub fn new(config: Config, log_end: u64) -> Self {
        Server {
            rules: Rules::new(config.ack_interval, config.dialect),
            sow: Sow::new(config.sow.iter().cloned()),
            faults: Faults::default(),
            peers: BTreeMap::new(),
            next_link: 1,
            log_end,
            delayed: VecDeque::new(),
            attempts: vec![Default::default(); config.users.len()],
            config,
        }
    }

    /// Takes an entry of an existing log into memory; `position` is the entry's end.
    pub fn recover(&mut self, entry: &Entry<'_>, position: u64) {
        match entry.operation {
            Operation::Forgotten => self.rules.forget(entry.client_name),
            _ => {
                self.rules
                    .recover(entry.client_name, entry.sequence.unwrap_or(0));
                self.sow.apply(entry, position);
            }
        }
        self.log_end = self.log_end.max(position);
    }

    /// The log continues at `position`, where its last entry ends.
    pub fn resume_at(&mut self, position: u64) {
        self.log_end = position;
    }

    /// A link was opened.
    pub fn connect(&mut self, now: Duration) -> Link {
        let link = Link(self.next_link);
        self.next_link += 1;
        self.peers.insert(
            link,
            Peer {
                heard: now,
                told: now,
                connected: now,
                ..Peer::default()
            },
        );
        link
    }

    /// A link is gone.
    pub fn disconnect(&mut self, link: Link) {
        self.rules.log_off(link);
        self.peers.remove(&link);
    }

    /// Puts a fault in force.
    pub fn inject(&mut self, fault: &Fault, out: &mut Output) {
        self.faults.set(fault);
        if let Fault::Forget(name) = fault {
            self.rules.forget(name);
            let entry = Entry {
                client_name: name,
                ..decision(Operation::Forgotten)
            };
            self.log_end += journal::encode(&mut out.journal, &entry) as u64;
        }
    }

    /// Ends all faults; links that one has broken stay as they are.
    pub fn clear_faults(&mut self) {
        self.faults = Faults::default();
    }

    /// The highest sequence settled for a client name.
    pub fn settled(&self, name: &str) -> u64 {
        self.rules.settled(name)
    }

    /// Whether `link` logged on.
    pub fn is_logged_on(&self, link: Link) -> bool {
        self.peers.get(&link).is_some_and(|p| p.name.is_some())
    }

    /// Whether `link` has subscriptions.
    pub fn subscribes(&self, link: Link) -> bool {
        self.peers
            .get(&link)
            .is_some_and(|peer| !peer.subscriptions.is_empty())
    }

    /// Handles one frame.
    pub fn receive(&mut self, link: Link, frame: &[u8], now: Duration, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(&link).filter(|peer| !peer.gone) else {
            return;
        };
        peer.heard = now;
        let Ok((header, body)) = Header::parse(frame) else {
            return self.close(link, Closing::Graceful("unknown command"), out);
        };
        let verb = header.verb.clone().unwrap_or(Verb::Other("".into()));
        let logged_on = peer.name.is_some();
        let answered = match verb {
            Verb::Logon => self.logon(link, &header, now, out),
            _ if !logged_on => self.refuse(link, &header, "logon required", out).map(|()| {
                self.close(link, Closing::Graceful("auth"), out);
            }),
            Verb::Publish => self.message(link, Operation::Publish, &header, body, out),
            Verb::DeltaPublish => self.message(link, Operation::DeltaPublish, &header, body, out),
            Verb::SowDelete => {
                let operation = match (&header.filter, &header.sow_keys) {
                    (Some(_), _) => Operation::SowDeleteByFilter,
                    (None, Some(_)) => Operation::SowDeleteByKeys,
                    (None, None) => Operation::SowDeleteByData,
                };
                self.message(link, operation, &header, body, out)
            }
            Verb::Flush => self.flush(link, &header, out),
            Verb::Heartbeat => self.heartbeat(link, &header, now, out),
            Verb::Subscribe | Verb::DeltaSubscribe => self.subscribe(link, &header, out),
            Verb::Sow => self.query(link, &header, out).map(|_| ()),
            Verb::SowAndSubscribe | Verb::SowAndDeltaSubscribe => {
                self.query_and_subscribe(link, &header, out)
            }
            Verb::Unsubscribe => self.unsubscribe(link, &header, out),
            _ => {
                self.close(link, Closing::Graceful("unknown command"), out);
                Ok(())
            }
        };
        if answered.is_err() {
            self.close(link, Closing::Graceful("connection closed"), out);
        }
        self.mark_told(now, out);
    }

    /// What came on `link` is not a frame at all.
    pub fn malformed(&mut self, link: Link, out: &mut Output) {
        self.close(link, Closing::Graceful("unknown command"), out);
    }

    /// The log holds everything up to `position`.
    pub fn persisted(&mut self, position: u64, now: Duration, out: &mut Output) {
        let mut notices = Vec::new();
        self.rules.persisted(position, now, &mut |link, notice| {
            notices.push((link, notice))
        });
        self.notify(notices, now, out);
        self.mark_told(now, out);
    }

    /// Does what is due: conflated acks, delayed acks, beats, and the end of links whose client
    /// has gone silent or never logged on.
    pub fn tick(&mut self, now: Duration, out: &mut Output) {
        let mut notices = Vec::new();
        self.rules
            .tick(now, &mut |link, notice| notices.push((link, notice)));
        self.notify(notices, now, out);
        while self.delayed.front().is_some_and(|(due, ..)| *due <= now) {
            let Some((_, link, notice)) = self.delayed.pop_front() else {
                break;
            };
            self.tell(link, &notice, out);
        }
        self.mark_told(now, out);
        let within = self.config.logon_within;
        let late: Vec<_> = self
            .peers
            .iter()
            .filter(|(_, p)| p.logon_due(within).is_some_and(|due| due <= now))
            .map(|(link, _)| *link)
            .collect();
        for link in late {
            self.close(link, Closing::Graceful("no logon in time"), out);
        }
        let beating: Vec<_> = self
            .peers
            .iter()
            .filter_map(|(link, p)| Some((*link, p.beats()?)))
            .collect();
        for (link, (beat, silence)) in beating {
            if silence <= now {
                self.close(link, Closing::Graceful("heartbeat"), out);
            } else if beat <= now && encode_heartbeat(out.to(link)).is_ok() {
                self.mark_told(now, out);
            }
        }
    }

    /// When [`Server::tick`] has something to do next.
    pub fn deadline(&self) -> Option<Duration> {
        let delayed = self.delayed.front().map(|(due, ..)| *due);
        let beats = self
            .peers
            .values()
            .filter_map(Peer::beats)
            .map(|(a, b)| a.min(b));
        let within = self.config.logon_within;
        let logons = self.peers.values().filter_map(|p| p.logon_due(within));
        beats
            .chain(logons)
            .chain(self.rules.deadline())
            .chain(delayed)
            .min()
    }

    /// Sends `link` what the log holds for its subscriptions, about `budget` bytes of the
    /// log for each. Returns whether all of them have seen the end.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn pump(
        &mut self,
        link: Link,
        log: &Journal,
        budget: usize,
        now: Duration,
        out: &mut Vec<u8>,
    ) -> io::Result<bool> {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(true);
        };
        let before = out.len();
        let mut all = true;
        for subscription in &mut peer.subscriptions {
            let mut failed = Ok(());
            let cursor = log.read(subscription.cursor, budget, |entry, position| {
                failed = subscription.offer(entry, position, out);
                failed.is_ok()
            })?;
            subscription.cursor = subscription.cursor.max(cursor);
            failed
                .and_then(|()| subscription.complete(out))
                .map_err(io::Error::other)?;
            all &= subscription.cursor >= log.end();
        }
        if out.len() > before {
            peer.told = now;
        }
        Ok(all)
    }

    fn message(
        &mut self,
        link: Link,
        operation: Operation,
        header: &Header<'_>,
        body: &[u8],
        out: &mut Output,
    ) -> Answered {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(());
        };
        peer.messages += 1;
        let messages = peer.messages;
        let json = peer.json && matches!(operation, Operation::Publish | Operation::DeltaPublish);
        let name = peer.name.clone().unwrap_or_default();
        let topic = header.topic.as_deref().unwrap_or_default();
        let sequence = header.sequence.filter(|sequence| *sequence > 0);
        let candidate = Candidate {
            client_name: &name,
            sequence,
            topic,
            body,
        };
        let bad_filter = operation == Operation::SowDeleteByFilter
            && header.filter.as_deref().and_then(Filter::parse).is_none();
        let refusal = self.config.refusal(&candidate, json);
        let refusal = refusal
            .or_else(|| unsupported::message(header))
            .or_else(|| bad_filter.then(|| "bad filter".to_owned()));
        let entry = Entry {
            operation,
            client_name: &name,
            sequence,
            topic,
            sow_key: header.sow_key.as_deref(),
            correlation_id: header.correlation_id.as_deref(),
            selector: header.filter.as_deref().or(header.sow_keys.as_deref()),
            body,
        };
        let logged = !self.config.unlogged.contains(topic);
        let before = out.journal.len();
        let length = match refusal {
            None if logged => journal::encode(&mut out.journal, &entry),
            Some(_) if logged && sequence.is_some() => {
                let refused = decision(Operation::Refused);
                journal::encode(
                    &mut out.journal,
                    &Entry {
                        client_name: &name,
                        sequence,
                        topic,
                        ..refused
                    },
                )
            }
            _ => 0,
        };
        let position = self.log_end + length as u64;
        let write = Write {
            sequence,
            command_id: header.command_id.as_deref(),
            wants_persisted: header.acks.contains(AckKind::Persisted)
                || self.config.dialect == Dialect::PerMessage && !header.acks.is_empty(),
            logged,
            refusal: refusal.as_deref(),
        };
        match self.rules.write(link, write, position) {
            Verdict::Duplicate => out.journal.truncate(before),
            Verdict::Refused => {
                self.log_end = position;
                out.told.push(Told::Refused {
                    client_name: name,
                    sequence,
                    topic: topic.to_owned(),
                    reason: refusal.clone().unwrap_or_default(),
                });
                if self.config.dialect == Dialect::Documented {
                    self.fail(link, header, refusal.as_deref().unwrap_or_default(), out)?;
                }
            }
            Verdict::Accepted => {
                self.log_end = position;
                let deleted = self.sow.apply(&entry, position);
                self.processed(link, header, out)?;
                if header.acks.contains(AckKind::Stats) {
                    Ack {
                        command_id: header.command_id.as_deref(),
                        records_deleted: Some(deleted),
                        matches: Some(deleted),
                        topic_matches: Some(1),
                        ..Ack::new(AckKind::Stats, Status::Success)
                    }
                    .encode(out.to(link))?;
                }
                if !logged {
                    self.deliver(&entry, position, out)?;
                }
            }
        }
        self.strike(link, messages, out);
        Ok(())
    }

    fn deliver(&self, entry: &Entry<'_>, position: u64, out: &mut Output) -> Answered {
        for (link, peer) in self.peers.iter().filter(|(_, peer)| !peer.gone) {
            for subscription in &peer.subscriptions {
                subscription.deliver(entry, position, out.to(*link))?;
            }
        }
        Ok(())
    }

    fn strike(&mut self, link: Link, messages: u64, out: &mut Output) {
        let due = |after: Option<u64>| after.is_some_and(|after| messages >= after);
        if due(self.faults.lose_acks_after)
            && let Some(peer) = self.peers.get_mut(&link)
        {
            peer.muted = true;
        }
        if due(self.faults.close_after) {
            self.close(link, Closing::Abrupt, out);
        } else if due(self.faults.cut_after) {
            self.close(link, Closing::MidFrame, out);
        } else if due(self.faults.stall_after) {
            self.close(link, Closing::Stall, out);
        }
    }

    fn flush(&mut self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        self.processed(link, header, out)?;
        if header.acks.contains(AckKind::Completed) {
            Ack {
                command_id: header.command_id.as_deref(),
                ..Ack::new(AckKind::Completed, Status::Success)
            }
            .encode(out.to(link))?;
        }
        if header.acks.contains(AckKind::Persisted) {
            self.rules
                .flush(link, header.command_id.as_deref(), self.log_end);
        }
        Ok(())
    }

    fn heartbeat(
        &mut self,
        link: Link,
        header: &Header<'_>,
        now: Duration,
        out: &mut Output,
    ) -> Answered {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(());
        };
        match header.options.as_deref().unwrap_or("beat") {
            "beat" => Ok(()),
            "stop" => {
                peer.heartbeat = None;
                self.processed(link, header, out)
            }
            start => {
                let interval = start.strip_prefix("start,").and_then(parse_duration);
                match interval.filter(|interval| !interval.is_zero()) {
                    Some(interval) => {
                        peer.heartbeat = Some(interval);
                        peer.told = now;
                        self.processed(link, header, out)
                    }
                    None => self.refuse(link, header, "invalid options", out),
                }
            }
        }
    }

    fn processed(&self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        Ack {
            command_id: header.command_id.as_deref(),
            sub_id: header.sub_id.as_deref(),
            ..Ack::new(AckKind::Processed, Status::Success)
        }
        .encode_if(header, out.to(link))
    }

    /// Refuses a command, and reports that.
    fn refuse(&self, link: Link, header: &Header<'_>, reason: &str, out: &mut Output) -> Answered {
        let name = self.peers.get(&link).and_then(|peer| peer.name.clone());
        let command = header.verb.as_ref().map_or("", Verb::as_str);
        out.told.push(Told::CommandRefused {
            client_name: name.unwrap_or_default(),
            command: command.to_owned(),
            reason: reason.to_owned(),
        });
        self.fail(link, header, reason, out)
    }

    fn fail(&self, link: Link, header: &Header<'_>, reason: &str, out: &mut Output) -> Answered {
        Ack {
            command_id: header.command_id.as_deref(),
            query_id: header.query_id.as_deref(),
            sub_id: header.sub_id.as_deref(),
            reason: Some(reason),
            ..Ack::new(AckKind::Processed, Status::Failure)
        }
        .encode_if(header, out.to(link))
    }

    fn notify(&mut self, notices: Vec<(Link, Notice)>, now: Duration, out: &mut Output) {
        for (link, notice) in notices {
            match self.faults.delay_acks {
                Some(delay) => self.delayed.push_back((now + delay, link, notice)),
                // No ack may overtake one that is still delayed.
                None if !self.delayed.is_empty() => self.delayed.push_back((now, link, notice)),
                None => self.tell(link, &notice, out),
            }
        }
    }

    fn tell(&mut self, link: Link, notice: &Notice, out: &mut Output) {
        if self
            .peers
            .get(&link)
            .is_none_or(|peer| peer.gone || peer.muted)
        {
            return;
        }
        let ack = match notice {
            Notice::Persisted {
                sequence,
                command_id,
            } => Ack {
                sequence: *sequence,
                command_id: command_id.as_deref(),
                ..Ack::new(AckKind::Persisted, Status::Success)
            },
            Notice::Refused {
                sequence,
                command_id,
                reason,
            } => {
                let refused = Ack::refused(*sequence, command_id.as_deref(), reason);
                match self.config.dialect {
                    Dialect::Documented => refused,
                    Dialect::PerMessage => Ack {
                        kind: AckKind::Processed,
                        sequence: None,
                        ..refused
                    },
                }
            }
            Notice::Flushed { command_id } => Ack {
                command_id: command_id.as_deref(),
                ..Ack::new(AckKind::Persisted, Status::Success)
            },
        };
        if ack.encode(out.to(link)).is_err() {
            self.close(link, Closing::Abrupt, out);
        }
    }

    fn close(&mut self, link: Link, closing: Closing, out: &mut Output) {
        let Some(peer) = self.peers.get_mut(&link).filter(|peer| !peer.gone) else {
            return;
        };
        peer.gone = true;
        peer.subscriptions.clear();
        if closing != Closing::Stall {
            self.rules.log_off(link);
        }
        out.closes.push((link, closing));
    }

    fn mark_told(&mut self, now: Duration, out: &Output) {
        for (link, bytes) in &out.sends {
            if let Some(peer) = self.peers.get_mut(link).filter(|_| !bytes.is_empty()) {
                peer.told = now;
            }
        }
    }
}

type Answered = Result<(), FrameError>;

impl Peer {
    /// When the next beat is due, and when the client's silence has been too long
    /// (`docs/protocol.md` §4.5).
    fn beats(&self) -> Option<(Duration, Duration)> {
        let interval = self.heartbeat.filter(|_| !self.gone)?;
        Some((self.told + interval, self.heard + interval * 2))
    }

    /// When the time for a logon is up, unless it came.
    fn logon_due(&self, within: Duration) -> Option<Duration> {
        let waits = !self.gone && self.name.is_none();
        waits.then(|| self.connected.saturating_add(within))
    }
}

trait IfAsked {
    fn encode_if(&self, header: &Header<'_>, out: &mut Vec<u8>) -> Answered;
}

impl IfAsked for Ack<'_> {
    /// The server never acks what did not ask for it.
    fn encode_if(&self, header: &Header<'_>, out: &mut Vec<u8>) -> Answered {
        if header.acks.contains(self.kind) {
            self.encode(out)
        } else {
            Ok(())
        }
    }
}

fn decision(operation: Operation) -> Entry<'static> {
    Entry {
        operation,
        client_name: "",
        sequence: None,
        topic: "",
        sow_key: None,
        correlation_id: None,
        selector: None,
        body: b"",
    }
}

#[cfg(test)]
mod tests;
