//! The link at the level of bytes: a server that says what a test wants, in virtual time.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use amps_delivery::{AckWish, Evidence, Heard, Identity, Link, LinkEnd, Now, Room, Sink, ToSend};
use amps_store::{Envelope, StoredMessage};
use base64::Engine as _;
use proptest::prelude::*;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{Config, Create, JetStreamLink, Mode};

/// The two ends of a stream of bytes.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Ends>>);

#[derive(Default)]
struct Ends {
    to_client: VecDeque<u8>,
    from_client: Vec<u8>,
    closed: bool,
    /// How much goes through at once; 0: everything.
    chunk: usize,
    /// How much more the network takes from the client; none: everything.
    takes: Option<usize>,
}

impl AsyncRead for Wire {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut ends = self.0.lock().unwrap();
        if ends.to_client.is_empty() {
            return match ends.closed {
                true => Poll::Ready(Ok(())),
                false => Poll::Pending,
            };
        }
        let most = match ends.chunk {
            0 => usize::MAX,
            chunk => chunk,
        };
        let count = ends.to_client.len().min(buffer.remaining()).min(most);
        let bytes: Vec<u8> = ends.to_client.drain(..count).collect();
        buffer.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut ends = self.0.lock().unwrap();
        let count = bytes.len().min(ends.takes.unwrap_or(usize::MAX));
        if count == 0 {
            return Poll::Pending;
        }
        if let Some(takes) = &mut ends.takes {
            *takes -= count;
        }
        ends.from_client.extend_from_slice(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// What was heard, in words.
#[derive(Default)]
struct Ear(Vec<String>);

impl Sink for Ear {
    fn heard(&mut self, heard: Heard<'_>) {
        self.0.push(match heard {
            Heard::Up(up) => {
                let order = up.capabilities.order;
                let largest = up.capabilities.largest.unwrap_or(0);
                format!("up {:?} {order:?} {largest}", up.resume)
            }
            Heard::Changed(capabilities) => format!("changed {:?}", capabilities.largest),
            Heard::One { wire, evidence } => match evidence {
                Evidence::Stored => format!("stored {wire}"),
                Evidence::Duplicate => format!("duplicate {wire}"),
            },
            Heard::TryAgain { wire, at_once, .. } => match at_once {
                true => format!("again at once {wire}"),
                false => format!("again {wire}"),
            },
            Heard::Refused {
                wire,
                may_be_stored,
                ..
            } => match may_be_stored {
                true => format!("refused {wire}, may be stored"),
                false => format!("refused {wire}"),
            },
            Heard::LineStopped { .. } => "line stopped".to_owned(),
            Heard::Through { wire } => format!("through {wire}"),
            Heard::Found { wire } => format!("found {wire}"),
            Heard::Absent { wire } => format!("absent {wire}"),
            other => format!("{other:?}"),
        });
    }
}

struct Rig {
    wire: Wire,
    link: JetStreamLink,
    now: Now,
    ear: Ear,
    through: Option<u64>,
}

const INFO: &str = "INFO {\"version\":\"2.14.0\",\"headers\":true,\"max_payload\":1000}\r\n";

impl Rig {
    fn with(config: Config, first_unsettled: u64, chunk: usize) -> Self {
        let wire = Wire::default();
        wire.0.lock().unwrap().chunk = chunk;
        let me = Identity {
            client: "me".to_owned(),
            store: 1,
            may_have_sent: u64::MAX,
            first_unsettled: Some(first_unsettled),
        };
        let now = Now::default();
        let stream = Box::new(wire.clone());
        let link = JetStreamLink::new(stream, config, me, "x");
        Rig {
            wire,
            link,
            now,
            ear: Ear::default(),
            through: None,
        }
    }

    fn new(mode: Mode) -> Self {
        Rig::with(config(mode), 1, 0)
    }

    /// Polls until there is nothing to do.
    fn poll(&mut self) -> Result<(), LinkEnd> {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            match self.link.poll(&mut cx, self.now, &mut self.ear) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Ok(progress)) => {
                    self.through = progress.through.or(self.through);
                }
                Poll::Ready(Err(end)) => return Err(end),
            }
        }
        panic!("it never rests");
    }

    /// The server says something; what the client wrote by then.
    fn say(&mut self, bytes: &str) -> Result<String, LinkEnd> {
        self.wire
            .0
            .lock()
            .unwrap()
            .to_client
            .extend(bytes.as_bytes());
        self.poll()?;
        Ok(self.wrote())
    }

    fn wrote(&mut self) -> String {
        let bytes = std::mem::take(&mut self.wire.0.lock().unwrap().from_client);
        String::from_utf8(bytes).unwrap()
    }

    fn answer(&mut self, name: &str, json: &str) -> Result<String, LinkEnd> {
        self.say(&msg(name, json))
    }

    /// What was heard since.
    fn heard(&mut self) -> Vec<String> {
        std::mem::take(&mut self.ear.0)
    }

    /// Up to where messages may go out.
    fn up(&mut self, last: u64) -> String {
        self.say(INFO).unwrap();
        self.say("PONG\r\n").unwrap();
        self.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
        self.answer("q2", &stream(last)).unwrap()
    }

    fn send(&mut self, wire: u64) {
        self.send_as(wire, false);
    }

    fn send_as(&mut self, wire: u64, again: bool) {
        assert!(!self.link.room().is_none());
        with(wire, again, |message| {
            self.link.send(self.now, message).unwrap();
        });
    }

    fn pass(&mut self, time: Duration) -> Result<String, LinkEnd> {
        self.now.at += time;
        self.poll()?;
        Ok(self.wrote())
    }
}

