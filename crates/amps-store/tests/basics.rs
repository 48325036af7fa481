//! The store on a real file, one promise at a time.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::path::Path;
use std::time::{Duration, Instant};

use amps_store::testkit::{Bug, Fault, SimDisk, has_failed, plant, record_places, step};
use amps_store::{
    AppendError, Batch, Envelope, Level, OpenError, Options, Origin, PublishStore, ReadError,
    Recovery, Rejected, Signal, Stop, Store, StoreError, StoredMessage,
};

fn small() -> Options {
    Options::new().capacity(64 << 10).client_name("tester")
}

fn open(path: &Path) -> Store {
    Store::open(path, small()).expect("opens")
}

fn publish(store: &Store, n: u64) -> u64 {
    let payload = format!("message {n}");
    store
        .append(&Envelope::publish("orders"), payload.as_bytes())
        .expect("room")
        .sequence
}

/// Publishes; a segment is freed only behind the call that settles the last message in it, so
/// this may have to wait.
fn publish_when_there_is_room(store: &Store, n: u64) -> u64 {
    let payload = format!("message {n}");
    let deadline = Instant::now() + Duration::from_secs(10);
    let appended = store.append_wait(&Envelope::publish("orders"), payload.as_bytes(), deadline);
    appended.expect("room in time").sequence
}

fn publish_all(store: &Store, numbers: std::ops::RangeInclusive<u64>) {
    for n in numbers {
        publish(store, n);
    }
}

fn unsettled(store: &Store) -> Vec<(u64, String)> {
    let mut batch = Batch::new(usize::MAX, usize::MAX);
    store
        .read_unsettled(0, u64::MAX, &mut batch)
        .expect("intact");
    let text = |payload: &[u8]| String::from_utf8(payload.to_vec()).expect("text");
    batch
        .iter()
        .map(|message| (message.sequence, text(message.payload())))
        .collect()
}

#[test]
fn what_was_appended_is_there_after_the_process_died() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    for n in 1..=20 {
        assert_eq!(publish(&store, n), n);
    }
    let before = unsettled(&store);
    drop(store);
    let store = open(&path);
    assert_eq!(unsettled(&store), before);
    assert_eq!(store.report().recovered, 20);
    assert_eq!(store.report().stop, Stop::Unwritten);
    assert_eq!(publish(&store, 21), 21);
}

#[test]
fn h01_an_ack_that_was_read_is_remembered_without_another_append() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish_all(&store, 1..=10);
    assert_eq!(store.settle_through(10).unwrap(), 10);
    drop(store);
    let store = open(&path);
    assert_eq!(unsettled(&store), []);
    assert_eq!(store.bounds().floor, 10);
    assert_eq!(publish(&store, 11), 11);
}

#[test]
fn a_clean_close_resends_nothing_settled_and_skips_no_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    store.raise_grant(1000).unwrap();
    publish_all(&store, 1..=10);
    store.settle(&[2, 4, 9]).unwrap();
    store.settle_through(5).unwrap();
    store.close(10).unwrap();
    assert!(store.append(&Envelope::publish("t"), b"x").is_err());
    drop(store);
    let store = open(&path);
    assert_eq!(store.report().stop, Stop::CleanClose);
    let left: Vec<u64> = unsettled(&store).iter().map(|m| m.0).collect();
    assert_eq!(left, [6, 7, 8, 10]);
    assert_eq!(store.numbers().grant, 10);
    assert_eq!(publish(&store, 11), 11);
}

#[test]
fn an_unclean_stop_skips_above_the_grant() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    store.raise_grant(1000).unwrap();
    publish(&store, 1);
    drop(store);
    let store = open(&path);
    assert_eq!(store.numbers().found_grant, 1000);
    assert_eq!(publish(&store, 2), 1001);
    assert_eq!(unsettled(&store).len(), 2);
}

