//! The file grows with the backlog, and is shortened when the backlog is gone.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use amps_store::testkit::{Cut, Fault, Rng, SimDisk, has_failed, idle, intact_messages, step};
use amps_store::{
    AppendError, Batch, Envelope, Growth, MessageRef, Options, PublishStore, Rejected, Store,
    StoredMessage,
};

/// What stands before the first segment.
const SUPERBLOCKS: u64 = 12 << 10;
const SEGMENT: u64 = 8192;
/// Length of a new store.
const SHORTEST: u64 = SUPERBLOCKS + 4 * SEGMENT;
/// For waits that take a deadline. There is none, since a busy machine is no failure.
const NO_LIMIT: Duration = Duration::from_secs(365 * 86_400);

fn options() -> Options {
    Options::new()
        .capacity(40 * SEGMENT)
        .segment_size(SEGMENT)
        .client_name("growth")
}

fn payload(sequence: u64) -> Vec<u8> {
    format!("{sequence} ").repeat(80).into_bytes()
}

fn publish(store: &Store) -> Result<u64, AppendError> {
    let next = store.bounds().next;
    let at = store.append(&Envelope::publish("t"), &payload(next))?;
    assert_eq!(at.sequence, next);
    Ok(next)
}

/// Publishes until not even growth gives room.
fn fill(store: &Store) {
    let deadline = Instant::now() + NO_LIMIT;
    loop {
        let next = store.bounds().next;
        let bounds = store.bounds();
        if bounds.live_bytes + 2 * payload(next).len() as u64 > bounds.limit_bytes {
            return;
        }
        store
            .append_wait(&Envelope::publish("t"), &payload(next), deadline)
            .expect("room comes");
    }
}

fn unsettled(store: &Store) -> Vec<u64> {
    let mut batch = Batch::new(usize::MAX, usize::MAX);
    store.read_unsettled(0, u64::MAX, &mut batch).unwrap();
    let whole = |message: MessageRef<'_>| {
        assert_eq!(message.payload(), payload(message.sequence));
        message.sequence
    };
    batch.iter().map(whole).collect()
}

/// Does everything there is to do for a store that nobody publishes to for a while.
fn chores(store: &Store) {
    idle(store);
    let mut turns = 0;
    while step(store).unwrap() {
        turns += 1;
        assert!(turns < 10_000, "upkeep never ends");
    }
}

fn len(path: &Path) -> u64 {
    std::fs::metadata(path).unwrap().len()
}

#[test]
fn a_backlog_that_is_gone_gives_its_room_back_while_the_store_runs() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let store = Store::open(&path, options()).unwrap();
    for _ in 0..3 {
        fill(&store);
        assert!(len(&path) > 35 * SEGMENT, "{} bytes are full", len(&path));
        // One message stays unsettled and one is refused; both have to move to the front of the
        // file.
        let (stubborn, refused) = (store.bounds().next - 7, store.bounds().next - 3);
        let rejected = store.reject(refused, "no", 1).unwrap();
        assert!(matches!(rejected, Rejected::Logged { .. }));
        let settled: Vec<u64> = unsettled(&store)
            .into_iter()
            .filter(|s| *s != stubborn)
            .collect();
        store.settle(&settled).unwrap();
        // However long the store's thread takes on a machine that has other things to do.
        while len(&path) > SHORTEST + SEGMENT {
            idle(&store);
            std::thread::yield_now();
        }
        assert_eq!(unsettled(&store), [stubborn]);
        let rejections = store.rejections(0, usize::MAX);
        assert_eq!(rejections.len(), 1);
        let mut message = StoredMessage::new();
        assert!(store.get(refused, &mut message).unwrap(), "the original");
        assert_eq!(message.payload(), payload(refused));
        store.settle(&[stubborn]).unwrap();
        assert!(store.accept(refused).unwrap());
    }
    for _ in 0..20 {
        publish(&store).unwrap();
    }
    let before = unsettled(&store);
    drop(store);
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(unsettled(&store), before);
}

#[test]
fn a_preallocated_file_keeps_its_length_over_restarts() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let whole = SUPERBLOCKS + 38 * SEGMENT;
    drop(Store::open(&path, options().preallocate(true)).unwrap());
    for clean in [true, false, true] {
        // The option counts at creation; later the file knows it.
        let store = Store::open(&path, options()).unwrap();
        assert_eq!(len(&path), whole);
        fill(&store);
        store.settle_through(store.bounds().last).unwrap();
        store.sync().unwrap();
        if clean {
            store.close(store.bounds().last).unwrap();
        }
        drop(store);
        assert_eq!(len(&path), whole);
    }
}

