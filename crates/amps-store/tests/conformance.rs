//! The public suite, against the stores of this crate.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use amps_store::testkit::conformance::Suite;
use amps_store::testkit::{Bug, SimDisk, plant, step};
use amps_store::{Level, Options, Store};

fn options() -> Options {
    Options::new().capacity(256 << 10).client_name("suite")
}

#[test]
fn the_file_store_keeps_what_a_store_promises_at_every_level() {
    let every = std::time::Duration::from_millis(5);
    for level in [Level::Os, Level::Interval(every), Level::Disk] {
        Suite::persistent(|| {
            let dir = tempfile::tempdir().unwrap();
            let options = options().level(level);
            move || Store::open(dir.path().join("store"), options.clone()).unwrap()
        })
        .check();
    }
}

#[test]
fn the_memory_store_keeps_what_a_store_promises() {
    Suite::volatile(|| Store::memory(options()).unwrap()).check();
}

#[test]
fn the_simulated_disk_keeps_what_a_store_promises() {
    simulated();
}

fn simulated() {
    Suite::persistent(|| {
        let disk = SimDisk::new();
        move || disk.open(options()).unwrap()
    })
    // This store has no thread: its chores are done here.
    .upkeep(|store| while step(store).unwrap() {})
    .check();
}

#[test]
fn the_suite_catches_stores_that_break_a_promise() {
    for bug in [
        Bug::SuccessOverridesRefusal,
        Bug::RebaseKeepsGrant,
        Bug::SequenceReset,
        Bug::NoMark,
        Bug::NoCharge,
        Bug::GrantNotSynced,
    ] {
        plant(Some(bug));
        let caught = std::panic::catch_unwind(simulated);
        plant(None);
        assert!(caught.is_err(), "{bug:?} passes");
    }
}
