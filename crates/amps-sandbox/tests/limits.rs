//! What strangers can take from a sandbox: places, memory, numbers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use amps_client::connector::{Connector, Stream};
use amps_client::protocol::{AckKinds, Command, FrameDecoder, Header, Publish};
use amps_client::uri::Uri;
use amps_sandbox::Sandbox;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// In virtual time: it passes as soon as nothing else can run.
const HOUR: Duration = Duration::from_secs(3600);

async fn connect(sandbox: &Sandbox) -> Box<dyn Stream> {
    let uri: Uri = sandbox.uri().parse().unwrap();
    sandbox.connector().connect(&uri).await.unwrap()
}

fn logon(name: &str) -> Vec<u8> {
    let mut out = Vec::new();
    Command::logon("0", name).encode(&mut out).unwrap();
    out
}

/// Sends bytes and reads one frame, `None` if the link ends first.
async fn ask(stream: &mut Box<dyn Stream>, bytes: &[u8]) -> Option<String> {
    let asked = tokio::time::timeout(HOUR / 2, asked(stream, bytes));
    asked.await.expect("the sandbox stays silent")
}

async fn asked(stream: &mut Box<dyn Stream>, bytes: &[u8]) -> Option<String> {
    // A server that hangs up does not take what it will not read.
    let _ = stream.write_all(bytes).await;
    let mut decoder = FrameDecoder::new();
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(String::from_utf8(frame.to_vec()).unwrap());
        }
        match stream.read_buf(decoder.read_buffer()).await {
            Ok(0) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// 1,024 connections that said nothing once kept out everybody else, for as long as they liked.
#[tokio::test(start_paused = true)]
async fn silent_connections_do_not_lock_out_an_honest_one() {
    let sandbox = Sandbox::builder().logon_within(HOUR).start().await.unwrap();
    let mut early = connect(&sandbox).await;
    assert!(
        ask(&mut early, &logon("early"))
            .await
            .unwrap()
            .contains("success")
    );
    let mut silent = Vec::new();
    for _ in 0..2000 {
        silent.push(connect(&sandbox).await);
    }
    let mut honest = connect(&sandbox).await;
    let answer = ask(&mut honest, &logon("honest")).await;
    assert!(answer.expect("it has a place").contains("success"));
    // A client that has logged on makes room for nobody.
    let mut frame = Vec::new();
    Command::flush("f", AckKinds::COMPLETED)
        .encode(&mut frame)
        .unwrap();
    assert!(ask(&mut early, &frame).await.unwrap().contains("success"));
    // The oldest connections were closed, without a word.
    assert_eq!(ask(&mut silent[0], &[]).await, None);
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_silent_connection_ends_by_itself() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let mut silent = connect(&sandbox).await;
    assert_eq!(ask(&mut silent, &[]).await, None);
    sandbox.stop().await;
}

/// The sandbox once collected a frame of 200 MiB for anybody who announced one.
#[tokio::test(start_paused = true)]
async fn memory_comes_with_the_logon() {
    let sandbox = Sandbox::builder().start().await.unwrap();
    let mut stranger = connect(&sandbox).await;
    let announced = (64 << 10) + 1_u32;
    assert_eq!(ask(&mut stranger, &announced.to_be_bytes()).await, None);

    // After the logon there is room for a large frame, even if both come at once.
    let mut known = connect(&sandbox).await;
    let mut bytes = logon("p");
    let body = vec![b'x'; 1 << 20];
    Publish::stored("orders", 1, &body)
        .encode(&mut bytes)
        .unwrap();
    Command::flush("f", AckKinds::COMPLETED)
        .encode(&mut bytes)
        .unwrap();
    assert!(ask(&mut known, &bytes).await.unwrap().contains("success"));
    assert!(ask(&mut known, &[]).await.unwrap().contains(r#""cid":"f""#));
    assert_eq!(sandbox.journal().unwrap()[0].bytes.len(), body.len());
    sandbox.stop().await;
}

/// 2^64 - 1 once came back as one less, and its duplicate was accepted as a new message.
#[tokio::test(start_paused = true)]
async fn the_highest_sequence_is_a_duplicate_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    for _ in 0..2 {
        let builder = Sandbox::builder().journal(directory.path());
        let sandbox = builder.start().await.unwrap();
        let mut stream = connect(&sandbox).await;
        ask(&mut stream, &logon("p")).await.unwrap();
        let mut bytes = Vec::new();
        for sequence in [u64::MAX - 1, u64::MAX] {
            Publish::stored("orders", sequence, b"{}")
                .encode(&mut bytes)
                .unwrap();
        }
        Command::flush("f", AckKinds::COMPLETED)
            .encode(&mut bytes)
            .unwrap();
        ask(&mut stream, &bytes).await.unwrap();
        sandbox.stop().await;
    }
    let builder = Sandbox::builder().journal(directory.path());
    let sandbox = builder.start().await.unwrap();
    let all = sandbox.journal().unwrap();
    let sequences: Vec<_> = all.iter().map(|entry| entry.sequence.unwrap()).collect();
    assert_eq!(sequences, [u64::MAX - 1, u64::MAX]);
    let mut stream = connect(&sandbox).await;
    let ack = ask(&mut stream, &logon("p")).await.unwrap();
    let (header, _) = Header::parse(ack.as_bytes()).unwrap();
    assert_eq!(header.sequence, Some(u64::MAX));
    sandbox.stop().await;
}
