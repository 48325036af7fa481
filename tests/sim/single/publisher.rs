//! A publisher whose servers ack each message by itself: the real store on a simulated disk and the
//! real engine, driven in virtual time, and a book of what was published and what was said of it.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use amps_client::delivery::{Config as Delivery, Note, Now, Output as Told};
use amps_client::{Backoff, LinkEnd};
use amps_delivery::{Config, Engine, Job, JobDone, Output, Resume, Totals};
use amps_store::testkit::{SimDisk, begin_step, end_step, is_under_way, step};
use amps_store::{AppendError, Envelope, Level, Options, PublishStore, Rebase, Store};

use super::super::Rng;
use super::super::ledger::{self, Fate};
use super::link::{Channel, ModelLink, ToClient, lock};
use super::server::Node;

/// How long an ack may take.
pub const ACK: Duration = Duration::from_secs(2);

/// What one message is known to be.
#[derive(Clone, Debug)]
pub struct Message {
    pub body: Vec<u8>,
    ordinal: u64,
    pub fate: Fate,
    /// Under these numbers it went out, in whatever life of the store.
    pub wires: BTreeSet<u64>,
}

/// The truth about a store, as long as it is not replaced by an old copy of itself.
#[derive(Clone, Debug, Default)]
pub struct Book {
    pub lineage: u64,
    pub messages: BTreeMap<u64, Message>,
    /// Refused, why, and where that is in the log.
    pub refusals: BTreeMap<u64, (String, Option<u64>)>,
    rebase: Option<Rebase>,
    /// What may have been sent, as the last open found it, and what was since.
    reach: u64,
}

impl Book {
    fn wire(&self, sequence: u64) -> u64 {
        match self.rebase {
            Some(rebase) if sequence >= rebase.from => sequence.wrapping_add_signed(rebase.delta),
            _ => sequence,
        }
    }

    pub fn unsettled(&self) -> impl Iterator<Item = u64> {
        let all = self.messages.iter();
        let open = all.filter(|(_, message)| message.fate == Fate::Unsettled);
        open.map(|(sequence, _)| *sequence)
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub store: Options,
    pub delivery: Delivery,
    /// Not every ack comes in its order.
    pub latency: Duration,
    pub slow_device: bool,
}

pub struct Publisher {
    pub settings: Settings,
    pub disk: SimDisk,
    pub book: Book,
    pub run: u64,
    pub process: Option<Process>,
    pub notes: Vec<Note>,
    pub ends: Vec<LinkEnd>,
    pub totals: Totals,
    /// By which servers which messages can never be taken.
    turned_down: BTreeSet<(u64, usize)>,
    durable: u64,
}

pub struct Process {
    pub store: Store,
    pub engine: Engine,
    pub channel: Option<Arc<Mutex<Channel>>>,
    job: Option<(Job, Duration)>,
    device_done: Option<Duration>,
    /// Which server is tried.
    pub server: usize,
    read: Read,
    counts: Totals,
}

/// What was read on the link in use.
#[derive(Debug, Default)]
struct Read {
    mark: Option<u64>,
    stored: BTreeSet<u64>,
    duplicates: BTreeSet<u64>,
    found: BTreeSet<u64>,
    refused: BTreeSet<u64>,
    /// Heard since the last look, and must count.
    fresh: Vec<u64>,
}

/// Everything around a publisher.
pub struct Around<'a> {
    pub seed: u64,
    pub now: Duration,
    pub rng: &'a mut Rng,
    pub nodes: &'a mut [Node],
    /// Links that ended, with what the network still has of them.
    pub left: &'a mut Vec<Arc<Mutex<Channel>>>,
    pub trace: &'a mut Option<Vec<String>>,
}

macro_rules! tell {
    ($around:expr, $($format:tt)*) => {
        if let Some(trace) = $around.trace.as_mut() {
            trace.push(format!("{:>9.3} {}", $around.now.as_secs_f64(), format!($($format)*)));
        }
    };
}
pub(crate) use tell;

fn at(now: Duration) -> Now {
    Now {
        at: now,
        unix_micros: now.as_micros() as u64,
    }
}

impl Publisher {
    pub fn new(settings: Settings) -> Self {
        Publisher {
            settings,
            disk: SimDisk::new(),
            book: Book::default(),
            run: 0,
            process: None,
            notes: Vec::new(),
            ends: Vec::new(),
            totals: Totals::default(),
            turned_down: BTreeSet::new(),
            durable: 0,
        }
    }

