//! What can go wrong, and what to do next.

use std::io;
use std::path::PathBuf;

use crate::api::Appended;

/// A message could not be stored. Nothing was stored instead.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendError {
    /// The store is not full: room for this message is being made, by growing the file or freeing
    /// a segment. It will come in a moment, whatever the server does.
    #[error(
        "the store is making room: {live} of {limit} bytes are unsettled and this message needs {needed}; try again in a moment"
    )]
    MakingRoom {
        /// Bytes unsettled, with their charges.
        live: u64,
        /// The most they may become.
        limit: u64,
        /// Bytes this message needs, with its charges.
        needed: u64,
    },
    /// The store is full; room comes when the server settles messages.
    #[error(
        "the store is full: {live} of {limit} bytes are unsettled and this message needs {needed}; wait for acknowledgements; or open it with a larger capacity (`Options::grow_to`, `amps publish --capacity`)"
    )]
    Full {
        /// Bytes unsettled, with their charges.
        live: u64,
        /// The most they may become.
        limit: u64,
        /// Bytes this message needs, with its charges.
        needed: u64,
    },
    /// The file could not grow to make room, though its cap allows it.
    #[error(
        "no space to grow the store: {error}; {live} of {limit} bytes are unsettled and this message needs {needed}; free some disk space or wait for acknowledgements"
    )]
    NoSpace {
        /// What the operating system reported.
        error: String,
        /// Bytes unsettled, with their charges.
        live: u64,
        /// The most they may become in the space that the file has.
        limit: u64,
        /// Bytes this message needs, with its charges.
        needed: u64,
    },
    /// The message can never fit.
    #[error(
        "the message needs a record of {needed} bytes, the largest this store takes is {max}; that was decided when it was created: with --max-message (`Options::max_message`) a new one takes larger messages"
    )]
    TooLarge {
        /// Bytes of its record.
        needed: u64,
        /// Bytes of the largest record.
        max: u64,
    },
    /// The envelope cannot be stored.
    #[error(transparent)]
    Envelope(#[from] crate::EnvelopeError),
    /// The store cannot take anything.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What [`Store::append_durable`](crate::Store::append_durable) could not do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AppendDurableError {
    /// Nothing was stored.
    #[error(transparent)]
    NotStored(#[from] AppendError),
    /// The message is stored, and is sent as any other. A crash of the process cannot take it
    /// away, but a power cut can.
    #[error("message {} is stored, but not known to be durable: {why}", appended.sequence)]
    NotDurable {
        /// Where it is.
        appended: Appended,
        /// Why nothing becomes durable.
        why: StoreError,
    },
}

fn no_space(for_good: bool) -> &'static str {
    match for_good {
        false => "free some and try again",
        true => {
            "nothing in this store can be made durable any more: free some and open it again, or save it in a fresh file (`Store::evacuate` while it is open, `amps store repair FILE --to NEW` once it is closed)"
        }
    }
}

impl AppendError {
    /// Whether trying again later can succeed.
    pub fn is_retryable(&self) -> bool {
        matches!(
            self,
            AppendError::MakingRoom { .. } | AppendError::Full { .. } | AppendError::NoSpace { .. }
        )
    }
}

