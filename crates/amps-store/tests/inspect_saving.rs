//! Getting messages out of a store: repair, export, import.

// Helpers outside of test functions; a failure is the test's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::{Path, PathBuf};

use amps_store::inspect::{Filter, Inspection, Message, MessageState};
use amps_store::testkit::{SimDisk, intact_messages};
use amps_store::transfer::{ImportError, RepairError, Unsaved, export, import, repair_to};
use amps_store::{
    AppendError, Envelope, Level, Operation, Options, Origin, PublishStore, Stop, Store,
    StoredMessage,
};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("tester")
}

fn publish(store: &Store, n: u64) -> u64 {
    let mut envelope = Envelope::publish("orders");
    envelope.user_tag = n.to_string().into_bytes().into();
    envelope.published_at = n;
    let payload = format!("message {n}");
    let appended = store.append(&envelope, payload.as_bytes());
    appended.expect("room").sequence
}

fn messages(path: &Path, filter: Filter) -> Vec<Message> {
    let inspection = Inspection::open(path).unwrap();
    inspection.messages(filter).map(Result::unwrap).collect()
}

fn sequences(messages: &[Message]) -> Vec<u64> {
    messages.iter().map(|m| m.sequence).collect()
}

fn two(dir: &tempfile::TempDir) -> (PathBuf, PathBuf) {
    (dir.path().join("old.store"), dir.path().join("new.store"))
}

/// Changes one byte of the record of a message.
fn damage(path: &Path, sequence: u64) {
    let offset = Inspection::open(path)
        .unwrap()
        .get(sequence)
        .unwrap()
        .unwrap()
        .offset;
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset as usize + 60] ^= 1;
    std::fs::write(path, &bytes).unwrap();
}

/// What is left of the segment in which a copy was cut was once skipped: of a file that ends in
/// its first segment nothing was shown or saved, although every message was there.
#[test]
fn a_file_that_was_cut_within_a_segment_is_shown_and_saved_up_to_there() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options().capacity(256 << 10).preallocate(true)).unwrap();
    for n in 1..=400 {
        publish(&store, n);
    }
    store.sync().unwrap();
    drop(store);
    let whole = std::fs::read(&old).unwrap();
    let there = messages(&old, Filter::all());
    let places = intact_messages(&whole);
    assert_eq!((there.len(), places.len()), (400, 400));
    let info = Inspection::open(&old).unwrap().info();
    let begin = places[0].offset;
    let later = places
        .iter()
        .rfind(|m| m.offset > begin + info.segment_size);
    assert!(
        later.is_some(),
        "cut in the first segment and in later ones"
    );
    for message in places.into_iter().step_by(23) {
        let (offset, last) = (message.offset as usize, message.sequence - 1);
        for cut in [offset, offset + 20] {
            std::fs::write(&old, &whole[..cut]).unwrap();
            let left: Vec<u64> = (1..=last).collect();
            assert_eq!(sequences(&messages(&old, Filter::all())), left, "{cut}");
            let verified = Inspection::open(&old).unwrap().verify().unwrap();
            assert!(!verified.is_sound(), "{cut}");
            if last == 0 {
                continue;
            }
            let report = repair_to(&old, &new).unwrap();
            assert_eq!(report.saved, last, "{cut}");
            let told = report.unsaved.iter().any(|unsaved| {
                matches!(unsaved, Unsaved::Damaged(range)
                    if range.offset + range.bytes >= whole.len() as u64)
            });
            assert!(told, "{cut}: {:?}", report.unsaved);
            assert_eq!(sequences(&messages(&new, Filter::all())), left);
            std::fs::remove_file(&new).unwrap();
        }
    }
}

