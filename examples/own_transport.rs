//! A server of another kind than AMPS, and the transport that carries a store's messages to it:
//! `cargo run --example own_transport`.
//!
//! This page teaches how to write a transport. Read `OwnTransport`, which opens links, and then
//! `OwnLink`, which is one. Reconnecting, resending, deadlines of acks, refusals and what becomes of
//! them are not here: the client does that for every transport alike. `tests/own_transport.rs` plays
//! the server in `amps_delivery::testkit::conformance`, the suite that every transport has to pass.
//!
//! The protocol is made up for this page. Numbers are those under which messages go out; each has an
//! ack of its own.
//!
//! ```text
//! client: HI store client              no body may be larger; everything up to the mark is stored or
//! server: HI largest [mark]            refused
//!
//! client: PUT number length topic, and the body on the next line
//! server: OK number                    it is stored
//!         NO number reason             it is refused for good
//!         BUSY number                  not now: again, and before all others
//! ```

#![allow(
    missing_docs,
    unreachable_pub,
    reason = "an example, and a module of its test"
)]

#[path = "own_transport/server.rs"]
mod server;

use std::collections::VecDeque;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use amps_client::Client;
use amps_client::connector::{Connector, SchemeConnector, Stream};
use amps_client::uri::Uri;
use amps_delivery::{
    Acks, Admits, Capabilities, Connecting, Evidence, Heard, Identity, Link, LinkEnd, Meaning,
    Medium, Now, Operations, Order, Progress, Resume, Room, Sink, Synced, ToSend, Transport,
    Unsendable, Up, Words,
};
use amps_store::{Envelope, Operation, Options, Store};
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

pub use server::OwnServer;

/// Opens links to servers at `own://host:port`. Nothing outlives a link here: a transport whose
/// sessions are taken up again would keep them in this struct.
pub struct OwnTransport(Arc<dyn Connector>);

impl OwnTransport {
    /// Over streams that this connector opens.
    pub fn new(connector: Arc<dyn Connector>) -> Self {
        OwnTransport(connector)
    }
}

fn uri(address: &str) -> Result<Uri, String> {
    let wrong = || format!("{address:?} is no address: write own://host:port");
    let server = address.strip_prefix("own://").ok_or_else(wrong)?;
    format!("tcp://{server}/amps").parse().map_err(|_| wrong())
}

impl Transport for OwnTransport {
    fn kind(&self) -> &'static str {
        "own"
    }

    fn name(&self, address: &str) -> Result<String, String> {
        Ok(uri(address)?.authority())
    }

    fn admits(&self) -> Option<Arc<dyn Admits>> {
        Some(Arc::new(OnlyPublishes))
    }

    // The future owns whatever is half open: if it is dropped, nothing is left.
    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a> {
        Box::pin(async move {
            let uri = uri(address).map_err(LinkEnd::Connect)?;
            let stream = self.0.connect(&uri).await;
            let stream = stream.map_err(|error| LinkEnd::Connect(error.to_string()))?;
            Ok(Box::new(OwnLink {
                stream,
                // The logon is part of the link: it is written like everything else.
                out: format!("HI {:x} {}\n", me.store, me.client).into_bytes(),
                written: 0,
                ends: VecDeque::new(),
                gone: 0,
                input: Vec::new(),
                largest: None,
                greeted_by: None,
            }) as Box<dyn Link>)
        })
    }
}

/// What no server takes is refused before it is stored, and, if it stands in a store that belonged to
/// another transport, by the link.
struct OnlyPublishes;

impl Admits for OnlyPublishes {
    fn admit(&self, envelope: &Envelope<'_>, _: &[u8]) -> Result<(), Unsendable> {
        let why = match envelope.operation {
            Operation::Publish if envelope.topic.contains(['\n', '\r']) => "a topic is one line",
            Operation::Publish => return Ok(()),
            _ => "this server takes publishes and nothing else",
        };
        let why = why.to_owned();
        Err(Unsendable { why })
    }
}

/// What links to such a server are good for. A mark is only for servers that take messages in order
/// and store what they ack before they ack it: this one does.
const CAPABILITIES: Capabilities = Capabilities {
    acks: Acks::Single,
    order: Order::Kept,
    meaning: Meaning::Stored {
        replicas: 1,
        medium: Medium::Memory,
        synced: Synced::Unknown,
    },
    operations: Operations::NONE.and(Operation::Publish),
    largest: None,
};

/// How long a server may take to answer the logon. (How long it may take to ack a message is the
/// client's to know.)
const GREETING: Duration = Duration::from_secs(10);
/// Bytes that wait for the network, at most, and one message.
const WAITING: usize = 64 << 10;
/// Bytes of one read: fewer than 1,024 of the shortest lines.
const READ: usize = 4 << 10;

/// A link has no life of its own: it moves while it is polled, and it knows the time it is told.
/// Dropping it closes the stream, and what was not written is not written any more.
struct OwnLink {
    stream: Box<dyn Stream>,
    /// Bytes on their way out, and how many of them are written.
    out: Vec<u8>,
    written: usize,
    /// Where messages end, counted in bytes of the whole link, and their numbers.
    ends: VecDeque<(u64, u64)>,
    /// Bytes written on the whole link.
    gone: u64,
    /// Read, and no whole line yet.
    input: Vec<u8>,
    /// The largest body the server takes; none: it has not greeted yet.
    largest: Option<usize>,
    greeted_by: Option<Duration>,
}

