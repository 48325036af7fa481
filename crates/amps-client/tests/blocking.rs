//! The blocking façade.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::future::Future;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::task::{Context, Waker};
use std::time::Duration;

use amps_client::blocking::BlockingClient;
use amps_client::{
    Builder, ConnectionState, Event, FailedWrite, Message, OpenError, Outcome, PublishFailure,
    Request, Subscribe, SubscriptionEnd, Via,
};
use amps_store::Store;
use common::{LONG, Peer, memory, options, pair};

/// Serves one link on a thread of its own: acks every publish.
fn serve(mut listener: amps_client::connector::MemoryListener) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            while let Some(frame) = peer.next().await {
                if let Some(sequence) = frame.sequence {
                    peer.ok(sequence).await;
                }
            }
        });
    });
}

#[test]
fn it_publishes_flushes_and_closes_without_a_runtime() {
    let (builder, listener) = pair();
    serve(listener);
    let client = builder.store(memory()).open_blocking().unwrap();
    client.wait_logged_on(LONG).unwrap();
    let receipt = client.publish("orders", "1").unwrap();
    assert_eq!(receipt.outcome(), Outcome::Persisted { via: Via::Ack });
    client.publish("orders", "2").unwrap();
    assert_eq!(client.publish_flush(LONG).unwrap().persisted, 2);
    let report = client.close(LONG);
    assert!(report.clean && report.left == 0);
}

#[tokio::test]
async fn it_may_be_used_and_dropped_inside_a_runtime() {
    let (builder, listener) = pair();
    let client = builder.store(memory()).open_blocking().unwrap();
    let receipt = client.publish("orders", "1").unwrap();
    let waiting = receipt
        .outcome_within(Duration::from_millis(5))
        .unwrap_err();
    assert_eq!(waiting.sequence(), 1);
    drop(client);
    drop(listener);
    assert_eq!(waiting.outcome(), Outcome::Unknown);
}

/// What was known when the client ended was once asked of a thread that ended with it: the
/// receipt of an acked message said `Unknown`, and that of a durable one said that its store is
/// closed.
#[test]
fn receipts_events_and_subscriptions_remember_when_the_client_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let (builder, mut listener) = pair();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let client = builder.store(store).open_blocking().unwrap();
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            let placed = peer.next().await.unwrap();
            peer.processed(&placed).await;
            let sub = placed.sub_id.clone().unwrap();
            peer.deliver(&sub, "t", "1|1|", b"delivered").await;
            peer.publishes_to(4).await;
            peer.ok(2).await;
            peer.refuse(3, "no").await;
            while peer.next().await.is_some() {}
        });
    });
    client.wait_logged_on(LONG).unwrap();
    let subscription = client.subscribe(Subscribe::topic("t")).unwrap();
    let mut receipts = Vec::new();
    for n in 1..=4 {
        receipts.push(client.publish("t", format!("{n}")).unwrap());
    }
    receipts[3].durable().unwrap();
    // After the acks, since they were read together.
    while client.failed().list().is_empty() {
        std::thread::yield_now();
    }
    let settled = client.publish("t", "5").unwrap();
    let events = client.events();
    drop(client);
    server.join().unwrap();
    for receipt in &receipts {
        receipt.durable().expect("it was durable before");
    }
    let outcomes: Vec<Outcome> = receipts
        .into_iter()
        .map(|receipt| receipt.outcome_within(LONG).expect("told at once"))
        .collect();
    let acked = Outcome::Persisted { via: Via::Ack };
    assert_eq!(outcomes[..2], [acked.clone(), acked]);
    assert!(matches!(&outcomes[2], Outcome::Rejected { .. }));
    assert_eq!(outcomes[3], Outcome::Unknown, "nothing came for it");
    assert_eq!(settled.outcome(), Outcome::Unknown);
    // Read to their end, with everything that came before it.
    let read: Vec<_> = subscription.collect();
    assert_eq!(read[0].as_ref().unwrap().data.as_ref(), b"delivered");
    assert!(matches!(read[1..], [Err(SubscriptionEnd::Closed)]));
    let shut_down = |event: &Event| {
        let state = ConnectionState::Shutdown;
        matches!(event, Event::State { state: now, .. } if *now == state)
    };
    assert!(events.into_iter().any(|event| shut_down(&event)));
}

