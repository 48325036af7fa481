//! Many publishers at once on a simulated disk, with power cuts at any moment: everything that
//! was called durable is there, and nothing that was not published.

#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicBool, Ordering};

use amps_store::testkit::{
    Bug, Cut, Rng, SimDisk, begin_step, end_step, last_ordinal, open_by_steps, plant, step,
};
use amps_store::{Batch, Durable, Envelope, OpenError, Options, PublishStore, Store};

const PUBLISHERS: u64 = 8;
const CUTS: u64 = 60;

fn options() -> Options {
    Options::new()
        .capacity(256 << 10)
        .segment_size(16 << 10)
        .client_name("publishers")
}

/// A message that says who wrote it, and by which one can tell that it is complete.
fn payload(publisher: u64, count: u64) -> Vec<u8> {
    let mut rng = Rng::new(publisher << 32 | count);
    let filling = rng.below(400);
    let mut bytes = [publisher.to_le_bytes(), count.to_le_bytes()].concat();
    bytes.extend((0..filling).map(|_| rng.bits() as u8));
    bytes
}

/// What a power cut at this moment leaves: the messages in order, and the last ordinal.
fn recovered(moment: &SimDisk, cut: Cut, rng: &mut Rng) -> (Vec<(u64, Vec<u8>)>, u64) {
    moment.power_cut(cut, rng);
    let store = moment.open(options()).expect("opens");
    (unsettled(&store), store.report().last_ordinal)
}

fn unsettled(store: &Store) -> Vec<(u64, Vec<u8>)> {
    let mut all = Batch::new(usize::MAX, usize::MAX);
    store.read_unsettled(0, u64::MAX, &mut all).expect("intact");
    all.iter()
        .map(|m| (m.sequence, m.payload().to_vec()))
        .collect()
}

/// The messages of each publisher come in its order, each as it was published. None is missing up
/// to the last settled one, and none from there to the last.
fn check(found: &[(u64, Vec<u8>)]) {
    let mut last = [None; PUBLISHERS as usize];
    for pair in found.windows(2) {
        assert_eq!(pair[1].0, pair[0].0 + 1, "a message is missing");
    }
    for (sequence, bytes) in found {
        let word = |at: usize| {
            let bytes = bytes[at..at + 8].try_into().expect("8 bytes");
            u64::from_le_bytes(bytes)
        };
        let (publisher, count) = (word(0), word(8));
        assert_eq!(*bytes, payload(publisher, count), "message {sequence}");
        let before = last[publisher as usize].replace(count);
        assert!(before.is_none_or(|b| b + 1 == count), "{before:?}, {count}");
    }
}

fn publish(store: &Store, publisher: u64, stop: &AtomicBool) {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        match store.append(&Envelope::publish("t"), &payload(publisher, count)) {
            Ok(_) => count += 1,
            Err(error) if error.is_retryable() => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    }
}

/// Does the chores, settles what is old, and syncs, which takes its time: as a helper and a link
/// would.
fn keep_house(store: &Store, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        store.request_sync().expect("a good disk");
        begin_step(store).expect("a good disk");
        let begun = last_ordinal(store);
        let bounds = store.bounds();
        if bounds.unsettled > 100 {
            store.settle_through(bounds.last - 50).expect("settles");
        }
        // Publishers go on while the device works, unless they wait for what it does.
        for _ in 0..1000 {
            if last_ordinal(store) > begun + 1 {
                break;
            }
            std::thread::yield_now();
        }
        end_step(store).expect("a good disk");
    }
}

#[test]
fn nobody_is_told_that_anothers_unsynced_bytes_are_durable() {
    let seed = std::env::var("AMPS_SEED").map_or(5, |s| s.parse().expect("a number"));
    println!("seed {seed}");
    publish_and_cut(seed, None);
}

