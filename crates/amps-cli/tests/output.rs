//! Output never decides anything: whatever happens to standard output and standard error, what is
//! stored, sent and settled stays the same, and the exit code tells the truth.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use common::{Dir, NOBODY, Server, amps, run, run_with_input};

/// A standard output or error that nobody reads any more.
fn closed() -> Stdio {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    Stdio::from(OwnedFd::from(writer))
}

/// One whose reader has stalled: it takes no byte. The reader must be kept.
fn stalled() -> (std::io::PipeReader, Stdio) {
    let (reader, mut writer) = std::io::pipe().unwrap();
    nonblocking(&writer, true);
    for len in [4096, 1] {
        while writer.write(&[b'x'; 4096][..len]).is_ok() {}
    }
    nonblocking(&writer, false);
    (reader, Stdio::from(OwnedFd::from(writer)))
}

fn nonblocking(writer: &std::io::PipeWriter, on: bool) {
    let flags = rustix::fs::fcntl_getfl(writer.as_fd()).unwrap();
    let flags = match on {
        true => flags | rustix::fs::OFlags::NONBLOCK,
        false => flags - rustix::fs::OFlags::NONBLOCK,
    };
    rustix::fs::fcntl_setfl(writer.as_fd(), flags).unwrap();
}

fn full() -> Stdio {
    Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap())
}

/// A store with a hundred messages that were not sent.
fn backlog(store: &Path) {
    let input: String = (1..=100).map(|n| format!("{n}\n")).collect();
    run_with_input(
        amps()
            .args(["publish", "--topic", "t", "--server", NOBODY])
            .args(["--flush-timeout", "10ms", "--store"])
            .arg(store),
        input.as_bytes(),
    )
    .expect(5);
}

#[track_caller]
fn left(store: &Path) -> u64 {
    let info = run(amps().args(["--json", "store", "info"]).arg(store)).expect(0);
    assert_eq!(info.report()["state"], "closed");
    info.report()["unsettled"].as_u64().unwrap()
}

fn drain(server: &Server, store: &Path) -> Command {
    let mut command = amps();
    command
        .args(["drain", "--server", &server.uri, "--store"])
        .arg(store);
    command
}

#[track_caller]
fn code(command: &mut Command) -> i32 {
    command.status().unwrap().code().expect("no signal ends it")
}

#[test]
fn a_drain_nobody_listens_to_sends_everything() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    for json in [true, false] {
        let store = dir.path(&format!("{json}.store"));
        backlog(&store);
        let mut command = drain(&server, &store);
        if json {
            command.arg("--json");
        }
        // The report could be given to nobody.
        assert_eq!(code(command.stdout(closed()).stderr(closed())), 1);
        assert_eq!(left(&store), 0);
    }
}

#[test]
fn a_full_standard_error_costs_the_words_and_nothing_else() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    backlog(&store);
    let output = drain(&server, &store).stderr(full()).output().unwrap();
    assert_eq!(output.status.code(), Some(0));
    let report = String::from_utf8(output.stdout).unwrap();
    assert!(report.contains("persisted 100"), "{report}");
    assert_eq!(left(&store), 0);
    // An error that cannot be reported is still an error.
    let missing = dir.path("none.store");
    assert_eq!(code(drain(&server, &missing).stderr(full())), 1);
    assert_eq!(code(amps().arg("nonsense").stderr(full())), 2);
}

#[test]
fn a_full_standard_output_is_no_space_for_what_is_sent() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    backlog(&store);
    assert_eq!(code(drain(&server, &store).stdout(full())), 1);
    assert_eq!(left(&store), 0);
}

#[test]
fn what_is_left_matters_more_than_who_reads_it() {
    let mut child = amps()
        .args(["publish", "--topic", "t", "--server", NOBODY])
        .args(["--flush-timeout", "10ms"])
        .stdin(Stdio::piped())
        .stdout(closed())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(b"1\n2\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(5));
}

#[test]
fn a_stalled_reader_of_standard_error_stops_nothing() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    backlog(&store);
    let (_reader, stderr) = stalled();
    assert_eq!(
        code(drain(&server, &store).stdout(Stdio::null()).stderr(stderr)),
        0
    );
    assert_eq!(left(&store), 0);
}

