//! The files of stores, as an operator meets them: who has one, and what may be made of it.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use amps_store::{Envelope, Level, Options, PublishStore as _, Store};
use common::{Dir, NOBODY, amps, ran, run};

/// A store whose owner died with one message in it.
fn left_behind(dir: &Dir) -> PathBuf {
    let path = dir.path("old.store");
    let store = Store::open(&path, Options::new().capacity(64 << 10)).unwrap();
    store.append(&Envelope::publish("t"), b"one").unwrap();
    path
}

fn store(arguments: &[&str], file: &Path) -> Command {
    let mut command = amps();
    command.args(["--json", "store"]).args(arguments).arg(file);
    command
}

fn drain(file: &Path, lock_timeout: &str) -> Command {
    let mut command = amps();
    command.args(["drain", "--server", NOBODY, "--flush-timeout", "100ms"]);
    command.args(["--lock-timeout", lock_timeout, "--store"]);
    command.arg(file);
    command
}

#[test]
fn an_evacuated_store_is_called_so_and_repaired_only_when_told() {
    let dir = Dir::new();
    let (old, new) = (left_behind(&dir), dir.path("new.store"));
    let opened = Store::open(&old, Options::new()).unwrap();
    opened.evacuate(dir.path("other"), Level::Os).unwrap();
    let info = run(&mut store(&["info"], &old)).expect(0).report();
    assert_eq!(info["state"], "evacuated");
    let verified = run(&mut store(&["verify"], &old)).expect(1).report();
    assert_eq!(
        (&verified["state"], &verified["ok"]),
        (&"evacuated".into(), &false.into())
    );
    let repair = |more: &[&str]| {
        let mut command = store(&["repair"], &old);
        command.arg("--to").arg(&new).args(more);
        run(&mut command)
    };
    repair(&[])
        .expect(1)
        .says(&["was evacuated", "--evacuated"]);
    assert!(!new.exists());
    let report = repair(&["--evacuated"]).expect(0).report();
    assert_eq!(report["saved"], 1);
}

#[test]
fn a_file_that_was_cut_to_its_superblocks_is_not_repaired() {
    let dir = Dir::new();
    let (old, new) = (left_behind(&dir), dir.path("new.store"));
    OpenOptions::new()
        .write(true)
        .open(&old)
        .unwrap()
        .set_len(8192)
        .unwrap();
    let mut command = store(&["repair"], &old);
    command.arg("--to").arg(&new);
    run(&mut command)
        .expect(3)
        .says(&["nothing of the store", "old.store"]);
    assert!(!new.exists());
}

#[test]
fn a_capacity_below_the_least_is_a_usage_error() {
    let dir = Dir::new();
    let path = dir.path("s.store");
    let mut command = amps();
    command.args([
        "publish",
        "--topic",
        "t",
        "--server",
        NOBODY,
        "--capacity",
        "63KiB",
    ]);
    run(command.arg("--store").arg(&path))
        .expect(2)
        .says(&["64512", "65536"]);
    assert!(!path.exists());
}

/// A publisher that meets a repair says so, and waits for it when told.
#[test]
fn a_store_that_is_being_repaired_is_waited_for_when_told() {
    let dir = Dir::new();
    let path = left_behind(&dir);
    let repair = File::open(&path).unwrap();
    repair.try_lock_shared().unwrap();
    run(&mut drain(&path, "0s"))
        .expect(4)
        .says(&["or a repair is reading it", "--lock-timeout"]);
    let mut waiting = drain(&path, "100000s");
    let waiting = waiting
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Until it has the store open, and so was refused the lock at least once.
    let open = PathBuf::from(format!("/proc/{}/fd", waiting.id()));
    while !fs::read_dir(&open)
        .unwrap()
        .filter_map(|fd| fs::read_link(fd.ok()?.path()).ok())
        .any(|file| file == path.canonicalize().unwrap())
    {
        std::thread::yield_now();
    }
    repair.unlock().unwrap();
    ran(waiting.wait_with_output().unwrap()).expect(5);
}

/// From within a PID namespace the lock of a publisher outside is hidden, and its process id says
/// nothing: "left by a process that died" was said of a store that was open.
#[test]
fn within_a_pid_namespace_a_store_that_is_open_is_not_called_crashed() {
    let unshare = |program: &[&str]| {
        let mut command = Command::new("unshare");
        command.args([
            "--user",
            "--map-root-user",
            "--pid",
            "--fork",
            "--mount-proc",
        ]);
        command.args(program);
        command
    };
    if !unshare(&["true"])
        .output()
        .is_ok_and(|o| o.status.success())
    {
        println!("skipped: this system lets no process begin a PID namespace");
        return;
    }
    let dir = Dir::new();
    let path = left_behind(&dir);
    let owner = Store::open(&path, Options::new()).unwrap();
    let mut command = unshare(&[env!("CARGO_BIN_EXE_amps"), "--json", "store", "info"]);
    let info = run(command.arg(&path)).expect(0).report();
    assert_eq!(info["state"], "unknown");
    // Nor is it repaired, though no list shows the lock.
    let new = dir.path("new.store");
    let mut command = unshare(&[env!("CARGO_BIN_EXE_amps"), "store", "repair"]);
    run(command.arg(&path).arg("--to").arg(&new))
        .expect(4)
        .says(&["in use"]);
    assert!(!new.exists());
    owner.close(0).unwrap();
    let mut command = unshare(&[env!("CARGO_BIN_EXE_amps"), "--json", "store", "info"]);
    let info = run(command.arg(&path)).expect(0).report();
    assert_eq!(info["state"], "closed");
}

/// They were readable by everybody who may enter the directory.
#[test]
fn what_is_created_is_for_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = Dir::new();
    let old = left_behind(&dir);
    // A source that is more open than that does not make its copies so.
    fs::set_permissions(&old, fs::Permissions::from_mode(0o666)).unwrap();
    let lines = dir.path("lines");
    run(store(&["repair"], &old)
        .arg("--to")
        .arg(dir.path("repaired")))
    .expect(0);
    run(store(&["info", "--html"], &dir.path("page")).arg(&old)).expect(0);
    fs::write(&lines, run(&mut store(&["export"], &old)).expect(0).text()).unwrap();
    run(store(&["import", "--from"], &lines).arg(dir.path("imported"))).expect(0);
    let opened = Store::open(&old, Options::new()).unwrap();
    opened.evacuate(dir.path("evacuated"), Level::Os).unwrap();
    let mut publish = amps();
    publish.args(["publish", "--topic", "t", "--server", NOBODY]);
    publish.args(["--flush-timeout", "0s", "--store"]);
    run(publish.arg(dir.path("published")).stdin(Stdio::null())).expect(0);
    for name in ["repaired", "page", "imported", "evacuated", "published"] {
        let mode = fs::metadata(dir.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    let mode = fs::metadata(&old).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o666, "what exists keeps its own");
}

/// It was made a store of, with a report that all was sent: a name mistyped, or a file that lost
/// its contents, looked like success.
#[test]
fn an_empty_file_is_not_all_sent() {
    let dir = Dir::new();
    let path = dir.path("empty");
    for len in [0, 1 << 20] {
        File::create(&path).unwrap().set_len(len).unwrap();
        run(&mut drain(&path, "0s"))
            .expect(1)
            .says(&["there is no store at", "empty"]);
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() as u64 == len && bytes.iter().all(|b| *b == 0));
    }
}
