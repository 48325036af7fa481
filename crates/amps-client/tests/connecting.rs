//! When and how often the client connects, in virtual time.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::Arc;
use std::time::Duration;

use amps_client::chooser::{Server, ServerChooser};
use amps_client::connector::{ConnectError, Connecting, Connector, TcpConnector};
use amps_client::protocol::{Ack, AckKind, Status};
use amps_client::uri::Uri;
use amps_client::{
    Backoff, Client, DelayStrategy, Event, Events, FixedDelay, LinkEnd, LogonError, OpenError,
};
use common::{NAME, Peer, memory, pair, started};
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(1_000_000);

/// A network that swallows every attempt to connect.
#[derive(Debug)]
struct BlackHole;

impl Connector for BlackHole {
    fn connect<'a>(&'a self, _: &'a Uri) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

fn into_the_black_hole(backoff: impl DelayStrategy + 'static) -> amps_client::Builder {
    Client::builder(NAME)
        .server("tcp://127.0.0.1:9007/amps/json")
        .connector(Arc::new(BlackHole))
        .backoff(backoff)
        .store(memory())
}

async fn link_lost(events: &mut Events) -> (LinkEnd, Option<Duration>) {
    loop {
        if let Event::LinkLost { why, retry_in, .. } = events.next().await.unwrap() {
            return (why, retry_in);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn attempts_into_a_black_hole_come_further_and_further_apart() {
    // The time limit of an attempt is as long as a link must live to count as healthy.
    let client = into_the_black_hole(Backoff::default().seed(7))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut longest = Duration::ZERO;
    for _ in 0..40 {
        let (why, delay) = link_lost(&mut events).await;
        assert_eq!(why, LinkEnd::ConnectTimeout);
        longest = longest.max(delay.unwrap());
    }
    assert!(longest > Duration::from_secs(10), "{longest:?}");
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_says_so_and_keeps_what_is_published() {
    let backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1));
    let client = into_the_black_hole(backoff.give_up_after(Duration::from_secs(5)))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let error = client.wait_logged_on(LONG).await.unwrap_err();
    assert!(
        matches!(
            &error,
            LogonError::GaveUp {
                last: Some((_, LinkEnd::ConnectTimeout)),
                ..
            }
        ),
        "{error}"
    );
    let mut last = None;
    loop {
        match events.next().await.unwrap() {
            Event::LinkLost { retry_in, .. } => last = Some(retry_in),
            Event::GaveUp { why } => break assert!(why.contains("back-off"), "{why}"),
            _ => {}
        }
    }
    assert_eq!(last, Some(None), "the last end names no next attempt");
    assert!(client.health().gave_up.is_some());
    client.publish("orders", "1").await.unwrap();
    assert_eq!(client.close(Duration::ZERO).await.left, 1);
}

/// Waits a second longer every time, and gives up after the fourth.
struct Longer(u64);

impl DelayStrategy for Longer {
    fn next_delay(&mut self) -> Option<Duration> {
        self.0 += 1;
        (self.0 <= 4).then(|| Duration::from_secs(self.0))
    }
}

#[tokio::test(start_paused = true)]
async fn delays_are_those_of_the_strategy_that_was_given() {
    let client = into_the_black_hole(Longer(0)).open().await.unwrap();
    let mut events = client.events();
    for seconds in 1..=4 {
        let (_, delay) = link_lost(&mut events).await;
        assert_eq!(delay, Some(Duration::from_secs(seconds)));
    }
    assert_eq!(link_lost(&mut events).await.1, None);
    let error = client.wait_logged_on(LONG).await.unwrap_err();
    assert!(matches!(error, LogonError::GaveUp { .. }), "{error}");

    let delay = Duration::from_secs(3);
    let client = into_the_black_hole(FixedDelay(delay)).open().await.unwrap();
    let mut events = client.events();
    let mut ended = None;
    for _ in 0..20 {
        assert_eq!(link_lost(&mut events).await.1, Some(delay));
        let now = Instant::now();
        let before = ended.replace(now);
        // The time limit of an attempt is 10 s.
        assert!(before.is_none_or(|before| (now - before).as_secs() == 13));
    }
}

#[tokio::test(start_paused = true)]
async fn the_time_without_a_logon_may_be_limited_with_all_it_is_spent_on() {
    let limit = Duration::from_secs(60);
    let gave_up = async |client: &Client, begun: Instant| {
        let error = client.wait_logged_on(LONG).await.unwrap_err();
        assert!(matches!(error, LogonError::GaveUp { .. }), "{error}");
        let took = begun.elapsed();
        // An attempt that has begun is finished first.
        assert!(limit <= took && took.as_secs() <= 70, "{took:?}");
        let why = client.health().gave_up.unwrap();
        assert!(why.contains("logon"), "{why}");
    };
    let begun = Instant::now();
    let hole = into_the_black_hole(FixedDelay(Duration::from_millis(1)));
    let client = hole.give_up_after(limit).open().await.unwrap();
    gave_up(&client, begun).await;
    // A long wait is cut short.
    let begun = Instant::now();
    let hole = into_the_black_hole(FixedDelay(LONG));
    let client = hole.give_up_after(limit).open().await.unwrap();
    gave_up(&client, begun).await;
    // The time starts anew with every logon, however short that was.
    let (builder, mut listener) = pair();
    let client = builder.give_up_after(limit).open().await.unwrap();
    for _ in 0..3 {
        let peer = Peer::logged_on(&mut listener, None).await;
        client.wait_logged_on(LONG).await.unwrap();
        tokio::time::sleep(limit * 10).await;
        drop(peer);
        let mut events = client.events();
        link_lost(&mut events).await;
    }
    drop(listener);
    gave_up(&client, Instant::now()).await;
}

/// Names its server this many times.
struct Names(Server, u32);

impl ServerChooser for Names {
    fn current(&mut self) -> Option<Server> {
        self.1 = self.1.checked_sub(1)?;
        Some(self.0.clone())
    }

    fn succeeded(&mut self, _: &Server) {}

    fn failed(&mut self, _: &Server, _: &LinkEnd) {}
}

#[tokio::test(start_paused = true)]
async fn a_chooser_that_names_no_server_ends_the_attempts() {
    let server = Server {
        uri: "tcp://127.0.0.1:9007/amps/json".parse().unwrap(),
        authenticator: None,
    };
    let client = Client::builder(NAME)
        .chooser(Names(server, 2))
        .connector(Arc::new(BlackHole))
        .store(memory())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let error = client.wait_logged_on(LONG).await.unwrap_err();
    assert!(error.to_string().contains("chooser"), "{error}");
    let ends =
        std::iter::from_fn(|| events.try_next()).filter(|e| matches!(e, Event::LinkLost { .. }));
    assert_eq!(ends.count(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_link_that_lived_long_after_its_logon_starts_the_back_off_anew() {
    let (builder, mut listener) = pair();
    let minute = Duration::from_secs(60);
    let client = builder
        .backoff(Backoff::new(minute, minute).give_up_after(minute * 3))
        .store(memory())
        .open()
        .await
        .unwrap();
    let begun = Instant::now();
    let mut events = client.events();
    for _ in 0..50 {
        let peer = Peer::logged_on(&mut listener, 0).await;
        client.wait_logged_on(LONG).await.unwrap();
        tokio::time::sleep(Duration::from_secs(11)).await;
        drop(peer);
        let (why, delay) = link_lost(&mut events).await;
        assert_eq!(why, LinkEnd::Closed);
        assert!(delay.is_some(), "after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn options_that_cannot_be_meant_are_refused() {
    let server = || Server {
        uri: "tcp://127.0.0.1:9007/amps/json".parse().unwrap(),
        authenticator: None,
    };
    let refused = |builder: amps_client::Builder| async move {
        match builder.open().await {
            Err(amps_client::OpenError::Options(error)) => error,
            other => panic!("{other:?}"),
        }
    };
    for millis in [0, 999, 1500] {
        let builder = pair().0.heartbeat(Duration::from_millis(millis));
        assert!(refused(builder).await.contains("whole seconds"));
    }
    let builder = pair().0.chooser(Names(server(), 1));
    assert!(refused(builder).await.contains("chooser"));
}

/// Cannot connect, and says so in advance.
#[derive(Debug)]
struct Closed;

impl Connector for Closed {
    fn connect<'a>(&'a self, _: &'a Uri) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }

    fn check(&self, _: &Uri) -> Result<(), ConnectError> {
        Err(ConnectError::UnsupportedScheme { scheme: "tcp" })
    }
}

#[tokio::test]
async fn a_server_that_can_never_be_connected_to_is_told_at_open() {
    let refused = |builder: amps_client::Builder| async move {
        match builder.open().await {
            Err(error @ OpenError::Server { .. }) => error.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let server = || Client::builder(NAME).server("tcp://me:secret@127.0.0.1:9007/amps/json");
    let error = refused(server().connector(Arc::new(Closed))).await;
    assert!(error.contains("127.0.0.1:9007"), "{error}");
    assert!(!error.contains("secret"), "{error}");

    let secured = || Client::builder(NAME).server("tcps://127.0.0.1:9007/amps/json");
    let plain = secured().connector(Arc::new(TcpConnector));
    assert!(refused(plain).await.contains("tcps://"));
    if cfg!(not(feature = "tls")) {
        assert!(refused(secured()).await.contains("feature tls"));
    }
}

#[tokio::test(start_paused = true)]
async fn a_refusal_told_before_is_not_the_outcome_of_the_attempt_that_runs() {
    let (builder, mut listener) = pair();
    let hour = Duration::from_secs(3600);
    let client = builder
        .backoff(Backoff::new(hour, hour))
        .logon_timeout(LONG)
        .open()
        .await
        .unwrap();
    let refused = client.wait_logged_on(LONG);
    let (refused, ()) = tokio::join!(refused, async {
        let (mut peer, logon) = Peer::accept(&mut listener).await;
        let mut ack = Ack::new(AckKind::Processed, Status::Failure);
        ack.command_id = logon.id.as_deref();
        ack.reason = Some("auth failure");
        peer.ack(&ack).await;
    });
    assert!(matches!(refused, Err(LogonError::Refused { .. })));
    // While no attempt is under way, the refusal is the latest news.
    let again = client.wait_logged_on(LONG).await;
    assert!(matches!(again, Err(LogonError::Refused { .. })));
    // The next attempt has reached the server, which has not answered yet.
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let waiting = started(Box::pin(client.wait_logged_on(LONG))).await;
    peer.accept_logon(&logon, 0).await;
    waiting.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_logon_that_is_gone_again_before_anybody_looks_was_one() {
    let (builder, mut listener) = pair();
    let hour = Duration::from_secs(3600);
    let client = builder
        .backoff(Backoff::new(hour, hour))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let waiting = started(Box::pin(client.wait_logged_on(LONG))).await;
    drop(Peer::logged_on(&mut listener, 0).await);
    link_lost(&mut events).await;
    waiting.await.unwrap();
}
