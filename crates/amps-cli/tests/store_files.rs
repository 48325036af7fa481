//! The files of stores, as operators see them: who has one open, and what may be made of it.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use amps_store::{Envelope, Level, Options, PublishStore as _, Store};
use common::{Dir, NOBODY, Server, amps, numbered_lines, ran, run, run_with_input};

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

/// A publisher that meets a repair says so, and waits for it when told to.
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
    // Waits until it has slept this often with the store open: it asks for the lock repeatedly.
    let process = PathBuf::from(format!("/proc/{}", waiting.id()));
    let store = path.canonicalize().unwrap();
    let is_open = || {
        let mut open = fs::read_dir(process.join("fd")).unwrap();
        open.any(|fd| fd.is_ok_and(|fd| fs::read_link(fd.path()).is_ok_and(|at| at == store)))
    };
    let slept = || -> u64 {
        let threads = fs::read_dir(process.join("task")).unwrap();
        let status = threads.filter_map(|t| fs::read_to_string(t.ok()?.path().join("status")).ok());
        let of_thread = |status: String| {
            let line = status
                .lines()
                .find_map(|l| l.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |count| count.trim().parse::<u64>().unwrap())
        };
        status.map(of_thread).sum()
    };
    while !is_open() {
        std::thread::yield_now();
    }
    let before = slept();
    while slept() < before + 20 {
        std::thread::yield_now();
    }
    repair.unlock().unwrap();
    ran(waiting.wait_with_output().unwrap()).expect(5);
}

/// Inside a PID namespace the lock of a publisher outside is hidden, and its process id means
/// nothing. An open store was once described as "left by a process that died".
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
    // Nor is it repaired, although no list shows the lock.
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

/// Such files were once readable by everybody who may enter the directory.
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
    let mut serve = amps();
    serve.args([
        "serve",
        "--listen",
        "tcp://127.0.0.1:0/amps/json",
        "--journal",
    ]);
    let serve = serve.arg(dir.path("journal")).stdout(Stdio::piped());
    let mut serve = serve.spawn().unwrap();
    let mut listening = String::new();
    let mut said = BufReader::new(serve.stdout.take().unwrap());
    said.read_line(&mut listening).unwrap();
    serve.kill().unwrap();
    serve.wait().unwrap();
    for name in [
        "repaired",
        "page",
        "imported",
        "evacuated",
        "published",
        "journal/sandbox.journal",
    ] {
        let mode = fs::metadata(dir.path(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600, "{name}");
    }
    let mode = fs::metadata(&old).unwrap().permissions().mode();
    assert_eq!(mode & 0o7777, 0o666, "what exists keeps its own");
}

/// An empty file was once made into a store, with a report that everything was sent: a mistyped
/// name, or a file that had lost its contents, looked like success.
#[test]
fn an_empty_file_is_not_all_sent() {
    let dir = Dir::new();
    let path = dir.path("empty");
    for len in [0, 1 << 20] {
        File::create(&path).unwrap().set_len(len).unwrap();
        let mut list = amps();
        list.args(["failed", "list"]).arg(&path);
        for mut command in [drain(&path, "0s"), store(&["info"], &path), list] {
            run(&mut command)
                .expect(9)
                .says(&["is not a publish store", "empty"]);
        }
        let bytes = fs::read(&path).unwrap();
        assert!(bytes.len() as u64 == len && bytes.iter().all(|b| *b == 0));
    }
}

/// No server takes what is published.
const ALONE: [&str; 4] = ["--server", NOBODY, "--flush-timeout", "1s"];

