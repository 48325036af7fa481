//! What a link is good for.

use std::fmt;
use std::sync::Arc;

use amps_store::Operation;

use crate::delivery::Acks;

/// A set of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operations(u8);

impl Operations {
    /// None.
    pub const NONE: Operations = Operations(0);

    /// Every one that there is.
    pub const ALL: Operations = Operations::NONE
        .and(Operation::Publish)
        .and(Operation::DeltaPublish)
        .and(Operation::SowDeleteByFilter)
        .and(Operation::SowDeleteByKeys)
        .and(Operation::SowDeleteByData);

    /// This one, too.
    #[must_use]
    pub const fn and(self, operation: Operation) -> Self {
        Operations(self.0 | bit(operation))
    }

    /// Whether this one is among them.
    pub const fn has(self, operation: Operation) -> bool {
        self.0 & bit(operation) != 0
    }
}

const fn bit(operation: Operation) -> u8 {
    match operation {
        Operation::Publish => 1,
        Operation::DeltaPublish => 2,
        Operation::SowDeleteByFilter => 4,
        Operation::SowDeleteByKeys => 8,
        Operation::SowDeleteByData => 16,
    }
}

/// What a link is good for. It may change while it is up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// What its acks speak of.
    pub acks: Acks,
    /// Whether a message can be stored before one that was published before it.
    pub order: Order,
    /// What a success means.
    pub meaning: Meaning,
    /// What it can carry.
    pub operations: Operations,
    /// The largest message it takes, as the server counts them, in bytes; none: no limit is known.
    pub largest: Option<usize>,
}

impl Capabilities {
    /// Of a server that acks by figures what it has in its log, in order, whatever it is.
    pub const LOGGED: Capabilities = Capabilities {
        acks: Acks::Figures,
        order: Order::Kept,
        meaning: Meaning::Logged,
        operations: Operations::ALL,
        largest: None,
    };
}

/// Whether messages can overtake each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// None is stored while one before it is neither stored nor refused.
    Kept,
    /// The server may turn one away and take the next.
    MayOvertake,
}

/// What a success means: what the message survives from then on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Meaning {
    /// It is in the server's transaction log.
    Logged,
    /// It is stored.
    Stored {
        /// On more than half of so many servers.
        replicas: u32,
        /// Where.
        medium: Medium,
        /// Since when it survives a power cut there.
        synced: Synced,
    },
    /// The server took it; nobody says whether it stores it.
    Accepted,
    /// It was written to the connection; nobody says whether anything took it.
    Written,
}

/// Where a server stores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Medium {
    /// In memory.
    Memory,
    /// In a file.
    File,
}

/// Whether a message is synced to the device when it is acked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Synced {
    /// Yes.
    Always,
    /// Some time after it.
    Later,
    /// Nobody says.
    Unknown,
}

/// What a success has to mean: asked at every link-up, and whenever a link's capabilities change.
/// A link that does not mean it is left. An error says what is missing.
#[derive(Clone)]
pub struct Require(Arc<Judge>);

type Judge = dyn Fn(&Meaning) -> Result<(), String> + Send + Sync;

impl Require {
    /// What this says.
    pub fn new(judge: impl Fn(&Meaning) -> Result<(), String> + Send + Sync + 'static) -> Self {
        Require(Arc::new(judge))
    }

    pub(crate) fn judge(&self, meaning: &Meaning) -> Result<(), String> {
        (self.0)(meaning)
    }
}

impl fmt::Debug for Require {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Require")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_has_what_was_put_into_it() {
        let set = Operations::NONE.and(Operation::Publish);
        assert!(set.has(Operation::Publish));
        assert!(!set.has(Operation::DeltaPublish));
        assert!(Operations::ALL.has(Operation::SowDeleteByData));
    }
}
