use std::ops::ControlFlow;

use super::*;
use crate::api::Signal;
use crate::faults::calls::{Call, FailingCalls, fail_calls, watch_calls};
use crate::space::{Chore, Job};
use crate::state::index::make_spares;
use crate::testkit::{Cut, Fault, Rng, SimDisk};

use super::helper::Next;

/// With a helper that is too slow to do anything.
fn without_helper(disk: &SimDisk) -> Store {
    let options = Options::new().capacity(64 << 10);
    let opened = open::open_medium(Path::new("(simulated disk)"), disk.medium(), &options);
    let (log, report) = opened.unwrap();
    Store::new(log, report, &options, None, Upkeep::Thread, None)
}

/// Does something while another thread waits for a sync, because the device is at work for
/// somebody else.
fn while_a_sync_waits(store: &Store, work: impl FnOnce()) -> Result<Durable, StoreError> {
    let shared = &store.inner.shared;
    shared.lock().log.space.sync_beside_started();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| store.sync());
        // Whoever finds it wanted finds the lock free because the other one waits.
        while shared.lock().wanted == 0 {
            std::thread::yield_now();
        }
        work();
        waiting.join().unwrap()
    })
}

/// What the device was at work for is done.
fn free_the_device(store: &Store) {
    store.inner.shared.lock().log.space.sync_returned();
    store.inner.shared.progress.notify_all();
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
        std::thread::scope(|scope| {
            let raised = scope.spawn(|| store.raise_grant(7));
            while !waits(&store) {
                std::thread::yield_now();
            }
            // It is in line, and goes first.
            disk.fail(Fault::WriteAround(0));
            free_the_device(&store);
            assert!(raised.join().unwrap().is_err());
        });
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
    store.request_sync().unwrap();
    // The helper tells the observers.
    while store.inner.shared.lock().log.failed.is_none() {
        std::thread::yield_now();
    }
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
        std::thread::scope(|scope| {
            let evacuated = scope.spawn(|| store.evacuate(dir.path().join("fresh"), Level::Os));
            while !waits(&store) {
                std::thread::yield_now();
            }
            free_the_device(&store);
            evacuated.join().unwrap().unwrap();
        });
    });
    assert!(matches!(synced, Err(StoreError::Closed)));
    assert_eq!(heard.lock().unwrap()[..], [Signal::SyncFailed]);
}

/// What a helper does that began a sync and has not ended it.
fn begun(store: &Store) -> Job {
    let shared = &store.inner.shared;
    match shared.begin(&mut shared.lock()) {
        Ok(Next::Job(job)) => job,
        _ => panic!("there is nothing to do"),
    }
}

fn waits(store: &Store) -> bool {
    store.inner.shared.lock().in_line > 0
}

/// Each of several threads synced for itself, or woke the helper to do it.
#[test]
fn callers_that_wait_for_the_device_share_the_next_sync() {
    let store = without_helper(&SimDisk::new());
    let shared = &store.inner.shared;
    let first = store.append(&Envelope::publish("t"), b"x").unwrap();
    let ticket = shared.lock().log.begin_sync();
    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..4)
            .map(|_| scope.spawn(|| store.append_durable(&Envelope::publish("t"), b"y")))
            .collect();
        // What is written by now is covered by whatever begins later.
        while store.bounds().unsettled < 5 {
            std::thread::yield_now();
        }
        let mut core = shared.lock();
        assert!(core.log.durable.ordinal < first.ordinal);
        core.log.finish_sync(ticket, Ok(())).unwrap();
        shared.tell(core);
        for waited in waiting {
            let at = waited.join().unwrap().unwrap();
            assert!(store.durable().ordinal >= at.ordinal);
        }
    });
    assert_eq!(store.sync_times().len(), 1, "one sync for all four");
}