#[test]
fn a_repaired_store_is_the_old_one_less_what_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options()).unwrap();
    store.raise_grant(100).unwrap();
    for n in 1..=12 {
        publish(&store, n);
    }
    store.settle_through(2).unwrap();
    store.settle(&[4, 9]).unwrap();
    store.reject(5, "not entitled", 77).unwrap();
    store.reject(6, "bad", 78).unwrap();
    store.accept(6).unwrap();
    store.requeue(5, 5).unwrap();
    store.reject(8, "also", 79).unwrap();
    store.close(90).unwrap();
    drop(store);
    damage(&old, 10);
    assert!(Store::open(&old, options()).is_err(), "strict refuses");
    let before = std::fs::read(&old).unwrap();

    let report = repair_to(&old, &new).unwrap();
    assert!(
        before == std::fs::read(&old).unwrap(),
        "the old file changed"
    );
    assert_eq!(report.unsaved.len(), 1, "{report:?}");
    let Unsaved::Damaged(range) = &report.unsaved[0] else {
        panic!("{report:?}")
    };
    assert_eq!(range.sequences, Some((10, 10)));
    assert_eq!((report.saved, report.rejections), (5, 1), "{report:?}");
    assert_eq!(report.enlarged_to, None);

    let store = Store::open(&new, options()).unwrap();
    assert_eq!(store.report().stop, Stop::CleanClose);
    let left = messages(&new, Filter::new());
    assert_eq!(sequences(&left), [3, 7, 11, 12, 13]);
    assert_eq!(left[0].payload, b"message 3");
    assert!(left[4].quiet, "a requeued message stays one");
    let refused = store.rejections(0, 9);
    assert_eq!(
        (refused.len(), refused[0].sequence, refused[0].at),
        (1, 8, 79)
    );
    let original = Inspection::open(&new).unwrap().get(8).unwrap().unwrap();
    assert_eq!(original.payload, b"message 8");
    assert_eq!(store.numbers().grant, 90);
    assert_eq!(store.resume_tag().as_deref(), Some(&b"12"[..]));
    assert_eq!(store.bounds().floor, 2);
    assert!(publish(&store, 0) > 90, "a number may have been sent");
    assert!(Inspection::open(&new).unwrap().verify().unwrap().is_sound());
}

#[test]
fn records_set_aside_are_saved_and_the_hole_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options()).unwrap();
    for n in 1..=10 {
        publish(&store, n);
    }
    store.settle(&[9]).unwrap();
    drop(store);
    // As a power cut may leave it: nothing here was synced.
    damage(&old, 4);
    let seen = Inspection::open(&old).unwrap();
    assert_eq!(seen.info().set_aside_sequences, Some((5, 10)));
    assert_eq!(seen.get(7).unwrap().unwrap().state, MessageState::SetAside);
    let report = repair_to(&old, &new).unwrap();
    assert_eq!((report.saved, report.saved_set_aside), (8, 5), "{report:?}");
    let [
        Unsaved::Hole {
            sequences: Some((4, 4)),
            ..
        },
    ] = report.unsaved[..]
    else {
        panic!("{report:?}")
    };
    let store = Store::open(&new, options()).unwrap();
    assert_eq!(
        sequences(&messages(&new, Filter::new())),
        [1, 2, 3, 5, 6, 7, 8, 10]
    );
    assert_eq!(
        store.resume_tag().as_deref(),
        Some(&b"3"[..]),
        "it does not move over the hole"
    );
    assert_eq!(publish(&store, 11), 11);
}

/// A late refusal and the message written before it stand behind a hole, and the first record of
/// that message is damaged: the one behind the hole is all that is left of it.
#[test]
fn a_late_refusal_set_aside_is_saved_with_its_message() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    for n in 1..=60 {
        publish(&store, n);
        store.settle_through(n - 1).expect("settles");
    }
    store.sync().expect("syncs");
    publish(&store, 61);
    store.reject(25, "late", 1).expect("room");
    drop(store);
    let all = intact_messages(&disk.bytes());
    let of = |sequence| all.iter().filter(move |m| m.sequence == sequence);
    assert_eq!(of(25).count(), 2, "written again");
    let first = of(25).map(|m| m.offset).min();
    for place in [first, of(61).map(|m| m.offset).next()] {
        disk.scribble(place.expect("it is there") + 60, |bytes| bytes[0] ^= 1);
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    std::fs::write(&old, disk.bytes()).unwrap();
    assert_eq!(Inspection::open(&old).unwrap().info().set_aside, 2);

    let report = repair_to(&old, &new).unwrap();
    let gone = Unsaved::Original { sequence: 25 };
    assert!(!report.unsaved.contains(&gone), "{report:?}");
    let store = Store::open(&new, options()).expect("opens");
    assert_eq!(store.rejections(0, 9).len(), 1);
    let mut message = StoredMessage::new();
    assert!(store.get(25, &mut message).expect("intact"));
    assert_eq!(message.payload(), b"message 25");
}

/// Behind a hole stands what was decided about messages before it: accepted, requeued, refused
/// and settled ones. A repair takes that as if it followed the log, each by the rules of the log.
#[test]
fn what_is_set_aside_decides_about_what_stands_before_the_hole() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    for n in 1..=6 {
        publish(&store, n);
    }
    for refused in [1, 2, 3] {
        store.reject(refused, "no", 1).expect("room");
    }
    store.sync().expect("syncs");
    let hole = publish(&store, 7);
    assert!(store.accept(1).expect("room"));
    let requeued = store
        .requeue(2, 9)
        .expect("room")
        .expect("it waits")
        .sequence;
    store.reject(4, "late in the day", 1).expect("room");
    store.settle(&[6]).expect("settles");
    drop(store);
    let at = intact_messages(&disk.bytes())
        .into_iter()
        .find(|m| m.sequence == hole);
    disk.scribble(at.expect("it is there").offset + 60, |bytes| bytes[0] ^= 1);
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    std::fs::write(&old, disk.bytes()).unwrap();
    let seen = Inspection::open(&old).unwrap();
    assert_eq!((seen.info().set_aside, seen.info().rejections), (5, 3));
    let report = repair_to(&old, &new).unwrap();
    assert_eq!(
        (report.saved, report.saved_set_aside, report.rejections),
        (2, 1, 2)
    );
    let store = Store::open(&new, options()).expect("opens");
    let waits: Vec<u64> = store.rejections(0, 9).iter().map(|r| r.sequence).collect();
    assert_eq!(waits, [3, 4]);
    drop(store);
    assert_eq!(sequences(&messages(&new, Filter::new())), [5, requeued]);
}

