//! amps-store, level `Os`: 256 MiB, made ready when it is created.

use std::path::Path;
use std::time::{Duration, Instant};

use amps_store::{Batch, Envelope, Options, PublishStore, Store};

use crate::{Failure, Peer, TOPIC, number};

struct Ours {
    store: Store,
    envelope: Envelope<'static>,
}

pub(crate) fn open(dir: &Path) -> Result<Box<dyn Peer>, Failure> {
    let options = Options::new()
        .capacity(256 << 20)
        .client_name("bench")
        .preallocate(true);
    Ok(Box::new(Ours {
        store: Store::open(dir.join("store"), options)?,
        envelope: Envelope::publish(TOPIC),
    }))
}

impl Peer for Ours {
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure> {
        let appended = match self.store.append(&self.envelope, payload) {
            // Waiting for room counts.
            Err(error) if error.is_retryable() => {
                let deadline = Instant::now() + Duration::from_secs(60);
                self.store.append_wait(&self.envelope, payload, deadline)?
            }
            other => other?,
        };
        match appended.sequence == sequence {
            true => Ok(()),
            false => Err("the store counts otherwise".into()),
        }
    }

    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure> {
        self.store.settle_through(sequence)?;
        Ok(())
    }

    fn unsettled(&mut self) -> Result<Vec<u64>, Failure> {
        let mut found = Vec::new();
        let mut batch = Batch::new(1000, 1 << 20);
        let through = self.store.bounds().last;
        while found.last().is_none_or(|last| *last < through) {
            let from = found.last().map_or(1, |last| last + 1);
            self.store.read_unsettled(from, through, &mut batch)?;
            for message in batch.iter() {
                if message.envelope()?.topic != TOPIC {
                    return Err("a message lost its topic".into());
                }
                found.push(number(message.payload())?);
            }
            if batch.is_empty() {
                break;
            }
        }
        Ok(found)
    }
}
