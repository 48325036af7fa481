//! Whoever was turned away for want of room is told of the next change, whoever else finds room
//! meanwhile, and is not told if nothing changed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use amps_store::testkit::{SimDisk, step};
use amps_store::{AppendError, Envelope, Options, PublishStore, Signal, Store};

const BIG: usize = 800;

fn options() -> Options {
    Options::new().capacity(256 << 10).client_name("waiting")
}

/// Counts how often an observer is told of room from now on.
fn rooms(store: &Store) -> Arc<AtomicUsize> {
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    store.observe(Arc::new(move |signal| {
        count.fetch_add(usize::from(signal == Signal::Room), Ordering::SeqCst);
        ControlFlow::Continue(())
    }));
    heard
}

fn take(heard: &AtomicUsize) -> usize {
    heard.swap(0, Ordering::SeqCst)
}

fn publish(store: &Store, bytes: usize) -> Result<u64, AppendError> {
    let appended = store.append(&Envelope::publish("t"), &vec![7; bytes]);
    appended.map(|appended| appended.sequence)
}

/// Fills the store until only a settlement can make room for a large message, while a small one
/// still fits.
fn fill(store: &Store, mut upkeep: impl FnMut()) {
    loop {
        match publish(store, BIG) {
            Ok(_) => {}
            Err(AppendError::Full {
                live,
                limit,
                needed,
            }) if live + needed > limit => return,
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
        upkeep();
    }
}

/// There was once one flag for "somebody waits". Whoever found room cleared it: a small message
/// while a large one waited, and the large one was never told again, even with the store empty.
#[test]
fn a_small_message_that_fits_takes_no_wake_up_from_a_large_one() {
    let store = Store::memory(options()).unwrap();
    let heard = rooms(&store);
    fill(&store, || ());
    assert!(publish(&store, BIG).is_err());
    take(&heard);
    publish(&store, 1).unwrap();
    assert_eq!(take(&heard), 0, "it made no room");
    store.settle_through(u64::MAX).unwrap();
    assert!(take(&heard) > 0, "the large one waits, and is not told");
    publish(&store, BIG).unwrap();
    store.settle_through(u64::MAX).unwrap();
    assert_eq!(take(&heard), 0, "nobody waits any more");
}

/// The same in the other order: two are told, and one finds room after the other was turned away
/// again.
#[test]
fn the_success_of_one_takes_no_wake_up_from_another_that_tried_before() {
    let store = Store::memory(options()).unwrap();
    let heard = rooms(&store);
    fill(&store, || ());
    let first = store.bounds().first_unsettled.unwrap();
    store.settle_through(first).unwrap();
    assert!(take(&heard) > 0);
    // Both try: the larger one fails, the other one succeeds.
    assert!(publish(&store, 3 * BIG).is_err());
    publish(&store, BIG / 2).unwrap();
    store.settle_through(first + 4).unwrap();
    assert!(take(&heard) > 0, "the larger one waits, and is not told");
    publish(&store, 3 * BIG).unwrap();
}

/// A requeue is also a publish: it may be turned away, must not take a wake-up from others, and
/// makes room.
#[test]
fn a_requeue_wakes_who_waits_and_not_itself() {
    let store = Store::memory(options()).unwrap();
    let refused = publish(&store, 1).unwrap();
    let large = publish(&store, 3 * BIG).unwrap();
    for sequence in [refused, large] {
        store.reject(sequence, "no", 1).unwrap();
    }
    let heard = rooms(&store);
    fill(&store, || ());
    assert!(publish(&store, 2 * BIG).is_err());
    take(&heard);
    // Whoever waits for room tries again whenever it is told. Told of its own failure, it once
    // tried for ever.
    let full = store.requeue(large, 2);
    assert!(full.is_err_and(|error| error.is_retryable()));
    assert_eq!(take(&heard), 0, "nothing changed");
    // It takes what is left, and gives back the room of the refusal.
    let again = store.requeue(refused, 2).unwrap().unwrap().sequence;
    assert!(take(&heard) > 0, "the refusal is gone, and nobody is told");
    assert!(publish(&store, 2 * BIG).is_err());
    assert!(store.requeue(large, 2).is_err());
    publish(&store, 1).unwrap();
    take(&heard);
    store.settle_through(again).unwrap();
    assert!(take(&heard) > 0, "two wait, and are not told");
    assert!(store.requeue(large, 2).unwrap().is_some());
}

/// If the helper has work to do, the room comes from the helper: everything is settled, and every
/// segment is in use.
#[test]
fn upkeep_goes_on_for_a_large_message_while_small_ones_find_room() {
    let disk = SimDisk::new();
    // As few segments as possible, and no more: a file that may grow does so when somebody waits.
    let few = options().capacity((12 << 10) + 6 * (16 << 10));
    let store = disk
        .open(few.segment_size(16 << 10).preallocate(true))
        .unwrap();
    let heard = rooms(&store);
    let (mut turned_away, mut small) = (0, 0);
    for _ in 0..500 {
        match publish(&store, BIG) {
            Ok(sequence) => drop(store.settle(&[sequence]).unwrap()),
            Err(AppendError::MakingRoom { .. }) => {
                turned_away += 1;
                take(&heard);
                small += u64::from(publish(&store, 1).is_ok());
                let mut told = take(&heard);
                while told == 0 {
                    assert!(step(&store).unwrap(), "the large one is not told");
                    told = take(&heard);
                }
                while step(&store).unwrap() {}
                publish(&store, BIG).unwrap();
                store.settle_through(u64::MAX).unwrap();
            }
            Err(error) => panic!("{error}"),
        }
    }
    assert!(turned_away > 5 && small > 5, "{turned_away} {small}");
}

/// If no room can come any more, whoever waits for it must learn that.
#[test]
fn the_end_of_a_store_is_told_to_who_waits_for_room() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    let heard = rooms(&store);
    fill(&store, || while step(&store).unwrap() {});
    take(&heard);
    store.close(0).unwrap();
    assert!(take(&heard) > 0, "who waits is not told of the end");
    assert!(!publish(&store, BIG).unwrap_err().is_retryable());
}

/// A large segment grows in pieces. Those who waited were once told of each piece, of the failure
/// and of the cut after it, and asked for growth again each time, so that disk and threads were
/// busy for ever.
#[test]
fn a_growth_that_goes_on_failing_is_told_once() {
    const SEGMENT: u64 = 9 << 20;
    let disk = SimDisk::new();
    let options = Options::new().capacity(64 << 20).segment_size(SEGMENT);
    let store = disk.open(options).unwrap();
    let heard = rooms(&store);
    // For the first piece of the next segment there is room, for the second there is not.
    disk.limit(Some(disk.bytes().len() as u64 + 5 * (SEGMENT / 9)));
    let (mut told, mut tries) = (0, 0);
    loop {
        match publish(&store, 1 << 20) {
            Ok(_) => tries = 0,
            Err(AppendError::NoSpace { .. }) if told == 0 && tries > 0 => break,
            Err(error) => {
                assert!(error.is_retryable(), "{error}");
                tries += 1;
                assert!(tries < 20, "told again and again");
            }
        }
        while step(&store).unwrap() {}
        told = take(&heard);
    }
    assert!(store.bounds().unsettled > 0);
    // When space comes, whoever tries again is told.
    disk.limit(None);
    assert!(publish(&store, 1 << 20).is_err());
    while step(&store).unwrap() {}
    assert!(take(&heard) > 0, "the file has grown, and nobody is told");
    publish(&store, 1 << 20).unwrap();
}