fn with<T>(wire: u64, again: bool, use_it: impl FnOnce(&ToSend<'_>) -> T) -> T {
    let mut stored = StoredMessage::new();
    let mut envelope = Envelope::publish("t");
    envelope.published_at = 36;
    stored.set(wire, &envelope, b"x").unwrap();
    use_it(&ToSend {
        sequence: wire,
        wire,
        again,
        ack: AckWish::Kept,
        message: stored.as_ref(),
    })
}

fn config(mode: Mode) -> Config {
    let mut config = Config::new("t");
    config.mode = mode;
    config
}

fn msg(name: &str, json: &str) -> String {
    format!("MSG _INBOX.x.{name} 1 {}\r\n{json}\r\n", json.len())
}

fn nobody(name: &str) -> String {
    format!("HMSG _INBOX.x.{name} 1 16 16\r\nNATS/1.0 503\r\n\r\n\r\n")
}

fn stream(last: u64) -> String {
    format!(
        "{{\"config\":{{\"name\":\"S\",\"storage\":\"file\",\"num_replicas\":1,\
         \"max_msg_size\":-1}},\"created\":\"c\",\
         \"state\":{{\"first_seq\":1,\"last_seq\":{last}}}}}"
    )
}

/// A stored message with this id.
fn stored(place: u64, id: &str) -> String {
    let headers = format!("NATS/1.0\r\nNats-Msg-Id: {id}\r\n\r\n");
    let headers = base64::engine::general_purpose::STANDARD.encode(headers);
    format!(
        "{{\"message\":{{\"subject\":\"t\",\"seq\":{place},\"hdrs\":\"{headers}\",\
         \"time\":\"2026-11-30T20:09:38Z\"}}}}"
    )
}

fn ok(place: u64) -> String {
    format!("{{\"stream\":\"S\",\"seq\":{place}}}")
}

fn error(code: u16, err_code: u32) -> String {
    format!(
        "{{\"error\":{{\"code\":{code},\"err_code\":{err_code},\"description\":\"d\"}},\
         \"stream\":\"S\",\"seq\":0}}"
    )
}

#[test]
fn a_link_says_these_bytes() {
    let mut rig = Rig::new(Mode::Chained);
    assert_eq!(rig.say("").unwrap(), "", "the server speaks first");
    let hello = rig.say(INFO).unwrap();
    let (connect, rest) = hello.split_once("\r\n").unwrap();
    assert!(connect.starts_with("CONNECT {") && connect.contains("\"no_responders\":true"));
    assert_eq!(rest, "SUB _INBOX.x.> 1\r\nPING\r\n");
    let asked = rig.say("PONG\r\n").unwrap();
    let names = "PUB $JS.API.STREAM.NAMES _INBOX.x.q1 15\r\n{\"subject\":\"t\"}\r\n";
    assert_eq!(asked, names);
    let asked = rig.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
    assert_eq!(asked, "PUB $JS.API.STREAM.INFO.S _INBOX.x.q2 0\r\n\r\n");
    assert_eq!(rig.link.room(), Room::NONE);
    assert_eq!(rig.answer("q2", &stream(0)).unwrap(), "");
    assert_eq!(rig.heard(), ["up HighWater(0) Kept 1000"]);
    rig.send(1);
    rig.send(2);
    rig.poll().unwrap();
    assert_eq!(rig.through, Some(2));
    let publish = |name: u64, wire: u64| {
        format!(
            "HPUB t _INBOX.x.{name} 93 94\r\nNATS/1.0\r\nNats-Msg-Id: me:1:{wire}:10\r\n\
             Nats-Expected-Stream: S\r\nNats-Expected-Last-Sequence: {name}\r\n\r\nx\r\n"
        )
    };
    assert_eq!(rig.wrote(), publish(0, 1) + &publish(1, 2));
    rig.answer("0", &ok(1)).unwrap();
    rig.answer("1", &ok(2)).unwrap();
    assert_eq!(rig.heard(), ["stored 1", "stored 2"]);
    assert_eq!(rig.say("PING\r\n").unwrap(), "PONG\r\n");
}

#[test]
fn a_domain_and_an_inbox_of_its_own_are_used() {
    let mut config = config(Mode::Unchained);
    config.domain = Some("hub".to_owned());
    config.stream = Some("S".to_owned());
    config.inbox_prefix = "_ME".to_owned();
    let mut rig = Rig::with(config, 1, 0);
    assert!(rig.say(INFO).unwrap().contains("SUB _ME.x.> 1\r\n"));
    let asked = rig.say("PONG\r\n").unwrap();
    assert_eq!(asked, "PUB $JS.hub.API.STREAM.INFO.S _ME.x.q1 0\r\n\r\n");
}

#[test]
fn a_stream_is_made_where_there_is_none() {
    let mut config = config(Mode::Auto);
    config.create = Some(Create {
        name: "S".to_owned(),
        replicas: 3,
    });
    let mut rig = Rig::with(config, 1, 0);
    rig.say(INFO).unwrap();
    rig.say("PONG\r\n").unwrap();
    let asked = rig.answer("q1", "{\"streams\":null}").unwrap();
    assert!(
        asked.starts_with("PUB $JS.API.STREAM.CREATE.S _INBOX.x.q2 "),
        "{asked}"
    );
    assert!(asked.contains("\"description\":\"for me:1: alone\""));
    let asked = rig.answer("q2", &stream(0)).unwrap();
    assert!(asked.starts_with("PUB $JS.API.STREAM.INFO.S _INBOX.x.q3 "));
    let ours = stream(0).replace("\"name\"", "\"description\":\"for me:1: alone\",\"name\"");
    rig.answer("q3", &ours).unwrap();
    assert_eq!(rig.heard(), ["up HighWater(0) Kept 1000"]);
}

/// Where a chain stands is read from the stream: all of ours down to what is settled.
#[test]
fn a_chain_goes_on_behind_the_last_message_of_ours() {
    for (ids, heard) in [
        (
            ["me:1:4:10", "me:1:5:10", "me:1:6:10"],
            "up HighWater(6) Kept 1000",
        ),
        // One was refused, in between.
        (
            ["me:1:3:10", "me:1:5:10", "me:1:7:10"],
            "up HighWater(7) Kept 1000",
        ),
        // Somebody else's, and of another store: nothing is known as a whole.
        (["me:1:4:10", "x", "me:1:6:10"], "up ById MayOvertake 1000"),
        (
            ["me:1:4:10", "me:1:5:10", "me:2:6:10"],
            "up ById MayOvertake 1000",
        ),
        // Not in order.
        (
            ["me:1:4:10", "me:1:6:10", "me:1:5:10"],
            "up ById MayOvertake 1000",
        ),
    ] {
        let alone = "\"description\":\"for me:1: alone\",\"name\"";
        for mode in [Mode::Auto, Mode::Chained] {
            let mut rig = Rig::with(config(mode), 5, 0);
            rig.say(INFO).unwrap();
            rig.say("PONG\r\n").unwrap();
            rig.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
            let asked = rig
                .answer("q2", &stream(3).replace("\"name\"", alone))
                .unwrap();
            let places: Vec<&str> = asked.matches("{\"seq\":").collect();
            assert_eq!(places.len(), 3, "{asked}");
            let mut end = Ok(());
            for place in [1, 3, 2] {
                let name = format!("w2.{place}");
                let answered = rig.answer(&name, &stored(place, ids[place as usize - 1]));
                end = end.and(answered.map(drop));
            }
            if mode == Mode::Chained && heard.contains("ById") {
                assert!(matches!(end, Err(LinkEnd::Unusable(_))), "{end:?}");
                continue;
            }
            end.unwrap();
            assert_eq!(rig.heard(), [heard], "{ids:?}");
        }
    }
}

/// An absent id is not zero.
#[test]
fn a_chain_whose_last_messages_are_gone_knows_nothing() {
    let mut rig = Rig::with(config(Mode::Chained), 5, 0);
    rig.up(2);
    let gone = "{\"error\":{\"code\":404,\"err_code\":10037,\"description\":\"d\"}}";
    rig.answer("w2.2", gone).unwrap();
    rig.answer("w2.1", gone).unwrap();
    assert_eq!(rig.heard(), ["up Unknown Kept 1000"]);
    // Then a refusal of what was sent before says that too little is known.
    rig.send_as(5, true);
    rig.answer("0", &error(400, 10_054)).unwrap();
    assert_eq!(rig.heard(), ["refused 5, may be stored"]);
}

#[test]
fn one_refusal_breaks_a_chain_and_the_rest_goes_out_again_at_once() {
    let mut rig = Rig::new(Mode::Chained);
    rig.up(0);
    for wire in 1..=4 {
        rig.send(wire);
    }
    rig.heard();
    rig.answer("0", &ok(1)).unwrap();
    rig.answer("1", &error(400, 10_054)).unwrap();
    assert!(rig.link.room().is_none(), "nothing goes out behind it");
    assert!(
        !rig.wrote().contains("STREAM.INFO"),
        "there is more under way"
    );
    rig.answer("2", &error(400, 10_071)).unwrap();
    let asked = rig.answer("3", &error(400, 10_071)).unwrap();
    assert_eq!(
        rig.heard(),
        [
            "stored 1",
            "refused 2",
            "again at once 3",
            "again at once 4"
        ]
    );
    assert_eq!(asked, "PUB $JS.API.STREAM.INFO.S _INBOX.x.q3 0\r\n\r\n");
    rig.answer("q3", &stream(1)).unwrap();
    assert!(rig.link.room().is_none());
    rig.answer("w3.1", &stored(1, "me:1:1:10")).unwrap();
    assert_eq!(rig.heard(), Vec::<String>::new());
    rig.send(3);
    rig.poll().unwrap();
    assert!(rig.wrote().contains("Nats-Expected-Last-Sequence: 1\r\n"));
}

/// What an earlier link wrote arrives late: the place is taken, by the very message.
#[test]
fn a_place_that_is_taken_by_our_own_message_is_a_mark() {
    let mut rig = Rig::new(Mode::Chained);
    rig.up(0);
    rig.heard();
    rig.send(1);
    rig.send(2);
    rig.answer("0", &error(400, 10_071)).unwrap();
    rig.answer("1", &ok(2)).unwrap();
    assert_eq!(rig.heard(), ["again 1", "stored 2"]);
    rig.answer("q3", &stream(2)).unwrap();
    rig.answer("w3.1", &stored(1, "me:1:1:10")).unwrap();
    rig.answer("w3.2", &stored(2, "me:1:2:10")).unwrap();
    assert_eq!(rig.heard(), ["through 2"]);

    // Or by somebody else's.
    rig.send(3);
    rig.send(4);
    rig.answer("2", &error(400, 10_071)).unwrap();
    rig.answer("3", &ok(4)).unwrap();
    rig.heard();
    rig.answer("q4", &stream(4)).unwrap();
    rig.answer("w4.4", &stored(4, "me:1:4:10")).unwrap();
    let end = rig.answer("w4.3", &stored(3, "x")).unwrap_err();
    assert!(matches!(end, LinkEnd::Unusable(_)), "{end:?}");
    assert!(rig.heard().is_empty(), "nothing is settled by that");
}

#[test]
fn each_verdict_is_told_and_each_message_has_one() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.up(9);
    assert_eq!(rig.heard(), ["up ById MayOvertake 1000"]);
    for wire in 1..=8 {
        rig.send_as(wire, wire > 4);
    }
    rig.poll().unwrap();
    assert!(!rig.wrote().contains("Expected-Last"));
    // In any order, doubled, and late.
    rig.answer("1", &ok(11)).unwrap();
    rig.answer("1", &error(400, 10_054)).unwrap();
    rig.answer("0", "{\"stream\":\"S\",\"seq\":3,\"duplicate\":true}")
        .unwrap();
    rig.say(&nobody("2")).unwrap();
    rig.answer("3", &error(400, 10_054)).unwrap();
    rig.answer("4", &error(400, 10_054)).unwrap();
    rig.answer("5", &error(503, 10_077)).unwrap();
    rig.answer("6", &error(400, 10_109)).unwrap();
    // Neither of these is about a message.
    rig.answer("7", "+ACK").unwrap();
    rig.answer("7", "{\"stream\":\"T\",\"seq\":9}").unwrap();
    rig.answer("99", &ok(99)).unwrap();
    rig.answer("-1", &ok(99)).unwrap();
    rig.say("MSG elsewhere 1 0\r\n\r\n").unwrap();
    let expected = [
        "stored 2",
        "duplicate 1",
        "again 3",
        "refused 4",
        "refused 5, may be stored",
        "again 6",
        "again 7",
        "line stopped",
    ];
    assert_eq!(rig.heard(), expected);
    rig.answer("7", &ok(12)).unwrap();
    assert_eq!(rig.heard(), ["stored 8"]);
    assert!(!rig.link.room().is_none());
}

