//! `--resume` continues in the input that it knows, and never silently in another one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;
use std::io::Write as _;
use std::process::{Command, Stdio};

use amps_store::{Envelope, Options, PublishStore as _, Store};
use common::{Dir, Ran, Server, amps, ran, run, run_with_input};

struct Rig {
    dir: Dir,
    server: Server,
}

impl Rig {
    fn new() -> Self {
        let dir = Dir::new();
        let server = Server::start(Some(&dir.path("journal")), &[]);
        Rig { dir, server }
    }

    fn command(&self, more: &[&str]) -> Command {
        let mut command = amps();
        command.args([
            "publish",
            "--json",
            "--topic",
            "t",
            "--flush-timeout",
            "30s",
        ]);
        command.args(["--server", &self.server.uri, "--store"]);
        command.arg(self.dir.path("s.store")).args(more);
        command
    }

    /// Publishes a file with this content, which always has the same name.
    fn file(&self, content: &str, more: &[&str]) -> Ran {
        let path = self.dir.file("app.log", content);
        run(self.command(more).arg("--file").arg(path))
    }

    /// Everything that the server has received so far.
    #[track_caller]
    fn assert_there(&self, expected: &str) {
        let count = expected.lines().count().to_string();
        let mut command = amps();
        command.args(["subscribe", "--topic", "t", "--from-start", "--server"]);
        let read = run(command.args([&self.server.uri, "-n", &count])).expect(0);
        assert_eq!(read.text(), expected);
    }
}

const RESUME: &[&str] = &["--resume"];

#[test]
fn the_same_input_and_one_that_grew_go_on_in_silence() {
    let rig = Rig::new();
    rig.file("one\ntwo\n", RESUME).expect(0);
    let again = rig.file("one\ntwo\n", RESUME).expect(0);
    assert_eq!(
        (&again.report()["published"], &*again.stderr),
        (&0.into(), "")
    );
    let grown = rig.file("one\ntwo\nthree\n", RESUME).expect(0);
    assert_eq!(
        (&grown.report()["published"], &*grown.stderr),
        (&1.into(), "")
    );
    assert_eq!(grown.report()["next_line"], 4);
    // Standard input may be the input as well.
    let stdin = b"one\ntwo\nthree\nfour\n";
    run_with_input(&mut rig.command(RESUME), stdin).expect(0);
    rig.assert_there("one\ntwo\nthree\nfour\n");
}

#[test]
fn another_input_under_the_same_name_is_an_error_that_says_what_was_found() {
    let rig = Rig::new();
    rig.file("one\ntwo\nthree\n", RESUME).expect(0);
    for other in [
        "four\n",
        "",
        "four\nfive\nsix\nseven\n",
        // The last line, and the length, are as they were.
        "two\none\nthree\n",
        "one\ntwo\nthree!\n",
    ] {
        let refused = rig.file(other, RESUME).expect(1).says(&[
            "is not the input of the last run",
            "line 3 to end at byte 13",
            "--resume-from",
        ]);
        assert_eq!(refused.report()["published"], 0);
        let refused = run_with_input(&mut rig.command(RESUME), other.as_bytes()).expect(1);
        assert_eq!(refused.report()["published"], 0);
    }
    // With an option that says so.
    let purpose = rig
        .file("four\nfive\nsix\nseven\n", &["--resume-from", "2"])
        .expect(0);
    assert_eq!(purpose.report()["published"], 3);
    let goes_on = "four\nfive\nsix\nseven\neight\n";
    assert_eq!(rig.file(goes_on, RESUME).expect(0).report()["published"], 1);
    rig.assert_there("one\ntwo\nthree\nfive\nsix\nseven\neight\n");
    // There is no such line to continue with.
    rig.file("x\n", &["--resume-from", "9"]).expect(1);
    rig.file("x\n", &["--resume-from", "0"]).expect(2);
}

