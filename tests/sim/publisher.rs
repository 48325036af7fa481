//! A publisher: a disk, and sometimes a process that runs the real store, delivery and
//! session on it. It does what the driver does, and checks everything it is told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use amps_client::delivery::{Config, Delivery, Input, Note, Now, Output};
use amps_client::protocol::{AckKind, FrameDecoder, Header, Status};
use amps_client::session::{Credentials, Received, Session, SessionConfig};
use amps_client::{Backoff, DelayStrategy as _, Via, testkit};
use amps_store::testkit::{Cut, SimDisk, has_failed, last_ordinal, step};
use amps_store::{
    AppendError, Batch, Envelope, Level, MAX_REASON, OpenError, Options, PublishStore, Rebase,
    Store, StoreError, StoredMessage,
};

use super::Rng;
use super::ledger::{self, Book, Fate, Refusal, Wires};
use super::link::{Arrival, Link};
use super::server::Model;

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
    /// The process dies at the so-many-th point from now.
    pub dies_in: Option<u32>,
    /// When a dead process is started again.
    pub starts_at: Option<Duration>,
    pub notes: Vec<Note>,
    /// What the handler was given: sequence, whether late, whether from an earlier run.
    pub handled: Vec<(u64, bool, bool)>,
    pub unattributed: Vec<(Option<u64>, String)>,
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
    pub delivery: Delivery,
    pub session: Session,
    backoff: Backoff,
    pub link: Option<u64>,
    logged_on_at: Option<Duration>,
    settled_before: u64,
    decoder: FrameDecoder,
    out: Vec<u8>,
    jobs: VecDeque<Job>,
    running: Option<(Duration, Job)>,
    pub retry_at: Duration,
    flushes: BTreeMap<u64, (u64, Option<Duration>)>,
    pub flushed: Vec<(u64, u64)>,
    next_flush: u64,
    declined: BTreeSet<u64>,
    drop_link: bool,
    sync_failed: bool,
    first_of_run: u64,
    /// The highest message that may have been sent, by this process or before.
    reach: u64,
    read: Read,
    /// Rebases that are left to this run: one, and one for each that was allowed.
    rebases_left: u32,
    /// Carry out no store jobs.
    pub hold_jobs: bool,
}

