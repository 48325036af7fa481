//! JetStream as a transport keeps what every transport promises, in both modes.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Arc, Mutex};

use amps_client::connector::Connector as _;
use amps_client::testkit::Wire;
use amps_client::testkit::conformance::{Got, Peer, REASON, Say, Suite};
use amps_delivery::{Acks, Admits, Connecting, Identity, Transport};
use amps_jetstream::codec::header;
use amps_jetstream::ids::Ids;
use amps_jetstream::{Address, Config, JetStream, Mode, Opener, Opening};
use base64::Engine as _;

/// Streams of bytes to the peer, whatever the address.
struct Over(Wire);

impl Opener for Over {
    fn open<'a>(&'a self, _: &'a Address) -> Opening<'a> {
        Box::pin(async move {
            let uri = "tcp://server:1/amps".parse().unwrap();
            let stream = self.0.connect(&uri).await;
            let stream = stream.map_err(|error| error.to_string())?;
            Ok(Box::new(stream) as _)
        })
    }
}

/// The transport, and whose links it opened last.
struct Spied(JetStream, Arc<Mutex<Option<Ids>>>);

impl Transport for Spied {
    fn kind(&self) -> &'static str {
        self.0.kind()
    }

    fn name(&self, address: &str) -> Result<String, String> {
        self.0.name(address)
    }

    fn admits(&self) -> Option<Arc<dyn Admits>> {
        self.0.admits()
    }

    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a> {
        *self.1.lock().unwrap() = Some(Ids::new(&me.client, me.store));
        self.0.connect(address, me)
    }
}

/// The place of the last message in a stream that holds none any more.
const EMPTY: u64 = 7;

/// A server in the suite's hands.
#[derive(Default)]
struct NatsPeer {
    wire: Wire,
    mode: Mode,
    ids: Arc<Mutex<Option<Ids>>>,
    /// On the latest link: its number, bytes that are no whole frame yet, how often the stream was
    /// asked for, where answers go and what was expected by number.
    link: u64,
    bytes: Vec<u8>,
    asked: usize,
    mark: Option<u64>,
    sent: BTreeMap<u64, (String, Option<u64>)>,
    /// Where answers went on links before.
    before: BTreeMap<u64, String>,
    /// What was ever heard, and what the server said that it stored.
    heard: BTreeMap<u64, String>,
    stored: BTreeSet<u64>,
    /// Ids by their places, and the last place.
    places: BTreeMap<u64, String>,
    last: u64,
    /// A question that waits for what the suite says of these.
    recall: Option<String>,
    open: BTreeSet<u64>,
    holds: Vec<u64>,
}

/// A frame from the client.
enum Line {
    Publish {
        subject: String,
        reply: String,
        headers: Vec<u8>,
        payload: Vec<u8>,
    },
    Ping,
    Other,
}

impl NatsPeer {
    fn new(mode: Mode) -> Self {
        NatsPeer {
            mode,
            ..NatsPeer::default()
        }
    }

    fn next_line(&mut self) -> Option<Line> {
        let end = self.bytes.windows(2).position(|two| two == b"\r\n")?;
        let line = String::from_utf8(self.bytes[..end].to_vec()).unwrap();
        let parts: Vec<&str> = line.split(' ').collect();
        let (headers, total) = match parts[0] {
            "PUB" => (0, parts[3].parse::<usize>().unwrap()),
            "HPUB" => (parts[3].parse().unwrap(), parts[4].parse().unwrap()),
            verb => {
                let ping = verb == "PING";
                self.bytes.drain(..end + 2);
                return Some(if ping { Line::Ping } else { Line::Other });
            }
        };
        let all = end + 2 + total + 2;
        if self.bytes.len() < all {
            return None;
        }
        let frame: Vec<u8> = self.bytes.drain(..all).collect();
        let body = &frame[end + 2..all - 2];
        Some(Line::Publish {
            subject: parts[1].to_owned(),
            reply: parts[2].to_owned(),
            headers: body[..headers].to_vec(),
            payload: body[headers..].to_vec(),
        })
    }

    fn answer(&self, reply: &str, json: &str) {
        let msg = format!("MSG {reply} 1 {}\r\n{json}\r\n", json.len());
        self.wire.write(msg.as_bytes());
    }

    fn id(&self, wire: u64) -> String {
        let mut id = Vec::new();
        let ids = self.ids.lock().unwrap();
        ids.as_ref().unwrap().write(&mut id, wire, 1);
        String::from_utf8(id).unwrap()
    }

