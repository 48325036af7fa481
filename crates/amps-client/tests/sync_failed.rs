//! A failing device is reported when it fails, at every level.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use amps_client::{Event, UnhandledAck};
use amps_store::testkit::{Bug, Call, FailingCalls, Fault, SimDisk, fail_calls, plant};
use amps_store::{Envelope, Level, PublishStore, Store, Unrecorded};
use common::{LONG, Peer, options, pair};
use tokio::sync::mpsc;

/// At `Disk` sending stops, which was reported; at the other levels it goes on, and once nothing
/// was said before the close failed.
#[tokio::test]
async fn a_failed_sync_is_told_when_it_happens() {
    for level in [Level::Interval(Duration::from_millis(1)), Level::Disk] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), options().level(level)).unwrap();
        // Called on the store's own thread: its next sync fails.
        store.observe(Arc::new(|_| {
            fail_calls(Some(FailingCalls {
                call: Call::SyncRange,
                after: 0,
                for_ever: true,
                errno: 5,
            }));
            ControlFlow::Break(())
        }));
        let (builder, _listener) = pair();
        let client = builder.store(store.clone()).open().await.unwrap();
        let mut events = client.events();
        client.publish("orders", "1").await.unwrap();
        let told = async {
            loop {
                if store.durable().sequence > 0 {
                    client.publish("orders", "more").await.unwrap();
                }
                let event = tokio::time::timeout(Duration::from_millis(1), events.next());
                if let Ok(Some(Event::StoreFailed { doing, error })) = event.await {
                    return (doing, error);
                }
            }
        };
        let (doing, error) = tokio::time::timeout(LONG, told).await.expect("it is told");
        assert_eq!(doing, "make messages durable");
        assert!(error.contains("evacuate"), "{error}");
        assert!(client.health().sync_failed);
    }
}

/// Refusals that a log without room could not take were told as if they waited in the store, and none
/// of their messages was left, though the file had them unsettled.
#[tokio::test(start_paused = true)]
async fn refusals_that_the_log_cannot_take_are_told_and_left() {
    // As in a log that lacked room when its device failed.
    plant(Some(Bug::ReserveSpent));
    let disk = SimDisk::new();
    let options = || options().capacity(64 << 10);
    let store = disk.open(options()).unwrap();
    store.raise_grant(10_000).unwrap();
    disk.fail(Fault::Sync(0));
    store.sync().unwrap_err();
    let mut last = 0;
    while let Ok(at) = store.append(&Envelope::publish("t"), &[b'7'; 200]) {
        last = at.sequence;
        store.settle_through(last.saturating_sub(10)).unwrap();
    }

    let (builder, mut listener) = pair();
    let (unhandled, mut acks) = mpsc::unbounded_channel::<UnhandledAck>();
    let client = builder
        .store(store.clone())
        .on_last_chance(move |ack| unhandled.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(last).await;
    let first = store.bounds().first_unsettled.unwrap();
    let reason = "not entitled to publish to this topic, and this is why";
    let (mut logged, mut held) = (0, 0);
    for sequence in first..=last {
        peer.refuse(sequence, reason).await;
        let ack = acks.recv().await.unwrap();
        assert_eq!(ack.sequence, Some(sequence));
        match ack.waits_in_store {
            true => logged += 1,
            false => held += 1,
        }
    }
    assert!(logged > 0 && held > 0, "{logged} in the log, {held} not");
    let health = client.health();
    assert_eq!(health.unsettled, 0);
    assert_eq!(health.counts.rejected, logged + held);
    assert_eq!(health.unrecorded_messages, held);
    assert_eq!(health.unrecorded_refusals, held);
    let closed = client.close(LONG).await;
    assert_eq!(closed.unrecorded, Unrecorded::new(held, held));
    assert_eq!(closed.left, held);
    let mut told = 0;
    while told < held {
        if let Event::RefusalHeld { late, .. } = events.next().await.unwrap() {
            assert!(!late);
            told += 1;
        }
    }
    drop((client, store));
    plant(None);

    let bounds = disk.open(options()).unwrap().bounds();
    assert_eq!((bounds.unsettled, bounds.rejections), (closed.left, logged));
}
