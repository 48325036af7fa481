//! A file of more than 8 GiB, sparse except for what a store wrote into it: every offset of its
//! log is beyond 4 GiB.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::format::{
    BLOCK, Epoch, Kind, Mark, Opening, RECORD_HEADER, RecordHeader, Reserved, SEGMENT_HEADER,
    SEGMENTS_AT, SegmentHeader, Superblock, VERSION, commit_word, record_crc,
};
use crate::inspect::{Filter, Inspection};
use crate::{Batch, Envelope, Options, PublishStore, Store};

const KEY: u32 = 0x5EED_0008;
const SIZE: u64 = 1 << 27;
const SEGMENTS: u64 = 66;
/// The segment that holds the log: it begins at 6 GiB.
const USED: u64 = 48;

/// An empty log behind a clean close, far into the file.
fn make(file: &File) -> std::io::Result<()> {
    file.set_len(SEGMENTS_AT + SEGMENTS * SIZE)?;
    let superblock = Superblock {
        version: VERSION,
        segments_at: SEGMENTS_AT,
        counter: 1,
        store_id: 1,
        key: KEY,
        segment_size: SIZE,
        segments: SEGMENTS,
        cap_segments: SEGMENTS,
        grant: 0,
        number_floor: 0,
        rebase_from: 0,
        rebase_delta: 0,
        generation: 1,
        closed_at: 2,
        retired: false,
        preallocated: true,
        owner_pid: 1,
        owner_host: "host".into(),
        client_name: "large".into(),
        start: 1,
        durable: 0,
        opening: Opening::default(),
        superseded: false,
        reserved: Reserved::default(),
    };
    file.write_all_at(&superblock.encode(), 0)?;
    file.write_all_at(&superblock.encode(), BLOCK)?;
    for segment in 0..SEGMENTS {
        let at = SEGMENTS_AT + segment * SIZE;
        let header = match segment {
            USED => SegmentHeader::Used { first_ordinal: 1 },
            _ => SegmentHeader::Free,
        };
        file.write_all_at(&header.encode(KEY, at, 1), at)?;
    }
    let mark = |clean| Mark {
        clean,
        next: 1,
        oldest_needed: 1,
        ..Mark::default()
    };
    let mut at = SEGMENTS_AT + USED * SIZE + SEGMENT_HEADER;
    let (mut epoch, mut close) = (Vec::new(), Vec::new());
    let opening = Epoch {
        first_after: 1,
        mark: mark(false),
        ..Epoch::default()
    };
    opening.encode(&mut epoch);
    mark(true).encode(&mut close);
    for (ordinal, kind, body) in [(1, Kind::Epoch, epoch), (2, Kind::Mark, close)] {
        let header = RecordHeader {
            len: (RECORD_HEADER + body.len()) as u32,
            kind,
            quiet: false,
            envelope_len: 0,
            sequence: 0,
            ordinal,
            generation: 1,
        };
        let mut bytes = [header.encode().to_vec(), body].concat();
        bytes.resize(header.stride() as usize, 0);
        let word = commit_word(record_crc(KEY, at, &bytes[4..]), header.len);
        bytes[..8].copy_from_slice(&word.to_le_bytes());
        file.write_all_at(&bytes, at)?;
        at += header.stride();
    }
    Ok(())
}

#[test]
fn a_log_beyond_four_gigabytes_is_written_found_and_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("large.store");
    if let Err(error) = make(&File::create(&path).unwrap()) {
        println!("skipped: this file system takes no file of 8 GiB: {error}");
        return;
    }
    let open = || Store::open_existing(&path, Options::new()).unwrap();
    let store = open();
    for n in 1..=50u64 {
        let at = store.append(&Envelope::publish("t"), &[n as u8; 5000]);
        assert_eq!(at.unwrap().sequence, n);
    }
    store.settle_through(10).unwrap();
    store.reject(30, "no", 1).unwrap();
    store.sync().unwrap();
    store.close(50).unwrap();
    drop(store);
    let look = Inspection::open(&path).unwrap();
    let offsets: Vec<u64> = look
        .messages(Filter::all())
        .map(|m| m.unwrap().offset)
        .collect();
    assert!(offsets.len() >= 40 && offsets.iter().all(|o| *o > 6 << 30));
    let store = open();
    let mut all = Batch::new(usize::MAX, usize::MAX);
    store.read_unsettled(0, u64::MAX, &mut all).unwrap();
    let found: Vec<_> = all.iter().map(|m| (m.sequence, m.payload())).collect();
    let bodies: Vec<_> = (0..=50u8).map(|n| [n; 5000]).collect();
    let expected = (11..=50u64).filter(|n| *n != 30);
    let expected: Vec<_> = expected.map(|n| (n, &bodies[n as usize][..])).collect();
    assert_eq!(found, expected);
    assert_eq!(store.rejections(0, 9).len(), 1);
}
