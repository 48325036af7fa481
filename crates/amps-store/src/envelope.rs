//! What travels with a payload: the envelope, and its bytes.
//!
//! This is the only file that names bincode. The bytes are bincode 2 "standard"
//! (little endian, variable-length integers), written out in `store-format.md` and held
//! by golden tests, so replacing the crate means replacing this file.

use std::borrow::Cow;

use bincode::config::standard;
use bincode::de::read::{BorrowReader, Reader};
use bincode::de::{BorrowDecode, BorrowDecoder, Decode};
use bincode::error::{AllowedEnumVariants, DecodeError};

use crate::MAX_TAG;

/// What the server is asked to do with a message.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The application published it.
    #[default]
    Publish,
    /// It was refused under the sequence `accepts`; appending this message accepted that refusal.
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
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Envelope<'a> {
    /// The operation.
    pub operation: Operation,
    /// The topic, a literal name.
    pub topic: Cow<'a, str>,
    /// Correlation id, delivered verbatim to subscribers.
    pub correlation_id: Option<Cow<'a, str>>,
    /// Lifetime of the record at the server, in seconds.
    pub expiration: Option<u32>,
    /// Explicit SOW key of a publish.
    pub sow_key: Option<Cow<'a, str>>,
    /// Filter or keys of a delete, see [`Operation`].
    pub selector: Option<Cow<'a, str>>,
    /// Command options, sent verbatim.
    pub options: Option<Cow<'a, str>>,
    /// When the application published it: microseconds since the Unix epoch.
    pub published_at: u64,
    /// Opaque mark of the application, at most [`MAX_TAG`] bytes. The newest one is the resume
    /// point.
    pub user_tag: Cow<'a, [u8]>,
    /// How the message came into the store.
    pub origin: Origin,
}

/// An envelope could not be read, since the bytes are not one or not of this version; or it
/// cannot be stored.
#[derive(Clone, Debug, thiserror::Error)]
#[error("the envelope cannot be used: {0}")]
pub struct EnvelopeError(String);

