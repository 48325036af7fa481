//! A medium in memory, for stores that survive nothing and say so.

use std::io;
use std::sync::Arc;

use super::{Device, Medium};

pub(crate) struct Heap {
    bytes: Vec<u8>,
}

// The superblock of a memory store is never read back, so `write_around` does nothing.

impl Heap {
    pub(crate) fn new() -> Self {
        Heap { bytes: Vec::new() }
    }
}

fn index(offset: u64) -> usize {
    // The log stays below `len`, which is a `usize`.
    offset as usize
}

impl Medium for Heap {
    fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        into.copy_from_slice(&self.bytes[index(offset)..][..into.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        self.bytes[index(offset)..][..bytes.len()].copy_from_slice(bytes);
    }

    fn commit(&mut self, offset: u64, word: u64) {
        self.write(offset, &word.to_le_bytes());
    }

    fn adopt(&mut self, len: u64) {
        self.bytes
            .reserve_exact(index(len).saturating_sub(self.bytes.len()));
        self.bytes.resize(index(len), 0);
    }

    fn leave(&mut self, len: u64) {
        if index(len) < self.bytes.len() {
            self.bytes.truncate(index(len));
            self.bytes.shrink_to_fit();
        }
    }

    fn device(&self) -> Arc<dyn Device> {
        Arc::new(NoDevice)
    }
}

/// Every sync succeeds, since the log reuses space only behind one. Nothing is durable all the
/// same, and the handle never says that it is (`Store::memory`).
struct NoDevice;

impl Device for NoDevice {
    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn sync_range(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn write_around(&self, _offset: u64, _bytes: &[u8]) -> io::Result<()> {
        Ok(())
    }

    fn reserve(&self, _from: u64, to: u64) -> io::Result<()> {
        usize::try_from(to).map(drop).map_err(io::Error::other)
    }

    fn truncate(&self, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn release(&self) {}

    fn prefault(&self, _offset: u64, _len: u64) {}
}
