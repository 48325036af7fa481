//! A client without a store against the sandbox, over loopback TCP: publishes that ask for acks.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs)]

use std::time::Duration;

use amps_client::{Client, Message, Outcome, Via};
use amps_sandbox::Sandbox;
use tokio::sync::mpsc;

const LONG: Duration = Duration::from_secs(60);

fn asking(topic: &str, body: impl Into<String>) -> Message {
    Message::publish(topic, body.into()).ask_ack()
}

async fn sandbox() -> Sandbox {
    Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(5))
        .unlogged_topic("unlogged")
        .reject_topic("forbidden")
        .start()
        .await
        .unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_ack_asked_for_reaches_its_own_receipt() {
    const COUNT: usize = 3000;
    let sandbox = sandbox().await;
    let (failed, mut reports) = mpsc::unbounded_channel();
    let client = Client::builder("direct")
        .server(sandbox.uri())
        // Fewer than are sent: they wait for each other.
        .max_in_flight(100, 1 << 20)
        .on_failed_write(move |f| {
            let failed = failed.clone();
            async move { Ok(failed.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    client.wait_logged_on(LONG).await.unwrap();
    let topics = ["logged", "unlogged", "forbidden"];
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        let message = asking(topics[n % 3], format!("{n}"));
        receipts.push(client.send(message).await.unwrap());
        // One that asks for nothing is between them.
        client.publish("logged", "free").await.unwrap();
    }
    let report = client.publish_flush(LONG).await.unwrap();
    let third = COUNT as u64 / 3;
    assert_eq!((report.persisted, report.rejected), (2 * third, third));
    assert_eq!((report.unknown, report.left), (COUNT as u64, 0));
    for (n, receipt) in receipts.into_iter().enumerate() {
        let id = receipt.command_id().map(str::to_owned);
        match (topics[n % 3], receipt.await) {
            ("forbidden", Outcome::Rejected { reason }) => {
                assert!(!reason.as_str().is_empty());
                // The flush has waited for the handler.
                let report = reports.try_recv().unwrap();
                assert_eq!((report.command_id, report.original), (id, None));
            }
            ("forbidden", other) => panic!("{other:?}"),
            (_, outcome) => assert_eq!(outcome, Outcome::Persisted { via: Via::Ack }),
        }
    }
    let health = client.health();
    assert_eq!((health.unsettled, health.counts.unattributed), (0, 0));
    assert!(client.close(LONG).await.clean);
    sandbox.stop().await;
}

#[test]
fn callers_that_block_ask_for_acks_as_well() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let sandbox = runtime.block_on(sandbox());
    let (told, refusals) = std::sync::mpsc::channel();
    let client = Client::builder("direct")
        .server(sandbox.uri())
        .on_failed_write_blocking(move |failed| Ok(told.send(failed)?))
        .open_blocking()
        .unwrap();
    client.wait_logged_on(LONG).unwrap();
    let taken = client.send(asking("logged", "1")).unwrap();
    let refused = client.send(asking("forbidden", "2")).unwrap();
    let free = client.publish("logged", "3").unwrap();
    assert_eq!(free.command_id(), None);
    assert_eq!(free.outcome(), Outcome::Unknown);
    let id = refused.command_id().map(str::to_owned);
    assert!(id.is_some() && taken.command_id() != id.as_deref());
    assert_eq!(taken.outcome(), Outcome::Persisted { via: Via::Ack });
    assert!(matches!(refused.outcome(), Outcome::Rejected { .. }));
    assert_eq!(refusals.recv_timeout(LONG).unwrap().command_id, id);
    // A server that is gone leaves nothing known, and what was known is not forgotten.
    let told = client.send(asking("logged", "4")).unwrap();
    client.publish_flush(LONG).unwrap();
    runtime.block_on(sandbox.stop());
    let open = client.send(asking("logged", "5"));
    if let Ok(receipt) = open {
        assert_eq!(receipt.outcome(), Outcome::Unknown);
    }
    client.close(Duration::ZERO);
    drop(client);
    assert_eq!(told.outcome(), Outcome::Persisted { via: Via::Ack });
}
