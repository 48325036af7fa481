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
use amps_delivery::{Config as EngineConfig, Engine, FixedDelay, LinkEnd, Now, Output};
use amps_jetstream::{Config, JetStreamLink, Publisher};
use amps_store::{Envelope, PublishStore, Store};
use tokio::net::TcpStream;
use tokio::time::{Instant as Moment, sleep_until};

/// How long anything may take.
const PATIENCE: Duration = Duration::from_secs(60);

pub struct Rig {
    pub store: Store,
    pub engine: Engine,
    pub told: Told,
    config: Arc<Config>,
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
pub const STORE: u64 = 77;

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
            config: Arc::new(config),
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
        self.engine.tries(&port.to_string(), self.ports.len());
        let opened = TcpStream::connect(("127.0.0.1", port)).await;
        let now = self.now();
        let opened = match opened {
            Err(error) => Err(LinkEnd::Connect(error.to_string())),
            Ok(stream) => {
                stream.set_nodelay(true).unwrap();
                let publisher = self.publisher();
                let token = format!("{:x}{}", now.unix_micros, self.tried);
                let (stream, config) = (Box::new(stream), self.config.clone());
                let link = JetStreamLink::new(stream, config, publisher, &token, now);
                Ok(Box::new(link) as Box<dyn amps_delivery::Link>)
            }
        };
        self.engine.connected(&self.store, now, opened);
    }

    /// As the numbers on the wire are now.
    fn publisher(&self) -> Publisher {
        let bounds = self.store.bounds();
        let first = bounds.first_unsettled.unwrap_or(bounds.next);
        let wire = match self.store.numbers().rebase {
            Some(rebase) if first >= rebase.from => first.wrapping_add_signed(rebase.delta),
            _ => first,
        };
        Publisher {
            client: CLIENT.to_owned(),
            store: STORE,
            first_unsettled: wire,
        }
    }

    pub fn has_note(&self, is: impl Fn(&Note) -> bool) -> bool {
        self.told.notes.iter().any(is)
    }

    pub fn ended(&self, is: impl Fn(&LinkEnd) -> bool) -> bool {
        self.told.ends.iter().any(is)
    }
}