#[test]
fn a_sync_that_leaves_something_out_is_caught() {
    for bug in [Bug::NoSync, Bug::ShortSync, Bug::SyncVouchesForLater] {
        let caught = std::panic::catch_unwind(|| publish_and_cut(1, Some(bug)));
        assert!(caught.is_err(), "{bug:?} is not caught");
    }
}

/// The bug is planted in what the syncing thread does.
fn publish_and_cut(seed: u64, bug: Option<Bug>) {
    let mut rng = Rng::new(seed);
    let disk = SimDisk::new();
    let store = disk.open(options()).expect("creates");
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for publisher in 0..PUBLISHERS {
            let (store, stop) = (&store, &stop);
            scope.spawn(move || publish(store, publisher, stop));
        }
        scope.spawn(|| {
            plant(bug);
            keep_house(&store, &stop);
        });
        // However this thread ends, the others must end too.
        let judged = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let mut before = Durable::default();
            for n in 0..CUTS {
                while store.durable().ordinal == before.ordinal {
                    std::thread::yield_now();
                }
                let durable = store.durable();
                assert!(durable.ordinal > before.ordinal && durable.sequence >= before.sequence);
                before = durable;
                let moment = disk.fork();
                let cut = [Cut::None, Cut::Pages, Cut::Sectors, Cut::All][n as usize % 4];
                let (found, end) = recovered(&moment, cut, &mut rng);
                assert!(end >= durable.ordinal, "{end} of {durable:?}, {cut:?}");
                check(&found);
                let last = found.last().map_or(u64::MAX, |m| m.0);
                assert!(last >= durable.sequence, "{last} of {durable:?}, {cut:?}");
            }
        }));
        stop.store(true, Ordering::Relaxed);
        if let Err(panic) = judged {
            std::panic::resume_unwind(panic);
        }
    });
}

/// A copy taken while publishers work either shows a legal state or says that it is damaged; it
/// never shows anything that nobody published. They write between any two blocks of the copy.
#[test]
fn a_copy_of_a_live_file_is_legal_or_says_that_it_is_damaged() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, copy) = (dir.path().join("live.store"), dir.path().join("copy.store"));
    let store = open_by_steps(&path, options()).expect("creates");
    let mut rng = Rng::new(7);
    let mut counts = [0; PUBLISHERS as usize];
    let mut live = |messages: u64, rng: &mut Rng| {
        for _ in 0..messages {
            let publisher = rng.below(PUBLISHERS);
            let count = &mut counts[publisher as usize];
            while let Err(error) =
                store.append(&Envelope::publish("t"), &payload(publisher, *count))
            {
                assert!(error.is_retryable(), "{error}");
                assert!(step(&store).expect("a good disk"), "room never comes");
            }
            *count += 1;
            if store.bounds().unsettled > 100 {
                let last = store.bounds().last;
                store.settle_through(last - 50).expect("settles");
            }
            if rng.one_in(20) {
                store.sync().expect("syncs");
            }
        }
    };
    live(1000, &mut rng);
    let (mut legal, mut damaged) = (0, 0);
    for n in 0..CUTS {
        // Between none and about a lap of the ring is written during the copy.
        let most = 1 + n % 20;
        let file = std::fs::File::open(&path).expect("it is there");
        let (mut copied, mut block) = (Vec::new(), [0; 4096]);
        loop {
            let read = file
                .read_at(&mut block, copied.len() as u64)
                .expect("reads");
            if read == 0 {
                break;
            }
            copied.extend_from_slice(&block[..read]);
            live(rng.below(most), &mut rng);
        }
        std::fs::write(&copy, copied).expect("writes");
        match Store::open(&copy, options()) {
            Ok(copied) => {
                check(&unsettled(&copied));
                legal += 1;
            }
            Err(OpenError::Damaged { ranges, .. }) => {
                assert!(!ranges.is_empty());
                damaged += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    println!("{legal} copies are legal, {damaged} say that they are damaged");
    assert!(legal > 3 && damaged > 3, "{legal} legal, {damaged} damaged");
}
