//! The real log on a simulated disk against a reference model, under generated actions:
//! append, settle, refuse, accept, requeue, sync, chores, process crashes, power cuts,
//! failing syncs, a disk that fills, flipped bits.
//!
//! The model is a list of what was done, each with the ordinals it took. Whatever happens
//! to the disk, what an open recovers must be the state after some prefix of that list,
//! and never a prefix shorter than what was durable. Expected payloads follow from
//! (seed, run, sequence), so the store is never asked what it should contain.
//!
//! `AMPS_SEEDS=n` runs n seeds, `AMPS_SEED=s` one.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};

use amps_store::testkit::{Bug, Cut, Fault, Rng, SimDisk, has_failed, last_ordinal, plant, step};
use amps_store::{
    AppendError, Envelope, Level, OpenError, Options, PublishStore, Rebase, Recovery, Rejected,
    Store, StoreError, StoredMessage,
};

fn payload(seed: u64, run: u64, sequence: u64) -> Vec<u8> {
    let mut rng = Rng::new(seed ^ run.rotate_left(20) ^ sequence.rotate_left(40));
    let len = match rng.below(10) {
        0 => 0,
        1 => rng.below(1500),
        _ => rng.below(200),
    };
    (0..len).map(|_| rng.bits() as u8).collect()
}

#[derive(Clone, Debug)]
enum Op {
    Publish {
        sequence: u64,
        payload: Vec<u8>,
        tag: u64,
    },
    SettleThrough(u64),
    Settle(Vec<u64>),
    Reject {
        sequence: u64,
        reason: String,
    },
    Accept(u64),
    Requeue {
        from: u64,
        to: u64,
    },
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    unsettled: BTreeMap<u64, Vec<u8>>,
    rejected: BTreeMap<u64, (Vec<u8>, String)>,
    tag: Option<u64>,
}

impl State {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish {
                sequence,
                payload,
                tag,
            } => {
                self.unsettled.insert(*sequence, payload.clone());
                self.tag = Some(*tag);
            }
            Op::SettleThrough(n) => self.unsettled.retain(|s, _| s > n),
            Op::Settle(list) => list.iter().for_each(|s| drop(self.unsettled.remove(s))),
            Op::Reject { sequence, reason } => {
                if let Some(payload) = self.unsettled.remove(sequence) {
                    self.rejected.insert(*sequence, (payload, reason.clone()));
                }
            }
            Op::Accept(s) => drop(self.rejected.remove(s)),
            Op::Requeue { from, to } => {
                let refused = self.rejected.remove(from).map(|r| r.0);
                // A refusal that was in memory only is known by what accepted it.
                if let Some(payload) = refused.or_else(|| self.unsettled.remove(from)) {
                    self.unsettled.insert(*to, payload);
                }
            }
        }
    }
}

struct Done {
    /// Ordinals it may have used: more than `after`, at most `through`.
    after: u64,
    through: u64,
    op: Op,
    /// What a recovery finds of it; `None`: it holds in memory only.
    found: Option<Op>,
    /// A settlement after a failed sync may hold in memory only.
    optional: bool,
}

struct World {
    seed: u64,
    rng: Rng,
    disk: SimDisk,
    store: Option<Store>,
    base: State,
    log: Vec<Done>,
    /// Refusals that came after a failed sync and are in memory only.
    held: BTreeSet<u64>,
    run: u64,
    /// Highest sequence that may be on the wire.
    granted: u64,
    /// The numbers of the superblock, unless a failure left them open.
    numbers: Option<(u64, Option<Rebase>)>,
    given: BTreeSet<u64>,
    options: Options,
    /// No acknowledgement comes.
    backlog: bool,
    /// Times the file became shorter while its store was open.
    cuts: u64,
    trace: Vec<String>,
}

