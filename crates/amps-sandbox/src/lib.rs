//! A server for tests and demonstrations that follows AMPS' documented rules, and never
//! kinder ones.
//!
//! **It is not a production broker.** It exists so that a publisher can be tested against
//! the behaviour that loses messages: sequences remembered per client name, duplicates
//! dropped without a word, acks that are conflated and carry no id, refusals announced once
//! and never again, links that break at the worst moment. It keeps one log in one file, one
//! lock around all of it, and filters of a few words.
//!
//! ```
//! use std::time::Duration;
//! use amps_sandbox::{Fault, Sandbox};
//!
//! # tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(async {
//! let sandbox = Sandbox::builder()
//!     .listen("tcp://127.0.0.1:0/amps/json")
//!     .reject_topic("forbidden")
//!     .ack_interval(Duration::from_millis(100))
//!     .fault(Fault::CloseAfter(1000))
//!     .start()
//!     .await?;
//! println!("listening {}", sandbox.uri());
//! assert!(sandbox.journal()?.is_empty());
//! sandbox.stop().await;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! # })?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Where the sandbox decides what no document says
//!
//! - What is acked as `persisted` is in the journal: written, not synced. It survives the death
//!   of the process, but a power cut may take the end.
//! - A refusal's ack carries the command id if the message had one; conflated acks never do.
//! - A topic with a character that has a meaning in regular expressions is one, and must match
//!   the whole name.
//! - Subscriptions read the log, so a slow one delays only itself. Messages of unlogged topics
//!   are sent directly, and publishers wait while 1 MiB is queued for a subscriber.
//! - A connection without a logon is closed after a time, may use little memory, and makes room
//!   for another one when all places are taken. Several wrong passwords in a row lock their user
//!   out for a while.
//! - What it cannot do it refuses by name: an order, a bookmark or a limit where it has none,
//!   delta subscriptions, out-of-focus messages, expiration, acknowledgements of queues, and
//!   every option that it does not know.
//! - Deltas are delivered as they were published; they are merged only in the state of the world.
//!
//! # Layers
//!
//! [`Server`] and the [`rules`] under it are pure: frames in, log entries and frames out,
//! time an argument. A simulation can drive them without sockets. [`Sandbox`] puts sockets,
//! timers and a file under them.

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod config;
mod fault;
mod filter;
mod journal;
mod net;
pub mod proxy;
pub mod rules;
mod sandbox;
mod server;
mod sow;
mod subscription;
#[cfg(feature = "tls")]
mod tls;
mod told;

pub use config::{Candidate, Config, Dialect};
pub use fault::{Fault, FaultError};
pub use journal::{Entry, Journal, JournalEntry, JournalError, Operation, read_journal};
pub use rules::Link;
pub use sandbox::{Builder, Sandbox, StartError};
pub use server::{Closing, Output, Server};
#[cfg(feature = "tls")]
pub use tls::TlsIdentity;
pub use told::Told;
