//! Commands that have no method of their own, and what a server says that nobody asked for.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use amps_client::protocol::{AckKind, AckKinds};
use amps_client::{CommandError, Request, Subscribe};
use common::{Peer, memory, pair, started};
use tokio::sync::mpsc;
use tokio::time::Instant;

const HOUR: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn every_field_of_a_command_goes_out() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, None).await;
    client.wait_logged_on(HOUR).await.unwrap();
    let request = Request::new("sow_and_subscribe")
        .topic("orders")
        .filter("/id > 1")
        .sow_keys("1,2")
        .options("oof")
        .bookmark("0")
        .correlation_id("Y29y")
        .sub_id("mine")
        .query_id("mine too")
        .order_by("/id")
        .top_n(7)
        .batch_size(10)
        .expiration(60)
        .sow_key("k1")
        .acks([AckKind::Processed, AckKind::Stats])
        .body("body");
    let command = started(Box::pin(client.command(request))).await;
    let frame = peer.next().await.unwrap();
    assert_eq!(frame.verb, "SowAndSubscribe");
    assert_eq!(frame.topic.as_deref(), Some("orders"));
    assert_eq!(frame.filter.as_deref(), Some("/id > 1"));
    assert_eq!(frame.options.as_deref(), Some("oof"));
    assert_eq!(frame.bookmark.as_deref(), Some("0"));
    assert_eq!(frame.sub_id.as_deref(), Some("mine"));
    assert_eq!(frame.query_id.as_deref(), Some("mine too"));
    let more = &frame.more;
    assert_eq!(more.sow_keys.as_deref(), Some("1,2"));
    assert_eq!(more.correlation_id.as_deref(), Some("Y29y"));
    assert_eq!(more.order_by.as_deref(), Some("/id"));
    assert_eq!(more.sow_key.as_deref(), Some("k1"));
    assert_eq!(
        (more.top_n, more.batch_size, more.expiration),
        (Some(7), Some(10), Some(60))
    );
    assert_eq!(frame.acks, AckKinds::PROCESSED.with(AckKind::Stats));
    assert_eq!(frame.body, b"body");
    peer.processed(&frame).await;
    let id = frame.id.unwrap();
    let stats = format!(
        r#"{{"c":"ack","a":"stats","status":"success","cid":"{id}","matches":3,"records_returned":2}}"#
    );
    peer.frame(&stats).await;
    let answer = command.await.unwrap();
    assert_eq!(
        (answer.matches, answer.records_returned),
        (Some(3), Some(2))
    );
}

