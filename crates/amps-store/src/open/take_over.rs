//! From what recovery found to a log that can go on: checks it, mends it, and begins a run.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use super::grow::Plan;
use super::{host, no_space, refused};
use crate::error::OpenError;
use crate::faults::planted::{self, Bug};
use crate::format::{
    IDENTITY_AT, NUMBERS_LAST, Opening, SEGMENT_HEADER, SegmentHeader, Superblock, UserTag,
    VERSION, most_segments,
};
use crate::log::{Log, segments_for_stranded, starts_in_last_segment};
use crate::medium::Medium;
use crate::options::{Options, Recovery};
use crate::recover::scan::{Scanner, Source, Verdict};
use crate::recover::{Header, Recovered, reach, recover};
use crate::report::{RecoveryReport, Stop};
use crate::space::unsynced::Extent;

/// Segments that an open needs besides those of the log: one for its own records and one for the
/// first copies.
pub(super) const SEGMENTS_TO_GO_ON: u64 = 2;

/// What recovery found, and how long that took.
pub(super) struct Found {
    recovered: Recovered,
    scan: Duration,
    /// How far the file [goes](reach).
    pub(super) reach: u64,
    /// What to do about the capacity.
    pub(super) plan: Option<Plan>,
}

impl Found {
    pub(super) fn by<S: Source + ?Sized>(
        path: &Path,
        source: &S,
        len: u64,
        superblock: &Superblock,
    ) -> Result<Found, OpenError> {
        let begun = Instant::now();
        let reach = reach(source, len, superblock).map_err(|r| refused(path, r))?;
        let recovered = recover(source, reach, superblock).map_err(|r| refused(path, r))?;
        Ok(Found {
            recovered,
            scan: begun.elapsed(),
            reach,
            plan: None,
        })
    }
}

/// How many segments there must be. A file that was cut short gets them back. A salvage has
/// losses to name and stranded records to copy. If too few segments are free for that, and the
/// last one is too full, it adds some, if necessary above the capacity, as a repair does:
/// refusing for want of room would keep from the owner everything that is intact.
fn segments_to_go_on(superblock: &Superblock, recovered: &Recovered, usable: u64) -> u64 {
    let chain = recovered.chain.len() as u64;
    let salvages = !recovered.damaged.is_empty();
    let copies = segments_for_stranded(recovered);
    let too_few = chain + copies >= usable;
    let most = match salvages && too_few && !starts_in_last_segment(recovered) {
        true => most_segments(superblock.segment_size),
        false => superblock.segments,
    };
    most.min(chain + copies + SEGMENTS_TO_GO_ON)
}

const SAVE: &str = "`amps store repair --to FILE` saves what is intact";

/// Why every open refuses a file, even with `Salvage`.
pub(crate) fn unopenable(
    path: &Path,
    len: u64,
    superblock: &Superblock,
    recovered: &Recovered,
) -> Option<OpenError> {
    let path = path.to_owned();
    if superblock.is_given_up() {
        return Some(OpenError::Retired { path });
    }
    // Before damage is considered: no salvage can make a store of such a file.
    let why = impossible(superblock, recovered).or_else(|| {
        let there = superblock.whole_segments(len);
        (there == 0).then(|| format!("it was cut off before its first segment ends; {SAVE}"))
    })?;
    Some(OpenError::Broken { path, why })
}

/// States that no store writes. Going on with one would not give the same result at every open.
fn impossible(superblock: &Superblock, recovered: &Recovered) -> Option<String> {
    let numbers = [
        superblock.generation,
        superblock.counter,
        recovered.max_ordinal,
        recovered.max_sequence,
    ];
    if numbers.iter().any(|n| *n >= NUMBERS_LAST) {
        return Some("its numbers are used up, which takes more than a lifetime".into());
    }
    let (known, found) = (superblock.generation, recovered.max_generation);
    if found > known {
        return Some(format!(
            "its superblock knows of run {known} and a record of run {found}, which no store \
             writes: two files were mixed, or it was copied while it was opened; {SAVE}"
        ));
    }
    if let Some((one, other)) = &recovered.twice {
        return Some(format!(
            "record {} stands at {} and at {}, which no store writes; {SAVE}",
            one.ordinal(),
            one.offset,
            other.offset
        ));
    }
    if let Some(seen) = &recovered.meaningless {
        return Some(format!(
            "record {} at {} is intact and has no meaning, which no store writes; {SAVE}",
            seen.ordinal(),
            seen.offset
        ));
    }
    let mut pairs = recovered.chain.windows(2);
    let pair = pairs.find(|pair| pair[1].first_ordinal <= pair[0].last_ordinal)?;
    Some(format!(
        "segments {} and {} take turns at record {}, which no store writes; {SAVE}",
        pair[0].segment, pair[1].segment, pair[1].first_ordinal
    ))
}

