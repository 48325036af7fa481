//! A publisher client for AMPS that keeps every message in a store until the server settles
//! it, and hands refused messages back.
//!
//! The layers, from below: [`protocol`] (bytes and frames), [`session`] (logon, heartbeats,
//! commands) and [`delivery`] (what was sent, what is settled, what is next) are state
//! machines without sockets, clocks or tasks; [`connector`] opens byte streams; one tokio
//! task drives them; [`Client`] is what applications hold.

pub mod backoff;
mod builder;
pub mod chooser;
mod client;
pub mod connector;
pub mod delivery;
mod driver;
mod error;
mod event;
mod failed;
mod message;
pub mod protocol;
mod receipt;
pub mod session;
mod shared;
mod subscribe;
pub mod uri;
mod wire;

pub use backoff::Backoff;
pub use builder::Builder;
pub use client::{Client, Counts, Health};
pub use delivery::{GapPolicy, RebasePolicy, Via};
pub use error::{
    CloseReport, CommandError, FlushError, FlushReport, LogonError, OpenError, PublishError,
    PublishFailure,
};
pub use event::{ConnectionState, Event, Events, LinkEnd};
pub use failed::{Failed, FailedWrite, HandlerError, UnhandledAck};
pub use message::{BadMessage, Message};
pub use receipt::{Outcome, Receipt};
pub use subscribe::{
    Answer, DEFAULT_BUFFER, Delivered, DeliveredKind, Request, Subscribe, Subscription,
    SubscriptionEnd,
};
