//! Logon, heartbeats, commands and subscriptions against a scripted server.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use amps_client::chooser::{Authenticating, Authenticator};
use amps_client::protocol::{
    Ack, AckKind, SowEntry, Status, encode_group, encode_heartbeat, encode_sow,
};
use amps_client::session::Credentials;
use amps_client::uri::Uri;
use amps_client::{
    Client, CommandError, ConnectionState, Event, Events, FlushError, LinkEnd, Message, Outcome,
    PublishFailure, Request, Subscribe, SubscriptionEnd,
};
use common::{Frame, LONG, Peer, memory, pair, started};

#[tokio::test]
async fn the_logon_says_who_and_what_and_nothing_unasked() {
    let (builder, mut listener) = pair();
    let _client = builder
        .server("tcp://u:p%40@127.0.0.1:9/amps/json")
        .open()
        .await
        .unwrap();
    let (peer, logon) = Peer::accept(&mut listener).await;
    assert_eq!(logon.client_name.as_deref(), Some(common::NAME));
    assert_eq!((logon.user, logon.options), (None, None));
    assert!(logon.acks.contains(AckKind::Processed));
    drop(peer);
    // The next server has credentials in its URI.
    let (_peer, logon) = Peer::accept(&mut listener).await;
    assert_eq!(
        (logon.user.as_deref(), logon.password.as_deref()),
        (Some("u"), Some("p@"))
    );
}

#[tokio::test]
async fn logon_options_go_out_when_asked_for() {
    let (builder, mut listener) = pair();
    let _client = builder
        .ack_conflation("100ms")
        .logon_options("pretty")
        .open()
        .await
        .unwrap();
    let (_peer, logon) = Peer::accept(&mut listener).await;
    assert_eq!(
        logon.options.as_deref(),
        Some("ack_conflation=100ms,pretty")
    );
}

struct Answers;

impl Authenticator for Answers {
    fn authenticate<'a>(&'a self, _: &'a Uri, given: Credentials) -> Authenticating<'a> {
        Box::pin(async move {
            Ok(Credentials {
                user: Some("me".into()),
                ..given
            })
        })
    }

    fn answer<'a>(&'a self, _: &'a Uri, challenge: Credentials) -> Authenticating<'a> {
        Box::pin(async move {
            let password = challenge.password.map(|text| format!("answer to {text}"));
            Ok(Credentials {
                user: challenge.user,
                password,
            })
        })
    }
}

async fn challenge(peer: &mut Peer, logon: &Frame, text: &str) {
    let mut ack = Ack::new(AckKind::Processed, Status::Retry);
    ack.command_id = logon.id.as_deref();
    ack.user_id = Some("me");
    ack.password = Some(text);
    peer.ack(&ack).await;
}

fn challenged() -> (amps_client::Builder, amps_client::connector::MemoryListener) {
    let connector = amps_client::connector::MemoryConnector::new();
    let listener = connector.listen();
    let builder = Client::builder(common::NAME)
        .server_with("tcp://127.0.0.1:9007/amps/json", Arc::new(Answers))
        .connector(Arc::new(connector));
    (builder, listener)
}

#[test]
fn credentials_do_not_show_their_password() {
    let credentials = Credentials {
        user: Some("me".into()),
        password: Some("secret".into()),
    };
    assert_eq!(
        format!("{credentials:?}"),
        r#"Credentials { user: Some("me"), password: Some("***") }"#
    );
}

