//! The client's one task: carries out what the [`Engine`] decides. It decides nothing about acks,
//! links or messages itself.

mod asks;
mod end;
mod outputs;
mod telling;

use std::collections::{BTreeMap, BTreeSet};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use amps_delivery::{Engine, Job, JobDone};
use amps_store::PublishStore;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::{Instrument, Span};

use crate::amps::{self, Behind, Slot};
use crate::carrier::{Carrier, Chosen, Servers};
use crate::delivery::{Now, Totals};
use crate::error::CommandError;
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::helper::Calling;
use crate::mailbox::{Ask, CloseRequest, Inbox};
use crate::outage::Outages;
use crate::panics::{self, CHOOSER};
use crate::requests::{Answer, Request};
use crate::sampled::Sampled;
use crate::shared::{Shared, unix_micros};

use asks::FlushReply;
pub(crate) use end::DeathWatch;

pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    /// Without one, the queue in its place.
    pub(crate) store: Arc<dyn PublishStore>,
    pub(crate) has_handler: bool,
    pub(crate) servers: Servers,
    pub(crate) engine: Engine,
    /// What outlives links, while there is none.
    pub(crate) slot: Arc<Slot>,
    pub(crate) inbox: Inbox,
    pub(crate) unhandled: mpsc::Sender<UnhandledAck>,
    pub(crate) handler_task: Option<JoinHandle<()>>,
    pub(crate) watch: DeathWatch,
    pub(crate) work: Work,
}

/// What is under way.
pub(crate) struct Work {
    next_id: u64,
    flushes: BTreeMap<u64, FlushReply>,
    running: Option<Running>,
    wanted: Option<Wanted>,
    /// The attempt that is under way is to be dropped.
    abandoned: bool,
    /// The server of this link or attempt, if one was chosen, and its name.
    chosen: Option<Chosen>,
    server: String,
    span: Span,
    /// Without a failed-write handler: refusals of earlier runs from here on are still to be
    /// told.
    earlier_from: Option<u64>,
    /// Refused in this run before those were told: no refusal is told twice.
    told: BTreeSet<u64>,
    /// Attempts in a row that found nobody who listens, or a logon that was refused.
    failed: usize,
    sync_failed: bool,
    store_gone: bool,
    closing: Option<CloseRequest>,
    /// Without a store: what a client that closes waits for first.
    last_flush: Option<LastFlush>,
    /// Without a store: messages that no link took before the end.
    unsent: u64,
    /// What the meter has counted.
    counted: Totals,
    published: u64,
    sampled: Arc<Mutex<Sampled>>,
    /// When gauges are read next.
    gauges_at: Duration,
    outages: Outages,
    head: telling::Head,
    /// The message that cannot be read, which was told.
    unreadable: Option<u64>,
}

/// The server's answer to whether it has processed everything.
type LastFlush = oneshot::Receiver<Result<Answer, CommandError>>;

/// What the engine wants that takes its time.
enum Wanted {
    Connect(Chosen),
    /// It is over, and this is what was handed over.
    End(u64),
}

/// A [`Job`] that the helper has.
struct Running {
    job: Job,
    call: Calling<JobDone>,
}

impl Running {
    async fn done(&mut self) -> JobDone {
        match ((&mut self.call).await, self.job) {
            (Ok(done), _) => done,
            (Err(why), Job::RaiseGrant(_)) => {
                JobDone::Raised(Err(why.of_store("raise the send grant")))
            }
            (Err(why), Job::Rebase(_)) => JobDone::Rebased(Err(why.of_store("rebase"))),
        }
    }
}

/// How often gauges are read, whether or not there is a link.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

impl Work {
    pub(crate) fn new(sampled: Arc<Mutex<Sampled>>) -> Self {
        Work {
            next_id: 0,
            flushes: BTreeMap::new(),
            running: None,
            wanted: None,
            abandoned: false,
            chosen: None,
            server: String::new(),
            span: Span::none(),
            earlier_from: Some(0),
            told: BTreeSet::new(),
            failed: 0,
            sync_failed: false,
            store_gone: false,
            closing: None,
            last_flush: None,
            unsent: 0,
            counted: Totals::default(),
            published: 0,
            sampled,
            gauges_at: Duration::ZERO,
            outages: Outages::default(),
            head: telling::Head::default(),
            unreadable: None,
        }
    }