#[test]
fn a_closed_store_is_no_longer_than_it_has_to_be() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    while publish(&store).is_ok() || step(&store).unwrap() {}
    store.settle_through(store.bounds().last).unwrap();
    // Freed, but not given back yet.
    let grown = disk.bytes().len();
    idle(&store);
    while disk.bytes().len() == grown {
        assert!(step(&store).unwrap(), "it gives back");
    }
    store.close(store.bounds().last).unwrap();
    assert_eq!(disk.bytes().len() as u64, SHORTEST);
    let store = disk.open(options()).unwrap();
    assert!(store.report().is_clean(), "{}", store.report());
}

#[test]
fn a_crash_at_any_step_of_a_return_leaves_a_store_that_opens() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    while publish(&store).is_ok() || step(&store).unwrap() {}
    let stubborn = store.bounds().last / 2;
    let others: Vec<u64> = unsettled(&store)
        .into_iter()
        .filter(|s| *s != stubborn)
        .collect();
    store.settle(&others).unwrap();
    idle(&store);
    let mut lengths = std::collections::BTreeSet::new();
    loop {
        let copy = SimDisk::new();
        copy.restore(disk.bytes());
        lengths.insert(disk.bytes().len());
        let opened = copy.open(options()).unwrap();
        assert_eq!(unsettled(&opened), [stubborn]);
        // What grows in its place must show nothing of what stood there.
        while publish(&opened).is_ok() || step(&opened).unwrap() {}
        let before = unsettled(&opened);
        drop(opened);
        assert_eq!(unsettled(&copy.open(options()).unwrap()), before);
        if !step(&store).unwrap() {
            break;
        }
    }
    let last = lengths.first().copied();
    assert_eq!(last, Some((SHORTEST + SEGMENT) as usize));
    assert!(lengths.len() > 30, "cut in pieces: {lengths:?}");
}

#[test]
fn a_backlog_at_the_border_does_not_move_the_end_of_the_file() {
    let mut moved = 0;
    for base in (0..100).step_by(3) {
        let disk = SimDisk::new();
        let store = disk.open(options()).unwrap();
        let published = |n: u64| {
            for _ in 0..n {
                publish(&store).unwrap();
                chores(&store);
            }
        };
        published(base);
        // Up and down by as much as one segment holds, wherever the border is.
        for wave in 1..=8 {
            let mut lengths = Vec::new();
            for _ in 0..40 {
                published(wave);
                lengths.push(disk.bytes().len());
                let newest = store.bounds().last;
                store.settle_through(newest - base).unwrap();
                chores(&store);
                lengths.push(disk.bytes().len());
            }
            let moves = lengths.windows(2).filter(|w| w[0] != w[1]).count();
            assert!(moves <= 3, "base {base}, wave {wave}: {lengths:?}");
            moved += moves;
        }
    }
    assert!(moved > 20, "no border was met: {moved}");
}

/// The superblock that names fewer segments may be in force although writing it failed, so
/// whatever is appended then must be where a recovery looks.
#[test]
fn a_return_that_fails_half_way_takes_nothing_along() {
    let mut met = 0;
    for failing in 0..2 {
        let disk = SimDisk::new();
        let store = disk.open(options()).unwrap();
        while publish(&store).is_ok() || step(&store).unwrap() {}
        // The oldest message stays, so its segment cannot be cut off, but what is behind it can.
        store.settle_through(store.bounds().last).unwrap();
        idle(&store);
        let mut frozen = disk.bytes();
        while !has_failed(&store) {
            // Only a return of segments writes the superblock here.
            disk.clear_faults();
            disk.fail(Fault::WriteAround(failing));
            frozen = disk.bytes();
            if !step(&store).unwrap_or(true) {
                break;
            }
        }
        assert!(has_failed(&store), "no superblock was written");
        met += u32::from(frozen != disk.bytes());
        while publish(&store).is_ok() {}
        let before = unsettled(&store);
        assert!(!before.is_empty(), "appends go on");
        drop(store);
        disk.clear_faults();
        assert_eq!(unsettled(&disk.open(options()).unwrap()), before);
    }
    assert!(met > 0);
}

