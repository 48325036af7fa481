//! Histories about the start of the log: what happens while it moves, and what a damaged file
//! says about records near it.

use amps_store::testkit::{Cut, Fault, Rng, SimDisk, begin_step, end_step, is_under_way, step};
use amps_store::{
    Envelope, OpenError, Options, PublishStore, Recovery, Rejected, Store, StoredMessage,
};

fn options() -> Options {
    let options = Options::new().capacity(68 << 10).segment_size(8 << 10);
    options.preallocate(true).client_name("model")
}

fn publish(store: &Store) -> u64 {
    publish_of(store, 300)
}

fn publish_of(store: &Store, bytes: usize) -> u64 {
    loop {
        match store.append(&Envelope::publish("t"), &vec![7; bytes]) {
            Ok(at) => return at.sequence,
            Err(error) => assert!(step(store).expect("a good disk"), "{error}"),
        }
    }
}

/// Where the superblock in force says that the log begins (`store-format.md`).
fn start(disk: &SimDisk) -> u64 {
    let bytes = disk.bytes();
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
    let copy = if number(16) >= number(4096 + 16) {
        0
    } else {
        4096
    };
    number(copy + 896)
}

/// Messages come and are settled one by one some time later, except for the first, which keeps
/// marks from being written. Chores are begun, and ended later.
fn live(store: &Store, count: u64) {
    for n in 0..count {
        let last = publish_of(store, 1200);
        if last > 1 + LAG {
            store.settle(&[last - LAG]).expect("settles");
        }
        match n % 3 {
            0 if is_under_way(store) => drop(end_step(store)),
            _ => drop(begin_step(store)),
        }
    }
}

/// How many messages are open at a time: they take half the ring, so that a segment is often
/// freed as soon as the last of its messages is settled.
const LAG: u64 = 15;

/// A late refusal of a message that stands before a start which is just being written. The
/// refusal must bring its message along, even if the write fails, since it may have reached the
/// disk all the same.
pub(crate) fn a_late_refusal_meets_a_start_that_is_written() {
    let (mut met, mut held) = (0, 0);
    let cases = [0, 2, 4].map(|nth| [(false, nth), (true, nth)]);
    for (fails, nth) in cases.into_iter().flatten() {
        for count in 40..200 {
            let disk = SimDisk::new();
            let store = disk.open(options()).expect("creates");
            live(&store, count);
            let before = start(&disk);
            let mut message = StoredMessage::new();
            let is_there = |s: &u64| store.get(*s, &mut message).expect("intact");
            let nth = (2..count - LAG).filter(is_there).nth(nth);
            let (Some(sequence), true) = (nth, is_under_way(&store)) else {
                continue;
            };
            if fails {
                disk.fail(Fault::WriteAround(count % 2));
            }
            let refused = store.reject(sequence, "late", 1).expect("rejects");
            drop(end_step(&store));
            for _ in 0..20 {
                drop(step(&store));
            }
            met += u64::from(start(&disk) > before);
            assert!(store.get(sequence, &mut message).expect("intact"));
            drop(store);
            disk.clear_faults();
            let store = disk.open(options()).expect("opens");
            match refused {
                Rejected::Logged { .. } => {
                    assert_eq!(store.rejections(0, 9).len(), 1);
                    let there = store.get(sequence, &mut message).expect("intact");
                    assert!(there, "{sequence} of {count}, write fails: {fails}");
                }
                Rejected::Held { .. } => held += 1,
                other => panic!("{other:?}"),
            }
        }
    }
    assert!(met > 5, "{met} starts moved, {held} held");
}

/// A store in which the start has moved, all up to `durable` is on the disk, and more is not.
fn moved() -> (SimDisk, u64, u64) {
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    while start(&disk) == 1 || disk.bytes().len() as u64 == 0 {
        let last = publish(&store);
        store.settle_through(last).expect("settles");
        drop(step(&store));
    }
    // Two segments in front that nothing needs, and one that is needed and half durable.
    let before = start(&disk);
    for _ in 0..2 * 8192 / 400 {
        let last = publish(&store);
        store.settle_through(last).expect("settles");
    }
    for _ in 0..5 {
        publish(&store);
    }
    let durable = store.sync().expect("syncs").ordinal;
    while start(&disk) == before {
        let last = publish(&store);
        store.settle(&[last]).expect("settles");
        while step(&store).expect("a good disk") {}
    }
    drop(store);
    (disk, before, durable)
}

/// What was durable when the start moved is damaged, and no mark is left that says so; but the
/// superblock does.
pub(crate) fn what_the_superblock_calls_durable_is_missed() {
    let (disk, _, durable) = moved();
    let start = start(&disk);
    assert!(start > 1 && start <= durable, "{start} of {durable}");
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let bytes = disk.bytes();
    let places = amps_store::testkit::record_places(&bytes).into_iter();
    let ordinal = |at: u64| {
        let at = at as usize + 24;
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"))
    };
    let last = places.filter(|p| (start..=durable).contains(&ordinal(p.0)));
    let (at, _) = last.max_by_key(|p| ordinal(p.0)).expect("some");
    disk.scribble(at + 45, |bytes| bytes[0] ^= 1);
    let opened = disk.open(options()).map(drop);
    assert!(
        matches!(opened, Err(OpenError::Damaged { .. })),
        "{opened:?}"
    );
    // After a salvage it is over.
    let salvage = options().recovery(Recovery::Salvage);
    drop(disk.open(salvage).expect("salvages"));
    drop(disk.open(options()).expect("damage so named is over"));
}

