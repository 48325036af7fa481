//! A real file runs into limits, missing permissions and missing parts.
//!
//! Apart from the sweep, because these tests start processes: a process that is just being
//! started holds every lock of its parent, and the sweep opens again what it has just closed.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

#[path = "sweep/world.rs"]
#[allow(dead_code, reason = "the sweep uses the rest")]
mod world;

use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use amps_store::inspect::Inspection;
use amps_store::testkit::{Call, FailingCalls, Rng, fail_calls};
use amps_store::{AppendError, Envelope, OpenError, Options, PublishStore, Recovery, Store};

use world::{State, observe, payload};

/// Set in a child process: where its store is.
const CHILD: &str = "AMPS_SWEEP_CHILD";

fn real_options() -> Options {
    Options::new().capacity(1 << 20).client_name("sweep")
}

/// Not a test by itself: what a process under a limit does. It prints what it stored.
#[test]
#[ignore = "started by the tests that set its limits"]
fn child_under_a_limit() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = match Store::open(&path, real_options()) {
        Ok(store) => store,
        Err(error @ OpenError::NoSpace { .. }) => {
            println!("\nno store: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let mut full = 0;
    let mut stored = 0;
    while full < 3 {
        let next = store.bounds().next;
        let deadline = Instant::now() + Duration::from_millis(300);
        match store.append_wait(&Envelope::publish("t"), &payload(next), deadline) {
            Ok(at) => stored = at.sequence,
            Err(
                AppendError::NoSpace { .. }
                | AppendError::Full { .. }
                | AppendError::MakingRoom { .. },
            ) => {
                full += 1;
                // The store is usable: what is settled makes room.
                store.settle_through(stored / 2).expect("settles");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("\nstored {stored}");
    println!("settled {}", store.bounds().floor);
}

#[test]
fn a_file_size_limit_at_creation_is_an_error_and_no_signal() {
    // The last one is beyond the capacity.
    assert_eq!(
        under_limits(&[0, 1, 7, 8, 15, 16, 17, 100, 300, 400, 4096]),
        (10, 1)
    );
}

#[test]
fn a_file_size_limit_while_growing_is_an_error_and_no_signal() {
    assert_eq!(under_limits(&[528, 550, 600, 700, 1024, 1500]), (0, 6));
}

/// Runs a child under each limit, in blocks of 512 bytes. Returns how many could not create a
/// store, and how many stored what they said.
fn under_limits(limits: &[u64]) -> (u32, u32) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut refused, mut stored) = (0, 0);
    for blocks in limits {
        let path = dir.path().join(format!("{blocks}.store"));
        let child = Command::new("sh")
            .arg("-c")
            // The signal is ignored, as the amps command ignores it, so that the write fails with
            // EFBIG.
            .arg(format!(
                "trap '' XFSZ; ulimit -f {blocks}; \"$0\" \"$@\" 2>&1 | cat"
            ))
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_under_a_limit", "--ignored", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .expect("sh starts");
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            said.contains("test result: ok. 1 passed"),
            "{blocks} blocks: {said}"
        );
        let number = |word: &str| -> Option<u64> {
            said.lines()
                .find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
        };
        let Some(last) = number("stored ") else {
            assert!(said.contains("no store: "), "{said}");
            refused += 1;
            // What is left of the attempt must not get in the way.
            drop(Store::open(&path, real_options()).expect("space is back"));
            continue;
        };
        stored += 1;
        let length = std::fs::metadata(&path).expect("it is there").len();
        assert!(length <= blocks * 512, "{length} bytes in {blocks} blocks");
        let store = Store::open(&path, real_options()).expect("opens without the limit");
        let floor = number("settled ").expect("it says so");
        let expected: Vec<u64> = (floor + 1..=last).collect();
        let found = observe(&store);
        assert_eq!(
            found.unsettled.keys().copied().collect::<Vec<_>>(),
            expected
        );
    }
    (refused, stored)
}

/// Set in a child process: an empty file system of its own, of a few MiB.
const MOUNT: &str = "AMPS_SWEEP_MOUNT";

/// Not a test by itself: what a process does that can fill the file system it is on.
#[test]
#[ignore = "started by the tests that set its limits"]
fn child_on_a_full_file_system() {
    let Ok(mount) = std::env::var(MOUNT) else {
        return;
    };
    let mount = Path::new(&mount);
    let ahead =
        Store::open(mount.join("ahead.store"), real_options().preallocate(true)).expect("creates");
    let grows = Store::open(mount.join("grows.store"), real_options()).expect("creates");
    let filling = mount.join("filling");
    let fill = || {
        let mut file = std::fs::File::create(&filling).expect("a file");
        loop {
            if let Err(error) = file.write_all(&[1; 512]) {
                assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
                return;
            }
        }
    };
    fill();

    // Every block is there: nothing in its life needs another one.
    let soon = || Instant::now() + Duration::from_secs(60);
    for n in 1..=20_000u64 {
        let at = ahead
            .append_wait(&Envelope::publish("t"), &payload(n), soon())
            .expect("its blocks are its own");
        assert_eq!(at.sequence, n);
        if n % 97 == 0 {
            ahead.reject(n, "no", 1).expect("is logged");
            ahead.accept(n).expect("is logged");
        }
        ahead
            .settle_through(n.saturating_sub(500))
            .expect("settles");
    }
    ahead.sync().expect("syncs");
    let kept = observe(&ahead);
    drop(ahead);
    let ahead = Store::open(mount.join("ahead.store"), real_options()).expect("opens");
    assert_eq!(observe(&ahead), kept);

    // This one reports that it cannot grow, loses nothing, and grows once there is room.
    let mut last = 0;
    let error = loop {
        let next = grows.bounds().next;
        let deadline = Instant::now() + Duration::from_millis(300);
        match grows.append_wait(&Envelope::publish("t"), &payload(next), deadline) {
            Ok(at) => last = at.sequence,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, AppendError::NoSpace { .. }), "{error:?}");
    assert_eq!(observe(&grows).unsettled.len() as u64, last);
    let fresh = Store::open(mount.join("fresh.store"), real_options()).map(drop);
    assert!(matches!(fresh, Err(OpenError::NoSpace { .. })), "{fresh:?}");
    std::fs::remove_file(&filling).expect("removed");
    for _ in 0..last {
        let next = grows.bounds().next;
        grows
            .append_wait(&Envelope::publish("t"), &payload(next), soon())
            .expect("there is room again");
    }
    assert_eq!(observe(&grows).unsettled.len() as u64, 2 * last);
    println!("\nthe file system was full");
}

/// The file system is one in memory, in a mount namespace of its own. Where such namespaces
/// cannot be made, this says so and proves nothing.
#[test]
fn a_full_file_system_stops_no_store_that_has_its_blocks() {
    let dir = tempfile::tempdir().expect("a directory");
    let mounted = Command::new("unshare")
        .args(["-rm", "sh", "-c"])
        .arg("mount -t tmpfs -o size=3m amps \"$AMPS_SWEEP_MOUNT\" && echo mounted && exec \"$0\" \"$@\"")
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "child_on_a_full_file_system", "--ignored", "--nocapture"])
        .env(MOUNT, dir.path())
        .output();
    let (said, errors) = match &mounted {
        Ok(child) => (
            String::from_utf8_lossy(&child.stdout),
            String::from_utf8_lossy(&child.stderr),
        ),
        Err(error) => ("".into(), error.to_string().into()),
    };
    if !said.contains("mounted") {
        println!("skipped: no file system can be mounted here: {errors}");
        return;
    }
    assert!(said.contains("the file system was full"), "{said}{errors}");
}

