//! A stored message as the bytes of a publish.
//!
//! | Header | Holds |
//! |---|---|
//! | `Nats-Msg-Id` | the message's id |
//! | `Nats-Expected-Stream` | the stream it is meant for |
//! | `Nats-Expected-Last-Sequence` | in a chain: the place behind which it belongs |
//! | `Nats-TTL` | how long it lives, where the stream allows that |
//! | `Amps-Expiration` | how long it lives in seconds, where the stream does not: a note for who reads it |
//! | `Amps-Correlation-Id`, `Amps-Sow-Key` | what the publisher gave, with everything but printable ASCII, and the percent sign, as `%XX` |

use amps_delivery::{ToSend, Unsendable};
use amps_store::{Envelope, Operation};

use crate::api::MSG_ID;
use crate::codec::{self, decimal};
use crate::ids::{Ids, escape};
use crate::subject::{self, SubjectError, subject};

/// The most bytes of headers that a stream takes.
const MAX_HEADERS: usize = 65_535;

/// Whether there is a stream that can hold such a message, as far as that is known without one.
///
/// # Errors
/// There is none.
pub(crate) fn check(envelope: &Envelope<'_>) -> Result<(), Unsendable> {
    let because = |why: String| Unsendable { why };
    if envelope.operation != Operation::Publish {
        let why = format!("JetStream has no {:?}", envelope.operation);
        return Err(because(why));
    }
    subject::check(&envelope.topic).map_err(|error| because(error.to_string()))?;
    let given = [&envelope.correlation_id, &envelope.sow_key];
    let given = given.into_iter().flatten().map(|value| value.len());
    // A byte becomes three at most, and the rest of the headers is short.
    match given.sum::<usize>() > (MAX_HEADERS - REST) / 3 {
        true => Err(because(format!(
            "a correlation id and a SOW key of more than {} bytes may not fit into the {MAX_HEADERS} \
             bytes of headers that a stream takes",
            (MAX_HEADERS - REST) / 3
        ))),
        false => Ok(()),
    }
}

/// What the headers take that no publisher gives, at most: names of clients and of streams have 255
/// bytes.
const REST: usize = 2_048;

/// Makes publishes of messages.
#[derive(Debug)]
pub(crate) struct Encoder {
    ids: Ids,
    stream: String,
    /// Messages may have a lifetime.
    lifetimes: bool,
    /// The largest message, headers included.
    largest: usize,
    /// The last topic, and its subject.
    topic: String,
    subject: Result<String, SubjectError>,
    headers: Vec<u8>,
}

impl Encoder {
    pub(crate) fn new(ids: Ids, stream: &str, lifetimes: bool, largest: usize) -> Self {
        Encoder {
            ids,
            stream: stream.to_owned(),
            lifetimes,
            largest,
            topic: String::new(),
            subject: Err(SubjectError::Empty),
            headers: Vec::new(),
        }
    }

    pub(crate) fn set_largest(&mut self, largest: usize) {
        self.largest = largest;
    }

    /// Appends the publish of a message whose answer goes to `reply`, or says why no server of
    /// this kind can take it; then nothing is appended.
    pub(crate) fn encode(
        &mut self,
        message: &ToSend<'_>,
        expected: Option<u64>,
        reply: &[u8],
        out: &mut Vec<u8>,
    ) -> Result<(), Unsendable> {
        let because = |why: String| Unsendable { why };
        let envelope = message.message.envelope();
        let envelope = envelope.map_err(|error| because(error.to_string()))?;
        check(&envelope)?;
        if self.topic != envelope.topic || self.topic.is_empty() {
            envelope.topic.as_ref().clone_into(&mut self.topic);
            self.subject = subject(&self.topic);
        }
        let subject = match &self.subject {
            Ok(subject) => subject,
            Err(error) => return Err(because(error.to_string())),
        };
        self.headers.clear();
        write_headers(
            &mut self.headers,
            &self.ids,
            &self.stream,
            (message.wire, expected),
            self.lifetimes,
            &envelope,
        );
        let (headers, payload) = (self.headers.len(), message.message.payload());
        if headers > MAX_HEADERS {
            let why = format!("{headers} bytes of headers, and {MAX_HEADERS} are the most");
            return Err(because(why));
        }
        let size = headers + payload.len();
        if size > self.largest {
            let why = format!(
                "{size} bytes with its headers, and the server or the stream takes {}",
                self.largest
            );
            return Err(because(why));
        }
        codec::publish_with_headers(out, subject, reply, &self.headers, payload);
        Ok(())
    }
}

