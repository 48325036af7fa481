//! The thin part: sockets, timers and the file under the [`Server`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amps_client::connector::Stream;
use amps_client::protocol::FrameDecoder;
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf, WriteHalf, split};
use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep_until, timeout};

use crate::journal::{Journal, JournalEntry};
use crate::rules::Link;
use crate::server::{Closing, Output, Server};
use crate::told::Told;

/// A link with more than this waiting to be sent is not read, nor is who sends to it.
const CONGESTED: usize = 1 << 20;
/// The largest frame of a link that has not logged on: room for a logon, not for more.
const FIRST_FRAME: usize = 64 << 10;
/// Bytes of the log offered to a subscription at a time.
const PUMP: usize = 256 * 1024;
/// How long a link that is being closed may take to receive the last bytes.
const FAREWELL: Duration = Duration::from_secs(2);

/// What all links share. The lock is held for one batch of frames at a time, across the
/// one `write(2)` that logs it, and never across an await.
pub(crate) struct Shared {
    state: Mutex<State>,
    log_end: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    replan: Notify,
    epoch: Instant,
    max_frame: usize,
    observer: Option<Observer>,
}

/// Called when something happens that whoever runs the server may want to know.
pub(crate) type Observer = Box<dyn Fn(&Told) + Send + Sync>;

#[derive(Debug)]
struct State {
    server: Server,
    journal: Journal,
    outboxes: HashMap<Link, Arc<Outbox>>,
    planned: Option<Duration>,
    broken: bool,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Shared")
    }
}

impl Shared {
    pub(crate) fn new(
        server: Server,
        journal: Journal,
        max_frame: usize,
        observer: Option<Observer>,
    ) -> Arc<Self> {
        let log_end = watch::Sender::new(journal.end());
        let outboxes = HashMap::new();
        let state = State {
            server,
            journal,
            outboxes,
            planned: None,
            broken: false,
        };
        Arc::new(Shared {
            state: Mutex::new(state),
            log_end,
            stop: watch::Sender::new(false),
            replan: Notify::new(),
            epoch: Instant::now(),
            max_frame,
            observer,
        })
    }

    /// Runs one step of the server, logs what it wants to be logged, and only then hands out what
    /// it wants to be sent. Returns those outboxes of other links that are congested now.
    pub(crate) fn step(
        &self,
        from: Option<Link>,
        step: impl FnOnce(&mut Server, &mut Output, Duration),
    ) -> Vec<Arc<Outbox>> {
        let now = self.epoch.elapsed();
        let mut state = self.state();
        let mut out = Output::default();
        step(&mut state.server, &mut out, now);
        state.finish(&mut out, now);
        let end = state.journal.end();
        let deadline = state.server.deadline();
        let replan = state.planned != deadline;
        state.planned = deadline;
        let congested = out.sends().filter(|(to, _)| Some(*to) != from);
        let congested = congested.filter_map(|(to, _)| state.outboxes.get(&to));
        let congested = congested
            .filter(|outbox| outbox.congested())
            .cloned()
            .collect();
        drop(state);
        if let Some(observer) = &self.observer {
            out.told.iter().for_each(observer);
        }
        self.log_end
            .send_if_modified(|known| std::mem::replace(known, end) != end);
        if replan {
            self.replan.notify_one();
        }
        congested
    }

