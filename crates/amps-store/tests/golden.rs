//! Stores of every format version, which must open for ever: the bytes are in `tests/golden/`,
//! those of version 2 in `v2/` there, with what they hold beside them. A reader written only from
//! `store-format.md` must agree.

// Helpers outside of test functions; a failure is the test's.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use amps_store::inspect::{Body, Filter, Inspection, RecordVerdict};
use amps_store::transfer::{RepairError, repair_to};
use amps_store::{
    AppendError, Envelope, Level, OpenError, Operation, Options, Origin, PublishStore, Recovery,
    Store,
};

const NAMES: [&str; 20] = [
    "clean",
    "unclean",
    "cut",
    "rejections",
    "rebased",
    "lapped",
    "damaged",
    "salvaged",
    "late",
    "odd",
    "v2/clean",
    "v2/unclean",
    "v2/cut",
    "v2/rejections",
    "v2/rebased",
    "v2/lapped",
    "v2/damaged",
    "v2/salvaged",
    "v2/late",
    "v2/odd",
];

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name)
}

/// The format version of a golden store.
fn version(name: &str) -> u32 {
    if name.starts_with("v2/") { 2 } else { 1 }
}

/// Where the first segment begins.
fn segments_at(bytes: &[u8]) -> u64 {
    match bytes[8] {
        1 => 8192,
        _ => 12288,
    }
}

/// Everything a store says, as text.
fn describe(path: &Path) -> String {
    let inspection = Inspection::open(path).unwrap();
    let i = inspection.info();
    let mut out = String::new();
    let mut line = |text: String| writeln!(out, "{text}").unwrap();
    line(format!("client {} id {:016x}", i.client_name, i.store_id));
    line(format!(
        "generation {} owner {} on {} clean {}",
        i.generation, i.owner_pid, i.owner_host, i.clean
    ));
    line(format!(
        "segments {} of {} with {} bytes, {} free, file {}",
        i.segments, i.cap_segments, i.segment_size, i.free_segments, i.file_size
    ));
    line(format!(
        "grant {} number floor {} rebase {:?}",
        i.grant,
        i.number_floor,
        i.rebase.map(|r| (r.from, r.delta))
    ));
    line(format!(
        "floor {} next {} unsettled {} {:?}..{:?} rejections {}",
        i.floor, i.next, i.unsettled, i.first_unsettled, i.last_unsettled, i.rejections
    ));
    line(format!(
        "durable {} last {} stop: {}",
        i.durable_ordinal, i.last_ordinal, i.stop
    ));
    line(format!(
        "set aside {} {:?}",
        i.set_aside, i.set_aside_sequences
    ));
    line(format!("damaged {:?}", i.damaged));
    line(format!("ignored {:?}", i.ignored));
    line(format!("lost {:?}", i.lost));
    line(format!(
        "resume tag {:?}",
        i.resume_tag.map(|t| String::from_utf8(t).unwrap())
    ));
    for record in inspection.records() {
        let r = record.unwrap();
        let kind = r.kind.map_or("-".to_owned(), |k| k.to_string());
        let body = match &r.body {
            Body::Message { envelope, payload } if payload.len() > 64 => format!(
                "{envelope:?} {} bytes of payload, crc {:08x}",
                payload.len(),
                crc32fast::hash(payload)
            ),
            Body::Message { envelope, payload } => {
                format!("{envelope:?} payload \"{}\"", payload.escape_ascii())
            }
            // Its debug output shows the beginning only.
            Body::Unreadable(bytes) => format!("Unreadable({bytes:?})"),
            body => format!("{body:?}"),
        };
        line(format!(
            "{} {} {kind} {} ordinal {} generation {} length {}{}: {body}",
            r.offset,
            r.verdict,
            r.sequence,
            r.ordinal,
            r.generation,
            r.length,
            if r.quiet { " quiet" } else { "" },
        ));
    }
    out
}

#[test]
fn golden_stores_hold_for_ever_what_they_held() {
    for name in NAMES {
        let expected = std::fs::read_to_string(golden(&format!("{name}.txt"))).unwrap();
        let found = describe(&golden(&format!("{name}.store")));
        for (number, (found, expected)) in found.lines().zip(expected.lines()).enumerate() {
            assert_eq!(found, expected, "{name}.txt, line {}", number + 1);
        }
        assert_eq!(
            found.lines().count(),
            expected.lines().count(),
            "{name}.txt"
        );
    }
}

