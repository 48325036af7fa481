//! A refusal that comes late, when the segment of its message is about to be freed.

// Helpers outside of test functions; a failure is the test's.
#![allow(clippy::expect_used)]

use amps_store::testkit::{
    Bug, Cut, Fault, Rng, SimDisk, intact_messages, last_ordinal, plant, step,
};
use amps_store::{Envelope, Options, PublishStore, Rejected, Store, StoredMessage};

/// Appends a message and settles it, doing chores only if there is no room; returns whether there
/// was room at once.
fn append(store: &Store, patient: bool) -> bool {
    loop {
        match store.append(&Envelope::publish("t"), &[7; 700]) {
            Ok(appended) => {
                // Number 1 stays unsettled, so that the floor stays below the others.
                if appended.sequence > 1 {
                    store.settle(&[appended.sequence]).expect("settles");
                }
                return true;
            }
            Err(error) if error.is_retryable() && patient => {
                assert!(
                    step(store).expect("the disk works"),
                    "no room, and no chore"
                );
            }
            Err(error) if error.is_retryable() => return false,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_late_refusal_keeps_its_original_whatever_upkeep_is_doing() {
    // After how many chores the refusal comes: one of them hits every stage.
    for chores in 0..12 {
        let disk = SimDisk::default();
        let options = Options::new().capacity(68 << 10).preallocate(true);
        let store = disk.open(options).expect("opens");
        while append(&store, false) {}
        for _ in 0..chores {
            step(&store).expect("the disk works");
        }
        let mut message = StoredMessage::new();
        let last = store.bounds().last;
        let oldest = (2..=last)
            .find(|s| store.get(*s, &mut message).expect("intact"))
            .expect("settled messages stay readable");
        let refused = store.reject(oldest, "late", 1).expect("room");
        assert!(matches!(refused, Rejected::Logged { late: true, .. }));
        for _ in 0..200 {
            append(&store, true);
        }
        let original = store.get(oldest, &mut message).expect("intact");
        assert!(
            original,
            "after {chores} chores the original of {oldest} is gone"
        );
        assert_eq!(message.payload(), [7; 700]);
    }
}

fn small_segments() -> Options {
    Options::new()
        .capacity(68 << 10)
        .segment_size(8 << 10)
        .preallocate(true)
}

/// A message was settled, then refused after all. Room for the refusal was once made by freeing
/// the segment of that message: the refusal was kept, but waited without its message.
#[test]
fn room_for_a_late_refusal_does_not_cost_its_message() {
    let options = small_segments().segment_size(8 << 10).preallocate(true);
    let reason = "x".repeat(200);
    let mut copied = 0;
    for extra in 0.. {
        let disk = SimDisk::new();
        let store = disk.open(options.clone()).expect("creates");
        let mut message = StoredMessage::new();
        while let Ok(at) = store.append(&Envelope::publish("orders"), &[7; 100]) {
            store.settle(&[at.sequence]).expect("settles");
        }
        let last = store.bounds().last;
        let is_there = |s: &u64| store.get(*s, &mut StoredMessage::new()).expect("reads");
        let refused = (1..=last).find(is_there).expect("some are there");
        for newer in (refused + 1..last).rev().take(extra) {
            store.reject(newer, &reason, 1).expect("a good disk");
            store.accept(newer).expect("a good disk");
        }
        if !is_there(&refused) {
            break;
        }
        let before = last_ordinal(&store);
        match store.reject(refused, &reason, 1).expect("a good disk") {
            Rejected::Logged { late: true, .. } => {}
            other => panic!("{other:?}"),
        }
        copied += u64::from(last_ordinal(&store) > before + 3);
        assert!(is_there(&refused), "{extra}");
        drop(store);
        let store = disk.open(options.clone()).expect("opens");
        assert_eq!(store.rejections(0, 9).len(), 1);
        assert!(store.get(refused, &mut message).expect("reads"), "{extra}");
        assert_eq!(message.payload(), [7; 100]);
        assert_eq!(store.bounds().unsettled, 0);
    }
    assert!(copied > 0, "there was always room");
}

/// A message was settled, and a mark said that its segment is not needed any more; then it was
/// refused after all, and its bytes were damaged before that segment was freed. Damage counts as
/// harmless there, so the refusal once waited without its message. Then the message was written
/// again, but behind the refusal, and the power could be cut between the two.
#[test]
fn damage_where_nothing_is_needed_does_not_cost_a_late_refusal_its_message() {
    let disk = SimDisk::new();
    let store = disk.open(small_segments()).expect("creates");
    let publish = |n| {
        for _ in 0..n {
            let appended = store.append(&Envelope::publish("orders"), &[7; 100]);
            appended.expect("room");
        }
    };
    publish(60);
    store
        .settle(&(2..=59).collect::<Vec<_>>())
        .expect("settles");
    store.settle_through(1).expect("settles");
    store.sync().expect("syncs");
    publish(1);
    // A mark says that the first one is durable, and does so from here on.
    store.sync().expect("syncs");
    store.reject(5, "late", 1).expect("a good disk");
    drop(store);
    let mut kept = [0, 0];
    for seed in 0..40 {
        let disk = disk.fork();
        if seed > 0 {
            disk.power_cut(Cut::Sectors, &mut Rng::new(seed));
        }
        let all = intact_messages(&disk.bytes());
        let original = all.iter().find(|m| m.sequence == 5).expect("it is there");
        disk.scribble(original.offset + 60, |bytes| bytes[0] ^= 1);

        let store = disk.open(small_segments()).expect("nobody minds");
        assert_eq!(store.bounds().unsettled, 2, "seed {seed}");
        let refusals = store.rejections(0, 9).len();
        kept[refusals] += 1;
        if refusals == 0 {
            assert!(seed > 0, "no power was cut");
            continue;
        }
        let mut message = StoredMessage::new();
        assert!(store.get(5, &mut message).expect("reads"), "seed {seed}");
        assert_eq!(message.payload(), [7; 100]);
    }
    assert!(kept[0] > 0 && kept[1] > 1, "{kept:?}");
}

/// After a failed sync a refusal may be held in memory only. A mark that settles its message
/// would take both from the next open: it would know neither of the refusal nor that the message
/// must be sent.
#[test]
fn a_refusal_held_in_memory_is_settled_by_no_mark() {
    let options = || Options::new().capacity(68 << 10);
    let (mut held_ones, mut marked) = (0, 0);
    // As in a log that lacked room when its device failed.
    plant(Some(Bug::ReserveSpent));
    // The room runs out at many different places: the mark in question is written only where a
    // refusal does not fit but a mark does.
    for len in (0..500).step_by(8) {
        for keep in [5u64, 10, 20, 40, 80] {
            for short in 0..4 {
                let disk = SimDisk::new();
                let store = disk.open(options()).expect("opens");
                disk.fail(Fault::Sync(0));
                assert!(store.sync().is_err());
                let (mut first, mut last) = (1, 0);
                while let Ok(appended) = store.append(&Envelope::publish("t"), &vec![7; len]) {
                    last = appended.sequence;
                    first = last.saturating_sub(keep).max(1);
                    store.settle_through(first - 1).expect("settles");
                }
                let mut held = Vec::new();
                for (nth, sequence) in (first..=last).enumerate() {
                    // Short ones first, which get closer to the end in small steps.
                    let reason = match nth < short {
                        true => "n".repeat(nth * 8),
                        false => "n".repeat(128),
                    };
                    let before = last_ordinal(&store);
                    match store.reject(sequence, &reason, 1).expect("holds") {
                        Rejected::Held { .. } => {
                            held.push(sequence);
                            marked += last_ordinal(&store) - before;
                        }
                        logged => assert!(matches!(logged, Rejected::Logged { .. })),
                    }
                }
                assert_eq!(store.settle_through(last).expect("settles"), 0);
                let told = store.unrecorded();
                assert_eq!(told.refusals, held.len() as u64);
                drop(store);
                held_ones += held.len();
                let store = disk.open(options()).expect("opens");
                assert_eq!(told.messages, store.bounds().unsettled);
                for sequence in held {
                    assert!(
                        store.is_unsettled(sequence),
                        "{sequence}: {len} {keep} {short}"
                    );
                }
            }
        }
    }
    assert!(held_ones > 100, "{held_ones} were held");
    assert!(marked > 0, "no mark was written while one was held");
    plant(None);
}