#[tokio::test]
async fn a_challenge_is_answered_on_the_same_link() {
    let (builder, mut listener) = challenged();
    let client = builder.open().await.unwrap();
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    assert_eq!(logon.user.as_deref(), Some("me"));
    challenge(&mut peer, &logon, "riddle").await;
    let again = peer.next().await.unwrap();
    assert_eq!(again.password.as_deref(), Some("answer to riddle"));
    assert_ne!(again.id, logon.id);
    peer.accept_logon(&again, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
}

#[tokio::test]
async fn endless_challenges_are_a_refusal() {
    let (builder, mut listener) = challenged();
    let _client = builder.open().await.unwrap();
    let (mut peer, mut logon) = Peer::accept(&mut listener).await;
    for round in 0.. {
        challenge(&mut peer, &logon, "riddle").await;
        match peer.next().await {
            Some(next) => logon = next,
            None => {
                assert_eq!(round, 3);
                break;
            }
        }
    }
}

/// Never answers either the first or the second question.
struct Silent {
    at_once: bool,
    looked: Arc<AtomicUsize>,
}

/// Counts how often it is polled, and is never ready.
struct Never(Arc<AtomicUsize>);

impl Future for Never {
    type Output = Result<Credentials, String>;

    fn poll(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Poll::Pending
    }
}

impl Authenticator for Silent {
    fn authenticate<'a>(&'a self, _: &'a Uri, given: Credentials) -> Authenticating<'a> {
        match self.at_once {
            true => Box::pin(Never(self.looked.clone())),
            false => Box::pin(async move { Ok(given) }),
        }
    }

    fn answer<'a>(&'a self, _: &'a Uri, _: Credentials) -> Authenticating<'a> {
        Box::pin(Never(self.looked.clone()))
    }
}

#[tokio::test(start_paused = true)]
async fn an_authenticator_that_never_answers_fails_the_attempt_and_spins_nothing() {
    for at_once in [true, false] {
        let connector = amps_client::connector::MemoryConnector::new();
        let mut listener = connector.listen();
        let looked = Arc::new(AtomicUsize::new(0));
        let silent = Silent {
            at_once,
            looked: looked.clone(),
        };
        let client = Client::builder(common::NAME)
            .server_with("tcp://127.0.0.1:9007/amps/json", Arc::new(silent))
            .connector(Arc::new(connector))
            .logon_timeout(Duration::from_secs(3))
            .open()
            .await
            .unwrap();
        let mut events = client.events();
        let begun = tokio::time::Instant::now();
        let server = tokio::spawn(async move {
            if !at_once {
                let (mut peer, logon) = Peer::accept(&mut listener).await;
                challenge(&mut peer, &logon, "riddle").await;
                assert!(peer.next().await.is_none());
            }
        });
        let why = loop {
            if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
                break why;
            }
        };
        assert!(
            matches!(&why, LinkEnd::Authenticator(error) if error.contains("within 3s")),
            "{why}"
        );
        assert_eq!(begun.elapsed().as_secs(), 3);
        let looked = looked.load(Ordering::Relaxed);
        assert!(looked < 20, "looked at {looked} times");
        server.await.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn silence_for_two_heartbeats_and_a_half_ends_the_link() {
    let (builder, mut listener) = pair();
    let client = builder
        .heartbeat(Duration::from_secs(5))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let start = peer.next().await.unwrap();
    assert_eq!(
        (start.verb.as_str(), start.options.as_deref()),
        ("Heartbeat", Some("start,5"))
    );
    peer.processed(&start).await;
    let began = tokio::time::Instant::now();
    // A beat each way keeps it alive.
    for _ in 0..3 {
        let beat = peer.next().await.unwrap();
        assert_eq!(beat.options.as_deref(), Some("beat"));
        let mut out = Vec::new();
        encode_heartbeat(&mut out).unwrap();
        peer.raw(&out).await;
    }
    assert!(began.elapsed() >= Duration::from_secs(15));
    let silent = tokio::time::Instant::now();
    while peer.next().await.is_some() {}
    assert_eq!(silent.elapsed().as_millis() / 100, 125);
    let mut initiated = false;
    loop {
        match events.next().await.unwrap() {
            Event::State {
                state: ConnectionState::HeartbeatInitiated,
                ..
            } => initiated = true,
            Event::LinkLost { why, .. } => {
                assert_eq!(why, LinkEnd::HeartbeatLost);
                break;
            }
            _ => {}
        }
    }
    assert!(initiated);
}

/// The next end of a link.
async fn link_lost(events: &mut Events) -> LinkEnd {
    loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            return why;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_server_that_knows_no_heartbeats_is_not_dead_for_its_silence() {
    let (builder, mut listener) = pair();
    let client = builder
        .heartbeat(Duration::from_secs(2))
        .store(memory())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    // It ignores the command, and sends something else now and then.
    for n in 1..=5 {
        client.publish("t", "x").await.unwrap();
        loop {
            let frame = peer.next().await.unwrap();
            if frame.sequence == Some(n) {
                break;
            }
            assert_eq!(frame.verb, "Heartbeat");
        }
        peer.ok(n).await;
        client.publish_flush(LONG).await.unwrap();
        tokio::time::sleep(Duration::from_secs(10)).await;
    }
    // Nothing came for a hundred intervals: it has no heartbeats, so that means nothing.
    tokio::time::sleep(Duration::from_secs(200)).await;
    while let Some(event) = events.try_next() {
        assert!(!matches!(event, Event::LinkLost { .. }), "{event:?}");
    }
    drop(peer);
    assert_eq!(link_lost(&mut events).await, LinkEnd::Closed);
    // A server that owes an answer and says nothing at all any more is gone, whether it confirmed
    // or not.
    let mut peer = Peer::logged_on(&mut listener, 5).await;
    client.publish("t", "x").await.unwrap();
    let silent = tokio::time::Instant::now();
    while peer.next().await.is_some() {}
    assert_eq!(link_lost(&mut events).await, LinkEnd::HeartbeatLost);
    assert_eq!(silent.elapsed().as_secs(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_logon_without_an_answer_times_out() {
    let (builder, mut listener) = pair();
    let client = builder
        .logon_timeout(Duration::from_secs(3))
        .open()
        .await
        .unwrap();
    let (_peer, _) = Peer::accept(&mut listener).await;
    let error = client
        .wait_logged_on(Duration::from_secs(4))
        .await
        .unwrap_err();
    assert!(
        error.to_string().contains("not answered in time"),
        "{error}"
    );
}

#[tokio::test]
async fn without_a_store_messages_are_sent_and_forgotten() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let error = client.publish("orders", "early").await.unwrap_err();
    assert!(matches!(error.reason, PublishFailure::NotConnected));
    assert_eq!(&error.message.payload()[..], b"early");
    let mut peer = Peer::logged_on(&mut listener, 7).await;
    client.wait_logged_on(LONG).await.unwrap();
    let receipt = client.publish("orders", "one").await.unwrap();
    let frame = peer.next().await.unwrap();
    assert_eq!((frame.sequence, frame.acks.is_empty()), (None, true));
    assert_eq!(receipt.sequence(), 0);
    assert!(receipt.durable().await.is_err());
    assert_eq!(receipt.await, Outcome::Unknown);
    client.publish("orders", "two").await.unwrap();
    let flush = tokio::spawn({
        let client = client.clone();
        async move { client.publish_flush(LONG).await }
    });
    assert_eq!(peer.next().await.unwrap().body, b"two");
    let frame = peer.next().await.unwrap();
    assert_eq!(frame.verb, "Flush");
    peer.processed(&frame).await;
    flush.await.unwrap().unwrap();
    // A flush that is under way when the link is lost cannot be confirmed.
    let flush = tokio::spawn({
        let client = client.clone();
        async move { client.publish_flush(LONG).await }
    });
    peer.next().await.unwrap();
    drop(peer);
    assert!(matches!(
        flush.await.unwrap(),
        Err(FlushError::Command(CommandError::Disconnected))
    ));
}

#[tokio::test(start_paused = true)]
async fn without_a_store_a_flush_has_its_own_time_limit() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    let flushed = client.publish_flush(Duration::from_secs(3)).await;
    assert!(
        matches!(flushed, Err(FlushError::Timeout { .. })),
        "{flushed:?}"
    );
    peer.next().await.unwrap();
    // No limit means none, and not that of other commands.
    let flush = started(Box::pin(client.publish_flush(Duration::MAX))).await;
    let frame = peer.next().await.unwrap();
    tokio::time::sleep(Duration::from_secs(100_000)).await;
    peer.processed(&frame).await;
    flush.await.unwrap();
}

#[tokio::test]
async fn an_ack_that_comes_before_the_logon_is_answered_goes_to_the_last_chance_handler() {
    let (builder, mut listener) = pair();
    let (told, mut acks) = tokio::sync::mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .on_last_chance(move |ack| {
            told.send(ack).unwrap();
            panic!("it cannot bear it");
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let receipt = client.publish("t", "1").await.unwrap();
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    peer.ok(1).await;
    peer.accept_logon(&logon, 0).await;
    let ack = acks.recv().await.unwrap();
    assert_eq!((ack.figure, ack.sequence), (Some(1), None));
    peer.publishes_to(1).await;
    peer.ok(1).await;
    receipt.await;
    loop {
        if let Event::LastChanceFailed { error } = events.next().await.unwrap() {
            break assert_eq!(error, "it cannot bear it");
        }
    }
}

#[tokio::test]
async fn without_a_store_a_refusal_is_told_and_not_dropped() {
    let (builder, mut listener) = pair();
    let (told, mut acks) = tokio::sync::mpsc::unbounded_channel();
    let client = builder
        .on_last_chance(move |ack| drop(told.send(ack)))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    client.publish("orders", "1").await.unwrap();
    assert_eq!(peer.next().await.unwrap().body, b"1");
    peer.refuse(1, "not entitled").await;
    let ack = acks.recv().await.unwrap();
    assert_eq!(
        (ack.reason.as_str(), ack.figure, ack.sequence, ack.kind),
        ("not entitled", Some(1), None, Some(AckKind::Persisted))
    );
    // A success that nobody asked for is passed on as well, without an alarm.
    peer.ok(2).await;
    let ack = acks.recv().await.unwrap();
    assert_eq!(ack.status, Some(Status::Success));
    let alarms = std::iter::from_fn(|| events.try_next()).filter(|e| {
        matches!(
            e,
            Event::Unattributed {
                figure: Some(1),
                ..
            }
        )
    });
    assert_eq!(alarms.count(), 1);
    assert_eq!(client.health().counts.unattributed, 1);
}

/// Fills the send buffer of a client without a store; returns how many messages fitted.
fn fill_direct(client: &Client) -> u64 {
    let mut count = 0;
    while client
        .try_send(Message::publish("t", vec![b'x'; 10_000]))
        .is_ok()
    {
        count += 1;
    }
    count
}

#[tokio::test]
async fn without_a_store_a_lost_link_takes_its_messages_along_and_says_so() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let mut events = client.events();
    let peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    // The server reads nothing, so the pipe fills up, and then the buffer.
    let waiting = loop {
        let before = fill_direct(&client);
        let mut waiting = Box::pin(client.publish("t", "waits"));
        tokio::task::yield_now().await;
        let polled = std::future::poll_fn(|cx| std::task::Poll::Ready(waiting.as_mut().poll(cx)));
        if before == 0 && polled.await.is_pending() {
            break waiting;
        }
    };
    drop(peer);
    let error = waiting.await.unwrap_err();
    assert!(
        matches!(error.reason, PublishFailure::NotConnected),
        "{error}"
    );
    assert_eq!(&error.message.payload()[..], b"waits");
    let unsent = loop {
        if let Event::Unsent { messages } = events.next().await.unwrap() {
            break messages;
        }
    };
    assert!(unsent >= (1 << 20) / 10_100, "{unsent}");
    assert_eq!(client.health().counts.unsent, unsent);
    // None of it is sent on the next link, least of all before its logon is answered.
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    let flushed = client.publish_flush(LONG).await;
    assert!(
        matches!(
            flushed,
            Err(FlushError::Command(CommandError::NotConnected))
        ),
        "{flushed:?}"
    );
    peer.accept_logon(&logon, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    client.publish("t", "now").await.unwrap();
    assert_eq!(peer.next().await.unwrap().body, b"now");
}

#[tokio::test]
async fn a_subscription_delivers_and_continues_behind_the_last_bookmark() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .subscribe(Subscribe::topic("t").bookmark("0").filter("/a=1"))
                .await
        }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let place = peer.next().await.unwrap();
    assert_eq!(
        (place.bookmark.as_deref(), place.filter.as_deref()),
        (Some("0"), Some("/a=1"))
    );
    peer.processed(&place).await;
    let mut subscription = subscribing.await.unwrap().unwrap();
    let id = place.sub_id.unwrap();
    peer.deliver(&id, "t", "1|1|", b"first").await;
    peer.deliver(&id, "t", "1|2|", b"second").await;
    peer.deliver("s999", "t", "1|3|", b"nobody's").await;
    let first = subscription.next().await.unwrap().unwrap();
    assert_eq!(
        (&first.data[..], first.bookmark.as_deref()),
        (&b"first"[..], Some("1|1|"))
    );
    assert_eq!(
        &subscription.next().await.unwrap().unwrap().data[..],
        b"second"
    );
    drop(peer);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let again = peer.next().await.unwrap();
    assert_eq!(
        (again.bookmark.as_deref(), again.sub_id.as_deref()),
        (Some("1|2|"), Some(&*id))
    );
    peer.processed(&again).await;
    peer.deliver(&id, "t", "1|3|", b"third").await;
    assert_eq!(
        &subscription.next().await.unwrap().unwrap().data[..],
        b"third"
    );
    drop(subscription);
    let end = peer.next().await.unwrap();
    assert_eq!(
        (end.verb.as_str(), end.sub_id.as_deref()),
        ("Unsubscribe", Some(&*id))
    );
}

#[tokio::test]
async fn a_subscription_dropped_while_the_driver_is_swamped_is_unsubscribed_all_the_same() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let (subscription, ()) = tokio::join!(client.subscribe(Subscribe::topic("t")), async {
        let place = peer.next().await.unwrap();
        peer.processed(&place).await;
    });
    // More questions than its queue holds, before it gets to run.
    client.publish("t", "1").await.unwrap();
    let mut flushes = Vec::new();
    for _ in 0..300 {
        flushes.push(started(Box::pin(client.publish_flush(LONG))).await);
    }
    drop(subscription.unwrap());
    let verbs = [
        peer.next().await.unwrap().verb,
        peer.next().await.unwrap().verb,
    ];
    assert!(verbs.contains(&"Unsubscribe".to_owned()), "{verbs:?}");
}

#[tokio::test]
async fn a_slow_reader_ends_with_lagged_and_the_link_goes_on() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t").buffer(2)).await }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let place = peer.next().await.unwrap();
    peer.processed(&place).await;
    let mut subscription = subscribing.await.unwrap().unwrap();
    for n in 0..5 {
        peer.deliver(place.sub_id.as_deref().unwrap(), "t", "1|1|", &[n])
            .await;
    }
    assert_eq!(peer.next().await.unwrap().verb, "Unsubscribe");
    assert!(subscription.next().await.unwrap().is_ok());
    assert!(subscription.next().await.unwrap().is_ok());
    assert!(matches!(
        subscription.next().await,
        Some(Err(SubscriptionEnd::Lagged))
    ));
    assert!(subscription.next().await.is_none());
    let receipt = client.publish("orders", "1").await.unwrap();
    assert_eq!(peer.next().await.unwrap().sequence, Some(1));
    peer.ok(1).await;
    receipt.await;
}

#[tokio::test]
async fn a_query_ends_with_its_answer() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let querying = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::sow("t").top_n(10)).await }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let query = peer.next().await.unwrap();
    assert_eq!(query.verb, "Sow");
    peer.processed(&query).await;
    let id = format!("s{}", querying_id(&query));
    let mut out = Vec::new();
    encode_group(&mut out, true, &id).unwrap();
    let record = |key, body| SowEntry {
        topic: "t",
        key,
        bookmark: None,
        body,
    };
    encode_sow(
        &mut out,
        &id,
        "t",
        [record("1", b"one".as_slice()), record("2", b"two")],
    )
    .unwrap();
    encode_group(&mut out, false, &id).unwrap();
    peer.raw(&out).await;
    let mut done = Ack::new(AckKind::Completed, Status::Success);
    done.query_id = Some(&id);
    done.command_id = query.id.as_deref();
    peer.ack(&done).await;
    let mut answer = querying.await.unwrap().unwrap();
    let one = answer.next().await.unwrap().unwrap();
    assert_eq!(
        (one.sow_key.as_deref(), &one.data[..]),
        (Some("1"), &b"one"[..])
    );
    assert_eq!(&answer.next().await.unwrap().unwrap().data[..], b"two");
    assert!(answer.next().await.is_none());
}

