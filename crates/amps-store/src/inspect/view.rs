//! A look at a file that may be written meanwhile: telling *busy* from *damaged*.
//!
//! A publisher appends, frees the oldest segment and reuses it while this side reads with
//! `pread`. What is read can then be of two different moments, and that can look like a hole or
//! like damage. So:
//!
//! 1. The superblocks and all segment headers are read first and kept; the scan works on those. A
//!    segment whose header said "free" had its survivors copied before, so what is read later
//!    contains them. The superblock must be the same after the scan, except for grants, the count of
//!    segments and where the log begins. A segment is used again only when both copies name a start
//!    behind it, so if something looks wrong and the start has moved, what was read is judged once
//!    more, from the later start on.
//! 2. A scan that found nothing wrong shows a state that the log really had.
//! 3. A scan that found a hole or damage is believed only when a second one, after a pause, finds
//!    the same with the same bytes at the same places.
//! 4. When the second one finds something else, the file is being written. The segments of that
//!    scan are walked again, only up to their first hole: what stands before it is complete, and is
//!    a legal prefix of the log. That the hole is just the place being written is confirmed when the
//!    missing record appears there. A file at rest never gets this far.
//!
//! All of this is bounded: [`ATTEMPTS`] scans, each followed by a pause of at most
//! [`LONGEST_PAUSE`]. A store that gives no answer by then is busy, not damaged.

use std::fs::File;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::DamagedRange;
use crate::format::{
    BLOCK, SEGMENT_HEADER, SUPERBLOCKS, SegmentHeader, Superblock, SuperblockVerdict,
};
use crate::open::FileSource;
use crate::recover::scan::{Geometry, Scanner, Source, Verdict};
use crate::recover::{
    Header, Recovered, Refusal, StandIn, reach, read_header, recover, recover_prefix, stand_in,
    told_start,
};
use crate::report::Stop;

/// Scans before a store counts as too busy to be judged.
const ATTEMPTS: u32 = 14;
/// Both superblocks.
const HEAD: u64 = 2 * BLOCK;
/// Between two scans.
const LONGEST_PAUSE: Duration = Duration::from_millis(40);
/// A file up to this size is copied into memory first, so that everything shown is of one
/// moment. A larger one is read where it stands.
const IMAGE: u64 = if cfg!(test) { 128 << 10 } else { 64 << 20 };
/// Bytes compared at a suspicious place.
const PLACE: usize = 512;

/// A file as it was at one moment.
pub(crate) struct View {
    pub(super) file: Arc<File>,
    image: Option<Vec<u8>>,
    /// Length of the file, holes included.
    pub(crate) file_len: u64,
    /// How much of it [is there](reach): to its end, or to where holes begin that take the last
    /// of its segments whole.
    pub(super) end: u64,
    /// How much of it is read: to the end of the segment that the file is cut in.
    pub(super) len: u64,
    pub(super) superblocks: [SuperblockVerdict; 2],
    pub(crate) header: Header,
    pub(super) stamps: Vec<Option<SegmentHeader>>,
    pub(crate) recovered: Recovered,
    /// It was written while it was read.
    pub(super) moving: bool,
}

impl Source for View {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        fetch(&self.file, self.image.as_deref(), offset, into)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        next_data(&self.file, self.image.as_deref(), offset)
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

/// What is in memory may have been a hole when it was read, or be one by now: in memory it is all
/// data.
fn next_data(file: &File, image: Option<&[u8]>, offset: u64) -> io::Result<u64> {
    match image {
        Some(_) => Ok(offset),
        None => FileSource(file).next_data(offset),
    }
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
            Err(
                refusal @ (Refusal::NotCreated | Refusal::NotAStore(_) | Refusal::NoSuperblock(_)),
            ) => {
                // A store that is being created looks like none for a moment, and then, when its
                // file appears, like one whose superblocks are gone.
                if refused.as_ref() == Some(&head) && read_head(file)? == head {
                    return Err(refusal);
                }
                if attempt >= ATTEMPTS {
                    return Ok(None);
                }
                refused = Some(head);
                continue;
            }
            Err(refusal) => return Err(refusal),
        };
        let after = read_head(file)?;
        let mut suspicion = Suspicion::of(&view)?;
        let mut view = view;
        if suspicion.is_some()
            && let Some(later) = view.looked_at_later(&after)?
        {
            suspicion = Suspicion::of(&later)?;
            view = later;
        }
        if let Some(mut view) = view.at_once_with(&head, after.clone())? {
            let sound = suspicion.is_none() || suspected == suspicion;
            if sound && view.is_no_older()? {
                return Ok(Some(view));
            }
            let Some(suspicion) = suspicion else {
                // Segments that were kept at first have been used again since.
                if attempt >= ATTEMPTS {
                    return Ok(None);
                }
                continue;
            };
            if suspected.is_some()
                && let Some(prefix) = prefix(&view, &head)?
            {
                let last = read_head(file)?;
                if let Some(mut prefix) = prefix.at_once_with(&head, last)? {
                    prefix.moving = true;
                    return Ok(Some(prefix));
                }
            }
            // The first hole has been there all the time. What looks wrong behind it may only be
            // what is being written.
            if attempt >= ATTEMPTS && suspected.is_some_and(|s| s.begins_as(&suspicion)) {
                view.moving = true;
                return Ok(Some(view));
            }
            suspected = Some(suspicion);
        }
        if attempt >= ATTEMPTS {
            return Ok(None);
        }
    }
}

