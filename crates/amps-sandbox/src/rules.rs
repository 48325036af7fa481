//! What a message does to sequences and acks: the rules that a real server follows, as a state
//! machine without sockets, disks or clocks.
//!
//! The rules are those of `docs/protocol.md` §4.2, §5, §9 and §12 to §16; where these leave a
//! choice, the stricter one is taken:
//!
//! - One memory of sequences per client name. A sequence at or below the highest one seen is
//!   a duplicate and is dropped without a word.
//! - A message is *open* until the log holds it. Nothing is acked while anything before it
//!   is open, and the figure given at logon counts nothing open either.
//! - Successes are conflated: after an interval one ack covers all of them, without a command id.
//! - A refusal is open until the log remembers it. Then success is sent for everything before it,
//!   and the refusal right after that. It is announced once, to whichever link has the name at
//!   that moment, and never if there is none.
//! - The server never acks what did not ask for it.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use crate::Dialect;

/// A link between the server and one client, for as long as it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Link(pub u64);

/// A message as the rules see it: who numbered it, and what was decided about its content.
#[derive(Clone, Copy, Debug)]
pub struct Write<'a> {
    /// The sequence on the wire; absent for publishers without a store.
    pub sequence: Option<u64>,
    /// The command id, echoed by acks of this message alone.
    pub command_id: Option<&'a str>,
    /// Whether a `persisted` ack was asked for.
    pub wants_persisted: bool,
    /// Whether the topic is logged; unlogged topics are acked one by one.
    pub logged: bool,
    /// The reason to refuse it, if there is one.
    pub refusal: Option<&'a str>,
}

/// What is done with a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Accept it and, if its topic is logged, log it.
    Accepted,
    /// Do not accept it; if it had a sequence, log that it was refused.
    Refused,
    /// It was seen before: do nothing.
    Duplicate,
}

/// An ack to send.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Everything up to the sequence is persisted.
    Persisted {
        /// The sequence; absent when the message had none.
        sequence: Option<u64>,
        /// The command id, on acks that are not conflated.
        command_id: Option<Box<str>>,
    },
    /// One message was refused.
    Refused {
        /// Its sequence.
        sequence: Option<u64>,
        /// Its command id.
        command_id: Option<Box<str>>,
        /// Why.
        reason: Box<str>,
    },
    /// A flush that asked for `persisted` is done.
    Flushed {
        /// Its command id.
        command_id: Option<Box<str>>,
    },
}

/// What a successful logon is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoggedOn {
    /// The figure `s`: everything up to it is settled.
    pub settled: u64,
    /// The link that held the name and must be closed.
    pub evicted: Option<Link>,
}

/// A name is held by a link of another user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameInUse;

/// The memory of every client name, and the acks that are owed.
///
/// Positions are places in the log, and rise. [`Rules::write`] is told where a message will end,
/// and [`Rules::persisted`] up to which position everything is in the log. Time is counted from a
/// start that the caller chooses.
#[derive(Debug)]
pub struct Rules {
    ack_interval: Duration,
    dialect: Dialect,
    persisted: u64,
    by_name: HashMap<String, usize>,
    by_link: HashMap<Link, usize>,
    publishers: Vec<Publisher>,
    waiting: Vec<usize>,
    due: Vec<usize>,
}

#[derive(Debug, Default)]
struct Publisher {
    link: Option<(Link, String)>,
    interval: Duration,
    highest: u64,
    settled: u64,
    acked: u64,
    owed: bool,
    due: Option<Duration>,
    open: VecDeque<Open>,
}

#[derive(Debug)]
struct Open {
    position: u64,
    sequence: Option<u64>,
    wanted: bool,
    command_id: Option<Box<str>>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    Logged,
    Unlogged,
    Refused(Box<str>),
    Flush,
}

impl Rules {
    /// The rules of a server that conflates acks over `ack_interval` and knows no names yet.
    pub fn new(ack_interval: Duration, dialect: Dialect) -> Self {
        Rules {
            ack_interval,
            dialect,
            persisted: 0,
            by_name: HashMap::new(),
            by_link: HashMap::new(),
            publishers: Vec::new(),
            waiting: Vec::new(),
            due: Vec::new(),
        }
    }