#[test]
fn messages_are_found_by_their_ids() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.up(3);
    rig.heard();
    with(5, true, |five| {
        with(6, true, |six| rig.link.recall(rig.now, &[*five, *six]));
    });
    assert!(rig.link.room().is_none(), "one question after the other");
    rig.poll().unwrap();
    assert_eq!(
        rig.wrote(),
        "PUB $JS.API.STREAM.INFO.S _INBOX.x.q3 0\r\n\r\n"
    );
    rig.answer("q3", &stream(4)).unwrap();
    for (place, id) in [
        (4, "me:1:6:10"),
        (3, "x"),
        (2, "me:1:9:10"),
        (1, "me:1:3:10"),
    ] {
        rig.answer(&format!("w3.{place}"), &stored(place, id))
            .unwrap();
    }
    assert_eq!(rig.heard(), ["absent 5", "found 6"]);
    // What was found holds until something is sent.
    with(9, true, |nine| rig.link.recall(rig.now, &[*nine]));
    assert!(rig.link.room().is_none(), "it is answered first");
    rig.poll().unwrap();
    assert_eq!(
        (rig.heard(), rig.wrote()),
        (vec!["found 9".to_owned()], String::new())
    );
    rig.send(10);
    rig.answer("0", &ok(5)).unwrap();
    with(9, true, |nine| rig.link.recall(rig.now, &[*nine]));
    rig.poll().unwrap();
    assert!(rig.wrote().contains("STREAM.INFO"));
}

