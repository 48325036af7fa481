use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::calls::{Call, watch_calls};
use crate::inspect::{Filter, Inspection};
use crate::report::Stop;
use crate::testkit::Rng;
use crate::{Envelope, Options, PublishStore, Store};

/// Ends the writer, also when the reader fails.
struct Ending<'a>(&'a AtomicBool);

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Read where it stands, without an image: places are reused under the reader's eyes.
#[test]
fn a_large_busy_store_gives_whole_messages_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(512 << 10).segment_size(64 << 10);
    let store = Store::open(&path, options.preallocate(true)).unwrap();
    let payload = |n: u64| format!("{n} ").repeat((n % 50) as usize + 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 1;
            while !stop.load(Ordering::Relaxed) {
                let envelope = Envelope::publish("t");
                match store.append(&envelope, payload(n).as_bytes()) {
                    Ok(_) => n += 1,
                    // Number 1 stays, so that its copy moves on with every lap.
                    Err(_) => drop(store.settle(&(2..n).collect::<Vec<_>>()).unwrap()),
                }
            }
        });
        let _ending = Ending(&stop);
        let mut through = 0;
        for _ in 0..100 {
            let seen = Inspection::open(&path).unwrap();
            assert!(seen.view.image.is_none());
            assert_eq!((seen.info().damaged, seen.info().set_aside), (vec![], 0));
            assert!(seen.report().next > through, "the log went back");
            through = seen.report().next - 1;
            let mut before = 0;
            for message in seen.messages(Filter::new()) {
                let message = message.unwrap();
                assert!(message.sequence > before);
                assert_eq!(message.payload, payload(message.sequence).as_bytes());
                assert!(
                    before > 0 || message.sequence == 1,
                    "the stubborn one is there"
                );
                before = message.sequence;
            }
        }
    });
}

/// A publisher that is logged on raises its grant again and again, each time with a write
/// of the superblock: the look of a large store never had the same one before and after,
/// and gave up.
#[test]
fn a_large_store_whose_grant_rises_all_the_time_can_be_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(1 << 20).segment_size(64 << 10);
    let store = Store::open(&path, options.preallocate(true)).unwrap();
    let payload = |n: u64| format!("{n} ").repeat((n % 50) as usize + 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(600);
            let mut n = 0;
            while !stop.load(Ordering::Relaxed) {
                store.raise_grant(n + 20).unwrap();
                for _ in 0..20 {
                    n += 1;
                    store
                        .append_wait(&Envelope::publish("t"), payload(n).as_bytes(), deadline)
                        .unwrap();
                }
                store.settle_through(n.saturating_sub(1000)).unwrap();
            }
        });
        let _ending = Ending(&stop);
        let (mut through, mut granted) = (0, 0);
        for _ in 0..100 {
            let seen = Inspection::open(&path).unwrap();
            assert!(seen.view.image.is_none());
            let info = seen.info();
            assert_eq!((&info.damaged, info.set_aside), (&vec![], 0));
            assert!(info.grant >= granted && info.last_ordinal >= through);
            (granted, through) = (info.grant, info.last_ordinal);
            let bounds = seen.bounds();
            let unsettled = bounds.first_unsettled.map_or(0, |f| bounds.last + 1 - f);
            assert_eq!(bounds.unsettled, unsettled, "a hole among the unsettled");
            assert!(seen.verify().unwrap().is_sound());
            for message in seen.messages(Filter::new()) {
                let message = message.unwrap();
                assert_eq!(message.payload, payload(message.sequence).as_bytes());
            }
        }
        assert!(granted > 0);
    });
}

