//! What a client counts, as the `metrics` facade gets it.

#![cfg(feature = "metrics")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_store::{Level, Store};
use common::{LONG, NAME, Peer, fill, memory, options, pair};
use metrics::{
    Counter, CounterFn, Gauge, GaugeFn, Histogram, HistogramFn, Key, KeyName, Metadata, Recorder,
    SharedString, Unit,
};

/// Gauges are read once a second.
const GAUGES: Duration = Duration::from_secs(2);

#[derive(Default)]
struct Everything {
    /// By name, followed by ` kind=…` if there is such a label; for histograms the values one
    /// after the other.
    values: BTreeMap<String, Vec<f64>>,
    described: BTreeMap<String, (Option<Unit>, String)>,
}

/// Keeps what it is told, under the given name.
#[derive(Clone, Default)]
struct Kept(Arc<Mutex<Everything>>);

struct Value(Kept, String);

impl Value {
    fn change(&self, change: impl FnOnce(f64) -> f64) {
        let mut all = self.0.0.lock().unwrap();
        let values = all.values.get_mut(&self.1).unwrap();
        match values.last_mut() {
            Some(value) => *value = change(*value),
            None => values.push(change(0.0)),
        }
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

impl HistogramFn for Value {
    fn record(&self, value: f64) {
        let mut all = self.0.0.lock().unwrap();
        all.values.get_mut(&self.1).unwrap().push(value);
    }
}

impl Kept {
    fn value(&self, key: &Key) -> Arc<Value> {
        let mut name = key.name().to_owned();
        for label in key.labels() {
            match label.key() {
                "client" => assert_eq!(label.value(), NAME, "{name}"),
                "kind" => name = format!("{name} kind={}", label.value()),
                other => panic!("{name} has a label {other}"),
            }
        }
        self.0
            .lock()
            .unwrap()
            .values
            .entry(name.clone())
            .or_default();
        Arc::new(Value(self.clone(), name))
    }

    fn describe(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        let described = (unit, what.into_owned());
        let mut all = self.0.lock().unwrap();
        all.described.insert(name.as_str().to_owned(), described);
    }

    fn all_of(&self, name: &str) -> Vec<f64> {
        let name = format!("amps_client_{name}");
        self.0.lock().unwrap().values[&name].clone()
    }

    fn of(&self, name: &str) -> f64 {
        let values = self.all_of(name);
        assert_eq!(values.len(), 1, "{name} has a value");
        values[0]
    }

    /// The series that exist, and their names.
    fn series(&self) -> (Vec<String>, BTreeSet<String>) {
        let all = self.0.lock().unwrap();
        let series: Vec<_> = all.values.keys().cloned().collect();
        let name = |series: &String| series.split(' ').next().unwrap().to_owned();
        let names = series.iter().map(name).collect();
        (series, names)
    }

    /// Runs `story` while everything counted is kept.
    fn during<T>(&self, story: impl Future<Output = T>) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .unwrap();
        metrics::with_local_recorder(self, || runtime.block_on(story))
    }
}

impl Recorder for Kept {
    fn describe_counter(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        assert!(name.as_str().ends_with("_total"), "{}", name.as_str());
        self.describe(name, unit, what);
    }

    fn describe_gauge(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        self.describe(name, unit, what);
    }

    fn describe_histogram(&self, name: KeyName, unit: Option<Unit>, what: SharedString) {
        self.describe(name, unit, what);
    }

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        Counter::from_arc(self.value(key))
    }

    fn register_gauge(&self, key: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::from_arc(self.value(key))
    }

    fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::from_arc(self.value(key))
    }
}

/// Every name on the page, in its table or in its alerts.
fn page() -> (BTreeSet<String>, BTreeSet<String>) {
    let page = include_str!("../../../docs/metrics.md");
    let mut all = BTreeSet::new();
    let mut listed = BTreeSet::new();
    for line in page.lines() {
        let words = line.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names = words.filter(|word| word.starts_with("amps_client_"));
        for (nth, name) in names.enumerate() {
            if line.starts_with("| `") && nth == 0 {
                assert!(listed.insert(name.to_owned()), "{name} is listed twice");
            }
            all.insert(name.to_owned());
        }
    }
    (listed, all)
}

