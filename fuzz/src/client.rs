//! Targets of the client: what a server may send, and where it may be.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::future::Future as _;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use std::{fmt, io};

use amps_client::chooser::Server;
use amps_client::connector::{Connecting, Connector, Stream};
use amps_client::delivery::{Config, RebasePolicy, Room, ToSend};
use amps_client::protocol::{
    AckKinds, Command, FrameDecoder, Header, LENGTH_BYTES, Publish, SowRecords,
};
use amps_client::session::SessionConfig;
use amps_client::testkit::Amps;
use amps_client::uri::Uri;
use amps_client::{CommandError, DeliveredKind, FixedDelay, Request, Subscribe, Subscription};
use amps_delivery::{Engine, Job, Link, LinkEnd, Now, Output, Progress, Sink};
use amps_store::{Envelope, Options, PublishStore, Store};
use arbitrary::{Arbitrary, Result, Unstructured};
use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::oneshot;

use crate::bounded;

/// Any stream is cut into the same frames however it arrives. Any frame has a header, or an error
/// at a place inside it. A header that was read is read back from what it is written as.
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
        // When the choices run out there is nothing more to write.
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
    // Fields that a command cannot carry are sent only by servers.
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

/// Any text is an address or an error. An address means what it is shown as, and never shows its
/// password.
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

/// Whatever a server says and whenever links are lost: every message is in exactly one place,
/// none is settled as a success that was never handed to a transport, and none overtakes another.
pub fn session(data: &[u8]) {
    bounded(64 << 20, || {
        let mut choices = Unstructured::new(data);
        // When the choices run out the run ends.
        let _ = Machines::new(&mut choices).and_then(|mut m| m.run(&mut choices));
    });
}

/// The client's engine and its links, over a connection to a server that says anything.
struct Machines {
    store: Arc<Store>,
    engine: Engine,
    amps: Amps,
    server: Server,
    wire: Wire,
    seen: Arc<Mutex<Seen>>,
    /// A store call that is under way.
    job: Option<Job>,
    now: Now,
    published: u64,
    /// Logons that were accepted.
    ups: u64,
    placing: Vec<Placing>,
    subscriptions: Vec<Subscription>,
}

type Placing = oneshot::Receiver<std::result::Result<Subscription, CommandError>>;

impl Machines {
    fn new(choices: &mut Unstructured<'_>) -> Result<Self> {
        let options = Options::new()
            .capacity(128 << 10)
            .segment_size(8 << 10)
            .client_name("pub-1");
        let store = Arc::new(Store::memory(options).expect("a store in memory"));
        let heartbeat = Option::<u8>::arbitrary(choices)?;
        let session = SessionConfig {
            client_name: "pub-1".into(),
            logon_options: None,
            logon_correlation: None,
            // A client takes no interval below a second.
            heartbeat: heartbeat.map(|s| Duration::from_secs(u64::from(s.max(1)))),
            logon_timeout: Duration::from_secs(5),
            command_timeout: Duration::from_secs(5),
            stored: true,
            publish_ids: choices.arbitrary()?,
        };
        let delivery = Config {
            max_in_flight: u64::from(choices.arbitrary::<u8>()?).max(1),
            rebase: [RebasePolicy::Rebase, RebasePolicy::Stop]
                [usize::from(choices.arbitrary::<bool>()?)],
            grant_step: u64::from(choices.arbitrary::<u8>()?).max(1),
            ..Config::default()
        };
        let config = amps_delivery::Config {
            delivery,
            ..amps_delivery::Config::default()
        };
        let now = Now {
            at: Duration::from_secs(1),
            unix_micros: 1,
        };
        let wire = Wire::default();
        wire.state().piece = 1 + usize::from(choices.arbitrary::<u8>()?);
        let backoff = Box::new(FixedDelay(Duration::from_millis(10)));
        Ok(Machines {
            engine: Engine::new(store.as_ref(), config, backoff, now),
            amps: Amps::new(Arc::new(wire.clone()), session),
            server: Server {
                uri: "tcp://fuzzed:9007/amps/json".parse().expect("an address"),
                authenticator: None,
            },
            seen: Arc::default(),
            job: None,
            published: 0,
            ups: 0,
            placing: Vec::new(),
            subscriptions: Vec::new(),
            store,
            wire,
            now,
        })
    }

    fn run(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        for _ in 0..400 {
            if choices.is_empty() {
                break;
            }
            self.step(choices)?;
            // The device takes its time: what comes meanwhile is handled first.
            if choices.ratio(1, 2)?
                && let Some(job) = self.job.take()
            {
                let done = job.run(self.store.as_ref());
                self.engine.done(self.store.as_ref(), self.now, done);
            }
            self.pump();
            self.check();
        }
        Ok(())
    }

