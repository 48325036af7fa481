//! Files made to take long: recovery ends in a time that grows with their size and no faster
//! (`docs/properties.md` P33). Each of these took seconds to half a minute when it grew with the
//! square of it.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use amps_store::inspect::Inspection;
use amps_store::testkit::resign;
use amps_store::{Options, Store};

const FIRST: usize = 12 << 10;
const RECORDS: usize = 64;

/// The bytes of an empty store.
struct Hostile {
    bytes: Vec<u8>,
    segment: usize,
}

impl Hostile {
    fn new(dir: &Path, capacity: u64, segment: u64) -> Self {
        let path = dir.join("fresh");
        let options = Options::new().capacity(capacity).segment_size(segment);
        drop(Store::open(&path, options.preallocate(true)).unwrap());
        Hostile {
            bytes: std::fs::read(path).unwrap(),
            segment: segment as usize,
        }
    }

    fn segments(&self) -> usize {
        (self.bytes.len() - FIRST) / self.segment
    }

    /// Marks a segment as used from this ordinal on; returns where its records go.
    fn used(&mut self, segment: usize, first_ordinal: u64) -> std::ops::Range<usize> {
        let at = FIRST + segment * self.segment;
        self.bytes[at..at + self.segment].fill(0);
        self.bytes[at + 4..at + 8].copy_from_slice(b"SEG1");
        self.bytes[at + 8..at + 16].copy_from_slice(&first_ordinal.to_le_bytes());
        self.bytes[at + 24] = 1;
        at + RECORDS..at + self.segment
    }

    /// Writes a record; returns its end.
    fn record(&mut self, at: usize, kind: u8, sequence: u64, ordinal: u64, body: &[u8]) -> usize {
        let len = 40 + body.len();
        let b = &mut self.bytes[at..at + len];
        b[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        b[8] = kind;
        b[16..24].copy_from_slice(&sequence.to_le_bytes());
        b[24..32].copy_from_slice(&ordinal.to_le_bytes());
        b[32..40].copy_from_slice(&1u64.to_le_bytes());
        b[40..].copy_from_slice(body);
        at + len.next_multiple_of(8)
    }

    fn epoch(&mut self, at: usize, ordinal: u64, follows: u64) -> usize {
        let mut body = [0; 128];
        body[..8].copy_from_slice(&follows.to_le_bytes());
        self.record(at, 7, 0, ordinal, &body)
    }

    fn look(mut self, dir: &Path) -> Inspection {
        resign(&mut self.bytes);
        let path = dir.join("hostile");
        std::fs::write(&path, self.bytes).unwrap();
        Inspection::open(&path).unwrap()
    }
}

#[test]
fn epochs_behind_a_hole() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Hostile::new(dir.path(), 8 << 20, 512 << 10);
    let mut ordinal = 1;
    for segment in 0..file.segments() {
        let mut place = file.used(segment, ordinal + u64::from(segment > 0));
        if segment == 0 {
            place.start = file.record(place.start, 1, 1, 1, &[]) + 64;
        }
        while place.len() >= 168 {
            ordinal += 2;
            place.start = file.epoch(place.start, ordinal, ordinal - 2);
        }
    }
    let seen = file.look(dir.path());
    assert_eq!(seen.info().last_ordinal, ordinal);
}

#[test]
fn sequences_in_any_order() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Hostile::new(dir.path(), 16 << 20, 1 << 20);
    let (mut ordinal, mut x) = (1, 1u64);
    for segment in 0..file.segments() {
        let mut place = file.used(segment, ordinal);
        while place.len() >= 40 {
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            place.start = file.record(place.start, 1, 1 + (x >> 20), ordinal, &[]);
            ordinal += 1;
        }
    }
    let seen = file.look(dir.path());
    assert_eq!(seen.info().unsettled, ordinal - 1);
}

#[test]
fn segments_bridged_one_by_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = Hostile::new(dir.path(), 32 << 20, 8 << 10);
    let segments = file.segments() as u64;
    for segment in 0..segments {
        let place = file.used(segment as usize, 10 * segment + 1);
        let ordinal = 10 * segment + 1;
        match segment {
            0 => file.record(place.start, 1, 1, ordinal, &[]),
            _ => file.epoch(place.start, ordinal, ordinal - 10),
        };
    }
    let seen = file.look(dir.path());
    assert_eq!(seen.info().last_ordinal, 10 * (segments - 1) + 1);
}
