//! Targets of the client: what a server may send, and where it may be.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::time::Duration;

use amps_client::delivery::{Config, Delivery, Input, Now, Output, RebasePolicy, Room, ToSend};
use amps_client::protocol::{
    AckKinds, Command, FrameDecoder, Header, LENGTH_BYTES, Publish, SowRecords,
};
use amps_client::session::{Credentials, Received, Session, SessionConfig};
use amps_client::uri::Uri;
use amps_client::{DeliveredKind, Request, Subscribe};
use amps_store::{Batch, Envelope, Options, PublishStore, Store};
use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;

use crate::bounded;

/// Any stream is cut into the same frames however it arrives; any frame has a header or an
/// error inside it; a header that was read is read again from what it is written as.
pub fn protocol(data: &[u8]) {
    bounded((2 << 20) + 32 * data.len(), || {
        let Some((&how, stream)) = data.split_first() else {
            return;
        };
        let max = [usize::from(how), 1 << 20][usize::from(how % 2)];
        let whole = frames(stream, stream.len().max(1), max);
        assert_eq!(frames(stream, usize::from(how / 2) + 1, max), whole);
        for frame in whole.iter().map(|f| &f[..]).chain([stream]) {
            read_header(frame);
        }
        // Where the choices end there is nothing to write.
        let _ = written(&mut Unstructured::new(data));
    });
}

fn frames(stream: &[u8], step: usize, max: usize) -> Vec<Bytes> {
    let mut decoder = FrameDecoder::with_max_frame(max);
    let (mut frames, mut taken, mut failed) = (Vec::new(), 0, false);
    for part in stream.chunks(step) {
        decoder.push(part);
        loop {
            match decoder.next_frame() {
                Ok(Some(frame)) => {
                    assert!(!failed && frame.len() <= max);
                    taken += LENGTH_BYTES + frame.len();
                    frames.push(frame);
                }
                Ok(None) => {
                    assert!(!failed, "a failed decoder goes on");
                    break;
                }
                Err(_) => {
                    failed = true;
                    break;
                }
            }
        }
    }
    assert_eq!(taken + decoder.pending(), stream.len());
    frames
}

fn read_header(frame: &[u8]) {
    let (header, body) = match Header::parse(frame) {
        Ok(read) => read,
        Err(error) => return assert!(error.at <= frame.len(), "{error}"),
    };
    assert_eq!(header.length + body.len(), frame.len());
    let records: Vec<_> = SowRecords::new(body).collect();
    assert!(records.iter().rev().skip(1).all(|r| r.is_ok()));
    let held: usize = records.iter().flatten().map(|r| r.body.len()).sum();
    assert!(held <= body.len());
    let short = Header::parse_with_limit(frame, header.length);
    assert_eq!(short.as_ref(), Ok(&(header.clone(), body)));
    assert!(Header::parse_with_limit(frame, header.length - 1).is_err());

    let text = |field: &Option<Cow<'_, str>>| field.as_deref().map(str::to_owned);
    let fields = [
        text(&header.command_id),
        text(&header.client_name),
        text(&header.user_id),
        text(&header.password),
        text(&header.message_type),
        text(&header.topic),
        text(&header.filter),
        text(&header.sow_keys),
        text(&header.order_by),
        text(&header.bookmark),
        text(&header.options),
        text(&header.correlation_id),
        text(&header.sow_key),
        text(&header.version),
        text(&header.query_id),
        text(&header.sub_id),
    ];
    let [
        cid,
        client,
        user,
        pw,
        mt,
        t,
        f,
        keys,
        order,
        bm,
        o,
        x,
        k,
        version,
        query,
        sub,
    ] = fields.each_ref().map(Option::as_deref);
    let command = Command {
        command_id: cid,
        client_name: client,
        user_id: user,
        password: pw,
        message_type: mt,
        topic: t,
        filter: f,
        sow_keys: keys,
        batch_size: header.batch_size,
        order_by: order,
        top_n: header.top_n,
        bookmark: bm,
        options: o,
        correlation_id: x,
        sequence: header.sequence,
        acks: header.acks,
        sow_key: k,
        version,
        query_id: query,
        sub_id: sub,
        body,
        ..Command::generic("again")
    };
    let mut out = Vec::new();
    command.encode(&mut out).expect("a small frame");
    let frame = &frames(&out, out.len(), out.len())[0];
    let (again, same_body) = Header::parse_with_limit(frame, frame.len()).expect("just written");
    assert_eq!(same_body, body);
    let again = Header {
        length: header.length,
        verb: header.verb.clone(),
        ..again
    };
    // What a command cannot carry is what only servers say.
    let expected = Header {
        expiration: None,
        lease_period: None,
        message_length: None,
        timestamp: None,
        status: None,
        reason_text: None,
        sub_ids: None,
        matches: None,
        topic_matches: None,
        records_inserted: None,
        records_updated: None,
        records_deleted: None,
        records_returned: None,
        group_sequence: None,
        uri: None,
        ..header
    };
    assert_eq!(again, expected);
}