#[test]
fn a_full_store_is_repaired_whole() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options().preallocate(true)).unwrap();
    let payload = vec![b'x'; 700];
    let mut count = 0;
    let full = loop {
        match store.append(&Envelope::publish("t"), &payload) {
            Ok(_) => count += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(full, AppendError::Full { .. }), "{full}");
    drop(store);
    let report = repair_to(&old, &new).unwrap();
    assert_eq!((report.saved, report.unsaved.len()), (count, 0));
    assert_eq!(messages(&new, Filter::new()).len() as u64, count);
    drop(Store::open(&new, options()).unwrap());
}

#[test]
fn a_repair_overwrites_nothing_and_touches_no_store_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options()).unwrap();
    publish(&store, 1);
    let in_use = repair_to(&old, &new);
    assert!(matches!(in_use, Err(RepairError::InUse(_))), "{in_use:?}");
    assert!(!new.exists());
    drop(store);
    std::fs::write(&new, b"precious").unwrap();
    assert!(matches!(repair_to(&old, &new), Err(RepairError::Exists(_))));
    assert_eq!(std::fs::read(&new).unwrap(), b"precious");
}

fn exported(path: &Path) -> String {
    let mut out = Vec::new();
    let inspection = Inspection::open(path).unwrap();
    export(&inspection, Filter::all(), &mut out).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn an_export_carries_every_field_and_any_payload_over() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    let store = Store::open(&old, options()).unwrap();
    let payloads: [&[u8]; 6] = [
        b"",
        b"plain",
        "ümläut \u{0} \u{2028} \"quoted\" \\ \n\t\u{1F600}".as_bytes(),
        b"\xFF\xFE\x00binary",
        b"\xED\xA0\x80 a lone surrogate",
        b"{\"json\": [1, 2]}",
    ];
    for (i, payload) in payloads.iter().enumerate() {
        let envelope = Envelope {
            operation: [
                Operation::Publish,
                Operation::DeltaPublish,
                Operation::SowDeleteByFilter,
                Operation::SowDeleteByKeys,
                Operation::SowDeleteByData,
                Operation::Publish,
            ][i],
            topic: format!("topic/{i}").into(),
            correlation_id: Some("corr\u{7f}".into()),
            expiration: Some(u32::MAX),
            sow_key: Some("key".into()),
            selector: Some("/id = 1 and /x > '\u{fc}'".into()),
            options: Some("".into()),
            published_at: u64::MAX / 2,
            user_tag: if i % 2 == 0 {
                vec![0xFF; 64]
            } else {
                b"tag".to_vec()
            }
            .into(),
            origin: Origin::Publish,
        };
        store.append(&envelope, payload).unwrap();
    }
    store
        .append(&Envelope::publish("plain"), b"nothing else")
        .unwrap();
    store.reject(2, "r\u{e9}ason", 5).unwrap();
    store.settle(&[7]).unwrap();
    let text = exported(&old);
    assert_eq!(text.lines().count(), 7);

    let other = Store::open(&new, options()).unwrap();
    publish(&other, 1);
    let done = import(text.as_bytes(), &other).unwrap();
    assert_eq!((done.messages, done.rejections, done.settled), (6, 1, 1));
    assert_eq!(done.sequences, Some((2, 7)));
    assert_eq!(
        other.resume_tag().as_deref(),
        Some(&b"1"[..]),
        "an import moves no resume point"
    );
    let (before, after) = (messages(&old, Filter::all()), messages(&new, Filter::all()));
    // All except the settled one, behind the message that was there.
    assert_eq!((before.len(), after.len()), (7, 1 + 6));
    for (a, b) in before.iter().zip(&after[1..]) {
        assert_eq!(a.payload, b.payload);
        let mut expected = a.envelope.clone().unwrap();
        expected.origin = Origin::Import;
        assert_eq!(Some(expected), b.envelope);
        assert_eq!(a.state, b.state);
        let reason = |m: &Message| m.rejection.as_ref().map(|r| (r.reason.clone(), r.at));
        assert_eq!(reason(a), reason(b));
    }
}

