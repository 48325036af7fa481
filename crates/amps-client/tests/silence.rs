//! A server that falls silent is left for the next one, unless its silence means nothing. All of
//! this with the default heartbeats.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use amps_client::connector::{MemoryConnector, MemoryListener};
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::{
    Backoff, Client, CommandError, ConnectionState, Event, Events, LinkEnd, Outcome, Request,
    Subscribe, Via,
};
use amps_store::Store;
use tokio::time::Instant;

use common::{Frame, NAME, Peer, memory};

const FIRST: &str = "first.example:9007";
const SECOND: &str = "second.example:9007";

/// A client with two servers, and with the defaults for heartbeats.
async fn client(store: impl Into<Option<Store>>) -> (Client, Events, MemoryListener) {
    let connector = MemoryConnector::new();
    let listener = connector.listen();
    let mut builder = Client::builder(NAME)
        .server(format!("tcp://{FIRST}/amps/json"))
        .server(format!("tcp://{SECOND}/amps/json"))
        .connector(Arc::new(connector))
        .backoff(Backoff::new(
            Duration::from_millis(1),
            Duration::from_millis(5),
        ));
    if let Some(store) = store.into() {
        builder = builder.store(store);
    }
    let client = builder.open().await.unwrap();
    let events = client.events();
    (client, events, listener)
}

/// The next link, logged on, and the request for heartbeats on it.
async fn asked(listener: &mut MemoryListener, figure: u64) -> (Peer, Frame) {
    let mut peer = Peer::logged_on(listener, figure).await;
    let start = peer.next().await.unwrap();
    assert_eq!(
        (start.verb.as_str(), start.options.as_deref()),
        ("Heartbeat", Some("start,10")),
        "heartbeats are asked for by default"
    );
    (peer, start)
}

/// The next frame that is not a beat.
async fn next(peer: &mut Peer) -> Frame {
    loop {
        let frame = peer.next().await.unwrap();
        match frame.verb.as_str() {
            "Heartbeat" => assert_eq!(frame.options.as_deref(), Some("beat")),
            _ => return frame,
        }
    }
}

/// Reads, and says nothing, until the client leaves; returns how long it stayed.
async fn is_left(peer: &mut Peer) -> Duration {
    let begun = Instant::now();
    while peer.next().await.is_some() {}
    begun.elapsed()
}

/// The first server was left for its silence, and the second took over.
async fn second_took_over(events: &mut Events) {
    let mut left = false;
    loop {
        match events.next().await.unwrap() {
            Event::LinkLost { server, why, .. } => {
                assert_eq!((server.as_str(), why), (FIRST, LinkEnd::HeartbeatLost));
                left = true;
            }
            Event::State {
                state: ConnectionState::LoggedOn,
                server,
            } if left => {
                assert_eq!(server, SECOND);
                return;
            }
            _ => {}
        }
    }
}

fn was_left(events: &mut Events) -> bool {
    std::iter::from_fn(|| events.try_next()).any(|event| matches!(event, Event::LinkLost { .. }))
}

fn whole_seconds(took: Duration, seconds: u64) {
    assert_eq!(took.as_secs(), seconds, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_publisher_leaves_a_server_that_confirmed_heartbeats_and_went_silent() {
    let (client, mut events, mut listener) = client(memory()).await;
    let (mut first, start) = asked(&mut listener, 0).await;
    first.processed(&start).await;
    let receipt = client.publish("orders", "1").await.unwrap();
    assert_eq!(next(&mut first).await.sequence, Some(1));
    whole_seconds(is_left(&mut first).await, 25);

    let (mut second, _) = asked(&mut listener, 0).await;
    assert_eq!(next(&mut second).await.sequence, Some(1));
    second.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    second_took_over(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_subscriber_leaves_a_server_that_confirmed_heartbeats_and_went_silent() {
    let (client, mut events, mut listener) = client(None).await;
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t").bookmark("0")).await }
    });
    let (mut first, start) = asked(&mut listener, 0).await;
    first.processed(&start).await;
    let placed = next(&mut first).await;
    first.processed(&placed).await;
    let mut reader = subscribing.await.unwrap().unwrap();
    let id = placed.sub_id.unwrap();
    first.deliver(&id, "t", "1|1|", b"a").await;
    assert_eq!(&*reader.next().await.unwrap().unwrap().data, b"a");
    // It only subscribes, and so waits for nothing but messages.
    whole_seconds(is_left(&mut first).await, 25);

    let (mut second, start) = asked(&mut listener, 0).await;
    second.processed(&start).await;
    let placed = next(&mut second).await;
    assert_eq!(placed.bookmark.as_deref(), Some("1|1|"));
    second.processed(&placed).await;
    second
        .deliver(&placed.sub_id.unwrap(), "t", "1|2|", b"b")
        .await;
    assert_eq!(&*reader.next().await.unwrap().unwrap().data, b"b");
    second_took_over(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refused_heartbeats_is_not_left_for_its_silence() {
    let (client, mut events, mut listener) = client(memory()).await;
    let (mut first, start) = asked(&mut listener, 0).await;
    let mut ack = Ack::new(AckKind::Processed, Status::Failure);
    ack.command_id = start.id.as_deref();
    first.ack(&ack).await;
    let receipt = client.publish("orders", "1").await.unwrap();
    assert_eq!(next(&mut first).await.sequence, Some(1));
    let quiet = tokio::time::timeout(Duration::from_secs(10_000), first.next()).await;
    assert!(quiet.is_err(), "it refused beats, and gets none: {quiet:?}");
    assert!(!was_left(&mut events));
    first.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
}

#[tokio::test(start_paused = true)]
async fn a_server_that_answers_nothing_is_left_only_while_it_owes_an_answer() {
    let (client, mut events, mut listener) = client(memory()).await;
    let (mut first, _) = asked(&mut listener, 0).await;
    for sequence in 1..=3 {
        // An idle link is left alone, however long that takes.
        let idle = tokio::time::timeout(Duration::from_secs(10_000), is_left(&mut first)).await;
        assert!(idle.is_err(), "left after {idle:?}");
        assert!(!was_left(&mut events));
        client.publish("orders", "x").await.unwrap();
        assert_eq!(next(&mut first).await.sequence, Some(sequence));
        // It is slow, but never silent for too long.
        tokio::time::sleep(Duration::from_secs(29)).await;
        first.ok(sequence).await;
        client.publish_flush(common::LONG).await.unwrap();
    }
    let receipt = client.publish("orders", "4").await.unwrap();
    whole_seconds(is_left(&mut first).await, 30);
    let (mut second, _) = asked(&mut listener, 3).await;
    assert_eq!(next(&mut second).await.sequence, Some(4));
    second.ok(4).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    second_took_over(&mut events).await;
}

#[tokio::test(start_paused = true)]
async fn a_command_without_an_answer_is_owed_one_too() {
    let (client, mut events, mut listener) = client(None).await;
    let (mut first, _) = asked(&mut listener, 0).await;
    let idle = tokio::time::timeout(Duration::from_secs(10_000), is_left(&mut first)).await;
    assert!(idle.is_err(), "left after {idle:?}");
    let patient = Request::new("sow_delete").timeout(Duration::from_secs(1000));
    let (answer, took) = tokio::join!(client.command(patient), is_left(&mut first));
    assert!(
        matches!(answer, Err(CommandError::Disconnected)),
        "{answer:?}"
    );
    whole_seconds(took, 30);
    let _second = asked(&mut listener, 0).await;
    second_took_over(&mut events).await;
}
