//! What an application publishes.

use std::borrow::Cow;

use amps_store::{Envelope, MAX_TAG, Operation, Origin, StoredMessage};
use bytes::Bytes;

/// A message to publish, or a request to delete records, with everything that travels with it.
///
/// Cheap to clone if the payload is: [`Bytes`] are shared. The payload is copied once, into the
/// store.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Message {
    operation: Operation,
    topic: String,
    payload: Bytes,
    user_tag: Bytes,
    correlation_id: Option<String>,
    expiration: Option<u32>,
    sow_key: Option<String>,
    selector: Option<String>,
    options: Option<String>,
    ask_ack: bool,
}

amps_store::debug_with_excerpt!(
    Message: Message,
    [
        operation,
        topic,
        user_tag,
        correlation_id,
        expiration,
        sow_key,
        selector,
        options,
        ask_ack
    ],
    payload
);

impl Message {
    /// Publishes `payload` to `topic`, a literal name (AMPS does not interpret regular
    /// expressions in a publish, `docs/protocol.md` §2).
    pub fn publish(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Message {
            topic: topic.into(),
            payload: payload.into(),
            ..Message::default()
        }
    }

    /// Merges `payload` into the record of `topic` that it identifies.
    pub fn delta_publish(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Message {
            operation: Operation::DeltaPublish,
            ..Message::publish(topic, payload)
        }
    }

    /// Deletes the records of `topic` that match `filter`. If it has to be sent again, the filter
    /// acts on the records as they are then.
    pub fn sow_delete_by_filter(topic: impl Into<String>, filter: impl Into<String>) -> Self {
        Message {
            operation: Operation::SowDeleteByFilter,
            selector: Some(filter.into()),
            ..Message::publish(topic, Bytes::new())
        }
    }

    /// Deletes the records of `topic` with these keys. They are the server's own SOW
    /// keys, not values of a field (`docs/protocol.md` §4.3).
    pub fn sow_delete_by_keys<K: AsRef<str>>(
        topic: impl Into<String>,
        keys: impl IntoIterator<Item = K>,
    ) -> Self {
        let mut list = String::new();
        for key in keys {
            if !list.is_empty() {
                list.push(',');
            }
            list.push_str(key.as_ref());
        }
        Message {
            operation: Operation::SowDeleteByKeys,
            selector: Some(list),
            ..Message::publish(topic, Bytes::new())
        }
    }

    /// Deletes the record of `topic` that `payload` identifies.
    pub fn sow_delete_by_data(topic: impl Into<String>, payload: impl Into<Bytes>) -> Self {
        Message {
            operation: Operation::SowDeleteByData,
            ..Message::publish(topic, payload)
        }
    }

    /// Marks the message with up to [`MAX_TAG`] opaque bytes. The tag of the highest message that
    /// was recovered or settled tells the application where to resume
    /// (`PublishStore::resume_tag`).
    #[must_use]
    pub fn user_tag(mut self, tag: impl Into<Bytes>) -> Self {
        self.user_tag = tag.into();
        self
    }

    /// A correlation id, delivered to subscribers as it is. Base64 characters only
    /// (`docs/protocol.md` §2).
    #[must_use]
    pub fn correlation_id(mut self, id: impl Into<String>) -> Self {
        self.correlation_id = Some(id.into());
        self
    }

    /// Lifetime of the record at the server, in seconds.
    #[must_use]
    pub fn expiration(mut self, seconds: u32) -> Self {
        self.expiration = Some(seconds);
        self
    }

    /// An explicit SOW key, for topics that are configured to take one. Base64 characters only.
    #[must_use]
    pub fn sow_key(mut self, key: impl Into<String>) -> Self {
        self.sow_key = Some(key.into());
        self
    }

    /// Options of the command, sent verbatim.
    #[must_use]
    pub fn options(mut self, options: impl Into<String>) -> Self {
        self.options = Some(options.into());
        self
    }

