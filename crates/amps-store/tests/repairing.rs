//! A repair makes a second store that sends under the same numbers. Who may have the first one
//! open meanwhile, which stores are repaired at all, and what a look says about who has a store.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::cell::RefCell;
use std::fs::OpenOptions;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use amps_store::inspect::{Inspection, StoreState};
use amps_store::testkit::{Call, FailingCalls, fail_calls, watch_calls};
use amps_store::transfer::{RepairError, RepairOptions, repair_to, repair_with};
use amps_store::{Envelope, Level, OpenError, Options, PublishStore, Store};

fn left_behind(dir: &Path) -> PathBuf {
    let path = dir.join("old");
    let store = Store::open(&path, Options::new().capacity(64 << 10)).unwrap();
    store.append(&Envelope::publish("t"), b"one").unwrap();
    path
}

/// Whether the store was in use was once decided before the repair, by a list that does not show
/// every lock. A publisher could begin in the middle of the repair, and sent what the copy sends
/// again.
#[test]
fn nobody_opens_a_store_while_it_is_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (left_behind(dir.path()), dir.path().join("new"));
    let said = Rc::new(RefCell::new(Vec::new()));
    let (path, heard) = (old.clone(), said.clone());
    watch_calls(Some(Box::new(move |call| {
        // While the old store is read, and while the new one is written.
        if matches!(call, Call::Read | Call::SyncData) {
            let refused = Store::open(&path, Options::new().capacity(64 << 10));
            let Err(OpenError::Locked { owner, .. }) = refused else {
                panic!("it is being repaired");
            };
            heard.borrow_mut().push(owner);
        }
    })));
    let report = repair_to(&old, &new).unwrap();
    watch_calls(None);
    assert_eq!(report.saved, 1);
    let said = said.borrow();
    assert!(said.len() > 3, "{said:?}");
    assert!(said.iter().all(|s| s.contains("or a repair is reading it")));
    // Afterwards it is free again, without waiting for anything.
    drop(Store::open(&old, Options::new()).unwrap());
}

#[test]
fn a_store_that_is_open_is_not_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (left_behind(dir.path()), dir.path().join("new"));
    let store = Store::open(&old, Options::new()).unwrap();
    for options in [RepairOptions::new(), RepairOptions::new().unlocked(true)] {
        let refused = repair_with(&old, &new, &options);
        assert!(matches!(refused, Err(RepairError::InUse(_))));
        assert!(!new.exists());
    }
    drop(store);
    repair_to(&old, &new).unwrap();
}

#[test]
fn where_there_are_no_locks_a_repair_waits_to_be_told() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (left_behind(dir.path()), dir.path().join("new"));
    let no_locks = || {
        fail_calls(Some(FailingCalls {
            call: Call::Lock,
            after: 0,
            for_ever: false,
            errno: libc::ENOLCK,
        }))
    };
    no_locks();
    let refused = repair_to(&old, &new);
    assert!(matches!(refused, Err(RepairError::NoLock { .. })));
    assert!(refused.is_err_and(|e| e.to_string().contains("--unlocked")));
    assert!(!new.exists());
    assert_eq!(no_locks(), 1);
    let report = repair_with(&old, &new, &RepairOptions::new().unlocked(true)).unwrap();
    assert_eq!((report.saved, fail_calls(None)), (1, 1));
}

/// The copy was once a twin of the store that the messages had gone to.
#[test]
fn an_evacuated_store_is_repaired_only_when_told() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (left_behind(dir.path()), dir.path().join("new"));
    let store = Store::open(&old, Options::new()).unwrap();
    store
        .evacuate(dir.path().join("other"), Level::Os)
        .unwrap()
        .close(0)
        .unwrap();
    let info = Inspection::open(&old).unwrap().info();
    assert!(info.evacuated);
    assert_eq!(info.state(), StoreState::Evacuated);
    let refused = repair_to(&old, &new);
    assert!(matches!(refused, Err(RepairError::Evacuated(_))));
    assert!(!new.exists());
    let report = repair_with(&old, &new, &RepairOptions::new().evacuated(true)).unwrap();
    assert_eq!(report.saved, 1);
    let copy = Store::open_existing(&new, Options::new()).unwrap();
    assert_eq!(copy.bounds().unsettled, 1);
}

/// Of a file that had lost everything a repair once said "saved 0", and that all is well.
#[test]
fn nothing_is_made_of_a_file_that_has_nothing_but_its_superblocks() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (left_behind(dir.path()), dir.path().join("new"));
    let file = OpenOptions::new().write(true).open(&old).unwrap();
    // In the header of the first record, right behind the segment header, and right behind the
    // superblocks.
    for len in [12288 + 96, 12288 + 64, 12288] {
        file.set_len(len).unwrap();
        let refused = repair_to(&old, &new);
        assert!(
            matches!(refused, Err(RepairError::NothingLeft(_))),
            "{len}: {refused:?}"
        );
        assert!(!new.exists());
        assert!(Store::open(&old, Options::new()).is_err());
    }
}

/// A smaller capacity was once accepted, although 64 KiB is documented as the least.
#[test]
fn less_than_the_least_capacity_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    for capacity in [(64 << 10) - 1, 63 << 10, 56 << 10] {
        for segment in [None, Some(12288)] {
            let mut options = Options::new().capacity(capacity);
            if let Some(size) = segment {
                options = options.segment_size(size);
            }
            let refused = Store::open(&path, options);
            assert!(matches!(refused, Err(OpenError::Options(_))));
            assert!(!path.exists());
        }
    }
    drop(Store::open(&path, Options::new().capacity(64 << 10)).unwrap());
}

#[test]
fn a_look_tells_who_has_a_store_and_says_so_where_it_cannot() {
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let state = || Inspection::open(&path).unwrap().info();
    // Within a PID namespace, like that of a container, the locks of others are hidden.
    let sees_all = std::fs::read_link("/proc/self/ns/pid")
        .is_ok_and(|name| name.to_str() == Some("pid:[4026531836]"));
    let died = state();
    if died.locked.is_none() {
        assert_eq!(died.state(), StoreState::Unknown);
    } else {
        assert!(sees_all);
        assert_eq!(died.state(), StoreState::Crashed);
    }
    // A repair is not an owner.
    let reading = std::fs::File::open(&path).unwrap();
    reading.try_lock_shared().unwrap();
    assert_ne!(state().state(), StoreState::Live);
    reading.unlock().unwrap();
    let store = Store::open(&path, Options::new()).unwrap();
    let seen = state();
    assert!(matches!(
        seen.state(),
        StoreState::Live | StoreState::Unknown
    ));
    assert!(!sees_all || seen.locked != Some(false));
    store.close(0).unwrap();
    assert_eq!(state().state(), StoreState::Closed);
}
