//! Turns messages, subscriptions and requests into the frames that are sent.

use std::ops::Range;

use amps_store::{Envelope, EnvelopeError, Operation};

use crate::delivery::{AckWish, ToSend};
use crate::protocol::{AckKinds, Command, FrameError, LENGTH_BYTES, Publish};
use crate::requests::{Request, Subscribe, SubscribeKind};

/// What the command id of a message begins with that no store numbers and that asks for an ack: a
/// letter of its own, so that none looks like that of a session's command, or like a sequence.
pub(crate) const ASKED: u8 = b'p';

/// The command id of such a message.
pub(crate) fn asked_id(number: u64) -> String {
    format!("{}{number}", char::from(ASKED))
}

/// A message that no frame can be made of.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EncodeError {
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

/// Makes frames of messages. Consecutive ones mostly differ only in number and payload, and then
/// the header of the last frame is used again.
#[derive(Debug, Default)]
pub(crate) struct Encoder {
    publish_ids: bool,
    last: Header,
}

/// A header that depends only on operation and topic, except for its number.
#[derive(Debug, Default)]
struct Header {
    /// Operation and topic of the envelopes that it fits; empty: there is none.
    subject: Vec<u8>,
    /// From the length in front of the frame to where its body begins.
    bytes: Vec<u8>,
    /// The number in it, and where that stands.
    wire: u64,
    number: Range<usize>,
}

impl Encoder {
    /// `publish_ids`: every frame carries its sequence as command id.
    pub(crate) fn new(publish_ids: bool) -> Self {
        Encoder {
            publish_ids,
            last: Header::default(),
        }
    }

    /// Appends the frame of a message to `out`, copying its bytes once. `persisted` is asked for
    /// on every stored command (`docs/protocol.md` §14). Without a store there is no number, and
    /// an ack only if the message asks for one.
    #[inline]
    pub(crate) fn encode(
        &mut self,
        to_send: &ToSend<'_>,
        out: &mut Vec<u8>,
    ) -> Result<(), EncodeError> {
        let message = to_send.message;
        let subject = match self.publish_ids || to_send.ack != AckWish::Kept {
            true => None,
            false => message.subject(),
        };
        if let Some(subject) = subject
            && (self.last.subject == subject || self.last.set(subject, &message.envelope()?)?)
        {
            return Ok(self.last.write(to_send.wire, message.payload(), out)?);
        }
        encode_any(to_send, self.publish_ids, out)
    }
}

impl Header {
    /// Makes the header for such messages; returns whether there can be one.
    fn set(&mut self, subject: &[u8], envelope: &Envelope<'_>) -> Result<bool, FrameError> {
        let delta = match envelope.operation {
            Operation::Publish => false,
            Operation::DeltaPublish => true,
            _ => return Ok(false),
        };
        self.subject.clear();
        self.bytes.clear();
        self.wire = 0;
        let end = Publish {
            delta,
            ..Publish::stored(&envelope.topic, self.wire, &[])
        }
        .encode_marked(&mut self.bytes)?;
        self.number = end - 1..end;
        self.subject.extend_from_slice(subject);
        Ok(true)
    }

    #[inline]
    fn write(&mut self, wire: u64, body: &[u8], out: &mut Vec<u8>) -> Result<(), FrameError> {
        let follows = self.wire.checked_add(1) == Some(wire);
        if !(follows && count_up(&mut self.bytes[self.number.clone()])) {
            let mut digits = [0; 20];
            let digits = decimal(wire, &mut digits).iter().copied();
            self.bytes.splice(self.number.clone(), digits.clone());
            self.number.end = self.number.start + digits.len();
        }
        self.wire = wire;
        let length = self.bytes.len() - LENGTH_BYTES + body.len();
        let Ok(field) = u32::try_from(length) else {
            return Err(FrameError::Unsendable { length });
        };
        self.bytes[..LENGTH_BYTES].copy_from_slice(&field.to_be_bytes());
        out.reserve(self.bytes.len() + body.len());
        out.extend_from_slice(&self.bytes);
        out.extend_from_slice(body);
        Ok(())
    }
}