impl World {
    fn new(seed: u64, mut rng: Rng) -> Self {
        let capacity = 64 << 10 << rng.below(3);
        let segment = 8192 << rng.below(2).min(u64::from(capacity > 110 << 10));
        let options = Options::new()
            .capacity(capacity)
            .segment_size(segment)
            .client_name("model")
            .level(if rng.one_in(3) {
                Level::Disk
            } else {
                Level::Os
            })
            .preallocate(rng.one_in(2));
        let mut world = World {
            seed,
            rng,
            disk: SimDisk::new(),
            store: None,
            base: State::default(),
            log: Vec::new(),
            held: BTreeSet::new(),
            run: 0,
            granted: 0,
            numbers: Some((0, None)),
            given: BTreeSet::new(),
            options,
            backlog: false,
            cuts: 0,
            trace: Vec::new(),
        };
        world.store = Some(world.disk.open(world.options.clone()).expect("creates"));
        world
    }

    fn store(&self) -> &Store {
        self.store.as_ref().expect("open")
    }

    fn now(&self) -> State {
        let mut state = self.base.clone();
        self.log.iter().for_each(|d| state.apply(&d.op));
        state
    }

    fn record(&mut self, after: u64, op: Op) {
        let through = last_ordinal(self.store());
        self.trace
            .push(format!("{after}..{through} {}", short(&op)));
        let failed = has_failed(self.store());
        let settles = matches!(op, Op::Settle(_) | Op::SettleThrough(_));
        let mut done = Done {
            after,
            through,
            found: Some(op.clone()),
            op,
            optional: settles && failed,
        };
        let first_held = |world: &Self| world.held.first().map_or(u64::MAX, |s| s - 1);
        match done.op {
            // No mark settles a refusal that is in memory only.
            Op::SettleThrough(n) => {
                done.found = Some(Op::SettleThrough(n.min(first_held(self))));
            }
            // It leaves no record, but a mark may go over it from now on.
            Op::Accept(s) if self.held.remove(&s) => {
                let floor = self.store().bounds().floor.min(first_held(self));
                done.found = Some(Op::SettleThrough(floor));
                done.optional = true;
            }
            Op::Requeue { from, .. } => drop(self.held.remove(&from)),
            Op::Reject { sequence, .. } if self.held.contains(&sequence) => done.found = None,
            Op::Accept(_) if failed && through == after => done.found = None,
            _ => {}
        }
        self.log.push(done);
    }

    fn publish(&mut self) {
        let next = self.store().bounds().next;
        let body = payload(self.seed, self.run, next);
        let mut envelope = Envelope::publish("orders");
        let tag = next.to_le_bytes();
        envelope.user_tag = (&tag[..]).into();
        let after = last_ordinal(self.store());
        match self.store().append(&envelope, &body) {
            Ok(at) => {
                assert_eq!(at.sequence, next);
                self.given.insert(next);
                self.record(
                    after,
                    Op::Publish {
                        sequence: next,
                        payload: body,
                        tag: next,
                    },
                );
            }
            Err(AppendError::Full {
                live,
                limit,
                needed,
            }) => {
                // Full of needed bytes, or waiting for the background.
                if live + needed <= limit {
                    let mut turns = 0;
                    while step(self.store()).unwrap_or(false) {
                        turns += 1;
                        assert!(turns < 100_000, "upkeep never ends");
                    }
                    let at = match self.store().append(&envelope, &body) {
                        Ok(at) => at,
                        Err(AppendError::Store(StoreError::SyncFailed(_))) => return,
                        // The disk filled meanwhile.
                        Err(AppendError::NoSpace {
                            live,
                            limit,
                            needed,
                            ..
                        }) if live + needed > limit => {
                            return;
                        }
                        Err(e) => panic!("room was promised: {e}"),
                    };
                    self.given.insert(next);
                    assert_eq!(at.sequence, next);
                    self.record(
                        after,
                        Op::Publish {
                            sequence: next,
                            payload: body,
                            tag: next,
                        },
                    );
                }
            }
            Err(AppendError::NoSpace { .. }) => {}
            Err(AppendError::Store(StoreError::SyncFailed(_))) => {}
            Err(e) => panic!("append: {e}"),
        }
    }

