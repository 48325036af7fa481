//! What a store signals to those who wait: no more than necessary, and never too late.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_store::testkit::{Fault, SimDisk};
use amps_store::{
    AppendError, Durable, Envelope, Level, Observer, OpenError, Options, PublishStore, Rejected,
    Signal, Store, StoreError,
};

fn small() -> Options {
    Options::new().capacity(64 << 10).client_name("tester")
}

/// Keeps what it is told.
fn listener() -> (Observer, Arc<Mutex<Vec<Signal>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = heard.clone();
    let observer: Observer = Arc::new(move |signal| {
        to.lock().unwrap().push(signal);
        ControlFlow::Continue(())
    });
    (observer, heard)
}

/// Found by a review: at level `Disk` a store in memory once accepted messages and never let them
/// be sent, and at any level it called them safe from a power cut.
#[test]
fn a_store_in_memory_calls_nothing_durable() {
    for level in [Level::Disk, Level::Interval(Duration::from_millis(1))] {
        let opened = Store::memory(small().level(level)).map(drop);
        assert!(matches!(opened, Err(OpenError::Options(_))), "{opened:?}");
    }
    let store = Store::memory(small()).unwrap();
    let (observer, heard) = listener();
    store.observe(observer);
    for n in 0..2000u64 {
        // Long enough that segments are freed, which needs something that counts as a sync
        // internally.
        store.append(&Envelope::publish("t"), &[7; 100]).unwrap();
        store.settle_through(n).unwrap();
    }
    assert!(matches!(store.sync(), Err(StoreError::InMemory)));
    assert!(matches!(store.request_sync(), Err(StoreError::InMemory)));
    assert_eq!(store.durable(), Durable::default());
    assert!(!heard.lock().unwrap().contains(&Signal::Durable));
    store.close(2000).unwrap();
}

/// Found by a review: a failed superblock write ends durability like a failed sync, but once
/// nobody was told, and whoever waited for durability waited for ever.
#[test]
fn a_failed_superblock_write_is_told_at_once() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    let (observer, heard) = listener();
    store.observe(observer);
    store.append(&Envelope::publish("t"), b"x").unwrap();
    disk.fail(Fault::WriteAround(0));
    assert!(store.raise_grant(100).is_err());
    assert_eq!(heard.lock().unwrap()[..], [Signal::SyncFailed]);
    assert!(matches!(store.sync(), Err(StoreError::SyncFailed(_))));
    let asked = store.request_sync();
    assert!(matches!(asked, Err(StoreError::SyncFailed(_))));
}

/// Found by a review: a settlement that had to free a segment once synced and told nobody.
#[test]
fn a_sync_inside_a_settlement_is_told_too() {
    let disk = SimDisk::new();
    // A file that grows would be synced for that, which makes nothing durable.
    let store = disk.open(small().preallocate(true)).unwrap();
    let (observer, heard) = listener();
    store.observe(observer);
    let synced = disk.syncs();
    let mut refused = 0;
    // Nobody does chores, so that in the end a settlement has to.
    while disk.syncs() == synced {
        match store.append(&Envelope::publish("t"), &[7; 100]) {
            Ok(at) => assert_eq!(store.settle_through(at.sequence).unwrap(), 1),
            Err(AppendError::Full { .. } | AppendError::MakingRoom { .. }) => {
                refused += 1;
                assert_eq!(disk.syncs(), synced, "by a publish that found no room");
                // For a late refusal no room is charged, and so none is kept.
                let logged = store.reject(refused, &"no ".repeat(42), 1).unwrap();
                assert!(
                    matches!(logged, Rejected::Logged { late: true, .. }),
                    "{logged:?}"
                );
                store.accept(refused).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(refused > 0);
    assert!(store.durable().ordinal > 0);
    assert!(heard.lock().unwrap().contains(&Signal::Durable));
}
