//! publish and drain against a real server: fields of the report, bytes, resuming.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::path::Path;
use std::process::Command;

use common::{Dir, NOBODY, Server, amps, numbered_lines, run, run_with_input};
use serde_json::Value;

fn publish(server: &str) -> Command {
    let mut command = amps();
    command.args([
        "publish",
        "--topic",
        "t",
        "--server",
        server,
        "--flush-timeout",
        "30s",
    ]);
    command
}

#[track_caller]
fn assert_journal(server: &Server, expected: &[u8]) {
    let count = expected.iter().filter(|&&b| b == b'\n').count();
    let read = run(amps()
        .args([
            "subscribe",
            "--topic",
            "t",
            "--from-start",
            "--server",
            &server.uri,
        ])
        .args(["-n", &count.to_string()]))
    .expect(0);
    assert_eq!(read.stdout, expected);
}

#[test]
fn the_report_has_the_fields_of_the_contract() {
    let server = Server::start(None, &[]);
    let ran = run_with_input(&mut publish(&server.uri), b"1\n2\n3\n").expect(0);
    assert_eq!(
        ran.text(),
        "published 3  persisted 3  persisted_at_logon 0  rejected 0  late 0  unattributed 0  left 0  \
         resent 0  stopped 0\n"
    );
    let report = run_with_input(publish(&server.uri).arg("--json"), b"1\n")
        .expect(0)
        .report();
    for (field, value) in [
        ("published", 1),
        ("persisted", 1),
        ("persisted_at_logon", 0),
        ("rejected", 0),
        ("late", 0),
        ("unattributed", 0),
        ("left", 0),
        ("resent", 0),
    ] {
        assert_eq!(report[field], value, "{field}");
    }
}

/// If servers are down in turn, each fails an attempt; that is one outage.
#[test]
fn an_outage_is_told_once_for_each_server_and_not_for_each_attempt() {
    let dir = Dir::new();
    let mut command = amps();
    command.args(["publish", "--topic", "t", "--server", NOBODY]);
    command.args(["--server", "tcp://127.0.0.2:9/amps/json"]);
    command.args(["--flush-timeout", "3s", "--store"]);
    let said = run_with_input(command.arg(dir.path("s.store")), b"1\n2\n")
        .expect(5)
        .stderr;
    let about = |words: &str| said.lines().filter(|line| line.contains(words)).count();
    assert!(about("no connection to") > 0, "{said}");
    for server in ["127.0.0.1:9", "127.0.0.2:9"] {
        let lines = about(&format!("no connection to {server}"));
        assert!(lines <= 1, "{server}: {said}");
    }
    assert!(
        said.contains("the flush timeout of 3 s ended first"),
        "{said}"
    );
}

#[test]
fn bytes_arrive_as_they_are() {
    let dir = Dir::new();
    let server = Server::start(Some(&dir.path("journal")), &[]);
    // A carriage return, an empty line, bytes that are no UTF-8, and no newline at the end.
    let input = b"crlf\r\n\n\xff\xfe\x00{\"a\":\"\\u0000\"}\nlast";
    let report = run_with_input(publish(&server.uri).arg("--json"), input)
        .expect(0)
        .report();
    assert_eq!(report["published"], 4);
    assert_journal(&server, &[&input[..], b"\n"].concat());
}

#[test]
fn the_embedded_sandbox_needs_nothing_else() {
    let dir = Dir::new();
    let input = dir.file("in", numbered_lines(5000, 100));
    let store = dir.path("s.store");
    let report = run(amps()
        .args(["publish", "--topic", "t", "--sandbox", "--json", "--store"])
        .arg(&store)
        .arg("--file")
        .arg(&input))
    .expect(0)
    .report();
    assert_eq!(
        (&report["published"], &report["persisted"]),
        (&5000.into(), &5000.into())
    );
}

