//! The publisher over the in-memory connector, against a scripted server.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use amps_client::connector::MemoryConnector;
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::{
    Backoff, Client, Event, FlushError, GapPolicy, LinkEnd, LogonError, Message, Outcome,
    PublishFailure, Via,
};
use amps_store::{AppendError, Level, PublishStore, Store};
use common::{LONG, NAME, Peer, builder, fill, memory, options, pair, started};

#[tokio::test]
async fn a_message_is_published_acked_and_settled() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let receipt = client.publish("orders", "one").await.unwrap();
    assert_eq!(receipt.sequence(), 1);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let frame = peer.next().await.unwrap();
    assert_eq!(
        (frame.sequence, frame.topic.as_deref()),
        (Some(1), Some("orders"))
    );
    assert_eq!(frame.body, b"one");
    assert!(frame.acks.contains(AckKind::Persisted));
    assert_eq!(frame.id, None);
    peer.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.persisted, report.left), (1, 0));
    let closed = client.close(LONG).await;
    assert!(closed.clean && closed.left == 0, "{closed:?}");
    assert_eq!(peer.next().await.map(|f| f.verb), None);
}

#[tokio::test]
async fn every_kind_of_message_goes_out_with_its_fields() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let delta = Message::delta_publish("t", "d")
        .expiration(60)
        .correlation_id("Y29y");
    client.send(delta).await.unwrap();
    let by_filter = client.sow_delete_by_filter("t", "/id = 1").await;
    assert_eq!(by_filter.unwrap().sequence(), 2);
    client.sow_delete_by_keys("t", ["1", "2"]).await.unwrap();
    client.sow_delete_by_data("t", "body").await.unwrap();
    client.delta_publish("t", "e").await.unwrap();
    client.try_publish("t", "f").unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let mut seen = Vec::new();
    for _ in 0..6 {
        let frame = peer.next().await.unwrap();
        assert!(frame.acks.contains(AckKind::Persisted));
        seen.push((frame.verb, frame.sequence, frame.filter, frame.body));
    }
    assert_eq!(
        seen[0],
        ("DeltaPublish".into(), Some(1), None, b"d".to_vec())
    );
    assert_eq!(
        seen[1],
        (
            "SowDelete".into(),
            Some(2),
            Some("/id = 1".into()),
            Vec::new()
        )
    );
    assert_eq!(seen[2], ("SowDelete".into(), Some(3), None, Vec::new()));
    assert_eq!(
        seen[3],
        ("SowDelete".into(), Some(4), None, b"body".to_vec())
    );
    assert_eq!(
        seen[4],
        ("DeltaPublish".into(), Some(5), None, b"e".to_vec())
    );
    assert_eq!(seen[5], ("Publish".into(), Some(6), None, b"f".to_vec()));
}

