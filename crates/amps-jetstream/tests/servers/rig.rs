//! A publisher: a store, and the engine over links to a real server.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use amps_delivery::delivery::{self, Note};
use amps_delivery::{Config as EngineConfig, Engine, FixedDelay, LinkEnd, Now, Output, Transport};
use amps_jetstream::{Address, Config, JetStream, Opener, Opening};
use amps_store::{Envelope, PublishStore, Store};
use tokio::net::TcpStream;
use tokio::time::{Instant as Moment, sleep_until};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub store: Store,
    pub engine: Engine,
    pub told: Told,
    transport: JetStream,
    ports: Vec<u16>,
    tried: usize,
    started: Instant,
    over: Option<u64>,
}

/// What was told, in words.
#[derive(Debug, Default)]
pub struct Told {
    pub ups: usize,
    pub ends: Vec<LinkEnd>,
    pub notes: Vec<Note>,
    /// Refused messages and why.
    pub refused: Vec<(u64, String)>,
    pub settled: u64,
}

pub const CLIENT: &str = "me";

/// Streams of bytes as sockets.
struct Sockets;

impl Opener for Sockets {
    fn open<'a>(&'a self, address: &'a Address) -> Opening<'a> {
        Box::pin(async move {
            let place = (address.host(), address.port());
            let opened = TcpStream::connect(place).await;
            let stream = opened.map_err(|error| error.to_string())?;
            stream.set_nodelay(true).unwrap();
            Ok(Box::new(stream) as _)
        })
    }
}

impl Rig {
    pub fn new(store: Store, config: Config, ports: &[u16]) -> Self {
        let engine_config = EngineConfig {
            ack_deadline: Duration::from_secs(3),
            ..EngineConfig::default()
        };
        let backoff = Box::new(FixedDelay(Duration::from_millis(20)));
        let engine = Engine::new(&store, engine_config, backoff, Now::default());
        Rig {
            store,
            engine,
            told: Told::default(),
            transport: JetStream::new(config, Arc::new(Sockets)),
            ports: ports.to_vec(),
            tried: 0,
            started: Instant::now(),
            over: None,
        }
    }

    pub fn now(&self) -> Now {
        let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        Now {
            at: self.started.elapsed(),
            unix_micros: unix.as_micros() as u64,
        }
    }

    /// Stores messages whose bodies are these numbers.
    pub fn publish(&self, numbers: impl IntoIterator<Item = u64>) {
        for number in numbers {
            self.publish_body(number.to_string().as_bytes());
        }
    }

    pub fn publish_body(&self, body: &[u8]) {
        let mut envelope = Envelope::publish("t");
        envelope.published_at = self.now().unix_micros;
        self.store.append(&envelope, body).unwrap();
    }

    /// Runs until this holds.
    pub async fn until(&mut self, what: &str, mut holds: impl FnMut(&Rig) -> bool) {
        let limit = Instant::now() + PATIENCE;
        loop {
            self.engine.turn(&self.store, self.now());
            self.carry_out().await;
            if holds(self) {
                return;
            }
            assert!(
                Instant::now() < limit,
                "{what}: {:?}, {:?}",
                self.told,
                self.store.bounds()
            );
            let soon = self.started + self.now().at + Duration::from_millis(50);
            let due = self.engine.deadline().map(|at| self.started + at);
            let due = due.map_or(soon, |due| due.min(soon));
            let (engine, store, now) = (&mut self.engine, &self.store, {
                let unix = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
                Now {
                    at: self.started.elapsed(),
                    unix_micros: unix.as_micros() as u64,
                }
            });
            let mut sleep = pin!(sleep_until(Moment::from_std(due)));
            poll_fn(|cx| match engine.poll(cx, store, now) {
                Poll::Ready(()) => Poll::Ready(()),
                Poll::Pending => sleep.as_mut().poll(cx),
            })
            .await;
            // Whatever else runs here has its turn.
            tokio::task::yield_now().await;
        }
    }

    /// Runs until everything is settled or refused.
    pub async fn drain(&mut self) {
        let empty = |rig: &Rig| rig.store.bounds().unsettled == 0;
        self.until("everything is settled", empty).await;
    }

    /// Lets the link write and read once more, and dies: what the server answers is not heard.
    pub async fn write_and_die(mut self) -> delivery::Totals {
        let now = self.now();
        poll_fn(|cx| {
            let _ = self.engine.poll(cx, &self.store, now);
            Poll::Ready(())
        })
        .await;
        self.engine.totals()
    }

    /// Ends as a process does that is closed: with everything it can still do.
    pub async fn close(mut self) -> (Store, Told) {
        let now = self.now();
        self.engine.close(&self.store, now, now.at + PATIENCE);
        self.until("it is closed", |rig| rig.over.is_some()).await;
        self.store.close(self.over.unwrap()).unwrap();
        (self.store, self.told)
    }

    async fn carry_out(&mut self) {
        while let Some(output) = self.engine.output() {
            match output {
                Output::Connect => self.connect().await,
                Output::Job(job) => {
                    let done = job.run(&self.store);
                    let now = self.now();
                    self.engine.done(&self.store, now, done);
                }
                Output::Up => self.told.ups += 1,
                Output::LinkEnded { why, .. } => self.told.ends.push(why),
                Output::Over { handed_over } => self.over = Some(handed_over),
                Output::Told { what, .. } => match what {
                    delivery::Output::Note(note) => self.told.notes.push(note),
                    delivery::Output::Refused {
                        sequence, reason, ..
                    } => self.told.refused.push((sequence, reason)),
                    _ => {}
                },
                Output::Damaged { sequence, error } => panic!("message {sequence}: {error}"),
                _ => {}
            }
        }
    }

    async fn connect(&mut self) {
        let port = self.ports[self.tried % self.ports.len()];
        self.tried += 1;
        let address = format!("nats://127.0.0.1:{port}");
        self.engine.tries(&address, self.ports.len());
        let me = self.engine.identity(&self.store);
        let opened = self.transport.connect(&address, &me).await;
        let now = self.now();
        self.engine.connected(&self.store, now, opened);
    }

    pub fn has_note(&self, is: impl Fn(&Note) -> bool) -> bool {
        self.told.notes.iter().any(is)
    }

    pub fn ended(&self, is: impl Fn(&LinkEnd) -> bool) -> bool {
        self.told.ends.iter().any(is)
    }
}