#[test]
fn refused_lines_are_told_and_wait_for_somebody() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let server = Server::start(Some(&dir.path("journal")), &["--reject-invalid-json", "t"]);
    let ran = run_with_input(
        publish(&server.uri)
            .args(["--json", "--resume", "--store"])
            .arg(&store),
        b"{\"a\":1}\nnot json\n{\"a\":3}\n",
    )
    .expect(6);
    let objects = ran.objects();
    let report = objects.last().unwrap();
    assert_eq!(
        (&report["persisted"], &report["rejected"]),
        (&2.into(), &1.into())
    );
    let rejected: Vec<&Value> = objects
        .iter()
        .filter(|o| o["event"] == "rejected")
        .collect();
    assert_eq!(rejected.len(), 1);
    assert_eq!(rejected[0]["text"], "not json");
    assert_eq!(rejected[0]["line"], 2);
    assert!(!rejected[0]["reason"].as_str().unwrap().is_empty());
    assert_journal(&server, b"{\"a\":1}\n{\"a\":3}\n");

    // The next run was not refused anything, whatever still waits.
    run_with_input(
        publish(&server.uri)
            .args(["--resume", "--store"])
            .arg(&store),
        b"{\"a\":1}\nnot json\n{\"a\":3}\n{\"a\":4}\n",
    )
    .expect(0);

    let listed = run(amps().args(["failed", "list", "--json"]).arg(&store))
        .expect(0)
        .objects();
    let waiting: Vec<&Value> = listed.iter().filter(|o| o["sequence"].is_u64()).collect();
    assert_eq!(waiting.len(), 1);
    assert_eq!(waiting[0]["sequence"], rejected[0]["sequence"]);
    let sequence = waiting[0]["sequence"].to_string();
    let shown = run(amps().args(["failed", "show", &sequence]).arg(&store)).expect(0);
    assert!(shown.text().contains("not json"), "{}", shown.text());

    run(amps().args(["failed", "accept", &sequence]).arg(&store)).expect(0);
    run(amps().args(["failed", "accept", &sequence]).arg(&store)).expect(1);
    let listed = run(amps().args(["failed", "list", "--json"]).arg(&store))
        .expect(0)
        .objects();
    assert!(!listed.iter().any(|o| o["sequence"].is_u64()));
}