fn write_headers(
    out: &mut Vec<u8>,
    ids: &Ids,
    stream: &str,
    (wire, expected): (u64, Option<u64>),
    lifetimes: bool,
    envelope: &Envelope<'_>,
) {
    out.extend_from_slice(b"NATS/1.0\r\n");
    name(out, MSG_ID);
    ids.write(out, wire, envelope.published_at);
    out.extend_from_slice(b"\r\n");
    name(out, "Nats-Expected-Stream");
    out.extend_from_slice(stream.as_bytes());
    out.extend_from_slice(b"\r\n");
    if let Some(expected) = expected {
        name(out, "Nats-Expected-Last-Sequence");
        decimal(out, expected);
        out.extend_from_slice(b"\r\n");
    }
    match envelope.expiration {
        Some(seconds) if lifetimes && seconds > 0 => {
            name(out, "Nats-TTL");
            decimal(out, seconds.into());
            out.extend_from_slice(b"s\r\n");
        }
        Some(seconds) => {
            name(out, "Amps-Expiration");
            decimal(out, seconds.into());
            out.extend_from_slice(b"\r\n");
        }
        None => {}
    }
    let given = [
        ("Amps-Correlation-Id", &envelope.correlation_id),
        ("Amps-Sow-Key", &envelope.sow_key),
    ];
    for (header, value) in given {
        if let Some(value) = value {
            name(out, header);
            escape(out, value.as_bytes(), |byte| byte.is_ascii_graphic());
            out.extend_from_slice(b"\r\n");
        }
    }
    out.extend_from_slice(b"\r\n");
}

fn name(out: &mut Vec<u8>, name: &str) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
}

#[cfg(test)]
mod tests {
    use amps_delivery::AckWish;
    use amps_store::StoredMessage;

    use super::*;

    fn encode(
        encoder: &mut Encoder,
        envelope: &Envelope<'_>,
        expected: Option<u64>,
    ) -> Result<String, String> {
        let mut stored = StoredMessage::new();
        stored.set(7, envelope, b"a\r\nb").unwrap();
        let message = ToSend {
            sequence: 7,
            wire: 37,
            again: false,
            ack: AckWish::Kept,
            message: stored.as_ref(),
        };
        let mut out = Vec::new();
        match encoder.encode(&message, expected, b"_INBOX.a.0", &mut out) {
            Ok(()) => Ok(String::from_utf8(out).unwrap()),
            Err(unsendable) => {
                assert!(out.is_empty(), "nothing goes out");
                Err(unsendable.why)
            }
        }
    }

    fn encoder(lifetimes: bool, largest: usize) -> Encoder {
        Encoder::new(Ids::new("me", 1), "S", lifetimes, largest)
    }

    #[test]
    fn a_message_has_these_bytes() {
        let mut envelope = Envelope::publish("orders eu");
        envelope.published_at = 36;
        let plain = encode(&mut encoder(false, 1_000), &envelope, None);
        let expected = "HPUB orders%20eu _INBOX.a.0 62 66\r\nNATS/1.0\r\nNats-Msg-Id: me:1:11:10\r\n\
                        Nats-Expected-Stream: S\r\n\r\na\r\nb\r\n";
        assert_eq!(plain.as_deref(), Ok(expected));
        envelope.expiration = Some(9);
        envelope.correlation_id = Some("a\r\nb%é".into());
        envelope.sow_key = Some("k".into());
        let full = encode(&mut encoder(false, 1_000), &envelope, Some(40)).unwrap();
        let headers = "Nats-Expected-Stream: S\r\nNats-Expected-Last-Sequence: 40\r\n\
                       Amps-Expiration: 9\r\nAmps-Correlation-Id: a%0D%0Ab%25%C3%A9\r\n\
                       Amps-Sow-Key: k\r\n\r\n";
        assert!(full.contains(headers), "{full}");
        let lives = encode(&mut encoder(true, 1_000), &envelope, None).unwrap();
        assert!(lives.contains("\r\nNats-TTL: 9s\r\n") && !lives.contains("Amps-Expiration"));
    }

    #[test]
    fn what_can_never_go_out_is_told_before_it_does() {
        let envelope = Envelope::publish("t");
        let size = 66 - 2;
        assert!(encode(&mut encoder(false, size + 100), &envelope, None).is_ok());
        let at = |largest| encode(&mut encoder(false, largest), &envelope, None);
        let fits = (1..200).find(|largest| at(*largest).is_ok()).unwrap();
        let sent = at(fits).unwrap();
        assert!(
            sent.contains(&format!(" {fits}\r\n")),
            "headers count: {sent}"
        );
        assert!(at(fits - 1).unwrap_err().contains("with its headers"));

        let mut delete = envelope.clone();
        delete.operation = Operation::SowDeleteByFilter;
        delete.selector = Some("1=1".into());
        assert!(encode(&mut encoder(false, 1_000), &delete, None).is_err());
        let delta = Envelope {
            operation: Operation::DeltaPublish,
            ..envelope.clone()
        };
        assert!(encode(&mut encoder(false, 1_000), &delta, None).is_err());
        let long = Envelope::publish("x".repeat(3_000));
        assert!(encode(&mut encoder(false, 9_000), &long, None).is_err());
        let mut wide = envelope;
        wide.correlation_id = Some("é".repeat(11_000).into());
        assert!(encode(&mut encoder(false, 1 << 20), &wide, None).is_err());
    }

    #[test]
    fn a_topic_behind_another_has_its_own_subject() {
        let mut encoder = encoder(false, 1_000);
        for topic in ["a", "b", "b", "a"] {
            let sent = encode(&mut encoder, &Envelope::publish(topic), None).unwrap();
            assert!(sent.starts_with(&format!("HPUB {topic} ")), "{sent}");
        }
        assert!(encode(&mut encoder, &Envelope::publish(""), None).is_err());
    }
}
