//! From a path to an open log: create, lock, recover.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::calls::{self, Call};
use crate::error::{OpenError, StoreError};
use crate::format::{
    NUMBERS_LAST, SEGMENT_HEADER, SEGMENTS_AT, SUPERBLOCKS, SegmentHeader, Superblock,
};
use crate::log::Log;
use crate::medium::{Mapped, Medium, reserve};
use crate::options::{Options, Recovery, Shape};
use crate::planted::{self, Bug};
use crate::recover::{Header, Recovered, Refusal, read_header, recover};
use crate::report::{RecoveryReport, Stop};
use crate::scan::{Scanner, Source, Verdict};

/// Segments that an open needs beside those of the log: one for its own records, one for the first
/// collection.
const SEGMENTS_TO_GO_ON: u64 = 2;

/// Whether a missing file is created.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Missing {
    Create,
    Refuse,
}

/// Opens a file and everything in it. Nothing is changed before every check has passed.
pub(crate) fn open(
    path: &Path,
    options: &Options,
    missing: Missing,
) -> Result<(Log, RecoveryReport), OpenError> {
    options.check().map_err(OpenError::Options)?;
    if missing == Missing::Create && !path.exists() {
        // Before there is a file: one that nothing can be made of must not stay.
        options.shape().map_err(OpenError::Options)?;
    }
    let file = open_locked(path, missing)?;
    let io = |what| {
        move |error| OpenError::Io {
            path: path.to_owned(),
            what,
            error,
        }
    };
    let network = crate::volume::network(&file);
    if let Some(name) = network {
        tracing::warn!(
            path = %path.display(),
            "the store is on {name}, where neither its lock nor what it syncs can be relied on; \
             put it on a local disk"
        );
    }
    let len = stat(|| file.metadata()).map_err(io("look at"))?.len();
    let header = match read_header(&FileSource(&file), len) {
        Ok(header) => header,
        Err(Refusal::NotCreated) => {
            let shape = options.shape().map_err(OpenError::Options)?;
            let superblock = create(path, &file, &shape, options)?;
            let len = SEGMENTS_AT + shape.segments * shape.segment_size;
            let header = Header {
                superblock,
                repair: false,
                order: SUPERBLOCKS,
            };
            let (log, mut report) = start(path, file, len, header, options, true)?;
            report.network = network;
            return Ok((log, report));
        }
        Err(refusal) => return Err(refused(path, refusal)),
    };
    check_owner(path, &header.superblock, options)?;
    let (log, mut report) = start(path, file, len, header, options, false)?;
    report.network = network;
    Ok((log, report))
}

/// Opens the log on a medium that is ours alone already.
pub(crate) fn open_medium(
    path: &Path,
    mut medium: Box<dyn Medium>,
    options: &Options,
) -> Result<(Log, RecoveryReport), OpenError> {
    options.check().map_err(OpenError::Options)?;
    let header = match read_header(&*medium, medium.len()) {
        Ok(header) => header,
        Err(Refusal::NotCreated) => {
            let shape = options.shape().map_err(OpenError::Options)?;
            let superblock = create_on(path, &mut *medium, &shape, options)?;
            let header = Header {
                superblock,
                repair: false,
                order: SUPERBLOCKS,
            };
            let len = medium.len();
            let found = Found::by(path, &*medium, len, &header.superblock)?;
            return start_on(path, medium, len, header, found, options, true);
        }
        Err(refusal) => return Err(refused(path, refusal)),
    };
    check_owner(path, &header.superblock, options)?;
    let len = medium.len();
    let found = Found::by(path, &*medium, len, &header.superblock)?;
    start_on(path, medium, len, header, found, options, false)
}

pub(crate) fn refused(path: &Path, refusal: Refusal) -> OpenError {
    let path = path.to_owned();
    match refusal {
        Refusal::NotCreated => OpenError::Missing { path },
        Refusal::NotAStore(why) => OpenError::NotAStore { path, why },
        Refusal::Version(found) => OpenError::Version {
            path,
            found,
            known: crate::format::VERSION,
        },
        Refusal::Io(error) => OpenError::Io {
            path,
            what: "read",
            error,
        },
    }
}

fn check_owner(path: &Path, superblock: &Superblock, options: &Options) -> Result<(), OpenError> {
    if superblock.retired {
        return Err(OpenError::Retired {
            path: path.to_owned(),
        });
    }
    match &options.client_name {
        Some(wanted) if *wanted != superblock.client_name => Err(OpenError::WrongClientName {
            path: path.to_owned(),
            found: superblock.client_name.clone(),
            wanted: wanted.clone(),
        }),
        _ => Ok(()),
    }
}

