//! How large a store's file is, and how large the messages that it takes.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs;
use std::path::Path;
use std::process::Command;

use common::{Dir, NOBODY, Ran, amps, run, run_with_input};

fn publish(store: &Path, options: &[&str], input: &[u8]) -> Ran {
    let mut command = amps();
    command.args(["publish", "--topic", "t", "--server", NOBODY]);
    command.args(["--flush-timeout", "100ms", "--store"]);
    command.arg(store).args(options);
    run_with_input(&mut command, input)
}

fn store(arguments: &[&str], file: &Path) -> Command {
    let mut command = amps();
    command.args(["--json", "store"]).args(arguments).arg(file);
    command
}

fn line(bytes: usize) -> Vec<u8> {
    let mut line = vec![b'x'; bytes];
    line.push(b'\n');
    line
}

/// A hundred publishers of small messages once took 6.4 GB of disk before the first message.
#[test]
fn a_store_for_small_messages_is_small_and_takes_them() {
    let dir = Dir::new();
    let path = dir.path("small.store");
    let small = ["--max-message", "64KiB"];
    publish(&path, &small, &line(64 << 10)).expect(5);
    assert_eq!(fs::metadata(&path).unwrap().len(), 1052 << 10);
    // A larger message is refused with helpful words, and what was taken before is kept.
    publish(&path, &[], &line(66 << 10))
        .expect(5)
        .says(&["too large", "--max-message"]);
    // What an existing file cannot provide is reported.
    publish(&path, &["--max-message", "1MiB"], b"small\n")
        .expect(5)
        .says(&["66560 bytes", "a new file"]);
    let info = run(&mut store(&["info"], &path)).expect(0).report();
    assert_eq!(info["unsettled"], 2);

    // By default it is 16 MiB, in four segments.
    let path = dir.path("usual.store");
    publish(&path, &[], &line(1_000_000)).expect(5);
    let info = run(&mut store(&["info"], &path)).expect(0).report();
    assert_eq!(
        (&info["segments"], &info["segment_bytes"]),
        (&4.into(), &(4 << 20).into())
    );
    assert_eq!(info["file_bytes"], 12288 + (16 << 20));
}

/// Messages of any size can be moved into a store that is made for them.
#[test]
fn large_messages_are_published_and_imported_into_a_store_made_for_them() {
    let dir = Dir::new();
    let (path, lines) = (dir.path("large.store"), dir.path("lines"));
    publish(&path, &["--max-message", "2MiB"], &line(2 << 20)).expect(5);
    fs::write(&lines, run(&mut store(&["export"], &path)).expect(0).stdout).unwrap();
    let import = |name: &str, options: &[&str]| {
        let mut command = store(&["import"], &dir.path(name));
        command.arg("--from").arg(&lines).args(options);
        run(&mut command)
    };
    import("usual", &[]).expect(1).says(&["--max-message"]);
    assert!(!dir.path("usual").exists());
    let report = import("made", &["--max-message", "2MiB"])
        .expect(0)
        .report();
    assert_eq!(report["imported"], 1);
    // The same in memory.
    let mut command = amps();
    command.args(["publish", "--topic", "t", "--server", NOBODY]);
    command.args(["--flush-timeout", "100ms", "--max-message", "2MiB"]);
    run_with_input(&mut command, &line(2 << 20)).expect(5);

    // A store that is impossible leaves no file.
    let path = dir.path("none.store");
    publish(&path, &["--max-message", "64MiB"], b"x\n")
        .expect(2)
        .says(&["33553408"]);
    let options = ["--max-message", "1MiB", "--capacity", "8MiB"];
    publish(&path, &options, b"x\n")
        .expect(2)
        .says(&["capacity of at least"]);
    assert!(!path.exists());
}
