//! What the server refuses, against a scripted one: who gets it back, when, and what can be done
//! with it.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::connector::MemoryConnector;
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::{Client, Event, FailedWrite, Message, Outcome, Via};
use amps_store::testkit::{SimDisk, intact_messages, resign, step};
use amps_store::{AppendError, Envelope, Level, PublishStore, Store, StoreError};
use common::quirks::Quirks;
use common::{LONG, Peer, builder, fill, memory, options, pair, started};
use tokio::sync::mpsc;

fn collect() -> (
    mpsc::UnboundedSender<FailedWrite>,
    mpsc::UnboundedReceiver<FailedWrite>,
) {
    mpsc::unbounded_channel()
}

#[tokio::test]
async fn h8_the_refused_message_comes_back_with_its_bytes() {
    let (builder, mut listener) = pair();
    let (failed, mut reports) = collect();
    let client = builder
        .store(memory())
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move { Ok(failed.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for n in 1..=5 {
        let message = Message::publish("orders", format!("body {n}")).user_tag(n.to_string());
        receipts.push(client.send(message).await.unwrap());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(5).await;
    peer.ok(2).await;
    peer.refuse(3, "not entitled").await;
    peer.ok(5).await;
    for (at, receipt) in receipts.into_iter().enumerate() {
        match (at + 1, receipt.await) {
            (3, Outcome::Rejected { reason }) => assert_eq!(reason.as_str(), "not entitled"),
            (3, other) => panic!("{other:?}"),
            (_, outcome) => assert_eq!(outcome, Outcome::Persisted { via: Via::Ack }),
        }
    }
    let report = reports.recv().await.unwrap();
    assert_eq!(
        (report.sequence, report.late, report.earlier_run),
        (3, false, false)
    );
    assert_eq!(
        (report.attempts, report.reason.as_str()),
        (1, "not entitled")
    );
    let original = report.original.unwrap();
    assert_eq!(
        (
            original.topic(),
            &original.payload()[..],
            &*original.envelope().user_tag
        ),
        ("orders", &b"body 3"[..], &b"3"[..])
    );
    let closed = client.close(LONG).await;
    assert!(closed.clean);
    assert!(reports.recv().await.is_none(), "called once");
    let counts = client.health().counts;
    assert_eq!(
        (counts.published, counts.persisted, counts.rejected),
        (5, 4, 1)
    );
}

#[tokio::test]
async fn h9_a_refusal_logged_by_a_dead_process_is_offered_before_any_network() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (first, mut listener) = pair();
    let store = Store::open(&path, options()).unwrap();
    let client = first.store(store).open().await.unwrap();
    let mut receipts = Vec::new();
    for n in 1..=5 {
        receipts.push(client.publish("orders", format!("body {n}")).await.unwrap());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(5).await;
    peer.ok(2).await;
    peer.refuse(3, "no").await;
    assert!(matches!(receipts.remove(2).await, Outcome::Rejected { .. }));
    // The process dies: everything but the file is gone. What had been written stays.
    let crashed = dir.path().join("crashed");
    std::fs::copy(&path, &crashed).unwrap();

    let (failed, mut reports) = collect();
    let store = Store::open(&crashed, options()).unwrap();
    let nobody = MemoryConnector::new();
    let client = builder(nobody)
        .store(store)
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move { Ok(failed.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let report = reports.recv().await.unwrap();
    assert_eq!(
        (report.sequence, report.earlier_run, report.attempts),
        (3, true, 0)
    );
    assert_eq!(&report.original.unwrap().payload()[..], b"body 3");
    let left = client.close(Duration::ZERO).await.left;
    assert_eq!(left, 2);
}

#[tokio::test]
async fn h12_a_late_refusal_reaches_the_handler_and_leaves_the_receipt() {
    let (builder, mut listener) = pair();
    let (failed, mut reports) = collect();
    let client = builder
        .store(memory())
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move { Ok(failed.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for n in 1..=10 {
        receipts.push(client.publish("orders", format!("{n}")).await.unwrap());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(10).await;
    peer.ok(10).await;
    peer.refuse(7, "replication").await;
    let report = reports.recv().await.unwrap();
    assert!(report.late && report.sequence == 7);
    assert_eq!(&report.original.unwrap().payload()[..], b"7");
    assert_eq!(
        receipts.remove(6).await,
        Outcome::Persisted { via: Via::Ack }
    );
}

#[tokio::test]
async fn h14_with_publish_ids_a_refusal_by_id_alone_is_attributed() {
    for ids in [false, true] {
        let (builder, mut listener) = pair();
        let (told, mut acks) = mpsc::unbounded_channel();
        let client = builder
            .store(memory())
            .publish_ids(ids)
            .on_last_chance(move |ack| drop(told.send(ack)))
            .open()
            .await
            .unwrap();
        let mut events = client.events();
        let mut receipts = Vec::new();
        for n in 1..=3 {
            receipts.push(client.publish("orders", format!("{n}")).await.unwrap());
        }
        // As other implementations do: no figure at logon, a processed failure with
        // nothing but the command id, successes one by one.
        let mut peer = Peer::logged_on(&mut listener, None).await;
        let frames = peer.publishes_to(3).await;
        assert_eq!(frames[1].id.as_deref(), ids.then_some("2"));
        let mut refusal = Ack::new(AckKind::Processed, Status::Failure);
        refusal.command_id = frames[1].id.as_deref();
        refusal.reason = Some("bad message");
        peer.ok(1).await;
        peer.ack(&refusal).await;
        peer.ok(3).await;
        let outcome = receipts.remove(1).await;
        let ack = acks.recv().await.unwrap();
        assert_eq!(ack.reason.as_str(), "bad message");
        if ids {
            assert!(matches!(outcome, Outcome::Rejected { .. }));
            assert_eq!((ack.sequence, ack.waits_in_store), (Some(2), true));
        } else {
            assert_eq!(outcome, Outcome::Persisted { via: Via::Ack });
            assert_eq!((ack.sequence, ack.waits_in_store), (None, false));
            let told = std::iter::from_fn(|| events.try_next())
                .any(|e| matches!(e, Event::Unattributed { figure: None, .. }));
            assert!(told, "reported loudly");
        }
    }
}

#[tokio::test]
async fn h25_a_publish_inside_a_handler_never_waits_for_room() {
    let store = Store::memory(options().capacity(256 << 10)).unwrap();
    let (builder, mut listener) = pair();
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let (told, mut results) = mpsc::unbounded_channel();
    let inside = slot.clone();
    let client = builder
        .store(store)
        .on_failed_write(move |_| {
            let client = inside.lock().unwrap().clone().unwrap();
            let told = told.clone();
            async move {
                fill(&client);
                let result = client.publish("orders", vec![0; 1000]).await;
                told.send(result.map(|r| r.sequence()).map_err(|e| e.is_retryable()))?;
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    *slot.lock().unwrap() = Some(client.clone());
    let count = fill(&client);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(count).await;
    peer.refuse(1, "no").await;
    assert_eq!(results.recv().await.unwrap(), Err(true));
    slot.lock().unwrap().take();
}

#[tokio::test]
async fn a_handler_that_fails_or_panics_leaves_the_refusal_waiting() {
    let (builder, mut listener) = pair();
    let calls = Arc::new(AtomicUsize::new(0));
    let (told, mut done) = mpsc::unbounded_channel();
    let counter = calls.clone();
    let client = builder
        .store(memory())
        .on_failed_write_blocking(move |f| {
            let call = counter.fetch_add(1, Ordering::SeqCst);
            told.send(f.sequence)?;
            match call {
                0 => Err("not today".into()),
                1 => panic!("really not"),
                _ => Ok(()),
            }
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    client.publish("orders", "1").await.unwrap();
    client.publish("orders", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.refuse(1, "no").await;
    peer.refuse(2, "no").await;
    let mut failures = Vec::new();
    while failures.len() < 2 {
        if let Some(Event::HandlerFailed { sequence, error }) = events.next().await {
            failures.push((sequence, error));
        }
    }
    assert_eq!(failures[0], (1, "not today".to_owned()));
    assert!(
        failures[1].0 == 2 && failures[1].1.contains("really not"),
        "{failures:?}"
    );
    assert_eq!(client.failed().list().len(), 2);
    assert_eq!(
        &client.failed().page(2, 1)[0]
            .original
            .as_ref()
            .unwrap()
            .payload()[..],
        b"2"
    );
    client.failed().offer_again();
    assert_eq!(
        [1, 2, 1, 2],
        [
            done.recv().await.unwrap(),
            done.recv().await.unwrap(),
            done.recv().await.unwrap(),
            done.recv().await.unwrap()
        ]
    );
    client.close(LONG).await;
    assert_eq!(calls.load(Ordering::SeqCst), 4);
}

/// A client at level Disk whose server refused its first message. Returns what was done, in
/// order, until the handler was called or the store failed.
async fn refused_at_disk(fails: bool) -> Vec<String> {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options().level(Level::Disk)).unwrap();
    let log = Arc::new(Mutex::new(Vec::new()));
    let note = |log: &Mutex<Vec<String>>, what: &str| log.lock().unwrap().push(what.to_owned());
    let (synced, called) = (log.clone(), log.clone());
    let store = Quirks {
        sync: Some(Box::new(move || {
            note(&synced, "sync");
            fails.then(|| StoreError::SyncFailed("the device is gone".into()))
        })),
        ..Quirks::of(store)
    };
    let (builder, mut listener) = pair();
    let client = builder
        .store(store)
        .on_failed_write(move |failed| {
            note(&called, "handler");
            async move {
                assert!(failed.original.is_some());
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    client.publish("orders", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    // It is sent only once it is durable.
    peer.publishes_to(1).await;
    assert!(client.store().unwrap().durable().sequence >= 1);
    peer.refuse(1, "no").await;
    if fails {
        loop {
            if let Event::StoreFailed { doing, .. } = events.next().await.unwrap() {
                break note(&log, doing);
            }
        }
    }
    client.close(LONG).await;
    log.lock().unwrap().clone()
}

#[tokio::test]
async fn at_disk_a_handler_is_called_only_when_the_refusal_is_durable() {
    assert_eq!(refused_at_disk(false).await, ["sync", "handler"]);
    assert_eq!(
        refused_at_disk(true).await,
        ["sync", "make a refusal durable"]
    );
}

#[tokio::test]
async fn the_count_of_attempts_survives_a_decline_and_needs_no_handler() {
    for with_handler in [true, false] {
        let (builder, mut listener) = pair();
        let (told, mut reports) = mpsc::unbounded_channel();
        let mut builder = builder.store(memory());
        if with_handler {
            builder = builder.on_failed_write(move |failed| {
                let told = told.clone();
                async move {
                    told.send(failed)?;
                    Err("not today".into())
                }
            });
        }
        let client = builder.open().await.unwrap();
        let receipt = client.publish("orders", "1").await.unwrap();
        for _ in 0..2 {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            peer.publishes_to(1).await;
        }
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(1).await;
        peer.refuse(1, "no").await;
        receipt.await;
        if with_handler {
            assert_eq!(reports.recv().await.unwrap().attempts, 3);
            client.failed().offer_again();
            assert_eq!(reports.recv().await.unwrap().attempts, 3);
        }
        assert_eq!(client.failed().page(0, 1)[0].attempts, 3);
    }
}

#[tokio::test]
async fn refusals_can_be_accepted_and_requeued_by_hand() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    for n in 1..=3 {
        client.publish("orders", format!("{n}")).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(3).await;
    for n in 1..=3 {
        peer.refuse(n, "no").await;
    }
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.rejected, report.persisted, report.left), (3, 0, 0));
    assert!(client.failed().accept(1).unwrap());
    assert!(!client.failed().accept(1).unwrap());
    assert_eq!(client.failed().requeue(2).unwrap(), Some(4));
    let frame = peer.next().await.unwrap();
    assert_eq!((frame.sequence, &frame.body[..]), (Some(4), &b"2"[..]));
    let waiting: Vec<u64> = client.failed().list().iter().map(|r| r.sequence).collect();
    assert_eq!(waiting, [3]);
}

/// A requeue once tried only once, and called a store full that was about to free a segment.
#[tokio::test]
async fn every_refusal_of_a_half_full_store_is_requeued() {
    let disk = SimDisk::new();
    let store = disk.open(options().capacity(1 << 20)).unwrap();
    let chores = || while step(&store).unwrap() {};
    for _ in 0..300 {
        let append = || store.append(&Envelope::publish("t"), &[7; 1000]);
        let at = append().or_else(|_| {
            chores();
            append()
        });
        store.reject(at.unwrap().sequence, "no", 1).unwrap();
    }
    let (builder, _listener) = pair();
    let client = builder.store(store.clone()).open().await.unwrap();
    let failed = client.failed();
    let mut turned_away = 0;
    for sequence in 1..=300 {
        let requeued = match failed.requeue(sequence) {
            Ok(requeued) => requeued,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                turned_away += 1;
                let waiting = started(Box::pin(failed.requeue_wait(sequence, LONG))).await;
                chores();
                waiting.await.unwrap()
            }
        };
        assert_eq!(requeued, Some(300 + sequence));
    }
    assert!(turned_away > 0, "there was always room");
    assert!(failed.list().is_empty());
    let gone = failed.requeue_wait(1, Duration::ZERO).await;
    assert_eq!(gone.unwrap(), None);
}

#[tokio::test]
async fn close_lets_the_handler_see_the_refusals_that_came_last() {
    let (builder, mut listener) = pair();
    let (failed, mut reports) = collect();
    let client = builder
        .store(memory())
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move {
                tokio::task::yield_now().await;
                Ok(failed.send(f)?)
            }
        })
        .open()
        .await
        .unwrap();
    for n in 1..=200 {
        client.publish("orders", format!("{n}")).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(200).await;
    let closing = tokio::spawn({
        let client = client.clone();
        async move { client.close(LONG).await }
    });
    for n in 1..=200 {
        peer.refuse(n, "no").await;
    }
    let report = closing.await.unwrap();
    assert!(report.clean && report.left == 0);
    for n in 1..=200 {
        assert_eq!(reports.recv().await.unwrap().sequence, n);
    }
    assert!(client.failed().list().is_empty());
}

/// The handler would have been shown no message, and its `Ok` would have removed the bytes.
#[tokio::test(start_paused = true)]
async fn a_refused_message_that_cannot_be_read_waits_for_an_operator_and_no_handler_has_it() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    for n in 1..=3 {
        let payload = format!("body {n}");
        store
            .append(&Envelope::publish("t"), payload.as_bytes())
            .unwrap();
    }
    store.sync().unwrap();
    drop(store);
    let mut bytes = disk.bytes();
    let second = intact_messages(&bytes)
        .into_iter()
        .find(|m| m.sequence == 2);
    bytes[second.unwrap().offset as usize + 40] = 9;
    resign(&mut bytes);
    disk.restore(bytes);
    let (builder, mut listener) = pair();
    let (failed, mut reports) = collect();
    let store = disk.open(options()).unwrap();
    let client = builder
        .store(store)
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move { Ok(failed.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    // It was given number 2, which no server sees, and nothing ends the link.
    assert_eq!(peer.publishes_to(3).await.len(), 2);
    peer.refuse(3, "not entitled").await;
    peer.ok(1).await;
    // In order of sequence: the refusal of 2 was passed over before.
    assert_eq!(reports.recv().await.unwrap().sequence, 3);
    let left = client.publish_flush(LONG).await.unwrap();
    assert_eq!((left.rejected, left.left), (2, 0));
    let waits = client.failed().page(0, 9);
    assert_eq!((waits.len(), waits[0].sequence), (1, 2));
    assert!(waits[0].original.is_none());
    assert!(matches!(
        client.failed().requeue(2),
        Err(AppendError::Envelope(_))
    ));
    let mut told = 0;
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::LinkLost { .. }));
        told += u32::from(matches!(event, Event::Unreadable { sequence: 2, .. }));
    }
    assert!(told > 0);
    assert!(client.failed().accept(2).unwrap());
}
