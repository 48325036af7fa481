//! The proxy's weather, seen from a client behind it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use std::time::Duration;

use amps_client::connector::{Connector, Stream, TcpConnector};
use amps_client::protocol::{AckKinds, Command, FrameDecoder};
use amps_sandbox::Sandbox;
use amps_sandbox::proxy::{Proxy, Weather};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

/// In virtual time: it passes as soon as nothing else can run.
const HOUR: Duration = Duration::from_secs(3600);

async fn start() -> (Sandbox, Proxy) {
    let sandbox = Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .start()
        .await
        .unwrap();
    let proxy = Proxy::start(&sandbox.uris()[0]).await.unwrap();
    (sandbox, proxy)
}

async fn send(stream: &mut Box<dyn Stream>, command: Command<'_>) {
    let mut out = Vec::new();
    command.encode(&mut out).unwrap();
    stream.write_all(&out).await.unwrap();
}

async fn frame(stream: &mut Box<dyn Stream>, decoder: &mut FrameDecoder) -> Option<Vec<u8>> {
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame.to_vec());
        }
        if !matches!(stream.read_buf(decoder.read_buffer()).await, Ok(1..)) {
            return None;
        }
    }
}

#[tokio::test]
async fn links_are_delayed_go_dead_and_come_back() {
    let (sandbox, proxy) = start().await;
    let mut stream = TcpConnector.connect(proxy.uri()).await.unwrap();
    let mut decoder = FrameDecoder::new();
    let delay = Duration::from_millis(50);
    proxy.set(Weather::Delay(delay));
    let begun = Instant::now();
    send(&mut stream, Command::logon("0", "p")).await;
    frame(&mut stream, &mut decoder).await.unwrap();
    assert!(begun.elapsed() >= delay * 2, "there and back");
    proxy.set(Weather::Dead);
    send(&mut stream, Command::flush("1", AckKinds::PROCESSED)).await;
    // Only from here on: a paused clock jumps to the next deadline whenever nothing else can run,
    // even while bytes are on their way through a socket.
    tokio::time::pause();
    let silence = tokio::time::timeout(HOUR, frame(&mut stream, &mut decoder)).await;
    tokio::time::resume();
    assert!(silence.is_err());
    proxy.set(Weather::Fair);
    assert!(
        frame(&mut stream, &mut decoder).await.is_some(),
        "nothing was lost"
    );
    proxy.stop().await;
    sandbox.stop().await;
}

#[tokio::test]
async fn links_are_cut_inside_a_frame_and_refused_while_down() {
    let (sandbox, proxy) = start().await;
    let mut stream = TcpConnector.connect(proxy.uri()).await.unwrap();
    let mut decoder = FrameDecoder::new();
    send(&mut stream, Command::logon("0", "p")).await;
    frame(&mut stream, &mut decoder).await.unwrap();
    proxy.cut_after(10);
    send(&mut stream, Command::flush("1", AckKinds::PROCESSED)).await;
    assert_eq!(frame(&mut stream, &mut decoder).await, None);
    assert_eq!(decoder.pending(), 10);

    let mut stream = TcpConnector.connect(proxy.uri()).await.unwrap();
    let mut decoder = FrameDecoder::new();
    send(&mut stream, Command::logon("0", "p")).await;
    assert!(
        frame(&mut stream, &mut decoder).await.is_some(),
        "a cut concerns open links only"
    );
    proxy.set(Weather::Down);
    assert_eq!(frame(&mut stream, &mut decoder).await, None);
    let mut stream = TcpConnector.connect(proxy.uri()).await.unwrap();
    assert_eq!(frame(&mut stream, &mut FrameDecoder::new()).await, None);
    proxy.stop().await;
    sandbox.stop().await;
}