/// What was read on the link in use.
#[derive(Debug, Default)]
struct Read {
    logon: Option<u64>,
    acked: BTreeSet<u64>,
    acked_ids: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    refused_ids: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Job {
    Raise(u64),
    Rebase(u64),
}

enum JobDone {
    Raised(Result<(), StoreError>),
    Rebased(Result<Rebase, StoreError>),
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
            dies_in: None,
            starts_at: None,
            notes: Vec::new(),
            handled: Vec::new(),
            unattributed: Vec::new(),
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
        let session = Session::new(SessionConfig {
            client_name: self.settings.name.clone(),
            logon_options: None,
            logon_correlation: None,
            heartbeat: self.settings.heartbeat,
            logon_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            stored: true,
            publish_ids: self.settings.publish_ids,
        });
        let backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(20));
        self.process = Some(Process {
            delivery: Delivery::new(&store, self.settings.delivery.clone()),
            session,
            backoff: backoff.seed(around.rng.bits()),
            link: None,
            logged_on_at: None,
            settled_before: 0,
            decoder: FrameDecoder::new(),
            out: Vec::new(),
            jobs: VecDeque::new(),
            running: None,
            retry_at: around.now,
            flushes: BTreeMap::new(),
            flushed: Vec::new(),
            next_flush: 0,
            declined: BTreeSet::new(),
            drop_link: false,
            sync_failed: false,
            first_of_run: numbers.first_of_run,
            reach: numbers.found_grant,
            read: Read::default(),
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
            let part = around.rng.below(process.out.len() as u64 + 1) as usize;
            link.up.send(around.now, process.out[..part].to_vec());
            link.up.end(around.now);
        }
        self.dies_in = None;
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
        let handed_over = process.delivery.handed_over();
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

    /// Compares what the store holds with the book. `durable`: what a power cut had to
    /// leave; none: nothing was lost.
    fn compare(&mut self, durable: Option<u64>) {
        let failed = std::mem::take(&mut self.failed);
        let store = &self.process.as_ref().expect("open").store;
        let mut found = BTreeMap::new();
        let mut all = Batch::new(usize::MAX, usize::MAX);
        store.read_unsettled(1, u64::MAX, &mut all).expect("intact");
        for message in all.iter() {
            found.insert(message.sequence, message.payload().to_vec());
        }
        let waiting: BTreeMap<u64, String> = store
            .rejections(0, usize::MAX)
            .into_iter()
            .map(|r| (r.sequence, r.reason))
            .collect();
        for (sequence, body) in &found {
            let message = self.book.messages.get(sequence);
            let message = message.unwrap_or_else(|| panic!("message {sequence} is invented"));
            assert!(*body == message.body, "message {sequence} has other bytes");
        }
        for sequence in waiting.keys() {
            assert!(
                self.book.refusals.contains_key(sequence),
                "refusal of {sequence} is invented"
            );
        }
        let book = &mut self.book;
        for (sequence, message) in &mut book.messages {
            let there = found.contains_key(sequence);
            match message.fate {
                Fate::Unsettled if there => {}
                Fate::Unsettled => {
                    let sure = durable.is_none_or(|durable| message.ordinal <= durable);
                    assert!(!sure, "unsettled message {sequence} is gone");
                    message.fate = Fate::Lost;
                }
                Fate::Persisted(_) if there => {
                    assert!(
                        durable.is_some() || failed,
                        "settled message {sequence} is back after a process crash"
                    );
                    message.fate = Fate::Unsettled;
                }
                Fate::Rejected(ordinal) if there => {
                    let sure = survives(ordinal, durable);
                    assert!(!sure, "refused message {sequence} is unsettled again");
                    message.fate = Fate::Unsettled;
                    book.refusals.remove(sequence);
                }
                Fate::Rejected(_) if !waiting.contains_key(sequence) => {
                    // Both went, and with them all that says that the number was used.
                    if durable.is_some_and(|durable| message.ordinal > durable) {
                        message.fate = Fate::Lost;
                        if book.refusals.get(sequence).is_some_and(|r| r.accepted) {
                            book.refusals.remove(sequence);
                        }
                    }
                }
                Fate::Lost => assert!(!there, "lost message {sequence} is back"),
                Fate::Persisted(_) | Fate::Rejected(_) => {}
            }
        }
        let mut gone = Vec::new();
        for (sequence, refusal) in &mut book.refusals {
            let waits = |refusal: &Refusal| {
                let waiting = waiting.get(sequence);
                waiting.is_some_and(|reason| refusal.reason.starts_with(reason))
            };
            while !survives(refusal.ordinal, durable)
                && !waits(refusal)
                && let Some(before) = refusal.before.take()
            {
                *refusal = *before;
            }
            let sure = survives(refusal.ordinal, durable);
            match waiting.get(sequence) {
                Some(reason) => {
                    assert!(
                        !refusal.accepted || durable.is_some() || failed,
                        "refusal of {sequence} is back after it was accepted"
                    );
                    refusal.accepted = false;
                    assert!(
                        refusal.reason.starts_with(reason),
                        "refusal of {sequence}: {reason}"
                    );
                }
                None if refusal.accepted => {}
                None => {
                    assert!(!sure, "refusal of {sequence} is gone");
                    gone.push(*sequence);
                }
            }
        }
        for sequence in gone {
            book.refusals.remove(&sequence);
            if let Some(message) = book.messages.get_mut(&sequence)
                && matches!(message.fate, Fate::Rejected(_))
            {
                let sure = durable.is_none_or(|durable| message.ordinal <= durable);
                assert!(!sure, "message {sequence} went with its refusal");
                message.fate = Fate::Lost;
            }
        }
    }

    /// A place where the process may die.
    fn point(&mut self) -> Result<(), Died> {
        match &mut self.dies_in {
            Some(0) => Err(Died),
            Some(n) => {
                *n -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Publishes one message; `None`: the store took none.
    pub fn publish(&mut self, around: &mut Around<'_>) -> Option<u64> {
        let process = self.process.as_ref()?;
        let next = process.store.bounds().next;
        let body = ledger::body(around.seed, self.id, self.book.lineage, self.run, next);
        self.publish_body(around, body, &[])
    }

    /// Publishes these bytes with a user tag.
    pub fn publish_body(
        &mut self,
        around: &mut Around<'_>,
        body: Vec<u8>,
        tag: &[u8],
    ) -> Option<u64> {
        let process = self.process.as_mut()?;
        let envelope = Envelope {
            user_tag: tag.into(),
            ..Envelope::publish("orders")
        };
        let mut turns = 0;
        let appended = loop {
            match process.store.append(&envelope, &body) {
                Ok(appended) => break appended,
                Err(AppendError::Full { .. }) if turns < 8 => {
                    turns += 1;
                    // A failure shows in has_failed.
                    let _ = step(&process.store);
                }
                Err(
                    AppendError::Full { .. }
                    | AppendError::NoSpace { .. }
                    | AppendError::Store(StoreError::SyncFailed(_)),
                ) => return None,
                Err(error) => panic!("append: {error}"),
            }
        };
        trace!(around, "p{} publishes {}", self.id, appended.sequence);
        self.book
            .appended(appended.sequence, body, appended.ordinal);
        Some(appended.sequence)
    }

    /// Asks for a flush.
    pub fn flush(&mut self, around: &mut Around<'_>, until: Option<Duration>) -> Option<u64> {
        let process = self.process.as_mut()?;
        process.next_flush += 1;
        let id = process.next_flush;
        let through = process.store.bounds().last;
        process.flushes.insert(id, (through, until));
        self.input(around, Input::Flush { id, through, until });
        Some(id)
    }

    /// Everything that is due, once.
    ///
    /// # Errors
    /// The process died on the way.
    pub fn pump(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        if self.process.is_none() {
            return Ok(());
        }
        self.upkeep(around);
        self.jobs(around)?;
        let process = self.process.as_mut().expect("runs");
        match process.link {
            None if around.now >= process.retry_at => self.connect(around),
            None => {
                self.input(around, Input::Tick);
                Ok(())
            }
            Some(id) => self.serve(around, id),
        }?;
        self.offer(around)?;
        self.check_flushes(around);
        Ok(())
    }

    /// When [`pump`](Self::pump) has something to do.
    pub fn deadline(&self) -> Option<Duration> {
        let process = self.process.as_ref()?;
        let job = match (&process.running, process.jobs.is_empty()) {
            _ if process.hold_jobs => None,
            (Some((at, _)), _) => Some(*at),
            (None, false) => Some(Duration::ZERO),
            (None, true) => None,
        };
        let retry = process.link.is_none().then_some(process.retry_at);
        [
            job,
            retry,
            process.session.deadline(),
            process.delivery.deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    fn upkeep(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        if around.rng.one_in(2) {
            // A failure shows in has_failed.
            let _ = step(&process.store);
        }
        if process.store.level() == Level::Disk && around.rng.one_in(2) {
            // A failure shows in has_failed.
            let _ = process.store.request_sync();
        }
        if has_failed(&process.store) && !std::mem::replace(&mut process.sync_failed, true) {
            trace!(around, "p{} cannot sync any more", self.id);
            self.input(around, Input::SyncFailed);
        }
    }

    fn jobs(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let process = self.process.as_mut().expect("runs");
        if process.hold_jobs {
            return Ok(());
        }
        if process.running.is_none()
            && let Some(job) = process.jobs.pop_front()
        {
            let due = match self.settings.slow_device && around.rng.one_in(4) {
                true => around.now + Duration::from_millis(around.rng.below(1500)),
                false => around.delay(),
            };
            process.running = Some((due, job));
        }
        let Some((_, job)) = process.running.take_if(|(due, _)| *due <= around.now) else {
            return Ok(());
        };
        self.point()?;
        let process = self.process.as_mut().expect("runs");
        let done = match job {
            Job::Raise(to) => {
                let raised = process.store.raise_grant(to);
                if raised.is_ok() {
                    self.book.grant = self.book.grant.max(to);
                }
                trace!(around, "p{} grant {to}: {raised:?}", self.id);
                JobDone::Raised(raised)
            }
            Job::Rebase(above) => {
                let rebased = process.store.rebase(above);
                match &rebased {
                    Ok(rebase) => self.book.rebased(*rebase),
                    // The write that failed may have reached the disk all the same.
                    Err(_) => self.rebase_in_doubt = true,
                }
                trace!(around, "p{} rebase above {above}: {rebased:?}", self.id);
                JobDone::Rebased(rebased)
            }
        };
        self.point()?;
        match done {
            JobDone::Raised(result) => self.input(around, Input::GrantRaised(result)),
            JobDone::Rebased(result) => self.input(around, Input::Rebased(result)),
        }
        Ok(())
    }

    fn connect(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let server = self.settings.servers[self.server % self.settings.servers.len()];
        let process = self.process.as_mut().expect("runs");
        process.logged_on_at = None;
        process.settled_before = settled(&process.delivery);
        process.decoder = FrameDecoder::new();
        process.out.clear();
        process.read = Read::default();
        if !around.servers[server].up {
            self.link_ended(around, "the server is down");
            return Ok(());
        }
        let at_server = around.servers[server].connect(around.now);
        let id = *around.next_link;
        *around.next_link += 1;
        let link = Link {
            publisher: self.id,
            server,
            at_server,
            up: Default::default(),
            down: Default::default(),
        };
        around.links.insert(id, link);
        process.link = Some(id);
        trace!(
            around,
            "p{} connects to server {server}, link {id}", self.id
        );
        process
            .session
            .connected(around.now, None, &Credentials::default(), &mut process.out)
            .expect("a small frame");
        self.point()?;
        self.write(around)
    }

    fn serve(&mut self, around: &mut Around<'_>, id: u64) -> Result<(), Died> {
        loop {
            let arrival = match around.links.get_mut(&id) {
                Some(link) => link.down.next(around.now),
                None => Some(Arrival::End),
            };
            match arrival {
                Some(Arrival::Bytes(bytes)) => {
                    // As a socket would: any piece may be read alone.
                    let part = around.rng.below(bytes.len() as u64 + 1) as usize;
                    for piece in [&bytes[..part], &bytes[part..]] {
                        self.process.as_mut().expect("runs").decoder.push(piece);
                        if let Err(why) = self.read(around)? {
                            self.link_ended(around, why);
                            return Ok(());
                        }
                    }
                    self.point()?;
                }
                Some(Arrival::End) => {
                    self.link_ended(around, "closed");
                    return Ok(());
                }
                None => break,
            }
        }
        let process = self.process.as_mut().expect("runs");
        if process
            .session
            .deadline()
            .is_some_and(|at| around.now >= at)
        {
            let ticked = process
                .session
                .tick(around.now, &mut process.out, &mut |_| {});
            if let Err(expired) = ticked {
                let why = format!("{expired:?}");
                self.link_ended(around, &why);
                return Ok(());
            }
        }
        self.input(around, Input::Tick);
        if std::mem::take(&mut self.process.as_mut().expect("runs").drop_link) {
            self.link_ended(around, "dropped");
            return Ok(());
        }
        self.fill(around)?;
        self.write(around)
    }

    fn read(&mut self, around: &mut Around<'_>) -> Result<Result<(), &'static str>, Died> {
        loop {
            let process = self.process.as_mut().expect("runs");
            let Some(frame) = process.decoder.next_frame().expect("servers send frames") else {
                break;
            };
            process.read.take_in(&frame);
            let now = at(around.now);
            let mut refused = false;
            let (delivery, store) = (&mut process.delivery, &process.store);
            let read = &mut process.read;
            let logged_on_at = &mut process.logged_on_at;
            let name = self.id;
            process
                .session
                .receive(
                    around.now,
                    &frame,
                    &mut process.out,
                    &mut |item| match item {
                        Received::Ack(ack) => {
                            trace!(around, "p{name} reads {ack:?}");
                            delivery.handle(store, now, Input::Ack(ack));
                        }
                        Received::LoggedOn { figure } => {
                            trace!(around, "p{name} is logged on, figure {figure:?}");
                            read.logon = figure;
                            *logged_on_at = Some(around.now);
                            delivery.handle(store, now, Input::LoggedOn { figure });
                        }
                        Received::LogonRefused(_) => refused = true,
                        _ => {}
                    },
                )
                .expect("servers send headers");
            self.outputs(around);
            self.point()?;
            if refused {
                return Ok(Err("logon refused"));
            }
            if self.process.as_mut().expect("runs").drop_link {
                break;
            }
        }
        self.input(around, Input::AcksEnd);
        Ok(Ok(()))
    }

    fn fill(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        // A socket takes so much at a time.
        let most = 1 + around.rng.below(20);
        let waiting = self
            .process
            .as_ref()
            .and_then(|p| around.links.get(&p.link?))
            .map_or(0, |link| link.up.waiting());
        if waiting > 16 << 10 {
            return Ok(());
        }
        let mut batch = Batch::new(most as usize, 16 << 10);
        let process = self.process.as_mut().expect("runs");
        let outgoing = process
            .delivery
            .next_to_send(&process.store, at(around.now), &mut batch)
            .expect("intact");
        for next in outgoing {
            let process = self.process.as_mut().expect("runs");
            if process.store.level() == Level::Disk {
                let durable = process.store.durable().sequence;
                assert!(
                    next.sequence <= durable,
                    "{} goes out, {durable} is durable",
                    next.sequence
                );
            }
            self.book.went_out(next.sequence, next.wire);
            process.reach = process.reach.max(next.sequence);
            let body = next.message.payload();
            assert!(
                body == self.book.messages[&next.sequence].body,
                "other bytes go out as {}",
                next.sequence
            );
            around.wires.went_out(&self.settings.name, body, next.wire);
            trace!(
                around,
                "p{} sends {} as {}", self.id, next.sequence, next.wire
            );
            testkit::encode(&next, self.settings.publish_ids, &mut process.out)
                .expect("a small frame");
            self.point()?;
        }
        self.outputs(around);
        Ok(())
    }

    fn write(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let at = around.delay();
        let process = self.process.as_mut().expect("runs");
        let Some(link) = process.link.and_then(|id| around.links.get_mut(&id)) else {
            return Ok(());
        };
        if !process.out.is_empty() {
            link.up.send(at, std::mem::take(&mut process.out));
            process.session.wrote(around.now);
        }
        Ok(())
    }

    fn link_ended(&mut self, around: &mut Around<'_>, why: &str) {
        let process = self.process.as_mut().expect("runs");
        trace!(around, "p{} loses its link: {why}", self.id);
        if let Some(link) = process.link.take().and_then(|id| around.links.get_mut(&id)) {
            link.up.end(around.now);
        }
        process.session.disconnected(&mut |_| {});
        process.drop_link = false;
        process.out.clear();
        self.input(around, Input::LinkLost);
        let process = self.process.as_mut().expect("runs");
        let healthy = Duration::from_secs(10);
        if settled(&process.delivery) > process.settled_before
            || process
                .logged_on_at
                .is_some_and(|at| around.now - at >= healthy)
        {
            process.backoff.reset();
        }
        self.server += 1;
        let delay = match process.delivery.wants_longest_delay() {
            true => process.backoff.longest_delay(),
            false => process.backoff.next_delay(),
        };
        process.retry_at = around.now + delay.expect("it never gives up");
    }

    /// Hands something to delivery, and carries out what it decides.
    pub fn input(&mut self, around: &mut Around<'_>, input: Input<'_>) {
        let process = self.process.as_mut().expect("runs");
        if let Input::AllowRebase = input {
            process.rebases_left = 1;
        }
        process
            .delivery
            .handle(&process.store, at(around.now), input);
        self.outputs(around);
    }

    fn outputs(&mut self, around: &mut Around<'_>) {
        while let Some(output) = self.process.as_mut().expect("runs").delivery.poll() {
            self.output(around, output);
        }
        let process = self.process.as_ref().expect("runs");
        let totals = process.delivery.totals();
        assert_eq!(
            (totals.persisted, totals.persisted_at_logon, totals.rejected),
            self.book.counts,
            "the totals are not what the outcomes say"
        );
    }

    fn output(&mut self, around: &mut Around<'_>, output: Output) {
        let process = self.process.as_mut().expect("runs");
        match output {
            Output::RaiseGrant { to } => process.jobs.push_back(Job::Raise(to)),
            Output::Rebase { above } => process.jobs.push_back(Job::Rebase(above)),
            Output::DropLink { .. } => process.drop_link = true,
            Output::SettledThrough { through, via } => {
                trace!(around, "p{} settles through {through} via {via:?}", self.id);
                for sequence in self.book.unsettled_through(through) {
                    self.persisted(around, sequence, via);
                }
            }
            Output::Settled { sequence, via } => {
                trace!(around, "p{} settles {sequence} via {via:?}", self.id);
                self.persisted(around, sequence, via);
            }
            Output::Refused {
                sequence,
                reason,
                late,
                ordinal,
                ..
            } => {
                self.refused(around, sequence, reason, late, ordinal);
            }
            Output::RefusalNotLogged { .. } => {}
            Output::Unattributed { figure, reason } => self.unattributed.push((figure, reason)),
            Output::Flushed { id, left } => {
                let (target, until) = process.flushes.remove(&id).expect("it was asked for");
                let open = self.book.unsettled_through(target).len() as u64;
                assert_eq!(left, open, "flush through {target}");
                let over = until.is_some_and(|until| around.now >= until);
                assert!(left == 0 || over, "a flush ends early");
                process.flushed.push((id, left));
            }
            Output::Note(note) => {
                trace!(around, "p{} notes {note:?}", self.id);
                if let Note::Rebased { from, .. } = note {
                    process.reach = from - 1;
                    let left = process.rebases_left.checked_sub(1);
                    process.rebases_left = left.expect("a second rebase that nobody asked for");
                }
                self.notes.push(note);
            }
            other => panic!("unknown output {other:?}"),
        }
    }

    /// A message is called persisted: there must be evidence.
    fn persisted(&mut self, around: &Around<'_>, sequence: u64, via: Via) {
        let process = self.process.as_ref().expect("runs");
        let book = &self.book;
        let wire = book.sent.get(&sequence).or(book.elsewhere.get(&sequence));
        let wire = wire.copied();
        // Another's figure within what may have been sent cannot be told from our own.
        let unknown = self.settings.shared.then_some(0);
        let wire = wire
            .or(unknown)
            .unwrap_or_else(|| panic!("{sequence} is settled and was never sent"));
        let read = &process.read;
        // What a server says beyond that is not about this store.
        let reach = book.wire(process.reach);
        let covered = match via {
            Via::Ack => {
                let figure = read.acked.range(wire..).next();
                figure.is_some_and(|figure| *figure <= reach) || read.acked_ids.contains(&sequence)
            }
            // Below the first number of a rebase a figure says nothing new, and everything
            // below its first message was settled before (charter §5.3).
            Via::Logon => read.logon.is_some_and(|f| {
                let before = |r: Rebase| sequence < r.from && f < book.wire(r.from);
                wire <= f && f <= reach || book.rebase.is_some_and(before)
            }),
        };
        assert!(
            covered,
            "{sequence} ({wire} on the wire) is settled via {via:?} by {read:?}"
        );
        let message = self.book.messages.get_mut(&sequence).expect("published");
        assert_eq!(message.fate, Fate::Unsettled, "{sequence} is settled twice");
        message.fate = Fate::Persisted(via);
        match via {
            Via::Ack => self.book.counts.0 += 1,
            Via::Logon => self.book.counts.1 += 1,
        }
        if self.settings.shared {
            return;
        }
        let name = &self.settings.name;
        let link = process.link.and_then(|id| around.links.get(&id));
        let server = link.map(|link| link.server);
        let holds = |server: usize| around.servers[server].holds(name, &message.body);
        let wires = around.wires.of(name, &message.body);
        let refused = |server: usize| around.servers[server].refused(name, &wires);
        let mut all = self.settings.servers.iter().copied();
        if self.settings.nameless && server.is_some_and(&refused) {
            self.misnamed += 1;
        }
        let true_word = match via {
            // One that forgot a refusal covers its number with the next success.
            Via::Ack if all.len() == 1 => server.is_some_and(|server| {
                let forgot = around.servers[server].forgets > 0;
                holds(server) || (forgot || self.settings.nameless) && refused(server)
            }),
            // A replica that was given what followed drops the message as a duplicate and
            // covers it all the same: the word of the servers, not the client's.
            Via::Ack => all.any(|server| holds(server) || refused(server)),
            Via::Logon => all.any(|server| holds(server) || refused(server)),
        };
        assert!(
            true_word,
            "{sequence} is called persisted via {via:?}, and no server has it"
        );
        message.was_persisted = true;
    }

    fn refused(
        &mut self,
        around: &mut Around<'_>,
        sequence: u64,
        reason: String,
        late: bool,
        ordinal: Option<u64>,
    ) {
        trace!(
            around,
            "p{} is refused {sequence}, late {late}, ordinal {ordinal:?}", self.id
        );
        let process = self.process.as_ref().expect("runs");
        let book = &self.book;
        let wire = book.sent.get(&sequence).or(book.elsewhere.get(&sequence));
        let wire = wire.copied();
        if self.settings.shared {
            // Another's refusal may bear a number that an unclean stop skipped here.
            self.book.skipped(sequence);
        }
        let message = self.book.messages.get_mut(&sequence).expect("published");
        let read = &process.read;
        let said = wire.is_some_and(|wire| read.refused.contains(&wire))
            || read.refused_ids.contains(&sequence);
        let given_up = reason.starts_with("given up");
        if given_up {
            self.book.gave_up.insert(sequence);
        }
        let said = said || self.settings.shared;
        assert!(said || given_up, "{sequence} was refused by nobody");
        if !self.settings.shared
            && !given_up
            && let Some(expected) = ledger::refusal(&message.body)
        {
            let kept = expected.len().min(MAX_REASON);
            assert_eq!(reason, expected[..kept]);
        }
        match late {
            // A power cut may have taken the message, or an operator given it up, and the
            // server had it all the same.
            true => assert!(message.fate != Fate::Unsettled),
            false => {
                assert_eq!(message.fate, Fate::Unsettled);
                message.fate = Fate::Rejected(ordinal);
                self.book.counts.2 += 1;
            }
        }
        let refusal = Refusal {
            reason,
            ordinal,
            late,
            handled: 0,
            accepted: false,
            before: self.book.refusals.remove(&sequence).map(Box::new),
        };
        self.book.refusals.insert(sequence, refusal);
    }

    /// Calls the failed-write handler for the lowest refusal that waits.
    fn offer(&mut self, around: &mut Around<'_>) -> Result<(), Died> {
        let process = self.process.as_mut().expect("runs");
        if self.settings.no_handler || process.hold_jobs {
            return Ok(());
        }
        let open = process
            .store
            .rejections(0, usize::MAX)
            .into_iter()
            .find(|r| !process.declined.contains(&r.sequence));
        let Some(rejection) = open else { return Ok(()) };
        if process.store.level() == Level::Disk && process.store.sync().is_err() {
            return Ok(());
        }
        let sequence = rejection.sequence;
        let mut original = StoredMessage::new();
        let there = process.store.get(sequence, &mut original).expect("intact");
        let original = original.payload();
        let message = &self.book.messages[&sequence];
        let refusal = self
            .book
            .refusals
            .get_mut(&sequence)
            .expect("it was refused");
        assert!(there || refusal.late, "the original of {sequence} is gone");
        assert!(
            !there || original == message.body,
            "{sequence} comes back with other bytes"
        );
        assert!(refusal.reason.starts_with(&rejection.reason));
        assert_eq!(refusal.late, rejection.late);
        refusal.handled += 1;
        let earlier = sequence < process.first_of_run;
        self.handled.push((sequence, rejection.late, earlier));
        trace!(around, "p{} handles the refusal of {sequence}", self.id);
        self.point()?;
        let process = self.process.as_mut().expect("runs");
        if self.settings.declines > 0 && around.rng.one_in(self.settings.declines) {
            process.declined.insert(sequence);
            return Ok(());
        }
        match process.store.accept(sequence) {
            Ok(accepted) => {
                assert!(accepted, "it waits");
                self.book
                    .refusals
                    .get_mut(&sequence)
                    .expect("refused")
                    .accepted = true;
            }
            Err(_) => drop(process.declined.insert(sequence)),
        }
        self.point()
    }

    /// Publishes the lowest refused message again.
    pub fn requeue(&mut self, around: &mut Around<'_>) -> Option<u64> {
        let process = self.process.as_mut()?;
        let sequence = self.book.waiting().first().copied()?;
        let appended = process.store.requeue(sequence, 1).ok().flatten()?;
        trace!(
            around,
            "p{} publishes {sequence} again as {}", self.id, appended.sequence
        );
        let body = self.book.messages[&sequence].body.clone();
        self.book
            .appended(appended.sequence, body, appended.ordinal);
        let refusal = self.book.refusals.get_mut(&sequence).expect("it waits");
        refusal.accepted = true;
        refusal.handled += 1;
        Some(appended.sequence)
    }

    fn check_flushes(&self, around: &Around<'_>) {
        let Some(process) = &self.process else { return };
        for (id, (target, until)) in &process.flushes {
            let open = self.book.unsettled_through(*target).len();
            assert!(
                open > 0,
                "flush {id} waits although everything it covers is settled"
            );
            assert!(
                until.is_none_or(|until| until > around.now),
                "flush {id} is overdue"
            );
        }
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

    pub fn last_ordinal(&self) -> u64 {
        last_ordinal(&self.process.as_ref().expect("runs").store)
    }
}

/// Whether a record is there after a crash. `durable`: what a power cut had to leave; none:
/// a process crash, which loses nothing that was logged.
fn survives(ordinal: Option<u64>, durable: Option<u64>) -> bool {
    ordinal.is_some_and(|ordinal| durable.is_none_or(|durable| ordinal <= durable))
}

impl Read {
    fn take_in(&mut self, frame: &[u8]) {
        let Ok((header, _)) = Header::parse(frame) else {
            return;
        };
        let id: Option<u64> = header.command_id.as_deref().and_then(|id| id.parse().ok());
        match (header.ack_kind(), header.status) {
            (Some(AckKind::Persisted), Some(Status::Success)) => {
                self.acked.extend(header.sequence);
                self.acked_ids.extend(id);
            }
            (Some(_), Some(Status::Failure)) => {
                self.refused.extend(header.sequence);
                self.refused_ids.extend(id);
            }
            _ => {}
        }
    }
}

fn at(now: Duration) -> Now {
    Now {
        at: now,
        unix_micros: now.as_micros() as u64,
    }
}

fn settled(delivery: &Delivery) -> u64 {
    let totals = delivery.totals();
    totals.persisted + totals.persisted_at_logon + totals.rejected
}
