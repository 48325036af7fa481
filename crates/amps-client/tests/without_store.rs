//! A client without a store: messages that ask for an ack of their own, and what may settle them.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;
use std::time::Duration;

use amps_client::connector::MemoryListener;
use amps_client::protocol::{Ack, AckKind, AckKinds, Status};
use amps_client::{
    Builder, Client, Event, Events, FailedWrite, FlushError, LinkEnd, Message, Outcome,
    PublishFailure, Receipt, Subscribe, UnhandledAck, Via,
};
use common::{Frame, LONG, Peer, pair, started};
use tokio::sync::{Semaphore, mpsc};

const PERSISTED: Outcome = Outcome::Persisted { via: Via::Ack };

/// A moment in which everything runs that can: the paused clock advances only then.
const MOMENT: Duration = Duration::from_millis(1);

async fn open(builder: Builder, listener: &mut MemoryListener) -> (Client, Peer) {
    let client = builder.open().await.unwrap();
    let peer = Peer::logged_on(listener, 7).await;
    client.wait_logged_on(LONG).await.unwrap();
    (client, peer)
}

fn asking(body: &str) -> Message {
    Message::publish("orders", body.to_owned()).ask_ack()
}

async fn ask(client: &Client, body: &str) -> Receipt {
    client.send(asking(body)).await.unwrap()
}

async fn success(peer: &mut Peer, frame: &Frame) {
    let mut ack = Ack::new(AckKind::Persisted, Status::Success);
    ack.command_id = frame.id.as_deref();
    peer.ack(&ack).await;
}

async fn refusal(peer: &mut Peer, frame: &Frame, reason: &str) {
    peer.ack(&Ack::refused(Some(3), frame.id.as_deref(), reason))
        .await;
}

fn is_pending(receipt: &mut Receipt) -> bool {
    let mut context = std::task::Context::from_waker(std::task::Waker::noop());
    let polled = std::future::Future::poll(std::pin::Pin::new(receipt), &mut context);
    matches!(polled, Poll::Pending)
}

fn told(events: &mut Events) -> Vec<Event> {
    std::iter::from_fn(|| events.try_next()).collect()
}

fn unattributed(events: &[Event]) -> usize {
    let refusals = events.iter();
    refusals
        .filter(|event| matches!(event, Event::Unattributed { .. }))
        .count()
}

/// A handler that reports each refusal, and accepts it.
fn reporting(builder: Builder) -> (Builder, mpsc::UnboundedReceiver<FailedWrite>) {
    let (failed, reports) = mpsc::unbounded_channel();
    let builder = builder.on_failed_write(move |f| {
        let failed = failed.clone();
        async move { Ok(failed.send(f)?) }
    });
    (builder, reports)
}