    fn act(&mut self) {
        if self.log.iter().filter(|d| d.optional).count() > 5 {
            return self.crash(None);
        }
        let state = self.now();
        let some = |rng: &mut Rng, set: &BTreeMap<u64, Vec<u8>>| {
            let n = rng.below(set.len() as u64) as usize;
            set.keys().nth(n).copied()
        };
        let after = last_ordinal(self.store());
        match self.rng.below(100) {
            0..50 => self.publish(),
            // Nothing is acknowledged: a backlog grows, and the file with it.
            50..75 if self.backlog => self.publish(),
            50..60 => {
                if let Some(s) = some(&mut self.rng, &state.unsettled) {
                    self.store().settle_through(s).expect("settles");
                    self.record(after, Op::SettleThrough(s));
                }
            }
            60..70 => {
                let mut list = Vec::new();
                for _ in 0..1 + self.rng.below(5) {
                    list.extend(some(&mut self.rng, &state.unsettled));
                }
                if !list.is_empty() {
                    self.store().settle(&list).expect("settles");
                    self.record(after, Op::Settle(list));
                }
            }
            70..75 => {
                if let Some(s) = some(&mut self.rng, &state.unsettled) {
                    let reason = "because ".repeat(self.rng.below(17) as usize);
                    match self.store().reject(s, &reason, 9) {
                        Ok(Rejected::Logged { late: false, .. }) => {}
                        Ok(Rejected::Held { late: false }) => {
                            assert!(has_failed(self.store()));
                            self.held.insert(s);
                        }
                        other => panic!("{other:?}"),
                    }
                    let reject = Op::Reject {
                        sequence: s,
                        reason,
                    };
                    self.record(after, reject);
                }
            }
            75..80 => {
                let n = self.rng.below(state.rejected.len() as u64) as usize;
                if let Some(&s) = state.rejected.keys().nth(n) {
                    if self.rng.one_in(2) {
                        match self.store().accept(s) {
                            Ok(true) => self.record(after, Op::Accept(s)),
                            other => panic!("{other:?}"),
                        }
                    } else if let Ok(at) = self.store().requeue(s, 5) {
                        let to = at.expect("it waits").sequence;
                        self.given.insert(to);
                        self.record(after, Op::Requeue { from: s, to });
                    }
                }
            }
            80..84 => drop(self.store().sync()),
            84..92 => {
                for _ in 0..1 + self.rng.below(6) {
                    drop(step(self.store()));
                }
            }
            93..94 => {
                let to = self.store().bounds().next + self.rng.below(50);
                match self.store().raise_grant(to) {
                    Ok(()) => {
                        self.granted = self.granted.max(to);
                        self.numbers = self.numbers.map(|(g, r)| (g.max(to), r));
                    }
                    Err(_) => self.numbers = None,
                }
            }
            92..93 if self.rng.one_in(2) => {
                self.backlog = !self.backlog;
                if !self.backlog {
                    self.drain(&state);
                }
            }
            92..93 if self.rng.one_in(3) => {
                let figure = self.granted + self.rng.below(1000);
                let next = self.store().bounds().next;
                match self.store().rebase(figure) {
                    Ok(rebase) => {
                        let from = state.unsettled.keys().next().copied().unwrap_or(next);
                        assert_eq!(rebase.from, from);
                        assert_eq!(rebase.delta, (figure + 1) as i64 - from as i64);
                        self.numbers = Some((from - 1, Some(rebase)));
                        self.granted = self.granted.max(next - 1);
                    }
                    Err(_) => self.numbers = None,
                }
            }
            97..98 if self.rng.one_in(4) => self.disk.fail(Fault::WriteAround(self.rng.below(3))),
            94..95 => self.crash(None),
            95..96 => {
                let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
                let cut = cuts[self.rng.below(4) as usize];
                self.crash(Some(cut));
            }
            96..97 if self.rng.one_in(3) => self.close(),
            97..98 if self.rng.one_in(4) => self.disk.fail(Fault::Sync(self.rng.below(3))),
            98..99 if self.rng.one_in(4) => self.disk.fail(Fault::Reserve(0)),
            98..99 if self.rng.one_in(4) => self.disk.fail(Fault::Truncate(0)),
            99..100 if self.rng.one_in(4) => {
                // The disk is full from here on, or has room again.
                let full = self.rng.one_in(2).then(|| {
                    let len = self.disk.bytes().len() as u64;
                    len + self.rng.below(3) * 8192
                });
                self.trace.push(format!("disk ends at {full:?}"));
                self.disk.limit(full);
            }
            _ => {}
        }
    }

