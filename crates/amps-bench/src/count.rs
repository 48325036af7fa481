//! T13: bare loops for a tool that counts instructions.

use std::path::Path;

use amps_store::{Envelope, Options, PublishStore, Store};

use crate::{Failure, TOPIC};

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// [`PublishStore::append`], with a cumulative discard every 100.
    Append,
}

/// Repeats one operation on messages of 256 bytes, with as little else as possible. The
/// difference of two runs with different `times` is the price of the operation: setting up
/// cancels out.
///
/// # Errors
/// The store failed.
pub fn count(what: Counted, times: u64, payload: usize, dir: &Path) -> Result<(), Failure> {
    let payload = vec![0x5A; payload];
    let dir = tempfile::Builder::new().tempdir_in(dir)?;
    let options = Options::new().capacity(256 << 20).client_name("bench");
    let store = Store::open(dir.path().join("store"), options)?;
    match what {
        Counted::Append => {
            for _ in 0..times {
                let appended = loop {
                    match store.append(&Envelope::publish(TOPIC), &payload) {
                        Err(error) if error.is_retryable() => std::thread::yield_now(),
                        other => break other?,
                    }
                };
                if appended.sequence % 100 == 0 {
                    store.settle_through(appended.sequence.saturating_sub(10_000))?;
                }
            }
        }
    }
    Ok(())
}
