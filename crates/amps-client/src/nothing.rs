//! What stands in for a store where there is none: it holds nothing, and takes nothing.
//!
//! Messages without a store go out on the same links, and the same engine decides about those;
//! it has none of the messages to keep.

use std::sync::Arc;

use amps_store::{
    AppendError, Appended, Batch, Bounds, Durable, Envelope, Level, Numbers, Observer,
    PublishStore, ReadError, Rebase, Rejected, Rejection, StoreError, StoredMessage,
};

/// The highest number there is: no grant is ever asked for.
const NO_GRANT: u64 = (1 << 63) - 1;

pub(crate) struct Nothing;

impl Nothing {
    pub(crate) fn store() -> Arc<dyn PublishStore> {
        Arc::new(Nothing)
    }
}

impl PublishStore for Nothing {
    fn append(&self, _: &Envelope<'_>, _: &[u8]) -> Result<Appended, AppendError> {
        Err(AppendError::Store(StoreError::Closed))
    }

    fn read_unsettled(&self, _: u64, _: u64, into: &mut Batch) -> Result<(), ReadError> {
        into.clear();
        Ok(())
    }

    fn get(&self, _: u64, _: &mut StoredMessage) -> Result<bool, ReadError> {
        Ok(false)
    }

    fn bounds(&self) -> Bounds {
        Bounds {
            next: 1,
            ..Bounds::default()
        }
    }

    fn is_unsettled(&self, _: u64) -> bool {
        false
    }

    fn settle_through(&self, _: u64) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn settle(&self, _: &[u64]) -> Result<u64, StoreError> {
        Ok(0)
    }

    fn reject(&self, _: u64, _: &str, _: u64) -> Result<Rejected, StoreError> {
        Ok(Rejected::Unknown)
    }

    fn accept(&self, _: u64) -> Result<bool, StoreError> {
        Ok(false)
    }

    fn requeue(&self, _: u64, _: u64) -> Result<Option<Appended>, AppendError> {
        Ok(None)
    }

    fn rejections(&self, _: u64, _: usize) -> Vec<Rejection> {
        Vec::new()
    }

    fn numbers(&self) -> Numbers {
        Numbers {
            grant: NO_GRANT,
            first_of_run: 1,
            ..Numbers::default()
        }
    }

    fn raise_grant(&self, _: u64) -> Result<(), StoreError> {
        Err(StoreError::InMemory)
    }

    fn rebase(&self, _: u64) -> Result<Rebase, StoreError> {
        Err(StoreError::InMemory)
    }

    fn level(&self) -> Level {
        Level::Os
    }

    fn durable(&self) -> Durable {
        Durable::default()
    }

    fn request_sync(&self) -> Result<(), StoreError> {
        Err(StoreError::InMemory)
    }

    fn sync(&self) -> Result<Durable, StoreError> {
        Err(StoreError::InMemory)
    }

    fn observe(&self, _: Observer) {}

    fn client_name(&self) -> String {
        String::new()
    }

    fn resume_tag(&self) -> Option<Vec<u8>> {
        None
    }

    fn close(&self, _: u64) -> Result<(), StoreError> {
        Ok(())
    }
}
