//! For tests of what is built on this crate.

pub mod conformance;
mod planted;

pub use planted::{Planted, is_planted, plant};