#[test]
fn a_stream_that_was_made_anew_is_left() {
    let mut rig = Rig::new(Mode::Chained);
    rig.up(0);
    rig.send(1);
    rig.answer("0", &error(400, 10_071)).unwrap();
    let anew = stream(0).replace("\"created\":\"c\"", "\"created\":\"d\"");
    let end = rig.answer("q3", &anew).unwrap_err();
    assert!(
        matches!(&end, LinkEnd::Unusable(why) if why.contains("made anew")),
        "{end:?}"
    );
}

/// A look that takes longer than an answer may says what it found.
#[test]
fn a_long_look_for_messages_is_cut_short() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.up(3);
    rig.heard();
    with(5, true, |five| {
        with(6, true, |six| rig.link.recall(rig.now, &[*five, *six]));
    });
    rig.poll().unwrap();
    rig.pass(Duration::from_secs(2)).unwrap();
    rig.answer("q3", &stream(900)).unwrap();
    rig.pass(Duration::from_secs(2)).unwrap();
    rig.answer("w3.900", &stored(900, "me:1:6:10")).unwrap();
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(5)));
    rig.pass(Duration::from_secs(1)).unwrap();
    assert_eq!(rig.heard(), ["absent 5", "found 6"]);
    // What comes late is nothing.
    rig.answer("w3.899", &stored(899, "me:1:5:10")).unwrap();
    assert!(rig.heard().is_empty());
    assert!(!rig.link.room().is_none());
}