    /// What the stream is when a link comes up.
    fn greet(&mut self, reply: &str) {
        self.places.clear();
        self.last = match self.mark {
            None => EMPTY,
            Some(mark) => {
                let mut wires: Vec<u64> = self.heard.range(..=mark).map(|(w, _)| *w).collect();
                if mark > 0 && !wires.contains(&mark) {
                    wires.push(mark);
                }
                for (wire, place) in wires.iter().zip(1..) {
                    self.places.insert(place, self.id(*wire));
                }
                wires.len() as u64
            }
        };
        self.tell_stream(reply);
    }

    fn tell_stream(&self, reply: &str) {
        let first = self
            .places
            .keys()
            .next()
            .map_or(self.last + 1, |first| *first);
        let json = format!(
            "{{\"config\":{{\"name\":\"S\",\"storage\":\"file\",\"max_msg_size\":-1}},\
             \"created\":\"c\",\"state\":{{\"first_seq\":{first},\"last_seq\":{}}}}}",
            self.last
        );
        self.answer(reply, &json);
    }

    fn asks(&mut self, subject: &str, reply: &str, payload: &[u8], got: &mut Vec<Got>) {
        match subject {
            "$JS.API.STREAM.NAMES" => self.answer(reply, "{\"streams\":[\"S\"]}"),
            "$JS.API.STREAM.INFO.S" => {
                self.asked += 1;
                if self.asked == 1 {
                    return self.greet(reply);
                }
                if self.mode == Mode::Chained {
                    return self.tell_stream(reply);
                }
                // It asks for messages, by looking for them itself.
                let heard = self.heard.keys().filter(|wire| !self.stored.contains(wire));
                self.open = heard.copied().collect();
                self.holds.clear();
                self.recall = Some(reply.to_owned());
                got.extend(self.open.iter().map(|wire| Got::Asked { wire: *wire }));
                self.recalled();
            }
            "$JS.API.STREAM.MSG.GET.S" => {
                let asked: serde_json::Value = serde_json::from_slice(payload).unwrap();
                let place = asked["seq"].as_u64().unwrap();
                let json = match self.places.get(&place) {
                    None => "{\"error\":{\"code\":404,\"err_code\":10037}}".to_owned(),
                    Some(id) => {
                        let headers = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n");
                        let engine = base64::engine::general_purpose::STANDARD;
                        let headers = engine.encode(headers);
                        format!("{{\"message\":{{\"seq\":{place},\"hdrs\":\"{headers}\"}}}}")
                    }
                };
                self.answer(reply, &json);
            }
            other => panic!("it asks {other}"),
        }
    }

    /// Answers a look for messages, once the suite said of each whether the stream holds it.
    fn recalled(&mut self) {
        if self.open.is_empty()
            && let Some(reply) = self.recall.take()
        {
            self.places.clear();
            let held = std::mem::take(&mut self.holds);
            for (wire, place) in held.iter().zip(self.last + 1..) {
                self.places.insert(place, self.id(*wire));
            }
            self.last += held.len() as u64;
            self.tell_stream(&reply);
        }
    }

    /// Answers a message, also one of a link that is gone. `false`: there was no such message.
    fn verdict(&mut self, wire: u64, json: impl FnOnce(u64) -> String) -> bool {
        if let Some((reply, expected)) = self.sent.get(&wire).cloned() {
            let place = expected.map_or(self.last + 1, |expected| expected + 1);
            self.answer(&reply, &json(place));
            return true;
        }
        match self.before.get(&wire) {
            Some(reply) => {
                self.answer(reply, &json(1));
                true
            }
            None => false,
        }
    }
}

impl Peer for NatsPeer {
    fn transport(&mut self) -> Box<dyn Transport> {
        let mut config = Config::new("orders");
        config.mode = self.mode;
        let jetstream = JetStream::new(config, Arc::new(Over(self.wire.clone())));
        Box::new(Spied(jetstream, self.ids.clone()))
    }

    fn address(&self) -> String {
        "nats://server:4222".to_owned()
    }

    fn acks(&self) -> Acks {
        Acks::Single
    }

    fn accepts(&mut self, yes: bool) {
        self.wire.accepts(yes);
    }

    fn takes(&mut self, bytes: usize) {
        self.wire.takes(bytes);
    }

    fn taken(&self) -> u64 {
        self.wire.taken()
    }

    fn open(&self) -> usize {
        self.wire.open()
    }