    fn step(&mut self, choices: &mut Unstructured<'_>) -> Result<()> {
        match choices.int_in_range(0..=16u8)? {
            0..=6 => {
                let frame = frame(choices, self.published)?;
                self.receive(&frame);
            }
            7 | 8 => self.log_on(choices.arbitrary()?, choices.arbitrary()?),
            9 => self.wire.state().ended = true,
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
                // It is refused while too many wait.
                self.placing.extend(self.amps.subscribe(spec));
                if choices.ratio(1, 4)? {
                    self.subscriptions.pop();
                }
            }
            14 => {
                let until = self.now.at + Duration::from_secs(5);
                // It is refused while not logged on, or while too many wait.
                drop(self.amps.command(Request::new("sow_delete"), until));
            }
            15 => {
                self.now.at += Duration::from_millis(u64::from(choices.arbitrary::<u16>()?));
            }
            _ => {
                let mut wire = self.wire.state();
                wire.is_full = !wire.is_full;
            }
        }
        Ok(())
    }

    /// A server sends this, at the logon or after it.
    fn receive(&mut self, frame: &[u8]) {
        self.open();
        self.pump();
        self.wire.state().arrives(frame);
        self.pump();
        let mut cx = Context::from_waker(Waker::noop());
        for subscription in &mut self.subscriptions {
            let (mut count, mut bytes) = (0, 0);
            while let Poll::Ready(Some(Ok(message))) = pin!(subscription.next()).poll(&mut cx) {
                count += 1;
                bytes += message.data.len();
                let once = message.kind == DeliveredKind::Sow || count == 1;
                assert!(once && bytes <= frame.len(), "a frame is delivered once");
            }
        }
        // Earlier frames may have been for what was placed just now.
        self.placing.retain_mut(|placing| match placing.try_recv() {
            Ok(Ok(subscription)) => {
                self.subscriptions.push(subscription);
                false
            }
            Ok(Err(_)) | Err(oneshot::error::TryRecvError::Closed) => false,
            Err(oneshot::error::TryRecvError::Empty) => true,
        });
        for subscription in &mut self.subscriptions {
            while let Poll::Ready(Some(Ok(_))) = pin!(subscription.next()).poll(&mut cx) {}
        }
    }

    /// Lets time pass until there is a connection.
    fn open(&mut self) {
        for _ in 0..100 {
            if self.wire.state().is_open {
                return;
            }
            let next = self.engine.deadline().expect("it tries again");
            self.now.at = self.now.at.max(next);
            self.pump();
        }
        panic!("it does not connect");
    }

    fn log_on(&mut self, figure: Option<u64>, near: Option<u8>) {
        self.wire.state().ended = true;
        self.wire.state().is_full = false;
        self.pump();
        self.open();
        self.pump();
        let written = self.wire.state().written.clone();
        let (logon, _) = Header::parse(&written[LENGTH_BYTES..]).expect("just written");
        let id = logon.command_id.expect("a logon has an id").into_owned();
        let figure = near.map(u64::from).or(figure);
        let s = figure.map_or(String::new(), |s| format!(",\"s\":{s}"));
        let ack = format!(r#"{{"c":"ack","a":"processed","status":"success","cid":"{id}"{s}}}"#);
        let before = self.ups;
        self.receive(ack.as_bytes());
        assert_eq!(self.ups, before + 1, "a logon that was accepted is told");
    }

    /// Does everything that is due, until nothing changes any more.
    fn pump(&mut self) {
        let mut cx = Context::from_waker(Waker::noop());
        for _ in 0..100_000 {
            self.engine.turn(self.store.as_ref(), self.now);
            let told = self.outputs();
            let polled = self.engine.poll(&mut cx, self.store.as_ref(), self.now);
            let told = self.outputs() || told;
            if polled.is_pending() && !told {
                return;
            }
        }
        panic!("it never rests");
    }

    fn outputs(&mut self) -> bool {
        let mut any = false;
        while let Some(output) = self.engine.output() {
            any = true;
            match output {
                Output::Connect => self.connect(),
                Output::Job(job) => {
                    let before = self.job.replace(job);
                    assert!(before.is_none(), "two store calls at once");
                }
                Output::Up => self.ups += 1,
                Output::Abandon | Output::GaveUp { .. } | Output::Over { .. } => {
                    panic!("{output:?} for no reason")
                }
                _ => {}
            }
        }
        any
    }

    fn connect(&mut self) {
        let opened = {
            let opening = pin!(self.amps.connect(&self.server));
            match opening.poll(&mut Context::from_waker(Waker::noop())) {
                Poll::Ready(opened) => opened,
                Poll::Pending => panic!("a connection is there at once"),
            }
        };
        self.seen().last = (0, 0);
        let watched = opened.map(|link| {
            let (store, seen) = (self.store.clone(), self.seen.clone());
            Box::new(Watched { link, store, seen }) as Box<dyn Link>
        });
        let now = self.now;
        self.engine.connected(self.store.as_ref(), now, watched);
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody died")
    }

    fn check(&self) {
        let totals = self.engine.totals();
        let settled = totals.persisted + totals.persisted_at_logon + totals.rejected;
        assert_eq!(settled + self.store.bounds().unsettled, self.published);
        for sequence in self.seen().handed_over + 1..=self.published {
            assert!(
                self.store.is_unsettled(sequence),
                "{sequence} was never sent"
            );
        }
        if let Some(deadline) = self.engine.deadline() {
            assert!(deadline < self.now.at + Duration::from_secs(3600));
        }
    }
}

