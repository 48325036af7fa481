//! What a server sends (`docs/protocol.md` §4, §5.2, §8); for the sandbox and for tests.

use super::ack::{AckKind, Status};
use super::frame::{FrameError, append_frame};
use super::writer;

/// An ack frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ack<'a> {
    /// `a`: the kind.
    pub kind: AckKind,
    /// `status`.
    pub status: Status,
    /// `cid`: id of the command, absent from conflated acks.
    pub command_id: Option<&'a str>,
    /// `query_id` of a SOW command.
    pub query_id: Option<&'a str>,
    /// `sub_id` of a subscription.
    pub sub_id: Option<&'a str>,
    /// `s`: the sequence it covers.
    pub sequence: Option<u64>,
    /// `bm`: the bookmark it covers.
    pub bookmark: Option<&'a str>,
    /// `reason`.
    pub reason: Option<&'a str>,
    /// `user_id`, with status `retry`.
    pub user_id: Option<&'a str>,
    /// `pw`, with status `retry`: the challenge.
    pub password: Option<&'a str>,
    /// `topic_matches`.
    pub topic_matches: Option<u64>,
    /// `matches`.
    pub matches: Option<u64>,
    /// `records_returned`.
    pub records_returned: Option<u64>,
    /// `records_deleted`.
    pub records_deleted: Option<u64>,
}

impl<'a> Ack<'a> {
    /// An ack with nothing but kind and status.
    pub fn new(kind: AckKind, status: Status) -> Self {
        Ack {
            kind,
            status,
            command_id: None,
            query_id: None,
            sub_id: None,
            sequence: None,
            bookmark: None,
            reason: None,
            user_id: None,
            password: None,
            topic_matches: None,
            matches: None,
            records_returned: None,
            records_deleted: None,
        }
    }

    /// The conflated ack: everything up to `sequence` is persisted.
    pub fn persisted(sequence: u64) -> Self {
        Ack {
            sequence: Some(sequence),
            ..Ack::new(AckKind::Persisted, Status::Success)
        }
    }

    /// The refusal of one message.
    pub fn refused(sequence: Option<u64>, command_id: Option<&'a str>, reason: &'a str) -> Self {
        Ack {
            sequence,
            command_id,
            reason: Some(reason),
            ..Ack::new(AckKind::Persisted, Status::Failure)
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        writer::frame(out, "ack", b"", |header| {
            header.acks(self.kind.into());
            header.text("status", self.status.as_str());
            header.text_if("cid", self.command_id);
            header.text_if("query_id", self.query_id);
            header.text_if("sub_id", self.sub_id);
            header.number_if("s", self.sequence);
            header.text_if("bm", self.bookmark);
            header.text_if("reason", self.reason);
            header.text_if("user_id", self.user_id);
            header.text_if("pw", self.password);
            header.number_if("records_deleted", self.records_deleted);
            header.number_if("records_returned", self.records_returned);
            header.number_if("matches", self.matches);
            header.number_if("topic_matches", self.topic_matches);
        })
    }
}

/// The answer to a logon that succeeded, in the order of the one genuine sample
/// (`docs/protocol.md` §5.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogonAck<'a> {
    /// `cid` of the logon.
    pub command_id: Option<&'a str>,
    /// `s`: the last sequence settled for this name; 0 for a name never seen. `None` is how
    /// other implementations behave, never a real server.
    pub sequence: Option<u64>,
    /// `bm`: the name's last bookmark.
    pub bookmark: Option<&'a str>,
    /// `client_name`.
    pub client_name: Option<&'a str>,
    /// `reason`, which may be set on success.
    pub reason: Option<&'a str>,
    /// `version` of the server.
    pub version: Option<&'a str>,
}

impl LogonAck<'_> {
    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        writer::frame(out, "ack", b"", |header| {
            header.text_if("cid", self.command_id);
            header.number_if("s", self.sequence);
            header.text_if("bm", self.bookmark);
            header.text_if("client_name", self.client_name);
            header.acks(AckKind::Processed.into());
            header.text("status", Status::Success.as_str());
            header.text_if("reason", self.reason);
            header.text_if("version", self.version);
        })
    }
}