    /// If there is no store, asks the server for an ack of this very message. The
    /// [`Receipt`](crate::Receipt) then says what became of it, and a refusal reaches the
    /// failed-write handler or the last-chance handler. The message is sent with a command id,
    /// which its ack must name, on the same link; if that link is lost first, the outcome is
    /// [`Unknown`](crate::Outcome::Unknown). A server that conflates the acks of this topic names
    /// no message in them, so that such a receipt is only resolved when the link ends.
    ///
    /// With a store every message is acknowledged anyway, and this changes nothing.
    #[must_use]
    pub fn ask_ack(mut self) -> Self {
        self.ask_ack = true;
        self
    }

    /// What the server is asked to do.
    pub fn operation(&self) -> Operation {
        self.operation
    }

    /// The topic.
    pub fn topic(&self) -> &str {
        &self.topic
    }

    /// Everything about the message except its payload, with the field names that a store uses
    /// when it returns the message ([`StoredMessage::envelope`]): `user_tag`, `correlation_id`,
    /// `expiration`, `sow_key`, `selector` (filter or keys of a delete) and `options`.
    /// `published_at` is 0 until the message is stored.
    pub fn envelope(&self) -> Envelope<'_> {
        Envelope {
            operation: self.operation,
            topic: Cow::Borrowed(&self.topic),
            correlation_id: self.correlation_id.as_deref().map(Cow::Borrowed),
            expiration: self.expiration,
            sow_key: self.sow_key.as_deref().map(Cow::Borrowed),
            selector: self.selector.as_deref().map(Cow::Borrowed),
            options: self.options.as_deref().map(Cow::Borrowed),
            published_at: 0,
            user_tag: Cow::Borrowed(&self.user_tag),
            origin: Origin::Publish,
        }
    }

    /// The payload; empty for deletes by filter or keys.
    pub fn payload(&self) -> &Bytes {
        &self.payload
    }

    /// Filter or keys of a delete.
    pub fn selector(&self) -> Option<&str> {
        self.selector.as_deref()
    }

    /// The payload, under its former name.
    #[deprecated(note = "it is `payload`, as in a store")]
    pub fn data(&self) -> &Bytes {
        &self.payload
    }

    /// The application's mark, under its former name.
    #[deprecated(note = "it is `envelope().user_tag`, as in a store")]
    pub fn tag(&self) -> &[u8] {
        &self.user_tag
    }

    /// The correlation id, under its former name.
    #[deprecated(note = "it is `envelope().correlation_id`, as in a store")]
    pub fn correlation(&self) -> Option<&str> {
        self.correlation_id.as_deref()
    }

    /// Lifetime of the record in seconds, under its former name.
    #[deprecated(note = "it is `envelope().expiration`, as in a store")]
    pub fn lifetime(&self) -> Option<u32> {
        self.expiration
    }

    /// The explicit SOW key, under its former name.
    #[deprecated(note = "it is `envelope().sow_key`, as in a store")]
    pub fn key(&self) -> Option<&str> {
        self.sow_key.as_deref()
    }

    /// Options of the command, under their former name.
    #[deprecated(note = "they are `envelope().options`, as in a store")]
    pub fn command_options(&self) -> Option<&str> {
        self.options.as_deref()
    }

    pub(crate) fn asks_for_ack(&self) -> bool {
        self.ask_ack
    }

    /// The message that a store returned. `None` if its envelope cannot be read.
    pub fn from_stored(stored: &StoredMessage) -> Option<Self> {
        let envelope = stored.envelope().ok()?.into_owned();
        Some(Message {
            operation: envelope.operation,
            topic: envelope.topic.into_owned(),
            payload: Bytes::copy_from_slice(stored.payload()),
            user_tag: Bytes::from(envelope.user_tag.into_owned()),
            correlation_id: envelope.correlation_id.map(Cow::into_owned),
            expiration: envelope.expiration,
            sow_key: envelope.sow_key.map(Cow::into_owned),
            selector: envelope.selector.map(Cow::into_owned),
            options: envelope.options.map(Cow::into_owned),
            ask_ack: false,
        })
    }

    /// Bytes of it that are sent, without the names of its fields.
    pub(crate) fn size(&self) -> usize {
        size(&self.envelope(), &self.payload)
    }

    /// Whether its frame is not too long for the length field. In a header one byte may take six.
    pub(crate) fn fits_a_frame(&self) -> bool {
        const REST: u64 = 1024;
        let (all, payload) = (self.size() as u64, self.payload.len() as u64);
        payload + 6 * (all - payload) + REST <= u32::MAX.into()
    }

    /// Whether a server would understand this message. Every publish checks this before the
    /// message is stored, because a stored message is sent again for ever. Call it earlier if
    /// something is created for the message first.
    ///
    /// # Errors
    /// What about it no server would understand.
    pub fn check(&self) -> Result<(), BadMessage> {
        check_topic(&self.topic)?;
        if self.user_tag.len() > MAX_TAG {
            return Err(BadMessage::Tag(self.user_tag.len()));
        }
        for (field, value) in [
            ("correlation_id", &self.correlation_id),
            ("sow_key", &self.sow_key),
        ] {
            if let Some(value) = value
                && (value.is_empty() || !value.bytes().all(is_base64))
            {
                return Err(BadMessage::NotBase64(field));
            }
        }
        match self.operation {
            Operation::SowDeleteByFilter | Operation::SowDeleteByKeys
                if self.selector.as_deref().is_none_or(str::is_empty) =>
            {
                Err(BadMessage::NoSelector)
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of a message that are sent, without the names of its fields.
pub(crate) fn size(envelope: &Envelope<'_>, payload: &[u8]) -> usize {
    let texts = [
        &envelope.correlation_id,
        &envelope.sow_key,
        &envelope.selector,
        &envelope.options,
    ];
    let texts = texts.into_iter().flatten().map(|text| text.len());
    payload.len() + envelope.topic.len() + texts.sum::<usize>()
}

/// Refuses topics that no server takes: an empty one, and those with control characters, whose
/// escapes a real server may not undo (`docs/protocol.md` §2).
pub(crate) fn check_topic(topic: &str) -> Result<(), BadMessage> {
    if topic.is_empty() {
        return Err(BadMessage::NoTopic);
    }
    if topic.bytes().any(|b| b < 0x20) {
        return Err(BadMessage::ControlInTopic);
    }
    Ok(())
}

/// A message no server would understand; it was not stored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BadMessage {
    /// The topic is empty.
    #[error("the topic is empty; name the topic to publish to")]
    NoTopic,
    /// The topic holds control characters.
    #[error("the topic holds control characters; use printable ones")]
    ControlInTopic,
    /// The user tag is too long.
    #[error("the user tag has {0} bytes, {MAX_TAG} are allowed")]
    Tag(usize),
    /// A field that takes Base64 characters only holds others, or nothing.
    #[error("{0} must be one or more Base64 characters (A-Z a-z 0-9 + / =)")]
    NotBase64(&'static str),
    /// A delete without filter or keys.
    #[error("a delete by filter or keys needs a filter or at least one key")]
    NoSelector,
}

fn is_base64(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'/' | b'=')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_no_server_understands_are_refused() {
        assert_eq!(Message::publish("", "x").check(), Err(BadMessage::NoTopic));
        assert_eq!(
            Message::publish("a\nb", "x").check(),
            Err(BadMessage::ControlInTopic)
        );
        assert_eq!(
            Message::publish("t", "x").correlation_id("a b").check(),
            Err(BadMessage::NotBase64("correlation_id"))
        );
        assert_eq!(
            Message::publish("t", "x").user_tag(vec![0; 65]).check(),
            Err(BadMessage::Tag(65))
        );
        assert_eq!(
            Message::sow_delete_by_keys("t", [""; 0]).check(),
            Err(BadMessage::NoSelector)
        );
        assert_eq!(
            Message::sow_delete_by_keys("t", ["1", "2"]).selector(),
            Some("1,2")
        );
        assert_eq!(Message::publish("t", "x").sow_key("k1=").check(), Ok(()));
    }
}
