//! One link: bytes in, bytes out, until it ends.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_store::{Batch, ReadError};
use bytes::BytesMut;
use tokio::io::AsyncReadExt;
use tokio::time::Instant;

use super::{AUTHENTICATOR, CHOOSER, Driver, STREAM, next_event};
use crate::chooser::{Credentials, Server};
use crate::connector::Stream;
use crate::delivery::{Input, NotSent, Room, ToSend, Verdict};
use crate::error::CommandError;
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::panics;
use crate::protocol::{FrameDecoder, Header, Reason, Verb, cut};
use crate::requests::Answer;
use crate::session::{Expired, Received};
use crate::subscription::SubscriptionEnd;
use crate::wire::Encoder;

/// Bytes gathered for one write; beyond it larger writes gain nothing.
const WRITE_BATCH: usize = 64 * 1024;

/// A write buffer that grew beyond this for one large message is given back.
const WRITE_KEEP: usize = 4 * WRITE_BATCH;

/// What the session passes up, owning its bytes.
pub(super) enum Owned {
    LoggedOn,
    LogonRefused(Reason),
    LoggedOnAs(String),
    Challenge(Credentials),
    HeartbeatInitiated,
    Resubscribed,
    Done {
        id: u64,
        result: Result<Answer, CommandError>,
    },
    SubscriptionEnded {
        subscription: u64,
        error: Option<CommandError>,
    },
    Unreadable(String),
    Unhandled(UnhandledAck),
    Nothing,
}

impl From<Received<'_>> for Owned {
    fn from(received: Received<'_>) -> Self {
        match received {
            Received::LoggedOn { .. } => Owned::LoggedOn,
            Received::LogonRefused(reason) => Owned::LogonRefused(reason),
            Received::LoggedOnAs(name) => Owned::LoggedOnAs(name.to_owned()),
            Received::Challenge(challenge) => Owned::Challenge(challenge),
            Received::HeartbeatInitiated => Owned::HeartbeatInitiated,
            Received::Resubscribed => Owned::Resubscribed,
            Received::Ack(_) | Received::Delivered { .. } => Owned::Nothing,
            Received::Done { id, result } => Owned::Done { id, result },
            Received::SubscriptionEnded {
                subscription,
                error,
            } => Owned::SubscriptionEnded {
                subscription,
                error,
            },
            Received::Unreadable { field } => Owned::Unreadable(cut(field).to_owned()),
            Received::Unhandled(header) => Owned::Unhandled(unhandled(header)),
        }
    }
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

/// Bytes on their way out.
struct WriteBuffer {
    encoder: Encoder,
    bytes: Vec<u8>,
    written: usize,
    unflushed: bool,
}

impl WriteBuffer {
    fn new(encoder: Encoder) -> Self {
        WriteBuffer {
            encoder,
            bytes: Vec::new(),
            written: 0,
            unflushed: false,
        }
    }

    fn pending(&self) -> &[u8] {
        &self.bytes[self.written..]
    }

