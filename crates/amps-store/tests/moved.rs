//! A store whose file is moved or removed by somebody else while it is open.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use amps_store::{
    AppendError, Envelope, Level, Options, Place, PublishStore, Signal, Store, StoreError,
};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("mover")
}

fn append(store: &Store, payload: &str) -> Result<u64, AppendError> {
    let appended = store.append(&Envelope::publish("t"), payload.as_bytes());
    appended.map(|appended| appended.sequence)
}

/// Where the store says that its file is, from now on.
fn places(store: &Store) -> Receiver<Place> {
    let (tell, told) = channel();
    store.observe(Arc::new(move |signal| match signal {
        Signal::Moved(place) => match tell.send(place) {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        },
        _ => ControlFlow::Continue(()),
    }));
    told
}

fn unsettled(path: &Path) -> (u64, u64) {
    let store = Store::open_existing(path, options()).unwrap();
    (store.bounds().unsettled, store.numbers().grant)
}

/// A store once accepted messages for hours and called them durable, in a file that had been
/// removed.
#[test]
fn a_store_whose_file_is_removed_says_so_and_can_be_evacuated() {
    for level in [Level::Os, Level::Disk] {
        let dir = tempfile::tempdir().unwrap();
        let (path, fresh) = (dir.path().join("s"), dir.path().join("fresh"));
        let store = Store::open(&path, options().level(level)).unwrap();
        let places = places(&store);
        for payload in ["one", "two", "three"] {
            append(&store, payload).unwrap();
        }
        store.sync().unwrap();
        store.reject(3, "refused", 1).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!(places.recv().unwrap(), Place::Gone, "it looks by itself");

        let gone = |result| matches!(result, Err(StoreError::Gone));
        assert!(matches!(
            append(&store, "four"),
            Err(AppendError::Store(StoreError::Gone))
        ));
        assert!(matches!(
            store.requeue(3, 1),
            Err(AppendError::Store(StoreError::Gone))
        ));
        assert!(gone(store.sync().map(drop)) && gone(store.request_sync()));
        let late = self::places(&store);
        assert_eq!(
            late.recv().unwrap(),
            Place::Gone,
            "who comes later hears it"
        );
        // Sending goes on: numbers are granted, and what a server says is recorded.
        let durable = store.durable();
        store.raise_grant(100).unwrap();
        assert_eq!(store.settle_through(1).unwrap(), 1);
        assert_eq!(store.durable(), durable, "nothing becomes durable");

        let saved = store.evacuate(&fresh, Level::Os).unwrap();
        assert_eq!(
            (saved.bounds().unsettled, saved.bounds().rejections),
            (1, 1)
        );
        assert_eq!(append(&saved, "four").unwrap(), 101);
        assert!(matches!(store.close(0), Err(StoreError::Closed)));
        saved.close(100).unwrap();
        assert_eq!(unsettled(&fresh), (2, 100));
        assert!(!path.exists());
    }
}

/// Such a close was once called clean.
#[test]
fn a_close_looks_whether_the_file_is_there() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("s"), dir.path().join("other"));
    for replaced in [false, true] {
        let store = Store::open(&path, options()).unwrap();
        append(&store, "one").unwrap();
        match replaced {
            false => fs::remove_file(&path).unwrap(),
            true => {
                fs::write(&other, "another file").unwrap();
                fs::rename(&other, &path).unwrap();
            }
        }
        let closed = store.close(0);
        assert!(matches!(closed, Err(StoreError::Gone)), "{closed:?}");
    }
    assert_eq!(fs::read(&path).unwrap(), b"another file");
}

#[test]
fn a_store_whose_file_is_renamed_goes_on_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let store = Store::open(at("s"), options()).unwrap();
    let places = places(&store);
    append(&store, "one").unwrap();
    assert_eq!(store.place().unwrap(), Place::There);
    fs::rename(at("s"), at("moved")).unwrap();
    assert_eq!(places.recv().unwrap(), Place::Renamed);
    append(&store, "two").unwrap();
    store.sync().unwrap();
    fs::write(at("s"), "another file").unwrap();
    assert_eq!(places.recv().unwrap(), Place::Replaced);
    append(&store, "three").unwrap();
    fs::rename(at("moved"), at("s")).unwrap();
    assert_eq!(places.recv().unwrap(), Place::There);
    // Another name is enough for the file to count as there.
    fs::hard_link(at("s"), at("moved")).unwrap();
    fs::remove_file(at("s")).unwrap();
    assert_eq!(places.recv().unwrap(), Place::Renamed);
    append(&store, "four").unwrap();
    store.close(0).unwrap();
    assert_eq!(unsettled(&at("moved")), (4, 0));
}
