//! Looking into a store without touching it.
//!
//! [`Inspection::open`] reads with `pread` only: it takes no lock, changes no byte, and
//! works while a publisher runs. It recovers the log with the code that opens a store, so
//! it shows what the next open would find.
//!
//! **Busy is not damaged.** A file that is written while it is read can look torn. A hole or
//! damage is reported only when a second look, after a pause, finds the same with the same bytes
//! at the same places. Otherwise what is shown is a legal prefix of the log (a state that it
//! really had), and [`Inspection::is_moving`] says so. A file of up to 64 MiB is shown as it was
//! at one moment. In a larger one that is in use, the bytes of a message may be used again
//! between the look and the reading of its payload; the message is looked up again then, and left
//! out if it has been settled by then.
//!
//! Memory is bounded by the count of records and segments, plus one record (a quarter of a
//! segment), plus at most 64 MiB.

mod map;
mod message;
mod record;
mod verify;
pub(crate) mod view;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::api::{Bounds, Numbers, Rebase};
use crate::error::{DamagedRange, OpenError};
use crate::format::{RECORD_HEADER, SegmentHeader};
use crate::open::volume::Volume;
use crate::open::{self, refused};
use crate::report::RecoveryReport;
use crate::space::limit;

pub use map::{SegmentHeaderState, SegmentMap};
pub use message::{Filter, Message, MessageState, Messages};
pub use record::{Body, Record, RecordKind, RecordVerdict, Records};
pub use verify::{Problem, Severity, Verification};

use view::View;

/// A store as it was found at one moment, read-only.
///
/// Opening, refreshing and every iterator read the file; none of it may run on an async
/// worker.
pub struct Inspection {
    path: PathBuf,
    pub(crate) view: View,
    report: RecoveryReport,
}

/// What a store says about itself. Sequences are the store's own, not wire numbers; sizes are
/// bytes.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Info {
    /// Version of the file format.
    pub format_version: u32,
    /// The client the store belongs to.
    pub client_name: String,
    /// Made at creation; two stores never share one.
    pub store_id: u64,
    /// Who opened it last.
    pub owner_pid: u32,
    /// On which host.
    pub owner_host: String,
    /// Whether that process exists now; `None` when it ran on another host, or when its process
    /// id may belong to another namespace. A hint only: process ids are used again.
    pub owner_alive: Option<bool>,
    /// Whether some process has the store open for writing, according to `/proc/locks`. `None`
    /// where that shows no such lock and does not show every lock: within a PID namespace, and on
    /// file systems that number their devices differently. A hint only: nothing was locked to
    /// find out.
    pub locked: Option<bool>,
    /// The file system it is on, if a store cannot keep all of its promises there.
    pub volume: Option<Volume>,
    /// It was evacuated: another file goes on with its numbers, and every open refuses this one.
    pub evacuated: bool,
    /// Opens so far.
    pub generation: u64,
    /// Writes of the superblock so far.
    pub superblock_writes: u64,
    /// Whether the last owner closed it.
    pub clean: bool,
    /// Most bytes the file may take.
    pub capacity: u64,
    /// Bytes of the file.
    pub file_size: u64,
    /// Bytes of a segment.
    pub segment_size: u64,
    /// Segments in the file.
    pub segments: u64,
    /// Segments the capacity allows.
    pub cap_segments: u64,
    /// Segments that hold none of the log.
    pub free_segments: u64,
    /// Largest record, header and padding included.
    pub max_record: u64,
    /// Bytes of unsettled messages, and of refusals that wait, with their messages.
    pub live_bytes: u64,
    /// The same with the room charged for their future: this is what counts against the limit.
    pub charged_bytes: u64,
    /// The most `charged_bytes` may become.
    pub limit_bytes: u64,
    /// Sequences up to this one may have been handed to a transport.
    pub grant: u64,
    /// The next message's number is above this one, whatever the log shows: this is what the
    /// superblock says.
    pub number_floor: u64,
    /// The rebase in force.
    pub rebase: Option<Rebase>,
    /// Every sequence up to here is settled.
    pub floor: u64,
    /// The lowest number the next message can get.
    pub next: u64,
    /// The highest sequence of any record of the log.
    pub last_sequence: u64,
    /// The lowest unsettled message.
    pub first_unsettled: Option<u64>,
    /// The highest unsettled message.
    pub last_unsettled: Option<u64>,
    /// Unsettled messages.
    pub unsettled: u64,
    /// Refusals that wait for the application.
    pub rejections: u64,
    /// User tag behind which the application resumes.
    pub resume_tag: Option<Vec<u8>>,
    /// Every record up to this ordinal is known to have been on the device.
    pub durable_ordinal: u64,
    /// The last record of the log.
    pub last_ordinal: u64,
    /// Why the log ends there, in words.
    pub stop: String,
    /// Intact records behind a hole: they will not be delivered.
    pub set_aside: u64,
    /// Lowest and highest sequence of the messages among them.
    pub set_aside_sequences: Option<(u64, u64)>,
    /// Sequences of refusals among them.
    pub set_aside_rejections: Vec<u64>,
    /// Damage at or below the durable mark: a strict open refuses.
    pub damaged: Vec<DamagedRange>,
    /// Damage where nothing that is needed can have stood.
    pub ignored: Vec<DamagedRange>,
    /// Sequences given up by an earlier salvage: first and last of each range.
    pub lost: Vec<(u64, u64)>,
    /// One superblock copy is damaged or behind the other.
    pub superblock_differs: bool,
    /// The store changed while it was read: everything here is of a moment ago.
    pub moving: bool,
}

