//! Subscribing where no server listens is reported, and not silently waited for.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use amps_client::connector::{ConnectError, Connecting, Connector, MemoryConnector};
use amps_client::uri::Uri;
use amps_client::{Client, CommandError, Event, LinkEnd, LogonError, Subscribe};
use common::{LONG, NAME, Peer, pair, started};
use tokio::time::Instant;

/// A machine on which nothing listens until the test says so.
#[derive(Debug)]
struct Port {
    listens: AtomicBool,
    attempts: AtomicUsize,
    open: MemoryConnector,
}

impl Connector for Port {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        self.attempts.fetch_add(1, Ordering::SeqCst);
        if self.listens.load(Ordering::SeqCst) {
            return self.open.connect(uri);
        }
        Box::pin(async move {
            Err(ConnectError::Io {
                target: uri.authority(),
                source: io::ErrorKind::ConnectionRefused.into(),
            })
        })
    }
}

/// A subscribe once waited for a server for ever, and said nothing.
#[tokio::test(start_paused = true)]
async fn within_a_second_it_is_said_that_nothing_listens() {
    for servers in 1..=3 {
        let open = MemoryConnector::new();
        let mut listener = open.listen();
        let port = Arc::new(Port {
            listens: false.into(),
            attempts: 0.into(),
            open,
        });
        let mut builder = Client::builder(NAME)
            .heartbeat(None)
            .connector(port.clone());
        for server in 0..servers {
            builder = builder.server(format!("tcp://127.0.0.1:{}/amps/json", 9001 + server));
        }
        let client = builder.open().await.unwrap();
        let begun = Instant::now();
        // As often as one asks, during the first attempt and while it waits for the next one.
        for _ in 0..3 {
            let error = client.subscribe(Subscribe::topic("t")).await.unwrap_err();
            let CommandError::Unreachable { server, why } = &error else {
                panic!("{error}");
            };
            assert!(server.starts_with("127.0.0.1:900"), "{server}");
            assert!(matches!(why, LinkEnd::Connect(_)), "{why}");
            assert!(error.to_string().contains("wait_logged_on"), "{error}");
        }
        assert!(begun.elapsed() < Duration::from_secs(1));
        assert_eq!(
            port.attempts.load(Ordering::SeqCst),
            servers,
            "each was tried"
        );
        // The client goes on, and a subscription can be placed as soon as something listens.
        port.listens.store(true, Ordering::SeqCst);
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        client.wait_logged_on(LONG).await.unwrap();
        let placing = started(Box::pin(client.subscribe(Subscribe::topic("t")))).await;
        let placed = peer.next().await.unwrap();
        assert_eq!(placed.verb, "Subscribe", "nothing of before is placed");
        peer.processed(&placed).await;
        drop(placing.await.unwrap());
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_refuses_the_logon_is_no_better() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let placing = started(Box::pin(client.subscribe(Subscribe::topic("t")))).await;
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let id = logon.id.unwrap();
    peer.frame(&format!(
        r#"{{"c":"ack","a":"processed","status":"failure","cid":"{id}","reason":"no"}}"#
    ))
    .await;
    let error = placing.await.unwrap_err();
    assert!(
        matches!(&error, CommandError::Unreachable { why: LinkEnd::LogonRefused(reason), .. } if reason.as_str() == "no"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_given_up_places_nothing() {
    let builder = common::builder(MemoryConnector::new());
    let builder = builder.give_up_after(Duration::ZERO);
    let client = builder.open().await.unwrap();
    let mut events = client.events();
    let first = client.subscribe(Subscribe::topic("t")).await;
    assert!(matches!(first, Err(CommandError::Unreachable { .. })));
    while !matches!(events.next().await.unwrap(), Event::GaveUp { .. }) {}
    let second = client.subscribe(Subscribe::topic("t")).await;
    assert!(matches!(second, Err(CommandError::Unreachable { .. })));
    let waited = client.wait_logged_on(LONG).await;
    assert!(matches!(waited, Err(LogonError::GaveUp { .. })));
}

/// A subscription that was placed before is placed again, however long that takes.
#[tokio::test(start_paused = true)]
async fn a_subscription_that_stands_waits_for_the_server_to_come_back() {
    let open = MemoryConnector::new();
    let mut listener = open.listen();
    let port = Arc::new(Port {
        listens: true.into(),
        attempts: 0.into(),
        open,
    });
    let client = Client::builder(NAME)
        .heartbeat(None)
        .connector(port.clone())
        .server("tcp://127.0.0.1:9001/amps/json")
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    let placing = started(Box::pin(client.subscribe(Subscribe::topic("t")))).await;
    let placed = peer.next().await.unwrap();
    peer.processed(&placed).await;
    let mut subscription = placing.await.unwrap();
    port.listens.store(false, Ordering::SeqCst);
    drop(peer);
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(port.attempts.load(Ordering::SeqCst) > 10);
    let another = client.subscribe(Subscribe::topic("t")).await;
    assert!(matches!(another, Err(CommandError::Unreachable { .. })));
    port.listens.store(true, Ordering::SeqCst);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let again = peer.next().await.unwrap();
    assert_eq!(again.sub_id, placed.sub_id);
    peer.processed(&again).await;
    peer.deliver(&again.sub_id.unwrap(), "t", "1|1|", b"there")
        .await;
    assert_eq!(
        &subscription.next().await.unwrap().unwrap().data[..],
        b"there"
    );
}
