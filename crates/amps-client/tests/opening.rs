//! What earlier runs left is reported once the application has the client, on any runtime, and is
//! not lost on whoever asks for the events at once.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::time::Duration;

use amps_client::connector::MemoryConnector;
use amps_client::{Builder, Event, Events};
use amps_store::{Envelope, PublishStore, Store};
use common::{LONG, builder, memory};
use tokio::sync::mpsc::{self, UnboundedReceiver};

/// A store in which refusals wait that no run of a client has received.
fn with_refusals(count: u64) -> Store {
    let store = memory();
    for sequence in 1..=count {
        store.append(&Envelope::publish("t"), b"x").unwrap();
        store.reject(sequence, "no", 1).unwrap();
    }
    store
}

/// A client that says which refusals it is told of, by either handler. No server listens.
fn telling(handler: bool, store: Store) -> (Builder, UnboundedReceiver<u64>) {
    let (told, heard) = mpsc::unbounded_channel();
    let builder = builder(MemoryConnector::new()).store(store);
    let builder = match handler {
        true => builder.on_failed_write(move |failed| {
            let told = told.clone();
            async move { Ok(told.send(failed.sequence)?) }
        }),
        false => builder.on_last_chance(move |ack| told.send(ack.sequence.unwrap()).unwrap()),
    };
    (builder, heard)
}

fn refused(events: &mut Events) -> Vec<u64> {
    let told = std::iter::from_fn(|| events.try_next());
    told.filter_map(|event| match event {
        Event::Refused {
            sequence,
            earlier_run: true,
            ..
        } => Some(sequence),
        _ => None,
    })
    .collect()
}

/// On several threads the handlers once ran while `open` was still at work.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_handler_is_called_before_open_has_returned() {
    for handler in [true, false] {
        let (builder, mut heard) = telling(handler, with_refusals(1));
        let mut opening = builder.open();
        let client = (&mut opening).await.unwrap();
        // The call has not handed over the client, so nothing is reported, however long that
        // takes.
        let early = tokio::time::timeout(Duration::from_millis(200), heard.recv()).await;
        assert!(early.is_err(), "told before the call was over");
        drop(opening);
        let told = tokio::time::timeout(LONG, heard.recv()).await;
        assert_eq!(told.unwrap(), Some(1));
        drop(client);
    }
}

/// Keeping the completed future must not keep anybody waiting.
#[tokio::test(start_paused = true)]
async fn the_first_call_that_waits_for_handlers_lets_them_begin() {
    for call in 0..4 {
        for handler in [true, false] {
            let (builder, mut heard) = telling(handler, with_refusals(1));
            let mut opening = builder.open();
            let client = (&mut opening).await.unwrap();
            tokio::time::sleep(LONG).await;
            assert!(heard.try_recv().is_err());
            match call {
                0 => drop(client.publish_flush(Duration::ZERO).await),
                1 => drop(client.events()),
                2 => drop(client.wait_logged_on(Duration::ZERO).await),
                _ => {
                    let report = client.close(LONG).await;
                    assert_eq!((report.clean, report.handlers), (true, 0));
                    // Without a handler there is nobody for whom a close would wait.
                    if !handler {
                        continue;
                    }
                }
            }
            let told = tokio::time::timeout(LONG, heard.recv()).await;
            assert_eq!(told.unwrap(), Some(1), "call {call}");
        }
    }
}

/// The store's lock is released with the client, even if the completed future is kept.
#[tokio::test]
async fn a_future_that_is_done_keeps_no_store_open() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::open(&path, common::options()).unwrap();
    let mut opening = builder(MemoryConnector::new()).store(store).open();
    let client = (&mut opening).await.unwrap();
    assert!(client.close(LONG).await.clean);
    drop(client);
    Store::open(&path, common::options()).unwrap();
    drop(opening);
}

/// They were once told to nobody, if the client was faster than whoever asked for its events.
#[test]
fn the_first_stream_of_events_has_what_was_told_before_it() {
    const REFUSALS: u64 = 100;
    let all: Vec<u64> = (1..=REFUSALS).collect();
    let one = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let several = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build();
    for runtime in [one.unwrap(), several.unwrap()] {
        runtime.block_on(async {
            let (builder, mut heard) = telling(false, with_refusals(REFUSALS));
            let client = builder.open().await.unwrap();
            for sequence in 1..=REFUSALS {
                let told = tokio::time::timeout(LONG, heard.recv()).await;
                assert_eq!(told.unwrap(), Some(sequence));
            }
            let mut first = client.events();
            assert_eq!(refused(&mut first), all);
            assert_eq!(first.dropped(), 0);
            assert!(refused(&mut client.events()).is_empty(), "told once");
        });
    }
    let (builder, mut heard) = telling(false, with_refusals(REFUSALS));
    let client = builder.open_blocking().unwrap();
    for sequence in 1..=REFUSALS {
        assert_eq!(heard.blocking_recv(), Some(sequence));
    }
    let mut first = client.events();
    let told = std::iter::from_fn(|| first.try_next());
    let refused = told.filter(|event| {
        matches!(
            event,
            Event::Refused {
                earlier_run: true,
                ..
            }
        )
    });
    assert_eq!(refused.count() as u64, REFUSALS);
}

/// If there are more than a stream keeps: the latest ones, and the others are counted.
#[tokio::test]
async fn what_the_first_stream_has_of_the_past_is_bounded() {
    const REFUSALS: u64 = 3000;
    let store = amps_store::Store::memory(common::options().capacity(16 << 20)).unwrap();
    let until = std::time::Instant::now() + LONG;
    for sequence in 1..=REFUSALS {
        let envelope = Envelope::publish("t");
        store.append_wait(&envelope, b"x", until).unwrap();
        store.reject(sequence, "no", 1).unwrap();
    }
    let (builder, mut heard) = telling(false, store);
    let client = builder.open().await.unwrap();
    for _ in 1..=REFUSALS {
        tokio::time::timeout(LONG, heard.recv()).await.unwrap();
    }
    let mut first = client.events();
    let told = refused(&mut first);
    assert_eq!(told.last(), Some(&REFUSALS));
    assert!(told.len() <= 1024 && told.len() as u64 + first.dropped() >= REFUSALS);
}