pub(super) fn take_over(
    path: &Path,
    mut medium: Box<dyn Medium>,
    mut file_len: u64,
    header: Header,
    found: Found,
    options: &Options,
    created: bool,
) -> Result<(Log, RecoveryReport), OpenError> {
    let io = |what| {
        move |error| OpenError::Io {
            path: path.to_owned(),
            what,
            error,
        }
    };
    let mut superblock = header.superblock;
    let Found {
        mut recovered,
        scan,
        mut reach,
        plan,
    } = found;
    if let Some(refused) = unopenable(path, medium.len(), &superblock, &recovered) {
        return Err(refused);
    }
    if options.recovery == Recovery::Strict && !recovered.damaged.is_empty() {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            ranges: recovered.damaged,
        });
    }
    let there = superblock.whole_segments(medium.len());
    let begun = Instant::now();
    let usable = there.min(superblock.segments);
    // A copy in which the zeros were left out is a complete store; but with a full disk, storing
    // into its holes would kill the process.
    if !created {
        let end = superblock.len_of(usable);
        let filled = medium.device().fill_holes(superblock.segments_at, end);
        filled.map_err(|error| no_space(path, "fill the holes of", end, error))?;
    }
    let needed = segments_to_go_on(&superblock, &recovered, usable);
    if needed > usable {
        let to = superblock.len_of(needed);
        let end = superblock.len_of(usable);
        lengthen(&mut *medium, end, reach, to)
            .map_err(|error| no_space(path, "lengthen", to, error))?;
        reach = reach.max(to);
        file_len = file_len.max(to);
    }
    let mut segments = needed.max(usable);
    let mut growth = None;
    if let Some(mut plan) = plan {
        segments = plan.carry_out(&mut superblock, &mut *medium, segments, reach);
        growth = plan.growth;
        file_len = file_len.max(medium.len());
    }
    let mut report = report(&recovered);
    report.created = created;
    report.generation = superblock.generation + 1;
    report.scan = scan;
    report.superblock_repaired = header.repair;
    report.growth = growth;

    // What growth or a return left unfinished is cut off. What a truncation took is given up.
    superblock.segments = segments;
    recovered.state.resize(superblock.segments as usize);
    let len = superblock.len_of(superblock.segments);
    if superblock.segments > superblock.cap_segments {
        superblock.cap_segments = superblock.segments;
        report.enlarged_to = Some(len);
    }
    medium.leave(len);
    superblock.generation += 1;
    superblock.owner_pid = std::process::id();
    superblock.owner_host = host();
    superblock.closed_at = 0;
    superblock.counter += 1;
    let device = medium.device();
    let mut written = Vec::new();
    if recovered.stop != Stop::CleanClose && !created {
        // The page cache may show bytes that a failed write-back has lost, so they are written
        // again before the sync below.
        if !planted::is(Bug::NoRewrite) {
            write_again(&mut *medium, &recovered, &mut written);
        }
        if !planted::is(Bug::NoWipe) {
            wipe_torn(&mut *medium, &recovered, &mut written);
        }
        wipe_earlier_laps(&mut *medium, &recovered, &mut written);
    }
    move_start(&mut superblock, &recovered);
    mend_headers(&mut *medium, &superblock, &recovered, &mut written);
    stamp_free(&mut *medium, &superblock, &recovered, &mut written);
    written.push((superblock.len_of(usable), len));
    // After a clean close a damaged header does no harm; but the superblock below ends that
    // state.
    Extent::of(written).sync(&*device).map_err(io("sync"))?;
    if superblock.version != VERSION {
        tracing::info!(
            path = %path.display(),
            from = superblock.version,
            "the store is converted to format version {VERSION}, which older programs cannot open"
        );
        report.converted_from = Some(superblock.version);
        superblock.version = VERSION;
    }
    let bytes = superblock.encode();
    for at in header.order {
        device
            .write_around(at, &bytes)
            .map_err(io("write the superblock of"))?;
    }
    if let Some(identity) = superblock.identity().filter(|_| header.lacks_identity) {
        let written = device.write_around(IDENTITY_AT, &identity.encode());
        written.map_err(io("write the identity of"))?;
    }
    // Only once both copies say so: if one is damaged later, the other one counts.
    if file_len > len {
        device.truncate(len).map_err(io("cut"))?;
    }
    recovered.durable = recovered.last_ordinal;
    let gave_up = !recovered.damaged.is_empty();
    let mut log = Log::start(medium, superblock, recovered).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        what: "start a new epoch in",
        error: io::Error::other(error),
    })?;
    if gave_up {
        // The lost records keep this damage from making the next open refuse.
        log.sync_beginning().map_err(io("sync"))?;
    }
    log.watch(options.watermarks);
    report.resync = begun.elapsed();
    report.next = log.bounds().next;
    Ok((log, report))
}

