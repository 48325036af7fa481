//! AMPS as a transport keeps what every transport promises.
#![cfg(feature = "testkit")]
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::sync::Arc;
use std::time::Duration;

use amps_client::protocol::{Ack, FrameDecoder, Header, LogonAck, Verb};
use amps_client::session::SessionConfig;
use amps_client::testkit::conformance::{Got, Peer, REASON, Say, Suite};
use amps_client::testkit::{Amps, Wire};
use amps_delivery::{Acks, Transport};

const SECOND: Duration = Duration::from_secs(1);

/// A server in the suite's hands.
struct AmpsPeer {
    wire: Wire,
    decoder: FrameDecoder,
    stream: u64,
    logon: Option<String>,
}

impl Peer for AmpsPeer {
    fn transport(&mut self) -> Box<dyn Transport> {
        let config = SessionConfig {
            client_name: "suite".into(),
            logon_options: None,
            logon_correlation: None,
            heartbeat: Some(SECOND * 10),
            logon_timeout: SECOND * 10,
            command_timeout: SECOND * 10,
            stored: true,
            publish_ids: false,
        };
        Box::new(Amps::new(Arc::new(self.wire.clone()), config))
    }

    fn address(&self) -> String {
        "tcp://server:1/amps/json".to_owned()
    }

    fn acks(&self) -> Acks {
        Acks::Figures
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
        if self.stream != self.wire.stream() {
            self.stream = self.wire.stream();
            self.decoder = FrameDecoder::new();
            self.logon = None;
        }
        self.decoder.push(&self.wire.read());
        let mut got = Vec::new();
        while let Some(frame) = self.decoder.next_frame().unwrap() {
            let (header, body) = Header::parse(&frame).unwrap();
            match header.verb.as_ref().unwrap() {
                Verb::Logon => self.logon = header.command_id.as_deref().map(str::to_owned),
                Verb::Publish => got.push(Got::Message {
                    wire: header.sequence.unwrap(),
                    body: body.to_vec(),
                }),
                // Heartbeats say nothing of messages.
                _ => {}
            }
        }
        got
    }

    fn says(&mut self, say: &Say) -> bool {
        let mut out = Vec::new();
        match say {
            Say::Welcome { mark } => LogonAck {
                command_id: Some(self.logon.as_deref().expect("the client has logged on")),
                sequence: *mark,
                bookmark: None,
                client_name: None,
                reason: None,
                version: Some("5.3"),
            }
            .encode(&mut out)
            .unwrap(),
            Say::Stored(wire) => Ack::persisted(*wire).encode(&mut out).unwrap(),
            Say::Refused(wire) => Ack::refused(Some(*wire), None, REASON)
                .encode(&mut out)
                .unwrap(),
            Say::Nonsense => out.extend(b"\0\0\0\x07nothing"),
            Say::Close => {
                self.wire.close();
                return true;
            }
            // A figure is a mark, and a duplicate is dropped without a word. Nothing is turned away
            // for a while, and nobody is asked for a message by its id.
            _ => return false,
        }
        self.wire.write(&out);
        true
    }
}

#[test]
fn amps_keeps_what_a_transport_promises() {
    let left_out = Suite::new(|| AmpsPeer {
        wire: Wire::new(),
        decoder: FrameDecoder::new(),
        stream: 0,
        logon: None,
    })
    .check();
    assert_eq!(
        left_out,
        [
            "a slow network is no overdue ack",
            "acks may come in any order",
            "what is turned away goes out again, before anything new",
            "what no server can take is refused here",
            "what a new leader does not hold goes out again",
            "a mark in the middle settles what it covers",
            "a duplicate for a number never sent settles nothing",
        ]
    );
}