    /// Remembers from a log that `name` got as far as `sequence`.
    pub fn recover(&mut self, name: &str, sequence: u64) {
        let publisher = self.named(name);
        publisher.highest = publisher.highest.max(sequence);
        publisher.settled = publisher.settled.max(sequence);
    }

    /// Forgets `name`: its next logon gets 0.
    pub fn forget(&mut self, name: &str) {
        let publisher = self.named(name);
        *publisher = Publisher {
            link: publisher.link.take(),
            interval: publisher.interval,
            ..Publisher::default()
        };
    }

    /// Gives `name` to `link`. The same user's older link is evicted
    /// (`docs/protocol.md` §5.4).
    ///
    /// # Errors
    /// Another user's link holds the name.
    pub fn log_on(
        &mut self,
        link: Link,
        name: &str,
        user: &str,
        interval: Option<Duration>,
    ) -> Result<LoggedOn, NameInUse> {
        let interval = interval.unwrap_or(self.ack_interval);
        let per_message = self.dialect == Dialect::PerMessage;
        let index = self.index(name);
        let publisher = &mut self.publishers[index];
        let evicted = match &publisher.link {
            Some((_, holder)) if holder != user => return Err(NameInUse),
            Some((old, _)) => Some(*old),
            None => None,
        };
        if per_message {
            // In this dialect acks belong to a link: what an earlier link sent is not answered
            // any more.
            publisher.highest = 0;
            publisher.settled = 0;
            publisher.open.clear();
            self.waiting.retain(|other| *other != index);
        }
        publisher.link = Some((link, user.to_owned()));
        publisher.interval = interval;
        publisher.acked = publisher.settled;
        publisher.owed = false;
        publisher.due = None;
        let settled = publisher.settled;
        self.due.retain(|other| *other != index);
        if let Some(old) = evicted {
            self.by_link.remove(&old);
        }
        self.by_link.insert(link, index);
        Ok(LoggedOn { settled, evicted })
    }

    /// The link is gone, and so is what it was owed.
    pub fn log_off(&mut self, link: Link) {
        let Some(index) = self.by_link.remove(&link) else {
            return;
        };
        let publisher = &mut self.publishers[index];
        if publisher
            .link
            .as_ref()
            .is_some_and(|(current, _)| *current == link)
        {
            publisher.link = None;
            publisher.owed = false;
            publisher.due = None;
            self.due.retain(|other| *other != index);
        }
    }

    /// Decides about a message of a link that logged on. `position` is where the log will
    /// end once it holds the message, or its refusal.
    pub fn write(&mut self, link: Link, write: Write<'_>, position: u64) -> Verdict {
        let Some(&index) = self.by_link.get(&link) else {
            return Verdict::Duplicate;
        };
        let publisher = &mut self.publishers[index];
        if let Some(sequence) = write.sequence {
            if sequence <= publisher.highest {
                return Verdict::Duplicate;
            }
            publisher.highest = sequence;
        }
        let (kind, verdict) = match write.refusal {
            Some(reason) => (Kind::Refused(reason.into()), Verdict::Refused),
            None if write.logged => (Kind::Logged, Verdict::Accepted),
            None => (Kind::Unlogged, Verdict::Accepted),
        };
        let alone = !matches!(kind, Kind::Logged)
            || write.sequence.is_none()
            || self.dialect == Dialect::PerMessage;
        publisher.open.push_back(Open {
            position,
            sequence: write.sequence,
            wanted: write.wants_persisted,
            command_id: write.command_id.filter(|_| alone).map(Into::into),
            kind,
        });
        self.wait(index);
        verdict
    }

    /// A flush that asked for `persisted`: answered when everything before it is settled.
    pub fn flush(&mut self, link: Link, command_id: Option<&str>, position: u64) {
        let Some(&index) = self.by_link.get(&link) else {
            return;
        };
        self.publishers[index].open.push_back(Open {
            position,
            sequence: None,
            wanted: true,
            command_id: command_id.map(Into::into),
            kind: Kind::Flush,
        });
        self.wait(index);
    }

    /// The log holds everything up to `position`; settles what that closes.
    pub fn persisted(
        &mut self,
        position: u64,
        now: Duration,
        notify: &mut impl FnMut(Link, Notice),
    ) {
        self.persisted = self.persisted.max(position);
        for index in std::mem::take(&mut self.waiting) {
            let publisher = &mut self.publishers[index];
            let was_due = publisher.due.is_some();
            publisher.settle(self.persisted, self.dialect, now, notify);
            if publisher.due.is_some() && !was_due {
                self.due.push(index);
            }
            if !publisher.open.is_empty() {
                self.waiting.push(index);
            }
        }
    }