/// An alert on a series that appears with its first event misses that event.
#[test]
fn every_series_is_there_from_the_start_described_and_on_its_page() {
    let kept = Kept::default();
    kept.during(async {
        let (builder, mut listener) = pair();
        let client = builder.store(memory()).open().await.unwrap();
        let (at_open, names) = kept.series();
        {
            let all = kept.0.lock().unwrap();
            for (series, values) in &all.values {
                // A histogram has none.
                let zero = values.is_empty() || values[..] == [0.0];
                assert!(zero, "{series}: {values:?}");
                let counts = !all.described[series.split(' ').next().unwrap()]
                    .1
                    .is_empty();
                assert!(counts, "{series} is described");
            }
            let described: BTreeSet<_> = all.described.keys().cloned().collect();
            assert_eq!(described, names);
            let without = all.described.iter().find(|(_, (unit, _))| unit.is_none());
            assert_eq!(without, None, "no unit");
        }
        let (listed, mentioned) = page();
        assert_eq!(listed, names, "docs/metrics.md lists what there is");
        assert_eq!(mentioned, names, "and its alerts are about nothing else");

        // Everything happens once, and no new series appears.
        let receipt = client.publish("t", "1").await.unwrap();
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(1).await;
        peer.refuse(1, "not entitled").await;
        drop(receipt.await);
        drop(peer);
        tokio::time::sleep(GAUGES).await;
        client.close(Duration::ZERO).await;
        assert_eq!(kept.series().0, at_open);
    });
}

#[test]
fn publishers_that_wait_for_room_are_counted_once_each() {
    let kept = Kept::default();
    kept.during(async {
        let (builder, mut listener) = pair();
        let client = builder.store(memory()).open().await.unwrap();
        let stored = fill(&client);
        assert_eq!(
            kept.of("room_waits_total"),
            0.0,
            "try_publish does not wait"
        );
        let waiting = common::started(Box::pin(client.publish("t", vec![0; 1 << 10]))).await;
        assert_eq!(kept.of("room_waits_total"), 1.0);
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(stored).await;
        tokio::time::sleep(GAUGES).await;
        let (bytes, limit) = (kept.of("store_bytes"), kept.of("store_limit_bytes"));
        assert!(limit > 0.0 && bytes > 0.9 * limit, "{bytes} of {limit}");
        for n in 1..=stored {
            peer.ok(n).await;
        }
        waiting.await.unwrap();
        assert_eq!(kept.of("room_waits_total"), 1.0, "one call");
    });
}

/// Not in virtual time: the device takes its own.
#[test]
fn syncs_are_timed() {
    let kept = Kept::default();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let story = async {
        let dir = tempfile::tempdir().unwrap();
        let at_disk = options().level(Level::Disk);
        let store = Store::open(dir.path().join("store"), at_disk).unwrap();
        let (builder, _listener) = pair();
        let client = builder.store(store).open().await.unwrap();
        let receipt = client.publish("t", "1").await.unwrap();
        receipt.durable().await.unwrap();
        client.close(Duration::ZERO).await;
        let times = kept.all_of("sync_seconds");
        assert!(!times.is_empty());
        assert!(times.iter().all(|took| *took >= 0.0), "{times:?}");
    };
    metrics::with_local_recorder(&kept, || runtime.block_on(story));
}

#[test]
fn what_a_client_counts_reaches_the_facade() {
    let kept = Kept::default();
    kept.during(a_day(&kept));
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
    // A backlog is counted while there is no link.
    tokio::time::sleep(GAUGES).await;
    assert_eq!((kept.of("unsettled"), kept.of("in_flight")), (10.0, 0.0));
    assert_eq!(
        (kept.of("published_total"), kept.of("connected")),
        (10.0, 0.0)
    );
    assert!(kept.of("oldest_unsettled_seconds") > 0.0);
    // Sent once, and lost with the link; four of them arrived.
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(10).await;
    drop(peer);
    let mut peer = Peer::logged_on(&mut listener, 4).await;
    peer.publishes_to(10).await;
    tokio::time::sleep(GAUGES).await;
    assert_eq!((kept.of("unsettled"), kept.of("in_flight")), (6.0, 6.0));
    assert!(kept.of("store_bytes") > 0.0);
    assert_eq!(kept.of("connected"), 1.0);
    peer.ok(6).await;
    peer.refuse(7, "not entitled").await;
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
        ("published_total", 10.0),
        ("rejected_total kind=not_entitled", 1.0),
        ("rejected_total kind=other", 0.0),
        ("refusals_waiting", 2.0),
        ("oldest_unsettled_seconds", 0.0),
        ("connected", 1.0),
        ("late_refusals_total", 1.0),
        ("unattributed_total", 1.0),
        ("logons_total", 2.0),
        ("links_lost_total", 1.0),
        ("unsettled", 0.0),
        ("in_flight", 0.0),
    ] {
        assert_eq!(kept.of(name), count, "{name}");
    }
    // The messages of a batch that acks settled, not those settled by a logon or a refusal.
    let ages = kept.all_of("publish_to_ack_seconds");
    assert!((1..=5).contains(&ages.len()), "{ages:?}");
    assert!(
        ages.iter().all(|age| (0.0..3600.0).contains(age)),
        "{ages:?}"
    );
    drop(receipts);
    client.close(LONG).await;
    assert_eq!(kept.of("connected"), 0.0);
}