/// Opens the file and locks it. The descriptor is close-on-exec; the lock lives as long as
/// it does, and dies with the process.
fn open_locked(path: &Path, missing: Missing) -> Result<File, OpenError> {
    loop {
        let mut how = OpenOptions::new();
        how.read(true)
            .write(true)
            .create(missing == Missing::Create)
            .truncate(false);
        let file = calls::check(Call::Open)
            .and_then(|()| how.open(path))
            .map_err(|error| match error.kind() {
                io::ErrorKind::NotFound if missing == Missing::Refuse => OpenError::Missing {
                    path: path.to_owned(),
                },
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => OpenError::NoSpace {
                    path: path.to_owned(),
                    needed: SEGMENTS_AT,
                    error: error.to_string(),
                },
                _ => OpenError::Io {
                    path: path.to_owned(),
                    what: "open",
                    error,
                },
            })?;
        let io = |what| {
            move |error| OpenError::Io {
                path: path.to_owned(),
                what,
                error,
            }
        };
        let metadata = stat(|| file.metadata()).map_err(io("look at"))?;
        if !metadata.is_file() {
            return Err(OpenError::NotAStore {
                path: path.to_owned(),
                why: "not a regular file".into(),
            });
        }
        let locked = calls::check(Call::Lock).map_err(TryLockError::Error);
        match locked.and_then(|()| file.try_lock()) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let owner = match read_header(&FileSource(&file), metadata.len()) {
                    Ok(h) => owner(&h.superblock),
                    Err(_) => "being created".to_owned(),
                };
                return Err(OpenError::Locked {
                    path: path.to_owned(),
                    owner,
                });
            }
            Err(TryLockError::Error(error)) => return Err(io("lock")(error)),
        }
        // Somebody may have replaced the file between open and lock.
        match stat(|| std::fs::metadata(path)) {
            Ok(now) if (now.dev(), now.ino()) == (metadata.dev(), metadata.ino()) => {
                return Ok(file);
            }
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(io("look at")(error)),
        }
    }
}

fn stat(call: impl FnOnce() -> io::Result<Metadata>) -> io::Result<Metadata> {
    calls::check(Call::Stat).and_then(|()| call())
}

pub(crate) fn owner(superblock: &Superblock) -> String {
    format!(
        "last opened by process {} on {}",
        superblock.owner_pid, superblock.owner_host
    )
}

/// Gives a new file its blocks, then a name that survives a power cut as well as the bytes,
/// and last its superblocks: before those it is "not created". So whoever finds a store need
/// not ask whether the run that made it came to its end.
fn create(
    path: &Path,
    file: &File,
    shape: &Shape,
    options: &Options,
) -> Result<Superblock, OpenError> {
    let len = SEGMENTS_AT + shape.segments * shape.segment_size;
    let failed = |error| no_space(path, "create", len, error);
    calls::check(Call::Truncate)
        .and_then(|()| file.set_len(0))
        .map_err(failed)?;
    reserve(file, 0, len).map_err(failed)?;
    let clone = file.try_clone().map_err(failed)?;
    let mut medium = Mapped::new(clone, SEGMENTS_AT, len, len).map_err(failed)?;
    sync_directory_of(path).map_err(failed)?;
    create_on(path, &mut medium, shape, options)
}

/// A full disk tells how much room is needed.
fn no_space(path: &Path, what: &'static str, needed: u64, error: io::Error) -> OpenError {
    let path = path.to_owned();
    match StoreError::io(what, &error) {
        StoreError::NoSpace { error, .. } => OpenError::NoSpace {
            path,
            needed,
            error,
        },
        _ => OpenError::Io { path, what, error },
    }
}

fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    calls::check(Call::SyncDirectory).and_then(|()| File::open(directory)?.sync_all())
}

fn create_on(
    path: &Path,
    medium: &mut dyn Medium,
    shape: &Shape,
    options: &Options,
) -> Result<Superblock, OpenError> {
    let io = |error| OpenError::Io {
        path: path.to_owned(),
        what: "create",
        error,
    };
    let device = medium.device();
    let len = SEGMENTS_AT + shape.segments * shape.segment_size;
    if medium.len() < len {
        device.reserve(medium.len(), len).map_err(io)?;
        medium.adopt(len);
    }
    let id = random();
    let superblock = Superblock {
        counter: 1,
        store_id: id,
        key: (random() >> 32) as u32,
        segment_size: shape.segment_size,
        segments: shape.segments,
        cap_segments: shape.cap_segments,
        grant: 0,
        number_floor: 0,
        rebase_from: 0,
        rebase_delta: 0,
        generation: 0,
        closed_at: 0,
        retired: false,
        preallocated: options.preallocate,
        owner_pid: std::process::id(),
        owner_host: host(),
        client_name: options
            .client_name
            .clone()
            .unwrap_or_else(|| format!("amps-{id:016x}")),
    };
    for segment in 0..shape.segments {
        let at = SEGMENTS_AT + segment * shape.segment_size;
        medium.write(at, &SegmentHeader::Free.encode(superblock.key, at, 0));
    }
    device.sync().map_err(io)?;
    for at in SUPERBLOCKS {
        device.write_around(at, &superblock.encode()).map_err(io)?;
    }
    Ok(superblock)
}

