//! What was sent, what is settled, and what goes out next, for a publisher whose messages stand
//! in a store until a server settles them.
//!
//! [`delivery`] is a state machine without sockets, clocks or tasks: a loop feeds it what
//! happened, carries out what it decides and hands what it gives to a link. It knows the store
//! ([`amps_store::PublishStore`]) and numbers, and no protocol. [`backoff`] says how long to wait
//! between links. `amps-client` is the loop for tokio and AMPS; a simulation is another one.

// A library has no words of its own for the terminal of its application.
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
pub mod delivery;
mod event;
mod reason;
#[cfg(feature = "testkit")]
pub mod testkit;

pub use backoff::{Backoff, DelayStrategy, FixedDelay};
pub use delivery::{GapPolicy, RebasePolicy, Via};
pub use event::{ConnectionState, LinkEnd};
pub use reason::{Reason, ReasonKind, cut};

/// What [`planted!`] says without the feature `testkit`.
#[cfg(not(feature = "testkit"))]
#[doc(hidden)]
#[inline(always)]
pub const fn never() -> bool {
    false
}