/// Makes the file longer, from `end` to `to`, where it goes to `reach`. What was behind the end,
/// from a segment that was cut or from a length that no superblock names, is given up and must
/// not count at the next open.
pub(super) fn lengthen(medium: &mut dyn Medium, end: u64, reach: u64, to: u64) -> io::Result<()> {
    if to > reach {
        medium.device().reserve(reach, to)?;
    }
    medium.adopt(to);
    let zeros = [0; 64 << 10];
    let (mut at, old) = (end, reach.min(to));
    while at < old {
        let n = (old - at).min(zeros.len() as u64);
        medium.write(at, &zeros[..n as usize]);
        at += n;
    }
    Ok(())
}

/// Everything recovered is durable by now, so the superblock may stand in for it. But if
/// something is lost that is not named in the log yet, it must not: an open that dies before it
/// has reported the loss must leave everything that proves it to the next.
fn move_start(superblock: &mut Superblock, recovered: &Recovered) {
    // This includes ordinals above the end of the log, if that end is damaged.
    superblock.durable = superblock
        .durable
        .max(recovered.durable)
        .max(recovered.last_ordinal);
    let told = planted::is(Bug::StartBeforeTold);
    if !recovered.damaged.is_empty() && !told {
        return;
    }
    superblock.opening = Opening {
        floor: recovered.state.floor(),
        next: recovered.next.max(recovered.max_sequence + 1),
        tag: recovered.tag.as_deref().map(UserTag::new),
    };
    let first = recovered.chain.first().map_or(0, |link| link.first_ordinal);
    if (recovered.set_aside.is_empty() && recovered.ignored.is_empty()) || told {
        superblock.start = superblock.start.max(first);
    }
}

/// A stretch of the file that was written: offset and end.
type Stretch = (u64, u64);

/// Writes the header of a segment of the log again if it cannot be read: this open reports the
/// damage, and then it is mended.
fn mend_headers(
    medium: &mut dyn Medium,
    superblock: &Superblock,
    recovered: &Recovered,
    written: &mut Vec<Stretch>,
) {
    for link in &recovered.chain {
        let at = recovered.geometry.segment_at(link.segment);
        if header(medium, superblock, at).is_none() {
            let (first, end) = (
                recovered.geometry.records_at(link.segment),
                recovered.geometry.end_of(link.segment),
            );
            // The first record in the segment need not be of the log. The next open must take the
            // segment for what this one took it for.
            let first_ordinal = match Scanner::new(medium, recovered.geometry).look(first, end) {
                Ok(Verdict::Intact(record)) => record.ordinal,
                _ => link.first_ordinal,
            };
            let header = SegmentHeader::Used { first_ordinal };
            medium.write(
                at,
                &header.encode(superblock.key, at, superblock.generation),
            );
            written.push((at, at + SEGMENT_HEADER));
        }
    }
}

