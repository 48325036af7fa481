//! The server without its sockets: frames in, log entries and frames out.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::time::Duration;

use amps_client::protocol::{
    Ack, AckKind, FrameError, Header, LogonAck, SowEntry, Status, Verb, encode_group,
    encode_heartbeat, encode_sow,
};

use crate::fault::{Fault, Faults, parse_duration};
use crate::filter::Filter;
use crate::journal::{self, Entry, Journal, Operation};
use crate::rules::{Link, Notice, Rules, Verdict, Write};
use crate::sow::Sow;
use crate::subscription::{Start, Subscription, Topics, last_bookmark};
use crate::{Candidate, Config, Dialect};

const VERSION: &str = "5.3.5.0.amps-sandbox";
const CHALLENGES: u32 = 3;

/// A server as a state machine: no socket, no disk, no clock, no task.
///
/// The driver owns the log. It feeds frames in with [`Server::receive`], appends
/// [`Output::journal`] to the log, reports that with [`Server::persisted`], and only then
/// sends what stands in the [`Output`]; so nothing is acked that the log does not hold. Time
/// is the distance from a start of the driver's choice.
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
}

/// What a step of the server wants done, in this order: log, send, close.
#[derive(Debug, Default)]
pub struct Output {
    /// Entries to append to the log.
    pub journal: Vec<u8>,
    sends: Vec<(Link, Vec<u8>)>,
    /// Links to close, and how.
    pub closes: Vec<(Link, Closing)>,
}

