//! What lies under the log: bytes that can be read, written, committed and synced.
//!
//! The log does not know which medium it stands on, so the code that runs on a mapped file is the
//! code that runs on the simulated disk.

mod file;
mod heap;
mod mapped;
#[cfg(feature = "testkit")]
pub(crate) mod sim;

use std::io;
use std::sync::Arc;

use crate::open::LockedFile;

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

    /// Copies a record in: first everything behind its first word, then that word as by
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

    /// Gives up everything from `len` on: nothing touches it any more, so that
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

    /// Begins a sync now that is carried out later through what this returns. A simulated disk
    /// uses it to tell what is written meanwhile from what the sync vouches for. `None`: sync
    /// through the device itself.
    #[cfg(feature = "testkit")]
    fn begin_sync(&self) -> Option<Arc<dyn Device>> {
        None
    }

    /// The file under it, if there is one.
    fn file(&self) -> Option<&LockedFile> {
        None
    }

    /// Checks whether a medium of `len` bytes can become one of `to` bytes, as far as that can be
    /// told.
    ///
    /// # Errors
    /// There is no room: as [`reserve`](Self::reserve).
    fn has_room(&self, _len: u64, _to: u64) -> io::Result<()> {
        Ok(())
    }

    /// As [`sync`](Self::sync), for what was written into this range of the mapping only.
    ///
    /// # Errors
    /// As [`sync`](Self::sync).
    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()>;

    /// Writes bytes around any mapping. When this returns they are on the device.
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

    /// Gives blocks to every hole of a range, which still reads as zeros afterwards, so that no
    /// later store can fail there. Only a file can have holes: somebody copied it and left out
    /// the zeros.
    ///
    /// # Errors
    /// As [`reserve`](Self::reserve): the holes are left as they were.
    fn fill_holes(&self, _from: u64, _to: u64) -> io::Result<()> {
        Ok(())
    }

    /// Cuts the medium to `len`, after everything behind was [given up](Medium::leave): touching
    /// a mapped page behind the end of its file kills the process. Not durable by itself.
    ///
    /// # Errors
    /// The length is unchanged.
    fn truncate(&self, len: u64) -> io::Result<()>;

    /// Gives up what only the owner may have: the lock.
    fn release(&self);

    /// Makes the pages of a range ready for stores, so that appending takes no page fault. Best
    /// effort: without it appends are only slower.
    fn prefault(&self, offset: u64, len: u64);
}
