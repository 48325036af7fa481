//! The whole system in virtual time: publishers with the real store, delivery and session,
//! model servers, and a network, with everything going wrong that may. One seed is one run.
//!
//! Beside AMPS over bytes there are servers that ack each message by itself, event by event
//! (`sim/single.rs`): another world below the same engine, under the same seeds.
//!
//! `AMPS_SEEDS=n` runs n seeds, `AMPS_SEEDS=forever` runs until something is found, from
//! `AMPS_FROM` on; `AMPS_SEED=s` runs one and prints its history, with `AMPS_PLANTED=name` that
//! of a planted defect.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs, unreachable_pub)]

#[path = "sim/mod.rs"]
#[allow(
    dead_code,
    reason = "shared with tests/histories.rs, which uses the rest"
)]
mod sim;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use amps_client::testkit::{Planted, plant};
use sim::{chaos, single};

/// Seeds of a run without any variable: within a minute on two processors in release.
const SEEDS: u64 = if cfg!(debug_assertions) { 250 } else { 2500 };

/// A run of one seed, with its history if one is wanted.
type Run<S> = fn(u64, &mut Option<Vec<String>>) -> S;

#[test]
fn nothing_is_lost_invented_reordered_or_claimed_in_any_history() {
    let Some((from, seeds)) = wanted(chaos::run, &Planted::ALL) else {
        return;
    };
    let seen = all(chaos::run, from, seeds);
    println!("{seen:?}");
    assert!(seen.acked > 0 && seen.at_logon > 0 && seen.refused > 0);
    all_happened(from, seeds, &seen.worth_judging());
}

#[test]
fn nor_where_each_message_has_an_ack_of_its_own() {
    let Some((from, seeds)) = wanted(single::run, &Planted::SINGLE) else {
        return;
    };
    let seen = all(single::run, from, seeds);
    println!("{seen:?}");
    all_happened(from, seeds, &seen.worth_judging());
}

/// A simulation that misses a planted defect proves nothing about others.
#[test]
fn every_planted_defect_is_caught() {
    each_is_caught(chaos::run, &Planted::ALL);
}

#[test]
fn and_so_are_those_of_single_acks() {
    each_is_caught(single::run, &Planted::SINGLE);
}

/// From which seed on to run how many; none: one was wanted, and was run.
fn wanted<S>(run: Run<S>, planted: &[Planted]) -> Option<(u64, u64)> {
    if let Ok(seed) = std::env::var("AMPS_SEED") {
        if let Ok(name) = std::env::var("AMPS_PLANTED") {
            let named = |defect: &&Planted| format!("{defect:?}") == name;
            let defect = planted.iter().find(named)?;
            plant(Some(*defect));
        }
        story(run, seed.parse().expect("a number"), usize::MAX);
        return None;
    }
    let seeds = match std::env::var("AMPS_SEEDS") {
        Ok(text) if text == "forever" => u64::MAX,
        Ok(text) => text.parse().expect("a number, or forever"),
        Err(_) => SEEDS,
    };
    let from = std::env::var("AMPS_FROM").map_or(0, |n| n.parse().expect("a number"));
    Some((from, seeds))
}

fn all_happened(from: u64, seeds: u64, what: &[(&str, u64)]) {
    if seeds >= SEEDS && from == 0 {
        for (what, count) in what {
            assert!(*count > 0, "in {seeds} runs {what} never happened");
        }
    }
}

fn each_is_caught<S>(run: Run<S>, planted: &[Planted]) {
    const MOST: u64 = 1000;
    let fails = |seed, defect| {
        plant(defect);
        let quiet = Quiet::begin();
        let run = catch_unwind(AssertUnwindSafe(|| run(seed, &mut None)));
        drop(quiet);
        plant(None);
        run.is_err()
    };
    let next = AtomicUsize::new(0);
    let work = || {
        while let Some(&defect) = planted.get(next.fetch_add(1, Ordering::Relaxed)) {
            // It is the defect that fails, and not the seed.
            let caught = (0..MOST).find(|seed| fails(*seed, Some(defect)) && !fails(*seed, None));
            let seed = caught.unwrap_or_else(|| panic!("{defect:?} is caught by none of {MOST}"));
            println!("{defect:?} is caught by seed {seed}");
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        work();
        other.join().expect("it says what it missed");
    });
}

/// Runs seeds on two threads; each run is on one.
fn all<S>(run: Run<S>, from: u64, seeds: u64) -> S
where
    S: Default + std::ops::AddAssign + Send,
{
    let next = AtomicU64::new(from);
    let end = from.saturating_add(seeds);
    let work = || {
        let mut seen = S::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= end {
                return seen;
            }
            match catch_unwind(AssertUnwindSafe(|| run(seed, &mut None))) {
                Ok(one) => seen += one,
                Err(_) => {
                    next.store(end, Ordering::Relaxed);
                    story(run, seed, 60);
                    panic!("seed {seed} fails, and not when it is run again");
                }
            }
        }
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut seen = work();
        seen += other.join().expect("its story is told above");
        seen
    })
}

/// Runs a seed and prints the end of its history if it fails.
fn story<S>(run: Run<S>, seed: u64, lines: usize) {
    let mut trace = Some(Vec::new());
    let outcome = catch_unwind(AssertUnwindSafe(|| drop(run(seed, &mut trace))));
    let told = trace.unwrap_or_default();
    if let Err(panic) = outcome {
        let skip = told.len().saturating_sub(lines);
        eprintln!(
            "seed {seed} fails; its history:\n{}",
            told.first().map_or("", |l| l)
        );
        eprintln!("{}", told[skip..].join("\n"));
        std::panic::resume_unwind(panic);
    }
}

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

/// While it lives, panics of this thread are expected and print nothing.
struct Quiet;

impl Quiet {
    fn begin() -> Self {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let tell = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |panic| {
                if !QUIET.get() {
                    tell(panic);
                }
            }));
        });
        QUIET.set(true);
        Quiet
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        QUIET.set(false);
    }
}