impl View {
    /// The same bytes, judged from the start that the superblock named after the scan. `None`:
    /// the start is the same, or what was read is not in memory and may have been overwritten
    /// since.
    fn looked_at_later(&self, after: &[u8]) -> Result<Option<View>, Refusal> {
        let Some(now) = self.header_in(after)? else {
            return Ok(None);
        };
        let Some(image) = self.image.clone() else {
            return Ok(None);
        };
        let before = &self.header.superblock;
        if now.superblock.start <= before.start {
            return Ok(None);
        }
        // What is durable by now may have been written behind what was read.
        let superblock = Superblock {
            start: now.superblock.start,
            opening: now.superblock.opening,
            ..before.clone()
        };
        let held = Held {
            file: &self.file,
            image: Some(&image),
            end: self.end,
            superblock: &superblock,
            stamps: &self.stamps,
        };
        let recovered = recover(&held, self.len, &superblock)?;
        Ok(Some(View {
            file: self.file.clone(),
            image: Some(image),
            file_len: self.file_len,
            end: self.end,
            len: self.len,
            superblocks: self.superblocks.clone(),
            header: Header {
                superblock,
                ..self.header
            },
            stamps: self.stamps.clone(),
            recovered,
            moving: true,
        }))
    }

    /// Whether what is shown is no older than the moment when the headers were read. Only the
    /// oldest segments are freed. As long as the newest segment of those walked has not been
    /// freed, nothing behind it had been overwritten when it was read, and the log ended there or
    /// went on later. If all segments of the walked log are free by now, it may be an early part
    /// of the log, in which messages look open that had been settled.
    fn is_no_older(&self) -> Result<bool, Refusal> {
        let Some(last) = self.recovered.chain.last() else {
            return Ok(true);
        };
        let now = read_stamp(&self.file, &self.header.superblock, last.segment)?;
        if now != self.stamps.get(last.segment).copied().flatten() {
            return Ok(false);
        }
        let now = self.header_in(&read_head(&self.file)?)?;
        Ok(now.is_some_and(|now| now.superblock.start <= last.first_ordinal))
    }

    /// What these superblocks say; `None`: both were being written while they were read.
    fn header_in(&self, head: &[u8]) -> Result<Option<Header>, Refusal> {
        let behind = Head {
            head,
            file: &self.file,
        };
        match read_header(&behind, self.file_len) {
            Ok(now) => Ok(Some(now)),
            Err(Refusal::Io(error)) => Err(error.into()),
            Err(_) => Ok(None),
        }
    }

    /// The same with the superblocks as they were read after the scan, if only grants, the start,
    /// or the length of the file changed meanwhile. `None`: the store was opened, closed or
    /// rebased.
    fn at_once_with(mut self, head: &[u8], after: Vec<u8>) -> Result<Option<View>, Refusal> {
        if head == after {
            return Ok(Some(self));
        }
        let Some(now) = self.header_in(&after)? else {
            return Ok(None);
        };
        let before = &self.header.superblock;
        let same = Superblock {
            counter: before.counter,
            grant: before.grant,
            number_floor: before.number_floor,
            segments: before.segments,
            start: before.start,
            durable: before.durable,
            opening: before.opening,
            ..now.superblock.clone()
        };
        if same != *before {
            return Ok(None);
        }
        self.moving = true;
        // A file that grew or was cut meanwhile is shown with the segments that were scanned.
        if now.superblock.segments == before.segments {
            let numbers = now.superblock.number_floor.max(now.superblock.grant);
            self.recovered.max_sequence = self.recovered.max_sequence.max(numbers);
            self.superblocks = copies(&after);
            self.header = now;
        }
        Ok(Some(self))
    }
}