    /// The server is back: everything is settled but perhaps one, and the file may shrink.
    fn drain(&mut self, state: &State) {
        let stubborn = self.rng.below(3 * state.unsettled.len() as u64) as usize;
        let list: Vec<u64> = state.unsettled.keys().copied().collect();
        for (i, sequences) in list.chunks(64).enumerate() {
            let sequences: Vec<u64> = sequences
                .iter()
                .zip(i * 64..)
                .filter(|(_, n)| *n != stubborn)
                .map(|(s, _)| *s)
                .collect();
            let after = last_ordinal(self.store());
            self.store().settle(&sequences).expect("settles");
            self.record(after, Op::Settle(sequences));
        }
        for _ in 0..self.rng.below(60) {
            drop(step(self.store()));
        }
    }

    fn crash(&mut self, cut: Option<Cut>) {
        let durable = self.store().durable();
        let last = last_ordinal(self.store());
        self.trace.push(format!(
            "crash {cut:?}, durable {}, last {last}",
            durable.ordinal
        ));
        self.store = None;
        if let Some(cut) = cut {
            self.disk.power_cut(cut, &mut self.rng);
        }
        self.reopen(if cut.is_some() { durable.ordinal } else { last }, last);
        // An open that dies before it is used must change nothing, and a run of them must not
        // fill the store with their epochs.
        let mut dying = if self.rng.one_in(40) { 120 } else { 0 };
        while dying > 0 || self.rng.one_in(3) {
            dying = dying.max(1) - 1;
            for _ in 0..self.rng.below(5) {
                drop(step(self.store()));
            }
            let last = last_ordinal(self.store());
            let durable = self.store().durable().ordinal;
            self.trace.push(format!("crash in open, durable {durable}"));
            self.store = None;
            let cut = self.rng.one_in(2);
            if cut {
                self.disk.power_cut(Cut::Sectors, &mut self.rng);
            }
            self.reopen(if cut { durable } else { last }, last);
        }
    }

    fn close(&mut self) {
        self.trace.push("close".into());
        let last = last_ordinal(self.store());
        let floor = self.store().bounds().floor;
        let handed = self.store().bounds().last;
        let closed = self.store().close(handed).is_ok();
        // Nothing above it was handed over: a close, even one that fails half-way, may give
        // those numbers back.
        self.granted = handed;
        self.numbers = match self.numbers {
            Some((grant, rebase)) if closed => Some((grant.min(handed.max(floor)), rebase)),
            _ => None,
        };
        self.store = None;
        if closed {
            self.disk.power_cut(Cut::None, &mut self.rng);
        }
        self.reopen(last, u64::MAX);
    }

    /// Opens again and checks that what is found is a prefix that ends at `at_least` or
    /// later.
    fn reopen(&mut self, at_least: u64, at_most: u64) {
        let store = loop {
            match self.disk.open(self.options.clone()) {
                Ok(store) => break store,
                // A planned failure hits the open; the next one must not be misled.
                Err(OpenError::Io { error, .. }) if error.to_string().contains("simulated") => {
                    self.trace.push(format!("open fails: {error}"));
                }
                Err(e) => panic!("open: {e}"),
            }
        };
        let report = store.report().clone();
        self.trace
            .push(format!("open: {report}, ordinal {}", report.last_ordinal));
        let end = report.last_ordinal;
        assert!(
            end >= at_least,
            "recovered {end}, durable or written {at_least}"
        );
        assert!(end <= at_most, "recovered {end} of {at_most}");
        let found = observe(&store);
        let candidates = self.states_at(end);
        assert!(
            candidates.contains(&found),
            "recovered {}\nexpected {}",
            describe(&found),
            describe(&candidates[candidates.len() - 1])
        );
        let numbers = store.numbers();
        if let Some((grant, rebase)) = self.numbers {
            assert_eq!((numbers.found_grant, numbers.rebase), (grant, rebase));
        }
        self.numbers = Some((numbers.grant, numbers.rebase));
        let next = store.bounds().next;
        assert!(next > self.granted, "next {next}, granted {}", self.granted);
        let highest = found
            .unsettled
            .keys()
            .chain(found.rejected.keys())
            .max()
            .copied();
        assert!(highest.is_none_or(|h| next > h));
        self.base = found;
        self.log.clear();
        self.held.clear();
        self.run += 1;
        self.store = Some(store);
    }