#[test]
fn golden_stores_open() {
    let dir = tempfile::tempdir().unwrap();
    for name in NAMES {
        let path = dir.path().join(name.replace('/', " "));
        std::fs::copy(golden(&format!("{name}.store")), &path).unwrap();
        let seen = Inspection::open(&path).unwrap();
        let info = seen.info();
        assert_eq!(info.format_version, version(name));
        let unsettled: Vec<u64> = seen
            .messages(Filter::new())
            .map(|m| m.unwrap().sequence)
            .collect();
        let opened = Store::open_existing(&path, Options::new().client_name("golden"));
        let store = match opened {
            Err(OpenError::Damaged { ranges, .. }) => {
                assert_eq!(ranges, info.damaged);
                let salvage = Options::new().recovery(Recovery::Salvage);
                Store::open_existing(&path, salvage).unwrap()
            }
            opened => {
                assert_eq!(info.damaged, []);
                opened.unwrap()
            }
        };
        let bounds = store.bounds();
        assert_eq!(bounds.next, info.next, "{name}");
        assert_eq!(bounds.unsettled, info.unsettled, "{name}");
        assert_eq!(bounds.rejections, info.rejections, "{name}");
        assert_eq!(store.resume_tag(), info.resume_tag, "{name}");
        let after = Inspection::open(&path).unwrap();
        assert_eq!(after.info().format_version, 2, "{name}");
        let converted_from = (version(name) == 1).then_some(1);
        assert_eq!(store.report().converted_from, converted_from, "{name}");
        let left: Vec<u64> = after
            .messages(Filter::new())
            .map(|m| m.unwrap().sequence)
            .collect();
        assert_eq!(left, unsettled, "{name}");
    }
}

/// `None`, with a note, if there is no Python.
fn python(path: &Path) -> Option<(String, Option<i32>)> {
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reader/read_store.py");
    let output = match Command::new("python3").arg(reader).arg(path).output() {
        Ok(output) => output,
        Err(error) => {
            println!("skipped: python3 cannot be run: {error}");
            return None;
        }
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(errors, "", "{}", path.display());
    Some((
        String::from_utf8(output.stdout).unwrap(),
        output.status.code(),
    ))
}

/// The log in log order and what is set aside, as the Python reader writes it.
fn listing(path: &Path) -> (String, i32) {
    let inspection = Inspection::open(path).unwrap();
    let mut rows = Vec::new();
    for record in inspection.records() {
        let r = record.unwrap();
        let aside = match r.verdict {
            RecordVerdict::Stale | RecordVerdict::Torn | RecordVerdict::Damaged => continue,
            verdict => verdict == RecordVerdict::SetAside,
        };
        let (topic, payload) = match &r.body {
            Body::Message { envelope, payload } => (envelope.topic.to_string(), payload.clone()),
            _ => Default::default(),
        };
        let payload: String = payload.iter().map(|b| format!("{b:02x}")).collect();
        let kind = r.kind.unwrap();
        let row = format!(
            "{}\t{}\t{kind}\t{}\t{}\t{topic}\t{payload}\n",
            r.ordinal, r.offset, r.sequence, r.verdict
        );
        rows.push((aside, r.ordinal, row));
    }
    rows.sort();
    let info = inspection.info();
    let code = if info.damaged.is_empty() { 0 } else { 3 };
    let tag = info.resume_tag.unwrap_or_default();
    let tag: String = tag.iter().map(|b| format!("{b:02x}")).collect();
    let first = format!("{}\t{tag}\n", info.next);
    let rows = rows.into_iter().map(|r| r.2);
    (std::iter::once(first).chain(rows).collect(), code)
}

fn compare(path: &Path, what: &str) -> bool {
    let Some((text, code)) = python(path) else {
        return false;
    };
    let (expected, expected_code) = listing(path);
    for (found, expected) in text.lines().zip(expected.lines()) {
        assert_eq!(found, expected, "{what}");
    }
    assert_eq!(text.lines().count(), expected.lines().count(), "{what}");
    assert_eq!(code, Some(expected_code), "{what}");
    true
}

#[test]
fn a_reader_written_from_the_page_agrees_on_the_golden_stores() {
    for name in NAMES {
        if !compare(&golden(&format!("{name}.store")), name) {
            return;
        }
    }
}

#[test]
fn a_reader_written_from_the_page_agrees_on_what_it_cannot_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.store");
    let bytes = std::fs::read(golden("unclean.store")).unwrap();
    let messages = amps_store::testkit::intact_messages(&bytes);
    // The operation, the length of the topic, and a byte of the text.
    for (place, value) in [(0, 9), (1, 250), (2, 0xFF), (1, 0)] {
        let mut bytes = bytes.clone();
        for message in messages.iter().step_by(2) {
            bytes[message.offset as usize + 40 + place] = value;
        }
        amps_store::testkit::resign(&mut bytes);
        std::fs::write(&path, &bytes).unwrap();
        let unreadable = listing(&path)
            .0
            .lines()
            .filter(|l| l.ends_with("\t\t"))
            .count();
        assert!(unreadable > 0, "byte {place} of the envelopes");
        if !compare(&path, &format!("envelopes with {value} at {place}")) {
            return;
        }
    }
}

