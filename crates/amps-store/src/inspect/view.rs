//! A look at a file that may be written meanwhile: telling *busy* from *damaged*.
//!
//! A publisher appends, frees the oldest segment and reuses it while this side reads with
//! `pread`. What is read can then be of two moments, and two moments can look like a hole
//! or like damage. So:
//!
//! 1. The superblocks and all segment headers are read first and held fast; the scan works
//!    on those. A segment whose stamp said "free" had its survivors copied before, so what
//!    is read later contains them. The superblock must be the same after the scan.
//! 2. A scan that found nothing wrong is a state the log really had.
//! 3. A scan that found a hole or damage is believed only when a second one, after a pause,
//!    finds the same with the same bytes at the same places under the same superblock.
//! 4. When the place was written meanwhile, the same segments are walked again up to their
//!    first hole only: what stands before it is whole, and is a legal prefix of the log.
//!
//! Everything is bounded: [`ATTEMPTS`] scans, each followed by a pause of at most
//! [`LONGEST_PAUSE`]; a store that gives no answer by then is busy, and not damaged.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::DamagedRange;
use crate::file::FileSource;
use crate::format::{
    BLOCK, SEGMENT_HEADER, SEGMENTS_AT, SUPERBLOCKS, SegmentHeader, Superblock, SuperblockVerdict,
};
use crate::recover::{Header, Recovered, Refusal, read_header, recover, recover_prefix};
use crate::report::Stop;
use crate::scan::{Geometry, Scanner, Source, Verdict};

/// Scans before a store counts as too busy for a final word.
const ATTEMPTS: u32 = 14;
/// Between two scans.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// A file up to this size is copied into memory first, so that everything shown is of one
/// moment. A larger one is read where it stands.
const IMAGE: u64 = if cfg!(test) { 128 << 10 } else { 64 << 20 };
/// Bytes compared at a suspicious place.
const PLACE: usize = 512;

/// A file as it was at one moment.
pub(super) struct View {
    pub(super) file: Arc<File>,
    image: Option<Vec<u8>>,
    pub(super) len: u64,
    pub(super) superblocks: [SuperblockVerdict; 2],
    pub(super) header: Header,
    pub(super) stamps: Vec<Option<SegmentHeader>>,
    pub(super) recovered: Recovered,
    /// It was written while it was read.
    pub(super) moving: bool,
}

impl Source for View {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        fetch(&self.file, self.image.as_deref(), offset, into)
    }
}

fn fetch(file: &File, image: Option<&[u8]>, offset: u64, into: &mut [u8]) -> io::Result<()> {
    let Some(image) = image else {
        return FileSource(file).fetch(offset, into);
    };
    let there = image
        .get(usize::try_from(offset).unwrap_or(usize::MAX)..)
        .unwrap_or(&[]);
    let n = there.len().min(into.len());
    into[..n].copy_from_slice(&there[..n]);
    into[n..].fill(0);
    Ok(())
}

/// Looks until the result can be relied on; `None`: the store is too busy.
pub(super) fn look(file: &Arc<File>) -> Result<Option<View>, Refusal> {
    let mut refused: Option<Vec<u8>> = None;
    let mut suspected: Option<Suspicion> = None;
    let mut attempt = 0;
    loop {
        if attempt > 0 {
            std::thread::sleep(Duration::from_millis(1 << attempt.min(10)).min(LONGEST_PAUSE));
        }
        attempt += 1;
        let head = read_head(file)?;
        let view = match scan(file, &head, None) {
            Ok(view) => view,
            // A store that is being created looks like none for a moment.
            Err(Refusal::NotCreated | Refusal::NotAStore(_))
                if refused.as_ref() != Some(&head) && attempt < ATTEMPTS =>
            {
                refused = Some(head);
                continue;
            }
            Err(refusal) => return Err(refusal),
        };
        let steady = read_head(file)? == head;
        let suspicion = Suspicion::of(&view, head)?;
        if suspicion.is_none() && steady {
            return Ok(Some(view));
        }
        if attempt >= ATTEMPTS {
            return Ok(None);
        }
        let Some(suspicion) = suspicion else {
            continue;
        };
        if steady && suspected.as_ref() == Some(&suspicion) {
            return Ok(Some(view));
        }
        if steady && let Some(prefix) = prefix(&view, &suspicion.head)? {
            return Ok(Some(prefix));
        }
        suspected = Some(suspicion);
    }
}

fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; SEGMENTS_AT as usize];
    FileSource(file).fetch(0, &mut head)?;
    Ok(head)
}

/// One scan. With `kept`, of the same segments up to the first hole.
fn scan(file: &Arc<File>, head: &[u8], kept: Option<&View>) -> Result<View, Refusal> {
    let len = file.metadata()?.len();
    let header = read_header(&Head { head, file }, len)?;
    let superblock = &header.superblock;
    let stamps = match kept {
        Some(view) => view.stamps.clone(),
        None => read_stamps(file, len, superblock)?,
    };
    let image = match kept {
        Some(view) => view.image.clone(),
        None if len <= IMAGE => {
            let mut image = vec![0; len as usize];
            FileSource(file).fetch(0, &mut image)?;
            Some(image)
        }
        None => None,
    };
    let recovered = {
        let held = Held {
            file,
            image: image.as_deref(),
            superblock,
            stamps: &stamps,
        };
        match kept {
            Some(_) => recover_prefix(&held, len, superblock)?,
            None => recover(&held, len, superblock)?,
        }
    };
    Ok(View {
        file: file.clone(),
        image,
        len,
        superblocks: SUPERBLOCKS.map(|at| {
            let copy = head.get(at as usize..(at + BLOCK) as usize);
            Superblock::decode(copy.unwrap_or(&[]))
        }),
        header,
        stamps,
        recovered,
        moving: kept.is_some(),
    })
}

/// Every segment's header, as far as the file holds them.
fn read_stamps(
    file: &File,
    len: u64,
    superblock: &Superblock,
) -> io::Result<Vec<Option<SegmentHeader>>> {
    let there = len.saturating_sub(SEGMENTS_AT) / superblock.segment_size;
    (0..there.min(superblock.segments))
        .map(|segment| {
            let at = SEGMENTS_AT + segment * superblock.segment_size;
            let mut bytes = [0; SEGMENT_HEADER as usize];
            FileSource(file).fetch(at, &mut bytes)?;
            Ok(SegmentHeader::decode(&bytes, superblock.key, at))
        })
        .collect()
}

/// The superblocks as they were read, and the file behind them.
struct Head<'a> {
    head: &'a [u8],
    file: &'a File,
}

impl Source for Head<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset < SEGMENTS_AT {
            return fetch(self.file, Some(self.head), offset, into);
        }
        FileSource(self.file).fetch(offset, into)
    }
}

/// A file with the segment headers held fast.
struct Held<'a> {
    file: &'a File,
    image: Option<&'a [u8]>,
    superblock: &'a Superblock,
    stamps: &'a [Option<SegmentHeader>],
}

impl Source for Held<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let size = self.superblock.segment_size;
        let segment = (offset.saturating_sub(SEGMENTS_AT) / size) as usize;
        if offset != SEGMENTS_AT + segment as u64 * size {
            return fetch(self.file, self.image, offset, into);
        }
        into.fill(0);
        if let Some(stamp) = self.stamps.get(segment).copied().flatten() {
            let bytes = stamp.encode(self.superblock.key, offset, 0);
            let n = into.len().min(bytes.len());
            into[..n].copy_from_slice(&bytes[..n]);
        }
        Ok(())
    }
}

/// What looked wrong, in a form that a second look can be compared with.
#[derive(PartialEq)]
struct Suspicion {
    head: Vec<u8>,
    stop: Stop,
    damaged: Vec<DamagedRange>,
    ignored: Vec<DamagedRange>,
    set_aside: (usize, u32),
    /// Checksums of the bytes at the suspicious places, as they are in the file now.
    places: u32,
    stamps: Vec<Option<SegmentHeader>>,
}

