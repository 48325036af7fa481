//! What goes into a [`Session`](super::Session), and what comes out.

use std::time::Duration;

use crate::chooser::Credentials;
use crate::delivery::PublishAck;
use crate::error::CommandError;
use crate::protocol::{Header, Reason};
use crate::requests::{Answer, Delivered};

/// What a session needs to know.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// The client name: identity of the publisher at the server.
    pub client_name: String,
    /// Logon options, such as `ack_conflation=100ms`. None are sent unless set here.
    pub logon_options: Option<String>,
    /// Correlation data of the logon.
    pub logon_correlation: Option<String>,
    /// Interval of heartbeats, in whole seconds on the wire; `None`: no heartbeats.
    pub heartbeat: Option<Duration>,
    /// Time for the answer to a logon.
    pub logon_timeout: Duration,
    /// Time for the answer to any other command.
    pub command_timeout: Duration,
    /// Publishes come from a store. Without one, a publish that asks for an ack carries a command
    /// id, and an ack that does not name this id is not about it.
    pub stored: bool,
    /// With a store: publishes carry their sequence as command id, so that such an id in an ack
    /// names one.
    pub publish_ids: bool,
}

/// What a server says about itself, and about this client's name, when it accepts a logon
/// (`docs/protocol.md` §5.2).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct ServerInfo {
    /// Its version as it wrote it, such as `5.3.3.0`, with whatever it appends to the numbers;
    /// cut to 128 bytes.
    pub version: Option<String>,
    /// Its hash of the client's name. The bookmarks of this client's messages begin with it.
    pub name_hash: Option<u64>,
}

/// What was received.
#[derive(Debug)]
#[non_exhaustive]
pub enum Received<'a> {
    /// The server accepted the logon.
    LoggedOn {
        /// The highest number it knows of this publisher; `None` if it does not say.
        figure: Option<u64>,
    },
    /// The server refused the logon, so the link is useless.
    LogonRefused(Reason),
    /// The server accepted the logon of a client name that is not ours, so the link is useless.
    LoggedOnAs(&'a str),
    /// The server sent a challenge; answer with
    /// [`Session::answer_challenge`](super::Session::answer_challenge).
    Challenge(Credentials),
    /// The server confirmed heartbeats.
    HeartbeatInitiated,
    /// Every subscription was answered after a logon.
    Resubscribed,
    /// An ack for publishes.
    Ack(PublishAck<'a>),
    /// A command is done.
    Done {
        /// The id that was returned when it was given.
        id: u64,
        /// Its result.
        result: Result<Answer, CommandError>,
    },
    /// A message for a subscription.
    Delivered {
        /// The subscription.
        subscription: u64,
        /// The message.
        message: Delivered,
    },
    /// A subscription is over: a query has been answered, or the server refused to place the
    /// subscription again.
    SubscriptionEnded {
        /// The subscription.
        subscription: u64,
        /// Why, unless it simply ended.
        error: Option<CommandError>,
    },
    /// A field of a frame could not be read; what the rest of the frame says follows.
    Unreadable {
        /// Its key.
        field: &'a str,
    },
    /// An ack that belongs to nothing, a frame of messages or records of which no subscription
    /// takes some, or a command that no client knows.
    Unhandled(&'a Header<'a>),
}

/// Why the session gives its link up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expired {
    /// No answer to the logon in time.
    Logon,
    /// Nothing was heard for longer than a link may be silent.
    Heartbeat,
}
