//! Many messages read at once.

use std::fmt;

use crate::envelope::{Envelope, EnvelopeError};
use crate::excerpt::Excerpt;
use crate::format::RECORD_HEADER;

/// Messages as they stand in the store, one after the other in a buffer that can be reused:
/// [`PublishStore::read_unsettled`](crate::PublishStore::read_unsettled) reads into it.
///
/// It takes a bounded number of messages and bytes, but always one message, however large that
/// is. After a large one the buffer shrinks again.
#[derive(Clone)]
pub struct Batch {
    bytes: Vec<u8>,
    places: Vec<Place>,
    most: Limits,
    now: Limits,
}

#[derive(Clone, Copy, Debug)]
struct Limits {
    messages: usize,
    bytes: usize,
}

/// A message in the buffer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) sequence: u64,
    /// Where its record stands in the log.
    pub(crate) offset: u64,
    pub(crate) start: usize,
    pub(crate) envelope_end: usize,
    pub(crate) payload_end: usize,
    pub(crate) end: usize,
}

/// One message in a buffer.
#[derive(Clone, Copy)]
pub struct MessageRef<'a> {
    /// Its sequence.
    pub sequence: u64,
    pub(crate) envelope: &'a [u8],
    pub(crate) payload: &'a [u8],
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

impl fmt::Debug for MessageRef<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MessageRef")
            .field("sequence", &self.sequence)
            .field("envelope", &self.envelope())
            .field("payload", &Excerpt(self.payload))
            .finish()
    }
}

impl<'a> MessageRef<'a> {
    /// The decoded envelope, borrowing from the buffer.
    ///
    /// # Errors
    /// The record is intact, but its envelope is not of a version this program knows.
    pub fn envelope(&self) -> Result<Envelope<'a>, EnvelopeError> {
        Envelope::decode(self.envelope)
    }

    /// Bytes that stand for operation and topic, if the envelope says nothing else besides when
    /// the message was published and its tag. Whatever is derived from them can be reused for
    /// another message with the same bytes.
    #[inline]
    pub fn subject(&self) -> Option<&'a [u8]> {
        Envelope::subject(self.envelope)
    }

    /// The payload, byte for byte as published.
    pub fn payload(&self) -> &'a [u8] {
        self.payload
    }

    /// Bytes of the envelope as it is stored, and of the payload.
    pub fn size(&self) -> usize {
        self.envelope.len() + self.payload.len()
    }
}

impl Default for Batch {
    /// As much as should be read while a store's lock is held: 64 messages, 16 KiB.
    fn default() -> Self {
        Batch::new(64, 16 << 10)
    }
}

impl Batch {
    /// An empty buffer that takes at most this many messages, and this many bytes of records.
    pub fn new(messages: usize, bytes: usize) -> Self {
        let most = Limits { messages, bytes };
        Batch {
            bytes: Vec::new(),
            places: Vec::new(),
            most,
            now: most,
        }
    }

    /// Takes no more than this from now on, and no more than it was made for.
    pub fn narrow(&mut self, messages: usize, bytes: usize) {
        self.now = Limits {
            messages: messages.min(self.most.messages),
            bytes: bytes.min(self.most.bytes),
        };
    }