/// What can be told about a store from outside, in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreState {
    /// A process has it open.
    Live,
    /// Its last owner closed it.
    Closed,
    /// Its last owner died, and nobody has opened it since.
    Crashed,
    /// Another file goes on with its numbers.
    Evacuated,
    /// It was not closed, and it cannot be seen from here whether its owner is alive.
    Unknown,
}

impl std::fmt::Display for StoreState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            StoreState::Live => "live",
            StoreState::Closed => "closed",
            StoreState::Crashed => "crashed",
            StoreState::Evacuated => "evacuated",
            StoreState::Unknown => "unknown",
        })
    }
}

impl Info {
    /// Who has the store, as far as that can be told without taking its lock.
    pub fn state(&self) -> StoreState {
        match (self.evacuated, self.locked, self.clean) {
            (true, ..) => StoreState::Evacuated,
            (_, Some(true), _) => StoreState::Live,
            (_, _, true) => StoreState::Closed,
            (_, Some(false), false) => StoreState::Crashed,
            (_, None, false) => StoreState::Unknown,
        }
    }

    /// The most messages that may be missing in the damaged ranges. Messages of earlier numbers
    /// may be missing as well, see [`DamagedRange::earlier`]. A range counts no more messages
    /// than records are missing in it, and no more than sequences are. If no later record says
    /// where the range ends, it counts as many as fit into its bytes, and at least one: when a
    /// file was cut, nothing tells how far the log went.
    pub fn dropped(&self) -> u64 {
        let span = |(first, last): (u64, u64)| last.saturating_sub(first) + 1;
        let messages = |range: &DamagedRange| {
            let Some(last) = range.last_ordinal else {
                return (range.bytes / RECORD_HEADER as u64).max(1);
            };
            let records = span((range.first_ordinal, last));
            range.sequences.map_or(records, |s| span(s).min(records))
        };
        self.damaged.iter().map(messages).sum()
    }
}