impl Suspicion {
    fn of(view: &View, head: Vec<u8>) -> io::Result<Option<Self>> {
        let recovered = &view.recovered;
        let stop = match recovered.stop {
            Stop::Torn { offset } | Stop::Stale { offset } | Stop::Hole { offset } => Some(offset),
            Stop::CleanClose | Stop::Unwritten => None,
        };
        let sound = stop.is_none()
            && recovered.damaged.is_empty()
            && recovered.ignored.is_empty()
            && recovered.set_aside.is_empty()
            && !recovered.tail_damaged;
        if sound {
            return Ok(None);
        }
        let geometry = recovered.geometry;
        let ranges = || recovered.damaged.iter().chain(&recovered.ignored);
        let mut places = crc32fast::Hasher::new();
        let mut stamps = Vec::new();
        let mut bytes = [0; PLACE];
        for offset in ranges().map(|r| r.offset).chain(stop) {
            FileSource(&view.file).fetch(offset, &mut bytes)?;
            places.update(&bytes);
            if offset >= SEGMENTS_AT {
                stamps.push(
                    view.stamps
                        .get(geometry.segment_of(offset))
                        .copied()
                        .flatten(),
                );
            }
        }
        let mut aside = crc32fast::Hasher::new();
        for seen in &recovered.set_aside {
            aside.update(&seen.offset.to_le_bytes());
            aside.update(&seen.ordinal().to_le_bytes());
        }
        Ok(Some(Suspicion {
            head,
            stop: recovered.stop.clone(),
            damaged: recovered.damaged.clone(),
            ignored: recovered.ignored.clone(),
            set_aside: (recovered.set_aside.len(), aside.finalize()),
            places: places.finalize(),
            stamps,
        }))
    }
}

/// When the suspicious place was only being written: the log up to there.
fn prefix(view: &View, head: &[u8]) -> Result<Option<View>, Refusal> {
    let Some((offset, next)) = first_hole(&view.recovered) else {
        return Ok(None);
    };
    let geometry = view.recovered.geometry;
    let chain = view.recovered.chain.iter().map(|c| c.segment);
    let mut segments: Vec<usize> = Vec::new();
    for segment in chain {
        segments.push(segment);
        if segment == geometry.segment_of(offset) {
            break;
        }
    }
    if segments.last() != Some(&geometry.segment_of(offset)) {
        return Ok(None);
    }
    let before = |now: &[Option<SegmentHeader>]| {
        segments
            .iter()
            .all(|s| now.get(*s).copied().flatten() == view.stamps[*s])
    };
    let now = read_stamps(&view.file, view.len, &view.header.superblock)?;
    if !before(&now) || !(now != view.stamps || goes_on(&view.file, geometry, offset, next)?) {
        return Ok(None);
    }
    let prefix = scan(&view.file, head, Some(view))?;
    let now = read_stamps(&view.file, view.len, &view.header.superblock)?;
    let whole = prefix.recovered.damaged.is_empty()
        && prefix.recovered.ignored.is_empty()
        && prefix.recovered.last_ordinal + 1 >= next;
    Ok((whole && before(&now)).then_some(prefix))
}

/// Where the log stopped for the first time, and the ordinal that was missing there.
fn first_hole(recovered: &Recovered) -> Option<(u64, u64)> {
    let damaged = recovered
        .damaged
        .iter()
        .chain(&recovered.ignored)
        .filter(|r| r.first_ordinal != 0)
        .map(|r| (r.offset, r.first_ordinal));
    let stop = match recovered.stop {
        Stop::Torn { offset } | Stop::Stale { offset } | Stop::Hole { offset } => {
            Some((offset, recovered.last_ordinal + 1))
        }
        Stop::CleanClose | Stop::Unwritten => None,
    };
    damaged.chain(stop).min_by_key(|(_, ordinal)| *ordinal)
}

/// Whether the missing record has been written by now.
fn goes_on(file: &File, geometry: Geometry, offset: u64, ordinal: u64) -> io::Result<bool> {
    if offset < SEGMENTS_AT {
        return Ok(false);
    }
    let source = FileSource(file);
    let end = geometry.end_of(geometry.segment_of(offset));
    let verdict = Scanner::new(&source, geometry).look(offset, end)?;
    Ok(matches!(verdict, Verdict::Intact(h) if h.ordinal == ordinal))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    use crate::inspect::{Filter, Inspection};
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
            let mut through = 0;
            for _ in 0..200 {
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
            assert!(lengths.len() > 3, "the file did not move: {lengths:?}");
        });
    }
}
