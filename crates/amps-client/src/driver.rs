//! The client's one task: carries out what [`Delivery`] and [`Session`] decide. It decides
//! nothing about acks itself.

mod link;
mod outputs;
mod readers;

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amps_store::{PublishStore, StoreError};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use crate::backoff::DelayStrategy;
use crate::chooser::{Server, ServerChooser};
use crate::connector::Connector;
use crate::delivery::{Delivery, Input, Now};
use crate::error::{CloseReport, CommandError, FlushError, FlushReport};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::meter::Meter;
use crate::session::{Credentials, MAX_WAITING, Session};
use crate::shared::{CloseRequest, End, Shared, unix_micros};
use crate::subscribe::{Answer, Request, Subscribe, Subscription};

use readers::{Entry, Readers};

/// What a handle asks the driver for.
pub(crate) enum Ask {
    Flush {
        /// The last sequence it covers.
        through: u64,
        until: Option<Instant>,
        reply: oneshot::Sender<Result<FlushReport, FlushError>>,
    },
    Command {
        request: Request,
        until: Instant,
        reply: oneshot::Sender<Result<Answer, CommandError>>,
    },
    Subscribe {
        spec: Subscribe,
        reply: oneshot::Sender<Result<Subscription, CommandError>>,
    },
    AllowRebase,
    GiveUp {
        sequence: u64,
        done: oneshot::Sender<bool>,
    },
}

pub(crate) struct Settings {
    pub(crate) connect_timeout: Duration,
    pub(crate) logon_timeout: Duration,
    pub(crate) publish_ids: bool,
    pub(crate) has_handler: bool,
    pub(crate) max_frame: usize,
    pub(crate) give_up_after: Option<Duration>,
}

pub(crate) struct Driver {
    pub(crate) shared: Arc<Shared>,
    pub(crate) settings: Settings,
    pub(crate) chooser: Box<dyn ServerChooser>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) backoff: Box<dyn DelayStrategy>,
    pub(crate) delivery: Option<Delivery>,
    pub(crate) session: Session,
    pub(crate) asks: mpsc::Receiver<Ask>,
    /// Those that put bytes on the link, taken only while it takes bytes.
    pub(crate) commands: mpsc::Receiver<Ask>,
    pub(crate) unhandled: mpsc::Sender<UnhandledAck>,
    pub(crate) handler_task: Option<JoinHandle<()>>,
    pub(crate) watch: DeathWatch,
    pub(crate) work: Work,
}

/// Notices that the driver ended without an end: it panicked in code of the user's, or its
/// runtime was shut down. Nobody must wait then for what cannot come any more.
pub(crate) struct DeathWatch {
    shared: Arc<Shared>,
    armed: bool,
}

impl DeathWatch {
    pub(crate) fn new(shared: Arc<Shared>) -> Self {
        DeathWatch {
            shared,
            armed: true,
        }
    }
}

impl Drop for DeathWatch {
    fn drop(&mut self) {
        if !self.armed {
            return;
        }
        let why = match std::thread::panicking() {
            true => {
                "the client's task panicked, most likely in a connector, an authenticator, a server chooser or a store of your own"
            }
            false => "the client's runtime was shut down",
        };
        tracing::error!(client = %self.shared.name, why, "the client ended without being closed");
        self.shared.closed.store(true, Ordering::Release);
        self.shared.direct().open = false;
        self.shared.offers.stop();
        if let Some(watched) = &self.shared.watched {
            watched.close();
        }
        self.shared.room.notify_waiters();
        self.shared.status.send_modify(|status| {
            status.state = ConnectionState::Shutdown;
            let end = LinkEnd::ClientFailed(why.to_owned());
            status.last = Some((status.server.clone(), end));
        });
        self.shared.end.send_replace(End::Failed);
        self.shared.event(Event::ClientFailed { why });
        self.shared.event(Event::State {
            state: ConnectionState::Shutdown,
            server: self.shared.status.borrow().server.clone(),
        });
    }
}

