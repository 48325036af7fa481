//! Every call the store makes to its device fails once, the first, the second, and so on to
//! the last: no panic, no hang, a typed error, and after a power cut a state that what was
//! done allows. The simulated disk fails any call; a real file fails where a limit, a
//! permission or a missing part can be brought about.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use amps_store::inspect::Inspection;
use amps_store::testkit::{Cut, Fault, Rng, SimDisk, has_failed, last_ordinal, step};
use amps_store::{
    AppendError, Envelope, Level, OpenError, Options, PublishStore, Recovery, Store, StoreError,
    StoredMessage,
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
struct State {
    unsettled: BTreeMap<u64, u64>,
    rejected: BTreeMap<u64, u64>,
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

fn payload(sequence: u64) -> Vec<u8> {
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

/// What was done to the store on a disk, and what it said.
struct World {
    disk: SimDisk,
    options: Options,
    /// A backlog comes and goes, and the file with it.
    grows: bool,
    base: State,
    log: Vec<Done>,
    granted: u64,
    highest: u64,
    errors: Vec<String>,
    /// The planned failure happened.
    met: bool,
}

impl World {
    fn new(level: Level, preallocate: bool) -> Self {
        World {
            disk: SimDisk::new(),
            options: Options::new()
                .capacity(if preallocate { 64 << 10 } else { 128 << 10 })
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
            met: false,
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
                    if !matches!(error, AppendError::Full { .. }) {
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
        let store = match self.disk.open(self.options.clone()) {
            Ok(store) => store,
            Err(error) => {
                assert!(
                    matches!(error, OpenError::Io { .. } | OpenError::NoSpace { .. }),
                    "{error:?}"
                );
                self.note(error);
                self.disk
                    .open(self.options.clone())
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

    /// Two lives with a close between them, and a power cut at the end.
    fn run(&mut self, cut: Cut) {
        let store = match self.disk.open(self.options.clone()) {
            Ok(store) => store,
            Err(error) => {
                self.note(error);
                // Nothing was promised; what is there now must not stand in the way.
                self.reopen(0, u64::MAX)
            }
        };
        self.live(&store);
        let last = last_ordinal(&store);
        let failed = has_failed(&store);
        let closed = store.close(self.granted.max(self.highest));
        drop(store);
        if let Err(error) = closed {
            self.note(error);
        }
        // No power was cut: at most the settlements of a store that failed are gone.
        let store = self.reopen(if failed { 0 } else { last }, u64::MAX);
        self.live(&store);
        let (durable, last) = (store.durable().ordinal, last_ordinal(&store));
        drop(store);
        self.met = self.disk.planned_faults() == 0;
        self.disk.power_cut(cut, &mut Rng::new(last));
        let store = self.reopen(durable, last);
        self.publish(&store);
        assert!(store.close(self.highest).is_ok(), "nothing fails any more");
    }
}

fn observe(store: &Store) -> State {
    let mut state = State::default();
    let mut message = StoredMessage::new();
    let origin = |message: &StoredMessage| {
        // Payloads differ; a requeued one is that of its original.
        (1..=message.sequence)
            .rev()
            .find(|s| payload(*s) == message.payload())
            .unwrap_or_else(|| panic!("nobody published what {} holds", message.sequence))
    };
    let mut from = 0;
    while let Some(sequence) = store
        .read_next(from, u64::MAX, &mut message)
        .expect("intact")
    {
        state.unsettled.insert(sequence, origin(&message));
        from = sequence + 1;
    }
    for rejection in store.rejections(0, usize::MAX) {
        let there = store.get(rejection.sequence, &mut message).expect("intact");
        assert!(there, "the original of refusal {}", rejection.sequence);
        state.rejected.insert(rejection.sequence, origin(&message));
    }
    state
}

/// Fails the n-th call of a kind for every n until none is left to fail; how many that were.
fn sweep(fault: fn(u64) -> Fault, level: Level, preallocate: bool) -> u64 {
    let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
    for n in 0.. {
        let mut world = World::new(level, preallocate);
        world.disk.fail(fault(n));
        let hit = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            world.run(cuts[n as usize % cuts.len()]);
        }));
        if let Err(panic) = hit {
            eprintln!("{:?} at {level:?}; it said {:?}", fault(n), world.errors);
            std::panic::resume_unwind(panic);
        }
        if !world.met {
            assert!(
                world.errors.is_empty(),
                "nothing failed: {:?}",
                world.errors
            );
            return n;
        }
    }
    unreachable!("a run makes finitely many calls")
}

#[test]
fn every_sync_fails_once() {
    for level in [Level::Os, Level::Disk] {
        for preallocate in [true, false] {
            let calls = sweep(Fault::Sync, level, preallocate);
            println!("{calls} syncs at {level:?}");
            assert!(calls > 20, "{calls} syncs");
        }
    }
}

#[test]
fn every_write_around_the_mapping_fails_once() {
    for level in [Level::Os, Level::Disk] {
        for preallocate in [true, false] {
            let calls = sweep(Fault::WriteAround, level, preallocate);
            println!("{calls} writes at {level:?}");
            assert!(calls > 10, "{calls} writes");
        }
    }
}

#[test]
fn every_reservation_of_space_fails_once() {
    for level in [Level::Os, Level::Disk] {
        let calls = sweep(Fault::Reserve, level, false);
        println!("{calls} reservations at {level:?}");
        assert!(calls > 1, "{calls} reservations");
    }
}

#[test]
fn every_cut_of_the_file_fails_once() {
    for level in [Level::Os, Level::Disk] {
        let calls = sweep(Fault::Truncate, level, false);
        println!("{calls} cuts at {level:?}");
        assert!(calls > 1, "{calls} cuts");
    }
}

/// Set in a child process: where its store is.
const CHILD: &str = "AMPS_SWEEP_CHILD";

fn real_options() -> Options {
    Options::new().capacity(1 << 20).client_name("sweep")
}

/// Not a test of its own: what a process under a limit does. It says what it stored.
#[test]
fn child_under_a_limit() {
    let Ok(path) = std::env::var(CHILD) else {
        return;
    };
    let store = match Store::open(&path, real_options()) {
        Ok(store) => store,
        Err(error @ OpenError::NoSpace { .. }) => {
            println!("\nno store: {error}");
            return;
        }
        Err(error) => panic!("{error:?}"),
    };
    let mut full = 0;
    let mut stored = 0;
    while full < 3 {
        let next = store.bounds().next;
        let deadline = std::time::Instant::now() + std::time::Duration::from_millis(300);
        match store.append_wait(&Envelope::publish("t"), &payload(next), deadline) {
            Ok(at) => stored = at.sequence,
            Err(AppendError::NoSpace { .. } | AppendError::Full { .. }) => {
                full += 1;
                // The store is usable: what is settled makes room.
                store.settle_through(stored / 2).expect("settles");
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("\nstored {stored}");
    println!("settled {}", store.bounds().floor);
}

#[test]
fn a_file_size_limit_at_creation_is_an_error_and_no_signal() {
    // The last one is beyond the cap.
    assert_eq!(
        under_limits(&[0, 1, 7, 8, 15, 16, 17, 100, 300, 400, 4096]),
        (10, 1)
    );
}

#[test]
fn a_file_size_limit_while_growing_is_an_error_and_no_signal() {
    assert_eq!(under_limits(&[528, 550, 600, 700, 1024, 1500]), (0, 6));
}

/// Runs a child under each limit, in blocks of 512 bytes: how many were refused a store, and
/// how many stored what they said.
fn under_limits(limits: &[u64]) -> (u32, u32) {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut refused, mut stored) = (0, 0);
    for blocks in limits {
        let path = dir.path().join(format!("{blocks}.store"));
        let child = Command::new("sh")
            .arg("-c")
            // Ignored, as the amps command ignores it: the write then fails with EFBIG.
            .arg(format!(
                "trap '' XFSZ; ulimit -f {blocks}; \"$0\" \"$@\" 2>&1 | cat"
            ))
            .arg(std::env::current_exe().expect("this test"))
            .args(["--exact", "child_under_a_limit", "--nocapture"])
            .env(CHILD, &path)
            .output()
            .expect("sh starts");
        let said = String::from_utf8_lossy(&child.stdout).into_owned();
        assert!(
            said.contains("test result: ok. 1 passed"),
            "{blocks} blocks: {said}"
        );
        let number = |word: &str| -> Option<u64> {
            said.lines()
                .find_map(|line| line.strip_prefix(word)?.trim().parse().ok())
        };
        let Some(last) = number("stored ") else {
            assert!(said.contains("no store: "), "{said}");
            refused += 1;
            // What is left of the attempt does not stand in the way.
            drop(Store::open(&path, real_options()).expect("space is back"));
            continue;
        };
        stored += 1;
        let length = std::fs::metadata(&path).expect("it is there").len();
        assert!(length <= blocks * 512, "{length} bytes in {blocks} blocks");
        let store = Store::open(&path, real_options()).expect("opens without the limit");
        let floor = number("settled ").expect("it says so");
        let expected: Vec<u64> = (floor + 1..=last).collect();
        let found = observe(&store);
        assert_eq!(
            found.unsettled.keys().copied().collect::<Vec<_>>(),
            expected
        );
    }
    (refused, stored)
}

/// A closed store with unsettled messages in several segments.
fn closed(path: &Path) -> State {
    let store = Store::open(path, real_options().preallocate(true)).expect("creates");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    for sequence in 1..=900 {
        let at = store
            .append_wait(&Envelope::publish("t"), &payload(sequence), deadline)
            .expect("room");
        assert_eq!(at.sequence, sequence);
    }
    store.settle_through(10).expect("settles");
    store.sync().expect("syncs");
    let state = observe(&store);
    store.close(900).expect("closes");
    state
}

#[test]
fn a_truncated_file_is_refused_or_salvaged_and_never_a_panic() {
    let dir = tempfile::tempdir().expect("a directory");
    let original = dir.path().join("whole.store");
    let before = closed(&original);
    let bytes = std::fs::read(&original).expect("it is there");
    let segment = Inspection::open(&original)
        .expect("looks")
        .info()
        .segment_size as usize;
    let mut rng = Rng::new(11);
    let mut lengths: Vec<usize> = vec![0, 1, 511, 512, 4095, 4096, 4097, 8191];
    for border in (8192..=bytes.len()).step_by(segment) {
        lengths.extend([border - 1, border, border + 1, border + 64]);
    }
    lengths.extend((0..150).map(|_| rng.below(bytes.len() as u64) as usize));
    lengths.retain(|len| *len < bytes.len());
    let path = dir.path().join("cut.store");
    for len in lengths {
        std::fs::write(&path, &bytes[..len]).expect("writes");
        let seen = Inspection::open(&path);
        match Store::open(&path, real_options()) {
            Ok(store) if store.report().created => {
                assert_eq!(len, 0, "{len} bytes were taken for no store");
            }
            Ok(store) => assert_eq!(observe(&store), before, "cut to {len} bytes in silence"),
            Err(OpenError::Damaged { .. } | OpenError::NotAStore { .. }) => {
                let after = std::fs::read(&path).expect("it is there");
                assert!(after == bytes[..len], "a refusal changed the file");
                let sound = seen.ok().map(|s| s.verify().expect("reads").is_sound());
                assert_ne!(sound, Some(true), "verify calls {len} bytes sound");
            }
            Err(error) => panic!("{len} bytes: {error:?}"),
        }
        std::fs::write(&path, &bytes[..len]).expect("writes");
        if let Ok(store) = Store::open(&path, real_options().recovery(Recovery::Salvage)) {
            // What lost its settlement with the rest may come back, as it was.
            let found = observe(&store);
            assert!(
                found
                    .unsettled
                    .iter()
                    .all(|(s, origin)| s == origin && *s <= 900)
            );
            assert!(found.rejected.is_empty(), "{len}: nothing was refused");
        }
    }
}

#[test]
fn what_may_not_be_written_is_named() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("s.store");
    closed(&path);
    let missing = dir.path().join("new.store");
    let mode = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
    };
    mode(&path, 0o444);
    mode(dir.path(), 0o555);
    let may_write = std::fs::OpenOptions::new().write(true).open(&path).is_ok();
    let errors = [&path, &missing].map(|path| Store::open(path, real_options()).err());
    let looked = Inspection::open(&path).map(|seen| seen.info().unsettled);
    mode(dir.path(), 0o755);
    if may_write {
        println!("skipped: this user may write everything");
        return;
    }
    for error in errors {
        let error = error.expect("refused");
        assert!(matches!(error, OpenError::Io { .. }), "{error:?}");
    }
    assert_eq!(looked.expect("reading needs no more"), 890);
    assert!(matches!(
        Store::open(dir.path(), real_options()),
        Err(OpenError::Io { .. } | OpenError::NotAStore { .. })
    ));
    assert!(matches!(
        Store::open("/dev/full", real_options()),
        Err(OpenError::NotAStore { .. } | OpenError::Io { .. })
    ));
}
