//! What can be checked on a real file without a power cut: all of its blocks are there before
//! they are used, and no page of a record is dirty once a sync has returned.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use amps_store::testkit::{Bug, Mapping, open_by_steps, plant, step};
use amps_store::{Envelope, Options, PublishStore};

/// The most bytes that may be dirty after a sync: the page with the mark that records it.
fn mark() -> u64 {
    let maps = fs::read_to_string("/proc/self/smaps").expect("Linux");
    let page = maps.lines().find_map(|l| l.strip_prefix("KernelPageSize:"));
    figure(page.expect("a page has a size")).max(16 << 10)
}

/// The bytes that a line of `smaps` tells.
fn figure(text: &str) -> u64 {
    let number = text.split_whitespace().next().expect("a figure");
    number.parse::<u64>().expect("a number") << 10
}

fn options() -> Options {
    Options::new()
        .capacity(mark() << 6)
        .segment_size(mark() << 2)
        .client_name("device")
}

/// Bytes of this file's mapping that are dirty, as the kernel sees them.
fn dirty(path: &Path) -> u64 {
    let name = path.to_str().expect("UTF-8");
    let maps = fs::read_to_string("/proc/self/smaps").expect("Linux");
    let mapping = maps
        .lines()
        .skip_while(|line| !line.ends_with(name))
        .skip(1)
        .take_while(|line| {
            line.split(' ')
                .next()
                .is_some_and(|word| word.ends_with(':'))
        });
    let dirty = |line: &str| {
        let shared = line.strip_prefix("Shared_Dirty:");
        shared.or(line.strip_prefix("Private_Dirty:")).map(figure)
    };
    mapping.filter_map(dirty).sum()
}

/// Whether the file system of this directory has pages that a sync can clean; one in memory does
/// not.
fn has_clean_pages(dir: &Path) -> bool {
    let path = dir.join("control");
    let mut mapping = Mapping::create(&path, 64 << 10).expect("creates");
    let syncer = mapping.syncer();
    mapping.write(0, &[1; 64 << 10]);
    let before = dirty(&path);
    syncer.sync().expect("syncs");
    let after = dirty(&path);
    before == 64 << 10 && after == 0
}

fn a_sync_leaves_nothing_dirty() {
    let dir = tempfile::tempdir().expect("a directory");
    if !has_clean_pages(dir.path()) {
        println!("skipped: this file system does not tell clean pages from dirty ones");
        return;
    }
    let path = dir.path().join("s.store");
    let store = open_by_steps(&path, options().preallocate(true)).expect("creates");
    // The first sync is of the whole file, the next ones of parts of it.
    store.sync().expect("syncs");
    for size in [300, 3000, 1000] {
        for _ in 0..mark() * 5 / 2 / size {
            store
                .append(&Envelope::publish("t"), &vec![7; size as usize])
                .expect("room");
        }
        let before = dirty(&path);
        assert!(before > 2 * mark(), "{before} bytes are dirty");
        let durable = store.sync().expect("syncs");
        assert_eq!(durable.sequence, store.bounds().last);
        let after = dirty(&path);
        assert!(after <= mark(), "{after} bytes are dirty after a sync");
    }
}

fn every_block_is_there() {
    let dir = tempfile::tempdir().expect("a directory");
    for preallocate in [false, true] {
        let path = dir.path().join(format!("{preallocate}.store"));
        let all_there = || {
            let file = fs::metadata(&path).expect("it is there");
            assert!(file.blocks() * 512 >= file.len(), "{file:?}");
            file.len()
        };
        let store = open_by_steps(&path, options().preallocate(preallocate)).expect("creates");
        let created = all_there();
        let mut untaken = 0;
        while untaken < 100 {
            if store.append(&Envelope::publish("t"), &[7; 4000]).is_err() {
                untaken += 1;
            }
            step(&store).expect("a good disk");
            all_there();
        }
        assert_eq!(preallocate, all_there() == created, "it grew");
    }
}

#[test]
fn no_page_is_dirty_after_a_sync() {
    a_sync_leaves_nothing_dirty();
}

#[test]
fn every_block_is_there_before_it_is_used() {
    every_block_is_there();
}

#[test]
fn a_sync_that_does_not_wait_and_a_file_without_blocks_are_caught() {
    let dir = tempfile::tempdir().expect("a directory");
    let sync: fn() = a_sync_leaves_nothing_dirty;
    let mut planted = vec![(Bug::SparseFile, every_block_is_there as fn())];
    if has_clean_pages(dir.path()) {
        planted.push((Bug::AsyncSync, sync));
    }
    let loud = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let missed: Vec<Bug> = planted
        .into_iter()
        .filter(|(bug, test)| {
            plant(Some(*bug));
            let passed = catch_unwind(AssertUnwindSafe(test)).is_ok();
            plant(None);
            passed
        })
        .map(|(bug, _)| bug)
        .collect();
    std::panic::set_hook(loud);
    assert_eq!(missed, [], "not caught");
}
