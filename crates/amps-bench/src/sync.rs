//! T3, T4: durable messages, at the speed of the device.

use std::io;
use std::ops::ControlFlow;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use amps_store::{AppendError, Envelope, Level, Options, PublishStore, Signal, Store};

use crate::floor::{DirectLog, Ring};
use crate::stats::median;
use crate::{Failure, Goal, Place, Plan, Row, TOPIC};

/// Messages in flight at most.
const WINDOW: u64 = 1024;

fn disk_store(place: &Place) -> Result<Store, Failure> {
    let options = Options::new()
        .capacity(256 << 20)
        .client_name("bench")
        .level(Level::Disk)
        .preallocate(true);
    Ok(Store::open(place.file("store")?, options)?)
}

pub(crate) fn one_waiting(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let payload = [0x5A; 256];
    let record = [0x5A; 304];
    let count = plan.count(2000);
    let mut raw = DirectLog::create(&place.file("raw")?, 64 << 20)?;
    let mut ring = Ring::create(&place.file("ring")?, 64 << 20)?;
    let syncer = ring.syncer();
    syncer.sync()?;
    let store = disk_store(place)?;
    let (mut ours, mut floor, mut mapped) = (Vec::new(), Vec::new(), Vec::new());
    // Short rounds: the device's pace changes from second to second.
    for _ in 0..plan.rounds * 4 {
        let begun = Instant::now();
        for _ in 0..count / 4 {
            raw.append(&record)?;
        }
        floor.push(begun.elapsed().as_secs_f64() * 4e6 / count as f64);
        let begun = Instant::now();
        for _ in 0..count / 4 {
            ring.append(&payload);
            syncer.sync()?;
        }
        mapped.push(begun.elapsed().as_secs_f64() * 4e6 / count as f64);
        let begun = Instant::now();
        for _ in 0..count / 4 {
            let appended = store.append_durable(&Envelope::publish(TOPIC), &payload)?;
            store.settle_through(appended.sequence)?;
        }
        ours.push(begun.elapsed().as_secs_f64() * 4e6 / count as f64);
    }
    let (ours, mapped) = (median(ours), median(mapped));
    for (what, floor, goal) in [
        ("raw sync of a record", median(floor), Goal::Times(1.1)),
        ("mapping + fdatasync", mapped, Goal::Told),
    ] {
        tell(Row {
            target: "T3",
            what: format!("publish at Disk, one waiting ({what})"),
            unit: "us",
            ours,
            floor: Some(floor),
            goal,
        });
    }
    Ok(())
}

/// How far a flusher has come, for a producer that keeps a window.
#[derive(Default)]
pub(crate) struct Progress {
    appended: AtomicU64,
    durable: Mutex<u64>,
    moved: Condvar,
    more: Condvar,
}

impl Progress {
    fn wait_for_room(&self, sequence: u64) {
        self.wait_until(sequence.saturating_sub(WINDOW));
    }

    /// Waits until all messages up to this one are durable.
    pub(crate) fn wait_until(&self, sequence: u64) {
        let mut durable = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        while *durable < sequence {
            durable = self
                .moved
                .wait(durable)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    pub(crate) fn set(&self, durable: u64) {
        *self.durable.lock().unwrap_or_else(PoisonError::into_inner) = durable;
        self.moved.notify_all();
    }

    /// The free-running flusher of a floor: as soon as one flush ends, the next begins.
    fn flush_until(
        &self,
        last: u64,
        mut flush: impl FnMut(u64, u64) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut done = 0;
        while done < last {
            let mut through = self.appended.load(Ordering::Acquire);
            if through == done {
                let mut held = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
                while self.appended.load(Ordering::Acquire) == done {
                    held = self.more.wait(held).unwrap_or_else(PoisonError::into_inner);
                }
                through = self.appended.load(Ordering::Acquire);
            }
            flush(done, through)?;
            self.set(through);
            done = through;
        }
        Ok(())
    }

    fn appended(&self, sequence: u64) {
        self.appended.store(sequence, Ordering::Release);
        // An idle flusher has flushed everything, and only then must it be woken.
        let held = self.durable.lock().unwrap_or_else(PoisonError::into_inner);
        if *held + 1 == sequence {
            self.more.notify_one();
        }
    }
}

/// One producer, one flusher thread; microseconds per durable message.
fn flushed(
    count: u64,
    mut append: impl FnMut(u64),
    flush: impl FnMut(u64, u64) -> io::Result<()> + Send,
) -> Result<f64, Failure> {
    let progress = Progress::default();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let flusher = scope.spawn(|| progress.flush_until(count, flush));
        for sequence in 1..=count {
            progress.wait_for_room(sequence);
            append(sequence);
            progress.appended(sequence);
        }
        flusher
            .join()
            .map_err(|_| "the flusher panicked")?
            .map_err(Failure::from)
    })?;
    Ok(begun.elapsed().as_secs_f64() * 1e6 / count as f64)
}