    /// Sends the conflated acks whose interval is over.
    pub fn tick(&mut self, now: Duration, notify: &mut impl FnMut(Link, Notice)) {
        self.due.retain(|index| {
            let publisher = &mut self.publishers[*index];
            match publisher.due {
                Some(due) if due > now => true,
                _ => {
                    publisher.announce(notify);
                    false
                }
            }
        });
    }

    /// When [`Rules::tick`] has something to do next.
    pub fn deadline(&self) -> Option<Duration> {
        self.due
            .iter()
            .filter_map(|index| self.publishers[*index].due)
            .min()
    }

    /// The highest sequence settled for `name`; 0 if it is not known.
    pub fn settled(&self, name: &str) -> u64 {
        self.by_name
            .get(name)
            .map_or(0, |index| self.publishers[*index].settled)
    }

    fn wait(&mut self, index: usize) {
        if self.publishers[index].open.len() == 1 {
            self.waiting.push(index);
        }
    }

    fn named(&mut self, name: &str) -> &mut Publisher {
        let index = self.index(name);
        &mut self.publishers[index]
    }

    fn index(&mut self, name: &str) -> usize {
        if let Some(index) = self.by_name.get(name) {
            return *index;
        }
        let index = self.publishers.len();
        self.publishers.push(Publisher::default());
        self.by_name.insert(name.to_owned(), index);
        index
    }
}

impl Publisher {
    fn settle(
        &mut self,
        persisted: u64,
        dialect: Dialect,
        now: Duration,
        notify: &mut impl FnMut(Link, Notice),
    ) {
        while self
            .open
            .front()
            .is_some_and(|open| open.position <= persisted)
        {
            let Some(open) = self.open.pop_front() else {
                break;
            };
            match open.kind {
                Kind::Logged if dialect == Dialect::Documented && open.sequence.is_some() => {
                    self.settled = open.sequence.unwrap_or(self.settled);
                    self.owed |= open.wanted;
                }
                Kind::Logged | Kind::Unlogged => {
                    self.settle_one(open.sequence, open.wanted);
                    if open.wanted {
                        let (sequence, command_id) = (open.sequence, open.command_id);
                        self.send(
                            Notice::Persisted {
                                sequence,
                                command_id,
                            },
                            notify,
                        );
                    }
                }
                Kind::Refused(reason) => {
                    self.announce(notify);
                    self.settle_one(open.sequence, open.wanted);
                    if open.wanted {
                        let (sequence, command_id) = (open.sequence, open.command_id);
                        self.send(
                            Notice::Refused {
                                sequence,
                                command_id,
                                reason,
                            },
                            notify,
                        );
                    }
                }
                Kind::Flush => {
                    self.announce(notify);
                    self.send(
                        Notice::Flushed {
                            command_id: open.command_id,
                        },
                        notify,
                    );
                }
            }
        }
        if self.link.is_none() {
            self.owed = false;
        }
        if self.owed && self.interval.is_zero() {
            self.announce(notify);
        } else if self.owed && self.due.is_none() {
            self.due = Some(now + self.interval);
        }
    }

    fn announce(&mut self, notify: &mut impl FnMut(Link, Notice)) {
        self.due = None;
        if std::mem::take(&mut self.owed) && self.settled > self.acked {
            self.acked = self.settled;
            let sequence = Some(self.settled);
            self.send(
                Notice::Persisted {
                    sequence,
                    command_id: None,
                },
                notify,
            );
        }
    }

    /// Settles a message with an ack of its own. If that ack was asked for, it covers what lies
    /// before as well.
    fn settle_one(&mut self, sequence: Option<u64>, acked: bool) {
        let Some(sequence) = sequence else { return };
        self.settled = sequence;
        if acked {
            self.acked = sequence;
            self.owed = false;
            self.due = None;
        }
    }

    fn send(&self, notice: Notice, notify: &mut impl FnMut(Link, Notice)) {
        if let Some((link, _)) = self.link {
            notify(link, notice);
        }
    }
}

#[cfg(test)]
mod tests;
