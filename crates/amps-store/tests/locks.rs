//! One owner: the lock of a store, and what stands at its path.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amps_store::testkit::{Call, watch_calls};
use amps_store::{Envelope, Level, OpenError, Options, PublishStore, Store};

fn small() -> Options {
    Options::new().capacity(64 << 10)
}

/// Does something while two other threads start programs, whose processes hold every descriptor
/// of this one between their fork and their exec.
fn while_programs_start(work: impl FnOnce()) {
    struct Ending<'a>(&'a AtomicBool);
    impl Drop for Ending<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    Command::new("true").status().unwrap();
                }
            });
        }
        let _ending = Ending(&stop);
        work();
    });
}

/// It said that everything was evacuated and that the new store is in use, by this process.
#[test]
fn an_evacuation_succeeds_while_other_threads_start_programs() {
    let dir = tempfile::tempdir().unwrap();
    while_programs_start(|| {
        for n in 0..100 {
            let old = Store::open(dir.path().join(format!("old{n}")), small()).unwrap();
            old.append(&Envelope::publish("t"), b"x").unwrap();
            let new = old.evacuate(dir.path().join(format!("new{n}")), Level::Os);
            new.unwrap().close(0).unwrap();
        }
    });
}

#[test]
fn a_store_that_was_dropped_is_free_while_other_threads_start_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    while_programs_start(|| {
        for _ in 0..100 {
            drop(Store::open(&path, small()).unwrap());
        }
    });
}

/// Not only a store that was opened: an open that was refused had the lock as well.
#[test]
fn an_open_that_was_refused_leaves_no_lock_while_other_threads_start_programs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Store::open(&path, small().client_name("mine")).unwrap());
    while_programs_start(|| {
        for _ in 0..100 {
            let refused = Store::open(&path, small().client_name("other"));
            assert!(matches!(refused, Err(OpenError::WrongClientName { .. })));
            // Nobody's lock is waited for here.
            let file = File::open(&path).unwrap();
            file.try_lock().unwrap();
            file.unlock().unwrap();
        }
    });
}

/// Another thread that has the store open may be just about to drop it.
#[test]
fn a_store_of_this_process_is_waited_for_a_moment() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, small()).unwrap();
    let refused = Store::open(&path, small());
    assert!(matches!(refused, Err(OpenError::Locked { .. })));
    let mut store = Some(store);
    let mut attempts = 0;
    watch_calls(Some(Box::new(move |call| {
        attempts += u32::from(call == Call::Lock);
        // It goes behind the first attempt.
        if attempts == 2 {
            drop(store.take());
        }
    })));
    let opened = Store::open(&path, small());
    watch_calls(None);
    assert!(opened.is_ok());
}

/// A lock of somebody else is waited for as long as was asked, and not at all unless asked.
#[test]
fn the_lock_of_another_is_waited_for_as_long_as_was_asked() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Store::open(&path, small()).unwrap());
    let other = File::open(&path).unwrap();
    other.try_lock_shared().unwrap();
    let Err(OpenError::Locked { owner, .. }) = Store::open(&path, small()) else {
        panic!("somebody reads it");
    };
    assert!(owner.contains("or a repair is reading it"), "{owner}");
    let mut other = Some(other);
    let mut attempts = 0;
    watch_calls(Some(Box::new(move |call| {
        attempts += u32::from(call == Call::Lock);
        // Far longer than the moment for a lock of one's own would be no test of chance: this
        // ends by what is seen, and not by the clock.
        if attempts == 100
            && let Some(other) = other.take()
        {
            other.unlock().unwrap();
        }
    })));
    let opened = Store::open(&path, small().lock_timeout(Duration::MAX));
    watch_calls(None);
    assert!(opened.is_ok());
}

fn names(dir: &Path, name: &str) -> Option<String> {
    let store = Store::open_existing(dir.join(name), Options::new()).ok()?;
    Some(store.client_name())
}

/// A file that was put in the place of the one that was opened, before that was locked: its lock
/// would guard a file that nobody finds any more.
#[test]
fn a_file_that_was_replaced_before_it_was_locked_is_not_the_one_that_is_opened() {
    let dir = tempfile::tempdir().unwrap();
    let (path, other) = (dir.path().join("s"), dir.path().join("other"));
    drop(Store::open(&path, small().client_name("first")).unwrap());
    drop(Store::open(&other, small().client_name("second")).unwrap());
    let (to, mut replaced) = (path.clone(), false);
    watch_calls(Some(Box::new(move |call| {
        if call == Call::Lock && !replaced {
            replaced = true;
            fs::rename(&other, &to).unwrap();
        }
    })));
    let found = names(dir.path(), "s");
    watch_calls(None);
    assert_eq!(found.as_deref(), Some("second"));

    // Removed: there is none, or a new one is made.
    for removed in [false, true] {
        let (gone, mut done) = (path.clone(), false);
        watch_calls(Some(Box::new(move |call| {
            if call == Call::Lock && !done {
                done = true;
                fs::remove_file(&gone).unwrap();
            }
        })));
        let opened = match removed {
            false => Store::open(&path, small().client_name("third")).is_ok(),
            true => names(dir.path(), "s").is_some(),
        };
        watch_calls(None);
        assert_eq!((opened, path.exists()), (!removed, !removed));
    }
}

/// The entry that a power cut must not take is that of the target. The directory of the link was
/// synced, where nothing had changed.
#[test]
fn a_store_created_through_a_dangling_link_has_its_own_directory_synced() {
    let dir = tempfile::tempdir().unwrap();
    let (links, real) = (dir.path().join("links"), dir.path().join("real"));
    fs::create_dir(&links).unwrap();
    fs::create_dir(&real).unwrap();
    let link = links.join("s");
    std::os::unix::fs::symlink("../real/target", &link).unwrap();
    let synced = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
    let seen = synced.clone();
    watch_calls(Some(Box::new(move |call| {
        if call == Call::SyncDirectory {
            let open = fs::read_dir("/proc/self/fd").unwrap();
            let open = open.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
            seen.lock().unwrap().extend(open);
        }
    })));
    let store = Store::open(&link, small()).unwrap();
    watch_calls(None);
    assert!(real.join("target").exists());
    let synced = synced.lock().unwrap();
    let real = real.canonicalize().unwrap();
    let links = links.canonicalize().unwrap();
    assert!(synced.contains(&real), "{synced:?}");
    assert!(!synced.contains(&links), "{synced:?}");
    drop(store);
}
