//! One owner: the lock of a store, and what stands at its path.

#![allow(unsafe_code, reason = "children are forked")]
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::cell::RefCell;
use std::fs::{self, File};
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use amps_store::testkit::{Call, watch_calls};
use amps_store::{Envelope, Level, OpenError, Options, PublishStore, Store};

fn small() -> Options {
    Options::new().capacity(64 << 10)
}

/// A process that holds every descriptor of this one for as long as this value lives, as every
/// child does between its fork and its exec.
struct Child(libc::pid_t);

impl Child {
    fn born() -> Self {
        // SAFETY: the child makes two calls of the system that take no lock, until it is killed.
        let pid = unsafe { libc::fork() };
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            // SAFETY: as above. It also dies with the thread that forked it, in case that never
            // kills it.
            unsafe {
                libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
                loop {
                    libc::pause();
                }
            }
        }
        Child(pid)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // SAFETY: our own child, which nobody has waited for.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

/// Repeats something while there is a child that was forked before its first system call, then
/// before its second, and so on to its last. Returns how many calls there are.
fn with_a_child_since_each_call(mut work: impl FnMut(u64)) -> u64 {
    for nth in 0.. {
        let (mut calls, child) = (0, Rc::new(RefCell::new(None)));
        let to = child.clone();
        watch_calls(Some(Box::new(move |_| {
            if calls == nth {
                to.replace(Some(Child::born()));
            }
            calls += 1;
        })));
        work(nth);
        watch_calls(None);
        if child.take().is_none() {
            return nth;
        }
    }
    unreachable!("finitely many calls")
}

/// An evacuation once failed with "everything was evacuated, and the new store is in use by this
/// process": what used it was a program that another thread was just starting.
#[test]
fn an_evacuation_succeeds_whenever_another_thread_starts_a_program() {
    let dir = tempfile::tempdir().unwrap();
    let calls = with_a_child_since_each_call(|nth| {
        let old = Store::open(dir.path().join(format!("old{nth}")), small()).unwrap();
        old.append(&Envelope::publish("t"), b"x").unwrap();
        let new = old.evacuate(dir.path().join(format!("new{nth}")), Level::Os);
        new.unwrap().close(0).unwrap();
    });
    assert!(calls > 20, "{calls} calls");
}

#[test]
fn a_store_that_was_dropped_is_free_whenever_another_thread_starts_a_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let calls = with_a_child_since_each_call(|_| {
        drop(Store::open(&path, small()).unwrap());
        assert_is_free(&path);
    });
    assert!(calls > 5, "{calls} calls");
}

/// This concerns not only a store that was opened: an open that was refused had the lock as well.
#[test]
fn an_open_that_was_refused_leaves_no_lock_whenever_another_thread_starts_a_program() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Store::open(&path, small().client_name("mine")).unwrap());
    let calls = with_a_child_since_each_call(|_| {
        let refused = Store::open(&path, small().client_name("other"));
        assert!(matches!(refused, Err(OpenError::WrongClientName { .. })));
        assert_is_free(&path);
    });
    assert!(calls > 3, "{calls} calls");
}

/// No lock is waited for here.
fn assert_is_free(path: &Path) {
    let file = File::open(path).unwrap();
    file.try_lock().unwrap();
    file.unlock().unwrap();
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
        // The other thread drops it after the first attempt.
        if attempts == 2 {
            drop(store.take());
        }
    })));
    let opened = Store::open(&path, small());
    watch_calls(None);
    assert!(opened.is_ok());
}

/// Another process's lock is waited for as long as was asked, and not at all unless asked.
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
        // Waiting for much longer than it waits for its own lock would make this a test of
        // chance; so it ends by what is seen, not by the clock.
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

/// Another file was put in the place of the one that was opened, before that was locked: the lock
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

    // Removed: then there is no file, or a new one is made.
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
/// once synced instead, in which nothing had changed.
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