    /// Opens the store and starts. `durable`: a power cut had to leave what stands up to there;
    /// none: nothing was lost.
    pub fn start(&mut self, around: &mut Around<'_>, durable: Option<u64>) {
        let store = self.disk.open(self.settings.store.clone()).expect("opens");
        self.run += 1;
        let numbers = store.numbers();
        self.compare(&store, durable);
        if numbers.rebase != self.book.rebase {
            // It was under way when the process died.
            self.book.rebase = numbers.rebase;
        }
        self.book.reach = numbers.found_grant;
        tell!(around, "run {} opens, {:?}", self.run, store.bounds());
        let config = Config {
            delivery: self.settings.delivery.clone(),
            ack_deadline: ACK,
            ..Config::default()
        };
        let backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
        let backoff = Box::new(backoff.seed(around.rng.bits()));
        self.process = Some(Process {
            engine: Engine::new(&store, config, backoff, at(around.now)),
            store,
            channel: None,
            job: None,
            device_done: None,
            server: 0,
            read: Read::default(),
            counts: Totals::default(),
        });
    }

    /// The process dies, and its link with it.
    pub fn kill(&mut self, around: &mut Around<'_>) {
        let Some(process) = self.process.take() else {
            return;
        };
        around.left.extend(process.channel);
        self.durable = process.store.durable().ordinal;
        add(&mut self.totals, process.counts);
        tell!(around, "the process dies, durable {}", self.durable);
    }

    /// What was durable when the last process died.
    pub fn durable(&self) -> u64 {
        self.durable
    }

    pub fn publish(&mut self, around: &mut Around<'_>) -> Option<u64> {
        let process = self.process.as_ref()?;
        let next = process.store.bounds().next;
        let body = ledger::body(around.seed, 0, self.book.lineage, self.run, next);
        let envelope = Envelope::publish("orders");
        for _ in 0..8 {
            match process.store.append(&envelope, &body) {
                Ok(appended) => {
                    tell!(
                        around,
                        "publishes {}, {} bytes",
                        appended.sequence,
                        body.len()
                    );
                    let message = Message {
                        body,
                        ordinal: appended.ordinal,
                        fate: Fate::Unsettled,
                        wires: BTreeSet::new(),
                    };
                    let before = self.book.messages.insert(appended.sequence, message);
                    let unused = before.is_none_or(|m| m.fate == Fate::Lost && m.wires.is_empty());
                    assert!(unused, "{} is given out twice", appended.sequence);
                    return Some(appended.sequence);
                }
                Err(AppendError::Full { .. } | AppendError::MakingRoom { .. }) => {
                    step(&process.store).expect("the disk works");
                }
                Err(error) => panic!("append: {error}"),
            }
        }
        None
    }

    pub fn give_up(&mut self, around: &mut Around<'_>, sequence: u64) {
        let process = self.process.as_mut().expect("runs");
        let now = at(around.now);
        let reason = "given up by an operator";
        process
            .engine
            .give_up(&process.store, now, sequence, reason);
        self.outputs(around);
    }

    pub fn allow_rebase(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        process.engine.allow_rebase(&process.store, at(around.now));
        self.outputs(around);
    }

    /// Puts an old copy in place of the store; the application lost what it published since.
    pub fn restore(&mut self, around: &mut Around<'_>, copy: Vec<u8>, mut book: Book) {
        self.disk.restore(copy);
        book.lineage = self.book.lineage + 1;
        self.book = book;
        tell!(around, "an old copy of the store is put back");
        self.start(around, None);
    }

    /// The number of an unsettled message that did not go out on this link, or one beyond all.
    pub fn unsent(&self, highest: u64) -> u64 {
        let mut unsettled = self.book.unsettled().map(|one| self.book.wire(one));
        unsettled
            .find(|wire| *wire > highest)
            .unwrap_or(highest + 1)
    }

    /// Whether this message may have been sent, for all that the engine can know.
    pub fn may_be_sent(&self, sequence: u64) -> bool {
        sequence <= self.book.reach
    }

