//! The publish store: a bounded, memory-mapped ring log that is also the send queue.

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod api;
mod bare;
mod batch;
mod calls;
mod draft;
mod durable_mark;
mod envelope;
mod error;
mod evacuate;
mod excerpt;
mod file;
mod format;
mod index;
pub mod inspect;
#[cfg(test)]
mod large;
mod log;
mod medium;
mod options;
mod planted;
mod rebuild;
mod recover;
#[cfg(test)]
mod recovery_table;
mod report;
mod scan;
mod space;
mod state;
mod store;
#[cfg(feature = "testkit")]
pub mod testkit;
mod unsynced;
mod volume;
mod watermark;

pub use api::{
    Appended, Bounds, Durable, Level, MAX_REASON, MAX_TAG, Numbers, Observer, PublishStore, Rebase,
    Rejected, Rejection, Signal, StoredMessage, Unrecorded,
};
pub use batch::{Batch, MessageRef};
pub use envelope::{Envelope, EnvelopeError, Operation, Origin};
pub use error::{AppendDurableError, AppendError, DamagedRange, OpenError, ReadError, StoreError};
pub use evacuate::EvacuateError;
pub use excerpt::Excerpt;
pub use file::{NewFile, Place};
pub use options::{Options, Recovery};
pub use report::{Growth, RecoveryReport, Stop};
pub use store::Store;
pub use volume::Volume;
