//! NATS JetStream as what carries stored messages: a [`JetStreamLink`] is a
//! [`Link`](amps_delivery::Link) over any stream of bytes.
//!
//! [`JetStream`] is the [`Transport`](amps_delivery::Transport) that opens such links, over streams that
//! an [`Opener`] opens. `amps_client::jetstream` (feature `jetstream`) is this crate over the client's
//! sockets. Here is no socket, no clock and no task; nothing reconnects, and nothing is kept from one
//! link for the next: that is the engine's.
//!
//! # Two modes
//!
//! **Chained**, in a stream that is this publisher's alone. Each message says behind which place of
//! the stream it belongs, and a server stores it there or not at all. Many are under way at once.
//! What is stored is in order and has no holes but for refused messages, so a link that comes up
//! reads where the stream ends, and goes on behind that: each message is stored once, also when the
//! server has forgotten the ids. If somebody else publishes to the stream, that ends: it is noticed
//! at the next message, and at a link-up if one of theirs lies among unsettled messages or behind
//! them. A stream whose last messages were removed (`Resume::Unknown`) says nothing of them, and what
//! is unsettled goes out again under its ids.
//!
//! **Unchained**, in a stream that has other publishers, too. A server can turn one message away and
//! store the next, for instance when the stream is full or its leader changes: order is not promised.
//! Behind a lost link, what may be stored is looked for by its id, back to when it was published
//! (five minutes earlier, for clocks that differ), for as long as an answer may take. What is not found goes out again under its id, and is dropped
//! (counted as a duplicate) if the server still remembers that: for two minutes, unless the stream is
//! set up otherwise. So each is stored at least once, and nothing is settled that no answer names.
//!
//! # Why not by ids
//!
//! A chain by `Nats-Expected-Last-Msg-Id` looks like the same thing. On nats-server 2.14.0 with three
//! replicas the first refusal in such a chain (a message larger than the stream takes, or a full
//! stream) was the end of the stream: the message behind it was answered, and from then on nothing
//! was, for nobody, also not when the leader was to step down, for as long as we waited (50 s). The
//! same messages chained by `Nats-Expected-Last-Sequence` were each answered as they should be, and
//! while the leader changed under load 108,877 messages were stored in order and without a hole.
//! nats-server 2.9.10 did well with both.
//!
//! # Modules
//!
//! | Module | What it decides or holds |
//! |---|---|
//! | [`codec`] | the NATS client protocol: bytes to frames and back, bounded against any server |
//! | [`ids`] | under which id a message is stored, and whose an id is |
//! | [`subject`] | the subject of a topic |
//! | [`api`] | what is asked about streams, and the answers |
//! | [`verdict`] | what an answer to a message means |
//! | `logon` | the server's first word, credentials, the line that logs on |
//! | `encode` | a message as bytes: its headers, and what can never go out |
//! | `chain`, `lookup` | which place a message belongs behind; looking back into a stream |
//! | `session` | one connection from logon to its end: questions, answers, time limits |
//! | `address` | where a server is |
//! | `reader` | reading a stream, for people who look |
//! | `link`, `transport` | the session over a stream of bytes; what opens such links |

// A library does not write to the terminal of the application that uses it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod address;
pub mod api;
mod chain;
pub mod codec;
mod config;
mod encode;
mod flight;
pub mod ids;
mod link;
mod logon;
mod lookup;
mod reader;
mod session;
pub mod subject;
#[cfg(test)]
mod tests;
mod transport;
pub mod verdict;

pub use address::{Address, AddressError};
pub use config::{Config, Create, Mode};
pub use link::{JetStreamLink, Stream};
pub use logon::{Credentials, CredentialsError, ServerInfo};
pub use reader::{Read, Reader};
pub use transport::{JetStream, Opener, Opening};
