//! Refused messages, as the application learns of them.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use crate::message::Message;
use crate::protocol::{AckKind, Reason, Status};

/// A message the server refused.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct FailedWrite {
    /// Its sequence; 0 without a store.
    pub sequence: u64,
    /// Without a store: the command id that the message was sent with, which is also
    /// [`Receipt::command_id`](crate::Receipt::command_id).
    pub command_id: Option<String>,
    /// The server's reason, cut to 128 bytes.
    pub reason: Reason,
    /// The reason was longer.
    pub reason_cut: bool,
    /// When the refusal was received: microseconds since the Unix epoch.
    pub at: u64,
    /// It came after a success that covered the message. The receipt keeps its outcome.
    pub late: bool,
    /// The message was published by an earlier run of this program.
    pub earlier_run: bool,
    /// How often this run handed the message to a transport before it was refused. 0 if the
    /// refusal comes from an earlier run, or if 65,536 later refusals wait.
    pub attempts: u32,
    /// The original message. `None` if its bytes are gone, which can happen to late refusals
    /// only, or if this program does not know the version of its envelope
    /// ([`Event::Unreadable`](crate::Event::Unreadable)): such a message is offered to no
    /// handler, and [`Failed::page`](crate::Failed::page) shows it. Always `None` without a
    /// store, since nothing keeps the message.
    pub original: Option<Message>,
}

/// Something from the server that nothing takes: an ack, a delivery, or a command that the client
/// does not know. If no subscription takes several records of one frame, the frame is told once.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct UnhandledAck {
    /// `ack`; `p`, `sow` or `oof` for a delivery; otherwise the first 128 bytes of the unknown
    /// command's name.
    pub command: String,
    /// The kind of ack.
    pub kind: Option<AckKind>,
    /// The status that it reports.
    pub status: Option<Status>,
    /// The server's reason, cut to 128 bytes.
    pub reason: Reason,
    /// The reason was longer.
    pub reason_cut: bool,
    /// The message that it is about, if it is one of ours.
    pub sequence: Option<u64>,
    /// The server's own number, if it sent one.
    pub figure: Option<u64>,
    /// The ack's command id, its first 128 bytes if it has more.
    pub command_id: Option<String>,
    /// The subscription or query that it names, in the server's words, at most 128 bytes.
    pub subscription: Option<String>,
    /// It is a refusal that waits in the store; see [`Failed`](crate::Failed).
    pub waits_in_store: bool,
    /// It was refused in an earlier run. This is what the log has of it: no kind of ack, no
    /// figure, no command id.
    pub earlier_run: bool,
}

/// In words, for a log: everything except what the application knows itself.
impl fmt::Display for UnhandledAck {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.command)?;
        let kind = self.kind.map(AckKind::as_str);
        let status = self.status.map(Status::as_str);
        for word in kind.into_iter().chain(status) {
            write!(f, " {word}")?;
        }
        if let Some(sequence) = self.sequence {
            write!(f, ", message {sequence}")?;
        }
        if let Some(figure) = self.figure {
            write!(f, ", number {figure}")?;
        }
        if let Some(id) = &self.command_id {
            write!(f, ", command {id}")?;
        }
        if let Some(subscription) = &self.subscription {
            write!(f, ", subscription {subscription}")?;
        }
        match self.reason.as_str() {
            "" => Ok(()),
            reason => write!(f, ": {reason}"),
        }
    }
}

/// Why a handler did not accept a refusal.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

pub(crate) type HandlerFuture = Pin<Box<dyn Future<Output = Result<(), HandlerError>> + Send>>;
pub(crate) type Handler = Arc<dyn Fn(FailedWrite) -> HandlerFuture + Send + Sync>;
pub(crate) type LastChance = Arc<dyn Fn(UnhandledAck) + Send + Sync>;
