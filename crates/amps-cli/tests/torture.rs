//! The torture contract, judged as a crash rig judges it: from outside, with a payload rule
//! of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Dir, Random, Running, amps, run};
use serde_json::Value;

/// The payload rule, written from the contract and not shared with the binary.
fn payload(seed: u64, run: u64, seq: u64, min: u64, max: u64) -> Vec<u8> {
    fn mix(mut z: u64) -> u64 {
        z = z.wrapping_add(0x9E3779B97F4A7C15);
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58476D1CE4E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D049BB133111EB);
        z ^ (z >> 31)
    }
    let len = min + mix(mix(seed ^ mix(seq)) ^ run) % (max - min + 1);
    let base = mix(seed ^ mix(run) ^ mix(seq ^ 0xA5A5A5A5));
    (0..len)
        .map(|at| {
            let i = at / 8;
            let word = match i {
                0 => run,
                1 => seq,
                _ => base.wrapping_add(i.wrapping_mul(0xD1342543DE82EF95)),
            };
            (word >> (8 * (at % 8))) as u8
        })
        .collect()
}

fn write(dir: &Path, run: u64, more: &[&str]) -> Command {
    let mut command = amps();
    command.args([
        "torture",
        "write",
        "--seed",
        "42",
        "--run",
        &run.to_string(),
        "--dir",
    ]);
    command.arg(dir).args(more);
    command
}

fn dump(dir: &Path) -> Command {
    let mut command = amps();
    command.args(["torture", "dump", "--dir"]).arg(dir);
    command
}

/// The frames of a dump: sequence and payload, in order.
fn frames(mut bytes: &[u8]) -> Vec<(u64, Vec<u8>)> {
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let (head, rest) = bytes.split_at(12);
        let sequence = u64::from_le_bytes(head[..8].try_into().unwrap());
        let len = u32::from_le_bytes(head[8..].try_into().unwrap()) as usize;
        let (payload, rest) = rest.split_at(len);
        out.push((sequence, payload.to_vec()));
        bytes = rest;
    }
    out
}

fn number(line: &str, key: &str) -> u64 {
    line.split(' ')
        .find_map(|word| word.strip_prefix(key)?.strip_prefix('='))
        .unwrap_or_else(|| panic!("no {key} in {line:?}"))
        .parse()
        .unwrap()
}

/// What a writer said, as far as it binds.
#[derive(Debug, Default)]
struct Said {
    /// First sequence of each run.
    runs: BTreeMap<u64, u64>,
    begun: u64,
    durable: u64,
    discarding: u64,
    discarded: u64,
}

impl Said {
    /// Takes a line in; every line must be one of the contract's.
    fn hear(&mut self, line: &str) {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let n = || {
            rest.parse::<u64>()
                .unwrap_or_else(|_| panic!("no number in {line:?}"))
        };
        match word {
            "open" => {
                self.runs.insert(number(line, "next"), number(line, "run"));
                assert!(
                    number(line, "last") <= self.begun,
                    "{line}: an invention, {self:?}"
                );
            }
            "begin" => self.begun = n(),
            "durable" => self.durable = n(),
            "discarding" => self.discarding = n(),
            "discarded" => self.discarded = n(),
            "end" => {}
            _ => panic!("unknown line {line:?}"),
        }
    }

    /// Judges a dump after a process crash, which loses nothing that was appended.
    #[track_caller]
    fn judge(&self, frames: &[(u64, Vec<u8>)], min: u64, max: u64) {
        for pair in frames.windows(2) {
            assert!(
                pair[0].0 < pair[1].0,
                "out of order: {} {}",
                pair[0].0,
                pair[1].0
            );
            let skipped = pair[0].0 + 1 != pair[1].0;
            assert!(
                !skipped || self.runs.contains_key(&pair[1].0),
                "a hole before {}",
                pair[1].0
            );
        }
        for (sequence, bytes) in frames {
            assert!(*sequence > self.discarded, "{sequence} came back");
            assert!(*sequence <= self.begun, "{sequence} was never written");
            let (_, run) = self
                .runs
                .range(..=sequence)
                .next_back()
                .expect("a run wrote it");
            assert_eq!(
                *bytes,
                payload(42, *run, *sequence, min, max),
                "bytes of {sequence}"
            );
        }
        let last = frames.last().map_or(0, |f| f.0);
        if self.durable > self.discarding {
            assert!(
                last >= self.durable,
                "durable {} is missing, {self:?}",
                self.durable
            );
        }
        if let Some((first, _)) = frames.first() {
            assert!(
                *first <= self.discarding.max(self.discarded) + 1 || self.runs.contains_key(first)
            );
        }
    }
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
    let mut said = Said::default();
    text.lines().for_each(|line| said.hear(line));
    assert_eq!((said.begun, said.durable), (100, 100));
    assert!(said.discarded >= 60 && said.discarded <= 80, "{said:?}");

    let before = fs::read(dir.path("t/torture.store")).unwrap();
    let dumped = run(&mut dump(&dir.path("t"))).expect(0);
    assert_eq!(
        fs::read(dir.path("t/torture.store")).unwrap(),
        before,
        "dump changed the store"
    );
    let beside: Vec<_> = fs::read_dir(dir.path("t")).unwrap().collect();
    assert_eq!(beside.len(), 1, "{beside:?}");

    let frames = frames(&dumped.stdout);
    said.judge(&frames, 16, 600);
    assert_eq!(frames.last().unwrap().0, 100);
    assert_eq!(frames.first().unwrap().0, said.discarded + 1);
    let report: Value = serde_json::from_str(dumped.stderr.trim()).unwrap();
    assert_eq!(report["status"], "ok");
    assert_eq!(report["first"], frames[0].0);
    assert_eq!(report["last"], 100);
    assert_eq!(report["count"], frames.len());
    assert_eq!(
        (&report["set_aside"], &report["dropped"]),
        (&0.into(), &0.into())
    );
    assert!(report["next"].as_u64().unwrap() >= 101);
    assert!(report["stop"].is_string());
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
fn a_killed_writer_loses_nothing_and_the_next_one_goes_on() {
    let mut random = Random::new("torture killed");
    for (capacity, max, threads) in [
        ("65536", 600, "1"),
        ("262144", 2000, "1"),
        ("262144", 600, "4"),
    ] {
        let dir = Dir::new();
        let path = dir.path("t");
        let mut said = Said::default();
        let mut reserved = None;
        for run_number in 1..=10 {
            let mut writer = Running::start(&mut write(
                &path,
                run_number,
                &[
                    "--capacity",
                    capacity,
                    "--max-len",
                    &max.to_string(),
                    "--sync-every",
                    "9",
                    "--discard-lag",
                    "30",
                    "--threads",
                    threads,
                ],
            ));
            for _ in 0..=random.below(400) {
                said.hear(&writer.line().expect("it writes for ever"));
            }
            writer.kill_and_hear(|line| said.hear(line));
            let file = fs::metadata(path.join("torture.store")).unwrap().len();
            let cap = capacity.parse::<u64>().unwrap();
            assert!(
                file <= cap && *reserved.get_or_insert(file) == file,
                "{file} of {cap}"
            );
            let dumped = run(&mut dump(&path)).expect(0);
            said.judge(&frames(&dumped.stdout), 16, max);
        }
    }
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
