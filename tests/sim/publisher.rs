//! A publisher: a disk, and sometimes a process that runs the real store, delivery and
//! session on it. It does what the driver does, and checks everything it is told.

mod judge;
mod process;
mod socket;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use amps_client::Backoff;
use amps_client::chooser::{Authenticating, Authenticator, Credentials, RoundRobin, Server};
use amps_client::delivery::{Config, Note, Now};
use amps_client::protocol::FrameDecoder;
use amps_client::session::SessionConfig;
use amps_client::testkit::Amps;
use amps_client::uri::Uri;
use amps_delivery::{Config as EngineConfig, Engine, Job, JobDone};
use amps_store::testkit::{Cut, SimDisk, has_failed, last_ordinal};
use amps_store::{OpenError, Options, PublishStore, Store};

use super::Rng;
use super::ledger::{Book, Wires};
use super::link::Link;
use super::server::Model;
use socket::{Points, Socket, Sockets};
pub use watch::Counts;
use watch::Watch;

/// The process died.
#[derive(Debug)]
pub struct Died;

/// Everything around a publisher.
pub struct Around<'a> {
    pub seed: u64,
    pub now: Duration,
    pub rng: &'a mut Rng,
    pub servers: &'a mut [Model],
    pub links: &'a mut BTreeMap<u64, Link>,
    pub next_link: &'a mut u64,
    pub wires: &'a mut Wires,
    pub latency: Duration,
    pub trace: &'a mut Option<Vec<String>>,
}

impl Around<'_> {
    fn delay(&mut self) -> Duration {
        let most = self.latency.as_micros() as u64;
        self.now + Duration::from_micros(self.rng.below(most + 1))
    }
}

macro_rules! trace {
    ($around:expr, $($format:tt)*) => {
        if let Some(trace) = $around.trace.as_mut() {
            trace.push(format!("{:>9.3} {}", $around.now.as_secs_f64(), format!($($format)*)));
        }
    };
}
pub(crate) use trace;

/// How a publisher is set up.
#[derive(Clone)]
pub struct Settings {
    pub name: String,
    pub store: Options,
    pub delivery: Config,
    pub heartbeat: Option<Duration>,
    pub publish_ids: bool,
    pub servers: Vec<usize>,
    /// The handler declines one refusal in so many; 0: none.
    pub declines: u64,
    /// The handler takes no refusal at all.
    pub no_handler: bool,
    /// Another publisher may use the name: what a server holds under it proves little.
    pub shared: bool,
    /// The device takes its time now and then, longer than it takes to lose a link and get
    /// another.
    pub slow_device: bool,
    /// The server's refusals name nobody, and its next success covers what it refused.
    pub nameless: bool,
}

impl Settings {
    pub fn new(name: &str) -> Self {
        Settings {
            name: name.to_owned(),
            store: Options::new().capacity(1 << 20).client_name(name),
            delivery: Config::default(),
            heartbeat: Some(Duration::from_secs(1)),
            publish_ids: false,
            servers: vec![0],
            declines: 0,
            no_handler: false,
            shared: false,
            slow_device: false,
            nameless: false,
        }
    }
}

pub struct Publisher {
    pub id: usize,
    pub settings: Settings,
    pub disk: SimDisk,
    pub process: Option<Process>,
    pub book: Book,
    /// Counts the processes.
    pub run: u64,
    /// Where the process dies.
    pub points: Points,
    /// When a dead process is started again.
    pub starts_at: Option<Duration>,
    pub notes: Vec<Note>,
    /// What the handler was given: sequence, whether late, whether from an earlier run.
    pub handled: Vec<(u64, bool, bool)>,
    pub unattributed: Vec<(Option<u64>, String)>,
    pub counts: Counts,
    /// Called persisted although refused: by a server whose refusals name nobody.
    pub misnamed: usize,
    closed: bool,
    rebase_in_doubt: bool,
    /// What was durable when the last process died.
    durable: u64,
    /// Settlements of this run may be in memory only.
    failed: bool,
    server: usize,
}

pub struct Process {
    pub store: Store,
    pub engine: Engine,
    transport: Amps,
    sockets: Sockets,
    chooser: RoundRobin,
    server: Server,
    pub link: Option<u64>,
    socket: Option<Socket>,
    /// Frames that were read, as evidence.
    decoder: FrameDecoder,
    job: Option<UnderWay>,
    /// Challenges answered since the last look.
    challenges: Arc<AtomicU64>,
    notes_before: usize,
    is_closing: bool,
    /// It ended, and this is what was handed over.
    over: Option<u64>,
    flushes: BTreeMap<u64, (u64, Option<Duration>)>,
    pub flushed: Vec<(u64, u64)>,
    next_flush: u64,
    declined: BTreeSet<u64>,
    sync_failed: bool,
    /// When the device has done what was begun.
    device_done: Option<Duration>,
    /// The store had nothing to do.
    idle: bool,
    first_of_run: u64,
    /// The highest message that may have been sent, by this process or before.
    reach: u64,
    read: Read,
    watch: Watch,
    /// Rebases that are left to this run: one, and one for each that was allowed.
    rebases_left: u32,
    /// Carry out no store jobs.
    pub hold_jobs: bool,
}