fn encode_any(
    to_send: &ToSend<'_>,
    publish_ids: bool,
    out: &mut Vec<u8>,
) -> Result<(), EncodeError> {
    let message = to_send.message;
    let envelope = message.envelope()?;
    let (mut digits, mut id) = ([0; 20], [0; 21]);
    let digits = decimal(to_send.sequence, &mut digits);
    let command_id = match to_send.ack {
        AckWish::Kept if publish_ids => Some(digits),
        AckWish::Asked => {
            id[0] = ASKED;
            id[1..=digits.len()].copy_from_slice(digits);
            Some(&id[..=digits.len()])
        }
        AckWish::Kept | AckWish::Unasked => None,
    };
    // Letters and digits are always UTF-8.
    let command_id = command_id.map(|id| std::str::from_utf8(id).unwrap_or_default());
    let sequence = (to_send.ack == AckWish::Kept).then_some(to_send.wire);
    let acks = match to_send.ack {
        AckWish::Kept | AckWish::Asked => AckKinds::PERSISTED,
        AckWish::Unasked => AckKinds::NONE,
    };
    match envelope.operation {
        Operation::Publish | Operation::DeltaPublish => Publish {
            delta: envelope.operation == Operation::DeltaPublish,
            command_id,
            sequence,
            expiration: envelope.expiration,
            options: envelope.options.as_deref(),
            correlation_id: envelope.correlation_id.as_deref(),
            sow_key: envelope.sow_key.as_deref(),
            acks,
            ..Publish::new(&envelope.topic, message.payload())
        }
        .encode(out)?,
        operation => Command {
            command_id,
            sequence,
            acks,
            ..delete(
                operation,
                &envelope.topic,
                envelope.selector.as_deref(),
                envelope.options.as_deref(),
                message.payload(),
            )
        }
        .encode(out)?,
    }
    Ok(())
}

/// A `sow_delete` in the form its operation names.
pub(crate) fn delete<'a>(
    operation: Operation,
    topic: &'a str,
    selector: Option<&'a str>,
    options: Option<&'a str>,
    data: &'a [u8],
) -> Command<'a> {
    let selector = selector.unwrap_or_default();
    let command = match operation {
        Operation::SowDeleteByFilter => Command::sow_delete_by_filter(topic, selector),
        Operation::SowDeleteByKeys => Command::sow_delete_by_keys(topic, selector),
        _ => Command::sow_delete_by_data(topic, data),
    };
    Command { options, ..command }
}

impl Subscribe {
    /// The command to place this subscription, from `bookmark` on.
    pub(crate) fn command<'a>(
        &'a self,
        command_id: &'a str,
        sub_id: &'a str,
        bookmark: Option<&'a str>,
    ) -> Command<'a> {
        let mut command = match self.kind {
            SubscribeKind::Subscribe => Command::subscribe(command_id, &self.topic, sub_id),
            SubscribeKind::Sow => Command::sow(command_id, &self.topic, sub_id),
            SubscribeKind::SowAndSubscribe => {
                Command::sow_and_subscribe(command_id, &self.topic, sub_id, sub_id)
            }
            SubscribeKind::DeltaSubscribe => Command {
                name: "delta_subscribe",
                ..Command::subscribe(command_id, &self.topic, sub_id)
            },
            SubscribeKind::SowAndDeltaSubscribe => Command {
                name: "sow_and_delta_subscribe",
                ..Command::sow_and_subscribe(command_id, &self.topic, sub_id, sub_id)
            },
        };
        command.filter = self.filter.as_deref();
        command.options = self.options.as_deref();
        command.bookmark = bookmark.or(self.bookmark.as_deref());
        command.order_by = self.order_by.as_deref();
        command.top_n = self.top_n;
        command.batch_size = self.batch_size;
        command
    }
}

impl Request {
    pub(crate) fn command<'a>(&'a self, command_id: &'a str) -> Command<'a> {
        let mut command = Command::generic(&self.name);
        command.command_id = Some(command_id);
        command.topic = self.topic.as_deref();
        command.filter = self.filter.as_deref();
        command.sow_keys = self.sow_keys.as_deref();
        command.options = self.options.as_deref();
        command.bookmark = self.bookmark.as_deref();
        command.correlation_id = self.correlation_id.as_deref();
        command.sub_id = self.sub_id.as_deref();
        command.query_id = self.query_id.as_deref();
        command.order_by = self.order_by.as_deref();
        command.top_n = self.top_n;
        command.batch_size = self.batch_size;
        command.expiration = self.expiration;
        command.sow_key = self.sow_key.as_deref();
        command.acks = self.acks;
        command.body = &self.body;
        command
    }
}

/// Turns the digits into those of the next number; false: that has more digits.
#[inline]
fn count_up(digits: &mut [u8]) -> bool {
    for digit in digits.iter_mut().rev() {
        if *digit < b'9' {
            *digit += 1;
            return true;
        }
        *digit = b'0';
    }
    false
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    &digits[at..]
}

#[cfg(test)]
mod tests {
    use amps_store::Batch;

    use super::*;