#[tokio::test(start_paused = true)]
async fn a_command_may_have_a_time_limit_of_its_own() {
    let (builder, mut listener) = pair();
    let client = builder.command_timeout(HOUR).open().await.unwrap();
    let _peer = Peer::logged_on(&mut listener, None).await;
    client.wait_logged_on(HOUR).await.unwrap();
    let begun = Instant::now();
    let short = Request::new("x").timeout(Duration::from_secs(2));
    let answer = client.command(short).await;
    assert!(matches!(answer, Err(CommandError::Timeout)), "{answer:?}");
    assert_eq!(begun.elapsed().as_secs(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_command_that_may_be_repeated_outlives_its_link_and_others_do_not() {
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    // Before there is a link.
    let answer = client.command(Request::new("once")).await;
    assert!(
        matches!(answer, Err(CommandError::NotConnected)),
        "{answer:?}"
    );
    let retried = Request::new("again").retry(true).timeout(HOUR);
    let command = tokio::spawn({
        let (client, request) = (client.clone(), retried.clone());
        async move { client.command(request).await }
    });
    for _ in 0..3 {
        let mut peer = Peer::logged_on(&mut listener, None).await;
        assert_eq!(peer.next().await.unwrap().verb, "again");
        let once = tokio::spawn({
            let client = client.clone();
            async move { client.command(Request::new("once")).await }
        });
        assert_eq!(peer.next().await.unwrap().verb, "once");
        drop(peer);
        let answer = once.await.unwrap();
        assert!(
            matches!(answer, Err(CommandError::Disconnected)),
            "{answer:?}"
        );
    }
    let mut peer = Peer::logged_on(&mut listener, None).await;
    let frame = peer.next().await.unwrap();
    assert_eq!(frame.verb, "again");
    peer.processed(&frame).await;
    command.await.unwrap().unwrap();

    // Nobody answers any more: at some point its time is up, and so is the client's.
    drop(peer);
    let begun = Instant::now();
    let brief = retried.clone().timeout(Duration::from_secs(5));
    let answer = client.command(brief).await;
    assert!(matches!(answer, Err(CommandError::Timeout)), "{answer:?}");
    assert_eq!(begun.elapsed().as_secs(), 5);
    let waiting = started(Box::pin(client.command(retried))).await;
    client.close(Duration::ZERO).await;
    let answer = waiting.await;
    assert!(matches!(answer, Err(CommandError::Closed)), "{answer:?}");
}

#[tokio::test]
async fn what_nothing_takes_reaches_the_last_chance_handler() {
    let (builder, mut listener) = pair();
    let (told, mut unhandled) = mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .on_last_chance(move |ack| told.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    for text in [
        r#"{"c":"heartbeat"}"#,
        r#"{"c":"redirect","status":"redirect","cid":"0","uri":"tcp://other:9007/amps/json"}"#,
        r#"{"c":"ack","a":"stats","status":"success","cid":"nobody","s":7}"#,
        r#"{"c":"flush"}"#,
        "{}",
    ] {
        peer.frame(text).await;
    }
    let redirect = unhandled.recv().await.unwrap();
    assert_eq!(redirect.command, "redirect");
    let ack = unhandled.recv().await.unwrap();
    assert_eq!(
        (ack.command.as_str(), ack.kind),
        ("ack", Some(AckKind::Stats))
    );
    assert_eq!(
        (ack.figure, ack.command_id.as_deref()),
        (Some(7), Some("nobody"))
    );
    assert_eq!(unhandled.recv().await.unwrap().command, "flush");
    assert_eq!(unhandled.recv().await.unwrap().command, "");
    assert_eq!(client.health().counts.unattributed, 0);
}

#[tokio::test]
async fn deliveries_and_records_that_no_subscription_takes_reach_the_last_chance_handler() {
    let (builder, mut listener) = pair();
    let (told, mut unhandled) = mpsc::unbounded_channel();
    let client = builder
        .on_last_chance(move |ack| told.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t")).await }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let placed = peer.next().await.unwrap();
    peer.processed(&placed).await;
    let mut reader = subscribing.await.unwrap().unwrap();
    let id = placed.sub_id.unwrap();

    peer.deliver("s999", "t", "1|1|", b"nobody's").await;
    peer.frame(r#"{"c":"p","t":"t"}to nobody in particular"#)
        .await;
    peer.frame(r#"{"c":"oof","sub_id":"theirs","t":"t"}gone"#)
        .await;
    // Three records in one frame are reported once.
    let record = r#"{"l":1}x"#;
    let records = format!(
        r#"{{"c":"sow","query_id":"s77","t":"t"}}{}"#,
        record.repeat(3)
    );
    peer.frame(&records).await;
    // One reader is enough.
    peer.frame(&format!(r#"{{"c":"p","t":"t","sids":"s999,{id}"}}ours"#))
        .await;
    peer.frame(r#"{"c":"flush"}"#).await;

    assert_eq!(&reader.next().await.unwrap().unwrap().data[..], b"ours");
    for (command, subscription) in [
        ("p", Some("s999")),
        ("p", None),
        ("oof", Some("theirs")),
        ("sow", Some("s77")),
        ("flush", None),
    ] {
        let stray = unhandled.recv().await.unwrap();
        assert_eq!(
            (stray.command.as_str(), stray.subscription.as_deref()),
            (command, subscription)
        );
    }
    assert_eq!(client.health().counts.unattributed, 0);
}

#[tokio::test]
async fn what_the_server_says_of_itself_is_kept_and_cut() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let long = "5".repeat(1000);
    for (fields, version, hash) in [
        (
            r#""version":"5.3.3.0.1","bm":"7094790850998930143|12|""#.to_owned(),
            Some("5.3.3.0.1"),
            Some(7_094_790_850_998_930_143),
        ),
        (
            format!(r#""version":"{long}","bm":"x|1|""#),
            Some(&long[..128]),
            None,
        ),
        (r#""reason":"none of it""#.to_owned(), None, None),
    ] {
        let (mut peer, logon) = Peer::accept(&mut listener).await;
        let id = logon.id.unwrap();
        let ack = format!(
            r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}","s":0,{fields}}}"#
        );
        let before = client.health().logons;
        peer.frame(&ack).await;
        while client.health().logons == before {
            tokio::task::yield_now().await;
        }
        let info = client.health().server_info;
        assert_eq!((info.version.as_deref(), info.name_hash), (version, hash));
    }
}
