//! T15, T16: a store that goes round for long, and what that costs the device.

use std::hint::black_box;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use amps_store::{Envelope, Options, PublishStore, Store};

use crate::floor::Ring;
use crate::stats::{Histogram, median};
use crate::{Failure, Goal, Place, Plan, Row, TOPIC};

/// Messages unsettled while appending.
const LIVE: u64 = 10_000;
/// Appends between two cumulative discards.
const DISCARD: u64 = 100;
const RING: u64 = 256 << 20;
/// How long one size is appended in a full run, by store and floor together.
const LONG: Duration = Duration::from_secs(60);
/// What is not counted as waiting: the first lap, before anything is free.
const BEGINNING: Duration = Duration::from_secs(1);

/// A publisher whose server keeps up.
struct Healthy {
    store: Store,
    envelope: Envelope<'static>,
    last: u64,
    /// Appends that found no room, and waited.
    waits: u64,
}

impl Healthy {
    fn new(path: &Path, options: Options) -> Result<Self, Failure> {
        Ok(Healthy {
            store: Store::open(path, options.client_name("bench"))?,
            envelope: Envelope::publish(TOPIC),
            last: 0,
            waits: 0,
        })
    }

    #[inline]
    fn append(&mut self, payload: &[u8]) -> Result<(), Failure> {
        let appended = match self.store.append(&self.envelope, payload) {
            Err(error) if error.is_retryable() => {
                self.waits += 1;
                let deadline = Instant::now() + Duration::from_secs(60);
                let store = &self.store;
                store.append_wait(&self.envelope, payload, deadline)?
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
}

pub(crate) fn sustained(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    for (size, goal) in [(64_u64, 2.0), (256, 2.1), (1024, 2.4), (8192, 2.0)] {
        let payload = vec![0x5A; size as usize];
        // Half a ring at a time, so that none of the helper's work is done in the floor's turn but
        // what it is late with.
        let slice = RING / 2 / (size + 96) / DISCARD * DISCARD;
        let mut ring = Ring::create(&place.file("ring")?, RING)?;
        let options = Options::new().capacity(RING).preallocate(true);
        let mut healthy = Healthy::new(&place.file("store")?, options)?;
        let (mut ours, mut floor) = (Vec::new(), Vec::new());
        let (begun_all, mut appended, mut waits) = (Instant::now(), 0, 0);
        while begun_all.elapsed() < LONG.mul_f64(plan.scale) || ours.len() < 4 {
            let begun = Instant::now();
            for _ in 0..slice {
                black_box(ring.append(&payload));
            }
            let of_floor = begun.elapsed();
            let before = healthy.waits;
            let begun = Instant::now();
            for _ in 0..slice / DISCARD {
                for _ in 0..DISCARD {
                    healthy.append(&payload)?;
                }
                healthy.discard()?;
            }
            let of_ours = begun.elapsed();
            if begun_all.elapsed() > BEGINNING {
                waits += healthy.waits - before;
                appended += slice;
                ours.push(of_ours.as_nanos() as f64 / slice as f64);
                floor.push(of_floor.as_nanos() as f64 / slice as f64);
            }
        }
        let mut single = Histogram::new();
        for at in 0..4 * slice {
            let begun = Instant::now();
            healthy.append(&payload)?;
            single.add(begun.elapsed().as_nanos() as u64);
            if at % DISCARD == 0 {
                healthy.discard()?;
            }
        }
        tell(Row {
            target: "T16",
            what: format!("append, ring laps, {size} B"),
            unit: "ns",
            ours: median(ours),
            floor: Some(median(floor)),
            goal: Goal::Times(goal),
        });
        tell(Row {
            target: "T16",
            what: format!("appends that waited for room, {size} B"),
            unit: "per million",
            ours: waits as f64 * 1e6 / appended as f64,
            floor: None,
            goal: Goal::AtMost(0.0),
        });
        tell(Row {
            target: "T16",
            what: format!("append p99.9, ring laps, {size} B"),
            unit: "us",
            ours: single.quantile(0.999) / 1000.0,
            floor: None,
            goal: Goal::AtMost(5.0),
        });
    }
    Ok(())
}

/// Bytes that the device under a file was told to write so far, by whomever; `None`: the file has no
/// block device of its own, as on tmpfs or overlay.
fn written(path: &Path) -> Option<u64> {
    let dev = path.metadata().ok()?.dev();
    let major = (dev >> 8 & 0xFFF) | (dev >> 32 & !0xFFF);
    let minor = (dev & 0xFF) | (dev >> 12 & !0xFF);
    let stat = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/stat")).ok()?;
    let sectors: u64 = stat.split_whitespace().nth(6)?.parse().ok()?;
    Some(sectors * 512)
}

pub(crate) fn device(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    // A million within ten seconds.
    let (count, pace) = (plan.count(1_000_000), Duration::from_micros(8));
    for size in [253, 8192] {
        let what = format!("{size} B");
        tell_written(
            &what,
            Goal::AtMost(0.1),
            &publish_steadily(place, size, count, pace)?,
            tell,
        );
    }
    // So slowly that the kernel writes pages back before they are used again: it does not leave
    // them dirty for longer than 30 seconds.
    let (count, pace) = (plan.count(180_000), Duration::from_millis(1));
    let what = format!("253 B, 1,000/s for {} s", count / 1000);
    let written = publish_steadily(place, 253, count, pace)?;
    tell_written(&what, Goal::Told, &written, tell);
    Ok(())
}

/// What one run from the creation to the close left behind.
struct Run {
    payload: u64,
    /// What the device was told to write, if it counts.
    written: Option<u64>,
    /// The longest that the file was, all of which was filled with zeros.
    longest: u64,
    took: Duration,
}

/// Publishes one message each `pace` on a link that keeps up.
fn publish_steadily(place: &Place, size: u64, count: u64, pace: Duration) -> Result<Run, Failure> {
    let payload = vec![0x5A; size as usize];
    let path = place.file("store")?;
    let dir = path.parent().unwrap_or(Path::new("."));
    let before = written(dir);
    let mut healthy = Healthy::new(&path, Options::new())?;
    let begun = Instant::now();
    for at in 1..=count {
        wait_until(begun + pace * at as u32);
        healthy.append(&payload)?;
        if at % DISCARD == 0 {
            healthy.discard()?;
        }
    }
    // It gives nothing back while it is in use, so it was never longer.
    let longest = path.metadata()?.len();
    healthy.store.settle_through(healthy.last)?;
    healthy.store.close(healthy.last)?;
    let took = begun.elapsed();
    let after = written(dir);
    Ok(Run {
        payload: count * size,
        written: before.zip(after).map(|(before, after)| after - before),
        longest,
        took,
    })
}

/// Sleeps where there is time for it, and burns the rest.
fn wait_until(at: Instant) {
    const SLEEP: Duration = Duration::from_micros(500);
    let left = at.saturating_duration_since(Instant::now());
    std::thread::sleep(left.checked_sub(SLEEP).unwrap_or_default());
    while Instant::now() < at {
        std::hint::spin_loop();
    }
}

fn tell_written(what: &str, goal: Goal, run: &Run, tell: &mut dyn FnMut(Row)) {
    let told = |what: String, unit, ours, goal| Row {
        target: "T15",
        what,
        unit,
        ours,
        floor: None,
        goal,
    };
    let beyond = format!("device bytes beyond its zeros, {what}");
    match run.written {
        Some(written) => {
            let share = written.saturating_sub(run.longest) as f64 / run.payload as f64;
            tell(told(beyond, "per byte", share, goal));
            let all = format!("all of it, file of {} MiB, {what}", run.longest >> 20);
            tell(told(all, "MB", written as f64 / 1e6, Goal::Told));
        }
        None => {
            let beyond = format!("{beyond}: not measured, no device");
            tell(told(beyond, "per byte", f64::NAN, Goal::Told));
        }
    }
    let took = format!("time with the close, {what}");
    tell(told(took, "s", run.took.as_secs_f64(), Goal::Told));
}
