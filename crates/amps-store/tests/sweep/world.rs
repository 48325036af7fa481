//! What was done to a store, what it said, and what may be found of it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use amps_store::inspect::Inspection;
use amps_store::testkit::{
    Cut, Rng, SimDisk, fail_calls, has_failed, idle, last_ordinal, open_by_steps, step,
};
use amps_store::{
    AppendError, Batch, Envelope, Level, MessageRef, OpenError, Options, PublishStore, Store,
    StoreError, StoredMessage,
};

/// Chores after which a store that still has some counts as hanging.
const CHORES: u32 = 10_000;

/// Laps of the ring: enough that every segment is freed and reused, by copies too.
const LAPS: u64 = 3;

#[derive(Clone, Debug)]
enum Op {
    Publish(u64),
    SettleThrough(u64),
    Settle(u64),
    Reject(u64),
    Accept(u64),
    Requeue { from: u64, to: u64 },
}

/// Unsettled messages and refused ones, each with the sequence its payload follows from.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct State {
    pub(crate) unsettled: BTreeMap<u64, u64>,
    pub(crate) rejected: BTreeMap<u64, u64>,
}

impl State {
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Publish(s) => drop(self.unsettled.insert(*s, *s)),
            Op::SettleThrough(n) => self.unsettled.retain(|s, _| s > n),
            Op::Settle(s) => drop(self.unsettled.remove(s)),
            Op::Reject(s) => {
                if let Some(from) = self.unsettled.remove(s) {
                    self.rejected.insert(*s, from);
                }
            }
            Op::Accept(s) => drop(self.rejected.remove(s)),
            Op::Requeue { from, to } => {
                // A refusal that was held in memory only may be gone with the process; the
                // requeued message settles its original all the same.
                let refused = self.rejected.remove(from);
                if let Some(origin) = refused.or_else(|| self.unsettled.remove(from)) {
                    self.unsettled.insert(*to, origin);
                }
            }
        }
    }
}

pub(crate) fn payload(sequence: u64) -> Vec<u8> {
    let mut rng = Rng::new(sequence);
    (0..100 + rng.below(400))
        .map(|_| rng.bits() as u8)
        .collect()
}

struct Done {
    after: u64,
    through: u64,
    op: Op,
    /// After a failed sync it may hold in memory only.
    optional: bool,
}

/// What the store stands on.
pub(crate) enum Place {
    Simulated(SimDisk),
    File(PathBuf),
}

impl Place {
    fn open(&self, options: &Options) -> Result<Store, OpenError> {
        match self {
            Place::Simulated(disk) => disk.open(options.clone()),
            Place::File(path) => open_by_steps(path, options.clone()),
        }
    }
}

/// What was done to the store, and what it said.
pub(crate) struct World {
    place: Place,
    options: Options,
    /// A backlog comes and goes, and the file with it.
    grows: bool,
    base: State,
    log: Vec<Done>,
    granted: u64,
    highest: u64,
    pub(crate) errors: Vec<String>,
    failed_calls: u64,
}

impl World {
    pub(crate) fn new(place: Place, level: Level, preallocate: bool) -> Self {
        World {
            place,
            options: Options::new()
                .capacity(if preallocate { 68 << 10 } else { 128 << 10 })
                .segment_size(8 << 10)
                .client_name("sweep")
                .level(level)
                .preallocate(preallocate),
            grows: !preallocate,
            base: State::default(),
            log: Vec::new(),
            granted: 0,
            highest: 0,
            errors: Vec::new(),
            failed_calls: 0,
        }
    }

    fn note(&mut self, error: impl ToString) {
        let text = error.to_string();
        assert!(!text.contains("please report"), "a defect: {text}");
        self.errors.push(text);
    }

    fn done(&mut self, store: &Store, after: u64, op: Op) {
        let through = last_ordinal(store);
        self.log.push(Done {
            after,
            through,
            op,
            optional: through == after && has_failed(store),
        });
    }

    fn now(&self) -> State {
        let mut state = self.base.clone();
        self.log.iter().for_each(|d| state.apply(&d.op));
        state
    }

    fn chores(&mut self, store: &Store) {
        idle(store);
        for _ in 0..CHORES {
            match step(store) {
                Ok(true) => {}
                Ok(false) => return,
                Err(error) => return self.note(error),
            }
        }
        panic!("upkeep never ends");
    }

