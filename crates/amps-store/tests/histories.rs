//! Histories that break publish stores, with their numbers in `docs/histories.md`: what happened
//! to the disk, and what must come out.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::BTreeMap;
use std::sync::{Arc, Barrier};

use amps_store::testkit::{Cut, Fault, Rng, SimDisk, step};
use amps_store::{
    AppendError, Batch, Envelope, OpenError, Options, PublishStore, Recovery, Stop, Store,
};

fn options() -> Options {
    Options::new().capacity(4 << 20).client_name("history")
}

fn small() -> Options {
    Options::new().capacity(64 << 10).client_name("history")
}

fn body(sequence: u64, len: usize) -> Vec<u8> {
    let mut body = format!("<message {sequence:08}>").into_bytes();
    body.resize(body.len().max(len), b'.');
    body
}

fn publish(store: &Store, len: usize) -> u64 {
    let next = store.bounds().next;
    let mut envelope = Envelope::publish("orders");
    let tag = next.to_string();
    envelope.user_tag = tag.as_bytes().into();
    let at = store.append(&envelope, &body(next, len)).expect("room");
    assert_eq!(at.sequence, next);
    next
}

fn unsettled(store: &Store) -> BTreeMap<u64, Vec<u8>> {
    let mut batch = Batch::new(usize::MAX, usize::MAX);
    store.read_unsettled(0, u64::MAX, &mut batch).unwrap();
    batch
        .iter()
        .map(|message| (message.sequence, message.payload().to_vec()))
        .collect()
}

fn sequences(store: &Store) -> Vec<u64> {
    unsettled(store).into_keys().collect()
}

fn is_right(store: &Store) {
    for (sequence, payload) in unsettled(store) {
        assert!(
            payload.starts_with(&body(sequence, 0)),
            "message {sequence}"
        );
    }
}

/// Where a message's payload stands on the disk.
fn place(disk: &SimDisk, sequence: u64) -> u64 {
    let bytes = disk.bytes();
    let needle = body(sequence, 0);
    let mut places = bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, w)| *w == needle);
    places.next().expect("it is on the disk").0 as u64
}

#[test]
fn h20_pages_in_the_middle_never_reached_the_disk() {
    for recovery in [Recovery::Strict, Recovery::Salvage] {
        let disk = SimDisk::new();
        let store = disk.open(options().preallocate(true)).unwrap();
        for _ in 1..=1000 {
            publish(&store, 64);
        }
        drop(store);
        let (lost, back) = (place(&disk, 151) - 80, place(&disk, 400) - 80);
        disk.cut_sectors(|at| at < lost || at + 512 > back);
        let store = disk.open(options().recovery(recovery)).unwrap();
        assert_eq!(sequences(&store), (1..=150).collect::<Vec<_>>());
        is_right(&store);
        let report = store.report();
        assert!(matches!(report.stop, Stop::Hole { .. }), "{report}");
        assert_eq!(report.set_aside_sequences, Some((400, 1000)));
        assert!(report.damaged.is_empty());
        assert_eq!(publish(&store, 64), 1001);
    }
}

#[test]
fn h22_the_power_fails_anywhere_between_copying_survivors_and_reusing_their_segment() {
    let mut reused = [0, 0];
    for (steps, reuse) in (0..60).flat_map(|steps| [(steps, false), (steps, true)]) {
        for cut in [Cut::None, Cut::All, Cut::Pages, Cut::Sectors] {
            let disk = SimDisk::new();
            let store = disk.open(small()).unwrap();
            for _ in 1..=5 {
                publish(&store, 100);
            }
            store.settle(&[1, 2, 4]).unwrap();
            store.sync().unwrap();
            let third = place(&disk, 3);
            let fill = || {
                loop {
                    let next = store.bounds().next;
                    match store.append(&Envelope::publish("t"), &body(next, 900)) {
                        Ok(at) => drop(store.settle(&[at.sequence]).unwrap()),
                        Err(AppendError::Full { .. } | AppendError::MakingRoom { .. }) => break,
                        Err(e) => panic!("{e}"),
                    }
                }
            };
            // Until upkeep has to free the segment in which 3 and 5 stand.
            fill();
            for _ in 0..steps {
                if !step(&store).unwrap() {
                    break;
                }
            }
            if reuse {
                fill();
                let stands = disk.bytes()[third as usize..].starts_with(&body(3, 0));
                reused[usize::from(!stands)] += 1;
            }
            drop(store);
            disk.power_cut(cut, &mut Rng::new(steps));
            let store = disk
                .open(small())
                .unwrap_or_else(|e| panic!("{steps} {cut:?}: {e}"));
            let left = sequences(&store);
            assert!(
                left.contains(&3) && left.contains(&5),
                "{steps} {cut:?}: {left:?}"
            );
            assert!(
                !left.contains(&1),
                "{steps} {cut:?}: a durable settlement came back"
            );
            is_right(&store);
        }
    }
    assert!(reused.iter().all(|n| *n > 0), "{reused:?}");
}

