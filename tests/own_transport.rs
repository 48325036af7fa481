//! The transport that `examples/own_transport.rs` shows how to write: it passes the public suite,
//! and a real client sends by it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "../examples/own_transport.rs"]
#[allow(dead_code, reason = "its main is not called")]
mod own_transport;

use std::sync::Arc;
use std::time::Duration;

use amps_client::connector::SchemeConnector;
use amps_client::testkit::Wire;
use amps_client::testkit::conformance::{Got, Peer, REASON, Say, Suite};
use amps_client::{Backoff, Client, Outcome, PublishFailure};
use amps_delivery::{Acks, Transport};
use amps_store::{Options, Store};
use own_transport::{OwnServer, OwnTransport};
use tokio::net::TcpListener;

const LONG: Duration = Duration::from_secs(60);

/// The largest body that the server under the suite takes.
const LARGEST: usize = 256 << 10;

/// The server, in the suite's hands.
#[derive(Default)]
struct OwnPeer {
    wire: Wire,
    stream: u64,
    input: Vec<u8>,
}

impl OwnPeer {
    /// Takes a line out, and so many bytes behind it as it says, if all of it is there.
    fn next(&mut self) -> Option<(String, Vec<u8>)> {
        let end = self.input.iter().position(|byte| *byte == b'\n')?;
        let line = String::from_utf8(self.input[..end].to_vec()).unwrap();
        let length = match line.strip_prefix("PUT ") {
            Some(put) => put.split(' ').nth(1).unwrap().parse().unwrap(),
            None => 0,
        };
        let whole = end + 1 + length;
        let body = self.input.get(end + 1..whole)?.to_vec();
        self.input.drain(..whole);
        Some((line, body))
    }
}

impl Peer for OwnPeer {
    fn transport(&mut self) -> Box<dyn Transport> {
        Box::new(OwnTransport::new(Arc::new(self.wire.clone())))
    }

    fn address(&self) -> String {
        "own://server:1".to_owned()
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
        if self.stream != self.wire.stream() {
            self.stream = self.wire.stream();
            self.input.clear();
        }
        self.input.extend(self.wire.read());
        let mut got = Vec::new();
        while let Some((line, body)) = self.next() {
            let mut words = line.split(' ');
            match words.next().unwrap() {
                "HI" => assert_eq!(words.nth(1), Some("suite"), "{line}"),
                "PUT" => got.push(Got::Message {
                    wire: words.next().unwrap().parse().unwrap(),
                    body,
                }),
                other => panic!("no client says {other:?}"),
            }
        }
        got
    }

    fn says(&mut self, say: &Say) -> bool {
        let line = match say {
            Say::Welcome { mark: None } => format!("HI {LARGEST}"),
            Say::Welcome { mark: Some(mark) } => format!("HI {LARGEST} {mark}"),
            Say::Stored(wire) => format!("OK {wire}"),
            Say::Refused(wire) => format!("NO {wire} {REASON}"),
            Say::TryAgain(wire) => format!("BUSY {wire}"),
            Say::Nonsense => "EH 1".to_owned(),
            Say::Close => {
                self.wire.close();
                return true;
            }
            // A mark comes with the greeting only, and nobody is asked for a message.
            _ => return false,
        };
        self.wire.write(line.as_bytes());
        self.wire.write(b"\n");
        true
    }

    fn too_large(&self) -> Option<usize> {
        Some(LARGEST + 1)
    }
}

#[test]
fn it_keeps_what_a_transport_promises() {
    let left_out = Suite::new(OwnPeer::default).check();
    assert_eq!(
        left_out,
        [
            "a mark in the middle settles what it covers",
            "a duplicate for a number never sent settles nothing",
        ]
    );
}

/// Everything once and in order, although the server is full now and then, and connections break.
#[tokio::test]
async fn a_client_sends_by_it_over_broken_connections() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = OwnServer::new(100);
    let serving = tokio::spawn(server.clone().serve(listener));
    let options = Options::new().client_name("own").capacity(8 << 20);
    let client = Client::builder("own")
        .transport(OwnTransport::new(Arc::new(SchemeConnector::new())))
        .server(format!("own://{address}"))
        .store(Store::memory(options).unwrap())
        .backoff(Backoff::new(
            Duration::from_millis(1),
            Duration::from_millis(20),
        ))
        .on_failed_write(|_| async { Ok(()) })
        .open()
        .await
        .unwrap();
    let mut receipts = Vec::new();
    for n in 0..500 {
        let body = if n % 50 == 7 { "no" } else { "" };
        receipts.push(
            client
                .publish("orders", format!("{body}{n}"))
                .await
                .unwrap(),
        );
    }
    // The server takes none of this size, and no other server could.
    let large = client.publish("orders", vec![b'x'; 65_537]).await.unwrap();
    let full = || server.kept(|kept| kept.messages.len()) >= 100;
    while !full() {
        tokio::task::yield_now().await;
    }
    // The server goes, and another one comes in its place that knows what it knew.
    serving.abort();
    assert!(serving.await.unwrap_err().is_cancelled());
    server.kept(|kept| kept.most = 1000);
    let listener = TcpListener::bind(address).await.unwrap();
    let serving = tokio::spawn(server.clone().serve(listener));
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.rejected, report.left), (11, 0), "{report:?}");
    assert!(matches!(large.await, Outcome::Rejected { .. }));
    for (n, receipt) in receipts.into_iter().enumerate() {
        let refused = matches!(receipt.await, Outcome::Rejected { .. });
        assert_eq!(refused, n % 50 == 7, "{n}");
    }
    let delta = client.delta_publish("orders", "{}").await.unwrap_err();
    assert!(
        matches!(delta.reason, PublishFailure::Unsendable(_)),
        "{delta}"
    );
    client.close(LONG).await;
    serving.abort();
    let messages = server.kept(|kept| kept.messages.clone());
    let expected = (0..500).filter(|n| n % 50 != 7);
    let expected = expected.map(|n| ("orders".to_owned(), n.to_string().into_bytes()));
    assert_eq!(messages, expected.collect::<Vec<_>>());
}
