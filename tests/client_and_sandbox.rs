//! The client against the sandbox, over loopback TCP and with faults.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs)]

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use amps_client::{
    Backoff, Builder, Client, ConnectionState, Event, FailedWrite, FlushError, Outcome, Subscribe,
    Via,
};
use amps_sandbox::proxy::Proxy;
use amps_sandbox::{Dialect, Fault, Sandbox};
use amps_store::{Options, PublishStore, Store};
use tokio::sync::mpsc;

const LONG: Duration = Duration::from_secs(60);

fn store(name: &str) -> Store {
    Store::memory(Options::new().capacity(8 << 20).client_name(name)).unwrap()
}

fn client(name: &str, sandbox: &Sandbox) -> Builder {
    Client::builder(name)
        .server(sandbox.uri())
        .backoff(backoff())
}

fn backoff() -> Backoff {
    Backoff::new(Duration::from_millis(1), Duration::from_millis(20))
}

fn bodies(sandbox: &Sandbox, name: &str) -> Vec<String> {
    let entries = sandbox.journal().unwrap();
    let of_name = entries
        .into_iter()
        .filter(|entry| entry.client_name == name);
    of_name
        .map(|entry| String::from_utf8(entry.bytes).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_message_arrives_once_and_in_order_over_broken_links() {
    const COUNT: u64 = 20_000;
    for fault in [Fault::CloseAfter(1500), Fault::CutAfter(1500)] {
        let sandbox = Sandbox::builder()
            .listen("tcp://127.0.0.1:0/amps/json")
            .ack_interval(Duration::from_millis(5))
            .start()
            .await
            .unwrap();
        sandbox.inject(&fault);
        let client = client("pub", &sandbox)
            .store(store("pub"))
            .open()
            .await
            .unwrap();
        let mut events = client.events();
        let breaking = async {
            // Each of the first links breaks.
            let mut logons = 0;
            while logons < 8 {
                if let Some(Event::State {
                    state: ConnectionState::LoggedOn,
                    ..
                }) = events.next().await
                {
                    logons += 1;
                    sandbox.inject(&fault);
                }
            }
            sandbox.clear_faults();
        };
        let publishing = async {
            for n in 0..COUNT {
                client.publish("orders", format!("{n}")).await.unwrap();
            }
            client.publish_flush(LONG).await.unwrap()
        };
        let (report, ()) = tokio::time::timeout(LONG, async { tokio::join!(publishing, breaking) })
            .await
            .unwrap();
        assert_eq!(report.persisted + report.persisted_at_logon, COUNT);
        assert_eq!((report.rejected, report.left), (0, 0));
        let expected: Vec<String> = (0..COUNT).map(|n| n.to_string()).collect();
        assert!(
            bodies(&sandbox, "pub") == expected,
            "once and in order ({fault:?})"
        );
        client.close(LONG).await;
        sandbox.stop().await;
    }
}

#[tokio::test]
async fn a_refusal_by_content_comes_back_and_the_rest_is_persisted() {
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .reject_invalid_json("orders")
        .ack_interval(Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let (told, mut failed) = mpsc::unbounded_channel::<FailedWrite>();
    let client = client("pub", &sandbox)
        .store(store("pub"))
        .on_failed_write(move |f| {
            let told = told.clone();
            async move { Ok(told.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let good = client.publish("orders", r#"{"id":1}"#).await.unwrap();
    let bad = client.publish("orders", "{not json").await.unwrap();
    let after = client.publish("orders", r#"{"id":3}"#).await.unwrap();
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!(
        (report.persisted, report.rejected, report.persisted_at_logon),
        (2, 1, 0)
    );
    assert_eq!(good.await, Outcome::Persisted { via: Via::Ack });
    assert!(matches!(bad.await, Outcome::Rejected { .. }));
    assert_eq!(after.await, Outcome::Persisted { via: Via::Ack });
    let failed = failed.recv().await.unwrap();
    assert_eq!(&failed.original.unwrap().payload()[..], b"{not json");
    assert_eq!(bodies(&sandbox, "pub"), [r#"{"id":1}"#, r#"{"id":3}"#]);
    client.close(LONG).await;
    sandbox.stop().await;
}

#[tokio::test]
async fn h3_a_fresh_store_under_a_known_name_loses_and_claims_nothing() {
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let first = client("pub", &sandbox)
        .store(store("pub"))
        .open()
        .await
        .unwrap();
    for n in 0..500 {
        first.publish("orders", format!("old {n}")).await.unwrap();
    }
    first.publish_flush(LONG).await.unwrap();
    first.close(LONG).await;

    // Another machine, another store, the same name; published before the first logon.
    let fresh = store("pub");
    for n in 0..100 {
        let envelope = amps_store::Envelope::publish("orders");
        fresh
            .append(&envelope, format!("new {n}").as_bytes())
            .unwrap();
    }
    let second = client("pub", &sandbox).store(fresh).open().await.unwrap();
    let report = second.publish_flush(LONG).await.unwrap();
    assert_eq!(
        (report.persisted, report.persisted_at_logon, report.left),
        (100, 0, 0)
    );
    let all = bodies(&sandbox, "pub");
    assert_eq!(all.len(), 600);
    assert_eq!(
        (all[499].as_str(), all[500].as_str(), all[599].as_str()),
        ("old 499", "new 0", "new 99")
    );
    second.close(LONG).await;
    sandbox.stop().await;
}

#[tokio::test]
async fn a_subscriber_from_the_start_sees_every_message_once_over_a_broken_link() {
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(5))
        .start()
        .await
        .unwrap();
    let publisher = client("pub", &sandbox)
        .store(store("pub"))
        .open()
        .await
        .unwrap();
    for n in 0..300 {
        publisher.publish("orders", format!("{n}")).await.unwrap();
    }
    publisher.publish_flush(LONG).await.unwrap();
    let proxy = Proxy::start(&sandbox.uris()[0]).await.unwrap();
    let reader = Client::builder("reader")
        .server(proxy.uri().to_string())
        .backoff(backoff())
        .open()
        .await
        .unwrap();
    let mut subscription = reader
        .subscribe(Subscribe::topic("orders").bookmark("0"))
        .await
        .unwrap();
    let mut seen = Vec::new();
    while seen.len() < 600 {
        if seen.len() == 300 {
            // Inside a message that is on its way to the reader.
            proxy.cut_after(100);
            for n in 300..600 {
                publisher.publish("orders", format!("{n}")).await.unwrap();
            }
        }
        let next = tokio::time::timeout(LONG, subscription.next())
            .await
            .unwrap();
        seen.push(String::from_utf8(next.unwrap().unwrap().data.to_vec()).unwrap());
    }
    let expected: Vec<String> = (0..600).map(|n| n.to_string()).collect();
    assert_eq!(seen, expected);
    assert_eq!(reader.health().logons, 2, "its link broke once");
    drop(subscription);
    publisher.close(LONG).await;
    reader.close(LONG).await;
    proxy.stop().await;
    sandbox.stop().await;
}

/// A server that answers in the other dialect, and refuses everything on topic `no`.
async fn other_implementation() -> (Sandbox, amps_client::connector::MemoryConnector) {
    Sandbox::builder()
        .dialect(Dialect::PerMessage)
        .reject_topic("no")
        .start_in_memory()
        .await
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn with_publish_ids_a_server_that_answers_each_message_by_id_loses_and_hides_nothing() {
    const COUNT: u64 = 2000;
    let (sandbox, connector) = other_implementation().await;
    let (told, mut failed) = mpsc::unbounded_channel::<FailedWrite>();
    let client = client("pub", &sandbox)
        .connector(Arc::new(connector))
        .store(store("pub"))
        .publish_ids(true)
        .on_failed_write(move |f| {
            let told = told.clone();
            async move { Ok(told.send(f)?) }
        })
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut receipts = Vec::new();
    for n in 0..COUNT {
        let topic = if n % 10 == 9 { "no" } else { "orders" };
        receipts.push(client.publish(topic, format!("{n}")).await.unwrap());
        if n % 500 == 250 {
            client.publish_flush(LONG).await.unwrap();
            sandbox.inject(&Fault::CloseAfter(100));
        }
        if n % 500 == 400 {
            // Answers that are under way are lost with the link, and the others were never sent.
            while !matches!(events.next().await.unwrap(), Event::LinkLost { .. }) {}
            sandbox.clear_faults();
        }
    }
    client.publish_flush(LONG).await.unwrap();
    let counts = client.health().counts;
    assert_eq!((counts.persisted, counts.rejected), (1800, 200));
    assert_eq!(counts.persisted_at_logon, 0, "its logons name no figure");
    assert!(counts.resent > 0);
    for (n, receipt) in (0..).zip(receipts) {
        match receipt.await {
            Outcome::Rejected { reason } => {
                assert_eq!((n % 10, reason.as_str()), (9, "not entitled"));
                let failed = failed.recv().await.unwrap();
                assert_eq!(failed.original.unwrap().payload(), n.to_string().as_bytes());
            }
            outcome => {
                assert_eq!(outcome, Outcome::Persisted { via: Via::Ack });
                assert_ne!(n % 10, 9);
            }
        }
    }
    assert_eq!(client.health().counts.unattributed, 0);
    // It forgets duplicates with the link, so a message may be there twice, but none is missing.
    let there: HashSet<String> = bodies(&sandbox, "pub").into_iter().collect();
    let expected = (0..COUNT).filter(|n| n % 10 != 9);
    assert_eq!(there, expected.map(|n| n.to_string()).collect());
    assert!(client.close(LONG).await.clean);
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn without_publish_ids_the_refusals_of_such_a_server_are_told_and_given_to_nobody() {
    let (sandbox, connector) = other_implementation().await;
    let (told, mut unhandled) = mpsc::unbounded_channel();
    let client = client("pub", &sandbox)
        .connector(Arc::new(connector))
        .store(store("pub"))
        .on_failed_write(|failed| async move { panic!("nobody was named: {failed:?}") })
        .on_last_chance(move |ack| told.send(ack).unwrap())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let mut last = None;
    for n in 0..100 {
        let topic = if n % 10 == 9 { "no" } else { "orders" };
        last = Some(client.publish(topic, format!("{n}")).await.unwrap());
    }
    // No success covers the last message, which was refused, so it stays in the store.
    let Err(FlushError::Timeout { left, handlers }) = client.publish_flush(LONG).await else {
        panic!("one is left");
    };
    assert_eq!((left, handlers), (1, 0));
    let health = client.health();
    let counts = health.counts;
    assert_eq!((counts.rejected, counts.persisted_at_logon), (0, 0));
    assert_eq!(health.counts.unattributed, 10);
    assert_eq!(health.first_unsettled, last.as_ref().map(|r| r.sequence()));
    for _ in 0..10 {
        let ack = unhandled.recv().await.unwrap();
        assert_eq!((ack.reason.as_str(), ack.sequence), ("not entitled", None));
    }
    let mut told = 0;
    while let Some(event) = events.try_next() {
        told += u32::from(matches!(event, Event::Unattributed { .. }));
    }
    assert_eq!(told, 10);
    let expected = (0..100).filter(|n| n % 10 != 9).map(|n| n.to_string());
    assert_eq!(bodies(&sandbox, "pub"), expected.collect::<Vec<_>>());
    assert_eq!(client.close(Duration::ZERO).await.left, 1);
    assert_eq!(last.unwrap().await, Outcome::Unknown);
    sandbox.stop().await;
}
