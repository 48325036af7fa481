//! A publisher's end of a connection: a stream that the client's own link reads and writes, and
//! a watch on that link.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::resume_unwind;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_client::connector::{ConnectError, Connecting, Connector, Stream};
use amps_client::uri::Uri;
use amps_delivery::{Heard, Link, LinkEnd, Now, Progress, Resume, Room, Sink, ToSend, Unsendable};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::Rng;
use super::Died;

/// Places where a process may die, however deep in the client they are.
#[derive(Clone, Default)]
pub struct Points(Arc<Mutex<Option<u32>>>);

impl Points {
    /// It dies at the so-many-th from now, unless that is decided already.
    pub fn die_in(&self, points: u32) {
        lock(&self.0).get_or_insert(points);
    }

    /// It does not die.
    pub fn live(&self) {
        *lock(&self.0) = None;
    }

    /// One of them: whatever is under way may end here.
    pub fn pass(&self) {
        let mut left = lock(&self.0);
        match &mut *left {
            Some(0) => {
                drop(left);
                resume_unwind(Box::new(Died));
            }
            Some(points) => *points -= 1,
            None => {}
        }
    }
}

/// Who held it may have died.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the system holds of a connection, and what was seen of the link on it.
struct State {
    rng: Rng,
    /// Came and was not read.
    incoming: VecDeque<u8>,
    /// The server, or the network, ended it.
    ended: bool,
    /// Written and not on its way.
    outgoing: Vec<u8>,
    /// How many bytes it takes now.
    takes: usize,
    /// Something is there that it would take in a moment.
    held: bool,
    /// It takes nothing until what is under way has arrived.
    full: bool,
    /// Messages that the link admits to have room for, at most.
    most: usize,
    /// Read since the last look.
    read: Vec<u8>,
    /// Handed to the link since the last look.
    sent: Vec<Sent>,
    /// The logon was accepted since the last look, with this figure.
    up: Option<Option<u64>>,
    is_closed: bool,
}

/// A message that the link took.
pub struct Sent {
    pub sequence: u64,
    pub wire: u64,
    pub again: bool,
    pub body: Vec<u8>,
}

/// A connection, as both the process and the world hold it.
#[derive(Clone)]
pub struct Socket {
    state: Arc<Mutex<State>>,
    points: Points,
}

impl Socket {
    pub fn new(rng: Rng, points: Points) -> Self {
        let state = State {
            rng,
            incoming: VecDeque::new(),
            ended: false,
            outgoing: Vec::new(),
            takes: 0,
            held: false,
            full: false,
            most: 0,
            read: Vec::new(),
            sent: Vec::new(),
            up: None,
            is_closed: false,
        };
        Socket {
            state: Arc::new(Mutex::new(state)),
            points,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Everything that came was read.
    pub fn is_read(&self) -> bool {
        self.state().incoming.is_empty()
    }

    pub fn arrives(&self, bytes: &[u8]) {
        self.state().incoming.extend(bytes);
    }

    pub fn ends(&self) {
        self.state().ended = true;
    }

    /// It takes so many bytes now, and its link so many messages.
    pub fn takes(&self, bytes: usize, messages: usize) {
        let mut state = self.state();
        (state.takes, state.most) = (bytes, messages);
        (state.full, state.held) = (bytes == 0, false);
    }

    /// There is more to write, or to hand over, as soon as it is allowed.
    pub fn is_held(&self) -> bool {
        let state = self.state();
        state.held && !state.full
    }

    pub fn take_outgoing(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().outgoing)
    }

    pub fn take_read(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().read)
    }

    pub fn take_sent(&self) -> Vec<Sent> {
        std::mem::take(&mut self.state().sent)
    }

    pub fn take_up(&self) -> Option<Option<u64>> {
        self.state().up.take()
    }

    /// The process has closed it.
    pub fn is_closed(&self) -> bool {
        self.state().is_closed
    }

    /// The client's own link on it, watched.
    pub fn watch(&self, link: Box<dyn Link>) -> Box<dyn Link> {
        Box::new(Watched {
            link,
            socket: self.clone(),
        })
    }
}

/// The stream that the link has.
struct End(Socket);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().is_closed = true;
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        {
            let mut state = self.0.state();
            let there = state.incoming.len().min(into.remaining());
            if there == 0 {
                return match state.ended {
                    true => Poll::Ready(Ok(())),
                    false => Poll::Pending,
                };
            }
            // Any piece may be read alone.
            let count = match state.rng.one_in(2) {
                true => there,
                false => 1 + state.rng.below(there as u64) as usize,
            };
            let bytes: Vec<u8> = state.incoming.drain(..count).collect();
            into.put_slice(&bytes);
            state.read.extend(bytes);
        }
        self.0.points.pass();
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let count = {
            let mut state = self.0.state();
            let most = state.takes.min(bytes.len());
            if most == 0 {
                state.held = true;
                return Poll::Pending;
            }
            let count = match state.rng.one_in(2) {
                true => most,
                false => 1 + state.rng.below(most as u64) as usize,
            };
            state.takes -= count;
            state.outgoing.extend(&bytes[..count]);
            count
        };
        self.0.points.pass();
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Connects to the socket that was put there; without one the server is down.
#[derive(Clone, Default)]
pub struct Sockets(Arc<Mutex<Option<Socket>>>);

impl Sockets {
    pub fn next(&self, socket: Option<Socket>) {
        *lock(&self.0) = socket;
    }
}

impl fmt::Debug for Sockets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sockets")
    }
}

impl Connector for Sockets {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        let socket = lock(&self.0).take();
        Box::pin(async move {
            match socket {
                Some(socket) => Ok(Box::new(End(socket)) as Box<dyn Stream>),
                None => Err(ConnectError::Io {
                    target: uri.authority(),
                    source: io::ErrorKind::ConnectionRefused.into(),
                }),
            }
        })
    }
}

struct Watched {
    link: Box<dyn Link>,
    socket: Socket,
}

impl Link for Watched {
    fn room(&self) -> Room {
        let room = self.link.room();
        Room {
            messages: room.messages.min(self.socket.state().most),
            ..room
        }
    }

    fn send(&mut self, now: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        self.link.send(now, message)?;
        {
            let mut state = self.socket.state();
            state.most = state.most.saturating_sub(1);
            state.held |= state.most == 0;
            state.sent.push(Sent {
                sequence: message.sequence,
                wire: message.wire,
                again: message.again,
                body: message.message.payload().to_vec(),
            });
        }
        self.socket.points.pass();
        Ok(())
    }

    fn waits(&mut self, now: Now, in_flight: u64) {
        self.link.waits(now, in_flight);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let socket = &self.socket;
        self.link.poll(cx, now, &mut Ear { sink, socket })
    }

    fn deadline(&self) -> Option<Duration> {
        self.link.deadline()
    }
}

struct Ear<'a> {
    sink: &'a mut dyn Sink,
    socket: &'a Socket,
}

impl Sink for Ear<'_> {
    fn heard(&mut self, heard: Heard<'_>) {
        if let Heard::Up(up) = heard {
            self.socket.state().up = Some(match up.resume {
                Resume::HighWater(figure) => Some(figure),
                Resume::Unknown => None,
                Resume::ById => panic!("AMPS has no ids"),
            });
        }
        // No place to die: what is told here is logged at once, and the book learns of it later.
        self.sink.heard(heard);
    }
}
