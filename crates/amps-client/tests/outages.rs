//! What is reported about outages: little, however long they take.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::connector::MemoryConnector;
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::{Backoff, Builder, Event, Events};
use amps_store::{Envelope, PublishStore, Store};
use common::{LONG, Peer, builder, memory, options};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::DefaultGuard;
use tracing::{Level, Metadata, Subscriber};

const MINUTE: Duration = Duration::from_secs(60);

/// Records what is logged at `info` and above, and counts the rest.
#[derive(Clone, Default)]
struct Said(Arc<Mutex<(Vec<String>, usize)>>);

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        match field.name() {
            "message" => write!(self.0, " {value:?}").unwrap(),
            name => write!(self.0, " {name}={value:?}").unwrap(),
        }
    }
}

impl Subscriber for Said {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &tracing::Event<'_>) {
        let level = *event.metadata().level();
        let mut said = self.0.lock().unwrap();
        if level > Level::INFO {
            said.1 += 1;
            return;
        }
        let mut text = Text(level.to_string());
        event.record(&mut text);
        said.0.push(text.0);
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

impl Said {
    fn listen() -> (Said, DefaultGuard) {
        let said = Said::default();
        let listening = tracing::subscriber::set_default(said.clone());
        (said, listening)
    }

    /// What was said since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().unwrap().0)
    }
}

/// Checks that it contains `words`, and nothing that only a programmer can read.
#[track_caller]
fn says(line: &str, words: &[&str]) {
    for word in words {
        assert!(line.contains(word), "{word:?} in {line}");
    }
    for odd in ["Some(", "None", "{ ", "Connect("] {
        assert!(!line.contains(odd), "{odd:?} in {line}");
    }
}

fn patient(connector: MemoryConnector) -> Builder {
    let (shortest, longest) = (Duration::from_secs(1), Duration::from_secs(20));
    builder(connector).backoff(Backoff::new(shortest, longest))
}

