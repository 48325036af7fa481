//! What a signal ends, and what is left behind.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Dir, NOBODY, Running, Server, amps, listens, numbered_lines, run, run_with_input};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

fn publish(server: &str) -> Command {
    let mut command = amps();
    command.args(["publish", "--json", "--announce", "--topic", "t"]);
    command.args(["--server", server]);
    command
}

fn stored(running: &mut Running, line: u64) {
    running.hear("stored", |object| object["line"] == line);
}

#[track_caller]
fn info(store: &Path) -> Value {
    run(amps().args(["--json", "store", "info"]).arg(store)).report()
}

fn fifo(dir: &Dir) -> std::path::PathBuf {
    let path = dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    path
}

#[test]
fn a_signal_is_the_end_of_the_input_and_not_of_the_work() {
    for (signal, name) in [
        (Signal::TERM, "SIGTERM"),
        (Signal::INT, "SIGINT"),
        (Signal::HUP, "SIGHUP"),
    ] {
        let dir = Dir::new();
        let server = Server::start(None, &[]);
        let store = dir.path("s.store");
        let mut run = Running::start(publish(&server.uri).arg("--store").arg(&store));
        run.write(&numbered_lines(50, 20));
        stored(&mut run, 50);
        run.signal(signal);
        let (code, report) = run.end();
        assert_eq!(code, Some(0), "{report}");
        for (field, value) in [("published", 50), ("persisted", 50), ("left", 0)] {
            assert_eq!(report[field], value, "{field}");
        }
        assert_eq!(report["stopped"], true);
        assert_eq!(report["signal"], name);
        assert_eq!(report["next_line"], 51);
        assert_eq!(info(&store)["state"], "closed");
        assert_eq!(info(&store)["unsettled"], 0);
    }
}

#[test]
fn what_was_read_from_a_pipe_is_stored_without_pace_and_half_a_line_is_not() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    let mut command = publish(&server.uri);
    // At this pace the last of them would take minutes.
    command.args(["--rate", "1", "--store"]).arg(&store);
    let mut run = Running::start(&mut command);
    // Few enough that a pipe takes and returns them as a whole: whoever has heard of the first
    // line knows that all of them were read.
    run.write(&[numbered_lines(150, 20), b"half".to_vec()].concat()[..]);
    stored(&mut run, 1);
    run.signal(Signal::TERM);
    let (code, report) = run.end();
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["published"], 150);
    assert_eq!(report["persisted"], 150);
    assert_eq!(report["unfinished"], 4);
    assert_eq!(report["unstored"], 0);
}

#[test]
fn a_file_that_was_not_read_to_its_end_is_no_success_and_is_gone_on_with() {
    let dir = Dir::new();
    let server = Server::start(Some(&dir.path("journal")), &[]);
    let (store, input) = (dir.path("s.store"), dir.file("in", numbered_lines(300, 20)));
    let mut command = publish(&server.uri);
    command.arg("--resume").arg("--file").arg(&input);
    command.arg("--store").arg(&store);
    let mut first = Running::start(command.args(["--rate", "10"]));
    stored(&mut first, 3);
    first.signal(Signal::TERM);
    let (code, report) = first.end();
    assert_eq!(code, Some(1), "{report}");
    let published = report["published"].as_u64().unwrap();
    assert!((3..300).contains(&published), "{report}");
    assert_eq!(report["next_line"], published + 1);
    assert_eq!(
        (&report["left"], &report["stopped"]),
        (&0.into(), &true.into())
    );
    assert_eq!(info(&store)["state"], "closed");

    let mut command = publish(&server.uri);
    command.arg("--resume").arg("--file").arg(&input);
    let rest = run(command.arg("--store").arg(&store)).expect(0).report();
    assert_eq!(rest["published"], 300 - published);
    assert_eq!(rest["next_line"], 301);
}

