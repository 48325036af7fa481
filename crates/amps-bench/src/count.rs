//! T13: bare loops for a tool that counts instructions.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use amps_client::Client;
use amps_client::connector::{Connecting, Connector};
use amps_client::uri::Uri;
use amps_store::{Envelope, Options, PublishStore, Store};

use crate::{Failure, TOPIC};

/// What is repeated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Counted {
    /// [`PublishStore::append`], with a cumulative discard every 100.
    Append,
    /// [`Client::publish`] with a store and without a connection: what the caller has to pay.
    Publish,
}

const PAYLOAD: [u8; 256] = [0x5A; 256];

/// A server that never answers, so that nothing happens beside what is counted.
#[derive(Debug)]
pub(crate) struct Nowhere;

impl Connector for Nowhere {
    fn connect<'a>(&'a self, _uri: &'a Uri) -> Connecting<'a> {
        Box::pin(std::future::pending())
    }
}

/// Repeats one operation on messages of 256 bytes, with as little else as possible. The
/// difference of two runs with different `times` is the cost of the operation, since setting up
/// cancels out.
///
/// # Errors
/// The store failed, or is full: some tens of thousands fit.
pub fn count(what: Counted, times: u64, dir: &Path) -> Result<(), Failure> {
    let dir = tempfile::Builder::new()
        .prefix("amps-bench-")
        .tempdir_in(dir)?;
    let options = Options::new().capacity(256 << 20).client_name("bench");
    let store = Store::open(dir.path().join("store"), options)?;
    match what {
        Counted::Append => {
            let envelope = Envelope::publish(TOPIC);
            for _ in 0..times {
                let appended = store.append(&envelope, &PAYLOAD)?;
                if appended.sequence % 100 == 0 {
                    store.settle_through(appended.sequence.saturating_sub(10_000))?;
                }
            }
            Ok(())
        }
        Counted::Publish => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            runtime.block_on(async {
                let client = Client::builder("bench")
                    .server("tcp://127.0.0.1:9/amps/json")
                    .connector(Arc::new(Nowhere))
                    .connect_timeout(Duration::from_secs(3600))
                    .store(store)
                    .open()
                    .await?;
                for _ in 0..times {
                    drop(client.publish(TOPIC, &PAYLOAD[..]).await?);
                }
                client.close(Duration::ZERO).await;
                Ok(())
            })
        }
    }
}