    pub fn deadline(&self) -> Option<Duration> {
        let process = self.process.as_ref()?;
        let down = process.channel.as_ref().and_then(|channel| {
            let channel = lock(channel);
            channel.down.front().map(|(at, _)| *at)
        });
        let job = process.job.map(|(_, at)| at);
        [down, job, process.device_done, process.engine.deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    /// Everything that is due.
    pub fn pump(&mut self, around: &mut Around<'_>) {
        if self.process.is_none() {
            return;
        }
        self.upkeep(around);
        self.job(around);
        let mut cx = Context::from_waker(Waker::noop());
        if let Some(channel) = &self.process.as_ref().expect("runs").channel {
            lock(channel).takes = around.rng.below(12) as usize;
        }
        loop {
            let process = self.process.as_mut().expect("runs");
            let now = at(around.now);
            process.engine.turn(&process.store, now);
            self.handed_over(around);
            let told = self.outputs(around);
            let process = self.process.as_mut().expect("runs");
            let live = process.engine.is_live();
            let polled = process.engine.poll(&mut cx, &process.store, now);
            self.read(around, live);
            let told = self.outputs(around) || told;
            if polled.is_ready() {
                self.what_was_heard_counts();
            } else if !told {
                break;
            }
        }
        // What is to become durable now is under way.
        self.upkeep(around);
        // The application takes over what was refused.
        let store = &self.process.as_ref().expect("runs").store;
        for refusal in store.rejections(0, 10) {
            store.accept(refusal.sequence).expect("the disk works");
        }
    }

    fn upkeep(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let store = &process.store;
        process.device_done = process.device_done.filter(|_| is_under_way(store));
        match process.device_done {
            Some(done) if done <= around.now => {
                end_step(store).expect("the disk works");
                process.device_done = None;
            }
            Some(_) => {}
            None => {
                begin_step(store).expect("the disk works");
                if is_under_way(store) {
                    let slow = self.settings.slow_device && around.rng.one_in(4);
                    let most = if slow { 1500 } else { 20 };
                    let time = Duration::from_millis(around.rng.below(most));
                    process.device_done = Some(around.now + time);
                }
            }
        }
    }

    fn job(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let Some((job, _)) = process.job.take_if(|(_, at)| *at <= around.now) else {
            return;
        };
        let done = job.run(&process.store);
        tell!(around, "{job:?}: {done:?}");
        if let JobDone::Rebased(Ok(rebase)) = &done {
            self.book.rebase = Some(*rebase);
            self.book.reach = rebase.from - 1;
        }
        process.engine.done(&process.store, at(around.now), done);
        self.outputs(around);
    }

    /// Looks at the messages that the link took.
    fn handed_over(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let Some(channel) = process.channel.clone() else {
            return;
        };
        let sent = std::mem::take(&mut lock(&channel).sent);
        for sent in sent {
            let (sequence, wire) = (sent.sequence, sent.wire);
            let granted = process.store.numbers().grant;
            assert!(sequence <= granted, "{sequence} goes out above {granted}");
            let durable = process.store.durable();
            if process.store.level() == Level::Disk {
                assert!(sequence <= durable.sequence, "{sequence} is not durable");
            }
            let mut here = self.book.refusals.range(..sequence);
            let pending = here.find(|(_, (reason, ordinal))| {
                let by_nobody = reason.starts_with("not sent") || reason.starts_with("given up");
                by_nobody && ordinal.is_none_or(|ordinal| ordinal > durable.ordinal)
            });
            assert!(
                pending.is_none(),
                "{sequence} goes out, and what was refused here before it is not durable: {pending:?}"
            );
            let message = self.book.messages.get_mut(&sequence).expect("published");
            assert_eq!(message.fate, Fate::Unsettled, "settled {sequence} goes out");
            assert!(
                sent.body == message.body,
                "other bytes go out as {sequence}"
            );
            // What an earlier run sent under a numbering that a rebase has ended, nobody knows.
            let before = sequence <= self.book.reach || message.wires.contains(&wire);
            assert!(
                !before || sent.again,
                "{sequence} goes out as if it were new"
            );
            message.wires.insert(wire);
            assert_eq!(wire, self.book.wire(sequence), "the number of {sequence}");
            self.book.reach = self.book.reach.max(sequence);
            tell!(around, "sends {sequence} as {wire}, again {}", sent.again);
        }
    }

    /// What was read is evidence, whatever the client makes of it.
    fn read(&mut self, around: &mut Around<'_>, live: bool) {
        let process = self.process.as_mut().expect("runs");
        let Some(channel) = process.channel.clone() else {
            return;
        };
        let heard = std::mem::take(&mut lock(&channel).read);
        for what in heard {
            tell!(around, "hears {what:?}");
            let read = &mut process.read;
            match what {
                ToClient::Up {
                    resume: Resume::HighWater(mark),
                    ..
                }
                | ToClient::Mark(mark) => read.mark = read.mark.max(Some(mark)),
                ToClient::Stored(wire) => {
                    read.stored.insert(wire);
                    read.fresh.extend(live.then_some(wire));
                }
                ToClient::Duplicate(wire) => {
                    read.duplicates.insert(wire);
                }
                ToClient::Found(wire) => {
                    read.found.insert(wire);
                }
                ToClient::Refused { wire, .. } => {
                    read.refused.insert(wire);
                }
                _ => {}
            }
        }
    }

    fn outputs(&mut self, around: &mut Around<'_>) -> bool {
        let mut any = false;
        while let Some(output) = self.process.as_mut().expect("runs").engine.output() {
            any = true;
            self.output(around, output);
        }
        let process = self.process.as_mut().expect("runs");
        let (engine, told) = (process.engine.totals(), process.counts);
        let outcomes = |t: &Totals| {
            let settled = (t.persisted, t.persisted_at_logon, t.duplicates, t.found);
            (settled, t.rejected)
        };
        assert_eq!(outcomes(&engine), outcomes(&told), "totals and outcomes");
        any
    }

    fn output(&mut self, around: &mut Around<'_>, output: Output) {
        let process = self.process.as_mut().expect("runs");
        match output {
            Output::Connect => self.connect(around),
            Output::Job(job) => {
                let slow = self.settings.slow_device && around.rng.one_in(4);
                let most = if slow { 1500 } else { 20 };
                let time = Duration::from_millis(around.rng.below(most));
                process.job = Some((job, around.now + time));
            }
            Output::LinkEnded { why, .. } => {
                tell!(around, "the link ends: {why}");
                around.left.extend(process.channel.take());
                process.server = (process.server + 1) % around.nodes.len();
                if let LinkEnd::ForeignFigure | LinkEnd::PublishGap = why {
                    // What was read with the word that ended it need not count.
                    process.read.fresh.clear();
                }
                self.ends.push(why);
            }
            Output::Told { what, .. } => self.told(around, what),
            Output::Up | Output::State(_) => {}
            other => panic!("{other:?}"),
        }
    }

    fn connect(&mut self, around: &mut Around<'_>) {
        let process = self.process.as_mut().expect("runs");
        let server = process.server;
        let name = format!("server {server}");
        process.engine.tries(&name, around.nodes.len());
        process.read = Read::default();
        let now = at(around.now);
        let node = &around.nodes[server];
        let opened = match node.up {
            false => Err(LinkEnd::Connect("nobody is there".to_owned())),
            true => {
                let most = self.settings.delivery.max_in_flight;
                let channel = Channel::new(server, node.mode, self.settings.latency, most);
                let later = around.now + self.settings.latency;
                lock(&channel).tells(later, node.greeting());
                process.channel = Some(channel.clone());
                tell!(around, "connects to {name}, which has {}", node.last());
                let link: Box<dyn amps_delivery::Link> = Box::new(ModelLink::new(channel));
                Ok(link)
            }
        };
        process.engine.connected(&process.store, now, opened);
    }

    fn told(&mut self, around: &mut Around<'_>, told: Told) {
        match told {
            Told::SettledThrough { through, via } => {
                tell!(around, "settles through {through} via {via:?}");
                let all: Vec<u64> = self
                    .book
                    .unsettled()
                    .take_while(|s| *s <= through)
                    .collect();
                for sequence in all {
                    self.persisted(around, sequence, via);
                }
            }
            Told::Settled { sequence, via } => {
                tell!(around, "settles {sequence} via {via:?}");
                self.persisted(around, sequence, via);
            }
            Told::Refused {
                sequence,
                reason,
                late,
                ordinal,
                ..
            } => self.refused(around, sequence, reason, late, ordinal),
            Told::Note(note) => {
                tell!(around, "notes {note:?}");
                if let Note::Unsendable { sequence, .. } = note {
                    let server = self.process.as_ref().expect("runs").server;
                    self.turned_down.insert((sequence, server));
                }
                self.notes.push(note);
            }
            Told::Unattributed { .. } | Told::RefusalNotLogged { .. } => {}
            other => panic!("{other:?}"),
        }
    }
}

fn add(to: &mut Totals, other: Totals) {
    to.persisted += other.persisted;
    to.persisted_at_logon += other.persisted_at_logon;
    to.duplicates += other.duplicates;
    to.found += other.found;
    to.rejected += other.rejected;
}
