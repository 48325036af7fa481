//! What happens seldom, and matters then: a rebase that an operator allows, a disk that fails
//! under a client, refusals that must survive a power cut before anybody acts on them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use amps_client::connector::{Connecting, Connector, MemoryConnector};
use amps_client::uri::Uri;
use amps_client::{Event, Events, Outcome, Via};
use amps_store::testkit::{Fault, SimDisk};
use amps_store::{Envelope, Level, PublishStore, Store, StoreError};
use common::quirks::Quirks;
use common::{LONG, Peer, builder, memory, options, pair};
use tokio::io::BufStream;
use tokio::sync::mpsc;

/// The first event for which this returns something.
async fn told<T>(events: &mut Events, wanted: impl Fn(&Event) -> Option<T>) -> T {
    let found = async {
        loop {
            if let Some(found) = wanted(&events.next().await.expect("more events")) {
                return found;
            }
        }
    };
    tokio::time::timeout(LONG, found).await.expect("told")
}

/// Two foreign figures in one run stop a client, since somebody else may use its name. Once the
/// operator has checked, it goes on above them.
#[tokio::test(start_paused = true)]
async fn a_client_that_stopped_for_a_shared_name_goes_on_when_it_is_allowed_to() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut events = client.events();
    client.publish("orders", "one").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 500).await;
    assert!(peer.next().await.unwrap().sequence > Some(500));
    drop(peer);
    let theirs = 1 << 40;
    let mut peer = Peer::logged_on(&mut listener, theirs).await;
    assert!(peer.next().await.is_none(), "nothing is sent");
    let stopped = told(&mut events, |event| match event {
        Event::NameShared { stopped, .. } => Some(*stopped),
        _ => None,
    });
    assert!(stopped.await);
    client.allow_rebase().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, theirs).await;
    let again = peer.next().await.expect("it goes on");
    assert!(again.sequence > Some(theirs) && again.body == b"one");
}

/// At `Disk`, what cannot become durable is not sent, and that sending has stopped is reported.
#[tokio::test(start_paused = true)]
async fn a_sync_that_fails_under_a_client_ends_sending_and_is_told() {
    let disk = SimDisk::new();
    let store = disk.open(options().level(Level::Disk)).unwrap();
    let (builder, mut listener) = pair();
    let client = builder.store(store).open().await.unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let first = client.publish("orders", "one").await.unwrap();
    first.durable().await.unwrap();
    assert_eq!(peer.publishes_to(1).await.len(), 1);
    disk.fail(Fault::Sync(0));
    let second = client.publish("orders", "two").await.unwrap();
    let failed = second.durable().await.expect_err("it is not");
    assert!(matches!(failed, StoreError::SyncFailed(_)));
    let said = failed.to_string();
    assert_eq!(said.matches("a sync failed").count(), 1, "{said}");
    let through = told(&mut events, |event| match event {
        Event::SendingStopped { through } => Some(*through),
        _ => None,
    });
    assert_eq!(through.await, 1);
    assert!(client.health().sync_failed);
}

fn with_refusals(path: &std::path::Path) -> Store {
    let store = Store::open(path, options().level(Level::Disk)).unwrap();
    for sequence in 1..=3 {
        store.append(&Envelope::publish("orders"), b"body").unwrap();
        store.reject(sequence, "no", 1).unwrap();
    }
    store
}

/// A handler acts on a refusal: at `Disk` a power cut must not take that refusal back. One sync
/// serves all that wait.
#[tokio::test]
async fn at_disk_refusals_are_durable_before_a_handler_sees_them() {
    let dir = tempfile::tempdir().unwrap();
    let syncs = Arc::new(AtomicUsize::new(0));
    let counted = syncs.clone();
    let store = Quirks {
        sync: Some(Box::new(move || {
            counted.fetch_add(1, Ordering::SeqCst);
            None
        })),
        ..Quirks::of(with_refusals(&dir.path().join("store")))
    };
    let (seen, mut calls) = mpsc::unbounded_channel();
    let (builder, _listener) = pair();
    let client = builder
        .store(store)
        .on_failed_write(move |failed| {
            let call = (failed.sequence, syncs.load(Ordering::SeqCst));
            let sent = seen.send(call);
            async move { Ok(sent?) }
        })
        .open()
        .await
        .unwrap();
    for sequence in 1..=3 {
        assert_eq!(calls.recv().await, Some((sequence, 1)));
    }
    drop(client);
}

/// If it cannot be made durable, no handler acts on it: it waits.
#[tokio::test]
async fn a_refusal_that_cannot_be_made_durable_waits_and_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let store = Quirks {
        sync: Some(Box::new(|| Some(StoreError::SyncFailed("EIO".into())))),
        ..Quirks::of(with_refusals(&dir.path().join("store")))
    };
    let called = Arc::new(AtomicUsize::new(0));
    let counted = called.clone();
    let (builder, _listener) = pair();
    let client = builder
        .store(store)
        .on_failed_write(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            async { Ok(()) }
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let doing = told(&mut events, |event| match event {
        Event::StoreFailed { doing, .. } => Some(*doing),
        _ => None,
    });
    assert_eq!(doing.await, "make a refusal durable");
    assert_eq!(called.load(Ordering::SeqCst), 0);
    assert_eq!(client.health().rejections, 3);
}

/// The first message of a run is also of that run.
#[tokio::test]
async fn a_refusal_of_the_first_message_of_a_run_is_of_this_run() {
    let dir = tempfile::tempdir().unwrap();
    let (seen, mut calls) = mpsc::unbounded_channel();
    for wanted in [(1, false), (2, true)] {
        let store = Store::open(dir.path().join("store"), options()).unwrap();
        let (builder, mut listener) = pair();
        let seen = seen.clone();
        let client = builder
            .store(store)
            .on_failed_write(move |failed| {
                let sent = seen.send((failed.sequence, failed.earlier_run));
                async move { Ok(sent?) }
            })
            .open()
            .await
            .unwrap();
        if !wanted.1 {
            client.publish("orders", "one").await.unwrap();
            client.publish("orders", "two").await.unwrap();
        }
        let mut peer = Peer::logged_on(&mut listener, wanted.0 - 1).await;
        peer.publishes_to(2).await;
        peer.refuse(wanted.0, "no").await;
        assert_eq!(calls.recv().await, Some(wanted));
        client.close(Duration::ZERO).await;
    }
}

/// A stream that keeps what is written until it is flushed, like one that encrypts.
#[derive(Debug)]
struct Buffered(MemoryConnector);

impl Connector for Buffered {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        Box::pin(async move {
            let stream = self.0.connect(uri).await?;
            Ok(Box::new(BufStream::new(stream)) as _)
        })
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_written_is_sent_off_also_where_the_stream_would_keep_it() {
    let memory_connector = MemoryConnector::new();
    let mut listener = memory_connector.listen();
    let client = builder(memory_connector.clone())
        .connector(Arc::new(Buffered(memory_connector)))
        .store(memory())
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    for sequence in 1..=3 {
        let receipt = client.publish("orders", "one").await.unwrap();
        assert_eq!(peer.publishes_to(sequence).await.len(), 1);
        peer.ok(sequence).await;
        assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    }
}
