//! The store alone: backlog, payload, level, disk.

use std::hint::black_box;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use amps_store::testkit::slow_syncs;
use amps_store::{Level, Options, PublishStore, Signal, Store};

use super::{Chart, sweep};
use crate::floor::Ring;
use crate::store::Filled;
use crate::sync::Progress;
use crate::{Failure, Place, Plan};

/// Appends between two cumulative discards.
const DISCARD: u64 = 100;

/// Nanoseconds per append, with a discard after every 100 that leaves `live` unsettled.
fn append_cost(filled: &mut Filled, payload: &[u8], live: u64, count: u64) -> Result<f64, Failure> {
    let count = count.next_multiple_of(DISCARD);
    let begun = Instant::now();
    for _ in 0..count / DISCARD {
        filled.fill(DISCARD, payload)?;
        let through = filled.last.saturating_sub(live);
        filled.store.settle_through(through)?;
    }
    Ok(begun.elapsed().as_nanos() as f64 / count as f64)
}

pub(super) fn backlog(plan: &Plan, place: &Place) -> Result<Vec<Chart>, Failure> {
    let payload = [0x5A; 64];
    let most = if plan.scale < 1.0 { 6 } else { 7 };
    let places: Vec<u64> = (3..=most).map(|n| 10_u64.pow(n)).collect();
    let path = |live: u64| place.file(&format!("store-{live}"));
    // More than a message and the charge for its future take.
    let options = |live: u64| {
        let capacity = (live * 1024).max(256 << 20);
        Options::new().capacity(capacity).client_name("bench")
    };
    // In a file that has grown to hold them.
    let filled = |live| {
        let mut filled = Filled::new(&path(live)?, options(live))?;
        filled.fill(live, &payload)?;
        Ok::<_, Failure>(filled)
    };
    let append =
        |filled: &mut Filled, _, live| append_cost(filled, &payload, live, plan.count(1_000_000));
    let left_behind = |live| {
        // Without a close: each open follows a crash.
        filled(live)?.store.sync()?;
        Ok(place.dir.join(format!("store-{live}")))
    };
    let open = |path: &mut PathBuf, line, live: u64| {
        let begun = Instant::now();
        let store = Store::open(path, options(live))?;
        let whole = begun.elapsed();
        match store.report().recovered {
            found if found == live => {}
            found => return Err(format!("{found} of {live} recovered").into()),
        }
        let took = match line {
            0 => whole,
            _ => store.report().scan,
        };
        Ok(took.as_secs_f64() * 1000.0)
    };
    let x = "messages unsettled";
    Ok(vec![
        Chart {
            name: "backlog-append",
            title: "Append with a backlog, 64 B",
            x,
            y: "nanoseconds",
            lines: sweep(plan, &["append at Os"], &places, filled, append)?,
        },
        Chart {
            name: "backlog-recovery",
            title: "Open after a crash with a backlog, 64 B",
            x,
            y: "milliseconds",
            lines: sweep(
                plan,
                &["the whole open", "of it, the scan"],
                &places,
                left_behind,
                open,
            )?,
        },
    ])
}

pub(super) fn payload(plan: &Plan, place: &Place) -> Result<Vec<Chart>, Failure> {
    let places: Vec<u64> = (2..=10).map(|n| 1 << (2 * n)).collect();
    // Unsettled between two discards: 16 MiB, but not more than 10,000.
    let live = |size: u64| ((16 << 20) / size).min(10_000);
    let set_up = |size: u64| {
        // Room for a hundred of the largest between two discards.
        let len = (size * 512).max(64 << 20);
        let options = Options::new()
            .capacity(len)
            .max_message(1 << 20)
            .client_name("bench")
            .preallocate(true);
        let mut filled = Filled::new(&place.file(&format!("store-{size}"))?, options)?;
        let mut ring = Ring::create(&place.file(&format!("ring-{size}"))?, len)?;
        // Otherwise the zeros are written back while it is measured; and that protects the pages, so
        // each is touched once afterwards.
        ring.syncer().sync()?;
        filled.store.sync()?;
        let payload = vec![0x5A; size as usize];
        for _ in 0..len / (size + 40) {
            ring.append(&payload);
        }
        append_cost(&mut filled, &payload, live(size), len / (size + 96))?;
        Ok((filled, ring, payload))
    };
    let measure = |(filled, ring, payload): &mut (Filled, Ring, Vec<u8>), line, size: u64| {
        // A round of the smallest ones and of the largest takes about as long.
        let count = plan.count((64 << 20) / (size + 200)).max(DISCARD);
        match line {
            0 => append_cost(filled, payload, live(size), count),
            _ => {
                let begun = Instant::now();
                for _ in 0..count {
                    black_box(ring.append(payload));
                }
                Ok(begun.elapsed().as_nanos() as f64 / count as f64)
            }
        }
    };
    let names = ["append at Os", "floor: copy and checksum"];
    Ok(vec![Chart {
        name: "payload",
        title: "Append by size of the payload",
        x: "bytes of payload",
        y: "nanoseconds",
        lines: sweep(plan, &names, &places, set_up, measure)?,
    }])
}