impl Inspection {
    /// Looks at the store at `path`. A damaged store is no error: the damage is in the result.
    ///
    /// # Errors
    /// [`OpenError::Missing`], [`OpenError::NoSuperblock`] (both copies are damaged:
    /// [`repair_with`](crate::transfer::repair_with) saves what is intact), [`OpenError::NotAStore`] (it has nothing of a store
    /// in it, or is not a regular file), [`OpenError::Version`], [`OpenError::Io`];
    /// [`OpenError::Busy`] when its owner changes it faster than it can be read.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let file = regular_file(path)?;
        Self::of(path, &Arc::new(file))
    }

    pub(crate) fn of(path: &Path, file: &Arc<File>) -> Result<Self, OpenError> {
        let view = view::look(file).map_err(|refusal| refused(path, refusal))?;
        let view = view.ok_or_else(|| OpenError::Busy {
            path: path.to_owned(),
        })?;
        Ok(Self::with(path, view))
    }

    pub(crate) fn with(path: &Path, view: View) -> Self {
        let mut report = open::report(&view.recovered);
        report.superblock_repaired = false;
        Inspection {
            path: path.to_owned(),
            view,
            report,
        }
    }

    /// Looks again at the same file.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn refresh(&mut self) -> Result<(), OpenError> {
        *self = Self::of(&self.path, &self.view.file)?;
        Ok(())
    }

    /// Where the store is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store changed while it was read; see the [module](self).
    pub fn is_moving(&self) -> bool {
        self.view.moving
    }

    /// What the next open would find and report. A look repairs nothing, so the flag that says so
    /// is never set; see [`Info::superblock_differs`].
    pub fn report(&self) -> &RecoveryReport {
        &self.report
    }

    /// Everything the store says about itself.
    pub fn info(&self) -> Info {
        let (superblock, recovered) = (&self.view.header.superblock, &self.view.recovered);
        let (bounds, numbers, report) = (self.bounds(), self.numbers(), &self.report);
        let size = superblock.segment_size;
        Info {
            format_version: superblock.version,
            client_name: superblock.client_name.clone(),
            store_id: superblock.store_id,
            owner_pid: superblock.owner_pid,
            owner_host: superblock.owner_host.clone(),
            owner_alive: owner_alive(superblock.owner_pid, &superblock.owner_host),
            locked: is_locked(&self.view.file),
            volume: crate::open::volume::volume(&self.view.file),
            evacuated: superblock.is_given_up(),
            generation: superblock.generation,
            superblock_writes: superblock.counter,
            clean: self.is_closed(),
            capacity: superblock.len_of(superblock.cap_segments),
            file_size: self.view.file_len,
            segment_size: size,
            segments: superblock.segments,
            cap_segments: superblock.cap_segments,
            free_segments: superblock
                .segments
                .saturating_sub(recovered.chain.len() as u64),
            max_record: recovered.geometry.max_record,
            live_bytes: recovered.state.live(),
            charged_bytes: bounds.live_bytes,
            limit_bytes: bounds.limit_bytes,
            grant: numbers.grant,
            number_floor: superblock.number_floor,
            rebase: numbers.rebase,
            floor: bounds.floor,
            next: report.next,
            last_sequence: bounds.last,
            first_unsettled: report.first,
            last_unsettled: report.last,
            unsettled: report.recovered,
            rejections: report.rejections,
            resume_tag: self.resume_tag().map(<[u8]>::to_vec),
            durable_ordinal: report.durable_ordinal,
            last_ordinal: report.last_ordinal,
            stop: report.stop.to_string(),
            set_aside: report.set_aside,
            set_aside_sequences: report.set_aside_sequences,
            set_aside_rejections: report.set_aside_rejections.clone(),
            damaged: report.damaged.clone(),
            ignored: report.ignored.clone(),
            lost: report.lost.clone(),
            superblock_differs: self.view.header.repair,
            moving: self.view.moving,
        }
    }

    /// Whether the last owner closed it, and nobody has opened it since.
    pub fn is_closed(&self) -> bool {
        let closed_at = self.view.header.superblock.closed_at;
        closed_at != 0 && closed_at == self.view.recovered.last_ordinal
    }

    /// The numbers of the store, as its owner would report them.
    pub fn bounds(&self) -> Bounds {
        let (superblock, recovered) = (&self.view.header.superblock, &self.view.recovered);
        let state = &recovered.state;
        Bounds {
            first_unsettled: state.first_unsettled(),
            last: state.last(),
            next: self.report.next,
            floor: state.floor(),
            unsettled: state.unsettled(),
            rejections: state.rejections().len() as u64,
            live_bytes: state.charged(),
            limit_bytes: limit(&recovered.geometry, superblock.cap_segments),
        }
    }

    /// Send grant and rebase. A look is not a run of its own: `found_grant` is the grant, and
    /// `first_of_run` the next sequence.
    pub fn numbers(&self) -> Numbers {
        let superblock = &self.view.header.superblock;
        Numbers {
            grant: superblock.grant,
            found_grant: superblock.grant,
            first_of_run: self.report.next,
            rebase: (superblock.rebase_from != 0).then_some(Rebase {
                from: superblock.rebase_from,
                delta: superblock.rebase_delta,
            }),
        }
    }

    /// User tag behind which the application resumes.
    pub fn resume_tag(&self) -> Option<&[u8]> {
        let tag = self.view.recovered.tag.as_deref();
        tag.filter(|tag| !tag.is_empty())
    }

    fn stamp(&self, segment: usize) -> Option<SegmentHeader> {
        self.view.stamps.get(segment).copied().flatten()
    }
}