fn written(choices: &mut Unstructured<'_>) -> Result<()> {
    let publish = Publish {
        delta: choices.arbitrary()?,
        long_name: choices.arbitrary()?,
        expiration: choices.arbitrary()?,
        sequence: choices.arbitrary()?,
        command_id: choices.arbitrary()?,
        options: choices.arbitrary()?,
        acks: AckKinds::PERSISTED,
        ..Publish::new(<&str>::arbitrary(choices)?, <&[u8]>::arbitrary(choices)?)
    };
    let mut out = b"before".to_vec();
    publish.encode(&mut out).expect("a small frame");
    let (header, body) = Header::parse(&out[6 + LENGTH_BYTES..]).expect("just written");
    assert_eq!(body, publish.body);
    assert_eq!(header.topic.as_deref(), Some(publish.topic));
    assert_eq!(header.command_id.as_deref(), publish.command_id);
    assert_eq!(header.options.as_deref(), publish.options);
    assert_eq!(header.sequence, publish.sequence);
    assert_eq!(header.expiration, publish.expiration.map(u64::from));
    assert_eq!(header.acks, publish.acks);
    Ok(())
}

/// Any text is an address or an error; an address is what it is shown as, and never shows
/// its password.
pub fn uri(data: &[u8]) {
    bounded((1 << 20) + 32 * data.len(), || {
        let Ok(text) = std::str::from_utf8(data) else {
            return;
        };
        let read: Uri = match text.parse() {
            Ok(uri) => uri,
            Err(error) => return assert!(!error.to_string().is_empty()),
        };
        let shown = read.to_string();
        let again: Uri = shown.parse().expect("an address as it is shown");
        assert_eq!(again.to_string(), shown);
        assert_eq!(again.password(), read.password().map(|_| "***"));
        if read.password().is_none() {
            assert_eq!(again, read);
        }
        let parts = |uri: &Uri| {
            (
                (uri.scheme(), uri.host().to_owned(), uri.port(), uri.bind()),
                (uri.user().map(str::to_owned), uri.protocol().to_owned()),
                (uri.message_type().map(str::to_owned), uri.ip_preference()),
                (uri.receive_buffer(), uri.send_buffer(), uri.no_delay()),
                uri.path().map(std::path::Path::to_owned),
            )
        };
        assert_eq!(parts(&again), parts(&read));
        assert_eq!(read.clone().with_port(read.port()), read);
        assert_eq!(format!("{read:?}"), format!("Uri({shown})"));
    });
}

/// Whatever a server says and whenever links are lost: every message is in one place, none
/// is settled as a success that was never handed to a transport, none overtakes another.
pub fn session(data: &[u8]) {
    bounded(64 << 20, || {
        let mut choices = Unstructured::new(data);
        // Where the choices end, the run ends.
        let _ = Machines::new(&mut choices).and_then(|mut m| m.run(&mut choices));
    });
}

struct Machines {
    store: Store,
    session: Session,
    delivery: Delivery,
    now: Now,
    out: Vec<u8>,
    published: u64,
    handed_over: u64,
    batch: Batch,
}

impl Machines {
    fn new(choices: &mut Unstructured<'_>) -> Result<Self> {
        let options = Options::new()
            .capacity(128 << 10)
            .segment_size(8 << 10)
            .client_name("pub-1");
        let store = Store::memory(options).expect("a store in memory");
        let heartbeat = Option::<u8>::arbitrary(choices)?;
        let session = Session::new(SessionConfig {
            client_name: "pub-1".into(),
            logon_options: None,
            logon_correlation: None,
            heartbeat: heartbeat.map(|s| Duration::from_secs(u64::from(s))),
            logon_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            stored: true,
            publish_ids: choices.arbitrary()?,
        });
        let config = Config {
            max_in_flight: u64::from(choices.arbitrary::<u8>()?).max(1),
            rebase: [RebasePolicy::Rebase, RebasePolicy::Stop]
                [usize::from(choices.arbitrary::<bool>()?)],
            grant_step: u64::from(choices.arbitrary::<u8>()?).max(1),
            ..Config::default()
        };
        Ok(Machines {
            delivery: Delivery::new(&store, config),
            store,
            session,
            now: Now {
                at: Duration::from_secs(1),
                unix_micros: 1,
            },
            out: Vec::new(),
            published: 0,
            handed_over: 0,
            batch: Batch::default(),
        })
    }