    /// Messages whose frames differ in everything in which frames can differ.
    fn envelopes(long: &str) -> Vec<Envelope<'_>> {
        let to = |topic| Envelope {
            published_at: 1 << 50,
            ..Envelope::publish(topic)
        };
        let plain = Envelope::publish("orders");
        let with = |change: fn(&mut Envelope<'_>)| {
            let mut envelope = plain.clone();
            change(&mut envelope);
            envelope
        };
        vec![
            plain.clone(),
            with(|e| e.published_at = 1 << 40),
            with(|e| {
                e.published_at = 1 << 41;
                e.user_tag = b"tag"[..].into();
            }),
            with(|e| {
                e.published_at = 1 << 42;
                e.operation = Operation::DeltaPublish;
            }),
            with(|e| e.expiration = Some(7)),
            with(|e| e.expiration = Some(8)),
            with(|e| e.options = Some("o".into())),
            with(|e| e.correlation_id = Some("x".into())),
            with(|e| e.sow_key = Some("k".into())),
            with(|e| {
                e.published_at = 1 << 43;
                e.operation = Operation::SowDeleteByData;
            }),
            with(|e| {
                e.operation = Operation::SowDeleteByFilter;
                e.selector = Some("/id > 1".into());
            }),
            to("order"),
            to(""),
            to("a \"topic\",\"s\":1"),
            to(&long[..250]),
            to(long),
        ]
    }

    #[test]
    fn a_frame_is_the_same_whatever_went_out_before_it() {
        let long = "l".repeat(300);
        let envelopes = envelopes(&long);
        let numbers = [0, 1, 9, 10, 11, 99, 100, 12_345, 9, u64::MAX, 0, 1];
        let mut batch = Batch::new(2, usize::MAX);
        for publish_ids in [false, true] {
            let mut encoder = Encoder::new(publish_ids);
            for (first, second) in envelopes
                .iter()
                .flat_map(|first| envelopes.iter().map(move |second| (first, second)))
            {
                batch.clear();
                assert!(batch.push(3, first, b"first").unwrap());
                assert!(batch.push(4, second, b"").unwrap());
                for wire in numbers {
                    for message in batch.iter() {
                        let to_send = ToSend {
                            sequence: message.sequence,
                            wire,
                            again: false,
                            ack: AckWish::Kept,
                            message,
                        };
                        let (mut frame, mut expected) = (b"before".to_vec(), b"before".to_vec());
                        encoder.encode(&to_send, &mut frame).unwrap();
                        encode_any(&to_send, publish_ids, &mut expected).unwrap();
                        assert_eq!(frame, expected);
                    }
                }
            }
        }
    }

    /// What a header in store serves for is not what goes out without a number.
    #[test]
    fn what_no_store_numbers_has_no_number_and_asks_if_it_was_told_to() {
        let mut batch = Batch::default();
        let mut deletes = Envelope::publish("t");
        deletes.operation = Operation::SowDeleteByKeys;
        deletes.selector = Some("k".into());
        for sequence in 7..10 {
            let envelope = Envelope::publish("t");
            assert!(batch.push(sequence, &envelope, b"x").unwrap());
        }
        assert!(batch.push(10, &deletes, b"").unwrap());
        let wishes = [
            AckWish::Kept,
            AckWish::Asked,
            AckWish::Unasked,
            AckWish::Asked,
        ];
        for publish_ids in [false, true] {
            let mut encoder = Encoder::new(publish_ids);
            let mut frames = Vec::new();
            for (message, ack) in batch.iter().zip(wishes) {
                let to_send = ToSend {
                    sequence: message.sequence,
                    wire: message.sequence,
                    again: false,
                    ack,
                    message,
                };
                let mut frame = Vec::new();
                encoder.encode(&to_send, &mut frame).unwrap();
                let frame = String::from_utf8(frame.split_off(LENGTH_BYTES)).unwrap();
                frames.push(frame);
            }
            assert!(frames[0].contains(r#""s":7"#), "{}", frames[0]);
            assert!(frames[1].contains(r#""cid":"p8""#), "{}", frames[1]);
            assert!(frames[3].contains(r#""cid":"p10""#), "{}", frames[3]);
            assert!(!frames[2].contains("cid") && !frames[2].contains(r#""a":"#));
            for asks in [&frames[1], &frames[3]] {
                assert!(asks.contains(r#""a":"persisted""#), "{asks}");
            }
            let numbered = frames.iter().filter(|frame| frame.contains(r#""s":"#));
            assert_eq!(numbered.count(), 1, "{frames:?}");
        }
        assert_eq!(asked_id(8), "p8");
    }

    #[test]
    fn numbers_that_follow_each_other_are_counted_up() {
        let mut header = Header::default();
        let envelope = Envelope::publish("t");
        assert!(header.set(b"t", &envelope).unwrap());
        let far = [998..1100, 0..3, u64::MAX - 2..u64::MAX]
            .into_iter()
            .flatten();
        for wire in (0..1200).chain(far).chain([u64::MAX, 0, 1]) {
            let (mut frame, mut expected) = (Vec::new(), Vec::new());
            header.write(wire, b"body", &mut frame).unwrap();
            let publish = Publish::stored("t", wire, b"body");
            publish.encode(&mut expected).unwrap();
            assert_eq!(frame, expected);
        }
    }

    #[test]
    fn decimal_covers_the_whole_range() {
        for number in [0, 7, 10, 12_345, u64::MAX] {
            assert_eq!(decimal(number, &mut [0; 20]), number.to_string().as_bytes());
        }
    }
}
