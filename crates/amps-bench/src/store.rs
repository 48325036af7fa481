//! T1, T2, T5, T6, T7, T11: the store alone.

use std::path::Path;
use std::time::{Duration, Instant};

use amps_store::{AppendError, Envelope, Options, PublishStore, Store, StoredMessage};

use crate::floor::Ring;
use crate::stats::{Dice, Histogram, median};
use crate::{Failure, Goal, Place, Plan, Row, TOPIC};

/// Messages unsettled while appending.
const LIVE: u64 = 10_000;
/// Appends between two cumulative discards.
const DISCARD: u64 = 100;

/// Options with room for `messages` unsettled ones of `payload` bytes, and as much again.
fn options_for(messages: u64, payload: u64) -> Options {
    // The most that a record and the charge for its future take.
    let live = messages * (payload + 384);
    let capacity = (2 * live).max(256 << 20).next_power_of_two();
    Options::new().capacity(capacity).client_name("bench")
}

fn deadline() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

/// A store with everything but the messages.
pub(crate) struct Filled {
    pub(crate) store: Store,
    envelope: Envelope<'static>,
    pub(crate) last: u64,
}

impl Filled {
    pub(crate) fn new(path: &Path, options: Options) -> Result<Self, Failure> {
        Ok(Self::over(Store::open(path, options)?))
    }

    pub(crate) fn over(store: Store) -> Self {
        Filled {
            last: store.bounds().last,
            store,
            envelope: Envelope::publish(TOPIC),
        }
    }

    pub(crate) fn fill(&mut self, count: u64, payload: &[u8]) -> Result<(), Failure> {
        for _ in 0..count {
            self.append(payload)?;
        }
        Ok(())
    }

    #[inline]
    fn append(&mut self, payload: &[u8]) -> Result<(), AppendError> {
        let appended = match self.store.append(&self.envelope, payload) {
            Err(error) if error.is_retryable() => {
                let envelope = &self.envelope;
                self.store.append_wait(envelope, payload, deadline())?
            }
            other => other?,
        };
        self.last = appended.sequence;
        Ok(())
    }

    #[inline]
    fn discard(&self) -> Result<(), Failure> {
        self.store.settle_through(self.last.saturating_sub(LIVE))?;
        Ok(())
    }

    /// Lets the helper finish what it has begun: freeing segments, making pages ready.
    fn rest(&self) -> Result<(), Failure> {
        for _ in 0..3 {
            self.store.sync()?;
            std::thread::sleep(Duration::from_millis(30));
        }
        Ok(())
    }
}

pub(crate) fn append(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    for (size, goal) in [(64, 1.6), (256, 1.3), (1024, 1.15), (8192, 1.1)] {
        let payload = vec![0x5A; size as usize];
        let bytes: u64 = if size > 1024 { 256 << 20 } else { 64 << 20 };
        // Slices short enough that a busy machine interrupts few of them, and as many in a row as
        // the helper keeps pages ready for.
        let slice = DISCARD * (100_000 / (size + 96)).clamp(1, 5);
        // A segment has 4 MiB, so this much is ready after a rest.
        let slices = ((3 << 20) / ((size + 96) * slice)).max(1);
        let mut ring = Ring::create(&place.file("ring")?, bytes)?;
        let options = options_for(LIVE, size).preallocate(true);
        let mut filled = Filled::new(&place.file("store")?, options)?;
        filled.fill(LIVE, &payload)?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        for round in 0..=plan.rounds {
            filled.rest()?;
            for _ in 0..slices {
                let begun = Instant::now();
                for _ in 0..slice {
                    std::hint::black_box(ring.append(&payload));
                }
                let of_floor = begun.elapsed();
                let begun = Instant::now();
                for _ in 0..slice / DISCARD {
                    for _ in 0..DISCARD {
                        filled.append(&payload)?;
                    }
                    filled.discard()?;
                }
                let of_ours = begun.elapsed();
                // The first lap warms both up.
                if round > 0 {
                    ours.push(of_ours.as_nanos() as f64 / slice as f64);
                    floor.push(of_floor.as_nanos() as f64 / slice as f64);
                }
            }
        }
        tell(Row {
            target: "T1",
            what: format!("append, level Os, {size} B"),
            unit: "ns",
            ours: median(ours),
            floor: Some(median(floor)),
            goal: Goal::Times(goal),
        });
    }
    Ok(())
}

