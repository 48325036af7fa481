//! SIGKILL at random moments: the server ends up with each line exactly once and in order.
//!
//! 20,000 lines by default, 1,000,000 lines of 256 bytes with `AMPS_FULL=1`. The seed is
//! printed; `AMPS_SEED` repeats a run's choices.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::path::Path;
use std::process::Stdio;

use common::{Dir, Random, Running, Server, amps, full_size, numbered_lines, run, run_with_input};
use serde_json::Value;

const KILLS: u64 = 20;

fn lines() -> u64 {
    if full_size() { 1_000_000 } else { 20_000 }
}

/// A publisher that reports each line that it has stored.
fn publisher(server: &Server, dir: &Dir, input: &Path) -> Running {
    Running::start(
        amps()
            .args([
                "publish",
                "--topic",
                "lines",
                "--resume",
                "--announce",
                "--json",
            ])
            .args([
                "--server",
                &server.uri,
                "--capacity",
                "16MiB",
                "--flush-timeout",
                "120s",
            ])
            .arg("--store")
            .arg(dir.path("lines.store"))
            .arg("--file")
            .arg(input),
    )
}

/// Reads what the publisher reports until it has stored `line`; `false` if it ended before.
fn reaches(publisher: &mut Running, line: u64) -> bool {
    while let Some(text) = publisher.line() {
        let said: Value = serde_json::from_str(&text).expect("one object per line");
        if said["event"] == "stored" && said["line"].as_u64() >= Some(line) {
            return true;
        }
    }
    false
}

/// The server's journal, read as a subscriber reads it, is `input` and nothing else: a marker
/// that was published last is the line right after it.
#[track_caller]
fn assert_exactly_once(server: &Server, input: &[u8], count: u64) {
    const MARKER: &str = "the end of the test";
    run_with_input(
        amps().args(["publish", "--topic", "lines", "--server", &server.uri]),
        format!("{MARKER}\n").as_bytes(),
    )
    .expect(0);
    let read = amps()
        .args([
            "subscribe",
            "--topic",
            "lines",
            "--from-start",
            "--server",
            &server.uri,
        ])
        .args(["-n", &(count + 1).to_string()])
        .stderr(Stdio::inherit())
        .output()
        .expect("the subscriber starts");
    assert_eq!(read.status.code(), Some(0));
    let expected = [input, MARKER.as_bytes(), b"\n"].concat();
    if read.stdout != expected {
        let (mut got, mut want) = (
            read.stdout.split(|&b| b == b'\n'),
            expected.split(|&b| b == b'\n'),
        );
        let at = got.by_ref().zip(want.by_ref()).position(|(g, w)| g != w);
        panic!("the subscriber saw other lines, first at {at:?} (counted from 0)");
    }
}

/// Kill points in order, spread over the whole run.
fn points(random: &mut Random, kills: u64, lines: u64) -> Vec<u64> {
    let mut points: Vec<u64> = (0..kills).map(|_| 1 + random.below(lines)).collect();
    points.sort_unstable();
    points
}

/// The first kill happens during work on any machine; how many of the others do depends on the
/// machine.
#[track_caller]
fn assert_at_work(struck: u64) {
    println!("{struck} of {KILLS} kills met a publisher at work");
    let least = if full_size() { KILLS / 2 } else { 1 };
    assert!(struck >= least, "{struck} kills met a publisher at work");
}

#[test]
fn a_publisher_killed_twenty_times_publishes_each_line_once_and_in_order() {
    let mut random = Random::new("publisher killed");
    let dir = Dir::new();
    let count = lines();
    let content = numbered_lines(count, 256);
    let input = dir.file("input", &content);
    let server = Server::start(Some(&dir.path("journal")), &[]);

    let mut killed = 0;
    for point in points(&mut random, KILLS, count) {
        let mut publisher = publisher(&server, &dir, &input);
        // A publisher that has passed the point already is killed at its first stored line. One
        // that finds nothing to store may end before it is killed, and does not count.
        killed += u64::from(reaches(&mut publisher, point));
        publisher.kill();
    }
    assert_at_work(killed);
    assert_eq!(publisher(&server, &dir, &input).wait(), Some(0));
    assert_exactly_once(&server, &content, count);
}

#[test]
fn server_and_publisher_killed_in_turn_lose_and_repeat_nothing() {
    let mut random = Random::new("both killed");
    let dir = Dir::new();
    let count = lines();
    let content = numbered_lines(count, 256);
    let input = dir.file("input", &content);
    let mut server = Server::start(Some(&dir.path("journal")), &[]);

    let mut current = publisher(&server, &dir, &input);
    let mut struck = 0;
    for point in points(&mut random, KILLS, count) {
        struck += u64::from(reaches(&mut current, point));
        if random.below(2) == 0 {
            server.kill_and_restart();
        } else {
            current.kill();
            current = publisher(&server, &dir, &input);
        }
    }
    assert_at_work(struck);
    assert_eq!(current.wait(), Some(0));
    assert_exactly_once(&server, &content, count);
}

#[test]
fn a_subscriber_sees_each_line_once_over_restarts_of_the_server() {
    let mut random = Random::new("server restarted under a subscriber");
    let dir = Dir::new();
    let count = lines() / 4;
    let content = numbered_lines(count, 64);
    let input = dir.file("input", &content);
    let mut server = Server::start(Some(&dir.path("journal")), &[]);

    let mut subscriber = Running::start(
        amps()
            .args([
                "subscribe",
                "--topic",
                "lines",
                "--from-start",
                "--server",
                &server.uri,
            ])
            .args(["-n", &count.to_string()]),
    );
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        while let Some(line) = subscriber.line() {
            seen.extend_from_slice(line.as_bytes());
            seen.push(b'\n');
        }
        (seen, subscriber.wait())
    });
    let mut publisher = publisher(&server, &dir, &input);
    for (n, point) in points(&mut random, 5, count).into_iter().enumerate() {
        let at_work = reaches(&mut publisher, point);
        assert!(at_work || n > 0, "the first one meets a publisher at work");
        server.kill_and_restart();
    }
    assert_eq!(publisher.wait(), Some(0));
    let (seen, code) = reader.join().expect("the reader ends");
    assert_eq!(code, Some(0));
    assert!(seen == content, "the subscriber saw other lines");
}

#[test]
fn a_restart_after_the_last_line_publishes_nothing_again() {
    let dir = Dir::new();
    let input = dir.file("input", numbered_lines(100, 64));
    let server = Server::start(Some(&dir.path("journal")), &[]);
    assert_eq!(publisher(&server, &dir, &input).wait(), Some(0));
    let again = run(amps()
        .args([
            "publish",
            "--json",
            "--topic",
            "lines",
            "--resume",
            "--server",
            &server.uri,
        ])
        .arg("--store")
        .arg(dir.path("lines.store"))
        .arg("--file")
        .arg(&input))
    .expect(0)
    .report();
    assert_eq!(
        (&again["published"], &again["resent"]),
        (&0.into(), &0.into())
    );
    assert_eq!(again["resumed_at"], 100);
}