    fn has_room(&self) -> bool {
        self.bytes.len() - self.written < WRITE_BATCH
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

enum Progress {
    Read(usize),
    Wrote,
}

impl Driver {
    /// Serves one open link to its end.
    pub(super) async fn link(
        &mut self,
        stream: &mut dyn Stream,
        server: &Server,
        credentials: &Credentials,
    ) -> LinkEnd {
        let mut decoder = FrameDecoder::with_max_frame(self.settings.max_frame);
        let mut out = WriteBuffer::new(Encoder::new(self.settings.publish_ids));
        let mut batch = Batch::default();
        let now = self.now().at;
        let message_type = server.uri.message_type();
        let logon = self
            .session
            .connected(now, message_type, credentials, &mut self.work.out);
        if let Err(error) = logon {
            return LinkEnd::Protocol(error.to_string());
        }
        loop {
            if let Err(end) = self.serve(server, &mut batch, &mut out) {
                return end;
            }
            if out.pending().is_empty() {
                // Look once more after saying that we sleep: what is appended from here on
                // rings the bell.
                self.shared.mailbox.doorbell.arm();
                if let Err(end) = self.serve(server, &mut batch, &mut out) {
                    return end;
                }
            }
            // What is overdue can wait for the link to take bytes; it must not spin.
            let soon = Instant::now() + Duration::from_millis(1);
            let deadline = self.deadline().map(|at| at.max(soon));
            let commands = self.work.has_room().then_some(&mut self.inbox.commands);
            tokio::select! {
                progress = exchange(stream, &mut out, decoder.read_buffer()) => match progress {
                    Ok(Progress::Read(0)) => return match decoder.finish() {
                        Ok(()) => LinkEnd::Closed,
                        Err(_) => LinkEnd::Truncated,
                    },
                    Ok(Progress::Read(_)) => {
                        if let Err(end) = self.read(server, &mut decoder).await {
                            return end;
                        }
                    }
                    Ok(Progress::Wrote) => self.session.wrote(self.work.start.elapsed()),
                    Err(error) => return LinkEnd::Io(error.to_string()),
                },
                event = next_event(&mut self.inbox.asks, commands, &mut self.work.running, &self.shared, deadline) => {
                    self.local(event);
                }
            }
            self.shared.mailbox.doorbell.disarm();
        }
    }

    /// Everything that is due, then as much to write as fits.
    fn serve(
        &mut self,
        server: &Server,
        batch: &mut Batch,
        out: &mut WriteBuffer,
    ) -> Result<(), LinkEnd> {
        let now = self.work.start.elapsed();
        if self.session.deadline().is_some_and(|at| now >= at) {
            let mut received = Vec::new();
            let ticked = self.session.tick(now, &mut self.work.out, &mut |item| {
                received.push(Owned::from(item));
            });
            for item in received {
                self.received(item);
            }
            ticked.map_err(|expired| match expired {
                Expired::Logon => LinkEnd::LogonTimeout,
                Expired::Heartbeat => LinkEnd::HeartbeatLost,
            })?;
        }
        self.turn();
        if let Some(end) = self.work.drop_link.take() {
            return Err(end);
        }
        if self.work.stopped {
            tracing::debug!(server = %server.uri.authority(), "closing");
            return Err(LinkEnd::Shutdown);
        }
        if !out.has_room() {
            return Ok(());
        }
        out.compact();
        out.bytes.append(&mut self.work.out);
        match self.delivery {
            Some(_) => self.fill(batch, out),
            None => {
                self.take_direct(out);
                Ok(())
            }
        }
    }

    fn fill(&mut self, batch: &mut Batch, out: &mut WriteBuffer) -> Result<(), LinkEnd> {
        let now = self.now();
        let (Some(delivery), Some(store)) = (&mut self.delivery, self.shared.store()) else {
            return Ok(());
        };
        while out.has_room() {
            let (encoder, bytes) = (&mut out.encoder, &mut out.bytes);
            let sampled = &mut self.work.sampled;
            let mut measure = cfg!(feature = "metrics") && sampled.has_room();
            let send = |message: &ToSend<'_>| {
                if std::mem::take(&mut measure)
                    && let Ok(envelope) = message.message.envelope()
                {
                    sampled.sent(message.sequence, envelope.published_at);
                }
                encoder.encode(message, bytes)
            };
            let told = &mut self.work.unreadable;
            match delivery.hand_over(store.as_ref(), now, Room::ANY, batch, send) {
                Ok(0) => break,
                Ok(_) => {}
                Err(NotSent::Read(error @ ReadError::Damaged { sequence, .. })) => {
                    return Err(unreadable(&self.shared, told, sequence, &error));
                }
                Err(NotSent::Read(error)) => return Err(LinkEnd::Store(error.to_string())),
                Err(NotSent::Refused { sequence, error }) => {
                    return Err(unreadable(&self.shared, told, sequence, &error));
                }
            }
        }
        self.carry_out();
        self.start_job();
        Ok(())
    }

    fn take_direct(&mut self, out: &mut WriteBuffer) {
        let mut direct = self.shared.direct();
        if direct.bytes.is_empty() || !direct.open {
            return;
        }
        direct.handed_over();
        if out.bytes.is_empty() {
            std::mem::swap(&mut out.bytes, &mut direct.bytes);
        } else {
            out.bytes.append(&mut direct.bytes);
        }
        drop(direct);
        self.shared.room.notify_waiters();
    }

    /// Takes in every frame that is complete.
    async fn read(&mut self, server: &Server, decoder: &mut FrameDecoder) -> Result<(), LinkEnd> {
        let now = self.now();
        loop {
            let frame = decoder
                .next_frame()
                .map_err(|e| LinkEnd::Protocol(e.to_string()))?;
            let Some(frame) = frame else { break };
            let mut received = Owned::Nothing;
            let mut more = Vec::new();
            let mut ended = Vec::new();
            let mut refused = false;
            let (delivery, store) = (&mut self.delivery, self.shared.store());
            let readers = &mut self.work.readers;
            let mut sink = |item: Received<'_>| {
                // Messages reach their bounded channel at once: a frame can hold more than
                // memory has room for.
                let item = match item {
                    Received::Delivered {
                        subscription,
                        message,
                    } => {
                        if !readers.deliver(subscription, message) {
                            ended.push(subscription);
                        }
                        return;
                    }
                    item => item,
                };
                // Acks reach delivery at once and in order; the rest can wait for the end
                // of this frame.
                if let (Some(delivery), Some(store)) = (&mut *delivery, store) {
                    match &item {
                        Received::Ack(ack) => {
                            refused |= ack.verdict != Verdict::Persisted;
                            return delivery.handle(store.as_ref(), now, Input::Ack(*ack));
                        }
                        Received::LoggedOn { figure } => {
                            delivery.handle(
                                store.as_ref(),
                                now,
                                Input::LoggedOn { figure: *figure },
                            );
                        }
                        _ => {}
                    }
                }
                match received {
                    Owned::Nothing => received = Owned::from(item),
                    _ => more.push(Owned::from(item)),
                }
            };
            self.session
                .receive(now.at, &frame, &mut self.work.out, &mut sink)
                .map_err(|error| LinkEnd::Protocol(error.to_string()))?;
            if refused && let Ok((header, _)) = Header::salvage(&frame) {
                // While it is at hand, for who is told of it.
                self.work.refusal = Some(unhandled(&header));
                self.carry_out();
                self.work.refusal = None;
            }
            for subscription in ended {
                self.session.unsubscribe(subscription, &mut self.work.out);
            }
            for item in std::iter::once(received).chain(more) {
                match item {
                    Owned::Nothing => {}
                    Owned::LogonRefused(reason) => return Err(LinkEnd::LogonRefused(reason)),
                    Owned::LoggedOnAs(name) => return Err(LinkEnd::LoggedOnAs(name)),
                    Owned::Challenge(challenge) => self.challenge(server, challenge).await?,
                    Owned::LoggedOn => self.logged_on(server)?,
                    item => self.received(item),
                }
            }
        }
        self.session.receiving(now.at, decoder.read_buffer().len());
        self.input(Input::AcksEnd);
        Ok(())
    }