/// A process whose standard output and standard error are read.
struct Heard {
    child: std::process::Child,
    stdout: BufReader<std::process::ChildStdout>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Heard {
    fn start(command: &mut Command) -> Self {
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let stderr = BufReader::new(child.stderr.take().unwrap());
        Heard {
            child,
            stdout,
            stderr,
        }
    }

    #[track_caller]
    fn stored(&mut self, number: u64) {
        let mut line = String::new();
        while !line.contains(&format!("\"line\":{number}")) {
            line.clear();
            let read = self.stdout.read_line(&mut line).unwrap();
            assert!(read > 0, "line {number} was not stored");
        }
    }

    #[track_caller]
    fn says(&mut self, word: &str) -> String {
        let mut line = String::new();
        while !line.contains(word) {
            line.clear();
            assert!(self.stderr.read_line(&mut line).unwrap() > 0, "no {word:?}");
        }
        line
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn end(mut self) -> (Option<i32>, String) {
        let mut out = String::new();
        self.stdout.read_to_string(&mut out).unwrap();
        (self.child.wait().unwrap().code(), out)
    }
}

#[test]
fn the_second_signal_ends_the_wait_for_a_dead_server() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut command = publish(NOBODY);
    command.args(["--flush-timeout", "9223372036854775807s", "--store"]);
    let mut run = Heard::start(command.arg(&store).stdin(Stdio::piped()));
    let mut stdin = run.child.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n").unwrap();
    run.stored(2);
    run.says("no connection");
    run.signal(Signal::TERM);
    run.says("no more is read");
    run.signal(Signal::INT);
    run.says("a second signal ended the wait");
    let (code, out) = run.end();
    assert_eq!(code, Some(5), "{out}");
    let report: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!(report["signal"], "SIGTERM");
    assert_eq!(report["published"], 2);
    assert_eq!(report["left"], 2);
    assert_eq!(info(&store)["unsettled"], 2);
    assert_eq!(info(&store)["state"], "closed");

    let mut drain = amps();
    drain
        .args(["drain", "--server", NOBODY, "--store"])
        .arg(&store);
    let mut run = Heard::start(drain.args(["--flush-timeout", "1h"]));
    run.says("no connection");
    run.signal(Signal::HUP);
    run.says("no more is read");
    run.signal(Signal::HUP);
    assert_eq!(run.end().0, Some(5));
    assert_eq!(info(&store)["state"], "closed");
}

#[test]
fn without_a_store_it_is_said_what_a_signal_would_lose() {
    let mut run = Heard::start(
        publish(NOBODY)
            .stdin(Stdio::piped())
            .args(["--flush-timeout", "1h"]),
    );
    let mut stdin = run.child.stdin.take().unwrap();
    stdin.write_all(b"1\n2\n3\n").unwrap();
    run.stored(3);
    run.signal(Signal::TERM);
    let said = run.says("no more is read");
    assert!(
        said.contains("3 message(s)") && said.contains("in memory only"),
        "{said}"
    );
    run.signal(Signal::TERM);
    run.says("gone with this process");
    assert_eq!(run.child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let mut command = Command::new("sh");
    command.args([
        "-c",
        "trap '' HUP INT; exec \"$@\"",
        "sh",
        env!("CARGO_BIN_EXE_amps"),
    ]);
    command.args(["publish", "--json", "--announce", "--topic", "t"]);
    command.args(["--server", &server.uri, "--store"]);
    let mut run = Running::start(command.arg(dir.path("s.store")));
    for line in 1..=3 {
        run.write(b"x\n");
        stored(&mut run, line);
        run.signal(Signal::HUP);
        run.signal(Signal::INT);
    }
    run.signal(Signal::TERM);
    let (code, report) = run.end();
    assert_eq!(code, Some(0));
    assert_eq!(report["signal"], "SIGTERM");
    assert_eq!(report["published"], 3);
}

#[test]
fn a_named_pipe_nobody_writes_to_can_be_left() {
    let dir = Dir::new();
    let (server, pipe) = (Server::start(None, &[]), fifo(&dir));
    let mut command = publish(&server.uri);
    command
        .args(["--status-interval", "10ms", "--file"])
        .arg(&pipe);
    let mut run = Running::start(&mut command);
    let status = run.hear("status", |_| true);
    assert_eq!(status["waiting"], 0);
    run.signal(Signal::TERM);
    let (code, report) = run.end();
    assert_eq!((code, &report["published"]), (Some(0), &0.into()));
}

/// The signal interrupts the wait for data before anything has counted it. The next read once
/// waited for ever, or took a named pipe that nobody writes to for one at its end.
#[test]
fn an_import_that_waits_for_its_input_is_ended_by_a_signal_and_imports_nothing() {
    let dir = Dir::new();
    let (store, pipe) = (dir.path("s.store"), fifo(&dir));
    for round in 0..20 {
        let mut command = amps();
        command.args(["--json", "store", "import"]).arg(&store);
        command.stdin(Stdio::piped()).stdout(Stdio::null());
        command.stderr(Stdio::piped());
        if round % 2 == 0 {
            command.arg("--from").arg(&pipe);
        }
        let mut child = command.spawn().unwrap();
        let stdin = child.stdin.take();
        listens(child.id());
        // Its first thread sleeps where it waits for data.
        let stat = format!("/proc/{}/stat", child.id());
        while !store.exists() || !std::fs::read_to_string(&stat).unwrap().contains(") S ") {
            std::thread::yield_now();
        }
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let ended = child.wait_with_output().unwrap();
        drop(stdin);
        let words = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{words}");
        assert!(words.contains("SIGTERM ended the reading"), "{words}");
        assert!(!store.exists());
    }
}

/// Waiting for the lock once ignored signals, until the third.
#[test]
fn who_waits_for_a_store_that_is_open_is_ended_by_a_signal() {
    let dir = Dir::new();
    let path = dir.path("s.store");
    let mut holder = Running::start(publish(NOBODY).arg("--store").arg(&path));
    holder.write(b"1\n");
    stored(&mut holder, 1);
    let before = std::fs::read(&path).unwrap();
    for command in [
        &["publish", "--topic", "t", "--store"][..],
        &["drain", "--store"],
        &["failed", "accept", "1"],
        &["failed", "give-up", "1"],
        &["failed", "requeue", "1"],
    ] {
        let mut waiting = amps();
        waiting.args(command).arg(&path);
        waiting.args(["--lock-timeout", "100000s"]);
        waiting.stdin(Stdio::piped()).stderr(Stdio::piped());
        let child = waiting.spawn().unwrap();
        listens(child.id());
        let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
        kill_process(pid, Signal::TERM).unwrap();
        let ended = child.wait_with_output().unwrap();
        let words = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(4), "{command:?}: {words}");
        assert!(words.contains("SIGTERM ended the wait"), "{words}");
    }
    assert!(std::fs::read(&path).unwrap() == before);
    holder.kill();
}

#[test]
fn a_status_says_what_waits() {
    let dir = Dir::new();
    let mut command = publish(NOBODY);
    command.args([
        "--status-interval",
        "1ms",
        "--flush-timeout",
        "1h",
        "--store",
    ]);
    let mut run = Running::start(command.arg(dir.path("s.store")));
    run.write(b"1\n2\n3\n");
    let status = run.hear("status", |object| object["waiting"] == 3);
    assert_eq!(status["published"], 3);
    assert!(status["state"].is_string() && status["waiting_bytes"].as_u64() > Some(0));
    run.kill();
}

#[test]
fn a_blocked_standard_output_holds_up_the_last_words_until_the_second_signal() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    // Nobody ever reads it.
    let (reader, writer) = std::io::pipe().unwrap();
    let mut command = publish(&server.uri);
    command.arg("--store").arg(&store).stdin(Stdio::piped());
    command.stdout(OwnedFd::from(writer)).stderr(Stdio::null());
    let mut child = command.spawn().unwrap();
    drop(command);
    let mut stdin = child.stdin.take().unwrap();
    // More than there is room for in reports about them, so the reading of more is held back.
    let feed = std::thread::spawn(move || {
        let _ = stdin.write_all(&numbered_lines(100_000, 20));
        stdin
    });
    let pid = Pid::from_raw(child.id().cast_signed()).unwrap();
    // What is stored is sent and settled, whoever reads the reports.
    let mut before = 0;
    loop {
        let mut command = amps();
        let looked = run(command.args(["--json", "store", "info"]).arg(&store));
        // At first there is no store.
        let seen = looked.objects().pop().unwrap_or_default();
        let settled = seen["settled_through"].as_u64().unwrap_or(0);
        if settled > 0 && settled == before && seen["unsettled"] == 0 {
            break;
        }
        before = settled;
    }
    kill_process(pid, Signal::TERM).unwrap();
    while info(&store)["state"] != "closed" {
        std::thread::yield_now();
    }
    assert_eq!(info(&store)["unsettled"], 0);
    assert!(
        child.try_wait().unwrap().is_none(),
        "it waits for its reader"
    );
    kill_process(pid, Signal::TERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(1));
    drop(reader);
    drop(feed.join().unwrap());
}