/// The lock is let go while the device works, and others append.
#[test]
fn a_sync_vouches_for_what_was_there_when_it_began_and_no_more() {
    let disk = SimDisk::new();
    let store = without_helper(&disk);
    let shared = &store.inner.shared;
    let first = store.append(&Envelope::publish("t"), b"first").unwrap();
    store.request_sync().unwrap();
    let job = begun(&store);
    let synced = job.make(&*shared.device);
    let second = store.append(&Envelope::publish("t"), b"second").unwrap();
    let mut core = shared.lock();
    shared.end(&mut core, job, synced).unwrap();
    shared.tell(core);
    let durable = store.durable();
    assert!(
        (first.ordinal..second.ordinal).contains(&durable.ordinal),
        "{durable:?}"
    );
    assert_eq!(durable.sequence, first.sequence);
}

/// Linux tells of a write-back that failed once per open file, whoever asks first: of two syncs
/// that overlap, the other one hears of success. A message was called durable whose only
/// write-back had failed.
#[test]
fn of_two_syncs_that_overlap_none_vouches_before_both_returned_well() {
    for (first_ends_first, fails) in [(true, true), (true, false), (false, true), (false, false)] {
        let store = without_helper(&SimDisk::new());
        let shared = &store.inner.shared;
        let at = store.append(&Envelope::publish("t"), b"x").unwrap();
        let one = shared.lock().log.begin_sync();
        let other = shared.lock().log.begin_sync();
        let (early, late) = match first_ends_first {
            true => (one, other),
            false => (other, one),
        };
        let mut core = shared.lock();
        core.log.finish_sync(early, Ok(())).unwrap();
        shared.tell(core);
        assert!(
            store.durable().ordinal < at.ordinal,
            "the other one may hear of the failure"
        );
        let result = match fails {
            true => Err(std::io::Error::from_raw_os_error(5)),
            false => Ok(()),
        };
        let mut core = shared.lock();
        assert_eq!(core.log.finish_sync(late, result).is_err(), fails);
        shared.tell(core);
        assert_eq!(store.durable().ordinal >= at.ordinal, !fails);
    }
}

/// A settlement that had to make room synced while the helper's sync was under way.
#[test]
fn who_needs_a_sync_for_room_waits_for_the_one_under_way() {
    for fails in [false, true] {
        let disk = SimDisk::new();
        let store = without_helper(&disk);
        let shared = &store.inner.shared;
        let mut refused = 0;
        // The log fills up, and nobody does its chores.
        let mut fill = || {
            if store.append(&Envelope::publish("t"), &[7; 100]).is_err() {
                refused += 1;
                store.reject(refused, "no", 1).unwrap();
                store.accept(refused).unwrap();
            }
        };
        while shared.lock().log.is_room_sure() {
            fill();
        }
        store.request_sync().unwrap();
        let job = begun(&store);
        let (synced, durable) = (disk.syncs(), store.durable());
        std::thread::scope(|scope| {
            let settling = scope.spawn(|| (0..20).for_each(|_| fill()));
            while !waits(&store) {
                std::thread::yield_now();
            }
            assert_eq!(
                disk.syncs(),
                synced,
                "nobody else may hear of what fails in it"
            );
            assert_eq!(store.durable(), durable);
            let result = match fails {
                true => Err(std::io::Error::from_raw_os_error(5)),
                false => job.make(&*shared.device),
            };
            let mut core = shared.lock();
            assert_eq!(shared.end(&mut core, job, result).is_err(), fails);
            shared.tell(core);
            settling.join().unwrap();
        });
        assert_eq!(store.durable() == durable, fails);
        assert_eq!(shared.lock().log.failed.is_some(), fails);
    }
}

/// A store in which every message is settled, one change more may have to free a segment for its
/// room, and the helper has done `steps` of its work. The first `accepted` were refused before.
fn short_of_room(disk: &SimDisk, accepted: u64, steps: u64) -> Store {
    let options = Options::new().capacity(68 << 10).segment_size(8 << 10);
    let store = disk.open(options.preallocate(true)).unwrap();
    while let Ok(at) = store.append(&Envelope::publish("t"), &[7; 100]) {
        if at.sequence <= accepted {
            store.reject(at.sequence, "no", 1).unwrap();
            store.accept(at.sequence).unwrap();
        }
        store.settle(&[at.sequence]).unwrap();
    }
    while store.inner.shared.lock().log.is_room_sure() {
        take_some_room(&store);
    }
    for _ in 0..steps {
        store.step().unwrap();
    }
    store
}