#[test]
fn a_star_asks_for_json_on_any_topic() {
    let server = Server::start(None, &["--reject-invalid-json", "*"]);
    let report = run_with_input(publish(&server.uri).arg("--json"), b"{}\nnot json\n")
        .expect(6)
        .report();
    assert_eq!(
        (&report["persisted"], &report["rejected"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn a_requeued_line_is_sent_again_and_does_not_move_the_resume_point() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut server = Server::start(Some(&dir.path("strict")), &["--reject-invalid-json", "t"]);
    let mut input = b"{\"n\":1}\n{\"n\":2}\nfive\n{\"n\":4}\n".to_vec();
    let ran = run_with_input(
        publish(&server.uri)
            .args(["--json", "--resume", "--store"])
            .arg(&store),
        &input,
    )
    .expect(6);
    let objects = ran.objects();
    let refused = objects.iter().find(|o| o["event"] == "rejected").unwrap();
    run(amps()
        .args(["failed", "requeue", &refused["sequence"].to_string()])
        .arg(&store))
    .expect(0);

    server.kill();
    let server = Server::start(Some(&dir.path("strict")), &[]);
    input.extend_from_slice(b"{\"n\":5}\n");
    let report = run_with_input(
        publish(&server.uri)
            .args(["--json", "--resume", "--store"])
            .arg(&store),
        &input,
    )
    .expect(0)
    .report();
    assert_eq!(report["resumed_at"], 4);
    assert_eq!(report["published"], 1);
    assert_journal(
        &server,
        b"{\"n\":1}\n{\"n\":2}\n{\"n\":4}\nfive\n{\"n\":5}\n",
    );
}

#[test]
fn what_no_server_took_is_sent_first_by_the_next_run() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run_with_input(
        amps()
            .args([
                "publish",
                "--topic",
                "t",
                "--server",
                NOBODY,
                "--flush-timeout",
                "0s",
            ])
            .arg("--store")
            .arg(&store),
        b"a\nb\n",
    )
    .expect(5);
    let server = Server::start(Some(&dir.path("journal")), &[]);
    let ran = run_with_input(
        publish(&server.uri).args(["--json", "--store"]).arg(&store),
        b"c\n",
    )
    .expect(0);
    let objects = ran.objects();
    assert_eq!(objects[0]["event"], "recovered");
    assert_eq!(objects[0]["recovered"], 2);
    let report = objects.last().unwrap();
    assert_eq!(report["published"], 1);
    assert_eq!(report["persisted"], 3);
    assert_journal(&server, b"a\nb\nc\n");
}

#[test]
fn every_level_of_durability_publishes() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    for level in ["os", "interval:10ms", "disk"] {
        let report = run_with_input(
            publish(&server.uri)
                .args(["--json", "--durability", level, "--store"])
                .arg(dir.path(&level.replace(':', "-"))),
            &numbered_lines(200, 80),
        )
        .expect(0)
        .report();
        assert_eq!(report["persisted"], 200, "{level}");
    }
}

#[test]
fn a_store_far_smaller_than_the_input_is_enough() {
    let dir = Dir::new();
    let server = Server::start(None, &[]);
    let report = run_with_input(
        publish(&server.uri)
            .args(["--json", "--capacity", "256KiB", "--store"])
            .arg(dir.path("s.store")),
        &numbered_lines(5000, 200),
    )
    .expect(0)
    .report();
    assert_eq!(report["persisted"], 5000);
}

#[test]
fn completions_and_the_manual_page_come_from_the_command_line_itself() {
    for shell in ["bash", "zsh", "fish"] {
        let script = run(amps().args(["completions", shell])).expect(0).text();
        assert!(script.contains("flush-timeout"), "{shell}");
    }
    let page = run(amps().arg("man")).expect(0).text();
    assert!(page.contains(".TH") && page.contains("flush"), "{page}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    for product in [&["man"][..], &["completions", "bash"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let out = amps().args(product).stdout(writer).output().unwrap();
        let words = String::from_utf8_lossy(&out.stderr);
        assert_eq!((out.status.code(), &*words), (Some(0), ""), "{product:?}");
    }
}

#[test]
fn a_store_is_looked_into_while_its_publisher_runs() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut owner = common::Running::start(
        amps()
            .args([
                "publish",
                "--topic",
                "t",
                "--server",
                NOBODY,
                "--flush-timeout",
                "0s",
            ])
            .args([
                "--announce",
                "--client-name",
                "looked-at",
                "--resume",
                "--store",
            ])
            .arg(&store),
    );
    for line in ["{\"n\":1}", "two", "three"] {
        owner.write_line(line);
        owner.line().unwrap();
    }
    let info = run(amps().args(["store", "info", "--json"]).arg(&store))
        .expect(0)
        .report();
    assert_eq!(info["client_name"], "looked-at");
    assert_eq!(
        (&info["unsettled"], &info["rejections"]),
        (&3.into(), &0.into())
    );
    // Line 3 ends 17 bytes into the input; the rest is the checksum.
    let tag = info["resume_tag"]["text"].as_str().unwrap();
    assert!(tag.starts_with("3:17:") && tag.len() == 21, "{tag}");
    assert_eq!(info["state"], "live");

    let listed = run(amps().args(["store", "list", "--json"]).arg(&store))
        .expect(0)
        .objects();
    let texts: Vec<_> = listed.iter().filter_map(|o| o["text"].as_str()).collect();
    assert_eq!(texts, ["{\"n\":1}", "two", "three"]);
    let some = run(amps()
        .args(["store", "list", "--first", "2", "--last", "2"])
        .arg(&store));
    assert!(
        some.text().contains("two") && !some.text().contains("three"),
        "{}",
        some.text()
    );

    let got = run(amps().args(["store", "get", "2", "--json"]).arg(&store))
        .expect(0)
        .report();
    assert_eq!((&got["text"], &got["topic"]), (&"two".into(), &"t".into()));
    let tag = got["user_tag"]["text"].as_str().unwrap();
    assert!(tag.starts_with("2:11:") && tag.len() == 21, "{tag}");
    assert!(got["offset"].is_u64());
    let human = run(amps().args(["store", "get", "2"]).arg(&store)).expect(0);
    assert!(human.text().ends_with("\ntwo\n"), "{}", human.text());

    let verified = run(amps().args(["store", "verify", "--json"]).arg(&store))
        .expect(0)
        .report();
    assert_eq!(
        (&verified["ok"], &verified["unsettled"]),
        (&true.into(), &3.into())
    );
    assert!(verified["checksums"].as_u64() >= Some(3));
    owner.close_stdin();
    assert_eq!(owner.wait(), Some(5));
    let info = run(amps().args(["store", "info", "--json"]).arg(&store))
        .expect(0)
        .report();
    assert_eq!(info["state"], "closed");
}