    fn publish(&mut self, store: &Store) {
        for _ in 0..2 {
            let (after, next) = (last_ordinal(store), store.bounds().next);
            match store.append(&Envelope::publish("t"), &payload(next)) {
                Ok(at) => {
                    assert_eq!(at.sequence, next);
                    self.highest = next;
                    return self.done(store, after, Op::Publish(next));
                }
                Err(error) => {
                    assert!(
                        matches!(
                            error,
                            AppendError::Full { .. }
                                | AppendError::MakingRoom { .. }
                                | AppendError::NoSpace { .. }
                                | AppendError::Store(
                                    StoreError::SyncFailed(_)
                                        | StoreError::Io { .. }
                                        | StoreError::NoSpace { .. }
                                )
                        ),
                        "{error:?}"
                    );
                    // Room that upkeep still has to make is no failure.
                    let is_full = matches!(error, AppendError::Full { .. });
                    if !is_full && !matches!(error, AppendError::MakingRoom { .. }) {
                        self.note(error);
                    }
                    self.chores(store);
                }
            }
        }
    }

    fn change(&mut self, store: &Store, op: Op) {
        // Each of these doubles what a recovery may find.
        if self.log.iter().filter(|d| d.optional).count() > 5 {
            return;
        }
        let after = last_ordinal(store);
        let changed = match &op {
            Op::SettleThrough(s) => store.settle_through(*s).map(drop),
            Op::Settle(s) => store.settle(&[*s]).map(drop),
            Op::Reject(s) => store.reject(*s, "no", 1).map(drop),
            Op::Accept(s) => store.accept(*s).map(drop),
            Op::Publish(_) | Op::Requeue { .. } => unreachable!("have calls of their own"),
        };
        match changed {
            Ok(()) => self.done(store, after, op),
            Err(error) => self.note(error),
        }
    }

    fn requeue(&mut self, store: &Store, from: u64) {
        let after = last_ordinal(store);
        match store.requeue(from, 2) {
            Ok(Some(at)) => {
                self.highest = at.sequence;
                let to = at.sequence;
                self.done(store, after, Op::Requeue { from, to });
            }
            Ok(None) => assert!(!self.now().rejected.contains_key(&from), "{from} waits"),
            Err(error) => self.note(error),
        }
    }

    /// Grows the file, and gives its end back.
    fn backlog(&mut self, store: &Store) {
        for _ in 0..80 {
            self.publish(store);
        }
        self.change(store, Op::SettleThrough(self.highest));
        self.chores(store);
    }

    /// Everything a life holds, with whatever goes wrong noted.
    fn live(&mut self, store: &Store) {
        for lap in 0..LAPS {
            if self.grows && lap == 1 {
                self.backlog(store);
            }
            for turn in 0..40 {
                self.publish(store);
                let state = self.now();
                let oldest = state.unsettled.keys().next().copied();
                let newest = state.unsettled.keys().next_back().copied();
                match (turn % 8, oldest, newest) {
                    // The oldest is left alone for a while, so that it has to be copied.
                    (3, Some(_), Some(newest)) => self.change(store, Op::Settle(newest)),
                    (5, Some(_), Some(newest)) if turn % 16 == 5 => {
                        self.change(store, Op::Reject(newest));
                    }
                    (7, Some(oldest), _) if state.unsettled.len() > 12 => {
                        self.change(store, Op::SettleThrough(oldest + 8));
                    }
                    _ => {}
                }
                if turn % 4 == 0 {
                    self.chores(store);
                }
            }
            let waiting: Vec<u64> = self.now().rejected.keys().copied().collect();
            if let [first, second, ..] = waiting[..] {
                self.change(store, Op::Accept(first));
                self.requeue(store, second);
            }
            let to = store.bounds().next + 20;
            match store.raise_grant(to) {
                Ok(()) => self.granted = self.granted.max(to),
                Err(error) => self.note(error),
            }
            if lap == 1 {
                match store.rebase(1_000_000) {
                    Ok(rebase) => assert!(rebase.from <= store.bounds().next),
                    Err(error) => self.note(error),
                }
            }
            match store.sync() {
                Ok(durable) => assert!(durable.ordinal <= last_ordinal(store)),
                Err(error) => self.note(error),
            }
        }
        assert_eq!(observe(store), self.now(), "the live state");
    }

