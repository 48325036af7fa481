//! A device that failed once: nothing is freed any more, and what becomes of the messages that are in
//! the log is logged all the same.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use amps_store::testkit::{Bug, Fault, SimDisk, has_failed, last_ordinal, plant, step};
use amps_store::{
    AppendError, Envelope, Options, PublishStore, Rejected, Store, StoreError, Unrecorded,
};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("failed")
}

/// How the device fails.
#[derive(Clone, Copy, Debug)]
enum Failure {
    /// A sync that somebody asked for.
    Sync,
    /// A write of one of the superblock's copies, by an upkeep that is about to free segments.
    Superblock(u64),
}

const FAILURES: [Failure; 3] = [
    Failure::Sync,
    Failure::Superblock(0),
    Failure::Superblock(1),
];

fn append(store: &Store, len: usize) -> Result<u64, AppendError> {
    let payload = vec![7; len];
    let appended = store.append(&Envelope::publish("t"), &payload);
    appended.map(|at| at.sequence)
}

/// A store whose device failed in the middle of its life: `keep` messages are open at a time, as far
/// as the store takes them, which was asked for `count`. Messages come until no more are taken; where
/// `count` is even none is settled any more.
fn failed(failure: Failure, len: usize, keep: u64, count: u64) -> (SimDisk, Store) {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    let settle_through = |last: u64| {
        store.settle_through(last).unwrap();
    };
    let settle = |last: u64| settle_through(last.saturating_sub(keep));
    for _ in 0..count {
        loop {
            match append(&store, len) {
                Ok(last) => break settle(last),
                Err(error) => {
                    assert!(error.is_retryable(), "{error}");
                    if !step(&store).unwrap() {
                        // It is as full as it gets.
                        settle_through(store.bounds().first_unsettled.unwrap());
                    }
                }
            }
        }
    }
    match failure {
        Failure::Sync => {
            disk.fail(Fault::Sync(0));
            assert!(store.sync().is_err());
        }
        Failure::Superblock(copy) => {
            disk.fail(Fault::WriteAround(copy));
            while !has_failed(&store) {
                if append(&store, len).map(settle).is_err() {
                    settle_through(store.bounds().first_unsettled.unwrap_or(0));
                }
                drop(step(&store));
            }
        }
    }
    disk.clear_faults();
    let refused = loop {
        match append(&store, len) {
            Ok(last) if count % 2 == 1 => settle(last),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(
        matches!(refused, AppendError::Store(StoreError::SyncFailed(_))),
        "{refused}"
    );
    (disk, store)
}

/// Every way to fail, many lengths, and failures at many places of the ring.
fn everywhere(mut case: impl FnMut(&str, &SimDisk, Store)) {
    for failure in FAILURES {
        for len in [0, 40, 200, 1000, 1800] {
            for keep in [1, 20, 100] {
                for count in [1, 60, 150, 157, 171] {
                    let (disk, store) = failed(failure, len, keep, count);
                    let what = format!("{failure:?}, {len} bytes, {keep} open, {count} before");
                    case(&what, &disk, store);
                }
            }
        }
    }
}

/// One superblock write of a run failed. From then on refusals found no room as soon as the ring was
/// used up, and were gone with the process that had told of them.
#[test]
fn every_refusal_behind_a_failed_device_is_in_the_log() {
    let reason = "no ".repeat(42);
    let mut most = 0;
    everywhere(|what, disk, store| {
        let open: Vec<u64> = (1..store.bounds().next)
            .filter(|s| store.is_unsettled(*s))
            .collect();
        most = most.max(open.len());
        for &sequence in &open {
            let refused = store.reject(sequence, &reason, 1).unwrap();
            let logged = matches!(refused, Rejected::Logged { late: false, .. });
            assert!(logged, "{what}: {refused:?} of {sequence}");
        }
        assert_eq!(store.unrecorded(), Unrecorded::default(), "{what}");
        drop(store);
        let store = disk.open(options()).unwrap();
        let waiting = store.rejections(0, usize::MAX);
        let waiting: Vec<u64> = waiting.iter().map(|r| r.sequence).collect();
        assert_eq!(waiting, open, "{what}");
        assert_eq!(store.bounds().unsettled, 0, "{what}");
        // What they needed was left for them; the next run has room again.
        for sequence in waiting {
            assert!(store.accept(sequence).unwrap(), "{what}");
        }
        for _ in 0..200 {
            let last = loop {
                match append(&store, 200) {
                    Ok(last) => break last,
                    Err(error) => assert!(step(&store).unwrap(), "{what}: {error}"),
                }
            };
            store.settle_through(last).unwrap();
        }
    });
    assert!(most > 50, "{most} messages were open");
}

/// A settlement, too, held in memory only, and what the run called left was none of what the file
/// had open.
#[test]
fn every_settlement_behind_a_failed_device_is_in_the_log() {
    everywhere(|what, disk, store| {
        // One by one, from the end: no mark goes over them until the last.
        for sequence in (1..store.bounds().next).rev() {
            if store.is_unsettled(sequence) {
                assert_eq!(store.settle(&[sequence]).unwrap(), 1);
            }
            let fork = (sequence % 8 == 0).then(|| disk.fork().open(options()).unwrap());
            if let Some(found) = fork {
                assert_eq!(found.bounds().unsettled, store.bounds().unsettled, "{what}");
            }
        }
        assert_eq!(store.unrecorded(), Unrecorded::default(), "{what}");
        assert!(store.close(0).is_err(), "nothing becomes durable any more");
        drop(store);
        let store = disk.open(options()).unwrap();
        assert_eq!(store.bounds().unsettled, 0, "{what}");
    });
}

/// Room is kept for what is open, and not for what was settled before: a late refusal that finds
/// none is told as what it is, and its message stays settled.
#[test]
fn a_late_refusal_takes_no_room_from_those_that_are_open_and_is_told() {
    let (mut held, mut logged) = (0, 0);
    for failure in FAILURES {
        for count in 60..90 {
            let (disk, store) = failed(failure, 40, 20, count);
            let last = store.bounds().last;
            let open: Vec<u64> = (1..=last).filter(|s| store.is_unsettled(*s)).collect();
            let mut in_memory = 0;
            for sequence in 1..open[0] {
                match store.reject(sequence, "late", 1).unwrap() {
                    Rejected::Held { late: true } => in_memory += 1,
                    Rejected::Logged { late: true, .. } => logged += 1,
                    Rejected::NoRoom => {}
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(store.unrecorded(), Unrecorded::new(0, in_memory));
            held += in_memory;
            for &sequence in &open {
                let refused = store.reject(sequence, "no", 1).unwrap();
                assert!(matches!(refused, Rejected::Logged { late: false, .. }));
            }
            let waiting = store.bounds().rejections;
            drop(store);
            let store = disk.open(options()).unwrap();
            assert_eq!(store.bounds().unsettled, 0);
            assert_eq!(store.bounds().rejections, waiting - in_memory);
        }
    }
    assert!(held > 20 && logged > 0, "{held} held, {logged} logged");
}

/// Where the log lacked room when its device failed, what it could not take is counted: as many
/// messages as the next open finds unsettled, beside those that were so.
#[test]
fn what_a_log_without_room_could_not_take_is_counted() {
    plant(Some(Bug::ReserveSpent));
    let mut met = [0; 3];
    for failure in FAILURES {
        for count in 30..60 {
            for manner in 0..3 {
                let (disk, store) = failed(failure, 40, 20, count);
                let open: Vec<u64> = (1..store.bounds().next)
                    .filter(|s| store.is_unsettled(*s))
                    .collect();
                for (nth, &sequence) in open.iter().enumerate() {
                    match (manner + nth) % 3 {
                        0 => drop(store.reject(sequence, &"no ".repeat(42), 1).unwrap()),
                        1 => drop(store.settle(&[sequence]).unwrap()),
                        _ if manner == 0 => drop(store.settle_through(sequence).unwrap()),
                        _ => {}
                    }
                    let (told, bounds) = (store.unrecorded(), store.bounds());
                    met[0] += told.messages;
                    met[1] += told.refusals;
                    met[2] += bounds.unsettled;
                    let found = disk.fork().open(options()).unwrap().bounds();
                    let what = format!("{failure:?}, {count}, {manner}, {nth}: {told:?}");
                    assert_eq!(found.unsettled, bounds.unsettled + told.messages, "{what}");
                    assert_eq!(
                        found.rejections,
                        bounds.rejections - told.refusals,
                        "{what}"
                    );
                }
                // What an application takes over is settled here, and still open there.
                for refused in store.rejections(0, usize::MAX) {
                    store.accept(refused.sequence).unwrap();
                }
                let found = disk.fork().open(options()).unwrap().bounds();
                let told = store.unrecorded();
                assert_eq!(found.unsettled, store.bounds().unsettled + told.messages);
                assert_eq!(told.refusals, 0);
                assert!(last_ordinal(&store) > 0);
            }
        }
    }
    assert!(met.iter().all(|n| *n > 0), "{met:?}");
    plant(None);
}
