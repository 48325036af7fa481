//! A refusal that comes late, while the segment of its message is being freed.

// Helpers outside of test functions; a failure is the test's.
#![allow(clippy::expect_used)]

use amps_store::testkit::{SimDisk, step};
use amps_store::{Envelope, Options, PublishStore, Rejected, Store, StoredMessage};

/// Appends a message and settles it, doing chores only when there is no room; whether
/// there was room at once.
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
        let options = Options::new().capacity(64 << 10).preallocate(true);
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