#[test]
fn a_stream_without_a_leader_is_asked_again_until_it_is_too_long() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.say(INFO).unwrap();
    rig.say("PONG\r\n").unwrap();
    rig.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
    assert_eq!(rig.say(&nobody("q2")).unwrap(), "");
    let at = rig.link.deadline().unwrap();
    assert_eq!(at, Duration::from_millis(100));
    let asked = rig.pass(at).unwrap();
    assert_eq!(asked, "PUB $JS.API.STREAM.INFO.S _INBOX.x.q3 0\r\n\r\n");
    // The answer to the first question comes late.
    rig.answer("q2", &stream(0)).unwrap();
    assert!(rig.heard().is_empty());
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(5)));
    let end = rig.pass(Duration::from_secs(5)).unwrap_err();
    assert!(
        matches!(&end, LinkEnd::Unusable(why) if why.contains("no leader")),
        "{end:?}"
    );
}

#[test]
fn a_server_that_says_nothing_is_left() {
    let mut rig = Rig::new(Mode::Unchained);
    assert_eq!(rig.link.deadline(), Some(Duration::ZERO));
    rig.now.at = Duration::from_secs(60);
    rig.poll().unwrap();
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(65)));
    let end = rig.pass(Duration::from_secs(5));
    assert_eq!(end, Err(LinkEnd::LogonTimeout));

    let mut rig = Rig::new(Mode::Unchained);
    rig.up(0);
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(15)));
    assert_eq!(rig.pass(Duration::from_secs(15)).unwrap(), "PING\r\n");
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(30)));
    rig.now.at += Duration::from_secs(14);
    rig.say("PONG\r\n").unwrap();
    assert_eq!(rig.link.deadline(), Some(Duration::from_secs(44)));
    assert_eq!(rig.pass(Duration::from_secs(15)).unwrap(), "PING\r\n");
    assert_eq!(
        rig.pass(Duration::from_secs(15)),
        Err(LinkEnd::HeartbeatLost)
    );
}

