//! What carries messages to a server: a link, and what is heard on it.

use std::task::{Context, Poll};
use std::time::Duration;

use crate::capabilities::Capabilities;
use crate::delivery::{Evidence, Now, PublishAck, Resume, Room, ToSend};
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

    /// Asks the server which of these it holds, by their ids: only on links that resume
    /// [by id](Resume::ById), within their room. Each is answered, by [`Heard::Found`] or
    /// [`Heard::Absent`]; a server that says nothing for the ack deadline ends the link.
    fn recall(&mut self, _now: Now, _messages: &[ToSend<'_>]) {}

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

    /// In words for people, once it is up: where it leads to and why it is of this kind, if there is
    /// more to say than the server's address.
    fn about(&self) -> String {
        String::new()
    }
}

/// What one poll of a link did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Something was read, and all that came with it was told.
    pub read: bool,
    /// Bytes went out.
    pub wrote: bool,
    /// With single acks: the number on the wire of the last message whose last byte went out, if
    /// one's did. The deadline of its ack runs from here.
    pub through: Option<u64>,
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

/// What is heard on a link. Messages are named by the numbers they went out under on it.
///
/// A server whose acks have figures is heard by [`Ack`](Self::Ack), and one that acks each message
/// by itself by the others.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub enum Heard<'a> {
    /// The link is of use: messages go out once what the server knows of earlier ones was judged.
    /// Once, and before anything about messages.
    Up(Up<'a>),
    /// The link is good for something else from now on.
    Changed(&'a Capabilities),
    /// An ack for publishes, of a server with figures.
    Ack {
        /// What it says.
        ack: PublishAck<'a>,
        /// For a refusal: the rest of the server's words.
        words: Words<'a>,
    },
    /// A message is stored. Hearing it twice does no harm.
    One {
        /// The message.
        wire: u64,
        /// What shows it.
        evidence: Evidence,
    },
    /// As [`Resume::HighWater`], found out again while the link is up.
    Through {
        /// The mark.
        wire: u64,
    },
    /// A message was refused, alone and for good.
    Refused {
        /// The message.
        wire: u64,
        /// The server's reason.
        reason: &'a str,
        /// It was sent before, and may have been stored then.
        may_be_stored: bool,
        /// The rest of the server's words.
        words: Words<'a>,
    },
    /// A message was not taken for now; to be told once for each time it was sent. Nothing new is
    /// sent until everything that was has its verdict; then it starts again with the first message
    /// that is not settled, after a delay.
    TryAgain {
        /// The message.
        wire: u64,
        /// The server's reason.
        why: &'a str,
        /// Nothing is wrong with it: one before it was not stored, and it had to be turned away.
        at_once: bool,
    },
    /// The server takes nothing, whatever it is: as if the next message had been turned away, but
    /// with the longest delay.
    LineStopped {
        /// The server's reason.
        why: &'a str,
    },
    /// It takes messages again, sooner than the longest delay.
    LineFree,
    /// A message that was [asked for](Link::recall) is stored.
    Found {
        /// The message.
        wire: u64,
    },
    /// A message that was asked for is not known to be stored: it goes out again.
    Absent {
        /// The message.
        wire: u64,
    },
    /// The connection moved on.
    State(ConnectionState),
}

/// A link that is of use.
#[derive(Clone, Copy, Debug)]
pub struct Up<'a> {
    /// What the server knows of messages sent before.
    pub resume: Resume,
    /// What the link is good for.
    pub capabilities: &'a Capabilities,
}
