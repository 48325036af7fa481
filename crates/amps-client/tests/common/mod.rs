//! A scripted server, made of the codec: the test says what it reads and what it answers.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used
)]

pub mod quirks;

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use amps_client::connector::{MemoryConnector, MemoryListener};
use amps_client::protocol::{
    Ack, AckKind, AckKinds, FrameDecoder, Header, LogonAck, Outbound, Status, Verb,
};
use amps_client::{Backoff, Builder, Client, Message, PublishFailure};
use amps_store::{AppendError, Options, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::Instant;

pub const NAME: &str = "pub-1";

/// Longer than anything here takes, even on a busy machine.
pub const LONG: Duration = Duration::from_secs(30);

pub fn options() -> Options {
    Options::new().capacity(4 << 20).client_name(NAME)
}

pub fn memory() -> Store {
    Store::memory(options()).unwrap()
}

/// A client of the scripted server, and the server's listener.
pub fn pair() -> (Builder, MemoryListener) {
    let connector = MemoryConnector::new();
    let listener = connector.listen();
    (builder(connector), listener)
}

pub fn builder(connector: MemoryConnector) -> Builder {
    Client::builder(NAME)
        .server("tcp://127.0.0.1:9007/amps/json")
        .connector(Arc::new(connector))
        // Scripts say what is read next; those about heartbeats ask for them.
        .heartbeat(None)
        .backoff(Backoff::new(
            Duration::from_millis(1),
            Duration::from_millis(5),
        ))
}

/// A frame as the server read it.
#[derive(Clone, Debug, Default)]
pub struct Frame {
    pub verb: String,
    pub id: Option<String>,
    pub topic: Option<String>,
    pub sequence: Option<u64>,
    pub sub_id: Option<String>,
    pub query_id: Option<String>,
    pub bookmark: Option<String>,
    pub options: Option<String>,
    pub filter: Option<String>,
    pub client_name: Option<String>,
    pub user: Option<String>,
    pub password: Option<String>,
    pub acks: AckKinds,
    pub body: Vec<u8>,
    pub more: More,
}

/// Fields of queries and deletes.
#[derive(Clone, Debug, Default)]
pub struct More {
    pub sow_keys: Option<String>,
    pub correlation_id: Option<String>,
    pub order_by: Option<String>,
    pub sow_key: Option<String>,
    pub top_n: Option<u64>,
    pub batch_size: Option<u64>,
    pub expiration: Option<u64>,
}

pub struct Peer {
    stream: DuplexStream,
    decoder: FrameDecoder,
}

impl Peer {
    /// The next connection, before anything came on it.
    pub async fn connected(listener: &mut MemoryListener) -> Peer {
        let stream = listener.accept().await.unwrap();
        Peer {
            stream,
            decoder: FrameDecoder::new(),
        }
    }

    /// The next connection, before its logon is answered.
    pub async fn accept(listener: &mut MemoryListener) -> (Peer, Frame) {
        let mut peer = Peer::connected(listener).await;
        let logon = peer.next().await.expect("a logon");
        assert_eq!(logon.verb, "Logon");
        (peer, logon)
    }

    /// The next connection, logged on with this figure.
    pub async fn logged_on(listener: &mut MemoryListener, figure: impl Into<Option<u64>>) -> Peer {
        let (mut peer, logon) = Peer::accept(listener).await;
        peer.accept_logon(&logon, figure).await;
        peer
    }

    pub async fn accept_logon(&mut self, logon: &Frame, figure: impl Into<Option<u64>>) {
        let ack = LogonAck {
            command_id: logon.id.as_deref(),
            sequence: figure.into(),
            client_name: logon.client_name.as_deref(),
            bookmark: None,
            reason: Some("authentication disabled"),
            version: Some("5.3.3.0"),
        };
        let mut out = Vec::new();
        ack.encode(&mut out).unwrap();
        self.raw(&out).await;
    }

    /// The next frame, or `None` at the end of the link.
    pub async fn next(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                let (header, body) = Header::parse(&frame).unwrap();
                let own =
                    |text: &Option<std::borrow::Cow<'_, str>>| text.as_deref().map(String::from);
                return Some(Frame {
                    verb: match &header.verb {
                        Some(Verb::Other(name)) => name.to_string(),
                        Some(verb) => format!("{verb:?}"),
                        None => String::new(),
                    },
                    id: own(&header.command_id),
                    topic: own(&header.topic),
                    sequence: header.sequence,
                    sub_id: own(&header.sub_id),
                    query_id: own(&header.query_id),
                    bookmark: own(&header.bookmark),
                    options: own(&header.options),
                    filter: own(&header.filter),
                    client_name: own(&header.client_name),
                    user: own(&header.user_id),
                    password: own(&header.password),
                    acks: header.acks,
                    body: body.to_vec(),
                    more: More {
                        sow_keys: own(&header.sow_keys),
                        correlation_id: own(&header.correlation_id),
                        order_by: own(&header.order_by),
                        sow_key: own(&header.sow_key),
                        top_n: header.top_n,
                        batch_size: header.batch_size,
                        expiration: header.expiration,
                    },
                });
            }
            match self.stream.read_buf(self.decoder.read_buffer()).await {
                Ok(0) | Err(_) => return None,
                Ok(_) => {}
            }
        }
    }

    /// Reads publishes up to this number on the wire; returns their frames.
    pub async fn publishes_to(&mut self, last: u64) -> Vec<Frame> {
        let mut frames = Vec::new();
        while frames.last().and_then(|f: &Frame| f.sequence) != Some(last) {
            let frame = self.next().await.expect("more publishes");
            assert_eq!(frame.verb, "Publish");
            frames.push(frame);
        }
        frames
    }

    pub async fn ok(&mut self, figure: u64) {
        self.ack(&Ack::persisted(figure)).await;
    }

    pub async fn refuse(&mut self, figure: u64, reason: &str) {
        self.ack(&Ack::refused(Some(figure), None, reason)).await;
    }

    pub async fn processed(&mut self, frame: &Frame) {
        let mut ack = Ack::new(AckKind::Processed, Status::Success);
        ack.command_id = frame.id.as_deref();
        ack.sub_id = frame.sub_id.as_deref();
        self.ack(&ack).await;
    }

    pub async fn ack(&mut self, ack: &Ack<'_>) {
        let mut out = Vec::new();
        ack.encode(&mut out).unwrap();
        self.raw(&out).await;
    }

    pub async fn deliver(&mut self, sub_id: &str, topic: &str, bookmark: &str, body: &[u8]) {
        let mut out = Vec::new();
        let mut message = Outbound::new(topic, body);
        message.sub_id = Some(sub_id);
        message.bookmark = Some(bookmark);
        message.encode(&mut out).unwrap();
        self.raw(&out).await;
    }

    /// A frame of just this text.
    pub async fn frame(&mut self, text: &str) {
        let length = u32::try_from(text.len()).unwrap();
        let frame = [&length.to_be_bytes(), text.as_bytes()].concat();
        self.raw(&frame).await;
    }

    pub async fn raw(&mut self, bytes: &[u8]) {
        // The client may have hung up already; the test notices that by what it reads.
        let _ = self.stream.write_all(bytes).await;
    }
}

/// Polls a future once, and returns it. It must not be done.
pub async fn started<F: Future + Unpin>(mut future: F) -> F {
    poll_fn(|cx| {
        assert!(Pin::new(&mut future).poll(cx).is_pending());
        Poll::Ready(())
    })
    .await;
    future
}

/// Fills the store until only the server can make room: the store grows while publishers wait,
/// and a refusal that comes during growth is followed by room.
pub fn fill(client: &Client) -> u64 {
    let mut count = 0;
    let begun = Instant::now();
    loop {
        let Err(error) = client.try_send(Message::publish("orders", vec![b'x'; 1000])) else {
            count += 1;
            continue;
        };
        assert!(error.is_retryable(), "{error}");
        assert_eq!(error.message.payload().len(), 1000, "handed back");
        match error.reason {
            PublishFailure::Store(AppendError::Full { .. }) => return count,
            _ => std::thread::yield_now(),
        }
        assert!(begun.elapsed() < LONG, "no room after {count}: {error}");
    }
}
