//! SIGKILL at any moment of a writer's life: nothing that was appended is lost, nothing
//! that was discarded comes back, and no number is given out twice.
//!
//! Judged from outside, only by `docs/torture.md`. 400 kills by default, `AMPS_ROUNDS=n` for
//! another number; `AMPS_SEED` repeats a run's choices. Where a kill hits depends on the machine;
//! with `AMPS_FULL=1` it is asserted that they hit everywhere.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use common::rig::{Oracle, Rule, dumped};
use common::{Dir, Random, Running, amps};

/// Kills before a store is replaced by a fresh one, so that many hit a creation.
const LIFE: u64 = 40;

fn rounds() -> u64 {
    std::env::var("AMPS_ROUNDS").map_or(400, |n| n.parse().expect("AMPS_ROUNDS is a number"))
}

/// Whether to assert what depends on chance: on a machine that does nothing else.
fn full() -> bool {
    std::env::var_os("AMPS_FULL").is_some() && rounds() >= 400
}

/// A number from 1 to `most`, with every order of magnitude equally likely.
fn log_uniform(random: &mut Random, most: u64) -> u64 {
    let bits = random.below(u64::from(most.ilog2()) + 1);
    ((1 << bits) + random.below(1 << bits)).min(most)
}

/// Burns time without giving up the processor, so that a kill may hit any instruction.
fn spin(time: Duration) {
    let until = Instant::now() + time;
    while Instant::now() < until {
        std::hint::spin_loop();
    }
}

/// One run of a writer.
struct Plan {
    rule: Rule,
    capacity: u64,
    sync_every: u64,
    discard_lag: u64,
    threads: u64,
    count: u64,
}

impl Plan {
    fn new(random: &mut Random, seed: u64, run: u64, capacity: u64) -> Self {
        // The largest record is a quarter of a segment, and that about a sixteenth of the
        // capacity.
        let longest = if capacity < 1 << 20 { 1800 } else { 12_000 };
        let min = random.below(64);
        let max = min + log_uniform(random, longest - min);
        Plan {
            rule: Rule {
                seed,
                run,
                min,
                max,
            },
            capacity,
            sync_every: log_uniform(random, 200),
            discard_lag: match random.below(4) {
                0 => 0,
                // Never reached, since the ring fills up before.
                1 => 1 << 40,
                _ => log_uniform(random, 300),
            },
            threads: [1, 1, 2, 4][random.below(4) as usize],
            count: match random.below(8) {
                0 => log_uniform(random, 500),
                _ => 0,
            },
        }
    }

    fn command(&self, dir: &Path) -> Command {
        let mut command = amps();
        command.args(["torture", "write", "--dir"]).arg(dir);
        for (name, value) in [
            ("--seed", self.rule.seed),
            ("--run", self.rule.run),
            ("--min-len", self.rule.min),
            ("--max-len", self.rule.max),
            ("--capacity", self.capacity),
            ("--sync-every", self.sync_every),
            ("--discard-lag", self.discard_lag),
            ("--threads", self.threads),
            ("--count", self.count),
        ] {
            command.args([name, &value.to_string()]);
        }
        command
    }
}

/// What a test has seen, to prove that it did see something.
#[derive(Debug, Default)]
struct Seen {
    killed_before_open: u64,
    killed_at_work: u64,
    ended: u64,
    no_store_yet: u64,
    messages: u64,
    live_dumps: u64,
    /// Writers that write for ever and were heard from first: each of them is killed at work.
    sure_to_work: u64,
}

fn kill_again_and_again(test: &str, capacity: u64) {
    let mut random = Random::new(test);
    let seed = random.below(u64::MAX);
    let mut seen = Seen::default();
    let mut dir = Dir::new();
    let mut oracle = Oracle::default();
    for round in 0..rounds() / 2 {
        if round % LIFE == 0 {
            dir = Dir::new();
            oracle = Oracle::default();
        }
        let path = dir.path("t");
        let plan = Plan::new(&mut random, seed, round + 1, capacity);
        one_life(&plan, &path, &mut oracle, &mut random, &mut seen);
    }
    println!("{test}: {seen:?}");
    assert!(seen.killed_at_work >= seen.sure_to_work, "{seen:?}");
    assert!(rounds() < 400 || seen.sure_to_work > 0, "{seen:?}");
    if full() {
        assert!(seen.killed_before_open > 10, "{seen:?}");
        assert!(seen.killed_at_work > 50, "{seen:?}");
        assert!(seen.live_dumps > 10, "{seen:?}");
        assert!(seen.messages > 1000, "{seen:?}");
    }
}

