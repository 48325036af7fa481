//! A client whose messages are carried by something else than AMPS.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use amps_client::{
    Client, CommandError, Event, LinkEnd, Message, OpenError, Outcome, PublishFailure, Request,
    Subscribe, Via,
};
use amps_delivery::{
    Acks, Admits, Capabilities, Connecting, Evidence, Heard, Identity, Link, Meaning, Now,
    Progress, Require, Resume, Room, Sink, ToSend, Transport, Unsendable, Up, Words,
};
use amps_store::{Envelope, Options, PublishStore, Store};

const SECOND: Duration = Duration::from_secs(1);

const SINGLE: Capabilities = Capabilities {
    acks: Acks::Single,
    ..Capabilities::LOGGED
};

/// A server in memory: it refuses bodies that begin with `no`, says nothing of those that begin with
/// `hm`, and stores the others.
#[derive(Default)]
struct Server {
    up: bool,
    asked_by: Vec<(String, Identity)>,
    stored: Vec<Vec<u8>>,
    answers: VecDeque<(u64, bool)>,
    written: Option<u64>,
    reader: Option<Waker>,
}

#[derive(Clone, Default)]
struct InMemory(Arc<Mutex<Server>>);

struct InMemoryLink(Arc<Mutex<Server>>);

struct Short;

impl Admits for Short {
    fn admit(&self, _: &Envelope<'_>, payload: &[u8]) -> Result<(), Unsendable> {
        match payload.len() > 9 {
            true => Err(Unsendable {
                why: "nine bytes at most".to_owned(),
            }),
            false => Ok(()),
        }
    }
}

impl Transport for InMemory {
    fn kind(&self) -> &'static str {
        "in-memory"
    }

    fn name(&self, address: &str) -> Result<String, String> {
        let name = address.strip_prefix("mem://").map(str::to_owned);
        name.ok_or_else(|| format!("{address}: write mem://name"))
    }

    fn admits(&self) -> Option<Arc<dyn Admits>> {
        Some(Arc::new(Short))
    }

    fn connect<'a>(&'a mut self, address: &'a str, me: &'a Identity) -> Connecting<'a> {
        Box::pin(async move {
            let mut server = self.0.lock().unwrap();
            server.asked_by.push((address.to_owned(), me.clone()));
            if address.ends_with("closed") {
                return Err(LinkEnd::Connect("nobody is there".to_owned()));
            }
            Ok(Box::new(InMemoryLink(self.0.clone())) as Box<dyn Link>)
        })
    }
}

impl Link for InMemoryLink {
    fn room(&self) -> Room {
        match self.0.lock().unwrap().up {
            true => Room::ANY,
            false => Room::NONE,
        }
    }

    fn send(&mut self, _: Now, message: &ToSend<'_>) -> Result<(), Unsendable> {
        let mut server = self.0.lock().unwrap();
        let body = message.message.payload().to_vec();
        let stores = !body.starts_with(b"no");
        server.written = Some(message.wire);
        if !body.starts_with(b"hm") {
            server.answers.push_back((message.wire, stores));
        }
        server.stored.extend(stores.then_some(body));
        if let Some(reader) = server.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        _: Now,
        sink: &mut dyn Sink,
    ) -> Poll<Result<Progress, LinkEnd>> {
        let mut server = self.0.lock().unwrap();
        let mut progress = Progress {
            read: true,
            ..Progress::default()
        };
        if !std::mem::replace(&mut server.up, true) {
            let (resume, capabilities) = (Resume::Unknown, &SINGLE);
            sink.heard(Heard::Up(Up {
                resume,
                capabilities,
            }));
            return Poll::Ready(Ok(progress));
        }
        progress.through = server.written.take();
        progress.wrote = progress.through.is_some();
        let Some((wire, stored)) = server.answers.pop_front() else {
            server.reader = Some(cx.waker().clone());
            progress.read = false;
            return match progress.wrote {
                true => Poll::Ready(Ok(progress)),
                false => Poll::Pending,
            };
        };
        sink.heard(match stored {
            true => Heard::One {
                wire,
                evidence: Evidence::Stored,
            },
            false => Heard::Refused {
                wire,
                reason: "it says no",
                may_be_stored: false,
                words: Words::default(),
            },
        });
        Poll::Ready(Ok(progress))
    }

    fn deadline(&self) -> Option<Duration> {
        None
    }
}

