//! Commands a client sends (`docs/protocol.md` §4, §5, §8).

use std::fmt;

use amps_store::Excerpt;

use super::ack::AckKinds;
use super::frame::FrameError;
use super::writer;

/// A publish or delta publish: the hot path.
///
/// Encoding copies the topic and the body once, formats two integers at most and allocates
/// nothing but what the buffer lacks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Publish<'a> {
    /// Merge into the record (`delta_publish`) instead of replacing it.
    pub delta: bool,
    /// Say `publish` instead of `p`; servers take both (`docs/protocol.md` §2.2).
    pub long_name: bool,
    /// The command's id; vendor clients send none on a publish.
    pub command_id: Option<&'a str>,
    /// The topic, a literal name.
    pub topic: &'a str,
    /// Lifetime of the record at the server, in seconds.
    pub expiration: Option<u32>,
    /// Command options, sent as they are.
    pub options: Option<&'a str>,
    /// Correlation id; Base64 characters only.
    pub correlation_id: Option<&'a str>,
    /// The sequence on the wire, above zero; absent without a store.
    pub sequence: Option<u64>,
    /// The acks asked for; `persisted` with a store.
    pub acks: AckKinds,
    /// Explicit SOW key; Base64 characters only.
    pub sow_key: Option<&'a str>,
    /// The message, opaque to the protocol.
    pub body: &'a [u8],
}

amps_store::debug_with_excerpt!(
    Publish: Publish<'_>,
    [
        delta,
        long_name,
        command_id,
        topic,
        expiration,
        options,
        correlation_id,
        sequence,
        acks,
        sow_key
    ],
    body
);

impl<'a> Publish<'a> {
    /// A publish of `body` to `topic` that asks for nothing.
    pub fn new(topic: &'a str, body: &'a [u8]) -> Self {
        Publish {
            delta: false,
            long_name: false,
            command_id: None,
            topic,
            expiration: None,
            options: None,
            correlation_id: None,
            sequence: None,
            acks: AckKinds::NONE,
            sow_key: None,
            body,
        }
    }

    /// A publish from a store: numbered, and asking for its persisted ack.
    pub fn stored(topic: &'a str, sequence: u64, body: &'a [u8]) -> Self {
        Publish {
            sequence: Some(sequence),
            acks: AckKinds::PERSISTED,
            ..Publish::new(topic, body)
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        self.encode_marked(out).map(drop)
    }

    /// As [`encode`](Self::encode); tells where in `out` the sequence ends, if there is one.
    pub(crate) fn encode_marked(&self, out: &mut Vec<u8>) -> Result<usize, FrameError> {
        let command = match (self.delta, self.long_name) {
            (true, _) => "delta_publish",
            (false, true) => "publish",
            (false, false) => "p",
        };
        out.reserve(96 + self.topic.len() + self.body.len());
        let mut end = 0;
        writer::frame(out, command, self.body, |header| {
            header.text_if("cid", self.command_id);
            header.text("t", self.topic);
            header.number_if("e", self.expiration.map(u64::from));
            header.text_if("o", self.options);
            header.text_if("x", self.correlation_id);
            header.number_if("s", self.sequence);
            end = header.end();
            header.acks(self.acks);
            header.text_if("k", self.sow_key);
        })?;
        Ok(end)
    }
}

/// Any command but publish. Make one with a constructor, set further fields, encode it.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Command<'a> {
    /// `c`: the command's name.
    pub name: &'a str,
    /// `cid`: id echoed in the command's acks.
    pub command_id: Option<&'a str>,
    /// `client_name`, logon only.
    pub client_name: Option<&'a str>,
    /// `user_id`, logon only.
    pub user_id: Option<&'a str>,
    /// `pw`, logon only.
    pub password: Option<&'a str>,
    /// `mt`: message type, logon only.
    pub message_type: Option<&'a str>,
    /// `t`: topic.
    pub topic: Option<&'a str>,
    /// `f`: filter.
    pub filter: Option<&'a str>,
    /// `sow_keys`: comma list of keys.
    pub sow_keys: Option<&'a str>,
    /// `bs`: records per `sow` frame.
    pub batch_size: Option<u64>,
    /// `orderby`.
    pub order_by: Option<&'a str>,
    /// `top_n`.
    pub top_n: Option<u64>,
    /// `bm`: bookmark.
    pub bookmark: Option<&'a str>,
    /// `e`: lifetime in seconds.
    pub expiration: Option<u32>,
    /// `o`: options.
    pub options: Option<&'a str>,
    /// `x`: correlation id.
    pub correlation_id: Option<&'a str>,
    /// `s`: sequence on the wire.
    pub sequence: Option<u64>,
    /// `a`: acks asked for.
    pub acks: AckKinds,
    /// `k`: SOW key.
    pub sow_key: Option<&'a str>,
    /// `version`, logon only.
    pub version: Option<&'a str>,
    /// `query_id`.
    pub query_id: Option<&'a str>,
    /// `sub_id`.
    pub sub_id: Option<&'a str>,
    /// The body.
    pub body: &'a [u8],
}

impl fmt::Debug for Command<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("name", &self.name)
            .field("command_id", &self.command_id)
            .field("topic", &self.topic)
            .field("filter", &self.filter)
            .field("options", &self.options)
            .field("password", &self.password.map(|_| "***"))
            .field("body", &Excerpt(self.body))
            .finish_non_exhaustive()
    }
}