/// The first record of the log is unreadable, and what stands behind it is intact. That is damage
/// if it was durable; otherwise the log ends there, with the rest set aside. An open that dies
/// before it has reported this must leave it to the next.
pub(crate) fn the_first_record_of_the_log_is_missed_until_it_is_told() {
    for synced in [false, true] {
        let disk = SimDisk::new();
        let store = disk.open(options()).expect("creates");
        while start(&disk) == 1 {
            let last = publish(&store);
            store.settle_through(last).expect("settles");
            drop(step(&store));
        }
        for _ in 0..20 {
            publish(&store);
        }
        if synced {
            store.sync().expect("syncs");
        }
        drop(store);
        let first = start(&disk);
        let bytes = disk.bytes();
        let opens = |at: &usize| {
            let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("8"));
            bytes[at + 24] == 1 && number(at + 8) == first
        };
        let segments = (12288..bytes.len()).step_by(8192);
        let segment = segments.filter(|at| opens(at)).max().expect("it is there") as u64;
        // Its header too: the segment is known by nothing but what stands in it.
        for header in [false, true] {
            let disk = disk.fork();
            disk.scribble(segment + 64 + 45, |bytes| bytes[0] ^= 1);
            if header && synced {
                disk.scribble(segment + 9, |bytes| bytes[0] ^= 1);
            }
            disk.keep_moments();
            let strict = disk.open(options());
            let Ok(store) = strict else {
                assert!(synced && matches!(strict, Err(OpenError::Damaged { .. })));
                let salvage = options().recovery(Recovery::Salvage);
                let store = disk.open(salvage).expect("salvages");
                let kept = store.bounds().unsettled;
                drop(store);
                for moment in disk.take_moments() {
                    moment.power_cut(Cut::None, &mut Rng::new(1));
                    match moment.open(options()) {
                        Err(OpenError::Damaged { .. }) => {}
                        Ok(store) => {
                            // It was named in the log, and is told for ever.
                            assert!(!store.report().lost.is_empty(), "{}", store.report());
                            assert_eq!(store.bounds().unsettled, kept);
                        }
                        Err(error) => panic!("{error}"),
                    }
                }
                continue;
            };
            assert!(!synced);
            let aside = store.report().set_aside;
            assert!(aside > 20, "{}", store.report());
            drop(store);
            for moment in disk.take_moments() {
                moment.power_cut(Cut::None, &mut Rng::new(1));
                let store = moment.open(options()).expect("opens");
                assert_eq!(store.bounds().unsettled, 0);
            }
        }
    }
}

/// What was settled and freed was synced all the same: by a close, by whoever asked for a sync, and by
/// the open of a store whose process was killed. That took as long as the device needs for a whole ring.
pub(crate) fn what_is_free_is_not_synced() {
    let ring = 8 << 20;
    let segment = 128 << 10;
    let options = || {
        let options = Options::new().capacity(ring).segment_size(segment);
        options.preallocate(true).client_name("model")
    };
    let laps = || {
        let disk = SimDisk::new();
        let store = disk.open(options()).expect("creates");
        let created = disk.written_back();
        for _ in 0..3 * ring / 1024 {
            let last = publish_of(&store, 900);
            store.settle_through(last).expect("settles");
            drop(step(&store));
        }
        // Freed as far as it goes.
        while step(&store).expect("a good disk") {}
        let synced = disk.written_back() - created;
        assert_eq!(synced, 0, "bytes to go round three times");
        (disk, store)
    };
    let (disk, store) = laps();
    let before = disk.written_back();
    store.sync().expect("syncs");
    let synced = disk.written_back() - before;
    assert!(
        synced <= ring / 2 + segment,
        "{synced} of {ring} bytes by a sync"
    );

    let (disk, store) = laps();
    let before = disk.written_back();
    store.close(store.bounds().last).expect("closes");
    let closed = disk.written_back() - before;
    assert!(closed <= 2 * segment, "{closed} of {ring} bytes by a close");
    drop(store);
    disk.power_cut(Cut::None, &mut Rng::new(1));
    let store = disk.open(options()).expect("opens");
    assert!(store.report().is_clean(), "{}", store.report());

    let (disk, store) = laps();
    drop(store);
    let before = disk.written_back();
    drop(disk.open(options()).expect("opens"));
    let opened = disk.written_back() - before;
    assert!(
        opened <= ring / 2 + segment,
        "{opened} of {ring} bytes by an open"
    );
}

/// A start is being named while settlements come, one by one, and use up what is free: they waited for
/// nothing, and failed. Here they take the segments that are kept for them, and then wait.
pub(crate) fn a_settlement_finds_room_while_a_start_is_written() {
    let mut waited = 0;
    for count in 40..240 {
        let disk = SimDisk::new();
        let store = disk.open(options()).expect("creates");
        live(&store, count);
        for n in 0..60 {
            if !is_under_way(&store) {
                break;
            }
            // Whoever publishes takes what there is to take.
            while n % 8 == 0 && store.append(&Envelope::publish("t"), &[7; 300]).is_ok() {}
            let Some(open) = store.bounds().first_unsettled else {
                break;
            };
            // A late refusal takes more than is charged for its message.
            let settled = store.settle(&[open]).expect("a settlement finds room");
            assert_eq!(settled, 1);
            let refused = store.reject(open, &"no ".repeat(40), 1);
            let refused = refused.expect("a refusal finds room");
            assert!(
                matches!(refused, Rejected::Logged { late: true, .. }),
                "{refused:?}"
            );
            assert!(store.accept(open).expect("an acceptance finds room"));
            waited += u64::from(!is_under_way(&store));
        }
    }
    assert!(waited > 5, "{waited} waited for a superblock");
}
