//! Looking into stores: what is shown is what is there, and nothing is changed.

// Helpers outside of test functions; a failure is the test's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amps_store::inspect::{Filter, Inspection, MessageState, RecordKind, RecordVerdict};
use amps_store::testkit::{Call, open_by_steps, step, watch_calls};
use amps_store::{Envelope, OpenError, Options, PublishStore, Store};

fn options() -> Options {
    Options::new().capacity(68 << 10).client_name("tester")
}

fn publish(store: &Store, topic: &str, payload: &[u8]) -> u64 {
    let mut envelope = Envelope::publish(topic);
    envelope.published_at = 1000;
    let deadline = Instant::now() + Duration::from_secs(60);
    let appended = store.append_wait(&envelope, payload, deadline);
    appended.expect("room").sequence
}

fn sequences(inspection: &Inspection, filter: Filter) -> Vec<u64> {
    inspection
        .messages(filter)
        .map(|m| m.expect("readable").sequence)
        .collect()
}

/// A store with every state a message can have: 2 settled, 3 refused, 5 accepted.
fn mixed(path: &Path) -> Store {
    let store = Store::open(path, options()).unwrap();
    for n in 1..=6u64 {
        let topic = if n % 2 == 0 { "even" } else { "odd" };
        publish(&store, topic, format!("message {n}").as_bytes());
    }
    store.settle(&[2]).unwrap();
    store.reject(3, "not entitled", 77).unwrap();
    store.reject(5, "bad", 78).unwrap();
    store.accept(5).unwrap();
    store
}

#[test]
fn shows_a_live_store_without_changing_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let store = mixed(&path);
    store.raise_grant(50).unwrap();
    store.sync().unwrap();
    let before = std::fs::read(&path).unwrap();
    let inspection = Inspection::open(&path).unwrap();
    let info = inspection.info();
    assert_eq!(info.client_name, "tester");
    assert_eq!((info.grant, info.next, info.floor), (50, 51, 0));
    assert_eq!((info.unsettled, info.rejections), (3, 1));
    assert_eq!(
        (info.first_unsettled, info.last_unsettled),
        (Some(1), Some(6))
    );
    assert_eq!(info.owner_pid, std::process::id());
    assert_eq!(info.owner_alive, Some(true));
    assert!(!info.clean && !info.moving && !info.superblock_differs);
    let bounds = store.bounds();
    assert_eq!(info.limit_bytes, bounds.limit_bytes);
    assert_eq!(info.charged_bytes, bounds.live_bytes);

    assert_eq!(sequences(&inspection, Filter::new()), [1, 4, 6]);
    assert_eq!(sequences(&inspection, Filter::all()), [1, 2, 3, 4, 5, 6]);
    assert_eq!(
        sequences(&inspection, Filter::all().topic("odd")),
        [1, 3, 5]
    );
    assert_eq!(
        sequences(&inspection, Filter::all().sequences(2..=4)),
        [2, 3, 4]
    );
    assert_eq!(
        sequences(&inspection, Filter::all().published(0..=999)),
        [0u64; 0]
    );
    let refused = inspection.get(3).unwrap().unwrap();
    assert_eq!(refused.state, MessageState::Rejected);
    assert_eq!(refused.payload, b"message 3");
    assert_eq!(refused.rejection.unwrap().reason, "not entitled");
    assert_eq!(inspection.rejections().unwrap(), store.rejections(0, 9));
    assert!(inspection.get(7).unwrap().is_none());

    let verification = inspection.verify().unwrap();
    assert!(verification.is_sound(), "{:?}", verification.problems);
    assert_eq!(verification.problems, []);
    assert_eq!(verification.messages, 6);
    assert_eq!(
        (verification.superblocks, verification.segment_headers),
        (2, 4)
    );
    assert_eq!(verification.bytes, before.len() as u64);
    let records: Vec<_> = inspection.records().map(Result::unwrap).collect();
    let verdict = |sequence| {
        let is_publish = |k| k == Some(RecordKind::Publish);
        let found = records
            .iter()
            .find(|r| is_publish(r.kind) && r.sequence == sequence);
        found.unwrap().verdict
    };
    assert_eq!(verdict(1), RecordVerdict::Live);
    assert_eq!(verdict(2), RecordVerdict::Settled);
    assert_eq!(verdict(3), RecordVerdict::Rejected);
    assert_eq!(verdict(5), RecordVerdict::Settled);
    let live: u64 = inspection.map().iter().map(|s| s.live).sum();
    assert_eq!(live, info.live_bytes);
    assert_eq!(inspection.map().iter().filter(|s| s.is_tail).count(), 1);
    drop(store);
    assert!(
        before == std::fs::read(&path).unwrap(),
        "a byte was changed"
    );
}

