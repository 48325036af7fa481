//! `amps store`: looking into stores, saving what is intact, moving messages between them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use amps_store::{Envelope, Options, PublishStore as _, Store};
use common::{Dir, Random, Running, amps, run, run_with_input};
use serde_json::Value;

/// 2026-01-31T12:00:00Z, in microseconds.
const NOON: u64 = 1_769_860_800_000_000;

const HOSTILE: &str = "</td><script>alert(\"x\")</script>&'";

fn store(arguments: &[&str], file: &Path) -> Command {
    let mut command = amps();
    command.arg("store").args(arguments).arg(file);
    command
}

fn json(arguments: &[&str], file: &Path) -> Command {
    let mut command = store(arguments, file);
    command.arg("--json");
    command
}

/// Payloads by sequence: text, nothing, bytes that are not text, control sequences for a
/// terminal, and markup.
fn payloads() -> Vec<Vec<u8>> {
    vec![
        b"{\"n\":1}".to_vec(),
        Vec::new(),
        b"\xff\x00\x01 no text \xfe".to_vec(),
        b"\x1b[2J clear \r\n lines \xe2\x82\xac".to_vec(),
        HOSTILE.as_bytes().to_vec(),
        b"settled singly".to_vec(),
        b"refused".to_vec(),
        b"the last".to_vec(),
    ]
}

/// A store with eight messages, one a minute from noon on: 1 and 6 are settled, 7 is refused. Odd
/// ones have the topic "odd", even ones "even".
fn stocked(dir: &Dir) -> PathBuf {
    let path = dir.path("stocked.store");
    let store = Store::open(
        &path,
        Options::new().capacity(64 << 10).client_name("anna <b>"),
    )
    .unwrap();
    for (at, payload) in payloads().iter().enumerate() {
        let mut envelope = Envelope::publish(if at % 2 == 0 { "odd" } else { "even" });
        envelope.published_at = NOON + at as u64 * 60_000_000;
        envelope.correlation_id = Some("c&d".into());
        let tag = [at as u8, 0xff];
        envelope.user_tag = (&tag[..]).into();
        store.append(&envelope, payload).unwrap();
    }
    store.settle_through(1).unwrap();
    store.settle(&[6]).unwrap();
    store.reject(7, HOSTILE, NOON + 1).unwrap();
    store.close(8).unwrap();
    path
}

fn sequences(objects: &[Value]) -> Vec<u64> {
    objects
        .iter()
        .filter(|o| o["event"].is_null())
        .map(|o| o["sequence"].as_u64().unwrap())
        .collect()
}

/// The payload in an object.
fn payload(object: &Value) -> Vec<u8> {
    use base64::Engine as _;
    match object["text"].as_str() {
        Some(text) => text.as_bytes().to_vec(),
        None => base64::engine::general_purpose::STANDARD
            .decode(object["base64"].as_str().expect("text or base64"))
            .unwrap(),
    }
}

