//! What a client may ask a server for besides publishing, and how it is answered: subscriptions,
//! queries and commands, as far as a publisher needs them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use crate::protocol::{AckKind, AckKinds, Reason};

/// What to subscribe to, or to query.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscribe {
    pub(crate) kind: SubscribeKind,
    pub(crate) topic: String,
    pub(crate) filter: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) bookmark: Option<String>,
    pub(crate) order_by: Option<String>,
    pub(crate) top_n: Option<u64>,
    pub(crate) batch_size: Option<u64>,
    pub(crate) buffer: usize,
    pub(crate) buffer_bytes: usize,
}

/// The command behind a subscription.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum SubscribeKind {
    Subscribe,
    DeltaSubscribe,
    Sow,
    SowAndSubscribe,
    SowAndDeltaSubscribe,
}

/// Messages that a subscription holds for a slow reader, unless set otherwise.
pub const DEFAULT_BUFFER: usize = 8192;

/// Bytes of messages that a subscription holds for a slow reader, unless set otherwise: 64 MiB.
pub const DEFAULT_BUFFER_BYTES: usize = 64 << 20;

impl Subscribe {
    /// Everything published to `topic` from now on. The topic may be a regular expression
    /// (`docs/protocol.md` §8).
    pub fn topic(topic: impl Into<String>) -> Self {
        Subscribe::new(SubscribeKind::Subscribe, topic)
    }

    /// Only what changed in each record.
    pub fn delta(topic: impl Into<String>) -> Self {
        Subscribe::new(SubscribeKind::DeltaSubscribe, topic)
    }

    /// What the topic holds now; the stream ends with the answer.
    pub fn sow(topic: impl Into<String>) -> Self {
        Subscribe::new(SubscribeKind::Sow, topic)
    }

    /// What the topic holds now, then everything published to it. After a reconnect both
    /// come again.
    pub fn sow_and_subscribe(topic: impl Into<String>) -> Self {
        Subscribe::new(SubscribeKind::SowAndSubscribe, topic)
    }

    /// What the topic holds now, then what changes in each record.
    pub fn sow_and_delta_subscribe(topic: impl Into<String>) -> Self {
        Subscribe::new(SubscribeKind::SowAndDeltaSubscribe, topic)
    }

    fn new(kind: SubscribeKind, topic: impl Into<String>) -> Self {
        Subscribe {
            kind,
            topic: topic.into(),
            filter: None,
            options: None,
            bookmark: None,
            order_by: None,
            top_n: None,
            batch_size: None,
            buffer: DEFAULT_BUFFER,
            buffer_bytes: DEFAULT_BUFFER_BYTES,
        }
    }

    /// Only messages whose content matches.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// Options of the command, sent verbatim.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.options = Some(options.into());
        self
    }

    /// Replays from a bookmark first: `0` is the beginning of the server's log, `0|1|` is
    /// now, and a bookmark of a delivered message continues behind it
    /// (`docs/protocol.md` §8). After a reconnect the subscription continues behind the
    /// last message delivered.
    #[must_use]
    pub fn bookmark(mut self, bookmark: impl Into<String>) -> Self {
        self.bookmark = Some(bookmark.into());
        self
    }

    /// In which order a query is answered.
    #[must_use]
    pub fn order_by(mut self, order: impl Into<String>) -> Self {
        self.order_by = Some(order.into());
        self
    }

    /// At most this many records of a query, or messages of a replay.
    #[must_use]
    pub fn top_n(mut self, count: u64) -> Self {
        self.top_n = Some(count);
        self
    }

    /// Records per frame of a query's answer; the server's default is 1.
    #[must_use]
    pub fn batch_size(mut self, records: u64) -> Self {
        self.batch_size = Some(records);
        self
    }

    /// How many messages are held for a slow reader, at least 1. One more ends the subscription
    /// with [`Lagged`](crate::SubscriptionEnd::Lagged): the link is always read, so that acks and
    /// heartbeats never wait for a reader.
    #[must_use]
    pub fn buffer(mut self, messages: usize) -> Self {
        self.buffer = messages.max(1);
        self
    }

    /// How many bytes of messages are held for a slow reader, their strings included; 64 MiB
    /// unless set. One more ends the subscription as with [`buffer`](Self::buffer), except that a
    /// single message may be larger.
    #[must_use]
    pub fn buffer_bytes(mut self, bytes: usize) -> Self {
        self.buffer_bytes = bytes;
        self
    }

    /// Bytes of it that are sent, without the names of its fields.
    pub(crate) fn size(&self) -> usize {
        let texts = [&self.filter, &self.options, &self.bookmark, &self.order_by];
        self.topic.len() + bytes_of(&texts)
    }

    pub(crate) fn is_query(&self) -> bool {
        self.kind == SubscribeKind::Sow
    }
}