#[tokio::test]
async fn messages_are_carried_and_outcomes_come_back() {
    let store = Store::memory(Options::new().client_name("me")).unwrap();
    let transport = InMemory::default();
    let server = transport.0.clone();
    let (refused, mut refusals) = tokio::sync::mpsc::unbounded_channel();
    let client = Client::builder("me")
        .transport(transport)
        .server("mem://closed")
        .server("mem://here")
        .store(store.clone())
        .on_failed_write(move |failed| {
            refused.send((failed.sequence, failed.reason)).unwrap();
            async { Ok(()) }
        })
        .open()
        .await
        .unwrap();
    let good = client.publish("orders", "good").await.unwrap();
    let bad = client.publish("orders", "no").await.unwrap();
    assert_eq!(good.await, Outcome::Persisted { via: Via::Ack });
    assert!(matches!(bad.await, Outcome::Rejected { .. }));
    let (sequence, reason) = refusals.recv().await.unwrap();
    assert_eq!((sequence, reason.as_str()), (2, "it says no"));
    assert_eq!(client.health().server, "here");

    let failed = client.publish("orders", "ten bytes!").await.unwrap_err();
    assert!(
        matches!(&failed.reason, PublishFailure::Unsendable(why) if why == "nine bytes at most"),
        "{failed}"
    );
    assert!(!failed.is_retryable());
    let failed = client.command(Request::new("sow")).await.unwrap_err();
    assert!(matches!(failed, CommandError::Unsupported), "{failed}");
    let failed = client.subscribe(Subscribe::topic("orders")).await;
    assert!(matches!(failed, Err(CommandError::Unsupported)));

    client.publish_flush(SECOND).await.unwrap();
    assert_eq!(client.close(SECOND).await.left, 0);
    let server = server.lock().unwrap();
    assert_eq!(server.stored, [b"good"]);
    let (tried, me): (Vec<_>, Vec<_>) = server.asked_by.iter().cloned().unzip();
    assert_eq!(tried, ["mem://closed", "mem://here"]);
    assert_eq!(me[0].client, "me");
    assert_eq!((me[0].may_have_sent, me[0].first_unsettled), (0, Some(1)));
    assert_eq!(Some(me[0].store), store.identity());
}

#[tokio::test]
async fn a_message_without_a_store_gets_the_ack_it_asked_for() {
    let transport = InMemory::default();
    let client = Client::builder("me")
        .transport(transport)
        .server("mem://here")
        .open()
        .await
        .unwrap();
    client.wait_logged_on(SECOND).await.unwrap();
    let asked = client.send(Message::publish("orders", "good").ask_ack());
    let asked = asked.await.unwrap();
    client.publish("orders", "more").await.unwrap();
    let failed = client.publish("orders", "ten bytes!").await.unwrap_err();
    assert!(matches!(failed.reason, PublishFailure::Unsendable(_)));
    client.publish_flush(SECOND).await.unwrap();
    assert_eq!(asked.await, Outcome::Persisted { via: Via::Ack });
    assert_eq!(client.close(SECOND).await.left, 0);
}

/// Time passes when nothing else does.
#[tokio::test(start_paused = true)]
async fn a_server_that_says_nothing_of_a_message_is_left_when_its_time_is_over() {
    let store = Store::memory(Options::new().client_name("me")).unwrap();
    let client = Client::builder("me")
        .transport(InMemory::default())
        .server("mem://here")
        .store(store.clone())
        .ack_deadline(SECOND * 3)
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    client.wait_logged_on(SECOND).await.unwrap();
    let from = tokio::time::Instant::now();
    client.publish("orders", "hm").await.unwrap();
    let why = loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            break why;
        }
    };
    assert_eq!(why, LinkEnd::AckOverdue { sequence: 1 });
    let took = from.elapsed();
    assert!((SECOND * 3..SECOND * 4).contains(&took), "{took:?}");
    assert!(store.is_unsettled(1));
    client.close(Duration::ZERO).await;
}

#[tokio::test]
async fn a_server_whose_success_means_too_little_is_not_used() {
    let require = Require::new(|meaning| match meaning {
        Meaning::Stored { .. } => Ok(()),
        _ => Err("it has to be stored".to_owned()),
    });
    let client = Client::builder("me")
        .transport(InMemory::default())
        .server("mem://here")
        .store(Store::memory(Options::new().client_name("me")).unwrap())
        .require(require)
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    let why = loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            break why;
        }
    };
    let unmet = LinkEnd::Requirement("it has to be stored".to_owned());
    assert_eq!(why, unmet);
    assert_eq!(client.health().logons, 0);
    client.close(Duration::ZERO).await;
}

#[tokio::test]
async fn what_the_transport_does_not_know_is_said_at_open() {
    let open = |address: &str| {
        let builder = Client::builder("me").transport(InMemory::default());
        builder.server(address).open()
    };
    let failed = open("tcp://somewhere:1/amps").await.unwrap_err();
    assert!(
        matches!(&failed, OpenError::Uri(why) if why.contains("mem://name")),
        "{failed}"
    );
    let builder = Client::builder("me").transport(InMemory::default());
    assert!(matches!(builder.open().await, Err(OpenError::NoServer)));
    let connector = Arc::new(amps_client::connector::SchemeConnector::new());
    let builder = Client::builder("me").transport(InMemory::default());
    let failed = builder.server("mem://x").connector(connector).open().await;
    assert!(matches!(failed, Err(OpenError::Options(_))));
}
