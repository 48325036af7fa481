//! A disk can be made slower than it is, for measurements. A file of its own, since it becomes so for
//! the whole process.

use std::time::{Duration, Instant};

use amps_store::testkit::slow_syncs;
use amps_store::{Envelope, Options, PublishStore, Store};

#[test]
fn a_sync_takes_as_long_as_was_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("slow.store"), Options::new()).unwrap();
    for by in [Duration::from_micros(50), Duration::from_millis(40)] {
        store.append(&Envelope::publish("t"), b"m").unwrap();
        slow_syncs(by);
        let begun = Instant::now();
        store.sync().unwrap();
        assert!(begun.elapsed() >= by, "{:?}", begun.elapsed());
        slow_syncs(Duration::ZERO);
    }
}
