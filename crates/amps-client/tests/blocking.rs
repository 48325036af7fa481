//! The blocking façade.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use amps_client::{Outcome, Via};
use amps_store::Store;
use common::{Peer, memory, options, pair};

const LONG: Duration = Duration::from_secs(30);

/// Serves one link on a thread of its own: acks every publish.
fn serve(mut listener: amps_client::connector::MemoryListener) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            while let Some(frame) = peer.next().await {
                if let Some(sequence) = frame.sequence {
                    peer.ok(sequence).await;
                }
            }
        });
    });
}

#[test]
fn it_publishes_flushes_and_closes_without_a_runtime() {
    let (builder, listener) = pair();
    serve(listener);
    let client = builder.store(memory()).open_blocking().unwrap();
    client.wait_logged_on(LONG).unwrap();
    let receipt = client.publish("orders", "1").unwrap();
    assert_eq!(receipt.outcome(), Outcome::Persisted { via: Via::Ack });
    client.publish("orders", "2").unwrap();
    assert_eq!(client.publish_flush(LONG).unwrap().persisted, 2);
    let report = client.close(LONG);
    assert!(report.clean && report.left == 0);
}

#[tokio::test]
async fn it_may_be_used_and_dropped_inside_a_runtime() {
    let (builder, listener) = pair();
    let client = builder.store(memory()).open_blocking().unwrap();
    let receipt = client.publish("orders", "1").unwrap();
    let waiting = receipt
        .outcome_within(Duration::from_millis(5))
        .unwrap_err();
    assert_eq!(waiting.sequence(), 1);
    drop(client);
    drop(listener);
    assert_eq!(waiting.outcome(), Outcome::Unknown);
}

#[test]
fn dropped_it_closes_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, _listener) = pair();
    let client = builder
        .store(Store::open(&path, options()).unwrap())
        .open_blocking()
        .unwrap();
    client.publish("orders", "1").unwrap();
    client.close(Duration::ZERO);
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(amps_store::PublishStore::bounds(&store).unsettled, 1);
}
