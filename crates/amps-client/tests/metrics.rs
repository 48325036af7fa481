//! The counters and gauges of a client, as the `metrics` facade gets them.

#![cfg(feature = "metrics")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::{LONG, NAME, Peer, memory, pair};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, Key, KeyName, Metadata, Recorder, SharedString,
    Unit,
};

/// Gauges are read once a second.
const GAUGES: Duration = Duration::from_secs(2);

type Values = Arc<Mutex<BTreeMap<String, f64>>>;

/// Keeps what it is told under the names it is told it for.
#[derive(Clone, Default)]
struct Kept(Values);

struct Value(Values, String);

impl Value {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut values = self.0.lock().unwrap();
        let value = values.entry(self.1.clone()).or_default();
        *value = change(*value);
    }
}

impl CounterFn for Value {
    fn increment(&self, by: u64) {
        self.change(|value| value + by as f64);
    }

    fn absolute(&self, to: u64) {
        self.change(|_| to as f64);
    }
}

impl GaugeFn for Value {
    fn increment(&self, by: f64) {
        self.change(|value| value + by);
    }

    fn decrement(&self, by: f64) {
        self.change(|value| value - by);
    }

    fn set(&self, to: f64) {
        self.change(|_| to);
    }
}

impl Kept {
    fn value(&self, key: &Key) -> Arc<Value> {
        let labels: Vec<_> = key.labels().map(|l| (l.key(), l.value())).collect();
        assert_eq!(labels, [("client", NAME)], "{}", key.name());
        Arc::new(Value(self.0.clone(), key.name().to_owned()))
    }

    fn of(&self, name: &str) -> f64 {
        let name = format!("amps_client_{name}");
        self.0.lock().unwrap().get(&name).copied().unwrap_or(0.0)
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

#[test]
fn what_a_client_counts_reaches_the_facade() {
    let kept = Kept::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap();
    metrics::with_local_recorder(&kept, || runtime.block_on(a_day(&kept)));
}

async fn a_day(kept: &Kept) {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .on_last_chance(|_| {})
        .open()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for n in 0..10 {
        receipts.push(client.publish("t", n.to_string()).await.unwrap());
    }
    // A backlog shows while there is no link.
    tokio::time::sleep(GAUGES).await;
    assert_eq!((kept.of("unsettled"), kept.of("in_flight")), (10.0, 0.0));
    // Sent once, and lost with the link; four of them got there.
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(10).await;
    drop(peer);
    let mut peer = Peer::logged_on(&mut listener, 4).await;
    peer.publishes_to(10).await;
    tokio::time::sleep(GAUGES).await;
    assert_eq!((kept.of("unsettled"), kept.of("in_flight")), (6.0, 6.0));
    assert!(kept.of("store_bytes") > 0.0);
    peer.ok(6).await;
    peer.refuse(7, "no").await;
    peer.refuse(5, "too late").await;
    peer.ack(&amps_client::protocol::Ack::refused(None, None, "who?"))
        .await;
    peer.ok(10).await;
    client.publish_flush(LONG).await.unwrap();
    tokio::time::sleep(GAUGES).await;
    for (name, count) in [
        ("sent_total", 16.0),
        ("resent_total", 6.0),
        ("persisted_total", 5.0),
        ("persisted_at_logon_total", 4.0),
        ("rejected_total", 1.0),
        ("late_refusals_total", 1.0),
        ("unattributed_total", 1.0),
        ("logons_total", 2.0),
        ("links_lost_total", 1.0),
        ("unsettled", 0.0),
        ("in_flight", 0.0),
    ] {
        assert_eq!(kept.of(name), count, "{name}");
    }
    drop(receipts);
    client.close(LONG).await;
}