fn start(
    path: &Path,
    file: File,
    len: u64,
    header: Header,
    options: &Options,
    created: bool,
) -> Result<(Log, RecoveryReport), OpenError> {
    let superblock = &header.superblock;
    let cap = SEGMENTS_AT + superblock.cap_segments * superblock.segment_size;
    let whole = len.saturating_sub(SEGMENTS_AT) / superblock.segment_size;
    let mapped = SEGMENTS_AT + whole.min(superblock.cap_segments) * superblock.segment_size;
    // Before it is mapped: reading it costs less than a page fault for each piece, and where
    // the device cannot read, there is an error and no signal.
    let found = Found::by(path, &FileSource(&file), mapped, superblock)?;
    let medium = Mapped::new(file, SEGMENTS_AT, mapped, cap).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        what: "map",
        error,
    })?;
    start_on(path, Box::new(medium), len, header, found, options, created)
}

/// What recovery found, and how long that took.
struct Found {
    recovered: Recovered,
    scan: Duration,
}

impl Found {
    fn by<S: Source + ?Sized>(
        path: &Path,
        source: &S,
        len: u64,
        superblock: &Superblock,
    ) -> Result<Found, OpenError> {
        let begun = Instant::now();
        let recovered = recover(source, len, superblock).map_err(|r| refused(path, r))?;
        let scan = begun.elapsed();
        Ok(Found { recovered, scan })
    }
}

/// How many segments there must be. A file that was cut short has them put back. A salvage has
/// losses to name: where every segment is in use it adds them, as far as the capacity goes.
fn segments_to_go_on(superblock: &Superblock, recovered: &Recovered, usable: u64) -> u64 {
    let chain = recovered.chain.len() as u64;
    let most = match chain >= usable && !recovered.damaged.is_empty() {
        true => superblock.cap_segments,
        false => superblock.segments,
    };
    most.min(chain + SEGMENTS_TO_GO_ON)
}

/// What no store writes: going on with it would not come to the same at every open.
fn impossible(superblock: &Superblock, recovered: &Recovered) -> Option<String> {
    const SAVE: &str = "`amps store repair --to FILE` saves what is intact";
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

fn start_on(
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
    } = found;
    // Before the damage: no salvage makes a store of such a file.
    if let Some(why) = impossible(&superblock, &recovered) {
        return Err(OpenError::NotAStore {
            path: path.to_owned(),
            why,
        });
    }
    if options.recovery == Recovery::Strict && !recovered.damaged.is_empty() {
        return Err(OpenError::Damaged {
            path: path.to_owned(),
            ranges: recovered.damaged,
        });
    }
    let there = (medium.len().saturating_sub(SEGMENTS_AT)) / superblock.segment_size;
    if there == 0 {
        return Err(OpenError::NotAStore {
            path: path.to_owned(),
            why: "a store was cut off before its first segment ends; nothing can be salvaged"
                .into(),
        });
    }
    let begun = Instant::now();
    let usable = there.min(superblock.segments);
    let needed = segments_to_go_on(&superblock, &recovered, usable);
    if needed > usable {
        let to = SEGMENTS_AT + needed * superblock.segment_size;
        if to > file_len {
            let reserved = medium.device().reserve(file_len, to);
            reserved.map_err(|error| no_space(path, "lengthen", to, error))?;
        }
        medium.adopt(to);
        // What is left of a segment that was cut is given up, and must not speak at the next open.
        let end = SEGMENTS_AT + usable * superblock.segment_size;
        let left = file_len.min(to).saturating_sub(end) as usize;
        medium.write(end, &vec![0; left]);
        file_len = file_len.max(to);
    }
    let mut report = report(&recovered);
    report.created = created;
    report.generation = superblock.generation + 1;
    report.scan = scan;
    report.superblock_repaired = header.repair;

    // What a growth or a return left unfinished is cut off; what a truncation took is given up.
    superblock.segments = needed.max(usable);
    let len = SEGMENTS_AT + superblock.segments * superblock.segment_size;
    medium.leave(len);
    superblock.generation += 1;
    superblock.owner_pid = std::process::id();
    superblock.owner_host = host();
    superblock.closed_at = 0;
    superblock.counter += 1;
    let device = medium.device();
    if recovered.stop != Stop::CleanClose && !created {
        // The page cache may show bytes that a failed write-back has lost: they are
        // written again, and free segments stamped again, before the sync below.
        if !planted::is(Bug::NoRewrite) {
            write_again(&mut *medium, &recovered);
        }
        if !planted::is(Bug::NoWipe) {
            wipe_torn(&mut *medium, &recovered);
        }
    }
    let mut mended = mend_headers(&mut *medium, &superblock, &recovered);
    let mut is_used = vec![false; superblock.segments as usize];
    for link in &recovered.chain {
        is_used[link.segment] = true;
    }
    for segment in (0..superblock.segments as usize).filter(|s| !is_used[*s]) {
        let at = recovered.geometry.segment_at(segment);
        mended |= !has_header(&*medium, &superblock, at);
        let stamp = SegmentHeader::Free.encode(superblock.key, at, superblock.generation);
        medium.write(at, &stamp);
    }
    // A clean close excuses a damaged header, and is forgotten with the superblock below.
    if (recovered.stop != Stop::CleanClose || mended) && !created {
        device.sync().map_err(io("sync"))?;
    }
    let bytes = superblock.encode();
    for at in header.order {
        device
            .write_around(at, &bytes)
            .map_err(io("write the superblock of"))?;
    }
    // Not before both copies say so: one that is damaged later leaves the word to the other.
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
        // The lost records are what keeps this damage from refusing again.
        device.sync().map_err(io("sync"))?;
    }
    log.watch(options.watermarks);
    report.resync = begun.elapsed();
    report.next = log.bounds().next;
    Ok((log, report))
}