fn copies(head: &[u8]) -> [SuperblockVerdict; 2] {
    SUPERBLOCKS.map(|at| {
        let copy = head.get(at as usize..(at + BLOCK) as usize);
        Superblock::decode(copy.unwrap_or(&[]))
    })
}

fn read_head(file: &File) -> io::Result<Vec<u8>> {
    let mut head = vec![0; HEAD as usize];
    FileSource(file).fetch(0, &mut head)?;
    Ok(head)
}

/// A file whose superblock copies are both damaged, seen through what stands in for them. Nobody
/// writes it meanwhile. `None`: nothing shows that it is a store.
pub(crate) fn look_without_superblock(
    file: &Arc<File>,
) -> Result<Option<(View, StandIn)>, Refusal> {
    let len = file.metadata()?.len();
    let Some(mut stand_in) = stand_in(&FileSource(file), len)? else {
        return Ok(None);
    };
    stand_in.superblock.start = told_start(&FileSource(file), &stand_in.superblock)?;
    let header = Header {
        superblock: stand_in.superblock.clone(),
        repair: true,
        order: SUPERBLOCKS,
        lacks_identity: false,
    };
    let view = scan_as(file, &read_head(file)?, header, len, None)?;
    Ok(Some((view, stand_in)))
}

/// One scan. With `kept`, of the same segments, up to the first hole.
fn scan(file: &Arc<File>, head: &[u8], kept: Option<&View>) -> Result<View, Refusal> {
    let file_len = file.metadata()?.len();
    let header = read_header(&Head { head, file }, file_len)?;
    scan_as(file, head, header, file_len, kept)
}

fn scan_as(
    file: &Arc<File>,
    head: &[u8],
    header: Header,
    file_len: u64,
    kept: Option<&View>,
) -> Result<View, Refusal> {
    let superblock = &header.superblock;
    let end = reach(&FileSource(file), file_len, superblock)?;
    let len = superblock.end_of_begun(end);
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
            end,
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
        file_len,
        end,
        len,
        superblocks: copies(head),
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
    let there = superblock.whole_segments(len).min(superblock.segments) as usize;
    let mut stamps = Vec::with_capacity(there);
    while stamps.len() < there {
        let at = superblock.len_of(stamps.len() as u64);
        let data = FileSource(file).next_data(at)?;
        // A segment that is a hole from end to end has no header.
        let behind = superblock.whole_segments(data);
        stamps.resize(behind.min(there as u64) as usize, None);
        if stamps.len() < there {
            stamps.push(read_stamp(file, superblock, stamps.len())?);
        }
    }
    Ok(stamps)
}

fn read_stamp(
    file: &File,
    superblock: &Superblock,
    segment: usize,
) -> io::Result<Option<SegmentHeader>> {
    let at = superblock.len_of(segment as u64);
    let mut bytes = [0; SEGMENT_HEADER as usize];
    FileSource(file).fetch(at, &mut bytes)?;
    Ok(SegmentHeader::decode(&bytes, superblock.key, at))
}

/// The superblocks as they were read, and the file behind them.
struct Head<'a> {
    head: &'a [u8],
    file: &'a File,
}

impl Source for Head<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        if offset < HEAD {
            return fetch(self.file, Some(self.head), offset, into);
        }
        FileSource(self.file).fetch(offset, into)
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        FileSource(self.file).next_data(offset)
    }
}

/// A file with the segment headers that were read first.
struct Held<'a> {
    file: &'a File,
    image: Option<&'a [u8]>,
    end: u64,
    superblock: &'a Superblock,
    stamps: &'a [Option<SegmentHeader>],
}

