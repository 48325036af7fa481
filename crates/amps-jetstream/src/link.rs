//! A link to JetStream: a session over a stream of bytes.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use amps_delivery::{Identity, Link, LinkEnd, Now, Progress, Room, Sink, ToSend, Unsendable};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::codec::Decoder;
use crate::config::Config;
use crate::session::Session;

/// A stream of bytes in both directions.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Stream for T {}

/// Bytes gathered for one write; larger writes gain nothing.
const WRITE_BATCH: usize = 64 * 1024;

/// A write buffer that grew beyond this for one large message is given back.
const WRITE_KEEP: usize = 4 * WRITE_BATCH;

/// If there is room at all, there is at least this much.
const LEAST_ROOM: usize = 16 * 1024;

/// Bytes read at once.
const READ_BATCH: usize = 64 * 1024;

/// A link to a stream of a JetStream server.
///
/// The server speaks first, so it is made as soon as the stream of bytes is open. Dropping it drops
/// that; it has no other life.
pub struct JetStreamLink {
    stream: Box<dyn Stream>,
    session: Session,
    decoder: Decoder,
    out: Vec<u8>,
    written: usize,
    /// Bytes of the link that were written, all in all.
    before: u64,
    /// Where messages end in what is written, all in all, and their numbers.
    ends: VecDeque<(u64, u64)>,
    unflushed: bool,
}

impl JetStreamLink {
    /// A link over a stream of bytes that was just opened. `token` is in the name of where answers
    /// come to: make it of at least 16 random letters and digits for each link, so that nobody can
    /// answer in the server's place by guessing it.
    pub fn new(stream: Box<dyn Stream>, config: Config, me: Identity, token: &str) -> Self {
        let session = Session::new(config, me, token);
        JetStreamLink {
            stream,
            decoder: Decoder::new(session.most_read()),
            session,
            out: Vec::new(),
            written: 0,
            before: 0,
            ends: VecDeque::new(),
            unflushed: false,
        }
    }

    fn waiting(&self) -> usize {
        self.out.len() - self.written
    }

    /// Writes as much as the stream takes; whether it took any.
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let mut wrote = false;
        while self.waiting() > 0 {
            let stream = Pin::new(&mut *self.stream);
            match stream.poll_write(cx, &self.out[self.written..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(Ok(count)) => {
                    self.written += count;
                    self.before += count as u64;
                    self.unflushed = true;
                    wrote = true;
                }
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => break,
            }
        }
        if self.unflushed && self.waiting() == 0 {
            match Pin::new(&mut *self.stream).poll_flush(cx) {
                Poll::Ready(Ok(())) => self.unflushed = false,
                Poll::Ready(Err(error)) => return Err(error),
                Poll::Pending => {}
            }
        }
        // Room that was written is reclaimed now, before more is added.
        if self.waiting() < WRITE_BATCH {
            self.out.drain(..self.written);
            self.written = 0;
            if self.out.capacity() > WRITE_KEEP {
                self.out.shrink_to(WRITE_BATCH);
            }
        }
        Ok(wrote)
    }

    /// The number of the last message of which every byte is written, if one's was since.
    fn through(&mut self) -> Option<u64> {
        let mut through = None;
        while let Some((end, wire)) = self.ends.front()
            && *end <= self.before
        {
            through = Some(*wire);
            self.ends.pop_front();
        }
        through
    }

    /// Reads once; whether anything came.
    fn read(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Result<bool, LinkEnd> {
        let space = self.decoder.space();
        let most = space.len().min(READ_BATCH);
        let mut buffer = ReadBuf::new(&mut space[..most]);
        let count = match Pin::new(&mut *self.stream).poll_read(cx, &mut buffer) {
            Poll::Pending => return Ok(false),
            Poll::Ready(Err(error)) => return Err(LinkEnd::Io(error.to_string())),
            Poll::Ready(Ok(())) => buffer.filled().len(),
        };
        if count == 0 {
            return Err(match self.decoder.is_inside() {
                true => LinkEnd::Truncated,
                false => LinkEnd::Closed,
            });
        }
        self.decoder.filled(count);
        self.session.heard(now);
        loop {
            let frame = self.decoder.next_frame();
            let frame = frame.map_err(|error| LinkEnd::Protocol(error.to_string()))?;
            let Some(frame) = frame else { break };
            self.session.receive(frame, now, &mut self.out, sink)?;
        }
        self.decoder.set_largest(self.session.most_read());
        Ok(true)
    }

    /// Does everything once; `None`: there was nothing to do.
    fn work(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Result<Option<Progress>, LinkEnd> {
        let ticked = self.session.tick(now, &mut self.out)?;
        let told = self.session.tell(sink);
        let io = |error: io::Error| LinkEnd::Io(error.to_string());
        // What a server says before it closes is read, though nothing can be written any more.
        let wrote = self.write(cx).map_err(io);
        let read = self.read(cx, now, sink)?;
        let wrote = wrote?;
        let progress = Progress {
            read: read || told,
            wrote,
            through: self.through(),
        };
        Ok((ticked || told || wrote || read).then_some(progress))
    }
}

impl Link for JetStreamLink {
    fn room(&self) -> Room {
        let (messages, waiting) = (self.session.room(), self.waiting());
        match messages > 0 && waiting < WRITE_BATCH {
            true => Room {
                messages,
                bytes: (WRITE_BATCH - waiting).max(LEAST_ROOM),
            },
            false => Room::NONE,
        }
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        self.session.send(message, &mut self.out)?;
        let end = self.before + self.waiting() as u64;
        self.ends.push_back((end, message.wire));
        Ok(())
    }

    fn recall(&mut self, now: Now, messages: &[ToSend<'_>]) {
        self.session.recall(messages, now, &mut self.out);
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
        self.session.deadline()
    }

    fn about(&self) -> String {
        self.session.about()
    }
}