/// What is under way.
pub(crate) struct Work {
    start: Instant,
    next_id: u64,
    /// Bytes of commands and answers that go out ahead of messages.
    out: Vec<u8>,
    flushes: BTreeMap<u64, FlushReply>,
    commands: BTreeMap<u64, CommandReply>,
    readers: Readers,
    jobs: VecDeque<Job>,
    running: Option<JoinHandle<Done>>,
    drop_link: Option<LinkEnd>,
    logged_on_at: Option<Instant>,
    sync_failed: bool,
    closing: Option<CloseRequest>,
    stopped: bool,
    server: String,
    meter: Meter,
    /// When gauges are read next.
    gauges_at: Duration,
}

enum FlushReply {
    Caller(oneshot::Sender<Result<FlushReport, FlushError>>),
    Close,
}

enum CommandReply {
    Answer(oneshot::Sender<Result<Answer, CommandError>>),
    Flush(oneshot::Sender<Result<FlushReport, FlushError>>),
    Close,
}

impl CommandReply {
    fn is_waited_for(&self) -> bool {
        match self {
            CommandReply::Answer(reply) => !reply.is_closed(),
            CommandReply::Flush(reply) => !reply.is_closed(),
            CommandReply::Close => true,
        }
    }
}

/// A store call that waits for the device; one at a time, in order.
#[derive(Debug)]
enum Job {
    RaiseGrant(u64),
    Rebase(u64),
}

enum Done {
    Raised(Result<(), StoreError>),
    Rebased(Result<amps_store::Rebase, StoreError>),
}

/// A link that lived this long after its logon, or settled anything, was good: the back-off
/// starts anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// Longer than any client waits, and no time that overflows.
const NO_LIMIT: Duration = Duration::from_secs(365 * 86_400);

/// How often gauges are read, whether or not there is a link.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// Bytes of commands that may wait for the link; those who ask for more wait themselves.
const COMMANDS_LIMIT: usize = 1 << 20;

/// How long the end of a client may take beyond its deadline, for a last sync.
const GRACE: Duration = Duration::from_secs(1);

impl Work {
    pub(crate) fn new() -> Self {
        Work {
            start: Instant::now(),
            next_id: 0,
            out: Vec::new(),
            flushes: BTreeMap::new(),
            commands: BTreeMap::new(),
            readers: Readers::default(),
            jobs: VecDeque::new(),
            running: None,
            drop_link: None,
            logged_on_at: None,
            sync_failed: false,
            closing: None,
            stopped: false,
            server: String::new(),
            meter: Meter::default(),
            gauges_at: Duration::ZERO,
        }
    }

    /// Whether the link may be given more commands.
    fn has_room(&self) -> bool {
        self.out.len() < COMMANDS_LIMIT
    }
}

/// The client is being closed.
struct Stopped;

impl Driver {
    /// Connects for ever, until the client is closed or dropped.
    pub(crate) async fn run(mut self) {
        let mut alone_since = Instant::now();
        while !self.work.stopped {
            let Some(server) = self.chooser.current() else {
                self.give_up("the server chooser names no server").await;
                break;
            };
            self.work.server = server.uri.authority();
            self.work.logged_on_at = None;
            let settled = self.settled();
            let span = tracing::info_span!("link", server = %self.work.server);
            let end = self.attempt(&server).instrument(span).await;
            // Not from the start of the attempt: one that times out takes as long as a
            // good link, and must not count as one.
            let lived = self.work.logged_on_at.map(|at| at.elapsed());
            if self.settled() > settled || lived.is_some_and(|lived| lived >= HEALTHY) {
                self.backoff.reset();
            }
            if self.work.stopped {
                break;
            }
            if self.work.logged_on_at.is_some() {
                alone_since = Instant::now();
            }
            self.link_lost();
            let alone = alone_since.elapsed();
            let limit = self.settings.give_up_after;
            let left = limit.map(|limit| limit.saturating_sub(alone));
            let over = left.is_some_and(|left| left.is_zero());
            let delay = self.delay().filter(|_| !over);
            let delay = delay.map(|delay| left.map_or(delay, |left| delay.min(left)));
            self.link_ended(&server, end, delay);
            let Some(delay) = delay else {
                self.give_up(match over {
                    true => "no server has accepted a logon for as long as it may take",
                    false => "the back-off has waited as long as it may",
                })
                .await;
                break;
            };
            let _ = self.meanwhile(tokio::time::sleep(delay)).await;
        }
        self.finish().await;
    }