    /// What a recovery that ends at this ordinal may find.
    fn states_at(&self, end: u64) -> Vec<State> {
        let mut states = vec![self.base.clone()];
        for done in self.log.iter().filter(|d| d.after < end || d.optional) {
            let sure = done.through <= end && !done.optional;
            let before = if sure { Vec::new() } else { states.clone() };
            states.iter_mut().for_each(|s| s.apply(&done.op));
            states.extend(before);
            states.sort_by_key(|s| format!("{s:?}"));
            states.dedup();
        }
        states
    }

    /// Opens again; the fault may hit once more, and the open after it must not be misled.
    fn reopen(&mut self, at_least: u64, at_most: u64) -> Store {
        let store = match self.place.open(&self.options) {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Io { .. } | OpenError::NoSpace { .. }),
                    "{error:?}"
                );
                self.note(error);
                self.lift();
                self.place
                    .open(&self.options)
                    .unwrap_or_else(|e| panic!("the open after a failed one: {e}"))
            }
        };
        let end = store.report().last_ordinal;
        assert!(end >= at_least, "recovered {end} of {at_least}");
        assert!(end <= at_most, "recovered {end} of {at_most}");
        let found = observe(&store);
        let states = self.states_at(end);
        assert!(
            states.contains(&found),
            "found {found:?}\none of {} is {:?}",
            states.len(),
            states.last()
        );
        let next = store.bounds().next;
        assert!(next > self.granted, "next {next}, granted {}", self.granted);
        self.base = found;
        self.log.clear();
        store
    }

    /// A failure of system calls that lasts ends with the open that it failed.
    fn lift(&mut self) {
        if let Place::File(_) = self.place {
            self.failed_calls += fail_calls(None);
        }
    }

    /// Two lives with a close between them, and a crash at the end: of the power too, where
    /// the disk is simulated. What may be found at the end, and the ordinals it may end with.
    fn two_lives(&mut self) -> (u64, u64) {
        let store = match self.place.open(&self.options) {
            Ok(store) => store,
            Err(error) => {
                self.note(error);
                // Nothing was promised; what is there now must not stand in the way.
                self.reopen(0, u64::MAX)
            }
        };
        self.live(&store);
        let last = last_ordinal(&store);
        let closed = store.close(self.granted.max(self.highest));
        drop(store);
        if let Err(error) = closed {
            self.note(error);
        }
        // No power was cut: what the log holds is there.
        let store = self.reopen(last, u64::MAX);
        self.live(&store);
        (store.durable().ordinal, last_ordinal(&store))
    }

    /// Opens for the last time, when nothing fails any more.
    fn end(&mut self, at_least: u64, at_most: u64) {
        let store = self.reopen(at_least, at_most);
        self.publish(&store);
        assert!(store.close(self.highest).is_ok(), "nothing fails any more");
    }

    /// On a simulated disk, which loses power at the end: whether the planned failure came.
    pub(crate) fn run_on(&mut self, disk: &SimDisk, cut: Cut) -> bool {
        let (durable, last) = self.two_lives();
        let met = disk.planned_faults() == 0;
        disk.power_cut(cut, &mut Rng::new(last));
        self.end(durable, last);
        met
    }

    /// On a real file, which a process that dies leaves as it is: how many calls failed.
    pub(crate) fn run_on_file(&mut self, path: &Path) -> u64 {
        let (_, last) = self.two_lives();
        self.lift();
        self.end(last, last);
        let look = Inspection::open(path).expect("looks");
        let verified = look.verify().expect("reads");
        assert!(verified.is_sound(), "{:?}", verified.problems);
        self.failed_calls
    }
}

pub(crate) fn observe(store: &Store) -> State {
    let mut state = State::default();
    let mut message = StoredMessage::new();
    let origin = |message: MessageRef<'_>| {
        // Payloads differ; a requeued one is that of its original.
        (1..=message.sequence)
            .rev()
            .find(|s| payload(*s) == message.payload())
            .unwrap_or_else(|| panic!("nobody published what {} holds", message.sequence))
    };
    let mut batch = Batch::new(usize::MAX, usize::MAX);
    store
        .read_unsettled(0, u64::MAX, &mut batch)
        .expect("intact");
    for message in batch.iter() {
        state.unsettled.insert(message.sequence, origin(message));
    }
    for rejection in store.rejections(0, usize::MAX) {
        let there = store.get(rejection.sequence, &mut message).expect("intact");
        assert!(there, "the original of refusal {}", rejection.sequence);
        let original = origin(message.as_ref());
        state.rejected.insert(rejection.sequence, original);
    }
    state
}