#[tokio::test(start_paused = true)]
async fn an_outage_is_told_when_it_begins_and_once_a_minute_while_messages_wait() {
    let (said, _listening) = Said::listen();
    let connector = MemoryConnector::new();
    let client = patient(connector.clone())
        .store(memory())
        .open()
        .await
        .unwrap();
    tokio::time::sleep(10 * MINUTE + MINUTE / 2).await;
    let lines = said.take();
    assert_eq!(lines.len(), 1, "nothing waits for its end: {lines:#?}");
    let words = ["WARN no connection", "nobody listens", "waiting=0"];
    says(&lines[0], &words);
    assert!(!lines[0].contains("oldest"), "{}", lines[0]);

    for n in 0..3 {
        client.publish("t", n.to_string()).await.unwrap();
    }
    tokio::time::sleep(10 * MINUTE).await;
    let lines = said.take();
    assert_eq!(lines.len(), 10, "{lines:#?}");
    for line in &lines {
        says(
            line,
            &["WARN still no connection", "waiting=3", "oldest_s="],
        );
        says(line, &["nobody listens", "attempts=", "for_s="]);
    }
    let attempts = said.0.lock().unwrap().1;
    assert!(attempts > 100, "each attempt is told at debug: {attempts}");

    let mut listener = connector.listen();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(3).await;
    peer.ok(3).await;
    client.publish_flush(LONG).await.unwrap();
    let lines = said.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    says(&lines[0], &["INFO logged on", "server=127.0.0.1:9007"]);
    says(
        &lines[0],
        &["waiting=3", "again=0", "outage_s=12", "attempts="],
    );
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_left_is_told_with_its_age() {
    let store = memory();
    let hour_ago = std::time::SystemTime::now() - 60 * MINUTE;
    let since = hour_ago.duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut envelope = Envelope::publish("t");
    envelope.published_at = since.as_micros() as u64;
    store.append(&envelope, b"old").unwrap();
    let (said, _listening) = Said::listen();
    let client = patient(MemoryConnector::new()).store(store);
    let client = client.open().await.unwrap();
    let mut events = client.events();
    let (waiting, oldest) = told(&mut events, |event| match event {
        Event::Outage {
            waiting, oldest, ..
        } => Some((waiting, oldest)),
        _ => None,
    })
    .await;
    assert_eq!(waiting, 1);
    let oldest = oldest.expect("the message says when it was published");
    assert!(oldest >= 60 * MINUTE, "{oldest:?}");
    let line = said.take().remove(0);
    let age = line.split("oldest_s=").nth(1).unwrap();
    let age: u64 = age.split(' ').next().unwrap().parse().unwrap();
    assert!(age >= 3600, "{line}");
}

/// A server that accepts every logon and hangs up: a pair of lines for each would be a flood.
#[tokio::test(start_paused = true)]
async fn links_that_are_lost_at_once_do_not_flood_the_log() {
    let (said, _listening) = Said::listen();
    let connector = MemoryConnector::new();
    let mut listener = connector.listen();
    let client = builder(connector)
        .backoff(Backoff::new(Duration::from_millis(100), 2 * MINUTE / 120))
        .store(memory())
        .open()
        .await
        .unwrap();
    client.publish("t", "1").await.unwrap();
    let hanging_up = async {
        for _ in 0..1000 {
            drop(Peer::logged_on(&mut listener, 0).await);
        }
    };
    let begun = tokio::time::Instant::now();
    hanging_up.await;
    let minutes = begun.elapsed().as_secs() as usize / 60;
    let lines = said.take();
    let about = |words: &str| lines.iter().filter(|line| line.contains(words)).count();
    let (lost, logons) = (about("WARN no connection"), about("INFO logged on"));
    assert!(lost <= 5 * (minutes + 2), "{lost} in {minutes} min");
    assert!(logons <= lost + 1, "{logons}, {lost}");
    assert!(about("lost soon after their logon") > 0, "{lines:#?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_acknowledges_nothing_is_told() {
    let (said, _listening) = Said::listen();
    let connector = MemoryConnector::new();
    let mut listener = connector.listen();
    let client = builder(connector).store(memory()).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    tokio::time::sleep(10 * MINUTE + MINUTE / 2).await;
    let lines = said.take();
    assert_eq!(lines.len(), 10, "the logon, then once a minute: {lines:#?}");
    says(&lines[0], &["INFO logged on", "waiting=1"]);
    for line in &lines[1..] {
        says(line, &["WARN connected", "settled", "waiting=1"]);
    }
    peer.ok(1).await;
    client.publish_flush(LONG).await.unwrap();
    tokio::time::sleep(10 * MINUTE).await;
    assert_eq!(said.take(), [""; 0], "nothing waits");
}

/// Two servers are down, each in its own way: that is one outage.
#[tokio::test(start_paused = true)]
async fn refused_logons_and_servers_that_take_turns_are_one_outage() {
    let (said, _listening) = Said::listen();
    let connector = MemoryConnector::new();
    let mut listener = connector.listen();
    let client = patient(connector)
        .server("tcp://127.0.0.2:9007/amps/json")
        .store(Store::memory(options()).unwrap())
        .open()
        .await
        .unwrap();
    for n in 0..20 {
        let (mut peer, logon) = Peer::accept(&mut listener).await;
        if n % 2 == 0 {
            let mut ack = Ack::new(AckKind::Processed, Status::Failure);
            ack.command_id = logon.id.as_deref();
            ack.reason = Some("not now");
            peer.ack(&ack).await;
        }
    }
    client.close(Duration::ZERO).await;
    let lines = said.take();
    assert_eq!(lines.len(), 1, "{lines:#?}");
    says(
        &lines[0],
        &["WARN no connection", "the logon was refused: not now"],
    );
}

async fn told<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(events.next().await.unwrap()) {
            return found;
        }
    }
}
