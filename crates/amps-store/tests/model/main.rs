//! The real log on a simulated disk against a reference model, under generated actions: append,
//! settle, refuse, accept, requeue, sync, chores, process crashes, power cuts (all of them also
//! between the beginning and the end of a sync), failing syncs, a disk that fills, flipped bits.
//!
//! The model is a list of what was done, each with the ordinals it took. Whatever happens
//! to the disk, what an open recovers must be the state after some prefix of that list,
//! and never a prefix shorter than what was durable. Expected payloads follow from
//! (seed, run, sequence), so the store is never asked what it should contain.
//!
//! `AMPS_SEEDS=n` runs n seeds, from `AMPS_FROM` on; `AMPS_SEED=s` one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod named;
mod starts;
mod state;
mod world;

use std::collections::BTreeMap;

use amps_store::Envelope;
use amps_store::testkit::{Bug, Rng, plant};

use named::{
    ENVELOPE, a_torn_head_meets_a_tail_by_chance, an_earlier_lap_stands_behind_the_tail,
    every_message_is_refused, every_message_is_refused_on_a_full_disk,
    the_power_is_cut_in_a_creation,
};
use starts::{
    a_late_refusal_meets_a_start_that_is_written, a_settlement_finds_room_while_a_start_is_written,
    the_first_record_of_the_log_is_missed_until_it_is_told, what_is_free_is_not_synced,
    what_the_superblock_calls_durable_is_missed,
};
use world::{Meanwhile, World};

/// A run whose choices are these bytes, for fuzzers.
pub fn play(tape: &[u8]) {
    drop(played(tape));
}

fn played(tape: &[u8]) -> World {
    let mut world = World::new(0, Rng::from_tape(tape)).with_time();
    watched(&mut world, |world| {
        world.live(|done, rng| rng.is_played() || done == 5000);
    });
    world
}

/// A world in which syncs take time.
fn world(seed: u64) -> World {
    World::new(seed, Rng::new(seed)).with_time()
}

/// Runs a seed, and returns its world.
fn run(seed: u64) -> World {
    let mut world = world(seed);
    watched(&mut world, World::explore);
    world
}

/// Shows the end of a history that fails.
fn watched(world: &mut World, live: impl FnOnce(&mut World)) {
    let seed = world.seed;
    let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| live(world)));
    if let Err(panic) = outcome {
        let from = world.trace.len().saturating_sub(
            std::env::var("AMPS_TRACE").map_or(25, |n| n.parse().expect("a number")),
        );
        eprintln!(
            "seed {seed}; the end of its history:\n{}",
            world.trace[from..].join("\n")
        );
        std::panic::resume_unwind(panic);
    }
}

/// A late refusal of a message in a segment that no mark needed (1298); a segment in the middle of
/// a log that the marks had given up, freed before the others (4329); a flipped bit in the stamp
/// of a freed segment (3690), and in a mark behind which nothing but marks was synced (8632); a power
/// cut between a late refusal and its message (39246); a flipped bit in the epoch that had declared
/// dead what stands in a segment that is in use again (48802), and in a refusal before an epoch that
/// skips numbers (62701); one in a copy, and one more where the message stood first (72404); bits of a
/// record in the middle of the log and of its last (2060). No rule for that may refuse what only
/// crashes touched (35694, 49291). A late refusal that waited for a sync, while room for it was made
/// by freeing the segment of its message (8516). A flipped bit in the epoch behind a power cut, which
/// brings back settlements that the cut had taken (58045). A late refusal that needed its message
/// again in a segment that the start was about to pass, and was requeued while the start waited for a
/// sync: a power cut took the requeue, and the refusal came back without its message (76523).
#[test]
fn what_long_runs_found() {
    for seed in [
        1298, 4329, 3690, 8632, 39246, 48802, 62701, 72404, 2060, 35694, 49291,
    ] {
        // These were found when a sync was a single step.
        let mut world = World::new(seed, Rng::new(seed));
        watched(&mut world, World::explore);
    }
    run(8516);
    run(58045);
    run(76523);
}

/// Everything that many seeds together must have met.
const MET: [&str; 18] = [
    "a clean close",
    "a crash behind a failed sync",
    "a flipped bit at the end, or nowhere",
    "a full disk",
    "a full store",
    "a larger capacity",
    "a late refusal",
    "a late refusal without its message",
    "a power cut",
    "a power cut in an open",
    "a rebase",
    "a refusal behind a failed sync",
    "a requeue",
    "a salvage",
    "an evacuation",
    "an open that fails",
    "several flipped bits, judged",
    "something set aside",
];

