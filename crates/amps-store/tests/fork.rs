//! `docs/histories.md` H34: a process that forks while its store is open.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::io::Read;
use std::ops::ControlFlow;
use std::sync::Arc;

use amps_store::testkit::{Call, FailingCalls, fail_calls};
use amps_store::{
    AppendError, Batch, Bounds, Envelope, Numbers, Options, PublishStore, ReadError, Store,
    StoreError, StoredMessage,
};

/// Runs `child` in a forked child and returns its exit code.
fn forked(child: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child calls only code that takes no lock held by another thread (the
    // store refuses before its lock) and leaves by `_exit`, running no destructor of the
    // test harness.
    unsafe {
        let pid = libc::fork();
        assert!(pid >= 0, "fork failed");
        if pid == 0 {
            libc::_exit(child());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(pid, &raw mut status, 0), pid);
        assert!(
            libc::WIFEXITED(status),
            "the child died of signal {}",
            libc::WTERMSIG(status)
        );
        libc::WEXITSTATUS(status)
    }
}

#[test]
fn h34_a_forked_child_is_refused_and_the_parent_goes_on() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let options = || Options::new().capacity(64 << 10).client_name("parent");
    let store = Store::open(&path, options()).unwrap();
    store.append(&Envelope::publish("t"), b"one").unwrap();
    store.reject(1, "waits", 1).unwrap();
    let before = std::fs::read(&path).unwrap();

    let refused = forked(|| {
        let append = store.append(&Envelope::publish("t"), b"from the child");
        let settle = store.settle_through(1);
        let close = store.close(0);
        // Calls that cannot fail could read a mapping that is not there, or wait for a lock.
        let nothing = store.rejections(0, 9).is_empty()
            && store.bounds() == Bounds::default()
            && store.numbers() == Numbers::default()
            && store.resume_tag().is_none()
            && !store.is_unsettled(1)
            && store.request_sync().is_err()
            && store.sync().is_err();
        store.observe(Arc::new(|_| ControlFlow::Continue(())));
        let all = nothing
            && matches!(append, Err(AppendError::Store(StoreError::Forked)))
            && matches!(settle, Err(StoreError::Forked))
            && matches!(close, Err(StoreError::Forked));
        i32::from(!all)
    });
    assert_eq!(refused, 0);
    // A child that just exits, dropping its handle, changes nothing either.
    let child = store.clone();
    assert_eq!(
        forked(move || {
            drop(child);
            0
        }),
        0
    );
    assert_eq!(std::fs::read(&path).unwrap(), before);

    assert_eq!(
        store
            .append(&Envelope::publish("t"), b"two")
            .unwrap()
            .sequence,
        2
    );
    assert!(
        Store::open(&path, options()).is_err(),
        "the lock is still the parent's"
    );
    store.sync().unwrap();
    drop(store);
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(
        (store.bounds().unsettled, store.bounds().rejections),
        (1, 1)
    );
    store.close(0).unwrap();
    assert!(store.rejections(0, 9).is_empty(), "its bytes are another's");
}

/// A call that only reads is as dangerous as one that writes, since the mapping is not there.
#[test]
fn h34_each_call_of_a_forked_child_that_can_fail_does() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().capacity(64 << 10).client_name("parent");
    let store = Store::open(dir.path().join("a.store"), options).unwrap();
    for _ in 0..2 {
        store.append(&Envelope::publish("t"), b"one").unwrap();
    }
    store.reject(1, "waits", 1).unwrap();
    let (mut message, mut batch) = (StoredMessage::new(), Batch::default());
    let wrong = forked(|| {
        let answers = [
            matches!(
                store.get(2, &mut message),
                Err(ReadError::Store(StoreError::Forked))
            ),
            matches!(
                store.read_unsettled(1, u64::MAX, &mut batch),
                Err(ReadError::Store(StoreError::Forked))
            ),
            matches!(
                store.requeue(1, 1),
                Err(AppendError::Store(StoreError::Forked))
            ),
            matches!(store.accept(1), Err(StoreError::Forked)),
            matches!(store.settle(&[2]), Err(StoreError::Forked)),
            matches!(store.reject(2, "no", 1), Err(StoreError::Forked)),
            matches!(store.raise_grant(9), Err(StoreError::Forked)),
            matches!(store.rebase(9), Err(StoreError::Forked)),
            matches!(store.request_sync(), Err(StoreError::Forked)),
            matches!(store.sync(), Err(StoreError::Forked)),
        ];
        let wrong = answers.iter().position(|right| !right);
        wrong.map_or(0, |nth| nth as i32 + 1)
    });
    assert_eq!(wrong, 0, "the call of this number");
    assert_eq!(store.bounds().unsettled, 1);
}