/// Damage under a publisher that never pauses is told all the same, and is not taken for
/// what the publisher is just writing.
#[test]
fn damage_in_a_large_busy_store_is_told() {
    use std::os::unix::fs::FileExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(1 << 20).segment_size(64 << 10);
    let store = Store::open(&path, options.preallocate(true)).unwrap();
    store.append(&Envelope::publish("t"), b"stays").unwrap();
    store.sync().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // The only unsettled one, which has its first segment for itself until it is copied.
    let place = 8192 + 64;
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut n = 1;
            while !stop.load(Ordering::Relaxed) {
                if n < 500 {
                    n = store
                        .append(&Envelope::publish("t"), b"more")
                        .unwrap()
                        .sequence;
                }
                store.raise_grant(store.numbers().grant + 1).unwrap();
            }
        });
        let _ending = Ending(&stop);
        while store.bounds().last < 500 {
            std::thread::yield_now();
        }
        store.sync().unwrap();
        file.write_all_at(&[0xEE; 64], place + 200).unwrap();
        let seen = Inspection::open(&path).unwrap();
        assert_eq!(seen.info().damaged.len(), 1, "{:?}", seen.info());
    });
}

/// A backlog comes and goes: the file grows and is cut under the reader's eyes.
#[test]
fn a_store_whose_file_is_cut_is_never_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(512 << 10).segment_size(8 << 10);
    let store = Store::open(&path, options).unwrap();
    let payload = |n: u64| format!("{n} ").repeat((n % 50) as usize + 1);
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let deadline = Instant::now() + Duration::from_secs(600);
            while !stop.load(Ordering::Relaxed) {
                // Half of the cap; then only the first one of the backlog stays.
                let first = store.bounds().next;
                while store.bounds().live_bytes < 256 << 10 {
                    let next = store.bounds().next;
                    let body = payload(next);
                    store
                        .append_wait(&Envelope::publish("t"), body.as_bytes(), deadline)
                        .unwrap();
                }
                store.settle_through(first - 1).unwrap();
                let last = store.bounds().last;
                store
                    .settle(&(first + 1..=last).collect::<Vec<_>>())
                    .unwrap();
                // Longer than it stays: it is cut before the next backlog comes.
                while std::fs::metadata(&path).unwrap().len() > 128 << 10 {
                    assert!(Instant::now() < deadline, "the file stays long");
                    std::thread::yield_now();
                }
            }
        });
        let _ending = Ending(&stop);
        let mut lengths = std::collections::BTreeSet::new();
        let (mut through, mut looks) = (0, 0);
        // Until the file was seen to move.
        let deadline = Instant::now() + Duration::from_secs(600);
        while looks < 200 || lengths.len() <= 3 {
            looks += 1;
            assert!(Instant::now() < deadline, "the file stays: {lengths:?}");
            let seen = Inspection::open(&path).unwrap();
            lengths.insert(seen.view.len);
            assert_eq!((seen.info().damaged, seen.info().set_aside), (vec![], 0));
            assert!(seen.report().next > through, "the log went back");
            through = seen.report().next - 1;
            for message in seen.messages(Filter::new()) {
                let message = message.unwrap();
                assert_eq!(message.payload, payload(message.sequence).as_bytes());
            }
        }
    });
}

/// A publisher that writes in the middle of a look, at any read of it: the same thread, so that a
/// seed says where.
struct Writer {
    store: Store,
    random: Rng,
    payload: usize,
}

impl Writer {
    fn append(&mut self) -> u64 {
        let payload = vec![7; self.random.below(self.payload as u64) as usize];
        loop {
            match self.store.append(&Envelope::publish("t"), &payload) {
                Ok(at) => return at.sequence,
                Err(error) => assert!(self.store.step().unwrap(), "{error}"),
            }
        }
    }

    /// Appends so many, keeping only the last few unsettled.
    fn burst(&mut self, messages: u64) {
        for _ in 0..messages {
            let last = self.append();
            self.store.settle_through(last.saturating_sub(9)).unwrap();
            while self.random.below(3) > 0 && self.store.step().unwrap() {}
        }
    }
}

