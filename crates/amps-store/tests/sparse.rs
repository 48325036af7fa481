//! Files that claim more than they hold: holes are not read, and no memory is used for them.
//! Bytes read are counted by the store, bytes of the heap by the allocator, for the whole
//! process; so one test runs at a time.

#![allow(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

use std::alloc::System;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use amps_store::inspect::Inspection;
use amps_store::testkit::{Call, FailingCalls, bytes_read, fail_calls};
use amps_store::transfer::{RepairError, repair_to};
use amps_store::{Envelope, OpenError, Options, PublishStore, Recovery, Store};
use cap::Cap;

#[global_allocator]
static HEAP: Cap<System> = Cap::new(System, usize::MAX);
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

const SEGMENT: u64 = 64 << 10;
/// Where the first one begins.
const SEGMENTS_AT: u64 = 12 << 10;
const MESSAGES: u64 = 20;
/// What a look at one of these files may read, several times over and in windows of 64 KiB, and
/// how much memory it may use.
const FEW_BYTES: u64 = 24 << 20;
const LITTLE_MEMORY: usize = 48 << 20;

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs something that must read and keep little.
fn frugally<T>(what: &str, act: impl FnOnce() -> T) -> T {
    let (read, before) = (bytes_read(), HEAP.allocated());
    HEAP.set_limit(before + LITTLE_MEMORY).unwrap();
    let done = act();
    HEAP.set_limit(usize::MAX).unwrap();
    let read = bytes_read() - read;
    assert!(read <= FEW_BYTES, "{what} read {read} bytes");
    done
}

fn options() -> Options {
    Options::new().capacity(1 << 20).segment_size(SEGMENT)
}

/// A store with messages, left behind open.
fn left_behind(dir: &Path) -> PathBuf {
    let path = dir.join("s.store");
    let store = Store::open(&path, options()).unwrap();
    for n in 1..=MESSAGES {
        let payload = vec![n as u8; 1000];
        store.append(&Envelope::publish("t"), &payload).unwrap();
    }
    path
}

fn edit(path: &Path) -> File {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .unwrap()
}

/// Makes both superblocks name this many segments, with a capacity of as many.
fn name_segments(file: &File, segments: u64) {
    for at in [0, 4096] {
        let mut copy = [0; 4096];
        file.read_exact_at(&mut copy, at).unwrap();
        copy[48..56].copy_from_slice(&segments.to_le_bytes());
        copy[56..64].copy_from_slice(&segments.to_le_bytes());
        let crc = crc32fast::hash(&copy[..4092]);
        copy[4092..].copy_from_slice(&crc.to_le_bytes());
        file.write_all_at(&copy, at).unwrap();
    }
}

fn is_sparse(file: &File) -> bool {
    let metadata = file.metadata().unwrap();
    metadata.blocks() * 512 < metadata.len()
}

/// `truncate -s 62G` behind two superblocks once kept a look busy for minutes.
#[test]
fn superblocks_before_62_gib_of_nothing_are_seen_at_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let file = edit(&path);
    for named in [None, Some((62 << 30) / SEGMENT - 1)] {
        file.set_len(8192).unwrap();
        file.set_len(62 << 30).unwrap();
        if let Some(segments) = named {
            name_segments(&file, segments);
        }
        assert!(is_sparse(&file));
        let look = frugally("the look", || Inspection::open(&path).unwrap());
        let info = look.info();
        assert_eq!((info.file_size, info.unsettled), (62 << 30, 0));
        assert_eq!(info.damaged.len(), 1, "{:?}", info.damaged);
        let verified = frugally("verify", || look.verify().unwrap());
        assert!(matches!(verified.refused, Some(OpenError::Broken { .. })));
        assert_eq!(look.records().count(), 0);
        let to = dir.path().join("new");
        let repaired = frugally("the repair", || repair_to(&path, &to));
        assert!(matches!(repaired, Err(RepairError::NothingLeft(_))));
        for recovery in [Recovery::Strict, Recovery::Salvage] {
            let opened = frugally("the open", || {
                Store::open(&path, options().recovery(recovery))
            });
            assert!(matches!(opened, Err(OpenError::Broken { .. })));
        }
    }
}