#[test]
fn a_refusal_keeps_its_message_over_restarts_until_it_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish_all(&store, 1..=5);
    let rejected = store.reject(3, "not entitled", 77).unwrap();
    assert!(matches!(rejected, Rejected::Logged { late: false, .. }));
    assert_eq!(store.reject(3, "again", 78).unwrap(), Rejected::Known);
    assert_eq!(store.reject(99, "whose?", 78).unwrap(), Rejected::Unknown);
    // A later success covers it and does not override it.
    assert_eq!(store.settle_through(5).unwrap(), 4);
    drop(store);
    let store = open(&path);
    let waiting = store.rejections(0, 10);
    assert_eq!(waiting.len(), 1);
    assert_eq!(
        (
            waiting[0].sequence,
            waiting[0].reason.as_str(),
            waiting[0].at
        ),
        (3, "not entitled", 77)
    );
    let mut message = StoredMessage::new();
    assert!(store.get(3, &mut message).unwrap());
    assert_eq!(message.payload(), b"message 3");
    assert!(store.accept(3).unwrap());
    assert!(!store.accept(3).unwrap());
    drop(store);
    assert!(open(&path).rejections(0, 10).is_empty());
}

/// A message that claimed to accept its own refusal once settled itself and was lost.
#[test]
fn a_message_cannot_accept_a_refusal_of_itself_or_of_a_later_one() {
    let store = Store::memory(Options::new().capacity(1 << 20)).unwrap();
    for accepts in [1, 2, u64::MAX] {
        let mut envelope = Envelope::publish("t");
        envelope.origin = Origin::Requeue { accepts };
        let refused = store.append(&envelope, b"x");
        assert!(
            matches!(refused, Err(AppendError::Envelope(_))),
            "{refused:?}"
        );
    }
    assert_eq!((store.bounds().next, store.bounds().unsettled), (1, 0));
}

#[test]
fn h26_a_requeue_is_one_message_however_often_it_is_tried() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish_all(&store, 1..=5);
    store.reject(3, "no", 1).unwrap();
    store.settle_through(5).unwrap();
    assert_eq!(store.requeue(3, 2).unwrap().unwrap().sequence, 6);
    drop(store);
    let store = open(&path);
    assert!(store.rejections(0, 10).is_empty());
    assert_eq!(store.requeue(3, 3).unwrap(), None);
    assert_eq!(unsettled(&store), [(6, "message 3".to_owned())]);
}

/// A failure ack that came twice once reached the handler twice, if the handler had accepted the
/// first one in between. It could also vanish with a requeued message that it had nothing to do
/// with.
#[test]
fn a_refusal_that_is_repeated_after_it_was_accepted_or_requeued_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    publish_all(&store, 1..=3);
    for sequence in [1, 2] {
        store.reject(sequence, "not entitled", 1).unwrap();
    }
    assert!(store.accept(1).unwrap());
    assert_eq!(store.requeue(2, 2).unwrap().unwrap().sequence, 4);
    let repeat = |store: &Store| {
        for sequence in [1, 2] {
            let repeated = store.reject(sequence, "not entitled", 3).unwrap();
            assert_eq!(repeated, Rejected::Known);
        }
        assert_eq!(store.rejections(0, 9), []);
        assert_eq!(store.bounds().unsettled, 2);
    };
    repeat(&store);
    drop(store);
    let store = open(&path);
    repeat(&store);
    store.close(0).unwrap();
    repeat(&open(&path));
}

/// A requeue once tried only once, and called a store full that was about to free a segment.
#[test]
fn every_refusal_of_a_half_full_store_is_requeued() {
    let disk = SimDisk::new();
    let store = disk.open(Options::new().capacity(1 << 20)).unwrap();
    for _ in 0..300 {
        let append = || store.append(&Envelope::publish("t"), &[7; 1000]);
        let at = append().or_else(|_| {
            while step(&store).unwrap() {}
            append()
        });
        store
            .reject(at.unwrap().sequence, "not entitled", 1)
            .unwrap();
    }
    let mut turned_away = 0;
    for sequence in 1..=300 {
        let requeued = match store.requeue(sequence, 2) {
            Ok(requeued) => requeued,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                turned_away += 1;
                // The room is made by another thread, which does the chores.
                std::thread::scope(|scope| {
                    let (waits, until) = (&store, Instant::now() + Duration::from_secs(60));
                    let waiting =
                        scope.spawn(move || waits.requeue_wait(sequence, 2, until).unwrap());
                    while !waiting.is_finished() {
                        std::thread::yield_now();
                        step(&store).unwrap();
                    }
                    waiting.join().unwrap()
                })
            }
        };
        assert_eq!(requeued.unwrap().sequence, 300 + sequence);
    }
    assert!(turned_away > 0, "there was always room");
    assert_eq!(store.rejections(0, 9), []);
    assert_eq!(store.bounds().unsettled, 300);
    assert_eq!(store.requeue_wait(1, 2, Instant::now()).unwrap(), None);
}