/// An ack could once not be asked for without a store, and a failed-write handler was refused.
#[tokio::test(start_paused = true)]
async fn a_message_may_ask_for_an_ack_and_its_refusal_reaches_the_handler() {
    let (builder, mut listener) = pair();
    let (builder, mut reports) = reporting(builder);
    let (client, mut peer) = open(builder, &mut listener).await;
    let mut events = client.events();
    let mut receipts = Vec::new();
    for message in [
        asking("1"),
        Message::delta_publish("orders", "2").ask_ack(),
        Message::sow_delete_by_keys("orders", ["3"]).ask_ack(),
        Message::publish("orders", "4"),
    ] {
        receipts.push(client.send(message).await.unwrap());
    }
    let mut frames = Vec::new();
    for _ in 0..4 {
        frames.push(peer.next().await.unwrap());
    }
    for (frame, receipt) in frames.iter().zip(&receipts).take(3) {
        assert_eq!((frame.sequence, receipt.sequence()), (None, 0));
        assert_eq!(frame.acks, AckKinds::PERSISTED);
        assert!(frame.id.is_some() && frame.id.as_deref() == receipt.command_id());
        assert!(receipt.durable().await.is_err(), "nothing keeps it");
    }
    assert!(frames[3].id.is_none() && frames[3].acks.is_empty());
    assert_eq!(receipts[3].command_id(), None);
    assert_eq!(client.health().unsettled, 3);
    // In any order, since each ack is about one message.
    let reason = "n".repeat(200);
    refusal(&mut peer, &frames[1], &reason).await;
    success(&mut peer, &frames[2]).await;
    success(&mut peer, &frames[0]).await;
    let report = reports.recv().await.unwrap();
    assert_eq!(report.command_id.as_deref(), receipts[1].command_id());
    assert_eq!((report.sequence, report.attempts), (0, 1));
    assert_eq!(report.reason.as_str(), &reason[..128]);
    assert!(report.reason_cut && report.at > 0);
    assert!(report.original.is_none() && !report.late && !report.earlier_run);
    let mut outcomes = Vec::new();
    for receipt in &mut receipts {
        outcomes.push(receipt.await);
    }
    assert!(matches!(&outcomes[1], Outcome::Rejected { reason } if reason.as_str().len() == 128));
    outcomes.remove(1);
    assert_eq!(outcomes, [PERSISTED, PERSISTED, Outcome::Unknown]);
    // Whoever asks again gets the same answer.
    assert_eq!((&mut receipts[0]).await, PERSISTED);
    let health = client.health();
    assert_eq!(health.unsettled, 0);
    assert_eq!((health.counts.persisted, health.counts.rejected), (2, 1));
    assert_eq!((health.counts.unattributed, health.rejections), (0, 0));
    let told = told(&mut events);
    let refused = told.iter().filter(|event| {
        matches!(
            event,
            Event::Refused {
                sequence: 0,
                late: false,
                earlier_run: false,
                ..
            }
        )
    });
    assert_eq!((refused.count(), unattributed(&told)), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn without_a_handler_the_last_chance_handler_gets_the_refusal_as_it_came() {
    let (builder, mut listener) = pair();
    let (told, mut acks) = mpsc::unbounded_channel();
    let builder = builder.on_last_chance(move |ack| told.send(ack).unwrap());
    let (client, mut peer) = open(builder, &mut listener).await;
    // Nobody holds the receipt, and the refusal is reported all the same.
    drop(ask(&client, "1").await);
    let receipt = ask(&client, "2").await;
    let frames = [peer.next().await.unwrap(), peer.next().await.unwrap()];
    refusal(&mut peer, &frames[0], "not entitled").await;
    peer.ack(&Ack {
        command_id: frames[1].id.as_deref(),
        reason: Some("bad message"),
        ..Ack::new(AckKind::Processed, Status::Failure)
    })
    .await;
    let ack: UnhandledAck = acks.recv().await.unwrap();
    assert_eq!((ack.kind, ack.figure), (Some(AckKind::Persisted), Some(3)));
    assert_eq!(ack.reason.as_str(), "not entitled");
    assert_eq!((ack.sequence, ack.waits_in_store), (None, false));
    assert_eq!(
        (ack.command_id, ack.earlier_run),
        (frames[0].id.clone(), false)
    );
    let ack = acks.recv().await.unwrap();
    assert_eq!((ack.kind, ack.figure), (Some(AckKind::Processed), None));
    assert_eq!(ack.command_id.as_deref(), receipt.command_id());
    assert!(matches!(receipt.await, Outcome::Rejected { .. }));
    assert!(acks.try_recv().is_err(), "each once");
    assert_eq!(client.health().counts.rejected, 2);
}

#[tokio::test(start_paused = true)]
async fn nothing_but_an_ack_that_names_the_message_settles_it() {
    let (builder, mut listener) = pair();
    let (builder, mut reports) = reporting(builder);
    let (told_last, mut acks) = mpsc::unbounded_channel();
    let builder = builder.on_last_chance(move |ack| told_last.send(ack).unwrap());
    let (client, mut peer) = open(builder, &mut listener).await;
    let mut events = client.events();
    let subscribing = tokio::spawn({
        let client = client.clone();
        async move { client.subscribe(Subscribe::topic("t")).await }
    });
    let place = peer.next().await.unwrap();
    peer.processed(&place).await;
    let _subscription = subscribing.await.unwrap().unwrap();
    let mut receipt = ask(&client, "1").await;
    let frame = peer.next().await.unwrap();
    let id = frame.id.clone().unwrap();
    let digits = id.trim_start_matches(|c: char| !c.is_ascii_digit());
    let letter = &id[..id.len() - digits.len()];
    // Acks that are not about it, or do not say that it is persisted.
    for other in [
        format!(r#""cid":"{letter}0{digits}""#),
        format!(r#""cid":" {id}""#),
        format!(r#""cid":"{}""#, id.to_uppercase()),
        format!(r#""cid":"{digits}""#),
        format!(r#""cid":"{letter}99""#),
        format!(r#""cid":"{letter}18446744073709551616""#),
        format!(r#""cid":"c{digits}""#),
        format!(
            r#""cid":"{id}","sub_id":"{}""#,
            place.sub_id.as_deref().unwrap()
        ),
        format!(r#""cid":"{id}","sub_id":"s999""#),
        format!(r#""cid":"{id}","sub_id":"somebody's""#),
        r#""s":1"#.to_owned(),
        r#""s":9223372036854775807"#.to_owned(),
    ] {
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"success",{other}}}"#
        ))
        .await;
    }
    for ack in [
        r#""a":"processed","status":"success""#,
        r#""a":"received","status":"success""#,
        r#""a":"completed","status":"success""#,
        r#""a":"persisted,processed","status":"success""#,
        r#""status":"success""#,
        r#""a":"persisted""#,
        r#""a":"persisted","status":"ok""#,
        r#""a":"persisted","status":"retry""#,
    ] {
        peer.frame(&format!(r#"{{"c":"ack",{ack},"cid":"{id}"}}"#))
            .await;
    }
    // About another command or a subscription, and so not about publishes at all.
    for other in [
        format!(r#""cid":"c{digits}""#),
        format!(r#""cid":"{id}","sub_id":"s999""#),
        format!(r#""cid":"{id}","sub_id":"somebody's""#),
    ] {
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"failure",{other}}}"#
        ))
        .await;
    }
    tokio::time::sleep(MOMENT).await;
    assert!(is_pending(&mut receipt));
    assert_eq!(unattributed(&told(&mut events)), 0);
    assert!(acks.try_recv().is_ok(), "and nothing is dropped in silence");
    // Refusals that may be of a publish, but name none.
    for other in [r#""cid":"x""#, r#""cid":"p99""#, r#""s":1"#] {
        peer.frame(&format!(
            r#"{{"c":"ack","a":"persisted","status":"failure",{other}}}"#
        ))
        .await;
    }
    tokio::time::sleep(MOMENT).await;
    assert!(is_pending(&mut receipt));
    assert_eq!(unattributed(&told(&mut events)), 3);
    success(&mut peer, &frame).await;
    assert_eq!(receipt.await, PERSISTED);
    // The same again, and a refusal after the success: too late to change anything.
    success(&mut peer, &frame).await;
    refusal(&mut peer, &frame, "late").await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(unattributed(&told(&mut events)), 1);
    let counts = client.health().counts;
    assert_eq!((counts.persisted, counts.rejected), (1, 0));
    assert_eq!(counts.unattributed, 4);
    let mut last = None;
    while let Ok(ack) = acks.try_recv() {
        last = Some(ack);
    }
    assert_eq!(last.unwrap().reason.as_str(), "late");
    assert!(reports.try_recv().is_err(), "the handler has heard of none");
}

#[tokio::test(start_paused = true)]
async fn what_a_link_leaves_open_is_unknown_and_no_other_link_settles_it() {
    let (builder, mut listener) = pair();
    let (builder, mut reports) = reporting(builder);
    let (client, mut peer) = open(builder, &mut listener).await;
    let mut events = client.events();
    let receipts = [ask(&client, "1").await, ask(&client, "2").await];
    let old = [peer.next().await.unwrap(), peer.next().await.unwrap()];
    drop(peer);
    for receipt in receipts {
        assert_eq!(receipt.await, Outcome::Unknown);
    }
    assert_eq!(client.health().unsettled, 0);
    let error = client.send(asking("between")).await.unwrap_err();
    assert!(matches!(error.reason, PublishFailure::NotConnected));
    // Before the logon, after it, and when there is something to settle again.
    let (mut peer, logon) = Peer::accept(&mut listener).await;
    success(&mut peer, &old[0]).await;
    peer.accept_logon(&logon, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    let mut receipt = ask(&client, "3").await;
    let frame = peer.next().await.unwrap();
    assert_eq!(frame.body, b"3", "nothing is sent again");
    assert!(old.iter().all(|old| old.id != frame.id), "no id twice");
    success(&mut peer, &old[0]).await;
    refusal(&mut peer, &old[1], "of before").await;
    tokio::time::sleep(MOMENT).await;
    assert!(is_pending(&mut receipt));
    assert_eq!(unattributed(&told(&mut events)), 1, "told all the same");
    success(&mut peer, &frame).await;
    assert_eq!(receipt.await, PERSISTED);
    let counts = client.health().counts;
    assert_eq!((counts.persisted, counts.rejected), (1, 0));
    assert!(reports.try_recv().is_err());
}

/// A server that guesses ids once acked what it had not read.
#[tokio::test(start_paused = true)]
async fn what_was_not_handed_to_the_link_cannot_be_acked() {
    let (builder, mut listener) = pair();
    let (client, mut peer) = open(builder, &mut listener).await;
    // The first of these fills the pipe and the write buffer.
    for _ in 0..2 {
        client.publish("orders", vec![b'x'; 300_000]).await.unwrap();
        tokio::time::sleep(MOMENT).await;
    }
    let mut receipt = ask(&client, "1").await;
    let id = receipt.command_id().unwrap().to_owned();
    let ack = format!(r#"{{"c":"ack","a":"persisted","status":"success","cid":"{id}"}}"#);
    peer.frame(&ack).await;
    tokio::time::sleep(MOMENT).await;
    assert!(is_pending(&mut receipt));
    for _ in 0..3 {
        peer.next().await.unwrap();
    }
    peer.frame(&ack).await;
    assert_eq!(receipt.await, PERSISTED);
}

#[tokio::test(start_paused = true)]
async fn no_more_messages_wait_for_acks_than_may() {
    let (builder, mut listener) = pair();
    let builder = builder.max_in_flight(2, 1 << 20);
    let turns = Arc::new(Semaphore::new(0));
    let handler = turns.clone();
    let builder = builder.on_failed_write(move |_| {
        let turns = handler.clone();
        async move {
            turns.acquire().await?.forget();
            Ok(())
        }
    });
    let (client, mut peer) = open(builder, &mut listener).await;
    let first = ask(&client, "1").await;
    drop(ask(&client, "2").await);
    let frames = [peer.next().await.unwrap(), peer.next().await.unwrap()];
    let full = |error: amps_client::PublishError| {
        assert!(error.is_retryable());
        matches!(error.reason, PublishFailure::Unacked(2))
    };
    assert!(full(client.try_send(asking("3")).unwrap_err()));
    let error = client.send_deadline(asking("3"), LONG).await.unwrap_err();
    assert!(
        matches!(error.reason, PublishFailure::Deadline(_)),
        "{error}"
    );
    // Messages that ask for no ack need no place.
    client.publish("orders", "free").await.unwrap();
    assert_eq!(peer.next().await.unwrap().body, b"free");
    let waiting = started(Box::pin(client.send(asking("3")))).await;
    success(&mut peer, &frames[0]).await;
    assert_eq!(first.await, PERSISTED);
    let third = waiting.await.unwrap();
    // A refused one keeps its place until the handler has returned.
    refusal(&mut peer, &frames[1], "no").await;
    tokio::time::sleep(MOMENT).await;
    assert_eq!(client.health().counts.rejected, 1);
    assert!(full(client.try_send(asking("4")).unwrap_err()));
    let waiting = started(Box::pin(client.send(asking("4")))).await;
    turns.add_permits(1);
    drop(waiting.await.unwrap());
    // And the end of the link makes room for all.
    drop(peer);
    assert_eq!(third.await, Outcome::Unknown);
    let _peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    let _two = [ask(&client, "5").await, ask(&client, "6").await];
}

#[tokio::test(start_paused = true)]
async fn a_flush_waits_for_acks_and_handlers_and_says_of_what_nothing_is_known() {
    let (builder, mut listener) = pair();
    let turns = Arc::new(Semaphore::new(0));
    let handler = turns.clone();
    let builder = builder.on_failed_write(move |_| {
        let turns = handler.clone();
        async move {
            turns.acquire().await?.forget();
            Ok(())
        }
    });
    let (client, mut peer) = open(builder, &mut listener).await;
    for body in ["1", "2"] {
        drop(ask(&client, body).await);
    }
    let frames = [peer.next().await.unwrap(), peer.next().await.unwrap()];
    let flushing = |within: Duration| {
        let client = client.clone();
        tokio::spawn(async move { client.publish_flush(within).await })
    };
    let flush = flushing(Duration::from_secs(5));
    let asked = peer.next().await.unwrap();
    peer.processed(&asked).await;
    success(&mut peer, &frames[0]).await;
    let error = flush.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            FlushError::Timeout {
                left: 1,
                handlers: 0
            }
        ),
        "{error}"
    );
    refusal(&mut peer, &frames[1], "no").await;
    let flush = flushing(Duration::from_secs(5));
    let asked = peer.next().await.unwrap();
    peer.processed(&asked).await;
    let error = flush.await.unwrap().unwrap_err();
    assert!(
        matches!(
            error,
            FlushError::Timeout {
                left: 0,
                handlers: 1
            }
        ),
        "{error}"
    );
    // Published after it began, so it does not concern this flush.
    let flush = flushing(LONG);
    let asked = peer.next().await.unwrap();
    drop(ask(&client, "3").await);
    let third = peer.next().await.unwrap();
    peer.processed(&asked).await;
    turns.add_permits(1);
    let report = flush.await.unwrap().unwrap();
    assert_eq!((report.persisted, report.rejected, report.left), (1, 1, 0));
    assert_eq!(report.unknown, 0);
    assert!(!report.all_persisted());
    let flush = flushing(LONG);
    let asked = peer.next().await.unwrap();
    peer.processed(&asked).await;
    tokio::time::sleep(MOMENT).await;
    assert!(!flush.is_finished());
    success(&mut peer, &third).await;
    tokio::time::sleep(MOMENT).await;
    assert!(flush.is_finished(), "and it learns of the ack at once");
    let report = flush.await.unwrap().unwrap();
    assert_eq!(
        (report.persisted, report.rejected, report.unknown),
        (1, 0, 0)
    );
    assert!(report.all_persisted());
    // That the server has processed it says nothing about what became of it.
    client.publish("orders", "4").await.unwrap();
    peer.next().await.unwrap();
    let flush = flushing(LONG);
    let asked = peer.next().await.unwrap();
    peer.processed(&asked).await;
    let report = flush.await.unwrap().unwrap();
    assert_eq!((report.persisted, report.unknown), (0, 1));
    assert!(!report.all_persisted());
}

#[tokio::test(start_paused = true)]
async fn a_close_waits_for_acks_until_its_deadline_and_the_rest_is_unknown() {
    for answered in [true, false] {
        let (builder, mut listener) = pair();
        let (builder, mut reports) = reporting(builder);
        let (client, mut peer) = open(builder, &mut listener).await;
        let receipts = [ask(&client, "1").await, ask(&client, "2").await];
        let frames = [peer.next().await.unwrap(), peer.next().await.unwrap()];
        let closing = tokio::spawn({
            let client = client.clone();
            async move { client.close(Duration::from_secs(9)).await }
        });
        let asked = peer.next().await.unwrap();
        assert_eq!(asked.verb, "Flush");
        peer.processed(&asked).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        if answered {
            refusal(&mut peer, &frames[0], "no").await;
            success(&mut peer, &frames[1]).await;
        }
        let begun = tokio::time::Instant::now();
        let report = closing.await.unwrap();
        assert!(report.clean && report.left == 0 && report.handlers == 0);
        let [first, second] = receipts;
        match answered {
            true => {
                assert!(begun.elapsed() < Duration::from_secs(1), "no longer");
                assert!(matches!(first.await, Outcome::Rejected { .. }));
                assert_eq!(second.await, PERSISTED);
                assert!(reports.recv().await.is_some());
            }
            false => {
                assert_eq!(
                    (first.await, second.await),
                    (Outcome::Unknown, Outcome::Unknown)
                );
            }
        }
        assert!(reports.recv().await.is_none(), "the handler is gone");
        let error = client.send(asking("3")).await.unwrap_err();
        assert!(matches!(error.reason, PublishFailure::Closed));
    }
}

#[tokio::test(start_paused = true)]
async fn a_handler_may_publish_flush_and_close() {
    let (builder, mut listener) = pair();
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let inside = slot.clone();
    let (done, mut finished) = mpsc::unbounded_channel();
    let builder = builder.max_in_flight(1, 1 << 20).on_failed_write(move |_| {
        let client = inside.lock().unwrap().take().unwrap();
        let done = done.clone();
        async move {
            // This message itself has the only place.
            let error = client.send(asking("2")).await.unwrap_err();
            assert!(matches!(error.reason, PublishFailure::Unacked(1)));
            client.publish("orders", "3").await?;
            client.publish_flush(LONG).await?;
            done.send(client.close(LONG).await)?;
            Ok(())
        }
    });
    let (client, mut peer) = open(builder, &mut listener).await;
    *slot.lock().unwrap() = Some(client.clone());
    drop(ask(&client, "1").await);
    let frame = peer.next().await.unwrap();
    refusal(&mut peer, &frame, "no").await;
    assert_eq!(peer.next().await.unwrap().body, b"3");
    for _ in 0..2 {
        let flush = peer.next().await.unwrap();
        assert_eq!(flush.verb, "Flush");
        peer.processed(&flush).await;
    }
    assert_eq!(finished.recv().await.unwrap().left, 0);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_fails_or_panics_is_told_of_and_the_next_one_is_called() {
    let (builder, mut listener) = pair();
    let calls = Arc::new(AtomicUsize::new(0));
    let counter = calls.clone();
    let builder = builder.on_failed_write(move |_| {
        let call = counter.fetch_add(1, Ordering::SeqCst);
        async move {
            match call {
                0 => Err("not today".into()),
                1 => panic!("really not"),
                _ => Ok(()),
            }
        }
    });
    let (client, mut peer) = open(builder, &mut listener).await;
    let mut events = client.events();
    for body in ["1", "2", "3"] {
        drop(ask(&client, body).await);
        let frame = peer.next().await.unwrap();
        refusal(&mut peer, &frame, "no").await;
    }
    tokio::time::sleep(MOMENT).await;
    assert_eq!(calls.load(Ordering::SeqCst), 3);
    let failures: Vec<String> = told(&mut events)
        .into_iter()
        .filter_map(|event| match event {
            Event::HandlerFailed { sequence: 0, error } => Some(error),
            _ => None,
        })
        .collect();
    assert!(
        matches!(&failures[..], [first, second] if first == "not today" && second.contains("really not")),
        "{failures:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_client_that_is_dropped_leaves_no_receipt_waiting() {
    let (builder, mut listener) = pair();
    let (client, mut peer) = open(builder, &mut listener).await;
    let receipt = ask(&client, "1").await;
    peer.next().await.unwrap();
    drop(client);
    assert_eq!(receipt.await, Outcome::Unknown);
}

#[test]
fn a_runtime_that_is_shut_down_leaves_no_receipt_waiting() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (builder, mut listener) = pair();
    let (client, receipt, peer) = runtime.block_on(async {
        let (client, mut peer) = open(builder, &mut listener).await;
        let receipt = ask(&client, "1").await;
        peer.next().await.unwrap();
        (client, receipt, peer)
    });
    runtime.shutdown_background();
    let other = tokio::runtime::Runtime::new().unwrap();
    let waited = other.block_on(async { tokio::time::timeout(LONG, receipt).await });
    assert_eq!(waited.unwrap(), Outcome::Unknown);
    drop((client, peer));
}

/// Once nothing watched a link on which the server owed an ack and sent nothing.
#[tokio::test(start_paused = true)]
async fn a_server_that_owes_an_ack_and_falls_silent_is_left() {
    let (builder, mut listener) = pair();
    let builder = builder.heartbeat(Duration::from_secs(10));
    let (client, mut peer) = open(builder, &mut listener).await;
    let mut events = client.events();
    let heartbeat = peer.next().await.unwrap();
    assert_eq!(heartbeat.verb, "Heartbeat");
    let listening = tokio::spawn(async move {
        while let Some(frame) = peer.next().await {
            drop(frame);
        }
    });
    // It owes nothing, and may be silent.
    tokio::time::sleep(Duration::from_secs(3600)).await;
    client.publish("orders", "free").await.unwrap();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert!(!listening.is_finished());
    let receipt = ask(&client, "1").await;
    assert_eq!(receipt.await, Outcome::Unknown);
    loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            break assert!(matches!(why, LinkEnd::HeartbeatLost), "{why}");
        }
    }
    listening.await.unwrap();
}