#[test]
fn an_end_that_cannot_be_cut_off_is_cut_off_by_the_next_open() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    while publish(&store).is_ok() || step(&store).unwrap() {}
    let grown = disk.bytes().len();
    disk.fail(Fault::Truncate(0));
    store.settle_through(store.bounds().last).unwrap();
    chores(&store);
    assert_eq!(disk.planned_faults(), 0);
    assert_eq!(disk.bytes().len(), grown);
    assert!(!has_failed(&store), "the store goes on");
    publish(&store).unwrap();
    let before = unsettled(&store);
    drop(store);
    let store = disk.open(options()).unwrap();
    assert_eq!(unsettled(&store), before);
    assert_eq!(disk.bytes().len() as u64, SHORTEST);
}

/// What is set aside stays until the ring needs its place, since a repair can still save it. A
/// return of the free end of the file once cut it off.
#[test]
fn a_return_leaves_what_is_set_aside_at_the_end_of_the_file() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    // A long file, in whose last segments stands what came after the last sync.
    let unsynced = || store.bounds().last - store.durable().sequence;
    let is_near_the_end = || {
        let bytes = disk.bytes();
        let messages = intact_messages(&bytes).into_iter();
        let newest = messages.max_by_key(|m| m.sequence).unwrap();
        newest.offset + 8 * SEGMENT > bytes.len() as u64
    };
    while store.bounds().last < 60 || unsynced() < 5 || !is_near_the_end() {
        assert!(store.bounds().last < 2000, "it never is");
        if publish(&store).is_err() {
            assert!(step(&store).unwrap());
        }
        if unsynced() > 20 {
            store.sync().unwrap();
        }
        store
            .settle_through(store.bounds().last.saturating_sub(60))
            .unwrap();
    }
    let (lost, last) = (store.durable().sequence + 1, store.bounds().last);
    drop(store);
    let lost_one = intact_messages(&disk.bytes())
        .into_iter()
        .find(|m| m.sequence == lost);
    disk.scribble(lost_one.unwrap().offset + 50, |bytes| bytes[0] ^= 1);
    let store = disk.open(options()).unwrap();
    let set_aside = || {
        let all = intact_messages(&disk.bytes());
        all.iter()
            .filter(|m| (lost + 1..=last).contains(&m.sequence))
            .count() as u64
    };
    let behind = last - lost;
    assert!(behind > 3 && store.report().set_aside >= behind, "{behind}");
    assert_eq!(set_aside(), behind);
    let long = disk.bytes().len() as u64;
    assert!(
        long > SHORTEST + 4 * SEGMENT,
        "{long} bytes could be returned"
    );
    // The log moves to the front of the file, where everything else is free.
    for _ in 0..60 {
        publish(&store).unwrap();
        store.settle_through(store.bounds().last).unwrap();
        chores(&store);
    }
    assert_eq!(set_aside(), behind);
    store.close(store.bounds().last).unwrap();
    assert_eq!(set_aside(), behind);
}

/// As `store-format.md` says: needed bytes and charges stay within two segments less than there
/// are, each without its header, the four largest records that may begin it, and the largest
/// record.
#[test]
fn two_segments_stay_free_for_the_log_itself() {
    for (capacity, size, usable) in [
        (68 << 10, 8192, 8192 - 64 - 4 * 168 - 2048),
        (40 * SEGMENT, SEGMENT, 8192 - 64 - 4 * 168 - 2048),
        (1 << 20, 64 << 10, (64 << 10) - 64 - 4 * 168 - (16 << 10)),
    ] {
        let disk = SimDisk::new();
        let options = Options::new()
            .capacity(capacity)
            .segment_size(size)
            .preallocate(true);
        let store = disk.open(options).unwrap();
        let segments = (capacity - SUPERBLOCKS) / size;
        assert_eq!(store.bounds().limit_bytes, (segments - 2) * usable);
        // And no publish beyond that is accepted.
        let (mut taken, mut refused) = (0, None);
        while refused.is_none() {
            match store.append(&Envelope::publish("t"), &[7; 100]) {
                Ok(_) => taken += 1,
                Err(error) => refused = Some(error),
            }
        }
        assert!(
            matches!(refused, Some(AppendError::Full { .. })),
            "{refused:?}"
        );
        let bounds = store.bounds();
        assert!(bounds.live_bytes <= bounds.limit_bytes);
        let one = bounds.live_bytes / taken;
        assert!(
            bounds.live_bytes + one > bounds.limit_bytes,
            "it could take one more"
        );
    }
}