#[test]
fn the_store_is_its_model() {
    if let Ok(seed) = std::env::var("AMPS_SEED") {
        run(seed.parse().expect("a number"));
        return;
    }
    let seeds = std::env::var("AMPS_SEEDS").map_or(500, |s| s.parse().expect("a number"));
    let from = std::env::var("AMPS_FROM").map_or(0, |n| n.parse().expect("a number"));
    let (mut cuts, mut meanwhile) = (0, Meanwhile::default());
    let mut met: BTreeMap<&str, u64> = BTreeMap::new();
    for world in (from..from + seeds).map(run) {
        cuts += world.cuts;
        meanwhile.actions += world.meanwhile.actions;
        meanwhile.chores += world.meanwhile.chores;
        meanwhile.cuts += world.meanwhile.cuts;
        for (what, often) in world.met {
            *met.entry(what).or_default() += often;
        }
    }
    println!("{met:#?}");
    println!("{cuts} times a file became shorter; beside calls of the device: {meanwhile:?}");
    assert!(cuts > seeds / 10, "{cuts} cuts in {seeds} runs");
    assert!(meanwhile.actions > 10 * seeds, "{meanwhile:?}");
    assert!(
        meanwhile.chores > seeds / 10 && meanwhile.cuts > seeds / 10,
        "{meanwhile:?}"
    );
    let missed: Vec<_> = MET.iter().filter(|what| !met.contains_key(*what)).collect();
    assert!(seeds < 500 || missed.is_empty(), "never met: {missed:?}");
}

#[test]
fn no_record_of_an_earlier_lap_follows_the_tail() {
    let envelope = amps_store::testkit::encode_envelope(&Envelope::publish("t"));
    assert_eq!(envelope.expect("encodes").len(), ENVELOPE);
    (0..40).for_each(an_earlier_lap_stands_behind_the_tail);
}

#[test]
fn a_creation_that_the_power_cuts_stands_in_nobodys_way() {
    the_power_is_cut_in_a_creation();
}

#[test]
fn a_torn_record_is_gone_before_anything_is_written_over_it() {
    a_torn_head_meets_a_tail_by_chance();
}

#[test]
fn h24_every_refusal_of_a_full_ring_finds_room() {
    every_message_is_refused();
}

#[test]
fn h24_every_refusal_finds_room_when_the_disk_is_full_before_the_ring_is() {
    every_message_is_refused_on_a_full_disk();
}

#[test]
fn a_late_refusal_brings_its_message_while_a_start_is_written() {
    a_late_refusal_meets_a_start_that_is_written();
}

#[test]
fn damage_that_only_the_superblock_tells_from_a_power_cut_is_told() {
    what_the_superblock_calls_durable_is_missed();
}

#[test]
fn a_log_without_its_first_record_is_told_whoever_dies_over_it() {
    the_first_record_of_the_log_is_missed_until_it_is_told();
}

#[test]
fn a_sync_a_close_and_an_open_write_what_is_in_use() {
    what_is_free_is_not_synced();
}

#[test]
fn nothing_that_must_be_noted_fails_while_a_start_is_written() {
    a_settlement_finds_room_while_a_start_is_written();
}

/// Each way to break the store is caught by the tests above: the check of the checks.
#[test]
fn every_planted_bug_is_caught() {
    let only = std::env::var("AMPS_BUG").ok();
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for bug in Bug::ALL
        .iter()
        .copied()
        // Those that need a real file are caught in `device.rs`.
        .filter(|b| ![Bug::AsyncSync, Bug::SparseFile].contains(b))
        .filter(|b| only.as_ref().is_none_or(|o| *o == format!("{b:?}")))
    {
        plant(Some(bug));
        let is_caught =
            |run: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err();
        let named: [(&str, &dyn Fn()); 8] = [
            ("H24", &every_message_is_refused),
            (
                "H24 on a full disk",
                &every_message_is_refused_on_a_full_disk,
            ),
            ("a torn head", &a_torn_head_meets_a_tail_by_chance),
            (
                "a late refusal",
                &a_late_refusal_meets_a_start_that_is_written,
            ),
            (
                "a named durable mark",
                &what_the_superblock_calls_durable_is_missed,
            ),
            (
                "a first record",
                &the_first_record_of_the_log_is_missed_until_it_is_told,
            ),
            (
                "a settlement beside a write",
                &a_settlement_finds_room_while_a_start_is_written,
            ),
            ("an earlier lap", &|| {
                (0..40).for_each(an_earlier_lap_stands_behind_the_tail);
            }),
        ];
        let by_name = named.iter().find(|(_, run)| is_caught(run));
        let by_seed = || (0..20_000).find(|seed| is_caught(&|| world(*seed).explore()));
        let caught = match by_name {
            Some((name, _)) => Some((*name).to_owned()),
            None => by_seed().map(|seed| format!("seed {seed}")),
        };
        plant(None);
        match caught {
            Some(by) => println!("{bug:?} is caught by {by}"),
            None => missed.push(bug),
        }
    }
    std::panic::set_hook(loud);
    assert!(missed.is_empty(), "not caught: {missed:?}");
}

#[test]
fn a_tape_is_a_run() {
    let mut rng = Rng::new(7);
    let tape: Vec<u8> = (0..3000).map(|_| rng.bits() as u8).collect();
    let history = played(&tape).trace;
    assert!(history.len() > 100, "{history:?}");
}
