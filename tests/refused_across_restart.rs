//! A refusal and a crash, in the three orders they can come in. The crash is a copy of the
//! store's file taken while its owner lives: exactly what a SIGKILL leaves.
#![allow(clippy::unwrap_used, clippy::expect_used)]
#![allow(missing_docs)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use amps_client::{Backoff, Builder, Client, FailedWrite, HandlerError};
use amps_sandbox::{Fault, Sandbox};
use amps_store::{Options, Store};
use tokio::sync::mpsc;

const LONG: Duration = Duration::from_secs(60);
const BODY: &str = r#"{"order":3}"#;

async fn sandbox() -> Sandbox {
    Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .reject_topic("refused")
        .ack_interval(Duration::from_millis(5))
        .start()
        .await
        .unwrap()
}

fn open(path: &Path) -> Store {
    Store::open(path, Options::new().client_name("orders")).unwrap()
}

fn client(store: Store) -> Builder {
    Client::builder("orders").store(store).backoff(Backoff::new(
        Duration::from_millis(1),
        Duration::from_millis(20),
    ))
}

/// What the next process would find after a SIGKILL now.
fn killed(path: &Path) -> PathBuf {
    let next = path.with_extension("next");
    std::fs::copy(path, &next).unwrap();
    next
}

async fn publish_three(client: &Client) {
    client.publish("taken", r#"{"order":1}"#).await.unwrap();
    client.publish("taken", r#"{"order":2}"#).await.unwrap();
    client.publish("refused", BODY).await.unwrap();
}

/// A handler that passes on what it is given and accepts it.
fn telling() -> (
    mpsc::UnboundedReceiver<FailedWrite>,
    impl Fn(FailedWrite) -> std::future::Ready<Result<(), HandlerError>> + Send + Sync + 'static,
) {
    let (tell, told) = mpsc::unbounded_channel();
    let handler = move |failed| {
        let sent = tell.send(failed);
        std::future::ready(sent.map_err(Into::into))
    };
    (told, handler)
}

async fn is_the_original(told: &mut mpsc::UnboundedReceiver<FailedWrite>) {
    let failed = tokio::time::timeout(LONG, told.recv())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(failed.sequence, 3);
    assert!(failed.earlier_run);
    let original = failed.original.unwrap();
    assert_eq!(original.topic(), "refused");
    assert_eq!(&original.payload()[..], BODY.as_bytes());
}

#[tokio::test]
async fn refused_and_logged_but_not_handled_before_the_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.store");
    let sandbox = sandbox().await;
    // Nobody accepts it, since the handler of the first process fails.
    let first = client(open(&path))
        .server(sandbox.uri())
        .on_failed_write(|_| std::future::ready(Err("not now".into())))
        .open()
        .await
        .unwrap();
    publish_three(&first).await;
    first.publish_flush(LONG).await.unwrap();
    let path = killed(&path);

    let (mut told, handler) = telling();
    let second = client(open(&path))
        .server("tcp://127.0.0.1:1/amps/json")
        .on_failed_write(handler)
        .open()
        .await
        .unwrap();
    // No server is needed for this.
    is_the_original(&mut told).await;
    second.close(LONG).await;
    drop(second);
    assert!(open(&path).rejections(0, 9).is_empty(), "it was accepted");
    first.close(LONG).await;
    sandbox.stop().await;
}

#[tokio::test]
async fn refused_only_after_the_crash() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.store");
    let first = client(open(&path))
        .server("tcp://127.0.0.1:1/amps/json")
        .open()
        .await
        .unwrap();
    publish_three(&first).await;
    let path = killed(&path);
    first.close(Duration::ZERO).await;

    let sandbox = sandbox().await;
    let (mut told, handler) = telling();
    let second = client(open(&path))
        .server(sandbox.uri())
        .on_failed_write(handler)
        .open()
        .await
        .unwrap();
    is_the_original(&mut told).await;
    let report = second.publish_flush(LONG).await.unwrap();
    assert_eq!((report.persisted, report.rejected, report.left), (2, 1, 0));
    assert_eq!(report.persisted_at_logon, 0);
    second.close(LONG).await;
    sandbox.stop().await;
}

#[tokio::test]
async fn refused_before_the_crash_with_the_ack_never_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("orders.store");
    let sandbox = sandbox().await;
    sandbox.inject(&Fault::LoseAcksAfter(1));
    let first = client(open(&path))
        .server(sandbox.uri())
        .open()
        .await
        .unwrap();
    publish_three(&first).await;
    // The server has decided about the refused message once what follows it is in the journal.
    first.publish("taken", r#"{"order":4}"#).await.unwrap();
    tokio::time::timeout(LONG, async {
        while sandbox.journal().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(first.health().unsettled, 4, "no ack was read");
    let path = killed(&path);
    sandbox.clear_faults();

    let (mut told, handler) = telling();
    let second = client(open(&path))
        .server(sandbox.uri())
        .on_failed_write(handler)
        .open()
        .await
        .unwrap();
    let report = second.publish_flush(LONG).await.unwrap();
    // The server never repeats a refusal, so this is all that can be known.
    assert_eq!((report.persisted, report.rejected, report.left), (0, 0, 0));
    assert_eq!(report.persisted_at_logon, 4);
    assert!(told.try_recv().is_err());
    second.close(LONG).await;
    drop(first);
    sandbox.stop().await;
}
