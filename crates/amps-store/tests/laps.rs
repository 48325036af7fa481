//! A thousand turns of the ring, with records of every size that may be in it.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::collections::{BTreeMap, VecDeque};

use amps_store::testkit::{Rng, SimDisk, encode_envelope, record_places, step};
use amps_store::{AppendError, Batch, Envelope, Options, PublishStore, Store, StoredMessage};

const SEGMENT: u64 = 8 << 10;
/// Where the first segment begins.
const SEGMENTS_AT: u64 = 12 << 10;
/// A quarter of a segment.
const LARGEST: usize = 2048;
/// The bytes of a record that are not envelope or payload.
const HEADER: usize = 40;
const LAPS: u64 = 1000;

fn payload(sequence: u64, len: usize) -> Vec<u8> {
    let mut rng = Rng::new(sequence);
    (0..len).map(|_| rng.bits() as u8).collect()
}

fn unsettled(store: &Store) -> VecDeque<(u64, Vec<u8>)> {
    let mut all = Batch::new(usize::MAX, usize::MAX);
    store.read_unsettled(0, u64::MAX, &mut all).expect("intact");
    all.iter()
        .map(|m| (m.sequence, m.payload().to_vec()))
        .collect()
}

fn append(store: &Store, body: &[u8]) -> u64 {
    loop {
        match store.append(&Envelope::publish("t"), body) {
            Ok(at) => return at.sequence,
            Err(AppendError::Full { .. } | AppendError::MakingRoom { .. }) => {
                assert!(step(store).expect("a good disk"), "room never comes");
            }
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_thousand_laps_keep_what_is_unsettled_whatever_its_size() {
    let envelope = encode_envelope(&Envelope::publish("t")).expect("encodes");
    let most = LARGEST - HEADER - envelope.len();
    let disk = SimDisk::new();
    let options = Options::new()
        .capacity(68 << 10)
        .segment_size(SEGMENT)
        .preallocate(true)
        .client_name("laps");
    let mut store = disk.open(options.clone()).expect("creates");
    let (mut rng, mut kept, mut written) = (Rng::new(43), VecDeque::new(), 0);
    // How many records of a segment end this many bytes before its end.
    let mut ends: BTreeMap<u64, u64> = BTreeMap::new();
    let (mut lap, mut sizes) = (0, [0; 3]);
    while lap < LAPS {
        // The largest, an empty one, one byte more or less than a multiple of eight, or any.
        let len = match rng.below(8) {
            0 => most,
            1 => 0,
            2 => most - 1,
            3 => 8 * rng.below(200) as usize + [0, 1, 7][rng.below(3) as usize],
            _ => rng.below(400) as usize,
        };
        if rng.one_in(50) {
            let error = store.append(&Envelope::publish("t"), &vec![0; most + 1]);
            let error = error.expect_err("one byte too many");
            assert!(
                matches!(error, AppendError::TooLarge { max, .. } if max == LARGEST as u64),
                "{error}"
            );
        }
        sizes[0] += u64::from(len == most);
        sizes[1] += u64::from(len == 0);
        sizes[2] += 1;
        let body = payload(store.bounds().next, len);
        let sequence = append(&store, &body);
        kept.push_back((sequence, body));
        if kept.len() > 3 + rng.below(5) as usize {
            let (settled, _) = kept.pop_front().expect("some");
            store.settle_through(settled).expect("settles");
        }
        written += (HEADER + envelope.len() + len) as u64;
        if written < 7 * SEGMENT {
            continue;
        }
        (lap, written) = (lap + 1, 0);
        for (at, stride) in record_places(&disk.bytes()) {
            let end = SEGMENT - (at + stride - SEGMENTS_AT - 1) % SEGMENT - 1;
            *ends.entry(end).or_default() += 1;
        }
        assert_eq!(unsettled(&store), kept, "lap {lap}");
        if lap % 20 == 0 {
            drop(store);
            store = disk.open(options.clone()).expect("opens");
            assert_eq!(unsettled(&store), kept, "lap {lap}, opened again");
        }
    }
    assert!(sizes[0] > 1000 && sizes[1] > 1000, "{sizes:?}");
    // Copies and epochs may take the room that publishes leave at the end of a segment. So
    // publishes end at a border somewhat before it, exactly or one step short; the counts show
    // where that is.
    let room = |end: u64| ends.get(&end).copied().unwrap_or(0);
    let border = ends.iter().find(|(_, n)| **n > 20).map(|(end, _)| *end);
    let border = border.expect("records end at the same place again and again");
    println!("{} records, the border is at {border}", sizes[2]);
    assert!(room(border) > 20 && room(border + 8) > 20, "{ends:?}");
}

/// A message that outlived many laps stood in a segment of much younger ones. When that segment
/// was reused, only the sequences published into it were once looked for.
#[test]
fn a_copy_among_younger_messages_is_forgotten_with_its_segment() {
    let store = Store::memory(Options::new().capacity(68 << 10)).unwrap();
    let envelope = Envelope::publish("t");
    let old = store.append(&envelope, &[1; 100]).unwrap().sequence;
    let mut message = StoredMessage::new();
    let lap = || {
        for _ in 0..2000 {
            let young = store.append(&envelope, &[2; 100]).unwrap().sequence;
            store.settle(&[young]).unwrap();
        }
    };
    lap();
    assert!(store.get(old, &mut message).unwrap());
    assert_eq!(message.payload(), [1; 100]);
    store.settle(&[old]).unwrap();
    lap();
    assert!(!store.get(old, &mut message).unwrap());
}