/// The log as it was when the look began, or later, whenever the publisher writes.
#[test]
fn a_look_shows_nothing_older_than_its_beginning() {
    let seeds = std::env::var("AMPS_SEEDS").map_or(60, |n| n.parse().unwrap());
    let first = std::env::var("AMPS_SEED").map_or(0, |n| n.parse().unwrap());
    let (mut shown, mut moved) = (0, 0);
    for seed in first..first + seeds {
        let mut random = Rng::new(seed);
        // The larger ones are read where they stand, without an image.
        let options = match random.below(2) {
            0 => Options::new().capacity(64 << 10),
            _ => Options::new().capacity(256 << 10).segment_size(16 << 10),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let options = options.preallocate(random.below(2) == 0);
        let store = Store::open_by_steps(&path, &options).unwrap();
        let segment = Inspection::open(&path).unwrap().info().segment_size;
        let payload = segment as usize / 8;
        let mut writer = Writer {
            store,
            random: Rng::new(!seed),
            payload,
        };
        let lap = 30 + random.below(200);
        writer.burst(lap);
        let before = writer.store.bounds();
        let store = writer.store.clone();
        // When it writes, by reads of the look, and how much.
        let mut plan: Vec<(u64, u64)> = (0..1 + random.below(6))
            .map(|_| (random.below(40), [1, 20, 60, 120][random.below(4) as usize]))
            .collect();
        plan.sort_unstable();
        let mut reads = 0;
        watch_calls(Some(Box::new(move |call| {
            if call == Call::Read {
                for (_, messages) in plan.extract_if(.., |(at, _)| *at <= reads) {
                    writer.burst(messages);
                }
                reads += 1;
            }
        })));
        let seen = Inspection::open(&path);
        watch_calls(None);
        // A store may be too busy for a look; it is at rest by the end of this one.
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let (bounds, info) = (seen.bounds(), seen.info());
        assert_eq!((info.damaged, info.set_aside), (vec![], 0), "seed {seed}");
        assert!(
            bounds.next >= before.next && bounds.floor >= before.floor,
            "seed {seed}: {bounds:?} is older than {before:?}"
        );
        for message in seen.messages(Filter::new()) {
            let sequence = message.unwrap().sequence;
            assert!(
                sequence > before.floor,
                "seed {seed}: {sequence} was settled"
            );
        }
        shown += 1;
        moved += u64::from(store.bounds().next > before.next);
    }
    assert!(moved * 2 > shown, "{moved} of {shown} looks met a writer");
}

/// A hole at which a record was just being written; then the log went on for more than a lap. What
/// stood before it, in segments that are free by now, was taken for the log as it is, with messages
/// open that had been settled.
#[test]
fn a_prefix_whose_segments_are_free_by_now_is_not_shown() {
    use std::os::unix::fs::FileExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(256 << 10).segment_size(16 << 10);
    let store = Store::open_by_steps(&path, &options.preallocate(true)).unwrap();
    let mut writer = Writer {
        store,
        random: Rng::new(1),
        payload: 900,
    };
    for _ in 0..10 {
        writer.append();
    }
    let end = Inspection::open(&path).unwrap().view.recovered.chain[0].end;
    let file = Arc::new(
        std::fs::File::options()
            .read(true)
            .write(true)
            .open(&path)
            .unwrap(),
    );
    let mut whole = [0; 8];
    file.read_exact_at(&mut whole, end - 8).unwrap();
    file.write_all_at(&[0xEE; 8], end - 8).unwrap();
    let head = super::read_head(&file).unwrap();
    let seen = super::scan(&file, &head, None).unwrap();
    assert!(
        matches!(seen.recovered.stop, Stop::Torn { .. }),
        "{:?}",
        seen.recovered.stop
    );
    file.write_all_at(&whole, end - 8).unwrap();
    // It is whole by now, and a prefix is a state that the log had.
    let prefix = super::prefix(&seen, &head).unwrap().unwrap();
    assert_eq!(prefix.recovered.state.unsettled(), 10);
    let first = seen.stamps[0];
    while super::read_stamps(&file, seen.len, &seen.header.superblock).unwrap()[0] == first {
        writer.burst(1);
    }
    let now = super::read_stamps(&file, seen.len, &seen.header.superblock).unwrap();
    assert_eq!(now[0], Some(crate::format::SegmentHeader::Free), "{now:?}");
    let late = super::prefix(&seen, &head).unwrap();
    let late = late.map(|late| late.recovered.state.unsettled());
    assert_eq!(late, None, "an old state");
}
