//! A flush returns when everything that it covers is settled and the application has seen every
//! refusal among it.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::protocol::Ack;
use amps_client::{Client, FlushError, FlushReport, Message, Outcome, Via};
use amps_store::{PublishStore, Store};
use common::{LONG, Peer, memory, options, pair, started};
use tokio::sync::{Notify, Semaphore, mpsc};

/// Longer than anything real, and over at once while the clock is paused.
const HOUR: Duration = Duration::from_secs(3600);

/// A program flushes and returns, as is recommended (`docs/protocol.md` §4.4). The refusals that
/// came last, up to all of them, were once lost with the handlers that had not begun.
#[tokio::test]
async fn every_refusal_has_been_in_its_handler_when_a_flush_returns() {
    for takes in [true, false] {
        let (builder, mut listener) = pair();
        let handled = Arc::new(AtomicUsize::new(0));
        let count = handled.clone();
        let client = builder
            .store(memory())
            .on_failed_write(move |_| {
                let count = count.clone();
                async move {
                    for _ in 0..100 {
                        tokio::task::yield_now().await;
                    }
                    count.fetch_add(1, Ordering::SeqCst);
                    match takes {
                        true => Ok(()),
                        false => Err("not now".into()),
                    }
                }
            })
            .open()
            .await
            .unwrap();
        for n in 0..7 {
            client.publish("t", format!("{n}")).await.unwrap();
        }
        let flush = started(Box::pin(client.publish_flush(LONG))).await;
        let mut peer = Peer::logged_on(&mut listener, 0).await;
        peer.publishes_to(7).await;
        peer.ok(1).await;
        for refused in 2..7 {
            peer.refuse(refused, "no").await;
        }
        peer.ok(7).await;
        let report = flush.await.unwrap();
        assert_eq!(handled.load(Ordering::SeqCst), 5);
        let waiting = if takes { 0 } else { 5 };
        assert_eq!(
            report,
            FlushReport {
                persisted: 2,
                rejected: 5,
                waiting,
                ..FlushReport::default()
            }
        );
        assert!(!report.all_persisted());
        // The next flush is about what came since.
        client.publish("t", "8").await.unwrap();
        peer.publishes_to(8).await;
        peer.ok(8).await;
        let report = client.publish_flush(LONG).await.unwrap();
        assert_eq!((report.persisted, report.rejected), (1, 0));
        assert_eq!(report.all_persisted(), takes, "{waiting} wait");
        assert_eq!(client.health().counts.rejected, 5, "since the open");
    }
}

/// Whoever publishes and then flushes is told of everything, however early the answers came.
#[tokio::test]
async fn what_was_answered_before_the_flush_is_in_its_report_once() {
    let (builder, mut listener) = pair();
    let client = builder.store(memory()).open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    let first = client.publish("t", "1").await.unwrap();
    let second = client.publish("t", "2").await.unwrap();
    let from = first.sequence();
    peer.publishes_to(from + 1).await;
    peer.ok(from).await;
    peer.refuse(from + 1, "no").await;
    assert!(matches!(second.await, Outcome::Rejected { .. }));
    assert_eq!(first.await, Outcome::Persisted { via: Via::Ack });
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.persisted, report.rejected, report.left), (1, 1, 0));
    assert!(!report.all_persisted());
    let again = client.publish_flush(LONG).await.unwrap();
    assert_eq!((again.persisted, again.rejected, again.waiting), (0, 0, 1));
    assert!(!again.all_persisted(), "a refusal waits");
    client.failed().accept(from + 1).unwrap();
    assert!(client.publish_flush(LONG).await.unwrap().all_persisted());
}

/// A server's figure is not an ack: such a message may have been refused.
#[tokio::test]
async fn what_a_logon_covers_is_not_all_persisted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let (builder, mut listener) = pair();
    let store = Store::open(&path, options()).unwrap();
    let client = builder.store(store).open().await.unwrap();
    client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    drop(peer);
    let _peer = Peer::logged_on(&mut listener, 1).await;
    let report = client.publish_flush(LONG).await.unwrap();
    assert_eq!((report.persisted, report.persisted_at_logon), (0, 1));
    assert!(!report.all_persisted());
}

