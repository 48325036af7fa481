//! One AMPS session as a state machine: logon, heartbeats, commands that wait for an
//! answer, subscriptions, and where each ack belongs (`docs/protocol.md` §4–§8). No
//! sockets, clocks or tasks: bytes to send are appended to a buffer, time is an argument.

mod api;
mod route;
mod silence;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;

use crate::error::CommandError;
use crate::protocol::{AckKinds, Command, FrameError, Header, HeaderError, Verb};
use crate::requests::{Answer, DeliveredKind, Request, Subscribe};
use crate::wire::ASKED;

use silence::Silence;

pub use crate::chooser::Credentials;
pub use api::{Expired, Received, ServerInfo, SessionConfig};
pub use silence::DEFAULT_HEARTBEAT;

/// How many challenges are answered on one link before the logon counts as refused
/// (`docs/protocol.md` §5.3).
pub const MAX_CHALLENGES: u32 = 3;

/// Commands that may wait for an answer at once.
pub const MAX_WAITING: usize = 1024;

/// The session; see the [module](self).
#[derive(Debug)]
pub struct Session {
    config: SessionConfig,
    phase: Phase,
    message_type: Option<String>,
    next_id: u64,
    waiting: BTreeMap<u64, Waiting>,
    subscriptions: BTreeMap<u64, Placed>,
    resubscribing: usize,
    server: ServerInfo,
    /// Frames with messages so far. Used to recognise the first mention of a subscription in a
    /// frame.
    frames: u64,
    beat_at: Option<Duration>,
    silence: Silence,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Offline,
    LoggingOn {
        id: u64,
        until: Duration,
        challenges: u32,
    },
    LoggedOn,
}

#[derive(Debug)]
struct Waiting {
    what: What,
    left: AckKinds,
    since: Duration,
    until: Duration,
    answer: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum What {
    Command,
    Heartbeat,
    Subscribe { subscription: u64, again: bool },
}

#[derive(Debug)]
struct Placed {
    spec: Subscribe,
    /// The command that placed it last; a completed ack may name only that.
    command: u64,
    bookmark: Option<String>,
    /// The last frame that delivered a message to it.
    last_frame: u64,
}

impl Session {
    /// A session without a link.
    pub fn new(config: SessionConfig) -> Self {
        Session {
            config,
            phase: Phase::Offline,
            message_type: None,
            next_id: 1,
            waiting: BTreeMap::new(),
            subscriptions: BTreeMap::new(),
            resubscribing: 0,
            server: ServerInfo::default(),
            frames: 0,
            beat_at: None,
            silence: Silence::new(),
        }
    }

    /// A link is open: logs on.
    ///
    /// # Errors
    /// The logon does not fit a frame.
    pub fn connected(
        &mut self,
        now: Duration,
        message_type: Option<&str>,
        credentials: &Credentials,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        self.message_type = message_type.map(str::to_owned);
        self.silence.heard(now);
        self.log_on(now, credentials, 0, out)
    }

    /// Answers [`Received::Challenge`] with another logon on the same link.
    ///
    /// # Errors
    /// The logon does not fit a frame.
    pub fn answer_challenge(
        &mut self,
        now: Duration,
        credentials: &Credentials,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        match self.phase {
            Phase::LoggingOn { challenges, .. } => self.log_on(now, credentials, challenges, out),
            Phase::Offline | Phase::LoggedOn => Ok(()),
        }
    }