/// A line published by hand, between two runs that resume, once sent the second of them back to
/// the first line.
#[test]
fn a_message_without_a_tag_leaves_the_resume_point_where_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let mut tagged = Envelope::publish("t");
    tagged.user_tag = (&b"line 5"[..]).into();
    assert_eq!(publish(&store, 1), 1);
    assert_eq!(store.resume_tag(), None);
    store.append(&tagged, b"5").unwrap();
    publish_all(&store, 3..=4);
    assert_eq!(store.resume_tag().unwrap(), b"line 5");
    drop(store);
    let store = open(&path);
    assert_eq!(store.resume_tag().unwrap(), b"line 5");
    publish(&store, 5);
    store.settle_through(5).unwrap();
    publish(&store, 6);
    store.close(6).unwrap();
    assert_eq!(open(&path).resume_tag().unwrap(), b"line 5");
}

#[test]
fn h21_one_stubborn_message_survives_every_turn_of_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish_all(&store, 1..=5);
    store.settle_through(4).unwrap();
    for n in 6..=100_000u64 {
        assert_eq!(publish_when_there_is_room(&store, n), n);
        store.settle(&[n]).unwrap();
    }
    assert_eq!(unsettled(&store), [(5, "message 5".to_owned())]);
    assert!(std::fs::metadata(&path).unwrap().len() <= 64 << 10);
    drop(store);
    let store = open(&path);
    assert_eq!(unsettled(&store), [(5, "message 5".to_owned())]);
    assert_eq!(publish_when_there_is_room(&store, 100_001), 100_001);
}

#[test]
fn h24_a_full_ring_of_refusals_loses_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    let reason = "x".repeat(500);
    let mut last = 0;
    loop {
        let deadline = Instant::now() + Duration::from_millis(200);
        match store.append_wait(&Envelope::publish("t"), &[7; 64], deadline) {
            Ok(at) => last = at.sequence,
            Err(AppendError::Full { .. }) => break,
            Err(AppendError::MakingRoom { .. }) => {}
            Err(e) => panic!("{e}"),
        }
    }
    assert!(last > 50, "only {last} fit");
    for n in 1..=last {
        assert!(
            matches!(
                store.reject(n, &reason, n).unwrap(),
                Rejected::Logged { .. }
            ),
            "{n}"
        );
    }
    assert_eq!(store.rejections(0, usize::MAX).len() as u64, last);
    // Short refusals took less room than was reserved for them, so what is left is filled as
    // well.
    while store.append(&Envelope::publish("t"), &[7; 64]).is_ok() {}
    drop(store);
    let store = open(&path);
    let waiting = store.rejections(0, usize::MAX);
    assert_eq!(waiting.len() as u64, last);
    let mut message = StoredMessage::new();
    for rejection in waiting {
        assert!(store.get(rejection.sequence, &mut message).unwrap());
        assert_eq!(message.payload(), [7; 64]);
        assert!(rejection.reason_cut);
        assert!(store.accept(rejection.sequence).unwrap());
    }
    publish_when_there_is_room(&store, 1);
}

#[test]
fn a_store_has_one_owner_and_one_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    match Store::open(&path, small()).map(drop).unwrap_err() {
        OpenError::Locked { owner, .. } => {
            assert!(owner.contains(&std::process::id().to_string()), "{owner}");
        }
        e => panic!("{e}"),
    }
    drop(store);
    match Store::open(&path, Options::new().client_name("other"))
        .map(drop)
        .unwrap_err()
    {
        OpenError::WrongClientName { found, .. } => assert_eq!(found, "tester"),
        e => panic!("{e}"),
    }
    assert_eq!(
        Store::open(&path, Options::new()).unwrap().client_name(),
        "tester"
    );
}