/// Only the timeout bounds it: here a handler never returns.
#[tokio::test(start_paused = true)]
async fn a_handler_that_never_returns_is_in_the_error() {
    let (builder, mut listener) = pair();
    let client = builder
        .store(memory())
        .on_failed_write(|_| std::future::pending())
        .open()
        .await
        .unwrap();
    for n in 0..4 {
        client.publish("t", format!("{n}")).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(4).await;
    for refused in 1..4 {
        peer.refuse(refused, "no").await;
    }
    let begun = tokio::time::Instant::now();
    let flushed = client.publish_flush(HOUR).await;
    let Err(FlushError::Timeout { left, handlers }) = flushed else {
        panic!("{flushed:?}");
    };
    assert_eq!((left, handlers), (1, 3));
    assert_eq!(begun.elapsed(), HOUR);
    peer.ok(4).await;
    let flushed = client.publish_flush(HOUR).await;
    assert!(
        matches!(
            flushed,
            Err(FlushError::Timeout {
                left: 0,
                handlers: 3
            })
        ),
        "{flushed:?}"
    );
    // Neither of them reported what it had counted, and neither does one that nobody waits for.
    drop(started(Box::pin(client.publish_flush(HOUR))).await);
    for refused in 1..4 {
        client.failed().accept(refused).unwrap();
    }
    drop(started(Box::pin(client.publish_flush(HOUR))).await);
    let begun = tokio::time::Instant::now();
    let report = client.close(HOUR).await;
    assert_eq!((report.left, report.handlers), (0, 1), "the one at work");
    assert!(report.clean && begun.elapsed() >= HOUR);
}

/// Inside a handler a flush does not wait for handlers. A task that the handler spawned is not a
/// handler, so its flush waits for the handler, which in turn waits for that task.
#[tokio::test(start_paused = true)]
async fn a_flush_inside_a_handler_waits_for_none_and_one_in_a_task_of_it_does() {
    let (builder, mut listener) = pair();
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let inside = slot.clone();
    let (told, mut heard) = mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .on_failed_write(move |_| {
            let (inside, told) = (inside.clone(), told.clone());
            async move {
                let client = inside.lock().unwrap().clone().unwrap();
                told.send(client.publish_flush(HOUR).await)?;
                let flush = async move { client.publish_flush(HOUR).await };
                told.send(tokio::spawn(flush).await?)?;
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    *slot.lock().unwrap() = Some(client.clone());
    client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    peer.refuse(1, "no").await;
    assert_eq!(heard.recv().await.unwrap().unwrap().rejected, 1);
    let in_a_task = heard.recv().await.unwrap();
    assert!(
        matches!(
            in_a_task,
            Err(FlushError::Timeout {
                left: 0,
                handlers: 1
            })
        ),
        "{in_a_task:?}"
    );
    slot.lock().unwrap().take();
}

/// Refusals of an earlier run that are still to be offered count as well, and are waited for.
#[tokio::test(start_paused = true)]
async fn refusals_of_an_earlier_run_are_waited_for() {
    let store = memory();
    for n in 0..3u8 {
        let envelope = amps_store::Envelope::publish("t");
        let sequence = store.append(&envelope, &[n]).unwrap().sequence;
        store.reject(sequence, "no", 1).unwrap();
    }
    let (builder, _listener) = pair();
    let gate = Arc::new(Semaphore::new(0));
    let passing = gate.clone();
    let client = builder
        .store(store)
        .on_failed_write(move |_| {
            let passing = passing.clone();
            async move {
                passing.acquire().await?.forget();
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    gate.add_permits(1);
    let flushed = client.publish_flush(HOUR).await;
    assert!(
        matches!(
            flushed,
            Err(FlushError::Timeout {
                left: 0,
                handlers: 2
            })
        ),
        "{flushed:?}"
    );
    let flush = started(Box::pin(client.publish_flush(HOUR))).await;
    // One is accepted by somebody else meanwhile; that ends the wait as well.
    gate.add_permits(1);
    client.failed().accept(3).unwrap();
    assert_eq!(flush.await.unwrap().waiting, 0);
}

/// A flush that failed, or was not waited for, reported nothing: the next one does.
#[tokio::test(start_paused = true)]
async fn what_a_flush_could_not_tell_the_next_one_does() {
    let (builder, mut listener) = pair();
    let gate = Arc::new(Semaphore::new(0));
    let passing = gate.clone();
    let client = builder
        .store(memory())
        .on_failed_write(move |_| {
            let passing = passing.clone();
            async move {
                passing.acquire().await?.forget();
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    for n in 0..4 {
        client.publish("t", format!("{n}")).await.unwrap();
    }
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(4).await;
    peer.ok(1).await;
    peer.refuse(2, "no").await;
    let failed = client.publish_flush(HOUR).await;
    assert!(
        matches!(
            failed,
            Err(FlushError::Timeout {
                left: 2,
                handlers: 1
            })
        ),
        "{failed:?}"
    );
    peer.ok(4).await;
    let failed = client.publish_flush(HOUR).await;
    assert!(
        matches!(failed, Err(FlushError::Timeout { left: 0, .. })),
        "{failed:?}"
    );
    let given_up = started(Box::pin(client.publish_flush(HOUR))).await;
    drop(given_up);
    gate.add_permits(1);
    let report = client.publish_flush(HOUR).await.unwrap();
    assert_eq!(
        (report.persisted, report.rejected, report.waiting),
        (3, 1, 0)
    );
    assert!(!report.all_persisted());
}

/// When nobody calls handlers any more, refusals that wait are known to wait.
#[tokio::test]
async fn a_flush_that_waits_for_a_handler_ends_with_the_client() {
    let (builder, mut listener) = pair();
    let (begun, inside) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (told, hold) = (begun.clone(), inside.clone());
    let client = builder
        .store(memory())
        .on_failed_write(move |_| {
            let (told, hold) = (told.clone(), hold.clone());
            async move {
                told.notify_one();
                hold.notified().await;
                Ok(())
            }
        })
        .open()
        .await
        .unwrap();
    client.publish("t", "1").await.unwrap();
    client.publish("t", "2").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(2).await;
    peer.refuse(1, "no").await;
    peer.refuse(2, "no").await;
    begun.notified().await;
    while client.failed().list().len() < 2 {
        tokio::task::yield_now().await;
    }
    let flush = started(Box::pin(client.publish_flush(LONG))).await;
    let closed = client.close(Duration::ZERO).await;
    assert_eq!((closed.left, closed.handlers), (0, 2));
    inside.notify_one();
    let report = tokio::time::timeout(LONG, flush).await.unwrap().unwrap();
    assert_eq!((report.rejected, report.left), (2, 0));
}

/// A client whose last-chance handler waits for a permit each time, its server, which has refused
/// five messages, and what the handler has been called for.
async fn five_refused(kept: bool) -> (Client, Peer, std::sync::mpsc::Sender<()>, Arc<AtomicUsize>) {
    let (builder, mut listener) = pair();
    let (permit, permits) = std::sync::mpsc::channel::<()>();
    let permits = Mutex::new(permits);
    let heard = Arc::new(AtomicUsize::new(0));
    let count = heard.clone();
    let builder = builder.on_last_chance(move |_| {
        permits.lock().unwrap().recv().unwrap();
        count.fetch_add(1, Ordering::SeqCst);
    });
    let builder = if kept {
        builder.store(memory())
    } else {
        builder
    };
    let client = builder.open().await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    client.wait_logged_on(LONG).await.unwrap();
    for n in 0..5 {
        let message = Message::publish("t", format!("{n}"));
        client.send(message.ask_ack()).await.unwrap();
        let frame = peer.next().await.unwrap();
        let figure = frame.sequence.or(Some(9));
        peer.ack(&Ack::refused(figure, frame.id.as_deref(), "no"))
            .await;
    }
    (client, peer, permit, heard)
}

/// Flushes until nothing is left, which here is long before the handler is done with anything.
async fn flush_for_a_moment(client: &Client, peer: &mut Peer) -> u64 {
    loop {
        let flush = client.publish_flush(Duration::from_millis(200));
        let answers = async {
            while let Some(frame) = peer.next().await {
                peer.processed(&frame).await;
            }
        };
        let flushed = tokio::select! {
            flushed = flush => flushed,
            () = answers => panic!("the link ended"),
        };
        match flushed {
            Err(FlushError::Timeout { left: 0, handlers }) if handlers > 0 => return handlers,
            // A busy machine: what the server said was not read in time.
            Err(FlushError::Timeout { .. }) => {}
            other => panic!("{other:?}"),
        }
    }
}

/// Of five refusals none had been in the handler, now and then, when the program ended after its
/// flush: a flush and a close waited for the failed-write handler alone.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flush_and_a_close_wait_for_the_last_chance_handler() {
    for kept in [false, true] {
        let (client, mut peer, permit, heard) = five_refused(kept).await;
        while flush_for_a_moment(&client, &mut peer).await < 5 {}
        for _ in 0..2 {
            permit.send(()).unwrap();
        }
        while flush_for_a_moment(&client, &mut peer).await > 3 {}
        permit.send(()).unwrap();
        permit.send(()).unwrap();
        while flush_for_a_moment(&client, &mut peer).await > 1 {}
        let serve = tokio::spawn(async move {
            while let Some(frame) = peer.next().await {
                peer.processed(&frame).await;
            }
        });
        let flush = started(Box::pin(client.publish_flush(LONG))).await;
        permit.send(()).unwrap();
        let report = flush.await.unwrap();
        assert_eq!(heard.load(Ordering::SeqCst), 5);
        assert_eq!(report.rejected, 5);
        assert_eq!(client.close(LONG).await.handlers, 0);
        serve.await.unwrap();

        let (client, mut peer, permit, heard) = five_refused(kept).await;
        while flush_for_a_moment(&client, &mut peer).await < 5 {}
        drop(peer);
        let close = started(Box::pin(client.close(LONG))).await;
        for _ in 0..5 {
            permit.send(()).unwrap();
        }
        assert_eq!(close.await.handlers, 0);
        assert_eq!(heard.load(Ordering::SeqCst), 5);

        // And no longer than it may.
        let (client, mut peer, permit, _) = five_refused(kept).await;
        while flush_for_a_moment(&client, &mut peer).await < 5 {}
        assert_eq!(client.close(Duration::ZERO).await.handlers, 5);
        for _ in 0..5 {
            permit.send(()).unwrap();
        }
    }
}

/// Inside of itself it waits for no other call of it, and a panic in it ends no wait.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_flush_inside_the_last_chance_handler_does_not_wait_for_it() {
    let (builder, mut listener) = pair();
    let slot: Arc<Mutex<Option<Client>>> = Arc::default();
    let inside = slot.clone();
    let (told, mut heard) = mpsc::unbounded_channel();
    let client = builder
        .store(memory())
        .on_last_chance(move |_| {
            let client = inside.lock().unwrap().clone().unwrap();
            let flush = client.publish_flush(LONG);
            let runtime = tokio::runtime::Handle::current();
            told.send(tokio::task::block_in_place(|| runtime.block_on(flush)))
                .unwrap();
            panic!("one of the application's");
        })
        .open()
        .await
        .unwrap();
    *slot.lock().unwrap() = Some(client.clone());
    client.publish("t", "1").await.unwrap();
    let mut peer = Peer::logged_on(&mut listener, 0).await;
    peer.publishes_to(1).await;
    peer.refuse(1, "no").await;
    assert_eq!(heard.recv().await.unwrap().unwrap().rejected, 1);
    client.publish_flush(LONG).await.unwrap();
    assert_eq!(client.close(LONG).await.handlers, 0);
    slot.lock().unwrap().take();
}

/// More refusals of an earlier run than the handler's queue holds are passed to it before a flush,
/// or a close, returns.
#[tokio::test]
async fn refusals_of_an_earlier_run_reach_the_last_chance_handler_before_the_end() {
    const EARLIER: usize = 3000;
    for flushes in [true, false] {
        let store = memory();
        for _ in 0..EARLIER {
            let envelope = amps_store::Envelope::publish("t");
            let until = std::time::Instant::now() + LONG;
            let appended = store.append_wait(&envelope, b"x", until).unwrap();
            store.reject(appended.sequence, "no", 1).unwrap();
        }
        let (builder, _listener) = pair();
        let heard = Arc::new(AtomicUsize::new(0));
        let count = heard.clone();
        let client = builder
            .store(store)
            .on_last_chance(move |_| {
                count.fetch_add(1, Ordering::SeqCst);
            })
            .open()
            .await
            .unwrap();
        match flushes {
            true => drop(client.publish_flush(LONG).await.unwrap()),
            false => drop(client.close(LONG).await),
        }
        assert_eq!(heard.load(Ordering::SeqCst), EARLIER);
    }
}