/// A publisher whose input is written by the test, up to its end.
struct Fed {
    child: std::process::Child,
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl Fed {
    fn start(store: &Path, server: &[&str], more: &[&str]) -> Fed {
        let mut command = amps();
        command.args(["--json", "publish", "--topic", "t", "--announce", "--store"]);
        command.arg(store).args(server).args(more);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        Fed {
            input: child.stdin.take().unwrap(),
            output: BufReader::new(child.stdout.take().unwrap()),
            child,
        }
    }

    fn feed(&mut self, line: &str) {
        writeln!(self.input, "{line}").unwrap();
    }

    /// The next object of this kind.
    fn event(&mut self, kind: &str) -> serde_json::Value {
        loop {
            let mut line = String::new();
            assert!(self.output.read_line(&mut line).unwrap() > 0, "no {kind}");
            let object: serde_json::Value = serde_json::from_str(&line).unwrap();
            if object["event"] == kind {
                return object;
            }
        }
    }

    /// Ends the input; returns the report, what was said, and the exit code.
    fn end(mut self) -> (serde_json::Value, String, i32) {
        drop(self.input);
        let mut output = String::new();
        self.output.read_to_string(&mut output).unwrap();
        let report = serde_json::from_str(output.lines().last().unwrap()).unwrap();
        let mut said = String::new();
        self.child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        (report, said, self.child.wait().unwrap().code().unwrap())
    }
}

/// The report once said that messages stay in a store that nobody would ever find, and that they
/// could be drained from there.
#[test]
fn a_store_removed_while_it_is_open_is_told_and_can_be_evacuated() {
    use std::os::unix::fs::PermissionsExt as _;
    for evacuates in [false, true] {
        let dir = Dir::new();
        let (path, saved) = (dir.path("a.store"), dir.path("saved.store"));
        let saved_to = saved.to_str().unwrap();
        let more: &[&str] = match evacuates {
            false => &[],
            true => &["--evacuate-to", saved_to, "--mode", "640"],
        };
        let mut publisher = Fed::start(&path, &ALONE, more);
        publisher.feed("one");
        publisher.event("stored");
        fs::remove_file(&path).unwrap();
        assert_eq!(publisher.event("store_moved")["place"], "gone");
        publisher.feed("two");
        let (report, said, code) = publisher.end();
        assert_eq!(code, 5, "{said}");
        assert_eq!(
            (&report["published"], &report["left"]),
            (&1.into(), &1.into())
        );
        assert_eq!(
            (&report["store"], &report["unstored"]),
            (&"gone".into(), &1.into())
        );
        assert!(said.contains("was removed while it was open"), "{said}");
        assert!(
            !said.contains(&format!("--store {}", path.display())),
            "{said}"
        );
        match evacuates {
            false => {
                assert!(report["evacuated_to"].is_null() && !path.exists());
                assert!(said.contains("--evacuate-to"), "{said}");
            }
            true => {
                assert_eq!(report["evacuated_to"], saved_to);
                let mode = fs::metadata(&saved).unwrap().permissions().mode();
                assert_eq!(mode & 0o7777, 0o640);
                let info = run(&mut store(&["info"], &saved)).expect(0).report();
                assert_eq!(
                    (&info["unsettled"], &info["state"]),
                    (&1.into(), &"closed".into())
                );
            }
        }
    }
}

/// What a store that was given up could not do any more was told as a failure of it, and of the
/// connection, after everything had been saved.
#[test]
fn what_was_saved_elsewhere_is_told_as_no_failure() {
    let dir = Dir::new();
    let (path, saved) = (dir.path("a.store"), dir.path("saved.store"));
    let server = Server::start(None, &["--fault", "delay-acks:3600s"]);
    let to_server = ["--server", &server.uri, "--flush-timeout", "1s"];
    let more = ["--evacuate-to", saved.to_str().unwrap()];
    let mut publisher = Fed::start(&path, &to_server, &more);
    publisher.feed("one");
    publisher.event("stored");
    fs::remove_file(&path).unwrap();
    assert_eq!(publisher.event("store_moved")["place"], "gone");
    let (report, said, code) = publisher.end();
    assert_eq!(report["evacuated_to"], more[1], "{said}");
    assert_eq!((code, &report["left"]), (5, &1.into()), "{said}");
    for failure in ["no connection", "the store failed", "could not"] {
        assert!(!said.contains(failure), "{said}");
    }
    assert!(said.contains("are saved in the new store"), "{said}");
}

/// It was found out when the store was gone, and everything with it.
#[test]
fn a_place_where_nothing_can_be_saved_is_refused_before_anything_is_stored() {
    let dir = Dir::new();
    let (path, taken) = (dir.path("a.store"), dir.path("taken"));
    fs::write(&taken, "not a store").unwrap();
    std::os::unix::fs::symlink(dir.path("nowhere"), dir.path("dangling")).unwrap();
    for (to, why) in [
        (taken.clone(), "something is there already"),
        (dir.path("dangling"), "something is there already"),
        (dir.path(""), "something is there already"),
        (taken.join("s"), "Not a directory"),
        (dir.path("missing/s"), "there is no folder"),
    ] {
        let mut command = amps();
        command.args(["publish", "--topic", "t", "--sandbox", "--store"]);
        let ended = run(command.arg(&path).arg("--evacuate-to").arg(&to)).expect(2);
        assert!(ended.stderr.contains(why), "{to:?}: {}", ended.stderr);
        assert!(!path.exists(), "{to:?}");
    }
    assert_eq!(fs::read_to_string(&taken).unwrap(), "not a store");
}

/// Everything was sent, and the store with the place in the input is lost all the same.
#[test]
fn a_store_removed_before_the_report_is_told_whatever_is_left() {
    let dir = Dir::new();
    let path = dir.path("a.store");
    let mut publisher = Fed::start(&path, &["--sandbox"], &[]);
    publisher.feed("one");
    publisher.event("stored");
    fs::remove_file(&path).unwrap();
    let (report, said, code) = publisher.end();
    assert_eq!((code, &report["store"]), (5, &"gone".into()), "{said}");
    assert_eq!(
        (&report["persisted"], &report["left"]),
        (&1.into(), &0.into())
    );
}

/// What was accepted is still sent, for as long as a flush may take.
#[test]
fn what_a_removed_store_holds_is_still_sent() {
    let dir = Dir::new();
    let path = dir.path("a.store");
    let mut server = Server::start(None, &[]);
    server.kill();
    let to_server = ["--server", &server.uri.clone(), "--flush-timeout", "120s"];
    let mut publisher = Fed::start(&path, &to_server, &[]);
    publisher.feed("one");
    publisher.event("stored");
    fs::remove_file(&path).unwrap();
    assert_eq!(publisher.event("store_moved")["place"], "gone");
    publisher.feed("two");
    server.begin();
    let (report, said, code) = publisher.end();
    assert_eq!(code, 5, "{said}");
    assert_eq!(
        (&report["persisted"], &report["left"], &report["unstored"]),
        (&1.into(), &0.into(), &1.into()),
        "{said}"
    );
}

#[test]
fn a_store_renamed_while_it_is_open_goes_on_and_is_not_looked_for_at_its_old_place() {
    let dir = Dir::new();
    let (path, moved) = (dir.path("a.store"), dir.path("b.store"));
    let mut publisher = Fed::start(&path, &ALONE, &[]);
    publisher.feed("one");
    publisher.event("stored");
    fs::rename(&path, &moved).unwrap();
    assert_eq!(publisher.event("store_moved")["place"], "renamed");
    fs::write(&path, "another file").unwrap();
    assert_eq!(publisher.event("store_moved")["place"], "replaced");
    publisher.feed("two");
    publisher.event("stored");
    let (report, said, code) = publisher.end();
    assert_eq!(code, 5, "{said}");
    assert_eq!(
        (&report["left"], &report["store"]),
        (&2.into(), &"replaced".into())
    );
    assert!(
        !said.contains(&format!("--store {}", path.display())),
        "{said}"
    );
    assert_eq!(fs::read(&path).unwrap(), b"another file");
    let info = run(&mut store(&["info"], &moved)).expect(0).report();
    assert_eq!(info["unsettled"], 2);
}

/// A mode could once not be chosen, and a repair made by root could not be opened by the
/// publisher.
#[test]
fn a_mode_is_given_to_what_is_created_and_a_copy_is_never_more_open() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
    let dir = Dir::new();
    let created = dir.path("created");
    let mut publish = amps();
    publish.args([
        "publish", "--topic", "t", "--server", NOBODY, "--mode", "640",
    ]);
    publish.args(["--flush-timeout", "0s", "--store"]);
    run(publish.arg(&created).stdin(Stdio::null())).expect(0);
    let old = left_behind(&dir);
    fs::set_permissions(&old, fs::Permissions::from_mode(0o640)).unwrap();
    let lines = dir.path("lines");
    fs::write(&lines, run(&mut store(&["export"], &old)).expect(0).text()).unwrap();
    fs::set_permissions(&lines, fs::Permissions::from_mode(0o664)).unwrap();
    let root = rustix::process::geteuid().is_root();
    if root {
        std::os::unix::fs::chown(&old, Some(1234), Some(4321)).unwrap();
    }
    let at = |name: &str| dir.path(name);
    let mode = ["--mode", "664"];
    run(store(&["repair"], &old)
        .args(mode)
        .arg("--to")
        .arg(at("repaired")))
    .expect(0)
    .says(&["has mode 640, not 664"]);
    run(store(&["info", "--html"], &at("page")).arg(&old).args(mode)).expect(0);
    run(store(&["import", "--from"], &lines)
        .arg(at("imported"))
        .args(mode))
    .expect(0);
    let options = Options::new().mode(0o664);
    let opened = Store::open(&old, options).unwrap();
    opened.evacuate(at("evacuated"), Level::Os).unwrap();
    for (name, mode) in [
        ("created", 0o640),
        ("repaired", 0o640),
        ("page", 0o640),
        ("imported", 0o664),
        ("evacuated", 0o640),
    ] {
        let found = fs::metadata(at(name)).unwrap();
        assert_eq!(found.mode() & 0o7777, mode, "{name}");
        if root && ["repaired", "page", "evacuated"].contains(&name) {
            assert_eq!((found.uid(), found.gid()), (1234, 4321), "{name}");
        }
    }
    for wrong in ["800", "440", "1777", "rw-"] {
        let mut publish = amps();
        publish.args(["publish", "--topic", "t", "--mode", wrong, "--store"]);
        run(publish.arg(at("none")).stdin(Stdio::null())).expect(2);
    }
    assert!(!at("none").exists());
}

