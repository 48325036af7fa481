//! The publish store: a bounded, memory-mapped ring log that is also the send queue.

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod batch;
mod envelope;
mod error;
mod excerpt;
mod faults;
mod format;
pub mod inspect;
mod log;
mod medium;
mod open;
mod options;
mod recover;
mod report;
mod space;
mod state;
mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
pub mod transfer;

pub use api::{
    Appended, Bounds, Durable, Level, MAX_REASON, MAX_TAG, Numbers, Observer, PublishStore, Rebase,
    Rejected, Rejection, Signal, StoredMessage, Unrecorded,
};
pub use batch::{Batch, MessageRef};
pub use envelope::{Envelope, EnvelopeError, Operation, Origin};
pub use error::{AppendDurableError, AppendError, DamagedRange, OpenError, ReadError, StoreError};
pub use excerpt::Excerpt;
pub use open::{NewFile, Place, Volume};
pub use options::{Options, Recovery};
pub use report::{Growth, RecoveryReport, Stop};
pub use store::Store;
pub use transfer::EvacuateError;