impl<'a> Command<'a> {
    /// A command of any name with nothing set, for what has no constructor here.
    pub fn generic(name: &'a str) -> Self {
        Command {
            name,
            ..Command::default()
        }
    }

    /// `logon`, which must be the first command and asks for `processed`, without which
    /// there is neither a sequence nor an error (`docs/protocol.md` §5.1).
    pub fn logon(command_id: &'a str, client_name: &'a str) -> Self {
        Command {
            client_name: Some(client_name),
            acks: AckKinds::PROCESSED,
            ..Command::with_id("logon", command_id)
        }
    }

    /// `sow_delete` of the records that match `filter`.
    pub fn sow_delete_by_filter(topic: &'a str, filter: &'a str) -> Self {
        Command {
            filter: Some(filter),
            ..Command::on_topic("sow_delete", topic)
        }
    }

    /// `sow_delete` of the records whose server-made keys are listed, comma separated.
    pub fn sow_delete_by_keys(topic: &'a str, keys: &'a str) -> Self {
        Command {
            sow_keys: Some(keys),
            ..Command::on_topic("sow_delete", topic)
        }
    }

    /// `sow_delete` of the record that `body` identifies.
    pub fn sow_delete_by_data(topic: &'a str, body: &'a [u8]) -> Self {
        Command {
            body,
            ..Command::on_topic("sow_delete", topic)
        }
    }

    /// `flush`; `acks` says what to wait for: `processed`, `completed`, and with servers
    /// from 5.3.3 on `persisted` (`docs/protocol.md` §4.4).
    pub fn flush(command_id: &'a str, acks: AckKinds) -> Self {
        Command {
            acks,
            ..Command::with_id("flush", command_id)
        }
    }

    /// Starts heartbeats; `options` is `start,` and the interval in whole seconds.
    pub fn heartbeat_start(command_id: &'a str, options: &'a str) -> Self {
        Command {
            options: Some(options),
            acks: AckKinds::PROCESSED,
            ..Command::with_id("heartbeat", command_id)
        }
    }

    /// One beat of a running heartbeat.
    pub fn heartbeat_beat() -> Self {
        Command {
            options: Some("beat"),
            ..Command::generic("heartbeat")
        }
    }

    /// `subscribe` to a topic or a regular expression.
    pub fn subscribe(command_id: &'a str, topic: &'a str, sub_id: &'a str) -> Self {
        Command {
            topic: Some(topic),
            sub_id: Some(sub_id),
            acks: AckKinds::PROCESSED,
            ..Command::with_id("subscribe", command_id)
        }
    }

    /// `unsubscribe` from one subscription, a comma list of them, or `all`.
    pub fn unsubscribe(command_id: &'a str, sub_id: &'a str) -> Self {
        Command {
            sub_id: Some(sub_id),
            ..Command::with_id("unsubscribe", command_id)
        }
    }

    /// `sow`: query what a topic holds.
    pub fn sow(command_id: &'a str, topic: &'a str, query_id: &'a str) -> Self {
        Command {
            topic: Some(topic),
            query_id: Some(query_id),
            acks: AckKinds::PROCESSED.with(super::AckKind::Completed),
            ..Command::with_id("sow", command_id)
        }
    }

    /// `sow_and_subscribe`: the query, then what changes.
    pub fn sow_and_subscribe(
        command_id: &'a str,
        topic: &'a str,
        query_id: &'a str,
        sub_id: &'a str,
    ) -> Self {
        Command {
            topic: Some(topic),
            query_id: Some(query_id),
            sub_id: Some(sub_id),
            acks: AckKinds::PROCESSED,
            ..Command::with_id("sow_and_subscribe", command_id)
        }
    }

    /// Appends the frame to `out`.
    ///
    /// # Errors
    /// [`FrameError::Unsendable`] above 4 GiB; `out` is then as it was.
    pub fn encode(&self, out: &mut Vec<u8>) -> Result<(), FrameError> {
        writer::frame(out, self.name, self.body, |header| {
            header.text_if("cid", self.command_id);
            header.text_if("client_name", self.client_name);
            header.text_if("user_id", self.user_id);
            header.text_if("pw", self.password);
            header.text_if("mt", self.message_type);
            header.text_if("t", self.topic);
            header.text_if("f", self.filter);
            header.text_if("sow_keys", self.sow_keys);
            header.number_if("bs", self.batch_size);
            header.text_if("orderby", self.order_by);
            header.number_if("top_n", self.top_n);
            header.text_if("bm", self.bookmark);
            header.number_if("e", self.expiration.map(u64::from));
            header.text_if("o", self.options);
            header.text_if("x", self.correlation_id);
            header.number_if("s", self.sequence);
            header.acks(self.acks);
            header.text_if("k", self.sow_key);
            header.text_if("version", self.version);
            header.text_if("query_id", self.query_id);
            header.text_if("sub_id", self.sub_id);
        })
    }

    fn with_id(name: &'a str, command_id: &'a str) -> Self {
        Command {
            command_id: Some(command_id),
            ..Command::generic(name)
        }
    }

    fn on_topic(name: &'a str, topic: &'a str) -> Self {
        Command {
            topic: Some(topic),
            ..Command::generic(name)
        }
    }
}
