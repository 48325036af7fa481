//! A link to an AMPS server: a session over a stream of bytes.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_delivery::{
    Capabilities, ConnectionState, Heard, Link, LinkEnd, Now, Progress, Resume, Room, Sink, ToSend,
    Unsendable, Up, Words,
};
use bytes::Bytes;
use tokio::io::AsyncReadExt;

use super::desk::{Sitting, Slot, Stray, answered};
use crate::chooser::{Credentials, Server};
use crate::connector::Stream;
use crate::delivery::{AckWish, PublishAck, Verdict};
use crate::failed::UnhandledAck;
use crate::panics::{self, AUTHENTICATOR};
use crate::protocol::{AckKind, FrameDecoder, Header, Verb, cut};
use crate::sampled::Sampled;
use crate::session::{Expired, Received};
use crate::wire::Encoder;

/// Bytes gathered for one write; larger writes gain nothing.
const WRITE_BATCH: usize = 64 * 1024;

/// A write buffer that grew beyond this for one large message is given back.
const WRITE_KEEP: usize = 4 * WRITE_BATCH;

/// If there is room at all, there is at least this much. Otherwise the last messages before the
/// bound would be read and encoded one or two at a time.
const LEAST_ROOM: usize = 16 * 1024;

/// Frames handled at once, at most: what came with them is told before more is.
const FRAMES: usize = 1024;

/// What a link is made with.
pub(crate) struct Making {
    pub(crate) stream: Box<dyn Stream>,
    pub(crate) server: Server,
    pub(crate) slot: Arc<Slot>,
    pub(crate) publish_ids: bool,
    pub(crate) max_frame: usize,
    /// Time for each answer of an authenticator.
    pub(crate) logon_timeout: Duration,
    /// For messages whose time to the ack is measured: where their times are kept.
    pub(crate) sampled: Option<Arc<Mutex<Sampled>>>,
}

pub(crate) struct AmpsLink {
    stream: Box<dyn Stream>,
    server: Server,
    /// Given back when the link ends.
    sitting: Option<Sitting>,
    slot: Arc<Slot>,
    decoder: FrameDecoder,
    encoder: Encoder,
    out: WriteBuffer,
    /// Commands and answers, which go out ahead of messages.
    commands: Vec<u8>,
    asking: Option<Asking>,
    logon_timeout: Duration,
    begun: bool,
    /// Frames of an earlier read still have to be handled.
    frames_left: bool,
    up: bool,
    /// The next message is the first since the stream took bytes, so its time is measured.
    measure: bool,
    sampled: Option<Arc<Mutex<Sampled>>>,
}

/// An authenticator at work.
struct Asking {
    answer: Answering,
    until: Duration,
    to_challenge: bool,
}

type Answering = Pin<Box<dyn Future<Output = Result<Result<Credentials, String>, String>> + Send>>;

/// Bytes on their way out.
#[derive(Default)]
struct WriteBuffer {
    bytes: Vec<u8>,
    written: usize,
    unflushed: bool,
}

impl WriteBuffer {
    fn pending(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    /// Drops what was written, so that the buffer can be appended to.
    fn compact(&mut self) {
        self.bytes.drain(..self.written);
        self.written = 0;
        if self.bytes.capacity() > WRITE_KEEP && self.bytes.len() < WRITE_BATCH {
            self.bytes.shrink_to(WRITE_BATCH);
        }
    }
}

impl AmpsLink {
    /// `None`: another link still exists.
    pub(crate) fn new(made: Making) -> Option<Self> {
        let sitting = made.slot.take()?;
        Some(AmpsLink {
            stream: made.stream,
            server: made.server,
            sitting: Some(sitting),
            slot: made.slot,
            decoder: FrameDecoder::with_max_frame(made.max_frame),
            encoder: Encoder::new(made.publish_ids),
            out: WriteBuffer::default(),
            commands: Vec::new(),
            asking: None,
            logon_timeout: made.logon_timeout,
            begun: false,
            frames_left: false,
            up: false,
            measure: true,
            sampled: made.sampled,
        })
    }