/// Zeros of any length are an unfinished creation, and all of them were once read.
#[test]
fn a_hole_of_62_gib_is_no_store_at_once() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s.store");
    let file = File::create_new(&path).unwrap();
    file.set_len(62 << 30).unwrap();
    let look = frugally("the look", || Inspection::open(&path).err());
    assert!(matches!(look, Some(OpenError::Missing { .. })));
    // Data at the far end makes it something else, which nobody may overwrite.
    file.write_all_at(b"x", (62 << 30) - 1).unwrap();
    let look = frugally("the look", || Inspection::open(&path).err());
    assert!(matches!(look, Some(OpenError::NotAStore { .. })));
    let opened = frugally("the open", || Store::open(&path, options()).err());
    assert!(matches!(opened, Some(OpenError::NotAStore { .. })));
}

/// A superblock that names 8 TiB, in a file that claims to have them: 134 million segments.
#[test]
fn a_superblock_that_names_terabytes_costs_what_is_there() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let file = edit(&path);
    let segments = (1 << 43) / SEGMENT - 1;
    name_segments(&file, segments);
    let there = file.metadata().unwrap().len();
    let all = SEGMENTS_AT + segments * SEGMENT;
    for len in [there, all] {
        file.set_len(len).unwrap();
        let look = frugally("the look", || Inspection::open(&path).unwrap());
        let info = look.info();
        assert_eq!(info.unsettled, MESSAGES);
        assert_eq!(info.damaged.len(), 1, "{:?}", info.damaged);
        assert_eq!(info.damaged[0].offset, there);
        assert_eq!(info.damaged[0].bytes, all - there);
        let verified = frugally("verify", || look.verify().unwrap());
        assert_eq!(verified.messages, MESSAGES);
        assert!(verified.problems.len() < 10, "{:?}", verified.problems);
        let opened = frugally("the open", || Store::open(&path, options()).err());
        assert!(matches!(opened, Some(OpenError::Damaged { .. })));
    }
    let salvage = options().recovery(Recovery::Salvage);
    let store = frugally("the salvage", || Store::open(&path, salvage).unwrap());
    assert_eq!(store.bounds().unsettled, MESSAGES);
    assert!(
        file.metadata().unwrap().len() < 2 * there,
        "what is a hole is cut off"
    );
    assert!(!is_sparse(&file));
}

/// The holes lie between what is there: one finding, and no memory for segments that are in no
/// file.
#[test]
fn data_at_the_far_end_of_a_hole_is_seen() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let file = edit(&path);
    let there = file.metadata().unwrap().len();
    // 3.7 GiB, as many segments as a store with that much in it may have.
    let segments = 60_000;
    let all = SEGMENTS_AT + segments * SEGMENT;
    name_segments(&file, segments);
    file.set_len(all).unwrap();
    file.write_all_at(b"x", all - 1).unwrap();
    let look = frugally("the look", || Inspection::open(&path).unwrap());
    let info = look.info();
    assert_eq!(info.unsettled, MESSAGES);
    let places: Vec<_> = info.damaged.iter().map(|d| (d.offset, d.bytes)).collect();
    let hole = (there, all - SEGMENT - there);
    assert_eq!(places, [hole, (all - SEGMENT, 64)]);
    let records = frugally("the records", || {
        look.records().filter(|r| r.is_ok()).count()
    });
    assert!(records as u64 > MESSAGES);
    let to = dir.path().join("new");
    let repaired = frugally("the repair", || repair_to(&path, &to).unwrap());
    assert_eq!(repaired.saved, MESSAGES);

    // So far away that keeping account of what lies between would take gigabytes.
    let segments = (1 << 43) / SEGMENT - 1;
    name_segments(&file, segments);
    file.set_len(SEGMENTS_AT + segments * SEGMENT).unwrap();
    let end = SEGMENTS_AT + segments * SEGMENT;
    file.write_all_at(b"x", end - 1).unwrap();
    let look = frugally("the look", || Inspection::open(&path).err());
    assert!(matches!(look, Some(OpenError::Broken { .. })));
    let opened = frugally("the open", || Store::open(&path, options()).err());
    assert!(matches!(opened, Some(OpenError::Broken { .. })));
}