#[test]
fn what_is_no_store_is_said_to_be_none() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.store");
    let open = || Inspection::open(&path).map(drop);
    assert!(matches!(open(), Err(OpenError::Missing { .. })));
    std::fs::write(&path, b"").unwrap();
    assert!(matches!(open(), Err(OpenError::Missing { .. })));
    std::fs::write(&path, vec![7; 9000]).unwrap();
    assert!(matches!(open(), Err(OpenError::NotAStore { .. })));
    let directory = Inspection::open(dir.path()).map(drop);
    assert!(matches!(directory, Err(OpenError::NotAStore { .. })));
}

/// Creates a store, and stops it before this system call (not counting those that fill the file).
/// A look begins there, and before its given read the creation goes on to its end. Returns what
/// the look saw, and whether it read that often; `None`: the creation makes no such call.
fn look_beside_a_creation(
    path: &Path,
    call: u64,
    read: u64,
) -> Option<(Result<Inspection, OpenError>, bool)> {
    let (says_when, when) = mpsc::channel();
    let (says_go, go) = mpsc::channel();
    let (says_done, done) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut calls = 0;
            watch_calls(Some(Box::new(move |kind| {
                if kind == Call::Fill {
                    return;
                }
                if calls == call {
                    says_when.send(()).unwrap();
                    go.recv().unwrap();
                }
                calls += 1;
            })));
            drop(Store::open(path, options().preallocate(true)).unwrap());
            watch_calls(None);
            // If there were fewer calls, nobody waits for this.
            let _ = says_done.send(());
        });
        when.recv().ok()?;
        let finish = move || {
            says_go.send(()).unwrap();
            done.recv().unwrap();
        };
        let rest = Rc::new(RefCell::new(Some(finish)));
        let (in_look, mut reads) = (rest.clone(), 0);
        watch_calls(Some(Box::new(move |call| {
            if call == Call::Read {
                if reads == read {
                    in_look.take().unwrap()();
                }
                reads += 1;
            }
        })));
        let seen = Inspection::open(path);
        watch_calls(None);
        let left = rest.take();
        let reads_so_often = left.is_none();
        left.into_iter().for_each(|finish| finish());
        Some((seen, reads_so_often))
    })
}

/// The superblocks are written last. A look that began before them once found stamps of the first
/// open behind them a moment later, and said "both superblock copies are blank, and data
/// follows".
#[test]
fn a_store_that_is_being_created_is_missing_or_empty_and_never_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let (mut calls, mut read) = (0, 0);
    // How many looks began before there was a store, and how often it was created during one of
    // them.
    let (mut missing, mut straddled) = (0, 0);
    while let Some((look, reads_so_often)) = look_beside_a_creation(&path, calls, read) {
        match look {
            Ok(seen) => {
                assert!(seen.info().damaged.is_empty(), "{calls} {read}");
                assert_eq!(seen.bounds().unsettled, 0);
                straddled += u64::from(reads_so_often);
            }
            Err(OpenError::Missing { .. }) => missing += 1,
            Err(other) => panic!("call {calls}, read {read}: {other}"),
        }
        (calls, read) = match reads_so_often {
            true => (calls, read + 1),
            false => (calls + 1, 0),
        };
        std::fs::remove_file(&path).unwrap();
    }
    println!("{calls} calls, missing {missing} times, {straddled} looks straddle");
    assert!(
        calls > 10 && missing > 5 && straddled > 50,
        "{calls} {missing} {straddled}"
    );
}