#[test]
fn what_a_server_says_of_errors_ends_the_link_or_stops_the_line() {
    let said = |up: bool, text: &str| {
        let mut rig = Rig::new(Mode::Unchained);
        match up {
            true => drop(rig.up(0)),
            false => drop(rig.say(INFO).unwrap()),
        }
        rig.heard();
        let end = rig.say(&format!("-ERR '{text}'\r\n")).map(drop);
        (end, rig.heard())
    };
    let (end, heard) = said(true, "Permissions Violation for Publish to \"t\"");
    assert_eq!((end, heard), (Ok(()), vec!["line stopped".to_owned()]));
    for (up, text) in [
        (
            true,
            "Permissions Violation for Publish to \"$JS.API.STREAM.INFO.S\"",
        ),
        (
            false,
            "Permissions Violation for Publish to \"$JS.API.STREAM.NAMES\"",
        ),
        (
            false,
            "Permissions Violation for Subscription to \"_INBOX.x.>\"",
        ),
    ] {
        let (end, _) = said(up, text);
        assert!(matches!(end, Err(LinkEnd::Unusable(_))), "{text}: {end:?}");
    }
    for text in ["Authorization Violation", "User Authentication Expired"] {
        let (end, _) = said(false, text);
        assert!(
            matches!(end, Err(LinkEnd::LogonRefused(_))),
            "{text}: {end:?}"
        );
    }
    let (end, _) = said(true, "Stale Connection");
    assert!(matches!(end, Err(LinkEnd::Io(_))), "{end:?}");
}