#[test]
fn a_bad_import_names_its_line() {
    let good = r#"{"topic":"t","text":"x"}"#;
    let cases: [(&str, &str); 11] = [
        ("not json", "line 3, column"),
        (r#"{"topic":"t"}"#, r#"line 3: field "text""#),
        (
            r#"{"topic":"t","text":"a","base64":"YQ=="}"#,
            r#"line 3: field "text""#,
        ),
        (
            r#"{"topic":"t","base64":"***"}"#,
            r#"line 3: field "base64""#,
        ),
        (r#"{"text":"x"}"#, "missing field `topic`"),
        (
            r#"{"topic":"t","text":"x","operation":"explode"}"#,
            r#"field "operation""#,
        ),
        (
            r#"{"topic":"t","text":"x","state":"lost"}"#,
            r#"field "state""#,
        ),
        (
            r#"{"topic":"t","text":"x","state":"rejected"}"#,
            r#"field "rejection""#,
        ),
        (
            r#"{"topic":"t","text":"x","colour":"red"}"#,
            "unknown field",
        ),
        (
            r#"{"topic":"t","text":"x","expiration":-1}"#,
            "line 3, column",
        ),
        (
            r#"{"topic":"t","text":"x","user_tag":"aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"}"#,
            r#"line 3: field "user_tag""#,
        ),
    ];
    for (bad, expected) in cases {
        let store = Store::memory(options()).unwrap();
        let text = format!("{good}\n\n{bad}\n{good}\n");
        let error = import(text.as_bytes(), &store).unwrap_err();
        assert!(error.to_string().contains(expected), "{bad}: {error}");
        assert_eq!(store.bounds().unsettled, 1, "{bad}: only the first line");
    }
    let store = Store::memory(options().level(Level::Os)).unwrap();
    let large = format!(r#"{{"topic":"t","text":"{}"}}"#, "x".repeat(9000));
    let error = import(large.as_bytes(), &store).unwrap_err();
    assert!(
        matches!(error, ImportError::Append { line: 1, .. }),
        "{error}"
    );
}

/// A mark behind a hole settles what lies below it, but no refusal that waits there.
#[test]
fn a_mark_set_aside_settles_what_it_covers_and_no_refusal() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    for n in 1..=4 {
        publish(&store, n);
    }
    store.reject(2, "no", 1).expect("room");
    store.sync().expect("syncs");
    let hole = publish(&store, 5);
    assert_eq!(store.settle_through(4).expect("settles"), 3);
    publish(&store, 6);
    drop(store);
    let all = intact_messages(&disk.bytes());
    let at = all.iter().find(|m| m.sequence == hole).map(|m| m.offset);
    disk.scribble(at.expect("it is there") + 60, |bytes| bytes[0] ^= 1);
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    std::fs::write(&old, disk.bytes()).unwrap();
    let info = Inspection::open(&old).unwrap().info();
    assert_eq!((info.set_aside, info.unsettled, info.rejections), (2, 3, 1));

    let report = repair_to(&old, &new).unwrap();
    assert_eq!(
        (report.saved, report.saved_set_aside, report.rejections),
        (1, 1, 1)
    );
    assert_eq!(sequences(&messages(&new, Filter::new())), [6]);
    let store = Store::open(&new, options()).expect("opens");
    assert_eq!(store.rejections(0, 9)[0].sequence, 2);
    assert_eq!(
        store.bounds().floor,
        4,
        "settled, and not merely unheard of"
    );
}

/// Place and contents of a second hole must be reported as those of the first.
#[test]
fn each_hole_is_named_by_its_place_and_its_sequences() {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    store.sync().expect("syncs");
    for n in 1..=10 {
        publish(&store, n);
    }
    drop(store);
    let all = intact_messages(&disk.bytes());
    let place = |sequence| all.iter().find(|m| m.sequence == sequence).unwrap().offset;
    for sequence in [4, 7, 8] {
        disk.scribble(place(sequence) + 60, |bytes| bytes[0] ^= 1);
    }
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = two(&dir);
    std::fs::write(&old, disk.bytes()).unwrap();
    let report = repair_to(&old, &new).unwrap();
    let holes: Vec<_> = report
        .unsaved
        .iter()
        .map(|unsaved| match unsaved {
            Unsaved::Hole {
                offset,
                first_ordinal,
                last_ordinal,
                sequences,
            } => (*offset, last_ordinal - first_ordinal + 1, *sequences),
            other => panic!("{other:?}"),
        })
        .collect();
    let expected = [(place(4), 1, Some((4, 4))), (place(7), 2, Some((7, 8)))];
    assert_eq!(holes, expected);
    assert_eq!((report.saved, report.saved_set_aside), (7, 4));
    assert_eq!(report.sequences, Some((1, 10)));
}
