//! One connection to a server of NATS, from its first word on: logon, the stream, what it holds of
//! ours, then messages and their answers. Bytes and time are arguments.

mod answers;
mod looking;

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use amps_delivery::{
    AckWish, Acks, Capabilities, Heard, Identity, LinkEnd, Meaning, Medium, Now, Operations, Order,
    Resume, Sink, Synced, ToSend, Unsendable, Up,
};
use amps_store::Operation;

use crate::api::{self, API, AnswerError, Ask, NewStream, StreamInfo};
use crate::chain::Chain;
use crate::codec::{self, Frame, Msg, PING, PONG, decimal};
use crate::config::{Config, Mode};
use crate::encode::Encoder;
use crate::flight::{Flight, Sent};
use crate::ids::Ids;
use crate::logon::{self, ServerInfo};
use crate::subject::subject;
use crate::verdict::Bound;

use looking::Look;

/// The most that is read of one message, whatever the server takes.
const MOST_READ: usize = 128 << 20;

pub(crate) struct Session {
    config: Config,
    me: Identity,
    ids: Ids,
    /// What the subjects begin with that answers come to, with the dot behind it.
    inbox: String,
    api: String,
    server: ServerInfo,
    stage: Stage,
    /// Time has begun.
    begun: bool,
    /// When the answer that is waited for has taken too long.
    until: Option<Duration>,
    /// The name of the last question.
    question: u64,
    bound: Bound,
    stream: StreamInfo,
    encoder: Option<Encoder>,
    capabilities: Capabilities,
    chain: Option<Chain>,
    /// Why messages are chained, or why not.
    because: &'static str,
    flight: Flight,
    /// What the server knows of earlier messages could not be proved.
    doubtful: bool,
    look: Option<Look>,
    /// Messages that were asked for by id; and what was found, until something is sent.
    recalled: VecDeque<u64>,
    since: Option<u64>,
    found: Option<BTreeSet<u64>>,
    heard_at: Duration,
    pinged: bool,
}

/// What is waited for before messages can go out, and that they can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// The server's first word.
    Greeting,
    /// That it took the logon.
    Logon,
    /// The name of the stream.
    Naming,
    /// That the stream was made.
    Creating,
    /// What is in it.
    Looking,
    Up,
}

impl Session {
    /// `token` is for this connection alone; who can guess it can answer in the server's place.
    pub(crate) fn new(config: Config, me: Identity, token: &str) -> Self {
        let api = match &config.domain {
            Some(domain) => format!("$JS.{domain}.API"),
            None => API.to_owned(),
        };
        Session {
            ids: Ids::new(&me.client, me.store),
            inbox: format!("{}.{token}.", config.inbox_prefix),
            api,
            server: ServerInfo::default(),
            stage: Stage::Greeting,
            until: None,
            begun: false,
            question: 0,
            bound: Bound::default(),
            stream: StreamInfo::default(),
            encoder: None,
            capabilities: Capabilities {
                acks: Acks::Single,
                order: Order::MayOvertake,
                meaning: Meaning::Accepted,
                operations: Operations::NONE.and(Operation::Publish),
                largest: None,
            },
            chain: None,
            because: "",
            flight: Flight::default(),
            doubtful: true,
            look: None,
            recalled: VecDeque::new(),
            since: None,
            found: None,
            heard_at: Duration::ZERO,
            pinged: false,
            config,
            me,
        }
    }

    /// Time begins: the server speaks first, and has so long for it.
    fn begin(&mut self, now: Now) {
        self.begun = true;
        self.heard_at = now.at;
        self.until = Some(now.at + self.config.timeout);
    }

    /// The largest message that is to be read from the server.
    pub(crate) fn most_read(&self) -> usize {
        // A stored message comes as text of four bytes for three.
        let stored = self.server.max_payload.saturating_mul(2);
        stored.saturating_add(1 << 20).min(MOST_READ)
    }

    /// How many messages may be handed over now.
    pub(crate) fn room(&self) -> usize {
        let waits = self.stage != Stage::Up
            || self.look.is_some()
            || !self.recalled.is_empty()
            || self.server.ldm
            || self.chain.is_some_and(|chain| chain.is_broken());
        match waits {
            true => 0,
            false => self.flight.room(self.config.window),
        }
    }

