//! A damaged store, a file that is no store, and a store of a newer program: three different
//! words and exit codes, whichever command looks.
#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use amps_store::{Envelope, Options, PublishStore as _, Store};
use common::{Dir, NOBODY, amps, run};

/// A closed store with one message.
fn sound(path: PathBuf) -> PathBuf {
    let store = Store::open(&path, Options::new().capacity(64 << 10)).unwrap();
    store.append(&Envelope::publish("t"), b"payload").unwrap();
    store.close(0).unwrap();
    path
}

/// A copy of a sound store with something else in it.
fn other(dir: &Dir, name: &str, change: impl FnOnce(&mut Vec<u8>)) -> PathBuf {
    let path = sound(dir.path(name));
    let mut bytes = fs::read(&path).unwrap();
    change(&mut bytes);
    fs::write(&path, bytes).unwrap();
    path
}

/// Puts a byte into both superblocks, under checksums that fit.
fn superblocks(bytes: &mut [u8], at: usize, byte: u8) {
    for copy in bytes[..8192].chunks_exact_mut(4096) {
        copy[at] = byte;
        let crc = crc32(&copy[..4092]);
        copy[4092..].copy_from_slice(&crc.to_le_bytes());
    }
}

fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, byte: &u8| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xEDB8_8320 & (crc & 1).wrapping_neg())
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Every command that opens a store or looks at one.
fn commands(dir: &Dir, file: &Path) -> Vec<Command> {
    let new = dir.path("new.store");
    let mut all: Vec<Command> = Vec::new();
    let mut add = |words: &[&str], last: &[&Path]| {
        let mut command = amps();
        command.arg("--json").args(words).args(last);
        all.push(command);
    };
    for looks in ["info", "list", "dump", "verify", "map", "export"] {
        add(&["store", looks], &[file]);
    }
    add(&["store", "get", "1"], &[file]);
    add(&["store", "info", "--html"], &[&dir.path("page"), file]);
    add(&["store", "repair", "--to"], &[&new, file]);
    for looks in ["list", "export"] {
        add(&["failed", looks], &[file]);
    }
    for acts in ["show", "accept", "requeue", "give-up"] {
        add(&["failed", acts, "1"], &[file]);
    }
    let to_nobody = ["--server", NOBODY, "--flush-timeout", "0s", "--store"];
    add(&[&["drain"], &to_nobody[..]].concat(), &[file]);
    add(
        &[&["publish", "--topic", "t"], &to_nobody[..]].concat(),
        &[file],
    );
    for command in &mut all {
        command.stdin(Stdio::null());
    }
    all
}

/// They were once all "damaged", with code 3, or some other error, with code 1.
#[test]
fn no_store_and_a_newer_one_are_told_apart_by_every_command() {
    let dir = Dir::new();
    let directory = dir.path("directory");
    fs::create_dir(&directory).unwrap();
    let letter = dir.file("letter", "Dear reader,\n".repeat(1000));
    let version = other(&dir, "version", |b| superblocks(b, 8, 0xEE));
    let features = other(&dir, "features", |b| superblocks(b, 15, 0x80));
    // One copy is enough to know.
    let half = other(&dir, "half", |b| {
        superblocks(b, 8, 0xEE);
        b[4096] ^= 1;
    });
    for (file, code, word, says) in [
        (&letter, 9, "not_a_store", "is not a publish store"),
        (&directory, 9, "not_a_store", "is not a publish store"),
        (&version, 10, "newer_format", "newer format"),
        (&features, 10, "newer_format", "newer format"),
        (&half, 10, "newer_format", "newer format"),
    ] {
        let before = fs::read(file).ok();
        for mut command in commands(&dir, file) {
            let is_data = command.get_args().any(|word| word == "export");
            let ran = run(&mut command).expect(code).says(&[says]);
            assert!(!ran.text().contains("damaged"), "{command:?}");
            if !is_data {
                let report = ran.report();
                assert_eq!(report["error"], word, "{command:?}");
                assert_eq!(
                    (&report["event"], &report["code"]),
                    (&"error".into(), &code.into())
                );
            }
        }
        assert_eq!(fs::read(file).ok(), before, "it is as it was");
        assert!(!dir.path("new.store").exists() && !dir.path("page").exists());
    }
}

