//! The histories that break publish stores, one test each. A number `hNN` at the start of a
//! name is a row of `docs/histories.md`; the story is told in the test.
//!
//! Unless a row demands a real file, the whole system is simulated: the real store on a
//! simulated disk, the real delivery and session, a model server that follows the documented
//! rules, and virtual time. Every step of it is checked by the simulation as well (see
//! `tests/sim/`): bytes, grants, evidence, totals.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs, unreachable_pub)]

#[path = "sim/mod.rs"]
#[allow(dead_code, reason = "shared with tests/sim.rs, which uses the rest")]
mod sim;

#[path = "histories/protocol.rs"]
mod protocol;
