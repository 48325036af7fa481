//! Who gets which message: subscriptions as cursors on the log.
//!
//! A subscription remembers a place in the log and is offered what follows, as fast as its link
//! takes it. So a slow subscriber delays only itself, and replay and live delivery are the same
//! thing.

use amps_client::protocol::{Ack, AckKind, FrameError, Outbound, Status};
use regex::{Regex, RegexBuilder};

use crate::filter::Filter;
use crate::journal::{Entry, Operation, publisher_id};

/// Bytes that a compiled topic pattern may take. A few letters can ask for megabytes, and a link
/// may have many patterns.
const REGEX_SIZE: usize = 256 << 10;

#[derive(Clone, Debug)]
pub(crate) enum Topics {
    Literal(String),
    Matching(Regex),
}

impl Topics {
    /// A topic with any character that has a meaning in regular expressions is one, and must
    /// match the whole name.
    pub(crate) fn parse(topic: &str, literal: bool) -> Option<Topics> {
        if literal || !topic.contains(|c| "\\^$.|?*+()[]{}".contains(c)) {
            return Some(Topics::Literal(topic.to_owned()));
        }
        RegexBuilder::new(&format!("^(?:{topic})$"))
            .size_limit(REGEX_SIZE)
            .build()
            .ok()
            .map(Topics::Matching)
    }

    pub(crate) fn contain(&self, topic: &str) -> bool {
        match self {
            Topics::Literal(literal) => literal == topic,
            Topics::Matching(regex) => regex.is_match(topic),
        }
    }
}

/// Where a subscription starts (`docs/protocol.md` §8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Start {
    Epoch,
    Now,
    After { publisher: u64, sequence: u64 },
}

impl Start {
    pub(crate) fn parse(bookmark: &str) -> Option<Start> {
        match bookmark {
            "0" | "0||" | "0|0|" => Some(Start::Epoch),
            "0|1|" => Some(Start::Now),
            _ => {
                let mut parts = bookmark.strip_suffix('|').unwrap_or(bookmark).split('|');
                let publisher = parts.next()?.parse().ok()?;
                let sequence = parts.next()?.parse().ok()?;
                parts.next().is_none().then_some(Start::After {
                    publisher,
                    sequence,
                })
            }
        }
    }
}

#[derive(Debug)]
pub(crate) struct Subscription {
    pub(crate) sub_id: String,
    pub(crate) topics: Topics,
    pub(crate) filter: Option<Filter>,
    pub(crate) cursor: u64,
    /// Set while it looks for the message behind which it should start.
    pub(crate) after: Option<(u64, u64)>,
    /// The `completed` ack to send once the cursor is at this place.
    pub(crate) completed: Option<(u64, Option<String>)>,
}

impl Subscription {
    /// Sends the entry if it is for this subscription.
    pub(crate) fn offer(
        &mut self,
        entry: &Entry<'_>,
        position: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        if let Some((publisher, sequence)) = self.after {
            let found = entry.bookmark(position);
            if found == format!("{publisher}|{sequence}|") {
                self.after = None;
            }
            return Ok(());
        }
        self.deliver(entry, position, out)
    }

    /// Sends the message if topic and filter let it through.
    pub(crate) fn deliver(
        &self,
        entry: &Entry<'_>,
        position: u64,
        out: &mut Vec<u8>,
    ) -> Result<(), FrameError> {
        let message = matches!(
            entry.operation,
            Operation::Publish | Operation::DeltaPublish
        );
        let wanted = message
            && self.topics.contain(entry.topic)
            && self
                .filter
                .as_ref()
                .is_none_or(|filter| filter.matches(entry.body));
        if !wanted {
            return Ok(());
        }
        Outbound {
            sub_id: Some(&self.sub_id),
            bookmark: Some(&entry.bookmark(position)),
            sow_key: entry.sow_key,
            correlation_id: entry.correlation_id,
            ..Outbound::new(entry.topic, entry.body)
        }
        .encode(out)
    }

    /// Says that the replay is over, if it is and the client asked for that.
    pub(crate) fn complete(&mut self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let Some((_, command_id)) = self.completed.take_if(|(end, _)| *end <= self.cursor) else {
            return Ok(());
        };
        Ack {
            command_id: command_id.as_deref(),
            sub_id: Some(&self.sub_id),
            ..Ack::new(AckKind::Completed, Status::Success)
        }
        .encode(out)
    }
}

/// The bookmark a logon ack carries.
pub(crate) fn last_bookmark(name: &str, settled: u64) -> String {
    format!("{}|{settled}|", publisher_id(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn topics_are_literal_until_they_look_like_a_pattern() {
        let contain =
            |topics: &str, topic: &str| Topics::parse(topics, false).unwrap().contain(topic);
        assert!(contain("orders", "orders") && !contain("orders", "orders2"));
        assert!(contain("ord.*", "orders") && !contain("ord.", "orders"));
        assert!(contain("a|b", "b") && !contain("a|b", "ab"));
        assert!(Topics::parse("(", false).is_none());
        assert!(Topics::parse("(", true).unwrap().contain("("));
    }

    #[test]
    fn bookmarks_are_read() {
        assert_eq!(Start::parse("0"), Some(Start::Epoch));
        assert_eq!(Start::parse("0|1|"), Some(Start::Now));
        assert_eq!(
            Start::parse("77|5|"),
            Some(Start::After {
                publisher: 77,
                sequence: 5
            })
        );
        for bad in ["", "x", "1|2|3|", "20260101T000000", "1|2|,3|4|"] {
            assert_eq!(Start::parse(bad), None, "{bad}");
        }
    }
}