#[tokio::test]
async fn a_query_asked_before_the_first_logon_waits_for_it() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let query = started(Box::pin(client.subscribe(Subscribe::sow("t")))).await;
    // The first attempts fail.
    for _ in 0..3 {
        drop(Peer::accept(&mut listener).await);
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let placed = peer.next().await.unwrap();
    assert_eq!(placed.verb, "Sow");
    peer.processed(&placed).await;
    let mut answer = query.await.unwrap();
    // Once it has been asked, a lost link ends it: asking again would repeat the answer.
    drop(peer);
    assert!(matches!(
        answer.next().await,
        Some(Err(SubscriptionEnd::Command(CommandError::Disconnected)))
    ));
}

fn querying_id(query: &Frame) -> &str {
    query.query_id.as_deref().unwrap().trim_start_matches('s')
}

#[tokio::test]
async fn a_refused_subscription_and_a_refused_command_say_why() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("[")).await }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let place = peer.next().await.unwrap();
    let mut ack = Ack::new(AckKind::Processed, Status::Failure);
    ack.command_id = place.id.as_deref();
    ack.reason = Some("bad regex topic");
    peer.ack(&ack).await;
    match subscribing.await.unwrap() {
        Err(CommandError::Refused(reason)) => assert_eq!(reason.as_str(), "bad regex topic"),
        other => panic!("{other:?}"),
    }
    assert_eq!(peer.next().await.unwrap().verb, "Unsubscribe");
    let asking = tokio::spawn({
        let client = client.clone();
        async move {
            client
                .command(Request::new("sow_delete").topic("t").filter("/x"))
                .await
        }
    });
    let command = peer.next().await.unwrap();
    ack.command_id = command.id.as_deref();
    ack.reason = Some("bad filter");
    peer.ack(&ack).await;
    match asking.await.unwrap() {
        Err(CommandError::Refused(reason)) => assert_eq!(reason.as_str(), "bad filter"),
        other => panic!("{other:?}"),
    }
}

