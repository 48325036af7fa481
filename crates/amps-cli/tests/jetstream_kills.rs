//! A publisher and a server of NATS that are killed again and again.
//!
//! `AMPS_NATS_LONG=1` makes it 50,000 lines, with five kills of the server and ten of the publisher.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;
#[path = "../../amps-jetstream/tests/servers/mod.rs"]
mod servers;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use common::{amps, run};
use servers::{Server, programs};

fn command(directory: &Path, address: &str, order: &str) -> Command {
    let mut command = amps();
    command
        .args(["publish", "--topic", "t", "--resume", "--json"])
        .args(["--server", address, "--order", order, "--store"])
        .arg(directory.join("store"))
        .arg("--file")
        .arg(directory.join("input"));
    command
}

/// What is to be killed, in turn.
fn victims(long: bool) -> Vec<&'static str> {
    let round = ["publisher", "server", "publisher"];
    round.repeat(if long { 5 } else { 1 })
}

/// Kills both at moments that the stream's length says; returns what it holds then, in its order.
fn killed(program: &Path, order: &str, lines: u64, long: bool) -> (Vec<u64>, serde_json::Value) {
    let mut server = Server::start(program, "");
    server.admin().stream("S", "");
    let address = format!("nats://127.0.0.1:{}", server.port);
    let directory = tempfile::tempdir().unwrap();
    let input: String = (1..=lines).map(|line| format!("{line}\n")).collect();
    fs::write(directory.path().join("input"), input).unwrap();
    let start = || {
        command(directory.path(), &address, order)
            // Slow enough to be met on the way.
            .args(["--rate", "20000"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    };
    let victims = victims(long);
    let mut publisher = start();
    for (at, victim) in victims.iter().enumerate() {
        let than = lines * (at as u64 + 1) / (victims.len() as u64 + 2);
        server.admin().stored_more("S", than);
        match *victim {
            "server" => server.restart(),
            _ => {
                publisher.kill().unwrap();
                publisher.wait().unwrap();
                publisher = start();
            }
        }
    }
    publisher.kill().unwrap();
    publisher.wait().unwrap();
    let ended = run(&mut command(directory.path(), &address, order)).expect(0);
    let report = ended.report();
    assert_eq!(report["left"], 0);
    let contents = server.admin().contents("S").into_iter();
    let stored = contents.map(|(_, body)| String::from_utf8(body).unwrap().parse().unwrap());
    (stored.collect(), report)
}

#[test]
fn every_line_is_stored_whoever_is_killed() {
    let long = std::env::var_os("AMPS_NATS_LONG").is_some_and(|value| value == "1");
    let lines = if long { 50_000 } else { 6_000 };
    for program in programs() {
        for order in ["chained", "unchained"] {
            let (mut stored, report) = killed(&program, order, lines, long);
            if order == "unchained" {
                stored.sort_unstable();
            }
            // All of it was within the time for which the server remembers ids, so that unchained
            // messages are there once, too.
            let wrong = stored.iter().zip(1..).find(|(line, at)| **line != *at);
            assert_eq!((stored.len() as u64, wrong), (lines, None), "{order}");
            println!(
                "{} {order}: the last run found {}, and {} were known",
                program.display(),
                report["found"],
                report["duplicates"]
            );
        }
    }
}