/// A file that can be looked at, opened for reading.
pub(crate) fn regular_file(path: &Path) -> Result<File, OpenError> {
    // The file may be there for one call and gone for the next.
    let found = |what| {
        move |error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => OpenError::Missing {
                path: path.to_owned(),
            },
            _ => OpenError::Io {
                path: path.to_owned(),
                what,
                error,
            },
        }
    };
    // Opening a fifo would block, and opening a device may change it.
    let metadata = std::fs::metadata(path).map_err(found("look at"))?;
    if !metadata.is_file() {
        return Err(open::not_regular(path));
    }
    File::open(path).map_err(found("open"))
}

fn owner_alive(pid: u32, host: &str) -> Option<bool> {
    if host != open::host() || !is_first_pid_namespace() {
        return None;
    }
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).ok()?)?;
    Some(match rustix::process::test_kill_process(pid) {
        Ok(()) => true,
        Err(error) => error != rustix::io::Errno::SRCH,
    })
}

/// Whether this process sees all others. The kernel gives the first PID namespace this number,
/// and hides the processes of other namespaces, with their locks.
fn is_first_pid_namespace() -> bool {
    std::fs::read_link("/proc/self/ns/pid").is_ok_and(|name| name.as_os_str() == "pid:[4026531836]")
}

/// Whether `/proc/locks` shows a writer's lock. It names each lock by device and inode: `1: FLOCK
/// ADVISORY WRITE 42 fd:01:7 0 EOF`. A lock for reading is that of a repair. That no lock is
/// shown proves something only where all of them are.
fn is_locked(file: &File) -> Option<bool> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata().ok()?;
    let (major, minor) = (
        rustix::fs::major(metadata.dev()),
        rustix::fs::minor(metadata.dev()),
    );
    let wanted = format!("{major:02x}:{minor:02x}:{}", metadata.ino());
    let locks = std::fs::read_to_string("/proc/locks").ok()?;
    let held = |line: &str| {
        let mut words = line.split_whitespace();
        words.any(|w| w == "FLOCK") && words.any(|w| w == "WRITE") && words.any(|w| w == wanted)
    };
    match locks.lines().any(held) {
        true => Some(true),
        false if is_first_pid_namespace() && crate::open::volume::has_true_devices(file) => {
            Some(false)
        }
        false => None,
    }
}
