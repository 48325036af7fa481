//! Every future of the client is dropped at an await point: what was asked for is done or not
//! done as its documentation says, and nothing is lost.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::Future;
use std::time::Duration;

use amps_client::{Client, Event, Message, Outcome, Request, Subscribe, Via};
use amps_store::{PublishStore, Store};
use common::quirks::Quirks;
use common::{Peer, fill, memory, options, pair, started};

const HOUR: Duration = Duration::from_secs(3600);

/// Polls a future once and drops it.
async fn cancelled(future: impl Future) {
    drop(started(Box::pin(future)).await);
}

async fn settle_one(client: &Client, peer: &mut Peer, sequence: u64) {
    let receipt = client.publish("t", "x").await.unwrap();
    assert_eq!(receipt.sequence(), sequence);
    peer.publishes_to(sequence).await;
    peer.ok(sequence).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
}

fn full() -> (
    Store,
    amps_client::Builder,
    amps_client::connector::MemoryListener,
) {
    let store = Store::memory(options().capacity(256 << 10)).unwrap();
    let (builder, listener) = pair();
    (store.clone(), builder.store(store), listener)
}

#[tokio::test(start_paused = true)]
async fn a_publish_that_waits_for_room_has_stored_nothing() {
    let (store, builder, _listener) = full();
    let client = builder.open().await.unwrap();
    let last = fill(&client);
    let message = || Message::publish("t", vec![1; 1000]);
    cancelled(client.publish("t", vec![1; 1000])).await;
    cancelled(client.delta_publish("t", vec![1; 1000])).await;
    cancelled(client.sow_delete_by_data("t", vec![1; 1000])).await;
    cancelled(client.send(message())).await;
    cancelled(client.send_deadline(message(), HOUR)).await;
    store.settle_through(last).unwrap();
    tokio::time::sleep(HOUR).await;
    assert_eq!(store.bounds().last, last);
    client.publish("t", "room").await.unwrap();
    assert_eq!(store.bounds().last, last + 1);
}

#[tokio::test]
async fn waiting_can_be_given_up_and_what_is_waited_for_comes_all_the_same() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipt = client.publish("t", "1").await.unwrap();
    cancelled(client.publish_flush(HOUR)).await;
    cancelled(client.wait_logged_on(HOUR)).await;
    cancelled(&mut receipt).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    cancelled(client.publish_flush(HOUR)).await;
    peer.publishes_to(1).await;
    peer.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    assert_eq!(client.publish_flush(HOUR).await.unwrap().persisted, 1);
}

#[tokio::test]
async fn a_wait_for_durability_can_be_given_up_and_asked_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let (builder, _listener) = pair();
    // Nothing is durable before the test says so.
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = std::sync::Mutex::new(held);
    let store = Quirks {
        before_sync: Some(Box::new(move || {
            held.lock().unwrap().recv().unwrap_or_default();
        })),
        ..Quirks::of(store)
    };
    let client = builder.store(store).open().await.unwrap();
    let receipt = client.publish("t", "1").await.unwrap();
    let asking = tokio::spawn(async move {
        cancelled(receipt.durable()).await;
        (receipt,)
    });
    release.send(()).unwrap();
    release.send(()).unwrap();
    let (receipt,) = asking.await.unwrap();
    receipt.durable().await.unwrap();
}

#[tokio::test]
async fn a_subscription_that_nobody_waits_for_is_given_up() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    // Before the logon.
    cancelled(client.subscribe(Subscribe::topic("t"))).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    for _ in 0..2 {
        let place = peer.next().await.unwrap();
        assert_eq!(place.verb, "Subscribe");
        peer.processed(&place).await;
        let end = peer.next().await.unwrap();
        assert_eq!(
            (end.verb.as_str(), end.sub_id),
            ("Unsubscribe", place.sub_id)
        );
        // The second time while it waits for the answer.
        cancelled(client.subscribe(Subscribe::topic("t"))).await;
    }
    drop(peer);
    // Only what was asked for last is placed again.
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let place = peer.next().await.unwrap();
    assert_eq!(place.verb, "Subscribe");
    peer.processed(&place).await;
    assert_eq!(peer.next().await.unwrap().verb, "Unsubscribe");
    settle_one(&client, &mut peer, 1).await;
}

#[tokio::test]
async fn a_command_that_nobody_waits_for_goes_out_and_its_answer_harms_nobody() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    cancelled(client.command(Request::new("stop_timer"))).await;
    let command = peer.next().await.unwrap();
    assert_eq!(command.verb, "stop_timer");
    let (answer, ()) = tokio::join!(client.command(Request::new("start_timer")), async {
        let second = peer.next().await.unwrap();
        peer.processed(&command).await;
        peer.processed(&second).await;
    });
    answer.unwrap();
    settle_one(&client, &mut peer, 1).await;
}

#[tokio::test]
async fn a_cancelled_next_takes_nothing_from_a_stream() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut events = client.events();
    cancelled(events.next()).await;
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let (subscription, ()) = tokio::join!(client.subscribe(Subscribe::topic("t")), async {
        let place = peer.next().await.unwrap();
        peer.processed(&place).await;
    });
    let mut subscription = subscription.unwrap();
    let mut states = 0;
    while let Some(event) = events.try_next() {
        states += u32::from(matches!(event, Event::State { .. }));
    }
    assert!(states >= 3, "connecting, connected, logged on: {states}");
    cancelled(events.next()).await;
    let id = format!("s{}", subscription.id());
    for n in 0..10u8 {
        cancelled(subscription.next()).await;
        peer.deliver(&id, "t", "1|1|", &[n]).await;
        let message = subscription.next().await.unwrap().unwrap();
        assert_eq!(&message.data[..], [n]);
    }
}

#[tokio::test]
async fn a_give_up_that_nobody_waits_for_is_done() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let receipt = client.publish("t", "1").await.unwrap();
    cancelled(client.failed().give_up(1)).await;
    assert!(matches!(receipt.await, Outcome::Rejected { .. }));
    assert_eq!(client.failed().list()[0].sequence, 1);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    settle_one(&client, &mut peer, 2).await;
}
