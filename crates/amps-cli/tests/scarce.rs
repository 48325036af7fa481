//! The command when the operating system has little left for it: no more threads, or name servers
//! that do not answer.
//!
//! Both need rights that are not available everywhere: the first a user of its own (root and
//! `setpriv`), the second namespaces. Without them a test says so and proves nothing; with
//! `AMPS_SCARCE=1` that is a failure.

#![cfg(target_os = "linux")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::UdpSocket;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Dir, NOBODY, Server, ran};
use serde_json::Value;

/// Says clearly that nothing was tried.
fn skipped(why: &str) {
    assert!(std::env::var_os("AMPS_SCARCE").is_none(), "{why}");
    println!("SKIPPED, nothing was tried: {why}");
    eprintln!("SKIPPED, nothing was tried: {why}");
}

/// A user that nothing else runs as, so that its limits concern only this test.
const USER: &str = "54321";

fn limited(threads: u32, program: &Path) -> Command {
    let mut command = Command::new("prlimit");
    command.arg(format!("--nproc={threads}"));
    command.args(["setpriv", "--reuid", USER, "--clear-groups"]);
    command.arg(program).stdin(Stdio::null());
    command
}

/// However few threads may be made, a run either reports that and stops, or sends everything. It
/// does not panic, hang, or go on without what it needs.
#[test]
fn with_few_threads_a_run_sends_everything_or_says_what_it_lacks() {
    let dir = Dir::new();
    // Where that user can read it, wherever the build is.
    let program = dir.path("amps");
    std::fs::copy(env!("CARGO_BIN_EXE_amps"), &program).unwrap();
    let everyone = |path: &Path| {
        let mode = std::fs::Permissions::from_mode(0o777);
        std::fs::set_permissions(path, mode).unwrap();
    };
    everyone(dir.path("").as_path());
    everyone(&program);
    let works = limited(64, &program).arg("--version").output();
    if !works.is_ok_and(|works| works.status.success()) {
        return skipped("no command can be run as another user (needs root, setpriv, prlimit)");
    }
    let server = Server::start(None, &[]);
    let port = server.uri.rsplit(':').next().unwrap();
    // By its name, which is also looked up on a thread.
    let by_name = format!("tcp://localhost:{port}");
    let input = dir.file("in", b"1\n2\n3\n");
    everyone(&input);
    let (mut sent, mut refused) = (0, 0);
    for threads in 1..=24 {
        let store = dir.path(&format!("{threads}.store"));
        let mut command = limited(threads, &program);
        command.args([
            "publish",
            "--json",
            "--topic",
            "t",
            "--flush-timeout",
            "60s",
        ]);
        command.args(["--server", &by_name, "--store"]).arg(&store);
        command.arg("--file").arg(&input);
        let ended = ran(command.output().unwrap());
        assert!(
            !ended.stderr.contains("panicked"),
            "{threads}: {}",
            ended.stderr
        );
        match ended.code {
            Some(0) => {
                assert_eq!(
                    ended.report()["persisted"],
                    3,
                    "{threads}: {}",
                    ended.stderr
                );
                sent += 1;
            }
            Some(1) => {
                let says = ended.stderr.contains("thread");
                assert!(says, "{threads}: {}", ended.stderr);
                assert_eq!(sent, 0, "{threads} are not enough, and fewer were");
                refused += 1;
            }
            code => panic!("{threads} thread(s): {code:?}\n{}", ended.stderr),
        }
    }
    assert!(sent > 0 && refused > 0, "{sent} sent, {refused} refused");
}

