//! H34: a process that forks while its store is open.
#![allow(unsafe_code, clippy::unwrap_used)]

use std::ops::ControlFlow;
use std::sync::Arc;

use amps_store::{
    AppendError, Batch, Bounds, Envelope, Numbers, Options, PublishStore, ReadError, Store,
    StoreError, StoredMessage,
};

/// Runs `child` in a forked child and gives its exit code.
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
        // Those that cannot fail read a mapping that is not there, or wait for a lock.
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
    // A child that just goes away, dropping its handle, changes nothing either.
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

/// A call that only reads is as bad as one that writes: the mapping is not there.
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