/// The child allocates memory of its own where its parent's mapping was, as a large `malloc` or a
/// new thread may, and once lost it when it dropped the inherited handle.
fn drops_its_handle_and_keeps_its_memory(store: Store, path: &std::path::Path) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let path = path.canonicalize().unwrap();
    let line = maps
        .lines()
        .find(|line| line.ends_with(path.to_str().unwrap()));
    let place = line.unwrap().split(' ').next().unwrap();
    let (from, to) = place.split_once('-').unwrap();
    let number = |hex| usize::from_str_radix(hex, 16).unwrap();
    let (from, len) = (number(from), number(to) - number(from));
    let code = forked(move || {
        // SAFETY: a fresh anonymous mapping where there is none, or a failure, which is looked for.
        let mine = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
            libc::mmap(from as *mut _, len, protection, flags, -1, 0)
        };
        if mine as usize != from {
            return 3;
        }
        let bytes = mine.cast::<u8>();
        for at in (0..len).step_by(4096) {
            // SAFETY: within the mapping just made.
            unsafe { bytes.add(at).write(7) }
        }
        drop(store);
        // SAFETY: as above. If it was unmapped meanwhile, the child dies of a signal.
        let kept = (0..len)
            .step_by(4096)
            .all(|at| unsafe { bytes.add(at).read() == 7 });
        i32::from(!kept)
    });
    assert_eq!(code, 0);
}

fn opened(dir: &std::path::Path) -> Store {
    let store = Store::open(dir.join("a.store"), Options::new().capacity(1 << 20)).unwrap();
    store.append(&Envelope::publish("t"), b"one").unwrap();
    store
}

#[test]
fn a_child_that_drops_a_closed_store_keeps_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let store = opened(dir.path());
    store.close(0).unwrap();
    drops_its_handle_and_keeps_its_memory(store, &dir.path().join("a.store"));
}

#[test]
fn a_child_that_drops_an_open_store_keeps_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    drops_its_handle_and_keeps_its_memory(opened(dir.path()), &dir.path().join("a.store"));
}

#[test]
fn a_child_that_drops_an_evacuated_store_keeps_its_memory() {
    let dir = tempfile::tempdir().unwrap();
    let old = opened(dir.path());
    let level = old.level();
    let new = old.evacuate(dir.path().join("b.store"), level).unwrap();
    drops_its_handle_and_keeps_its_memory(old, &dir.path().join("a.store"));
    assert_eq!(new.bounds().unsettled, 1);
}

/// Where the kernel does not wipe a page in children, no store could once be opened at all.
#[test]
fn without_a_page_that_is_wiped_a_child_is_told_by_its_process_id() {
    let dir = tempfile::tempdir().unwrap();
    fail_calls(Some(FailingCalls {
        call: Call::WipeOnFork,
        after: 0,
        for_ever: true,
        errno: libc::EINVAL,
    }));
    let store = opened(dir.path());
    assert_eq!(fail_calls(None), 2, "for the lock, and for the store");
    let refused = forked(|| {
        let append = store.append(&Envelope::publish("t"), b"from the child");
        i32::from(!matches!(
            append,
            Err(AppendError::Store(StoreError::Forked))
        ))
    });
    assert_eq!(refused, 0);
    let child = store.clone();
    drops_its_handle_and_keeps_its_memory(child, &dir.path().join("a.store"));
    let locked = Store::open(dir.path().join("a.store"), Options::new());
    assert!(locked.is_err(), "the lock is still the parent's");
    store.append(&Envelope::publish("t"), b"two").unwrap();
    assert_eq!(store.bounds().unsettled, 2);
}

/// A lock is shared with every descriptor that a fork made of it. A child that lives on must
/// neither hold a lock that its parent has given back, nor take one away from its parent.
#[test]
fn a_child_that_lives_on_neither_keeps_the_lock_nor_gives_it_away() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = opened(dir.path());
    let (mut parents_word, parent_says_go) = std::io::pipe().unwrap();
    let (mut childs_word, child_has_dropped) = std::io::pipe().unwrap();
    let handle = store.clone();
    // SAFETY: as in `forked`; the child drops its handle, says so, waits for its parent and leaves.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        drop(handle);
        drop(child_has_dropped);
        drop(parent_says_go);
        let _ = parents_word.read(&mut [0]);
        // SAFETY: runs no destructor of the test harness.
        unsafe { libc::_exit(0) }
    }
    drop(child_has_dropped);
    assert_eq!(
        childs_word.read(&mut [0]).unwrap(),
        0,
        "the child says nothing"
    );
    let locked = Store::open(&path, Options::new());
    assert!(locked.is_err(), "the lock is still the parent's");
    drop(handle);
    drop(store);
    let again = Store::open(&path, Options::new()).unwrap();
    assert_eq!(again.bounds().unsettled, 1);
    drop(parent_says_go);
    // SAFETY: our own child.
    assert_eq!(unsafe { libc::waitpid(pid, std::ptr::null_mut(), 0) }, pid);
}