/// What was read on the link in use.
#[derive(Debug, Default)]
struct Read {
    is_logged_on: bool,
    logon: Option<u64>,
    /// Figures that were read while messages could go out, and must count by now.
    fresh: Vec<u64>,
    acked: BTreeSet<u64>,
    acked_ids: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    refused_ids: BTreeSet<u64>,
}

/// A store call that waits for the device.
struct UnderWay {
    job: Job,
    done_at: Duration,
    /// When the engine learns of it.
    told_at: Duration,
    done: Option<JobDone>,
}

/// Servers are told apart by port, from here on.
const PORT: u16 = 1000;

/// Logs on as somebody who mistypes the answer to a challenge now and then.
struct Ann {
    rng: Mutex<Rng>,
    challenges: Arc<AtomicU64>,
}

impl Authenticator for Ann {
    fn authenticate<'a>(&'a self, _: &'a Uri, _: Credentials) -> Authenticating<'a> {
        Box::pin(async { Ok(credentials("pw")) })
    }

    fn answer<'a>(&'a self, _: &'a Uri, challenge: Credentials) -> Authenticating<'a> {
        let mut rng = self.rng.lock().unwrap_or_else(PoisonError::into_inner);
        let password = if rng.one_in(4) { "wp" } else { "pw" };
        self.challenges.fetch_add(1, Ordering::Relaxed);
        let asked = challenge.password.unwrap_or_default();
        let answer = credentials(&format!("{asked}:{password}"));
        Box::pin(async { Ok(answer) })
    }
}

fn credentials(password: &str) -> Credentials {
    Credentials {
        user: Some("ann".to_owned()),
        password: Some(password.to_owned()),
    }
}

impl Publisher {
    pub fn new(id: usize, settings: Settings) -> Self {
        Publisher {
            id,
            settings,
            disk: SimDisk::new(),
            process: None,
            book: Book::default(),
            run: 0,
            points: Points::default(),
            starts_at: None,
            notes: Vec::new(),
            handled: Vec::new(),
            unattributed: Vec::new(),
            counts: Counts::default(),
            misnamed: 0,
            closed: false,
            rebase_in_doubt: false,
            durable: 0,
            failed: false,
            server: 0,
        }
    }

    /// Starts a process: opens the store, and checks that it holds what it must.
    ///
    /// # Errors
    /// As the store's open, with a planned fault of the disk.
    pub fn start(&mut self, around: &mut Around<'_>) -> Result<(), OpenError> {
        self.disk.clear_faults();
        let store = self.disk.open(self.settings.store.clone())?;
        self.run += 1;
        let numbers = store.numbers();
        if let Some(rebase) = numbers.rebase
            && std::mem::take(&mut self.rebase_in_doubt)
            && self.book.rebase != numbers.rebase
        {
            self.book.rebased(rebase);
        }
        if !std::mem::take(&mut self.closed) {
            assert!(
                numbers.found_grant >= self.book.grant,
                "grant {} found, {} was durable",
                numbers.found_grant,
                self.book.grant
            );
        }
        self.book.grant = numbers.found_grant;
        self.book.counts = (0, 0, 0);
        let highest = self.book.sent.keys().next_back().copied().unwrap_or(0);
        assert!(
            numbers.found_grant >= highest,
            "{highest} was on the wire, and what may have been sent ends at {}",
            numbers.found_grant
        );
        assert!(
            numbers.first_of_run > highest,
            "numbers on the wire would be given out again"
        );
        trace!(
            around,
            "p{} run {} opens: {}",
            self.id,
            self.run,
            store.report()
        );
        let session = SessionConfig {
            client_name: self.settings.name.clone(),
            logon_options: None,
            logon_correlation: None,
            heartbeat: self.settings.heartbeat,
            logon_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            stored: true,
            publish_ids: self.settings.publish_ids,
        };
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
        let backoff = backoff.seed(around.rng.bits());
        let challenges = Arc::new(AtomicU64::new(0));
        let ann = Arc::new(Ann {
            rng: Mutex::new(Rng::new(around.rng.bits())),
            challenges: challenges.clone(),
        });
        let servers = self.settings.servers.iter().map(|server| {
            let port = PORT + u16::try_from(*server).expect("few servers");
            Server {
                uri: format!("tcp://sim:{port}/amps")
                    .parse()
                    .expect("an address"),
                authenticator: Some(ann.clone()),
            }
        });
        let servers: Vec<Server> = servers.collect();
        let sockets = Sockets::default();
        let config = EngineConfig {
            delivery: self.settings.delivery.clone(),
            ..EngineConfig::default()
        };
        self.process = Some(Process {
            engine: Engine::new(&store, config, Box::new(backoff), at(around.now)),
            transport: Amps::new(Arc::new(sockets.clone()), session),
            sockets,
            server: servers[0].clone(),
            chooser: RoundRobin::new(servers),
            link: None,
            socket: None,
            decoder: FrameDecoder::new(),
            job: None,
            challenges,
            notes_before: self.notes.len(),
            is_closing: false,
            over: None,
            flushes: BTreeMap::new(),
            flushed: Vec::new(),
            next_flush: 0,
            declined: BTreeSet::new(),
            sync_failed: false,
            device_done: None,
            idle: false,
            first_of_run: numbers.first_of_run,
            reach: numbers.found_grant,
            read: Read::default(),
            watch: Watch::new(&self.settings.delivery, numbers.found_grant, &self.book),
            rebases_left: 1,
            hold_jobs: false,
            store,
        });
        self.starts_at = None;
        Ok(())
    }