    /// What a recovery that ends at this ordinal may find.
    fn states_at(&self, end: u64) -> Vec<State> {
        let mut states = vec![self.base.clone()];
        for done in self.log.iter().filter(|d| d.after < end || d.optional) {
            let Some(op) = &done.found else { continue };
            let sure = done.through <= end && !done.optional;
            let before = if sure { Vec::new() } else { states.clone() };
            states.iter_mut().for_each(|s| s.apply(op));
            states.extend(before);
            states.dedup();
        }
        states
    }

    /// Flips a bit anywhere. The result is unchanged, or reported; never other bytes.
    fn flip(&mut self) {
        if has_failed(self.store()) {
            return;
        }
        let mut state = self.base.clone();
        let mut expected_tail = vec![state.clone()];
        for done in &self.log {
            state.apply(&done.op);
            expected_tail.push(state.clone());
        }
        let now = state;
        self.store = None;
        let len = self.disk.bytes().len() as u64;
        let (at, bit) = (self.rng.below(len), self.rng.below(8));
        self.disk.clear_faults();
        self.disk.scribble(at, |bytes| bytes[0] ^= 1 << bit);
        self.trace.push(format!("bit {bit} of byte {at} flips"));
        match self.disk.open(self.options.clone()) {
            Ok(store) => {
                let found = observe(&store);
                let report = store.report();
                if found != now {
                    assert!(
                        expected_tail.contains(&found) || !report.is_clean(),
                        "bit {bit} of byte {at}: {report}\nfound {}\nexpected {}",
                        describe(&found),
                        describe(&now)
                    );
                    assert_ne!(report.stop.to_string(), "clean close", "byte {at}");
                }
                check_bytes(&found, &now);
            }
            Err(OpenError::Damaged { ranges, .. }) => {
                assert!(!ranges.is_empty());
                let options = self.options.clone().recovery(Recovery::Salvage);
                self.trace.push(format!("refused: {ranges:?}"));
                let store = self.disk.open(options.clone()).expect("salvage opens");
                self.trace.push(format!("salvaged: {}", store.report()));
                let found = observe(&store);
                check_bytes(&found, &now);
                drop(store);
                // Damage so named never refuses again.
                let store = self
                    .disk
                    .open(self.options.clone())
                    .unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(observe(&store), found);
            }
            Err(e) => panic!("bit {bit} of byte {at}: {e}"),
        }
    }
}

/// Stands for a message whose bytes are lost.
const GONE: &[u8] = b"\xFFgone\xFF";

/// Whatever is found has the bytes it was published with.
fn check_bytes(found: &State, now: &State) {
    for (sequence, payload) in &found.unsettled {
        if let Some(expected) = now.unsettled.get(sequence) {
            assert_eq!(payload, expected, "message {sequence}");
        }
    }
    for (sequence, (payload, _)) in &found.rejected {
        if let Some((expected, _)) = now.rejected.get(sequence)
            && payload != GONE
        {
            assert_eq!(payload, expected, "refused message {sequence}");
        }
    }
}

fn observe(store: &Store) -> State {
    let mut state = State::default();
    let mut message = StoredMessage::new();
    let mut from = 0;
    while let Some(s) = store
        .read_next(from, u64::MAX, &mut message)
        .expect("intact")
    {
        state.unsettled.insert(s, message.payload().to_vec());
        from = s + 1;
    }
    assert_eq!(store.bounds().unsettled, state.unsettled.len() as u64);
    for rejection in store.rejections(0, usize::MAX) {
        // Only salvage may part a refusal from its message.
        let there = store.get(rejection.sequence, &mut message).expect("intact");
        let payload = if there {
            message.payload().to_vec()
        } else {
            GONE.to_vec()
        };
        state
            .rejected
            .insert(rejection.sequence, (payload, rejection.reason));
    }
    state.tag = store
        .resume_tag()
        .map(|t| u64::from_le_bytes(t.try_into().expect("8 bytes")));
    state
}

fn short(op: &Op) -> String {
    match op {
        Op::Publish {
            sequence, payload, ..
        } => format!("publish {sequence} ({})", payload.len()),
        other => format!("{other:?}"),
    }
}

