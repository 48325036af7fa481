//! What can go wrong, and what to do next.

use std::io;
use std::time::Duration;

use amps_store::{AppendError, StoreError, Unrecorded};

use crate::connector::ConnectError;
use crate::delivery::Flushed;
use crate::event::LinkEnd;
use crate::message::{BadMessage, Message};
use crate::protocol::Reason;

/// A client could not be opened. Nothing was started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The store was created for another client name.
    #[error(
        "the store belongs to client name {found:?}, not {wanted:?}; use that name or another store"
    )]
    WrongClientName {
        /// The store's name.
        found: String,
        /// The name asked for.
        wanted: String,
    },
    /// A client name that no server would accept.
    #[error(
        "{0:?} is no client name: use a short one without control characters or square brackets"
    )]
    BadClientName(String),
    /// No server was given.
    #[error("no server was given; add one with `.server(\"tcp://host:port/amps/json\")`")]
    NoServer,
    /// A server's URI cannot be used.
    #[error("bad server URI: {0}")]
    Uri(String),
    /// It will never be possible to connect to a server's address: its scheme is not supported,
    /// or TLS cannot be set up for it.
    #[error("cannot connect to {server}: {source}")]
    Server {
        /// The server, without its credentials.
        server: String,
        /// Why.
        source: ConnectError,
    },
    /// There is no tokio runtime to run on.
    #[error(
        "no tokio runtime is at hand; open the client inside one, give a handle with `.runtime(…)`, or use the blocking client"
    )]
    NoRuntime,
    /// A thread that the client needs cannot be made. Threads for the store and for looking up
    /// names are made at open, because if they were missing later it would cost a message or a
    /// connection.
    #[error(
        "cannot make a thread for the client: {source}; allow this user or container more of them \
         (ulimit -u, pids.max)"
    )]
    NoThread {
        /// What the operating system reported.
        source: io::Error,
    },
    /// An option is out of range.
    #[error("bad client option: {0}")]
    Options(String),
}

/// A message was not accepted. It is handed back, and nothing was stored or sent.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
#[non_exhaustive]
pub struct PublishError {
    /// Why.
    #[source]
    pub reason: PublishFailure,
    /// The message.
    pub message: Box<Message>,
}

impl PublishError {
    pub(crate) fn new(reason: impl Into<PublishFailure>, message: Message) -> Self {
        PublishError {
            reason: reason.into(),
            message: Box::new(message),
        }
    }

    /// Whether it was refused only for want of room.
    pub(crate) fn is_for_room(&self) -> bool {
        match &self.reason {
            PublishFailure::Full | PublishFailure::Unacked(_) => true,
            PublishFailure::Store(error) => error.is_retryable(),
            _ => false,
        }
    }

    /// Whether the same message can be accepted later.
    pub fn is_retryable(&self) -> bool {
        match &self.reason {
            PublishFailure::Store(error) => error.is_retryable(),
            PublishFailure::Full
            | PublishFailure::Unacked(_)
            | PublishFailure::Deadline(_)
            | PublishFailure::NotConnected => true,
            PublishFailure::Message(_)
            | PublishFailure::TooLarge { .. }
            | PublishFailure::Unsendable(_)
            | PublishFailure::Closed => false,
        }
    }
}

/// Why a message was not accepted.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PublishFailure {
    /// No server would understand it.
    #[error(transparent)]
    Message(#[from] BadMessage),
    /// It is larger than the limit set for this client.
    #[error("the message has {bytes} bytes, this client takes {max}; see `Builder::max_message`")]
    TooLarge {
        /// Bytes of its payload, its topic and its other strings.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// No server of this client's transport can ever take it.
    #[error("no server can take it: {0}")]
    Unsendable(String),
    /// The store did not take it: full (when not waiting), too large, or broken.
    #[error(transparent)]
    Store(#[from] AppendError),
    /// No room came before the deadline. The last reason why there was none.
    #[error("no room came before the deadline: {0}")]
    Deadline(#[source] Box<PublishFailure>),
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// Without a store a message can only be sent while logged on.
    #[error("not connected, and there is no store to keep the message in")]
    NotConnected,
    /// Without a store: the send buffer is full.
    #[error("the send buffer is full")]
    Full,
    /// Without a store: as many messages as allowed wait for the acks they asked for, or were
    /// refused and wait for the failed-write handler; see
    /// [`Builder::max_in_flight`](crate::Builder::max_in_flight).
    #[error(
        "{0} message(s) wait for their acks, as many as may; wait for some of them, or send this \
         one without asking for an ack"
    )]
    Unacked(u64),
}

/// No server has accepted a logon yet. The client goes on trying.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum LogonError {
    /// Every server refused, the last one with this reason.
    #[error("{server} refused the logon: {reason}")]
    Refused {
        /// The server, without its credentials.
        server: String,
        /// Its reason.
        reason: Reason,
    },
    /// No server was reached, or none answered, before the deadline.
    #[error("no server accepted a logon within {within:?}{}", last_attempt(.last))]
    Deadline {
        /// The time given.
        within: Duration,
        /// The server tried last and how that ended.
        last: Option<(String, LinkEnd)>,
    },
    /// No more attempts are made; see [`Event::GaveUp`](crate::Event::GaveUp).
    #[error("no more attempts to log on are made: {why}{}", last_attempt(.last))]
    GaveUp {
        /// Who gave up.
        why: &'static str,
        /// The server tried last and how that ended.
        last: Option<(String, LinkEnd)>,
    },
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
}

fn last_attempt(last: &Option<(String, LinkEnd)>) -> String {
    last.as_ref().map_or(String::new(), |(server, end)| {
        format!("; the last attempt, at {server}, ended with: {end}")
    })
}

