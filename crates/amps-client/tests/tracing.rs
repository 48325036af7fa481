//! What a client reports to `tracing`: in which span, and never a payload or a password.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fmt::{self, Write as _};
use std::sync::{Arc, Mutex};

use amps_client::connector::MemoryConnector;
use amps_client::{Client, Request};
use common::{LONG, NAME, Peer, memory};
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Records every span and event of the thread, each with the spans it is in.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Recorded>>);

#[derive(Default)]
struct Recorded {
    spans: Vec<String>,
    entered: Vec<usize>,
    lines: Vec<String>,
}

struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        write!(self.0, " {field}={value:?}").unwrap();
    }
}

impl Recorded {
    /// The span that is entered, after those in which it was created.
    fn path(&self) -> &str {
        self.entered.last().map_or("", |at| &self.spans[*at])
    }
}

impl Subscriber for Recorder {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut text = Text(span.metadata().name().to_owned());
        span.record(&mut text);
        let mut recorded = self.0.lock().unwrap();
        let path = match recorded.path() {
            "" => text.0,
            outer => format!("{outer} / {}", text.0),
        };
        recorded.spans.push(path);
        Id::from_u64(recorded.spans.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut text = Text(String::new());
        event.record(&mut text);
        let mut recorded = self.0.lock().unwrap();
        let line = format!("{}:{}", recorded.path(), text.0);
        recorded.lines.push(line);
    }

    fn enter(&self, span: &Id) {
        let at = span.into_u64() as usize - 1;
        self.0.lock().unwrap().entered.push(at);
    }

    fn exit(&self, _: &Id) {
        self.0.lock().unwrap().entered.pop();
    }
}

#[tokio::test]
async fn everything_stands_in_a_span_and_nothing_shows_a_payload() {
    let recorder = Recorder::default();
    let _recording = tracing::subscriber::set_default(recorder.clone());
    let connector = MemoryConnector::new();
    let mut listener = connector.listen();
    let client = Client::builder(NAME)
        .server("tcp://me:pa55word@orders.example:9007/amps/json")
        .heartbeat(None)
        .connector(Arc::new(connector))
        .store(memory())
        .on_failed_write(|failed| async move {
            tracing::info!(sequence = failed.sequence, "the application's own word");
            Err("not today".into())
        })
        .open()
        .await
        .unwrap();
    client.publish("t", "pay10ad").await.unwrap();
    client.publish("t", "pay10ad").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.refuse(2, "no").await;
    peer.ok(2).await;
    client.publish_flush(LONG).await.unwrap();
    let (answer, ()) = tokio::join!(
        client.command(Request::new("stop_timer").body("pay10ad")),
        async {
            let frame = peer.next().await.unwrap();
            peer.processed(&frame).await;
        }
    );
    answer.unwrap();
    // A frame for nobody, and the end of the link, are reported as well.
    peer.frame(r#"{"c":"p","t":"t","sub_id":"s1"}pay10ad"#)
        .await;
    peer.frame(r#"{"c":"odd"}pay10ad"#).await;
    drop(peer);
    let _peer = Peer::logged_on(&mut listener, 2).await;
    client.close(LONG).await;

    let recorded = recorder.0.lock().unwrap();
    let spans = &recorded.spans;
    for expected in [
        r#"amps_client client=pub-1"#,
        r#"amps_client client=pub-1 / link server=orders.example:9007"#,
        r#"amps_client client=pub-1 / failed_write sequence=2"#,
        r#"publish_flush client=pub-1"#,
        r#"command client=pub-1 command=stop_timer"#,
        r#"close client=pub-1"#,
    ] {
        assert!(
            spans.iter().any(|span| span == expected),
            "{expected}: {spans:#?}"
        );
    }
    let links = spans.iter().filter(|span| span.contains("link "));
    assert_eq!(links.count(), 2, "one for each");
    let inside = |path: &str, words: &str| {
        let lines = &recorded.lines;
        let found = lines
            .iter()
            .any(|l| l.starts_with(path) && l.contains(words));
        assert!(found, "{words} in {path}: {lines:#?}");
    };
    inside(
        "amps_client client=pub-1 / failed_write sequence=2:",
        "the application's own word",
    );
    inside("amps_client client=pub-1:", "link ended");
    inside("amps_client client=pub-1:", "not today");
    inside(
        "amps_client client=pub-1 / link server=orders.example:9007:",
        "connection",
    );
    let all = [spans.as_slice(), recorded.lines.as_slice()].concat();
    for secret in ["pay10ad", "pa55word"] {
        let shown = all.iter().find(|line| line.contains(secret));
        assert_eq!(shown, None, "{secret}");
    }
}
