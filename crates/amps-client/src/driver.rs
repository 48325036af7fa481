//! The client's one task: carries out what [`Delivery`] and [`Session`] decide. It decides
//! nothing about acks itself.

mod asks;
mod direct;
mod end;
mod link;
mod outputs;
mod readers;
mod sampled;
mod telling;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use amps_store::{PublishStore, StoreError};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
use tracing::Instrument;

use crate::backoff::DelayStrategy;
use crate::chooser::{Credentials, Server, ServerChooser};
use crate::connector::Connector;
use crate::delivery::{Delivery, Input, Now, Totals};
use crate::event::{ConnectionState, Event, LinkEnd};
use crate::failed::UnhandledAck;
use crate::helper::Calling;
use crate::mailbox::{Ask, CloseRequest, Inbox};
use crate::outage::Outages;
use crate::panics;
use crate::session::Session;
use crate::shared::{Shared, unix_micros};

use asks::{CommandReply, FlushReply};
pub(crate) use end::DeathWatch;
use readers::Readers;

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
    pub(crate) inbox: Inbox,
    pub(crate) unhandled: mpsc::Sender<UnhandledAck>,
    pub(crate) handler_task: Option<JoinHandle<()>>,
    pub(crate) watch: DeathWatch,
    pub(crate) work: Work,
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
    running: Option<Running>,
    drop_link: Option<LinkEnd>,
    /// The refusal that is being carried out, as it came.
    refusal: Option<UnhandledAck>,
    /// Without a failed-write handler: refusals of earlier runs from here on are still to be
    /// told.
    earlier_from: Option<u64>,
    /// Refused in this run before those were told: no refusal is told twice.
    told: BTreeSet<u64>,
    logged_on_at: Option<Instant>,
    /// Attempts in a row that found nobody who listens, or a logon that was refused.
    failed: usize,
    sync_failed: bool,
    store_gone: bool,
    closing: Option<CloseRequest>,
    /// Without a store: the closing waits for no word of the server but acks that were asked for.
    flushed: bool,
    stopped: bool,
    server: String,
    /// What the meter has counted.
    counted: Totals,
    published: u64,
    sampled: sampled::Sampled,
    /// When gauges are read next.
    gauges_at: Duration,
    outages: Outages,
    head: telling::Head,
    /// The message that cannot be read, which was told.
    unreadable: Option<u64>,
}

/// A store call that waits for the device; one at a time, in order.
#[derive(Clone, Copy, Debug)]
enum Job {
    RaiseGrant(u64),
    Rebase(u64),
}

enum Done {
    Raised(Result<(), StoreError>),
    Rebased(Result<amps_store::Rebase, StoreError>),
}

/// A [`Job`] that the helper has.
struct Running {
    job: Job,
    call: Calling<Done>,
}

impl Running {
    async fn done(&mut self) -> Done {
        match ((&mut self.call).await, self.job) {
            (Ok(done), _) => done,
            (Err(why), Job::RaiseGrant(_)) => {
                Done::Raised(Err(why.of_store("raise the send grant")))
            }
            (Err(why), Job::Rebase(_)) => Done::Rebased(Err(why.of_store("rebase"))),
        }
    }
}

/// A link that lived this long after its logon, or settled anything, was good: the back-off
/// starts anew.
const HEALTHY: Duration = Duration::from_secs(10);

/// Whose code it is that panicked.
const CHOOSER: &str = "the server chooser";
const CONNECTOR: &str = "the connector";
const STREAM: &str = "the connector's stream";
const AUTHENTICATOR: &str = "the authenticator";
const DELAYS: &str = "the delay strategy";

/// The wait before the next attempt when the delay strategy panics instead of saying it.
const PANICKED: Duration = Duration::from_secs(20);

/// How often gauges are read, whether or not there is a link.
const GAUGES_EVERY: Duration = Duration::from_secs(1);