#[tokio::test]
async fn h10_what_only_the_logon_covers_is_never_called_acked() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = Vec::new();
    for n in 1..=5 {
        receipts.push(client.publish("orders", format!("{n}")).await.unwrap());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(5).await;
    peer.ok(2).await;
    assert_eq!(
        receipts.remove(1).await,
        Outcome::Persisted { via: Via::Ack }
    );
    drop(peer);
    let _peer = Peer::logged_on(&mut listener, 5).await;
    for receipt in receipts.split_off(1) {
        assert_eq!(receipt.await, Outcome::Persisted { via: Via::Logon });
    }
    assert_eq!(
        receipts.remove(0).await,
        Outcome::Persisted { via: Via::Ack }
    );
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!(
        (report.persisted, report.persisted_at_logon, report.rejected),
        (2, 3, 0)
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn h19_numbers_rise_on_every_link_while_eight_threads_publish() {
    const EACH: usize = 500;
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let total = (8 * EACH) as u64;
    let publishers: Vec<_> = (0..8)
        .map(|thread| {
            let client = client.clone();
            tokio::spawn(async move {
                for n in 0..EACH {
                    client
                        .publish("orders", format!("{thread}/{n}"))
                        .await
                        .unwrap();
                }
            })
        })
        .collect();
    let mut persisted = 0;
    let mut bodies: Vec<Vec<u8>> = Vec::new();
    let mut links = 0;
    while persisted < total {
        let mut peer = Peer::logged_on(&mut listener, persisted).await;
        links += 1;
        let mut highest = persisted;
        // Each link is cut with 50 messages unsettled.
        for _ in 0..400 {
            if highest == total {
                break;
            }
            let sequence = peer.next().await.unwrap();
            let (number, body) = (sequence.sequence.unwrap(), sequence.body);
            assert_eq!(number, highest + 1, "nothing overtakes, nothing is dropped");
            highest = number;
            if number > bodies.len() as u64 {
                bodies.push(body);
            } else {
                assert_eq!(
                    bodies[number as usize - 1],
                    body,
                    "same number, same message"
                );
            }
        }
        persisted = if highest == total {
            total
        } else {
            highest - 50
        };
        peer.ok(persisted).await;
        if persisted == total {
            client.publish_flush(LONG).await.unwrap();
        }
    }
    for publisher in publishers {
        publisher.await.unwrap();
    }
    assert!(links > 5);
    bodies.sort();
    bodies.dedup();
    assert_eq!(bodies.len() as u64, total);
    assert_eq!(client.health().unsettled, 0);
}

/// A topic that was not `'static` once had to be copied by the caller.
#[tokio::test]
async fn a_topic_may_come_from_a_configuration() {
    let configured: Vec<String> = vec!["orders".to_owned()];
    let topic: &str = configured[0].as_str();
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let sent = [
        Message::publish(topic, "1"),
        Message::delta_publish(topic, "2"),
        Message::sow_delete_by_filter(topic, "1=1"),
        Message::sow_delete_by_keys(topic, ["3"]),
        Message::sow_delete_by_data(topic, "4"),
    ];
    for message in sent {
        client.send(message).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    for sequence in 1..=5 {
        let frame = peer.next().await.unwrap();
        assert_eq!(
            (frame.sequence, frame.topic.as_deref()),
            (Some(sequence), Some(topic))
        );
    }
}

/// What was set as `expiration` was once read as `lifetime`, and other fields likewise.
#[test]
fn a_message_is_read_as_it_is_set_and_as_a_store_gives_it_back() {
    let message = Message::publish("t", "body")
        .user_tag("tag")
        .correlation_id("id")
        .expiration(7)
        .sow_key("key")
        .options("o");
    let store = memory();
    let appended = store
        .append(&message.envelope(), message.payload())
        .unwrap();
    let mut stored = amps_store::StoredMessage::new();
    assert!(store.get(appended.sequence, &mut stored).unwrap());
    assert_eq!(stored.envelope().unwrap(), message.envelope());
    assert_eq!(stored.payload(), message.payload());
    let envelope = message.envelope();
    assert_eq!(envelope.expiration, Some(7));
    assert_eq!(envelope.sow_key.as_deref(), Some("key"));
    assert_eq!(Message::from_stored(&stored), Some(message.clone()));
}

#[tokio::test]
async fn h32_a_publish_cancelled_while_waiting_stored_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let at_disk = options().capacity(256 << 10).level(Level::Disk);
    let store = Store::open(dir.path().join("store"), at_disk).unwrap();
    let (builder, mut listener) = pair();
    let client = builder.store(store.clone()).open().await.unwrap();
    let count = fill(&client);
    let waiting = Box::pin(client.publish("orders", vec![1; 1000]));
    drop(started(waiting).await);
    assert_eq!(store.bounds().last, count);
    // A deadline that has passed: it looks for room once.
    let late = client
        .send_deadline(Message::publish("orders", vec![2; 1000]), Duration::ZERO)
        .await;
    let error = late.unwrap_err();
    assert!(error.is_retryable());
    let PublishFailure::Deadline(last) = &error.reason else {
        panic!("{error}");
    };
    assert!(
        matches!(&**last, PublishFailure::Store(AppendError::Full { .. })),
        "{last}"
    );
    assert_eq!(error.message.payload()[0], 2);
    // Room wakes a publish that waits, and dropping its receipt does not stop the message.
    let last = client.clone();
    let waiting = Box::pin(async move { last.publish("orders", vec![3; 1000]).await });
    let waiting = tokio::spawn(started(waiting).await);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(count).await;
    peer.ok(count).await;
    drop(waiting.await.unwrap().unwrap());
    let frame = peer.next().await.unwrap();
    assert_eq!((frame.sequence, frame.body[0]), (Some(count + 1), 3));
    peer.ok(count + 1).await;
    assert_eq!(
        client.publish_flush(LONG).await.unwrap().persisted,
        count + 1
    );
}

#[tokio::test(start_paused = true)]
async fn h33_close_while_disconnected_says_what_is_left() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let client = builder(MemoryConnector::new())
        .store(Store::open(&path, options()).unwrap())
        .open()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for n in 0..1000 {
        receipts.push(client.publish("orders", format!("{n}")).await.unwrap());
    }
    let begun = tokio::time::Instant::now();
    let report = client.close(LONG).await;
    assert_eq!(begun.elapsed().as_secs(), LONG.as_secs());
    assert!(report.left == 1000 && report.clean, "{report:?}");
    assert_eq!(receipts.pop().unwrap().await, Outcome::Unknown);
    let refused = client.publish("orders", "late").await.unwrap_err();
    assert!(matches!(refused.reason, PublishFailure::Closed));
    drop((client, receipts));
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(store.bounds().unsettled, 1000);
}

#[tokio::test]
async fn a_flush_that_times_out_says_what_is_left_and_discards_nothing() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let receipt = client.publish("orders", "1").await.unwrap();
    client.publish("orders", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.ok(1).await;
    receipt.await;
    match client.publish_flush(Duration::from_millis(30)).await {
        Err(FlushError::Timeout { left, handlers }) => assert_eq!((left, handlers), (1, 0)),
        other => panic!("{other:?}"),
    }
    peer.ok(2).await;
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.persisted, report.left), (2, 0));
    assert!(report.all_persisted());
}

