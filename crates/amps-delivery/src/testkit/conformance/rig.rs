//! An engine with the transport below it and a server that a test plays, in virtual time; and what
//! watches the link between them.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use amps_store::{Envelope, Options, PublishStore, Store};

use super::{Got, NoWord, Peer, Say};
use crate::backoff::FixedDelay;
use crate::delivery::{self, Acks, Note, Now, Room, ToSend, Totals};
use crate::engine::{Config, Engine, Output};
use crate::event::LinkEnd;
use crate::link::{Heard, Link, Progress, Sink, Unsendable};
use crate::transport::Transport;

pub(super) const SECOND: Duration = Duration::from_secs(1);

/// How long an ack may take.
pub(super) const ACK: Duration = Duration::from_secs(10);

/// A link gathers no more bytes than this that the network does not take, and one message.
pub(super) const GATHERED: usize = 1 << 20;

/// Most that one poll may tell.
const TOLD: usize = 1024;

pub(super) struct Rig<P> {
    pub(super) peer: P,
    pub(super) store: Store,
    pub(super) engine: Engine,
    pub(super) now: Now,
    pub(super) watch: Arc<Mutex<Watch>>,
    transport: Box<dyn Transport>,
    address: String,
    name: String,
    wakes: Arc<Wakes>,
    /// The engine wants a link.
    wants: bool,
    /// Since the last look.
    notes: Vec<Note>,
    ends: Vec<LinkEnd>,
    got: Vec<Got>,
}

/// What went over the link in use, from the link's side.
#[derive(Default)]
pub(super) struct Watch {
    acks: Acks,
    is_up: bool,
    /// Number on the wire and bytes of what was taken, in this order.
    pub(super) taken: Vec<(u64, usize)>,
    asked: BTreeSet<u64>,
    through: Option<u64>,
}

/// Counts how often the link asked to be polled.
#[derive(Default)]
struct Wakes(AtomicU64);

