//! A store whose superblocks are both damaged, as operators see it. One flipped bit in each copy
//! once made every message unreachable, and every command said that the file is no store.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Dir, NOBODY, Ran, Server, amps, run, run_with_input};

fn publish(store: &Path, server: &str, input: &str) -> Ran {
    let mut command = amps();
    command.args(["--json", "publish", "--topic", "t", "--server", server]);
    command.args(["--client-name", "orders", "--flush-timeout"]);
    command.arg(if server == NOBODY { "100ms" } else { "30s" });
    command.arg("--store").arg(store);
    run_with_input(&mut command, input.as_bytes())
}

fn store(arguments: &[&str], file: &Path) -> Command {
    let mut command = amps();
    command.args(["store"]).args(arguments).arg(file);
    command
}

fn repair(old: &Path, new: &Path, options: &[&str]) -> Ran {
    let mut command = store(&["repair"], old);
    command.arg("--to").arg(new).args(options);
    run(&mut command)
}

/// Flips a bit of the send grant in both copies.
fn broken(dir: &Dir, whole: &Path) -> PathBuf {
    let path = dir.path("broken.store");
    let mut bytes = fs::read(whole).unwrap();
    (bytes[66], bytes[4096 + 66]) = (bytes[66] ^ 1, bytes[4096 + 66] ^ 1);
    fs::write(&path, bytes).unwrap();
    path
}

#[test]
fn every_command_calls_it_damaged_and_says_what_saves_it() {
    let dir = Dir::new();
    let whole = dir.path("whole.store");
    publish(&whole, NOBODY, "one\n").expect(5);
    let old = broken(&dir, &whole);
    let before = fs::read(&old).unwrap();
    let words = [
        "is damaged",
        "both copies of its superblock",
        "amps store repair",
    ];
    for command in ["info", "list", "dump", "verify", "export", "map"] {
        let ran = run(&mut store(&[command], &old)).expect(3).says(&words);
        assert!(
            !ran.stderr.contains("not a publish store"),
            "{}",
            ran.stderr
        );
    }
    run(&mut store(&["get", "1"], &old)).expect(3).says(&words);
    let mut failed = amps();
    run(failed.args(["failed", "list"]).arg(&old))
        .expect(3)
        .says(&words);
    publish(&old, NOBODY, "two\n").expect(3).says(&words);
    let mut drain = amps();
    drain
        .args(["drain", "--server", NOBODY, "--store"])
        .arg(&old);
    run(&mut drain).expect(3).says(&words);
    assert_eq!(fs::read(&old).unwrap(), before);
}

#[test]
fn what_it_holds_is_saved_and_reaches_the_server() {
    let dir = Dir::new();
    let server = Server::start(Some(&dir.path("journal")), &[]);
    let (whole, new) = (dir.path("whole.store"), dir.path("new.store"));
    publish(&whole, &server.uri, "1\n2\n3\n").expect(0);
    publish(&whole, NOBODY, "4\n5\n").expect(5);
    let old = broken(&dir, &whole);
    let ran = repair(&old, &new, &[]).expect(0);
    let said = ran.text();
    for words in [
        "both superblocks",
        "orders, as the store says for good",
        "2 message(s) go out (again)",
        "whether it was evacuated cannot be known",
        "saved 2 unsettled message(s)",
    ] {
        assert!(said.contains(words), "no {words:?} in:\n{said}");
    }
    // The copy is sent above what the server knows of its name, and loses nothing by that.
    let mut drain = amps();
    drain
        .args(["--json", "drain", "--server", &server.uri, "--store"])
        .arg(&new);
    let report = run(&mut drain).expect(0).report();
    assert_eq!(
        (&report["left"], &report["persisted"]),
        (&0.into(), &2.into())
    );
    let mut subscribe = amps();
    subscribe.args(["subscribe", "--topic", "t", "--from-start", "-n", "5"]);
    let got = run(subscribe.args(["--server", &server.uri])).expect(0);
    assert_eq!(got.text(), "1\n2\n3\n4\n5\n");
}

#[test]
fn a_name_and_numbers_may_be_given() {
    let dir = Dir::new();
    let (whole, new) = (dir.path("whole.store"), dir.path("new.store"));
    publish(&whole, NOBODY, "one\n").expect(5);
    let old = broken(&dir, &whole);
    let mut bytes = fs::read(&old).unwrap();
    bytes[..8192].fill(0);
    fs::write(&old, bytes).unwrap();
    let given = ["--client-name", "mine", "--number-floor", "1000000000"];
    let mut command = amps();
    command
        .args(["--json", "store", "repair"])
        .arg(&old)
        .arg("--to")
        .arg(&new);
    let report = run(command.args(given)).expect(0).report();
    let without = &report["without_superblock"];
    assert_eq!(
        (&without["client_name"], &without["client_name_from"]),
        (&"mine".into(), &"given".into())
    );
    assert_eq!(without["possible_duplicates"], 1);
    assert!(report["next"].as_u64().unwrap() > 1_000_000_000);
    // Without the option, the identity in the file has the name.
    let kept = dir.path("kept.store");
    let text = repair(&old, &kept, &[]).expect(0).text();
    let words = "the client name is orders, as the store says for good";
    assert!(text.contains(words), "{text}");
    // If that is damaged as well, a new name is made up and reported.
    let mut bytes = fs::read(&old).unwrap();
    bytes[8192..12288].fill(0);
    fs::write(&old, bytes).unwrap();
    let other = dir.path("other.store");
    let ran = repair(&old, &other, &[]).expect(0);
    assert!(
        ran.text().contains("the client name is a new one, amps-"),
        "{}",
        ran.text()
    );
    // A name that no server would accept is refused before anything is created.
    let none = dir.path("none.store");
    repair(&old, &none, &["--client-name", "x[y]"]).expect(2);
    assert!(!none.exists());
    // A store with a superblock keeps the name in that.
    repair(&whole, &none, &["--client-name", "mine"])
        .expect(0)
        .says(&["changed nothing"]);
    let info = run(amps().args(["--json", "store", "info"]).arg(&none))
        .expect(0)
        .report();
    assert_eq!(info["client_name"], "orders");
}
