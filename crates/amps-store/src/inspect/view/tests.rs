use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::faults::calls::{Call, watch_calls};
use crate::inspect::{Filter, Inspection};
use crate::report::Stop;
use crate::testkit::Rng;
use crate::{Envelope, Options, PublishStore, Store};

/// A payload that names its message, of at most about this many bytes.
fn payload(sequence: u64, most: usize) -> String {
    let word = format!("{sequence} ");
    let times = sequence as usize * 7 % (most / word.len());
    word.repeat(times)
}

/// A publisher that writes in the middle of a look, at any of its reads. It runs on the same
/// thread, so that a seed decides when.
struct Writer {
    store: Store,
    random: Rng,
    payload: usize,
}

impl Writer {
    fn new(path: &Path, options: &Options, seed: u64, payload: usize) -> Self {
        Writer {
            store: Store::open_by_steps(path, options).unwrap(),
            random: Rng::new(seed),
            payload,
        }
    }

    fn append(&mut self) -> u64 {
        let next = self.store.bounds().next;
        let payload = payload(next, self.payload);
        loop {
            match self
                .store
                .append(&Envelope::publish("t"), payload.as_bytes())
            {
                Ok(at) => return at.sequence,
                Err(error) => assert!(self.store.step().unwrap(), "{error}"),
            }
        }
    }

    /// Appends this many, keeping only the last few unsettled.
    fn burst(&mut self, messages: u64) {
        for _ in 0..messages {
            let last = self.append();
            self.store.settle_through(last.saturating_sub(9)).unwrap();
            while self.random.below(3) > 0 && self.store.step().unwrap() {}
        }
    }

    /// Appends this many, and settles the oldest ones except number 1, whose copy moves on with
    /// every lap.
    fn burst_behind_the_first(&mut self, messages: u64) {
        for _ in 0..messages {
            let last = self.append();
            if last > 101 {
                self.store.settle(&[last - 100]).unwrap();
            }
        }
    }

    /// Takes half of the capacity, so that the file grows.
    fn backlog(&mut self) {
        while self.store.bounds().live_bytes < self.store.bounds().limit_bytes / 2 {
            self.append();
        }
    }

    /// Keeps only the newest of the backlog, so that the file is cut.
    fn drain(&mut self) {
        let last = self.store.bounds().last;
        self.store.settle_through(last - 1).unwrap();
        self.store.idle();
        while self.store.step().unwrap() {}
    }
}

/// Does something before each read of this thread; it is told how many reads came before.
fn at_each_read(mut work: impl FnMut(u64) + 'static) {
    let mut reads = 0;
    watch_calls(Some(Box::new(move |call| {
        if call == Call::Read {
            work(reads);
            reads += 1;
        }
    })));
}

/// How often a look reads while nobody writes.
fn reads_of_a_look(path: &Path) -> u64 {
    let reads = Arc::new(AtomicU64::new(0));
    let count = reads.clone();
    at_each_read(move |before| count.store(before + 1, Ordering::Relaxed));
    Inspection::open(path).unwrap();
    watch_calls(None);
    reads.load(Ordering::Relaxed)
}

/// A large file is read in place, without a copy in memory: places are reused while they are
/// read.
#[test]
fn a_large_busy_store_gives_whole_messages_in_order() {
    let options = Options::new().capacity(512 << 10).segment_size(64 << 10);
    let options = options.preallocate(true);
    let (mut shown, mut renewed) = (0, 0);
    for seed in 0..60 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut writer = Writer::new(&path, &options, seed, 400);
        writer.burst_behind_the_first(200 + 31 * seed);
        let seen = Inspection::open(&path).unwrap();
        assert!(seen.view.image.is_none());
        assert_eq!((seen.info().damaged, seen.info().set_aside), (vec![], 0));
        assert_eq!(seen.info().unsettled, 101);
        let last = seen.bounds().last;
        // A lap takes some two thousand of them.
        let (first, messages) = (writer.random.below(90), 200 << writer.random.below(6));
        at_each_read(move |reads| {
            if reads == first || reads == first + 40 {
                writer.burst_behind_the_first(messages);
            }
        });
        let mut before = 0;
        for message in seen.messages(Filter::new()) {
            let message = message.unwrap();
            assert!(message.sequence > before);
            assert_eq!(message.payload, payload(message.sequence, 400).as_bytes());
            assert!(
                before > 0 || message.sequence == 1,
                "the stubborn one is there"
            );
            before = message.sequence;
            shown += 1;
        }
        watch_calls(None);
        // A message whose place was reused before it was read is found by a later look, as long
        // as it is unsettled.
        renewed += u64::from(before > last);
    }
    println!("{shown} shown, {renewed} looks renewed");
    assert!(
        shown > 1000 && renewed > 20,
        "{shown} shown, {renewed} looks renewed"
    );
}

