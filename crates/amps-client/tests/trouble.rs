//! A store in trouble, and limits on what may be on its way, as an application sees them through
//! a whole client.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use amps_client::protocol::Ack;
use amps_client::{Event, Events, LinkEnd, Outcome, Via};
use amps_store::{Level, ReadError, Rejected, Store, StoreError};
use common::quirks::Quirks;
use common::{Peer, memory, options, pair};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

const HOUR: Duration = Duration::from_secs(3600);

async fn told<T>(events: &mut Events, mut wanted: impl FnMut(Event) -> Option<T>) -> T {
    loop {
        if let Some(found) = wanted(events.next().await.unwrap()) {
            return found;
        }
    }
}

/// True this many times, then false.
fn times(count: u64) -> impl Fn() -> bool {
    let left = AtomicU64::new(count);
    move || {
        left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| {
            left.checked_sub(1)
        })
        .is_ok()
    }
}

#[tokio::test(start_paused = true)]
async fn a_grant_that_cannot_be_raised_stops_sending_until_it_can() {
    let (builder, mut listener) = pair();
    let full = times(3);
    let store = Quirks {
        raise_grant: Some(Box::new(move || {
            full().then(|| StoreError::Io {
                what: "write the superblock",
                error: "no space".to_owned(),
            })
        })),
        ..Quirks::of(memory())
    };
    let client = builder.store(store).open().await.unwrap();
    let mut events = client.events();
    let receipt = client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let error = told(&mut events, |event| match event {
        Event::StoreFailed { doing, error } => Some((doing, error)),
        _ => None,
    });
    let (doing, error) = error.await;
    assert_eq!(doing, "raise the send grant");
    assert!(error.contains("no space"), "{error}");
    let stopped = told(&mut events, |event| match event {
        Event::SendingStopped { through } => Some(through),
        _ => None,
    });
    assert_eq!(stopped.await, 0);
    // It is tried again without being asked, reported only once, and its end is reported.
    loop {
        match events.next().await.unwrap() {
            Event::SendingResumed => break,
            Event::SendingStopped { .. } | Event::StoreFailed { .. } => panic!("told twice"),
            _ => {}
        }
    }
    peer.publishes_to(1).await;
    peer.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
}

#[tokio::test(start_paused = true)]
async fn at_disk_nothing_goes_out_before_it_is_durable() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options().level(Level::Disk)).unwrap();
    let durable = Arc::new(AtomicBool::new(false));
    let (builder, mut listener) = pair();
    let quirks = Quirks {
        durable: Some(durable.clone()),
        ..Quirks::of(store.clone())
    };
    let client = builder.store(quirks).open().await.unwrap();
    let receipt = client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    assert!(timeout(HOUR, peer.next()).await.is_err(), "not yet");
    durable.store(true, Ordering::SeqCst);
    // The store's next sync rings the bell.
    client.publish("t", "2").await.unwrap();
    assert_eq!(peer.publishes_to(2).await.len(), 2);
    peer.ok(2).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
}