/// Writes the header of a segment of the log again where it cannot be read: its damage is
/// told by this open, and is over. Whether there was one.
fn mend_headers(medium: &mut dyn Medium, superblock: &Superblock, recovered: &Recovered) -> bool {
    let mut mended = false;
    for link in &recovered.chain {
        let at = recovered.geometry.segment_at(link.segment);
        if !has_header(medium, superblock, at) {
            mended = true;
            let (first, end) = (
                recovered.geometry.records_at(link.segment),
                recovered.geometry.end_of(link.segment),
            );
            // What the segment opens with need not be of the log; the next open must take the
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
        }
    }
    mended
}

fn has_header(medium: &dyn Medium, superblock: &Superblock, at: u64) -> bool {
    let mut bytes = [0; SEGMENT_HEADER as usize];
    medium.read(at, &mut bytes);
    SegmentHeader::decode(&bytes, superblock.key, at).is_some()
}

fn write_again(medium: &mut dyn Medium, recovered: &Recovered) {
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
    }
}

/// The head of a torn record must be gone for good before anything is written over it: its
/// lost tail might come to stand behind it again by chance, under the same ordinal.
fn wipe_torn(medium: &mut dyn Medium, recovered: &Recovered) {
    // Where no segment is free, the epoch is written at the cut as well.
    let segments = (medium.len() - SEGMENTS_AT) / recovered.geometry.segment_size;
    let here = recovered.resumes_in_place() || recovered.chain.len() as u64 == segments;
    let Some(last) = recovered.chain.last().filter(|_| here) else {
        return;
    };
    if last.end + 8 <= recovered.geometry.end_of(last.segment) {
        medium.commit(last.end, 0);
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

/// A file read with `pread`: no mapping, no lock.
pub(crate) struct FileSource<'a>(pub(crate) &'a File);

impl Source for FileSource<'_> {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        let mut done = 0;
        while done < into.len() {
            let rest = &mut into[done..];
            let at = offset + done as u64;
            match calls::check(Call::Read).and_then(|()| self.0.read_at(rest, at)) {
                // A file that shrank reads as zeros: nothing is there.
                Ok(0) => {
                    into[done..].fill(0);
                    return Ok(());
                }
                Ok(n) => done += n,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn shared(&self) -> Option<&(dyn Source + Sync)> {
        Some(self)
    }
}

pub(crate) fn host() -> String {
    rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned()
}

/// Fresh bits from the process's own source of them; not for secrets.
fn random() -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new()
        .build_hasher()
        .finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_that_make_no_store_leave_no_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for options in [
            Options::new().capacity(1 << 10),
            Options::new().client_name(""),
        ] {
            let refused = open(&path, &options, Missing::Create).err();
            assert!(matches!(refused, Some(OpenError::Options(_))));
            assert!(!path.exists());
        }
    }
}
