//! How a client is described and opened.

mod carried;

use std::fmt;
use std::future::Future;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_delivery::{Engine, Queue, Require, Transport};
use amps_store::PublishStore;
use tokio::runtime::Handle;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;
use tracing::Instrument;

use crate::backoff::{Backoff, DelayStrategy};
use crate::carrier::Carrier;
use crate::chooser::{Authenticator, ServerChooser};
use crate::client::{Alive, Client};
use crate::connector::Connector;
use crate::delivery::{Config, GapPolicy, Now, RebasePolicy};
use crate::driver::{DeathWatch, Driver, Work};
use crate::error::OpenError;
use crate::event::{Event, found_at_open, found_in_words};
use crate::failed::{FailedWrite, Handler, HandlerError, LastChance, UnhandledAck};
use crate::handlers::{Offering, blocking_handler, last_chance, offer_refusals};
use crate::helper::Helper;
use crate::mailbox::Mailbox;
use crate::meter::Meter;
use crate::offers::Offers;
use crate::opening::{Opening, Release};
use crate::panics::CarefulDelays;
use crate::protocol::DEFAULT_MAX_FRAME;
use crate::receipt::Watched;
use crate::sampled::Sampled;
use crate::session::DEFAULT_HEARTBEAT;
use crate::shared::{LinkStatus, Shared, YEAR};

use carried::Carried;

/// Events kept for a slow reader.
const EVENTS: usize = 1024;

/// Acks kept for a slow last-chance handler.
const UNHANDLED: usize = 1024;

