//! khata-rs: a queue in mapped files, which has no discard.
//!
//! What it is given is less than the work. A file is not reused and does not grow; so there are files of
//! 256 MiB, each for later messages than the one before, and of those the last two are kept.
//! A discard does nothing else, and after a crash all that the files hold comes again. Its
//! checksum has 16 bits. It is for one thread.

use std::path::{Path, PathBuf};

use khata_rs::{Store, StoreConfig};

use crate::{Failure, Peer, joined, number_joined};

const FILE: usize = 256 << 20;

struct Khata {
    dir: PathBuf,
    files: i32,
    store: Store,
    scratch: Vec<u8>,
}

fn file(dir: &Path, number: i32) -> PathBuf {
    dir.join(format!("{number}.cq4"))
}

fn open_file(dir: &Path, number: i32) -> Result<Store, Failure> {
    let config = StoreConfig {
        block_size: FILE,
        ..StoreConfig::default()
    };
    Ok(Store::open(file(dir, number), number, config, false)?)
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let files = std::fs::read_dir(dir)?.count().max(1) as i32;
    Ok(Box::new(Khata {
        dir: dir.to_owned(),
        files,
        store: open_file(dir, files)?,
        scratch: Vec::new(),
    }))
}

impl Peer for Khata {
    fn append(&mut self, _: u64, payload: &[u8]) -> Result<(), Failure> {
        let value = joined(&mut self.scratch, payload);
        // With its header of eight bytes.
        if self.store.remaining() < value.len() as u64 + 8 {
            self.files += 1;
            self.store = open_file(&self.dir, self.files)?;
            if self.files > 2 {
                std::fs::remove_file(file(&self.dir, self.files - 2))?;
            }
        }
        self.store.append(value)?;
        Ok(())
    }

    fn discard_through(&mut self, _: u64) -> Result<(), Failure> {
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let mut found = Vec::new();
        while let Some(value) = self.store.read_verified(found.len() as u64)? {
            found.push(number_joined(value)?);
        }
        Ok(found)
    }
}
