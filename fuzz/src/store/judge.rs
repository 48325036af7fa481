//! What must hold whatever bytes are opened as a store.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use amps_store::inspect::{
    Body, Filter, Inspection, MessageState, Record, RecordKind, RecordVerdict,
};
use amps_store::testkit::{Cut, Rng, SimDisk, intact_messages, step};
use amps_store::transfer::{export, import};
use amps_store::{
    Batch, Envelope, OpenError, Options, PublishStore, Recovery, Rejected, Store, StoredMessage,
};

/// How many chores a small store may have at a time.
const CHORES: usize = 20_000;

/// Opens the bytes in both modes, looks at them, and uses and reopens what opened.
pub(super) fn judge(bytes: &[u8]) {
    let whole = Whole::of(bytes);
    let options = Options::new().capacity(64 << 10);
    let strict = open(bytes, &options);
    let found = match &strict.1 {
        Ok(store) => Some(State::of(store, &whole)),
        Err(_) => None,
    };
    if may_look(bytes) {
        look(bytes, &strict.1, found.as_ref());
    }
    match strict.1 {
        Ok(store) => {
            live(&strict.0, store, &options, &whole);
            use_at_once(bytes, &options, &whole);
        }
        Err(error) => {
            refused(&strict.0, bytes, &error);
            let options = options.clone().recovery(Recovery::Salvage);
            let (disk, salvaged) = open(bytes, &options);
            match (salvaged, error) {
                (Ok(store), OpenError::Damaged { .. }) => {
                    // Damage that was named never makes an open refuse again, so it is opened
                    // strictly from here on.
                    live(
                        &disk,
                        store,
                        &options.clone().recovery(Recovery::Strict),
                        &whole,
                    );
                    use_at_once(bytes, &options, &whole);
                }
                (Ok(_), error) => panic!("salvage takes what strict refuses: {error}"),
                (Err(error), _) => refused(&disk, bytes, &error),
            }
        }
    }
}

/// A look takes two scans and a pause if something is wrong, which is too slow for every input.
fn may_look(bytes: &[u8]) -> bool {
    cfg!(not(fuzzing)) || bytes.iter().fold(0u8, |sum, b| sum.rotate_left(1) ^ b) % 8 == 0
}

fn open(bytes: &[u8], options: &Options) -> (SimDisk, Result<Store, OpenError>) {
    let disk = SimDisk::new();
    disk.restore(bytes.to_vec());
    // A file may ask for growth up to a capacity of its own; this disk has no room for that.
    disk.limit(Some(bytes.len() as u64 + (64 << 10)));
    let store = disk.open(options.clone());
    (disk, store)
}

/// A refused file must be as it was.
fn refused(disk: &SimDisk, bytes: &[u8], error: &OpenError) {
    if let OpenError::Damaged { ranges, .. } = error {
        assert!(!ranges.is_empty(), "damage without a place");
    }
    assert!(disk.bytes() == bytes, "refused, and changed: {error}");
}

/// Every intact message in the file: nothing else may ever come out of it.
struct Whole {
    messages: BTreeMap<u64, BTreeSet<Vec<u8>>>,
    bytes: Vec<u8>,
}

impl Whole {
    fn of(bytes: &[u8]) -> Self {
        let mut all: BTreeMap<u64, BTreeSet<Vec<u8>>> = BTreeMap::new();
        for message in intact_messages(bytes) {
            all.entry(message.sequence)
                .or_default()
                .insert(message.payload);
        }
        Whole {
            messages: all,
            bytes: bytes.to_vec(),
        }
    }