/// What was handed to links.
#[derive(Default)]
struct Seen {
    /// On this link: number on the wire, and sequence.
    last: (u64, u64),
    handed_over: u64,
}

/// A link, and what it must never be given.
struct Watched {
    link: Box<dyn Link>,
    store: Arc<Store>,
    seen: Arc<Mutex<Seen>>,
}

impl Link for Watched {
    fn room(&self) -> Room {
        self.link.room()
    }

    fn send(
        &mut self,
        now: Now,
        next: &ToSend<'_>,
    ) -> std::result::Result<(), amps_delivery::Unsendable> {
        let mut seen = self.seen.lock().expect("nobody died");
        let (wire, sequence) = seen.last;
        assert!(next.wire > wire && next.sequence > sequence, "overtaken");
        assert!(next.sequence <= self.store.bounds().last);
        assert!(next.wire < 1 << 63);
        assert!(next.sequence <= self.store.numbers().grant);
        seen.last = (next.wire, next.sequence);
        seen.handed_over = next.sequence.max(seen.handed_over);
        self.link.send(now, next)
    }

    fn waits(&mut self, now: Now, in_flight: u64) {
        self.link.waits(now, in_flight);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<std::result::Result<Progress, LinkEnd>> {
        self.link.poll(cx, now, sink)
    }

    fn deadline(&self) -> Option<Duration> {
        self.link.deadline()
    }
}

/// The connection, as the server sees it. There is one at a time.
#[derive(Clone, Default)]
struct Wire(Arc<Mutex<Connection>>);

#[derive(Default)]
struct Connection {
    is_open: bool,
    /// Arrived, but not read yet.
    incoming: VecDeque<u8>,
    /// Nothing more comes.
    ended: bool,
    /// Everything that the client wrote.
    written: Vec<u8>,
    /// It takes nothing at the moment.
    is_full: bool,
    /// How many bytes are read or written at a time, at most.
    piece: usize,
}

impl Connection {
    fn arrives(&mut self, frame: &[u8]) {
        let length = u32::try_from(frame.len()).expect("a small frame");
        self.incoming.extend(length.to_be_bytes());
        self.incoming.extend(frame);
    }
}

impl Wire {
    fn state(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().expect("nobody died")
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Wire")
    }
}

impl Connector for Wire {
    fn connect<'a>(&'a self, _: &'a Uri) -> Connecting<'a> {
        let mut state = self.state();
        assert!(!state.is_open, "two connections at once");
        (state.is_open, state.ended) = (true, false);
        state.incoming.clear();
        state.written.clear();
        Box::pin(async { Ok(Box::new(End(self.clone())) as Box<dyn Stream>) })
    }
}

/// The client's end of the connection.
struct End(Wire);

impl Drop for End {
    fn drop(&mut self) {
        self.0.state().is_open = false;
    }
}

impl AsyncRead for End {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let mut state = self.0.state();
        let count = state.incoming.len().min(state.piece).min(into.remaining());
        if count == 0 && !state.ended {
            return Poll::Pending;
        }
        let bytes: Vec<u8> = state.incoming.drain(..count).collect();
        into.put_slice(&bytes);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for End {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut state = self.0.state();
        if state.is_full {
            return Poll::Pending;
        }
        let count = bytes.len().min(state.piece);
        state.written.extend(&bytes[..count]);
        Poll::Ready(Ok(count))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
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
    // Most of what a server sends to a publisher is acks.
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