#[test]
fn dump_shows_every_record_where_it_stands() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let before = fs::read(&file).unwrap();
    let objects = run(&mut json(&["dump"], &file)).expect(0).objects();
    let (report, records) = objects.split_last().unwrap();
    assert_eq!(report["event"], "report");
    assert_eq!(report["records"], records.len());

    for (record, next) in records.iter().zip(records[1..].iter()) {
        let end = record["offset"].as_u64().unwrap() + record["padded_length"].as_u64().unwrap();
        if record["segment"] == next["segment"] {
            assert_eq!(next["offset"], end, "nothing is left out");
        }
        assert_eq!(next["ordinal"], record["ordinal"].as_u64().unwrap() + 1);
    }
    let published: Vec<&Value> = records.iter().filter(|r| r["kind"] == "publish").collect();
    assert_eq!(published.len(), 8);
    for (record, expected) in published.iter().zip(payloads()) {
        assert_eq!(payload(record), expected);
        assert_eq!(record["bytes"], expected.len());
        let at = record["offset"].as_u64().unwrap() as usize;
        let length = record["length"].as_u64().unwrap() as usize;
        assert!(before[at..at + length].ends_with(&expected), "{record}");
    }
    let verdicts: Vec<&str> = published
        .iter()
        .map(|r| r["verdict"].as_str().unwrap())
        .collect();
    assert_eq!(
        verdicts,
        [
            "settled", "live", "live", "live", "live", "settled", "rejected", "live"
        ]
    );
    let rejection = records.iter().find(|r| r["kind"] == "rejection").unwrap();
    assert_eq!(
        (&rejection["sequence"], &rejection["reason"]),
        (&7.into(), &HOSTILE.into())
    );
    let settlement = records.iter().find(|r| r["kind"] == "settlement").unwrap();
    assert_eq!(settlement["settles"], Value::from(vec![6]));
    let last = records.last().unwrap();
    assert_eq!(
        (&last["kind"], &last["clean"]),
        (&"mark".into(), &true.into())
    );

    let text = run(&mut store(&["dump"], &file)).expect(0).text();
    assert!(!text.contains('\x1b'), "a terminal would obey this");
    assert!(text.contains("ff 00 01 20"), "{text}");
    assert!(text.contains("{\"n\":1}"), "{text}");
    let hex = run(&mut store(&["dump", "--hex"], &file)).expect(0).text();
    assert!(!hex.contains("| {\"n\":1}"), "{hex}");
    assert!(hex.contains("7b 22 6e 22 3a 31 7d"), "{hex}");
    assert_eq!(fs::read(&file).unwrap(), before);
}

/// All of them were once the same U+FFFD, and topics and reasons forged lines in a pipe.
#[test]
fn control_characters_are_escapes_that_can_be_told_apart() {
    let dir = Dir::new();
    let file = dir.path("s.store");
    let open = Store::open(&file, Options::new().capacity(64 << 10).client_name("n"));
    let (store_, topic) = (open.unwrap(), "t\n\x1b[2Jo\tp\u{9b}");
    for payload in [
        &b"a\0b"[..],
        b"a\x01b",
        b"a\\x01b",
        b"a\xfeb",
        b"a\nb",
        b"refused",
    ] {
        store_.append(&Envelope::publish(topic), payload).unwrap();
    }
    store_.reject(6, "no\r\x07way", NOON).unwrap();
    store_.close(6).unwrap();
    drop(store_);
    let shown = r"t\n\x1b[2Jo\tp\u{9b}";
    let list = run(&mut store(&["list"], &file)).expect(0).text();
    let ends = [r"a\x00b", r"a\x01b", r"a\\x01b", r"a\xfeb", r"a\nb"];
    assert_eq!(list.lines().count(), ends.len(), "{list}");
    for (line, end) in list.lines().zip(ends) {
        assert!(line.contains(shown) && line.ends_with(end), "{line}");
    }
    let dump = run(&mut store(&["dump"], &file)).expect(0).text();
    let reason = r"no\x0d\x07way";
    assert!(dump.contains(&format!("topic {shown}")), "{dump}");
    assert!(dump.contains(&format!("reason {reason}")), "{dump}");
    let failed = |words: &[&str]| {
        run(amps().arg("failed").args(words).arg(&file))
            .expect(0)
            .text()
    };
    let waiting = failed(&["list"]);
    assert!(
        waiting.contains(shown) && waiting.contains(reason),
        "{waiting}"
    );
    let one = failed(&["show", "6"]);
    assert!(one.contains(shown) && one.contains(reason), "{one}");
    let one = run(&mut store(&["get", "2"], &file)).expect(0).text();
    assert!(
        one.contains(shown) && one.ends_with("a\x01b\n"),
        "the payload itself: {one}"
    );
    for text in [list, dump, waiting] {
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains('\u{fffd}') && !text.contains(raw), "{text}");
    }
}