/// Ends the writer even if the reader fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Busy is not damaged: while a writer goes round the ring, every look shows a state that the
/// store had. The writer runs between any two looks here; what it may do within one is tested by
/// `a_look_shows_nothing_older_than_its_beginning`, at every read.
#[test]
fn h35_an_inspector_over_turning_segments_is_right() {
    for (capacity, segment) in [(64 << 10, 8 << 10), (1 << 20, 64 << 10)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.store");
        let options = options().capacity(capacity).segment_size(segment);
        let store = Store::open(&path, options).unwrap();
        let stop = AtomicBool::new(false);
        let (appended, settling, settled) =
            (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
        let payload = |n: u64| format!("{n} ").repeat((n % 50) as usize + 1);
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut n = 0;
                while !stop.load(Ordering::Acquire) {
                    n += 1;
                    publish(&store, "busy", payload(n).as_bytes());
                    appended.store(n, Ordering::Release);
                    if n % 20 == 0 {
                        settling.store(n - 10, Ordering::Release);
                        store.settle_through(n - 10).unwrap();
                        settled.store(n - 10, Ordering::Release);
                    }
                }
            });
            let _ending = Ending(&stop);
            let mut through = 0;
            for _ in 0..200 {
                while appended.load(Ordering::Acquire) <= through {
                    assert!(!writer.is_finished());
                    std::thread::yield_now();
                }
                let (at_least, floor, inspection) = loop {
                    let (at_least, floor) = (
                        appended.load(Ordering::Acquire),
                        settled.load(Ordering::Acquire),
                    );
                    match Inspection::open(&path) {
                        Ok(inspection) => break (at_least, floor, inspection),
                        // The writer goes round the ring while this thread waits for a processor.
                        Err(OpenError::Busy { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                };
                let info = inspection.info();
                let messages: Vec<_> = inspection
                    .messages(Filter::new())
                    .map(Result::unwrap)
                    .collect();
                let (at_most, highest_floor) = (
                    appended.load(Ordering::Acquire) + 1,
                    settling.load(Ordering::Acquire),
                );
                let verification = inspection.verify().unwrap();
                assert!(verification.is_sound(), "{:?}", verification.problems);
                assert_eq!(info.set_aside, 0, "{info:?}");
                for message in &messages {
                    assert_eq!(message.payload, payload(message.sequence).as_bytes());
                }
                for pair in messages.windows(2) {
                    assert_eq!(pair[0].sequence + 1, pair[1].sequence, "a hole: {info:?}");
                }
                if let (Some(first), Some(last)) = (messages.first(), messages.last()) {
                    assert!(first.sequence > floor && first.sequence <= highest_floor + 1);
                    assert!(last.sequence >= at_least && last.sequence <= at_most);
                } else {
                    assert!(at_least <= highest_floor, "nothing shown: {info:?}");
                }
                let last = inspection.bounds().last;
                assert!(last >= through, "back from {through} to {last}");
                through = last;
            }
        });
    }
}

/// A refusal was damaged together with the publish behind it, and verify once named only the
/// message of that publish.
#[test]
fn verify_says_where_refusals_may_be_missing_beside_a_message() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, options()).unwrap();
    publish(&store, "t", b"refused");
    store.reject(1, "no", 77).unwrap();
    for n in [2, 3, 4] {
        publish(&store, "t", &[n]);
        store.sync().unwrap();
    }
    drop(store);
    let sound = std::fs::read(&path).unwrap();
    let records = Inspection::open(&path).unwrap();
    let records: Vec<_> = records.records().map(Result::unwrap).collect();
    let place = |kind: RecordKind, sequence: u64| {
        let mut those = records.iter().filter(|r| r.kind == Some(kind));
        those.find(|r| r.sequence == sequence).unwrap().offset as usize
    };
    let refusal = place(RecordKind::Rejection, 1);
    let message = place(RecordKind::Publish, 2);
    for (first, others) in [(message, false), (refusal, true)] {
        let mut bytes = sound.clone();
        // A mark may stand between the two.
        let places = records.iter().map(|r| r.offset as usize);
        let damaged = places.filter(|at| (first..=message).contains(at));
        damaged.for_each(|at| bytes[at + 20] ^= 1);
        std::fs::write(&path, bytes).unwrap();
        let verification = Inspection::open(&path).unwrap().verify().unwrap();
        let mut problems = verification.problems.iter();
        let problem = problems.find(|p| p.text.contains("are lost")).unwrap();
        assert!(problem.text.contains("sequences 2 to 2"), "{problem:?}");
        assert_eq!(
            problem.text.contains("refusals of earlier"),
            others,
            "{problem:?}"
        );
    }
}

