//! A stream on three servers whose leader steps down again and again, and a publisher that is
//! killed in between.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

#[path = "servers/rig.rs"]
mod rig;
mod servers;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amps_jetstream::{Config, Mode};
use amps_store::{Options, Store};
use rig::{CLIENT, Rig};
use servers::{Admin, Server, free_ports, programs};

/// Three servers, and a stream on each of them.
fn cluster(program: &Path) -> Vec<Server> {
    let [a, b, c, x, y, z] = free_ports();
    let routes = [x, y, z]
        .map(|port| format!("\"nats://127.0.0.1:{port}\""))
        .join(", ");
    let started = [(a, x), (b, y), (c, z)].map(|(port, between)| {
        let configuration = format!(
            "server_name: n{port}\ncluster {{ name: c, listen: \"127.0.0.1:{between}\", \
             routes: [{routes}] }}"
        );
        Server::start_at(program, port, &configuration)
    });
    started.into()
}

/// Takes the stream's leader away every so often, until it is dropped.
struct Unrest {
    stop: Arc<AtomicBool>,
    changes: Arc<AtomicUsize>,
    thread: Option<JoinHandle<()>>,
}

impl Unrest {
    fn begin(port: u16) -> Self {
        let (stop, changes) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (stop.clone(), changes.clone());
        let thread = std::thread::spawn(move || {
            let mut admin = Admin::open(port, "");
            let mut next = Instant::now();
            while !stopped.load(Ordering::Relaxed) {
                next += Duration::from_millis(700);
                let answer = admin.try_request("$JS.API.STREAM.LEADER.STEPDOWN.S", b"");
                let answer = String::from_utf8(answer.unwrap_or_default()).unwrap();
                let done = usize::from(answer.contains("\"success\""));
                count.fetch_add(done, Ordering::Relaxed);
                std::thread::sleep(next.saturating_duration_since(Instant::now()));
            }
        });
        Unrest {
            stop,
            changes,
            thread: Some(thread),
        }
    }

    fn changes(&self) -> usize {
        self.changes.load(Ordering::Relaxed)
    }
}

impl Drop for Unrest {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What a stream holds after a leader changed again and again under four publishers that were killed
/// one after the other; and how often a message was settled above one that was not.
async fn under_unrest(program: &Path, mode: Mode, each: u64) -> (Vec<u64>, u64) {
    let servers = cluster(program);
    servers[0].admin().stream("S", ",\"num_replicas\":3");
    let ports: Vec<u16> = servers.iter().map(|server| server.port).collect();
    let mut config = Config::new("t");
    config.mode = mode;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let unrest = Unrest::begin(ports[1]);
    let mut holes = 0;
    for round in 0..4 {
        let store = Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
        let mut rig = Rig::new(store, config.clone(), &ports);
        rig.publish(round * each + 1..=(round + 1) * each);
        let half = |rig: &Rig| {
            let bounds = rig.store.bounds();
            let between = bounds
                .first_unsettled
                .map_or(0, |first| bounds.last + 1 - first);
            // Numbers are skipped behind a publisher that was killed, not in front of its last.
            let last = bounds.last.saturating_sub(each);
            if bounds.first_unsettled > Some(last) && bounds.unsettled < between {
                holes += 1;
            }
            bounds.unsettled < each / 2 && unrest.changes() as u64 > round
        };
        rig.until("half of them are settled, and the leader changed", half)
            .await;
        rig.write_and_die().await;
    }
    let store = Store::open(&path, Options::new().client_name(CLIENT)).unwrap();
    let mut rig = Rig::new(store, config, &ports);
    rig.drain().await;
    println!("{}: {} leaders", program.display(), unrest.changes());
    drop(unrest);
    let stored = servers[0].admin().contents("S").into_iter();
    let stored = stored.map(|(_, body)| String::from_utf8(body).unwrap().parse().unwrap());
    (stored.collect(), holes)
}

/// The first number that is not where it would be if each was there once.
fn wrong(stored: &[u64]) -> Option<(&u64, u64)> {
    stored
        .iter()
        .zip(1..)
        .find(|(one, expected)| **one != *expected)
}

#[tokio::test]
async fn chained_messages_are_stored_once_and_in_order_while_the_leader_changes() {
    for program in programs() {
        let (stored, _) = under_unrest(&program, Mode::Chained, 4_000).await;
        assert_eq!((stored.len(), wrong(&stored)), (16_000, None));
    }
}

/// A leader that changes may drop messages and take later ones: that is the hole that a chain closes,
/// and into which nothing falls here that is not sent again.
#[tokio::test]
async fn unchained_messages_are_all_stored_though_a_leader_that_changes_leaves_holes() {
    for program in programs() {
        let (mut stored, holes) = under_unrest(&program, Mode::Unchained, 4_000).await;
        println!("{}: {holes} looks at a hole", program.display());
        stored.sort_unstable();
        assert_eq!((stored.len(), wrong(&stored)), (16_000, None));
    }
}
