//! A hostile or completely broken server, and a live client. What such a server sends at most
//! ends the link with a typed error, costs bounded memory, and settles nothing that was not sent;
//! and the next server is served as if nothing had happened.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/heap.rs"]
mod heap;

use std::fmt::Write as _;
use std::time::Duration;

use amps_client::connector::MemoryListener;
use amps_client::{Builder, Client, Event, Events, LinkEnd, Outcome, Subscribe, Via};
use amps_store::Store;
use common::{Peer, memory, options, pair};
use heap::{ALONE, bounded};

const LONG: Duration = Duration::from_secs(600);

fn frame(text: &str) -> Vec<u8> {
    let length = u32::try_from(text.len()).unwrap();
    [&length.to_be_bytes(), text.as_bytes()].concat()
}

async fn link_lost(events: &mut Events) -> LinkEnd {
    loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            return why;
        }
    }
}

/// An honest server takes over: every message that was published arrives and is settled.
async fn goes_on(client: &Client, listener: &mut MemoryListener, count: u64) {
    let last = client.publish("t", "last").await.unwrap();
    assert_eq!(client.health().unsettled, count + 1);
    let mut peer = Peer::logged_on(listener, 0).await;
    let numbers = peer.publishes_to(count + 1).await;
    let numbers: Vec<_> = numbers.iter().filter_map(|frame| frame.sequence).collect();
    assert_eq!(numbers, (1..=count + 1).collect::<Vec<_>>());
    peer.ok(count + 1).await;
    assert_eq!(last.await, Outcome::Persisted { via: Via::Ack });
    assert!(client.close(LONG).await.clean);
}

async fn open(builder: Builder) -> (Client, Events) {
    let client = builder.max_frame(1 << 20).open().await.unwrap();
    let events = client.events();
    (client, events)
}