    fn sampled(&self) -> MutexGuard<'_, Sampled> {
        self.sampled.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Driver {
    /// Connects for ever, until the client is closed or dropped.
    pub(crate) async fn run(mut self, mut carrier: Carrier) {
        let handed_over = loop {
            self.turn();
            match self.work.wanted.take() {
                Some(Wanted::Connect(server)) => {
                    let span = self.work.span.clone();
                    let me = self.engine.identity(self.store.as_ref());
                    let attempt = carrier.connect(&server, &me).instrument(span);
                    self.attempt(attempt).await;
                }
                Some(Wanted::End(handed_over)) => break handed_over,
                None => drop(self.wait(std::future::pending::<()>()).await),
            }
        };
        drop(carrier);
        self.finish(handed_over).await;
    }

    /// Opens a link, while everything that needs none goes on.
    async fn attempt(
        &mut self,
        opening: impl Future<Output = Result<Box<dyn amps_delivery::Link>, LinkEnd>>,
    ) {
        let mut opening = pin!(opening);
        self.work.abandoned = false;
        loop {
            if let Some(opened) = self.wait(opening.as_mut()).await {
                let now = self.now();
                return self.engine.connected(self.store.as_ref(), now, opened);
            }
            self.turn();
            if self.work.abandoned {
                return;
            }
        }
    }

    /// Waits for something to happen, `other` among it, and takes it in.
    async fn wait<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        if self.engine.is_idle() {
            // Look once more after saying that we sleep: what is appended from here on rings the
            // bell.
            self.shared.mailbox.doorbell.arm();
            self.turn();
            if self.work.wanted.is_some() || self.work.abandoned {
                self.shared.mailbox.doorbell.disarm();
                return None;
            }
        }
        let deadline = self.deadline();
        let Driver {
            shared,
            store,
            engine,
            inbox,
            work,
            ..
        } = self;
        let bytes = poll_fn(|cx| {
            let now = now(shared.start);
            work.span.in_scope(|| engine.poll(cx, store.as_ref(), now))
        });
        let mut happened = None;
        let output = tokio::select! {
            output = other => Some(output),
            () = bytes => None,
            event = next_event(&mut inbox.asks, &mut work.running, shared, deadline) => {
                happened = Some(event);
                None
            }
        };
        self.shared.mailbox.doorbell.disarm();
        match happened {
            Some(Local::Ask(ask)) => self.ask(*ask),
            Some(Local::Done(done)) => {
                self.work.running = None;
                let now = self.now();
                self.engine.done(self.store.as_ref(), now, done);
            }
            Some(Local::Time | Local::Bell) | None => {}
        }
        self.carry_out();
        output
    }

    /// Takes in what came past the queue: to close.
    fn take_requests(&mut self) {
        // Before they are taken: what is asked for meanwhile is seen the next time.
        let requests = &self.shared.mailbox;
        requests.requested.swap(false, Ordering::AcqRel);
        let Some(close) = requests.requests().close.take() else {
            return;
        };
        let close = close.and(self.work.closing);
        let begun = self.work.closing.replace(close).is_some();
        let until = self.shared.since_start(close.until);
        if let (Some(queue), false) = (&self.shared.queue, begun) {
            let (reply, answer) = oneshot::channel();
            let flush = amps::Ask::Command {
                request: Request::new("flush").into(),
                until,
                behind: Some(Behind::all(queue)),
                reply,
            };
            // Off line there is nobody to ask, and nothing to confirm.
            self.work.last_flush = self.shared.desk.try_ask(flush).is_ok().then_some(answer);
        }
        if self.work.last_flush.is_none() {
            self.engine.close(self.store.as_ref(), self.now(), until);
        }
    }