/// Inside a task that may have used up its budget: a wait that does not belong to the runtime
/// would never get an answer.
#[tokio::test]
async fn a_blocking_wait_in_a_task_without_a_share_left_ends() {
    let (builder, listener) = pair();
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path().join("store"), options()).unwrap();
    let client = builder.store(store).open_blocking().unwrap();
    let mut events = client.events();
    // Not earlier, since there must be no other events than those of the logon.
    serve(listener);
    while tokio::task::coop::has_budget_remaining() {
        let mut spend = std::pin::pin!(tokio::task::coop::consume_budget());
        let _ = spend.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    }
    let receipt = client.publish("orders", "1").unwrap();
    receipt.durable().unwrap();
    assert!(events.next().is_some());
    assert_eq!(receipt.outcome(), Outcome::Persisted { via: Via::Ack });
}

#[test]
fn dropped_it_closes_its_store() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, _listener) = pair();
    let client = builder
        .store(Store::open(&path, options()).unwrap())
        .open_blocking()
        .unwrap();
    client.publish("orders", "1").unwrap();
    client.close(Duration::ZERO);
    let store = Store::open(&path, options()).unwrap();
    assert_eq!(amps_store::PublishStore::bounds(&store).unsettled, 1);
}

/// Serves links on a thread of its own: refuses what asks to be refused, does not answer large
/// messages, and acks everything else.
fn refuse(mut listener: amps_client::connector::MemoryListener) {
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            loop {
                let mut peer = Peer::logged_on(&mut listener, 0).await;
                while let Some(frame) = peer.next().await {
                    match frame.sequence {
                        Some(sequence) if frame.body == b"refuse me" => {
                            peer.refuse(sequence, "no").await;
                        }
                        Some(_) if frame.body.len() > 1000 => {}
                        Some(sequence) => peer.ok(sequence).await,
                        None => peer.processed(&frame).await,
                    }
                }
            }
        });
    });
}

/// A client that its own handlers can reach.
type Slot = Arc<Mutex<Option<Arc<BlockingClient>>>>;

/// What handlers call, and its result.
type Call = fn(&BlockingClient) -> String;

fn made(slot: &Slot, call: Call, told: &Sender<String>) {
    let client = loop {
        // The handler may be faster than the test that fills the slot.
        match slot.lock().unwrap().clone() {
            Some(client) => break client,
            None => std::thread::yield_now(),
        }
    };
    told.send(call(&client)).unwrap();
}

/// Runs this inside every kind of handler.
fn in_handlers(call: Call) -> Vec<(&'static str, String)> {
    let in_async = |builder: Builder, slot: Slot, told: Sender<String>| {
        builder.on_failed_write(move |_: FailedWrite| {
            let (slot, told) = (slot.clone(), told.clone());
            async move {
                made(&slot, call, &told);
                Ok(())
            }
        })
    };
    let in_blocking = |builder: Builder, slot: Slot, told: Sender<String>| {
        builder.on_failed_write_blocking(move |_| {
            made(&slot, call, &told);
            Ok(())
        })
    };
    let in_last_chance = |builder: Builder, slot: Slot, told: Sender<String>| {
        builder.on_last_chance(move |_| made(&slot, call, &told))
    };
    type With<'a> = &'a dyn Fn(Builder, Slot, Sender<String>) -> Builder;
    let kinds: [(&'static str, With<'_>); 3] = [
        ("async", &in_async),
        ("blocking", &in_blocking),
        ("last chance", &in_last_chance),
    ];
    let run = |with: With<'_>| {
        let (builder, listener) = pair();
        refuse(listener);
        let slot = Slot::default();
        let (told, results): (Sender<String>, Receiver<String>) = channel();
        let dir = tempfile::tempdir().unwrap();
        let options = options().capacity(256 << 10);
        let store = Store::open(dir.path().join("s"), options).unwrap();
        let client = with(builder.store(store), slot.clone(), told)
            .open_blocking()
            .unwrap();
        let client = Arc::new(client);
        *slot.lock().unwrap() = Some(client.clone());
        client.publish("t", "refuse me").unwrap();
        let result = results.recv_timeout(LONG).expect("no deadlock");
        slot.lock().unwrap().take();
        result
    };
    kinds.map(|(kind, with)| (kind, run(with))).into()
}