/// Describes a client; [`open`](Builder::open) starts it.
pub struct Builder {
    name: String,
    servers: Vec<(String, Option<Arc<dyn Authenticator>>)>,
    chooser: Option<Box<dyn ServerChooser>>,
    store: Option<Arc<dyn PublishStore>>,
    handler: Option<Handler>,
    last_chance: Option<LastChance>,
    connector: Option<Arc<dyn Connector>>,
    transport: Option<Box<dyn Transport>>,
    runtime: Option<Handle>,
    /// Where handlers run, if not on the client's own runtime.
    handlers_on: Option<Handle>,
    backoff: Option<Box<dyn DelayStrategy>>,
    give_up_after: Option<Duration>,
    connect_timeout: Duration,
    logon_timeout: Duration,
    command_timeout: Duration,
    heartbeat: Option<Duration>,
    publish_ids: bool,
    ack_conflation: Option<String>,
    logon_options: Option<String>,
    logon_correlation: Option<String>,
    max_message: usize,
    max_frame: usize,
    delivery: Config,
    ack_deadline: Duration,
    require: Option<Require>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl Builder {
    pub(crate) fn new(name: String) -> Self {
        Builder {
            name,
            servers: Vec::new(),
            chooser: None,
            store: None,
            handler: None,
            last_chance: None,
            connector: None,
            transport: None,
            runtime: None,
            handlers_on: None,
            backoff: None,
            give_up_after: None,
            connect_timeout: Duration::from_secs(10),
            logon_timeout: Duration::from_secs(10),
            command_timeout: Duration::from_secs(30),
            heartbeat: Some(DEFAULT_HEARTBEAT),
            publish_ids: false,
            ack_conflation: None,
            logon_options: None,
            logon_correlation: None,
            // About what server transports take for one command (`docs/protocol.md` §1).
            max_message: 200 << 20,
            max_frame: DEFAULT_MAX_FRAME,
            delivery: Config::default(),
            ack_deadline: amps_delivery::Config::default().ack_deadline,
            require: None,
        }
    }

    /// Adds a server: `tcp://[user:password@]host:port/amps/json`, the same with `tcps` for
    /// TLS, or `unix://localhost:0/amps/json?path=/run/amps.sock`; see
    /// [`Uri`](crate::uri::Uri) for the options.
    /// The last part is the message type.
    ///
    /// Several servers are tried in turn, and the client stays with one as long as it is healthy.
    /// Each must have what the others have: failing over to a server that is behind loses
    /// messages (`docs/protocol.md` §15), see [`GapPolicy`].
    #[must_use]
    pub fn server(mut self, uri: impl Into<String>) -> Self {
        self.servers.push((uri.into(), None));
        self
    }

    /// Adds a server with an authenticator of its own.
    #[must_use]
    pub fn server_with(
        mut self,
        uri: impl Into<String>,
        authenticator: Arc<dyn Authenticator>,
    ) -> Self {
        self.servers.push((uri.into(), Some(authenticator)));
        self
    }

    /// Chooses servers by a rule of your own instead of in turn. The chooser brings its own
    /// servers, so [`server`](Self::server) cannot be used beside it.
    #[must_use]
    pub fn chooser(mut self, chooser: impl ServerChooser + 'static) -> Self {
        self.chooser = Some(Box::new(chooser));
        self
    }

    /// Keeps messages in this store until the server settles them. Without a store messages are
    /// sent and forgotten, and no acks are requested, except for messages that ask for one
    /// themselves ([`Message::ask_ack`](crate::Message::ask_ack)).
    #[must_use]
    pub fn store(mut self, store: impl PublishStore) -> Self {
        self.store = Some(Arc::new(store));
        self
    }

    /// Called for every message that the server refused, one at a time, in order of sequence, on
    /// a task of its own. With `Ok` the application has taken the refusal over, and it is
    /// removed. With `Err`, or after a panic, it waits and is offered again at the next open, or
    /// on request. Each refusal is offered at least once: a crash between the handler's last step
    /// and the record of its `Ok` repeats it. Refusals found in the store come first, as soon as
    /// the application has the client, whether or not a server can be reached.
    ///
    /// Without a store it is called for the refusals of messages that asked for an ack
    /// ([`Message::ask_ack`](crate::Message::ask_ack)), each once and without the message. If
    /// it does not take one over, nothing keeps that refusal ([`Event::HandlerFailed`]).
    #[must_use]
    pub fn on_failed_write<F, Fut>(mut self, handler: F) -> Self
    where
        F: Fn(FailedWrite) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<(), HandlerError>> + Send + 'static,
    {
        self.handler = Some(Arc::new(move |failed| Box::pin(handler(failed))));
        self
    }

    /// As [`on_failed_write`](Self::on_failed_write), with a closure that may block: it
    /// runs on a thread for blocking work.
    #[must_use]
    pub fn on_failed_write_blocking<F>(mut self, handler: F) -> Self
    where
        F: Fn(FailedWrite) -> Result<(), HandlerError> + Send + Sync + 'static,
    {
        let handler = Arc::new(handler);
        self.handler = Some(Arc::new(move |failed| {
            blocking_handler(handler.clone(), failed)
        }));
        self
    }

    /// Called for acks that nothing else takes, for commands from the server that the client does
    /// not know, and, if there is no failed-write handler, for refusals (which wait in the store
    /// all the same): once in the run that receives the refusal, with the server's ack, and once
    /// in every later run as [`earlier_run`](UnhandledAck::earlier_run). Refusals of messages
    /// that asked for an ack without a store come here as well, and nothing else keeps them. It
    /// must not block, unless the client is a blocking one.
    #[must_use]
    pub fn on_last_chance(
        mut self,
        handler: impl Fn(UnhandledAck) + Send + Sync + 'static,
    ) -> Self {
        self.last_chance = Some(Arc::new(handler));
        self
    }

    /// Opens connections in another way than
    /// [`SchemeConnector`](crate::connector::SchemeConnector) does, which goes by the URI's
    /// scheme and trusts the system's root certificates for `tcps`: in memory, say, or with a
    /// certificate authority of your own
    /// ([`SchemeConnector::with_tls`](crate::connector::SchemeConnector::with_tls)).
    #[must_use]
    pub fn connector(mut self, connector: Arc<dyn Connector>) -> Self {
        self.connector = Some(connector);
        self
    }

    /// Sends to servers of another kind than AMPS. [`server`](Self::server) then takes the addresses
    /// that this transport knows, and neither commands nor subscriptions can be sent.
    #[must_use]
    pub fn transport(mut self, transport: impl Transport + 'static) -> Self {
        self.transport = Some(Box::new(transport));
        self
    }

    /// What a success has to mean: asked at every link, and a link that means less is left.
    #[must_use]
    pub fn require(mut self, require: Require) -> Self {
        self.require = Some(require);
        self
    }

    /// Where each message has an ack of its own: how long a server may say nothing of any.
    #[must_use]
    pub fn ack_deadline(mut self, deadline: Duration) -> Self {
        self.ack_deadline = deadline;
        self
    }

    /// Runs on this runtime instead of the one `open` is called in.
    #[must_use]
    pub fn runtime(mut self, handle: Handle) -> Self {
        self.runtime = Some(handle);
        self
    }

    /// Runs handlers on this runtime, so that one that blocks blocks nothing else.
    #[must_use]
    pub(crate) fn handlers_on(mut self, handle: Handle) -> Self {
        self.handlers_on = Some(handle);
        self
    }

    /// Heartbeats at this interval, in whole seconds, in both directions; `None` for no
    /// heartbeats. Every 10 s unless set. What silence means depends on the server's answer:
    ///
    /// - It confirmed them: a link on which nothing is heard for two and a half intervals (25 s
    ///   unless set) is given up, and the next server is tried.
    /// - It refused them: silence means nothing.
    /// - It did not answer: a link on which nothing is heard for 30 s is given up if it owed an
    ///   answer all that time, to a publish or a command. An idle link to a server without
    ///   heartbeats is left alone.
    ///
    /// An unfinished frame counts as silence unless 64 KiB more of it have come, so that a server
    /// that sends one for ever cannot hold the client up.
    ///
    /// The kernel is the last resort: a TCP connection whose peer answers nothing for two
    /// minutes, or takes nothing for as long, ends even without heartbeats.
    #[must_use]
    pub fn heartbeat(mut self, interval: impl Into<Option<Duration>>) -> Self {
        self.heartbeat = interval.into();
        self
    }

    /// Time for opening a connection; 10 s unless set. Like every time limit here it is at most a
    /// year.
    #[must_use]
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.connect_timeout = timeout;
        self
    }

