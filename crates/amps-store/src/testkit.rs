//! For tests, of this store and of programs that use it: a simulated disk under the real
//! log.

use std::path::Path;

pub use crate::medium::sim::{Cut, Fault, Rng, SimDisk};
use crate::{OpenError, Options, Store, StoreError};

impl SimDisk {
    /// Opens the store on this disk, creating it if the disk is empty. Its chores are not
    /// done by a thread: [`step`] does one, and calls that need one do it themselves.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub fn open(&self, options: Options) -> Result<Store, OpenError> {
        Store::on_medium(Path::new("(simulated disk)"), self.medium(), &options, true)
    }
}

/// Does one chore of a store on a simulated disk; false: there is none.
///
/// # Errors
/// The device failed.
pub fn step(store: &Store) -> Result<bool, StoreError> {
    store.step()
}

/// The ordinal of the last record of the log.
pub fn last_ordinal(store: &Store) -> u64 {
    store.last_ordinal()
}

/// Whether a sync failed, so that nothing becomes durable any more.
pub fn has_failed(store: &Store) -> bool {
    store.has_failed()
}