/// One byte of a header or body is changed, and all checksums are made to fit: program and reader
/// must agree on what a field means, whatever it holds.
#[test]
fn a_reader_written_from_the_page_agrees_on_fields_of_any_value() {
    let rounds = std::env::var("AMPS_READER_ROUNDS").map_or(30, |n| n.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.store");
    let mut changed = 0;
    for round in 0..rounds {
        let mut numbers = Numbers(round);
        let name = NAMES[numbers.below(NAMES.len() as u64) as usize];
        let mut bytes = std::fs::read(golden(&format!("{name}.store"))).unwrap();
        let before = bytes.clone();
        let places = amps_store::testkit::record_places(&bytes);
        for _ in 0..numbers.below(3) + 1 {
            let (at, len) = places[numbers.below(places.len() as u64) as usize];
            let at = match numbers.below(6) {
                0 => {
                    let first = segments_at(&bytes);
                    first + 8192 * numbers.below((bytes.len() as u64 - first) / 8192) + 8
                }
                1 => at + 8,
                2 => at + 16,
                _ => at + 40 + numbers.below(len - 40 + u64::from(len == 40)),
            };
            bytes[at as usize] = match numbers.below(3) {
                0 => numbers.below(4) as u8,
                1 => bytes[at as usize] ^ 1 << numbers.below(8),
                _ => 0xFF,
            };
        }
        // A field that makes a header impossible leaves what stands inside that record to be
        // signed as a record, and a listing would show it inside the log by its numbers.
        if amps_store::testkit::record_places(&bytes) != places {
            continue;
        }
        amps_store::testkit::resign(&mut bytes);
        changed += u64::from(bytes != before);
        std::fs::write(&path, &bytes).unwrap();
        if !compare(&path, &format!("{name}, round {round}")) {
            return;
        }
    }
    assert!(changed * 2 > rounds, "{changed} of {rounds}");
}

#[test]
fn a_reader_written_from_the_page_agrees_on_what_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.store");
    let whole = std::fs::read(golden("unclean.store")).unwrap();
    let mut first_only = whole.clone();
    first_only[4096..].fill(0);
    let mut torn = first_only.clone();
    torn[512..].fill(0);
    let mut one_more = torn.clone();
    one_more[9000] = 1;
    let mut none = whole.clone();
    none[70] ^= 1;
    none[4096 + 70] ^= 1;
    let other_version = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        bytes[8] = 3;
        amps_store::testkit::resign(&mut bytes);
        bytes
    };
    // As an open calls it, and the exit code of the reader.
    let cases: [(&str, Vec<u8>, i32); 10] = [
        ("empty", vec![], 4),
        ("zeros", vec![0; 9999], 4),
        ("9 bytes", b"9 bytes.\n".to_vec(), 1),
        ("half a superblock", whole[..2048].to_vec(), 1),
        ("one sector of the first", torn, 4),
        ("and a byte behind", one_more, 1),
        ("neither copy", none, 3),
        ("another version", other_version(&whole), 1),
        ("text", b"a longer text\n".repeat(999), 1),
        ("the first copy alone", first_only, 0),
    ];
    for (what, bytes, code) in cases {
        std::fs::write(&path, &bytes).unwrap();
        let opened = Inspection::open(&path).map(drop);
        let expected = match &opened {
            Ok(()) => 0,
            Err(OpenError::Missing { .. }) => 4,
            Err(OpenError::NoSuperblock { .. }) => 3,
            Err(_) => 1,
        };
        assert_eq!(expected, code, "{what}: {opened:?}");
        let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reader/read_store.py");
        let Ok(output) = Command::new("python3").arg(reader).arg(&path).output() else {
            return println!("skipped: python3 cannot be run");
        };
        // Zeros where segment headers should be are damage, which an open of a complete file
        // reports.
        let found = match (output.status.code(), code) {
            (Some(3), 0) => Some(0),
            (found, _) => found,
        };
        assert_eq!(found, Some(code), "{what}");
    }
}

