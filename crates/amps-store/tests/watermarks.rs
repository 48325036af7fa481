//! A store that fills up reports it once, and once more when it has room again.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};

use amps_store::testkit::{SimDisk, step};
use amps_store::{Envelope, OpenError, Options, PublishStore, Signal, Store};

fn options() -> Options {
    Options::new().capacity(256 << 10).client_name("watermarks")
}

type Told = Arc<Mutex<Vec<(bool, u64, u64)>>>;

/// What an observer is told of watermarks from now on: high, live and limit.
fn listen(store: &Store) -> Told {
    let told = Told::default();
    let heard = told.clone();
    store.observe(Arc::new(move |signal| {
        if let Signal::Watermark {
            high,
            live_bytes,
            limit_bytes,
        } = signal
        {
            heard.lock().unwrap().push((high, live_bytes, limit_bytes));
        }
        ControlFlow::Continue(())
    }));
    told
}

fn marks(told: &Told) -> Vec<bool> {
    told.lock().unwrap().iter().map(|t| t.0).collect()
}

fn publish(store: &Store) {
    store.append(&Envelope::publish("t"), &[7; 200]).unwrap();
}

/// Publishes until this many percent of the limit are taken.
fn fill(store: &Store, percent: u64) {
    while store.bounds().live_bytes * 100 < store.bounds().limit_bytes * percent {
        publish(store);
    }
}

/// Settles from below until at most this many percent are taken.
fn drain(store: &Store, percent: u64) {
    while store.bounds().live_bytes * 100 > store.bounds().limit_bytes * percent {
        let first = store.bounds().first_unsettled.unwrap();
        store.settle_through(first).unwrap();
    }
}

#[test]
fn each_crossing_is_told_once_with_its_numbers() {
    let store = Store::memory(options()).unwrap();
    let told = listen(&store);
    fill(&store, 79);
    assert!(marks(&told).is_empty());
    fill(&store, 81);
    assert_eq!(marks(&told), [true]);
    let (_, live, limit) = told.lock().unwrap()[0];
    assert_eq!(limit, store.bounds().limit_bytes);
    assert!(live * 100 >= limit * 80, "{live} of {limit}");
    // Up and down above the low one: nothing new.
    drain(&store, 60);
    fill(&store, 90);
    assert_eq!(marks(&told), [true]);
    drain(&store, 49);
    fill(&store, 79);
    drain(&store, 0);
    assert_eq!(marks(&told), [true, false]);
    fill(&store, 81);
    assert_eq!(marks(&told), [true, false, true]);
}

#[test]
fn what_accepts_a_refusal_or_settles_singly_crosses_as_well() {
    let store = Store::memory(options().watermarks(10, 20)).unwrap();
    let told = listen(&store);
    fill(&store, 25);
    let last = store.bounds().last;
    for sequence in 1..=last {
        store.reject(sequence, "no", 1).unwrap();
    }
    assert_eq!(marks(&told), [true], "a refused message takes its room");
    for sequence in 1..=last {
        assert!(store.accept(sequence).unwrap());
    }
    assert_eq!(marks(&told), [true, false]);
    fill(&store, 25);
    let open: Vec<u64> = (last + 1..=store.bounds().last).collect();
    store.settle(&open).unwrap();
    assert_eq!(marks(&told), [true, false, true, false]);
}

#[test]
fn turned_off_or_out_of_range_they_tell_nothing() {
    let store = Store::memory(options().no_watermarks()).unwrap();
    let told = listen(&store);
    fill(&store, 99);
    drain(&store, 0);
    assert!(marks(&told).is_empty());
    for (low, high) in [(80, 80), (90, 80), (0, 101), (255, 255)] {
        let refused = Store::memory(options().watermarks(low, high));
        assert!(
            matches!(refused, Err(OpenError::Options(_))),
            "{low} {high}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let refused = Store::open(&path, options().watermarks(80, 50));
    assert!(matches!(refused, Err(OpenError::Options(_))));
    assert!(!path.exists(), "nothing was created");
}

#[test]
fn an_observer_that_comes_late_or_to_a_full_store_is_told_that_it_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, options().preallocate(true)).unwrap();
    let early = listen(&store);
    fill(&store, 79);
    assert!(marks(&listen(&store)).is_empty());
    fill(&store, 85);
    assert_eq!(marks(&listen(&store)), [true]);
    assert_eq!(marks(&early), [true], "told once");
    drop(store);
    let store = Store::open(&path, options()).unwrap();
    let told = listen(&store);
    assert_eq!(marks(&told), [true]);
    drain(&store, 50);
    assert_eq!(marks(&told), [true, false]);
    assert!(marks(&listen(&store)).is_empty());
}

#[test]
fn a_disk_that_fills_makes_the_limit_smaller_and_the_backlog_cross() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    let told = listen(&store);
    fill(&store, 5);
    while step(&store).unwrap() {}
    disk.limit(Some(disk.bytes().len() as u64));
    let mut full = false;
    while !full {
        full = store.append(&Envelope::publish("t"), &[7; 200]).is_err();
        while step(&store).unwrap() {}
    }
    assert_eq!(marks(&told), [true]);
    disk.limit(None);
    publish_when_grown(&store);
    assert_eq!(marks(&told), [true, false], "room has come");
}

fn publish_when_grown(store: &Store) {
    for _ in 0..10 {
        if store.append(&Envelope::publish("t"), &[7; 200]).is_ok() {
            return;
        }
        while step(store).unwrap() {}
    }
    panic!("the disk has room, and the store does not grow");
}

#[test]
fn an_observer_may_call_the_store() {
    let store = Store::memory(options()).unwrap();
    let inner = store.clone();
    let told = Told::default();
    let heard = told.clone();
    store.observe(Arc::new(move |signal| {
        if let Signal::Watermark { high, .. } = signal {
            heard.lock().unwrap().push((high, 0, 0));
            if high {
                inner.settle_through(inner.bounds().last).unwrap();
            }
        }
        ControlFlow::Continue(())
    }));
    fill(&store, 79);
    for _ in 0..20 {
        publish(&store);
    }
    assert_eq!(marks(&told), [true, false]);
}

#[test]
fn crossings_of_many_threads_are_told_in_order() {
    let store = Store::memory(options().watermarks(2, 3)).unwrap();
    let told = listen(&store);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..5000 {
                    let full = store.append(&Envelope::publish("t"), &[7; 200]).is_err();
                    // Nobody settles before the high one is crossed, so it will be.
                    let bounds = store.bounds();
                    if full || bounds.live_bytes * 100 > bounds.limit_bytes * 4 {
                        store.settle_through(bounds.last).unwrap();
                    }
                }
            });
        }
    });
    store.settle_through(store.bounds().last).unwrap();
    let marks = marks(&told);
    assert!(marks.len() > 100, "{} crossings", marks.len());
    for (n, high) in marks.iter().enumerate() {
        assert_eq!(*high, n % 2 == 0, "crossing {n} of {}", marks.len());
    }
    assert_eq!(marks.last(), Some(&false));
}