fn describe(state: &State) -> String {
    format!(
        "unsettled {:?} rejected {:?} tag {:?}",
        state.unsettled.keys().collect::<Vec<_>>(),
        state.rejected.keys().collect::<Vec<_>>(),
        state.tag
    )
}

impl World {
    fn live(&mut self, is_over: impl Fn(u64, &Rng) -> bool) {
        let mut done = 0;
        while !is_over(done, &self.rng) {
            let (run, len) = (self.run, self.disk.bytes().len());
            self.act();
            let now = self.disk.bytes().len();
            if now < len && self.run == run {
                self.trace.push(format!("cut from {len} to {now}"));
                self.cuts += 1;
            }
            done += 1;
        }
        assert_eq!(observe(self.store()), self.now(), "live state");
        if self.rng.one_in(2) {
            self.flip();
        }
    }

    fn explore(&mut self) {
        let actions = 50 + self.rng.below(600);
        self.live(|done, _| done == actions);
    }
}

/// A run whose choices are these bytes: what a fuzzer drives.
pub fn play(tape: &[u8]) {
    let mut world = World::new(0, Rng::from_tape(tape));
    watched(&mut world, |world| {
        world.live(|done, rng| rng.is_played() || done == 5000);
    });
}

fn explore(seed: u64) {
    World::new(seed, Rng::new(seed)).explore();
}