    /// Asks for the credentials of the logon.
    fn begin(&mut self, now: Now) -> Result<(), LinkEnd> {
        self.begun = true;
        let given = Credentials {
            user: self.server.uri.user().map(str::to_owned),
            password: self.server.uri.password().map(str::to_owned),
        };
        match self.server.authenticator.clone() {
            None => self.log_on(now, &given),
            Some(authenticator) => {
                let uri = self.server.uri.clone();
                let answer = async move {
                    panics::run(AUTHENTICATOR, || authenticator.authenticate(&uri, given)).await
                };
                self.ask(now, Box::pin(answer), false);
                Ok(())
            }
        }
    }

    fn ask(&mut self, now: Now, answer: Answering, to_challenge: bool) {
        self.asking = Some(Asking {
            answer,
            until: now.at + self.logon_timeout,
            to_challenge,
        });
    }

    fn log_on(&mut self, now: Now, credentials: &Credentials) -> Result<(), LinkEnd> {
        let Some(sitting) = &mut self.sitting else {
            return Ok(());
        };
        let kind = self.server.uri.message_type();
        sitting
            .session
            .connected(now.at, kind, credentials, &mut self.commands)
            .map_err(|error| LinkEnd::Protocol(error.to_string()))
    }

    /// Polls an authenticator that was asked; returns whether it answered.
    fn hear_authenticator(&mut self, cx: &mut Context<'_>, now: Now) -> Result<bool, LinkEnd> {
        let Some(asking) = &mut self.asking else {
            return Ok(false);
        };
        let answer = match asking.answer.as_mut().poll(cx) {
            Poll::Ready(answer) => answer
                .map_err(LinkEnd::Panicked)?
                .map_err(LinkEnd::Authenticator)?,
            Poll::Pending if now.at < asking.until => return Ok(false),
            Poll::Pending => {
                let limit = self.logon_timeout;
                let error = format!("the authenticator did not answer within {limit:?}");
                return Err(LinkEnd::Authenticator(error));
            }
        };
        let to_challenge = asking.to_challenge;
        self.asking = None;
        if !to_challenge {
            self.log_on(now, &answer)?;
        } else if let Some(sitting) = &mut self.sitting {
            sitting
                .session
                .answer_challenge(now.at, &answer, &mut self.commands)
                .map_err(|error| LinkEnd::Protocol(error.to_string()))?;
        }
        Ok(true)
    }

    fn challenged(&mut self, now: Now, challenge: Credentials) -> Result<(), LinkEnd> {
        let Some(authenticator) = self.server.authenticator.clone() else {
            let error = "the server asks for an answer to a challenge".to_owned();
            return Err(LinkEnd::Authenticator(error));
        };
        let uri = self.server.uri.clone();
        let answer = async move {
            panics::run(AUTHENTICATOR, || authenticator.answer(&uri, challenge)).await
        };
        self.ask(now, Box::pin(answer), true);
        Ok(())
    }