/// A publisher that is logged on raises its grant again and again, with a write of the superblock
/// each time. So the look at a large store never saw the same superblock before and after its
/// scan, and gave up.
#[test]
fn a_large_store_whose_grant_rises_all_the_time_can_be_looked_at() {
    let options = Options::new().capacity(1 << 20).segment_size(64 << 10);
    let options = options.preallocate(true);
    for seed in 0..20 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut writer = Writer::new(&path, &options, seed, 400);
        writer.burst(500 + 97 * seed);
        let (before, store) = (writer.store.bounds(), writer.store.clone());
        let from = writer.store.numbers().grant;
        at_each_read(move |reads| {
            writer.store.raise_grant(from + 20 * (reads + 1)).unwrap();
            if reads < 40 && writer.random.below(8) == 0 {
                writer.burst(20);
            }
        });
        let seen = Inspection::open(&path);
        watch_calls(None);
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert!(seen.view.image.is_none());
        let (info, bounds) = (seen.info(), seen.bounds());
        assert_eq!((&info.damaged, info.set_aside), (&vec![], 0));
        assert!(info.grant > from && info.grant <= store.numbers().grant);
        assert!(
            store.numbers().grant > from + 100,
            "it rose five times and more"
        );
        assert!(bounds.last >= before.last && bounds.last <= store.bounds().last);
        let unsettled = bounds.first_unsettled.map_or(0, |f| bounds.last + 1 - f);
        assert_eq!(bounds.unsettled, unsettled, "a hole among the unsettled");
        assert!(seen.verify().unwrap().is_sound());
    }
}

/// Damage under a publisher that never pauses is reported all the same, and is not taken for what
/// the publisher is just writing.
#[test]
fn damage_in_a_large_busy_store_is_told() {
    use std::os::unix::fs::FileExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(1 << 20).segment_size(64 << 10);
    let mut writer = Writer::new(&path, &options.preallocate(true), 1, 100);
    for _ in 0..500 {
        writer.append();
    }
    writer.store.sync().unwrap();
    let file = std::fs::File::options().write(true).open(&path).unwrap();
    // In the first message, the only one that has its first segment for itself until it is copied.
    let place = crate::format::SEGMENTS_AT + 64;
    file.write_all_at(&[0xEE; 64], place + 200).unwrap();
    let store = writer.store.clone();
    at_each_read(move |_| {
        let grant = writer.store.numbers().grant;
        writer.store.raise_grant(grant + 1).unwrap();
    });
    let seen = Inspection::open(&path);
    watch_calls(None);
    let seen = seen.unwrap();
    assert_eq!(seen.info().damaged.len(), 1, "{:?}", seen.info());
    assert!(store.numbers().grant > 5, "it rose at every read");
}

/// A backlog comes and goes: the file grows and is cut while it is read.
#[test]
fn a_store_whose_file_is_cut_is_never_called_damaged() {
    let options = Options::new().capacity(512 << 10).segment_size(8 << 10);
    let (mut grown, mut cut) = (0, 0);
    for seed in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let mut writer = Writer::new(&path, &options, seed, 400);
        writer.burst(60);
        let is_long = writer.random.below(2) == 0;
        if is_long {
            writer.backlog();
        }
        let (len, before) = (
            std::fs::metadata(&path).unwrap().len(),
            writer.store.bounds(),
        );
        let reads = reads_of_a_look(&path);
        let turn = writer.random.below(reads);
        let again = 1 + writer.random.below(2 * reads);
        at_each_read(move |reads| {
            if reads == turn || reads == turn + again {
                match is_long == (reads == turn) {
                    true => writer.drain(),
                    false => writer.backlog(),
                }
            }
        });
        let seen = Inspection::open(&path);
        watch_calls(None);
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        assert_eq!((seen.info().damaged, seen.info().set_aside), (vec![], 0));
        assert!(seen.bounds().next >= before.next, "the log went back");
        for message in seen.messages(Filter::new()) {
            let message = message.unwrap();
            assert_eq!(message.payload, payload(message.sequence, 400).as_bytes());
        }
        let now = std::fs::metadata(&path).unwrap().len();
        grown += u64::from(now > len);
        cut += u64::from(now < len);
    }
    println!("{grown} looks met a file that grew, {cut} one that was cut");
    assert!(grown > 5 && cut > 5, "{grown} grown, {cut} cut");
}

