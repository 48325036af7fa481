//! What is printed by accident: errors, and whatever else holds a payload.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::error::Error;

use amps_client::protocol::{Command, FrameDecoder, Outbound, Publish, SowEntry};
use amps_client::{Message, Request, Subscribe};
use amps_store::{Batch, Envelope, PublishStore};
use common::{LONG, Peer, memory, pair};
use tokio::sync::mpsc;

const SECRET: &[u8] = b"at most thirty-two bytes of this|and nothing of what follows";

#[track_caller]
fn assert_discreet(shown: &str) {
    let bytes = SECRET.len();
    let expected = format!("{bytes} bytes: \"at most thirty-two bytes of this...\"");
    assert!(shown.contains(&expected), "{shown}");
    // Neither as text nor as numbers.
    assert!(!shown.contains("nothing"), "{shown}");
    assert!(!shown.contains("110, 111, 116"), "{shown}");
}

/// `main() -> Result<_, Box<dyn Error>>` prints the error's debug output when it fails; that once
/// contained the whole payload.
#[tokio::test]
async fn an_error_that_hands_a_message_back_does_not_print_it() {
    let (builder, _listener) = pair();
    let client = builder
        .store(memory())
        .max_message(10)
        .open()
        .await
        .unwrap();
    let error = client.publish("t", SECRET).await.unwrap_err();
    assert_discreet(&format!("{error:?}"));
    let error: Box<dyn Error> = error.into();
    assert_discreet(&format!("{error:?}"));
    assert_discreet(&format!("{error:#?}"));
    let mut told = Some(error.as_ref());
    while let Some(error) = told {
        assert!(!error.to_string().contains("nothing"), "{error}");
        told = error.source();
    }
}

#[tokio::test]
async fn what_a_server_refuses_or_delivers_is_shown_by_its_length() {
    let (builder, mut listener) = pair();
    let (failed, mut failures) = mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .on_failed_write(move |write| {
            let failed = failed.clone();
            async move { Ok(failed.send(write)?) }
        })
        .open()
        .await
        .unwrap();
    client.publish("t", SECRET).await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    peer.refuse(1, "no").await;
    assert_discreet(&format!("{:?}", failures.recv().await.unwrap()));
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t")).await }
    });
    let placed = peer.next().await.unwrap();
    peer.processed(&placed).await;
    let mut subscription = subscribing.await.unwrap().unwrap();
    let sub_id = placed.sub_id.unwrap();
    peer.deliver(&sub_id, "t", "1|1|", SECRET).await;
    let delivered = tokio::time::timeout(LONG, subscription.next()).await;
    assert_discreet(&format!("{:?}", delivered.unwrap().unwrap().unwrap()));
}

#[test]
fn every_type_that_holds_a_payload_is_discreet() {
    assert_discreet(&format!("{:?}", Message::publish("t", SECRET)));
    assert_discreet(&format!("{:?}", Request::new("x").body(SECRET)));
    assert_discreet(&format!("{:?}", Publish::new("t", SECRET)));
    assert_discreet(&format!("{:?}", Outbound::new("t", SECRET)));
    let entry = SowEntry {
        topic: "t",
        key: "k",
        bookmark: None,
        body: SECRET,
    };
    assert_discreet(&format!("{entry:?}"));
    let command = Command {
        name: "logon",
        password: Some("hunter2"),
        body: SECRET,
        ..Command::default()
    };
    assert_discreet(&format!("{command:?}"));
    assert!(!format!("{command:?}").contains("hunter2"));
    let mut decoder = FrameDecoder::new();
    decoder.read_buffer().extend_from_slice(SECRET);
    assert_discreet(&format!("{decoder:?}"));
    let store = memory();
    store.append(&Envelope::publish("t"), SECRET).unwrap();
    let mut batch = Batch::default();
    store.read_unsettled(1, 1, &mut batch).unwrap();
    assert_discreet(&format!("{batch:?}"));
}
