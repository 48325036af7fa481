//! Many publishers, little room, links that break: nobody waits for ever, and nothing is lost or
//! out of order.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use amps_client::{Backoff, Client, Event, Events, Outcome};
use amps_sandbox::{Fault, Sandbox};
use amps_store::{Options, Store};

/// Longer than any of it takes, even on a busy machine.
const LONG: Duration = Duration::from_secs(120);

const TASKS: u64 = 12;
const EACH: u64 = 200;

/// Every 17th is refused.
fn is_refused(n: u64) -> bool {
    n.is_multiple_of(17)
}

async fn publish(client: Client, task: u64) {
    let mut receipts = Vec::new();
    for n in 0..EACH {
        let kind = if is_refused(n) { "R" } else { "m" };
        let body = format!("{kind}{task}.{n} {}", "x".repeat((n % 90) as usize));
        let receipt = client.publish("t", body).await.unwrap();
        if n.is_multiple_of(13) {
            receipts.push((is_refused(n), receipt));
        }
        if n.is_multiple_of(97) {
            client.publish_flush(LONG).await.unwrap();
        }
    }
    for (refused, receipt) in receipts {
        match receipt.await {
            Outcome::Persisted { .. } => {}
            Outcome::Rejected { .. } if refused => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Breaks one link after the other, each while messages come in on it; how many that were.
async fn break_links(sandbox: Arc<Sandbox>, mut events: Events, broken: Arc<AtomicU64>) {
    for n in 0u64.. {
        sandbox.inject(&match n % 3 {
            0 => Fault::CloseAfter(1 + n % 40),
            1 => Fault::CutAfter(1 + n % 30),
            _ => Fault::CloseAfter(60),
        });
        loop {
            match events.next().await {
                Some(Event::LinkLost { .. }) => break,
                Some(_) => {}
                None => return,
            }
        }
        broken.fetch_add(1, Ordering::Relaxed);
    }
}

/// A flag said that somebody waits for room, and any success cleared it: two of five runs hung.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nobody_waits_for_room_for_ever() {
    let rounds = std::env::var("AMPS_ROUNDS").map_or(3, |rounds| rounds.parse().unwrap());
    for round in 0..rounds {
        let (sandbox, connector) = Sandbox::builder()
            .ack_interval(Duration::from_millis(round % 7))
            .reject_when(|c| c.body.starts_with(b"R").then(|| "no".to_owned()))
            .start_in_memory()
            .await
            .unwrap();
        let options = Options::new().client_name("s").capacity(96 << 10);
        let client = Client::builder("s")
            .server("tcp://m:0/amps/json")
            .connector(Arc::new(connector))
            .store(Store::memory(options).unwrap())
            .max_in_flight(1 + (round % 50), 1 << 20)
            .on_failed_write(|_| async { Ok(()) })
            .backoff(Backoff::new(
                Duration::from_millis(1),
                Duration::from_millis(3),
            ))
            .open()
            .await
            .unwrap();
        let sandbox = Arc::new(sandbox);
        let broken = Arc::new(AtomicU64::new(0));
        let breaking = tokio::spawn(break_links(
            sandbox.clone(),
            client.events(),
            broken.clone(),
        ));
        let tasks: Vec<_> = (0..TASKS)
            .map(|task| tokio::spawn(publish(client.clone(), task)))
            .collect();
        for task in tasks {
            let done = tokio::time::timeout(LONG, task).await;
            done.unwrap_or_else(|_| panic!("round {round} hangs: {:?}", client.health()))
                .unwrap();
        }
        breaking.abort();
        sandbox.clear_faults();
        // None took more than sixty messages.
        let broken = broken.load(Ordering::Relaxed);
        assert!(broken > 10, "{broken} links broke");
        let closed = tokio::time::timeout(LONG, client.close(LONG)).await;
        let report = closed.expect("the close hangs");
        assert_eq!((report.left, report.handlers), (0, 0), "{report:?}");
        let mut next: HashMap<String, u64> = HashMap::new();
        for entry in sandbox.journal().unwrap() {
            let text = String::from_utf8_lossy(&entry.bytes);
            let (task, n) = text[1..].split_once('.').unwrap();
            let n: u64 = n.split_once(' ').unwrap().0.parse().unwrap();
            let expected = next.entry(task.to_owned()).or_insert(1);
            assert!(n >= *expected, "task {task}: {n} after {expected}");
            let missing = (*expected..n).find(|n| !is_refused(*n));
            assert_eq!(missing, None, "task {task}");
            *expected = n + 1;
        }
        let last = (0..EACH).rev().find(|n| !is_refused(*n)).unwrap();
        assert_eq!(next.len() as u64, TASKS);
        assert!(next.values().all(|next| *next == last + 1), "{next:?}");
    }
}
