//! A publisher client for AMPS that keeps every message in a store until the server settles
//! it, and hands refused messages back.
//!
//! The layers, from below: [`protocol`] (bytes and frames), [`session`] (logon, heartbeats,
//! commands) and [`delivery`] (what was sent, what is settled, what is next) are state
//! machines without sockets, clocks or tasks; [`connector`] opens byte streams; one tokio
//! task drives them; [`Client`] is what applications hold.
//!
//! ```
//! use amps_client::Client;
//! use amps_store::{Options, Store};
//! use std::time::Duration;
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::memory(Options::new().client_name("orders-1").capacity(1 << 20))?;
//! let client = Client::builder("orders-1")
//!     .server("tcp://127.0.0.1:9007/amps/json")
//!     .store(store)
//!     .on_failed_write(|failed| async move {
//!         eprintln!("refused: {} ({:?})", failed.reason, failed.original);
//!         Ok(())
//!     })
//!     .open()
//!     .await?;
//! let receipt = client.publish("orders", r#"{"id":1}"#).await?;
//! assert_eq!(receipt.sequence(), 1);
//! // No server listens here, so the message stays in the store.
//! let flushed = client.publish_flush(Duration::from_millis(10)).await;
//! assert!(flushed.is_err());
//! assert_eq!(client.close(Duration::ZERO).await.left, 1);
//! # Ok(())
//! # }
//! ```
//!
//! # Without a store
//!
//! A client without a store sends what it is given while it is logged on, without a number, and
//! forgets it. A message may ask for an ack of its own ([`Message::ask_ack`]). It then carries a
//! command id, and only an ack that names this id on the same link settles it. Its [`Receipt`]
//! says [`Outcome::Persisted`] or [`Outcome::Rejected`], or [`Outcome::Unknown`] if the link or
//! the client ends first. A refusal goes to the failed-write handler, without the message
//! ([`FailedWrite::command_id`] tells which one it was), or, if there is none, to the last-chance
//! handler; nothing keeps it for later. At most [`Builder::max_in_flight`] messages, and never
//! more than 65,536, may wait like this: for one more, [`Client::send`] waits, and
//! [`Client::try_send`] fails with [`PublishFailure::Unacked`].
//!
//! # Tracing
//!
//! Everything the client does happens in a `tracing` span `amps_client`, with its name in
//! `client`. Inside it, every attempt to connect, with the link that results, is in `link`, with
//! the server; every call of the failed-write handler is in `failed_write`, with the sequence.
//! Calls that wait for a server (`publish_flush`, `wait_logged_on`, `subscribe`, `command`,
//! `close`) have spans of their own, at level `debug`, inside the caller's. A publish has none,
//! since it is only a copy into memory. Payloads, passwords and bookmarks are in no span and no
//! event.
//!
//! An outage is logged as one `warn` when it begins, with the server and the reason, and as one a
//! minute while messages wait for its end: how many, the age of the oldest in seconds, the last
//! reason, the attempts so far. The logon that ends it is one `info`: what waits and is sent now,
//! how much of it may have been sent before (`again`), and how long the outage was. Links that
//! are lost soon after their logon, over and over, are reported together once a minute, and so is
//! a server that has settled nothing for a minute although messages wait. Single attempts, and
//! the end of each link, are at `debug`. The same facts are events: [`Event::Outage`],
//! [`Event::OutageOver`], [`Event::Flapping`] and [`Event::Stuck`].
//!
//! # What it leaves out
//!
//! Not there until somebody asks for it: stores that spill from memory to a file, policies that
//! drop messages, batching by time, zlib, a method for acknowledging queue messages, builders for
//! FIX, NVFIX and composite messages (a payload is bytes; build it as you like), Kerberos,
//! WebSocket, weighted server choosers, automatic retry of refusals, and the headers of an HTTP
//! preflight, which no documentation describes.
//!
//! # Features
//!
//! - `tls`, on by default: `tcps` addresses, by rustls with the ring provider and the system's
//!   root certificates.
//! - `jetstream`: NATS JetStream in the place of AMPS, module `jetstream`.
//! - `metrics`: counters, gauges and histograms for the `metrics` facade, each with the label
//!   `client`; `docs/metrics.md` in the repository lists them, with examples of alerts. Every
//!   series is there from the moment the client is opened: install the recorder before that.
//! - `testkit`: frames of stored messages and defects on demand, for simulations.

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod amps;
pub mod blocking;
mod builder;
mod carrier;
pub mod chooser;
mod client;
pub mod connector;
mod doorbell;
mod driver;
mod error;
mod event;
mod failed;
mod handlers;
mod helper;
#[cfg(feature = "jetstream")]
pub mod jetstream;
mod mailbox;
mod message;
mod meter;
mod offers;
mod opening;
mod outage;
mod panics;
pub mod protocol;
mod receipt;
mod requests;
mod sampled;
pub mod session;
mod shared;
mod subscription;
#[cfg(feature = "testkit")]
pub mod testkit;
mod unheard;
pub mod uri;
mod wire;

pub use amps_delivery::{Backoff, DelayStrategy, FixedDelay, GapPolicy, RebasePolicy, Via};
pub use amps_delivery::{Capabilities, Meaning, Medium, Order, Require, Synced, Transport};
pub use amps_delivery::{backoff, delivery};
pub use builder::Builder;
pub use client::{Client, Counts, Health};
pub use error::{
    CloseReport, CommandError, FlushError, FlushReport, LogonError, OpenError, PublishError,
    PublishFailure,
};
pub use event::{ConnectionState, Event, Events, LinkEnd};
pub use failed::{FailedWrite, HandlerError, UnhandledAck};
pub use handlers::Failed;
pub use message::{BadMessage, Message};
pub use receipt::{Outcome, Receipt};
pub use requests::{
    Answer, DEFAULT_BUFFER, DEFAULT_BUFFER_BYTES, Delivered, DeliveredKind, Request, Subscribe,
};
pub use session::ServerInfo;
pub use subscription::{Subscription, SubscriptionEnd};
