//! NATS JetStream as a server for stored messages: so far the parts that need no connection.
//!
//! | Module | What it decides or holds |
//! |---|---|
//! | [`codec`] | the NATS client protocol: bytes to frames and back, bounded against any server |
//! | [`ids`] | under which id a message is stored, and whose an id is |
//! | [`subject`] | the subject of a topic |
//! | [`api`] | what is asked about streams, and the answers |
//! | [`verdict`] | what an answer to a message means |
//!
//! Nothing here has a socket, a clock or a task.

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

pub mod api;
pub mod codec;
pub mod ids;
pub mod subject;
pub mod verdict;
