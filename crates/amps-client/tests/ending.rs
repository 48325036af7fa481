//! However the client's task ends, nobody waits for ever.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use amps_client::{
    Client, ConnectionState, Event, FlushError, LinkEnd, LogonError, Outcome, PublishFailure,
    Request, Subscribe, SubscriptionEnd,
};
use amps_store::{Store, StoreError};
use common::quirks::Quirks;
use common::{LONG, Peer, memory, options, pair};

/// A store of the application's own that panics as soon as there is a server to send to.
fn defective(store: impl Into<Option<Store>>) -> Quirks {
    let store = store.into().unwrap_or_else(memory);
    Quirks {
        read_unsettled: Some(Box::new(|| panic!("a defect of the application's"))),
        ..Quirks::of(store)
    }
}

async fn is_ended(client: &Client, events: &mut amps_client::Events) -> String {
    let why = loop {
        if let Event::ClientFailed { why } = events.next().await.unwrap() {
            break why;
        }
    };
    let refused = client.publish("t", "late").await.unwrap_err();
    assert!(
        matches!(refused.reason, PublishFailure::Closed),
        "{refused}"
    );
    let flushed = client.publish_flush(LONG).await;
    assert!(matches!(flushed, Err(FlushError::Closed(report)) if report.left == 1));
    let logon = client.wait_logged_on(LONG).await;
    assert!(matches!(logon, Err(LogonError::Closed)));
    assert!(client.command(Request::new("flush")).await.is_err());
    assert!(client.subscribe(Subscribe::topic("t")).await.is_err());
    assert!(!client.failed().give_up(1).await);
    let closed = client.close(LONG).await;
    assert!(!closed.clean && closed.left == 1, "{closed:?}");
    let health = client.health();
    assert_eq!(health.state, ConnectionState::Shutdown);
    assert!(matches!(
        health.last_error,
        Some((_, LinkEnd::ClientFailed(_)))
    ));
    why.to_owned()
}

#[tokio::test]
async fn a_panic_in_a_store_is_told_and_ends_every_wait() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let (builder, mut listener) = pair();
    let client = builder.store(defective(store)).open().await.unwrap();
    let mut events = client.events();
    let receipt = client.publish("t", "1").await.unwrap();
    let _peer = Peer::logged_on(&mut listener, 0).await;
    let why = is_ended(&client, &mut events).await;
    assert!(why.contains("panicked"), "{why}");
    assert_eq!(receipt.await, Outcome::Unknown);
}

#[test]
fn a_runtime_that_goes_away_is_told_and_ends_every_wait() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let here = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (builder, mut listener) = pair();
    let (client, mut events, receipt, mut subscription, _peer) = runtime.block_on(async {
        let client = builder.store(memory()).open().await.unwrap();
        let events = client.events();
        let receipt = client.publish("t", "1").await.unwrap();
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(1).await;
        let (subscription, ()) = tokio::join!(client.subscribe(Subscribe::topic("t")), async {
            let place = peer.next().await.unwrap();
            peer.processed(&place).await;
        });
        (client, events, receipt, subscription.unwrap(), peer)
    });
    drop(runtime);
    here.block_on(async {
        let why = is_ended(&client, &mut events).await;
        assert!(why.contains("runtime"), "{why}");
        assert_eq!(receipt.await, Outcome::Unknown);
        assert!(matches!(
            subscription.next().await,
            Some(Err(SubscriptionEnd::Closed))
        ));
    });
}

#[tokio::test]
async fn a_receipt_that_waits_for_durability_does_not_outwait_the_client() {
    let store = Quirks {
        durable: Some(Arc::default()),
        ..defective(None)
    };
    let (builder, mut listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    let receipt = client.publish("t", "1").await.unwrap();
    let waiting = tokio::spawn(async move { receipt.durable().await });
    let _peer = Peer::logged_on(&mut listener, 0).await;
    let durable = waiting.await.unwrap();
    assert!(matches!(durable, Err(StoreError::Closed)), "{durable:?}");
}

#[tokio::test]
async fn no_time_limit_is_too_long() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .connect_timeout(Duration::MAX)
        .logon_timeout(Duration::MAX)
        .command_timeout(Duration::MAX)
        .heartbeat(Duration::from_secs(u64::MAX))
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(Duration::MAX).await.unwrap();
    let start = peer.next().await.unwrap();
    assert_eq!(start.verb, "Heartbeat");
    peer.processed(&start).await;
    let (answer, ()) = tokio::join!(client.command(Request::new("flush")), async {
        let command = peer.next().await.unwrap();
        peer.processed(&command).await;
    });
    answer.unwrap();
    client.publish("t", "1").await.unwrap();
    peer.publishes_to(1).await;
    peer.ok(1).await;
    client.publish_flush(Duration::MAX).await.unwrap();
    assert!(client.close(Duration::MAX).await.clean);
}
