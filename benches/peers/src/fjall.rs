//! fjall, whose journal reaches the kernel with every write.
//!
//! An append is an `insert`, a discard a batch of removals, since nothing removes a range. Without
//! compression, which would shrink these payloads as it shrinks no real ones. Flushes and compactions
//! run on its own threads; what is left of them after a turn is waited for without being
//! counted, so that it does not run in the turn of another.

use std::path::Path;
use std::time::Duration;

use fjall::{Database, Keyspace, KeyspaceCreateOptions};

use crate::{Failure, Peer, joined, number_joined};

struct Fjall {
    database: Database,
    messages: Keyspace,
    scratch: Vec<u8>,
    discarded: u64,
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let database = Database::builder(dir).open()?;
    let messages = database.keyspace("messages", KeyspaceCreateOptions::default)?;
    Ok(Box::new(Fjall {
        database,
        messages,
        scratch: Vec::new(),
        discarded: 0,
    }))
}

impl Peer for Fjall {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let value = joined(&mut self.scratch, payload);
        self.messages.insert(sequence.to_be_bytes(), value)?;
        Ok(())
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        let mut batch = self.database.batch();
        for gone in self.discarded + 1..=sequence {
            batch.remove(&self.messages, gone.to_be_bytes());
        }
        self.discarded = sequence;
        batch.commit()?;
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), Failure> {
        while self.database.outstanding_flushes() + self.database.active_compactions() > 0 {
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let all = self.messages.iter();
        all.map(|entry| number_joined(&entry.value()?)).collect()
    }
}