impl EnvelopeError {
    #[cold]
    pub(crate) fn accepts(accepts: u64, next: u64) -> Self {
        EnvelopeError(format!(
            "it accepts the refusal of message {accepts}, and is itself {next}; only an earlier \
             one can have been refused"
        ))
    }
}

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

    /// Whether it can be stored.
    ///
    /// # Errors
    /// A user tag longer than [`MAX_TAG`].
    #[inline]
    pub(crate) fn check(&self) -> Result<(), EnvelopeError> {
        match self.user_tag.len() {
            0..=MAX_TAG => Ok(()),
            len => Err(EnvelopeError(format!(
                "the user tag has {len} bytes, {MAX_TAG} are allowed"
            ))),
        }
    }

    /// Writes the envelope's bytes to the beginning of `room` and tells how many they are;
    /// `None`: they need more room.
    #[inline(always)]
    pub(crate) fn encode_into(&self, room: &mut [u8]) -> Option<usize> {
        match self.is_plain() {
            true => self.encode_plain(room),
            false => self.encode_any(room),
        }
    }

    /// What most messages are: published to a topic with a short name, and nothing else.
    #[inline(always)]
    fn is_plain(&self) -> bool {
        self.correlation_id.is_none()
            && self.expiration.is_none()
            && self.sow_key.is_none()
            && self.selector.is_none()
            && self.options.is_none()
            && self.user_tag.is_empty()
            && self.origin == Origin::Publish
            && self.topic.len() < usize::from(ONE_BYTE)
    }

    #[inline(always)]
    fn encode_plain(&self, room: &mut [u8]) -> Option<usize> {
        let topic = self.topic.as_bytes();
        let (head, rest) = room.split_at_mut_checked(2 + topic.len())?;
        let rest = rest.first_chunk_mut::<16>()?;
        head[0] = self.operation as u8;
        head[1] = topic.len() as u8;
        head[2..].copy_from_slice(topic);
        // Five options that are not there, a number, no tag, and the usual origin.
        *rest = [0; 16];
        let number = match self.published_at {
            small if small < ONE_BYTE.into() => {
                rest[5] = small as u8;
                1
            }
            large if large > u32::MAX.into() => {
                rest[5] = EIGHT_BYTES;
                rest[6..14].copy_from_slice(&large.to_le_bytes());
                9
            }
            middle => put_long_number(rest, 5, middle) - 5,
        };
        Some(head.len() + 5 + number + 2)
    }

    fn encode_any(&self, room: &mut [u8]) -> Option<usize> {
        // Nine bytes at most for each of the thirteen numbers and marks.
        let mut needed = 128 + self.topic.len() + self.user_tag.len();
        for text in [
            &self.correlation_id,
            &self.sow_key,
            &self.selector,
            &self.options,
        ] {
            needed += text.as_deref().map_or(0, str::len);
        }
        if room.len() < needed {
            return None;
        }
        let mut at = put_byte(room, 0, self.operation as u8);
        at = put_bytes(room, at, self.topic.as_bytes());
        at = put_text(room, at, self.correlation_id.as_deref());
        at = put_byte(room, at, self.expiration.is_some().into());
        if let Some(seconds) = self.expiration {
            at = put_number(room, at, seconds.into());
        }
        at = put_text(room, at, self.sow_key.as_deref());
        at = put_text(room, at, self.selector.as_deref());
        at = put_text(room, at, self.options.as_deref());
        at = put_number(room, at, self.published_at);
        at = put_bytes(room, at, &self.user_tag);
        match self.origin {
            Origin::Publish => at = put_byte(room, at, 0),
            Origin::Requeue { accepts } => {
                at = put_byte(room, at, 1);
                at = put_number(room, at, accepts);
            }
            Origin::Import => at = put_byte(room, at, 2),
        }
        Some(at)
    }

    /// Reads an envelope that fills `bytes` exactly. Nothing is allocated: the result
    /// borrows from `bytes`.
    ///
    /// # Errors
    /// The bytes are not an envelope of this format version, or bytes are left over.
    pub fn decode(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        match Self::decode_plain(bytes) {
            Some(envelope) => Ok(envelope),
            None => Self::decode_any(bytes),
        }
    }

    /// Decodes an envelope as [`encode_plain`](Self::encode_plain) writes it, which most are;
    /// `None`: it is another one, or damaged.
    fn decode_plain(bytes: &'a [u8]) -> Option<Self> {
        let (&[operation, len], rest) = bytes.split_first_chunk()?;
        let operation = match operation {
            0 => Operation::Publish,
            1 => Operation::DeltaPublish,
            2 => Operation::SowDeleteByFilter,
            3 => Operation::SowDeleteByKeys,
            4 => Operation::SowDeleteByData,
            _ => return None,
        };
        if len >= ONE_BYTE {
            return None;
        }
        let (topic, rest) = rest.split_at_checked(len.into())?;
        let published_at = match *rest {
            [0, 0, 0, 0, 0, EIGHT_BYTES, a, b, c, d, e, f, g, h, 0, 0] => {
                u64::from_le_bytes([a, b, c, d, e, f, g, h])
            }
            [0, 0, 0, 0, 0, small, 0, 0] if small < ONE_BYTE => small.into(),
            _ => return None,
        };
        Some(Envelope {
            operation,
            topic: Cow::Borrowed(std::str::from_utf8(topic).ok()?),
            published_at,
            ..Envelope::default()
        })
    }

    /// The bytes of operation and topic, if the envelope holds nothing else besides the time of
    /// its publish, a tag, and the usual origin. Envelopes with equal bytes differ in no more
    /// than those. The bytes are not checked.
    #[inline]
    pub(crate) fn subject(bytes: &'a [u8]) -> Option<&'a [u8]> {
        let len = *bytes.get(1)?;
        let (subject, rest) = bytes.split_at_checked(2 + usize::from(len))?;
        match *rest {
            [
                0,
                0,
                0,
                0,
                0,
                EIGHT_BYTES,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                _,
                tag_len,
                ref tag @ ..,
                0,
            ] if len < ONE_BYTE
                && usize::from(tag_len) <= MAX_TAG
                && tag.len() == usize::from(tag_len) =>
            {
                Some(subject)
            }
            _ => None,
        }
    }

    fn decode_any(bytes: &'a [u8]) -> Result<Self, EnvelopeError> {
        let unknown = |why: &dyn std::fmt::Display| {
            EnvelopeError(format!(
                "it is not of a version this program knows ({why}); another one may"
            ))
        };
        let (envelope, used): (Self, _) =
            bincode::borrow_decode_from_slice(bytes, standard()).map_err(|e| unknown(&e))?;
        if used != bytes.len() {
            return Err(unknown(&format_args!(
                "{} bytes are left over",
                bytes.len() - used
            )));
        }
        envelope.check()?;
        Ok(envelope)
    }
}