#[test]
fn a_subscriber_and_a_server_end_when_they_are_asked_to() {
    let mut server =
        Running::start(amps().args(["serve", "--listen", "tcp://127.0.0.1:0/amps/json"]));
    let uri = server.line().unwrap();
    let uri = uri.strip_prefix("listening ").unwrap().to_owned();
    run_with_input(
        amps().args(["publish", "--topic", "t", "--server", &uri]),
        b"1\n",
    )
    .expect(0);
    for (more, expected) in [
        (&["--from-start"][..], 0),
        (&["--from-start", "-n", "2"], 1),
    ] {
        let mut command = amps();
        command.args(["--json", "subscribe", "--topic", "t", "--server", &uri]);
        let mut run = Running::start(command.args(more));
        run.hear("message", |_| true);
        run.signal(Signal::INT);
        let (code, report) = run.end();
        assert_eq!(code, Some(expected), "{report}");
        assert_eq!(
            (&report["received"], &report["signal"]),
            (&1.into(), &"SIGINT".into())
        );
    }
    server.signal(Signal::HUP);
    assert_eq!(server.wait(), Some(0));
}

#[test]
fn an_import_that_is_ended_leaves_no_store() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut run = Running::start(amps().args(["store", "import"]).arg(&store));
    while !store.exists() {
        std::thread::yield_now();
    }
    run.signal(Signal::TERM);
    while run.line().is_some() {}
    assert_eq!(run.wait_open(), Some(1));
    assert!(!store.exists());
}
