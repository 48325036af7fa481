//! Every call the store makes to its device fails once, the first, the second, and so on to
//! the last: no panic, no hang, a typed error, and after a power cut a state that what was
//! done allows. On a simulated disk, which also forgets what was not synced; and on a real
//! file, system call by system call, where a failure may last as well.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

mod world;

use std::fmt::Debug;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use amps_store::inspect::Inspection;
use amps_store::testkit::{Call, Cut, FailingCalls, Fault, SimDisk, fail_calls};
use amps_store::{Level, OpenError, Options, Store};

use world::{Place, World};

/// Fails the n-th call of a kind for every n until none is left to fail; how many that were.
fn sweep(fault: fn(u64) -> Fault, level: Level, preallocate: bool) -> u64 {
    let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
    for n in 0.. {
        let disk = SimDisk::new();
        let mut world = World::new(Place::Simulated(disk.clone()), level, preallocate);
        disk.fail(fault(n));
        let cut = cuts[n as usize % cuts.len()];
        let met = watched(&mut world, &fault(n), |world| world.run_on(&disk, cut));
        if !met {
            assert_eq!(world.errors, [""; 0], "nothing failed");
            return n;
        }
    }
    unreachable!("a run makes finitely many calls")
}

/// Shows what the store said in a run that fails.
fn watched<T>(world: &mut World, failing: &dyn Debug, run: impl FnOnce(&mut World) -> T) -> T {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(world)));
    outcome.unwrap_or_else(|panic| {
        eprintln!("failing {failing:?}; it said {:?}", world.errors);
        resume_unwind(panic)
    })
}

#[test]
fn every_sync_fails_once() {
    // At level `Os` a store syncs what it is asked to, what stands for something else, and its ends.
    for (level, least) in [(Level::Os, 10), (Level::Disk, 20)] {
        for preallocate in [true, false] {
            let calls = sweep(Fault::Sync, level, preallocate);
            println!("{calls} syncs at {level:?}");
            assert!(calls > least, "{calls} syncs");
        }
    }
}

#[test]
fn every_write_around_the_mapping_fails_once() {
    for level in [Level::Os, Level::Disk] {
        for preallocate in [true, false] {
            let calls = sweep(Fault::WriteAround, level, preallocate);
            println!("{calls} writes at {level:?}");
            assert!(calls > 10, "{calls} writes");
        }
    }
}

#[test]
fn every_reservation_of_space_fails_once() {
    for level in [Level::Os, Level::Disk] {
        let calls = sweep(Fault::Reserve, level, false);
        println!("{calls} reservations at {level:?}");
        assert!(calls > 1, "{calls} reservations");
    }
}

#[test]
fn every_cut_of_the_file_fails_once() {
    for level in [Level::Os, Level::Disk] {
        let calls = sweep(Fault::Truncate, level, false);
        println!("{calls} cuts at {level:?}");
        assert!(calls > 1, "{calls} cuts");
    }
}

/// Error numbers of Linux.
const EIO: i32 = 5;
const ENOMEM: i32 = 12;
const EACCES: i32 = 13;
const EMFILE: i32 = 24;
const EFBIG: i32 = 27;
const ENOSPC: i32 = 28;
const ENOLCK: i32 = 37;
const EDQUOT: i32 = 122;

/// Where the files are: in memory if there is such a place, since no power is cut here and the
/// calls that succeed may as well be quick; `AMPS_FULL=1`: on the disk, for minutes.
fn directory() -> tempfile::TempDir {
    let on_disk = std::env::var_os("AMPS_FULL").is_some();
    let in_memory = (!on_disk).then(|| tempfile::tempdir_in("/dev/shm"));
    match in_memory {
        Some(Ok(dir)) => dir,
        _ => tempfile::tempdir().expect("a directory"),
    }
}