fn each_says(call: Call, expected: &str) {
    for (kind, said) in in_handlers(call) {
        assert_eq!(said, expected, "in a handler: {kind}");
    }
}

#[test]
fn a_handler_may_flush_command_subscribe_and_wait() {
    each_says(
        |client| {
            let receipt = client.publish("t", "inside").unwrap();
            let report = client.publish_flush(LONG).unwrap();
            assert_eq!((report.persisted, report.rejected), (1, 1));
            assert_eq!(receipt.outcome(), Outcome::Persisted { via: Via::Ack });
            client.publish("t", "more").unwrap().durable().unwrap();
            client.command(Request::new("stop_timer")).unwrap();
            client.wait_logged_on(LONG).unwrap();
            drop(client.subscribe(Subscribe::topic("t")).unwrap());
            assert_eq!(client.failed().list().len(), 1);
            "all of it".to_owned()
        },
        "all of it",
    );
}

#[test]
fn a_publish_in_a_handler_never_waits_for_room() {
    each_says(
        |client| {
            let (mut sent, mut came) = (Vec::new(), 0);
            loop {
                match client.send(Message::publish("t", vec![b'x'; 3000])) {
                    Ok(receipt) => sent.push(receipt),
                    Err(error) => {
                        assert!(error.is_retryable(), "{error}");
                        match client.send_deadline(error.message.as_ref().clone(), LONG) {
                            // The file may have grown between the two calls, once or twice; then
                            // a call that waits finds room each time.
                            Ok(receipt) if came < 100 => {
                                came += 1;
                                sent.push(receipt);
                            }
                            Ok(_) => return "it waits for room".to_owned(),
                            Err(error) => {
                                return match error.reason {
                                    PublishFailure::Store(_) => "full".to_owned(),
                                    other => other.to_string(),
                                };
                            }
                        }
                    }
                }
            }
        },
        "full",
    );
}

#[test]
fn close_in_a_handler_does_not_wait_for_it() {
    each_says(
        |client| {
            let report = client.close(LONG);
            format!("clean {}, left {}", report.clean, report.left)
        },
        "clean true, left 0",
    );
}

#[tokio::test]
async fn an_open_that_fails_inside_a_runtime_is_an_error_and_no_panic() {
    let (builder, _listener) = pair();
    let failed = builder
        .heartbeat(Duration::from_millis(1))
        .store(memory())
        .open_blocking();
    assert!(matches!(failed, Err(OpenError::Options(_))), "{failed:?}");
}

#[test]
fn every_call_of_the_async_client_is_there() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open_blocking().unwrap();
    let mut events = client.events();
    client.delta_publish("t", "d").unwrap();
    client.sow_delete_by_filter("t", "/id = 1").unwrap();
    client.sow_delete_by_keys("t", ["1", "2"]).unwrap();
    client.sow_delete_by_data("t", "body").unwrap();
    client.try_publish("t", "last").unwrap();
    client.allow_rebase().unwrap();
    assert!(client.give_up(5));
    assert_eq!(client.failed().list()[0].sequence, 5);
    assert!(client.failed().accept(5).unwrap());
    let server = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async move {
            let mut peer = Peer::logged_on(&mut listener, 0).await;
            let mut verbs = Vec::new();
            for _ in 0..4 {
                verbs.push(peer.next().await.unwrap().verb);
            }
            peer.ok(4).await;
            assert!(peer.next().await.is_none());
            verbs
        })
    });
    assert_eq!(client.publish_flush(LONG).unwrap().persisted, 4);
    let logged_on = |event: &Event| {
        let state = ConnectionState::LoggedOn;
        matches!(event, Event::State { state: now, .. } if *now == state)
    };
    while !logged_on(&events.next_within(LONG).unwrap()) {}
    // Whatever else is reported, the stream ends, and so does the wait.
    while events.try_next().is_some() {}
    while events.next_within(Duration::ZERO).is_some() {}
    assert_eq!(events.dropped(), 0);
    assert!(client.close(LONG).clean);
    assert!(events.next().is_some(), "shut down");
    drop(client);
    assert!(events.find(|_| false).is_none(), "the end");
    let verbs = server.join().unwrap();
    assert_eq!(
        verbs,
        ["DeltaPublish", "SowDelete", "SowDelete", "SowDelete"]
    );
}