/// What a delivered message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeliveredKind {
    /// A published message.
    Publish,
    /// A record that a query found.
    Sow,
    /// A record left the subscription's focus: deleted, expired or changed.
    OutOfFocus,
}

/// A message a subscription delivers.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Delivered {
    /// What it is.
    pub kind: DeliveredKind,
    /// Its topic, shared by the messages of one frame.
    pub topic: Arc<str>,
    /// Its bookmark: its place in the server's log, behind which a subscription can continue.
    pub bookmark: Option<String>,
    /// Its SOW key.
    pub sow_key: Option<String>,
    /// The publisher's correlation id.
    pub correlation_id: Option<String>,
    /// When the server took it; only with the `timestamp` option.
    pub timestamp: Option<String>,
    /// The identity of its publisher, if the server tells.
    pub user_id: Option<String>,
    /// Why a record went out of focus.
    pub reason: Option<Reason>,
    /// The message itself.
    pub data: Bytes,
}

amps_store::debug_with_excerpt!(
    Delivered: Delivered,
    [kind, topic, bookmark, sow_key, correlation_id, timestamp, user_id, reason],
    data
);

impl Delivered {
    /// Bytes that it holds, without its topic, which it may share.
    pub(crate) fn bytes(&self) -> usize {
        let texts = [
            &self.bookmark,
            &self.sow_key,
            &self.correlation_id,
            &self.timestamp,
            &self.user_id,
        ];
        self.data.len() + bytes_of(&texts)
    }
}

fn bytes_of(texts: &[&Option<String>]) -> usize {
    let lengths = texts.iter().copied().flatten().map(String::len);
    lengths.sum()
}

/// A command of any name, for what has no method of its own here.
///
/// Publishes must go through the store instead: a number or a `persisted` ack of your own would
/// be confused with the store's.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Request {
    pub(crate) name: String,
    pub(crate) topic: Option<String>,
    pub(crate) filter: Option<String>,
    pub(crate) sow_keys: Option<String>,
    pub(crate) options: Option<String>,
    pub(crate) bookmark: Option<String>,
    pub(crate) correlation_id: Option<String>,
    pub(crate) sub_id: Option<String>,
    pub(crate) query_id: Option<String>,
    pub(crate) order_by: Option<String>,
    pub(crate) top_n: Option<u64>,
    pub(crate) batch_size: Option<u64>,
    pub(crate) expiration: Option<u32>,
    pub(crate) sow_key: Option<String>,
    pub(crate) acks: AckKinds,
    pub(crate) body: Bytes,
    pub(crate) timeout: Option<Duration>,
    pub(crate) retry: bool,
}

amps_store::debug_with_excerpt!(
    Request: Request,
    [
        name,
        topic,
        filter,
        sow_keys,
        options,
        bookmark,
        correlation_id,
        sub_id,
        query_id,
        order_by,
        top_n,
        batch_size,
        expiration,
        sow_key,
        acks,
        timeout,
        retry
    ],
    body
);

