//! A store on a simulated disk, what was done to it, and what may become of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use amps_store::testkit::{
    Cut, Fault, Rng, SimDisk, begin_step, end_step, has_failed, idle, is_under_way, last_ordinal,
    record_places, step,
};
use amps_store::{
    AppendError, Envelope, Growth, Level, OpenError, Options, PublishStore, Rebase, Rejected,
    Store, StoreError, StoredMessage, Unrecorded,
};

mod damage;

use super::state::{GONE, Op, State, describe, observe, payload, short};

/// Reasons of late refusals.
const LATE: &str = "too late ";

/// The highest ordinal up to `durable` of a record that is no mark.
fn last_but_marks(bytes: &[u8], durable: u64) -> u64 {
    const MARK: u8 = 6;
    let ordinal = |at: usize| u64::from_le_bytes(bytes[at + 24..at + 32].try_into().expect("8"));
    let places = record_places(bytes).into_iter().map(|p| p.0 as usize);
    let records = places.filter(|at| bytes[at + 8] != MARK).map(ordinal);
    records.filter(|o| *o <= durable).max().unwrap_or(0)
}

struct Done {
    /// Ordinals it may have used: more than `after`, at most `through`.
    after: u64,
    through: u64,
    op: Op,
    /// What a recovery finds of it; `None`: it holds in memory only.
    found: Option<Op>,
}

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// Everything it wrote is there.
    Whole,
    /// What was not synced may be missing.
    Cut,
}

/// What happened while the device was at work.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Meanwhile {
    pub(crate) actions: u64,
    pub(crate) chores: u64,
    pub(crate) cuts: u64,
}

pub(crate) struct World {
    pub(crate) seed: u64,
    rng: Rng,
    disk: SimDisk,
    store: Option<Store>,
    base: State,
    log: Vec<Done>,
    /// Late refusals that came after a failed sync and are in memory only.
    held: BTreeSet<u64>,
    /// Sequences that were ever refused.
    refused: BTreeSet<u64>,
    /// Sequences that were ever settled, one by one and through, and whose refusal was accepted: a
    /// power cut may have undone it.
    settled: BTreeSet<u64>,
    settled_through: u64,
    accepted: BTreeSet<u64>,
    run: u64,
    /// Highest sequence that may be on the wire.
    granted: u64,
    /// The numbers of the superblock, unless a failure left them open.
    numbers: Option<(u64, Option<Rebase>)>,
    /// Everything ever published, requeued copies included.
    payloads: BTreeMap<u64, Vec<u8>>,
    options: Options,
    /// The capacity is raised to this, in a later open.
    larger: Option<u64>,
    /// No acknowledgement comes.
    backlog: bool,
    /// Syncs take time: life goes on between their beginning and their end.
    takes_time: bool,
    /// What was done while one was under way.
    pub(crate) meanwhile: Meanwhile,
    /// Times the file became shorter while its store was open.
    pub(crate) cuts: u64,
    /// What else it met, and how often.
    pub(crate) met: BTreeMap<&'static str, u64>,
    pub(crate) trace: Vec<String>,
}