pub(crate) fn append_tail(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let payload = [0x5A; 256];
    let count = plan.count(500_000);
    // A publisher at 125,000 messages a second, so that segments are used in turn and the helper
    // has as much time as usual.
    let pace = Duration::from_micros(8);
    for (what, growing, goal) in [("steady", false, 2.0), ("growing", true, 20.0)] {
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        let mut ring = Ring::create(&place.file("ring")?, 64 << 20)?;
        let mut longest: f64 = 0.0;
        let options = || options_for(if growing { 2 * count } else { LIVE }, 256);
        let mut filled = Filled::new(&place.file("store")?, options().preallocate(!growing))?;
        for _ in 0..plan.rounds {
            if growing {
                filled = Filled::new(&place.file("store")?, options())?;
            }
            filled.fill(LIVE, &payload)?;
            filled.rest()?;
            let mut of_floor = Histogram::new();
            let mut next = Instant::now();
            for _ in 0..count {
                next = wait_until(next + pace);
                let begun = Instant::now();
                std::hint::black_box(ring.append(&payload));
                of_floor.add(begun.elapsed().as_nanos() as u64);
            }
            let mut of_ours = Histogram::new();
            let mut next = Instant::now();
            for at in 0..count {
                next = wait_until(next + pace);
                let begun = Instant::now();
                filled.append(&payload)?;
                of_ours.add(begun.elapsed().as_nanos() as u64);
                if !growing && at % DISCARD == 0 {
                    filled.discard()?;
                }
            }
            ours.push(of_ours.quantile(0.999) / 1000.0);
            floor.push(of_floor.quantile(0.999) / 1000.0);
            longest = longest.max(of_ours.max() / 1000.0);
        }
        tell(Row {
            target: "T2",
            what: format!("append p99.9, {what}, 256 B"),
            unit: "us",
            ours: median(ours),
            floor: Some(median(floor)),
            goal: Goal::AtMost(goal),
        });
        tell(Row {
            target: "T2",
            what: format!("longest append of all rounds, {what}"),
            unit: "us",
            ours: longest,
            floor: None,
            goal: Goal::Told,
        });
    }
    Ok(())
}

/// Burns time until `at`, since a sleep would measure the scheduler.
fn wait_until(at: Instant) -> Instant {
    loop {
        let now = Instant::now();
        if now >= at {
            // A pause is not caught up with, since that would be a different load.
            return now.min(at + Duration::from_micros(50));
        }
        std::hint::spin_loop();
    }
}

/// How many messages stand for a million at this scale.
fn million(plan: &Plan) -> u64 {
    plan.count(1_000_000)
}

pub(crate) fn recovery(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let payload = [0x5A; 256];
    let count = million(plan);
    let (ring_path, path) = (place.file("ring")?, place.file("store")?);
    let bytes = count * 320;
    let mut ring = Ring::create(&ring_path, bytes)?;
    for _ in 0..count {
        ring.append(&payload);
    }
    ring.syncer().sync()?;
    drop(ring);
    let options = || options_for(count, 256);
    let mut filled = Filled::new(&path, options())?;
    filled.fill(count, &payload)?;
    filled.store.sync()?;
    // Dropped without a close: every open here follows a crash.
    drop(filled);
    let (mut ours, mut floor, mut whole) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let begun = Instant::now();
        let ring = Ring::open(&ring_path, bytes)?;
        let index = ring.scan(count).ok_or("the ring lost a record")?;
        floor.push(begun.elapsed().as_secs_f64() * 1000.0);
        drop((ring, index));
        let begun = Instant::now();
        let store = Store::open(&path, options())?;
        whole.push(begun.elapsed().as_secs_f64() * 1000.0);
        if store.report().recovered != count {
            return Err(format!("{} of {count} recovered", store.report().recovered).into());
        }
        ours.push(store.report().scan.as_secs_f64() * 1000.0);
    }
    tell(Row {
        target: "T5",
        what: format!("recovery of {count} x 256 B, warm: scan"),
        unit: "ms",
        ours: median(ours),
        floor: Some(median(floor)),
        goal: Goal::Times(1.5),
    });
    tell(Row {
        target: "T5",
        what: "the whole open, with its sync".to_owned(),
        unit: "ms",
        ours: median(whole),
        floor: None,
        goal: Goal::Told,
    });
    Ok(())
}

