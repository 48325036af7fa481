//! Stores of format version 1 are converted to version 2, and keep the identity that they get.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use amps_store::inspect::{Filter, Inspection};
use amps_store::testkit::{Cut, Rng, SimDisk};
use amps_store::transfer::repair_to;
use amps_store::{Envelope, Options, PublishStore, Recovery, Store};

const IDENTITY: std::ops::Range<usize> = 8192..12288;

fn golden(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    std::fs::read(path.join(format!("{name}.store"))).unwrap()
}

fn versions(bytes: &[u8]) -> [u8; 2] {
    [bytes[8], bytes[4096 + 8]]
}

fn salvage() -> Options {
    Options::new().recovery(Recovery::Salvage)
}

#[test]
fn only_an_open_that_writes_converts_a_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old");
    std::fs::write(&path, golden("unclean")).unwrap();
    let before: Vec<_> = Inspection::open(&path)
        .unwrap()
        .messages(Filter::new())
        .map(|m| m.unwrap().payload)
        .collect();
    repair_to(&path, dir.path().join("copy")).unwrap();
    assert_eq!(std::fs::read(&path).unwrap(), golden("unclean"));
    assert_eq!(
        versions(&std::fs::read(dir.path().join("copy")).unwrap()),
        [2, 2]
    );

    let store = Store::open_existing(&path, Options::new()).unwrap();
    assert_eq!(store.report().converted_from, Some(1));
    drop(store);
    // If only one copy were written, it would be enough for a program that knows only version 1
    // to refuse.
    assert_eq!(versions(&std::fs::read(&path).unwrap()), [2, 2]);
    let store = Store::open_existing(&path, Options::new()).unwrap();
    assert_eq!(store.report().converted_from, None);
    store.append(&Envelope::publish("t"), b"goes on").unwrap();
    let looked = Inspection::open(&path).unwrap();
    assert_eq!(looked.info().format_version, 2);
    let after: Vec<_> = looked
        .messages(Filter::new())
        .map(|m| m.unwrap().payload)
        .collect();
    assert_eq!(after[..before.len()], before);
    assert_eq!(after.len(), before.len() + 1);
}

/// The power is cut before each call of the open that converts a store: the next open finds what
/// this one would have found.
#[test]
fn a_power_cut_in_a_conversion_costs_nothing() {
    for name in ["clean", "unclean", "lapped", "salvaged", "late"] {
        let disk = SimDisk::new();
        disk.restore(golden(name));
        disk.keep_moments();
        let store = disk.open(salvage()).unwrap();
        let expected = (store.bounds().unsettled, store.bounds().rejections);
        drop(store);
        let moments = disk.take_moments();
        assert!(moments.len() >= 2);
        let mut mixed = 0;
        for moment in moments {
            for seed in 0..10 {
                let disk = moment.fork();
                disk.power_cut(Cut::Sectors, &mut Rng::new(seed));
                mixed += u64::from(versions(&disk.bytes()) == [2, 1]);
                mixed += u64::from(versions(&disk.bytes()) == [1, 2]);
                let store = disk.open(salvage()).unwrap();
                let found = (store.bounds().unsettled, store.bounds().rejections);
                assert_eq!(found, expected, "{name}");
            }
        }
        assert!(mixed > 0, "no cut came between the two copies");
    }
}

#[test]
fn a_store_says_for_good_what_it_is() {
    let disk = SimDisk::new();
    let options = Options::new().capacity(128 << 10).client_name("for good");
    let store = disk.open(options.clone()).unwrap();
    let identity = disk.bytes()[IDENTITY].to_vec();
    let name = b"for good";
    assert!(identity.windows(name.len()).any(|w| w == name));
    for n in 1..=500 {
        store.append(&Envelope::publish("t"), &[7; 200]).unwrap();
        store.settle_through(n).unwrap();
        while amps_store::testkit::step(&store).unwrap() {}
    }
    store.raise_grant(1000).unwrap();
    store.rebase(5000).unwrap();
    store.close(500).unwrap();
    assert!(disk.bytes()[IDENTITY] == identity);
    // If it is damaged, or missing because the creation did not get that far, it is written
    // again.
    for damage in [0xFF, 0] {
        disk.scribble(8192, |bytes| bytes[..4096].fill(damage));
        let store = disk.open(options.clone()).unwrap();
        assert!(store.report().damaged.is_empty());
        assert!(disk.bytes()[IDENTITY] == identity);
    }
}