/// A file of three segments once took no message any more when its first one was full, although
/// everything was settled.
#[test]
fn a_new_file_goes_round_for_ever_on_a_full_disk() {
    let small = Options::new().capacity(40 * SEGMENT);
    for options in [small.clone(), small.max_message(SEGMENT / 4 - 1024)] {
        let disk = SimDisk::new();
        let store = disk.open(options).unwrap();
        store.raise_grant(1 << 20).unwrap();
        let length = disk.bytes().len();
        disk.limit(Some(length as u64));
        for _ in 0..400 {
            while let Err(error) = publish(&store) {
                assert!(error.is_retryable(), "{error}");
                assert!(step(&store).unwrap(), "room comes: {error}");
            }
            store.settle_through(store.bounds().last).unwrap();
            chores(&store);
        }
        assert_eq!(disk.bytes().len(), length);
    }
}

/// The sizes that the README promises, on a real disk: files of their full length without a hole.
#[test]
fn a_new_store_costs_what_the_readme_says() {
    use std::os::unix::fs::MetadataExt;
    let dir = tempfile::tempdir().unwrap();
    let cost = |path: &Path| {
        let metadata = std::fs::metadata(path).unwrap();
        assert!(metadata.blocks() * 512 >= metadata.len(), "no hole");
        metadata.len()
    };
    let path = dir.path().join("default");
    let store = Store::open(&path, Options::new()).unwrap();
    assert_eq!(cost(&path), SUPERBLOCKS + (16 << 20));
    assert_eq!(store.largest_record(), 1 << 20);
    let largest = vec![7; (1 << 20) - 200];
    store.append(&Envelope::publish("t"), &largest).unwrap();

    let path = dir.path().join("small");
    let options = Options::new().max_message(64 << 10);
    let store = Store::open(&path, options).unwrap();
    assert_eq!(cost(&path), 1052 << 10);
    let largest = vec![7; 64 << 10];
    let envelope = Envelope::publish("a topic of ninety-nine levels/".repeat(30));
    assert!(envelope.topic.len() == 900);
    store.append(&envelope, &largest).unwrap();
    assert_eq!(cost(&path), 1052 << 10);
    let beyond = vec![7; (64 << 10) + 1024];
    let refused = store.append(&Envelope::publish("t"), &beyond).unwrap_err();
    assert!(matches!(refused, AppendError::TooLarge { .. }), "{refused}");
    assert!(refused.to_string().contains("max_message"), "{refused}");
    drop(store);
    // Existing files keep their geometry.
    let store = Store::open(&path, Options::new().max_message(1 << 20)).unwrap();
    assert_eq!(store.largest_record(), (64 << 10) + 1024);
}

/// The capacity in bytes of so many segments.
fn capacity(segments: u64) -> u64 {
    SUPERBLOCKS + segments * SEGMENT
}

/// Publishes everything that fits.
fn fill_up(store: &Store) -> u64 {
    while publish(store).is_ok() || step(store).unwrap() {}
    store.bounds().unsettled
}

/// A full store could once not be given more room: its messages had to be moved to another one.
#[test]
fn a_larger_capacity_is_for_good() {
    for preallocate in [false, true] {
        let disk = SimDisk::new();
        let options = || options().preallocate(preallocate);
        let store = disk.open(options()).unwrap();
        assert_eq!(store.report().growth, None);
        let full = fill_up(&store);
        store.close(0).unwrap();
        let larger = Growth::Grown {
            from: capacity(38),
            to: capacity(100),
        };
        // Bytes that are less than a segment do not count.
        let grown = options().grow_to(capacity(100) + SEGMENT - 1);
        let store = disk.open(grown.clone()).unwrap();
        assert_eq!(store.report().growth, Some(larger));
        assert_eq!(store.bounds().unsettled, full);
        if preallocate {
            assert_eq!(disk.bytes().len() as u64, capacity(100));
        }
        let more = fill_up(&store);
        assert!(more > 2 * full, "{more} after {full}");
        assert!(disk.bytes().len() as u64 <= capacity(100));
        let limit = store.bounds().limit_bytes;
        drop(store);
        // The file knows its capacity: nobody has to ask again, and asking again changes nothing.
        for options in [options(), grown.clone(), options()] {
            let store = disk.open(options).unwrap();
            assert_eq!(store.report().growth, None);
            assert_eq!(
                (store.bounds().unsettled, store.bounds().limit_bytes),
                (more, limit)
            );
            assert!(publish(&store).is_err(), "it is full");
        }
        // It does not shrink.
        let store = disk.open(options().grow_to(capacity(50))).unwrap();
        let kept = Growth::Larger {
            capacity: capacity(100),
            asked: capacity(50),
        };
        assert_eq!(store.report().growth, Some(kept));
        assert_eq!(store.bounds().limit_bytes, limit);
    }
}

