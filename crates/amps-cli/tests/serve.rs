//! `amps serve`: who can reach it, what it accepts, and what it reports.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Stdio};

use common::{Server, amps, run, run_with_input};
use rustix::process::{Pid, Signal, kill_process};

/// A server whose messages are read, and where it listens.
fn serve(options: &[&str]) -> (Child, String) {
    let mut command = amps();
    command.arg("serve").args(options);
    let pipes = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = pipes.spawn().unwrap();
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    let uri = line.trim_end().strip_prefix("listening ");
    (child, uri.expect("listening URI").to_owned())
}

/// Everything that it said to people until it was told to end.
fn words(mut child: Child) -> String {
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    let mut words = String::new();
    let mut stderr = child.stderr.take().unwrap();
    stderr.read_to_string(&mut words).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0), "{words}");
    words
}

#[test]
fn logons_and_refusals_are_told_when_asked_for() {
    let local = "tcp://127.0.0.1:0/amps/json";
    for (verbose, told) in [(&["-v"][..], true), (&[], false)] {
        let options = ["--listen", local, "--reject-topic", "no"];
        let (server, uri) = serve(&[&options[..], verbose].concat());
        let mut publish = amps();
        publish.args(["publish", "--topic", "no", "--client-name", "me"]);
        run_with_input(publish.args(["--server", &uri]), b"line\n").expect(6);
        let words = words(server);
        assert!(words.contains("from this machine only"), "{words}");
        assert_eq!(words.contains("\"me\" logged on"), told, "{words}");
        let refused = words.contains("of \"me\" to \"no\" was refused: not entitled");
        assert_eq!(refused, told, "{words}");
    }
}

#[test]
fn a_server_that_anyone_can_reach_says_so() {
    let (server, _) = serve(&["--listen", "tcp://0.0.0.0:0/amps/json"]);
    let words = words(server);
    assert!(
        words.contains("may publish and subscribe; see --require-auth"),
        "{words}"
    );
}

/// The library could do this, but the command had no options for it.
#[test]
fn topics_without_a_log_and_challenges_can_be_asked_for() {
    let server = Server::start(None, &["--unlogged-topic", "u", "--sow-topic", "s"]);
    let mut publish = amps();
    publish.args(["publish", "--topic", "u", "--server", &server.uri]);
    run_with_input(&mut publish, b"gone\n").expect(0);
    let mut subscribe = amps();
    subscribe.args(["publish", "--topic", "kept", "--server", &server.uri]);
    run_with_input(&mut subscribe, b"kept\n").expect(0);
    let mut subscribe = amps();
    subscribe.args(["subscribe", "--topic", ".*", "--server", &server.uri]);
    let all = run(subscribe.args(["--from-start", "-n", "1"])).expect(0);
    assert_eq!(all.text(), "kept\n", "the other one is not in the log");

    run(amps().args(["serve", "--challenge"]))
        .expect(2)
        .says(&["--require-auth"]);
    let options = ["--require-auth", "ann:pw", "--challenge"];
    let server = Server::start(None, &options);
    let mut publish = amps();
    let uri = server.uri.replace("tcp://", "tcp://ann:pw@");
    publish.args(["publish", "--topic", "t", "--flush-timeout", "1s"]);
    // The command has a password, but cannot answer a challenge.
    let ran = run_with_input(publish.args(["--server", &uri]), b"line\n").expect(5);
    ran.says(&["the server asks for an answer to a challenge"]);
}