impl World {
    pub(crate) fn new(seed: u64, mut rng: Rng) -> Self {
        let capacity = 64 << 10 << rng.below(3);
        let segment = 8192 << rng.below(2).min(u64::from(capacity > 110 << 10));
        let options = Options::new().capacity(capacity);
        let options = match seed % 4 {
            3 => options.max_message(segment / 4 - 1024),
            _ => options.segment_size(segment),
        };
        let options = options
            .client_name("model")
            .level(match rng.below(6) {
                0 | 1 => Level::Disk,
                2 => Level::Interval(Duration::ZERO),
                _ => Level::Os,
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
            refused: BTreeSet::new(),
            settled: BTreeSet::new(),
            settled_through: 0,
            accepted: BTreeSet::new(),
            run: 0,
            granted: 0,
            numbers: Some((0, None)),
            payloads: BTreeMap::new(),
            options,
            // None of the seeds that stand for what they found.
            larger: (seed % 7 == 6).then_some(2 * capacity),
            backlog: false,
            takes_time: false,
            meanwhile: Meanwhile::default(),
            cuts: 0,
            met: BTreeMap::new(),
            trace: Vec::new(),
        };
        world.store = Some(world.disk.open(world.options.clone()).expect("creates"));
        world
    }

    /// Syncs take their time from now on.
    pub(crate) fn with_time(mut self) -> Self {
        self.takes_time = true;
        self
    }

    fn meet(&mut self, what: &'static str) {
        *self.met.entry(what).or_default() += 1;
    }

    /// How the store is opened again.
    fn again(&self) -> Options {
        let options = self.options.clone();
        match self.larger {
            Some(bytes) if self.run > 1 => options.grow_to(bytes),
            _ => options,
        }
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
        match &op {
            Op::Settle(list) => self.settled.extend(list),
            Op::SettleThrough(last) => self.settled_through = self.settled_through.max(*last),
            Op::Accept(sequence) | Op::Requeue { from: sequence, .. } => {
                self.accepted.insert(*sequence);
            }
            Op::Publish { .. } | Op::Reject { .. } | Op::RejectLate { .. } => {}
        }
        let failed = has_failed(self.store());
        if failed {
            self.meet(match &op {
                Op::Reject { .. } => "a refusal behind a failed sync",
                _ => "a change behind a failed sync",
            });
        }
        let mut done = Done {
            after,
            through,
            found: Some(op.clone()),
            op,
        };
        match done.op {
            // The log never knew of it.
            Op::Accept(s) if self.held.remove(&s) => done.found = None,
            Op::Requeue { from, .. } => drop(self.held.remove(&from)),
            Op::RejectLate { sequence, .. } if self.held.contains(&sequence) => done.found = None,
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
                self.payloads.insert(next, body.clone());
                self.record(
                    after,
                    Op::Publish {
                        sequence: next,
                        payload: body,
                        tag: next,
                    },
                );
            }
            // Waiting for the background.
            Err(AppendError::MakingRoom { .. }) => {
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
                self.payloads.insert(next, body.clone());
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
            // Full of needed bytes.
            Err(AppendError::Full {
                live,
                limit,
                needed,
            }) => {
                assert!(live + needed > limit, "{live} + {needed} of {limit}");
                self.meet("a full store");
            }
            Err(AppendError::NoSpace { .. }) => self.meet("a full disk"),
            Err(AppendError::Store(StoreError::SyncFailed(_))) => {}
            Err(e) => panic!("append: {e}"),
        }
    }

    fn act(&mut self) {
        if self.takes_time {
            self.let_time_pass();
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
            70..75 if self.rng.one_in(4) => self.refuse_late(&state),
            70..75 => {
                if let Some(s) = some(&mut self.rng, &state.unsettled) {
                    let reason = "because ".repeat(self.rng.below(17) as usize);
                    match self.store().reject(s, &reason, 9) {
                        Ok(Rejected::Logged { late: false, .. }) => {}
                        other => panic!("{other:?}"),
                    }
                    self.refused.insert(s);
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
                        let payload = state.rejected[&s].0.clone();
                        assert_eq!(at.is_none(), payload == GONE, "refusal of {s}");
                        if let Some(at) = at {
                            let (from, to) = (s, at.sequence);
                            self.payloads.insert(to, payload.clone());
                            self.record(after, Op::Requeue { from, to, payload });
                            self.meet("a requeue");
                        }
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
                        self.meet("a rebase");
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

    /// A sync, or another call of the device, begins, goes on beside the rest, or ends.
    fn let_time_pass(&mut self) {
        match (is_under_way(self.store()), self.rng.below(4)) {
            (false, 0) | (true, 1) => {
                let was_under_way = is_under_way(self.store());
                // A failure shows in `has_failed`.
                let done = begin_step(self.store()).unwrap_or(false);
                self.meanwhile.chores += u64::from(done && was_under_way);
            }
            (true, 0) => drop(end_step(self.store())),
            _ => {}
        }
        self.meanwhile.actions += u64::from(is_under_way(self.store()));
    }

    /// The server refuses what was settled before: known by its message if that is still there.
    fn refuse_late(&mut self, state: &State) {
        let sequence = 1 + self.rng.below(self.store().bounds().next - 1);
        let waits = state.rejected.contains_key(&sequence);
        if sequence == self.store().bounds().next
            || state.unsettled.contains_key(&sequence)
            || waits
        {
            return;
        }
        let mut message = StoredMessage::new();
        let there = self.store().get(sequence, &mut message).expect("intact");
        let payload = match there {
            true => self.payloads[&sequence].clone(),
            false => GONE.to_vec(),
        };
        let reason = LATE.repeat(self.rng.below(15) as usize);
        let after = last_ordinal(self.store());
        match self.store().reject(sequence, &reason, 9) {
            Ok(Rejected::NoRoom) => return,
            // Its first refusal was accepted, and its message still tells.
            Ok(Rejected::Known) => {
                assert!(there && self.refused.contains(&sequence));
                return;
            }
            Ok(Rejected::Logged { late: true, .. }) => {}
            Ok(Rejected::Held { late: true }) => {
                assert!(has_failed(self.store()));
                self.held.insert(sequence);
                self.meet("a late refusal in memory only");
            }
            other => panic!("{other:?}"),
        }
        self.refused.insert(sequence);
        self.meet("a late refusal");
        if !there {
            self.meet("a late refusal without its message");
        }
        let refused = Op::RejectLate {
            sequence,
            payload,
            reason,
        };
        self.record(after, refused);
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
        idle(self.store());
        for _ in 0..self.rng.below(60) {
            drop(step(self.store()));
        }
    }

    fn crash(&mut self, cut: Option<Cut>) {
        let durable = self.store().durable();
        let last = last_ordinal(self.store());
        self.meanwhile.cuts += u64::from(cut.is_some() && is_under_way(self.store()));
        self.trace.push(format!(
            "crash {cut:?}, durable {}, last {last}",
            durable.ordinal
        ));
        if has_failed(self.store()) {
            self.meet("a crash behind a failed sync");
        }
        self.store = None;
        if let Some(cut) = cut {
            self.meet("a power cut");
            self.disk.power_cut(cut, &mut self.rng);
        }
        let cut = self.cut_in_open().or(cut);
        match cut {
            Some(_) => self.reopen(durable.ordinal, last, End::Cut),
            None => self.reopen(last, last, End::Whole),
        }
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
            match cut {
                true => self.reopen(durable, last, End::Cut),
                false => self.reopen(last, last, End::Whole),
            }
        }
    }

    /// Now and then, opens, and cuts the power before one of the calls that took.
    fn cut_in_open(&mut self) -> Option<Cut> {
        if !self.rng.one_in(3) {
            return None;
        }
        self.disk.keep_moments();
        drop(self.disk.open(self.again()));
        let moments = self.disk.take_moments();
        let n = self.rng.below(moments.len() as u64) as usize;
        let cut = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors][self.rng.below(4) as usize];
        self.disk.become_like(moments.get(n)?);
        self.disk.power_cut(cut, &mut self.rng);
        let calls = moments.len();
        self.meet("a power cut in an open");
        self.trace
            .push(format!("cut {cut:?} before call {n} of {calls} in open"));
        Some(cut)
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
            self.meet("a clean close");
            self.disk.power_cut(Cut::None, &mut self.rng);
        }
        self.reopen(last, u64::MAX, End::Whole);
    }

    /// Opens again and checks that what is found is a prefix that ends at `at_least` or
    /// later, less what was settled behind its end if something may be missing there.
    fn reopen(&mut self, at_least: u64, at_most: u64, missing: End) {
        let store = loop {
            match self.disk.open(self.again()) {
                Ok(store) => break store,
                // A planned failure hits the open; the next one must not be misled.
                Err(OpenError::Io { error, .. }) if error.to_string().contains("simulated") => {
                    self.meet("an open that fails");
                    self.trace.push(format!("open fails: {error}"));
                }
                Err(e) => panic!("open: {e}"),
            }
        };
        if let Some(Growth::Grown { .. }) = store.report().growth {
            self.meet("a larger capacity");
        }
        let report = store.report().clone();
        self.trace
            .push(format!("open: {report}, ordinal {}", report.last_ordinal));
        if report.set_aside > 0 {
            self.meet("something set aside");
        }
        let end = report.last_ordinal;
        assert!(
            end >= at_least,
            "recovered {end}, durable or written {at_least}"
        );
        assert!(end <= at_most, "recovered {end} of {at_most}");
        let found = observe(&store);
        let candidates = self.states_at(end);
        assert!(
            candidates.iter().any(|c| self.is(&found, c)
                || missing == End::Cut && self.is_less_settled(&found, c, end)),
            "recovered {}\nexpected {}",
            describe(&found),
            describe(&candidates[candidates.len() - 1])
        );
        let highest = found.unsettled.keys().chain(found.rejected.keys()).max();
        assert!(highest.is_none_or(|h| store.bounds().next > *h));
        self.live_on(store);
    }

    /// What a recovery that ends at this ordinal may find.
    fn states_at(&self, end: u64) -> Vec<State> {
        let mut states = vec![self.base.clone()];
        for done in self.log.iter().filter(|d| d.after < end) {
            let Some(op) = &done.found else { continue };
            let sure = done.through <= end;
            let before = if sure { Vec::new() } else { states.clone() };
            states.iter_mut().for_each(|s| s.apply(op));
            states.extend(before);
            states.sort();
            states.dedup();
        }
        states
    }

    /// Whether what was found is this state. The original of a late refusal that was gone is
    /// there again when a power cut or a flipped bit took the stamp that freed its segment.
    fn is(&self, found: &State, state: &State) -> bool {
        let mut found = found.clone();
        for (sequence, (payload, _)) in &mut found.rejected {
            let gone = state.rejected.get(sequence).is_some_and(|r| r.0 == GONE);
            if gone && self.payloads.get(sequence) == Some(payload) {
                *payload = GONE.to_vec();
            }
        }
        found == *state
    }

    /// As [`is`](Self::is), less messages that the server had settled behind this end of the log: what
    /// it settled needs no sync before its segment is used again.
    fn is_less_settled(&self, found: &State, state: &State, end: u64) -> bool {
        let mut state = state.clone();
        for done in self.log.iter().filter(|done| done.through > end) {
            let is_settled = |s: &u64| match &done.op {
                Op::SettleThrough(last) => s <= last,
                Op::Settle(list) => list.contains(s),
                _ => false,
            };
            let unsettled = &mut state.unsettled;
            unsettled.retain(|s, _| found.unsettled.contains_key(s) || !is_settled(s));
        }
        self.is(found, &state)
    }

    /// Takes over what an open found.
    fn live_on(&mut self, store: Store) {
        let next = store.bounds().next;
        assert!(next > self.granted, "next {next}, granted {}", self.granted);
        let numbers = store.numbers();
        if let Some((grant, rebase)) = self.numbers {
            assert_eq!((numbers.found_grant, numbers.rebase), (grant, rebase));
        }
        self.numbers = Some((numbers.grant, numbers.rebase));
        self.base = observe(&store);
        self.log.clear();
        self.held.clear();
        self.run += 1;
        self.store = Some(store);
    }

    /// Everything moves to a fresh file, and the old store is nobody's any more.
    fn evacuate(&mut self) {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("fresh.store");
        let (now, old) = (self.now(), self.store().bounds());
        let numbers = self.store().numbers();
        self.meet("an evacuation");
        self.trace.push("evacuate".into());
        self.disk.clear_faults();
        let fresh = self.store().evacuate(&path, Level::Os).expect("evacuates");
        assert!(matches!(
            self.store().append(&Envelope::publish("t"), b"x"),
            Err(AppendError::Store(StoreError::Closed))
        ));
        self.store = None;
        assert!(matches!(
            self.disk.open(self.options.clone()),
            Err(OpenError::Retired { .. })
        ));
        let check = |store: &Store| {
            assert_eq!(observe(store), now, "evacuated");
            assert!(store.bounds().next >= old.next, "numbers go on");
            assert_eq!(store.numbers().rebase, numbers.rebase);
            assert!(store.bounds().next > self.granted);
        };
        check(&fresh);
        drop(fresh);
        let fresh = Store::open_existing(&path, Options::new()).expect("opens again");
        check(&fresh);
        let next = fresh.bounds().next;
        let deadline = Instant::now() + Duration::from_secs(60);
        match fresh.append_wait(&Envelope::publish("t"), b"goes on", deadline) {
            Ok(at) => assert_eq!(at.sequence, next),
            Err(error) => assert!(error.is_retryable(), "{error}"),
        }
    }
}

impl World {
    pub(crate) fn live(&mut self, is_over: impl Fn(u64, &Rng) -> bool) {
        let mut done = 0;
        while !is_over(done, &self.rng) {
            let (run, len) = (self.run, self.disk.bytes().len());
            self.act();
            // There is room for what becomes of every message, whatever failed.
            let unrecorded = self.store().unrecorded();
            assert_eq!(unrecorded, Unrecorded::new(0, self.held.len() as u64));
            // What was admitted fits even if all of it is refused. A salvage may find messages
            // whose settlements are lost, and so more than was ever admitted at once.
            let bounds = self.store().bounds();
            assert!(
                bounds.live_bytes <= bounds.limit_bytes || self.met.contains_key("a salvage"),
                "more was admitted than fits: {bounds:?}"
            );
            let reused = self.disk.reused_before_its_stamp();
            assert_eq!(
                reused, None,
                "a segment is used before both superblocks name a start behind it"
            );
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

    pub(crate) fn explore(&mut self) {
        for _ in 0..1 + self.rng.below(2) {
            let actions = 50 + self.rng.below(400);
            self.live(|done, _| done == actions);
        }
        if self.rng.one_in(10) {
            self.evacuate();
        }
    }
}
