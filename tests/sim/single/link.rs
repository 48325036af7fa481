//! A link whose server acks each message by itself, at the level of events: a channel to the model
//! server, and what the link must be seen to keep to.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_client::LinkEnd;
use amps_delivery::{
    Acks, Capabilities, Evidence, Heard, Link, Meaning, Medium, Now, Order, Progress, Resume, Room,
    Sink, Synced, ToSend, Unsendable, Up, Words,
};

use super::server::Mode;

/// Messages that wait to be written, at most.
const WAITING: usize = 8;

#[derive(Clone, Debug)]
pub enum ToServer {
    Publish {
        wire: u64,
        body: Vec<u8>,
        again: bool,
        /// The message before it in a chain: it is stored only behind that.
        after: Option<u64>,
    },
    Ask {
        wire: u64,
    },
}

#[derive(Clone, Debug)]
pub enum ToClient {
    Up {
        resume: Resume,
        largest: usize,
    },
    Stored(u64),
    Duplicate(u64),
    Mark(u64),
    Refused {
        wire: u64,
        reason: String,
        again: bool,
    },
    TryAgain {
        wire: u64,
        at_once: bool,
    },
    LineStopped,
    LineFree,
    Found(u64),
    Absent(u64),
    End(LinkEnd),
}

/// A message that the link took.
#[derive(Clone, Debug)]
pub struct Sent {
    pub sequence: u64,
    pub wire: u64,
    pub again: bool,
    pub body: Vec<u8>,
}

/// What goes both ways on one link, and what both ends know.
#[derive(Debug)]
pub struct Channel {
    pub server: usize,
    mode: Mode,
    /// Written, and on its way.
    pub up: VecDeque<(Duration, ToServer)>,
    pub down: VecDeque<(Duration, ToClient)>,
    /// So many messages are written at once, at most.
    pub takes: usize,
    /// Nothing goes through any more, and nobody is told.
    pub is_lost: bool,
    /// The client let go of it.
    pub is_gone: bool,
    pub latency: Duration,
    /// For the publisher to look at.
    pub sent: Vec<Sent>,
    pub read: Vec<ToClient>,
    pub is_up: bool,
    most: usize,
    /// Taken and not answered.
    open: BTreeSet<u64>,
    /// The highest number that was taken.
    pub highest: u64,
    /// Turned away, and not sent again.
    turned: BTreeSet<u64>,
}

impl Channel {
    pub fn new(server: usize, mode: Mode, latency: Duration, most: u64) -> Arc<Mutex<Channel>> {
        Arc::new(Mutex::new(Channel {
            server,
            mode,
            up: VecDeque::new(),
            down: VecDeque::new(),
            takes: WAITING,
            is_lost: false,
            is_gone: false,
            latency,
            sent: Vec::new(),
            read: Vec::new(),
            is_up: false,
            most: usize::try_from(most).unwrap_or(usize::MAX),
            open: BTreeSet::new(),
            highest: 0,
            turned: BTreeSet::new(),
        }))
    }

    /// Arrives at this moment; what is to arrive later may have been sent before.
    pub fn tells(&mut self, at: Duration, what: ToClient) {
        if !self.is_lost {
            let place = self.down.partition_point(|(other, _)| *other <= at);
            self.down.insert(place, (at, what));
        }
    }

    /// Nobody will answer this message any more: it was refused here.
    pub fn gave_up(&mut self, wire: u64) {
        self.answered(wire);
    }

    fn answered(&mut self, wire: u64) {
        self.open.remove(&wire);
        self.turned.remove(&wire);
    }

    fn takes_message(&mut self, wire: u64) {
        assert!(self.is_up, "{wire} goes out before the link is up");
        let before = self.turned.range(..wire).next();
        assert_eq!(
            before, None,
            "{wire} overtakes a message that was turned away"
        );
        self.turned.remove(&wire);
        self.open.insert(wire);
        self.highest = self.highest.max(wire);
        let open = self.open.len();
        assert!(open <= self.most, "{open} messages have no answer");
    }

    fn heard(&mut self, what: &ToClient) {
        match what {
            ToClient::Up { .. } => self.is_up = true,
            ToClient::Stored(wire) | ToClient::Duplicate(wire) | ToClient::Found(wire) => {
                self.answered(*wire);
            }
            ToClient::Refused { wire, .. } => self.answered(*wire),
            ToClient::TryAgain { wire, .. } => {
                if self.open.remove(wire) {
                    self.turned.insert(*wire);
                }
            }
            ToClient::Mark(mark) => {
                self.open = self.open.split_off(&(mark + 1));
                self.turned = self.turned.split_off(&(mark + 1));
            }
            ToClient::Absent(_) | ToClient::LineStopped | ToClient::LineFree | ToClient::End(_) => {
            }
        }
        self.read.push(what.clone());
    }
}

pub fn lock(channel: &Mutex<Channel>) -> MutexGuard<'_, Channel> {
    channel.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The client's end.
pub struct ModelLink {
    channel: Arc<Mutex<Channel>>,
    out: VecDeque<ToServer>,
    largest: usize,
    /// In a chain: the message sent last, and the one known to be stored last.
    last: u64,
    stored: u64,
    ended: bool,
}

impl ModelLink {
    pub fn new(channel: Arc<Mutex<Channel>>) -> Self {
        ModelLink {
            channel,
            out: VecDeque::new(),
            largest: 0,
            last: 0,
            stored: 0,
            ended: false,
        }
    }