    /// Makes no more attempts; everything that needs no link goes on until the client ends.
    async fn give_up(&mut self, why: &'static str) {
        tracing::error!(why, "no more attempts to connect are made");
        self.shared
            .status
            .send_modify(|status| status.gave_up = Some(why));
        self.shared.event(Event::GaveUp { why });
        // An error means that the client ends.
        let _ = self.meanwhile(std::future::pending::<()>()).await;
    }

    fn settled(&self) -> u64 {
        let totals = self.shared.totals();
        totals.persisted + totals.persisted_at_logon + totals.rejected
    }

    async fn attempt(&mut self, server: &Server) -> LinkEnd {
        self.state(ConnectionState::Connecting);
        let given = Credentials {
            user: server.uri.user().map(str::to_owned),
            password: server.uri.password().map(str::to_owned),
        };
        let credentials = match &server.authenticator {
            None => given,
            Some(authenticator) => {
                let asked = authenticator.authenticate(&server.uri, given);
                match self.authenticated(asked).await {
                    Ok(credentials) => credentials,
                    Err(end) => return end,
                }
            }
        };
        let connector = self.connector.clone();
        let opening = tokio::time::timeout(
            self.settings.connect_timeout,
            connector.connect(&server.uri),
        );
        let stream = match self.meanwhile(opening).await {
            Ok(Ok(Ok(stream))) => stream,
            Ok(Ok(Err(error))) => return LinkEnd::Connect(error.to_string()),
            Ok(Err(_)) => return LinkEnd::ConnectTimeout,
            Err(Stopped) => return LinkEnd::Shutdown,
        };
        self.state(ConnectionState::Connected);
        self.link(stream, server, &credentials).await
    }

    /// Waits for an authenticator, which is user code, no longer than for a server.
    async fn authenticated(
        &mut self,
        asked: impl Future<Output = Result<Credentials, String>>,
    ) -> Result<Credentials, LinkEnd> {
        let limit = self.settings.logon_timeout;
        match self.meanwhile(tokio::time::timeout(limit, asked)).await {
            Ok(Ok(Ok(credentials))) => Ok(credentials),
            Ok(Ok(Err(error))) => Err(LinkEnd::Authenticator(error)),
            Ok(Err(_)) => {
                let error = format!("the authenticator did not answer within {limit:?}");
                Err(LinkEnd::Authenticator(error))
            }
            Err(Stopped) => Err(LinkEnd::Shutdown),
        }
    }

    /// How long to wait before the next attempt.
    fn delay(&mut self) -> Option<Duration> {
        let delivery = self.delivery.as_ref();
        match delivery.is_some_and(Delivery::wants_longest_delay) {
            true => self.backoff.longest_delay(),
            false => self.backoff.next_delay(),
        }
    }

    /// Takes in the end of a link or of an attempt.
    fn link_lost(&mut self) {
        self.close_direct();
        self.work.out.clear();
        self.work.drop_link = None;
        let mut received = Vec::new();
        self.session
            .disconnected(&mut |item| received.push(link::Owned::from(item)));
        for item in received {
            self.received(item);
        }
        self.input(Input::LinkLost);
        self.turn();
    }

    /// Tells of the end of a link or of an attempt, and whether another one follows.
    fn link_ended(&mut self, server: &Server, end: LinkEnd, delay: Option<Duration>) {
        self.chooser.failed(server, &end);
        let refused = matches!(end, LinkEnd::LogonRefused(_));
        tracing::info!(server = %self.work.server, why = %end, retry_in = ?delay, "link ended");
        self.work.meter.link_lost(&self.shared.name);
        let servers = self.chooser.len();
        self.shared.status.send_modify(|status| {
            status.state = ConnectionState::Disconnected;
            status.last = Some((self.work.server.clone(), end.clone()));
            status.refused = if refused { status.refused + 1 } else { 0 };
            status.refusals += u64::from(refused);
            status.servers = servers;
        });
        let server = self.work.server.clone();
        self.shared.event(Event::State {
            state: ConnectionState::Disconnected,
            server: server.clone(),
        });
        self.shared.event(Event::LinkLost {
            server,
            why: end,
            retry_in: delay,
        });
    }

