//! What a server sends cannot make the client's memory grow without bound: a live client,
//! under an allocator that counts.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::Future;

use amps_client::{Client, Subscribe, Subscription};
use common::{Peer, memory, pair};
use peak_alloc::PeakAlloc;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

/// The peak belongs to the whole process: one test at a time.
static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Does something that may take so many bytes of heap at once.
async fn bounded<T>(bytes: usize, work: impl Future<Output = T>) -> T {
    let before = HEAP.current_usage();
    HEAP.reset_peak_usage();
    let done = work.await;
    let taken = HEAP.peak_usage().saturating_sub(before);
    assert!(taken <= bytes, "{taken} bytes of heap, {bytes} are allowed");
    done
}

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
    // Mentions of a subscription that is not there cost nothing either.
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
