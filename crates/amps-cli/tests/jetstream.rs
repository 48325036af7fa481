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
use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use common::{NOBODY, amps, run, run_with_input};
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
        for none in ["duplicates", "found", "possible_duplicates"] {
            assert_eq!(report[none], 0);
        }
        assert_eq!(report["order"], "chained");
        let about = "stream ORDERS, chained since it was made for this publisher alone: each \
                     message once and in order";
        assert_eq!(report["about"], about);
        let sent = sent.says(&[about]);
        assert_eq!(sent.stderr.matches(about).count(), 1);
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
        assert_eq!(drained.report()["order"], "chained");
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

/// A shared stream says that it is one, and what went out again is counted.
#[test]
fn people_are_told_of_the_order_and_of_what_may_be_twice() {
    for program in programs() {
        let server = Server::start(&program, "");
        server.admin().stream("S", "");
        let address = format!("nats://127.0.0.1:{}", server.port);
        let mut command = amps();
        command.args(["publish", "--topic", "t", "--server", &address]);
        let sent = run_with_input(&mut command, b"1\n2\n").expect(0);
        let sent = sent.says(&[
            "stream S, unchained since it may have other publishers: each message at least once",
        ]);
        let line =
            "persisted 2  persisted_at_logon 0  duplicates 0  found 0  possible_duplicates 0";
        let line = format!("{line}  rejected 0");
        assert!(sent.text().contains(&line), "{}", sent.text());
        assert!(sent.text().trim_end().ends_with("order unchained"));
        // Messages of another store are somebody else's.
        server.admin().api("STREAM.PURGE.S", "");
        let mut asked = amps();
        asked.args(["publish", "--topic", "t", "--server", &address]);
        asked.args(["--order", "chained"]);
        let refused = run_with_input(&mut asked, b"3\n").expect(0);
        refused.says(&["stream S, chained as was asked for: each message once and in order"]);
    }
}

/// Bodies byte for byte, over a restart of the server, and what comes while somebody reads.
#[test]
fn a_stream_is_read_from_its_start_and_on() {
    for program in programs() {
        let mut server = Server::start(&program, "");
        let address = format!("nats://127.0.0.1:{}", server.port);
        let subscribe = |more: &[&str]| {
            let mut command = amps();
            command.args(["subscribe", "--topic", "t", "--server", &address]);
            command.args(more);
            command
        };
        // Before there is a stream.
        let mut reading = subscribe(&["--from-start", "-n", "1300"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(reading.stderr.take().unwrap()).lines();
        let said = words.next().unwrap().unwrap();
        assert!(said.contains("no stream takes the subject t"), "{said}");
        let publish = |first: u64, last: u64| {
            let mut command = amps();
            command.args(["publish", "--topic", "t", "--server", &address]);
            command.args(["--create-stream", "S"]);
            run_with_input(&mut command, lines(first, last).as_bytes()).expect(0);
        };
        publish(1, 1_000);
        let said = words.next().unwrap().unwrap();
        assert!(said.contains("reading stream S at"), "{said}");
        let mut out = BufReader::new(reading.stdout.take().unwrap()).lines();
        for line in 1..=1_000_u64 {
            assert_eq!(out.next().unwrap().unwrap(), line.to_string());
        }
        server.restart();
        publish(1_001, 1_300);
        for line in 1_001..=1_300_u64 {
            assert_eq!(out.next().unwrap().unwrap(), line.to_string());
        }
        assert!(out.next().is_none());
        assert_eq!(reading.wait().unwrap().code(), Some(0));

        // Another topic of the stream is none of ours, and bytes are as they are.
        server.admin().api(
            "STREAM.UPDATE.S",
            "{\"name\":\"S\",\"subjects\":[\"t\",\"u\"],\"storage\":\"file\"}",
        );
        server.admin().request("u", b"of u");
        server.admin().request("t", b"\xff\r\n\0");
        let read = run(&mut subscribe(&["--json", "--from-start", "-n", "1301"])).expect(0);
        let last = &read.objects()[1_300];
        assert_eq!(last["stream"], "S");
        assert_eq!(last["stream_sequence"], 1_302);
        assert_eq!(last["base64"], "/w0KAA==");
        assert_eq!(read.report()["received"], 1_301);
    }
}

/// Without `--from-start`: what is stored from now on.
#[test]
fn who_does_not_ask_for_the_start_reads_what_comes() {
    for program in programs() {
        let server = Server::start(&program, "");
        let address = format!("nats://127.0.0.1:{}", server.port);
        server.admin().stream("S", "");
        server.admin().request("t", b"before");
        let mut reading = amps()
            .args(["subscribe", "--topic", "t", "-n", "1", "--server", &address])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // It is there as soon as the server has something that reads for it.
        let consumers = || {
            let names = server.admin().request("$JS.API.CONSUMER.NAMES.S", b"");
            let names: serde_json::Value = serde_json::from_slice(&names).unwrap();
            names["total"].as_u64().unwrap()
        };
        while consumers() == 0 {
            assert!(reading.try_wait().unwrap().is_none());
        }
        server.admin().request("t", b"behind");
        let mut out = BufReader::new(reading.stdout.take().unwrap()).lines();
        assert_eq!(out.next().unwrap().unwrap(), "behind");
        assert_eq!(reading.wait().unwrap().code(), Some(0));
    }
}

/// A stream that forgets what was acknowledged is for one reader, and that is not this one.
#[test]
fn a_stream_that_looking_would_change_is_not_read() {
    for program in programs() {
        let server = Server::start(&program, "");
        let address = format!("nats://127.0.0.1:{}", server.port);
        server.admin().stream("S", ",\"retention\":\"workqueue\"");
        server.admin().request("t", b"kept");
        let mut reading = amps()
            .args(["subscribe", "--topic", "t", "--server", &address])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut words = BufReader::new(reading.stderr.take().unwrap()).lines();
        let said = words.next().unwrap().unwrap();
        assert!(said.contains("JetStream cannot read the stream"), "{said}");
        reading.kill().unwrap();
        reading.wait().unwrap();
        assert_eq!(bodies(&server, "S"), ["kept"]);
    }
}

#[test]
fn a_reader_who_may_not_log_on_is_told() {
    for program in programs() {
        let server = Server::start(&program, "authorization { user: u, password: p }");
        let address = format!("nats://u:secret@127.0.0.1:{}", server.port);
        let mut command = amps();
        command.args(["subscribe", "--topic", "t", "--server", &address]);
        let refused = run(&mut command).expect(7).says(&["refused the logon"]);
        assert!(!refused.stderr.contains("secret"), "{}", refused.stderr);
    }
    let nobody = "nats://127.0.0.1:9";
    for (arguments, says) in [
        (
            &["--server", NOBODY, "--creds", "x"][..],
            "--creds is for servers of NATS",
        ),
        (&["--server", nobody, "--server", NOBODY], "cannot be mixed"),
        (
            &["--server", nobody, "--tls-ca", "x"],
            "--tls-ca is for TLS",
        ),
        (&["--server", "nats://a/b"], "bad server address"),
    ] {
        let mut command = amps();
        command.args(["subscribe", "--topic", "t"]).args(arguments);
        run(&mut command).expect(2).says(&[says]);
    }
}
