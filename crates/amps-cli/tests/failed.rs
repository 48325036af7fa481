//! Decisions about refusals, for one message or for many.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::path::{Path, PathBuf};

use common::{Dir, NOBODY, Ran, Server, amps, run, run_with_input};

fn failed(store: &Path, arguments: &[&str]) -> Ran {
    let mut command = amps();
    run(command
        .args(["--json", "failed"])
        .args(arguments)
        .arg(store))
}

/// The sequences that wait.
#[track_caller]
fn waiting(store: &Path) -> Vec<u64> {
    let listed = failed(store, &["list"]).expect(0).objects();
    listed
        .iter()
        .filter_map(|object| object["sequence"].as_u64())
        .collect()
}

/// Ten refusals: odd messages were for the topic "odd", even ones for "even".
fn refused(dir: &Dir) -> PathBuf {
    let server = Server::start(None, &["--reject-topic", "odd", "--reject-topic", "even"]);
    let store = dir.path("s.store");
    for n in 1..=10 {
        let topic = if n % 2 == 0 { "even" } else { "odd" };
        let mut command = amps();
        command.args([
            "publish",
            "--topic",
            topic,
            "--server",
            &server.uri,
            "--store",
        ]);
        run_with_input(command.arg(&store), format!("{n}\n").as_bytes()).expect(6);
    }
    store
}

#[test]
fn ranges_filters_and_all_choose_what_is_changed() {
    let dir = Dir::new();
    let store = refused(&dir);
    let all = waiting(&store);
    assert_eq!(all.len(), 10);
    let before = std::fs::read(&store).unwrap();
    let dry = failed(&store, &["accept", "--all", "--dry-run"]).expect(0);
    assert_eq!(dry.report()["accepted"], 10);
    assert!(std::fs::read(&store).unwrap() == before, "it wrote");
    assert_eq!(waiting(&store), all);
    let range = format!("{}-{}", all[0], all[2]);
    let accepted = failed(&store, &["accept", &range, &all[9].to_string()]).expect(0);
    assert_eq!(accepted.report()["accepted"], 4);
    assert_eq!(waiting(&store), all[3..9]);
    // A sequence that is not there is reported, and the others are done.
    failed(
        &store,
        &["accept", &all[0].to_string(), &all[3].to_string()],
    )
    .expect(1);
    assert_eq!(waiting(&store), all[4..9]);
    // Sequences five to nine: three odd ones.
    let requeued = failed(&store, &["requeue", "--topic", "odd"]).expect(0);
    assert_eq!(requeued.report()["requeued"], 3);
    assert_eq!(waiting(&store), [all[5], all[7]]);
    assert_eq!(
        failed(&store, &["accept", "--all"]).expect(0).report()["accepted"],
        2
    );
    assert_eq!(
        failed(&store, &["accept", "--all"]).expect(0).report()["accepted"],
        0
    );
    for senseless in [
        &["accept"][..],
        &["accept", "x"],
        &["accept", "2-1"],
        &["accept", "--all", "1"],
    ] {
        failed(&store, senseless).expect(2);
    }
}

#[test]
fn a_requeued_message_can_be_another_one() {
    let dir = Dir::new();
    let store = refused(&dir);
    let sequence = waiting(&store)[0].to_string();
    let payload = dir.file("payload", "mended");
    let payload = payload.to_str().unwrap();
    let edited = [
        "requeue",
        &sequence,
        "--payload",
        payload,
        "--topic",
        "good",
    ];
    let ran = failed(&store, &edited).expect(0);
    let new = ran.objects()[0]["as"].to_string();
    let mut get = amps();
    let seen = run(get.args(["--json", "store", "get", &new]).arg(&store))
        .expect(0)
        .report();
    assert_eq!(
        (&seen["text"], &seen["topic"]),
        (&"mended".into(), &"good".into())
    );
    assert_eq!(seen["requeue_of"].to_string(), sequence);
    assert_eq!(waiting(&store).len(), 9);
    failed(&store, &["requeue", "--all", "--payload", payload]).expect(2);
    failed(&store, &["requeue", &sequence, "--topic", "a\u{7}"]).expect(2);
}

#[test]
fn a_message_can_be_given_up_without_a_server() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut command = amps();
    command.args([
        "publish",
        "--topic",
        "t",
        "--server",
        NOBODY,
        "--flush-timeout",
        "0s",
    ]);
    run_with_input(command.arg("--store").arg(&store), b"1\n2\n3\n").expect(5);
    failed(&store, &["give-up", "2", "77"]).expect(1);
    assert_eq!(waiting(&store), [2]);
    let mut list = amps();
    let left = run(list.args(["--json", "store", "list"]).arg(&store)).expect(0);
    assert_eq!(left.report()["listed"], 2);
    // A filter that matches nothing, one that matches something, and all: never silently nothing.
    let none = failed(&store, &["give-up", "--topic", "u"]).expect(0);
    assert_eq!(none.report()["given_up"], 0);
    let one = failed(&store, &["give-up", "--topic", "t", "--first", "3"]).expect(0);
    assert_eq!(one.report()["given_up"], 1);
    let rest = failed(&store, &["give-up", "--all"]).expect(0);
    assert_eq!(rest.report()["given_up"], 1);
    let mut shown = failed(&store, &["list"]).expect(0).objects();
    assert_eq!(shown.len(), 4);
    let reason = shown.remove(0)["reason"].to_string();
    assert!(reason.contains("the server may have it"), "{reason}");
}

#[test]
fn an_export_of_refusals_can_be_edited_and_imported() {
    let dir = Dir::new();
    let store = refused(&dir);
    let exported = failed(&store, &["export", "--topic", "odd"]).expect(0);
    let text = String::from_utf8(exported.stdout).unwrap();
    assert_eq!(text.matches(r#""text":"3""#).count(), 1, "{text}");
    let edited = text.replace(r#""text":"3""#, r#""text":"three""#);
    let copy = dir.path("copy.store");
    let mut import = amps();
    let import = import.args(["--json", "store", "import"]).arg(&copy);
    let report = run_with_input(import, edited.as_bytes()).expect(0).report();
    assert_eq!(
        (&report["imported"], &report["rejections"]),
        (&5.into(), &5.into())
    );
    let waiting = failed(&copy, &["list"]).expect(0).objects();
    let of_three = waiting.iter().filter(|object| object["text"] == "three");
    assert_eq!(of_three.count(), 1, "{waiting:?}");
    assert_eq!(waiting.len(), 5 + 1);
}