/// What is left must be saved without another thread. The new store could once not be opened
/// without one, and was said not to exist.
#[test]
fn what_a_removed_store_held_is_saved_where_no_thread_can_be_made() {
    let dir = Dir::new();
    let program = dir.path("amps");
    std::fs::copy(env!("CARGO_BIN_EXE_amps"), &program).unwrap();
    for path in [&dir.path(""), &program] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let works = limited(64, &program).arg("--version").output();
    if !works.is_ok_and(|works| works.status.success()) {
        return skipped("no command can be run as another user (needs root, setpriv, prlimit)");
    }
    let (store, saved) = (dir.path("a.store"), dir.path("saved.store"));
    let mut command = limited(64, &program);
    command.args(["--json", "publish", "--topic", "t", "--announce"]);
    command.args(["--server", NOBODY, "--flush-timeout", "0s", "--store"]);
    command.arg(&store).arg("--evacuate-to").arg(&saved);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut publisher = command.stderr(Stdio::piped()).spawn().unwrap();
    let mut output = BufReader::new(publisher.stdout.take().unwrap());
    let mut stored = String::new();
    writeln!(publisher.stdin.as_ref().unwrap(), "one").unwrap();
    while !stored.contains("\"stored\"") {
        stored.clear();
        assert!(output.read_line(&mut stored).unwrap() > 0, "it is stored");
    }
    // As that user, since not every root may limit others.
    let mut no_more = Command::new("setpriv");
    no_more.args(["--reuid", USER, "--clear-groups", "prlimit"]);
    no_more.arg(format!("--pid={}", publisher.id()));
    assert!(no_more.arg("--nproc=1").status().unwrap().success());
    std::fs::remove_file(&store).unwrap();
    drop(publisher.stdin.take());
    let mut rest = String::new();
    output.read_to_string(&mut rest).unwrap();
    let ended = ran(publisher.wait_with_output().unwrap());
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    assert!(ended.stderr.contains("thread"), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    let report: Value = serde_json::from_str(rest.lines().last().unwrap()).unwrap();
    assert_eq!(report["store"], "gone");
    assert_eq!(report["evacuated_to"], saved.to_str().unwrap());
    let info = common::run(common::amps().args(["--json", "store", "info"]).arg(&saved));
    assert_eq!(info.expect(0).report()["unsettled"], 1);
}

/// Set in the namespaces that the test makes for itself.
const INSIDE: &str = "AMPS_TEST_INSIDE";

/// A look-up cannot be cancelled, and takes half a minute here; the process does not wait for it.
#[test]
fn a_run_ends_with_its_report_whatever_a_name_server_does() {
    if std::env::var_os(INSIDE).is_some() {
        return with_a_silent_name_server();
    }
    let dir = Dir::new();
    let silent = "nameserver 127.0.0.1\noptions timeout:30 attempts:1\n";
    let resolver = dir.file("resolv.conf", silent);
    let nss = dir.file("nsswitch.conf", "hosts: dns\n");
    let set_up = "ip link set lo up && mount --bind \"$1\" /etc/resolv.conf && \
                  { [ ! -e /etc/nsswitch.conf ] || mount --bind \"$2\" /etc/nsswitch.conf; }";
    let in_namespaces = |script: String| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "--net", "--mount", "sh", "-c"]);
        command.arg(script).arg("sh").arg(&resolver).arg(&nss);
        command
    };
    let works = in_namespaces(set_up.to_owned()).output();
    if !works.is_ok_and(|works| works.status.success()) {
        return skipped("no namespaces can be made (needs unshare and ip)");
    }
    let this = std::env::current_exe().unwrap();
    let name = "a_run_ends_with_its_report_whatever_a_name_server_does";
    let script = format!("{set_up} && exec \"$3\" --exact {name} --nocapture");
    let inside = in_namespaces(script).arg(&this).env(INSIDE, "1").output();
    let inside = inside.unwrap();
    let said = String::from_utf8_lossy(&inside.stderr);
    assert!(inside.status.success(), "{said}");
    assert!(said.contains("ended in time"), "it was tried: {said}");
}

fn with_a_silent_name_server() {
    let server = UdpSocket::bind("127.0.0.1:53").unwrap();
    server
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let dir = Dir::new();
    let store = dir.path("s.store");
    for command in ["publish", "drain"] {
        let mut amps = common::amps();
        amps.args([
            command,
            "--json",
            "--server",
            "tcp://amps.example:9007/amps/json",
        ]);
        amps.args(["--flush-timeout", "1s", "--store"]).arg(&store);
        if command == "publish" {
            amps.args(["--topic", "t", "--file"])
                .arg(dir.file("in", "1\n"));
        }
        let mut run = amps.stdout(Stdio::piped()).spawn().unwrap();
        server.recv(&mut [0; 512]).expect("the name is asked for");
        let out = BufReader::new(run.stdout.take().unwrap());
        let objects = out
            .lines()
            .map(|line| serde_json::from_str(&line.unwrap()).unwrap());
        let report = { objects }.find(|object: &Value| object.get("left").is_some());
        let reported = Instant::now();
        assert_eq!(report.expect("a report")["left"], 1);
        assert_eq!(run.wait().unwrap().code(), Some(5));
        let took = reported.elapsed();
        assert!(took < Duration::from_secs(8), "{command}: {took:?}");
    }
    // A server that is looking up where to listen must also react to the first signal.
    let mut amps = common::amps();
    amps.args(["serve", "--listen", "tcp://amps.example:9007/amps/json"]);
    let mut run = amps.stderr(Stdio::piped()).spawn().unwrap();
    common::listens(run.id());
    let pid = rustix::process::Pid::from_raw(run.id().cast_signed()).unwrap();
    let signalled = Instant::now();
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.wait().unwrap().code(), Some(1));
    let took = signalled.elapsed();
    assert!(took < Duration::from_secs(8), "serve: {took:?}");
    eprintln!("ended in time");
}