#[test]
fn a_stalled_reader_of_standard_output_gets_the_report_when_all_is_done() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let store = dir.path("s.store");
    backlog(&store);
    let (mut reader, stdout) = stalled();
    let mut command = drain(&server, &store);
    let mut child = command
        .stdout(stdout)
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // The command has the other copy of the pipe's writing end, which must not outlive it.
    drop(command);
    // The store is closed and unlocked while the report still waits: another process may have it.
    while run(amps().args(["--json", "store", "info"]).arg(&store)).report()["state"] != "closed" {
        std::thread::yield_now();
    }
    assert_eq!(left(&store), 0);
    run(&mut drain(&server, &store)).expect(0);
    assert!(
        child.try_wait().unwrap().is_none(),
        "it waits for its reader"
    );
    let mut read = Vec::new();
    std::io::Read::read_to_end(&mut reader, &mut read).unwrap();
    assert!(String::from_utf8_lossy(&read).contains("persisted 100"));
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// This was once reported as the failure of the command, and once more as the failure to report
/// it.
#[test]
fn an_output_that_fails_is_told_once() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    backlog(&store);
    let mut command = amps();
    command.args(["--json", "store", "list"]).arg(&store);
    let ended = command.stdout(full()).output().unwrap();
    let words = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(8), "{words}");
    assert_eq!(
        words.matches("cannot write the output").count(),
        1,
        "{words}"
    );
}

/// Once only the third signal ended it.
#[test]
fn an_import_waits_for_the_reader_of_its_report_until_the_second_signal() {
    let dir = Dir::new();
    let (store, new) = (dir.path("s.store"), dir.path("new.store"));
    backlog(&store);
    let export = run(amps().args(["store", "export"]).arg(&store)).expect(0);
    let lines = dir.file("lines", &export.stdout);
    let (_reader, stdout) = stalled();
    let mut command = amps();
    command.args(["store", "import"]).arg(&new);
    command.arg("--from").arg(&lines);
    command.stdout(stdout).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    drop(command);
    // At first the file is empty, which a look calls an error.
    let info = || run(amps().args(["--json", "store", "info"]).arg(&new));
    while info().objects().pop().unwrap_or_default()["state"] != "closed" {
        std::thread::yield_now();
    }
    let pid = rustix::process::Pid::from_raw(child.id().cast_signed()).unwrap();
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        rustix::process::kill_process(pid, signal).unwrap();
    }
    let ended = child.wait_with_output().unwrap();
    let words = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(1), "{words}");
    assert!(words.contains("everything else was done"), "{words}");
    assert_eq!(left(&new), 100);
}

#[test]
fn a_requeue_nobody_listens_to_is_done() {
    let dir = Dir::new();
    let server = Server::start(None, &["--reject-topic", "t"]);
    let store = dir.path("s.store");
    run_with_input(
        amps()
            .args([
                "publish",
                "--topic",
                "t",
                "--server",
                &server.uri,
                "--store",
            ])
            .arg(&store),
        b"1\n2\n",
    )
    .expect(6);
    let mut requeue = amps();
    requeue.args(["failed", "requeue", "1"]).arg(&store);
    assert_eq!(code(requeue.stdout(closed()).stderr(full())), 1);
    assert_eq!(left(&store), 1);
    let mut accept = amps();
    accept.args(["failed", "accept", "2"]).arg(&store);
    assert_eq!(code(accept.stdout(closed()).stderr(full())), 1);
    let waiting = run(amps().args(["--json", "failed", "list"]).arg(&store)).expect(0);
    assert_eq!(waiting.report()["waiting"], 0);
}

#[test]
fn a_server_nobody_listens_to_serves() {
    let dir = Dir::new();
    let socket = dir.path("s.sock");
    let uri = format!("unix://localhost:0/amps/json?path={}", socket.display());
    let mut server = amps()
        .args(["serve", "--listen", &uri])
        .stdout(closed())
        .stderr(full())
        .spawn()
        .unwrap();
    let mut publish = amps();
    publish.args(["publish", "--topic", "t", "--server", &uri, "--store"]);
    let done = run_with_input(publish.arg(dir.path("a.store")), b"1\n");
    server.kill().unwrap();
    server.wait().unwrap();
    done.expect(0);
}

#[test]
fn a_command_whose_product_is_its_output_ends_with_its_reader() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    backlog(&store);
    let mut list = amps();
    list.args(["store", "list"])
        .arg(&store)
        .stderr(Stdio::null());
    assert_eq!(code(list.stdout(closed())), 0);
    assert_eq!(code(list.stdout(full())), 8);
    let file = File::create(dir.path("out")).unwrap();
    assert_eq!(code(list.stdout(file)), 0);
}
