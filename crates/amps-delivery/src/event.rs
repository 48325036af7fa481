//! What there is to tell of links.

use std::fmt;

use crate::reason::Reason;

/// Where the connection stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ConnectionState {
    /// No link; the next attempt waits for its turn.
    #[default]
    Disconnected,
    /// A connection is being opened.
    Connecting,
    /// The link is open, the server has not answered the logon yet.
    Connected,
    /// The server accepted the logon.
    LoggedOn,
    /// The server confirmed heartbeats.
    HeartbeatInitiated,
    /// Everything that was stored when the server accepted the logon was sent.
    PublishReplayed,
    /// Every subscription was placed again.
    Resubscribed,
    /// The client was closed.
    Shutdown,
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            ConnectionState::Disconnected => "disconnected",
            ConnectionState::Connecting => "connecting",
            ConnectionState::Connected => "connected",
            ConnectionState::LoggedOn => "logged on",
            ConnectionState::HeartbeatInitiated => "heartbeats confirmed",
            ConnectionState::PublishReplayed => "stored messages sent",
            ConnectionState::Resubscribed => "subscriptions placed again",
            ConnectionState::Shutdown => "closed",
        })
    }
}

/// Why a link was given up.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LinkEnd {
    /// The server closed it, or the network did.
    Closed,
    /// It ended inside a frame: the server or something on the way cut it.
    Truncated,
    /// No connection could be opened.
    Connect(String),
    /// Reading or writing failed.
    Io(String),
    /// The server sent something that is not of its protocol.
    Protocol(String),
    /// The connection could not be opened in time.
    ConnectTimeout,
    /// The server did not answer the logon in time.
    LogonTimeout,
    /// The server refused the logon.
    LogonRefused(Reason),
    /// The server answered the logon for this client name, which is not ours: neither its
    /// figure nor what would be sent on such a link is about this client.
    LoggedOnAs(String),
    /// The authenticator had no credentials.
    Authenticator(String),
    /// Nothing was heard for longer than a link may be silent; see `Builder::heartbeat` of the
    /// client.
    HeartbeatLost,
    /// The server is behind what it acknowledged before, and the client was told to try
    /// another one (`GapPolicy::NextServer`).
    PublishGap,
    /// The server speaks of messages this client never sent.
    ForeignFigure,
    /// The server named a number no publisher can reach (2^63 or more).
    BadFigure,
    /// The server's figure for this client name is so high that no numbers are left above it
    /// (2^63 − 2^48 − 2^47 or more). Use another client name.
    NoNumbersLeft,
    /// The server did not say in time what became of a message that was written to it. It may
    /// have it.
    AckOverdue {
        /// The oldest message without an answer.
        sequence: u64,
    },
    /// This server can never take the next message; another one may.
    Unsendable {
        /// The message.
        sequence: u64,
        /// Why.
        why: String,
    },
    /// The server turned messages away until the back-off had waited as long as it may.
    TurnedAway,
    /// What the server has is of no use for these messages, until somebody changes it there or
    /// here.
    Unusable(String),
    /// What a success means on this link is not what is required.
    Requirement(String),
    /// The store could not do what the link needs.
    Store(String),
    /// A connector, an authenticator or a server chooser panicked, with these words; the next
    /// attempt asks it again.
    Panicked(String),
    /// The client was closed.
    Shutdown,
    /// The client's task ended without being closed; its event of this name says more.
    ClientFailed(String),
}

impl fmt::Display for LinkEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LinkEnd::Unusable(why) => f.write_str(why),
            LinkEnd::Closed => f.write_str("the connection was closed"),
            LinkEnd::Truncated => f.write_str("the connection was cut inside a frame"),
            LinkEnd::Connect(error) | LinkEnd::Io(error) => f.write_str(error),
            LinkEnd::Protocol(error) => {
                write!(f, "the server does not speak this protocol: {error}")
            }
            LinkEnd::ConnectTimeout => f.write_str("the connection could not be opened in time"),
            LinkEnd::LogonTimeout => f.write_str("the logon was not answered in time"),
            LinkEnd::LogonRefused(reason) => write!(f, "the logon was refused: {reason}"),
            LinkEnd::LoggedOnAs(name) => write!(
                f,
                "the server answered the logon for another client name: {name}"
            ),
            LinkEnd::Authenticator(error) => write!(f, "no credentials: {error}"),
            LinkEnd::HeartbeatLost => {
                f.write_str("nothing was heard for longer than a link may be silent")
            }
            LinkEnd::PublishGap => f.write_str("the server is behind what was acknowledged"),
            LinkEnd::ForeignFigure => {
                f.write_str("the server speaks of messages this client never sent")
            }
            LinkEnd::BadFigure => f.write_str("the server named an impossible number"),
            LinkEnd::NoNumbersLeft => f.write_str(
                "the server's number for this client name leaves none above it; use another name",
            ),
            LinkEnd::AckOverdue { sequence } => write!(
                f,
                "the server did not say in time what became of message {sequence}"
            ),
            LinkEnd::Unsendable { sequence, why } => {
                write!(f, "the server can never take message {sequence}: {why}")
            }
            LinkEnd::TurnedAway => f.write_str("the server took no message for too long"),
            LinkEnd::Requirement(why) => {
                write!(f, "a success does not mean what is required: {why}")
            }
            LinkEnd::Store(error) => write!(f, "the store failed: {error}"),
            LinkEnd::Shutdown => f.write_str("the client was closed"),
            LinkEnd::Panicked(why) | LinkEnd::ClientFailed(why) => f.write_str(why),
        }
    }
}
