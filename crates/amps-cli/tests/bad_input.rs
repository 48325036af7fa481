//! Each bad input gives one paragraph that says what happened, to which file or server, and
//! what to do next, has the exit code that `README.md` lists, and loses nothing.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Dir, NOBODY, Running, Server, amps, numbered_lines, run, run_with_input};

/// A publisher that does not wait for anybody.
fn publish(store: &Path, server: &str) -> Command {
    publish_within(store, server, "0s")
}

fn publish_within(store: &Path, server: &str, flush_timeout: &str) -> Command {
    let mut command = amps();
    command
        .args(["publish", "--topic", "t", "--json", "--server", server])
        .args(["--flush-timeout", flush_timeout, "--store"])
        .arg(store);
    command
}

#[test]
fn a_missing_file_is_named_and_leaves_no_store_behind() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run(publish(&store, NOBODY).args(["--file", "/nowhere/input.ndjson"]))
        .expect(1)
        .says(&["/nowhere/input.ndjson", "check the path"]);
    assert!(!store.exists());
}

/// Such a command line once printed only text for people, unlike every other failure.
#[test]
fn a_command_line_that_makes_no_sense_is_an_object_too() {
    for (words, names) in [
        (&["--json", "publish"][..], "--topic"),
        (
            &["store", "list", "--since", "yesterday", "s.store", "--json"],
            "--since",
        ),
        (
            &["--json", "drain", "--store", "s", "--flush-timeout", "soon"],
            "--flush-timeout",
        ),
    ] {
        let report = run(amps().args(words)).expect(2).report();
        assert_eq!(
            (&report["error"], &report["code"]),
            (&"usage".into(), &2.into())
        );
        assert!(
            report["message"].as_str().unwrap().contains(names),
            "{report}"
        );
    }
    for words in [
        &["publish"][..],
        &["--json", "store", "export"],
        &["--help"],
    ] {
        let ran = run(amps().args(words));
        let objects = String::from_utf8_lossy(&ran.stdout).contains("\"error\"");
        assert!(!objects, "{}", ran.text());
    }
}

/// The flush timeout is for a server and for a full store; room that the store is making has
/// nothing to do with either.
#[test]
fn a_store_that_grows_is_waited_for_whatever_the_flush_timeout() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    // More than a new store has room for.
    let input = dir.file("in", numbered_lines(60_000, 300));
    let mut command = publish_within(&store, NOBODY, "0s");
    let report = run(command.arg("--file").arg(&input)).expect(5).report();
    assert_eq!(report["published"], 60_000);
    assert_eq!(report["next_line"], 60_001);
}

#[test]
fn a_directory_cannot_be_published() {
    let dir = Dir::new();
    run(publish(&dir.path("s.store"), NOBODY)
        .arg("--file")
        .arg(dir.path("")))
    .expect(1)
    .says(&["directory"]);
}

/// A file that Linux lets nobody read, whoever runs this.
#[test]
fn a_file_without_permission_is_named() {
    let dir = Dir::new();
    run(publish(&dir.path("s.store"), NOBODY).args(["--file", "/proc/sys/vm/drop_caches"]))
        .expect(1)
        .says(&["drop_caches", "readable"]);
}

#[test]
fn a_store_of_another_client_name_is_refused() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run_with_input(
        publish(&store, NOBODY).args(["--client-name", "anna"]),
        b"1\n",
    )
    .expect(5);
    let before = fs::read(&store).unwrap();
    run_with_input(
        publish(&store, NOBODY).args(["--client-name", "bert"]),
        b"2\n",
    )
    .expect(1)
    .says(&["anna", "bert", "s.store"]);
    assert_eq!(
        fs::read(&store).unwrap(),
        before,
        "a refused open changed the file"
    );
}

#[test]
fn a_store_in_use_is_locked() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut owner = Running::start(publish(&store, NOBODY).arg("--announce"));
    owner.write_line("held");
    assert!(owner.line().unwrap().contains("stored"));

    run_with_input(&mut publish(&store, NOBODY), b"x\n")
        .expect(4)
        .says(&["s.store", "in use"]);
    run(amps()
        .args(["drain", "--server", NOBODY, "--store"])
        .arg(&store))
    .expect(4);
    run(amps().args(["failed", "accept", "1"]).arg(&store)).expect(4);
    run(amps().args(["failed", "requeue", "1"]).arg(&store)).expect(4);
    owner.close_stdin();
    assert_eq!(owner.wait(), Some(5));
}

