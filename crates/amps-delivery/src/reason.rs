//! Why a server said no.

use std::fmt;

use amps_store::MAX_REASON;

/// The reason in an ack: the server's own words, and what they are known to mean.
///
/// Servers may word reasons freely and set one on success as well, for instance
/// `authentication disabled` (`docs/protocol.md` §5.2, §6); so making one never fails, and
/// its presence says nothing about the outcome. Of long words the first [`MAX_REASON`] bytes
/// are kept, as in the store: a server must not fill this side's memory with them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Reason {
    kind: ReasonKind,
    text: String,
}

/// The reasons this crate knows by name (`docs/protocol.md` §6).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ReasonKind {
    /// The server gave no reason.
    None,
    /// The message, or the command, was seen before.
    Duplicate,
    /// The filter cannot be compiled.
    BadFilter,
    /// The topic is not a valid regular expression.
    BadRegexTopic,
    /// The subscription id is in use.
    SubscriptionAlreadyExists,
    /// The topic does not exist, or cannot be used this way.
    InvalidTopic,
    /// Another connection holds the client name.
    NameInUse,
    /// User or password were refused.
    AuthFailure,
    /// The user may not do this.
    NotEntitled,
    /// Authentication is switched off; comes with success.
    AuthDisabled,
    /// The body is not what the topic's message type demands.
    InvalidMessage,
    /// The server does not know the command, or could not read its header.
    UnknownCommand,
    /// A replica that must confirm did not.
    ReplicationFailed,
    /// Anything else; see [`Reason::as_str`].
    Other,
}

impl Reason {
    /// The reason that a server words as `text`; empty text means that it gave none.
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = cut(text.as_ref());
        Reason {
            kind: ReasonKind::of(text),
            text: text.to_owned(),
        }
    }

    /// No reason was given.
    pub fn none() -> Self {
        Reason::new("")
    }

    /// What the words are known to mean.
    pub fn kind(&self) -> ReasonKind {
        self.kind
    }

    /// The server's own words, the first of them if they were many; empty when it gave none.
    pub fn as_str(&self) -> &str {
        &self.text
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.text.is_empty() {
            "no reason given"
        } else {
            &self.text
        })
    }
}

impl From<&str> for Reason {
    fn from(text: &str) -> Self {
        Reason::new(text)
    }
}

impl ReasonKind {
    fn of(text: &str) -> Self {
        match text.trim().to_ascii_lowercase().as_str() {
            "" => ReasonKind::None,
            "duplicate" => ReasonKind::Duplicate,
            "bad filter" => ReasonKind::BadFilter,
            "bad regex topic" | "bad regex" => ReasonKind::BadRegexTopic,
            "subscription already exists" | "already exists" => {
                ReasonKind::SubscriptionAlreadyExists
            }
            "invalid topic" => ReasonKind::InvalidTopic,
            "name in use" => ReasonKind::NameInUse,
            "auth failure" | "authentication failed" => ReasonKind::AuthFailure,
            "not entitled" => ReasonKind::NotEntitled,
            "authentication disabled" => ReasonKind::AuthDisabled,
            "invalid message" => ReasonKind::InvalidMessage,
            "unknown command" => ReasonKind::UnknownCommand,
            "sync replication failed" => ReasonKind::ReplicationFailed,
            _ => ReasonKind::Other,
        }
    }
}

/// As much of a server's words as is kept: [`MAX_REASON`] bytes, up to a character border.
pub fn cut(text: &str) -> &str {
    let mut end = text.len().min(MAX_REASON);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_is_a_reason_and_keeps_its_words() {
        for (text, kind) in [
            ("", ReasonKind::None),
            ("not entitled", ReasonKind::NotEntitled),
            ("Not Entitled", ReasonKind::NotEntitled),
            ("auth failure", ReasonKind::AuthFailure),
            ("bad regex", ReasonKind::BadRegexTopic),
            ("zero-point fluctuation", ReasonKind::Other),
        ] {
            let reason = Reason::new(text);
            assert_eq!(reason.kind(), kind, "{text}");
            assert_eq!(reason.as_str(), text);
        }
        assert_eq!(Reason::none().to_string(), "no reason given");
    }

    #[test]
    fn endless_words_are_cut_on_a_character_border() {
        let reason = Reason::new("é".repeat(1 << 20));
        assert_eq!(reason.as_str(), "é".repeat(MAX_REASON / 2));
        assert_eq!(Reason::new("x".repeat(129)).as_str().len(), MAX_REASON);
    }
}