    /// Without a store: closes once the server has confirmed what it was sent, or the time is
    /// over.
    fn close_if_confirmed(&mut self) {
        let (Some(answer), Some(closing)) = (&mut self.work.last_flush, self.work.closing) else {
            return;
        };
        let waits = matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty));
        if waits && Instant::now() < closing.until {
            return;
        }
        self.work.last_flush = None;
        let (now, until) = (self.now(), self.shared.since_start(closing.until));
        self.engine.close(self.store.as_ref(), now, until);
    }

    /// Does what is due, and carries out what was decided.
    fn turn(&mut self) {
        if self.shared.mailbox.requested.load(Ordering::Relaxed) {
            self.take_requests();
        }
        let now = self.now();
        if self.shared.mailbox.dropped.load(Ordering::Acquire) {
            self.engine.stop(self.store.as_ref(), now);
        }
        if !self.work.sync_failed && self.shared.sync_failed.load(Ordering::Acquire) {
            self.work.sync_failed = true;
            self.engine.sync_failed(self.store.as_ref(), now);
        }
        if !self.work.store_gone && self.shared.store_gone.load(Ordering::Acquire) {
            self.work.store_gone = true;
            self.engine.store_gone(self.store.as_ref(), now);
        }
        self.tell_earlier();
        self.close_if_confirmed();
        let (engine, store) = (&mut self.engine, self.store.as_ref());
        self.work.span.in_scope(|| engine.turn(store, now));
        self.carry_out();
        if !self.engine.is_linked() {
            self.slot.serve(self.cannot_be_reached().as_ref());
        }
        self.look_at_backlog();
        self.read_gauges();
    }

    fn deadline(&self) -> Option<Instant> {
        let start = self.shared.start;
        // What is overdue can wait for the link to take bytes; it must not spin.
        let soon = Instant::now() + Duration::from_millis(1);
        let engine = self.engine.deadline().map(|at| (start + at).max(soon));
        let unconfirmed = self.work.last_flush.is_some();
        let closing = self.work.closing.filter(|_| unconfirmed);
        let closing = closing.map(|closing| closing.until);
        let gauges = cfg!(feature = "metrics").then(|| start + self.work.gauges_at);
        let look = Some(start + self.work.outages.deadline());
        [engine, closing, gauges, look].into_iter().flatten().min()
    }

    fn read_gauges(&mut self) {
        let now = self.shared.start.elapsed();
        if !cfg!(feature = "metrics") || now < self.work.gauges_at {
            return;
        }
        self.work.gauges_at = now + GAUGES_EVERY;
        let oldest = self.oldest();
        let meter = &self.shared.meter;
        meter.published(
            &mut self.work.published,
            self.shared.mailbox.doorbell.messages(),
        );
        if let Some(store) = self.shared.store() {
            meter.gauges(self.engine.in_flight(), oldest, store.bounds());
            store
                .sync_times()
                .into_iter()
                .for_each(|took| meter.synced(took));
        }
    }

    /// Tells of the end of a link or of an attempt, and whether another one follows.
    fn link_ended(&mut self, end: LinkEnd, delay: Option<Duration>) {
        self.work.sampled().clear();
        self.work.failed = match end {
            LinkEnd::Connect(_) | LinkEnd::LogonRefused(_) => self.work.failed.saturating_add(1),
            // Somebody listens, and may do better the next time.
            _ => 0,
        };
        if let Some(server) = &self.work.chosen {
            let heard = panics::call(CHOOSER, || self.servers.failed(server, &end));
            self.told(heard);
        }
        let refused = matches!(end, LinkEnd::LogonRefused(_));
        let retry_in_ms = delay.map(|delay| delay.as_millis() as u64);
        tracing::debug!(server = %self.work.server, why = %end, retry_in_ms, "link ended");
        self.shared.meter.link_lost();
        let servers = panics::call(CHOOSER, || self.servers.len());
        let servers = self.told(servers).unwrap_or_default();
        self.shared.meter.connected(false);
        self.shared.status.send_modify(|status| {
            status.state = ConnectionState::Disconnected;
            status.last = Some((self.work.server.clone(), end.clone()));
            status.refused = if refused { status.refused + 1 } else { 0 };
            status.refusals += u64::from(refused);
            if let LinkEnd::LogonRefused(reason) = &end {
                status.logon_refused = Some((self.work.server.clone(), reason.clone()));
            }
            status.servers = servers;
        });
        let server = self.work.server.clone();
        self.shared.event(Event::State {
            state: ConnectionState::Disconnected,
            server: server.clone(),
        });
        self.count_outage();
        self.shared.event(Event::LinkLost {
            server,
            why: end,
            retry_in: delay,
        });
    }

    /// What code of the application's came to; its panic is told, and is no reason to end.
    fn told<T>(&self, result: Result<T, String>) -> Option<T> {
        result
            .inspect_err(|panic| tracing::warn!(%panic, "code of the application's"))
            .ok()
    }

    fn now(&self) -> Now {
        now(self.shared.start)
    }

    pub(crate) fn state(&mut self, state: ConnectionState) {
        if state == ConnectionState::LoggedOn {
            self.shared.meter.logged_on();
        }
        self.shared.meter.connected(!matches!(
            state,
            ConnectionState::Disconnected
                | ConnectionState::Connecting
                | ConnectionState::Connected
                | ConnectionState::Shutdown
        ));
        let server = self.work.server.clone();
        tracing::debug!(%server, %state, "connection");
        self.shared.status.send_modify(|status| {
            status.state = state;
            status.server.clone_from(&server);
            if state == ConnectionState::LoggedOn {
                status.refused = 0;
                status.logon_refused = None;
                status.logons += 1;
            }
        });
        self.shared.event(Event::State { state, server });
    }
}

fn now(start: Instant) -> Now {
    Now {
        at: start.elapsed(),
        unix_micros: unix_micros(),
    }
}

enum Local {
    Ask(Box<Ask>),
    Done(JobDone),
    Time,
    Bell,
}

async fn next_event(
    asks: &mut mpsc::Receiver<Ask>,
    running: &mut Option<Running>,
    shared: &Shared,
    deadline: Option<Instant>,
) -> Local {
    tokio::select! {
        Some(ask) = asks.recv() => Local::Ask(Box::new(ask)),
        done = async { match running { Some(running) => running.done().await, None => std::future::pending().await } } => Local::Done(done),
        () = async { match deadline { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => Local::Time,
        () = shared.mailbox.doorbell.rung() => Local::Bell,
    }
}