#[test]
fn a_damaged_store_is_refused_and_not_touched() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run_with_input(&mut publish(&store, NOBODY), &numbered_lines(50, 100)).expect(5);
    let mut bytes = fs::read(&store).unwrap();
    let needle = b"{\"n\":20,";
    let at = bytes
        .windows(needle.len())
        .position(|w| w == needle)
        .expect("line 20 is there");
    bytes[at] ^= 1;
    fs::write(&store, &bytes).unwrap();

    run_with_input(&mut publish(&store, NOBODY), b"x\n")
        .expect(3)
        .says(&["s.store", "damaged"]);
    run(amps()
        .args(["drain", "--server", NOBODY, "--store"])
        .arg(&store))
    .expect(3);
    assert_eq!(
        fs::read(&store).unwrap(),
        bytes,
        "a refused open changed the file"
    );
}

#[test]
fn a_file_that_is_no_store_is_not_overwritten() {
    let dir = Dir::new();
    let file = dir.file("letter.txt", "Dear reader,\n".repeat(1000));
    let before = fs::read(&file).unwrap();
    run_with_input(&mut publish(&file, NOBODY), b"x\n")
        .expect(9)
        .says(&["letter.txt", "not"]);
    assert_eq!(fs::read(&file).unwrap(), before);
}

#[test]
fn a_bad_uri_is_a_usage_error_and_leaves_no_store_behind() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    for uri in [
        "",
        "localhost:9007",
        "ftp://127.0.0.1:1/amps/json",
        "tcp://127.0.0.1/amps/json",
    ] {
        let ran = run_with_input(&mut publish(&store, uri), b"x\n").expect(2);
        assert!(ran.stderr.contains("URI"), "{uri:?}: {}", ran.stderr);
        assert!(!store.exists(), "{uri:?}");
    }
    run(amps().args(["subscribe", "--topic", "t", "--server", "nonsense"])).expect(2);
}

#[test]
fn a_refused_logon_keeps_the_lines_and_they_can_be_drained() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let server = Server::start(
        Some(&dir.path("journal")),
        &["--require-auth", "anna:secret"],
    );
    let ran = run_with_input(
        &mut publish_within(&store, &server.uri, "2s"),
        b"one\ntwo\n",
    )
    .expect(7)
    .says(&["refused the logon", "2 message(s)", "amps drain"]);
    let report = ran.report();
    assert_eq!(
        (&report["published"], &report["left"]),
        (&2.into(), &2.into())
    );

    let uri = server.uri.replace("tcp://", "tcp://anna:secret@");
    let drained = run(amps()
        .args([
            "drain",
            "--json",
            "--server",
            &uri,
            "--flush-timeout",
            "20s",
            "--store",
        ])
        .arg(&store))
    .expect(0)
    .report();
    assert_eq!(
        (&drained["persisted"], &drained["left"]),
        (&2.into(), &0.into())
    );
    let read = run(amps().args([
        "subscribe",
        "--topic",
        "t",
        "--from-start",
        "-n",
        "2",
        "--server",
        &uri,
    ]))
    .expect(0);
    assert_eq!(read.text(), "one\ntwo\n");
}

#[test]
fn no_server_keeps_the_lines() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let ran = run_with_input(&mut publish(&store, NOBODY), b"one\ntwo\n")
        .expect(5)
        .says(&["2 message(s)", "s.store", "amps drain"]);
    let report = ran.report();
    assert_eq!(
        (&report["published"], &report["left"]),
        (&2.into(), &2.into())
    );
    assert_eq!(
        (&report["persisted"], &report["rejected"]),
        (&0.into(), &0.into())
    );
}

#[test]
fn a_message_no_record_can_hold_stops_the_run_behind_the_lines_before_it() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let server = Server::start(Some(&dir.path("journal")), &[]);
    let mut input = b"small\n".to_vec();
    input.extend(std::iter::repeat_n(b'x', 40_000));
    input.extend_from_slice(b"\nnever read\n");
    let ran = run_with_input(
        publish_within(&store, &server.uri, "20s").args(["--capacity", "64KiB"]),
        &input,
    )
    .expect(1)
    .says(&[
        "line 2",
        "40000 bytes",
        "too large",
        "1 line(s) were accepted",
    ]);
    let report = ran.report();
    assert_eq!(
        (&report["published"], &report["persisted"]),
        (&1.into(), &1.into())
    );
}

