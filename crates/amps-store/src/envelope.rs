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
        bincode::serde::encode_into_std_write(self, out, bincode::config::standard())
            .map_err(|e| EnvelopeError(e.to_string()))?;
        Ok(())
    }

    /// Reads an envelope that fills `bytes` exactly. Nothing is allocated: the result
    /// borrows from `bytes`.
    ///
    /// # Errors
    /// The bytes are not an envelope of this format version, or bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let (envelope, used): (Envelope<'a>, usize) =
            bincode::serde::borrow_decode_from_slice(bytes, bincode::config::standard())
                .map_err(|e| EnvelopeError(e.to_string()))?;
        if used != bytes.len() {
            return Err(EnvelopeError(format!(
                "{} bytes are left over",
                bytes.len() - used
            )));
        }
        Ok(envelope)
    }
}