#[test]
fn h23_an_old_record_behind_a_hole_never_comes_back() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    for _ in 1..=3 {
        publish(&store, 1200);
    }
    drop(store);
    let (lost, kept) = (place(&disk, 2) - 80, place(&disk, 3) - 80);
    disk.cut_sectors(|at| at < lost || at + 512 > kept);
    let store = disk.open(small()).unwrap();
    assert_eq!(sequences(&store), [1]);
    assert_eq!(store.report().set_aside_sequences, Some((3, 3)));
    let new = publish(&store, 1200);
    assert_eq!(new, 4);
    drop(store);
    for cut in [None, Some(Cut::All), Some(Cut::Sectors), None] {
        if let Some(cut) = cut {
            disk.power_cut(cut, &mut Rng::new(1));
        }
        let store = disk.open(small()).unwrap();
        assert_eq!(sequences(&store), [1, new], "{cut:?}");
        is_right(&store);
    }
}

#[test]
fn h28_the_resume_point_is_that_of_what_is_there() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    for _ in 1..=500 {
        publish(&store, 64);
    }
    // A mark behind line 500 names it.
    store.settle_through(10).unwrap();
    let end = disk.bytes().iter().rposition(|b| *b != 0).unwrap() as u64;
    assert!(end > place(&disk, 500));
    assert_eq!(store.resume_tag().unwrap(), b"500");
    drop(store);
    let lost = place(&disk, 451) - 80;
    let mark = place(&disk, 500) + 64;
    disk.cut_sectors(|at| at < lost || at + 512 > mark);
    let store = disk.open(options()).unwrap();
    assert_eq!(sequences(&store).last(), Some(&450));
    assert_eq!(store.resume_tag().unwrap(), b"450");
}

#[test]
fn h30_what_a_failed_write_back_lost_is_written_again() {
    for seed in 0..50 {
        let disk = SimDisk::new();
        let store = disk.open(options()).unwrap();
        for _ in 1..=100 {
            publish(&store, 64 + seed);
        }
        disk.fail(Fault::Sync(0));
        assert!(store.sync().is_err());
        drop(store);
        // The page cache still shows everything, and takes it for clean.
        let store = disk.open(options()).unwrap();
        assert_eq!(sequences(&store).len(), 100);
        let last = publish(&store, 64);
        assert!(store.sync().unwrap().sequence >= last);
        drop(store);
        disk.power_cut(Cut::None, &mut Rng::new(seed as u64));
        let store = disk.open(options()).unwrap();
        assert_eq!(sequences(&store).len(), 101, "seed {seed}");
        is_right(&store);
    }
}