    /// Writes as much as the stream takes; returns whether it took any.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        if self.out.pending().len() < WRITE_BATCH {
            self.out.bytes.append(&mut self.commands);
        }
        let mut wrote = false;
        while !self.out.pending().is_empty() {
            let stream = Pin::new(&mut *self.stream);
            match stream.poll_write(cx, self.out.pending()) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.out.written += count;
                    self.out.unflushed = true;
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if self.out.unflushed && self.out.pending().is_empty() {
            match Pin::new(&mut *self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.out.unflushed = false,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        // Room that was written is reclaimed now, before more is added. At the next write it
        // would be too late: the buffer would be as full again.
        if self.out.pending().len() < WRITE_BATCH {
            self.out.compact();
        }
        Ok(wrote)
    }

    /// Handles what was left of an earlier read, or reads once; returns whether anything came.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Result<bool, LinkEnd> {
        // What comes behind a challenge waits until the challenge was answered.
        if self.asking.is_some() {
            return Ok(false);
        }
        if !std::mem::take(&mut self.frames_left) {
            let input = self.decoder.read_buffer();
            let read = pin!(self.stream.read_buf(input));
            match read.poll(cx) {
                Poll::Pending => return Ok(false),
                Poll::Ready(Err(error)) => return Err(LinkEnd::Io(error.to_string())),
                Poll::Ready(Ok(0)) => {
                    return Err(match self.decoder.finish() {
                        Ok(()) => LinkEnd::Closed,
                        Err(_) => LinkEnd::Truncated,
                    });
                }
                Poll::Ready(Ok(_)) => {}
            }
        }
        for _ in 0..FRAMES {
            let frame = self
                .decoder
                .next_frame()
                .map_err(|error| LinkEnd::Protocol(error.to_string()))?;
            let Some(frame) = frame else {
                let part = self.decoder.pending();
                if let Some(sitting) = &mut self.sitting {
                    sitting.session.receiving(now.at, part);
                }
                return Ok(true);
            };
            self.take_in(now, &frame, sink)?;
            if self.asking.is_some() {
                break;
            }
        }
        self.frames_left = true;
        Ok(true)
    }

    fn take_in(&mut self, now: Now, frame: &Bytes, sink: &mut dyn Sink) -> Result<(), LinkEnd> {
        let Some(sitting) = &mut self.sitting else {
            return Ok(());
        };
        let mut accepted = None;
        let (mut end, mut challenge) = (None, None);
        let mut gone = Vec::new();
        let Sitting {
            session,
            replies,
            readers,
            desk,
            ..
        } = sitting;
        let mut ear = |item: Received<'_>| match item {
            Received::Ack(ack) => hear(ack, frame, sink),
            // Told after what the server says about itself.
            Received::LoggedOn { figure } => accepted = Some(figure),
            Received::LogonRefused(reason) => end = Some(LinkEnd::LogonRefused(reason)),
            Received::LoggedOnAs(name) => end = Some(LinkEnd::LoggedOnAs(name.to_owned())),
            Received::Challenge(asked) => challenge = Some(asked),
            Received::HeartbeatInitiated => {
                sink.heard(Heard::State(ConnectionState::HeartbeatInitiated));
            }
            Received::Resubscribed => sink.heard(Heard::State(ConnectionState::Resubscribed)),
            // Told at once: a frame can hold more of them than memory has room for.
            Received::Delivered {
                subscription,
                message,
            } => {
                if !readers.deliver(subscription, message) {
                    gone.push(subscription);
                }
            }
            Received::Unreadable { field } => {
                desk.stray(Stray::UnreadableField(cut(field).to_owned()));
            }
            Received::Unhandled(header) => desk.stray(Stray::Unhandled(unhandled(header))),
            other => answered(replies, readers, other),
        };
        session
            .receive(now.at, frame, &mut self.commands, &mut ear)
            .map_err(|error| LinkEnd::Protocol(error.to_string()))?;
        for subscription in gone {
            session.unsubscribe(subscription, &mut self.commands);
        }
        if let Some(end) = end {
            return Err(end);
        }
        if let Some(figure) = accepted {
            desk.stray(Stray::Server(session.server().clone()));
            desk.set_up(true);
            self.up = true;
            sink.heard(Heard::Up(Up {
                resume: Resume::figure(figure),
                capabilities: &Capabilities::LOGGED,
            }));
            if let Some(authenticator) = &self.server.authenticator {
                let told = || authenticator.completed(&self.server.uri);
                panics::call(AUTHENTICATOR, told).map_err(LinkEnd::Panicked)?;
            }
        }
        match challenge {
            Some(challenge) => self.challenged(now, challenge),
            None => Ok(()),
        }
    }

    /// Does what is due by the clock.
    fn tick(&mut self, now: Now, sink: &mut dyn Sink) -> Result<bool, LinkEnd> {
        let Some(sitting) = &mut self.sitting else {
            return Ok(false);
        };
        if sitting.session.deadline().is_none_or(|at| now.at < at) {
            return Ok(false);
        }
        let ticked = sitting.tick(now, &mut self.commands, sink);
        match ticked {
            Ok(()) => Ok(true),
            Err(Expired::Logon) => Err(LinkEnd::LogonTimeout),
            Err(Expired::Heartbeat) => Err(LinkEnd::HeartbeatLost),
        }
    }