/// Refuses the newest message that never was.
fn take_some_room(store: &Store) {
    let is_new = |s: &u64| store.reject(*s, "a reason", 1).unwrap() != Rejected::Known;
    let refused = (3..=store.bounds().last).rev().find(is_new).unwrap();
    store.accept(refused).unwrap();
}

/// A late refusal that may have to sync for its room waits for the sync that is under way, and
/// what was done meanwhile for that room freed the segment of its message, which was read only
/// then: the refusal was kept, and waited without its message. One that was accepted long ago was
/// forgotten with its message, and waited once more.
#[test]
fn a_late_refusal_that_waits_for_a_sync_keeps_its_message() {
    for accepted in [0, 10] {
        let (mut asked, mut freed) = (0, 0);
        for steps in 0..40 {
            let disk = SimDisk::new();
            let store = short_of_room(&disk, accepted, steps);
            let shared = &store.inner.shared;
            shared.lock().takes_time = true;
            store.request_sync().unwrap();
            for _ in 0..20 {
                if !shared.lock().log.space.is_device_at_work() {
                    store.end_step().unwrap();
                    store.begin_step().unwrap();
                }
            }
            let mut message = StoredMessage::new();
            let waits = shared.has_to_wait(&shared.lock());
            if !waits || !store.get(1, &mut message).unwrap() {
                continue;
            }
            asked += 1;
            let refused = store.reject(1, "late", 1).unwrap();
            freed += u64::from(!store.get(2, &mut message).unwrap());
            if accepted > 0 {
                assert_eq!(refused, Rejected::Known, "after {steps} steps");
                continue;
            }
            assert!(matches!(refused, Rejected::Logged { late: true, .. }));
            assert!(store.get(1, &mut message).unwrap(), "after {steps} steps");
            drop(store);
            let store = disk.open(Options::new()).unwrap();
            assert_eq!(store.rejections(0, 9).len(), 1);
            assert!(store.get(1, &mut message).unwrap(), "after {steps} steps");
            assert_eq!(message.payload(), [7; 100]);
        }
        assert!(asked > 3, "{asked}");
        // One that is known needs no room.
        assert_eq!(freed > 0, accepted == 0, "{freed}");
    }
}