/// A closed store with unsettled messages in several segments.
fn closed(path: &Path) -> State {
    let store = Store::open(path, real_options().preallocate(true)).expect("creates");
    let deadline = Instant::now() + Duration::from_secs(60);
    for sequence in 1..=900 {
        let at = store
            .append_wait(&Envelope::publish("t"), &payload(sequence), deadline)
            .expect("room");
        assert_eq!(at.sequence, sequence);
    }
    store.settle_through(10).expect("settles");
    store.sync().expect("syncs");
    let state = observe(&store);
    store.close(900).expect("closes");
    state
}

#[test]
fn a_truncated_file_is_refused_or_salvaged_and_never_a_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let original = dir.path().join("whole.store");
    let before = closed(&original);
    let bytes = std::fs::read(&original).expect("it is there");
    let segment = Inspection::open(&original)
        .expect("looks")
        .info()
        .segment_size as usize;
    let mut rng = Rng::new(11);
    let mut lengths: Vec<usize> = vec![0, 1, 511, 512, 4095, 4096, 4097, 8191];
    for border in (12288..=bytes.len()).step_by(segment) {
        lengths.extend([border - 1, border, border + 1, border + 64]);
    }
    lengths.extend((0..150).map(|_| rng.below(bytes.len() as u64) as usize));
    lengths.retain(|len| *len < bytes.len());
    let path = dir.path().join("cut.store");
    let (mut harmless, mut refused, mut salvaged) = (0, 0, 0);
    for len in lengths {
        std::fs::write(&path, &bytes[..len]).expect("writes");
        let seen = Inspection::open(&path);
        match Store::open(&path, real_options()) {
            Ok(store) if store.report().created => {
                assert_eq!(len, 0, "{len} bytes were taken for no store");
            }
            Ok(store) => {
                assert_eq!(observe(&store), before, "cut to {len} bytes in silence");
                harmless += 1;
            }
            Err(
                OpenError::Damaged { .. } | OpenError::Broken { .. } | OpenError::NotAStore { .. },
            ) => {
                let after = std::fs::read(&path).expect("it is there");
                assert!(after == bytes[..len], "a refusal changed the file");
                let sound = seen.ok().map(|s| s.verify().expect("reads").is_sound());
                assert_ne!(sound, Some(true), "verify calls {len} bytes sound");
                refused += 1;
            }
            Err(error) => panic!("{len} bytes: {error:?}"),
        }
        std::fs::write(&path, &bytes[..len]).expect("writes");
        if let Ok(store) = Store::open(&path, real_options().recovery(Recovery::Salvage)) {
            // A message whose settlement was lost with the rest may come back, as it was.
            let found = observe(&store);
            salvaged += u64::from(!found.unsettled.is_empty());
            assert!(
                found
                    .unsettled
                    .iter()
                    .all(|(s, origin)| s == origin && *s <= 900)
            );
            assert!(found.rejected.is_empty(), "{len}: nothing was refused");
        }
    }
    println!("{harmless} harmless, {refused} refused, {salvaged} salvaged with something in them");
    assert!(
        refused > 100 && salvaged > 50,
        "{refused} refused, {salvaged} salvaged"
    );
}