/// Bytes of commands that may wait for the link; those who ask for more wait themselves.
const COMMANDS_LIMIT: usize = 1 << 20;

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
            refusal: None,
            earlier_from: Some(0),
            told: BTreeSet::new(),
            logged_on_at: None,
            failed: 0,
            sync_failed: false,
            store_gone: false,
            closing: None,
            flushed: false,
            stopped: false,
            server: String::new(),
            counted: Totals::default(),
            published: 0,
            sampled: sampled::Sampled::default(),
            gauges_at: Duration::ZERO,
            outages: Outages::default(),
            head: telling::Head::default(),
            unreadable: None,
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
            let server = match panics::call(CHOOSER, || self.chooser.current()) {
                Ok(Some(server)) => Ok(server),
                Ok(None) => {
                    self.give_up("the server chooser names no server").await;
                    break;
                }
                Err(panic) => Err(LinkEnd::Panicked(panic)),
            };
            let name = server.as_ref().map(|server| server.uri.authority());
            self.work.server = name.unwrap_or_default();
            self.work.logged_on_at = None;
            let settled = self.settled();
            let span = tracing::info_span!("link", server = %self.work.server);
            let end = match &server {
                Ok(server) => self.attempt(server).instrument(span).await,
                Err(end) => end.clone(),
            };
            // Not from the start of the attempt: one that times out takes as long as a
            // good link, and must not count as one.
            let lived = self.work.logged_on_at.map(|at| at.elapsed());
            if self.settled() > settled || lived.is_some_and(|lived| lived >= HEALTHY) {
                let reset = panics::call(DELAYS, || self.backoff.reset());
                self.told(reset);
            }
            if self.work.stopped {
                break;
            }
            if self.work.logged_on_at.is_some() {
                alone_since = Instant::now();
            }
            self.work.failed = match end {
                LinkEnd::Connect(_) | LinkEnd::LogonRefused(_) => {
                    self.work.failed.saturating_add(1)
                }
                // Somebody listens, and may do better the next time.
                _ => 0,
            };
            self.link_lost();
            let alone = alone_since.elapsed();
            let limit = self.settings.give_up_after;
            let left = limit.map(|limit| limit.saturating_sub(alone));
            let over = left.is_some_and(|left| left.is_zero());
            let delay = self.delay().filter(|_| !over);
            let delay = delay.map(|delay| left.map_or(delay, |left| delay.min(left)));
            self.link_ended(server.as_ref().ok(), end, delay);
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
        self.tell_if_unreachable();
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
                let ask = || authenticator.authenticate(&server.uri, given);
                match self.authenticated(panics::run(AUTHENTICATOR, ask)).await {
                    Ok(credentials) => credentials,
                    Err(end) => return end,
                }
            }
        };
        let connector = self.connector.clone();
        let opening = panics::run(CONNECTOR, || connector.connect(&server.uri));
        let opening = tokio::time::timeout(self.settings.connect_timeout, opening);
        let mut stream = match self.meanwhile(opening).await {
            Ok(Ok(Ok(Ok(stream)))) => stream,
            Ok(Ok(Ok(Err(error)))) => return LinkEnd::Connect(error.to_string()),
            Ok(Ok(Err(panic))) => return LinkEnd::Panicked(panic),
            Ok(Err(_)) => return LinkEnd::ConnectTimeout,
            Err(Stopped) => return LinkEnd::Shutdown,
        };
        self.state(ConnectionState::Connected);
        let end = self.link(&mut *stream, server, &credentials).await;
        let dropped = panics::call(STREAM, || drop(stream));
        self.told(dropped);
        end
    }

    /// What code of the application's came to; its panic is told, and is no reason to end.
    fn told<T>(&self, result: Result<T, String>) -> Option<T> {
        result
            .inspect_err(|panic| tracing::warn!(%panic, "code of the application's"))
            .ok()
    }

    /// Waits for an authenticator, which is user code, no longer than for a server.
    async fn authenticated(
        &mut self,
        asked: impl Future<Output = Result<Result<Credentials, String>, String>>,
    ) -> Result<Credentials, LinkEnd> {
        let limit = self.settings.logon_timeout;
        match self.meanwhile(tokio::time::timeout(limit, asked)).await {
            Ok(Ok(Ok(Ok(credentials)))) => Ok(credentials),
            Ok(Ok(Ok(Err(error)))) => Err(LinkEnd::Authenticator(error)),
            Ok(Ok(Err(panic))) => Err(LinkEnd::Panicked(panic)),
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
        let longest = delivery.is_some_and(Delivery::wants_longest_delay);
        let delay = panics::call(DELAYS, || match longest {
            true => self.backoff.longest_delay(),
            false => self.backoff.next_delay(),
        });
        self.told(delay).unwrap_or(Some(PANICKED))
    }

    /// Takes in the end of a link or of an attempt.
    fn link_lost(&mut self) {
        self.close_direct();
        self.work.out.clear();
        self.work.sampled.clear();
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
    fn link_ended(&mut self, server: Option<&Server>, end: LinkEnd, delay: Option<Duration>) {
        if let Some(server) = server {
            let heard = panics::call(CHOOSER, || self.chooser.failed(server, &end));
            self.told(heard);
        }
        let refused = matches!(end, LinkEnd::LogonRefused(_));
        let retry_in_ms = delay.map(|delay| delay.as_millis() as u64);
        tracing::debug!(server = %self.work.server, why = %end, retry_in_ms, "link ended");
        self.shared.meter.link_lost();
        let servers = panics::call(CHOOSER, || self.chooser.len());
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
        self.tell_if_unreachable();
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
            let commands = self.work.has_room().then_some(&mut self.inbox.commands);
            tokio::select! {
                output = &mut future => return Ok(output),
                event = next_event(&mut self.inbox.asks, commands, &mut self.work.running, &self.shared, deadline) => {
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
                    Done::Raised(result) => self.input(Input::GrantRaised(result)),
                    Done::Rebased(result) => self.input(Input::Rebased(result)),
                }
            }
            Local::Time | Local::Bell => {}
        }
    }

    /// Takes in what came past the queue: subscriptions whose reader is gone, and to close.
    fn take_requests(&mut self) {
        // Before they are taken: what is asked for meanwhile is seen the next time.
        self.shared.mailbox.requested.swap(false, Ordering::AcqRel);
        let mut requests = self.shared.mailbox.requests();
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
        if self.shared.mailbox.requested.load(Ordering::Relaxed) {
            self.take_requests();
        }
        if self.shared.mailbox.dropped.load(Ordering::Acquire) {
            self.work.stopped = true;
        }
        if !self.work.sync_failed && self.shared.sync_failed.load(Ordering::Acquire) {
            self.work.sync_failed = true;
            self.input(Input::SyncFailed);
        }
        if !self.work.store_gone && self.shared.store_gone.load(Ordering::Acquire) {
            self.work.store_gone = true;
            self.input(Input::StoreGone);
        }
        self.tell_earlier();
        self.input(Input::Tick);
        self.carry_out();
        self.start_job();
        self.look_at_backlog();
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
        let oldest = self.oldest();
        let meter = &self.shared.meter;
        meter.published(
            &mut self.work.published,
            self.shared.mailbox.doorbell.messages(),
        );
        if let (Some(delivery), Some(store)) = (&self.delivery, self.shared.store()) {
            meter.gauges(delivery.in_flight(), oldest, store.bounds());
            store
                .sync_times()
                .into_iter()
                .for_each(|took| meter.synced(took));
        }
    }

    fn closing_is_over(&self) -> bool {
        let Some(closing) = &self.work.closing else {
            return false;
        };
        let acked = self.work.flushed && self.shared.direct().waiting() == 0;
        acked || Instant::now() >= closing.until
    }

    fn deadline(&mut self) -> Option<Instant> {
        let wait = match &self.delivery {
            Some(delivery) => delivery.in_flight() > 0,
            None => self.shared.direct().is_owed(),
        };
        let now = self.work.start.elapsed();
        self.session.publishes_wait(now, wait);
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
        let look = Some(self.work.start + self.work.outages.deadline());
        [delivery, closing, gauges, look]
            .into_iter()
            .flatten()
            .min()
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
        let (Some(store), Some(helper)) = (self.shared.store(), &self.shared.helper) else {
            return;
        };
        let Some(job) = self.work.jobs.pop_front() else {
            return;
        };
        let store: Arc<dyn PublishStore> = store.clone();
        let call = helper.call(move || match job {
            Job::RaiseGrant(to) => Done::Raised(store.raise_grant(to)),
            Job::Rebase(above) => Done::Rebased(store.rebase(above)),
        });
        self.work.running = Some(Running { job, call });
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

enum Local {
    Ask(Box<Ask>),
    Done(Done),
    Time,
    Bell,
}

async fn next_event(
    asks: &mut mpsc::Receiver<Ask>,
    commands: Option<&mut mpsc::Receiver<Ask>>,
    running: &mut Option<Running>,
    shared: &Shared,
    deadline: Option<Instant>,
) -> Local {
    tokio::select! {
        Some(ask) = asks.recv() => Local::Ask(Box::new(ask)),
        Some(ask) = async { match commands { Some(commands) => commands.recv().await, None => std::future::pending().await } } => Local::Ask(Box::new(ask)),
        done = async { match running { Some(running) => running.done().await, None => std::future::pending().await } } => Local::Done(done),
        () = async { match deadline { Some(at) => sleep_until(at).await, None => std::future::pending().await } } => Local::Time,
        () = shared.mailbox.doorbell.rung() => Local::Bell,
    }
}