#[tokio::test]
async fn durable_asks_for_a_sync_at_every_level() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let client = builder(MemoryConnector::new())
        .store(store)
        .open()
        .await
        .unwrap();
    let receipt = client.publish("orders", "1").await.unwrap();
    tokio::time::timeout(LONG, receipt.durable())
        .await
        .unwrap()
        .unwrap();
    assert!(client.store().unwrap().durable().sequence >= 1);
}

#[tokio::test]
async fn a_refused_logon_is_told_with_its_reason() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    tokio::spawn(async move {
        loop {
            let (mut peer, logon) = Peer::accept(&mut listener).await;
            let mut ack = Ack::new(AckKind::Processed, Status::Failure);
            ack.command_id = logon.id.as_deref();
            ack.reason = Some("auth failure");
            peer.ack(&ack).await;
        }
    });
    match client.wait_logged_on(LONG).await {
        Err(LogonError::Refused { reason, .. }) => assert_eq!(reason.as_str(), "auth failure"),
        other => panic!("{other:?}"),
    }
    // Publishing goes on all the same.
    assert_eq!(client.publish("orders", "1").await.unwrap().sequence(), 1);
}

#[tokio::test]
async fn nobody_to_log_on_to_is_told_at_the_deadline() {
    let client = builder(MemoryConnector::new())
        .store(memory())
        .open()
        .await
        .unwrap();
    match client.wait_logged_on(Duration::from_millis(50)).await {
        Err(LogonError::Deadline {
            last: Some((server, _)),
            ..
        }) => {
            assert_eq!(server, "127.0.0.1:9007");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn bytes_that_are_not_amps_end_the_link_and_nothing_else() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .max_frame(1 << 20)
        .open()
        .await
        .unwrap();
    client.publish("orders", "1").await.unwrap();
    let garbage: [&[u8]; 4] = [
        &[0xFF; 64],
        &[0, 0, 0, 2, b'n', b'o'],
        &[
            0, 0, 0, 9, b'{', b'"', b'c', b'"', b':', b'{', b'{', b'{', b'}',
        ],
        &[0, 0, 0, 6, b'{', b'"', 0xFF, 0xFE, b'"', b'}'],
    ];
    for bytes in garbage {
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        assert_eq!(peer.next().await.unwrap().sequence, Some(1));
        peer.raw(bytes).await;
        assert!(peer.next().await.is_none());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.next().await.unwrap().sequence, Some(1));
    peer.ok(1).await;
    assert_eq!(client.publish_flush(LONG).await.unwrap().persisted, 1);
}

#[tokio::test]
async fn a_store_of_another_client_is_refused() {
    let error = Client::builder("other")
        .server("tcp://127.0.0.1:9007/amps/json")
        .store(memory())
        .open()
        .await
        .unwrap_err();
    assert!(error.to_string().contains(NAME), "{error}");
}

#[tokio::test]
async fn dropping_the_last_handle_closes_the_store_cleanly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, mut listener) = pair();
    let client = builder
        .store(Store::open(&path, options()).unwrap())
        .open()
        .await
        .unwrap();
    client.publish("orders", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    let mut events = client.events();
    drop(client);
    while events.next().await.is_some() {}
    assert!(peer.next().await.is_none());
    let store = Store::open(&path, options()).unwrap();
    // A clean close lowers the grant to what was handed over, so numbering does not skip.
    assert_eq!((store.bounds().unsettled, store.bounds().next), (1, 2));
}

#[tokio::test]
async fn h18_with_the_next_server_policy_a_server_that_is_behind_is_left() {
    let (builder, mut listener) = pair();
    let client = builder
        .server("tcp://127.0.0.1:9008/amps/json")
        .gap_policy(GapPolicy::NextServer)
        .store(memory())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let first = client.publish("orders", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    peer.ok(1).await;
    first.await;
    drop(peer);
    client.publish("orders", "2").await.unwrap();
    let mut behind = Peer::logged_on(&mut listener, 0).await;
    assert!(behind.next().await.is_none(), "nothing is sent to it");
    let mut good = Peer::logged_on(&mut listener, 1).await;
    assert_eq!(good.next().await.unwrap().sequence, Some(2));
    let told: Vec<Event> = std::iter::from_fn(|| events.try_next()).collect();
    assert!(told.iter().any(|e| matches!(
        e,
        Event::PublishGap {
            server: 0,
            settled: 1,
            unknown_publisher: true
        }
    )));
    let left: Vec<&str> = told
        .iter()
        .filter_map(|e| match e {
            Event::LinkLost {
                server,
                why: LinkEnd::PublishGap,
                ..
            } => Some(&**server),
            _ => None,
        })
        .collect();
    assert_eq!(left, ["127.0.0.1:9008"]);
}

#[tokio::test(start_paused = true)]
async fn h31_a_message_that_breaks_every_link_is_told_and_can_be_given_up() {
    let (builder, mut listener) = pair();
    let longest = Duration::from_secs(20);
    let client = builder
        .backoff(Backoff::new(Duration::from_millis(1), longest))
        .store(memory())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let receipt = client.publish("orders", "poison").await.unwrap();
    client.publish("orders", "fine").await.unwrap();
    for _ in 0..3 {
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        assert_eq!(peer.next().await.unwrap().sequence, Some(1));
    }
    loop {
        if let Event::Stalled { sequence, links } = events.next().await.unwrap() {
            assert_eq!((sequence, links), (1, 3));
            break;
        }
    }
    let delay = loop {
        if let Event::LinkLost { retry_in, .. } = events.next().await.unwrap() {
            break retry_in;
        }
    };
    assert!(delay >= Some(longest / 2), "{delay:?}");
    // What waits behind it can be seen, and goes on growing.
    client.publish("orders", "more").await.unwrap();
    let health = client.health();
    assert_eq!((health.unsettled, health.first_unsettled), (3, Some(1)));
    assert!(health.last_error.is_some());
    assert!(client.failed().give_up(1).await);
    assert!(matches!(receipt.await, Outcome::Rejected { .. }));
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.next().await.unwrap().sequence, Some(2));
    peer.publishes_to(3).await;
    assert_eq!(
        &client.failed().page(0, 1)[0]
            .original
            .as_ref()
            .unwrap()
            .payload()[..],
        b"poison"
    );
    assert!(!client.failed().give_up(99).await);
}