/// The page says how to read a store without superblocks; a reader written from it must list the
/// same records then.
#[test]
fn a_reader_written_from_the_page_needs_no_superblock() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("damaged.store");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reader/read_store.py");
    let mut seen = 0;
    for name in NAMES {
        let whole = golden(&format!("{name}.store"));
        let first = if version(name) == 1 { 8192 } else { 12288 };
        let read = |path: &Path| Command::new("python3").arg(&script).arg(path).output();
        let Ok(expected) = read(&whole) else {
            return println!("skipped: python3 cannot be run");
        };
        let mut bytes = std::fs::read(&whole).unwrap();
        // Without the identity, the segment headers tell; if one of them is damaged, the records
        // are used to find the size of a segment.
        for (gone, damaged_header) in [(8192, false), (first, false), (first, true)] {
            bytes[..gone].fill(0);
            if damaged_header {
                bytes[first + 8192 + 4] ^= 1;
            }
            std::fs::write(&path, &bytes).unwrap();
            let opened = Inspection::open(&path).map(drop);
            assert!(matches!(opened, Err(OpenError::NoSuperblock { .. })));
            let output = read(&path).unwrap();
            assert_eq!(
                String::from_utf8_lossy(&output.stderr),
                "both superblocks are damaged\n"
            );
            assert_eq!(output.status.code(), Some(3));
            // Except for the next sequence, which also depends on grants and number floors.
            let records = |stdout: &[u8]| {
                let text = String::from_utf8_lossy(stdout).into_owned();
                text.lines().skip(1).map(str::to_owned).collect::<Vec<_>>()
            };
            let (found, all) = (records(&output.stdout), records(&expected.stdout));
            assert!(all.ends_with(&found), "{name}: {found:?}");
            // The marks tell where the log begins: nothing before that is needed.
            let before = &all[..all.len() - found.len()];
            let is_needed = |line: &&String| {
                let field: Vec<&str> = line.split('\t').collect();
                field[4] == "rejected" || (field[4] == "live" && field[3] != "0")
            };
            assert_eq!(before.iter().find(is_needed), None, "{name}");
        }
        seen += 1;
    }
    assert!(seen >= 10, "{seen}");
}

#[test]
fn a_reader_written_from_the_page_says_that_a_store_was_evacuated() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("old.store");
    std::fs::copy(golden("clean.store"), &path).unwrap();
    let store = Store::open_existing(&path, Options::new()).unwrap();
    store
        .evacuate(dir.path().join("new.store"), Level::Os)
        .unwrap();
    let reader = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/reader/read_store.py");
    let Ok(output) = Command::new("python3").arg(reader).arg(&path).output() else {
        return println!("skipped: python3 cannot be run");
    };
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "evacuated to another file\n"
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), listing(&path).0);
}

/// A generator of numbers; the seed is in every message, so that a failure can be repeated.
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % end
    }
}

#[test]
fn a_reader_written_from_the_page_agrees_on_random_stores() {
    let rounds = std::env::var("AMPS_READER_ROUNDS").map_or(12, |n| n.parse().unwrap());
    // Over more than a lap, and undamaged.
    let mut met = [0; 2];
    for round in 0..rounds {
        let mut numbers = Numbers(round);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("random.store");
        for _ in 0..numbers.below(4) + 1 {
            let options = Options::new()
                .capacity(64 << 10)
                .recovery(Recovery::Salvage);
            let store = Store::open(&path, options).unwrap();
            random_run(&store, &mut numbers);
            if numbers.below(2) == 0 {
                store.close(0).unwrap();
            }
            drop(store);
            if numbers.below(3) == 0 {
                let mut bytes = std::fs::read(&path).unwrap();
                let mut places = amps_store::testkit::record_places(&bytes);
                // The newest first, since damage to those shows.
                places.sort_by_key(|(at, _)| {
                    let ordinal = bytes[*at as usize + 24..][..8].try_into().unwrap();
                    std::cmp::Reverse(u64::from_le_bytes(ordinal))
                });
                let newest = places.len().min(20) as u64;
                for _ in 0..numbers.below(4) {
                    let (at, len) = match numbers.below(4) {
                        0 => (12288, bytes.len() as u64 - 12288),
                        1 => places[numbers.below(places.len() as u64) as usize],
                        _ => places[numbers.below(newest) as usize],
                    };
                    let at = at + numbers.below(len);
                    bytes[at as usize] ^= 1 << numbers.below(8);
                }
                std::fs::write(&path, &bytes).unwrap();
            }
            if !compare(
                &path,
                &format!("AMPS_READER_ROUNDS={}, round {round}", round + 1),
            ) {
                return;
            }
            let info = Inspection::open(&path).unwrap().info();
            let is = [info.next > 300, info.clean];
            (0..2).for_each(|n| met[n] += u64::from(is[n]));
        }
    }
    assert!(rounds < 12 || met.iter().all(|n| *n > 0), "{met:?}");
}