/// A file that was cut shows what it had settled before, and must say how much may be missing: it
/// once said one message where all were lost.
#[test]
fn what_a_cut_file_may_have_lost_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = open_by_steps(&path, options()).unwrap();
    for _ in 0..994 {
        let append = || store.append(&Envelope::publish("t"), &[7; 300]);
        let at = append().or_else(|_| {
            while step(&store).unwrap() {}
            append()
        });
        let at = at.unwrap();
        store
            .settle_through(at.sequence.saturating_sub(39))
            .unwrap();
    }
    let lost: Vec<u64> = (956..=994).collect();
    store.sync().unwrap();
    drop(store);
    let open = |len: u64| {
        let file = std::fs::File::options().write(true).open(&path).unwrap();
        file.set_len(len).unwrap();
        Inspection::open(&path).unwrap()
    };
    for len in [40_000, 30_000, 20_000] {
        let seen = open(len);
        let shown = sequences(&seen, Filter::new());
        let missing = lost.iter().filter(|s| !shown.contains(s)).count() as u64;
        assert!(missing > 0, "nothing is missing at {len}");
        assert!(!seen.info().damaged.is_empty());
        assert!(seen.info().dropped() >= missing, "{:?}", seen.info());
    }
}

/// The header of a segment whose first record is damaged was once taken for a sign that the store
/// was just being written.
#[test]
fn a_damaged_first_record_of_a_segment_is_told_and_is_not_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, options()).unwrap();
    for _ in 0..30 {
        publish(&store, "t", &[7; 500]);
    }
    store.sync().unwrap();
    publish(&store, "t", b"behind a mark that says what is durable");
    drop(store);
    let bytes = std::fs::read(&path).unwrap();
    let mut used = 0;
    for header in (12288..bytes.len()).step_by(8192) {
        if bytes[header + 24] == 0 {
            continue;
        }
        used += 1;
        let mut damaged = bytes.clone();
        damaged[header + 64 + 50] ^= 1;
        std::fs::write(&path, damaged).unwrap();
        let seen = Inspection::open(&path).unwrap();
        assert!(!seen.is_moving());
        assert_eq!(seen.info().damaged.len(), 1, "{:?}", seen.info());
    }
    assert!(used >= 3, "{used} segments");
}

#[test]
fn damage_is_told_and_is_not_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, options()).unwrap();
    for _ in 0..20 {
        publish(&store, "t", b"a payload to be found");
    }
    store.close(0).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"a payload to be found";
    let at = bytes.windows(needle.len()).position(|w| w == needle);
    bytes[at.unwrap()] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let seen = Inspection::open(&path).unwrap();
    assert_eq!(seen.report().damaged.len(), 1, "{:?}", seen.report());
    assert_eq!((seen.bounds().unsettled, seen.info().dropped()), (19, 1));
    let verification = seen.verify().unwrap();
    assert!(!verification.is_sound() && !verification.moving);
    let damaged: Vec<_> = seen
        .records()
        .map(Result::unwrap)
        .filter(|r| r.verdict == RecordVerdict::Damaged)
        .collect();
    assert_eq!(damaged.len(), 1);
    assert_eq!(damaged[0].offset, seen.report().damaged[0].offset);
    assert_eq!(damaged[0].bytes, seen.report().damaged[0].bytes);
}
