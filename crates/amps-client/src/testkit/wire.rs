//! Streams whose other end is in the hands of a test.

use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::connector::{Connecting, Connector, Stream};
use crate::uri::Uri;

/// A network for one link at a time, without sockets and without a clock: what a transport writes
/// and flushes is found here, and what it reads comes from here. Clones are the same network.
#[derive(Clone, Debug, Default)]
pub struct Wire(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    accepts: bool,
    /// So many bytes are taken; none: as many as come.
    takes: Option<usize>,
    taken: u64,
    /// Streams that the client has open.
    open: usize,
    /// Counts them, so that those of before are told apart.
    streams: u64,
    /// To the server, on the latest stream: written, and flushed.
    written: Vec<u8>,
    up: Vec<u8>,
    /// To the client, on the latest stream.
    down: Vec<u8>,
    /// The server has closed the latest stream.
    ended: bool,
    connects: Option<Waker>,
    reads: Option<Waker>,
    writes: Option<Waker>,
}

impl Default for State {
    fn default() -> Self {
        State {
            accepts: true,
            takes: None,
            taken: 0,
            open: 0,
            streams: 0,
            written: Vec::new(),
            up: Vec::new(),
            down: Vec::new(),
            ended: false,
            connects: None,
            reads: None,
            writes: None,
        }
    }
}

impl State {
    fn flush(&mut self) {
        self.up.append(&mut self.written);
    }
}

impl Wire {
    /// A network that takes everything.
    pub fn new() -> Self {
        Wire::default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether connections are opened from here on, or hang.
    pub fn accepts(&self, yes: bool) {
        let mut state = self.state();
        state.accepts = yes;
        wake(&mut state.connects);
    }

    /// How many bytes it takes from here on; `usize::MAX`: as many as come.
    pub fn takes(&self, bytes: usize) {
        let mut state = self.state();
        state.takes = (bytes < usize::MAX).then_some(bytes);
        if bytes > 0 {
            wake(&mut state.writes);
        }
    }

    /// Bytes that it has taken so far.
    pub fn taken(&self) -> u64 {
        self.state().taken
    }

    /// Streams that the client has open.
    pub fn open(&self) -> usize {
        self.state().open
    }

    /// What the client wrote on the latest stream, and flushed, since the last call.
    pub fn read(&self) -> Vec<u8> {
        std::mem::take(&mut self.state().up)
    }

    /// Counts streams: another number is another stream.
    pub fn stream(&self) -> u64 {
        self.state().streams
    }

    /// The server writes on the latest stream.
    pub fn write(&self, bytes: &[u8]) {
        let mut state = self.state();
        state.down.extend_from_slice(bytes);
        wake(&mut state.reads);
    }

    /// The server closes the latest stream.
    pub fn close(&self) {
        let mut state = self.state();
        state.ended = true;
        wake(&mut state.reads);
    }
}

fn wake(waker: &mut Option<Waker>) {
    if let Some(waker) = waker.take() {
        waker.wake();
    }
}

impl Connector for Wire {
    fn connect<'a>(&'a self, _: &'a Uri) -> Connecting<'a> {
        Box::pin(std::future::poll_fn(|cx| {
            let mut state = self.state();
            if !state.accepts {
                state.connects = Some(cx.waker().clone());
                return Poll::Pending;
            }
            state.open += 1;
            state.streams += 1;
            state.written.clear();
            state.up.clear();
            state.down.clear();
            (state.ended, state.reads, state.writes) = (false, None, None);
            let stream = End {
                wire: self.clone(),
                id: state.streams,
            };
            Poll::Ready(Ok(Box::new(stream) as Box<dyn Stream>))
        }))
    }
}

/// The client's end of a stream.
struct End {
    wire: Wire,
    id: u64,
}

impl End {
    /// # Errors
    /// Another stream has taken its place.
    fn state(&self) -> io::Result<MutexGuard<'_, State>> {
        let state = self.wire.state();
        match state.streams == self.id {
            true => Ok(state),
            false => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.state()?;
        if state.down.is_empty() && !state.ended {
            state.reads = Some(cx.waker().clone());
            return Poll::Pending;
        }
        let count = state.down.len().min(into.remaining());
        into.put_slice(&state.down[..count]);
        state.down.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.state()?;
        let count = state.takes.unwrap_or(usize::MAX).min(bytes.len());
        if count == 0 && !bytes.is_empty() {
            // One that takes no more has nothing left that it could pass on.
            state.flush();
            state.writes = Some(cx.waker().clone());
            return Poll::Pending;
        }
        state.written.extend_from_slice(&bytes[..count]);
        state.taken += count as u64;
        if let Some(takes) = &mut state.takes {
            *takes -= count;
        }
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut state = self.state()?;
        state.flush();
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl Drop for End {
    fn drop(&mut self) {
        self.wire.state().open -= 1;
    }
}