#[test]
fn a_full_store_says_how_many_lines_it_took() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let ran = run_with_input(
        publish_within(&store, NOBODY, "100ms").args(["--capacity", "64KiB"]),
        &numbered_lines(2000, 200),
    )
    .expect(5)
    .says(&["full", "line(s) were accepted"]);
    let report = ran.report();
    let published = report["published"].as_u64().unwrap();
    assert!((1..2000).contains(&published), "{published}");
    assert_eq!(report["left"], report["published"]);
    assert_eq!(report["lines"], report["published"]);
}

#[test]
fn no_space_is_told_and_no_signal_kills_us() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    // In blocks of 512 or 1024 bytes, depending on the shell: 32 or 64 KiB.
    let script = r#"ulimit -f 64; exec "$@""#;
    let mut command = Command::new("sh");
    command
        .args([
            "-c",
            script,
            "sh",
            env!("CARGO_BIN_EXE_amps"),
            "publish",
            "--topic",
            "t",
        ])
        .args([
            "--server",
            NOBODY,
            "--flush-timeout",
            "0s",
            "--capacity",
            "16MiB",
            "--store",
        ])
        .arg(&store);
    run_with_input(&mut command, b"x\n")
        .expect(8)
        .says(&["s.store", "no space"]);
}

#[test]
fn a_disk_that_fills_while_publishing_is_no_space_and_not_a_full_store() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    // 6 or 12 MiB, depending on the shell: more than the store starts with, less than its
    // capacity.
    let script = r#"ulimit -f 12288; exec "$@""#;
    let mut command = Command::new("sh");
    command
        .args(["-c", script, "sh", env!("CARGO_BIN_EXE_amps")])
        .args(["publish", "--topic", "t", "--server", NOBODY, "--json"])
        .args(["--flush-timeout", "3s", "--capacity", "16MiB", "--store"])
        .arg(&store);
    let ran = run_with_input(&mut command, &numbered_lines(2000, 10_000))
        .expect(8)
        .says(&["no space to grow", "line(s) were accepted"]);
    assert!(!ran.stderr.contains("larger --capacity"), "{}", ran.stderr);
    let report = ran.report();
    let published = report["published"].as_u64().unwrap();
    assert!((100..2000).contains(&published), "{published}");
    assert_eq!(report["left"], published);
}

#[test]
fn an_unknown_sequence_is_an_error_of_its_own() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    run_with_input(&mut publish(&store, NOBODY), b"one\n").expect(5);
    for command in [
        ["failed", "accept"],
        ["failed", "requeue"],
        ["failed", "show"],
        ["store", "get"],
    ] {
        run(amps().args(command).arg("77").arg(&store))
            .expect(1)
            .says(&["77", "s.store"]);
    }
}

#[test]
fn a_store_that_is_not_there_is_named() {
    for command in [
        &["drain", "--server", NOBODY, "--store"][..],
        &["failed", "list"],
        &["failed", "accept", "1"],
        &["store", "info"],
        &["store", "verify"],
    ] {
        run(amps().args(command).arg("/nowhere/s.store"))
            .expect(1)
            .says(&["/nowhere/s.store"]);
    }
}

/// Found by a review: all of it was once accepted and none of it sent.
#[test]
fn messages_in_memory_cannot_be_durable() {
    for level in ["disk", "interval:10ms"] {
        let mut publish = amps();
        publish.args([
            "publish",
            "--topic",
            "t",
            "--sandbox",
            "--durability",
            level,
        ]);
        run_with_input(&mut publish, b"x\n")
            .expect(2)
            .says(&["--store"]);
    }
}

#[test]
fn usage_errors_are_2() {
    for command in [
        &["publish"][..],
        &["publish", "--topic", ""],
        &["publish", "--topic", "t", "--durability", "perhaps"],
        &["publish", "--topic", "t", "--resume"],
        &["publish", "--topic", "t", "--rate", "0"],
        &["serve", "--fault", "perhaps"],
        &["serve", "--require-auth", "nopassword"],
        &["unknown"],
    ] {
        run(amps().args(command)).expect(2);
    }
}