    /// The link is gone. Commands that waited fail; subscriptions stay, and will be placed again.
    pub fn disconnected(&mut self, sink: &mut dyn FnMut(Received<'_>)) {
        self.phase = Phase::Offline;
        self.beat_at = None;
        self.silence = Silence::new();
        self.resubscribing = 0;
        for (id, waiting) in std::mem::take(&mut self.waiting) {
            let error = CommandError::Disconnected;
            match waiting.what {
                What::Command => sink(Received::Done {
                    id,
                    result: Err(error),
                }),
                // A first subscribe is repeated after the reconnect like all others.
                What::Heartbeat | What::Subscribe { .. } => {}
            }
        }
        let queries: Vec<u64> = self
            .subscriptions
            .iter()
            // A query that waits for the first logon goes on waiting.
            .filter(|(_, p)| p.spec.is_query() && p.command != 0)
            .map(|(id, _)| *id)
            .collect();
        for subscription in queries {
            // A query cannot be continued, and asking again would repeat its answer.
            self.subscriptions.remove(&subscription);
            let error = Some(CommandError::Disconnected);
            sink(Received::SubscriptionEnded {
                subscription,
                error,
            });
        }
    }

    /// Handles one frame. Bytes to send in answer are appended to `out`.
    ///
    /// # Errors
    /// The frame has no readable header, so the link is useless.
    pub fn receive(
        &mut self,
        now: Duration,
        frame: &Bytes,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Result<(), HeaderError> {
        self.silence.heard(now);
        let (header, body) = Header::salvage(frame)?;
        if let Some(field) = &header.unreadable {
            sink(Received::Unreadable { field });
        }
        match &header.verb {
            Some(Verb::Ack) => self.ack(now, &header, out, sink),
            Some(Verb::Publish | Verb::DeltaPublish) => {
                self.deliver(DeliveredKind::Publish, &header, body, sink);
            }
            Some(Verb::Oof) => {
                self.deliver(DeliveredKind::OutOfFocus, &header, body, sink);
            }
            Some(Verb::Sow) => self.deliver_records(&header, body, sink)?,
            // Heartbeats count as signs of life.
            Some(Verb::Heartbeat | Verb::GroupBegin | Verb::GroupEnd) => {}
            // A server may send commands that this client does not know.
            _ => sink(Received::Unhandled(&header)),
        }
        Ok(())
    }

    /// Does what is due: beats, timeouts.
    ///
    /// # Errors
    /// The link must be given up.
    pub fn tick(
        &mut self,
        now: Duration,
        out: &mut Vec<u8>,
        sink: &mut dyn FnMut(Received<'_>),
    ) -> Result<(), Expired> {
        if let Phase::LoggingOn { until, .. } = self.phase
            && now >= until
        {
            return Err(Expired::Logon);
        }
        // Before the command that started heartbeats times out because of the same silence.
        if self.silent_at().is_some_and(|at| now >= at) {
            return Err(Expired::Heartbeat);
        }
        let due: Vec<u64> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| now >= waiting.until)
            .map(|(id, _)| *id)
            .collect();
        for id in due {
            self.finish(id, Err(CommandError::Timeout), out, sink);
        }
        if let (Some(interval), Some(beat_at)) = (self.config.heartbeat, self.beat_at)
            && now >= beat_at
        {
            let _ = Command::heartbeat_beat().encode(out);
            self.beat_at = Some(now + interval);
        }
        Ok(())
    }

    /// When to call [`tick`](Self::tick) at the latest. It moves with
    /// [`publishes_wait`](Self::publishes_wait).
    pub fn deadline(&self) -> Option<Duration> {
        let logon = match self.phase {
            Phase::LoggingOn { until, .. } => Some(until),
            Phase::Offline | Phase::LoggedOn => None,
        };
        let silence = self.silent_at();
        let waiting = self.waiting.values().map(|waiting| waiting.until).min();
        [logon, silence, self.beat_at, waiting]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the server will have been silent for too long.
    fn silent_at(&self) -> Option<Duration> {
        let commands = self.waiting.values();
        let since = commands
            .filter(|w| w.what != What::Heartbeat)
            .map(|w| w.since);
        self.silence.too_long_at(since.min())
    }

    /// Tells whether publishes wait for an answer on this link, whenever that may have changed: a
    /// server that has not said whether it knows heartbeats may be silent while it owes nothing.
    pub fn publishes_wait(&mut self, now: Duration, wait: bool) {
        self.silence.publishes_wait(now, wait);
    }

    /// Tells how many bytes of an incomplete frame have come: a large message that comes slowly
    /// is not silence.
    pub fn receiving(&mut self, now: Duration, bytes: usize) {
        self.silence.heard_part(now, bytes);
    }

    /// Bytes were just written, so a beat would tell the server nothing new for an interval.
    pub fn wrote(&mut self, now: Duration) {
        if let (Some(interval), Some(_)) = (self.config.heartbeat, self.beat_at) {
            self.beat_at = Some(now + interval);
        }
    }

    /// What the server said about itself at the last logon that it accepted.
    pub fn server(&self) -> &ServerInfo {
        &self.server
    }

    /// Whether the server accepted the logon on this link.
    pub fn is_logged_on(&self) -> bool {
        self.phase == Phase::LoggedOn
    }

    /// Sends a command. [`Received::Done`] with the returned id follows, at the end of the link
    /// at the latest. `None`: the command asks for no ack, so there is nothing to wait for.
    ///
    /// # Errors
    /// Not logged on, too many commands wait, or the command does not fit a frame.
    pub fn command(
        &mut self,
        now: Duration,
        request: &Request,
        until: Option<Duration>,
        out: &mut Vec<u8>,
    ) -> Result<Option<u64>, CommandError> {
        self.may_wait()?;
        let id = self.take_id();
        request
            .command(&wire_id(id))
            .encode(out)
            .map_err(|_| CommandError::Bad("larger than a frame can be"))?;
        if request.acks.is_empty() {
            return Ok(None);
        }
        let until = until.unwrap_or(now + self.config.command_timeout);
        self.wait(id, What::Command, request.acks, now, until);
        Ok(Some(id))
    }

    /// Places a subscription, now or after the next logon. [`Received::Done`] with the returned
    /// id follows when the server first accepted or refused it.
    pub fn subscribe(&mut self, now: Duration, spec: Subscribe, out: &mut Vec<u8>) -> u64 {
        let subscription = self.take_id();
        self.subscriptions.insert(
            subscription,
            Placed {
                spec,
                command: 0,
                bookmark: None,
                last_frame: 0,
            },
        );
        if self.is_logged_on() {
            self.place(now, subscription, false, out);
        }
        subscription
    }

    /// Ends a subscription.
    pub fn unsubscribe(&mut self, subscription: u64, out: &mut Vec<u8>) {
        if self.subscriptions.remove(&subscription).is_some() && self.is_logged_on() {
            let id = wire_id(self.take_id());
            // It cannot be too long for a frame.
            let _ = Command::unsubscribe(&id, &sub_id(subscription)).encode(out);
        }
    }

    /// Whether a subscription still exists.
    pub fn is_subscribed(&self, subscription: u64) -> bool {
        self.subscriptions.contains_key(&subscription)
    }

    fn log_on(
        &mut self,
        now: Duration,
        credentials: &Credentials,
        challenges: u32,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let id = self.take_id();
        let wire = wire_id(id);
        let mut command = Command::logon(&wire, &self.config.client_name);
        command.message_type = self.message_type.as_deref();
        command.user_id = credentials.user.as_deref();
        command.password = credentials.password.as_deref();
        command.options = self.config.logon_options.as_deref();
        command.correlation_id = self.config.logon_correlation.as_deref();
        command.version = Some(concat!(env!("CARGO_PKG_VERSION"), ":rust"));
        command.encode(out)?;
        self.phase = Phase::LoggingOn {
            id,
            until: now + self.config.logon_timeout,
            challenges,
        };
        Ok(())
    }

    fn start_heartbeat(&mut self, now: Duration, out: &mut Vec<u8>) {
        let Some(interval) = self.config.heartbeat else {
            return;
        };
        let id = self.take_id();
        let options = format!("start,{}", interval.as_secs().max(1));
        if Command::heartbeat_start(&wire_id(id), &options)
            .encode(out)
            .is_ok()
        {
            self.wait(
                id,
                What::Heartbeat,
                AckKinds::PROCESSED,
                now,
                now + self.config.command_timeout,
            );
            self.silence.asked();
            self.beat_at = Some(now + interval);
        }
    }

    fn resubscribe(&mut self, now: Duration, out: &mut Vec<u8>) {
        let all: Vec<u64> = self.subscriptions.keys().copied().collect();
        self.resubscribing = 0;
        for subscription in &all {
            self.place(now, *subscription, true, out);
        }
        self.resubscribing = all.len();
    }

    fn place(&mut self, now: Duration, subscription: u64, again: bool, out: &mut Vec<u8>) {
        let id = self.take_id();
        let Some(placed) = self.subscriptions.get_mut(&subscription) else {
            return;
        };
        placed.command = id;
        let (wire, sub) = (wire_id(id), sub_id(subscription));
        let command = placed.spec.command(&wire, &sub, placed.bookmark.as_deref());
        let acks = match placed.spec.is_query() {
            true => AckKinds::PROCESSED,
            false => command.acks,
        };
        if command.encode(out).is_ok() {
            let what = What::Subscribe {
                subscription,
                again,
            };
            self.wait(id, what, acks, now, now + self.config.command_timeout);
        }
    }

    /// Commands that wait for an answer, including those that place subscriptions.
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Nobody waits for the answer to a command any more. If it comes all the same, it belongs to
    /// nothing.
    pub fn forget(&mut self, command: u64) {
        self.waiting.remove(&command);
    }

    fn may_wait(&self) -> Result<(), CommandError> {
        if !self.is_logged_on() {
            return Err(CommandError::NotConnected);
        }
        match self.waiting.len() < MAX_WAITING {
            true => Ok(()),
            false => Err(CommandError::TooMany),
        }
    }

    fn wait(&mut self, id: u64, what: What, left: AckKinds, since: Duration, until: Duration) {
        self.waiting.insert(
            id,
            Waiting {
                what,
                left,
                since,
                until,
                answer: Answer::default(),
            },
        );
    }

    fn take_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    /// Whether a command or a subscription of this client has, or had, this id.
    fn gave_out(&self, id: u64) -> bool {
        (1..self.next_id).contains(&id)
    }
}

/// Command ids of the session start with a letter, so that they never look like the
/// decimal sequence of a publish.
fn wire_id(id: u64) -> String {
    format!("c{id}")
}

/// What the command id of an ack names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    /// There is none, as in conflated acks.
    Nobody,
    /// It has the form of the session's own ids, whether or not this one was given out: the ack
    /// is about a command other than a publish.
    Own(u64),
    /// The publish of this sequence.
    Publish(u64),
    /// No command of this client has it.
    Stranger,
}

impl Named {
    fn by(id: Option<&str>, config: &SessionConfig) -> Named {
        let Some(id) = id.filter(|id| !id.is_empty()) else {
            return Named::Nobody;
        };
        if let Some(digits) = id.strip_prefix('c')
            && !digits.is_empty()
            && digits.bytes().all(|byte| byte.is_ascii_digit())
        {
            // 0 is never given out.
            return Named::Own(number(digits).unwrap_or(0));
        }
        // Where publishes carry none, no id can be one of theirs.
        let of_a_publish = match config.stored {
            true => number(id).filter(|_| config.publish_ids),
            false => id.strip_prefix(char::from(ASKED)).and_then(number),
        };
        of_a_publish.map_or(Named::Stranger, Named::Publish)
    }
}

/// Reads a number in exactly the form in which this client writes it. Any other form cannot be
/// its own.
fn number(text: &str) -> Option<u64> {
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    let plain = digits && (text == "0" || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

fn sub_id(subscription: u64) -> String {
    format!("s{subscription}")
}

fn own_sub(text: &str) -> Option<u64> {
    number(text.trim().strip_prefix('s')?)
}