    fn logged_on(&mut self, server: &Server) -> Result<(), LinkEnd> {
        self.work.logged_on_at = Some(Instant::now());
        let info = self.session.server().clone();
        self.shared
            .status
            .send_modify(|status| status.server_info = info);
        panics::call(CHOOSER, || self.chooser.succeeded(server)).map_err(LinkEnd::Panicked)?;
        if let Some(authenticator) = &server.authenticator {
            let told = panics::call(AUTHENTICATOR, || authenticator.completed(&server.uri));
            told.map_err(LinkEnd::Panicked)?;
        }
        if self.delivery.is_none() {
            self.shared.direct().open = true;
        }
        self.state(ConnectionState::LoggedOn);
        self.tell_logon();
        Ok(())
    }

    async fn challenge(&mut self, server: &Server, challenge: Credentials) -> Result<(), LinkEnd> {
        let Some(authenticator) = &server.authenticator else {
            let error = "the server asks for an answer to a challenge".to_owned();
            return Err(LinkEnd::Authenticator(error));
        };
        let ask = || authenticator.answer(&server.uri, challenge);
        let asked = panics::run(AUTHENTICATOR, ask);
        let answer = self.authenticated(asked).await?;
        let now = self.work.start.elapsed();
        self.session
            .answer_challenge(now, &answer, &mut self.work.out)
            .map_err(|error| LinkEnd::Protocol(error.to_string()))
    }