    /// Time for the answer to a logon, and for each answer of an authenticator; 10 s unless
    /// set.
    #[must_use]
    pub fn logon_timeout(mut self, timeout: Duration) -> Self {
        self.logon_timeout = timeout;
        self
    }

    /// Time for the answer to any other command; 30 s unless set.
    #[must_use]
    pub fn command_timeout(mut self, timeout: Duration) -> Self {
        self.command_timeout = timeout;
        self
    }

    /// Waits between attempts to connect: a [`Backoff`], which is the default, a
    /// [`FixedDelay`](crate::FixedDelay), or a [`DelayStrategy`] of your own.
    #[must_use]
    pub fn backoff(mut self, strategy: impl DelayStrategy + 'static) -> Self {
        self.backoff = Some(Box::new(strategy));
        self
    }

    /// Gives up when no server has accepted a logon for this long: attempts, their time limits
    /// and the waits between them all count. An attempt that has begun is finished first. Never
    /// unless set. [`Event::GaveUp`] reports it;
    /// [`Client::wait_logged_on`](crate::Client::wait_logged_on) limits only the waiting.
    #[must_use]
    pub fn give_up_after(mut self, limit: Duration) -> Self {
        self.give_up_after = Some(limit);
        self
    }

    /// Sends each message's sequence as its command id, for servers whose refusals name nothing
    /// else. Costs a few bytes per message.
    #[must_use]
    pub fn publish_ids(mut self, on: bool) -> Self {
        self.publish_ids = on;
        self
    }

    /// What to do with a server that has less than what was settled before.
    #[must_use]
    pub fn gap_policy(mut self, policy: GapPolicy) -> Self {
        self.delivery.gap = policy;
        self
    }

    /// What to do when the server's figure is beyond anything this store can have sent.
    #[must_use]
    pub fn rebase_policy(mut self, policy: RebasePolicy) -> Self {
        self.delivery.rebase = policy;
        self
    }

    /// Asks the server to conflate acks over this interval, such as `100ms`
    /// (server 5.2.3.0 and later, `docs/protocol.md` §4.2); its default is about a second.
    #[must_use]
    pub fn ack_conflation(mut self, interval: impl Into<String>) -> Self {
        self.ack_conflation = Some(interval.into());
        self
    }

    /// Other logon options, sent verbatim.
    #[must_use]
    pub fn logon_options(mut self, options: impl Into<String>) -> Self {
        self.logon_options = Some(options.into());
        self
    }

    /// Correlation data of the logon.
    #[must_use]
    pub fn logon_correlation(mut self, id: impl Into<String>) -> Self {
        self.logon_correlation = Some(id.into());
        self
    }

    /// The largest message or command that is accepted, in bytes of its payload, its topic and
    /// its other strings; 200 MiB unless set. Larger ones are refused before they are stored or
    /// sent.
    #[must_use]
    pub fn max_message(mut self, bytes: usize) -> Self {
        self.max_message = bytes;
        self
    }