#[tokio::test(start_paused = true)]
async fn frames_that_are_none_end_the_link_with_a_reason() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let (client, mut events) = open(builder.store(memory())).await;
    client.publish("t", "1").await.unwrap();
    let endless = format!(r#"{{"c":"ack","reason":"{}"#, "x".repeat((1 << 20) - 30));
    let keys = (0..10_000).fold(String::from("{"), |mut keys, n| {
        write!(keys, r#""k{n}":{n},"#).unwrap();
        keys
    });
    let sow = |record: &str| frame(&format!(r#"{{"c":"sow","query_id":"s1"}}{record}"#));
    let nonsense: Vec<(Vec<u8>, &str)> = vec![
        (vec![0xFF; 64], "announces a frame"),
        (frame(&endless), "header"),
        (frame(&keys), "header"),
        (frame(""), "header"),
        (frame(&"{".repeat(100_000)), "header"),
        (frame(&"[".repeat(100_000)), "header"),
        (sow(r#"{"l":2}x"#), "record"),
        (sow(r#"{"l":18446744073709551615}x"#), "record"),
        (sow(r#"{"l":99999999999999999999}x"#), ""),
        (sow(r#"{"l":-1}x"#), ""),
        (sow(r#"{"k":"1"}x"#), ""),
        (sow(r#"{"l":1}xy"#), ""),
    ];
    bounded(8 << 20, async {
        for (bytes, says) in &nonsense {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            peer.publishes_to(1).await;
            peer.raw(bytes).await;
            assert!(peer.next().await.is_none());
            let LinkEnd::Protocol(why) = link_lost(&mut events).await else {
                panic!(
                    "{:?}",
                    String::from_utf8_lossy(&bytes[..40.min(bytes.len())])
                );
            };
            assert!(why.contains(says), "{why}");
        }
    })
    .await;
    goes_on(&client, &mut listener, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_ends_inside_a_frame_is_told_apart_from_one_that_was_closed() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let (client, mut events) = open(builder.store(memory())).await;
    client.publish("t", "1").await.unwrap();
    let ack = frame(r#"{"c":"ack","a":"persisted","status":"success","s":1}"#);
    for cut in [1, 4, 5, ack.len() - 1] {
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(1).await;
        peer.raw(&ack[..cut]).await;
        drop(peer);
        assert_eq!(link_lost(&mut events).await, LinkEnd::Truncated, "{cut}");
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    drop(peer);
    assert_eq!(link_lost(&mut events).await, LinkEnd::Closed);
    goes_on(&client, &mut listener, 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_frame_that_drips_for_ever_holds_nobody_up() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let heartbeat = Duration::from_secs(5);
    let (client, mut events) = open(builder.store(memory()).heartbeat(heartbeat)).await;
    client.publish("t", "1").await.unwrap();
    // Inside the answer to the logon, then inside a frame after it.
    let (mut peer, _) = Peer::accept(&mut listener).await;
    let drip = |mut peer: Peer| async move {
        peer.raw(&[0, 0, 0xFF, 0xFF, b'{']).await;
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            peer.raw(b" ").await;
        }
    };
    let dripping = tokio::spawn(drip(peer));
    assert_eq!(link_lost(&mut events).await, LinkEnd::LogonTimeout);
    dripping.abort();
    peer = Peer::logged_on(&mut listener, 0).await;
    let start = peer.next().await.unwrap();
    assert_eq!(start.verb, "Heartbeat");
    peer.processed(&start).await;
    let dripping = tokio::spawn(drip(peer));
    assert_eq!(link_lost(&mut events).await, LinkEnd::HeartbeatLost);
    dripping.abort();
    let last = client.publish("t", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.next().await.unwrap().verb, "Heartbeat");
    peer.publishes_to(2).await;
    peer.ok(2).await;
    assert_eq!(last.await, Outcome::Persisted { via: Via::Ack });
}

#[tokio::test(start_paused = true)]
async fn a_flood_takes_no_memory_and_settles_nothing() {
    let _alone = ALONE.lock().await;
    const COUNT: u64 = 10;
    let (builder, mut listener) = pair();
    let builder = builder
        .store(memory())
        // As slow as a handler may be.
        .on_last_chance(|_| std::thread::yield_now());
    let (client, mut events) = open(builder).await;
    for n in 0..COUNT {
        client.publish("t", n.to_string()).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(COUNT).await;
    let long = "x".repeat(5000);
    let floods = [
        r#"{"c":"heartbeat"}"#.to_owned(),
        r#"{"c":"nonsense"}"#.to_owned(),
        "{}".to_owned(),
        format!(r#"{{"c":"p","t":"{long}","sub_id":"s77","bm":"{long}"}}{long}"#),
        format!(r#"{{"c":"sow","query_id":"s77"}}{{"l":5000}}{long}"#),
        format!(r#"{{"c":"ack","a":"persisted","status":"failure","reason":"{long}"}}"#),
        format!(r#"{{"c":"ack","a":"stats","status":"{long}","cid":"{long}"}}"#),
        format!(r#"{{"c":"ack","a":"processed","status":"success","cid":"c999999{long}"}}"#),
        r#"{"c":"ack","a":"persisted","status":"success","sub_id":"s9","s":7}"#.to_owned(),
        r#"{"c":"ack","a":"persisted","status":"success","s":0}"#.to_owned(),
    ];
    bounded(16 << 20, async {
        for text in &floods {
            // A few MB of it, in pieces that do not match its frames.
            let chunk = frame(text).repeat(1 + 100_000 / text.len());
            for _ in 0..20 {
                peer.raw(&chunk).await;
            }
        }
    })
    .await;
    // The link is still there.
    let last = client.publish("t", "last").await.unwrap();
    peer.publishes_to(COUNT + 1).await;
    assert_eq!(client.health().unsettled, COUNT + 1);
    assert!(client.health().counts.unattributed >= 20);
    peer.ok(COUNT + 1).await;
    assert_eq!(last.await, Outcome::Persisted { via: Via::Ack });
    let mut read = 0;
    while events.try_next().is_some() {
        read += 1;
    }
    assert!(read <= 1024 && events.dropped() > 0, "{read}");
}

/// Numbers determined by a seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % sides
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.roll(of.len() as u64) as usize]
    }
}

/// An ack for something that was not sent: distant numbers, ids that nobody gave out, words
/// without meaning.
fn lie(dice: &mut Dice) -> Vec<u8> {
    let mut text = String::from(r#"{"c":"ack""#);
    let kind = dice.pick(&[
        "processed",
        "persisted",
        "completed",
        "stats",
        "received",
        "odd",
    ]);
    write!(text, r#","a":"{kind}""#).unwrap();
    let status = dice.pick(&["success", "failure", "retry", "odd"]);
    write!(text, r#","status":"{status}""#).unwrap();
    if dice.roll(2) == 0 {
        let far = dice.pick(&[
            "0",
            "5000000000",
            "9223372036854775807",
            "9223372036854775808",
        ]);
        write!(text, r#","s":{far}"#).unwrap();
    }
    if dice.roll(2) == 0 {
        let (letter, number) = (dice.pick(&["", "c", "s", "x"]), dice.roll(20));
        write!(text, r#","cid":"{letter}{number}""#).unwrap();
    }
    for name in ["sub_id", "query_id", "bm", "user_id", "pw", "client_name"] {
        if dice.roll(6) == 0 {
            write!(text, r#","{name}":"s{}""#, dice.roll(20)).unwrap();
        }
    }
    if dice.roll(2) == 0 {
        text.push_str(r#","reason":"because""#);
    }
    text.push('}');
    frame(&text)
}

#[tokio::test(start_paused = true)]
async fn acks_for_anything_settle_nothing() {
    let _alone = ALONE.lock().await;
    const COUNT: u64 = 20;
    let seed = std::env::var("AMPS_SEED").map_or(4, |seed| seed.parse().unwrap());
    println!("AMPS_SEED={seed}");
    let mut dice = Dice(seed | 1 << 40);
    let (builder, mut listener) = pair();
    let builder = builder
        .store(memory())
        .on_last_chance(|_| {})
        .heartbeat(Duration::from_secs(3600))
        .on_failed_write(|failed| async move { panic!("{failed:?}") });
    let (client, mut events) = open(builder).await;
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        receipts.push(client.publish("t", n.to_string()).await.unwrap());
    }
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t")).await }
    });
    let mut ends = 0;
    bounded(16 << 20, async {
        for _ in 0..100 {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            let lies: Vec<u8> = (0..20).flat_map(|_| lie(&mut dice)).collect();
            peer.raw(&lies).await;
            drop(peer);
            ends += u32::from(link_lost(&mut events).await != LinkEnd::Closed);
        }
    })
    .await;
    assert!(ends > 10, "some were beyond what a link survives: {ends}");
    assert_eq!(client.health().unsettled, COUNT);
    assert_eq!(client.health().rejections, 0);
    // An honest server then gets everything, in order and once.
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let mut sent = Vec::new();
    while sent.len() < COUNT as usize {
        let frame = peer.next().await.unwrap();
        match frame.verb.as_str() {
            "Publish" => sent.push((frame.sequence.unwrap(), frame.body)),
            _ => peer.processed(&frame).await,
        }
    }
    assert!(sent.windows(2).all(|pair| pair[0].0 < pair[1].0));
    let bodies: Vec<_> = sent.iter().map(|(_, body)| body.clone()).collect();
    let expected = (0..COUNT).map(|n| n.to_string().into_bytes());
    assert_eq!(bodies, expected.collect::<Vec<_>>());
    peer.ok(sent[sent.len() - 1].0).await;
    for receipt in receipts {
        assert_eq!(receipt.await, Outcome::Persisted { via: Via::Ack });
    }
    // A nonsensical answer may have ended it, but it did not hang.
    drop(subscribing.await.unwrap());
}

#[tokio::test(start_paused = true)]
async fn a_server_that_reads_nothing_costs_a_buffer_and_not_the_backlog() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let store = Store::memory(options().capacity(32 << 20)).unwrap();
    let (client, _events) = open(builder.store(store)).await;
    for _ in 0..2000 {
        client.publish("t", vec![b'x'; 8000]).await.unwrap();
    }
    bounded(1 << 20, async {
        let peer = Peer::logged_on(&mut listener, 0).await;
        client.wait_logged_on(LONG).await.unwrap();
        // It writes as long as the link takes bytes, then it waits.
        tokio::time::sleep(LONG).await;
        drop(peer);
    })
    .await;
    assert_eq!(client.health().unsettled, 2000);
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    assert_eq!(peer.publishes_to(2000).await.len(), 2000);
    peer.ok(2000).await;
    assert_eq!(client.publish_flush(LONG).await.unwrap().persisted, 2000);
}
