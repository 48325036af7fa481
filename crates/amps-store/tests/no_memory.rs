//! A process that gets no more memory ends at once, wherever in the store that happens. What it
//! had stored is there, and nothing else.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::alloc::System;
use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use amps_store::testkit::Rng;
use amps_store::{Batch, Envelope, OpenError, Options, PublishStore, Store};
use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);

/// Set in a child process: where its store is, and how many more bytes it gets.
const CHILD: &str = "AMPS_MEMORY_CHILD";
const MORE: &str = "AMPS_MEMORY_MORE";

const STEPS: u64 = 1500;
/// How many children there are, each with another limit below what an unlimited one needs.
const LIMITS: usize = 60;

fn options() -> Options {
    Options::new()
        .capacity(512 << 10)
        .segment_size(32 << 10)
        .client_name("memory")
}

fn payload(sequence: u64) -> Vec<u8> {
    vec![sequence as u8; Rng::new(sequence).below(300) as usize]
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    next: u64,
    unsettled: BTreeMap<u64, Vec<u8>>,
    refused: BTreeSet<u64>,
}

#[derive(Clone, Copy, Debug)]
enum Step {
    Publish(u64),
    SettleThrough(u64),
    Settle(u64),
    Reject(u64),
}

/// The n-th step, given the state after all earlier ones.
fn step(n: u64, state: &State) -> Step {
    let newest = state.next;
    match n % 12 {
        3 => Step::SettleThrough(newest.saturating_sub(150)),
        7 => Step::Settle(newest.saturating_sub(5)),
        10 => Step::Reject(newest.saturating_sub(2)),
        _ => Step::Publish(newest + 1),
    }
}

impl State {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Publish(s) => {
                self.next = s;
                self.unsettled.insert(s, payload(s));
            }
            Step::SettleThrough(s) => self.unsettled.retain(|at, _| *at > s),
            Step::Settle(s) => drop(self.unsettled.remove(&s)),
            Step::Reject(s) => {
                if self.unsettled.remove(&s).is_some() {
                    self.refused.insert(s);
                }
            }
        }
    }

    fn of(store: &Store) -> Self {
        let mut all = Batch::new(usize::MAX, usize::MAX);
        store.read_unsettled(0, u64::MAX, &mut all).expect("intact");
        let unsettled: BTreeMap<u64, Vec<u8>> = all
            .iter()
            .map(|m| (m.sequence, m.payload().to_vec()))
            .collect();
        let refused = store.rejections(0, usize::MAX);
        let refused: BTreeSet<u64> = refused.iter().map(|r| r.sequence).collect();
        State {
            next: 0,
            unsettled,
            refused,
        }
    }
}

/// Not a test by itself: what a process does that gets this much memory and no more.
#[test]
#[ignore = "started by the tests that set its limits"]
fn child_without_memory() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let more: usize = std::env::var(MORE)
        .expect("set with the path")
        .parse()
        .expect("a number");
    let before = HEAP.allocated();
    HEAP.set_limit(before.saturating_add(more))
        .expect("more than is taken");
    let store = match Store::open(&path, options()) {
        Ok(store) => store,
        Err(OpenError::Io { .. }) => {
            // System calls report a lack of memory as an error.
            println!("\ndid 0");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let mut state = State::default();
    for n in 0..STEPS {
        let step = step(n, &state);
        match step {
            Step::Publish(s) => {
                let deadline = Instant::now() + Duration::from_secs(30);
                let at = store
                    .append_wait(&Envelope::publish("t"), &payload(s), deadline)
                    .expect("room");
                assert_eq!(at.sequence, s);
            }
            Step::SettleThrough(s) => drop(store.settle_through(s).expect("settles")),
            Step::Settle(s) => drop(store.settle(&[s]).expect("settles")),
            Step::Reject(s) => drop(store.reject(s, "no", 1).expect("is logged")),
        }
        state.apply(step);
        println!("\ndid {}", n + 1);
    }
    println!("\ntook {}", HEAP.max_allocated().saturating_sub(before));
}

fn run(path: &Path, more: usize) -> (Output, String) {
    let child = Command::new(std::env::current_exe().expect("this test"))
        .args([
            "--exact",
            "child_without_memory",
            "--ignored",
            "--nocapture",
        ])
        .env(CHILD, path)
        .env(MORE, more.to_string())
        .output()
        .expect("starts");
    let said = String::from_utf8_lossy(&child.stdout).into_owned();
    (child, said)
}

fn last(said: &str, word: &str) -> Option<u64> {
    said.lines()
        .rev()
        .find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
}

#[test]
fn a_process_without_memory_loses_nothing_and_invents_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_, said) = run(&dir.path().join("unlimited"), usize::MAX >> 1);
    assert_eq!(last(&said, "did "), Some(STEPS), "{said}");
    let takes = last(&said, "took ").expect("it says so") as usize;

    let mut aborted = 0;
    let mut early = 0;
    for limit in 0..LIMITS {
        let path = dir.path().join(format!("{limit}"));
        let (child, said) = run(&path, takes * limit / LIMITS);
        let errors = String::from_utf8_lossy(&child.stderr);
        let ended_so = child.status.signal() == Some(6) && errors.contains("memory allocation of");
        assert!(
            ended_so || child.status.success(),
            "{:?}: {errors}",
            child.status
        );
        aborted += u64::from(ended_so);
        let did = last(&said, "did ").unwrap_or(0);
        early += u64::from(did < STEPS);

        let mut state = State::default();
        for n in 0..did {
            let step = step(n, &state);
            state.apply(step);
        }
        // The step in which it died may have been finished.
        let mut one_more = state.clone();
        one_more.apply(step(did, &state));
        let store = Store::open(&path, options()).expect("opens, whatever happened");
        let found = State::of(&store);
        let is = |state: State| State { next: 0, ..state } == found;
        assert!(is(state) || is(one_more), "limit {limit}, did {did}");
        drop(store);
        std::fs::remove_file(&path).expect("removed");
    }
    assert!(
        aborted > LIMITS as u64 / 2 && early > LIMITS as u64 / 2,
        "{aborted} of {LIMITS} ended for want of memory"
    );
}