    fn capabilities(&self, mode: Mode) -> Capabilities {
        Capabilities {
            acks: Acks::Single,
            order: match mode {
                Mode::Chained => Order::Kept,
                Mode::ById | Mode::Window => Order::MayOvertake,
            },
            meaning: Meaning::Stored {
                replicas: 1,
                medium: Medium::File,
                synced: Synced::Unknown,
            },
            largest: Some(self.largest),
            ..Capabilities::LOGGED
        }
    }

    /// Writes what the network takes; the last message among it.
    fn write(&mut self, now: Now) -> (bool, Option<u64>) {
        let mut channel = lock(&self.channel);
        let (mut any, mut through) = (false, None);
        let late = self.out.front().filter(|_| self.ended);
        assert!(late.is_none(), "{late:?} is written after the link ended");
        while channel.takes > 0
            && let Some(one) = self.out.pop_front()
        {
            channel.takes -= 1;
            any = true;
            if let ToServer::Publish { wire, .. } = one {
                through = Some(wire);
            }
            if !channel.is_lost {
                let last = channel.up.back().map_or(now.at, |(at, _)| *at);
                let at = last.max(now.at + channel.latency);
                channel.up.push_back((at, one));
            }
        }
        (any, through)
    }

    fn tell(&mut self, what: &ToClient, mode: Mode, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        let heard = match what {
            ToClient::Up { resume, largest } => {
                self.largest = *largest;
                if let Resume::HighWater(mark) = resume {
                    (self.last, self.stored) = (*mark, *mark);
                }
                sink.heard(Heard::Up(Up {
                    resume: *resume,
                    capabilities: &self.capabilities(mode),
                }));
                return Ok(());
            }
            ToClient::Stored(wire) => {
                self.stored = self.stored.max(*wire);
                let evidence = Evidence::Stored;
                Heard::One {
                    wire: *wire,
                    evidence,
                }
            }
            ToClient::Duplicate(wire) => {
                let evidence = Evidence::Duplicate;
                Heard::One {
                    wire: *wire,
                    evidence,
                }
            }
            ToClient::Mark(wire) => {
                self.stored = *wire;
                Heard::Through { wire: *wire }
            }
            ToClient::Refused {
                wire,
                reason,
                again,
            } => Heard::Refused {
                wire: *wire,
                reason,
                // A chain has nothing behind its end.
                may_be_stored: *again && mode != Mode::Chained,
                words: Words::default(),
            },
            ToClient::TryAgain { wire, at_once } => Heard::TryAgain {
                wire: *wire,
                why: "not now",
                at_once: *at_once,
            },
            ToClient::LineStopped => Heard::LineStopped { why: "no entry" },
            ToClient::LineFree => Heard::LineFree,
            ToClient::Found(wire) => Heard::Found { wire: *wire },
            ToClient::Absent(wire) => Heard::Absent { wire: *wire },
            ToClient::End(why) => return Err(why.clone()),
        };
        sink.heard(heard);
        Ok(())
    }
}

impl Link for ModelLink {
    fn room(&self) -> Room {
        match lock(&self.channel).is_up && self.out.len() < WAITING {
            true => Room {
                messages: WAITING - self.out.len(),
                bytes: usize::MAX,
            },
            false => Room::NONE,
        }
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        assert!(self.out.len() < WAITING, "there is no room");
        let (wire, body) = (message.wire, message.message.payload().to_vec());
        if body.len() > self.largest {
            let why = format!("{} bytes are too many", body.len());
            return Err(Unsendable { why });
        }
        let mut channel = lock(&self.channel);
        channel.takes_message(wire);
        channel.sent.push(Sent {
            sequence: message.sequence,
            wire,
            again: message.again,
            body: body.clone(),
        });
        // One that goes out once more begins the chain anew, behind what is known to be stored.
        let after = match wire <= self.last {
            true => self.stored,
            false => self.last,
        };
        self.last = wire;
        self.out.push_back(ToServer::Publish {
            wire,
            body,
            again: message.again,
            after: (channel.mode == Mode::Chained).then_some(after),
        });
        Ok(())
    }

    fn recall(&mut self, _: Now, messages: &[ToSend<'_>]) {
        let channel = lock(&self.channel);
        assert!(channel.mode == Mode::ById && channel.is_up);
        for message in messages {
            self.out.push_back(ToServer::Ask { wire: message.wire });
        }
    }

    fn poll(
        &mut self,
        _: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let (wrote, through) = self.write(now);
        let (arrived, mode) = {
            let mut channel = lock(&self.channel);
            let due = channel.down.front().is_some_and(|(at, _)| *at <= now.at);
            let arrived = due.then(|| channel.down.pop_front()).flatten();
            if let Some((_, what)) = &arrived {
                channel.heard(what);
            }
            (arrived.map(|(_, what)| what), channel.mode)
        };
        let read = arrived.is_some();
        if let Some(what) = arrived
            && let Err(end) = self.tell(&what, mode, sink)
        {
            self.ended = true;
            return Poll::Ready(Err(end));
        }
        match wrote || read {
            true => Poll::Ready(Ok(Progress {
                read,
                wrote,
                through,
            })),
            false => Poll::Pending,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }
}

impl Drop for ModelLink {
    fn drop(&mut self) {
        let mut channel = lock(&self.channel);
        channel.is_gone = true;
    }
}
