//! An intact message whose envelope this program does not know: each call gives a clear answer,
//! and its bytes stay until an operator decides.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;

use amps_store::inspect::{Filter, Inspection, Message, MessageState, Severity};
use amps_store::testkit::{SimDisk, intact_messages, resign};
use amps_store::transfer::{ImportError, export, import, repair_to};
use amps_store::{
    AppendError, Envelope, Level, Options, PublishStore, Rejected, Store, StoredMessage,
};

fn options() -> Options {
    Options::new().capacity(64 << 10).client_name("tester")
}

/// Gives these messages an operation that does not exist.
fn make_unknown(bytes: &mut [u8], unknown: &[u64]) {
    let messages = intact_messages(bytes).into_iter();
    let concerned = messages.filter(|m| unknown.contains(&m.sequence));
    let places: Vec<_> = concerned.map(|m| m.offset as usize + 40).collect();
    assert_eq!(places.len(), unknown.len());
    for at in places {
        bytes[at] = 9;
    }
    resign(bytes);
}

/// Five messages; the third is of an unknown kind, and the fourth of another that is refused.
fn store_with_unknown(path: &Path) {
    let store = Store::open(path, options()).unwrap();
    for n in 1..=5 {
        let payload = format!("message {n}");
        let appended = store.append(&Envelope::publish("orders"), payload.as_bytes());
        assert_eq!(appended.unwrap().sequence, n);
    }
    let refused = store.reject(4, "not sent", 1).unwrap();
    assert!(matches!(refused, Rejected::Logged { late: false, .. }));
    store.close(0).unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    make_unknown(&mut bytes, &[3, 4]);
    std::fs::write(path, bytes).unwrap();
}

fn messages(path: &Path) -> Vec<Message> {
    let inspection = Inspection::open(path).unwrap();
    let all = Filter::new()
        .state(MessageState::Unsettled)
        .state(MessageState::Rejected);
    inspection.messages(all).map(Result::unwrap).collect()
}

#[test]
fn every_call_answers_for_a_message_of_an_unknown_kind() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    store_with_unknown(&path);
    let store = Store::open(&path, options()).unwrap();
    let mut message = StoredMessage::new();
    for sequence in [3, 4] {
        assert!(store.get(sequence, &mut message).unwrap());
        assert_eq!(message.payload(), format!("message {sequence}").as_bytes());
        let error = message.envelope().unwrap_err().to_string();
        assert!(error.contains("version"), "{error}");
    }
    // A program that cannot read it cannot publish it again, so it goes on waiting.
    let requeued = store.requeue(4, 1);
    assert!(
        matches!(requeued, Err(AppendError::Envelope(_))),
        "{requeued:?}"
    );
    assert_eq!(store.rejections(0, 9)[0].sequence, 4);
    assert_eq!(store.bounds().next, 6);
    let refused = store.reject(3, "not sent", 2).unwrap();
    assert!(matches!(refused, Rejected::Logged { late: false, .. }));
    assert!(!store.is_unsettled(3));
    drop(store);
    let store = Store::open(&path, options()).unwrap();
    let waits: Vec<u64> = store.rejections(0, 9).iter().map(|r| r.sequence).collect();
    assert_eq!(waits, [3, 4]);
    assert!(store.accept(3).unwrap() && store.accept(4).unwrap());
    assert!(store.rejections(0, 9).is_empty());
}

#[test]
fn a_look_shows_a_message_of_an_unknown_kind_and_does_not_call_it_damage() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    store_with_unknown(&path);
    let seen = Inspection::open(&path).unwrap();
    let found = seen.verify().unwrap();
    // An open takes it, so it is not damage; but it is reported.
    assert!(found.is_sound(), "{:?}", found.problems);
    let told = found.problems.iter();
    let told = told.filter(|p| p.severity == Severity::Notice && p.text.contains("envelope"));
    assert_eq!(told.count(), 2);
    let shown = messages(&path);
    let shown: Vec<_> = shown
        .iter()
        .map(|m| (m.sequence, m.envelope.is_some(), m.state))
        .collect();
    use MessageState::{Rejected, Unsettled};
    assert_eq!(
        shown,
        [
            (1, true, Unsettled),
            (2, true, Unsettled),
            (3, false, Unsettled),
            (4, false, Rejected),
            (5, true, Unsettled)
        ]
    );
    // An export cannot write it, and counts it; an import does not invent it.
    let mut lines = Vec::new();
    let all = Filter::new().state(Unsettled).state(Rejected);
    let done = export(&seen, all, &mut lines).unwrap();
    assert_eq!((done.messages, done.unreadable), (3, 2));
    let new = Store::open(dir.path().join("new"), options()).unwrap();
    assert_eq!(import(&lines[..], &new).unwrap().messages, 3);
    let line = String::from_utf8(lines)
        .unwrap()
        .lines()
        .next()
        .unwrap()
        .replace(
            "\"operation\":\"publish\"",
            "\"operation\":\"something_new\"",
        );
    let imported = import(line.as_bytes(), &new);
    assert!(
        matches!(&imported, Err(ImportError::Field { line: 1, .. })),
        "{imported:?}"
    );
}

#[test]
fn repair_and_evacuate_keep_the_bytes_of_a_message_of_an_unknown_kind() {
    let dir = tempfile::tempdir().unwrap();
    let [path, repaired, evacuated] = ["old", "repaired", "evacuated"].map(|n| dir.path().join(n));
    store_with_unknown(&path);
    let bytes = |path: &Path| -> Vec<_> {
        let all = messages(path).into_iter();
        all.map(|m| (m.sequence, m.envelope_bytes, m.payload, m.state))
            .collect()
    };
    let before = bytes(&path);
    assert_eq!(before.len(), 5);
    let report = repair_to(&path, &repaired).unwrap();
    assert_eq!((report.saved, report.rejections), (4, 1));
    assert!(report.unsaved.is_empty());
    assert_eq!(bytes(&repaired), before);
    let store = Store::open(&path, options()).unwrap();
    drop(store.evacuate(&evacuated, Level::Os).unwrap());
    assert_eq!(bytes(&evacuated), before);
}

/// A repair once left such a message out without a word if it stood behind a hole.
#[test]
fn a_repair_saves_what_is_set_aside_whatever_its_envelope_says() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    store.append(&Envelope::publish("orders"), b"one").unwrap();
    store.sync().unwrap();
    for payload in [&b"two"[..], b"three", b"four"] {
        store.append(&Envelope::publish("orders"), payload).unwrap();
    }
    drop(store);
    let mut bytes = disk.bytes();
    make_unknown(&mut bytes, &[3]);
    let second = intact_messages(&bytes)
        .into_iter()
        .find(|m| m.sequence == 2);
    bytes[second.unwrap().offset as usize + 50] ^= 1;
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::write(&old, &bytes).unwrap();
    let report = repair_to(&old, &new).unwrap();
    assert_eq!((report.saved, report.saved_set_aside), (3, 2));
    let third = &messages(&new)[1];
    assert_eq!((third.sequence, &third.payload[..]), (3, &b"three"[..]));
    assert_eq!(third.envelope_bytes[0], 9);
}