/// How a link ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closing {
    /// Send what is to be sent, then close. The text is the reason, as AMPS logs it.
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
            config,
        }
    }

    /// Takes an entry of an existing log into memory; `position` is its end.
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

    /// The log goes on at `position`, where its last entry ends.
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

    /// Ends all faults; links they struck stay as they are.
    pub fn clear_faults(&mut self) {
        self.faults = Faults::default();
    }

    /// The highest sequence settled for a client name.
    pub fn settled(&self, name: &str) -> u64 {
        self.rules.settled(name)
    }

    /// Whether `link` has subscriptions.
    pub fn subscribes(&self, link: Link) -> bool {
        self.peers
            .get(&link)
            .is_some_and(|peer| !peer.subscriptions.is_empty())
    }

    /// Takes one frame.
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
            Verb::Logon => self.logon(link, &header, out),
            _ if !logged_on => self.fail(link, &header, "logon required", out).map(|()| {
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

    /// What came on `link` is no frame at all.
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

    /// Does what has become due: conflated acks, delayed acks, beats, and the end of links
    /// whose client has gone silent.
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
        beats.chain(self.rules.deadline()).chain(delayed).min()
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

    fn logon(&mut self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(());
        };
        if peer.name.is_some() {
            return self.fail(link, header, "duplicate logon", out);
        }
        let name = header.client_name.as_deref().unwrap_or_default();
        let user = header.user_id.as_deref().unwrap_or_default();
        let options = header.options.as_deref().unwrap_or_default();
        let conflation = options
            .split(',')
            .find_map(|o| o.trim().strip_prefix("ack_conflation="));
        let interval = conflation.map(parse_duration);
        let message_type = header.message_type.as_deref();
        let wanted_type = self.config.message_type.as_deref();
        let wrong_type =
            message_type.is_some() && wanted_type.is_some_and(|t| message_type != Some(t));
        let reason = if name.is_empty() {
            Some("no client name")
        } else if wrong_type {
            Some("invalid message type")
        } else if interval == Some(None) {
            Some("invalid options")
        } else {
            match self.authenticate(link, header, out)? {
                Authenticated::Yes => None,
                Authenticated::No => Some("auth failure"),
                Authenticated::Challenged => return Ok(()),
            }
        };
        let refused = match reason {
            Some(reason) => Err(reason),
            None => {
                let on = self.rules.log_on(link, name, user, interval.flatten());
                on.map_err(|_| "name in use")
            }
        };
        let logged_on = match refused {
            Ok(logged_on) => logged_on,
            Err(reason) => {
                self.fail(link, header, reason, out)?;
                self.close(link, Closing::Graceful("auth"), out);
                return Ok(());
            }
        };
        if let Some(old) = logged_on.evicted {
            if self.peers.get(&old).is_some_and(|peer| peer.gone) {
                out.closes.push((old, Closing::Abrupt));
            }
            self.close(old, Closing::Graceful("name in use"), out);
        }
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.name = Some(name.to_owned());
            let stated = message_type.or(self.config.message_type.as_deref());
            peer.json = stated.is_none_or(|stated| stated == "json");
        }
        if !header.acks.contains(AckKind::Processed) {
            return Ok(());
        }
        let documented = self.config.dialect == Dialect::Documented;
        let bookmark = last_bookmark(name, logged_on.settled);
        LogonAck {
            command_id: header.command_id.as_deref(),
            sequence: Some(logged_on.settled).filter(|_| documented),
            bookmark: Some(bookmark.as_str()).filter(|_| documented),
            client_name: Some(name),
            reason: self
                .config
                .users
                .is_empty()
                .then_some("authentication disabled"),
            version: Some(VERSION),
        }
        .encode(out.to(link))
    }

    fn authenticate(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Result<Authenticated, FrameError> {
        let Some(peer) = self.peers.get_mut(&link) else {
            return Ok(Authenticated::No);
        };
        if self.config.users.is_empty() {
            return Ok(Authenticated::Yes);
        }
        let user = header.user_id.as_deref().unwrap_or_default();
        let given = header.password.as_deref().unwrap_or_default();
        let known = self.config.users.iter().find(|(name, _)| name == user);
        let challenge = |count: u32| format!("challenge-{}-{count}", link.0);
        let expected = known.map(|(_, password)| match self.config.challenge {
            false => password.clone(),
            true => format!("{}:{password}", challenge(peer.challenges)),
        });
        let started = !self.config.challenge || peer.challenges > 0;
        if started && expected.is_some_and(|expected| expected == given) {
            return Ok(Authenticated::Yes);
        }
        if !self.config.challenge || peer.challenges >= CHALLENGES {
            return Ok(Authenticated::No);
        }
        peer.challenges += 1;
        Ack {
            command_id: header.command_id.as_deref(),
            user_id: Some(user),
            password: Some(&challenge(peer.challenges)),
            ..Ack::new(AckKind::Processed, Status::Retry)
        }
        .encode(out.to(link))?;
        Ok(Authenticated::Challenged)
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
        let refusal = match self.config.refusal(&candidate, json) {
            None if bad_filter => Some("bad filter".to_owned()),
            refusal => refusal,
        };
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
                    None => self.fail(link, header, "invalid options", out),
                }
            }
        }
    }

    fn subscribe(&mut self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        let end = self.log_end;
        let subscription = match self.subscription(link, header) {
            Ok(subscription) => subscription,
            Err(reason) => return self.fail(link, header, reason, out),
        };
        Ack {
            command_id: header.command_id.as_deref(),
            sub_id: Some(&subscription.sub_id),
            ..Ack::new(AckKind::Processed, Status::Success)
        }
        .encode_if(header, out.to(link))?;
        let mut subscription = subscription;
        if header.acks.contains(AckKind::Completed) {
            let command_id = header.command_id.as_deref().map(str::to_owned);
            subscription.completed = Some((end, command_id));
        }
        if let Some(peer) = self.peers.get_mut(&link) {
            peer.subscriptions
                .retain(|other| other.sub_id != subscription.sub_id);
            peer.subscriptions.push(subscription);
        }
        Ok(())
    }

    fn subscription(&self, link: Link, header: &Header<'_>) -> Result<Subscription, &'static str> {
        let options = header.options.as_deref().unwrap_or_default();
        let option = |name: &str| options.split(',').any(|option| option.trim() == name);
        let topic = header.topic.as_deref().filter(|topic| !topic.is_empty());
        let topics = Topics::parse(topic.ok_or("invalid topic")?, option("non_regex_topic"))
            .ok_or("bad regex topic")?;
        let filter = match header.filter.as_deref() {
            Some(filter) => Some(Filter::parse(filter).ok_or("bad filter")?),
            None => None,
        };
        let start = match header.bookmark.as_deref() {
            Some(bookmark) => Start::parse(bookmark).ok_or("invalid bookmark")?,
            None => Start::Now,
        };
        let sub_id = header.sub_id.as_deref().or(header.command_id.as_deref());
        let sub_id = sub_id.ok_or("invalid sub id")?.to_owned();
        let taken = self.peers.get(&link).is_some_and(|peer| {
            peer.subscriptions
                .iter()
                .any(|other| other.sub_id == sub_id)
        });
        if taken && !option("replace") {
            return Err("subscription already exists");
        }
        let (cursor, after) = match start {
            Start::Epoch => (0, None),
            Start::Now => (self.log_end, None),
            Start::After {
                publisher,
                sequence,
            } => (0, Some((publisher, sequence))),
        };
        Ok(Subscription {
            sub_id,
            topics,
            filter,
            cursor,
            after,
            completed: None,
        })
    }

    fn unsubscribe(&mut self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        let ids = header
            .sub_id
            .as_deref()
            .or(header.query_id.as_deref())
            .unwrap_or_default();
        if let Some(peer) = self.peers.get_mut(&link) {
            let named = |id: &str| {
                ids.split(',')
                    .any(|named| named.trim() == id || named == "all")
            };
            peer.subscriptions
                .retain(|subscription| !named(&subscription.sub_id));
        }
        self.processed(link, header, out)
    }

    fn query_and_subscribe(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Answered {
        match self.subscription(link, header) {
            Err(reason) => self.fail(link, header, reason, out),
            Ok(subscription) => {
                if self.query(link, header, out)?
                    && let Some(peer) = self.peers.get_mut(&link)
                {
                    peer.subscriptions
                        .retain(|other| other.sub_id != subscription.sub_id);
                    peer.subscriptions.push(subscription);
                }
                Ok(())
            }
        }
    }

    fn query(
        &mut self,
        link: Link,
        header: &Header<'_>,
        out: &mut Output,
    ) -> Result<bool, FrameError> {
        let literal = header
            .options
            .as_deref()
            .is_some_and(|o| o.contains("non_regex_topic"));
        let topic = header.topic.as_deref().unwrap_or_default();
        let filter = header.filter.as_deref().map(Filter::parse);
        let (topics, filter) = match (Topics::parse(topic, literal), filter) {
            (None, _) => {
                return self
                    .fail(link, header, "bad regex topic", out)
                    .map(|()| false);
            }
            (_, Some(None)) => return self.fail(link, header, "bad filter", out).map(|()| false),
            (Some(topics), filter) => (topics, filter.flatten()),
        };
        let query_id = header.query_id.as_deref().or(header.command_id.as_deref());
        let query_id = query_id.unwrap_or_default();
        let all = self.sow.query(|topic| topics.contain(topic));
        let total = all.len() as u64;
        let limit = header
            .top_n
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(usize::MAX);
        let wanted: Vec<_> = all
            .into_iter()
            .filter(|(.., record)| filter.as_ref().is_none_or(|f| f.matches(&record.body)))
            .take(limit)
            .collect();
        let answer = Ack {
            command_id: header.command_id.as_deref(),
            query_id: Some(query_id),
            sub_id: header.sub_id.as_deref(),
            ..Ack::new(AckKind::Processed, Status::Success)
        };
        let to = out.to(link);
        answer.encode_if(header, to)?;
        encode_group(to, true, query_id)?;
        let batch = header
            .batch_size
            .and_then(|n| usize::try_from(n).ok())
            .unwrap_or(1)
            .max(1);
        for records in wanted.chunks(batch) {
            let entries = records.iter().map(|(topic, key, record)| SowEntry {
                topic,
                key,
                bookmark: Some(&record.bookmark),
                body: &record.body,
            });
            encode_sow(to, query_id, topic, entries)?;
        }
        encode_group(to, false, query_id)?;
        Ack {
            kind: AckKind::Completed,
            topic_matches: Some(total),
            matches: Some(wanted.len() as u64),
            records_returned: Some(wanted.len() as u64),
            ..answer
        }
        .encode_if(header, to)?;
        Ok(true)
    }

    fn processed(&self, link: Link, header: &Header<'_>, out: &mut Output) -> Answered {
        Ack {
            command_id: header.command_id.as_deref(),
            sub_id: header.sub_id.as_deref(),
            ..Ack::new(AckKind::Processed, Status::Success)
        }
        .encode_if(header, out.to(link))
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

enum Authenticated {
    Yes,
    No,
    Challenged,
}

impl Peer {
    /// When the next beat is due, and when the client's silence has been too long
    /// (`amps-protocol.md` §4.5).
    fn beats(&self) -> Option<(Duration, Duration)> {
        let interval = self.heartbeat.filter(|_| !self.gone)?;
        Some((self.told + interval, self.heard + interval * 2))
    }
}

trait IfAsked {
    fn encode_if(&self, header: &Header<'_>, out: &mut Vec<u8>) -> Answered;
}

impl IfAsked for Ack<'_> {
    /// The server never acks what did not ask.
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
#[path = "server_tests.rs"]
mod tests;