/// `cp --sparse=always` leaves out the zeros. Storing into such a hole once killed the publisher
/// if the disk was full.
#[test]
fn the_holes_of_a_copy_get_their_blocks_before_it_is_mapped() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let original = left_behind(dir.path());
    let bytes = std::fs::read(&original).unwrap();
    let path = dir.path().join("copy.store");
    let file = File::create_new(&path).unwrap();
    for (n, block) in bytes.chunks(4096).enumerate() {
        if block.iter().any(|b| *b != 0) {
            file.write_all_at(block, n as u64 * 4096).unwrap();
        }
    }
    file.set_len(bytes.len() as u64).unwrap();
    assert!(is_sparse(&file), "this file system has no holes");
    assert!(
        Inspection::open(&path)
            .unwrap()
            .verify()
            .unwrap()
            .is_sound()
    );

    fail_calls(Some(FailingCalls {
        call: Call::Allocate,
        after: 0,
        for_ever: false,
        errno: libc::ENOSPC,
    }));
    let refused = Store::open(&path, options()).err();
    assert_eq!(fail_calls(None), 1);
    assert!(
        matches!(refused, Some(OpenError::NoSpace { .. })),
        "{refused:?}"
    );
    assert_eq!(std::fs::read(&path).unwrap(), bytes, "nothing was changed");

    let store = Store::open(&path, options()).unwrap();
    assert!(!is_sparse(&file));
    assert_eq!(store.bounds().unsettled, MESSAGES);
    store.append(&Envelope::publish("t"), b"more").unwrap();
}

/// A file without superblocks is searched for segment headers, and what looks like headers may be
/// made expensive on purpose: as many as there are blocks, each with a key of its own and a
/// record of a megabyte.
#[test]
fn a_search_for_segment_headers_costs_no_more_than_the_file() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("hostile");
    let mut bytes = vec![0x55; 2 << 20];
    for (block, at) in (8192..bytes.len()).step_by(4096).enumerate() {
        let header = &mut bytes[at..at + 128];
        header.fill(0);
        header[..4].copy_from_slice(&(block as u32).to_le_bytes());
        header[4..8].copy_from_slice(b"SEG1");
        header[24] = 1;
        // Length, kind, sequence, ordinal and generation of what could be a record.
        header[68..72].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        (header[72], header[80], header[88], header[96]) = (1, 1, 1, 1);
    }
    std::fs::write(&path, &bytes).unwrap();
    let refused = frugally("the look", || Inspection::open(&path).err());
    assert!(matches!(refused, Some(OpenError::NotAStore { .. })));
    let refused = frugally("the repair", || repair_to(&path, dir.path().join("new")));
    assert!(matches!(
        refused,
        Err(RepairError::Open(OpenError::NotAStore { .. }))
    ));
    assert!(!dir.path().join("new").exists());
}

/// A terabyte of holes behind a store without superblocks.
#[test]
fn a_store_without_superblocks_is_no_longer_than_what_it_holds() {
    let _alone = alone();
    let dir = tempfile::tempdir().unwrap();
    let path = left_behind(dir.path());
    let file = edit(&path);
    file.write_all_at(&[0; 8192], 0).unwrap();
    file.set_len(1 << 40).unwrap();
    let new = dir.path().join("new");
    let report = frugally("the repair", || repair_to(&path, &new)).unwrap();
    assert_eq!(report.saved, MESSAGES);
    let info = Inspection::open(&new).unwrap().info();
    assert!(info.capacity <= 256 << 20, "{}", info.capacity);
    assert!(
        report
            .without_superblock
            .is_some_and(|w| w.segment_size == SEGMENT)
    );
}