#[test]
fn topic_sequences_and_time_narrow_list_dump_and_export() {
    let dir = Dir::new();
    let file = stocked(&dir);
    for (filter, unsettled, rejected) in [
        (&["--topic", "odd"][..], &[3, 5][..], &[7][..]),
        (&["--first", "4", "--last", "7"], &[4, 5], &[7]),
        (&["--since", "2026-01-31T12:04:00Z"], &[5, 8], &[7]),
        (&["--until", "2026-01-31T12:02:00.000000Z"], &[2, 3], &[]),
        (
            &["--since", "2026-01-31", "--topic", "even", "--last", "5"],
            &[2, 4],
            &[],
        ),
        (&["--since", "1h"], &[], &[]),
    ] {
        let with = |command: &str| {
            let mut arguments = vec![command];
            arguments.extend(filter);
            run(&mut json(&arguments, &file)).expect(0).objects()
        };
        assert_eq!(sequences(&with("list")), unsettled, "{filter:?}");
        let mut needed = [unsettled, rejected].concat();
        needed.sort_unstable();
        assert_eq!(sequences(&with("export")), needed, "{filter:?}");
        let dumped: Vec<u64> = with("dump")
            .iter()
            .filter(|r| r["kind"] == "publish" && r["verdict"] != "settled")
            .map(|r| r["sequence"].as_u64().unwrap())
            .collect();
        assert_eq!(dumped, needed, "{filter:?}");
    }
    run(&mut store(&["list", "--since", "yesterday"], &file))
        .expect(2)
        .says(&["2026-01-31"]);
}

#[test]
fn the_map_shows_every_segment() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let objects = run(&mut json(&["map"], &file)).expect(0).objects();
    let (report, segments) = objects.split_last().unwrap();
    assert_eq!(report["segments"], segments.len());
    for (at, segment) in segments.iter().enumerate() {
        assert_eq!(segment["segment"], at);
        assert_eq!(segment["offset"], 12288 + at * 8192);
    }
    let tails: Vec<_> = segments.iter().filter(|s| s["tail"] == true).collect();
    assert_eq!(tails.len(), 1);
    assert!(tails[0]["live_bytes"].as_u64().unwrap() > 0);
    assert_eq!(report["live_bytes"], tails[0]["live_bytes"]);

    let text = run(&mut store(&["map"], &file)).expect(0).text();
    let ring: String = text.lines().take(4).collect();
    let cells = ring.chars().filter(|c| "@#+-._!x".contains(*c)).count();
    assert_eq!(cells, segments.len(), "{text}");
    assert_eq!(ring.matches('@').count(), 1, "{text}");
}

#[test]
fn the_html_report_needs_nothing_and_escapes_everything() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let out = dir.path("report.html");
    run(store(&["info", "--html"], &out).arg(&file)).expect(0);
    let page = fs::read_to_string(&out).unwrap();
    for bad in [
        "<script", "http", "src=", "href", "url(", "@import", "<b>", "\x1b",
    ] {
        assert!(!page.contains(bad), "{bad:?} in\n{page}");
    }
    for good in [
        "&lt;script&gt;alert(&quot;x&quot;)",
        "anna &lt;b&gt;",
        "<svg",
        "Rejections that wait",
        "2026-01-31T12:07:00",
    ] {
        assert!(page.contains(good), "no {good:?} in\n{page}");
    }
    assert_eq!(
        page.matches("<table").count(),
        page.matches("</table").count()
    );

    // Only a new file is ever written, and never over a store.
    let before = fs::read(&file).unwrap();
    run(store(&["info", "--html"], &out).arg(&file)).expect(1);
    run(store(&["info", "--html"], &file).arg(&file)).expect(1);
    assert_eq!(fs::read(&file).unwrap(), before);
    assert_eq!(fs::read_to_string(&out).unwrap(), page);
}

