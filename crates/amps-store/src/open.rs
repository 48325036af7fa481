//! From a path to an open log: create, lock, map.

mod grow;
mod locked;
mod new;
mod place;
mod take_over;
pub(crate) mod volume;

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::error::{OpenError, StoreError};
use crate::faults::calls::{self, Call};
use crate::format::{
    IDENTITY_AT, Opening, Reserved, SEGMENTS_AT, SUPERBLOCKS, SegmentHeader, Superblock, VERSION,
};
use crate::log::Log;
use crate::medium::{Mapped, Medium, has_room, reserve};
use crate::options::{Options, Recovery, Shape};
use crate::recover::scan::Source;
use crate::recover::{Header, Refusal, read_header};
use crate::report::RecoveryReport;

use grow::Plan;
pub(crate) use locked::{For, LockedFile};
pub use new::NewFile;
pub(crate) use new::{PRIVATE, check_mode};
pub use place::Place;
use take_over::{Found, SEGMENTS_TO_GO_ON, take_over};
pub(crate) use take_over::{report, unopenable};
pub use volume::Volume;

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
        // Before there is a file: options that cannot make a store must not leave one.
        options.shape().map_err(OpenError::Options)?;
    }
    let file = open_locked(path, missing, options.lock_timeout)?;
    let io = |what| {
        move |error| OpenError::Io {
            path: path.to_owned(),
            what,
            error,
        }
    };
    let volume = crate::open::volume::volume(&file);
    if let Some(volume) = volume {
        tracing::warn!(path = %path.display(), "the store is on {volume}");
    }
    let len = stat(|| file.metadata()).map_err(io("look at"))?.len();
    let header = match read_header(&FileSource(&file), len) {
        Ok(header) => header,
        // A call that wants what is in a store is not told that an empty file is one.
        Err(Refusal::NotCreated) if missing == Missing::Create => {
            let shape = options.shape().map_err(OpenError::Options)?;
            let superblock = create(path, &file, &shape, options)?;
            let len = SEGMENTS_AT + shape.segments * shape.segment_size;
            let header = Header {
                superblock,
                repair: false,
                order: SUPERBLOCKS,
                lacks_identity: false,
            };
            let (log, mut report) = start(path, file, len, header, options, true)?;
            report.volume = volume;
            return Ok((log, report));
        }
        Err(refusal) => return Err(refused(path, refusal)),
    };
    check_owner(path, &header.superblock, options)?;
    let (log, mut report) = start(path, file, len, header, options, false)?;
    report.volume = volume;
    Ok((log, report))
}

/// Opens the log on a medium that nobody else uses.
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
                lacks_identity: false,
            };
            let len = medium.len();
            let found = Found::by(path, &*medium, len, &header.superblock)?;
            return take_over(path, medium, len, header, found, options, true);
        }
        Err(refusal) => return Err(refused(path, refusal)),
    };
    check_owner(path, &header.superblock, options)?;
    let len = medium.len();
    let mut found = Found::by(path, &*medium, len, &header.superblock)?;
    let device = medium.device();
    let plan = Plan::of(&header.superblock, options, |to| device.has_room(len, to));
    found.plan = Some(plan);
    take_over(path, medium, len, header, found, options, false)
}

pub(crate) fn refused(path: &Path, refusal: Refusal) -> OpenError {
    let path = path.to_owned();
    match refusal {
        Refusal::NotCreated => OpenError::Missing { path },
        Refusal::NotAStore(why) => OpenError::NotAStore { path, why },
        Refusal::NoSuperblock(why) => OpenError::NoSuperblock { path, why },
        Refusal::Broken(why) => OpenError::Broken { path, why },
        Refusal::Features(features) => OpenError::Features { path, features },
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
    if superblock.is_given_up() {
        // Before the client's name is compared: nobody may open it under any name.
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

/// How long an open waits for a lock that this very process holds: another thread may just be
/// dropping the store.
const MOMENT: Duration = Duration::from_millis(250);
/// Pause between two attempts to get a lock.
const PAUSE: Duration = Duration::from_millis(5);

/// Opens the file and locks it. The descriptor is close-on-exec.
fn open_locked(
    path: &Path,
    missing: Missing,
    patience: Duration,
) -> Result<Arc<LockedFile>, OpenError> {
    let begun = Instant::now();
    let io = |what| {
        move |error| OpenError::Io {
            path: path.to_owned(),
            what,
            error,
        }
    };
    loop {
        let mut how = OpenOptions::new();
        how.read(true)
            .write(true)
            .create(missing == Missing::Create)
            .mode(PRIVATE)
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
                _ if path.metadata().is_ok_and(|found| !found.is_file()) => not_regular(path),
                _ => io("open")(error),
            })?;
        let file = LockedFile::of(file);
        let metadata = stat(|| file.metadata()).map_err(io("look at"))?;
        if !metadata.is_file() {
            return Err(not_regular(path));
        }
        match file.try_lock(For::Writing) {
            // Somebody may have replaced the file between open and lock.
            Ok(()) if file.is_at(path).map_err(io("look at"))? => return Ok(file),
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let header = read_header(&FileSource(&file), metadata.len());
                let unknown = match &header {
                    Err(Refusal::NotCreated) => "being created",
                    _ => "by whom cannot be told: it has no intact superblock",
                };
                let superblock = header.ok().map(|h| h.superblock);
                let patience = match superblock.as_ref().is_some_and(is_ours) {
                    true => patience.max(MOMENT),
                    false => patience,
                };
                if begun.elapsed() >= patience {
                    return Err(OpenError::Locked {
                        path: path.to_owned(),
                        owner: superblock.map_or_else(|| unknown.to_owned(), |s| owner(&s)),
                    });
                }
                std::thread::sleep(PAUSE);
            }
            Err(TryLockError::Error(error)) => return Err(io("lock")(error)),
        }
    }
}