impl Wake for Wakes {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Wakes {
    fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<P: Peer> Rig<P> {
    pub(super) fn new(mut peer: P) -> Self {
        let options = Options::new().capacity(64 << 20).client_name("suite");
        let store = Store::memory(options).unwrap();
        let now = Now {
            at: SECOND,
            unix_micros: 1,
        };
        let config = Config {
            ack_deadline: ACK,
            ..Config::default()
        };
        let engine = Engine::new(&store, config, Box::new(FixedDelay(SECOND)), now);
        let transport = peer.transport();
        let address = peer.address();
        let name = transport
            .name(&address)
            .expect("the transport knows the address of its peer");
        assert!(!transport.kind().is_empty(), "it is of some kind");
        Rig {
            store,
            engine,
            now,
            transport,
            address,
            name,
            watch: Arc::default(),
            wakes: Arc::default(),
            wants: false,
            notes: Vec::new(),
            ends: Vec::new(),
            got: Vec::new(),
            peer,
        }
    }

    /// Publishes so many messages.
    pub(super) fn publish(&mut self, count: usize) {
        for _ in 0..count {
            self.publish_sized(20);
        }
        self.run();
    }

    pub(super) fn publish_sized(&mut self, bytes: usize) {
        let next = self.store.bounds().next;
        let mut body = format!("{next}:").into_bytes();
        body.resize(bytes.max(body.len()), b'x');
        let envelope = Envelope {
            published_at: 1,
            ..Envelope::publish("orders")
        };
        self.store.append(&envelope, &body).unwrap();
    }

    /// A link that the server has greeted, with so many messages published before. They go out.
    pub(super) fn up(&mut self, messages: usize, mark: Option<u64>) -> Result<(), NoWord> {
        self.publish(messages);
        self.connect();
        self.says(Say::Welcome { mark })
    }

    /// Waits for a link.
    pub(super) fn connect(&mut self) {
        for _ in 0..100 {
            self.run();
            if self.engine.is_linked() {
                return;
            }
            self.until_due();
        }
        panic!("no link is opened");
    }

    /// Does everything that there is to do now.
    pub(super) fn run(&mut self) {
        let waker = Waker::from(self.wakes.clone());
        let mut cx = Context::from_waker(&waker);
        for _ in 0..100_000 {
            self.engine.turn(&self.store, self.now);
            let polled = self.engine.poll(&mut cx, &self.store, self.now);
            self.look();
            let told = self.outputs();
            let connected = self.wants && self.open(&mut cx);
            if polled.is_pending() && !told && !connected {
                return;
            }
        }
        panic!("the link is never done, and nothing comes: a driver would spin");
    }

    fn outputs(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.engine.output() {
            any = true;
            match output {
                Output::Connect => {
                    self.engine.tries(&self.name, 1);
                    self.wants = true;
                }
                Output::Abandon => self.wants = false,
                Output::Job(job) => {
                    let done = job.run(&self.store);
                    self.engine.done(&self.store, self.now, done);
                }
                Output::LinkEnded { why, .. } => self.ends.push(why),
                Output::Told {
                    what: delivery::Output::Note(note),
                    ..
                } => self.notes.push(note),
                Output::GaveUp { why } => panic!("it gives up: {why}"),
                _ => {}
            }
        }
        any
    }

    /// Goes on opening a link. One that is not there yet is given up and begun anew: it may be
    /// dropped at any moment.
    fn open(&mut self, cx: &mut Context<'_>) -> bool {
        let me = self.engine.identity(&self.store);
        let opened = match self.transport.connect(&self.address, &me).as_mut().poll(cx) {
            Poll::Pending => return false,
            Poll::Ready(opened) => opened,
        };
        self.wants = false;
        let acks = self.peer.acks();
        self.watch = Arc::new(Mutex::new(Watch {
            acks,
            ..Watch::default()
        }));
        self.got.clear();
        let opened = opened.map(|link| {
            let watched: Box<dyn Link> = Box::new(Watched {
                link,
                watch: self.watch.clone(),
                room: Cell::new(Room::NONE),
            });
            watched
        });
        self.engine.connected(&self.store, self.now, opened);
        true
    }

    /// Begins to open a link, and gives it up; whether it could be given up before it was there.
    pub(super) fn begins_and_drops(&mut self) -> bool {
        let mut cx = Context::from_waker(Waker::noop());
        let me = self.engine.identity(&self.store);
        let mut opening = self.transport.connect(&self.address, &me);
        opening.as_mut().poll(&mut cx).is_pending()
    }

    /// Looks at what the server was told; a message that is said to be written has come.
    fn look(&mut self) {
        self.got.extend(self.peer.hears());
        let Some(through) = lock(&self.watch).through else {
            return;
        };
        let came = self.messages().last().copied().unwrap_or(0);
        assert!(
            through <= came,
            "{through} is said to be written, and the last that came is {came}"
        );
    }

    /// The server says this, the link is woken by that, and everything that follows is done.
    pub(super) fn says(&mut self, say: Say) -> Result<(), NoWord> {
        self.run();
        let before = self.wakes.count();
        if !self.peer.says(&say) {
            return Err(NoWord);
        }
        self.woken(before, &format!("the server said {say:?}"));
        Ok(())
    }

    /// The network takes so many bytes more.
    pub(super) fn takes(&mut self, bytes: usize) {
        let before = self.wakes.count();
        self.peer.takes(bytes);
        self.woken(before, "the network takes bytes");
    }

    fn woken(&mut self, before: u64, what: &str) {
        let woken = self.wakes.count() > before;
        let waker = Waker::from(self.wakes.clone());
        let mut cx = Context::from_waker(&waker);
        let polled = self.engine.poll(&mut cx, &self.store, self.now);
        self.look();
        assert!(
            polled.is_pending() || woken,
            "{what}, and the link was pending and did not wake its driver"
        );
        self.run();
    }

    /// Lets time pass, from one deadline to the next.
    pub(super) fn later(&mut self, time: Duration) {
        let end = self.now.at + time;
        while self.now.at < end {
            let next = self.engine.deadline().unwrap_or(end);
            self.pass(next.min(end));
        }
    }

    fn pass(&mut self, until: Duration) {
        // What is overdue waits for another, and does not hold time up.
        let until = until.max(self.now.at + Duration::from_millis(1));
        self.now.unix_micros += (until - self.now.at).as_micros() as u64;
        self.now.at = until;
        self.run();
    }

    /// Lets time pass until something is due.
    fn until_due(&mut self) {
        let next = self.engine.deadline().expect("it waits for something");
        self.pass(next);
    }

    /// Lets time pass until the link ends by itself; nothing but its own deadlines moves it.
    pub(super) fn until_it_ends(&mut self, most: Duration) -> LinkEnd {
        let (from, before) = (self.now.at, self.ends.len());
        while self.ends.len() == before {
            let next = self.engine.deadline();
            let next = next.expect("a link that waits has a deadline");
            assert!(next <= from + most, "it waits longer than {most:?}");
            self.pass(next);
        }
        self.ends[before].clone()
    }

    /// Numbers on the wire of the messages that came over this link, in this order.
    pub(super) fn messages(&self) -> Vec<u64> {
        let messages = self.got.iter().filter_map(|got| match got {
            Got::Message { wire, .. } => Some(*wire),
            Got::Asked { .. } => None,
        });
        messages.collect()
    }

    /// By body, the numbers under which messages came over this link.
    pub(super) fn bodies(&self) -> BTreeMap<&[u8], u64> {
        let messages = self.got.iter().filter_map(|got| match got {
            Got::Message { wire, body } => Some((&body[..], *wire)),
            Got::Asked { .. } => None,
        });
        messages.collect()
    }

    /// Says of each message that the server is asked for, now or soon, whether it holds it.
    pub(super) fn answers(&mut self, holds: &[u64]) -> Result<(), NoWord> {
        let mut answered = 0;
        loop {
            let asked = self.got.iter().filter_map(|got| match got {
                Got::Asked { wire } => Some(*wire),
                Got::Message { .. } => None,
            });
            let Some(wire) = asked.collect::<Vec<_>>().get(answered).copied() else {
                return Ok(());
            };
            answered += 1;
            self.says(match holds.contains(&wire) {
                true => Say::Found(wire),
                false => Say::Absent(wire),
            })?;
        }
    }

    pub(super) fn unsettled(&self) -> Vec<u64> {
        let bounds = self.store.bounds();
        let all = bounds.first_unsettled.unwrap_or(bounds.next)..bounds.next;
        all.filter(|one| self.store.is_unsettled(*one)).collect()
    }

    /// Refused messages, and the reasons.
    pub(super) fn refused(&self) -> Vec<(u64, String)> {
        let all = self.store.rejections(0, usize::MAX);
        all.into_iter().map(|r| (r.sequence, r.reason)).collect()
    }

    /// Settled as successes, whatever the evidence.
    pub(super) fn successes(&self) -> u64 {
        let Totals {
            persisted,
            persisted_at_logon,
            duplicates,
            found,
            ..
        } = self.engine.totals();
        persisted + persisted_at_logon + duplicates + found
    }

    /// How links ended since the last look.
    pub(super) fn take_ends(&mut self) -> Vec<LinkEnd> {
        std::mem::take(&mut self.ends)
    }

    /// Whether it was told that others use the name, or that a figure is not ours.
    pub(super) fn foreign_told(&self) -> bool {
        let foreign = |note: &Note| {
            matches!(
                note,
                Note::NameShared { .. } | Note::ForeignFigure { .. } | Note::Rebased { .. }
            )
        };
        self.notes.iter().any(foreign)
    }

    /// The engine leaves its link; nothing of that may leave the process any more.
    pub(super) fn leave(&mut self) {
        let why = LinkEnd::Shutdown;
        self.engine.lose(&self.store, self.now, why);
        self.outputs();
    }

    /// The end of every case.
    pub(super) fn ends(&mut self) {
        self.engine.stop(&self.store, self.now);
        self.outputs();
        assert_eq!(self.peer.open(), 0, "a connection outlives its link");
        let before = self.peer.taken();
        self.peer.takes(usize::MAX);
        let after = self.peer.taken();
        assert_eq!(after, before, "bytes go out after the link ended");
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A link that is held to its word.
struct Watched {
    link: Box<dyn Link>,
    watch: Arc<Mutex<Watch>>,
    /// What it had room for when it was asked last.
    room: Cell<Room>,
}

impl Link for Watched {
    fn room(&self) -> Room {
        let room = self.link.room();
        let is_up = lock(&self.watch).is_up;
        assert!(is_up || room.is_none(), "it has room before it is up");
        self.room.set(room);
        room
    }

    fn send(&mut self, now: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        let room = self.room.get();
        assert!(
            !room.is_none(),
            "the engine sends more than there is room for"
        );
        let bytes = message.message.payload().len();
        self.room.set(Room {
            messages: room.messages - 1,
            bytes: room.bytes.saturating_sub(bytes),
        });
        self.link.send(now, message)?;
        lock(&self.watch).taken.push((message.wire, bytes));
        Ok(())
    }

    fn recall(&mut self, now: Now, messages: &[ToSend<'_>]) {
        let wires = messages.iter().map(|message| message.wire);
        lock(&self.watch).asked.extend(wires);
        self.link.recall(now, messages);
    }

    fn waits(&mut self, now: Now, in_flight: u64) {
        self.link.waits(now, in_flight);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let mut ear = Ear {
            watch: self.watch.clone(),
            sink,
            told: 0,
            about_messages: 0,
        };
        let polled = self.link.poll(cx, now, &mut ear);
        let told = ear.told;
        assert!(told <= TOLD, "{told} things are told in one poll");
        match &polled {
            Poll::Pending => {
                assert_eq!(told, 0, "it tells something, and is pending");
                let due = self.link.deadline().is_some_and(|at| at <= now.at);
                assert!(!due, "it is due, and does nothing about it");
            }
            Poll::Ready(Ok(progress)) => {
                let mut watch = lock(&self.watch);
                assert!(
                    ear.about_messages == 0 || progress.read,
                    "what it tells was not read"
                );
                if let Some(through) = progress.through {
                    let last = watch.taken.last().map_or(0, |(wire, _)| *wire);
                    assert!(
                        through <= last,
                        "{through} is written, and {last} was given"
                    );
                    assert!(progress.wrote, "{through} is written, and no byte was");
                    watch.through = Some(through);
                }
            }
            Poll::Ready(Err(_)) => {}
        }
        polled
    }

    fn deadline(&self) -> Option<Duration> {
        self.link.deadline()
    }
}

struct Ear<'a> {
    watch: Arc<Mutex<Watch>>,
    sink: &'a mut dyn Sink,
    told: usize,
    about_messages: usize,
}

impl Sink for Ear<'_> {
    fn heard(&mut self, heard: Heard<'_>) {
        self.told += 1;
        let mut watch = lock(&self.watch);
        match &heard {
            Heard::Up(up) => {
                assert!(!watch.is_up, "a link is up once");
                assert_eq!(up.capabilities.acks, watch.acks, "what its acks speak of");
                watch.is_up = true;
            }
            Heard::State(_) => {}
            other => {
                self.about_messages += 1;
                assert!(watch.is_up, "{other:?} before it is up");
                let figures = matches!(other, Heard::Ack { .. });
                let single = matches!(
                    other,
                    Heard::One { .. } | Heard::Refused { .. } | Heard::TryAgain { .. }
                );
                assert!(
                    !figures && !single || figures == (watch.acks == Acks::Figures),
                    "{other:?} is not an ack of this kind"
                );
            }
        }
        if let Heard::Found { wire } | Heard::Absent { wire } = heard {
            assert!(watch.asked.contains(&wire), "nobody asked for {wire}");
        }
        drop(watch);
        self.sink.heard(heard);
    }
}
