//! What fuzzing found, told as it would have hurt. The inputs themselves are replayed by
//! the fuzz crate.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use amps_store::testkit::{Cut, Rng, SimDisk, record_places};
use amps_store::{Envelope, OpenError, Options, PublishStore, Recovery, Store};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("fuzzed")
}

fn publish(store: &Store, count: usize) {
    for _ in 0..count {
        store
            .append(&Envelope::publish("orders"), &[7; 100])
            .expect("room");
    }
}

/// An operator salvages a damaged store; then the power fails. The record that names the
/// loss was not on the disk yet, and the damage that had been given up refused again.
#[test]
fn salvage_holds_over_a_power_cut_right_after_it() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    publish(&store, 20);
    store.sync().expect("syncs");
    drop(store);
    let (tenth, _) = record_places(&disk.bytes())[10];
    disk.scribble(tenth, |bytes| bytes[20] ^= 1);
    let refused = disk.open(options()).map(drop);
    assert!(matches!(refused, Err(OpenError::Damaged { .. })));

    let store = disk
        .open(options().recovery(Recovery::Salvage))
        .expect("salvages");
    let kept = store.bounds().unsettled;
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(0));
    let store = disk.open(options()).expect("damage so named is over");
    assert_eq!(store.bounds().unsettled, kept);
}
