//! What travels with a payload: the envelope, and its bytes.
//!
//! This is the only file that names bincode. The bytes are bincode 2 "standard"
//! (little endian, variable-length integers), written out in `store-format.md` and held
//! by golden tests, so replacing the crate means replacing this file.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::MAX_TAG;

/// What the server is asked to do with a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Operation {
    /// Publish the payload to the topic.
    #[default]
    Publish,
    /// Merge the payload into the record it identifies.
    DeltaPublish,
    /// Delete the records that match the filter in [`Envelope::selector`].
    SowDeleteByFilter,
    /// Delete the records whose keys are listed, comma separated, in [`Envelope::selector`].
    SowDeleteByKeys,
    /// Delete the record that the payload identifies.
    SowDeleteByData,
}

/// How a message came into the store. Only [`Origin::Publish`] moves the resume point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Origin {
    /// The application published it.
    #[default]
    Publish,
    /// It was refused before under `accepts`; appending this message accepted that refusal.
    Requeue {
        /// Sequence of the refused message.
        accepts: u64,
    },
    /// It was imported from another store or a file.
    Import,
}

/// Everything about a message but its payload.
///
/// Borrowed while appending, so that a publish copies each byte once; owned when read back
/// with [`Envelope::into_owned`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope<'a> {
    /// The operation.
    pub operation: Operation,
    /// The topic, a literal name.
    #[serde(borrow)]
    pub topic: Cow<'a, str>,
    /// Correlation id, delivered verbatim to subscribers.
    #[serde(borrow)]
    pub correlation_id: Option<Cow<'a, str>>,
    /// Lifetime of the record at the server, in seconds.
    pub expiration: Option<u32>,
    /// Explicit SOW key of a publish.
    #[serde(borrow)]
    pub sow_key: Option<Cow<'a, str>>,
    /// Filter or keys of a delete, see [`Operation`].
    #[serde(borrow)]
    pub selector: Option<Cow<'a, str>>,
    /// Command options, sent verbatim.
    #[serde(borrow)]
    pub options: Option<Cow<'a, str>>,
    /// When the application published it: microseconds since the Unix epoch.
    pub published_at: u64,
    /// Opaque mark of the application, at most [`MAX_TAG`] bytes; the newest one is the
    /// resume point.
    #[serde(borrow)]
    pub user_tag: Cow<'a, [u8]>,
    /// How the message came into the store.
    pub origin: Origin,
}

/// An envelope as it is read. An optional `Cow` is read as a string of its own, whose
/// length is believed before the bytes are there; a reference is not.
#[derive(Deserialize)]
struct Wire<'a> {
    operation: Operation,
    topic: &'a str,
    #[serde(borrow)]
    correlation_id: Option<&'a str>,
    expiration: Option<u32>,
    #[serde(borrow)]
    sow_key: Option<&'a str>,
    #[serde(borrow)]
    selector: Option<&'a str>,
    #[serde(borrow)]
    options: Option<&'a str>,
    published_at: u64,
    user_tag: &'a [u8],
    origin: Origin,
}

/// An envelope could not be read: the bytes are not one, or not one of this version.
#[derive(Debug, thiserror::Error)]
#[error("the envelope cannot be decoded: {0}")]
pub struct EnvelopeError(String);

impl<'a> Envelope<'a> {
    /// A publish to `topic`, everything else empty.
    pub fn publish(topic: impl Into<Cow<'a, str>>) -> Self {
        Envelope {
            topic: topic.into(),
            ..Envelope::default()
        }
    }

    /// The same envelope, borrowing nothing.
    pub fn into_owned(self) -> Envelope<'static> {
        fn own(s: Option<Cow<'_, str>>) -> Option<Cow<'static, str>> {
            s.map(|s| Cow::Owned(s.into_owned()))
        }
        Envelope {
            operation: self.operation,
            topic: Cow::Owned(self.topic.into_owned()),
            correlation_id: own(self.correlation_id),
            expiration: self.expiration,
            sow_key: own(self.sow_key),
            selector: own(self.selector),
            options: own(self.options),
            published_at: self.published_at,
            user_tag: Cow::Owned(self.user_tag.into_owned()),
            origin: self.origin,
        }
    }

