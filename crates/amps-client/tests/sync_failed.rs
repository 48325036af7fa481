//! A failing device is reported when it fails, at every level.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use amps_client::Event;
use amps_store::testkit::{Call, FailingCalls, fail_calls};
use amps_store::{Level, PublishStore, Store};
use common::{LONG, options, pair};

/// At `Disk` sending stops, which was reported; at the other levels it goes on, and once nothing
/// was said before the close failed.
#[tokio::test]
async fn a_failed_sync_is_told_when_it_happens() {
    for level in [Level::Interval(Duration::from_millis(1)), Level::Disk] {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("store"), options().level(level)).unwrap();
        // Called on the store's own thread: its next sync fails.
        store.observe(Arc::new(|_| {
            fail_calls(Some(FailingCalls {
                call: Call::SyncRange,
                after: 0,
                for_ever: true,
                errno: 5,
            }));
            ControlFlow::Break(())
        }));
        let (builder, _listener) = pair();
        let client = builder.store(store.clone()).open().await.unwrap();
        let mut events = client.events();
        client.publish("orders", "1").await.unwrap();
        let told = async {
            loop {
                if store.durable().sequence > 0 {
                    client.publish("orders", "more").await.unwrap();
                }
                let event = tokio::time::timeout(Duration::from_millis(1), events.next());
                if let Ok(Some(Event::StoreFailed { doing, error })) = event.await {
                    return (doing, error);
                }
            }
        };
        let (doing, error) = tokio::time::timeout(LONG, told).await.expect("it is told");
        assert_eq!(doing, "make messages durable");
        assert!(error.contains("evacuate"), "{error}");
        assert!(client.health().sync_failed);
    }
}
