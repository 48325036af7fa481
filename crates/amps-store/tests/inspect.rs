//! Looking into stores: what is shown is what is there, and nothing is changed.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use amps_store::inspect::{Filter, Inspection, MessageState, RecordKind, RecordVerdict, Standing};
use amps_store::{Envelope, OpenError, Options, PublishStore, Store, StoredMessage};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("tester")
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
    let refused = inspection.message(3).unwrap().unwrap();
    assert_eq!(refused.state, MessageState::Rejected);
    assert_eq!(refused.payload, b"message 3");
    assert_eq!(refused.rejection.unwrap().reason, "not entitled");
    assert_eq!(inspection.rejections(0, 9).unwrap(), store.rejections(0, 9));
    assert!(inspection.message(7).unwrap().is_none());

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

/// Busy is not damaged: while a writer laps the ring, every look is a state the store had.
#[test]
fn a_busy_store_is_never_called_damaged() {
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
            scope.spawn(|| {
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
            for _ in 0..200 {
                let (at_least, floor) = (
                    appended.load(Ordering::Acquire),
                    settled.load(Ordering::Acquire),
                );
                let inspection = Inspection::open(&path).unwrap();
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
            }
            stop.store(true, Ordering::Release);
        });
    }
}

#[test]
fn a_picture_says_what_the_store_says_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, Options::new().capacity(1 << 20).client_name("n")).unwrap();
    let mut envelope = Envelope::publish("t");
    for n in 1..=10_u64 {
        envelope.user_tag = n.to_string().into_bytes().into();
        store
            .append(&envelope, format!("payload {n}").as_bytes())
            .unwrap();
    }
    store.settle_through(3).unwrap();
    store.reject(5, "because", 77).unwrap();
    let before = std::fs::read(&path).unwrap();
    let seen = Inspection::open(&path).unwrap();
    let (ours, theirs) = (store.bounds(), seen.bounds());
    assert_eq!(ours.first_unsettled, theirs.first_unsettled);
    assert_eq!((ours.last, ours.floor), (theirs.last, theirs.floor));
    assert_eq!(
        (ours.unsettled, ours.rejections),
        (theirs.unsettled, theirs.rejections)
    );
    assert_eq!(ours.live_bytes, theirs.live_bytes);
    assert_eq!(seen.client_name(), "n");
    assert_eq!(seen.resume_tag(), Some(&b"10"[..]));
    assert_eq!(seen.standing(3), Some(Standing::Settled));
    assert_eq!(seen.standing(4), Some(Standing::Unsettled));
    assert_eq!(seen.standing(5), Some(Standing::Rejected));
    assert_eq!(seen.standing(11), None);
    assert_eq!(seen.rejections(0, 9).unwrap(), store.rejections(0, 9));
    let mut message = StoredMessage::new();
    let mut found = Vec::new();
    let mut from = 0;
    while let Some(sequence) = seen.next_unsettled(from, &mut message).unwrap() {
        assert_eq!(message.payload(), format!("payload {sequence}").as_bytes());
        found.push(sequence);
        from = sequence + 1;
    }
    assert_eq!(found, [4, 6, 7, 8, 9, 10]);
    assert!(seen.get(5, &mut message).unwrap());
    assert_eq!(message.payload(), b"payload 5");
    assert_eq!(std::fs::read(&path).unwrap(), before);
}

#[test]
fn h35_an_inspector_over_turning_segments_is_busy_or_right() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, Options::new().capacity(128 << 10)).unwrap();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let payload = [7; 300];
            while !stop.load(Ordering::Relaxed) {
                if store.append(&Envelope::publish("t"), &payload).is_err() {
                    let bounds = store.bounds();
                    store
                        .settle_through(bounds.last - bounds.unsettled / 2)
                        .unwrap();
                }
            }
        });
        let mut message = StoredMessage::new();
        let mut pictures = 0;
        let mut through = 0;
        while pictures < 200 {
            let seen = match Inspection::open(&path) {
                Ok(seen) => seen,
                Err(OpenError::Busy { .. }) => continue,
                Err(error) => panic!("{error}"),
            };
            pictures += 1;
            assert!(seen.report().damaged.is_empty(), "{}", seen.report());
            assert_eq!(seen.report().set_aside, 0, "{}", seen.report());
            let last = seen.bounds().last;
            assert!(
                last >= through,
                "the log went back from {through} to {last}"
            );
            through = last;
            let (mut from, mut before) = (0, None);
            while let Some(sequence) = seen.next_unsettled(from, &mut message).unwrap() {
                assert_eq!(message.payload(), [7; 300]);
                assert!(before.is_none_or(|before| before < sequence));
                (from, before) = (sequence + 1, Some(sequence));
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn damage_is_told_and_is_not_busy() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, Options::new().capacity(1 << 20)).unwrap();
    for _ in 0..20 {
        store
            .append(&Envelope::publish("t"), b"a payload to be found")
            .unwrap();
    }
    store.close(0).unwrap();
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = b"a payload to be found";
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .unwrap();
    bytes[at] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let seen = Inspection::open(&path).unwrap();
    assert_eq!(seen.report().damaged.len(), 1, "{:?}", seen.report());
    assert_eq!(seen.bounds().unsettled, 19);
}