    /// The process dies; the kernel closes its link, unless the machine went with it.
    pub fn kill(&mut self, around: &mut Around<'_>) {
        let Some(process) = self.process.take() else {
            return;
        };
        self.failed |= has_failed(&process.store);
        self.durable = process.store.durable().ordinal;
        if let Some(id) = process.link
            && let Some(link) = around.links.get_mut(&id)
        {
            // What the kernel had of the last write may end in the middle of a frame.
            let mut out = process
                .socket
                .as_ref()
                .map(Socket::take_outgoing)
                .unwrap_or_default();
            out.truncate(around.rng.below(out.len() as u64 + 1) as usize);
            link.write(around.now, around.now, out);
            link.up.end(around.now);
            self.counts.heard(&link.tap);
        }
        self.counts += process.watch.counts;
        self.points.live();
        trace!(around, "p{} dies", self.id);
    }

    /// Kills the process and opens the store again: a process crash loses nothing.
    ///
    /// # Errors
    /// As the store's open.
    pub fn restart(&mut self, around: &mut Around<'_>) -> Result<(), OpenError> {
        self.kill(around);
        self.start(around)?;
        self.compare(None);
        Ok(())
    }

    /// Kills the process, cuts the power, opens the store again: what was durable is there.
    ///
    /// # Errors
    /// As the store's open.
    pub fn power_cut(&mut self, around: &mut Around<'_>, cut: Cut) -> Result<(), OpenError> {
        self.kill_machine(around);
        let durable = self.durable;
        self.disk.power_cut(cut, around.rng);
        trace!(around, "p{} power cut {cut:?}, durable {durable}", self.id);
        self.start(around)?;
        self.compare(Some(durable));
        Ok(())
    }

    fn kill_machine(&mut self, around: &mut Around<'_>) {
        if let Some(link) = self.process.as_ref().and_then(|p| p.link)
            && let Some(link) = around.links.get_mut(&link)
        {
            // Nobody tells the server.
            link.up.lost = true;
            link.down.lost = true;
        }
        self.kill(around);
    }

    /// Puts an old copy in place of the store and opens it; the application lost what it
    /// published since.
    ///
    /// # Errors
    /// As the store's open.
    pub fn restore(
        &mut self,
        around: &mut Around<'_>,
        copy: Vec<u8>,
        mut book: Book,
    ) -> Result<(), OpenError> {
        self.kill_machine(around);
        self.disk.restore(copy);
        book.lineage = self.book.lineage + 1;
        book.owners.clear();
        // What the original sent since went out all the same.
        for (sequence, wire) in &self.book.sent {
            if book.messages.contains_key(sequence) {
                book.elsewhere.insert(*sequence, *wire);
            }
        }
        self.book = book;
        self.failed = false;
        trace!(around, "p{} is restored from an old copy", self.id);
        self.start(around)?;
        self.compare(None);
        Ok(())
    }

    /// Closes the store cleanly, and opens it again.
    ///
    /// # Errors
    /// As the store's open.
    pub fn close(&mut self, around: &mut Around<'_>) -> Result<(), OpenError> {
        let Some(process) = &mut self.process else {
            return Ok(());
        };
        process.is_closing = true;
        process.engine.stop(&process.store, at(around.now));
        self.outputs(around);
        let process = self.process.as_mut().expect("runs");
        let handed_over = process.over.expect("it is over");
        let closed = process.store.close(handed_over).is_ok();
        trace!(
            around,
            "p{} closes: {closed}, handed over {handed_over}", self.id
        );
        // Even a close that fails may have lowered the grant to what was handed over.
        self.closed = true;
        self.kill(around);
        self.start(around)?;
        self.compare(None);
        Ok(())
    }

    /// Whether everything is settled, and every refusal was handled.
    pub fn is_done(&self) -> bool {
        if self.process.is_none() && self.starts_at.is_none() {
            // It is over, not on its way back.
            return true;
        }
        self.process.is_some()
            && self.book.unsettled().next().is_none()
            && (self.settings.no_handler || self.book.waiting().is_empty())
    }

    /// What happened in all runs, this one included.
    pub fn counts(&self) -> Counts {
        let mut counts = self.counts;
        if let Some(process) = &self.process {
            counts += process.watch.counts;
        }
        counts
    }

    pub fn last_ordinal(&self) -> u64 {
        last_ordinal(&self.process.as_ref().expect("runs").store)
    }
}

fn at(now: Duration) -> Now {
    Now {
        at: now,
        unix_micros: now.as_micros() as u64,
    }
}
