//! redb, over a file that is never synced.
//!
//! An append is a transaction with one `insert`, a discard one that keeps nothing of a range. Its own
//! level without syncs, `Durability::None`, keeps commits in memory only, where a crash of the process
//! loses them. So commits are `Immediate`, which writes all of them to the file, and it is
//! the backend that leaves out the sync.

use std::io;
use std::path::Path;

use redb::backends::FileBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};

use crate::{Failure, Peer, joined, number_joined};

const MESSAGES: TableDefinition<u64, &[u8]> = TableDefinition::new("messages");

/// A file, but for its syncs.
#[derive(Debug)]
struct Unsynced(FileBackend);

impl StorageBackend for Unsynced {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
}

struct Redb {
    database: Database,
    scratch: Vec<u8>,
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let file = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(dir.join("messages.redb"))?;
    let database = Database::builder().create_with_backend(Unsynced(FileBackend::new(file)?))?;
    let txn = database.begin_write()?;
    txn.open_table(MESSAGES)?;
    txn.commit()?;
    Ok(Box::new(Redb {
        database,
        scratch: Vec::new(),
    }))
}

impl Peer for Redb {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let value = joined(&mut self.scratch, payload);
        let txn = self.database.begin_write()?;
        txn.open_table(MESSAGES)?.insert(sequence, value)?;
        txn.commit()?;
        Ok(())
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        let txn = self.database.begin_write()?;
        txn.open_table(MESSAGES)?
            .retain_in(..=sequence, |_, _| false)?;
        txn.commit()?;
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let txn = self.database.begin_read()?;
        let messages = txn.open_table(MESSAGES)?;
        let all = messages.iter()?;
        all.map(|entry| number_joined(entry?.1.value())).collect()
    }
}