fn one_life(plan: &Plan, dir: &Path, oracle: &mut Oracle, random: &mut Random, seen: &mut Seen) {
    oracle.ended = false;
    let mut writer = Running::start(&mut plan.command(dir));
    let early = random.below(4) == 0;
    if early {
        // During open, during creation, or before the first instruction.
        spin(Duration::from_micros(log_uniform(random, 1 << 14)));
    } else {
        for _ in 0..log_uniform(random, 1 << 9) {
            match writer.line() {
                Some(line) => oracle.hear(plan.rule, &line),
                None => break,
            }
        }
        spin(Duration::from_micros(log_uniform(random, 1 << 11)));
    }
    seen.sure_to_work += u64::from(!early && plan.count == 0);
    let live = (!early && random.below(4) == 0).then(|| (oracle.clone(), dumped(dir)));
    let mut opened = !early;
    writer.kill_and_hear(|line| {
        opened = true;
        oracle.hear(plan.rule, line);
    });
    if let Some((earlier, dumped)) = &live {
        seen.live_dumps += 1;
        oracle.judge_live(earlier, dumped.as_ref().expect("it said open"));
    }
    match (opened, oracle.ended) {
        (false, _) => seen.killed_before_open += 1,
        (true, false) => seen.killed_at_work += 1,
        (true, true) => seen.ended += 1,
    }

    let file = dir.join("torture.store");
    let before = fs::read(&file).ok();
    let found = dumped(dir);
    assert_eq!(fs::read(&file).ok(), before, "dump changed the store");
    if let Ok(beside) = fs::read_dir(dir) {
        assert!(beside.count() <= 1, "something stands beside the store");
    }
    if let Some(bytes) = &before {
        assert!(bytes.len() as u64 <= plan.capacity, "{} bytes", bytes.len());
    }
    match &found {
        Some(found) => seen.messages += found.frames.len() as u64,
        None => seen.no_store_yet += 1,
    }
    oracle.judge_killed(found.as_ref());
}

#[test]
fn a_small_store_killed_hundreds_of_times_loses_nothing() {
    kill_again_and_again("64 KiB killed", 64 << 10);
}

#[test]
fn a_larger_store_killed_hundreds_of_times_loses_nothing() {
    kill_again_and_again("1 MiB killed", 1 << 20);
}

#[test]
fn a_kill_during_creation_leaves_an_empty_store_or_none() {
    let mut random = Random::new("creation killed");
    let (mut none, mut empty) = (0, 0);
    // How long a creation takes on this machine, however busy it is: kills are spread around
    // that.
    let mut usual = Duration::ZERO;
    for run in 0..rounds() / 4 {
        let dir = Dir::new();
        let path = dir.path("t");
        let plan = Plan::new(&mut random, 1, run + 1, 1 << 20);
        let mut oracle = Oracle::default();
        let writer = Running::start(&mut plan.command(&path));
        let longest = (2 * usual.as_micros() as u64).max(1 << 13);
        spin(Duration::from_micros(log_uniform(&mut random, longest)));
        writer.kill_and_hear(|line| oracle.hear(plan.rule, line));
        let found = dumped(&path);
        match &found {
            None => none += 1,
            Some(found) if found.frames.is_empty() => empty += 1,
            Some(_) => {}
        }
        oracle.judge_killed(found.as_ref());
        // Whatever was left, the next run begins with it.
        let plan = Plan {
            count: 10,
            ..Plan::new(&mut random, 1, run + 1, 1 << 20)
        };
        let begun = Instant::now();
        let ran = common::run(&mut plan.command(&path)).expect(0);
        usual = begun.elapsed();
        for line in ran.text().lines() {
            oracle.hear(plan.rule, line);
        }
        oracle.judge_killed(dumped(&path).as_ref());
    }
    println!("{none} killed before there was a store, {empty} with an empty one");
    if full() {
        assert!(none > 0 && empty > 0, "{none} none, {empty} empty");
    }
}

/// An oracle that is content with anything would be useless.
mod the_oracle_sees {
    use super::*;
    use common::rig::Dumped;

    const RULE: Rule = Rule {
        seed: 5,
        run: 1,
        min: 16,
        max: 64,
    };

    /// A run that appended 1 to 30, synced 20, discarded 5 and was about to discard 8.
    fn heard() -> Oracle {
        let mut oracle = Oracle::default();
        for line in [
            "open first=0 last=0 next=1 run=1",
            "begin 20",
            "durable 20",
            "discarding 5",
            "discarded 5",
            "begin 30",
            "discarding 8",
        ] {
            oracle.hear(RULE, line);
        }
        oracle
    }

    fn found(sequences: impl Iterator<Item = u64>, next: u64) -> Dumped {
        let frames: Vec<_> = sequences.map(|s| (s, RULE.payload(s))).collect();
        Dumped {
            report: serde_json::json!({ "next": next }),
            frames,
        }
    }

    fn judged(dumped: Dumped) -> bool {
        std::panic::catch_unwind(move || heard().judge_killed(Some(&dumped))).is_ok()
    }

    #[test]
    fn what_is_legal() {
        for (first, last) in [(6, 20), (9, 20), (7, 25), (9, 30)] {
            assert!(judged(found(first..=last, 31)), "{first}..{last}");
        }
    }

    #[test]
    fn losses_inventions_repetitions_and_changes() {
        assert!(!judged(found(6..=19, 31)), "a durable message is lost");
        assert!(
            !judged(found(10..=20, 31)),
            "more was discarded than asked for"
        );
        assert!(!judged(found(5..=20, 31)), "a discarded message came back");
        assert!(!judged(found(6..=31, 32)), "a message nobody wrote");
        assert!(!judged(found((6..=20).filter(|s| *s != 11), 31)), "a hole");
        assert!(!judged(found(0..0, 31)), "everything is lost");
        assert!(!judged(found(6..=25, 25)), "a number to be used again");
        let mut changed = found(6..=20, 31);
        changed.frames[3].1[15] ^= 1;
        assert!(!judged(changed), "a changed byte");
        let swapped = found([7, 6].into_iter().chain(8..=20), 31);
        assert!(!judged(swapped), "another order");
        assert!(
            std::panic::catch_unwind(|| heard().judge_killed(None)).is_err(),
            "the store is gone"
        );
    }
}
