//! raft-engine, as entries of one raft group, without syncs.
//!
//! An append is a batch of one entry, which is written to the log file before it returns; a
//! discard is `compact_to`. Without compression, which would shrink these payloads as it shrinks
//! no real ones. Files are reclaimed by a call of its own, which is not counted; a group that
//! small is never rewritten.

use std::path::Path;

use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};
use raft_proto::eraftpb::Entry;

use crate::{Failure, Peer, TOPIC, number};

const GROUP: u64 = 1;

struct Entries;

impl MessageExt for Entries {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}

struct RaftEngine {
    engine: Engine,
    batch: LogBatch,
    entries: [Entry; 1],
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let config = Config {
        dir: dir.to_str().ok_or("the directory is not UTF-8")?.to_owned(),
        batch_compression_threshold: ReadableSize(0),
        target_file_size: ReadableSize::mb(64),
        purge_threshold: ReadableSize::mb(256),
        ..Config::default()
    };
    let entry = Entry {
        context: TOPIC.as_bytes().to_vec().into(),
        ..Entry::default()
    };
    Ok(Box::new(RaftEngine {
        engine: Engine::open(config)?,
        batch: LogBatch::default(),
        entries: [entry],
    }))
}

impl Peer for RaftEngine {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let [entry] = &mut self.entries;
        entry.index = sequence;
        entry.data = payload.to_vec().into();
        self.batch.add_entries::<Entries>(GROUP, &self.entries)?;
        self.engine.write(&mut self.batch, false)?;
        Ok(())
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        self.engine.compact_to(GROUP, sequence + 1);
        Ok(())
    }

    fn tidy(&mut self) -> Result<(), Failure> {
        self.engine.purge_expired_files()?;
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let (first, last) = (
            self.engine.first_index(GROUP),
            self.engine.last_index(GROUP),
        );
        let Some((first, last)) = first.zip(last) else {
            return Ok(Vec::new());
        };
        let mut entries: Vec<Entry> = Vec::new();
        self.engine
            .fetch_entries_to::<Entries>(GROUP, first, last + 1, None, &mut entries)?;
        entries.iter().map(|entry| number(&entry.data)).collect()
    }
}