/// What the random stores must show now and then.
#[test]
fn a_reader_written_from_the_page_agrees_on_damage_and_on_what_is_set_aside() {
    for is_durable in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("flipped.store");
        let store = Store::open(&path, Options::new().capacity(64 << 10)).unwrap();
        for n in 0..20u8 {
            store.append(&Envelope::publish("t"), &[n; 50]).unwrap();
        }
        if is_durable {
            store.sync().unwrap();
        }
        drop(store);
        let mut bytes = std::fs::read(&path).unwrap();
        let tenth = bytes.windows(50).position(|bytes| bytes == [9; 50]);
        bytes[tenth.unwrap()] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        if !compare(&path, "a flipped bit") {
            return;
        }
        let info = Inspection::open(&path).unwrap().info();
        assert_eq!(info.damaged.is_empty(), !is_durable);
        assert_eq!(info.set_aside > 0, !is_durable);
    }
}

fn random_run(store: &Store, numbers: &mut Numbers) {
    for _ in 0..numbers.below(400) {
        let bounds = store.bounds();
        let any = bounds.floor + 1 + numbers.below(bounds.next - bounds.floor);
        match numbers.below(12) {
            0 => drop(store.settle_through(any).unwrap()),
            1 => drop(store.settle(&[any, any + 2]).unwrap()),
            2 if bounds.rejections < 5 => drop(store.reject(any, "no", 1).unwrap()),
            3 | 4 => {
                if let Some(waiting) = store.rejections(0, 1).first() {
                    if numbers.below(2) == 0 {
                        assert!(store.accept(waiting.sequence).unwrap());
                    } else {
                        drop(store.requeue(waiting.sequence, 9));
                    }
                }
            }
            5 if numbers.below(5) == 0 => drop(store.sync().unwrap()),
            _ => {
                let payload = vec![numbers.below(256) as u8; numbers.below(400) as usize];
                let envelope = Envelope::publish("random");
                // What is stored must not depend on how soon the background makes room.
                let stored = match store.append(&envelope, &payload) {
                    Err(AppendError::MakingRoom { .. }) => {
                        let deadline = Instant::now() + Duration::from_secs(60);
                        store.append_wait(&envelope, &payload, deadline)
                    }
                    at_once => at_once,
                };
                match stored {
                    Ok(_) => {}
                    Err(AppendError::Full { .. }) => drop(store.settle_through(any).unwrap()),
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }
}

/// Any bytes of any length: a look ends, and ends without a panic.
#[test]
fn mutated_golden_stores_are_looked_at_and_repaired_without_a_panic() {
    let dir = tempfile::tempdir().unwrap();
    let (path, to) = (dir.path().join("bad"), dir.path().join("new"));
    let (mut seen_ones, mut damaged_ones, mut empty_ones) = (0, 0, 0);
    for round in 0..200 {
        let mut numbers = Numbers(round);
        let name = NAMES[numbers.below(NAMES.len() as u64) as usize];
        let mut bytes = std::fs::read(golden(&format!("{name}.store"))).unwrap();
        for _ in 0..numbers.below(20) + 1 {
            let at = numbers.below(bytes.len() as u64) as usize;
            let len = (numbers.below(64) as usize + 1).min(bytes.len() - at);
            match numbers.below(4) {
                0 => bytes[at] ^= 1 << numbers.below(8),
                1 => bytes[at..at + len].fill(0xFF),
                2 => bytes[at..at + len].fill(0),
                _ => bytes.copy_within(at..at + len, 8192),
            }
        }
        if numbers.below(4) == 0 {
            bytes.truncate(numbers.below(bytes.len() as u64) as usize);
        }
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(seen) = Inspection::open(&path) {
            let verification = seen.verify().unwrap();
            let damaged = !seen.info().damaged.is_empty();
            (seen_ones, damaged_ones) = (seen_ones + 1, damaged_ones + u64::from(damaged));
            assert!(
                !damaged || !verification.is_sound(),
                "{name}, round {round}"
            );
            let first = segments_at(&bytes);
            assert_eq!(seen.map().len() as u64 * 8192, verification.bytes - first);
            let shown = seen.messages(Filter::new()).map(Result::unwrap).count() as u64;
            assert_eq!(shown, seen.info().unsettled, "{name}, round {round}");
            let report = match repair_to(&path, &to) {
                Ok(report) => report,
                // A file without a record has nothing to save, and shows nothing.
                Err(RepairError::NothingLeft(_)) => {
                    assert_eq!(
                        (shown, seen.info().last_ordinal, to.exists()),
                        (0, 0, false)
                    );
                    assert!(
                        damaged && bytes.len() < 12288 + 2 * 8192,
                        "{name}, round {round}"
                    );
                    empty_ones += 1;
                    continue;
                }
                Err(error) => panic!("{name}, round {round}: {error}"),
            };
            let saved = Inspection::open(&to).unwrap();
            assert!(saved.verify().unwrap().is_sound(), "{name}, round {round}");
            assert_eq!(
                saved.info().unsettled,
                report.saved,
                "{name}, round {round}"
            );
            std::fs::remove_file(&to).unwrap();
        }
        assert_eq!(
            std::fs::read(&path).unwrap(),
            bytes,
            "a look changed a byte"
        );
    }
    let met = [seen_ones, 200 - seen_ones, damaged_ones, empty_ones];
    assert!(met.iter().all(|n| *n > 0) && seen_ones > 100, "{met:?}");
}

/// The bytes of an envelope, field by field.
#[test]
fn golden_envelope_bytes() {
    let least = Envelope::publish("t");
    let full = Envelope {
        operation: Operation::SowDeleteByKeys,
        topic: "orders".into(),
        correlation_id: Some("c".into()),
        expiration: Some(250),
        sow_key: Some("".into()),
        selector: Some("1,2".into()),
        options: Some("x".into()),
        published_at: 0x0005_F5E1_0000_1234,
        user_tag: b"\x00\xFF".to_vec().into(),
        origin: Origin::Import,
    };
    let numbers = Envelope {
        operation: Operation::DeltaPublish,
        expiration: Some(251),
        published_at: 65_536,
        topic: "a".repeat(300).into(),
        ..Envelope::default()
    };
    let mut long = b"\x01\xFB\x2C\x01".to_vec();
    long.extend_from_slice(&[b'a'; 300]);
    long.extend_from_slice(b"\x00\x01\xFB\xFB\x00\x00\x00\x00\xFC\x00\x00\x01\x00\x00\x00");
    let cases: [(Envelope<'_>, &[u8]); 3] = [
        (least, b"\x00\x01t\x00\x00\x00\x00\x00\x00\x00\x00"),
        (
            full,
            b"\x03\x06orders\x01\x01c\x01\xFA\x01\x00\x01\x031,2\x01\x01x\
              \xFD\x34\x12\x00\x00\xE1\xF5\x05\x00\x02\x00\xFF\x02",
        ),
        (numbers, &long),
    ];
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("e.store");
    let store = Store::open(&path, Options::new().capacity(64 << 10)).unwrap();
    for (envelope, bytes) in cases {
        let sequence = store.append(&envelope, b"").unwrap().sequence;
        let message = Inspection::open(&path)
            .unwrap()
            .get(sequence)
            .unwrap()
            .unwrap();
        assert_eq!(message.envelope_bytes, bytes, "{envelope:?}");
        assert_eq!(Envelope::decode(bytes).unwrap(), envelope);
    }
    let bytes = b"\x00\x01t\x00\x00\x00\x00\x00\x00\x00\x01\xFB\xE8\x03";
    let requeued = Envelope::decode(bytes).unwrap();
    assert_eq!(requeued.origin, Origin::Requeue { accepts: 1000 });
}

/// Writes the golden stores of a *new* format version. Those that exist are never written again:
/// a program that cannot read them has broken its promise.
#[test]
#[ignore = "writes files; only for a new format version"]
fn write_golden_stores() {
    for name in NAMES {
        let (store, text) = (
            golden(&format!("{name}.store")),
            golden(&format!("{name}.txt")),
        );
        if !store.exists() && version(name) == 2 {
            write_golden_store(&name[3..], &store);
            anonymous(&store);
        }
        if !text.exists() {
            std::fs::write(&text, describe(&store)).unwrap();
        }
    }
}

fn write_golden_store(name: &str, path: &Path) {
    let options = || Options::new().capacity(64 << 10).client_name("golden");
    let open = || Store::open(path, options().recovery(Recovery::Salvage)).unwrap();
    let publish = |store: &Store, n: u64| {
        let mut envelope = Envelope::publish("orders");
        envelope.user_tag = format!("line {n}").into_bytes().into();
        envelope.published_at = 1_700_000_000_000_000 + n;
        store
            .append(&envelope, format!("payload {n}").as_bytes())
            .unwrap()
            .sequence
    };
    let change = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(path).unwrap();
        change(&mut bytes);
        std::fs::write(path, &bytes).unwrap();
    };
    let offset = |sequence| {
        let inspection = Inspection::open(path).unwrap();
        inspection.get(sequence).unwrap().unwrap().offset as usize
    };
    let store = open();
    match name {
        "clean" => {
            store.raise_grant(100).unwrap();
            for n in 1..=4 {
                publish(&store, n);
            }
            let envelope = Envelope {
                operation: Operation::SowDeleteByFilter,
                topic: "umläut".into(),
                correlation_id: Some("correlation".into()),
                expiration: Some(3600),
                sow_key: Some("key".into()),
                selector: Some("/id = 7".into()),
                options: Some("opts".into()),
                published_at: 1_700_000_000_000_005,
                user_tag: vec![b'z'; 64].into(),
                origin: Origin::Publish,
            };
            store.append(&envelope, b"\x00\xFF not text").unwrap();
            store.settle_through(2).unwrap();
            store.close(5).unwrap();
        }
        "unclean" => {
            store.raise_grant(50).unwrap();
            for n in 1..=6 {
                publish(&store, n);
            }
            store.sync().unwrap();
            store.settle(&[2, 4]).unwrap();
            publish(&store, 7);
        }
        "cut" => {
            for n in 1..=8 {
                publish(&store, n);
            }
            drop(store);
            let at = offset(4);
            change(&|bytes| bytes[at + 50..at + 100].fill(0));
        }
        "rejections" => {
            for n in 1..=5 {
                publish(&store, n);
            }
            store
                .reject(2, "not entitled", 1_700_000_000_000_100)
                .unwrap();
            store
                .reject(3, &"ü".repeat(100), 1_700_000_000_000_101)
                .unwrap();
            store.reject(4, "bad", 1_700_000_000_000_102).unwrap();
            store.accept(4).unwrap();
            store.settle_through(5).unwrap();
            store.requeue(3, 1_700_000_000_000_103).unwrap();
            store.reject(1, "late", 1_700_000_000_000_104).unwrap();
        }
        "rebased" => {
            store.raise_grant(10).unwrap();
            for n in 1..=3 {
                publish(&store, n);
            }
            store.settle_through(1).unwrap();
            store.rebase(1000).unwrap();
            store.raise_grant(20).unwrap();
            publish(&store, 4);
            store.close(4).unwrap();
        }
        "lapped" => {
            publish(&store, 1);
            let envelope = Envelope::publish("filler");
            for n in 2..=150 {
                // A thread waits for room; nothing here depends on when it comes.
                let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
                let payload = vec![n as u8; 900];
                let filler = store.append_wait(&envelope, &payload, deadline).unwrap();
                store.settle(&[filler.sequence]).unwrap();
            }
            publish(&store, 151);
        }
        "damaged" | "salvaged" => {
            for n in 1..=6 {
                publish(&store, n);
            }
            store.close(0).unwrap();
            drop(store);
            let at = offset(3);
            change(&|bytes| bytes[at + 60] ^= 0x10);
            if name == "salvaged" {
                let store = open();
                publish(&store, 7);
            }
        }
        "late" => {
            for n in 1..=60 {
                publish(&store, n);
                store.settle_through(n - 1).unwrap();
            }
            store.sync().unwrap();
            store.reject(25, "late", 1_700_000_000_000_100).unwrap();
        }
        // What no store writes, although every open takes it: how a reader handles odd bodies.
        "odd" => {
            for n in 1..=12 {
                let padding = "x".repeat(100);
                let envelope = Envelope::publish("orders");
                store.append(&envelope, padding.as_bytes()).unwrap();
                if n == 9 {
                    store.reject(8, "no reason can be read", 1).unwrap();
                    store.reject(9, "not UTF-8", 2).unwrap();
                    store.reject(10, "never given out", 3).unwrap();
                }
            }
            store.reject(10, "accepted", 4).unwrap();
            store.settle(&[12]).unwrap();
            store.settle_through(1).unwrap();
            drop(store);
            change(&|bytes| make_odd(bytes));
        }
        other => panic!("{other}"),
    }
}

/// Writes things that no store writes into the records of a store that has some of each kind.
fn make_odd(bytes: &mut [u8]) {
    let long_forms = [
        &b"\xFB\0\0\xFC\x01\0\0\0t\xFB\0\0\xFC\x01\0\0\0\xFD\x07\0\0\0\0\0\0\0"[..],
        b"\0\0\0\xFB\x05\0\xFD\x04\0\0\0\0\0\0\0long\xFC\0\0\0\0",
    ]
    .concat();
    let over_long_tag = [&b"\0\x01t\0\0\0\0\0\0\x41"[..], &[b'z'; 65], b"\0"].concat();
    let requeue_of = |sequence: u8| vec![0, 1, b't', 0, 0, 0, 0, 0, 0, 0, 1, sequence];
    let mut odd = 0;
    for (at, _) in amps_store::testkit::record_places(bytes) {
        let at = at as usize;
        let (kind, sequence) = (bytes[at + 8], bytes[at + 16]);
        let mut envelope = |new: &[u8]| {
            bytes[at + 12..at + 16].copy_from_slice(&(new.len() as u32).to_le_bytes());
            bytes[at + 40..at + 40 + new.len()].copy_from_slice(new);
        };
        match (kind, sequence) {
            (1, 2) => bytes[at + 40] = 9,
            (1, 3) => envelope(&over_long_tag),
            (1, 4) => envelope(&long_forms),
            (1, 5) => envelope(b"\0\x02\xFF\xFE\0\0\0\0\0\0\0\0"),
            (1, 6) => envelope(b"\0\x01t\0\0\0\0\0\0\0\0\0"),
            // A requeue of a refusal that waits, except for byte 9; and one that accepts itself.
            (1, 7) => envelope(&requeue_of(8)),
            (1, 11) => {
                envelope(&requeue_of(11));
                bytes[at + 9] = 1;
            }
            (3, 8) => bytes[at + 48] = 0xFF,
            (3, 9) => {
                bytes[at + 52..at + 56].fill(0xFF);
                bytes[at + 56] = 0xFF;
            }
            // The settlement of 12 becomes an acceptance of 10, with a body.
            (2, _) => (bytes[at + 8], bytes[at + 16]) = (4, 10),
            // Bytes behind the tag of a mark that has none.
            (6, _) => bytes[at + 80..at + 144].fill(0xFF),
            _ => continue,
        }
        odd += 1;
    }
    assert!(odd >= 11, "{odd}");
    amps_store::testkit::resign(bytes);
}

/// Removes the name and the process ids of this machine from a store.
fn anonymous(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let identity = &mut bytes[8192..12288];
    identity[8..16].copy_from_slice(&0x601D_E400_0000_0001u64.to_le_bytes());
    let crc = crc32fast::hash(&identity[..4092]);
    identity[4092..].copy_from_slice(&crc.to_le_bytes());
    for copy in bytes[..8192].chunks_exact_mut(4096) {
        copy[24..32].copy_from_slice(&0x601D_E400_0000_0001u64.to_le_bytes());
        copy[36..40].copy_from_slice(&4242u32.to_le_bytes());
        copy[112..114].copy_from_slice(&4u16.to_le_bytes());
        copy[116..371].fill(0);
        copy[116..120].copy_from_slice(b"host");
        let crc = crc32fast::hash(&copy[..4092]);
        copy[4092..].copy_from_slice(&crc.to_le_bytes());
    }
    std::fs::write(path, &bytes).unwrap();
}
