//! What a store can be asked without importing its trait: by an application that looks at it
//! before a client has it, or while one does.

use super::Store;
use crate::api::{Bounds, Durable, Level, Numbers, PublishStore, Rejection, StoredMessage};
use crate::error::ReadError;

impl Store {
    /// As [`PublishStore::bounds`].
    pub fn bounds(&self) -> Bounds {
        PublishStore::bounds(self)
    }

    /// As [`PublishStore::resume_tag`].
    pub fn resume_tag(&self) -> Option<Vec<u8>> {
        PublishStore::resume_tag(self)
    }

    /// As [`PublishStore::client_name`].
    pub fn client_name(&self) -> String {
        PublishStore::client_name(self)
    }

    /// As [`PublishStore::level`].
    pub fn level(&self) -> Level {
        PublishStore::level(self)
    }

    /// As [`PublishStore::durable`].
    pub fn durable(&self) -> Durable {
        PublishStore::durable(self)
    }

    /// As [`PublishStore::numbers`].
    pub fn numbers(&self) -> Numbers {
        PublishStore::numbers(self)
    }

    /// As [`PublishStore::is_unsettled`].
    pub fn is_unsettled(&self, sequence: u64) -> bool {
        PublishStore::is_unsettled(self, sequence)
    }

    /// As [`PublishStore::rejections`].
    pub fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        PublishStore::rejections(self, from, limit)
    }

    /// As [`PublishStore::get`].
    ///
    /// # Errors
    /// Those of the trait.
    pub fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        PublishStore::get(self, sequence, into)
    }
}
