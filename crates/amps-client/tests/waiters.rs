//! Everybody who waits for room in the store gets it once it is there, whoever else found some in
//! between.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use amps_client::{Client, Message, PublishFailure};
use amps_store::{AppendError, Options, Store, StoreError};
use common::quirks::Quirks;
use common::{LONG, NAME, Peer, pair, started};

const BIG: usize = 2200;

fn options() -> Options {
    Options::new().capacity(1 << 20).client_name(NAME)
}

fn big(bytes: usize) -> Message {
    Message::publish("orders", vec![b'x'; bytes])
}

/// Fills the store until only the server can make room for a message of this size; returns the
/// highest sequence.
fn fill(client: &Client, bytes: usize) -> u64 {
    let begun = Instant::now();
    loop {
        match client.try_send(big(bytes)) {
            Ok(_) => {}
            Err(error) => match error.reason {
                PublishFailure::Store(AppendError::Full {
                    live,
                    limit,
                    needed,
                }) if live + needed > limit => return client.store().unwrap().bounds().last,
                _ => std::thread::yield_now(),
            },
        }
        assert!(begun.elapsed() < LONG, "it cannot be filled");
    }
}

/// A large message waits, a small one finds room, and the server takes everything. The wait once
/// never ended: the small one had consumed the wake-up meant for the large one.
async fn a_large_one_is_woken(store: Store) {
    let (builder, mut listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    fill(&client, BIG);
    let waiting = started(Box::pin(client.send(big(BIG)))).await;
    let last = client.try_publish("o", "s").expect("a small one fits");
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(last.sequence()).await;
    peer.ok(last.sequence()).await;
    client.publish_flush(LONG).await.unwrap();
    let done = tokio::time::timeout(LONG, waiting).await;
    done.expect("the store is empty, and who waits is not woken")
        .unwrap();
}

#[tokio::test]
async fn a_large_message_is_woken_after_a_small_one_found_room_in_memory() {
    a_large_one_is_woken(Store::memory(options()).unwrap()).await;
}

#[tokio::test]
async fn a_large_message_is_woken_after_a_small_one_found_room_in_a_file() {
    let dir = tempfile::tempdir().unwrap();
    a_large_one_is_woken(Store::open(dir.path().join("s"), options()).unwrap()).await;
}

#[tokio::test]
async fn a_large_message_is_woken_after_a_small_one_found_room_in_a_file_of_full_length() {
    let dir = tempfile::tempdir().unwrap();
    let options = options().preallocate(true);
    a_large_one_is_woken(Store::open(dir.path().join("s"), options).unwrap()).await;
}

/// The same with an operator's requeue, which is also a publish; and with one requeue that waits
/// while publishes of other sizes do.
#[tokio::test]
async fn publishes_and_requeues_of_every_size_wait_for_the_same_room() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(Store::memory(options()).unwrap())
        .open()
        .await
        .unwrap();
    client.publish("o", "refused").await.unwrap();
    client.send(big(4 * BIG)).await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.refuse(1, "no").await;
    peer.refuse(2, "no").await;
    client.publish_flush(LONG).await.unwrap();
    fill(&client, BIG);
    let sizes = [5 * BIG, BIG, 2 * BIG, 3 * BIG];
    let mut waiting = Vec::new();
    for bytes in sizes {
        waiting.push(started(Box::pin(client.send(big(bytes)))).await);
    }
    let failed = client.failed();
    let requeue = started(Box::pin(failed.requeue_wait(2, LONG))).await;
    let again = client.failed().requeue(1).unwrap().unwrap();
    peer.publishes_to(again).await;
    // From here on everything is accepted, so everybody finds room in turn.
    let server = tokio::spawn(async move {
        peer.ok(again).await;
        while let Some(frame) = peer.next().await {
            if let Some(sequence) = frame.sequence {
                peer.ok(sequence).await;
            }
        }
    });
    for (waiting, bytes) in waiting.into_iter().zip(sizes) {
        let sent = tokio::time::timeout(LONG, waiting).await;
        sent.unwrap_or_else(|_| panic!("{bytes} bytes wait for ever"))
            .unwrap();
    }
    let requeued = tokio::time::timeout(LONG, requeue).await;
    assert!(
        requeued
            .expect("the requeue waits for ever")
            .unwrap()
            .is_some()
    );
    client.publish_flush(LONG).await.unwrap();
    server.abort();
}

/// Blocking threads wait as tasks do.
#[test]
fn threads_that_wait_for_room_are_woken_as_well() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (builder, mut listener) = pair();
    let store = Quirks::of(Store::memory(options()).unwrap());
    let turned_away = store.turned_away.clone();
    let client = Arc::new(builder.store(store).open_blocking().unwrap());
    let last = fill(client.client(), BIG);
    let before = turned_away.load(Ordering::SeqCst);
    let threads: Vec<_> = [BIG, 3 * BIG, 2 * BIG]
        .map(|bytes| {
            let client = client.clone();
            std::thread::spawn(move || client.send_deadline(big(bytes), LONG))
        })
        .into();
    while turned_away.load(Ordering::SeqCst) < before + 3 {
        std::thread::yield_now();
    }
    let small = client.try_publish("o", "s").expect("a small one fits");
    assert_eq!(small.sequence(), last + 1);
    let server = runtime.spawn(async move {
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        while let Some(frame) = peer.next().await {
            if let Some(sequence) = frame.sequence.filter(|s| *s > last) {
                peer.ok(sequence).await;
            }
        }
    });
    for thread in threads {
        thread.join().unwrap().expect("it waits for ever");
    }
    server.abort();
}

/// Nobody waits for room that cannot come any more: the store was closed, or a sync failed.
#[tokio::test]
async fn who_waits_for_room_learns_that_the_store_has_ended() {
    let (builder, _listener) = pair();
    let store = Store::memory(options()).unwrap();
    let client = builder.store(store.clone()).open().await.unwrap();
    fill(&client, BIG);
    let waiting = started(Box::pin(client.send(big(BIG)))).await;
    amps_store::PublishStore::close(&store, 0).unwrap();
    let done = tokio::time::timeout(LONG, waiting).await;
    let error = done.expect("it waits for ever").unwrap_err();
    assert!(
        matches!(
            error.reason,
            PublishFailure::Store(AppendError::Store(StoreError::Closed))
        ),
        "{error:?}"
    );
}