pub(crate) fn get(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    let payload = [0x5A; 256];
    for live in [LIVE, million(plan)] {
        let mut ring = Ring::create(&place.file("ring")?, live * 320)?;
        let index: Vec<_> = (0..live).map(|_| ring.append(&payload)).collect();
        let mut filled = Filled::new(&place.file("store")?, options_for(live, 256))?;
        filled.fill(live, &payload)?;
        let first = filled.last - live + 1;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        let (mut message, mut bytes) = (StoredMessage::new(), Vec::new());
        let count = plan.count(300_000);
        for round in 0..=plan.rounds as u64 {
            filled.rest()?;
            let mut dice = Dice::new(round + 1);
            let begun = Instant::now();
            for _ in 0..count {
                let spot = index[dice.below(live) as usize];
                if !ring.get(spot, &mut bytes) {
                    return Err("the ring lost a record".into());
                }
            }
            let of_floor = begun.elapsed();
            let mut dice = Dice::new(round + 1);
            let begun = Instant::now();
            for _ in 0..count {
                if !filled.store.get(first + dice.below(live), &mut message)? {
                    return Err("the store lost a message".into());
                }
            }
            let of_ours = begun.elapsed();
            if round > 0 {
                ours.push(of_ours.as_nanos() as f64 / count as f64);
                floor.push(of_floor.as_nanos() as f64 / count as f64);
            }
        }
        tell(Row {
            target: "T6",
            what: format!("get at random, {live} live, 256 B"),
            unit: "ns",
            ours: median(ours),
            floor: Some(median(floor)),
            goal: Goal::Times(1.5),
        });
    }
    Ok(())
}

pub(crate) fn settle(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    let payload = [0x5A; 64];
    for (live, goal) in [(LIVE, 10.0), (million(plan), 60.0)] {
        // Small sets are settled several times in a round, so that it takes long enough.
        let times = (LIVE * 20 / live).max(1);
        for (what, singles) in [
            ("cumulative, by 100", false),
            ("singles at random, by 64", true),
        ] {
            let mut rounds = Vec::new();
            let mut calls = Histogram::new();
            let mut filled = Filled::new(&place.file("store")?, options_for(live, 64))?;
            for round in 0..=plan.rounds as u64 {
                let mut spent = Duration::ZERO;
                for time in 0..times {
                    filled.fill(live, &payload)?;
                    filled.rest()?;
                    let first = filled.last - live + 1;
                    let mut order: Vec<u64> = (first..=filled.last).collect();
                    let mut dice = Dice::new(round * times + time + 1);
                    if singles {
                        for at in (1..order.len()).rev() {
                            order.swap(at, dice.below(at as u64 + 1) as usize);
                        }
                    }
                    let by = if singles { 64 } else { DISCARD as usize };
                    let mut settled = 0;
                    for batch in order.chunks(by) {
                        let begun = Instant::now();
                        settled += match singles {
                            true => filled.store.settle(batch)?,
                            false => filled.store.settle_through(batch[batch.len() - 1])?,
                        };
                        let took = begun.elapsed();
                        spent += took;
                        if round > 0 {
                            calls.add(took.as_nanos() as u64);
                        }
                    }
                    if settled != live {
                        return Err(format!("{settled} of {live} settled").into());
                    }
                }
                if round > 0 {
                    rounds.push(spent.as_nanos() as f64 / (live * times) as f64);
                }
            }
            tell(Row {
                target: "T7",
                what: format!("settle {what}, {live} live"),
                unit: "ns",
                ours: median(rounds),
                floor: None,
                goal: Goal::AtMost(goal),
            });
            for (name, value, goal) in [
                ("p99.9", calls.quantile(0.999), Goal::AtMost(50.0)),
                ("longest", calls.max(), Goal::Told),
            ] {
                tell(Row {
                    target: "T7",
                    what: format!("{name} call of those"),
                    unit: "us",
                    ours: value / 1000.0,
                    floor: None,
                    goal,
                });
            }
        }
    }
    Ok(())
}

pub(crate) fn memory(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    let payload = [0x5A; 64];
    let count = million(plan);
    let mut filled = Filled::new(&place.file("store")?, options_for(2 * count, 64))?;
    filled.fill(LIVE, &payload)?;
    let before = anonymous_bytes()?;
    filled.fill(count, &payload)?;
    let after = anonymous_bytes()?;
    tell(Row {
        target: "T11",
        what: "anonymous memory per unsettled message".to_owned(),
        unit: "bytes",
        ours: after.saturating_sub(before) as f64 / count as f64,
        floor: None,
        goal: Goal::AtMost(16.0),
    });
    Ok(())
}

/// Resident memory of this process that belongs to no file.
fn anonymous_bytes() -> Result<u64, Failure> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("RssAnon:"))
        .ok_or("the kernel does not tell RssAnon")?;
    let kib: u64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024)
}