    /// Does everything once; `None`: there was nothing to do.
    fn work(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Result<Option<Progress>, LinkEnd> {
        if !self.begun {
            self.begin(now)?;
        }
        let mut moved = self.hear_authenticator(cx, now)?;
        moved |= self.tick(now, sink)?;
        moved |= self.serve(cx, now);
        self.measure = true;
        let wrote = self
            .write(cx)
            .map_err(|error| LinkEnd::Io(error.to_string()))?;
        if let (true, Some(sitting)) = (wrote, &mut self.sitting) {
            sitting.session.wrote(now.at);
        }
        let read = self.read(cx, now, sink)?;
        let progress = Progress {
            read,
            wrote,
            // Acks have figures: a message has no deadline of its own.
            through: None,
        };
        Ok((moved || wrote || read).then_some(progress))
    }

    /// Handles what the handles ask for, as long as the stream takes it.
    fn serve(&mut self, cx: &mut Context<'_>, now: Now) -> bool {
        match &mut self.sitting {
            Some(sitting) => sitting.serve(cx, now, &mut self.commands),
            None => false,
        }
    }
}

impl Link for AmpsLink {
    fn room(&self) -> Room {
        let waiting = self.out.pending().len() + self.commands.len();
        match self.up && waiting < WRITE_BATCH {
            true => Room {
                messages: usize::MAX,
                bytes: (WRITE_BATCH - waiting).max(LEAST_ROOM),
            },
            false => Room::NONE,
        }
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        // Commands that were given earlier are sent earlier.
        self.out.bytes.append(&mut self.commands);
        let encoded = self.encoder.encode(message, &mut self.out.bytes);
        encoded.map_err(|error| Unsendable {
            why: error.to_string(),
        })?;
        if message.ack != AckWish::Unasked
            && std::mem::take(&mut self.measure)
            && let Some(sampled) = &self.sampled
            && let Ok(envelope) = message.message.envelope()
        {
            let mut sampled = sampled.lock().unwrap_or_else(PoisonError::into_inner);
            sampled.sent(message.sequence, envelope.published_at);
        }
        Ok(())
    }

    fn waits(&mut self, now: Now, in_flight: u64) {
        if let Some(sitting) = &mut self.sitting {
            sitting.session.publishes_wait(now.at, in_flight > 0);
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        match self.work(cx, now, sink) {
            Ok(Some(progress)) => Poll::Ready(Ok(progress)),
            Ok(None) => Poll::Pending,
            Err(end) => Poll::Ready(Err(end)),
        }
    }

    fn deadline(&self) -> Option<Duration> {
        if !self.begun {
            return Some(Duration::ZERO);
        }
        let asking = self.asking.as_ref().map(|asking| asking.until);
        let sitting = self.sitting.as_ref();
        let session = sitting.and_then(|sitting| sitting.session.deadline());
        [asking, session].into_iter().flatten().min()
    }
}

/// However the link ends: whoever waited for an answer is told, and what outlives the link is
/// given back.
impl Drop for AmpsLink {
    fn drop(&mut self) {
        if let Some(mut sitting) = self.sitting.take() {
            sitting.link_ended();
            self.slot.give_back(sitting);
        }
    }
}

/// Passes an ack on; a refusal with the server's words.
fn hear(ack: PublishAck<'_>, frame: &Bytes, sink: &mut dyn Sink) {
    let header = match ack.verdict {
        Verdict::Persisted => None,
        // Now, while the frame is still there: successes are many, and refusals few.
        Verdict::Refused(_) | Verdict::Stray(_) => Header::salvage(frame).ok(),
    };
    let words = match &header {
        None => Words::default(),
        Some((header, _)) => Words {
            kind: header.ack_kind().map(AckKind::as_str),
            id: header.command_id.as_deref().map(cut),
            reason_cut: header
                .reason_text
                .as_deref()
                .is_some_and(|text| text.len() > cut(text).len()),
        },
    };
    sink.heard(Heard::Ack { ack, words });
}

fn unhandled(header: &Header<'_>) -> UnhandledAck {
    let ids = header.sub_ids.as_deref().or(header.sub_id.as_deref());
    let subscription = ids.or(header.query_id.as_deref());
    let command = header.verb.as_ref().map_or("", Verb::as_str);
    UnhandledAck {
        command: cut(command).to_owned(),
        kind: header.ack_kind(),
        status: header.status,
        reason: header.reason(),
        reason_cut: header
            .reason_text
            .as_deref()
            .is_some_and(|text| text.len() > cut(text).len()),
        sequence: None,
        figure: header.sequence,
        command_id: header.command_id.as_deref().map(|id| cut(id).to_owned()),
        subscription: subscription.map(|id| cut(id).to_owned()),
        waits_in_store: false,
        earlier_run: false,
    }
}
