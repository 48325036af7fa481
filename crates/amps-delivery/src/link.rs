//! What carries messages to a server: a link, and what is heard on it.

use std::task::{Context, Poll};
use std::time::Duration;

use crate::delivery::{Now, PublishAck, Room, ToSend};
use crate::event::{ConnectionState, LinkEnd};

/// One link to a server, from the moment it is open to its end. It has no life of its own: it
/// reads and writes while it is polled, and knows the time that it is told.
///
/// After it ended, or was dropped, nothing of it leaves the process any more: it has no task and
/// no queue outside, and what it carried is reset, not drained.
pub trait Link: Send {
    /// What it takes now; nothing before it said [`Heard::Up`]. It is asked before each message
    /// is read for it, so a link need not refuse what does not fit.
    fn room(&self) -> Room;

    /// Takes a message, within its room. The message goes out behind all that were taken before,
    /// while the link is polled.
    ///
    /// # Errors
    /// It can never take this one.
    fn send(&mut self, now: Now, message: &ToSend<'_>) -> Result<(), Unsendable>;

    /// So many messages have no answer on this link: what a server owes makes its silence news.
    fn waits(&mut self, _now: Now, _in_flight: u64) {}

    /// Writes what waits, as much as goes, and reads at most 64 KiB, or 1,024 things to tell.
    ///
    /// Pending: nothing was done, and the waker of `cx` is called when something can be.
    ///
    /// # Errors
    /// The link is over. What it told before counts.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>>;

    /// When it wants to be polled though nothing came, at the latest.
    fn deadline(&self) -> Option<Duration>;
}

/// What one poll of a link did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something was read, and all that came with it was told.
    pub read: bool,
    /// Bytes went out.
    pub wrote: bool,
}

/// A message that a link will never take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unsendable {
    /// Why, for an operator.
    pub why: String,
}

/// What a server says with a refusal, beside what is judged: for who is told of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Words<'a> {
    /// The kind of ack, in the server's words.
    pub kind: Option<&'a str>,
    /// The command id that it names.
    pub id: Option<&'a str>,
    /// The reason was longer than what is kept of it.
    pub reason_cut: bool,
}

/// [`Words`] that outlive their frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The kind of ack, in the server's words.
    pub kind: Option<String>,
    /// The command id that it names.
    pub id: Option<String>,
    /// The server's number, if it sent one.
    pub figure: Option<u64>,
    /// The reason was longer than what is kept of it.
    pub reason_cut: bool,
}

/// Where a link tells what it hears, in the order in which it hears it.
pub trait Sink {
    /// Takes in one thing.
    fn heard(&mut self, heard: Heard<'_>);
}

/// What is heard on a link.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Heard<'a> {
    /// The server accepted the logon: messages may go out once its figure was judged.
    Up {
        /// The highest number of this publisher that the server knows, if it says: every message
        /// up to it is stored or was refused, and none above it is.
        figure: Option<u64>,
    },
    /// An ack for publishes.
    Ack {
        /// What it says.
        ack: PublishAck<'a>,
        /// For a refusal: the rest of the server's words.
        words: Words<'a>,
    },
    /// The connection moved on.
    State(ConnectionState),
}