/// A number below this one takes one byte.
const ONE_BYTE: u8 = 251;
/// Precedes a number of eight bytes.
const EIGHT_BYTES: u8 = 253;

// bincode's bytes, written by hand: each function returns the place behind what it wrote. Through
// bincode's own `Writer` an envelope takes 31 ns instead of 13, which is a quarter of a small
// append; its functions are not inlined, and each hands a large result back through memory.

#[inline(always)]
fn put(room: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    room[at..at + bytes.len()].copy_from_slice(bytes);
    at + bytes.len()
}

#[inline(always)]
fn put_byte(room: &mut [u8], at: usize, byte: u8) -> usize {
    room[at] = byte;
    at + 1
}

#[inline(always)]
fn put_number(room: &mut [u8], at: usize, number: u64) -> usize {
    if number < ONE_BYTE.into() {
        put_byte(room, at, number as u8)
    } else {
        put_long_number(room, at, number)
    }
}

/// Writes a marker, and the number in the shortest of two, four and eight bytes.
fn put_long_number(room: &mut [u8], at: usize, number: u64) -> usize {
    if let Ok(short) = u16::try_from(number) {
        let at = put_byte(room, at, 251);
        put(room, at, &short.to_le_bytes())
    } else if let Ok(word) = u32::try_from(number) {
        let at = put_byte(room, at, 252);
        put(room, at, &word.to_le_bytes())
    } else {
        let at = put_byte(room, at, EIGHT_BYTES);
        put(room, at, &number.to_le_bytes())
    }
}

#[inline(always)]
fn put_bytes(room: &mut [u8], at: usize, bytes: &[u8]) -> usize {
    let at = put_number(room, at, bytes.len() as u64);
    put(room, at, bytes)
}

fn put_text(room: &mut [u8], at: usize, text: Option<&str>) -> usize {
    match text {
        None => put_byte(room, at, 0),
        Some(text) => {
            let at = put_byte(room, at, 1);
            put_bytes(room, at, text.as_bytes())
        }
    }
}

impl<'de: 'a, 'a, C> BorrowDecode<'de, C> for Envelope<'a> {
    #[inline]
    fn borrow_decode<D: BorrowDecoder<'de, Context = C>>(
        decoder: &mut D,
    ) -> Result<Self, DecodeError> {
        Ok(Envelope {
            operation: operation(decoder)?,
            topic: text(decoder)?,
            correlation_id: optional(decoder, text)?,
            expiration: optional(decoder, number)?,
            sow_key: optional(decoder, text)?,
            selector: optional(decoder, text)?,
            options: optional(decoder, text)?,
            published_at: number(decoder)?,
            user_tag: Cow::Borrowed(bytes(decoder)?),
            origin: origin(decoder)?,
        })
    }
}

#[inline(always)]
fn number<'de, N, D>(decoder: &mut D) -> Result<N, DecodeError>
where
    N: TryFrom<u64> + From<u8>,
    D: BorrowDecoder<'de>,
{
    if let Some(&[byte]) = decoder.reader().peek_read(1)
        && byte < ONE_BYTE
    {
        decoder.reader().consume(1);
        return Ok(byte.into());
    }
    // A longer form than necessary is accepted too, in every field.
    N::try_from(u64::decode(decoder)?).map_err(|_| DecodeError::Other("a number is too large"))
}

/// A reference into the bytes: no length is believed before the bytes are seen to be there.
#[inline(always)]
fn bytes<'de, D: BorrowDecoder<'de>>(decoder: &mut D) -> Result<&'de [u8], DecodeError> {
    let len: u64 = number(decoder)?;
    let len = usize::try_from(len).map_err(|_| DecodeError::OutsideUsizeRange(len))?;
    decoder.borrow_reader().take_bytes(len)
}

#[inline(always)]
fn text<'de, D: BorrowDecoder<'de>>(decoder: &mut D) -> Result<Cow<'de, str>, DecodeError> {
    std::str::from_utf8(bytes(decoder)?)
        .map(Cow::Borrowed)
        .map_err(|inner| DecodeError::Utf8 { inner })
}

#[inline(always)]
fn optional<'de, T, D: BorrowDecoder<'de>>(
    decoder: &mut D,
    value: impl FnOnce(&mut D) -> Result<T, DecodeError>,
) -> Result<Option<T>, DecodeError> {
    match number(decoder)? {
        0 => Ok(None),
        1 => value(decoder).map(Some),
        found => unknown(
            "Option",
            &AllowedEnumVariants::Range { min: 0, max: 1 },
            found,
        ),
    }
}