#[test]
fn a_message_too_large_is_refused_before_any_wait() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a.store"));
    let error = store
        .append(&Envelope::publish("t"), &[0; 4096])
        .unwrap_err();
    assert!(
        matches!(error, AppendError::TooLarge { max: 2048, .. }),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[test]
fn durability_comes_with_the_sync_and_at_disk_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a.store"));
    let at = store.append(&Envelope::publish("t"), b"x").unwrap();
    assert!(store.durable().ordinal < at.ordinal);
    assert!(store.sync().unwrap().ordinal >= at.ordinal);
    assert!(store.durable().sequence >= at.sequence);

    let store = Store::open(dir.path().join("b.store"), small().level(Level::Disk)).unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    store.observe(std::sync::Arc::new(move |signal| {
        // The test may be over before the last signal.
        let _ = tx.send(signal);
        ControlFlow::Continue(())
    }));
    let at = store.append(&Envelope::publish("t"), b"x").unwrap();
    while store.durable().ordinal < at.ordinal {
        rx.recv_timeout(Duration::from_secs(30))
            .expect("a durable signal");
    }
}

#[test]
fn an_observer_that_comes_late_hears_of_a_failed_sync_and_one_that_breaks_hears_no_more() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    let (tx, rx) = std::sync::mpsc::channel();
    let observer = |how, name: &'static str| -> amps_store::Observer {
        let tx = tx.clone();
        std::sync::Arc::new(move |signal| {
            tx.send((name, signal)).unwrap();
            how
        })
    };
    store.observe(observer(ControlFlow::Break(()), "once"));
    store.observe(observer(ControlFlow::Continue(()), "always"));
    publish(&store, 1);
    store.request_sync().unwrap();
    publish(&store, 2);
    disk.fail(Fault::Sync(0));
    store.request_sync().unwrap();
    store.observe(observer(ControlFlow::Continue(()), "late"));
    let heard: Vec<_> = rx.try_iter().collect();
    assert_eq!(
        heard,
        [
            ("once", Signal::Durable),
            ("always", Signal::Durable),
            ("always", Signal::SyncFailed),
            ("late", Signal::SyncFailed)
        ]
    );
}

#[test]
fn the_memory_store_keeps_the_same_rules() {
    let store = Store::memory(small()).unwrap();
    publish_all(&store, 1..=5);
    store.reject(2, "no", 1).unwrap();
    store.settle_through(4).unwrap();
    assert_eq!(unsettled(&store), [(5, "message 5".to_owned())]);
    assert_eq!(store.rejections(0, 9).len(), 1);
    for n in 6..5000 {
        publish(&store, n);
        store.settle_through(n).unwrap();
    }
    assert_eq!(store.bounds().floor, 4999);
}

/// Each damaged place once got a record of its own, for which there was no room if there were
/// many.
#[test]
fn a_store_with_more_damage_than_room_to_name_it_is_salvaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    let until = Instant::now() + Duration::from_secs(60);
    while store.bounds().live_bytes < store.bounds().limit_bytes - 1000 {
        let message = Envelope::publish("t");
        store.append_wait(&message, b"x", until).unwrap();
    }
    let last = store.bounds().last;
    store.close(last).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let places = record_places(&bytes);
    for (place, _) in places.iter().step_by(2) {
        bytes[*place as usize + 45] ^= 1;
    }
    std::fs::write(&path, &bytes).unwrap();
    let refused = Store::open(&path, small());
    assert!(matches!(refused, Err(OpenError::Damaged { ranges, .. }) if ranges.len() > 32));
    let store = Store::open(&path, small().recovery(Recovery::Salvage)).unwrap();
    let kept = store.bounds().unsettled;
    assert!(kept > last / 3 && kept < last, "{kept} of {last}");
    store.close(last).unwrap();
    assert_eq!(open(&path).bounds().unsettled, kept);
}

/// A grant or a rebase close to the end of the numbers once made a store that could not be
/// opened.
#[test]
fn no_call_takes_a_store_to_numbers_that_no_open_takes() {
    const LAST: u64 = (1 << 63) - (1 << 48) - (1 << 47);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open(&path);
    publish_all(&store, 1..=2);
    let beyond = [
        store.raise_grant(LAST + 1).unwrap_err(),
        store.rebase(LAST).unwrap_err(),
    ];
    assert!(
        beyond
            .iter()
            .all(|e| matches!(e, StoreError::OutOfRange(_)))
    );
    store.rebase(LAST - 1).unwrap();
    store.raise_grant(LAST).unwrap();
    drop(store);
    let store = open(&path);
    assert_eq!(publish(&store, 3), LAST + 1);
    store.close(LAST + 1).unwrap();
    assert_eq!(unsettled(&open(&path)).len(), 3);
}

