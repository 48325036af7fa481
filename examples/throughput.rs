//! How many messages a second go through the whole client to a server that only reads and acks,
//! over loopback TCP: with a file store, and without a store.
//!
//! `cargo run --release --example throughput [messages]`

use std::time::{Duration, Instant};

use amps_client::Client;
use amps_client::protocol::{Ack, FrameDecoder, Header, LogonAck, Verb};
use amps_store::{Options, Store};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<(), Failure> {
    let count = std::env::args()
        .nth(1)
        .map_or(Ok(1_000_000), |n| n.parse())?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let uri = format!("tcp://{}/amps/json", listener.local_addr()?);
    std::thread::spawn(move || serve(listener));
    let payload = vec![b'x'; 256];

    let dir = std::env::temp_dir().join(format!("amps-throughput-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let options = Options::new().capacity(256 << 20).client_name("bench");
    let store = Store::open(dir.join("store"), options)?;
    let client = Client::builder("bench")
        .server(&uri)
        .store(store)
        .open()
        .await?;
    client.wait_logged_on(Duration::from_secs(5)).await?;
    let (started, cpu) = (Instant::now(), cpu_time()?);
    for _ in 0..count {
        client.publish("a-topic-16-bytes", payload.clone()).await?;
    }
    let published = started.elapsed();
    client.publish_flush(Duration::from_secs(60)).await?;
    report(
        "file store",
        count,
        published,
        started.elapsed(),
        cpu_time()? - cpu,
    );
    client.close(Duration::from_secs(5)).await;
    std::fs::remove_dir_all(&dir)?;

    let client = Client::builder("bench-2").server(&uri).open().await?;
    client.wait_logged_on(Duration::from_secs(5)).await?;
    let (started, cpu) = (Instant::now(), cpu_time()?);
    for _ in 0..count {
        client.publish("a-topic-16-bytes", payload.clone()).await?;
    }
    let published = started.elapsed();
    client.publish_flush(Duration::from_secs(60)).await?;
    report(
        "no store",
        count,
        published,
        started.elapsed(),
        cpu_time()? - cpu,
    );
    Ok(())
}

fn report(what: &str, count: u64, published: Duration, all: Duration, cpu: f64) {
    let rate = |took: Duration| count as f64 / took.as_secs_f64();
    println!(
        "{what}: published {:.0}/s, settled {:.0}/s, cpu {:.0} ns per message (server included)",
        rate(published),
        rate(all),
        cpu * 1e9 / count as f64
    );
}

/// Processor seconds of this process.
fn cpu_time() -> Result<f64, Failure> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat
        .rsplit(')')
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .collect();
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(ticks as f64 / 100.0)
}

/// Reads everything, and acks the highest number after each read.
fn serve(listener: TcpListener) -> Result<(), Failure> {
    let listener = listener.into_std()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async move {
        let listener = TcpListener::from_std(listener)?;
        loop {
            let (stream, _) = listener.accept().await?;
            link(stream).await?;
        }
    })
}

async fn link(mut stream: TcpStream) -> Result<(), Failure> {
    let mut decoder = FrameDecoder::new();
    let mut out = Vec::new();
    while stream.read_buf(decoder.read_buffer()).await? > 0 {
        let mut highest = None;
        while let Some(frame) = decoder.next_frame()? {
            let (header, _) = Header::parse(&frame)?;
            match &header.verb {
                Some(Verb::Logon) => LogonAck {
                    command_id: header.command_id.as_deref(),
                    sequence: Some(0),
                    bookmark: None,
                    client_name: header.client_name.as_deref(),
                    reason: None,
                    version: None,
                }
                .encode(&mut out)?,
                Some(Verb::Flush) => {
                    let kind = amps_client::protocol::AckKind::Processed;
                    let mut ack = Ack::new(kind, amps_client::protocol::Status::Success);
                    ack.command_id = header.command_id.as_deref();
                    ack.encode(&mut out)?;
                }
                _ => highest = header.sequence.or(highest),
            }
        }
        if let Some(sequence) = highest {
            Ack::persisted(sequence).encode(&mut out)?;
        }
        stream.write_all(&out).await?;
        out.clear();
    }
    Ok(())
}