/// The store cannot do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The store was closed.
    #[error("the store is closed")]
    Closed,
    /// This process is a fork of the one that opened the store.
    #[error("the store belongs to the parent process; a forked child must open its own")]
    Forked,
    /// The store is in memory, where nothing can be made durable.
    #[error("the store is in memory and survives nothing; what must be durable needs a file")]
    InMemory,
    /// A sync failed, so nothing can be made durable any more. What was appended is safe
    /// from a process crash only: evacuate the store to a fresh file.
    #[error(
        "a sync failed earlier ({0}): nothing in this store can be made durable any more; save it in a fresh file (`Store::evacuate` while it is open, `amps store repair FILE --to NEW` once it is closed)"
    )]
    SyncFailed(String),
    /// The disk is full, or a quota or the file size limit was reached.
    #[error("no space to {what}: {error}; {}", no_space(*for_good))]
    NoSpace {
        /// What the space was for.
        what: &'static str,
        /// What the operating system reported.
        error: String,
        /// Nothing more becomes durable in this run, even if space comes.
        for_good: bool,
    },
    /// The file was removed while the store was open. The store takes nothing more, and what it
    /// holds is lost with this process unless it is evacuated to a fresh file. Sending goes on.
    #[error(
        "the file of this store was removed while it was open: it takes nothing more, nothing in it can be made durable, and what it holds ends with this process; save it in a fresh file (`Store::evacuate`, or `--evacuate-to` of publish and drain)"
    )]
    Gone,
    /// A record needed for the store's own upkeep is damaged.
    #[error(
        "the record at offset {offset} was damaged while the store was open; close it and look with `amps store verify`"
    )]
    Damaged {
        /// Where it stands.
        offset: u64,
    },
    /// Another system error.
    #[error("cannot {what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What the operating system reported.
        error: String,
    },
    /// A number would leave its range, so the server's figure that led to it cannot be right.
    #[error("number {0} is out of range; this server's figure cannot be right")]
    OutOfRange(u64),
    /// The log could not take one of its own records. This is a defect of the store.
    #[error("the log has no room for its own records; please report this")]
    LogFull,
}

impl StoreError {
    /// What happened, without what to do about it: for messages that end with advice of their
    /// own.
    pub(crate) fn cause(&self) -> String {
        match self {
            StoreError::NoSpace { what, error, .. } => format!("no space to {what}: {error}"),
            StoreError::SyncFailed(why) => why.clone(),
            StoreError::Damaged { offset } => format!("the record at offset {offset} is damaged"),
            other => other.to_string(),
        }
    }

    /// A system error after which nothing becomes durable any more.
    pub(crate) fn final_io(what: &'static str, error: &io::Error) -> Self {
        let mut failed = Self::io(what, error);
        if let StoreError::NoSpace { for_good, .. } = &mut failed {
            *for_good = true;
        }
        failed
    }

    /// Makes an error of a system error; a lack of space becomes an error of its own.
    pub(crate) fn io(what: &'static str, error: &io::Error) -> Self {
        use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => StoreError::NoSpace {
                what,
                error: error.to_string(),
                for_good: false,
            },
            _ => StoreError::Io {
                what,
                error: error.to_string(),
            },
        }
    }
}

/// A record that exists could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The checksum no longer fits: the file was damaged under the running store.
    #[error("record {sequence} at offset {offset} is damaged")]
    Damaged {
        /// Its sequence.
        sequence: u64,
        /// Where it stands in the file.
        offset: u64,
    },
    /// The store cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A stretch of the log that should be there and is not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedRange {
    /// First byte of the damage.
    pub offset: u64,
    /// Bytes up to the next intact record, or to the end of the segment.
    pub bytes: u64,
    /// First missing ordinal.
    pub first_ordinal: u64,
    /// Last missing ordinal, when a later record names it.
    pub last_ordinal: Option<u64>,
    /// Sequences given out there that may be missing: the first and the last possible.
    pub sequences: Option<(u64, u64)>,
    /// Not only the publishes of `sequences` may be missing: a copy or a refusal of an earlier
    /// message, and so that message, may have stood there as well.
    pub earlier: bool,
}