#[test]
fn a_rebase_is_one_durable_step() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish_all(&store, 1..=10);
    store.settle_through(4).unwrap();
    let rebase = store.rebase(500).unwrap();
    assert_eq!((rebase.from, rebase.delta), (5, 496));
    assert_eq!(store.numbers().grant, 4);
    drop(store);
    let store = open(&path);
    assert_eq!(store.numbers().rebase, Some(rebase));
    assert_eq!(store.numbers().found_grant, 4);
    assert_eq!(publish(&store, 11), 11);
}

#[test]
fn a_closed_store_is_free_for_the_next_owner_while_handles_live() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    publish(&store, 1);
    store.close(0).unwrap();
    let next = open(&path);
    assert_eq!(unsettled(&next), [(1, "message 1".to_owned())]);
    assert!(store.append(&Envelope::publish("t"), b"x").is_err());
}

#[test]
fn the_floor_stands_on_a_message_and_never_on_a_skipped_number() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = open(&path);
    store.raise_grant(100).unwrap();
    publish(&store, 1);
    drop(store);
    let store = open(&path);
    assert_eq!(publish(&store, 2), 101);
    store.settle_through(1).unwrap();
    assert_eq!(store.bounds().floor, 1);
}

#[test]
fn h29_after_a_failed_sync_nothing_is_durable_and_an_evacuation_saves_everything() {
    let dir = tempfile::tempdir().unwrap();
    let to = dir.path().join("fresh.store");
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    store.raise_grant(50).unwrap();
    for n in 1..=9u64 {
        let mut envelope = Envelope::publish("orders");
        envelope.user_tag = n.to_le_bytes().to_vec().into();
        let payload = format!("message {n}");
        store.append(&envelope, payload.as_bytes()).unwrap();
    }
    store.settle(&[1, 2, 7]).unwrap();
    store.reject(4, "not entitled", 77).unwrap();
    let before = store.durable();
    disk.fail(Fault::Sync(0));
    assert!(store.sync().is_err());
    // Later syncs of the device succeed, but this store must not say so.
    assert!(store.sync().is_err());
    assert_eq!(store.durable(), before);
    let mut envelope = Envelope::publish("orders");
    envelope.user_tag = b"line 10"[..].into();
    store.append(&envelope, b"message 10").unwrap();

    let fresh = store.evacuate(&to, Level::Os).unwrap();
    assert!(store.append(&Envelope::publish("t"), b"x").is_err());
    drop(store);
    match disk.open(small()).map(drop).unwrap_err() {
        OpenError::Retired { .. } => {}
        e => panic!("{e}"),
    }
    let left: Vec<u64> = unsettled(&fresh).iter().map(|m| m.0).collect();
    assert_eq!(left, [3, 5, 6, 8, 9, 10]);
    assert_eq!(unsettled(&fresh)[0].1, "message 3");
    assert_eq!(fresh.rejections(0, 9)[0].reason, "not entitled");
    assert_eq!(fresh.client_name(), "tester");
    assert_eq!(fresh.numbers().found_grant, 50);
    assert_eq!(fresh.resume_tag(), Some(b"line 10".to_vec()));
    assert!(
        fresh
            .append(&Envelope::publish("t"), b"x")
            .unwrap()
            .sequence
            > 50
    );
    // To prove that it is good, an independent look finds nothing wrong.
    drop(fresh);
    let verified = amps_store::inspect::Inspection::open(&to)
        .unwrap()
        .verify()
        .unwrap();
    assert!(verified.problems.is_empty(), "{:?}", verified.problems);
}