/// Breaks the payload of one message.
fn damage(file: &Path, victim: &[u8]) {
    let mut bytes = fs::read(file).unwrap();
    let at = bytes
        .windows(victim.len())
        .position(|w| w == victim)
        .expect("it is in the file");
    bytes[at] ^= 0x20;
    fs::write(file, bytes).unwrap();
}

#[test]
fn repair_saves_what_is_intact_and_names_the_rest() {
    let dir = Dir::new();
    let file = stocked(&dir);
    damage(&file, HOSTILE.as_bytes());
    let before = fs::read(&file).unwrap();
    run(&mut store(&["verify"], &file)).expect(3);
    run(&mut store(&["list"], &file)).expect(3);

    let to = dir.path("repaired.store");
    let done = run(json(&["repair", "--to"], &to).arg(&file))
        .expect(0)
        .objects();
    let (report, unsaved) = done.split_last().unwrap();
    assert_eq!(unsaved.len(), 1, "{done:?}");
    assert_eq!(unsaved[0]["what"], "damaged");
    assert_eq!(
        (&unsaved[0]["first"], &unsaved[0]["last"]),
        (&5.into(), &5.into())
    );
    assert_eq!(unsaved[0]["earlier"], false);
    assert_eq!(
        (&report["saved"], &report["rejections"], &report["unsaved"]),
        (&4.into(), &1.into(), &1.into())
    );
    assert_eq!(
        fs::read(&file).unwrap(),
        before,
        "the old file is only read"
    );

    run(&mut store(&["verify"], &to)).expect(0);
    let saved = run(&mut json(&["list"], &to)).expect(0).objects();
    assert_eq!(sequences(&saved), [2, 3, 4, 8]);
    for message in &saved[..4] {
        let sequence = message["sequence"].as_u64().unwrap() as usize;
        assert_eq!(payload(message), payloads()[sequence - 1]);
    }
    run(amps().args(["failed", "show", "7"]).arg(&to)).expect(0);

    let twice = run(store(&["repair", "--to"], &to).arg(&file)).expect(1);
    twice.says(&["exists"]);
    let text = run(store(&["repair", "--to"], &dir.path("again.store")).arg(&file)).expect(0);
    assert!(text.text().contains("not saved: ") && text.text().contains("message 5"));
}

/// Some commands once ended with 3 and some with 0, and what was left out or not found ended with
/// 1.
#[test]
fn whatever_shows_a_damaged_store_ends_with_3() {
    let dir = Dir::new();
    let file = stocked(&dir);
    damage(&file, HOSTILE.as_bytes());
    for shows in ["info", "list", "dump", "verify", "map", "export"] {
        run(&mut store(&[shows], &file)).expect(3);
    }
    for sequence in ["2", "5", "99"] {
        run(&mut store(&["get", sequence], &file)).expect(3);
    }
    // A damaged message was once called settled, or never stored.
    run(&mut store(&["get", "5"], &file)).says(&["message 5 is damaged", "amps store repair"]);
    run(amps().args(["failed", "list"]).arg(&file)).expect(3);
    for sequence in ["7", "99"] {
        run(amps().args(["failed", "show", sequence]).arg(&file)).expect(3);
    }
}

/// If the reader had read enough, a damaged store once ended with 0.
#[test]
fn a_damaged_store_ends_with_3_whatever_becomes_of_the_output() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let shows = |sequence: &str| -> Vec<Command> {
        let words = ["info", "list", "dump", "verify", "map", "export"];
        let mut all: Vec<_> = words.map(|word| store(&[word], &file)).into();
        all.push(store(&["get", sequence], &file));
        for words in [&["list"][..], &["show", "7"]] {
            let mut failed = amps();
            failed.arg("failed").args(words).arg(&file);
            all.push(failed);
        }
        all
    };
    for damaged in [false, true] {
        if damaged {
            damage(&file, HOSTILE.as_bytes());
        }
        for json in [false, true] {
            for mut command in shows("2") {
                let (reader, writer) = std::io::pipe().unwrap();
                drop(reader);
                if json {
                    command.arg("--json");
                }
                let out = command.stdout(writer).output().unwrap();
                let said = String::from_utf8_lossy(&out.stderr);
                let code = if damaged { 3 } else { 0 };
                assert_eq!(out.status.code(), Some(code), "{command:?}: {said}");
                assert_eq!(said.contains("error: "), damaged, "{command:?}: {said}");
            }
        }
    }
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let out = store(&["list"], &file).stdout(full).output().unwrap();
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(3), "{said}");
    assert!(said.contains("damaged") && said.contains("cannot write the output"));
}

