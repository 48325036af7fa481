//! The file of a store and its lock, which ends when its owner says so and not later.

use std::fs::{File, TryLockError};
use std::io;
use std::ops::Deref;
use std::path::Path;
use std::sync::Arc;

use super::place::{Place, Seen, judge};
use super::stat;
use crate::faults::calls::{self, Call};
use crate::medium::ForkGuard;

/// A file that this process may have locked.
///
/// A lock of `flock` belongs to the open file description, and every descriptor that a fork makes
/// of it holds the lock too: a program that another thread is just starting holds all of them
/// until its `exec`. So the lock is given back by a call instead of by closing the descriptor.
/// For the same reason a forked child never gives it back: it would take the lock from its
/// parent.
pub(crate) struct LockedFile {
    file: File,
    guard: ForkGuard,
}

/// What a file is locked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum For {
    /// An owner, who writes.
    Writing,
    /// By somebody who makes a copy that may be sent from: there must be no owner meanwhile.
    Copying,
}

impl LockedFile {
    pub(crate) fn of(file: File) -> Arc<Self> {
        let guard = ForkGuard::new();
        Arc::new(LockedFile { file, guard })
    }

    /// Takes the lock, without waiting for it.
    pub(crate) fn try_lock(&self, what_for: For) -> Result<(), TryLockError> {
        calls::check(Call::Lock).map_err(TryLockError::Error)?;
        match what_for {
            For::Writing => self.file.try_lock(),
            For::Copying => self.file.try_lock_shared(),
        }
    }

    /// Gives the lock back.
    pub(crate) fn release(&self) {
        if !self.is_child()
            && let Err(error) = self.file.unlock()
        {
            // The kernel does the same once the last descriptor is closed.
            tracing::warn!(%error, "cannot unlock a store");
        }
    }

    /// Whether this process is a fork of the one that opened the file.
    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        self.guard.is_child()
    }

    /// Whether this file is the one at `path`: somebody may have put another one there.
    pub(crate) fn is_at(&self, path: &Path) -> io::Result<bool> {
        self.place(path).map(|place| place == Place::There)
    }

    /// Where the file is now, if it was opened at `path`.
    pub(crate) fn place(&self, path: &Path) -> io::Result<Place> {
        let seen = |call: &dyn Fn() -> io::Result<std::fs::Metadata>| {
            stat(call).map(|metadata| Seen::of(&metadata))
        };
        judge(
            seen(&|| self.file.metadata()),
            seen(&|| std::fs::metadata(path)),
        )
    }
}

impl Deref for LockedFile {
    type Target = File;

    fn deref(&self) -> &File {
        &self.file
    }
}

impl Drop for LockedFile {
    fn drop(&mut self) {
        self.release();
    }
}
