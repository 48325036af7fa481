//! A store written by a user: it passes the public suite, and a real client sends from it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "own_store/store.rs"]
mod store;

use std::time::Duration;

use amps_client::{Backoff, Builder, Client, Outcome, Via};
use amps_sandbox::{Fault, Sandbox};
use amps_store::testkit::conformance::Suite;
use store::{OwnStore, Place};
use tokio::sync::mpsc;

const LONG: Duration = Duration::from_secs(60);

#[test]
fn it_keeps_what_a_store_promises() {
    Suite::persistent(|| {
        let place = Place::default();
        move || OwnStore::open(&place)
    })
    .check();
}

fn client(sandbox: &Sandbox, place: &Place) -> Builder {
    let backoff = Backoff::new(Duration::from_millis(1), Duration::from_millis(20));
    Client::builder("own")
        .server(sandbox.uri())
        .backoff(backoff)
        .store(OwnStore::open(place))
}

#[tokio::test]
async fn a_client_sends_from_it_over_broken_links_and_in_a_second_life() {
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(5))
        .reject_topic("forbidden")
        .start()
        .await
        .unwrap();
    let place = Place::default();
    // Published before any server listened, and left by a client that ends.
    let first = client(&sandbox, &place)
        .server("tcp://127.0.0.1:9/amps/json")
        .open()
        .await
        .unwrap();
    for n in 0..50 {
        first.publish("orders", format!("{n}")).await.unwrap();
    }
    first.close(Duration::ZERO).await;
    drop(first);

    let (told, mut failed) = mpsc::unbounded_channel();
    let second = client(&sandbox, &place)
        .on_failed_write(move |failed| {
            let told = told.clone();
            async move { Ok(told.send(failed)?) }
        })
        .open()
        .await
        .unwrap();
    let refused = second.publish("forbidden", "no").await.unwrap();
    assert!(matches!(refused.await, Outcome::Rejected { .. }));
    let refused = failed.recv().await.unwrap();
    assert_eq!(&refused.original.unwrap().payload()[..], b"no");
    // Links break, and the store is full now and then: it has room for a few hundred messages.
    sandbox.inject(&Fault::CutAfter(200));
    for n in 50..3000 {
        second.publish("orders", format!("{n}")).await.unwrap();
    }
    sandbox.clear_faults();
    let last = second.publish("orders", "3000").await.unwrap();
    last.durable().await.unwrap();
    let report = second.publish_flush(LONG).await.unwrap();
    assert_eq!(report.left, 0);
    assert!(matches!(
        last.await,
        Outcome::Persisted {
            via: Via::Ack | Via::Logon
        }
    ));
    assert!(second.health().logons > 5, "one link after the other broke");
    let bodies: Vec<String> = sandbox
        .journal()
        .unwrap()
        .into_iter()
        .map(|entry| String::from_utf8(entry.bytes).unwrap())
        .collect();
    let expected: Vec<String> = (0..=3000).map(|n| n.to_string()).collect();
    assert!(bodies == expected, "once and in order");
    assert!(second.close(LONG).await.clean);
    sandbox.stop().await;
}