impl Link for OwnLink {
    fn room(&self) -> Room {
        let waiting = self.out.len() - self.written;
        match self.largest.is_some() && waiting < WAITING {
            true => Room {
                messages: usize::MAX,
                bytes: WAITING - waiting,
            },
            false => Room::NONE,
        }
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        let (wire, body) = (message.wire, message.message.payload());
        if self.largest.is_some_and(|largest| body.len() > largest) {
            let why = format!("{} bytes are more than the server takes", body.len());
            return Err(Unsendable { why });
        }
        let envelope = message.message.envelope();
        let envelope = envelope.map_err(|error| Unsendable {
            why: error.to_string(),
        })?;
        OnlyPublishes.admit(&envelope, body)?;
        self.out.drain(..self.written);
        self.written = 0;
        self.out
            .extend(format!("PUT {wire} {} {}\n", body.len(), envelope.topic).as_bytes());
        self.out.extend(body);
        self.ends
            .push_back((self.gone + self.out.len() as u64, wire));
        Ok(())
    }

    // Writes, looks at the clock, reads. Pending only if nothing was done: then the stream has the
    // waker, for both directions.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        now: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let greeted_by = *self.greeted_by.get_or_insert(now.at + GREETING);
        let broken = |error: io::Error| LinkEnd::Io(error.to_string());
        let wrote = self.write(cx).map_err(broken)?;
        if self.largest.is_none() && now.at >= greeted_by {
            return Poll::Ready(Err(LinkEnd::LogonTimeout));
        }
        let read = self.read(cx).map_err(broken)?;
        if read == Some(0) {
            return Poll::Ready(Err(LinkEnd::Closed));
        }
        while let Some(end) = self.input.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = self.input.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            if self.hear(line.trim_end(), sink).is_none() {
                return Poll::Ready(Err(LinkEnd::Protocol(format!("{line:?} means nothing"))));
            }
        }
        if self.input.len() > READ {
            let why = "a line has no end".to_owned();
            return Poll::Ready(Err(LinkEnd::Protocol(why)));
        }
        // Deadlines of acks run from here: messages whose last byte is written.
        let mut through = None;
        while let Some((end, wire)) = self.ends.front().copied()
            && end <= self.gone
        {
            self.ends.pop_front();
            through = Some(wire);
        }
        match wrote || read.is_some() {
            true => Poll::Ready(Ok(Progress {
                read: read.is_some(),
                wrote,
                through,
            })),
            false => Poll::Pending,
        }
    }

    fn deadline(&self) -> Option<Duration> {
        match self.largest {
            None => Some(self.greeted_by.unwrap_or(Duration::ZERO)),
            Some(_) => None,
        }
    }
}

impl OwnLink {
    fn write(&mut self, cx: &mut Context<'_>) -> io::Result<bool> {
        let before = self.gone;
        while self.written < self.out.len() {
            let stream = Pin::new(&mut *self.stream);
            match stream.poll_write(cx, &self.out[self.written..])? {
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(count) => {
                    self.written += count;
                    self.gone += count as u64;
                }
                Poll::Pending => break,
            }
        }
        // A stream may keep what it took until it is flushed: over TLS, say.
        let _ = Pin::new(&mut *self.stream).poll_flush(cx)?;
        Ok(self.gone > before)
    }

    fn read(&mut self, cx: &mut Context<'_>) -> io::Result<Option<usize>> {
        self.input.reserve(READ);
        let mut limited = (&mut self.stream).take(READ as u64);
        let read = pin!(limited.read_buf(&mut self.input));
        match std::future::Future::poll(read, cx) {
            Poll::Ready(count) => Ok(Some(count?)),
            Poll::Pending => Ok(None),
        }
    }

    /// Takes in a line; none: it is not of this protocol.
    fn hear(&mut self, line: &str, sink: &mut dyn Sink) -> Option<()> {
        let (word, rest) = line.split_once(' ')?;
        let mut words = rest.splitn(2, ' ');
        let number = words.next()?.parse::<u64>().ok()?;
        let heard = match (word, self.largest.is_some()) {
            ("HI", false) => {
                self.largest = Some(usize::try_from(number).ok()?);
                let resume = match words.next() {
                    Some(mark) => Resume::HighWater(mark.parse().ok()?),
                    None => Resume::Unknown,
                };
                sink.heard(Heard::Up(Up {
                    resume,
                    capabilities: &Capabilities {
                        largest: self.largest,
                        ..CAPABILITIES
                    },
                }));
                return Some(());
            }
            ("OK", true) => Heard::One {
                wire: number,
                evidence: Evidence::Stored,
            },
            ("NO", true) => Heard::Refused {
                wire: number,
                reason: words.next().unwrap_or_default(),
                may_be_stored: false,
                words: Words::default(),
            },
            ("BUSY", true) => Heard::TryAgain {
                wire: number,
                why: "busy",
                at_once: false,
            },
            _ => return None,
        };
        sink.heard(heard);
        Some(())
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = format!("own://{}", listener.local_addr()?);
    let server = OwnServer::new(1000);
    tokio::spawn(server.clone().serve(listener));

    let store = Store::memory(Options::new().client_name("order-entry"))?;
    let client = Client::builder("order-entry")
        .transport(OwnTransport::new(Arc::new(SchemeConnector::new())))
        .server(address)
        .store(store)
        .on_failed_write(|failed| async move {
            println!("refused: {} {:?}", failed.reason, failed.original);
            Ok(())
        })
        .open()
        .await?;
    for body in ["one", "no, not this one", "two"] {
        client.publish("orders", body).await?;
    }
    println!("{:?}", client.publish_flush(Duration::from_secs(10)).await?);
    client.close(Duration::from_secs(10)).await;
    server.kept(|kept| println!("the server has {} messages", kept.messages.len()));
    Ok(())
}