/// A store that was full once stayed full: `--capacity` was silently ignored.
#[test]
fn a_capacity_given_to_a_store_that_exists_raises_it_or_says_why_not() {
    let dir = Dir::new();
    let path = dir.path("a.store");
    let publish = |capacity: &str, lines: usize| {
        let mut command = amps();
        command.args(["--json", "publish", "--topic", "t", "--store"]);
        command.arg(&path).args(["--server", NOBODY]);
        command.args(["--flush-timeout", "200ms", "--capacity", capacity]);
        let ran = run_with_input(&mut command, &numbered_lines(lines as u64, 100)).expect(5);
        let told = ran.objects().into_iter().find(|o| o["event"] == "capacity");
        (ran.report()["lines"].as_u64().unwrap(), told, ran)
    };
    let capacity = || {
        let info = run(&mut store(&["info"], &path)).expect(0).report();
        info["capacity_bytes"].as_u64().unwrap()
    };
    let (taken, told, _) = publish("64KiB", 5000);
    assert!(taken < 1000 && told.is_none());
    let small = capacity();
    let (taken, told, ran) = publish("2MiB", 2000);
    ran.says(&["raised"]);
    assert_eq!((taken, &told.unwrap()["grown"]), (2000, &true.into()));
    let large = capacity();
    assert!(large > 30 * small && large <= 2 << 20);
    let (_, told, _) = publish("2MiB", 1);
    assert!(told.is_none(), "it has that");
    for (wanted, why) in [("1MiB", "does not shrink"), ("7TiB", "cannot be raised")] {
        let (taken, told, ran) = publish(wanted, 1);
        ran.says(&[why]);
        let told = told.unwrap();
        assert_eq!((taken, &told["grown"]), (1, &false.into()));
        assert_eq!(
            (told["capacity_bytes"].as_u64(), capacity()),
            (Some(large), large)
        );
    }
}
