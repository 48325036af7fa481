//! For tests of what is built on this crate.

mod planted;

pub use planted::{Planted, is_planted, plant};