/// Stamps each segment as free that the next open could take for part of the log although it is
/// not. A segment that was used from below the start is free as it is.
fn stamp_free(
    medium: &mut dyn Medium,
    superblock: &Superblock,
    recovered: &Recovered,
    written: &mut Vec<Stretch>,
) {
    let mut is_used = vec![false; superblock.segments as usize];
    for link in &recovered.chain {
        is_used[link.segment] = true;
    }
    for segment in (0..superblock.segments as usize).filter(|s| !is_used[*s]) {
        let at = recovered.geometry.segment_at(segment);
        match header(medium, superblock, at) {
            Some(SegmentHeader::Free) => continue,
            Some(SegmentHeader::Used { first_ordinal }) if first_ordinal < superblock.start => {
                continue;
            }
            _ => {}
        }
        let stamp = SegmentHeader::Free.encode(superblock.key, at, superblock.generation);
        medium.write(at, &stamp);
        if !planted::is(Bug::StampsUnsynced) {
            written.push((at, at + SEGMENT_HEADER));
        }
    }
}

fn header(medium: &dyn Medium, superblock: &Superblock, at: u64) -> Option<SegmentHeader> {
    let mut bytes = [0; SEGMENT_HEADER as usize];
    medium.read(at, &mut bytes);
    SegmentHeader::decode(&bytes, superblock.key, at)
}

fn write_again(medium: &mut dyn Medium, recovered: &Recovered, written: &mut Vec<Stretch>) {
    let mut buffer = vec![0; 64 << 10];
    for link in recovered
        .chain
        .iter()
        .filter(|c| c.last_ordinal > recovered.durable)
    {
        let mut at = recovered.geometry.segment_at(link.segment);
        while at < link.end {
            let n = (link.end - at).min(buffer.len() as u64) as usize;
            medium.read(at, &mut buffer[..n]);
            medium.write(at, &buffer[..n]);
            at += n as u64;
        }
        written.push((recovered.geometry.segment_at(link.segment), link.end));
    }
}

/// The head of a torn record must be gone for good before anything is written over it. Otherwise
/// its lost tail might by chance stand behind it again, under the same ordinal.
fn wipe_torn(medium: &mut dyn Medium, recovered: &Recovered, written: &mut Vec<Stretch>) {
    // If no segment is free, the epoch is written at the cut as well.
    let geometry = &recovered.geometry;
    let segments = (medium.len() - geometry.segments_at) / geometry.segment_size;
    let here = recovered.resumes_in_place() || recovered.chain.len() as u64 == segments;
    let Some(last) = recovered.chain.last().filter(|_| here) else {
        return;
    };
    if last.end + 8 <= recovered.geometry.end_of(last.segment) {
        medium.commit(last.end, 0);
        written.push((last.end, last.end + 8));
    }
}

/// What a salvage names as lost must stay lost. What an earlier lap left under the same ordinals
/// is recognised by what stands before it in its segment, and that may be gone at the next open.
fn wipe_earlier_laps(medium: &mut dyn Medium, recovered: &Recovered, written: &mut Vec<Stretch>) {
    if !recovered.damaged.is_empty() {
        for seen in &recovered.earlier_laps {
            medium.commit(seen.offset, 0);
            written.push((seen.offset, seen.offset + 8));
        }
    }
}

/// What recovery found, for people and programs.
pub(crate) fn report(recovered: &Recovered) -> RecoveryReport {
    let state = &recovered.state;
    let first = state.first_unsettled();
    let mut sequences = recovered
        .set_aside
        .iter()
        .filter(|s| s.kind().is_message())
        .map(|s| s.header.sequence);
    let set_aside_sequences = sequences
        .next()
        .map(|s| sequences.fold((s, s), |(low, high), s| (low.min(s), high.max(s))));
    RecoveryReport {
        recovered: state.unsettled(),
        first,
        last: state.last_unsettled(),
        next: recovered.next.max(recovered.max_sequence + 1),
        rejections: state.rejections().len() as u64,
        generation: recovered.max_generation,
        torn_bytes: recovered.torn_bytes,
        stop: recovered.stop.clone(),
        durable_ordinal: recovered.durable,
        last_ordinal: recovered.last_ordinal,
        set_aside: recovered.set_aside.len() as u64,
        set_aside_sequences,
        set_aside_rejections: recovered
            .set_aside
            .iter()
            .filter(|s| s.kind() == crate::format::Kind::Rejection)
            .map(|s| s.header.sequence)
            .collect(),
        damaged: recovered.damaged.clone(),
        ignored: recovered.ignored.clone(),
        lost: recovered
            .lost
            .iter()
            .map(|l| (l.first_sequence, l.last_sequence))
            .collect(),
        bytes: recovered.bytes,
        ..RecoveryReport::default()
    }
}