#[test]
fn a_last_line_that_is_still_written_waits() {
    let rig = Rig::new();
    let first = rig
        .file("one\nthr", RESUME)
        .expect(1)
        .says(&["no newline", "--final-line"]);
    let report = first.report();
    assert_eq!(
        (&report["published"], &report["unfinished"]),
        (&1.into(), &3.into())
    );
    assert_eq!(
        (&report["left"], &report["stopped"]),
        (&0.into(), &false.into())
    );
    rig.file("one\nthree\nfour\n", RESUME).expect(0);
    let complete = ["--resume", "--final-line"];
    let last = rig.file("one\nthree\nfour\nfive", &complete).expect(0);
    assert_eq!(last.report()["published"], 1);
    // From now on it counts as a line, even when its newline comes.
    assert_eq!(
        rig.file("one\nthree\nfour\nfive", RESUME)
            .expect(0)
            .report()["published"],
        0
    );
    assert_eq!(
        rig.file("one\nthree\nfour\nfive\n", RESUME)
            .expect(0)
            .report()["published"],
        0
    );
    rig.file("one\nthree\nfour\nfives\n", RESUME).expect(1);
    rig.assert_there("one\nthree\nfour\nfive\n");
}

#[test]
fn a_line_number_of_an_earlier_version_is_taken_with_a_note() {
    let rig = Rig::new();
    let store = Store::open(rig.dir.path("s.store"), Options::new()).unwrap();
    let envelope = Envelope {
        topic: "t".into(),
        user_tag: b"2"[..].into(),
        ..Envelope::default()
    };
    store.append(&envelope, b"two").unwrap();
    store.close(0).unwrap();
    drop(store);
    let ran = rig
        .file("one\ntwo\nthree\n", RESUME)
        .expect(0)
        .says(&["2 line(s) are passed over"]);
    assert_eq!(ran.report()["published"], 1);
    rig.file("ONE\ntwo\nthree\nfour\n", RESUME).expect(1);
    rig.file("one\ntwo\nthree\nfour\n", RESUME).expect(0);
    rig.assert_there("two\nthree\nfour\n");
}

#[test]
fn a_named_pipe_is_opened_once() {
    let rig = Rig::new();
    let pipe = rig.dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    for (from, published) in [(1, 1000), (1, 1500)] {
        let mut command = rig.command(RESUME);
        command.arg("--file").arg(&pipe);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap();
        // Waits for the reader, and ends the only writer that there is.
        let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
        for n in from..=published {
            writeln!(writer, "{n}").unwrap();
        }
        drop(writer);
        let report = ran(child.wait_with_output().unwrap()).expect(0).report();
        assert_eq!(report["next_line"], published + 1);
    }
    let all: String = (1..=1500).map(|n| format!("{n}\n")).collect();
    rig.assert_there(&all);
}

#[test]
fn an_import_takes_a_named_pipe() {
    let rig = Rig::new();
    rig.file("one\ntwo\n", RESUME).expect(0);
    let mut export = amps();
    export
        .args(["store", "export", "--all"])
        .arg(rig.dir.path("s.store"));
    let lines = run(&mut export).expect(0).stdout;
    let pipe = rig.dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let mut import = amps();
    import
        .args(["--json", "store", "import", "--from"])
        .arg(&pipe);
    let child = import
        .arg(rig.dir.path("new.store"))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut writer = fs::OpenOptions::new().write(true).open(&pipe).unwrap();
    writer.write_all(&lines).unwrap();
    drop(writer);
    let report = ran(child.wait_with_output().unwrap()).expect(0).report();
    assert_eq!(report["settled"], 2);
}

#[test]
fn what_is_refused_later_leaves_no_file_behind() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    let mut bad = vec![];
    for (topic, name) in [
        ("t", "x[y]"),
        ("t", "a\nb"),
        ("t", ""),
        ("", "n"),
        ("a\tb", "n"),
    ] {
        let mut command = amps();
        command.args([
            "publish",
            "--topic",
            topic,
            "--client-name",
            name,
            "--store",
        ]);
        run_with_input(command.arg(&store), b"x\n").expect(2);
        bad.push(store.exists());
    }
    let mut import = amps();
    import
        .args(["store", "import", "--client-name", "x[y]"])
        .arg(&store);
    run_with_input(&mut import, b"").expect(2);
    bad.push(store.exists());
    let line = br#"{"operation":"publish","topic":"a\u0007b","text":"x"}"#;
    let refused = run_with_input(amps().args(["store", "import"]).arg(&store), line).expect(1);
    bad.push(store.exists());
    assert!(
        refused.stderr.contains("nothing was imported"),
        "{}",
        refused.stderr
    );
    assert!(!bad.contains(&true), "{bad:?}");
}