    /// How many messages are in it.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    /// Whether there is none in it.
    pub fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// The messages, in the order they were put in.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = MessageRef<'_>> {
        self.places.iter().map(|place| self.message(place))
    }

    /// The message at this place, counted from 0.
    pub fn get(&self, nth: usize) -> Option<MessageRef<'_>> {
        self.places.get(nth).map(|place| self.message(place))
    }

    /// Bytes of all payloads together.
    pub fn payload_bytes(&self) -> u64 {
        let len = |place: &Place| place.payload_end - place.envelope_end;
        self.places.iter().map(len).sum::<usize>() as u64
    }

    fn message(&self, place: &Place) -> MessageRef<'_> {
        let envelope = place.start + RECORD_HEADER..place.envelope_end;
        MessageRef {
            sequence: place.sequence,
            envelope: self.bytes.get(envelope).unwrap_or_default(),
            payload: self
                .bytes
                .get(place.envelope_end..place.payload_end)
                .unwrap_or_default(),
        }
    }

    /// Empties it. A store does this first when it is asked to read.
    pub fn clear(&mut self) {
        self.places.clear();
        if self.bytes.len() > self.most.bytes.saturating_mul(2) {
            self.bytes = Vec::new();
        }
    }

    /// Keeps only this many messages from the front.
    pub fn truncate(&mut self, messages: usize) {
        self.places.truncate(messages);
    }

    /// Puts a message behind the others. Your own implementation of a store calls this when it is
    /// read. `false`: the buffer is full, and the message is not in it.
    ///
    /// # Errors
    /// A user tag longer than [`MAX_TAG`](crate::MAX_TAG): the message is not in it.
    pub fn push(
        &mut self,
        sequence: u64,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<bool, EnvelopeError> {
        envelope.check()?;
        let (mut small, mut large) = ([0; 512], Vec::new());
        let encoded = match envelope.encode_into(&mut small) {
            Some(length) => &small[..length],
            None => loop {
                large.resize(2 * large.len().max(small.len()), 0);
                if let Some(length) = envelope.encode_into(&mut large) {
                    break &large[..length];
                }
            },
        };
        Ok(self.put(sequence, encoded, payload))
    }

    /// As [`push`](Self::push), for a message of another batch, as it stands there.
    pub fn push_ref(&mut self, message: &MessageRef<'_>) -> bool {
        self.put(message.sequence, message.envelope, message.payload)
    }

    fn put(&mut self, sequence: u64, envelope: &[u8], payload: &[u8]) -> bool {
        let envelope_end = RECORD_HEADER + envelope.len();
        let Some(room) = self.take(sequence, 0, envelope_end + payload.len()) else {
            return false;
        };
        room[RECORD_HEADER..envelope_end].copy_from_slice(envelope);
        room[envelope_end..].copy_from_slice(payload);
        if let Some(place) = self.places.last_mut() {
            place.envelope_end = place.start + envelope_end;
            place.payload_end = place.end;
        }
        true
    }

    /// Room for the record of one more message of `len` bytes, if it is not full.
    #[inline]
    pub(crate) fn take(&mut self, sequence: u64, offset: u64, len: usize) -> Option<&mut [u8]> {
        let start = self.places.last().map_or(0, |last| last.end);
        let end = start + len;
        let full = self.places.len() >= self.now.messages || end > self.now.bytes;
        if full && !self.is_empty() {
            return None;
        }
        if self.bytes.len() < end {
            let more = (2 * self.bytes.len()).min(self.now.bytes);
            self.bytes.resize(end.max(more), 0);
        }
        self.places.push(Place {
            sequence,
            offset,
            start,
            envelope_end: start,
            payload_end: start,
            end,
        });
        Some(&mut self.bytes[start..end])
    }

    /// Checks each record with its place. The first one that is not good is dropped with all that
    /// stand behind it, and its error returned.
    pub(crate) fn keep_good(
        &mut self,
        mut judge: impl FnMut(&mut Place, &[u8]) -> bool,
    ) -> Option<Place> {
        let bytes = &self.bytes;
        let bad = self
            .places
            .iter_mut()
            .position(|place| !judge(place, &bytes[place.start..place.end]))?;
        let place = self.places[bad];
        self.places.truncate(bad);
        Some(place)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_takes_one_message_of_any_size_and_gives_its_room_back() {
        let envelope = Envelope::publish("t");
        let mut batch = Batch::new(2, 1000);
        let payloads = [&[1; 300][..], &[2; 300], &[3; 10], &[4; 5000]];
        let push = |batch: &mut Batch, nth: usize| {
            batch.push(nth as u64, &envelope, payloads[nth]).unwrap()
        };
        assert!(push(&mut batch, 0) && push(&mut batch, 1));
        assert!(!push(&mut batch, 2), "it has two");
        batch.clear();
        assert!(push(&mut batch, 3), "a large one alone");
        assert!(!push(&mut batch, 2), "and nothing behind it");
        assert_eq!(batch.get(0).unwrap().payload(), payloads[3]);
        batch.clear();
        assert!(batch.bytes.is_empty());
        assert!(push(&mut batch, 0));
        batch.narrow(usize::MAX, 10);
        assert!(!push(&mut batch, 2), "no more bytes from here on");
        let all: Vec<_> = batch.iter().map(|m| (m.sequence, m.payload())).collect();
        assert_eq!(all, [(0, payloads[0])]);
    }

    #[test]
    fn a_message_is_the_same_in_every_batch() {
        let mut envelopes = vec![Envelope::publish("t"), Envelope::publish("l".repeat(2000))];
        envelopes[0].options = Some("o".repeat(700).into());
        envelopes.push(Envelope::publish("u"));
        let (mut one, mut other) = (Batch::new(3, usize::MAX), Batch::new(2, usize::MAX));
        for (sequence, envelope) in (7..).zip(&envelopes) {
            assert!(one.push(sequence, envelope, &[sequence as u8]).unwrap());
        }
        let copied: Vec<bool> = one.iter().map(|message| other.push_ref(&message)).collect();
        assert_eq!(copied, [true, true, false], "it has two");
        for (nth, message) in other.iter().enumerate() {
            let sequence = 7 + nth as u64;
            assert_eq!(message.sequence, sequence);
            assert_eq!(message.envelope().unwrap(), envelopes[nth]);
            assert_eq!(message.payload(), [sequence as u8]);
        }
        let tag = vec![0; 65];
        let envelope = Envelope {
            user_tag: tag.into(),
            ..Envelope::publish("t")
        };
        other.clear();
        assert!(other.push(1, &envelope, b"").is_err() && other.is_empty());
    }
}
