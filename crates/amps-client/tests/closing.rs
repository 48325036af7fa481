//! Closing a client: several times, in a handler, cancelled, with a store that hangs.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::{Client, Event, FlushError, Outcome};
use amps_store::{PublishStore, Store};
use common::quirks::Quirks;
use common::{Peer, memory, options, pair, started};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test(start_paused = true)]
async fn every_close_gets_the_same_true_report_and_the_earliest_deadline_counts() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let receipt = client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    // The server says nothing.
    peer.publishes_to(1).await;
    let begun = Instant::now();
    let patient = started(Box::pin(client.close(HOUR * 24))).await;
    let hasty = started(Box::pin(client.close(Duration::from_secs(5)))).await;
    let (patient, hasty) = tokio::join!(patient, hasty);
    assert_eq!(begun.elapsed(), Duration::from_secs(5));
    for report in [patient, hasty, client.close(HOUR).await] {
        assert!(
            report.clean && report.left == 1 && !report.pending,
            "{report:?}"
        );
        assert!(report.error.is_none());
    }
    assert_eq!(receipt.await, Outcome::Unknown);
}

#[tokio::test]
async fn a_close_that_is_cancelled_at_once_goes_on_closing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, _listener) = pair();
    let store = Store::open(&path, options()).unwrap();
    let client = builder.store(store).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    // Never polled a second time, while the client lives on.
    drop(started(Box::pin(client.close(Duration::ZERO))).await);
    let mut events = client.events();
    loop {
        if let Event::State {
            state: amps_client::ConnectionState::Shutdown,
            ..
        } = events.next().await.unwrap()
        {
            break;
        }
    }
    let reopened = Store::open(&path, options()).unwrap();
    assert_eq!(reopened.bounds().unsettled, 1);
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_close_what_is_being_closed() {
    // The handler closes before the driver waits for it, and then while it does.
    for late in [false, true] {
        let (builder, mut listener) = pair();
        let slot: Arc<Mutex<Option<Client>>> = Arc::default();
        let (told, mut reports) = mpsc::unbounded_channel();
        let (go, gate) = oneshot::channel::<()>();
        let gate = Arc::new(Mutex::new(Some(gate)));
        let inside = slot.clone();
        let client = builder
            .store(memory())
            .on_failed_write(move |_| {
                let (told, inside, gate) = (told.clone(), inside.clone(), gate.clone());
                async move {
                    let gate = gate.lock().unwrap().take().unwrap();
                    gate.await?;
                    let client = inside.lock().unwrap().take().unwrap();
                    Ok(told.send(client.close(HOUR).await)?)
                }
            })
            .open()
            .await
            .unwrap();
        *slot.lock().unwrap() = Some(client.clone());
        let receipt = client.publish("t", "1").await.unwrap();
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(1).await;
        peer.refuse(1, "no").await;
        receipt.await;
        let begun = Instant::now();
        let mut closing = Box::pin(client.close(HOUR));
        if late {
            // Everything is settled, so the driver has left its link and waits.
            closing = started(closing).await;
            assert!(peer.next().await.is_none());
        }
        go.send(()).unwrap();
        let (outside, inside) = tokio::join!(closing, reports.recv());
        let inside = inside.unwrap();
        assert!(begun.elapsed() < HOUR, "nobody waited for the other");
        assert!(outside.clean && !outside.pending);
        assert_eq!(outside.left, 0);
        assert_eq!((inside.pending, inside.clean), (late, !late));
    }
}

#[tokio::test]
async fn a_store_that_does_not_close_is_told_and_not_waited_for() {
    let (release, held) = std::sync::mpsc::channel::<()>();
    let held = Mutex::new(held);
    let store = Quirks {
        // Until the test is over.
        close: Some(Box::new(move || {
            held.lock().unwrap().recv().unwrap_or_default()
        })),
        ..Quirks::of(memory())
    };
    let (builder, _listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    let report = client.close(Duration::ZERO).await;
    assert!(!report.clean && report.left == 1, "{report:?}");
    let error = report.error.unwrap().to_string();
    assert!(error.contains("in time"), "{error}");
    release.send(()).unwrap();
}

#[tokio::test]
async fn what_is_published_up_to_the_last_moment_is_in_the_report() {
    let store = memory();
    let racing = store.clone();
    let store = Quirks {
        // After the last look at the store, before its close.
        close: Some(Box::new(move || {
            let envelope = amps_store::Envelope::publish("t");
            racing.append(&envelope, b"late").unwrap();
        })),
        ..Quirks::of(store)
    };
    let (builder, _listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    assert_eq!(client.close(Duration::ZERO).await.left, 1);
}

#[tokio::test(start_paused = true)]
async fn a_flush_covers_what_was_stored_when_it_was_called() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    let flush = started(Box::pin(client.publish_flush(HOUR))).await;
    // Stored before the driver could look.
    client.publish("t", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.ok(1).await;
    assert_eq!(flush.await.unwrap().left, 0);
    assert_eq!(client.health().unsettled, 1);
}

#[tokio::test]
async fn a_client_that_closes_ends_its_flushes() {
    let (builder, _listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    let flush = started(Box::pin(client.publish_flush(HOUR))).await;
    let (flushed, closed) = tokio::join!(flush, client.close(Duration::ZERO));
    assert!(
        matches!(flushed, Err(FlushError::Closed(report)) if report.left == 1),
        "{flushed:?}"
    );
    assert!(closed.clean);
}
