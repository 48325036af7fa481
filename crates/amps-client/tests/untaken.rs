//! Refusals without a failed-write handler: they are reported all the same, once in every run.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;

use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::{Event, Events, UnhandledAck};
use amps_store::{Envelope, PublishStore};
use common::{LONG, Peer, memory, options, pair};
use tokio::sync::mpsc;

async fn refused(events: &mut Events) -> (u64, bool) {
    loop {
        if let Event::Refused {
            sequence,
            earlier_run,
            ..
        } = tokio::time::timeout(LONG, events.next())
            .await
            .unwrap()
            .unwrap()
        {
            return (sequence, earlier_run);
        }
    }
}

/// The handler once got an ack that was made up of constants.
#[tokio::test]
async fn the_last_chance_handler_gets_the_ack_as_it_came() {
    let (builder, mut listener) = pair();
    let (told, mut acks) = mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .publish_ids(true)
        .on_last_chance(move |ack| told.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    client.publish("t", "1").await.unwrap();
    client.publish("t", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let frames = peer.publishes_to(2).await;
    // An ack of another kind, which names the message only by its id.
    peer.ack(&Ack {
        command_id: frames[1].id.as_deref(),
        reason: Some("not entitled"),
        ..Ack::new(AckKind::Processed, Status::Failure)
    })
    .await;
    peer.refuse(1, "bad").await;
    let by_id: UnhandledAck = acks.recv().await.unwrap();
    assert_eq!(by_id.kind, Some(AckKind::Processed));
    assert_eq!((by_id.figure, by_id.sequence), (None, Some(2)));
    assert_eq!(by_id.command_id.as_deref(), Some("2"));
    assert!(by_id.waits_in_store && !by_id.earlier_run);
    assert_eq!(by_id.reason.as_str(), "not entitled");
    let by_figure = acks.recv().await.unwrap();
    assert_eq!(by_figure.kind, Some(AckKind::Persisted));
    assert_eq!((by_figure.figure, by_figure.sequence), (Some(1), Some(1)));
    assert_eq!(by_figure.command_id, None);
    assert_eq!(refused(&mut events).await, (2, false));
    assert_eq!(refused(&mut events).await, (1, false));
}

/// At later opens only one line in the log once mentioned them. There are more of them than the
/// handler's queue holds, and one is refused only in this run: each must be reported once.
#[tokio::test]
async fn refusals_of_earlier_runs_are_told_again_once_and_all_of_them() {
    const EARLIER: u64 = 3000;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = amps_store::Store::open(&path, options()).unwrap();
    let envelope = Envelope::publish("t");
    for n in 1..=EARLIER + 1 {
        let until = std::time::Instant::now() + LONG;
        let appended = store.append_wait(&envelope, b"x", until).unwrap();
        let sequence = appended.sequence;
        if n <= EARLIER {
            store.reject(sequence, "no", 1).unwrap();
        }
    }
    store.close(EARLIER + 1).unwrap();
    drop(store);
    let (builder, mut listener) = pair();
    let (told, mut acks) = mpsc::unbounded_channel();
    let client = builder
        .store(amps_store::Store::open(&path, options()).unwrap())
        .on_last_chance(move |ack| told.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let (_, earlier_run) = refused(&mut events).await;
    assert!(earlier_run);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(EARLIER + 1).await;
    peer.refuse(EARLIER + 1, "now").await;
    let mut heard = BTreeSet::new();
    for _ in 0..=EARLIER {
        let ack: UnhandledAck = tokio::time::timeout(LONG, acks.recv())
            .await
            .expect("all are told")
            .unwrap();
        let sequence = ack.sequence.unwrap();
        assert!(heard.insert(sequence), "{sequence} is told twice");
        assert!(ack.waits_in_store);
        assert_eq!(ack.earlier_run, sequence <= EARLIER);
        let of_the_ack = (ack.kind, ack.figure);
        match ack.earlier_run {
            true => assert_eq!(of_the_ack, (None, None)),
            false => assert_eq!(of_the_ack, (Some(AckKind::Persisted), Some(EARLIER + 1))),
        }
    }
    assert_eq!(heard.len() as u64, EARLIER + 1);
    client.publish_flush(LONG).await.unwrap();
    client.close(LONG).await;
    assert!(acks.try_recv().is_err(), "and no more");
}