/// A store whose publisher goes on when all but so many messages are as safe as its level makes them.
struct Windowed {
    filled: Filled,
    progress: Option<Arc<Progress>>,
}

impl Windowed {
    fn new(store: Store) -> Self {
        let waits = store.level() != Level::Os;
        let progress = waits.then(|| {
            let progress = Arc::new(Progress::default());
            let (watched, watch) = (store.clone(), progress.clone());
            store.observe(Arc::new(move |signal| {
                if signal == Signal::Durable {
                    watch.set(watched.durable().sequence);
                }
                ControlFlow::Continue(())
            }));
            progress
        });
        Windowed {
            filled: Filled::over(store),
            progress,
        }
    }

    /// Messages per second with so many on the way.
    fn rate(&mut self, window: u64, long: Duration) -> Result<f64, Failure> {
        let (begun, first) = (Instant::now(), self.filled.last);
        // The window is filled and emptied, so it is not to be most of the time.
        while begun.elapsed() < long || self.filled.last - first < 4 * window {
            self.filled.fill(1, &[0x5A; 256])?;
            let last = self.filled.last;
            if let Some(progress) = &self.progress {
                progress.wait_until(last.saturating_sub(window - 1));
            }
            if last.is_multiple_of(DISCARD) {
                let durable = self
                    .progress
                    .is_some()
                    .then(|| self.filled.store.durable().sequence);
                let through = durable.unwrap_or(last).min(last.saturating_sub(window));
                self.filled.store.settle_through(through)?;
            }
        }
        if let Some(progress) = &self.progress {
            progress.wait_until(self.filled.last);
        }
        Ok((self.filled.last - first) as f64 / begun.elapsed().as_secs_f64())
    }
}

const WINDOWS: [u64; 6] = [1, 4, 16, 64, 256, 1024];

fn long(plan: &Plan) -> Duration {
    Duration::from_millis(if plan.scale < 1.0 { 40 } else { 300 })
}

fn at_level(path: &Path, level: Level) -> Result<Store, Failure> {
    let options = Options::new().client_name("bench").level(level);
    Ok(Store::open(path, options.preallocate(true))?)
}

pub(super) fn levels(plan: &Plan, place: &Place) -> Result<Vec<Chart>, Failure> {
    let interval = Level::Interval(Duration::from_millis(10));
    let mut stores = [
        Windowed::new(Store::memory(Options::new().client_name("bench"))?),
        Windowed::new(at_level(&place.file("os")?, Level::Os)?),
        Windowed::new(at_level(&place.file("interval")?, interval)?),
        Windowed::new(at_level(&place.file("disk")?, Level::Disk)?),
    ];
    let measure = |_: &mut (), line: usize, window| stores[line].rate(window, long(plan));
    let names = ["in memory", "Os", "Interval of 10 ms", "Disk"];
    Ok(vec![Chart {
        name: "levels",
        title: "Messages as safe as their level makes them, 256 B",
        x: "messages on the way at most",
        y: "messages a second",
        lines: sweep(plan, &names, &WINDOWS, |_| Ok(()), measure)?,
    }])
}

/// Where a sync takes no time but what is added.
const MEMORY: &str = "/dev/shm";

pub(super) fn disks(plan: &Plan, _: &Place) -> Result<Vec<Chart>, Failure> {
    let dir = tempfile::Builder::new()
        .prefix("amps-curves-")
        .tempdir_in(MEMORY)?;
    let place = Place {
        dir: dir.path().to_owned(),
    };
    let syncs = [Duration::from_micros(50), Duration::from_millis(5)];
    let mut stores = [
        Windowed::new(at_level(&place.file("os")?, Level::Os)?),
        Windowed::new(at_level(&place.file("disk")?, Level::Disk)?),
    ];
    let measure = |_: &mut (), line: usize, window| {
        slow_syncs(syncs[line % 2]);
        let rate = stores[line / 2].rate(window, long(plan));
        slow_syncs(Duration::ZERO);
        rate
    };
    let names = [
        "Os, sync of 50 us",
        "Os, sync of 5 ms",
        "Disk, sync of 50 us",
        "Disk, sync of 5 ms",
    ];
    Ok(vec![Chart {
        name: "disks",
        title: "A fast disk and a slow one, 256 B",
        x: "messages on the way at most",
        y: "messages a second",
        lines: sweep(plan, &names, &WINDOWS, |_| Ok(()), measure)?,
    }])
}