#[test]
fn servers_and_streams_that_are_of_no_use_are_told_apart() {
    let greeted = |info: &str| Rig::new(Mode::Auto).say(info).map(drop);
    let unusable = |end| matches!(end, Err(LinkEnd::Unusable(_)));
    assert!(unusable(greeted(
        "INFO {\"version\":\"2.1.0\",\"headers\":false}\r\n"
    )));
    assert!(unusable(greeted(
        "INFO {\"headers\":true,\"tls_required\":true}\r\n"
    )));
    assert!(matches!(greeted("INFO x\r\n"), Err(LinkEnd::Protocol(_))));
    assert!(matches!(greeted("HELO\r\n"), Err(LinkEnd::Protocol(_))));

    let named = |answer: String| {
        let mut rig = Rig::new(Mode::Auto);
        rig.say(INFO).unwrap();
        rig.say("PONG\r\n").unwrap();
        rig.say(&answer).map(drop)
    };
    assert!(unusable(named(nobody("q1"))));
    assert!(unusable(named(msg("q1", "{\"streams\":[]}"))));
    assert!(unusable(named(msg("q1", "{\"streams\":[\"a.b\"]}"))));
    assert!(unusable(named(msg("q1", &error(503, 10_076)))));
    assert!(unusable(named(msg("q1", "x"))));

    for wrong in [
        "\"no_ack\":true",
        "\"sealed\":true",
        "\"mirror\":{\"name\":\"T\"}",
    ] {
        let mut rig = Rig::new(Mode::Auto);
        rig.say(INFO).unwrap();
        rig.say("PONG\r\n").unwrap();
        rig.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
        let with = stream(0).replace("\"num_replicas\":1", wrong);
        assert!(unusable(rig.answer("q2", &with).map(drop)), "{wrong}");
        assert!(rig.heard().is_empty());
    }
}

#[test]
fn limits_are_the_smaller_of_the_servers_and_the_streams_and_may_change() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.say(INFO).unwrap();
    rig.say("PONG\r\n").unwrap();
    rig.answer("q1", "{\"streams\":[\"S\"]}").unwrap();
    let small = stream(0).replace("\"max_msg_size\":-1", "\"max_msg_size\":300");
    rig.answer("q2", &small).unwrap();
    assert_eq!(rig.heard(), ["up HighWater(0) MayOvertake 300"]);
    rig.say("INFO {\"headers\":true,\"max_payload\":60}\r\n")
        .unwrap();
    assert_eq!(rig.heard(), ["changed Some(60)"]);
    let why = with(1, false, |message| rig.link.send(rig.now, message)).unwrap_err();
    assert!(why.why.contains("takes 60"), "{why:?}");
    rig.poll().unwrap();
    assert_eq!(rig.wrote(), "", "nothing of it goes out");
    rig.say("INFO {\"headers\":true,\"max_payload\":60}\r\n")
        .unwrap();
    assert!(rig.heard().is_empty(), "nothing changed");
}

#[test]
fn a_lame_server_gets_nothing_new_and_is_left_when_all_is_answered() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.up(0);
    rig.send(1);
    rig.say("INFO {\"headers\":true,\"max_payload\":1000,\"ldm\":true}\r\n")
        .unwrap();
    assert!(rig.link.room().is_none());
    assert_eq!(rig.answer("0", &ok(1)), Err(LinkEnd::Closed));
    assert!(rig.heard().contains(&"stored 1".to_owned()));
}