    /// Takes a message in; its publish is appended to `out`.
    pub(crate) fn send(
        &mut self,
        message: &ToSend<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), Unsendable> {
        let Some(encoder) = &mut self.encoder else {
            return Err(Unsendable {
                why: "the link is not up".to_owned(),
            });
        };
        // What a refused message leaves behind would break the chain.
        let mut chain = self.chain;
        let sent = Sent {
            wire: message.wire,
            expected: chain.as_mut().map(Chain::add),
            again: message.again,
            unasked: message.ack == AckWish::Unasked,
        };
        let mut reply = Vec::with_capacity(self.inbox.len() + 20);
        reply.extend_from_slice(self.inbox.as_bytes());
        decimal(&mut reply, self.flight.next());
        encoder.encode(message, sent.expected, &reply, out)?;
        self.flight.add(sent);
        self.chain = chain;
        self.found = None;
        Ok(())
    }

    /// Something was read from the server.
    pub(crate) fn heard(&mut self, now: Now) {
        self.heard_at = now.at;
        self.pinged = false;
    }

    /// Takes a frame in; what is to be said is appended to `out`.
    pub(crate) fn receive(
        &mut self,
        frame: Frame<'_>,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        match frame {
            Frame::Info(json) => self.informed(json, now, out, sink)?,
            Frame::Ping => out.extend_from_slice(PONG),
            Frame::Pong if self.stage == Stage::Logon => self.logged_on(now, out)?,
            Frame::Pong | Frame::Ok => {}
            Frame::Err(text) => self.wrong(text, sink)?,
            Frame::Msg(msg) => self.message(&msg, now, out, sink)?,
        }
        self.go_on(now, out)
    }

    fn message(
        &mut self,
        msg: &Msg<'_>,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        let Some(name) = msg.subject.strip_prefix(&self.inbox) else {
            return Ok(());
        };
        let number = |text: &str| text.parse::<u64>().ok();
        if let Some(name) = number(name) {
            return self.answered(name, msg, sink);
        }
        if let Some(question) = name.strip_prefix('q').and_then(number) {
            return match question == self.question {
                true => self.told(msg, now, out, sink),
                // To one that was asked again since.
                false => Ok(()),
            };
        }
        let place = name.strip_prefix('w').and_then(|name| name.split_once('.'));
        match place.map(|(round, place)| (number(round), number(place))) {
            Some((Some(round), Some(place))) if round == self.question => {
                self.seen(place, msg, now, out, sink)
            }
            _ => Ok(()),
        }
    }

    fn informed(
        &mut self,
        json: &[u8],
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        let server = logon::info(json)?;
        self.server = server;
        if self.stage != Stage::Greeting {
            return match self.stage {
                Stage::Up => self.limits_may_have_changed(sink),
                _ => Ok(()),
            };
        }
        let (name, config) = (&self.me.client, &self.config);
        logon::hello(out, &self.server, name, config, &self.inbox)?;
        self.stage = Stage::Logon;
        self.until = Some(now.at + self.config.timeout);
        Ok(())
    }

    fn logged_on(&mut self, now: Now, out: &mut Vec<u8>) -> Result<(), LinkEnd> {
        match &self.config.stream {
            Some(stream) => {
                let stream = stream.clone();
                self.bind(stream, now, out)
            }
            None => {
                self.stage = Stage::Naming;
                let subject = self.subject()?;
                self.ask(Ask::Names(&subject), now, out);
                Ok(())
            }
        }
    }

    fn subject(&self) -> Result<String, LinkEnd> {
        subject(&self.config.topic).map_err(|error| LinkEnd::Unusable(error.to_string()))
    }

    /// Asks a question, and waits for its answer.
    fn ask(&mut self, ask: Ask<'_>, now: Now, out: &mut Vec<u8>) {
        self.question += 1;
        let (subject, body) = ask.request(&self.api);
        let reply = format!("{}q{}", self.inbox, self.question);
        codec::publish(out, &subject, &reply, &body);
        self.until = Some(now.at + self.config.timeout);
    }

    /// The answer to the last question.
    fn told(
        &mut self,
        msg: &Msg<'_>,
        now: Now,
        out: &mut Vec<u8>,
        sink: &mut dyn Sink,
    ) -> Result<(), LinkEnd> {
        if self.look.is_some() {
            return self.informed_of_stream(msg, now, out, sink);
        }
        if msg.status().is_some() && msg.payload.is_empty() {
            return Err(LinkEnd::Unusable(logon::NO_JETSTREAM.to_owned()));
        }
        match self.stage {
            Stage::Naming => match api::names(msg.payload) {
                Ok(names) => match (names.into_iter().next(), &self.config.create) {
                    (Some(name), _) => self.bind(name, now, out),
                    (None, Some(create)) => {
                        let (name, replicas) = (create.name.clone(), create.replicas);
                        self.create(&name, replicas, now, out)
                    }
                    (None, None) => {
                        let (topic, subject) = (&self.config.topic, self.subject()?);
                        let why = format!(
                            "no stream takes the subject {subject} of topic {topic}; messages \
                             wait until one is made"
                        );
                        Err(LinkEnd::Unusable(why))
                    }
                },
                Err(error) => Err(cannot("find the stream", &error)),
            },
            Stage::Creating => match api::info(msg.payload) {
                Ok(info) => self.bind(info.config.name, now, out),
                Err(error) => Err(cannot("make the stream", &error)),
            },
            _ => Ok(()),
        }
    }

    fn create(
        &mut self,
        name: &str,
        replicas: u32,
        now: Now,
        out: &mut Vec<u8>,
    ) -> Result<(), LinkEnd> {
        api::check_name(name)?;
        self.stage = Stage::Creating;
        let subject = self.subject()?;
        let description = self.alone();
        let new = NewStream {
            name,
            subjects: [&subject],
            description: &description,
            storage: "file",
            num_replicas: replicas,
            discard: "old",
        };
        self.ask(Ask::Create(new), now, out);
        Ok(())
    }

    /// What a stream says of itself that was made for this publisher alone.
    fn alone(&self) -> String {
        format!("for {} alone", self.ids.prefix())
    }

    fn bind(&mut self, name: String, now: Now, out: &mut Vec<u8>) -> Result<(), LinkEnd> {
        api::check_name(&name)?;
        self.bound.stream = name;
        self.stage = Stage::Looking;
        self.look(Look::link_up(), now, out);
        Ok(())
    }

    /// What the stream is, at the beginning of a link. Whether messages are chained there.
    fn take_stream(&mut self, stream: StreamInfo) -> Result<bool, LinkEnd> {
        let config = &stream.config;
        let name = &config.name;
        let wrong = [
            (config.no_ack, "never says what it stored (no_ack)"),
            (config.mirror.is_some(), "is a mirror, and takes nothing"),
            (config.sealed, "is sealed, and takes no more"),
            (
                *name != self.bound.stream,
                "answers in the place of another",
            ),
        ];
        if let Some((_, why)) = wrong.iter().find(|(is, _)| *is) {
            return Err(LinkEnd::Unusable(format!("stream {name} {why}")));
        }
        let (chained, because) = match self.config.mode {
            Mode::Chained => (true, "as was asked for"),
            Mode::Unchained => (false, "as was asked for"),
            Mode::Auto if config.description == self.alone() => {
                (true, "since it was made for this publisher alone")
            }
            Mode::Auto => (false, "since it may have other publishers"),
        };
        self.because = because;
        self.bound.domain.clone_from(&stream.domain);
        self.capabilities.meaning = Meaning::Stored {
            replicas: config.num_replicas.max(1),
            medium: match config.storage == "file" {
                true => Medium::File,
                false => Medium::Memory,
            },
            synced: Synced::Unknown,
        };
        self.stream = stream;
        Ok(chained)
    }

    /// Which stream it is, and in which order messages are stored there.
    pub(crate) fn about(&self) -> String {
        let (how, order) = match self.capabilities.order {
            Order::Kept => ("chained", "each message once and in order"),
            Order::MayOvertake => (
                "unchained",
                "each message at least once, and one may overtake another",
            ),
        };
        let (stream, because) = (&self.bound.stream, self.because);
        format!("stream {stream}, {how} {because}: {order}")
    }

    fn largest(&self) -> usize {
        let of_stream = usize::try_from(self.stream.config.max_msg_size).ok();
        // None is -1; of a server that says none, too.
        let of_stream = of_stream.filter(|size| *size > 0).unwrap_or(usize::MAX);
        self.server.max_payload.min(of_stream)
    }

    fn limits_may_have_changed(&mut self, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        let largest = self.largest();
        if let Some(encoder) = &mut self.encoder
            && self.capabilities.largest != Some(largest)
        {
            self.capabilities.largest = Some(largest);
            encoder.set_largest(largest);
            sink.heard(Heard::Changed(&self.capabilities));
        }
        self.leave_lame()
    }

    /// Leaves a server that is about to stop, once nothing is under way.
    fn leave_lame(&self) -> Result<(), LinkEnd> {
        match self.server.ldm && self.flight.waiting() == 0 {
            true => Err(LinkEnd::Closed),
            false => Ok(()),
        }
    }

    /// Messages may go out from here on.
    fn up(&mut self, resume: Resume, chain: Option<Chain>, sink: &mut dyn Sink) {
        let largest = self.largest();
        self.stage = Stage::Up;
        self.until = None;
        self.chain = chain;
        self.doubtful = !matches!(resume, Resume::HighWater(_));
        self.capabilities.largest = Some(largest);
        self.capabilities.order = match chain {
            Some(_) => Order::Kept,
            None => Order::MayOvertake,
        };
        self.encoder = Some(Encoder::new(
            self.ids.clone(),
            &self.bound.stream,
            self.stream.config.allow_msg_ttl,
            largest,
        ));
        sink.heard(Heard::Up(Up {
            resume,
            capabilities: &self.capabilities,
        }));
    }

    /// The server says that something is wrong.
    fn wrong(&mut self, text: &str, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        let lower = text.to_ascii_lowercase();
        if lower.starts_with("permissions violation for publish") {
            if self.stage != Stage::Up || text.contains(&self.api) {
                let why = format!("{text}: a publisher needs it to know what is stored");
                return Err(LinkEnd::Unusable(why));
            }
            // It names no message.
            sink.heard(Heard::LineStopped { why: text });
            return Ok(());
        }
        Err(logon::wrong(text))
    }

    /// Does what has become possible.
    fn go_on(&mut self, now: Now, out: &mut Vec<u8>) -> Result<(), LinkEnd> {
        if self.stage != Stage::Up {
            return Ok(());
        }
        self.leave_lame()?;
        if self.chain.is_some_and(|chain| chain.is_broken())
            && self.flight.waiting() == 0
            && self.look.is_none()
        {
            self.look(Look::mend(), now, out);
        }
        Ok(())
    }

    /// Does what is due by the clock; whether anything was.
    pub(crate) fn tick(&mut self, now: Now, out: &mut Vec<u8>) -> Result<bool, LinkEnd> {
        if !self.begun {
            self.begin(now);
        }
        if self.until.is_some_and(|until| now.at >= until) {
            if self.cut_recall_short() {
                return Ok(true);
            }
            return Err(match self.stage {
                Stage::Greeting | Stage::Logon => LinkEnd::LogonTimeout,
                _ => LinkEnd::Unusable(format!(
                    "JetStream did not answer within {:?}; stream {} may have no leader",
                    self.config.timeout, self.bound.stream
                )),
            });
        }
        if self.look_is_due(now) {
            self.look_again(now, out);
            return Ok(true);
        }
        if self.stage != Stage::Up {
            return Ok(false);
        }
        if now.at >= self.heard_at + 2 * self.config.heartbeat {
            return Err(LinkEnd::HeartbeatLost);
        }
        let asks = !self.pinged && now.at >= self.heard_at + self.config.heartbeat;
        if asks {
            self.pinged = true;
            out.extend_from_slice(PING);
        }
        Ok(asks)
    }

    /// When [`tick`](Self::tick) has something to do, if nothing is heard.
    pub(crate) fn deadline(&self) -> Option<Duration> {
        if !self.begun {
            return Some(Duration::ZERO);
        }
        let silent = match (self.stage, self.pinged) {
            (Stage::Up, true) => Some(self.heard_at + 2 * self.config.heartbeat),
            (Stage::Up, false) => Some(self.heard_at + self.config.heartbeat),
            _ => None,
        };
        [self.until, silent, self.look_due()]
            .into_iter()
            .flatten()
            .min()
    }
}

fn cannot(what: &str, error: &AnswerError) -> LinkEnd {
    LinkEnd::Unusable(format!("JetStream cannot {what}: {error}"))
}
