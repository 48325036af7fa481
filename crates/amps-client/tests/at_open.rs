//! What a store found when it was opened is reported, however late one begins to listen.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

mod common;

use amps_client::connector::MemoryConnector;
use amps_client::{Client, Event};
use amps_store::testkit::SimDisk;
use amps_store::{Envelope, PublishStore, Recovery};
use common::{builder, memory, options};

const LONG: usize = 4000;

fn publish(store: &impl PublishStore, byte: u8) -> u64 {
    let appended = store.append(&Envelope::publish("t"), &[byte; LONG]);
    appended.unwrap().sequence
}

/// Where the payload of this message starts on the disk.
fn place(disk: &SimDisk, byte: u8) -> u64 {
    let bytes = disk.bytes();
    let found = bytes
        .windows(LONG)
        .position(|w| w.iter().all(|b| *b == byte));
    found.unwrap() as u64
}

fn told(client: &Client) -> Vec<Event> {
    let mut events = client.events();
    std::iter::from_fn(|| events.try_next())
        .take_while(|event| !matches!(event, Event::State { .. }))
        .collect()
}

#[tokio::test]
async fn what_a_power_cut_left_behind_a_hole_is_told_and_a_refusal_in_it_by_name() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    for byte in 1..=4 {
        publish(&store, byte);
    }
    store.reject(1, "no", 7).unwrap();
    drop(store);
    // Nothing was synced, and the pages of the second message never reached the disk.
    let (lost, back) = (place(&disk, 2), place(&disk, 3) - 200);
    disk.cut_sectors(|at| at < lost - 200 || at + 512 > back);
    let store = disk.open(options()).unwrap();
    let client = builder(MemoryConnector::new())
        .store(store)
        .open()
        .await
        .unwrap();
    // The same at any time, and before anything else.
    for _ in 0..2 {
        let found = told(&client);
        assert!(
            matches!(
                found[..],
                [
                    Event::SetAside {
                        records: 3..,
                        sequences: Some((3, 4))
                    },
                    Event::RefusalSetAside { sequence: 1 },
                ]
            ),
            "{found:?}"
        );
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn damage_that_was_given_up_is_told_at_this_open_and_at_later_ones() {
    let disk = SimDisk::new();
    let store = disk.open(options()).unwrap();
    for byte in 1..=3 {
        publish(&store, byte);
    }
    store.close(0).unwrap();
    drop(store);
    let at = place(&disk, 2);
    disk.scribble(at, |bytes| bytes[0] ^= 1);
    let store = disk.open(options().recovery(Recovery::Salvage)).unwrap();
    let client = builder(MemoryConnector::new())
        .store(store)
        .open()
        .await
        .unwrap();
    let found = told(&client);
    let [
        Event::Damaged {
            offset,
            sequences: Some((2, 2)),
            earlier: false,
            needed: true,
            ..
        },
    ] = found[..]
    else {
        panic!("{found:?}");
    };
    assert!(offset < at && offset + 200 > at);
    client.close(std::time::Duration::ZERO).await;
    drop(client);
    let store = disk.open(options()).unwrap();
    let client = builder(MemoryConnector::new())
        .store(store)
        .open()
        .await
        .unwrap();
    let found = told(&client);
    assert!(
        matches!(found[..], [Event::GivenUp { first: 2, last: 2 }]),
        "{found:?}"
    );
}

#[tokio::test]
async fn a_store_that_found_nothing_bad_tells_nothing() {
    let client = builder(MemoryConnector::new())
        .store(memory())
        .open()
        .await
        .unwrap();
    assert!(told(&client).is_empty());
}

#[tokio::test]
async fn a_store_that_fills_up_is_told_to_every_stream_until_it_has_room_again() {
    let store = amps_store::Store::memory(options()).unwrap();
    let percent = |n: u64| store.bounds().limit_bytes * n / 100;
    let client = builder(MemoryConnector::new())
        .store(store.clone())
        .open()
        .await
        .unwrap();
    let mut early = client.events();
    let mut watermarks = || {
        std::iter::from_fn(|| early.try_next())
            .filter_map(|event| match event {
                Event::Watermark {
                    high,
                    live_bytes,
                    limit_bytes,
                } => Some((high, live_bytes, limit_bytes)),
                _ => None,
            })
            .collect::<Vec<_>>()
    };
    while store.bounds().live_bytes < percent(80) {
        assert_eq!(watermarks(), []);
        client.publish("t", vec![7; LONG]).await.unwrap();
    }
    let bounds = store.bounds();
    let (live, limit) = (bounds.live_bytes, bounds.limit_bytes);
    assert_eq!(watermarks(), [(true, live, limit)]);
    let late = told(&client);
    assert!(
        matches!(late[..], [Event::Watermark { high: true, .. }]),
        "{late:?}"
    );
    store.settle_through(store.bounds().last).unwrap();
    assert_eq!(watermarks(), [(false, 0, limit)]);
    assert!(told(&client).is_empty());
}