    fn run(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..400 {
            if choices.is_empty() {
                break;
            }
            self.step(choices)?;
            self.outputs();
            self.send();
            self.check();
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        match choices.int_in_range(0..=15u8)? {
            0..=6 => {
                let frame = frame(choices, self.published)?;
                self.receive(frame);
            }
            7 | 8 => self.log_on(choices.arbitrary()?, choices.arbitrary()?),
            9 => {
                self.session.disconnected(&mut |_| {});
                self.delivery.handle(&self.store, self.now, Input::LinkLost);
            }
            10..=12 => {
                let payload = vec![1; usize::from(choices.arbitrary::<u8>()?)];
                let envelope = Envelope::publish("t");
                self.published += u64::from(self.store.append(&envelope, &payload).is_ok());
            }
            13 => {
                let spec = match choices.int_in_range(0..=2u8)? {
                    0 => Subscribe::topic("t").bookmark("0"),
                    1 => Subscribe::sow("t"),
                    _ => Subscribe::sow_and_subscribe("t"),
                };
                let id = self.session.subscribe(self.now.at, spec, &mut self.out);
                assert!(self.session.is_subscribed(id));
                if choices.ratio(1, 4)? {
                    self.session.unsubscribe(id, &mut self.out);
                }
            }
            14 => {
                let request = Request::new("sow_delete");
                let out = &mut self.out;
                // Refused while not logged on, or while too many wait.
                let _ = self.session.command(self.now.at, &request, None, out);
            }
            _ => {
                self.now.at += Duration::from_millis(u64::from(choices.arbitrary::<u16>()?));
                let (now, out) = (self.now, &mut self.out);
                let waits = self.delivery.in_flight() > 0;
                self.session.publishes_wait(now.at, waits);
                if self.session.tick(now.at, out, &mut |_| {}).is_err() {
                    self.session.disconnected(&mut |_| {});
                    self.delivery.handle(&self.store, now, Input::LinkLost);
                }
                self.delivery.handle(&self.store, now, Input::Tick);
            }
        }
        Ok(())
    }

    fn receive(&mut self, frame: Bytes) {
        let (store, now, delivery) = (&self.store, self.now, &mut self.delivery);
        let mut lost = false;
        let mut delivered = BTreeMap::new();
        let read = self
            .session
            .receive(now.at, &frame, &mut self.out, &mut |item| match item {
                Received::Ack(ack) => delivery.handle(store, now, Input::Ack(ack)),
                Received::LoggedOn { figure } => {
                    delivery.handle(store, now, Input::LoggedOn { figure });
                }
                Received::LogonRefused(_) => lost = true,
                Received::Delivered {
                    subscription,
                    message,
                } => {
                    let (count, bytes) = delivered.entry(subscription).or_insert((0, 0));
                    *count += 1;
                    *bytes += message.data.len();
                    let once = message.kind == DeliveredKind::Sow || *count == 1;
                    assert!(once && *bytes <= frame.len(), "a frame is delivered once");
                }
                _ => {}
            });
        delivery.handle(store, now, Input::AcksEnd);
        if lost || read.is_err() {
            self.session.disconnected(&mut |_| {});
            delivery.handle(store, now, Input::LinkLost);
        }
    }

    fn log_on(&mut self, figure: Option<u64>, near: Option<u8>) {
        self.session.disconnected(&mut |_| {});
        self.delivery.handle(&self.store, self.now, Input::LinkLost);
        self.out.clear();
        let anybody = Credentials::default();
        self.session
            .connected(self.now.at, Some("json"), &anybody, &mut self.out)
            .expect("a small frame");
        let (logon, _) = Header::parse(&self.out[LENGTH_BYTES..]).expect("just written");
        let id = logon.command_id.expect("a logon has an id").into_owned();
        let figure = near.map(u64::from).or(figure);
        let s = figure.map_or(String::new(), |s| format!(",\"s\":{s}"));
        let ack = format!(r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}"{s}}}"#);
        self.receive(Bytes::from(ack));
        assert!(self.session.is_logged_on());
    }

    fn outputs(&mut self) {
        let mut count = 0;
        while let Some(output) = self.delivery.poll() {
            count += 1;
            assert!(count < 10_000, "outputs never end");
            match output {
                Output::RaiseGrant { to } => {
                    let result = self.store.raise_grant(to);
                    self.delivery
                        .handle(&self.store, self.now, Input::GrantRaised(result));
                }
                Output::Rebase { above } => {
                    let result = self.store.rebase(above);
                    self.delivery
                        .handle(&self.store, self.now, Input::Rebased(result));
                }
                Output::DropLink { .. } => {
                    self.session.disconnected(&mut |_| {});
                    self.delivery.handle(&self.store, self.now, Input::LinkLost);
                }
                _ => {}
            }
        }
    }

    fn send(&mut self) {
        let mut last = (0, 0);
        let (store, batch) = (&self.store, &mut self.batch);
        let (published, handed_over) = (self.published, &mut self.handed_over);
        loop {
            let send = |next: &ToSend<'_>| {
                assert!(next.wire > last.0 && next.sequence > last.1, "overtaken");
                assert!(next.sequence <= published);
                assert!(next.wire < 1 << 63);
                assert!(next.sequence <= store.numbers().grant);
                last = (next.wire, next.sequence);
                *handed_over = next.sequence.max(*handed_over);
                Ok::<_, Infallible>(())
            };
            let sent = self
                .delivery
                .hand_over(store, self.now, Room::ANY, batch, send);
            if sent.expect("whole") == 0 {
                return;
            }
        }
    }

