//! LMDB through heed, written through its mapping and without syncs.
//!
//! An append is a transaction with one `put` at the end of the tree; a discard is a transaction that
//! deletes a range. `WRITE_MAP` and `NO_SYNC` leave it to the kernel when pages are written, so that a
//! commit is safe at a crash of the process. At a power cut the file may be lost as a whole.

use std::path::Path;

use heed::types::{Bytes, U64};
use heed::{Database, Env, EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags, byteorder};

use crate::{Failure, Peer, joined, number_joined};

type Messages = Database<U64<byteorder::NativeEndian>, Bytes, IntegerComparator>;

struct Lmdb {
    env: Env,
    messages: Messages,
    scratch: Vec<u8>,
}

#[allow(unsafe_code)]
pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let mut options = EnvOpenOptions::new();
    options.map_size(4 << 30).max_dbs(1);
    // SAFETY: nobody else touches the file, and it is opened once in a process.
    let env = unsafe {
        options
            .flags(EnvFlags::WRITE_MAP | EnvFlags::NO_SYNC | EnvFlags::NO_META_SYNC)
            .open(dir)?
    };
    let mut txn = env.write_txn()?;
    let messages = env
        .database_options()
        .types::<U64<byteorder::NativeEndian>, Bytes>()
        .key_comparator::<IntegerComparator>()
        .name("messages")
        .create(&mut txn)?;
    txn.commit()?;
    Ok(Box::new(Lmdb {
        env,
        messages,
        scratch: Vec::new(),
    }))
}

impl Peer for Lmdb {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let value = joined(&mut self.scratch, payload);
        let mut txn = self.env.write_txn()?;
        self.messages
            .put_with_flags(&mut txn, PutFlags::APPEND, &sequence, value)?;
        txn.commit()?;
        Ok(())
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        let mut txn = self.env.write_txn()?;
        self.messages.delete_range(&mut txn, &(..=sequence))?;
        txn.commit()?;
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let txn = self.env.read_txn()?;
        let all = self.messages.iter(&txn)?;
        all.map(|entry| number_joined(entry?.1)).collect()
    }
}
