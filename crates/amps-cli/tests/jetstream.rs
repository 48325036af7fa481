//! `amps publish` and `amps drain` to servers of NATS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;
#[path = "../../amps-jetstream/tests/servers/mod.rs"]
mod servers;

use std::fs;

use common::{NOBODY, amps, run};
use servers::{Server, programs};

fn bodies(server: &Server, stream: &str) -> Vec<String> {
    let contents = server.admin().contents(stream).into_iter();
    contents
        .map(|(_, body)| String::from_utf8(body).unwrap())
        .collect()
}

fn lines(first: u64, last: u64) -> String {
    (first..=last).map(|line| format!("{line}\n")).collect()
}

#[test]
fn lines_get_into_a_stream_that_is_made_and_what_was_left_is_drained() {
    for program in programs() {
        let server = Server::start(&program, "");
        let address = format!("nats://127.0.0.1:{}", server.port);
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::write(at("input"), lines(1, 1_000)).unwrap();
        let publish = |to: &str, more: &[&str]| {
            let mut command = amps();
            command
                .args(["publish", "--topic", "t", "--json", "--server", to])
                .arg("--store")
                .arg(at("store"))
                .arg("--file")
                .arg(at("input"))
                .args(more);
            run(&mut command)
        };
        // Nobody takes it: it waits, and why is said.
        let waits = publish(&address, &["--flush-timeout", "1s"]).expect(5);
        assert_eq!(waits.report()["left"], 1_000);
        waits.says(&["no stream takes the subject t of topic t"]);

        fs::write(at("input"), lines(1_001, 2_000)).unwrap();
        let sent = publish(&address, &["--create-stream", "ORDERS"]).expect(0);
        let report = sent.report();
        assert_eq!(report["persisted"], 2_000);
        assert_eq!(
            (&report["duplicates"], &report["found"]),
            (&0.into(), &0.into())
        );
        let stored = bodies(&server, "ORDERS");
        let expected: Vec<String> = (1..=2_000).map(|line| line.to_string()).collect();
        assert_eq!(stored, expected);

        // A publisher without a server, and somebody who sends what it left.
        fs::write(at("input"), lines(2_001, 2_100)).unwrap();
        publish("nats://127.0.0.1:9", &["--flush-timeout", "0s"]).expect(5);
        let mut drain = amps();
        drain
            .args(["drain", "--json", "--server", &address, "--store"])
            .arg(at("store"));
        let drained = run(&mut drain).expect(0);
        assert_eq!(drained.report()["persisted"], 100);
        assert_eq!(bodies(&server, "ORDERS").len(), 2_100);
    }
}

#[test]
fn a_user_and_a_password_file_log_on() {
    for program in programs() {
        let server = Server::start(&program, "authorization { user: u, password: \"p@\" }");
        let address = format!("nats://127.0.0.1:{}", server.port);
        let directory = tempfile::tempdir().unwrap();
        let password = directory.path().join("password");
        let publish = |secret: &str| {
            fs::write(&password, secret).unwrap();
            let mut command = amps();
            command
                .args([
                    "publish", "--topic", "t", "--server", &address, "--user", "u",
                ])
                .args([
                    "--create-stream",
                    "S",
                    "--flush-timeout",
                    "2s",
                    "--password-file",
                ])
                .arg(&password);
            run(command.stdin(fs::File::open(&password).unwrap()))
        };
        publish("p@\n").expect(0);
        publish("wrong\n").expect(7).says(&["refused the logon"]);
    }
}

#[test]
fn what_is_of_no_use_is_told_before_anything_is_made() {
    let directory = tempfile::tempdir().unwrap();
    let store = directory.path().join("store");
    let nats = "nats://127.0.0.1:9";
    for (arguments, says) in [
        (
            &["--server", nats, "--server", NOBODY][..],
            "cannot be mixed",
        ),
        (
            &["--server", NOBODY, "--create-stream", "S"],
            "--create-stream is for servers of NATS",
        ),
        (
            &["--server", nats, "--delta"],
            "--delta is for servers of AMPS",
        ),
        (
            &["--server", nats, "--publish-ids"],
            "--publish-ids is for servers of AMPS",
        ),
        (&["--server", nats, "--tls-ca", "x"], "--tls-ca is for TLS"),
        (&["--server", "nats://a/b"], "bad server address"),
        (
            &["--server", nats, "--order", "any"],
            "chained and unchained are known",
        ),
    ] {
        let mut command = amps();
        command
            .args(["publish", "--topic", "t", "--store"])
            .arg(&store);
        run(command.args(arguments)).expect(2).says(&[says]);
        assert!(!store.exists(), "{arguments:?}");
    }
}