    /// Appends the envelope's bytes to `out`.
    ///
    /// # Errors
    /// A user tag longer than [`MAX_TAG`].
    pub(crate) fn encode(&self, out: &mut Vec<u8>) -> Result<(), EnvelopeError> {
        if self.user_tag.len() > MAX_TAG {
            return Err(EnvelopeError(format!(
                "the user tag has {} bytes, {MAX_TAG} are allowed",
                self.user_tag.len()
            )));
        }
        // bincode's bytes, written by hand: through serde this was a quarter of an append.
        let rest = 64 + self.topic.len() + self.user_tag.len();
        out.reserve(rest);
        out.push(self.operation as u8);
        put_bytes(out, self.topic.as_bytes());
        put_text(out, self.correlation_id.as_deref());
        match self.expiration {
            None => out.push(0),
            Some(seconds) => {
                out.push(1);
                put_number(out, seconds.into());
            }
        }
        put_text(out, self.sow_key.as_deref());
        put_text(out, self.selector.as_deref());
        put_text(out, self.options.as_deref());
        put_number(out, self.published_at);
        put_bytes(out, &self.user_tag);
        match self.origin {
            Origin::Publish => out.push(0),
            Origin::Requeue { accepts } => {
                out.push(1);
                put_number(out, accepts);
            }
            Origin::Import => out.push(2),
        }
        Ok(())
    }

    /// Reads an envelope that fills `bytes` exactly. Nothing is allocated: the result
    /// borrows from `bytes`.
    ///
    /// # Errors
    /// The bytes are not an envelope of this format version, or bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (wire, used): (Wire<'a>, usize) =
            bincode::serde::borrow_decode_from_slice(bytes, bincode::config::standard())
                .map_err(|e| EnvelopeError(e.to_string()))?;
        if used != bytes.len() {
            return Err(EnvelopeError(format!(
                "{} bytes are left over",
                bytes.len() - used
            )));
        }
        Ok(Envelope {
            operation: wire.operation,
            topic: Cow::Borrowed(wire.topic),
            correlation_id: wire.correlation_id.map(Cow::Borrowed),
            expiration: wire.expiration,
            sow_key: wire.sow_key.map(Cow::Borrowed),
            selector: wire.selector.map(Cow::Borrowed),
            options: wire.options.map(Cow::Borrowed),
            published_at: wire.published_at,
            user_tag: Cow::Borrowed(wire.user_tag),
            origin: wire.origin,
        })
    }
}

fn put_text(out: &mut Vec<u8>, text: Option<&str>) {
    match text {
        None => out.push(0),
        Some(text) => {
            out.push(1);
            put_bytes(out, text.as_bytes());
        }
    }
}

#[inline]
fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_number(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// One byte, or a tag and the shortest of two, four and eight bytes.
#[inline]
fn put_number(out: &mut Vec<u8>, number: u64) {
    if number < 251 {
        out.push(number as u8);
    } else if let Ok(short) = u16::try_from(number) {
        out.push(251);
        out.extend_from_slice(&short.to_le_bytes());
    } else if let Ok(word) = u32::try_from(number) {
        out.push(252);
        out.extend_from_slice(&word.to_le_bytes());
    } else {
        out.push(253);
        out.extend_from_slice(&number.to_le_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn number() -> impl Strategy<Value = u64> {
        prop_oneof![
            0..300u64,
            65_000..66_000u64,
            (1 << 32) - 9..(1u64 << 32) + 9,
            any::<u64>()
        ]
    }

    fn text() -> impl Strategy<Value = Option<Cow<'static, str>>> {
        proptest::option::of("\\PC{0,300}".prop_map(Cow::Owned))
    }

    proptest! {
        #[test]
        fn the_bytes_are_those_of_bincode(
            operation in 0..5usize,
            topic in "\\PC{0,300}",
            texts in (text(), text(), text(), text()),
            expiration in proptest::option::of(number()),
            published_at in number(),
            user_tag in proptest::collection::vec(any::<u8>(), 0..=MAX_TAG),
            origin in prop_oneof![
                Just(Origin::Publish),
                number().prop_map(|accepts| Origin::Requeue { accepts }),
                Just(Origin::Import),
            ],
        ) {
            use Operation::{DeltaPublish, Publish, SowDeleteByData, SowDeleteByFilter, SowDeleteByKeys};
            let operations =
                [Publish, DeltaPublish, SowDeleteByFilter, SowDeleteByKeys, SowDeleteByData];
            let envelope = Envelope {
                operation: operations[operation],
                topic: topic.into(),
                correlation_id: texts.0,
                expiration: expiration.map(|e| e as u32),
                sow_key: texts.1,
                selector: texts.2,
                options: texts.3,
                published_at,
                user_tag: user_tag.into(),
                origin,
            };
            let mut ours = Vec::new();
            envelope.encode(&mut ours).unwrap();
            let config = bincode::config::standard();
            prop_assert_eq!(&ours, &bincode::serde::encode_to_vec(&envelope, config).unwrap());
            prop_assert_eq!(Envelope::decode(&ours).unwrap(), envelope);
        }
    }
}