/// An ack of any status, or of none, with no reason.
async fn acked(peer: &mut Peer, command: &Frame, kind: &str, status: Option<&str>) {
    let status = status.map_or(String::new(), |word| format!(r#","status":"{word}""#));
    let id = command.id.as_deref().unwrap();
    let header = format!(r#"{{"c":"ack","a":"{kind}","cid":"{id}"{status}}}"#);
    let length = u32::try_from(header.len()).unwrap().to_be_bytes();
    peer.raw(&[&length, header.as_bytes()].concat()).await;
}

#[tokio::test]
async fn only_an_ack_that_says_success_is_one() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    for (status, words) in [
        (Some("retry"), "status \"retry\""),
        (Some("maybe"), "status \"unknown\""),
        (None, "without a status"),
    ] {
        let (flushed, command) = tokio::join!(client.publish_flush(LONG), async {
            let flush = peer.next().await.unwrap();
            acked(&mut peer, &flush, "processed", status).await;
            flush.verb
        });
        assert_eq!(command, "Flush");
        let Err(FlushError::Command(CommandError::Refused(reason))) = flushed else {
            panic!("{flushed:?}");
        };
        assert!(reason.as_str().contains(words), "{reason}");

        let (answer, ()) = tokio::join!(client.command(Request::new("stop_timer")), async {
            let command = peer.next().await.unwrap();
            acked(&mut peer, &command, "processed", status).await;
        });
        assert!(matches!(answer, Err(CommandError::Refused(_))));

        let (subscribed, end) = tokio::join!(client.subscribe(Subscribe::topic("t")), async {
            let place = peer.next().await.unwrap();
            acked(&mut peer, &place, "processed", status).await;
            peer.next().await.unwrap().verb
        });
        assert!(matches!(subscribed, Err(CommandError::Refused(_))));
        assert_eq!(
            end, "Unsubscribe",
            "the server may have placed it all the same"
        );

        let (query, end) = tokio::join!(client.subscribe(Subscribe::sow("t")), async {
            let query = peer.next().await.unwrap();
            peer.processed(&query).await;
            acked(&mut peer, &query, "completed", status).await;
            peer.next().await.unwrap().verb
        });
        let end_of_answer = query.unwrap().next().await;
        assert!(
            matches!(
                &end_of_answer,
                Some(Err(SubscriptionEnd::Command(CommandError::Refused(_))))
            ),
            "{end_of_answer:?}"
        );
        assert_eq!(end, "Unsubscribe");
    }
}

#[tokio::test(start_paused = true)]
async fn a_command_without_an_answer_times_out() {
    let (builder, mut listener) = pair();
    let client = builder
        .command_timeout(Duration::from_secs(2))
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    let (result, command) = tokio::join!(
        client.command(Request::new("sow_delete").topic("t")),
        peer.next()
    );
    assert!(matches!(result, Err(CommandError::Timeout)));
    assert_eq!(command.unwrap().verb, "SowDelete");
}
