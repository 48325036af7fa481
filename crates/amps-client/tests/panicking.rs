//! The application's own code panics inside the client's task: an attempt fails, and the client
//! goes on.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_client::chooser::{Authenticating, Authenticator, RoundRobin, Server, ServerChooser};
use amps_client::connector::{Connecting, Connector, MemoryConnector, MemoryListener, Stream};
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::uri::Uri;
use amps_client::{Builder, Client, DelayStrategy, Event, Events, LinkEnd, Outcome, Via};
use common::{LONG, NAME, Peer, memory};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SERVER: &str = "tcp://127.0.0.1:9007/amps/json";

/// Panics when its turn comes, once.
#[derive(Debug)]
struct Once(AtomicU32);

impl Once {
    fn at(turn: u32) -> Arc<Once> {
        Arc::new(Once(AtomicU32::new(turn)))
    }

    fn turn(&self, whose: u32, what: &str) {
        let now = self
            .0
            .compare_exchange(whose, 0, Ordering::SeqCst, Ordering::SeqCst);
        assert!(now.is_err(), "a defect in {what}");
    }

    fn is_over(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// Returns the message of the attempt that failed by a panic. Afterwards everything goes on as if
/// nothing had happened.
async fn goes_on(client: Client, mut events: Events, mut listener: MemoryListener) -> String {
    let receipt = client.publish("t", "1").await.unwrap();
    let serving = async {
        loop {
            // Attempts that end before their logon is sent do not count: an authenticator is
            // asked when the connection is open, and if it panics the connection is closed
            // without a word.
            let mut peer = Peer::connected(&mut listener).await;
            let Some(logon) = peer.next().await else {
                continue;
            };
            if logon.password.as_deref() == Some("first") {
                let mut ack = Ack::new(AckKind::Processed, Status::Retry);
                ack.command_id = logon.id.as_deref();
                ack.password = Some("challenge");
                peer.ack(&ack).await;
                let Some(again) = peer.next().await else {
                    continue;
                };
                peer.accept_logon(&again, 0).await;
            } else {
                peer.accept_logon(&logon, 0).await;
            }
            if peer.next().await.is_some() {
                peer.ok(1).await;
                return peer;
            }
        }
    };
    let settled = async {
        let peer = serving.await;
        let outcome = receipt.await;
        assert_eq!(outcome, Outcome::Persisted { via: Via::Ack });
        peer
    };
    let _peer = tokio::time::timeout(LONG, settled)
        .await
        .expect("it goes on");
    let mut words = String::new();
    while let Some(event) = events.try_next() {
        match event {
            Event::LinkLost {
                why: LinkEnd::Panicked(text) | LinkEnd::Io(text),
                ..
            } => words = text,
            Event::ClientFailed { why } => panic!("{why}"),
            _ => {}
        }
    }
    assert!(client.close(LONG).await.clean);
    words
}

fn client() -> Builder {
    Client::builder(NAME)
        .heartbeat(None)
        .backoff(amps_client::FixedDelay(Duration::from_millis(10)))
        .store(memory())
}

/// The second attempt reaches a server that says nothing.
#[derive(Debug)]
struct Panics(MemoryConnector, MemoryConnector, Arc<Once>);

impl Connector for Panics {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        self.2.turn(1, "connect");
        Box::pin(async move {
            tokio::task::yield_now().await;
            self.2.turn(2, "its future");
            let stream = match self.2.0.load(Ordering::SeqCst) {
                3..=5 => self.1.connect(uri).await?,
                _ => self.0.connect(uri).await?,
            };
            Ok(Box::new(Panicking(stream, self.2.clone())) as _)
        })
    }
}

struct Panicking(Box<dyn Stream>, Arc<Once>);

impl AsyncRead for Panicking {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.1.turn(3, "reading");
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Panicking {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.1.turn(4, "writing");
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.1.turn(5, "flushing");
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

impl Drop for Panicking {
    fn drop(&mut self) {
        self.1.turn(6, "a drop");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_connector_or_its_stream_is_a_failed_attempt() {
    let whats = ["connect", "its future", "reading", "writing", "flushing"];
    for (what, turn) in whats.into_iter().zip(1..) {
        let connector = MemoryConnector::new();
        let listener = connector.listen();
        let once = Once::at(turn);
        let silent = MemoryConnector::new();
        let _silence = silent.listen();
        let connector = Panics(connector, silent, once.clone());
        let client = client().server(SERVER).connector(Arc::new(connector));
        let client = client.open().await.unwrap();
        let events = client.events();
        let words = goes_on(client, events, listener).await;
        assert!(once.is_over(), "{what}");
        let says = words.contains("connector") && words.contains(&format!("a defect in {what}"));
        assert!(says, "{what}: {words}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_stream_that_panics_when_it_is_dropped_is_gone_all_the_same() {
    let connector = MemoryConnector::new();
    let mut listener = connector.listen();
    let once = Once::at(6);
    let panics = Panics(connector, MemoryConnector::new(), once.clone());
    let client = client().server(SERVER).connector(Arc::new(panics));
    let client = client.open().await.unwrap();
    let events = client.events();
    drop(Peer::logged_on(&mut listener, 0).await);
    goes_on(client, events, listener).await;
    assert!(once.is_over());
}

struct Keys(Arc<Once>);

impl Authenticator for Keys {
    fn authenticate<'a>(
        &'a self,
        _: &'a Uri,
        mut given: amps_client::session::Credentials,
    ) -> Authenticating<'a> {
        self.0.turn(1, "authenticate");
        Box::pin(async move {
            self.0.turn(2, "its future");
            given.user = Some("me".to_owned());
            given.password = Some("first".to_owned());
            Ok(given)
        })
    }

    fn answer<'a>(
        &'a self,
        _: &'a Uri,
        challenge: amps_client::session::Credentials,
    ) -> Authenticating<'a> {
        self.0.turn(3, "answer");
        Box::pin(async move {
            self.0.turn(4, "its answer");
            Ok(challenge)
        })
    }

    fn completed(&self, _: &Uri) {
        self.0.turn(5, "completed");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_an_authenticator_is_a_failed_attempt() {
    let whats = [
        "authenticate",
        "its future",
        "answer",
        "its answer",
        "completed",
    ];
    for (what, turn) in whats.into_iter().zip(1..) {
        let connector = MemoryConnector::new();
        let listener = connector.listen();
        let once = Once::at(turn);
        let client = client()
            .server_with(SERVER, Arc::new(Keys(once.clone())))
            .connector(Arc::new(connector));
        let client = client.open().await.unwrap();
        let events = client.events();
        let words = goes_on(client, events, listener).await;
        assert!(once.is_over(), "{what}");
        let expected = format!("the authenticator panicked: a defect in {what}");
        assert!(words.contains(&expected), "{what}: {words}");
    }
}

struct Moody(RoundRobin, Arc<Once>);

impl ServerChooser for Moody {
    fn current(&mut self) -> Option<Server> {
        self.1.turn(1, "current");
        self.0.current()
    }

    fn succeeded(&mut self, server: &Server) {
        self.1.turn(2, "succeeded");
        self.0.succeeded(server);
    }

    fn failed(&mut self, server: &Server, why: &LinkEnd) {
        self.1.turn(3, "failed");
        self.0.failed(server, why);
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_server_chooser_is_a_failed_attempt() {
    for (what, turn) in ["current", "succeeded", "failed"].into_iter().zip(1..) {
        let connector = MemoryConnector::new();
        let mut listener = connector.listen();
        let once = Once::at(turn);
        let server = Server {
            uri: SERVER.parse().unwrap(),
            authenticator: None,
        };
        let chooser = Moody(RoundRobin::new(vec![server]), once.clone());
        let client = client().chooser(chooser).connector(Arc::new(connector));
        let client = client.open().await.unwrap();
        let events = client.events();
        if what == "failed" {
            drop(Peer::accept(&mut listener).await);
        }
        let words = goes_on(client, events, listener).await;
        assert!(once.is_over(), "{what}");
        // What fails anyway needs no further reason.
        let expected = format!("the server chooser panicked: a defect in {what}");
        assert!(what == "failed" || words == expected, "{what}: {words}");
    }
}

struct Tired(Arc<Once>);

impl DelayStrategy for Tired {
    fn next_delay(&mut self) -> Option<Duration> {
        self.0.turn(1, "next_delay");
        Some(Duration::from_millis(10))
    }

    fn reset(&mut self) {
        self.0.turn(2, "reset");
    }
}

#[tokio::test(start_paused = true)]
async fn a_panic_of_a_delay_strategy_is_a_delay() {
    for turn in 1..=2 {
        let connector = MemoryConnector::new();
        let mut listener = connector.listen();
        let once = Once::at(turn);
        let client = client()
            .server(SERVER)
            .backoff(Tired(once.clone()))
            .connector(Arc::new(connector));
        let client = client.open().await.unwrap();
        let events = client.events();
        // A link that lived long counts as healthy.
        let peer = Peer::logged_on(&mut listener, 0).await;
        tokio::time::sleep(Duration::from_secs(60)).await;
        drop(peer);
        goes_on(client, events, listener).await;
        assert!(once.is_over(), "{turn}");
    }
}
