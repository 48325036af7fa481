use std::ops::ControlFlow;

use super::*;
use crate::api::Signal;
use crate::testkit::{Fault, SimDisk};

/// With a helper that is too slow to do anything.
fn without_helper(disk: &SimDisk) -> Store {
    let options = Options::new().capacity(64 << 10);
    let opened = file::open_medium(Path::new("(simulated disk)"), disk.medium(), &options);
    let (log, report) = opened.unwrap();
    Store::new(log, report, &options, None, Upkeep::Thread)
}

/// Does something as soon as another thread waits for a sync.
fn while_a_sync_waits(store: &Store, work: impl FnOnce()) -> Result<Durable, StoreError> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.sync());
        // Whoever finds it wanted finds the lock free because the other one waits.
        while store.inner.shared.lock().wanted == 0 {
            std::thread::yield_now();
        }
        work();
        waiting.join().unwrap()
    })
}

/// A raise of the grant held the lock over two writes to the device; whoever published,
/// or asked how full the store is, waited for them.
#[test]
fn publishers_go_on_while_a_superblock_is_written() {
    let disk = SimDisk::new();
    let store = without_helper(&disk);
    let shared = &store.inner.shared;
    // As another thread that raises the grant, which is in the middle of it.
    let write = {
        let mut core = shared.lock();
        let mut superblock = core.log.superblock.clone();
        superblock.grant = 7;
        core.log.begin_write(superblock).unwrap()
    };
    let first = store
        .append(&Envelope::publish("t"), b"x")
        .unwrap()
        .sequence;
    assert_eq!(store.bounds().unsettled, 1);
    store.settle_through(first).unwrap();
    assert_eq!(store.numbers().grant, 0, "not before it is durable");
    std::thread::scope(|scope| {
        // One at a time: this one builds on what the other one writes.
        let rebased = scope.spawn(|| store.rebase(100));
        let result = write.make(&*shared.device);
        shared.lock().log.finish_write(write, result).unwrap();
        shared.progress.notify_all();
        let rebase = rebased.join().unwrap().unwrap();
        assert_eq!((rebase.from, rebase.delta), (2, 99));
    });
    let superblock = shared.lock().log.superblock.clone();
    assert_eq!((superblock.grant, superblock.number_floor), (1, 7));
    drop(store);
    let found = without_helper(&disk).numbers();
    assert_eq!((found.grant, found.rebase.unwrap().from), (1, 2));
}

#[test]
fn who_waits_for_a_sync_hears_of_a_failed_superblock_write() {
    let disk = SimDisk::new();
    let store = without_helper(&disk);
    store.append(&Envelope::publish("t"), b"x").unwrap();
    let synced = while_a_sync_waits(&store, || {
        disk.fail(Fault::WriteAround(0));
        assert!(store.raise_grant(7).is_err());
    });
    assert!(matches!(synced, Err(StoreError::SyncFailed(_))));
}

#[test]
fn who_waits_for_a_sync_hears_that_the_helper_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().capacity(64 << 10);
    let store = Store::open(dir.path().join("s"), options).unwrap();
    store.observe(Arc::new(|_| panic!("an observer must not")));
    store.append(&Envelope::publish("t"), b"x").unwrap();
    // Durable before the observers are told, or told of the end of the helper.
    let _ = store.sync();
    store.append(&Envelope::publish("t"), b"x").unwrap();
    assert!(matches!(store.sync(), Err(StoreError::SyncFailed(_))));
    assert!(store.request_sync().is_err());
}

#[test]
fn who_waits_for_a_sync_hears_of_an_evacuation() {
    let dir = tempfile::tempdir().unwrap();
    let store = without_helper(&SimDisk::new());
    let heard = Arc::new(Mutex::new(Vec::new()));
    let to = heard.clone();
    store.observe(Arc::new(move |signal| {
        to.lock().unwrap().push(signal);
        ControlFlow::Continue(())
    }));
    store.append(&Envelope::publish("t"), b"x").unwrap();
    let synced = while_a_sync_waits(&store, || {
        store.evacuate(dir.path().join("fresh"), Level::Os).unwrap();
    });
    assert!(matches!(synced, Err(StoreError::Closed)));
    assert_eq!(heard.lock().unwrap()[..], [Signal::SyncFailed]);
}