    /// Runs `future` while everything that needs no link goes on. The session's times are
    /// none of it: nobody ticks it here, and one that has passed would spin.
    async fn meanwhile<T>(&mut self, future: impl Future<Output = T>) -> Result<T, Stopped> {
        tokio::pin!(future);
        loop {
            self.turn();
            if self.work.stopped {
                return Err(Stopped);
            }
            let deadline = self.offline_deadline();
            let commands = self.work.has_room().then_some(&mut self.commands);
            tokio::select! {
                output = &mut future => return Ok(output),
                event = next_event(&mut self.asks, commands, &mut self.work.running, &self.shared, deadline) => {
                    self.local(event);
                }
            }
        }
    }

    /// What happens without a link: questions, finished store calls, time.
    fn local(&mut self, event: Local) {
        match event {
            Local::Ask(ask) => self.ask(*ask),
            Local::Done(done) => {
                self.work.running = None;
                match done {
                    Some(Done::Raised(result)) => self.input(Input::GrantRaised(result)),
                    Some(Done::Rebased(result)) => self.input(Input::Rebased(result)),
                    // The runtime is going down; so is this task.
                    None => self.work.stopped = true,
                }
            }
            Local::Time | Local::Bell => {}
        }
    }

    /// Takes in what came past the queue: subscriptions whose reader is gone, and to close.
    fn take_requests(&mut self) {
        // Before they are taken: what is asked for meanwhile is seen the next time.
        self.shared.requested.swap(false, Ordering::AcqRel);
        let mut requests = self.shared.requests();
        let unsubscribe = std::mem::take(&mut requests.unsubscribe);
        let close = requests.close.take();
        drop(requests);
        for subscription in unsubscribe {
            self.work.readers.remove(subscription);
            self.session.unsubscribe(subscription, &mut self.work.out);
        }
        let Some(close) = close else { return };
        let begun = self.work.closing.is_some();
        self.work.closing = Some(close.and(self.work.closing));
        if begun {
            return;
        }
        match self.delivery {
            Some(_) => self.flush(u64::MAX, Some(close.until), FlushReply::Close),
            None => self.server_flush(Some(close.until), CommandReply::Close),
        }
    }

    /// Lets time pass, and carries out what was decided.
    fn turn(&mut self) {
        if self.shared.requested.load(Ordering::Relaxed) {
            self.take_requests();
        }
        if self.shared.dropped.load(Ordering::Acquire) {
            self.work.stopped = true;
        }
        if !self.work.sync_failed && self.shared.sync_failed.load(Ordering::Acquire) {
            self.work.sync_failed = true;
            self.input(Input::SyncFailed);
        }
        self.input(Input::Tick);
        self.carry_out();
        self.start_job();
        self.read_gauges();
        if self.closing_is_over() {
            self.work.stopped = true;
        }
    }

    fn read_gauges(&mut self) {
        let now = self.work.start.elapsed();
        if !cfg!(feature = "metrics") || now < self.work.gauges_at {
            return;
        }
        self.work.gauges_at = now + GAUGES_EVERY;
        if let (Some(delivery), Some(store)) = (&self.delivery, self.shared.store()) {
            let (name, in_flight) = (&self.shared.name, delivery.in_flight());
            self.work.meter.gauges(name, in_flight, store.bounds());
        }
    }

    fn closing_is_over(&self) -> bool {
        self.work
            .closing
            .as_ref()
            .is_some_and(|closing| Instant::now() >= closing.until)
    }

