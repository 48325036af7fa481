//! What lies under the log: bytes that can be read, written, committed and synced.
//!
//! The log never knows which medium it stands on, so the code that runs on a mapped file
//! is the code that runs on the simulated disk.

mod file;
mod heap;
mod mapped;
#[cfg(feature = "testkit")]
pub(crate) mod sim;

use std::io;
use std::sync::Arc;

use crate::file::LockedFile;

pub(crate) use file::{has_room, reserve};
pub(crate) use heap::Heap;
pub(crate) use mapped::{ForkGuard, Mapped};

/// Bytes under a log. Offsets passed in lie within [`len`](Medium::len); the log checks
/// every figure of the file before it uses it.
pub(crate) trait Medium: Send {
    /// Bytes that exist, filled and safe to touch.
    fn len(&self) -> u64;

    /// Copies bytes out.
    fn read(&self, offset: u64, into: &mut [u8]);

    /// Copies bytes in. They survive a process crash, and a power cut once synced.
    fn write(&mut self, offset: u64, bytes: &[u8]);

    /// Writes one aligned word after everything written before, as far as any other
    /// thread or a process crash can tell.
    fn commit(&mut self, offset: u64, word: u64);

    /// Copies a record in: what is behind its first word, then that word as by
    /// [`commit`](Self::commit).
    #[inline]
    fn write_committed(&mut self, offset: u64, record: &[u8]) {
        let mut word = [0; 8];
        word.copy_from_slice(&record[..8]);
        self.write(offset + 8, &record[8..]);
        self.commit(offset, u64::from_le_bytes(word));
    }

    /// Makes bytes up to `len` part of the medium, after [`Device::reserve`] made them.
    fn adopt(&mut self, len: u64);

    /// Leaves everything from `len` on: nothing touches it any more, so that
    /// [`Device::truncate`] may cut it off.
    fn leave(&mut self, len: u64);

    /// What the background thread works through without the log's lock.
    fn device(&self) -> Arc<dyn Device>;
}

/// The part of a medium that needs no lock.
pub(crate) trait Device: Send + Sync {
    /// Makes everything written before the call durable.
    ///
    /// # Errors
    /// Linux reports a failed write-back once and forgets it: after one error nothing may
    /// ever be called durable again.
    fn sync(&self) -> io::Result<()>;

    /// A sync begins now, and is made later through what this returns: a simulated disk tells what
    /// is written meanwhile from what the sync vouches for. `None`: through the device itself.
    #[cfg(feature = "testkit")]
    fn begin_sync(&self) -> Option<Arc<dyn Device>> {
        None
    }

    /// The file under it; `None`: it is none.
    fn file(&self) -> Option<&LockedFile> {
        None
    }

    /// Whether there is room for a medium of `to` bytes that has `len` now, as far as can be told.
    ///
    /// # Errors
    /// There is none: as [`reserve`](Self::reserve).
    fn has_room(&self, _len: u64, _to: u64) -> io::Result<()> {
        Ok(())
    }

    /// As [`sync`](Self::sync), for what was written into this range of the mapping only.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Writes bytes that are on the device when this returns, around any mapping.
    ///
    /// # Errors
    /// The device refused; old or new bytes may be there, in units of sectors.
    fn write_around(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Extends the medium to `to` with zeros that are allocated, so that no later store can
    /// fail. The log may touch them once adopted.
    ///
    /// # Errors
    /// No space, quota, or file size limit: the length is unchanged.
    fn reserve(&self, from: u64, to: u64) -> io::Result<()>;

    /// Gives blocks to every hole of a range, which goes on reading as zeros, so that no later store
    /// can fail there. Only a file has holes: where somebody copied it and left out the zeros.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve): the holes are holes again.
    fn fill_holes(&self, _from: u64, _to: u64) -> io::Result<()> {
        Ok(())
    }

    /// Cuts the medium to `len`, after everything behind was [left](Medium::leave): a mapped
    /// page behind the end of its file kills whoever touches it. Not durable by itself.
    ///
    /// # Errors
    /// The length is unchanged.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Gives up what only the owner may hold: the lock.
    fn release(&self);

    /// Makes the pages of a range ready for stores, so that the append path takes no
    /// fault. Best effort: without it appends are slower, nothing else.
    fn prefault(&self, offset: u64, len: u64);
}