/// A store could not be opened. Nothing was changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The file cannot be reached.
    #[error("cannot {what} {path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the operating system reported.
        #[source]
        error: io::Error,
    },
    /// There is no store at this place.
    #[error(
        "there is no store at {path}; check the path, or create the store by publishing with it"
    )]
    Missing {
        /// The file.
        path: PathBuf,
    },
    /// Another process owns the store.
    #[error(
        "the store {path} is in use ({owner}); stop that process, wait for it with `--lock-timeout`, or look inside without the lock with `amps store info`"
    )]
    Locked {
        /// The file.
        path: PathBuf,
        /// Who opened it last.
        owner: String,
    },
    /// The owner reuses the file's segments faster than they can be read.
    #[error("the store {path} changes faster than it can be looked at; try again")]
    Busy {
        /// The file.
        path: PathBuf,
    },
    /// The store belongs to another client name.
    #[error(
        "the store {path} belongs to client name {found:?}, not {wanted:?}; use that name or another store"
    )]
    WrongClientName {
        /// The file.
        path: PathBuf,
        /// The name in the file.
        found: String,
        /// The name asked for.
        wanted: String,
    },
    /// The store was evacuated: another file goes on with its numbers.
    #[error(
        "the store {path} was evacuated to another file and must not send again; open that one"
    )]
    Retired {
        /// The file.
        path: PathBuf,
    },
    /// The file is not a store.
    #[error("{path} is not a publish store ({why}); nothing was changed")]
    NotAStore {
        /// The file.
        path: PathBuf,
        /// How that was found.
        why: String,
    },
    /// It is a store, and both copies of its superblock are damaged: geometry, name and numbers
    /// are lost, but the log is still there.
    #[error(
        "the store {path} is damaged: both copies of its superblock are unreadable ({why}), so nothing can be sent from it; `amps store repair FILE --to NEW` saves what is intact; nothing was changed"
    )]
    NoSuperblock {
        /// The file.
        path: PathBuf,
        /// What is wrong with them.
        why: String,
    },
    /// By its superblock this is a store, but it is damaged so badly that no open takes it, not
    /// even with `Salvage`; or it says what no store ever writes.
    #[error("the store {path} is damaged so that it cannot be opened: {why}; nothing was changed")]
    Broken {
        /// The file.
        path: PathBuf,
        /// In which way.
        why: String,
    },
    /// A newer program wrote the file, and uses features that this one does not know.
    #[error(
        "{path} is a store of a newer format: it needs features {features:#x}, which this program does not know; open it with the newer program"
    )]
    Features {
        /// The file.
        path: PathBuf,
        /// The unknown features.
        features: u32,
    },
    /// A newer program wrote it.
    #[error(
        "{path} is a store of a newer format: version {found}, and this program knows {known}; open it with the newer program"
    )]
    Version {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// Ours.
        known: u32,
    },
    /// Records that were durable are damaged. A program can go on without them:
    /// [`Recovery::Salvage`](crate::Recovery::Salvage).
    #[error("the store {path} is damaged in {n} place(s), the first at offset {first}; `amps store verify FILE` lists them, `amps store repair FILE --to NEW` saves what is intact", n = ranges.len(), first = ranges.first().map_or(0, |r| r.offset))]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Every damaged range.
        ranges: Vec<DamagedRange>,
    },
    /// No space to create or open it.
    #[error(
        "no space for the store {path} ({needed} bytes): {error}; free some, or create it with a smaller capacity"
    )]
    NoSpace {
        /// The file.
        path: PathBuf,
        /// Bytes wanted.
        needed: u64,
        /// What the operating system reported.
        error: String,
    },
    /// An option is out of range.
    #[error("bad store option: {0}")]
    Options(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lack_of_space_says_whether_space_helps() {
        let error = io::ErrorKind::StorageFull.into();
        let passing = StoreError::io("grow the store", &error).to_string();
        assert!(passing.contains("try again"), "{passing}");
        let last = StoreError::final_io("write the superblock", &error).to_string();
        assert!(last.contains("save it") && !last.contains("try again"));
    }

    /// There was once "no space to grow the store: no space to grow the store", and one piece of
    /// advice behind another.
    #[test]
    fn an_error_inside_another_says_what_happened_and_gives_no_second_advice() {
        use crate::transfer::{EvacuateError, RepairError};
        let full = || StoreError::io("fill the new file", &io::ErrorKind::StorageFull.into());
        let failed = || StoreError::SyncFailed("EIO".into());
        for error in [
            EvacuateError::Write(full()).to_string(),
            RepairError::Write(full()).to_string(),
            StoreError::SyncFailed(full().cause()).to_string(),
            EvacuateError::Write(failed()).to_string(),
            RepairError::Write(failed()).to_string(),
            StoreError::SyncFailed(failed().cause()).to_string(),
            StoreError::SyncFailed(StoreError::Damaged { offset: 8 }.cause()).to_string(),
        ] {
            for once in ["sync failed", "free some", "save it", "no space"] {
                assert!(error.matches(once).count() <= 1, "{once}: {error}");
            }
            let ends = error.contains("try again") || error.contains("verify");
            assert!(!ends, "the advice of what is inside: {error}");
        }
    }
}