    /// Acks, beats and time limits, until [`Shared::stop`].
    pub(crate) async fn keep_time(self: Arc<Self>) {
        let mut stop = self.stop.subscribe();
        loop {
            let deadline = self.state().planned;
            let due = async {
                match deadline {
                    Some(deadline) => sleep_until(self.epoch + deadline).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => { self.step(None, |server, out, now| server.tick(now, out)); }
                () = self.replan.notified() => {}
                () = stopping(&mut stop) => return,
            }
        }
    }

    pub(crate) fn stop(&self) {
        self.stop.send_replace(true);
    }

    pub(crate) fn stopped(&self) -> watch::Receiver<bool> {
        self.stop.subscribe()
    }

    pub(crate) fn settled(&self, name: &str) -> u64 {
        self.state().server.settled(name)
    }

    /// The messages of the log, read piece by piece so that links are not held up.
    pub(crate) fn journal(&self) -> std::io::Result<Vec<JournalEntry>> {
        let (mut entries, mut cursor) = (Vec::new(), 0);
        loop {
            let state = self.state();
            if cursor >= state.journal.end() {
                return Ok(entries);
            }
            cursor = state.journal.read(cursor, PUMP, |entry, position| {
                entries.extend(entry.message(position));
                true
            })?;
        }
    }

    /// Serves one client until either side ends it, or the sandbox stops.
    /// `known` is set once it has logged on.
    pub(crate) async fn serve(self: Arc<Self>, stream: Box<dyn Stream>, known: Arc<AtomicBool>) {
        let outbox = Arc::new(Outbox::default());
        let link = {
            let mut state = self.state();
            let link = state.server.connect(self.epoch.elapsed());
            state.outboxes.insert(link, outbox.clone());
            // From now on the time for its logon is counted.
            state.planned = state.server.deadline();
            link
        };
        self.replan.notify_one();
        let (reader, writer) = split(stream);
        let mut connection = Connection {
            registration: Registration {
                shared: self.clone(),
                link,
                outbox,
            },
            reader,
            writer,
            decoder: FrameDecoder::with_max_frame(self.max_frame.min(FIRST_FRAME)),
            known,
            out: Vec::new(),
            written: 0,
            unflushed: false,
            subscribes: false,
            behind: false,
            blockers: Vec::new(),
        };
        match connection.run().await {
            Ok(()) => tracing::debug!(link = link.0, "link closed"),
            Err(error) => tracing::debug!(link = link.0, %error, "link lost"),
        }
    }

    fn pump(&self, link: Link, out: &mut Vec<u8>) -> std::io::Result<bool> {
        let now = self.epoch.elapsed();
        let state = &mut *self.state();
        state.server.pump(link, &state.journal, PUMP, now, out)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn finish(&mut self, out: &mut Output, now: Duration) {
        if !self.broken
            && !out.journal.is_empty()
            && let Err(error) = self.journal.append(&out.journal)
        {
            tracing::error!(%error, "the journal cannot be written; the server takes nothing more");
            self.broken = true;
        }
        if self.broken {
            // The answers of this step may depend on what could not be logged.
            for outbox in self.outboxes.values() {
                outbox.close(Closing::Abrupt);
            }
            return;
        }
        self.server.persisted(self.journal.end(), now, out);
        for (link, bytes) in out.sends() {
            if let Some(outbox) = self.outboxes.get(&link) {
                outbox.push(bytes);
            }
        }
        for (link, closing) in &out.closes {
            if let Some(outbox) = self.outboxes.get(link) {
                outbox.close(*closing);
            }
        }
    }
}

/// Returns once the sandbox is being stopped, or is gone. Cancel safe.
pub(crate) async fn stopping(stop: &mut watch::Receiver<bool>) {
    // An error means that nobody is left who could stop it.
    let _ = stop.wait_for(|stop| *stop).await;
}

/// What waits to be sent on one link.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    waiting: Mutex<Waiting>,
    filled: Notify,
    emptied: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    bytes: Vec<u8>,
    closing: Option<Closing>,
}

impl Outbox {
    fn push(&self, bytes: &[u8]) {
        self.waiting().bytes.extend_from_slice(bytes);
        self.filled.notify_one();
    }

    fn close(&self, closing: Closing) {
        let mut waiting = self.waiting();
        if waiting.closing.is_none() || closing == Closing::Abrupt {
            waiting.closing = Some(closing);
        }
        drop(waiting);
        self.filled.notify_one();
        self.emptied.notify_waiters();
    }

    fn closing(&self) -> bool {
        self.waiting().closing.is_some()
    }

    fn abrupt(&self) -> bool {
        self.waiting().closing == Some(Closing::Abrupt)
    }

    fn congested(&self) -> bool {
        let waiting = self.waiting();
        waiting.closing.is_none() && waiting.bytes.len() > CONGESTED
    }

    /// Returns once the outbox is not congested. Cancel safe.
    async fn room(&self) {
        loop {
            let emptied = self.emptied.notified();
            if !self.congested() {
                return;
            }
            emptied.await;
        }
    }