#[test]
fn no_more_is_under_way_than_the_window_and_the_network_take() {
    let mut config = config(Mode::Unchained);
    config.window = 3;
    let mut rig = Rig::with(config, 1, 0);
    rig.up(0);
    for wire in 1..=3 {
        assert_eq!(rig.link.room().messages, 4 - wire as usize);
        rig.send(wire);
    }
    assert!(rig.link.room().is_none());
    rig.answer("1", &ok(2)).unwrap();
    assert!(rig.link.room().is_none(), "the first is still open");
    rig.answer("0", &ok(1)).unwrap();
    assert_eq!(rig.link.room().messages, 2);

    let mut rig = Rig::new(Mode::Unchained);
    rig.up(0);
    rig.wire.0.lock().unwrap().takes = Some(0);
    let mut sent = 0;
    while !rig.link.room().is_none() {
        sent += 1;
        rig.send(sent);
    }
    rig.poll().unwrap();
    assert_eq!((rig.wrote(), rig.through), (String::new(), None));
    assert!((100..2_000).contains(&sent), "{sent}");
    // A message is written when its last byte is.
    rig.wire.0.lock().unwrap().takes = Some(105);
    rig.poll().unwrap();
    let wrote = rig.wrote();
    assert_eq!((wrote.len(), rig.through), (105, Some(1)), "{wrote}");
    rig.wire.0.lock().unwrap().takes = None;
    rig.poll().unwrap();
    assert_eq!(rig.through, Some(sent));
}

#[test]
fn the_end_of_the_stream_is_told() {
    let mut rig = Rig::new(Mode::Unchained);
    rig.up(0);
    rig.send(1);
    let last = msg("0", &ok(1));
    rig.wire.0.lock().unwrap().closed = true;
    assert_eq!(rig.say(&last), Err(LinkEnd::Closed));
    assert!(
        rig.heard().contains(&"stored 1".to_owned()),
        "it was read before"
    );
    let mut rig = Rig::new(Mode::Unchained);
    rig.wire.0.lock().unwrap().closed = true;
    assert_eq!(rig.say("INFO {\"he"), Err(LinkEnd::Truncated));
}

proptest! {
    /// However bytes are chunked, the same is heard, and the same is said.
    #[test]
    fn chunks_change_nothing(chunk in 1..200_usize) {
        let run = |chunk: usize| {
            let mut rig = Rig::with(config(Mode::Chained), 5, chunk);
            let mut said = rig.up(3);
            for place in 1..=3 {
                let id = format!("me:1:{}:10", place + 3);
                said += &rig.answer(&format!("w2.{place}"), &stored(place, &id)).unwrap();
            }
            for wire in 7..=12 {
                rig.send(wire);
            }
            let answers = msg("0", &ok(4)) + &nobody("1") + &msg("2", &error(400, 10_071))
                + &msg("3", &error(400, 10_071)) + "PING\r\n" + &msg("5", &error(400, 10_071))
                + &msg("4", &error(400, 10_071));
            said += &rig.say(&answers).unwrap();
            said += &rig.answer("q3", &stream(4)).unwrap();
            (said, rig.heard())
        };
        prop_assert_eq!(run(chunk), run(0));
    }

    /// No server can make it panic, or keep it busy for ever.
    #[test]
    fn no_server_does_harm(bytes in prop::collection::vec(any::<u8>(), 0..300), at in 0..900_usize) {
        let mut good = INFO.to_owned() + "PONG\r\n" + &msg("q1", "{\"streams\":[\"S\"]}");
        good += &(msg("q2", &stream(2)) + &msg("w2.2", &stored(2, "me:1:2:10")));
        good += &(msg("w2.1", &stored(1, "me:1:1:10")) + &msg("0", &ok(3)));
        let mut good = good.into_bytes();
        for (to, from) in good.iter_mut().skip(at).zip(bytes) {
            *to = from;
        }
        let mut rig = Rig::with(config(Mode::Chained), 1, 0);
        rig.wire.0.lock().unwrap().to_client.extend(good);
        let _ = rig.poll();
    }
}
