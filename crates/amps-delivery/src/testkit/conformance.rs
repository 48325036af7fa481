//! What every [`Transport`] and its [`Link`](crate::Link)s have to promise, as a suite of tests for
//! your own transport.
//!
//! The promises are written at the traits; here each is tested from outside, with the real
//! [`Engine`](crate::Engine) above the link, and below it a server that a [`Peer`] plays. Time is an
//! argument and nothing waits, so a suite takes a moment, whatever it waits for. The repository runs
//! it against AMPS (`crates/amps-client/tests/conformance.rs`) and against the transport that
//! `examples/own_transport.rs` shows how to write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a suite of tests fails by panicking"
)]
#![allow(
    clippy::print_stdout,
    reason = "a test that fails shows which case it was"
)]

mod cases;
mod rig;

use crate::delivery::Acks;
use crate::transport::Transport;

use rig::Rig;

/// Plays the server of a transport: the far end of its links, in the hands of the suite.
///
/// It answers nothing by itself, unless the protocol needs an answer that says nothing of messages
/// (to a ping, say). What it does wakes the link, as the network would.
pub trait Peer {
    /// A transport whose links lead here. Asked for once.
    fn transport(&mut self) -> Box<dyn Transport>;

    /// An address that the transport knows.
    fn address(&self) -> String;

    /// What the server's acks speak of.
    fn acks(&self) -> Acks;

    /// Whether connections are opened from here on, or hang; they are, at first.
    fn accepts(&mut self, yes: bool);

    /// How many bytes the network takes from here on; at first, and after `usize::MAX`, as many as
    /// come.
    fn takes(&mut self, bytes: usize);

    /// Bytes that the network has taken so far, on all links.
    fn taken(&self) -> u64;

    /// Connections that are open at the client's end.
    fn open(&self) -> usize;

    /// What the server was told since the last call, on the latest link.
    fn hears(&mut self) -> Vec<Got>;

    /// Says something on the latest link. `false`: this protocol has no word for it, and what needs
    /// it is left out.
    fn says(&mut self, say: &Say) -> bool;

    /// Bytes of a payload that no server of this kind can ever take, if there is a limit that only
    /// the link knows: more than 200,000, which must fit, and no more than a megabyte.
    fn too_large(&self) -> Option<usize> {
        None
    }
}

/// What a server was told, as far as the suite cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Got {
    /// A message.
    Message {
        /// Its number on the wire.
        wire: u64,
        /// Its payload.
        body: Vec<u8>,
    },
    /// Whether it holds this message ([`Link::recall`](crate::Link::recall)).
    Asked {
        /// The message.
        wire: u64,
    },
}

/// What a server says. Messages are named by their numbers on the wire.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Say {
    /// The link is of use. `mark`: every message up to this one that the server was ever given is
    /// stored or was refused, and none above it is; none: it does not know.
    Welcome {
        /// The mark.
        mark: Option<u64>,
    },
    /// A message is stored; where acks have figures, everything up to it.
    Stored(u64),
    /// The id of a message was seen before.
    Duplicate(u64),
    /// A message was refused for good, with the reason [`REASON`].
    Refused(u64),
    /// A message is not taken for now.
    TryAgain(u64),
    /// A mark, while the link is up.
    Mark(u64),
    /// The server holds a message that it was asked for.
    Found(u64),
    /// The server does not hold a message that it was asked for.
    Absent(u64),
    /// Bytes that are not of the protocol.
    Nonsense,
    /// The connection ends.
    Close,
}

/// Why messages are refused.
pub const REASON: &str = "not today";

/// The suite, for transports of one kind.
pub struct Suite<F> {
    fresh: F,
}

impl<P: Peer, F: FnMut() -> P> Suite<F> {
    /// `fresh` makes a server that nobody has spoken to, and nothing else uses.
    pub fn new(fresh: F) -> Self {
        Suite { fresh }
    }

    /// Runs every case; returns the names of those that need words which this protocol does not
    /// have, for the caller to compare with what it expects.
    ///
    /// # Panics
    /// If the transport breaks a promise.
    pub fn check(mut self) -> Vec<&'static str> {
        let mut left_out = Vec::new();
        for (name, case) in cases::all() {
            println!("{name}");
            let mut rig = Rig::new((self.fresh)());
            match case(&mut rig) {
                Ok(()) => rig.ends(),
                Err(NoWord) => left_out.push(name),
            }
        }
        left_out
    }
}

/// The protocol has no word for what a case needs.
#[derive(Debug)]
struct NoWord;

type Case<P> = fn(&mut Rig<P>) -> Result<(), NoWord>;