    /// Moves what waits into `out`, which is empty; returns whether the link is to be closed.
    fn take(&self, out: &mut Vec<u8>) -> Option<Closing> {
        let mut waiting = self.waiting();
        std::mem::swap(&mut waiting.bytes, out);
        let closing = waiting.closing;
        drop(waiting);
        self.emptied.notify_waiters();
        closing
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes the link from the books however its task ends.
struct Registration {
    shared: Arc<Shared>,
    link: Link,
    outbox: Arc<Outbox>,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.outbox.close(Closing::Abrupt);
        let mut state = self.shared.state();
        state.outboxes.remove(&self.link);
        state.server.disconnect(self.link);
    }
}

struct Connection {
    registration: Registration,
    reader: ReadHalf<Box<dyn Stream>>,
    writer: WriteHalf<Box<dyn Stream>>,
    decoder: FrameDecoder,
    known: Arc<AtomicBool>,
    out: Vec<u8>,
    written: usize,
    unflushed: bool,
    subscribes: bool,
    behind: bool,
    blockers: Vec<Arc<Outbox>>,
}

impl Connection {
    async fn run(&mut self) -> std::io::Result<()> {
        let Registration {
            shared,
            link,
            outbox,
        } = &self.registration;
        let (shared, link, outbox) = (shared.clone(), *link, outbox.clone());
        let mut stop = shared.stopped();
        let mut log_end = shared.log_end.subscribe();
        loop {
            if self.written == self.out.len() {
                self.out.clear();
                self.written = 0;
                if let Some(closing) = outbox.take(&mut self.out) {
                    return self.close(closing, &outbox, &mut stop).await;
                }
                while self.behind && self.out.is_empty() {
                    self.behind = !shared.pump(link, &mut self.out)?;
                    tokio::task::yield_now().await;
                }
            }
            self.blockers.retain(|outbox| outbox.congested());
            let free = self.out.len() - self.written < CONGESTED && !outbox.congested();
            let blocker = self.blockers.last().cloned();
            let blocked = async {
                match &blocker {
                    Some(blocker) => blocker.room().await,
                    None => std::future::pending().await,
                }
            };
            let mut interrupted = false;
            tokio::select! {
                read = self.reader.read_buf(self.decoder.read_buffer()),
                    if free && blocker.is_none() =>
                {
                    if read? == 0 {
                        return Ok(());
                    }
                    self.receive(&shared, link);
                }
                sent = send(&mut self.writer, &self.out[self.written..]),
                    if self.unflushed || self.written < self.out.len() =>
                {
                    let sent = sent?;
                    self.written += sent;
                    self.unflushed = sent > 0;
                }
                () = outbox.filled.notified() => {
                    interrupted = self.written < self.out.len() && outbox.closing();
                }
                changed = log_end.changed(), if self.subscribes && !self.behind => {
                    self.behind = changed.is_ok();
                }
                () = blocked => {}
                () = stopping(&mut stop) => return Ok(()),
            }
            if interrupted {
                let mut waiting = Vec::new();
                let closing = outbox.take(&mut waiting).unwrap_or(Closing::Abrupt);
                self.out.drain(..self.written);
                self.out.append(&mut waiting);
                return self.close(closing, &outbox, &mut stop).await;
            }
        }
    }

    fn receive(&mut self, shared: &Shared, link: Link) {
        let (decoder, known) = (&mut self.decoder, &self.known);
        let mut subscribes = false;
        self.blockers = shared.step(Some(link), |server, out, now| {
            loop {
                match decoder.next_frame() {
                    Ok(Some(frame)) => {
                        server.receive(link, &frame, now, out);
                        if !known.load(Ordering::Relaxed) && server.is_logged_on(link) {
                            known.store(true, Ordering::Relaxed);
                            let behind = decoder.read_buffer().split();
                            *decoder = FrameDecoder::with_max_frame(shared.max_frame);
                            decoder.push(&behind);
                        }
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(link = link.0, %error, "no frame");
                        server.malformed(link, out);
                        break;
                    }
                }
            }
            subscribes = server.subscribes(link);
        });
        self.behind |= subscribes;
        self.subscribes = subscribes;
    }

    async fn close(
        &mut self,
        closing: Closing,
        outbox: &Outbox,
        stop: &mut watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        match closing {
            Closing::Abrupt => Ok(()),
            Closing::Graceful(reason) => {
                tracing::debug!(reason, "closing a link");
                self.farewell(self.out.len(), stop).await
            }
            Closing::MidFrame => {
                if self.out.is_empty() {
                    self.out
                        .extend_from_slice(b"\0\0\0\x40{\"c\":\"ack\",\"a\":\"per");
                }
                self.farewell(self.out.len() - 1, stop).await
            }
            Closing::Stall => loop {
                tokio::select! {
                    () = outbox.filled.notified() => if outbox.abrupt() { return Ok(()) },
                    () = stopping(stop) => return Ok(()),
                }
            },
        }
    }

    /// Sends the first `length` bytes that wait, and closes in such a way that they arrive:
    /// closing a socket with unread bytes resets the connection, and what was sent last would be
    /// lost.
    async fn farewell(
        &mut self,
        length: usize,
        stop: &mut watch::Receiver<bool>,
    ) -> std::io::Result<()> {
        let Connection {
            reader,
            writer,
            out,
            ..
        } = self;
        let last_words = async {
            writer.write_all(&out[..length]).await?;
            writer.shutdown().await?;
            let mut unread = vec![0; 16 * 1024];
            while reader.read(&mut unread).await? > 0 {}
            Ok(())
        };
        tokio::select! {
            said = timeout(FAREWELL, last_words) => said.unwrap_or(Ok(())),
            () = stopping(stop) => Ok(()),
        }
    }
}

/// Writes some of `bytes`, or flushes if there are none. Returns how many were written. Cancel
/// safe: exactly what it returns was written.
async fn send(writer: &mut WriteHalf<Box<dyn Stream>>, bytes: &[u8]) -> std::io::Result<usize> {
    if bytes.is_empty() {
        writer.flush().await?;
        return Ok(0);
    }
    match writer.write(bytes).await? {
        0 => Err(std::io::ErrorKind::WriteZero.into()),
        written => Ok(written),
    }
}