/// The segment was freed for that room, and then a sync failed: the message found no room any more.
/// The refusal did, and waited without it.
#[test]
fn a_late_refusal_that_a_failing_sync_leaves_without_room_keeps_its_message() {
    let (mut logged, mut held, mut freed) = (0, 0, 0);
    for (fails, filled) in (0..4).flat_map(|n| (0..60).map(move |filled| (n, filled))) {
        let disk = SimDisk::new();
        let store = short_of_room(&disk, 0, 0);
        (0..filled).for_each(|_| take_some_room(&store));
        let mut message = StoredMessage::new();
        if !store.get(1, &mut message).unwrap() {
            continue;
        }
        disk.fail(Fault::Sync(fails));
        let refused = store.reject(1, "late", 1).unwrap();
        freed += u64::from(!store.get(2, &mut message).unwrap());
        assert!(store.get(1, &mut message).unwrap(), "{refused:?}");
        assert_eq!(message.payload(), [7; 100]);
        assert_eq!(store.rejections(0, 9).len(), 1);
        drop(store);
        disk.clear_faults();
        let store = disk.open(Options::new()).unwrap();
        match refused {
            Rejected::Logged { late: true, .. } => {
                logged += 1;
                assert_eq!(store.rejections(0, 9).len(), 1);
                assert!(store.get(1, &mut message).unwrap(), "{fails} {filled}");
            }
            Rejected::Held { late: true } => {
                held += 1;
                assert_eq!(store.rejections(0, 9).len(), 0);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(
        logged > 0 && held > 0 && freed > 0,
        "{logged} {held} {freed}"
    );
}

/// A superblock is written with `O_DSYNC`, which asks the system the same question.
#[test]
fn a_superblock_write_and_a_sync_wait_for_each_other() {
    let disk = SimDisk::new();
    let store = without_helper(&disk);
    let shared = &store.inner.shared;
    let end = |job: Job| {
        let result = job.make(&*shared.device);
        let mut core = shared.lock();
        shared.end(&mut core, job, result).unwrap();
        shared.tell(core);
    };
    store.append(&Envelope::publish("t"), b"x").unwrap();
    store.request_sync().unwrap();
    let job = begun(&store);
    let before = disk.bytes();
    std::thread::scope(|scope| {
        let raising = scope.spawn(|| store.raise_grant(7));
        while !waits(&store) {
            std::thread::yield_now();
        }
        assert!(
            disk.bytes()[..8192] == before[..8192],
            "written beside a sync"
        );
        // Nor does the helper go before it, once it has its turn.
        end(job);
        raising.join().unwrap().unwrap();
    });
    assert_eq!(store.numbers().grant, 7);
    // The other order.
    let write = {
        let mut core = shared.lock();
        let mut superblock = core.log.superblock.clone();
        superblock.grant = 9;
        core.log.begin_write(superblock).unwrap()
    };
    store.append(&Envelope::publish("t"), b"x").unwrap();
    store.request_sync().unwrap();
    loop {
        let next = shared.begin(&mut shared.lock());
        match next.unwrap() {
            Next::Sleep(wait) => break assert_eq!(wait, None, "it is woken"),
            Next::Job(Job::Sync(_) | Job::Superblock(_)) => panic!("beside a superblock write"),
            Next::Job(job) => end(job),
            Next::Spares(n) => shared.lock().log.state.add_spares(make_spares(n)),
            Next::Done => {}
        }
    }
    let mut core = shared.lock();
    // As asleep as that leaves it.
    core.helper_sleeps = true;
    let result = write.make(&*shared.device);
    core.log.finish_write(write, result).unwrap();
    shared.after_change(core);
    assert!(!shared.lock().helper_sleeps, "its sync is due now");
    end(begun(&store));
    assert_eq!(store.durable().sequence, 2);
}

/// Starts were named one behind the other, and a grant that waited for its turn waited for all of them:
/// nothing was sent meanwhile. Whoever waits goes first, and takes along what is due.
#[test]
fn a_grant_goes_before_a_start_that_is_due_and_names_it_too() {
    let disk = SimDisk::new();
    let options = Options::new().capacity(68 << 10).segment_size(8 << 10);
    let options = options.preallocate(true);
    let store = disk.open(options.clone()).unwrap();
    let shared = &store.inner.shared;
    // The helper's next piece of work is to name a start.
    while shared.lock().log.chore() != Chore::Superblock {
        if !store.step().unwrap() {
            let at = store.append(&Envelope::publish("t"), &[7; 300]).unwrap();
            store.settle_through(at.sequence).unwrap();
        }
    }
    let before = {
        let mut core = shared.lock();
        core.in_line = 1;
        for _ in 0..3 {
            match shared.begin(&mut core).unwrap() {
                Next::Job(Job::Superblock(_)) => panic!("before somebody who waits"),
                Next::Job(_) | Next::Done | Next::Sleep(_) => {}
                Next::Spares(n) => core.log.state.add_spares(make_spares(n)),
            }
        }
        core.in_line = 0;
        core.log.superblock.clone()
    };
    store.raise_grant(7).unwrap();
    let after = shared.lock().log.superblock.clone();
    assert_eq!((after.grant, after.counter), (7, before.counter + 1));
    assert!(after.start > before.start, "{after:?}");
    let (start, unsettled) = (after.start, store.bounds().unsettled);
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let store = disk.open(options).unwrap();
    assert_eq!(store.bounds().unsettled, unsettled);
    assert!(store.inner.shared.lock().log.superblock.start >= start);
}

/// Small messages fill a store with what they are charged long before they fill a segment, and
/// only the next segment woke the helper: the store said that it was full at a seventh.
#[test]
fn growth_begins_before_a_message_finds_no_room() {
    let store = without_helper(&SimDisk::new());
    let shared = &store.inner.shared;
    let segment = shared.lock().log.space.current();
    shared.lock().helper_sleeps = true;
    let mut woken_at = None;
    let error = loop {
        if let Err(error) = store.append(&Envelope::publish("t"), &[7; 16]) {
            break error;
        }
        if !shared.lock().helper_sleeps {
            woken_at.get_or_insert(store.bounds().live_bytes);
        }
    };
    assert_eq!(shared.lock().log.space.current(), segment);
    let AppendError::MakingRoom { live, limit, .. } = error else {
        panic!("{error}");
    };
    let woken_at = woken_at.expect("the helper was woken");
    assert!(
        woken_at < live && live < limit / 2,
        "{woken_at}, {live} of {limit}"
    );
    loop {
        match begun(&store) {
            Job::Reserve(..) => break,
            Job::Prefault(from, len) => {
                let ended = shared.lock().log.end(Job::Prefault(from, len), Ok(()));
                ended.unwrap();
            }
            _ => panic!("the file grows first"),
        }
    }
}

/// Whether the file is there is looked at a little more often than growth is tried again: each look
/// put the next try off, and who waited for room had none when the disk had.
#[test]
fn growth_is_tried_again_however_often_the_file_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = Options::new().capacity(64 << 10);
    let (log, report) = open::open(&path, &options, Missing::Create).unwrap();
    let store = Store::new(log, report, &options, None, Upkeep::Thread, Some(path));
    let shared = &store.inner.shared;
    std::thread::scope(|scope| {
        let (tries, tried) = std::sync::mpsc::channel();
        let (looks, looked) = std::sync::mpsc::channel();
        scope.spawn(move || {
            fail_calls(Some(FailingCalls {
                call: Call::Allocate,
                after: 0,
                for_ever: true,
                errno: rustix::io::Errno::NOSPC.raw_os_error(),
            }));
            watch_calls(Some(Box::new(move |call| {
                // Nobody listens any more at the end.
                let _ = match call {
                    Call::Allocate => tries.send(()),
                    Call::Stat => looks.send(()),
                    _ => Ok(()),
                };
            })));
            shared.help();
            watch_calls(None);
            fail_calls(None);
        });
        let full = loop {
            match store.append(&Envelope::publish("t"), &[0; 1000]) {
                Ok(_) | Err(AppendError::MakingRoom { .. }) => {}
                Err(error) => break error,
            }
        };
        // From here on nobody asks for room: what was tried before is over with the next look.
        while looked.try_recv().is_ok() {}
        looked.recv().unwrap();
        while tried.try_recv().is_ok() {}
        for _ in 0..4 {
            looked.recv().unwrap();
        }
        let again = tried.try_recv();
        shared.lock().stop = true;
        shared.work.notify_all();
        assert!(matches!(full, AppendError::NoSpace { .. }), "{full}");
        let said = full.to_string();
        assert_eq!(said.matches("no space to").count(), 1, "{said}");
        assert!(again.is_ok(), "looks, and no try");
    });
}

/// A sync that ends when the file is gone vouches for nothing.
#[test]
fn nothing_becomes_durable_in_a_file_that_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let options = Options::new().capacity(64 << 10).level(Level::Disk);
    let store = Store::open_by_steps(&path, &options).unwrap();
    while store.step().unwrap() {}
    let appended = store.append(&Envelope::publish("t"), b"x").unwrap();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(store.place().unwrap(), Place::Gone);
    while store.step().unwrap() {}
    let core = store.inner.shared.lock();
    assert!(
        core.log.durable.ordinal >= appended.ordinal,
        "it was synced"
    );
    drop(core);
    assert!(store.durable().ordinal < appended.ordinal);
}
