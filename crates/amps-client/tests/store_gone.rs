//! A store whose file is removed while a client publishes with it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::fs;
use std::time::Duration;

use amps_client::{Client, Event, Message, PublishFailure};
use amps_store::{AppendError, Level, Place, PublishStore, Store, StoreError};
use common::{LONG, Peer, options, pair, started};

async fn moved(client: &Client) -> Place {
    let mut events = client.events();
    let told = async {
        loop {
            if let Some(Event::StoreMoved { place }) = events.next().await {
                return place;
            }
        }
    };
    tokio::time::timeout(LONG, told).await.expect("it is told")
}

/// Every message was once called stored and durable, in a file that nobody would ever open again.
#[tokio::test]
async fn what_is_stored_is_sent_when_the_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (path, saved) = (dir.path().join("store"), dir.path().join("saved"));
    let store = Store::open(&path, options()).unwrap();
    let (builder, mut listener) = pair();
    let client = builder.store(store.clone()).open().await.unwrap();
    let receipt = client.publish("orders", "1").await.unwrap();
    receipt.durable().await.unwrap();
    let last = client.publish("orders", "2").await.unwrap();
    fs::remove_file(&path).unwrap();
    assert_eq!(moved(&client).await, Place::Gone);
    assert_eq!(
        moved(&client).await,
        Place::Gone,
        "for a later stream as well"
    );
    assert!(client.health().store_gone && !client.health().sync_failed);

    let refused = client.send(Message::publish("orders", "3")).await;
    let error = refused.expect_err("it would be lost");
    assert!(matches!(
        error.reason,
        PublishFailure::Store(AppendError::Store(StoreError::Gone))
    ));
    assert!(!error.is_retryable() && **error.message.payload() == *b"3");
    for receipt in [&receipt, &last] {
        let durable = receipt.durable().await;
        assert!(matches!(durable, Err(StoreError::Gone)), "{durable:?}");
    }

    // The server comes late, and gets both; the first one under a grant that was raised since.
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.publishes_to(2).await.len(), 2);
    peer.ok(1).await;
    receipt.await;
    let last = started(last).await;

    let fresh = store.evacuate(&saved, Level::Os).unwrap();
    assert_eq!(fresh.bounds().first_unsettled, Some(2));
    drop((client, last));
    fresh.close(u64::MAX).unwrap();
}

/// A give-up once waited for a device that nothing reaches any more, and so did everything behind
/// it.
#[tokio::test]
async fn a_give_up_keeps_nobody_back_when_the_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, mut listener) = pair();
    let store = Store::open(&path, options()).unwrap();
    let client = builder.store(store).open().await.unwrap();
    for text in ["1", "2"] {
        client.publish("orders", text).await.unwrap();
    }
    fs::remove_file(&path).unwrap();
    assert_eq!(moved(&client).await, Place::Gone);
    assert!(client.failed().give_up(1).await);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let sent = peer.publishes_to(2).await;
    assert_eq!(sent.len(), 1, "{sent:?}");
}

/// The close was once called clean, and what is left was called safe in the store.
#[tokio::test]
async fn a_close_says_that_the_file_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, options()).unwrap();
    let (builder, _listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    client.publish("orders", "1").await.unwrap();
    fs::remove_file(&path).unwrap();
    let closed = client.close(Duration::ZERO).await;
    assert_eq!(closed.left, 1);
    assert!(!closed.clean && matches!(closed.error, Some(StoreError::Gone)));
}
