//! What was sent, what is settled, and what goes out next, for a publisher whose messages stand
//! in a store until a server settles them.
//!
//! An [`Engine`] decides; it has no sockets, clocks or tasks, and knows no protocol. What carries
//! messages is a [`Link`], and whoever owns sockets, tasks and a clock drives both in a loop. In
//! `amps-client` that is one task of tokio, in a simulation it is virtual time; what is decided is
//! the same. Below the engine is [`delivery`], which knows numbers and what settles them. A
//! publisher without a store has a [`Queue`] in its place, and nothing else is different.
//!
//! # The loop
//!
//! ```
//! use std::task::{Context, Poll, Waker};
//! use std::time::Duration;
//!
//! use amps_delivery::delivery::{PublishAck, Verdict};
//! use amps_delivery::{
//!     Backoff, Config, Engine, Heard, Link, LinkEnd, Now, Output, Progress, Room, Sink, ToSend,
//!     Unsendable, Words, Capabilities, Resume, Up,
//! };
//! use amps_store::{Envelope, Options, PublishStore, Store};
//!
//! /// A link to a server that acks whatever it is given, at once.
//! #[derive(Default)]
//! struct Obliging {
//!     is_up: bool,
//!     sent: u64,
//!     acked: u64,
//! }
//!
//! impl Link for Obliging {
//!     fn room(&self) -> Room {
//!         if self.is_up { Room::ANY } else { Room::NONE }
//!     }
//!
//!     fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
//!         self.sent = message.wire;
//!         Ok(())
//!     }
//!
//!     fn poll(
//!         &mut self,
//!         _: &mut Context<'_>,
//!         _: Now,
//!         sink: &mut dyn Sink,
//!     ) -> Poll<Result<Progress, LinkEnd>> {
//!         if !self.is_up {
//!             self.is_up = true;
//!             let (resume, capabilities) = (Resume::Unknown, &Capabilities::LOGGED);
//!             sink.heard(Heard::Up(Up { resume, capabilities }));
//!         } else if self.acked < self.sent {
//!             self.acked = self.sent;
//!             let ack = PublishAck {
//!                 figure: Some(self.acked),
//!                 sequence: None,
//!                 verdict: Verdict::Persisted,
//!             };
//!             sink.heard(Heard::Ack { ack, words: Words::default() });
//!         } else {
//!             return Poll::Pending;
//!         }
//!         Poll::Ready(Ok(Progress { read: true, wrote: true, through: None }))
//!     }
//!
//!     fn deadline(&self) -> Option<Duration> {
//!         None
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let store = Store::memory(Options::new().client_name("me"))?;
//! store.append(&Envelope::publish("orders"), b"1")?;
//!
//! let mut now = Now::default();
//! let mut engine = Engine::new(&store, Config::default(), Box::new(Backoff::default()), now);
//! // It ends when everything is settled, or in a minute.
//! engine.close(&store, now, Duration::from_secs(60));
//! let mut cx = Context::from_waker(Waker::noop());
//! loop {
//!     // What is due, and as much to the link as it takes; then the link's bytes.
//!     engine.turn(&store, now);
//!     let mut moved = engine.poll(&mut cx, &store, now).is_ready();
//!     while let Some(output) = engine.output() {
//!         moved = true;
//!         match output {
//!             // Choose a server here, and connect in the background.
//!             Output::Connect => {
//!                 engine.connected(&store, now, Ok(Box::new(Obliging::default())));
//!             }
//!             // On a thread that may wait for the device.
//!             Output::Job(job) => {
//!                 let done = job.run(&store);
//!                 engine.done(&store, now, done);
//!             }
//!             Output::Over { handed_over } => {
//!                 store.close(handed_over)?;
//!                 assert_eq!(engine.totals().persisted, 1);
//!                 return Ok(());
//!             }
//!             // Receipts, handlers, events.
//!             told => println!("{told:?}"),
//!         }
//!     }
//!     if !moved {
//!         // Sleep until then here, or until the link, a job or the application wakes you.
//!         now.at = engine.deadline().ok_or("nothing will ever move")?;
//!     }
//! }
//! # }
//! ```

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

/// Whether a test planted this defect.
#[cfg(feature = "testkit")]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($defect:ident) => {
        $crate::testkit::is_planted($crate::testkit::Planted::$defect)
    };
}

/// Whether a test planted this defect: never without the feature `testkit`.
#[cfg(not(feature = "testkit"))]
#[doc(hidden)]
#[macro_export]
macro_rules! planted {
    ($defect:ident) => {
        $crate::never()
    };
}

pub mod backoff;
mod capabilities;
pub mod delivery;
mod engine;
mod event;
mod link;
mod queue;
mod reason;
#[cfg(feature = "testkit")]
pub mod testkit;
mod transport;

pub use backoff::{Backoff, DelayStrategy, FixedDelay};
pub use capabilities::{Capabilities, Meaning, Medium, Operations, Order, Require, Synced};
pub use delivery::{
    AckWish, Acks, Evidence, GapPolicy, Now, RebasePolicy, Resume, Room, ToSend, Totals, Via,
};
pub use engine::{Config, Engine, Job, JobDone, Output};
pub use event::{ConnectionState, LinkEnd};
pub use link::{Answer, Heard, Link, Progress, Sink, Unsendable, Up, Words};
pub use queue::{MOST_UNACKED, Queue, Turned};
pub use reason::{Reason, ReasonKind, cut};
#[doc(hidden)]
pub use transport::{Admits, Connecting, Identity, Transport};

/// What [`planted!`] says without the feature `testkit`.
#[cfg(not(feature = "testkit"))]
#[doc(hidden)]
#[inline(always)]
pub const fn never() -> bool {
    false
}