#[inline(always)]
fn operation<'de, D: BorrowDecoder<'de>>(decoder: &mut D) -> Result<Operation, DecodeError> {
    use Operation::{DeltaPublish, Publish, SowDeleteByData, SowDeleteByFilter, SowDeleteByKeys};
    match number(decoder)? {
        0 => Ok(Publish),
        1 => Ok(DeltaPublish),
        2 => Ok(SowDeleteByFilter),
        3 => Ok(SowDeleteByKeys),
        4 => Ok(SowDeleteByData),
        found => unknown(
            "Operation",
            &AllowedEnumVariants::Range { min: 0, max: 4 },
            found,
        ),
    }
}

#[inline(always)]
fn origin<'de, D: BorrowDecoder<'de>>(decoder: &mut D) -> Result<Origin, DecodeError> {
    match number(decoder)? {
        0 => Ok(Origin::Publish),
        1 => number(decoder).map(|accepts| Origin::Requeue { accepts }),
        2 => Ok(Origin::Import),
        found => unknown(
            "Origin",
            &AllowedEnumVariants::Range { min: 0, max: 2 },
            found,
        ),
    }
}

#[cold]
fn unknown<T>(
    type_name: &'static str,
    allowed: &'static AllowedEnumVariants,
    found: u32,
) -> Result<T, DecodeError> {
    Err(DecodeError::UnexpectedVariant {
        type_name,
        allowed,
        found,
    })
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
        fn a_plain_envelope_is_read_as_any_other_is(
            topic in "\\PC{0,90}",
            published_at in prop_oneof![0..251u64, (1 << 32)..u64::MAX],
            at: proptest::sample::Index,
            byte: u8,
        ) {
            let envelope = Envelope { published_at, ..Envelope::publish(topic.clone()) };
            let mut room = vec![0; 512];
            let len = envelope.encode_into(&mut room).expect("there is room");
            let bytes = &mut room[..len];
            // Not all of them are plain, since the topic may be long.
            let plain = Envelope::decode_plain(bytes);
            prop_assert!(plain.is_none_or(|plain| plain == envelope));
            prop_assert_eq!(Envelope::decode_any(bytes).unwrap(), envelope);
            let subject = Envelope::subject(bytes).map(<[u8]>::to_vec);
            bytes[at.index(len)] = byte;
            if subject.is_some() && Envelope::subject(bytes) == subject.as_deref() {
                let read = Envelope::decode(bytes).unwrap();
                prop_assert_eq!((read.operation, read.topic), (Operation::Publish, topic.into()));
            }
            if let Some(plain) = Envelope::decode_plain(bytes) {
                prop_assert_eq!(Envelope::decode_any(bytes).unwrap(), plain);
            }
        }

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
            let mut room = vec![0; 8192];
            let len = envelope.encode_into(&mut room).expect("there is room");
            let ours = &room[..len];
            let e = &envelope;
            let head = (operation as u32, &e.topic, &e.correlation_id, e.expiration, &e.sow_key);
            let tail = (&e.selector, &e.options, e.published_at, &e.user_tag);
            let end = match e.origin {
                Origin::Publish => (0u32, None),
                Origin::Requeue { accepts } => (1, Some(accepts)),
                Origin::Import => (2, None),
            };
            // What bincode makes of the same fields on its own.
            let mut theirs = bincode::encode_to_vec((head, tail, end.0), standard()).unwrap();
            if let Some(accepts) = end.1 {
                theirs.extend(bincode::encode_to_vec(accepts, standard()).unwrap());
            }
            prop_assert_eq!(ours, &theirs[..]);
            prop_assert_eq!(envelope.encode_into(&mut vec![0; len - 1]), None);
            let read = Envelope::decode(ours).unwrap();
            prop_assert_eq!(&read, &envelope);
            if Envelope::subject(ours).is_some() {
                let Envelope { published_at, .. } = read;
                let user_tag = read.user_tag.clone();
                let alike = Envelope { published_at, user_tag, ..Envelope::publish(read.topic) };
                prop_assert_eq!(Envelope { operation: read.operation, ..alike }, envelope);
            }
            prop_assert!(Envelope::decode(&ours[..len - 1]).is_err());
        }
    }
}