pub(crate) fn not_regular(path: &Path) -> OpenError {
    OpenError::NotAStore {
        path: path.to_owned(),
        why: "not a regular file".into(),
    }
}

/// Whether this process opened the store last.
fn is_ours(superblock: &Superblock) -> bool {
    superblock.owner_pid == std::process::id() && superblock.owner_host == host()
}

fn stat(call: impl FnOnce() -> io::Result<Metadata>) -> io::Result<Metadata> {
    calls::check(Call::Stat).and_then(|()| call())
}

pub(crate) fn owner(superblock: &Superblock) -> String {
    format!(
        "last opened by process {} on {}, or a repair is reading it",
        superblock.owner_pid, superblock.owner_host
    )
}

/// Gives a new file its blocks, then a name that survives a power cut as surely as the bytes do,
/// and its superblocks last: without them it counts as "not created". So whoever finds a store
/// need not ask whether its creation was finished.
fn create(
    path: &Path,
    file: &Arc<LockedFile>,
    shape: &Shape,
    options: &Options,
) -> Result<Superblock, OpenError> {
    let len = SEGMENTS_AT + shape.segments * shape.segment_size;
    let failed = |error| no_space(path, "create", len, error);
    // Before any byte is in it.
    if let Some(mode) = options.mode {
        NewFile::new().mode(mode).apply(file).map_err(failed)?;
    }
    calls::check(Call::Truncate)
        .and_then(|()| file.set_len(0))
        .map_err(failed)?;
    reserve(file, 0, len).map_err(failed)?;
    let mut medium = Mapped::new(file.clone(), SEGMENTS_AT, len, len).map_err(failed)?;
    sync_directory_of(path).map_err(failed)?;
    create_on(path, &mut medium, shape, options)
}

/// The error for a full disk says how much room is needed.
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

/// Syncs the directory that holds the file's entry; if `path` is a link, that of its target.
fn sync_directory_of(path: &Path) -> io::Result<()> {
    let path = std::fs::canonicalize(path)?;
    let directory = File::open(path.parent().unwrap_or(Path::new("/")))?;
    calls::check(Call::SyncDirectory).and_then(|()| directory.sync_all())
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
        version: VERSION,
        segments_at: SEGMENTS_AT,
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
        start: 1,
        durable: 0,
        opening: Opening::default(),
        superseded: false,
        reserved: Reserved::default(),
    };
    for segment in 0..shape.segments {
        let at = SEGMENTS_AT + segment * shape.segment_size;
        medium.write(at, &SegmentHeader::Free.encode(superblock.key, at, 0));
    }
    device.sync().map_err(io)?;
    for at in SUPERBLOCKS {
        device.write_around(at, &superblock.encode()).map_err(io)?;
    }
    // After the superblocks, which have all of it as well: an open that finds none writes it.
    if let Some(identity) = superblock.identity() {
        let bytes = identity.encode();
        device.write_around(IDENTITY_AT, &bytes).map_err(io)?;
    }
    Ok(superblock)
}

fn start(
    path: &Path,
    file: Arc<LockedFile>,
    len: u64,
    header: Header,
    options: &Options,
    created: bool,
) -> Result<(Log, RecoveryReport), OpenError> {
    let superblock = &header.superblock;
    let added = match options.recovery {
        Recovery::Strict => 0,
        Recovery::Salvage => SEGMENTS_TO_GO_ON,
    };
    let plan = match created {
        true => None,
        false => Some(Plan::of(superblock, options, |to| has_room(&file, len, to))),
    };
    let cap_segments = plan.as_ref().map_or(0, |plan| plan.cap_segments);
    let cap_segments = superblock.cap_segments.max(cap_segments);
    let cap = superblock.len_of(cap_segments + added);
    // Before it is mapped: reading it costs less than a page fault for each piece, and if the
    // device cannot read, that is an error instead of a signal.
    let mut found = Found::by(path, &FileSource(&file), len, superblock)?;
    found.plan = plan;
    let whole = superblock.whole_segments(found.reach);
    let mapped = superblock.len_of(whole.min(superblock.cap_segments));
    let base = superblock.segments_at;
    let medium = Mapped::new(file, base, mapped, cap).map_err(|error| OpenError::Io {
        path: path.to_owned(),
        what: "map",
        error,
    })?;
    take_over(path, Box::new(medium), len, header, found, options, created)
}

/// The first place from `offset` on that is not a hole of the file; [`u64::MAX`]: there is none.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt;
    // If all blocks are there the file system is not asked: the store has no holes then, and what
    // a file system says of blocks that are just being written cannot always be relied on.
    let metadata = stat(|| file.metadata())?;
    if metadata.blocks().saturating_mul(512) >= metadata.len() {
        return Ok(offset);
    }
    // This moves the file's position, which nobody uses.
    match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(offset)) {
        Ok(at) => Ok(at.max(offset)),
        Err(rustix::io::Errno::NXIO) => Ok(u64::MAX),
        // Not every file system can tell; then all of it is read.
        Err(_) => Ok(offset),
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
                Ok(n) => {
                    calls::count_read(n);
                    done += n;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    fn next_data(&self, offset: u64) -> io::Result<u64> {
        next_data(self.0, offset)
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

/// A client name that nobody else has.
pub(crate) fn fresh_name() -> String {
    format!("amps-{:016x}", random())
}

/// Random bits from the process's own source; not for secrets.
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
