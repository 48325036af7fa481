//! Events that a sandbox reports to whoever runs it.

use std::fmt;

/// Something that whoever runs a server may want to read as it happens; see
/// [`Builder::on_told`](crate::Builder::on_told). Texts are as clients sent them.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Told {
    /// A client logged on.
    LoggedOn {
        /// Its name.
        client_name: String,
        /// The highest sequence it was told.
        settled: u64,
    },
    /// A logon was refused.
    LogonRefused {
        /// The name it wanted.
        client_name: String,
        /// Why.
        reason: String,
    },
    /// A message was refused.
    Refused {
        /// Its publisher.
        client_name: String,
        /// Its sequence on the wire, if it had one.
        sequence: Option<u64>,
        /// Its topic.
        topic: String,
        /// Why.
        reason: String,
    },
    /// A command was refused.
    CommandRefused {
        /// The client's name; empty before a logon.
        client_name: String,
        /// The command.
        command: String,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Told::LoggedOn {
                client_name,
                settled,
            } => write!(f, "\"{client_name}\" logged on, settled up to {settled}"),
            Told::LogonRefused {
                client_name,
                reason,
            } => write!(f, "the logon of \"{client_name}\" was refused: {reason}"),
            Told::Refused {
                client_name,
                sequence,
                topic,
                reason,
            } => {
                match sequence {
                    Some(sequence) => write!(f, "message {sequence}")?,
                    None => write!(f, "a message without a sequence")?,
                }
                write!(
                    f,
                    " of \"{client_name}\" to \"{topic}\" was refused: {reason}"
                )
            }
            Told::CommandRefused {
                client_name,
                command,
                reason,
            } => write!(f, "{command} of \"{client_name}\" was refused: {reason}"),
        }
    }
}