#[test]
fn a_hole_punched_into_the_log_is_damage() {
    use rustix::fs::FallocateFlags;
    let dir = tempfile::tempdir().expect("a directory");
    let original = dir.path().join("whole.store");
    let before = closed(&original);
    let bytes = std::fs::read(&original).expect("it is there");
    let path = dir.path().join("punched.store");
    let (mut refused, mut harmless) = (0, 0);
    // The superblocks, and every page of the log behind them.
    for page in (0..bytes.len() as u64).step_by(4096) {
        std::fs::write(&path, &bytes).expect("writes");
        let file = std::fs::OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("it is there");
        let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        if let Err(error) = rustix::fs::fallocate(&file, punch, page, 4096) {
            println!("skipped: this file system punches no holes: {error}");
            return;
        }
        match Store::open(&path, real_options()) {
            Ok(store) => {
                assert_eq!(observe(&store), before, "page at {page} is gone in silence");
                harmless += 1;
            }
            Err(OpenError::Damaged { ranges, .. }) => {
                assert!(!ranges.is_empty());
                refused += 1;
            }
            Err(error) => panic!("page at {page}: {error:?}"),
        }
    }
    assert!(
        refused > 50 && harmless > 2,
        "{refused} refused, {harmless} harmless"
    );
}

/// Whoever may not write is told so, with the path, and can still look. For `root`, whom no mode
/// stops, the error must have the same words.
#[test]
fn what_may_not_be_written_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s.store");
    closed(&path);
    let missing = dir.path().join("new.store");
    for path in [&path, &missing] {
        fail_calls(Some(FailingCalls {
            call: Call::Open,
            after: 0,
            for_ever: true,
            errno: libc::EACCES,
        }));
        let error = Store::open(path, real_options()).map(drop);
        assert!(fail_calls(None) > 0);
        let error = error.expect_err("refused");
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
        let text = error.to_string();
        let name = path.to_str().expect("UTF-8");
        assert!(text.contains(name) && text.contains("denied"), "{text}");
    }
    assert!(!missing.exists());
    let read_only = std::fs::Permissions::from_mode(0o444);
    std::fs::set_permissions(&path, read_only).expect("ours");
    let looked = Inspection::open(&path).map(|seen| seen.info().unsettled);
    assert_eq!(looked.expect("reading needs no more"), 890);
    for no_file in [dir.path(), Path::new("/dev/full")] {
        assert!(matches!(
            Store::open(no_file, real_options()),
            Err(OpenError::NotAStore { .. } | OpenError::Io { .. })
        ));
    }
}
