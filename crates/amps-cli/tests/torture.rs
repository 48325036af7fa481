//! The contract of `docs/torture.md`, judged as a crash rig judges it: from outside, with a
//! payload rule of its own. What a kill does to the store is in `sigkill.rs`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::rig::{Oracle, Rule, dump, dumped, frames};
use common::{Dir, Running, amps, run};
use serde_json::Value;

const SEED: u64 = 42;

fn rule(run: u64, min: u64, max: u64) -> Rule {
    Rule {
        seed: SEED,
        run,
        min,
        max,
    }
}

fn write(dir: &Path, run: u64, more: &[&str]) -> Command {
    let mut command = amps();
    command.args(["torture", "write", "--seed", &SEED.to_string()]);
    command.args(["--run", &run.to_string(), "--dir"]);
    command.arg(dir).args(more);
    command
}

#[test]
fn what_is_written_is_dumped() {
    let dir = Dir::new();
    let ran = run(&mut write(
        &dir.path("t"),
        1,
        &["--sync-every", "7", "--discard-lag", "20", "--count", "100"],
    ))
    .expect(0);
    let text = ran.text();
    assert!(
        text.starts_with("open first=0 last=0 next=1 run=1\nbegin 7\ndurable 7\n"),
        "{text}"
    );
    assert!(text.ends_with("end\n"), "{text}");
    let mut oracle = Oracle::default();
    text.lines()
        .for_each(|line| oracle.hear(rule(1, 16, 600), line));
    assert_eq!((oracle.begun, oracle.durable), (100, 100));
    // 42 are in the log after the sixth sync: all except 20 are settled, and again after 42 more.
    let lag: Vec<&str> = text.lines().filter(|l| l.starts_with("discard")).collect();
    let expected = [
        "discarding 22",
        "discarded 22",
        "discarding 43",
        "discarded 43",
    ];
    assert_eq!(lag[..4], expected, "{text}");

    let before = fs::read(dir.path("t/torture.store")).unwrap();
    let dumped = dumped(&dir.path("t")).unwrap();
    assert_eq!(
        fs::read(dir.path("t/torture.store")).unwrap(),
        before,
        "dump changed the store"
    );
    let beside: Vec<_> = fs::read_dir(dir.path("t")).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");

    let sequences: Vec<u64> = (oracle.discarded + 1..=100).collect();
    assert_eq!(dumped.sequences(), sequences);
    assert!(dumped.report["next"].as_u64().unwrap() >= 101);
    oracle.judge_killed(Some(&dumped));
}

#[test]
fn the_next_run_finds_what_the_last_one_left() {
    let dir = Dir::new();
    let path = dir.path("t");
    let mut oracle = Oracle::default();
    for run_number in 1..=4 {
        let more = ["--sync-every", "9", "--discard-lag", "30", "--count", "50"];
        let ran = run(&mut write(&path, run_number, &more)).expect(0);
        for line in ran.text().lines() {
            oracle.hear(rule(run_number, 16, 600), line);
        }
        oracle.judge_killed(dumped(&path).as_ref());
    }
    // After clean ends numbers do not skip.
    assert_eq!(oracle.begun, 200);
}

#[test]
fn a_full_ring_settles_its_older_half() {
    let dir = Dir::new();
    let path = dir.path("t");
    let more = ["--sync-every", "1000", "--discard-lag", "1000000"];
    let small = ["--capacity", "65536", "--count", "1000"];
    let ran = run(write(&path, 1, &more).args(small)).expect(0);
    let mut oracle = Oracle::default();
    let (mut first, mut durable, mut settled) = (1, 0, 0);
    for line in ran.text().lines() {
        oracle.hear(rule(1, 16, 600), line);
        let (word, number) = line.split_once(' ').unwrap_or((line, ""));
        match word {
            "durable" => durable = number.parse().unwrap(),
            "discarding" => {
                let through: u64 = number.parse().unwrap();
                assert_eq!(through, first + (durable - first) / 2, "{line}");
                first = through + 1;
                settled += 1;
            }
            _ => {}
        }
    }
    assert!(settled > 10, "the ring was full {settled} time(s)");
    oracle.judge_killed(dumped(&path).as_ref());
}

#[test]
fn a_lag_of_zero_leaves_the_log_empty() {
    let dir = Dir::new();
    run(&mut write(
        &dir.path("t"),
        1,
        &["--sync-every", "5", "--discard-lag", "0", "--count", "20"],
    ))
    .expect(0);
    let dumped = run(&mut dump(&dir.path("t"))).expect(0);
    assert!(dumped.stdout.is_empty());
    let report: Value = serde_json::from_str(dumped.stderr.trim()).unwrap();
    assert_eq!(report["status"], "empty");
    assert_eq!((&report["first"], &report["last"]), (&0.into(), &0.into()));
}

#[test]
fn exit_codes_are_those_of_the_contract() {
    let dir = Dir::new();
    run(&mut dump(&dir.path("none"))).expect(4);
    run(amps().args(["torture", "dump"])).expect(2);
    run(&mut write(
        &dir.path("t"),
        1,
        &["--sync-every", "0", "--discard-lag", "0"],
    ))
    .expect(2);
    run(&mut write(
        &dir.path("t"),
        1,
        &[
            "--sync-every",
            "1",
            "--discard-lag",
            "0",
            "--min-len",
            "9",
            "--max-len",
            "8",
        ],
    ))
    .expect(2);

    let path = dir.path("locked");
    let lag = [
        "--sync-every",
        "50",
        "--discard-lag",
        "1000",
        "--capacity",
        "1048576",
    ];
    let mut owner = Running::start(&mut write(&path, 1, &lag));
    while !owner.line().unwrap().starts_with("durable") {}
    run(&mut write(&path, 2, &lag)).expect(5);
    // A live writer's store is dumped without the lock.
    run(&mut dump(&path)).expect(0);
    owner.kill();

    let letter = dir.path("letter");
    fs::create_dir(&letter).unwrap();
    fs::write(letter.join("torture.store"), "Dear reader,\n".repeat(1000)).unwrap();
    let no_store = run(&mut dump(&letter)).expect(6);
    let report: Value = serde_json::from_str(no_store.stderr.trim()).unwrap();
    assert_eq!(report["status"], "damaged");
    run(&mut write(&letter, 1, &lag)).expect(6);

    let file = path.join("torture.store");
    let mut bytes = fs::read(&file).unwrap();
    let dumped = frames(&run(&mut dump(&path)).expect(0).stdout);
    let victim = &dumped[dumped.len() / 4].1;
    let needle = &victim[..24.min(victim.len())];
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("it is in the file");
    bytes[at + 4] ^= 0x10;
    fs::write(&file, &bytes).unwrap();
    run(&mut write(&path, 2, &lag)).expect(6);
    let damaged = run(&mut dump(&path)).expect(6);
    let report: Value = serde_json::from_str(damaged.stderr.trim()).unwrap();
    assert_eq!(report["status"], "damaged");
    let salvaged = run(dump(&path).arg("--salvage"));
    let report: Value = serde_json::from_str(salvaged.stderr.trim()).unwrap();
    assert_eq!(report["dropped"], 1);
    assert_eq!(frames(&salvaged.stdout).len(), dumped.len() - 1);
    assert_eq!(fs::read(&file).unwrap(), bytes, "dump changed the store");
}