#[test]
fn a_larger_capacity_is_in_force_or_not_whenever_the_power_fails() {
    for preallocate in [false, true] {
        for closed in [false, true] {
            let disk = SimDisk::new();
            let options = || options().preallocate(preallocate);
            let store = disk.open(options()).unwrap();
            let before = fill_up(&store) / 2;
            store.settle_through(before).unwrap();
            let (small, kept) = (store.bounds().limit_bytes, unsettled(&store));
            store.sync().unwrap();
            match closed {
                true => store.close(0).unwrap(),
                false => drop(store),
            }
            disk.keep_moments();
            let store = disk.open(options().grow_to(capacity(100))).unwrap();
            let large = store.bounds().limit_bytes;
            assert!(large > 2 * small);
            drop(store);
            let (mut moments, mut met) = (disk.take_moments(), [0, 0]);
            moments.push(disk.fork());
            assert!(moments.len() > 2);
            for (n, moment) in moments.iter().enumerate() {
                let cuts = [Cut::None, Cut::All, Cut::Pages, Cut::Sectors];
                for (seed, cut) in (0..).zip(cuts.into_iter().cycle().take(16)) {
                    let disk = moment.fork();
                    disk.power_cut(cut, &mut Rng::new(seed));
                    let store = disk.open(options()).unwrap();
                    let limit = store.bounds().limit_bytes;
                    let what = format!("{cut:?} before call {n}, seed {seed}");
                    assert!(limit == small || limit == large, "{limit}, {what}");
                    assert_eq!(unsettled(&store), kept, "{what}");
                    met[usize::from(limit == large)] += 1;
                    drop(store);
                    let store = disk.open(options()).unwrap();
                    assert_eq!(store.bounds().limit_bytes, limit, "{what}, opened again");
                    // If it says that it has room, it must take messages.
                    let full = fill_up(&store);
                    assert_eq!(full > before * 3, limit == large, "{full} messages, {what}");
                    drop(store);
                    assert_eq!(disk.open(options()).unwrap().bounds().unsettled, full);
                }
            }
            assert!(met[0] > 0 && met[1] > 0, "{met:?}");
        }
    }
}

/// Whoever asks for more room than there is keeps a store that works.
#[test]
fn a_capacity_that_the_disk_has_no_room_for_stays_as_it_was() {
    for preallocate in [false, true] {
        let disk = SimDisk::new();
        let options = || options().preallocate(preallocate);
        let store = disk.open(options()).unwrap();
        publish(&store).unwrap();
        let limit = store.bounds().limit_bytes;
        drop(store);
        let len = disk.bytes().len();
        // No room as far as that can be told in advance, or no room when it is needed.
        for room in [Some(capacity(99)), None] {
            if room.is_none() && !preallocate {
                continue;
            }
            disk.limit(room);
            if room.is_none() {
                disk.fail(Fault::Reserve(0));
            }
            let store = disk.open(options().grow_to(capacity(100))).unwrap();
            let growth = store.report().growth.clone();
            let Some(Growth::Refused { capacity: kept, .. }) = growth else {
                panic!("{growth:?}");
            };
            assert_eq!((kept, store.bounds().limit_bytes), (capacity(38), limit));
            assert_eq!(disk.planned_faults(), 0);
            publish(&store).unwrap();
            drop(store);
            assert_eq!(disk.bytes().len(), len);
            let store = disk.open(options()).unwrap();
            assert_eq!(
                (store.report().growth.clone(), store.bounds().limit_bytes),
                (None, limit)
            );
        }
    }
    // Nor is address space requested that no store can have.
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    drop(Store::open(&path, options()).unwrap());
    for bytes in [u64::MAX, 1 << 50, 8 << 40] {
        let store = Store::open(&path, options().grow_to(bytes)).unwrap();
        let growth = store.report().growth.clone();
        assert!(matches!(growth, Some(Growth::Refused { .. })), "{growth:?}");
        assert_eq!(len(&path), SHORTEST);
    }
    // On a real disk, mapped for the larger capacity.
    for preallocate in [false, true] {
        let path = dir.path().join(format!("{preallocate}"));
        drop(Store::open(&path, options().preallocate(preallocate)).unwrap());
        let store = Store::open(&path, options().grow_to(capacity(60))).unwrap();
        let before = store.bounds().limit_bytes;
        fill(&store);
        assert!(len(&path) > capacity(55) && len(&path) <= capacity(60));
        let kept = unsettled(&store);
        drop(store);
        let store = Store::open(&path, options()).unwrap();
        assert_eq!(
            (unsettled(&store), store.bounds().limit_bytes),
            (kept, before)
        );
    }
}
