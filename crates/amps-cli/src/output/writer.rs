//! A thread that writes to one descriptor, with a bounded buffer.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::Notify;

/// A file whose writes wait for room even if it was set to non-blocking. `O_NONBLOCK` belongs to
/// the pipe or terminal, so another process that shares it may have set it.
pub(crate) struct Patient(File);

impl Patient {
    pub(super) fn new(file: File) -> Self {
        Patient(file)
    }

    /// Waits until a write of at most a page would not block. `false`: not in time.
    fn ready(&self, within: Option<Duration>) -> io::Result<bool> {
        let until = within.map(|within| Instant::now() + within);
        loop {
            let left = until.map(|until| until.saturating_duration_since(Instant::now()));
            // No caller waits longer than seconds.
            let left = left.and_then(|left| Timespec::try_from(left).ok());
            let mut fds = [PollFd::new(&self.0, PollFlags::OUT)];
            match poll(&mut fds, left.as_ref()) {
                Ok(ready) => return Ok(ready > 0),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Writes as far as that takes no longer than `within`, on the caller's thread: for when no
    /// thread can be made.
    pub(super) fn write_within(&mut self, bytes: &[u8], within: Duration) -> io::Result<()> {
        let until = Instant::now() + within;
        // A pipe that is ready takes this much without blocking.
        for part in bytes.chunks(4096) {
            if !self.ready(Some(until.saturating_duration_since(Instant::now())))? {
                return Err(io::ErrorKind::TimedOut.into());
            }
            self.write_all(part)?;
        }
        Ok(())
    }
}

impl Write for Patient {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.ready(None)?;
                }
                done => return done,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

/// Hands bytes to a thread that writes them in order. After an error nothing more is written, and
/// whatever is pushed is dropped: nobody can read it.
pub(super) struct Writer {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Something waits to be written.
    work: Condvar,
    /// Something was written.
    progress: Condvar,
    progressed: Notify,
    limit: usize,
}

#[derive(Default)]
struct State {
    waiting: Vec<u8>,
    writing: bool,
    failed: Option<io::Error>,
    /// The writer's owner is gone.
    ended: bool,
}

impl State {
    fn is_done(&self) -> bool {
        self.failed.is_some() || (self.waiting.is_empty() && !self.writing)
    }

    fn push(&mut self, bytes: &[u8]) {
        if self.failed.is_none() {
            self.waiting.extend_from_slice(bytes);
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn has_room(&self, state: &State) -> bool {
        state.failed.is_some() || state.waiting.len() < self.limit
    }
}

impl Writer {
    /// Starts the thread; `limit` is how many bytes wait before there is no room.
    ///
    /// # Errors
    /// No thread can be made.
    pub(super) fn start(to: Patient, name: &str, limit: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            work: Condvar::new(),
            progress: Condvar::new(),
            progressed: Notify::new(),
            limit,
        });
        let own = Arc::clone(&shared);
        std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || write(&own, to))?;
        Ok(Writer { shared })
    }

    /// Adds bytes, whether or not there is room.
    pub(super) fn push(&self, bytes: &[u8]) {
        self.shared.lock().push(bytes);
        self.shared.work.notify_one();
    }

    /// Adds bytes if there is room for them.
    pub(super) fn push_if_room(&self, bytes: &[u8]) -> bool {
        let mut state = self.shared.lock();
        let has_room = self.shared.has_room(&state);
        if has_room {
            state.push(bytes);
            self.shared.work.notify_one();
        }
        has_room
    }

    /// Waits until there is room. Cancel safe.
    pub(super) async fn room(&self) {
        self.until(|state| self.shared.has_room(state)).await;
    }

    /// Waits until everything is written, or cannot be. Cancel safe.
    pub(super) async fn written(&self) {
        self.until(State::is_done).await;
    }

    async fn until(&self, reached: impl Fn(&State) -> bool) {
        loop {
            let progressed = self.shared.progressed.notified();
            let mut progressed = std::pin::pin!(progressed);
            // Registered before the look, so that what is written meanwhile is not missed.
            progressed.as_mut().enable();
            if reached(&self.shared.lock()) {
                return;
            }
            progressed.await;
        }
    }

    /// Waits on this thread until everything is written, or cannot be, but no longer than this.
    pub(super) fn written_within(&self, limit: Duration) -> bool {
        let state = self.shared.lock();
        let waited = self
            .shared
            .progress
            .wait_timeout_while(state, limit, |state| !state.is_done());
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_done()
    }

    /// The error that ended the output.
    pub(super) fn failed(&self) -> Option<io::Error> {
        let state = self.shared.lock();
        let error = state.failed.as_ref()?;
        Some(match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => error.kind().into(),
        })
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.shared.lock().ended = true;
        self.shared.work.notify_one();
    }
}

fn write(shared: &Shared, mut to: Patient) {
    let mut buffer = Vec::new();
    let mut state = shared.lock();
    loop {
        while state.waiting.is_empty() && !state.ended {
            state = shared
                .work
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        if state.waiting.is_empty() {
            return;
        }
        std::mem::swap(&mut buffer, &mut state.waiting);
        state.writing = true;
        drop(state);
        let written = to.write_all(&buffer);
        buffer.clear();
        state = shared.lock();
        state.writing = false;
        if let Err(error) = written {
            state.failed = Some(error);
            state.waiting = Vec::new();
        }
        shared.progress.notify_all();
        shared.progressed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::fd::{AsFd as _, OwnedFd};

    fn pipe() -> (std::io::PipeReader, Patient) {
        let (reader, writer) = std::io::pipe().unwrap();
        (reader, Patient::new(File::from(OwnedFd::from(writer))))
    }

    /// Blocks the writer: the pipe is full and waits for a reader.
    fn stuck(writer: &Writer) {
        writer.push(&vec![b'x'; 1 << 20]);
        while !writer.shared.lock().writing {
            std::thread::yield_now();
        }
    }

    #[test]
    fn a_stalled_reader_costs_a_bounded_buffer_and_no_waiting() {
        let (mut reader, to) = pipe();
        let writer = Writer::start(to, "test", 1000).unwrap();
        stuck(&writer);
        let taken = (0..100).filter(|_| writer.push_if_room(&[b'y'; 100]));
        assert_eq!(taken.count(), 10);
        assert!(!writer.written_within(Duration::ZERO));
        let mut read = vec![0; (1 << 20) + 1000];
        reader.read_exact(&mut read).unwrap();
        assert!(writer.written_within(Duration::from_secs(60)));
        assert!(writer.failed().is_none());
    }

    #[test]
    fn an_error_is_remembered_and_frees_who_waits() {
        let (reader, to) = pipe();
        let writer = Writer::start(to, "test", 1000).unwrap();
        stuck(&writer);
        writer.push(&[b'y'; 5000]);
        drop(reader);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .unwrap();
        runtime.block_on(writer.room());
        runtime.block_on(writer.written());
        assert_eq!(
            writer.failed().map(|e| e.kind()),
            Some(io::ErrorKind::BrokenPipe)
        );
        assert!(writer.push_if_room(b"to nobody"));
        assert!(writer.written_within(Duration::ZERO));
    }

    #[test]
    fn a_pipe_that_would_rather_refuse_is_waited_for() {
        let (mut reader, mut to) = pipe();
        let flags = rustix::fs::fcntl_getfl(to.0.as_fd()).unwrap();
        rustix::fs::fcntl_setfl(to.0.as_fd(), flags | rustix::fs::OFlags::NONBLOCK).unwrap();
        let writing = std::thread::spawn(move || to.write_all(&vec![b'x'; 1 << 20]).unwrap());
        let mut read = Vec::new();
        reader.read_to_end(&mut read).unwrap();
        writing.join().unwrap();
        assert_eq!(read.len(), 1 << 20);
    }
}