    fn hears(&mut self) -> Vec<Got> {
        if self.link != self.wire.stream() {
            self.link = self.wire.stream();
            self.bytes.clear();
            self.asked = 0;
            self.recall = None;
            for (wire, (reply, _)) in std::mem::take(&mut self.sent) {
                self.before.insert(wire, reply);
            }
        }
        self.bytes.extend(self.wire.read());
        let mut got = Vec::new();
        let mut lines = VecDeque::new();
        while let Some(line) = self.next_line() {
            lines.push_back(line);
        }
        for line in lines {
            match line {
                Line::Ping => self.wire.write(b"PONG\r\n"),
                Line::Publish {
                    subject,
                    reply,
                    headers,
                    payload,
                } if subject == "orders" => {
                    let id = header(&headers, "Nats-Msg-Id").unwrap().to_owned();
                    let ours = self.ids.lock().unwrap().as_ref().unwrap().read(&id);
                    let wire = ours.unwrap().wire;
                    let expected = header(&headers, "Nats-Expected-Last-Sequence");
                    let expected = expected.map(|place| place.parse().unwrap());
                    assert_eq!(expected.is_some(), self.mode == Mode::Chained);
                    self.sent.insert(wire, (reply, expected));
                    self.heard.insert(wire, id);
                    got.push(Got::Message {
                        wire,
                        body: payload,
                    });
                }
                Line::Publish {
                    subject,
                    reply,
                    payload,
                    ..
                } => self.asks(&subject, &reply, &payload, &mut got),
                Line::Other => {}
            }
        }
        got
    }

    fn says(&mut self, say: &Say) -> bool {
        let error = |code: u16, err_code: u32| {
            format!(
                "{{\"error\":{{\"code\":{code},\"err_code\":{err_code},\
                 \"description\":\"{REASON}\"}},\"stream\":\"S\",\"seq\":0}}"
            )
        };
        match say {
            Say::Welcome { mark } => {
                if self.mode == Mode::Unchained && mark.is_some_and(|mark| mark > 0) {
                    return false;
                }
                self.mark = *mark;
                let info = "INFO {\"headers\":true,\"max_payload\":400000}\r\n";
                self.wire.write(info.as_bytes());
                true
            }
            Say::Stored(wire) => {
                let stored = |place| format!("{{\"stream\":\"S\",\"seq\":{place}}}");
                let any = self.verdict(*wire, stored);
                if any && self.stored.insert(*wire) {
                    let expected = self.sent.get(wire).and_then(|(_, expected)| *expected);
                    self.last = self.last.max(expected.unwrap_or(self.last) + 1);
                    let id = self.id(*wire);
                    self.places.insert(self.last, id);
                }
                any
            }
            Say::Duplicate(wire) => self.verdict(*wire, |place| {
                format!("{{\"stream\":\"S\",\"seq\":{place},\"duplicate\":true}}")
            }),
            Say::Refused(wire) => self.verdict(*wire, |_| error(400, 10_054)),
            Say::TryAgain(wire) => self.verdict(*wire, |_| error(503, 10_077)),
            Say::Found(wire) | Say::Absent(wire) => {
                if !self.open.remove(wire) {
                    return false;
                }
                if matches!(say, Say::Found(_)) {
                    self.holds.push(*wire);
                }
                self.recalled();
                true
            }
            Say::Nonsense => {
                self.wire.write(b"HELO\r\n");
                true
            }
            Say::Close => {
                self.wire.close();
                true
            }
            // Nothing is said of many messages at once while a link is up.
            _ => false,
        }
    }

    fn too_large(&self) -> Option<usize> {
        Some(500_000)
    }
}

/// What a link of NATS has no word for: an answer goes where its message said, and so names none
/// that was never sent.
const NO_WORD: [&str; 3] = [
    "a mark in the middle settles what it covers",
    "an ack for a number never sent settles nothing",
    "a duplicate for a number never sent settles nothing",
];

#[test]
fn chained_it_keeps_what_a_transport_promises() {
    let left_out = Suite::new(|| NatsPeer::new(Mode::Chained)).check();
    assert_eq!(left_out, NO_WORD);
}

#[test]
fn unchained_it_keeps_what_a_transport_promises() {
    let left_out = Suite::new(|| NatsPeer::new(Mode::Unchained)).check();
    let marks = [
        "a mark at the beginning settles what it covers",
        "a mark in the middle settles what it covers",
        "a mark above what was sent settles nothing",
    ];
    assert_eq!(left_out, [&marks[..], &NO_WORD[1..]].concat());
}