impl Source for Held<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let segment = self.superblock.whole_segments(offset);
        if offset != self.superblock.len_of(segment) {
            return fetch(self.file, self.image, offset, into);
        }
        into.fill(0);
        if let Some(stamp) = self.stamps.get(segment as usize).copied().flatten() {
            let bytes = stamp.encode(self.superblock.key, offset, 0);
            let n = into.len().min(bytes.len());
            into[..n].copy_from_slice(&bytes[..n]);
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        next_data(self.file, self.image, offset)
    }

    fn end(&self) -> u64 {
        self.end
    }
}

/// What looked wrong, in a form that can be compared with what a second look finds.
#[derive(PartialEq)]
struct Suspicion {
    stop: Stop,
    /// Where the log stops for the first time, and the ordinal that is missing there.
    first: Option<(u64, u64)>,
    /// Checksum of the bytes there.
    first_place: u32,
    damaged: Vec<DamagedRange>,
    ignored: Vec<DamagedRange>,
    set_aside: (usize, u32),
    /// Checksums of the bytes at the suspicious places, as they are in the file now.
    places: u32,
    stamps: Vec<Option<SegmentHeader>>,
}

impl Suspicion {
    fn of(view: &View) -> io::Result<Option<Self>> {
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
            if offset >= geometry.segments_at {
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
        let first = first_hole(recovered);
        if let Some((offset, _)) = first {
            FileSource(&view.file).fetch(offset, &mut bytes)?;
        }
        Ok(Some(Suspicion {
            stop: recovered.stop.clone(),
            first,
            first_place: crc32fast::hash(&bytes),
            damaged: recovered.damaged.clone(),
            ignored: recovered.ignored.clone(),
            set_aside: (recovered.set_aside.len(), aside.finalize()),
            places: places.finalize(),
            stamps,
        }))
    }

    fn begins_as(&self, other: &Suspicion) -> bool {
        self.first.is_some() && (self.first, self.first_place) == (other.first, other.first_place)
    }
}

/// The log up to the place that is being written, when that was all that looked wrong. It is
/// walked in the order in which it was written, so what stands before that place is all that
/// there was at some moment, provided that no segment of it was reused meanwhile.
fn prefix(view: &View, head: &[u8]) -> Result<Option<View>, Refusal> {
    let Some((_, missing)) = first_hole(&view.recovered) else {
        return Ok(None);
    };
    let prefix = scan(&view.file, head, Some(view))?;
    let (recovered, superblock) = (&prefix.recovered, &prefix.header.superblock);
    let Some(last) = recovered.chain.last() else {
        return Ok(None);
    };
    let now = read_stamps(&view.file, view.len, superblock)?;
    let is_left = |segment: usize| {
        let now = now.get(segment).copied().flatten();
        // A segment that was freed keeps its bytes until it is opened again.
        now == Some(SegmentHeader::Free) || now == view.stamps.get(segment).copied().flatten()
    };
    let whole = recovered.damaged.is_empty() && recovered.ignored.is_empty();
    if !whole || !recovered.chain.iter().all(|c| is_left(c.segment)) || !prefix.is_no_older()? {
        return Ok(None);
    }
    let next = recovered.last_ordinal + 1;
    // The log went on beyond the hole, and beyond all that was seen before: the record that
    // follows stands there now, behind the last one or at the beginning of a segment.
    let opens = SegmentHeader::Used {
        first_ordinal: next,
    };
    let opened = (0..now.len()).filter(|segment| now[*segment] == Some(opens));
    let mut places = opened.map(|segment| recovered.geometry.records_at(segment));
    let beyond = next > missing && next > view.recovered.max_ordinal;
    let is_written = |place| goes_on(&FileSource(&view.file), recovered.geometry, place, next);
    let goes_on = beyond
        || is_written(last.end)?
        || places.try_fold(false, |found, place| {
            Ok::<_, io::Error>(found || is_written(place)?)
        })?;
    Ok(goes_on.then_some(prefix))
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
fn goes_on<S: Source + ?Sized>(
    source: &S,
    geometry: Geometry,
    offset: u64,
    ordinal: u64,
) -> io::Result<bool> {
    if offset < geometry.segments_at {
        return Ok(false);
    }
    let end = geometry.end_of(geometry.segment_of(offset));
    let verdict = Scanner::new(source, geometry).look(offset, end)?;
    Ok(matches!(verdict, Verdict::Intact(h) if h.ordinal == ordinal))
}

#[cfg(test)]
mod tests;