#[test]
fn no_space_for_the_output_ends_with_8() {
    let dir = Dir::new();
    let file = stocked(&dir);
    for shows in ["info", "list", "dump", "verify", "map", "export"] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = store(&[shows], &file);
        let status = command.stdout(full).status().unwrap();
        assert_eq!(status.code(), Some(8), "{shows}");
    }
}

/// The number was once looked for in a store opened for writing, which then looked as if its
/// process had died.
#[test]
fn an_unknown_refusal_leaves_a_closed_store_closed() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let state = || run(&mut json(&["info"], &file)).expect(0).objects()[0]["state"].clone();
    let before = state();
    for does in ["accept", "requeue"] {
        run(amps().args(["failed", does, "77"]).arg(&file)).expect(1);
        assert_eq!(state(), before, "{does}");
    }
}

#[test]
fn repair_leaves_a_store_in_use_alone() {
    let dir = Dir::new();
    let file = stocked(&dir);
    let owner = Store::open_existing(&file, Options::new()).unwrap();
    let to = dir.path("repaired.store");
    run(store(&["repair", "--to"], &to).arg(&file)).expect(4);
    assert!(!to.exists());
    drop(owner);
}

/// An export without the fields that an import sets anew.
fn content(objects: &[Value]) -> Vec<Value> {
    let mut objects = objects.to_vec();
    for object in &mut objects {
        let object = object.as_object_mut().unwrap();
        object.remove("sequence");
        object.remove("imported");
    }
    objects
}

#[test]
fn export_and_import_round_trip_any_payload() {
    let mut random = Random::new("export and import");
    let dir = Dir::new();
    let file = dir.path("any.store");
    // A store of the default shape begins with few segments, so the import has to wait until it
    // grows.
    let store = Store::open(&file, Options::new().capacity(8 << 20)).unwrap();
    for n in 0..3000 {
        let payload: Vec<u8> = (0..random.below(1500))
            .map(|_| match n % 3 {
                0 => random.below(256) as u8,
                1 => b"\"\\\n\r\t\0/{}"[random.below(9) as usize],
                _ => b'a' + random.below(26) as u8,
            })
            .collect();
        let mut envelope = Envelope::publish("t\u{e9}\"\\");
        envelope.published_at = n;
        envelope.user_tag = payload[..payload.len().min(20)].to_vec().into();
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
        let at = store.append_wait(&envelope, &payload, deadline).unwrap();
        if n % 100 == 0 {
            store.reject(at.sequence, "no \u{1F600}", n).unwrap();
        }
    }
    store.close(0).unwrap();

    let exported = run(&mut self::store(&["export"], &file)).expect(0);
    let lines = dir.file("lines", &exported.stdout);
    let to = dir.path("imported.store");
    let report = run(json(&["import", "--capacity", "8MiB", "--from"], &lines).arg(&to))
        .expect(0)
        .report();
    assert_eq!(
        (&report["imported"], &report["rejections"]),
        (&3000.into(), &30.into())
    );
    let again = run(&mut self::store(&["export"], &to)).expect(0);
    assert!(
        content(&exported.objects()) == content(&again.objects()),
        "the copy differs"
    );
    run(&mut self::store(&["verify"], &to)).expect(0);
}