pub(crate) fn window(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    let payload = [0x5A; 256];
    let count = plan.count(100_000);
    let mut raw = DirectLog::create(&place.file("raw")?, 64 << 20)?;
    let mut ring = Ring::create(&place.file("ring")?, 64 << 20)?;
    let syncer = ring.syncer();
    syncer.sync()?;
    let store = disk_store(place)?;
    let progress = Arc::new(Progress::default());
    let (watched, watch) = (store.clone(), progress.clone());
    store.observe(Arc::new(move |signal| {
        if signal == Signal::Durable {
            watch.set(watched.durable().sequence);
        }
        ControlFlow::Continue(())
    }));
    let (mut ours, mut mapped, mut direct) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..=plan.rounds {
        let of_mapped = flushed(
            count,
            |_| {
                ring.append(&payload);
            },
            |_, _| syncer.sync(),
        )?;

        // Two buffers in turn: one is filled while the other is written.
        let buffer = Mutex::new(Vec::with_capacity(1 << 20));
        let mut writing = Vec::with_capacity(1 << 20);
        let append = |sequence: u64| {
            let mut record = [0x5A; 288];
            record[8..16].copy_from_slice(&sequence.to_le_bytes());
            let crc = crc32fast::hash(&record[4..]);
            record[..4].copy_from_slice(&crc.to_le_bytes());
            buffer
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .extend_from_slice(&record);
        };
        let of_direct = flushed(count, append, |_, _| {
            std::mem::swap(
                &mut *buffer.lock().unwrap_or_else(PoisonError::into_inner),
                &mut writing,
            );
            raw.append(&writing)?;
            writing.clear();
            Ok(())
        })?;

        let begun = Instant::now();
        let mut last = 0;
        let envelope = Envelope::publish(TOPIC);
        for at in 0..count {
            let appended = match store.append(&envelope, &payload) {
                Err(error) if error.is_retryable() => wait_for_space(&store, &envelope, &payload)?,
                other => other?,
            };
            last = appended.sequence;
            if at % 100 == 0 {
                store.settle_through(store.durable().sequence.min(last))?;
            }
            progress.wait_for_room(last + 1);
        }
        progress.wait_for_room(last + WINDOW);
        let of_ours = begun.elapsed().as_secs_f64() * 1e6 / count as f64;
        if round > 0 {
            ours.push(of_ours);
            mapped.push(of_mapped);
            direct.push(of_direct);
        }
    }
    let ours = median(ours);
    for (what, floor, goal) in [
        ("mapping + fdatasync", median(mapped), Goal::Times(1.2)),
        ("memory + pwritev2", median(direct), Goal::Told),
    ] {
        tell(Row {
            target: "T4",
            what: format!("Disk, window of {WINDOW} ({what})"),
            unit: "us",
            ours,
            floor: Some(floor),
            goal,
        });
    }
    Ok(())
}

fn wait_for_space(
    store: &Store,
    envelope: &Envelope<'_>,
    payload: &[u8],
) -> Result<amps_store::Appended, AppendError> {
    let deadline = Instant::now() + std::time::Duration::from_secs(60);
    store.append_wait(envelope, payload, deadline)
}