/// There is no way back, and once nothing was said about it, not even by a command that changed
/// nothing else.
#[test]
fn a_store_that_gets_a_newer_format_is_told_so() {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../amps-store/tests/golden");
    let dir = Dir::new();
    let path = dir.path("old.store");
    let to_nobody = [
        "drain",
        "--server",
        NOBODY,
        "--flush-timeout",
        "0s",
        "--store",
    ];
    for (words, code) in [(&["failed", "accept", "99999"][..], 1), (&to_nobody, 5)] {
        fs::copy(golden.join("unclean.store"), &path).unwrap();
        let mut look = amps();
        let looked = run(look.args(["store", "info"]).arg(&path)).expect(0);
        assert!(
            !looked.stderr.contains("older one"),
            "a look changes nothing"
        );
        for says in [true, false] {
            let mut command = amps();
            let ran = run(command.arg("--json").args(words).arg(&path)).expect(code);
            let told = ran.stderr.contains("an older one cannot open it any more");
            assert_eq!(told, says, "{words:?}: {}", ran.stderr);
            let objects = ran.objects();
            let converted = objects.iter().any(|object| object["converted_from"] == 1);
            assert_eq!(converted, says && code == 5, "{objects:?}");
        }
    }
}

/// A store whose superblocks are intact was once called no store, because of what had become of
/// the rest.
#[test]
fn a_store_that_no_open_takes_is_called_damaged() {
    let dir = Dir::new();
    let cut = other(&dir, "cut", |b| b.truncate(8192 + 100));
    for words in [
        &["drain", "--server", NOBODY, "--store"][..],
        &["store", "verify"],
    ] {
        let mut command = amps();
        let ran = run(command.arg("--json").args(words).arg(&cut));
        let ran = ran.expect(3).says(&["is damaged", "cut off"]);
        assert_eq!(ran.report()["error"], "damaged");
    }
}

/// Its segment headers show that it is a store of this format, and `repair` saves it.
#[test]
fn a_store_without_superblocks_is_damaged_for_all_but_repair() {
    let dir = Dir::new();
    let headless = other(&dir, "headless", |b| {
        b[100] ^= 1;
        b[4096 + 100] ^= 1;
    });
    let before = fs::read(&headless).unwrap();
    for mut command in commands(&dir, &headless) {
        let has = |what: &str| command.get_args().any(|word| word == what);
        if has("repair") {
            run(&mut command).expect(0);
            continue;
        }
        let is_data = has("export");
        let ran = run(&mut command).expect(3).says(&["damaged", "repair"]);
        if !is_data {
            let report = ran.report();
            assert_eq!(report["error"], "damaged", "{command:?}");
            assert_eq!(report["code"], 3, "{command:?}");
        }
    }
    assert_eq!(fs::read(&headless).unwrap(), before, "it is as it was");
}

/// Once this was only in a report that nobody printed.
#[test]
fn a_file_system_that_keeps_no_promise_is_told() {
    let dir = Dir::new();
    let memory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (store, page) = (memory.path().join("s.store"), dir.path("page"));
    let to_nobody = ["--server", NOBODY, "--flush-timeout", "0s", "--store"];
    let says = ["tmpfs", "survives no power cut"];
    let mut publish = amps();
    publish
        .args(["--json", "publish", "--topic", "t"])
        .args(to_nobody);
    let published = run(publish.arg(&store).stdin(Stdio::null()));
    let published = published.expect(0).says(&says);
    let mut told = published.objects().into_iter();
    assert!(told.any(|object| object["event"] == "file_system" && object["name"] == "tmpfs"));
    run(amps().arg("drain").args(to_nobody).arg(&store))
        .expect(0)
        .says(&says);
    let info = run(amps().args(["--json", "store", "info"]).arg(&store));
    assert_eq!(info.expect(0).says(&says).report()["file_system"], "tmpfs");
    run(amps()
        .args(["store", "info", "--html"])
        .arg(&page)
        .arg(&store))
    .expect(0);
    assert!(fs::read_to_string(&page).unwrap().contains("tmpfs"));
    let repaired = memory.path().join("new");
    run(amps()
        .args(["store", "repair", "--to"])
        .arg(&repaired)
        .arg(&store))
    .expect(0)
    .says(&says);
}

/// Nine bytes of text once had "both superblock copies" that were blank.
#[test]
fn a_short_file_is_told_as_one() {
    let dir = Dir::new();
    let path = dir.path("notes.txt");
    fs::write(&path, "nine byte").unwrap();
    let mut info = amps();
    let ran = run(info.args(["store", "info"]).arg(&path)).expect(9);
    let words = "is not a publish store (it is shorter than a superblock)";
    assert!(ran.stderr.contains(words), "{}", ran.stderr);
}
