//! For tests of this store and of programs that use it: a simulated disk under the real log,
//! access to the bytes of a store, and the bare mapping for benchmarks.

mod bytes;
pub mod conformance;

use std::fs::OpenOptions;
use std::io;
use std::path::Path;
use std::sync::Arc;

pub use crate::faults::calls::{
    Call, FailingCalls, bytes_read, fail_calls, slow_syncs, watch_calls,
};
pub use crate::faults::planted::{Bug, plant};
pub use crate::medium::sim::{Cut, Fault, Rng, SimDisk};
use crate::medium::{Device, Mapped, Medium, reserve};
use crate::open::LockedFile;
use crate::{OpenError, Options, Store, StoreError};
pub use bytes::{Intact, encode_envelope, intact_messages, record_places, resign};

impl SimDisk {
    /// Opens the store on this disk, and creates it if the disk is empty. No thread does its
    /// chores: [`step`] does one, and calls that depend on one do it themselves.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, options: Options) -> Result<Store, OpenError> {
        Store::on_medium(Path::new("(simulated disk)"), self.medium(), &options, true)
    }
}

/// Opens the store at `path` as [`Store::open`] does, creating it if there is none, but without a
/// thread for its chores: see [`SimDisk::open`].
///
/// # Errors
/// As [`Store::open`].
pub fn open_by_steps(path: &Path, options: Options) -> Result<Store, OpenError> {
    Store::open_by_steps(path, &options)
}

/// Does one chore of a store that has no thread for them, or ends the one that is under way.
/// False: there is none to do.
///
/// # Errors
/// The device failed.
pub fn step(store: &Store) -> Result<bool, StoreError> {
    store.step()
}

/// Begins one chore of a store that has no thread for them. If the device has to do something for
/// it, such as a sync, the chore is left under way: whatever happens until [`end_step`] happens
/// while the device works. If one is under way already, does another that can be done meanwhile.
/// Calls that have to wait for the device end it. A sync that was asked for is such a chore too,
/// although until this function is called for the first time it happens at once. False: there is
/// nothing to do.
///
/// # Errors
/// The device failed.
pub fn begin_step(store: &Store) -> Result<bool, StoreError> {
    store.begin_step()
}

/// Ends the chore that is under way. False: there is none.
///
/// # Errors
/// The device failed.
pub fn end_step(store: &Store) -> Result<bool, StoreError> {
    store.end_step()
}

/// Pretends that time has gone by without a publish, after which a store gives back what its file
/// does not need. The next publish ends that.
pub fn idle(store: &Store) {
    store.idle();
}

/// Whether a chore is under way.
pub fn is_under_way(store: &Store) -> bool {
    store.is_under_way()
}

/// The ordinal of the last record of the log.
pub fn last_ordinal(store: &Store) -> u64 {
    store.last_ordinal()
}

/// Whether a sync failed, so that nothing becomes durable any more.
pub fn has_failed(store: &Store) -> bool {
    store.has_failed()
}

/// A file mapped in the same way as that of a store, but with no log in it. The floors of
/// benchmarks are built on it.
pub struct Mapping(Mapped);

impl Mapping {
    /// Creates a file of `len` bytes, filled and made ready as the store does it.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn create(path: &Path, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(path)?;
        reserve(&file, 0, len)?;
        let mapping = Mapping(Mapped::new(LockedFile::of(file), 0, len, len)?);
        mapping.0.device().prefault(0, len);
        Ok(mapping)
    }

    /// Maps a file that [`create`](Self::create) made with this length.
    ///
    /// # Errors
    /// Those of the file system.
    pub fn open(path: &Path, len: u64) -> io::Result<Self> {
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        if file.metadata()?.len() < len {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(Mapping(Mapped::new(LockedFile::of(file), 0, len, len)?))
    }

    /// Copies bytes out.
    ///
    /// # Panics
    /// The range is not within the file.
    #[inline]
    pub fn read(&self, offset: u64, into: &mut [u8]) {
        self.0.read(offset, into);
    }

    /// Copies bytes in.
    ///
    /// # Panics
    /// The range is not within the file.
    #[inline]
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.0.write(offset, bytes);
    }

    /// A handle that syncs, for another thread.
    pub fn syncer(&self) -> MappingSync {
        MappingSync(self.0.device())
    }
}

/// Syncs a [`Mapping`].
pub struct MappingSync(Arc<dyn Device>);

impl MappingSync {
    /// Makes everything written before the call durable.
    ///
    /// # Errors
    /// The device failed.
    pub fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }
}
