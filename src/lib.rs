//! `amps`: a durable publish store and publisher client for AMPS.
//!
//! This package is the front door: it re-exports the two libraries and holds the
//! tests, benches and examples that span them.

pub use amps_client as client;
pub use amps_store as store;

/// The README's example, compiled and run with the documentation tests.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