    fn deadline(&self) -> Option<Instant> {
        let session = self.session.deadline().map(|at| self.work.start + at);
        [session, self.offline_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    fn offline_deadline(&self) -> Option<Instant> {
        let delivery = self.delivery.as_ref().and_then(Delivery::deadline);
        let delivery = delivery.map(|at| self.work.start + at);
        let closing = self.work.closing.as_ref().map(|closing| closing.until);
        let gauges = cfg!(feature = "metrics").then(|| self.work.start + self.work.gauges_at);
        [delivery, closing, gauges].into_iter().flatten().min()
    }

    fn now(&self) -> Now {
        Now {
            at: self.work.start.elapsed(),
            unix_micros: unix_micros(),
        }
    }

    fn input(&mut self, input: Input<'_>) {
        let now = self.now();
        if let (Some(delivery), Some(store)) = (&mut self.delivery, self.shared.store()) {
            delivery.handle(store.as_ref(), now, input);
        }
    }

    fn start_job(&mut self) {
        if self.work.running.is_some() {
            return;
        }
        let (Some(job), Some(store)) = (self.work.jobs.pop_front(), self.shared.store()) else {
            return;
        };
        let store: Arc<dyn PublishStore> = store.clone();
        self.work.running = Some(tokio::task::spawn_blocking(move || match job {
            Job::RaiseGrant(to) => Done::Raised(store.raise_grant(to)),
            Job::Rebase(above) => Done::Rebased(store.rebase(above)),
        }));
    }

    fn ask(&mut self, ask: Ask) {
        match ask {
            Ask::Flush {
                through,
                until,
                reply,
            } => match self.delivery {
                Some(_) => self.flush(through, until, FlushReply::Caller(reply)),
                None => self.server_flush(until, CommandReply::Flush(reply)),
            },
            Ask::Command {
                request,
                until,
                reply,
            } => {
                let reply = CommandReply::Answer(reply);
                match Instant::now() < until {
                    true => self.command(&request, until, reply),
                    // It waited for the link; now it would come as a surprise.
                    false => self.command_done(reply, Err(CommandError::Timeout)),
                }
            }
            Ask::Subscribe { spec, reply } => self.subscribe(spec, reply),
            Ask::AllowRebase => self.input(Input::AllowRebase),
            Ask::GiveUp { sequence, done } => {
                let reason = "given up by the application; the server may have it";
                self.input(Input::GiveUp { sequence, reason });
                self.carry_out();
                let store = self.shared.store();
                let waits = store.is_some_and(|store| {
                    store
                        .rejections(sequence, 1)
                        .first()
                        .is_some_and(|r| r.sequence == sequence)
                });
                // The caller may have stopped waiting.
                let _ = done.send(waits);
            }
        }
    }

    fn flush(&mut self, through: u64, until: Option<Instant>, reply: FlushReply) {
        self.forget_cancelled_flushes();
        self.work.next_id += 1;
        let id = self.work.next_id;
        self.work.flushes.insert(id, reply);
        let until = self.since_start(until);
        self.input(Input::Flush { id, through, until });
    }

    /// Drops flushes that nobody waits for any more: at most as many are kept as were
    /// waited for at once.
    fn forget_cancelled_flushes(&mut self) {
        let cancelled: Vec<u64> = self
            .work
            .flushes
            .iter()
            .filter(|(_, reply)| matches!(reply, FlushReply::Caller(to) if to.is_closed()))
            .map(|(id, _)| *id)
            .collect();
        for id in cancelled {
            self.work.flushes.remove(&id);
            self.input(Input::FlushCancelled { id });
        }
    }

    fn flushed(&mut self, id: u64, left: u64) {
        let totals = self.shared.totals();
        let report = FlushReport {
            persisted: totals.persisted,
            persisted_at_logon: totals.persisted_at_logon,
            rejected: totals.rejected,
            left,
        };
        let result = match left {
            0 => Ok(report),
            _ => Err(FlushError::Timeout(report)),
        };
        match self.work.flushes.remove(&id) {
            // The caller may have stopped waiting.
            Some(FlushReply::Caller(reply)) => drop(reply.send(result)),
            Some(FlushReply::Close) => self.work.stopped = true,
            None => {}
        }
    }

    fn server_flush(&mut self, until: Option<Instant>, reply: CommandReply) {
        let now = self.work.start.elapsed();
        // Without a limit, none; not that of other commands.
        let until = self.since_start(until).or(Some(now + NO_LIMIT));
        let request = Request::new("flush");
        self.forget_cancelled_commands();
        // Behind what was accepted before, and like that only behind a logon.
        let given = {
            let mut direct = self.shared.direct();
            match direct.flushes < MAX_WAITING {
                true => {
                    direct.flushes += 1;
                    self.session
                        .command(now, &request, until, &mut direct.bytes)
                }
                false => Err(CommandError::TooMany),
            }
        };
        self.commanded(given, reply);
    }

    fn command(&mut self, request: &Request, until: Instant, reply: CommandReply) {
        self.forget_cancelled_commands();
        let (now, until) = (self.work.start.elapsed(), self.since_start(Some(until)));
        let given = self
            .session
            .command(now, request, until, &mut self.work.out);
        self.commanded(given, reply);
    }

    /// When all places for answers are taken, those that nobody waits for any more are given
    /// up; answers that come all the same belong to nothing.
    fn forget_cancelled_commands(&mut self) {
        if self.session.waiting() < MAX_WAITING {
            return;
        }
        let session = &mut self.session;
        self.work.commands.retain(|id, reply| {
            let waits = reply.is_waited_for();
            if !waits {
                session.forget(*id);
            }
            waits
        });
    }

    fn commanded(&mut self, given: Result<Option<u64>, CommandError>, reply: CommandReply) {
        match given {
            Ok(Some(id)) => drop(self.work.commands.insert(id, reply)),
            Ok(None) => self.command_done(reply, Ok(Answer::default())),
            Err(error) => self.command_done(reply, Err(error)),
        }
    }

    fn since_start(&self, until: Option<Instant>) -> Option<Duration> {
        until.map(|until| until.saturating_duration_since(self.work.start))
    }

    fn command_done(&mut self, reply: CommandReply, result: Result<Answer, CommandError>) {
        // A caller may have stopped waiting.
        match reply {
            CommandReply::Answer(reply) => drop(reply.send(result)),
            CommandReply::Flush(reply) => {
                let report = FlushReport::default();
                let result = match result {
                    Ok(_) => Ok(report),
                    Err(CommandError::Timeout) => Err(FlushError::Timeout(report)),
                    Err(error) => Err(FlushError::Command(error)),
                };
                drop(reply.send(result));
            }
            CommandReply::Close => self.work.stopped = true,
        }
    }

    fn subscribe(
        &mut self,
        spec: Subscribe,
        reply: oneshot::Sender<Result<Subscription, CommandError>>,
    ) {
        let (messages, receiver) = mpsc::channel(spec.buffer);
        let (end, ended) = oneshot::channel();
        let (held, limit) = (Arc::<AtomicUsize>::default(), spec.buffer_bytes);
        let query = spec.is_query();
        let now = self.work.start.elapsed();
        let id = self.session.subscribe(now, spec, &mut self.work.out);
        let subscription = Subscription {
            id,
            messages: receiver,
            held: held.clone(),
            end: ended,
            ended: false,
            query,
            client: Arc::downgrade(&self.shared),
        };
        let placing = Some((reply, subscription));
        let entry = Entry {
            messages,
            held,
            limit,
            topic: "".into(),
            end,
            placing,
        };
        self.work.readers.insert(id, entry);
    }

    pub(crate) fn state(&mut self, state: ConnectionState) {
        if state == ConnectionState::LoggedOn {
            self.work.meter.logged_on(&self.shared.name);
        }
        let server = self.work.server.clone();
        tracing::debug!(%server, ?state, "connection");
        self.shared.status.send_modify(|status| {
            status.state = state;
            status.server.clone_from(&server);
            if state == ConnectionState::LoggedOn {
                status.refused = 0;
                status.logons += 1;
            }
        });
        self.shared.event(Event::State { state, server });
    }

    /// Without a store: takes no more messages for this link, and says how many of them it
    /// never took.
    fn close_direct(&mut self) -> u64 {
        let mut direct = self.shared.direct();
        direct.open = false;
        direct.bytes.clear();
        direct.flushes = 0;
        let unsent = std::mem::take(&mut direct.messages);
        drop(direct);
        // Who waits for room in it learns that there is no link.
        self.shared.room.notify_waiters();
        if unsent > 0 {
            tracing::warn!(messages = unsent, "accepted without a store, and not sent");
            self.shared.unsent.fetch_add(unsent, Ordering::Relaxed);
            self.shared.event(Event::Unsent { messages: unsent });
        }
        unsent
    }

    async fn finish(mut self) {
        self.shared.closed.store(true, Ordering::Release);
        let unsent = self.close_direct();
        self.input(Input::LinkLost);
        self.carry_out();
        self.asks.close();
        self.commands.close();
        // Who asks from here on either finds this said, or is found by `take_requests`.
        self.shared.finishing.store(true, Ordering::SeqCst);
        let late = self.shared.requests().close.take();
        let closing = match (self.work.closing.take(), late) {
            (Some(closing), late) => Some(closing.and(late)),
            (None, late) => late,
        };
        let now = Instant::now();
        let until = closing.map_or(now, |closing| closing.until);
        let wait = closing.is_some_and(|closing| closing.wait_for_handler);
        if let (true, Some(task)) = (wait, self.handler_task.take()) {
            // Refusals that came last still reach their handler. One that is busy at the
            // deadline finishes on its own; what is left is offered at the next open.
            self.shared.offers.finish();
            let _ = tokio::time::timeout_at(until, task).await;
        }
        self.shared.offers.stop();
        let last = until.max(now) + GRACE;
        if let Some(job) = self.work.running.take() {
            let _ = tokio::time::timeout_at(last, job).await;
        }
        let mut report = self.close_store(last).await;
        report.left += unsent;
        if let Some(error) = &report.error {
            tracing::warn!(%error, "the store was not closed cleanly");
        }
        let totals = self.shared.totals();
        for (_, reply) in std::mem::take(&mut self.work.flushes) {
            if let FlushReply::Caller(reply) = reply {
                let report = FlushReport {
                    persisted: totals.persisted,
                    persisted_at_logon: totals.persisted_at_logon,
                    rejected: totals.rejected,
                    left: report.left,
                };
                drop(reply.send(Err(FlushError::Closed(report))));
            }
        }
        self.work.readers.close();
        if let Some(watched) = &self.shared.watched {
            watched.close();
        }
        self.shared.room.notify_waiters();
        self.state(ConnectionState::Shutdown);
        self.watch.armed = false;
        let end = self.shared.end.clone();
        // The store's lock goes with its last handle: whoever gets the report may open the
        // store again at once.
        drop(self);
        end.send_replace(End::Closed(report));
    }

    async fn close_store(&mut self, last: Instant) -> CloseReport {
        let Some(store) = self.shared.store().cloned() else {
            return CloseReport {
                clean: true,
                ..CloseReport::default()
            };
        };
        let left = store.bounds().unsettled;
        let handed_over = self.delivery.as_ref().map_or(0, Delivery::handed_over);
        let close = tokio::task::spawn_blocking(move || {
            let closed = store.close(handed_over);
            // Behind the close: a publish may have come in just before it.
            (closed, store.bounds().unsettled)
        });
        let failed = |error: &str| StoreError::Io {
            what: "close the store",
            error: error.to_owned(),
        };
        let (closed, left) = match tokio::time::timeout_at(last, close).await {
            Ok(Ok((closed, left))) => (closed, left),
            Ok(Err(_)) => (Err(failed("it panicked")), left),
            Err(_) => (Err(failed("the device did not answer in time")), left),
        };
        CloseReport {
            left,
            clean: closed.is_ok(),
            pending: false,
            error: closed.err(),
        }
    }
}

enum Local {
    Ask(Box<Ask>),
    Done(Option<Done>),
    Time,
    Bell,
}

async fn next_event(
    asks: &mut mpsc::Receiver<Ask>,
    commands: Option<&mut mpsc::Receiver<Ask>>,
    running: &mut Option<JoinHandle<Done>>,
    shared: &Shared,
    deadline: Option<Instant>,
) -> Local {
    tokio::select! {
        Some(ask) = asks.recv() => Local::Ask(Box::new(ask)),
        Some(ask) = async { match commands { Some(commands) => commands.recv().await, None => std::future::pending().await } } => Local::Ask(Box::new(ask)),
        done = async { match running { Some(job) => job.await.ok(), None => std::future::pending().await } } => Local::Done(done),
        () = async { match deadline { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => Local::Time,
        () = shared.doorbell.rung() => Local::Bell,
    }
}
