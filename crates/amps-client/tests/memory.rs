//! What a server sends cannot make the client's memory grow without bound: a live client, under
//! an allocator that counts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;
#[path = "common/heap.rs"]
mod heap;

use std::time::Duration;

use amps_client::session::MAX_WAITING;
use amps_client::{
    Client, CommandError, FlushError, Message, Outcome, PublishFailure, Request, Subscribe,
    Subscription, SubscriptionEnd,
};
use common::{Peer, memory, pair, started};
use heap::{ALONE, bounded};

const HOUR: Duration = Duration::from_secs(3600);

/// A client with one subscription, and the server it is placed at.
async fn subscribed(subscribe: Subscribe) -> (Client, Peer, Subscription) {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(subscribe).await }
    });
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let place = peer.next().await.unwrap();
    peer.processed(&place).await;
    (client, peer, subscribing.await.unwrap().unwrap())
}

fn frame(header: &str, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(header.len() + body.len()).unwrap();
    [&length.to_be_bytes(), header.as_bytes(), body].concat()
}

#[tokio::test]
async fn a_subscription_named_many_times_gets_the_message_once() {
    let _alone = ALONE.lock().await;
    let (client, mut peer, mut subscription) = subscribed(Subscribe::topic("t")).await;
    let name = format!("s{}", subscription.id());
    // Naming a subscription that does not exist costs nothing either.
    let ids = format!("{name},s9999,").repeat(50_000);
    let many = frame(
        &format!(r#"{{"c":"p","t":"t","sids":"{ids}"}}"#),
        &[b'x'; 8000],
    );
    let end = frame(&format!(r#"{{"c":"p","t":"t","sub_id":"{name}"}}"#), b"end");
    bounded(8 << 20, async {
        peer.raw(&many).await;
        peer.raw(&end).await;
        let first = subscription.next().await.unwrap().unwrap();
        assert_eq!(first.data.len(), 8000);
        let second = subscription.next().await.unwrap().unwrap();
        assert_eq!(&second.data[..], b"end", "once, and the link goes on");
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn the_records_of_an_answer_share_its_topic() {
    let _alone = ALONE.lock().await;
    let buffer = 1 << 16;
    let (client, mut peer, mut answer) = subscribed(Subscribe::sow("t").buffer(buffer)).await;
    let topic = "t".repeat(100_000);
    let header = format!(
        r#"{{"c":"sow","query_id":"s{}","t":"{topic}"}}"#,
        answer.id()
    );
    let records = br#"{"l":1}x"#.repeat(20_000);
    // Before, each record took a copy: 2 GB.
    bounded(32 << 20, async {
        peer.raw(&frame(&header, &records)).await;
        for _ in 0..20_000 {
            let record = answer.next().await.unwrap().unwrap();
            assert_eq!((record.topic.len(), &record.data[..]), (100_000, &b"x"[..]));
        }
    })
    .await;
    drop(client);
}

#[tokio::test]
async fn long_reasons_are_cut_before_they_are_kept() {
    let _alone = ALONE.lock().await;
    const COUNT: u64 = 300;
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        receipts.push(client.publish("t", n.to_string()).await.unwrap());
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(COUNT).await;
    let words = "x".repeat(100_000);
    // Before, every receipt kept all of it: 30 MB.
    bounded(8 << 20, async {
        for n in 1..=COUNT {
            peer.refuse(n, &words).await;
        }
        for receipt in &mut receipts {
            let Outcome::Rejected { reason } = receipt.await else {
                panic!("refused");
            };
            assert_eq!(reason.as_str(), &words[..128]);
        }
    })
    .await;
    assert!(client.failed().list().iter().all(|found| found.reason_cut));
}

#[tokio::test]
async fn a_slow_reader_holds_so_many_bytes_and_no_more() {
    let _alone = ALONE.lock().await;
    const BODY: usize = 100_000;
    let subscribe = Subscribe::topic("t").buffer_bytes(1 << 20);
    let (client, mut peer, mut subscription) = subscribed(subscribe).await;
    let header = format!(r#"{{"c":"p","t":"t","sub_id":"s{}"}}"#, subscription.id());
    // What was read makes room again.
    for _ in 0..100 {
        peer.raw(&frame(&header, &[b'x'; BODY])).await;
        assert!(subscription.next().await.unwrap().is_ok());
    }
    // Before, 8192 messages of any size were held: here 40 MB.
    bounded(8 << 20, async {
        for _ in 0..400 {
            peer.raw(&frame(&header, &[b'x'; BODY])).await;
        }
        assert_eq!(peer.next().await.unwrap().verb, "Unsubscribe");
    })
    .await;
    let mut read = 0;
    let end = loop {
        match subscription.next().await.unwrap() {
            Ok(_) => read += 1,
            Err(end) => break end,
        }
    };
    assert_eq!(read, (1 << 20) / BODY);
    assert!(matches!(end, SubscriptionEnd::Lagged), "{end:?}");
    drop(client);
}

#[tokio::test]
async fn a_single_message_may_be_larger_than_the_buffer() {
    let _alone = ALONE.lock().await;
    let subscribe = Subscribe::topic("t").buffer_bytes(10);
    let (client, mut peer, mut subscription) = subscribed(subscribe).await;
    let header = format!(r#"{{"c":"p","t":"t","sub_id":"s{}"}}"#, subscription.id());
    for _ in 0..3 {
        peer.raw(&frame(&header, &[b'x'; 1000])).await;
        let message = subscription.next().await.unwrap().unwrap();
        assert_eq!(message.data.len(), 1000);
    }
    drop(client);
}

#[tokio::test]
async fn flushes_that_nobody_waits_for_any_more_are_forgotten() {
    let _alone = ALONE.lock().await;
    let (builder, _listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    // Before, each was kept for its hour: 20 MB.
    bounded(1 << 20, async {
        for _ in 0..50_000 {
            let flush = started(Box::pin(client.publish_flush(HOUR))).await;
            tokio::task::yield_now().await;
            drop(flush);
        }
    })
    .await;
    let waiting = started(Box::pin(client.publish_flush(HOUR))).await;
    client.close(Duration::ZERO).await;
    assert!(
        waiting.await.is_err(),
        "one that is waited for is not forgotten"
    );
}

#[tokio::test(start_paused = true)]
async fn commands_wait_while_the_server_reads_nothing() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    let command = |n: u64| {
        let request = Request::new("no_ack").acks([]);
        request.correlation_id(n.to_string()).body(vec![0; 10_000])
    };
    // Before, all of them were accepted: 100 MB.
    let taken = bounded(8 << 20, async {
        for n in 0..10_000 {
            match client.command(command(n)).await {
                Ok(_) => {}
                Err(error) => {
                    assert!(matches!(error, CommandError::Timeout), "{error}");
                    return n;
                }
            }
        }
        panic!("where are they?");
    })
    .await;
    // Others do not wait behind it.
    client.publish("t", "x").await.unwrap();
    let flushed = client.publish_flush(Duration::from_secs(1)).await;
    assert!(matches!(flushed, Err(FlushError::Timeout { .. })));
    // What was accepted is sent, what timed out is not, and the link goes on.
    for n in 0..taken {
        let frame = peer.next().await.unwrap();
        assert_eq!((frame.verb.as_str(), frame.body.len()), ("no_ack", 10_000));
        assert_eq!(frame.id, Some(format!("c{}", n + 2)));
    }
    assert_eq!(peer.publishes_to(1).await.len(), 1);
    let (answer, ()) = tokio::join!(client.command(Request::new("acked")), async {
        let frame = peer.next().await.unwrap();
        assert_eq!(frame.verb, "acked");
        peer.processed(&frame).await;
    });
    answer.unwrap();
}

#[tokio::test(start_paused = true)]
async fn a_command_that_nobody_waits_for_leaves_its_place_to_another() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let client = builder.open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, None).await;
    client.wait_logged_on(HOUR).await.unwrap();
    // More than may wait for an answer at once.
    for n in 0..3000 {
        if n % 2 == 0 {
            drop(started(Box::pin(client.command(Request::new("never")))).await);
        } else {
            drop(started(Box::pin(client.publish_flush(Duration::MAX))).await);
        }
        peer.next().await.unwrap();
    }
    let (answer, ()) = tokio::join!(client.command(Request::new("acked")), async {
        let frame = peer.next().await.unwrap();
        peer.processed(&frame).await;
    });
    answer.unwrap();
    // Those that somebody waits for keep their place.
    let waiting = MAX_WAITING + 1;
    let mut refused = 0;
    let waiting: Vec<_> = (0..waiting)
        .map(|_| {
            tokio::spawn({
                let client = client.clone();
                async move { client.command(Request::new("never")).await }
            })
        })
        .collect();
    for command in waiting {
        match command.await.unwrap() {
            Err(CommandError::TooMany) => refused += 1,
            Err(CommandError::Timeout) => {}
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 1);
}

#[tokio::test]
async fn what_is_larger_than_allowed_is_refused_before_it_is_stored_or_sent() {
    let _alone = ALONE.lock().await;
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .max_message(100)
        .open()
        .await
        .unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(HOUR).await.unwrap();
    let half = "x".repeat(51);
    for message in [
        Message::publish("t", vec![b'x'; 100]),
        Message::publish(half.clone(), half.clone()),
        Message::sow_delete_by_filter("t", "x".repeat(100)),
        Message::publish("t", half.clone()).options(half.clone()),
    ] {
        let refused = client.try_send(message).unwrap_err();
        let PublishFailure::TooLarge { bytes, max: 100 } = refused.reason else {
            panic!("{refused}");
        };
        assert!(bytes > 100);
    }
    let refused = client.publish(&half, half.clone()).await.unwrap_err();
    assert!(matches!(
        refused.reason,
        PublishFailure::TooLarge { bytes: 102, .. }
    ));
    for request in [
        Request::new("x").body(vec![0; 100]),
        Request::new("x").filter(half.clone()).topic(half.clone()),
    ] {
        let refused = client.command(request).await;
        assert!(matches!(
            refused,
            Err(CommandError::TooLarge { max: 100, .. })
        ));
    }
    let long = Subscribe::topic(half.clone()).filter(half.clone());
    let refused = client.subscribe(long).await;
    assert!(matches!(
        refused,
        Err(CommandError::TooLarge { bytes: 102, .. })
    ));
    assert_eq!(client.health().unsettled, 0);
    let most = client.publish("t", vec![b'x'; 99]).await.unwrap();
    assert_eq!(peer.publishes_to(most.sequence()).await[0].body.len(), 99);
}