/// Found by the simulation: a refusal for which the log had no room was once dropped with an
/// error, and the next cumulative ack called the refused message persisted.
#[test]
fn a_refusal_behind_a_failed_sync_waits_in_memory_and_an_evacuation_takes_it_along() {
    let dir = tempfile::tempdir().unwrap();
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    disk.fail(Fault::Sync(0));
    assert!(store.sync().is_err());
    // As in a log that lacked room when its device failed.
    plant(Some(Bug::ReserveSpent));
    // Nothing is reused any more, so settlements use up room as well.
    let (mut first, mut last) = (1, 0);
    while let Ok(appended) = store.append(&Envelope::publish("orders"), &[7; 600]) {
        last = appended.sequence;
        first = last.saturating_sub(5).max(1);
        store.settle_through(first - 1).unwrap();
    }
    let refused: Vec<Rejected> = (first..=last)
        .map(|sequence| store.reject(sequence, "not entitled", 77).unwrap())
        .collect();
    assert!(matches!(refused[0], Rejected::Logged { late: false, .. }));
    assert_eq!(refused.last(), Some(&Rejected::Held { late: false }));
    assert_eq!(store.bounds().unsettled, 0);
    let waiting = store.rejections(0, usize::MAX);
    assert_eq!(waiting.len(), refused.len());
    assert!(waiting.iter().all(|r| r.reason == "not entitled"));
    assert_eq!(store.settle_through(last).unwrap(), 0);
    assert_eq!(store.bounds().rejections, waiting.len() as u64);
    assert_eq!(
        store.reject(last, "again", 78).unwrap(),
        Rejected::Known,
        "no second refusal"
    );
    for sequence in [first, last] {
        assert!(store.accept(sequence).unwrap());
        assert!(!store.accept(sequence).unwrap());
    }
    let fresh = store
        .evacuate(dir.path().join("fresh.store"), Level::Os)
        .unwrap();
    let saved = fresh.rejections(0, usize::MAX);
    assert_eq!(saved, waiting[1..waiting.len() - 1]);
    let mut original = StoredMessage::new();
    assert!(fresh.get(last - 1, &mut original).unwrap());
    assert_eq!(original.payload(), [7; 600]);
    plant(None);
}

/// A message that must be copied before its segment is freed is damaged under the running store,
/// in its header or behind it. Upkeep must report that and stop, and free nothing.
#[test]
fn damage_under_a_running_store_ends_upkeep_and_frees_nothing() {
    for byte in [8, 24, 60] {
        let disk = SimDisk::new();
        let store = disk.open(small()).unwrap();
        for n in 1..=5 {
            publish(&store, n);
        }
        let (third, _) = record_places(&disk.bytes())[3];
        disk.scribble(third + byte, |bytes| bytes[0] ^= 0xFF);
        let stopped = (0..1000).find_map(|_| {
            if let Ok(at) = store.append(&Envelope::publish("t"), &[7; 200]) {
                store.settle(&[at.sequence]).unwrap();
            }
            step(&store).err()
        });
        match stopped {
            Some(StoreError::Damaged { offset }) => assert_eq!(offset, third),
            other => panic!("byte {byte}: {other:?}"),
        }
        assert!(has_failed(&store));
        let mut message = StoredMessage::new();
        for sequence in [1, 2, 4, 5] {
            assert!(store.get(sequence, &mut message).unwrap());
        }
        assert!(matches!(
            store.get(3, &mut message),
            Err(ReadError::Damaged { sequence: 3, .. })
        ));
    }
}

#[test]
fn a_batch_ends_before_what_is_damaged_and_the_next_one_tells_it() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    publish_all(&store, 1..=5);
    let (third, _) = record_places(&disk.bytes())[3];
    disk.scribble(third + 60, |bytes| bytes[0] ^= 0xFF);
    let mut batch = Batch::default();
    store.read_unsettled(1, u64::MAX, &mut batch).unwrap();
    let read: Vec<u64> = batch.iter().map(|message| message.sequence).collect();
    assert_eq!(read, [1, 2]);
    assert!(matches!(
        store.read_unsettled(3, u64::MAX, &mut batch),
        Err(ReadError::Damaged { sequence: 3, offset }) if offset == third
    ));
    assert!(batch.is_empty());
    store.read_unsettled(4, u64::MAX, &mut batch).unwrap();
    assert_eq!(batch.len(), 2);
}

#[test]
fn an_evacuation_that_fails_leaves_the_old_store_as_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(&dir.path().join("a.store"));
    publish(&store, 1);
    let to = dir.path().join("there");
    std::fs::write(&to, b"something else").unwrap();
    assert!(store.evacuate(&to, Level::Os).is_err());
    assert_eq!(std::fs::read(&to).unwrap(), b"something else");
    assert_eq!(publish(&store, 2), 2);
}