#[test]
fn a_bad_line_leaves_no_store_behind() {
    let dir = Dir::new();
    let to = dir.path("new.store");
    let good = "{\"topic\":\"t\",\"text\":\"x\"}\n";
    for (bad, word) in [
        ("{", "line 2"),
        ("{\"topic\":\"t\"}", "text"),
        ("{\"topic\":\"t\",\"text\":\"x\",\"more\":1}", "more"),
        ("{\"topic\":\"t\",\"base64\":\"!\"}", "base64"),
        ("\u{1}\u{2}", "line 2"),
    ] {
        let input = format!("{good}{bad}\n");
        run_with_input(&mut store(&["import"], &to), input.as_bytes())
            .expect(1)
            .says(&["line 2", word]);
        assert!(!to.exists(), "{bad}");
    }
    let large = format!("{{\"topic\":\"t\",\"text\":\"{}\"}}\n", "x".repeat(3000));
    run_with_input(
        &mut store(&["import", "--capacity", "64KiB"], &to),
        large.as_bytes(),
    )
    .expect(1);
    let many = format!("{{\"topic\":\"t\",\"text\":\"{}\"}}\n", "x".repeat(1000)).repeat(100);
    run_with_input(
        &mut store(&["import", "--capacity", "64KiB"], &to),
        many.as_bytes(),
    )
    .expect(8)
    .says(&["--capacity"]);
    assert!(!to.exists());

    // An existing file is never overwritten.
    let file = stocked(&dir);
    let before = fs::read(&file).unwrap();
    run_with_input(&mut store(&["import"], &file), good.as_bytes()).expect(1);
    assert_eq!(fs::read(&file).unwrap(), before);
    run(&mut store(&["import", "--from", "/nowhere/lines"], &to)).expect(1);
    assert!(!to.exists());
}

#[test]
fn a_live_store_is_never_called_damaged() {
    let dir = Dir::new();
    for capacity in ["65536", "1048576"] {
        let path = dir.path(capacity);
        let mut publisher = Running::start(
            amps()
                .args(["torture", "write", "--seed", "1", "--run", "1", "--dir"])
                .arg(&path)
                .args(["--capacity", capacity])
                .args(["--sync-every", "20", "--discard-lag", "40"]),
        );
        while !publisher.line().unwrap().starts_with("durable") {}
        // Its output must be read, or it would wait at a full pipe.
        let file = path.join("torture.store");
        let looks = std::thread::spawn(move || {
            for round in 0..8 {
                for command in ["info", "list", "dump", "verify", "map", "export"] {
                    let seen = run(&mut json(&[command], &file)).expect(0);
                    if command == "info" {
                        assert_ne!(seen.report()["state"], "closed");
                        assert_eq!(seen.report()["damaged"], 0);
                    }
                    if command == "verify" {
                        assert_eq!(seen.report()["ok"], true);
                    }
                }
                let html = file.with_extension(format!("{round}.html"));
                run(store(&["info", "--html"], &html).arg(&file)).expect(0);
            }
        });
        while !looks.is_finished() {
            publisher.line().expect("it writes for ever");
        }
        looks.join().unwrap();
        publisher.kill();
    }
}

#[test]
fn a_missing_store_or_another_file_is_told_apart() {
    let dir = Dir::new();
    let other = dir.file("letter.txt", "Dear reader,\n".repeat(1000));
    for command in ["info", "list", "dump", "verify", "map", "export"] {
        run(&mut store(&[command], &dir.path("none"))).expect(1);
        run(&mut store(&[command], &other)).expect(9);
    }
    let to = dir.path("to");
    run(store(&["repair", "--to"], &to).arg(dir.path("none"))).expect(1);
    run(store(&["repair", "--to"], &to).arg(&other)).expect(9);
    run(&mut store(&["repair"], &other)).expect(2);
    assert!(!to.exists());
}