#[test]
fn h36_records_inside_a_payload_are_payload() {
    let mut bare = 0;
    for shift in 0..8 {
        let disk = SimDisk::new();
        let store = disk.open(options()).unwrap();
        for _ in 1..=20 {
            publish(&store, 100);
        }
        // The log so far, with headers and checksums, becomes the next payload.
        let from = place(&disk, 1) as usize / 8 * 8 - 200;
        let image = disk.bytes()[from - shift..][..4000].to_vec();
        let inner = store
            .append(&Envelope::publish("images"), &image)
            .unwrap()
            .sequence;
        let behind = publish(&store, 100);
        drop(store);
        let payload = {
            let bytes = disk.bytes();
            let first = place(&disk, 20) as usize + 100;
            let found = bytes[first..]
                .windows(64)
                .position(|w| w == &image[..64])
                .unwrap();
            first + found
        };
        // Damage somewhere in its header: the record is lost, and what is in its payload stands
        // free.
        for at in (payload - 64..payload).step_by(3) {
            let before = disk.bytes();
            disk.scribble(at as u64, |bytes| bytes[0] ^= 0x55);
            let opened = disk.open(options().recovery(Recovery::Salvage)).unwrap();
            for (sequence, payload) in unsettled(&opened) {
                if sequence == inner {
                    assert_eq!(payload, image);
                } else {
                    assert!(sequence <= behind, "{sequence} was never published");
                    assert!(payload.starts_with(&body(sequence, 0)));
                }
            }
            assert_eq!(opened.rejections(0, 99), []);
            bare += u64::from(!opened.is_unsettled(inner));
            drop(opened);
            disk.restore(before);
        }
    }
    assert!(bare > 100, "what was in it lay bare {bare} times");
}

#[test]
fn h37_of_many_that_create_a_store_at_once_one_owns_it() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..20 {
        let path = Arc::new(dir.path().join(format!("{round}.store")));
        let barrier = Arc::new(Barrier::new(4));
        let all: Vec<_> = (0..4)
            .map(|_| {
                let (path, barrier) = (path.clone(), barrier.clone());
                std::thread::spawn(move || {
                    barrier.wait();
                    let opened = Store::open(&*path, small());
                    // Nobody may drop its store before all have tried.
                    barrier.wait();
                    match opened {
                        Ok(store) => Some(publish(&store, 10)),
                        Err(OpenError::Locked { .. }) => None,
                        Err(e) => panic!("{e}"),
                    }
                })
            })
            .collect();
        let owners: Vec<u64> = all.into_iter().filter_map(|t| t.join().unwrap()).collect();
        assert_eq!(owners, [1], "round {round}");
        // No orphan: the file at the path is the one that was written.
        assert_eq!(sequences(&Store::open(&*path, small()).unwrap()), [1]);
    }
}

#[test]
fn h38_no_flipped_bit_settles_or_changes_anything_in_silence() {
    let disk = SimDisk::new();
    let store = disk.open(small()).unwrap();
    for _ in 1..=8 {
        publish(&store, 40);
    }
    store.settle(&[2, 5]).unwrap();
    store.reject(3, "no", 1).unwrap();
    store.settle_through(1).unwrap();
    store.sync().unwrap();
    publish(&store, 40);
    drop(store);
    let image = disk.bytes();
    let store = disk.open(small()).unwrap();
    let (expected, refused) = (unsettled(&store), store.rejections(0, 9));
    drop(store);
    let mut outcomes = [0; 3];
    for at in (0..12288 + 8192).filter(|at| image[*at] != 0 || at % 61 == 0) {
        for bit in 0..8 {
            disk.restore(image.clone());
            disk.scribble(at as u64, |bytes| bytes[0] ^= 1 << bit);
            match disk.open(small()) {
                Ok(store) => {
                    let same = unsettled(&store) == expected && store.rejections(0, 9) == refused;
                    let report = store.report();
                    let told = !report.is_clean()
                        || !report.ignored.is_empty()
                        || matches!(
                            report.stop,
                            Stop::Torn { .. } | Stop::Stale { .. } | Stop::Hole { .. }
                        );
                    assert!(same || told, "bit {bit} of byte {at}: {report}");
                    for (sequence, payload) in unsettled(&store) {
                        assert_eq!(
                            Some(&payload),
                            expected.get(&sequence),
                            "bit {bit} of byte {at}"
                        );
                    }
                    outcomes[usize::from(!same)] += 1;
                }
                Err(
                    OpenError::Damaged { .. }
                    | OpenError::Broken { .. }
                    | OpenError::NotAStore { .. },
                ) => outcomes[2] += 1,
                Err(e) => panic!("bit {bit} of byte {at}: {e}"),
            }
        }
    }
    // Every kind of outcome occurred, so the check is not vacuous.
    assert!(outcomes.iter().all(|n| *n > 0), "{outcomes:?}");
}