/// A message on its way to a subscriber: a `p` frame, or an `oof`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Outbound<'a> {
    /// `t`: the topic.
    pub topic: &'a str,
    /// `sub_id`: the subscription it answers.
    pub sub_id: Option<&'a str>,
    /// `sids`: all subscriptions it answers.
    pub sub_ids: Option<&'a str>,
    /// `bm`: its place in the log.
    pub bookmark: Option<&'a str>,
    /// `ts`: when the server took it.
    pub timestamp: Option<&'a str>,
    /// `k`: SOW key.
    pub sow_key: Option<&'a str>,
    /// `x`: correlation id.
    pub correlation_id: Option<&'a str>,
    /// `user_id` of the publisher.
    pub user_id: Option<&'a str>,
    /// `reason`; makes it an `oof` instead of a `p`.
    pub oof_reason: Option<&'a str>,
    /// The message.
    pub body: &'a [u8],
}

amps_store::debug_with_excerpt!(
    Outbound: Outbound<'_>,
    [
        topic,
        sub_id,
        sub_ids,
        bookmark,
        timestamp,
        sow_key,
        correlation_id,
        user_id,
        oof_reason
    ],
    body
);

impl<'a> Outbound<'a> {
    /// A message of `topic` with nothing else set.
    pub fn new(topic: &'a str, body: &'a [u8]) -> Self {
        Outbound {
            topic,
            sub_id: None,
            sub_ids: None,
            bookmark: None,
            timestamp: None,
            sow_key: None,
            correlation_id: None,
            user_id: None,
            oof_reason: None,
            body,
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        let command = if self.oof_reason.is_some() {
            "oof"
        } else {
            "p"
        };
        writer::frame(out, command, self.body, |header| {
            header.text("t", self.topic);
            header.text_if("sub_id", self.sub_id);
            header.text_if("sids", self.sub_ids);
            header.text_if("bm", self.bookmark);
            header.text_if("ts", self.timestamp);
            header.text_if("k", self.sow_key);
            header.text_if("x", self.correlation_id);
            header.text_if("user_id", self.user_id);
            header.text_if("reason", self.oof_reason);
        })
    }
}

/// One record to put into a `sow` frame.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SowEntry<'a> {
    /// `t`: the topic.
    pub topic: &'a str,
    /// `k`: the record's key.
    pub key: &'a str,
    /// `bm`: place of its last change.
    pub bookmark: Option<&'a str>,
    /// The record.
    pub body: &'a [u8],
}

amps_store::debug_with_excerpt!(SowEntry: SowEntry<'_>, [topic, key, bookmark], body);

/// Appends a `sow` frame with several records to `out`.
///
/// # Errors
/// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
pub fn encode_sow<'a>(
    out: &mut Vec<u8>,
    query_id: &str,
    topic: &str,
    entries: impl IntoIterator<Item = SowEntry<'a>>,
) -> Result<(), FrameError> {
    append_frame(out, |out| {
        writer::object(out, "sow", |header| {
            header.text("query_id", query_id);
            header.text("t", topic);
        });
        for entry in entries {
            writer::record(out, |header| {
                header.text("t", entry.topic);
                header.text("query_id", query_id);
                header.text("k", entry.key);
                header.text_if("bm", entry.bookmark);
                header.number("l", entry.body.len() as u64);
            });
            out.extend_from_slice(entry.body);
        }
    })
}

/// Appends the frame that opens (`begin`) or closes the answer to a query.
///
/// # Errors
/// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
pub fn encode_group(out: &mut Vec<u8>, begin: bool, query_id: &str) -> Result<(), FrameError> {
    let command = if begin { "group_begin" } else { "group_end" };
    writer::frame(out, command, b"", |header| {
        header.text("query_id", query_id)
    })
}

/// Appends a server's beat.
///
/// # Errors
/// Never in practice; see [`append_frame`].
pub fn encode_heartbeat(out: &mut Vec<u8>) -> Result<(), FrameError> {
    writer::frame(out, "heartbeat", b"", |_| ())
}