    /// The largest frame accepted from a server, in bytes; 256 MiB unless set.
    #[must_use]
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = bytes;
        self
    }

    /// The most messages and payload bytes that may be sent and not yet answered; a million
    /// messages and 64 MiB unless set. Without a store: the most messages, never more than
    /// 65,536, that may wait for the acks they asked for, or for the failed-write handler. One
    /// more waits for room, or is turned away
    /// ([`PublishFailure::Unacked`](crate::PublishFailure::Unacked)).
    #[must_use]
    pub fn max_in_flight(mut self, messages: u64, bytes: u64) -> Self {
        self.delivery.max_in_flight = messages;
        self.delivery.max_in_flight_bytes = bytes;
        self
    }

    /// The most messages per second that are sent again after a logon; unless set, as many as the
    /// link takes.
    #[must_use]
    pub fn replay_rate(mut self, messages_per_second: u32) -> Self {
        self.delivery.replay_rate = Some(messages_per_second);
        self
    }

    /// How many links in a row must be lost with the same first unsettled message before it is
    /// reported as stalled; 3 unless set.
    #[must_use]
    pub fn stall_after(mut self, links: u32) -> Self {
        self.delivery.stall_after = links;
        self
    }

    /// Starts the client. It accepts publishes at once, whether or not a server can be reached,
    /// and connects in the background, for ever.
    ///
    /// # Errors
    /// The description cannot be used, or threads that the client needs cannot be made. Nothing
    /// was started.
    ///
    /// What earlier runs left is reported only after this has returned, on any runtime, so that
    /// handlers can use the client. The failed-write handler (without one, the last-chance
    /// handler) is called when the future is dropped, which `.await` does, or with the first call
    /// of [`Client`] that waits for handlers.
    pub fn open(self) -> impl Future<Output = Result<Client, OpenError>> + Send + Unpin {
        Opening::new(move || self.start())
    }

    /// Starts the client; what earlier runs left is reported when the second value is dropped.
    pub(crate) fn start(mut self) -> Result<(Client, Release), OpenError> {
        let runtime = match self.runtime.take() {
            Some(handle) => handle,
            None => Handle::try_current().map_err(|_| OpenError::NoRuntime)?,
        };
        let handlers_on = self.handlers_on.take().unwrap_or_else(|| runtime.clone());
        self.check()?;
        for limit in [
            &mut self.connect_timeout,
            &mut self.logon_timeout,
            &mut self.command_timeout,
        ]
        .into_iter()
        .chain(&mut self.heartbeat)
        {
            *limit = (*limit).min(YEAR);
        }
        let sampled = Arc::<Mutex<Sampled>>::default();
        let Carried {
            carrier,
            servers,
            desk,
            slot,
        } = self.carried(&sampled)?;
        let admits = match &carrier {
            Carrier::Amps(_) => None,
            Carrier::Other(transport) => transport.admits(),
        };
        let helper = self.store.as_ref().map(|_| Helper::start("amps device"));
        let helper = helper
            .transpose()
            .map_err(|source| OpenError::NoThread { source })?;
        let (mailbox, inbox) = Mailbox::new();
        let (unhandled, unhandled_acks) = mpsc::channel(UNHANDLED);
        let (events, early) = broadcast::channel(EVENTS);
        let room = Arc::new(Notify::new());
        let (store, queue) = match self.store.clone() {
            Some(store) => (store, None),
            None => {
                let queue = Queue::new(&self.name, self.delivery.max_in_flight);
                let queue = Arc::new(queue);
                (queue.clone() as Arc<dyn PublishStore>, Some(queue))
            }
        };
        let status = LinkStatus {
            servers: servers.len(),
            ..LinkStatus::default()
        };
        let shared = Arc::new(Shared {
            name: self.name.clone(),
            meter: Meter::new(&self.name),
            helper,
            watched: Arc::new(Watched::new(store.clone())),
            queue: queue.clone(),
            mailbox,
            desk,
            start: Instant::now(),
            room,
            status: watch::Sender::new(status),
            at_open: self.tell_what_was_found(),
            standing: Mutex::default(),
            events,
            early: Some(early).into(),
            command_timeout: self.command_timeout,
            end: Default::default(),
            closed: AtomicBool::new(false),
            sync_failed: AtomicBool::new(false),
            store_gone: AtomicBool::new(false),
            unsent: AtomicU64::new(0),
            totals: Default::default(),
            uncounted: Default::default(),
            offers: Offers::default(),
            unheard: Default::default(),
            max_message: self.max_message,
            admits,
        });
        let observed = Arc::downgrade(&shared);
        store.observe(Arc::new(move |signal| match observed.upgrade() {
            Some(shared) => {
                shared.signal(signal);
                ControlFlow::Continue(())
            }
            None => ControlFlow::Break(()),
        }));
        self.tell_of_refusals(store.as_ref());
        let span = tracing::info_span!("amps_client", client = %self.name);
        let has_handler = self.handler.is_some();
        let handler_task = self
            .handler
            .take()
            .map(|handler| {
                offer_refusals(Offering::new(shared.clone()), handler).instrument(span.clone())
            })
            .map(|offering| handlers_on.spawn(offering));
        let handler = self.last_chance.take().unwrap_or_else(|| {
            Arc::new(|ack| {
                // For those of earlier runs one line was logged already.
                if !ack.earlier_run {
                    tracing::warn!(%ack, "nothing takes it");
                }
            })
        });
        let last_chance = last_chance(&shared, unhandled_acks, handler);
        handlers_on.spawn(last_chance.instrument(span.clone()));
        let backoff = self
            .backoff
            .take()
            .unwrap_or_else(|| Box::new(Backoff::default().seed(seed(&self.name))));
        let config = amps_delivery::Config {
            delivery: self.delivery.clone(),
            connect_timeout: self.connect_timeout,
            give_up_after: self.give_up_after,
            ack_deadline: self.ack_deadline.min(YEAR),
            require: self.require.take(),
        };
        let backoff = Box::new(CarefulDelays(backoff));
        let driver = Driver {
            shared: shared.clone(),
            engine: match queue {
                None => Engine::new(store.as_ref(), config, backoff, Now::default()),
                Some(queue) => Engine::without_store(queue, config, backoff, Now::default()),
            },
            store,
            has_handler,
            servers,
            slot,
            inbox,
            unhandled,
            handler_task,
            watch: DeathWatch::new(shared.clone()),
            work: Work::new(sampled),
        };
        runtime.spawn(driver.run(carrier).instrument(span));
        let release = Release::new(Arc::downgrade(&shared));
        let client = Client {
            _alive: Arc::new(Alive(shared.clone())),
            shared,
        };
        Ok((client, release))
    }

    fn check(&self) -> Result<(), OpenError> {
        check_name(&self.name)?;
        if let Some(store) = &self.store {
            let found = store.client_name();
            if found != self.name {
                return Err(OpenError::WrongClientName {
                    found,
                    wanted: self.name.clone(),
                });
            }
        }
        let options = |error: &str| Err(OpenError::Options(error.to_owned()));
        let whole = |interval: Duration| interval.as_secs() > 0 && interval.subsec_nanos() == 0;
        if !self.heartbeat.is_none_or(whole) {
            return options("the heartbeat interval must be one or more whole seconds");
        }
        if self.chooser.is_some() && !self.servers.is_empty() {
            return options("servers were given, and a chooser that would not use them");
        }
        if self.transport.is_some() {
            let authenticates = self.servers.iter().any(|(_, who)| who.is_some());
            if self.chooser.is_some() || self.connector.is_some() || authenticates {
                return options(
                    "choosers, connectors and authenticators are for AMPS; give the transport its own",
                );
            }
        }
        Ok(())
    }

    fn tell_what_was_found(&self) -> Vec<Event> {
        let report = self.store.as_ref().and_then(|store| store.recovery());
        let found = report.map(found_at_open).unwrap_or_default();
        for event in &found {
            tracing::warn!(
                found = %found_in_words(event),
                "found when the store was opened"
            );
        }
        found
    }

    fn tell_of_refusals(&self, store: &dyn PublishStore) {
        let waiting = store.bounds().rejections;
        if waiting > 0 && self.handler.is_none() {
            tracing::warn!(
                waiting,
                "refused messages wait in the store, and there is no failed-write handler"
            );
        }
    }
}

impl Client {
    /// Begins to describe a client with this name. The name is its identity at the server, and
    /// that of its sequence numbers: two live publishers must never share one.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Whether a client may have this name, before anything is created for it.
    ///
    /// # Errors
    /// [`OpenError::BadClientName`], as [`Builder::open`] would say.
    pub fn check_name(name: &str) -> Result<(), OpenError> {
        check_name(name)
    }
}

fn check_name(name: &str) -> Result<(), OpenError> {
    let bad = |c: char| c.is_control() || c == '[' || c == ']';
    match name.is_empty() || name.chars().any(bad) {
        true => Err(OpenError::BadClientName(name.to_owned())),
        false => Ok(()),
    }
}

/// Different clients should not draw the same jitter.
fn seed(name: &str) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(name)
}