/// Fails the n-th system call of a kind on a real file, once and from then on for ever, with
/// each error it may have, for every n until none is left to fail: how many there are.
fn sweep_calls(call: Call, errors: &[i32]) -> u64 {
    let dir = directory();
    let mut fewest = u64::MAX;
    // Where a run makes many calls, they take turns with the errors: real syncs take long.
    let shifts = match call {
        Call::SyncRange | Call::WriteAround | Call::Fill => 1,
        _ => errors.len(),
    };
    for (level, preallocate) in [(Level::Os, false), (Level::Disk, true)] {
        for (shift, for_ever) in (0..shifts).flat_map(|s| [(s, false), (s, true)]) {
            for after in 0.. {
                let errno = errors[(after as usize + shift) % errors.len()];
                let path = dir.path().join(format!("{errno}-{for_ever}-{after}.store"));
                let mut world = World::new(Place::File(path.clone()), level, preallocate);
                let failing = FailingCalls {
                    call,
                    after,
                    for_ever,
                    errno,
                };
                fail_calls(Some(failing));
                let failed = watched(&mut world, &failing, |world| world.run_on_file(&path));
                std::fs::remove_file(&path).expect("it is there");
                if failed == 0 {
                    assert_eq!(world.errors, [""; 0], "nothing failed");
                    fewest = fewest.min(after);
                    break;
                }
                assert!(for_ever || failed == 1, "{failed} calls failed");
                // Room that is made ahead of need is tried for again.
                let ahead = [Call::Allocate, Call::Fill, Call::Truncate].contains(&call);
                assert!(ahead || !world.errors.is_empty(), "{failing:?} told nobody");
            }
        }
    }
    println!("{fewest} or more {call:?} calls");
    fewest
}

#[test]
fn every_system_call_before_the_mapping_fails_once_and_for_ever() {
    assert!(sweep_calls(Call::Open, &[EACCES, EMFILE, ENOSPC, EIO]) >= 2);
    assert!(sweep_calls(Call::Stat, &[EIO]) >= 6);
    assert!(sweep_calls(Call::Lock, &[ENOLCK, EIO]) >= 2);
    assert!(sweep_calls(Call::Read, &[EIO]) >= 2);
    assert!(sweep_calls(Call::Map, &[ENOMEM]) >= 3);
    assert!(sweep_calls(Call::SyncDirectory, &[EIO, ENOSPC]) >= 1);
}

/// The directory is synced before the first superblock, so that what is found as a store has
/// a name that is durable: when that failed, the next run took the store, and called durable
/// what a power cut would have taken with its name.
#[test]
fn a_store_whose_name_cannot_be_made_durable_is_not_created() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s.store");
    let open = || Store::open(&path, Options::new().capacity(64 << 10));
    fail_calls(Some(FailingCalls {
        call: Call::SyncDirectory,
        after: 0,
        for_ever: false,
        errno: EIO,
    }));
    let refused = open().err();
    assert_eq!(fail_calls(None), 1);
    assert!(matches!(refused, Some(OpenError::Io { .. })), "{refused:?}");
    let looked = Inspection::open(&path).err();
    assert!(
        matches!(looked, Some(OpenError::Missing { .. })),
        "{looked:?}"
    );
    let store = open().expect("creates it now");
    assert!(store.report().created && store.bounds().next == 1);
}

#[test]
fn every_system_call_for_room_fails_once_and_for_ever() {
    assert!(sweep_calls(Call::Allocate, &[ENOSPC, EDQUOT, EFBIG, EIO]) >= 1);
    assert!(sweep_calls(Call::Truncate, &[EIO]) >= 1);
    assert!(sweep_calls(Call::Fill, &[ENOSPC, EDQUOT, EIO]) >= 16);
}

#[test]
fn every_msync_fails_once_and_for_ever() {
    assert!(sweep_calls(Call::SyncRange, &[EIO, ENOMEM, ENOSPC, EDQUOT]) > 20);
}

#[test]
fn every_fdatasync_fails_once_and_for_ever() {
    // A file is synced as a whole when it is created.
    assert!(sweep_calls(Call::SyncData, &[EIO, ENOSPC, EDQUOT]) >= 1);
}

#[test]
fn every_pwritev2_fails_once_and_for_ever() {
    assert!(sweep_calls(Call::WriteAround, &[EIO, ENOSPC, EDQUOT]) > 10);
}