    /// Whether it contains an intact record that no store writes: of a run to come, with a number
    /// that is never reached, without meaning, the second of its ordinal in one run, or an epoch
    /// that is not the first of its run.
    fn is_forged(&self) -> bool {
        const USED_UP: u64 = (1 << 63) - (1 << 48);
        let file = memory_file(&self.bytes);
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        let Ok(look) = Inspection::open(path) else {
            return false;
        };
        let last_run = look.info().generation;
        let mut seen = BTreeSet::new();
        let records = look.records().map(|record| record.expect("reads"));
        let records: Vec<_> = records.filter(|r| r.kind.is_some()).collect();
        let epochs = records.iter().filter(|r| r.kind == Some(RecordKind::Epoch));
        let begun: BTreeMap<_, _> = epochs.map(|e| (e.generation, e.ordinal)).collect();
        records.iter().any(|r| {
            r.generation > last_run
                || r.ordinal.max(r.sequence) >= USED_UP
                || !seen.insert((r.ordinal, r.generation))
                || begun.get(&r.generation).is_some_and(|b| r.ordinal < *b)
                || is_meaningless(r)
        })
    }

    fn check(&self, sequence: u64, payload: &[u8]) {
        let known = self
            .messages
            .get(&sequence)
            .is_some_and(|p| p.contains(payload));
        assert!(known, "message {sequence} was invented");
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
struct State {
    unsettled: BTreeMap<u64, Vec<u8>>,
    refused: BTreeMap<u64, Option<Vec<u8>>>,
    tag: Option<Vec<u8>>,
}

impl State {
    fn of(store: &Store, whole: &Whole) -> Self {
        let state = Self::read(store);
        for (sequence, payload) in &state.unsettled {
            whole.check(*sequence, payload);
        }
        for (sequence, payload) in &state.refused {
            if let Some(payload) = payload {
                whole.check(*sequence, payload);
            }
        }
        state
    }

    fn read(store: &Store) -> Self {
        let mut state = State::default();
        let mut message = StoredMessage::new();
        let mut batch = Batch::default();
        let mut from = 0;
        loop {
            store
                .read_unsettled(from, u64::MAX, &mut batch)
                .expect("what was recovered is whole");
            if batch.is_empty() {
                break;
            }
            for message in batch.iter() {
                assert!(message.sequence >= from, "messages come in order");
                let payload = message.payload().to_vec();
                state.unsettled.insert(message.sequence, payload);
                from = message.sequence + 1;
            }
        }
        for rejection in store.rejections(0, usize::MAX) {
            let there = store.get(rejection.sequence, &mut message);
            let payload = there
                .expect("what was recovered is whole")
                .then(|| message.payload().to_vec());
            state.refused.insert(rejection.sequence, payload);
        }
        state.tag = store.resume_tag();
        let bounds = store.bounds();
        assert_eq!(bounds.unsettled, state.unsettled.len() as u64);
        assert_eq!(bounds.rejections, state.refused.len() as u64);
        assert_eq!(
            bounds.first_unsettled,
            state.unsettled.keys().next().copied()
        );
        let highest = state.unsettled.keys().chain(state.refused.keys()).max();
        assert!(highest.is_none_or(|h| bounds.next > *h), "{bounds:?}");
        assert!(bounds.next > store.numbers().grant, "{bounds:?}");
        state
    }
}

/// What opened is opened again, after a crash and after a power cut, then used and closed.
fn live(disk: &SimDisk, store: Store, options: &Options, whole: &Whole) {
    let found = State::of(&store, whole);
    let next = store.bounds().next;
    drop(store);
    let crashed = disk.bytes();
    disk.power_cut(Cut::None, &mut Rng::new(1));
    for (what, bytes) in [("a crash", crashed), ("a power cut", disk.bytes())] {
        disk.restore(bytes);
        let Some(store) = again(disk, options, what, whole) else {
            return;
        };
        assert_eq!(State::read(&store), found, "after {what}");
        assert!(what != "a crash" || store.bounds().next >= next);
        if what == "a power cut" {
            use_it(disk, store, options, found, whole);
            return;
        }
    }
}

/// The run that recovered the file, and may have added to it, goes on.
fn use_at_once(bytes: &[u8], options: &Options, whole: &Whole) {
    let (disk, store) = open(bytes, options);
    let store = store.expect("it opened once");
    let found = State::of(&store, whole);
    let strict = options.clone().recovery(Recovery::Strict);
    use_it(&disk, store, &strict, found, whole);
}

fn is_meaningless(record: &Record) -> bool {
    use RecordKind::{Epoch, Mark, Settlement};
    let speaks = matches!(record.kind, Some(Settlement | Mark | Epoch));
    let is_intact = record.verdict != RecordVerdict::Torn;
    speaks && is_intact && matches!(record.body, Body::Unreadable(_))
}

/// `None`: this open refuses because of a record that no store writes, in a place where the first
/// open had no reason to look, such as behind a clean close. It must have been in the file as it
/// was given.
fn again(disk: &SimDisk, options: &Options, what: &str, whole: &Whole) -> Option<Store> {
    match disk.open(options.clone()) {
        Ok(store) => Some(store),
        Err(OpenError::Broken { why, .. }) if whole.is_forged() => {
            let reasons = [
                "numbers are used up",
                "a record of run",
                "which no store writes",
            ];
            assert!(reasons.iter().any(|r| why.contains(r)), "{what}: {why}");
            None
        }
        Err(error) => panic!("it opened once, and not after {what}: {error} {error:?}"),
    }
}

/// The store goes on in ordinary use.
fn use_it(disk: &SimDisk, store: Store, options: &Options, mut state: State, whole: &Whole) {
    let mut sent = Vec::new();
    for n in 0..8u8 {
        let mut envelope = Envelope::publish("after");
        let tag = [n];
        envelope.user_tag = (&tag[..]).into();
        if let Ok(at) = store.append(&envelope, &[n; 300]) {
            assert!(!state.unsettled.contains_key(&at.sequence));
            state.unsettled.insert(at.sequence, vec![n; 300]);
            state.tag = Some(tag.to_vec());
            sent.push(at.sequence);
        }
        upkeep(&store);
    }
    if let Some((&first, _)) = state.unsettled.iter().next()
        && store.settle_through(first).is_ok()
    {
        state.unsettled.remove(&first);
    }
    if let Some((&last, _)) = state.unsettled.iter().next_back()
        && store.settle(&[last, last]).is_ok()
    {
        state.unsettled.remove(&last);
    }
    if let Some((&sequence, _)) = state.unsettled.iter().next()
        && let Ok(Rejected::Logged { late: false, .. }) = store.reject(sequence, "no", 1)
    {
        let payload = state.unsettled.remove(&sequence);
        state.refused.insert(sequence, payload);
    }
    if let Some((&sequence, payload)) = state.refused.clone().iter().next()
        && let Ok(Some(at)) = store.requeue(sequence, 2)
    {
        state.refused.remove(&sequence);
        let payload = payload.clone().expect("it was requeued");
        state.unsettled.insert(at.sequence, payload);
    }
    if let Some((&sequence, _)) = state.refused.clone().iter().next()
        && matches!(store.accept(sequence), Ok(true))
    {
        state.refused.remove(&sequence);
    }
    upkeep(&store);
    assert_eq!(State::read(&store), state, "live");
    drop(store);
    let Some(store) = again(disk, options, "use", whole) else {
        return;
    };
    assert_eq!(State::read(&store), state, "after use");
    let closed = store.close(0);
    drop(store);
    if closed.is_ok() {
        disk.power_cut(Cut::None, &mut Rng::new(2));
    }
    let Some(store) = again(disk, options, "close", whole) else {
        return;
    };
    assert_eq!(State::read(&store), state, "after close");
    assert!(sent.iter().all(|s| *s < store.bounds().next));
}

fn upkeep(store: &Store) {
    for _ in 0..CHORES {
        if !step(store).unwrap_or(false) {
            return;
        }
    }
    panic!("upkeep never ends");
}

/// A look at the same bytes as a file: what it shows is what an open finds.
fn look(bytes: &[u8], strict: &Result<Store, OpenError>, found: Option<&State>) {
    let file = memory_file(bytes);
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    let looked = Inspection::open(&path);
    match (&looked, strict) {
        (Ok(_), Ok(_) | Err(OpenError::Damaged { .. } | OpenError::Io { .. })) => {}
        // A look is possible even if there is no room, or are no numbers, to go on with, or if
        // the store was evacuated.
        (Ok(_), Err(OpenError::Broken { .. } | OpenError::Retired { .. })) => {}
        // An open makes a new store where there is none.
        (Err(OpenError::Missing { .. }), Ok(store)) => assert!(store.report().created),
        (Err(a), Err(b)) if std::mem::discriminant(a) == std::mem::discriminant(b) => {}
        (a, b) => panic!(
            "looked {:?}, opened {:?}",
            a.as_ref().err(),
            b.as_ref().err()
        ),
    }
    if let Ok(look) = looked {
        assert!(!look.is_moving());
        if matches!(strict, Err(OpenError::Damaged { .. })) {
            assert!(!look.report().damaged.is_empty());
        }
        if let (Some(found), Ok(store)) = (found, strict) {
            compare(&look, found, store);
        }
        everything(&look);
    }
    let mut after = vec![0; bytes.len() + 1];
    let n = file.read_at(&mut after, 0).expect("reads");
    assert!(after[..n] == *bytes, "looking changed the file");
}

fn memory_file(bytes: &[u8]) -> File {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let fd = rustix::fs::memfd_create("amps-fuzz", flags).expect("a file in memory");
    let mut file = File::from(fd);
    file.write_all(bytes).expect("writes");
    file
}

fn compare(look: &Inspection, found: &State, store: &Store) {
    let (seen, opened) = (look.report(), store.report());
    assert_eq!(seen.recovered, opened.recovered);
    assert_eq!((seen.first, seen.last), (opened.first, opened.last));
    assert_eq!(seen.next, opened.next);
    assert_eq!(seen.rejections, opened.rejections);
    assert_eq!(seen.set_aside, opened.set_aside);
    assert_eq!(seen.stop, opened.stop);
    assert_eq!(seen.last_ordinal, opened.last_ordinal);
    assert_eq!(look.resume_tag(), found.tag.as_deref());
    let messages: BTreeMap<u64, Vec<u8>> = look
        .messages(Filter::new())
        .map(|m| m.expect("reads"))
        .map(|m| (m.sequence, m.payload))
        .collect();
    assert_eq!(messages, found.unsettled);
}

/// Everything that can be asked has an answer, and what is exported can be imported.
fn everything(look: &Inspection) {
    let info = look.info();
    let _ = (info.dropped(), format!("{info:?}"), look.numbers());
    let verified = look.verify().expect("reads");
    assert!(verified.problems.is_sorted_by_key(|p| p.offset));
    if !look.report().damaged.is_empty() {
        assert!(!verified.is_sound(), "damage was verified");
    }
    assert_eq!(look.map().len() as u64, verified.segments);
    for record in look.records().chain(look.set_aside()) {
        let _ = format!("{:?}", record.expect("reads"));
    }
    let mut count = 0;
    for message in look.messages(Filter::all()) {
        let message = message.expect("reads");
        assert_eq!(
            message.state == MessageState::Rejected,
            message.rejection.is_some()
        );
        count += 1;
    }
    assert_eq!(
        look.rejections().expect("reads").len() as u64,
        look.bounds().rejections
    );
    let mut lines = Vec::new();
    let exported = export(look, Filter::all(), &mut lines).expect("exports");
    assert_eq!(exported.messages + exported.unreadable, count);
    let into = Store::memory(Options::new().capacity(1 << 20)).expect("a store in memory");
    if let Ok(imported) = import(&lines[..], &into) {
        assert_eq!(imported.messages + imported.settled, exported.messages);
        assert_eq!(imported.rejections, exported.rejections);
    }
}