/// A look shows the log as it was when the look began, or later, whenever the publisher writes.
#[test]
fn a_look_shows_nothing_older_than_its_beginning() {
    let seeds = std::env::var("AMPS_SEEDS").map_or(60, |n| n.parse().unwrap());
    let first = std::env::var("AMPS_SEED").map_or(0, |n| n.parse().unwrap());
    let (mut shown, mut moved) = (0, 0);
    for seed in first..first + seeds {
        let mut random = Rng::new(seed);
        // Larger files are read in place, without a copy in memory.
        let large = random.below(2) > 0;
        let options = match large {
            false => Options::new().capacity(64 << 10),
            true => Options::new().capacity(256 << 10).segment_size(16 << 10),
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let options = options.preallocate(random.below(2) == 0);
        let segment = if large { 16 << 10 } else { 8 << 10 };
        let most = segment / 8;
        let mut writer = Writer::new(&path, &options, !seed, most);
        let lap = 30 + random.below(200);
        writer.burst(lap);
        let before = writer.store.bounds();
        let store = writer.store.clone();
        // After how many reads of the look it writes, and how much.
        let mut plan: Vec<(u64, u64)> = (0..1 + random.below(6))
            .map(|_| (random.below(40), [1, 20, 60, 120][random.below(4) as usize]))
            .collect();
        plan.sort_unstable();
        at_each_read(move |reads| {
            for (_, messages) in plan.extract_if(.., |(at, _)| *at <= reads) {
                writer.burst(messages);
            }
        });
        let seen = Inspection::open(&path);
        watch_calls(None);
        // A store may be too busy for a look, but this one is at rest by the end.
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        let (bounds, info) = (seen.bounds(), seen.info());
        assert_eq!((info.damaged, info.set_aside), (vec![], 0), "seed {seed}");
        assert!(
            bounds.next >= before.next && bounds.floor >= before.floor,
            "seed {seed}: {bounds:?} is older than {before:?}"
        );
        assert!(
            bounds.last <= store.bounds().last,
            "seed {seed}: {bounds:?}"
        );
        let unsettled = bounds.first_unsettled.map_or(0, |f| bounds.last + 1 - f);
        assert_eq!(bounds.unsettled, unsettled, "seed {seed}: a hole");
        for message in seen.messages(Filter::new()) {
            let message = message.unwrap();
            let sequence = message.sequence;
            assert!(
                sequence > before.floor,
                "seed {seed}: {sequence} was settled"
            );
            assert_eq!(message.payload, payload(sequence, most).as_bytes());
        }
        assert!(seen.verify().unwrap().is_sound(), "seed {seed}");
        shown += 1;
        moved += u64::from(store.bounds().next > before.next);
    }
    assert!(moved * 2 > shown, "{moved} of {shown} looks met a writer");
}

/// A publisher that never pauses frees segments and uses them again while they are read. What was
/// read then begins with a start that is no longer in force, and looks like a log with a hole.
/// Judged from the later start on it has none.
#[test]
fn a_store_that_goes_round_all_the_time_can_be_looked_at() {
    let mut moved = 0;
    for (seed, every) in (0..10).flat_map(|seed| [(seed, 3), (seed, 10)]) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        // Short enough to be copied into memory before it is looked at.
        let options = Options::new().capacity(124 << 10).segment_size(8 << 10);
        let mut writer = Writer::new(&path, &options.preallocate(true), seed, 900);
        writer.burst(300);
        let store = writer.store.clone();
        let before = store.bounds();
        at_each_read(move |reads| {
            if reads % every == 0 {
                writer.burst(40);
            }
        });
        let seen = Inspection::open(&path);
        watch_calls(None);
        let seen = seen.unwrap_or_else(|error| panic!("seed {seed}, every {every}: {error}"));
        assert!(seen.view.image.is_some());
        let (bounds, info) = (seen.bounds(), seen.info());
        assert_eq!((info.damaged, info.set_aside), (vec![], 0), "seed {seed}");
        assert!(bounds.next >= before.next && bounds.floor >= before.floor);
        assert!(bounds.last <= store.bounds().last);
        let unsettled = bounds.first_unsettled.map_or(0, |f| bounds.last + 1 - f);
        assert_eq!(bounds.unsettled, unsettled, "seed {seed}: a hole");
        moved += u64::from(bounds.floor > before.floor);
    }
    assert!(moved > 10, "{moved} looks met a log that went on");
}

/// A hole where a record was just being written; then the log went on for more than a lap. What
/// stood before the hole, in segments that are free by now, was once shown as the present log,
/// with messages open that had been settled.
#[test]
fn a_prefix_whose_segments_are_free_by_now_is_not_shown() {
    use std::os::unix::fs::FileExt;

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let options = Options::new().capacity(256 << 10).segment_size(16 << 10);
    let mut writer = Writer::new(&path, &options.preallocate(true), 1, 900);
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
    // The view is whole by now, and a prefix is a state that the log had.
    let prefix = super::prefix(&seen, &head).unwrap().unwrap();
    assert_eq!(prefix.recovered.state.unsettled(), 10);
    let start = || {
        let head = super::read_head(&file).unwrap();
        seen.header_in(&head).unwrap().unwrap().superblock.start
    };
    while start() <= prefix.recovered.last_ordinal {
        writer.burst(1);
    }
    let now = super::read_stamps(&file, seen.len, &seen.header.superblock).unwrap();
    assert_eq!(now[0], seen.stamps[0], "it is not in use again");
    let late = super::prefix(&seen, &head).unwrap();
    let late = late.map(|late| late.recovered.state.unsettled());
    assert_eq!(late, None, "an old state");
}
