//! Who makes a message durable: the thread that waits for it.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::Cell;
use std::rc::Rc;

use amps_store::testkit::{Call, FailingCalls, fail_calls, watch_calls};
use amps_store::{
    AppendDurableError, AppendError, Envelope, Level, Options, PublishStore, Store, StoreError,
};

const SMALL: u64 = 64 << 10;

fn open(dir: &tempfile::TempDir, level: Level) -> Store {
    let options = Options::new().capacity(SMALL).level(level);
    Store::open(dir.path().join("s"), options).unwrap()
}

/// Calls of `work` on this thread that sync data.
fn syncs_of(work: impl FnOnce()) -> u64 {
    let syncs = Rc::new(Cell::new(0));
    let counted = syncs.clone();
    watch_calls(Some(Box::new(move |call| {
        if matches!(call, Call::SyncData | Call::SyncRange) {
            counted.set(counted.get() + 1);
        }
    })));
    work();
    watch_calls(None);
    syncs.get()
}

/// For each message two other threads were woken: the helper, and then the caller again.
#[test]
fn a_caller_that_is_alone_syncs_on_its_own_thread() {
    for level in [Level::Os, Level::Disk] {
        let dir = tempfile::tempdir().unwrap();
        let store = open(&dir, level);
        for n in 1..=20 {
            let syncs = syncs_of(|| {
                let at = store.append_durable(&Envelope::publish("t"), b"x").unwrap();
                assert_eq!(at.sequence, n);
                assert!(store.durable().ordinal >= at.ordinal);
            });
            assert_eq!(syncs, 1, "{level:?}");
            store.settle_through(n).unwrap();
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Level::Os);
    let at = store.append(&Envelope::publish("t"), b"x").unwrap();
    let syncs = syncs_of(|| assert!(store.sync().unwrap().ordinal >= at.ordinal));
    assert_eq!(syncs, 1);
    // The sync before left a mark that says what is settled.
    assert_eq!(
        syncs_of(|| {
            store.sync().unwrap();
        }),
        1
    );
    let syncs = syncs_of(|| {
        store.sync().unwrap();
    });
    assert_eq!(syncs, 0, "everything is durable");
}

/// More than a lap, while the helper frees segments, so that both want the device.
#[test]
fn many_callers_make_durable_what_they_append_lap_after_lap() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Level::Disk);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..100 {
                    let envelope = Envelope::publish("t");
                    let at = loop {
                        match store.append_durable(&envelope, &[7; 400]) {
                            Ok(at) => break at,
                            Err(AppendDurableError::NotStored(error)) if error.is_retryable() => {
                                std::thread::yield_now();
                            }
                            Err(error) => panic!("{error}"),
                        }
                    };
                    assert!(store.durable().ordinal >= at.ordinal);
                    store.settle(&[at.sequence]).unwrap();
                }
            });
        }
    });
    assert_eq!(store.bounds().next, 401);
    assert!(!store.sync_times().is_empty());
}

/// The caller knows which message it is that a power cut could take, and that it is sent all the
/// same.
#[test]
fn a_message_whose_sync_fails_is_stored_and_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Level::Os);
    let envelope = Envelope::publish("t");
    let first = store.append_durable(&envelope, b"first").unwrap();
    fail_calls(Some(FailingCalls {
        call: Call::SyncRange,
        after: 0,
        for_ever: true,
        errno: 5,
    }));
    let failed = store.append_durable(&envelope, b"second");
    assert_eq!(fail_calls(None), 1);
    let Err(AppendDurableError::NotDurable { appended, why }) = failed else {
        panic!("{failed:?}");
    };
    assert_eq!(appended.sequence, 2);
    assert!(matches!(why, StoreError::SyncFailed(_)), "{why}");
    assert_eq!(store.durable().ordinal, first.ordinal);
    assert!(store.is_unsettled(2), "it waits for the server");
    // And nothing is durable any more.
    let failed = store.append_durable(&envelope, b"third");
    assert!(
        matches!(&failed, Err(AppendDurableError::NotDurable { appended, .. }) if appended.sequence == 3),
        "{failed:?}"
    );
}

#[test]
fn a_message_that_cannot_be_stored_or_never_be_durable_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir, Level::Os);
    let envelope = Envelope::publish("t");
    let large = store.append_durable(&envelope, &[7; SMALL as usize]);
    assert!(
        matches!(
            large,
            Err(AppendDurableError::NotStored(AppendError::TooLarge { .. }))
        ),
        "{large:?}"
    );
    assert_eq!(store.bounds().next, 1);
    let memory = Store::memory(Options::new().capacity(SMALL)).unwrap();
    let kept = memory.append_durable(&envelope, b"x");
    assert!(
        matches!(
            kept,
            Err(AppendDurableError::NotDurable {
                why: StoreError::InMemory,
                ..
            })
        ),
        "{kept:?}"
    );
    assert!(memory.is_unsettled(1));
}