#[tokio::test]
async fn a_late_refusal_without_room_goes_to_the_last_chance_handler_and_is_counted() {
    let (builder, mut listener) = pair();
    let store = Quirks {
        reject: Some(Box::new(|| Some(Rejected::NoRoom))),
        ..Quirks::of(memory())
    };
    let (unhandled, mut acks) = mpsc::unbounded_channel();
    let client = builder
        .store(store)
        .on_failed_write(|failed| async move { panic!("it is not in the log: {failed:?}") })
        .on_last_chance(move |ack| unhandled.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let receipt = client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    peer.ok(1).await;
    assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    peer.ack(&Ack::refused(Some(1), None, "too late")).await;
    let ack = acks.recv().await.unwrap();
    assert_eq!(
        (ack.sequence, ack.reason.as_str(), ack.waits_in_store),
        (Some(1), "too late", false)
    );
    let refused = told(&mut events, |event| match event {
        Event::RefusalNotLogged { sequence, reason } => Some((sequence, reason)),
        _ => None,
    });
    let (sequence, reason) = refused.await;
    assert_eq!((sequence, reason.as_str()), (1, "too late"));
    assert_eq!(client.health().counts.late, 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_cannot_be_read_ends_the_link_and_is_never_skipped() {
    let (builder, mut listener) = pair();
    let damaged = times(2);
    let store = Quirks {
        read_unsettled: Some(Box::new(move || {
            let damage = ReadError::Damaged {
                sequence: 1,
                offset: 8192,
            };
            damaged().then_some(damage)
        })),
        ..Quirks::of(memory())
    };
    let client = builder.store(store).open().await.unwrap();
    let mut events = client.events();
    client.publish("t", "1").await.unwrap();
    client.publish("t", "2").await.unwrap();
    for _ in 0..2 {
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        assert!(peer.next().await.is_none(), "2 does not overtake");
        let unreadable = told(&mut events, |event| match event {
            Event::Unreadable { sequence, error } => Some((sequence, error)),
            _ => None,
        });
        let (sequence, error) = unreadable.await;
        assert_eq!(sequence, 1);
        assert!(error.contains("8192"), "{error}");
        let end = told(&mut events, |event| match event {
            Event::LinkLost { why, .. } => Some(why),
            _ => None,
        });
        assert!(matches!(end.await, LinkEnd::Store(_)));
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.publishes_to(2).await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_of_events_loses_the_oldest_and_is_told_how_many() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let (mut slow, mut fast) = (client.events(), client.events());
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let mut all = 0;
    for n in 0..3000 {
        let reason = n.to_string();
        peer.ack(&Ack::refused(None, None, &reason)).await;
        loop {
            all += 1;
            if let Event::Unattributed { .. } = fast.next().await.unwrap() {
                break;
            }
        }
    }
    let first = slow.next().await.unwrap();
    let oldest = 3000 - 1024;
    assert!(
        matches!(&first, Event::Unattributed { reason, .. } if reason.as_str() == oldest.to_string()),
        "{first:?}"
    );
    let mut read = 1;
    while slow.try_next().is_some() {
        read += 1;
    }
    assert_eq!(slow.dropped() + read, all);
    assert_eq!(fast.dropped(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_more_is_on_the_way_than_allowed_and_answers_make_room() {
    for (messages, bytes, most) in [(3, 1 << 20, 3), (1000, 25, 3)] {
        let (builder, mut listener) = pair();
        let client = builder
            .store(memory())
            .max_in_flight(messages, bytes)
            .open()
            .await
            .unwrap();
        for _ in 0..10 {
            client.publish("t", "ten bytes.").await.unwrap();
        }
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(most).await;
        assert!(timeout(HOUR, peer.next()).await.is_err());
        peer.ok(2).await;
        peer.publishes_to(most + 2).await;
        assert!(timeout(HOUR, peer.next()).await.is_err());
        peer.refuse(3, "no").await;
        peer.publishes_to(most + 3).await;
        assert!(timeout(HOUR, peer.next()).await.is_err());
        // What was on its way on a lost link does not count on the next one.
        drop(peer);
        let mut peer = Peer::logged_on(&mut listener, 3).await;
        peer.publishes_to(3 + most).await;
        assert!(timeout(HOUR, peer.next()).await.is_err());
    }
}

#[tokio::test(start_paused = true)]
async fn a_replay_keeps_its_rate_and_what_is_published_meanwhile_comes_behind_it() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .replay_rate(10)
        .open()
        .await
        .unwrap();
    for n in 0..100 {
        client.publish("t", format!("old {n}")).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let begun = Instant::now();
    peer.publishes_to(50).await;
    for n in 0..100 {
        client.publish("t", format!("new {n}")).await.unwrap();
    }
    peer.publishes_to(100).await;
    let took = begun.elapsed().as_secs_f64();
    assert!(
        (9.5..10.5).contains(&took),
        "{took} s for 100 at 10 a second"
    );
    peer.publishes_to(200).await;
    let took = begun.elapsed().as_secs_f64() - took;
    assert!(took < 0.5, "{took} s: new messages have no rate");
}