/// Runs a seed, and says how often its file became shorter.
fn run(seed: u64) -> u64 {
    let mut world = World::new(seed, Rng::new(seed));
    watched(&mut world, World::explore);
    world.cuts
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

#[test]
fn the_store_is_its_model() {
    if let Ok(seed) = std::env::var("AMPS_SEED") {
        run(seed.parse().expect("a number"));
        return;
    }
    let seeds = std::env::var("AMPS_SEEDS").map_or(300, |s| s.parse().expect("a number"));
    let cuts: u64 = (0..seeds).map(run).sum();
    println!("{cuts} times a file became shorter");
    assert!(cuts > seeds / 10, "{cuts} cuts in {seeds} runs");
}

/// A ring as full as it gets of messages that are all refused (H24).
fn every_message_is_refused() {
    refuse_everything(None);
}

/// The same where the disk is full before the ring is: a refusal finds its room all the same.
fn every_message_is_refused_on_a_full_disk() {
    for grown in 0..4 {
        refuse_everything(Some(grown * 8192));
    }
}

/// `grows`: by how much the file can grow before its disk is full.
fn refuse_everything(grows: Option<u64>) {
    let disk = SimDisk::new();
    let store = disk
        .open(Options::new().capacity(64 << 10).client_name("model"))
        .expect("creates");
    disk.limit(grows.map(|by| disk.bytes().len() as u64 + by));
    let mut sequences = Vec::new();
    let mut tried = false;
    loop {
        match store.append(&Envelope::publish("t"), &[7; 64]) {
            Ok(at) => {
                sequences.push(at.sequence);
                tried = false;
            }
            Err(AppendError::Full { .. } | AppendError::NoSpace { .. }) if !tried => {
                while step(&store).expect("chore") {}
                tried = true;
            }
            Err(AppendError::Full { .. } | AppendError::NoSpace { .. }) => break,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(sequences.len() > 20, "{} messages", sequences.len());
    for &sequence in &sequences {
        let logged = store
            .reject(sequence, &"long ".repeat(100), 1)
            .expect("rejects");
        assert!(matches!(logged, Rejected::Logged { .. }));
    }
    drop(store);
    let store = disk.open(Options::new()).expect("opens");
    assert_eq!(store.rejections(0, usize::MAX).len(), sequences.len());
}

/// The power fails twice: first the tail of a settlement is lost, then the head of the epoch
/// written over it. The epoch's bytes happen to be those of the lost tail, and the old head
/// is there again: the settlement of the dead run must not be.
fn a_torn_head_meets_a_tail_by_chance() {
    let mut met = false;
    for pad in (0..600).step_by(8) {
        let disk = SimDisk::new();
        let options = Options::new().capacity(64 << 10).client_name("model");
        let store = disk.open(options.clone()).expect("creates");
        for len in [pad, 1, 1] {
            store
                .append(&Envelope::publish("t"), &vec![1; len])
                .expect("room");
        }
        drop(store);
        let store = disk.open(options.clone()).expect("opens");
        store.settle(&[2, 3]).expect("settles");
        drop(store);
        // The last byte of the first segment that is not zero begins the settlement's second sequence: 3. In the
        // epoch written over it, the highest sequence so far stands there: 3 as well.
        let bytes = disk.bytes();
        let border = bytes[..16 << 10]
            .iter()
            .rposition(|b| *b != 0)
            .expect("a log") as u64;
        if !border.is_multiple_of(512) {
            continue;
        }
        met = true;
        disk.cut_sectors(|at| at < border);
        drop(disk.open(options.clone()).expect("opens"));
        disk.cut_sectors(|at| at >= border);
        let store = disk.open(options).expect("opens");
        assert_eq!(
            store.bounds().unsettled,
            3,
            "a dead run's settlement came back"
        );
    }
    assert!(met, "no padding puts the tail on a sector's border");
}

/// Every record of the log takes as much room as a mark, so in every lap of the ring records
/// stand at the same places, and behind each page that a power cut takes stands an intact
/// record of the lap before (F7).
fn an_earlier_lap_stands_behind_the_tail(seed: u64) {
    const MARK: usize = 144;
    let disk = SimDisk::new();
    let options = Options::new().capacity(64 << 10).client_name("model");
    let options = options.preallocate(true);
    let store = disk.open(options.clone()).expect("creates");
    let mut rng = Rng::new(seed);
    let publish = |store: &Store| {
        let payload = [b'x'; MARK - 40 - ENVELOPE];
        store.append(&Envelope::publish("t"), &payload)
    };
    let mut stored = Vec::new();
    let mut append = |store: &Store, count: u64| {
        for _ in 0..count {
            let appended = loop {
                match publish(store) {
                    Ok(appended) => break appended,
                    Err(_) => while step(store).expect("chore") {},
                }
            };
            stored.push(appended);
        }
    };
    for _ in 0..500 + rng.below(100) {
        append(&store, 1);
        store
            .settle_through(store.bounds().last - 1)
            .expect("settles");
    }
    while step(&store).expect("chore") {}
    store.sync().expect("syncs");
    let first = store.bounds().last;
    append(&store, 30);
    let durable = store.durable().ordinal;
    drop(store);
    disk.power_cut(Cut::Pages, &mut rng);
    let store = disk.open(options).expect("opens");
    let end = store.report().last_ordinal;
    assert!(end >= durable, "recovered {end} of {durable}");
    let expected: Vec<u64> = stored
        .iter()
        .filter(|at| at.ordinal <= end && at.sequence >= first)
        .map(|at| at.sequence)
        .collect();
    let found: Vec<u64> = observe(&store).unsettled.into_keys().collect();
    assert_eq!(found, expected, "the log ends at {end}");
}

/// What an envelope of the topic `t` takes.
const ENVELOPE: usize = 11;

#[test]
fn no_record_of_an_earlier_lap_follows_the_tail() {
    let envelope = amps_store::testkit::encode_envelope(&Envelope::publish("t"));
    assert_eq!(envelope.expect("encodes").len(), ENVELOPE);
    (0..40).for_each(an_earlier_lap_stands_behind_the_tail);
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
        // Those of a real file are caught in `device.rs`.
        .filter(|b| ![Bug::AsyncSync, Bug::SparseFile].contains(b))
        .filter(|b| only.as_ref().is_none_or(|o| *o == format!("{b:?}")))
    {
        plant(Some(bug));
        let is_caught =
            |run: &dyn Fn()| std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err();
        let named: [(&str, &dyn Fn()); 4] = [
            ("H24", &every_message_is_refused),
            (
                "H24 on a full disk",
                &every_message_is_refused_on_a_full_disk,
            ),
            ("a torn head", &a_torn_head_meets_a_tail_by_chance),
            ("an earlier lap", &|| {
                (0..40).for_each(an_earlier_lap_stands_behind_the_tail);
            }),
        ];
        let by_name = named.iter().find(|(_, run)| is_caught(run));
        let by_seed = || (0..20_000).find(|seed| is_caught(&|| explore(*seed)));
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
    play(&tape);
}
