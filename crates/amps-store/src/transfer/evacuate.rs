//! Leaving a store whose device failed (`docs/promises.md` S8).

use std::io;
use std::path::{Path, PathBuf};

use crate::api::{Level, StoredMessage};
use crate::error::{OpenError, ReadError, StoreError};
use crate::format::{CHARGE, RECORD_HEADER, SUPERBLOCKS};
use crate::log::{Log, check};
use crate::open::NewFile;
use crate::options::Options;
use crate::store::Store;
use crate::transfer::rebuild::{Heritage, Rebuild};

/// An evacuation failed. The old store is as it was and the new file is removed, unless the
/// variant says otherwise.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EvacuateError {
    /// The old store is closed already, or belongs to another process.
    #[error(transparent)]
    Old(StoreError),
    /// A message of the old store cannot be read.
    #[error("cannot read the old store: {0}")]
    Read(#[from] ReadError),
    /// Something is in the way of the new store.
    #[error("cannot create {path}: {error}; choose a place where no file is")]
    Create {
        /// The new file.
        path: PathBuf,
        /// What the operating system reported.
        #[source]
        error: io::Error,
    },
    /// The new store cannot be written.
    #[error("cannot write the new store: {}; free some space or choose another device", .0.cause())]
    Write(StoreError),
    /// The new store cannot be started.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The new store is whole and durable and the old one is closed for good, but opening the
    /// new one failed.
    #[error(
        "everything was evacuated to {path}, and the old store is closed for good, but the new one cannot be opened: {error}; open it when that is mended"
    )]
    Reopen {
        /// The new store.
        path: PathBuf,
        /// Why it cannot be opened.
        #[source]
        error: OpenError,
    },
}

impl Store {
    /// Writes everything needed to a fresh store at `to`: unsettled messages and refusals
    /// that wait, under their old sequences; grant, rebase, next sequence, resume point and
    /// owner. The fresh store is synced, this one is closed for good, and the fresh one is
    /// opened at `level`. Publishers wait meanwhile. The fresh store is never preallocated, even
    /// if this one is: it must fit where the whole capacity may not. *Syncs.*
    ///
    /// The old file is marked as evacuated if its device still takes writes; delete it. If the
    /// mark could not be written, a warning is logged. Opening the old file by mistake would then
    /// send the same messages under the same numbers again, which the server drops, but also new
    /// messages under numbers that the fresh store gives out too.
    ///
    /// # Errors
    /// See [`EvacuateError`]. Except for [`EvacuateError::Reopen`], this store goes on as before.
    pub fn evacuate(&self, to: impl AsRef<Path>, level: Level) -> Result<Store, EvacuateError> {
        let to = to.as_ref();
        self.evacuate_and(to, |to| {
            Store::open_existing(to, Options::new().level(level))
        })
    }

    fn evacuate_and(
        &self,
        to: &Path,
        open: impl FnOnce(&Path) -> Result<Store, OpenError>,
    ) -> Result<Store, EvacuateError> {
        let moved = self.with_log(|log| {
            log.usable().map_err(EvacuateError::Old)?;
            self.new_file(log)
                .and_then(|new| new.create(to))
                .map_err(|error| EvacuateError::Create { path: to.to_owned(), error })?;
            let written = write(log, to);
            if written.is_err() {
                if let Err(error) = std::fs::remove_file(to) {
                    tracing::warn!(path = %to.display(), %error, "the unfinished store could not be removed");
                }
                return written;
            }
            retire(log);
            Ok(())
        });
        moved.map_err(EvacuateError::Old)??;
        open(to).map_err(|error| EvacuateError::Reopen {
            path: to.to_owned(),
            error,
        })
    }
}

impl Store {
    /// How a copy of this store is created.
    fn new_file(&self, log: &Log) -> io::Result<NewFile> {
        let new = self
            .mode()
            .map_or_else(NewFile::new, |mode| NewFile::new().mode(mode));
        Ok(match log.medium.device().file() {
            Some(file) => new.copy_of(&file.metadata()?),
            None => new,
        })
    }
}

fn write(log: &Log, to: &Path) -> Result<(), EvacuateError> {
    let bounds = log.bounds();
    let rejections = log.rejections(0, usize::MAX);
    let heritage = Heritage {
        superblock: &log.superblock,
        floor: bounds.floor,
        next: bounds.next,
        tag: log.resume_tag(),
        bytes: bounds.live_bytes + bounds.rejections * CHARGE,
    };
    let mut fresh = Rebuild::start(to, heritage)?;
    let mut message = StoredMessage::new();
    let mut rejections = rejections.iter().peekable();
    let mut from = 0;
    loop {
        let open = log.state.next_unsettled(from, u64::MAX).map(|(s, _)| s);
        let refused = rejections.peek().map(|r| r.sequence);
        let Some(sequence) = open.into_iter().chain(refused).min() else {
            break;
        };
        if let Some(place) = log.copy_out(sequence, &mut message) {
            check(place, &mut message)?;
            let envelope_len = message.envelope_end - RECORD_HEADER;
            let body = &message.bytes[RECORD_HEADER..message.len];
            fresh
                .message(sequence, message.quiet, envelope_len, body)
                .map_err(EvacuateError::Write)?;
        }
        if refused == Some(sequence)
            && let Some(rejection) = rejections.next()
        {
            fresh.rejection(rejection).map_err(EvacuateError::Write)?;
        }
        from = sequence + 1;
    }
    fresh.finish().map_err(EvacuateError::Write)
}

/// Marks the old store as closed for good.
fn retire(log: &mut Log) {
    log.closed = true;
    log.saved_elsewhere();
    let mut superblock = log.superblock.clone();
    superblock.retired = true;
    superblock.counter += 1;
    let (device, bytes) = (log.medium.device(), superblock.encode());
    for at in SUPERBLOCKS {
        if let Err(error) = device.write_around(at, &bytes) {
            tracing::warn!(%error, "the evacuated store could not be marked; delete it");
        }
    }
    device.release();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Envelope, PublishStore};

    /// The error once said that the old store goes on, although that was closed for good by then.
    #[test]
    fn an_evacuation_whose_store_cannot_be_opened_says_where_everything_is() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        let store = Store::open(&old, Options::new().capacity(64 << 10)).unwrap();
        store.append(&Envelope::publish("t"), b"x").unwrap();
        let evacuated = store.evacuate_and(&new, |to| {
            Err(OpenError::Busy {
                path: to.to_owned(),
            })
        });
        let Err(EvacuateError::Reopen { path, .. }) = evacuated else {
            panic!("the open failed");
        };
        let append = store.append(&Envelope::publish("t"), b"y");
        assert!(append.is_err_and(|e| e.to_string().contains("closed")));
        let refused = Store::open_existing(&old, Options::new());
        assert!(matches!(refused, Err(OpenError::Retired { .. })));
        let store = Store::open_existing(path, Options::new()).unwrap();
        assert_eq!(store.bounds().unsettled, 1);
    }
}