    /// Passes on what concerns neither the logon nor delivery.
    pub(super) fn received(&mut self, item: Owned) {
        match item {
            Owned::HeartbeatInitiated => self.state(ConnectionState::HeartbeatInitiated),
            Owned::Resubscribed => self.state(ConnectionState::Resubscribed),
            Owned::Done { id, result } => self.done(id, result),
            Owned::SubscriptionEnded {
                subscription,
                error,
            } => {
                let end = error.map(SubscriptionEnd::Command);
                self.work.readers.end(subscription, end);
            }
            Owned::Unreadable(field) => self.unreadable_field(field),
            Owned::Unhandled(ack) => self.nobodys(ack),
            Owned::LoggedOn
            | Owned::LogonRefused(_)
            | Owned::LoggedOnAs(_)
            | Owned::Challenge(_)
            | Owned::Nothing => {}
        }
    }

    fn done(&mut self, id: u64, result: Result<Answer, CommandError>) {
        if let Some(reply) = self.work.commands.remove(&id) {
            return self.command_done(reply, result);
        }
        self.work.readers.placed(id, result);
    }
}

fn unreadable(
    shared: &crate::shared::Shared,
    told: &mut Option<u64>,
    sequence: u64,
    error: &dyn std::fmt::Display,
) -> LinkEnd {
    let error = error.to_string();
    // Every link ends with it.
    if told.replace(sequence) != Some(sequence) {
        tracing::error!(sequence, %error, "a stored message cannot be sent");
    }
    shared.event(Event::Unreadable {
        sequence,
        error: error.clone(),
    });
    LinkEnd::Store(error)
}

/// Writes what is pending and reads what has come, whichever goes first: a peer that does
/// not read until we do must not stop us.
///
/// Cancel safe: what was written is noted in `out`, what was read is in `input`.
async fn exchange(
    stream: &mut dyn Stream,
    out: &mut WriteBuffer,
    input: &mut BytesMut,
) -> io::Result<Progress> {
    let mut poll = |cx: &mut Context<'_>| {
        let mut wrote = false;
        while !out.pending().is_empty() {
            match Pin::new(&mut *stream).poll_write(cx, out.pending()) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                Poll::Ready(Ok(count)) => {
                    out.written += count;
                    out.unflushed = true;
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => break,
            }
        }
        if out.unflushed && out.pending().is_empty() {
            match Pin::new(&mut *stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => out.unflushed = false,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => {}
            }
        }
        let read = pin!(stream.read_buf(input));
        match read.poll(cx) {
            Poll::Ready(result) => Poll::Ready(result.map(Progress::Read)),
            Poll::Pending if wrote => Poll::Ready(Ok(Progress::Wrote)),
            Poll::Pending => Poll::Pending,
        }
    };
    poll_fn(|cx| {
        panics::call(STREAM, || poll(cx))
            .unwrap_or_else(|panic| Poll::Ready(Err(io::Error::other(panic))))
    })
    .await
}