    fn check(&self) {
        let totals = self.delivery.totals();
        let settled = totals.persisted + totals.persisted_at_logon + totals.rejected;
        assert_eq!(settled + self.store.bounds().unsettled, self.published);
        for sequence in self.handed_over + 1..=self.published {
            assert!(
                self.store.is_unsettled(sequence),
                "{sequence} was never sent"
            );
        }
        if let Some(deadline) = self.session.deadline() {
            assert!(deadline < self.now.at + Duration::from_secs(3600));
        }
    }
}

/// A frame that says something about publishes, or anything at all.
fn frame(choices: &mut Unstructured<'_>, published: u64) -> Result<Bytes> {
    if choices.ratio(1, 8)? {
        return Ok(Bytes::copy_from_slice(<&[u8]>::arbitrary(choices)?));
    }
    let mut fields = Vec::new();
    for _ in 0..choices.int_in_range(1..=6)? {
        let number = match choices.int_in_range(0..=2u8)? {
            0 => u64::from(choices.arbitrary::<u8>()?),
            1 => choices.int_in_range(0..=published + 1)?,
            _ => choices.arbitrary()?,
        };
        let mut word = |words: &[&'static str]| choices.choose(words).copied();
        fields.push(match number % 10 {
            0 | 1 => format!("\"s\":{number}"),
            2 => format!("\"c\":\"{}\"", word(&["ack", "p", "sow", "oof", "x"])?),
            3 => format!(
                "\"a\":\"{}\"",
                word(&[
                    "persisted",
                    "processed",
                    "completed",
                    "stats",
                    "persisted,stats"
                ])?
            ),
            4 => format!("\"status\":\"{}\"", word(&["success", "failure", "retry"])?),
            5 => format!("\"cid\":\"{}{number}\"", word(&["", "c", "s"])?),
            6 => format!("\"sub_id\":\"s{number}\""),
            7 => format!("\"query_id\":\"s{number}\",\"l\":{number}"),
            8 => format!("\"sids\":\"s{number},s1,s1,s{number}\""),
            _ => "\"reason\":\"no\"".to_owned(),
        });
    }
    // Most of what a server says to a publisher is an ack.
    let start = [
        r#"{"c":"ack","#,
        r#"{"c":"ack","a":"persisted","status":"success","#,
        r#"{"c":"p","sids":"s2,s3,s2,s4","t":"t","#,
        "{",
    ];
    let mut frame = choices.choose(&start)?.as_bytes().to_vec();
    frame.extend(fields.join(",").bytes());
    frame.push(b'}');
    frame.extend_from_slice(choices.bytes(choices.len().min(4))?);
    Ok(Bytes::from(frame))
}
