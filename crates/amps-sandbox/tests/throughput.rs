//! A million messages over loopback TCP, journalled and acked; run with
//! `cargo test --release -p amps-sandbox --test throughput -- --ignored --nocapture`.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Instant;

use amps_client::connector::{Connector, SchemeConnector};
use amps_client::protocol::{Command, FrameDecoder, Header, Publish};
use amps_sandbox::Sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt, split};

const COUNT: u64 = 1_000_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes seconds and half a gigabyte of disk"]
async fn a_million_messages_of_256_bytes() {
    let directory = tempfile::tempdir().unwrap();
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .journal(directory.path())
        .start()
        .await
        .unwrap();
    let uri = sandbox.uri().parse().unwrap();
    let (mut reader, mut writer) = split(SchemeConnector::new().connect(&uri).await.unwrap());
    let begun = Instant::now();
    let sending = tokio::spawn(async move {
        let mut out = Vec::new();
        Command::logon("0", "p").encode(&mut out).unwrap();
        let body = [b'x'; 256];
        for sequence in 1..=COUNT {
            Publish::stored("orders", sequence, &body)
                .encode(&mut out)
                .unwrap();
            if out.len() > 128 * 1024 || sequence == COUNT {
                writer.write_all(&out).await.unwrap();
                out.clear();
            }
        }
        writer
    });
    let mut decoder = FrameDecoder::new();
    let (mut acked, mut acks) = (0, 0);
    while acked < COUNT {
        assert!(reader.read_buf(decoder.read_buffer()).await.unwrap() > 0);
        while let Some(frame) = decoder.next_frame().unwrap() {
            acked = Header::parse(&frame).unwrap().0.sequence.unwrap();
            acks += 1;
        }
    }
    let took = begun.elapsed();
    sending.await.unwrap();
    println!("{COUNT} messages persisted in {took:?}, {acks} acks");
    assert_eq!(sandbox.settled("p"), COUNT);
    sandbox.stop().await;
    let begun = Instant::now();
    let again = Sandbox::builder()
        .journal(directory.path())
        .start()
        .await
        .unwrap();
    println!("recovered in {:?}", begun.elapsed());
    assert_eq!(again.settled("p"), COUNT);
}