#[test]
fn damage_is_found_by_verify_and_named() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run_with_input(
        amps()
            .args([
                "publish",
                "--topic",
                "t",
                "--server",
                NOBODY,
                "--flush-timeout",
                "0s",
            ])
            .arg("--store")
            .arg(&store),
        &numbered_lines(9, 60),
    )
    .expect(5);
    run(amps().args(["store", "verify"]).arg(&store)).expect(0);
    let mut bytes = std::fs::read(&store).unwrap();
    let at = bytes
        .windows(7)
        .position(|w| w == b"{\"n\":1,")
        .expect("the first line is there");
    bytes[at + 5] ^= 1;
    std::fs::write(&store, &bytes).unwrap();
    let found = run(amps().args(["store", "verify", "--json"]).arg(&store)).expect(3);
    assert_eq!(found.report()["ok"], false);
    assert!(
        found.objects().iter().any(|o| o["severity"] == "damage"),
        "{}",
        found.text()
    );
    run(amps().args(["store", "list"]).arg(&store)).expect(3);
    assert_eq!(
        std::fs::read(&store).unwrap(),
        bytes,
        "a look changed the file"
    );
}

/// A store as a power cut may leave it: a hole, and behind it messages and a refusal.
fn with_a_hole(path: &Path) {
    use amps_store::{Envelope, Options, PublishStore, Store, inspect::Inspection};
    let options = Options::new().capacity(1 << 20).client_name("left");
    let store = Store::open(path, options).unwrap();
    for n in 1..=4 {
        let envelope = Envelope::publish("t");
        store.append(&envelope, format!("{n}").as_bytes()).unwrap();
    }
    store.reject(1, "no", 7).unwrap();
    // Dropped without a close: nothing was synced.
    drop(store);
    let second = Inspection::open(path).unwrap().get(2).unwrap().unwrap();
    let mut bytes = std::fs::read(path).unwrap();
    bytes[second.offset as usize + 20] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn what_recovery_set_aside_is_told_at_three_in_the_morning() {
    let dir = Dir::new();
    for json in [false, true] {
        let store = dir.path(&format!("{json}.store"));
        with_a_hole(&store);
        let mut drain = amps();
        drain.args(["drain", "--server", NOBODY, "--flush-timeout", "0s"]);
        drain.args(json.then_some("--json")).arg("--store");
        let ran = run(drain.arg(&store)).expect(5).says(&[
            "hole",
            "messages 3 to 4",
            "the refusal of message 1",
            "repair",
        ]);
        if json {
            let recovered = &ran.objects()[0];
            assert_eq!(recovered["event"], "recovered");
            for (field, value) in [
                ("recovered", 1),
                ("set_aside_first", 3),
                ("set_aside_last", 4),
            ] {
                assert_eq!(recovered[field], value, "{field}");
            }
            assert!(recovered["set_aside"].as_u64() >= Some(3));
            assert_eq!(recovered["set_aside_rejections"], serde_json::json!([1]));
        }
    }
}
