//! What nobody notices until it is wrong: what an open has read, what is not a store, a store
//! inherited by a child.
#![allow(clippy::unwrap_used)]

use amps_store::testkit::{SimDisk, step};
use amps_store::{Envelope, OpenError, Options, PublishStore, Rejected, Store, StoreError};

fn small() -> Options {
    Options::new().capacity(256 << 10).client_name("tester")
}

#[test]
fn an_open_says_how_much_of_the_log_it_read() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    // Over several segments, and closed, so that nothing is searched behind its end.
    for _ in 0..60 {
        store.append(&Envelope::publish("t"), &[7; 1000]).unwrap();
        while step(&store).unwrap() {}
    }
    store.close(0).unwrap();
    drop(store);
    let read = disk.open(small()).unwrap().report().bytes;
    assert!(
        (60_000..disk.bytes().len() as u64).contains(&read),
        "{read}"
    );
}

#[test]
fn what_is_no_regular_file_is_no_store_and_is_not_written() {
    let opened = Store::open("/dev/null", small());
    match opened.err() {
        Some(OpenError::NotAStore { why, .. }) => assert_eq!(why, "not a regular file"),
        other => panic!("{other:?}"),
    }
}

/// Its bytes may belong to another owner by now.
#[test]
fn a_closed_store_writes_no_superblock() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    store.append(&Envelope::publish("t"), b"one").unwrap();
    store.close(1).unwrap();
    let before = disk.bytes();
    let answers = [
        store.raise_grant(1 << 20),
        store.rebase(1 << 20).map(drop),
        store.close(1 << 20),
    ];
    for answer in answers {
        assert!(matches!(answer, Err(StoreError::Closed)), "{answer:?}");
    }
    assert!(disk.bytes() == before);
}

/// A refusal that comes late takes room that was not reserved for it. If there is none, that is
/// reported and nothing is written.
#[test]
fn a_late_refusal_without_room_changes_nothing() {
    let disk = SimDisk::new();
    let options = Options::new().capacity(68 << 10).client_name("tester");
    let store = disk.open(options).unwrap();
    let fill = || {
        let mut full = 0;
        while full < 3 {
            full += u64::from(store.append(&Envelope::publish("t"), &[7; 200]).is_err());
            while step(&store).unwrap() {}
        }
    };
    fill();
    store.settle(&[9]).unwrap();
    fill();
    let (bounds, bytes) = (store.bounds(), disk.bytes());
    assert!(matches!(store.reject(9, "late", 1), Ok(Rejected::NoRoom)));
    assert_eq!(store.bounds(), bounds);
    assert!(store.rejections(0, 9).is_empty() && disk.bytes() == bytes);
    // A refusal in time finds its room.
    assert!(matches!(
        store.reject(10, "no", 1),
        Ok(Rejected::Logged { late: false, .. })
    ));
}