/// A flush ended before everything it covers was settled.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum FlushError {
    /// The time is up. What is left stays in the store and is still sent, and handlers go on
    /// running. Without a store: the server did not confirm in time, or did not send the acks
    /// that were asked for.
    #[error(
        "the flush was not over in time; {left} message(s) are not settled, and a handler has not returned from {handlers} refusal(s) or other ack(s)"
    )]
    Timeout {
        /// Covered by this flush and not settled.
        left: u64,
        /// Refusals, of this run or an earlier one, whose failed-write handler has not returned
        /// or was not called yet, and what the last-chance handler has not returned from.
        handlers: u64,
    },
    /// The client was closed meanwhile.
    #[error("the client was closed while flushing")]
    Closed(FlushReport),
    /// Without a store: the server cannot confirm.
    #[error("the server did not confirm the flush: {0}")]
    Command(CommandError),
}

/// What became of the messages that one flush covers: those stored before it was called, without
/// those that an earlier flush has counted. Flushes that run at the same time both count what
/// they both wait for. Counts since the client was opened are in
/// [`Client::health`](crate::Client::health). Without a store a flush counts what became known
/// since the one before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushReport {
    /// Persisted, by the server's ack.
    pub persisted: u64,
    /// Covered by the server's figure at a logon without any ack: persisted, or refused
    /// with a refusal that was lost (AMPS does not say which).
    pub persisted_at_logon: u64,
    /// The server had seen their ids before; no AMPS server says that.
    pub duplicates: u64,
    /// The server was asked for them by their ids after a link had ended, and holds them; no AMPS
    /// server is asked.
    pub found: u64,
    /// Refused, with the refusal in the log, or in memory where that could not take it
    /// ([`Health::unrecorded_refusals`](crate::Health::unrecorded_refusals)).
    pub rejected: u64,
    /// Covered by this flush and not settled.
    pub left: u64,
    /// Refusals in the store that wait for the application, of any run.
    pub waiting: u64,
    /// Without a store: messages of which nothing is known, because they asked for no ack or
    /// their link was lost. The server confirmed that it has processed them; that does not say of
    /// any of them whether it was persisted or refused.
    pub unknown: u64,
}

impl FlushReport {
    pub(crate) fn new(flushed: Flushed, waiting: u64) -> Self {
        FlushReport {
            persisted: flushed.persisted,
            persisted_at_logon: flushed.persisted_at_logon,
            duplicates: flushed.duplicates,
            found: flushed.found,
            rejected: flushed.rejected,
            left: flushed.left,
            waiting,
            unknown: flushed.unknown,
        }
    }

    /// Whether everything is known to be well: every message that this flush covers was persisted
    /// by an ack, was known to the server before or was found there, and no refusal waits. What only
    /// a logon covered may have been refused.
    pub fn all_persisted(&self) -> bool {
        let known = self.persisted_at_logon == 0 && self.unknown == 0;
        known && self.rejected == 0 && self.left == 0 && self.waiting == 0
    }
}

/// How a client ended.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct CloseReport {
    /// Unsettled messages left in the store, `unrecorded` ones included, which the next open
    /// sends. Without a store: messages that were accepted but never handed to a link, which are
    /// lost. Messages that wait for an ack are not counted here: their receipts say `Unknown`.
    pub left: u64,
    /// What was settled or refused in this run and ended with it: a sync had failed, and the log
    /// had no room to record it.
    pub unrecorded: Unrecorded,
    /// Refusals whose failed-write handler had not returned at the deadline, or made this call
    /// itself: they are offered again at the next open, unless the handler accepts them before
    /// the process ends. And what the last-chance handler had not returned from.
    pub handlers: u64,
    /// The store was closed cleanly. Otherwise the next open treats this as an unclean stop,
    /// which skips numbers but loses no message.
    pub clean: bool,
    /// The call was made inside a handler that the closing waits for, so it could not wait for
    /// the end, and `clean` is not known yet.
    pub pending: bool,
    /// Why the store could not be closed cleanly.
    pub error: Option<StoreError>,
}

/// A command other than a publish did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// The server refused it.
    #[error("the server refused: {0}")]
    Refused(Reason),
    /// The server did not answer in time.
    #[error("no answer in time")]
    Timeout,
    /// No server can be reached to subscribe at: each one in turn could not be connected to or
    /// refused the logon, or no more attempts are made. In the first case the client goes on
    /// trying.
    #[error(
        "no server can be reached; the last attempt, at {server}, ended with: {why}. Wait for one \
         with `wait_logged_on`, and subscribe then"
    )]
    Unreachable {
        /// The server tried last, without its credentials.
        server: String,
        /// How the last attempt ended.
        why: LinkEnd,
    },
    /// The link ended before the answer came.
    #[error("the connection ended before the answer came")]
    Disconnected,
    /// Not connected.
    #[error("not connected")]
    NotConnected,
    /// The servers of this client's transport take messages and nothing else.
    #[error("servers of this kind take no commands and no subscriptions")]
    Unsupported,
    /// The client was closed.
    #[error("the client is closed")]
    Closed,
    /// Too many commands wait for an answer; wait for some of them first.
    #[error("too many commands wait for an answer; wait for some of them first")]
    TooMany,
    /// It is larger than the limit set for this client.
    #[error("the command has {bytes} bytes, this client takes {max}; see `Builder::max_message`")]
    TooLarge {
        /// Bytes of its body and its strings.
        bytes: usize,
        /// The limit.
        max: usize,
    },
    /// The command itself is malformed.
    #[error("bad command: {0}")]
    Bad(&'static str),
}