impl Request {
    /// A command that waits for its `processed` ack.
    pub fn new(name: impl Into<String>) -> Self {
        Request {
            name: name.into(),
            acks: AckKinds::PROCESSED,
            ..Request::default()
        }
    }

    /// The topic.
    #[must_use]
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// A content filter.
    #[must_use]
    pub fn filter(mut self, filter: impl Into<String>) -> Self {
        self.filter = Some(filter.into());
        self
    }

    /// SOW keys, comma separated.
    #[must_use]
    pub fn sow_keys(mut self, keys: impl Into<String>) -> Self {
        self.sow_keys = Some(keys.into());
        self
    }

    /// Options, sent verbatim.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.options = Some(options.into());
        self
    }

    /// A bookmark, or a list of them.
    #[must_use]
    pub fn bookmark(mut self, bookmark: impl Into<String>) -> Self {
        self.bookmark = Some(bookmark.into());
        self
    }

    /// A correlation id.
    #[must_use]
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// A subscription id.
    #[must_use]
    pub fn sub_id(mut self, id: impl Into<String>) -> Self {
        self.sub_id = Some(id.into());
        self
    }

    /// A query id.
    #[must_use]
    pub fn query_id(mut self, id: impl Into<String>) -> Self {
        self.query_id = Some(id.into());
        self
    }

    /// In which order a query is answered.
    #[must_use]
    pub fn order_by(mut self, order: impl Into<String>) -> Self {
        self.order_by = Some(order.into());
        self
    }

    /// At most this many records of a query, or messages of a replay.
    #[must_use]
    pub fn top_n(mut self, count: u64) -> Self {
        self.top_n = Some(count);
        self
    }

    /// Records per frame of a query's answer.
    #[must_use]
    pub fn batch_size(mut self, records: u64) -> Self {
        self.batch_size = Some(records);
        self
    }

    /// Lifetime of a record, in seconds.
    #[must_use]
    pub fn expiration(mut self, seconds: u32) -> Self {
        self.expiration = Some(seconds);
        self
    }

    /// An explicit SOW key.
    #[must_use]
    pub fn sow_key(mut self, key: impl Into<String>) -> Self {
        self.sow_key = Some(key.into());
        self
    }

    /// Time for the answer, instead of the client's
    /// [`command_timeout`](crate::Builder::command_timeout).
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// If there is no connection, or it is lost before the answer came, sends the command again
    /// after the next logon, until its time is up. The server may then carry it out twice, so
    /// this is off unless set.
    #[must_use]
    pub fn retry(mut self, on: bool) -> Self {
        self.retry = on;
        self
    }

    /// The acks to ask for. The command is done when all of them have come, or, if none are asked
    /// for, when it was handed to the link.
    #[must_use]
    pub fn acks(mut self, acks: impl IntoIterator<Item = AckKind>) -> Self {
        self.acks = acks.into_iter().fold(AckKinds::NONE, AckKinds::with);
        self
    }

    /// The body.
    #[must_use]
    pub fn body(mut self, body: impl Into<Bytes>) -> Self {
        self.body = body.into();
        self
    }

    /// Bytes of it that are sent, without the names of its fields.
    pub(crate) fn size(&self) -> usize {
        let texts = [
            &self.topic,
            &self.filter,
            &self.sow_keys,
            &self.options,
            &self.bookmark,
            &self.correlation_id,
            &self.sub_id,
            &self.query_id,
            &self.order_by,
            &self.sow_key,
        ];
        self.name.len() + bytes_of(&texts) + self.body.len()
    }
}

/// What the server answered to a [`Request`], over all of its acks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Answer {
    /// Records a delete removed.
    pub records_deleted: Option<u64>,
    /// Records a query returned.
    pub records_returned: Option<u64>,
    /// Records that matched.
    pub matches: Option<u64>,
    /// The bookmark of the last ack that had one.
    pub bookmark: Option<String>,
}
