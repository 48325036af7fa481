//! T8, T9, T10, T12: the client over loopback TCP.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use amps_client::Client;
use amps_client::protocol::{Command, FrameDecoder, Header, LogonAck, Publish, Verb};
use amps_sandbox::Sandbox;
use amps_store::{Envelope, Options, PublishStore, Store};
use tokio::io::AsyncWriteExt;
use tokio::runtime::{Builder, Runtime};

use crate::stats::{Histogram, median};
use crate::{Failure, Goal, Place, Plan, Row, TOPIC};

const PAYLOAD: [u8; 256] = [b'x'; 256];
const SERVER_THREAD: &str = "bench-server";
pub(crate) const CLIENT_THREAD: &str = "bench-client";
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

pub(crate) fn runtime(name: &str) -> Result<Runtime, Failure> {
    Ok(Builder::new_multi_thread()
        .worker_threads(1)
        .thread_name(name)
        .enable_all()
        .build()?)
}

/// The sandbox on a thread of its own.
pub(crate) struct Server {
    runtime: Runtime,
    sandbox: Sandbox,
}

impl Server {
    pub(crate) fn start() -> Result<Self, Failure> {
        let runtime = runtime(SERVER_THREAD)?;
        let builder = Sandbox::builder()
            .listen("tcp://127.0.0.1:0/amps/json")
            .ack_interval(Duration::from_millis(10));
        let sandbox = runtime.block_on(builder.start())?;
        Ok(Server { runtime, sandbox })
    }

    pub(crate) fn uri(&self) -> String {
        self.sandbox.uri().to_string()
    }

    fn address(&self) -> Result<String, Failure> {
        let uri = self.uri();
        let rest = uri.trim_start_matches("tcp://");
        let end = rest.find('/').unwrap_or(rest.len());
        Ok(rest[..end].to_owned())
    }

    pub(crate) fn stop(self) {
        self.runtime.block_on(self.sandbox.stop());
    }
}

pub(crate) fn store(path: &Path, capacity: u64) -> Result<Store, Failure> {
    // With its full length: a file grows once, and then serves for long.
    let options = Options::new().capacity(capacity).preallocate(true);
    Ok(Store::open(path, options.client_name("bench"))?)
}

/// Lets a store that was just opened make its first pages ready, since a running publisher is to
/// be measured, not a starting one.
pub(crate) async fn rested(store: &Store) -> Result<(), Failure> {
    for _ in 0..3 {
        store.sync()?;
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
    Ok(())
}

/// Frames encoded in advance, and a thread that reads the acks; messages per second.
fn floor_rate(server: &Server, name: &str, count: u64) -> Result<f64, Failure> {
    let mut logon = Vec::new();
    Command::logon("0", name).encode(&mut logon)?;
    let mut frames = Vec::with_capacity(count as usize * 340);
    for sequence in 1..=count {
        Publish::stored(TOPIC, sequence, &PAYLOAD).encode(&mut frames)?;
    }
    let mut stream = TcpStream::connect(server.address()?)?;
    stream.set_nodelay(true)?;
    let mut reader = stream.try_clone()?;
    reader.set_read_timeout(Some(PATIENCE))?;
    let (logged_on, wait) = mpsc::channel();
    let acks = std::thread::spawn(move || -> Result<(), Failure> {
        let mut decoder = FrameDecoder::new();
        let mut buffer = vec![0; 64 << 10];
        let mut acked = None;
        while acked < Some(count) {
            let read = reader.read(&mut buffer)?;
            if read == 0 {
                return Err("the server hung up".into());
            }
            decoder.read_buffer().extend_from_slice(&buffer[..read]);
            while let Some(frame) = decoder.next_frame()? {
                let (header, _) = Header::parse(&frame)?;
                if acked.is_none() {
                    logged_on.send(())?;
                    acked = Some(0);
                } else {
                    acked = acked.max(header.sequence);
                }
            }
        }
        Ok(())
    });
    stream.write_all(&logon)?;
    wait.recv_timeout(PATIENCE)?;
    let begun = Instant::now();
    for batch in frames.chunks(128 << 10) {
        stream.write_all(batch)?;
    }
    acks.join().map_err(|_| "the reader of acks panicked")??;
    Ok(count as f64 / begun.elapsed().as_secs_f64())
}

pub(crate) async fn logged_on(client: &Client) -> Result<(), Failure> {
    Ok(client.wait_logged_on(PATIENCE).await?)
}

pub(crate) async fn flushed(client: &Client) -> Result<(), Failure> {
    let report = client.publish_flush(PATIENCE).await?;
    match report.left {
        0 => Ok(()),
        left => Err(format!("{left} messages were left").into()),
    }
}

/// One publisher with a store, from the first publish to the last ack.
fn live_rate(server: &Server, path: &Path, count: u64) -> Result<f64, Failure> {
    let runtime = runtime(CLIENT_THREAD)?;
    let store = store(path, 512 << 20)?;
    runtime.block_on(async {
        let client = Client::builder("bench")
            .server(server.uri())
            .store(store.clone())
            .open()
            .await?;
        logged_on(&client).await?;
        rested(&store).await?;
        let begun = Instant::now();
        for _ in 0..count {
            drop(client.publish(TOPIC, &PAYLOAD[..]).await?);
        }
        flushed(&client).await?;
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        client.close(PATIENCE).await;
        Ok(rate)
    })
}

/// A store that a dead publisher left full: from opening the client to the last ack.
fn resend_rate(server: &Server, path: &Path, count: u64) -> Result<f64, Failure> {
    let capacity = (count * 1400).max(256 << 20);
    let filled = store(path, capacity)?;
    let deadline = Instant::now() + PATIENCE;
    for _ in 0..count {
        filled.append_wait(&Envelope::publish(TOPIC), &PAYLOAD, deadline)?;
    }
    drop(filled);
    let runtime = runtime(CLIENT_THREAD)?;
    let store = store(path, capacity)?;
    runtime.block_on(async {
        let begun = Instant::now();
        let client = Client::builder("bench")
            .server(server.uri())
            .store(store)
            .open()
            .await?;
        logged_on(&client).await?;
        flushed(&client).await?;
        let rate = count as f64 / begun.elapsed().as_secs_f64();
        client.close(PATIENCE).await;
        Ok(rate)
    })
}

pub(crate) fn end_to_end(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let count = plan.count(200_000);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let server = Server::start()?;
        floor.push(floor_rate(&server, "floor", count)?);
        ours.push(live_rate(&server, &place.file("store")?, count)?);
        server.stop();
    }
    tell(Row {
        target: "T8",
        what: "end to end, file store, level Os, 256 B".to_owned(),
        unit: "1/s",
        ours: median(ours),
        floor: Some(median(floor)),
        goal: Goal::Share(0.6),
    });
    Ok(())
}

pub(crate) fn resend(plan: &Plan, place: &Place, tell: &mut dyn FnMut(Row)) -> Result<(), Failure> {
    // As many live ones: the kernel gives the server its memory page by page, so a message costs
    // the server more the more of them there are.
    let many = plan.count(1_000_000);
    let (mut ours, mut live) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds.min(5) {
        let server = Server::start()?;
        live.push(live_rate(&server, &place.file("store")?, many)?);
        server.stop();
        let server = Server::start()?;
        ours.push(resend_rate(&server, &place.file("store")?, many)?);
        server.stop();
    }
    tell(Row {
        target: "T10",
        what: format!("resend of {many}, against publishing them live"),
        unit: "1/s",
        ours: median(ours),
        floor: Some(median(live)),
        goal: Goal::Share(1.0),
    });
    Ok(())
}

/// Nanoseconds on a processor.
#[derive(Clone, Copy, Debug, Default)]
struct Spent {
    publisher: u64,
    sender: u64,
    upkeep: u64,
}

impl Spent {
    /// Until now, in all threads except the server's.
    fn now() -> Result<Self, Failure> {
        let mut spent = Spent::default();
        for task in std::fs::read_dir("/proc/self/task")? {
            let path = task?.path();
            let of = match std::fs::read_to_string(path.join("comm"))?.trim() {
                SERVER_THREAD => continue,
                CLIENT_THREAD => &mut spent.sender,
                "amps-store" => &mut spent.upkeep,
                _ => &mut spent.publisher,
            };
            let stat = std::fs::read_to_string(path.join("schedstat"))?;
            let on_cpu = stat.split_whitespace().next();
            *of += on_cpu.ok_or("empty schedstat")?.parse::<u64>()?;
        }
        Ok(spent)
    }

    /// Since then, per message: publisher, sender, upkeep.
    fn each(self, before: Spent, count: u64) -> [f64; 3] {
        let of = |now: u64, before: u64| now.saturating_sub(before) as f64 / count as f64;
        [
            of(self.publisher, before.publisher),
            of(self.sender, before.sender),
            of(self.upkeep, before.upkeep),
        ]
    }
}

fn cpu_per_message(server: &Server, store: Option<Store>, count: u64) -> Result<[f64; 3], Failure> {
    let runtime = runtime(CLIENT_THREAD)?;
    runtime.block_on(async {
        let mut builder = Client::builder("bench").server(server.uri());
        if let Some(store) = &store {
            builder = builder.store(store.clone());
        }
        let client = builder.open().await?;
        logged_on(&client).await?;
        if let Some(store) = &store {
            rested(store).await?;
        }
        let before = Spent::now()?;
        for _ in 0..count {
            drop(client.publish(TOPIC, &PAYLOAD[..]).await?);
        }
        flushed(&client).await?;
        let spent = Spent::now()?.each(before, count);
        client.close(PATIENCE).await;
        Ok(spent)
    })
}

pub(crate) fn processor(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let count = plan.count(200_000);
    let (mut ours, mut floor) = (Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let server = Server::start()?;
        let with = store(&place.file("store")?, 512 << 20)?;
        ours.push(cpu_per_message(&server, Some(with), count)?);
        server.stop();
        let server = Server::start()?;
        floor.push(cpu_per_message(&server, None, count)?);
        server.stop();
    }
    let all = |rounds: &[[f64; 3]]| median(rounds.iter().map(|r| r.iter().sum()).collect());
    let one = |rounds: &[[f64; 3]], part: usize| median(rounds.iter().map(|r| r[part]).collect());
    tell(Row {
        target: "T12",
        what: "processor per message, against no store".to_owned(),
        unit: "ns",
        ours: all(&ours),
        floor: Some(all(&floor)),
        goal: Goal::Times(1.2),
    });
    let parts = ["who publishes", "the client's task", "the store's upkeep"];
    for (part, name) in parts.into_iter().enumerate() {
        tell(Row {
            target: "T12",
            what: format!("of that, {name}"),
            unit: "ns",
            ours: one(&ours, part),
            floor: (part < 2).then(|| one(&floor, part)),
            goal: Goal::Told,
        });
    }
    Ok(())
}

/// Accepts links for ever, answers logons, and notes when the bytes after one arrive.
fn listen() -> Result<(std::net::SocketAddr, mpsc::Receiver<Instant>), Failure> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let (arrived, arrivals) = mpsc::channel();
    std::thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            let arrived = arrived.clone();
            std::thread::spawn(move || note_arrivals(stream, &arrived).is_ok());
        }
    });
    Ok((address, arrivals))
}

fn note_arrivals(mut stream: TcpStream, arrived: &mpsc::Sender<Instant>) -> Result<(), Failure> {
    stream.set_nodelay(true)?;
    let mut decoder = FrameDecoder::new();
    let mut buffer = vec![0; 64 << 10];
    let mut answer = Vec::new();
    loop {
        let read = stream.read(&mut buffer)?;
        let now = Instant::now();
        if read == 0 {
            return Ok(());
        }
        decoder.read_buffer().extend_from_slice(&buffer[..read]);
        while let Some(frame) = decoder.next_frame()? {
            let (header, _) = Header::parse(&frame)?;
            if header.verb == Some(Verb::Logon) {
                answer.clear();
                LogonAck {
                    command_id: header.command_id.as_deref(),
                    sequence: Some(0),
                    bookmark: None,
                    client_name: header.client_name.as_deref(),
                    reason: None,
                    version: None,
                }
                .encode(&mut answer)?;
                stream.write_all(&answer)?;
            } else {
                arrived.send(now)?;
            }
        }
    }
}

pub(crate) fn latency(
    plan: &Plan,
    place: &Place,
    tell: &mut dyn FnMut(Row),
) -> Result<(), Failure> {
    let count = plan.count(3000);
    let (address, arrivals) = listen()?;
    let runtime = runtime(CLIENT_THREAD)?;
    let store = store(&place.file("store")?, 256 << 20)?;
    let (mut ours, mut floor) = (Histogram::new(), Histogram::new());

    // The floor: a task that is woken and writes one frame.
    let mut frame = Vec::new();
    Publish::stored(TOPIC, 1, &PAYLOAD).encode(&mut frame)?;
    let wake = Arc::new(tokio::sync::Notify::new());
    let woken = wake.clone();
    let (ready, is_ready) = mpsc::channel();
    let task = runtime.spawn(async move {
        let mut stream = tokio::net::TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        // The other end may be gone already; then this run fails by itself.
        let _ = ready.send(());
        loop {
            woken.notified().await;
            stream.write_all(&frame).await?;
        }
        #[allow(unreachable_code)]
        Ok::<(), Failure>(())
    });
    is_ready.recv_timeout(PATIENCE)?;
    let client = runtime.block_on(
        Client::builder("bench")
            .server(format!("tcp://{address}/amps/json"))
            // The other end takes every frame for the message that is timed.
            .heartbeat(None)
            .store(store)
            .open(),
    )?;
    runtime.block_on(logged_on(&client))?;
    for at in 0..count + 100 {
        // Idle means that every thread has gone to sleep.
        std::thread::sleep(Duration::from_millis(1));
        let begun = Instant::now();
        wake.notify_one();
        let of_floor = arrivals.recv_timeout(PATIENCE)?.duration_since(begun);
        std::thread::sleep(Duration::from_millis(1));
        let begun = Instant::now();
        drop(runtime.block_on(client.publish(TOPIC, &PAYLOAD[..]))?);
        let of_ours = arrivals.recv_timeout(PATIENCE)?.duration_since(begun);
        if at >= 100 {
            floor.add(of_floor.as_nanos() as u64);
            ours.add(of_ours.as_nanos() as u64);
        }
    }
    task.abort();
    runtime.block_on(client.close(Duration::ZERO));
    for (name, share) in [("p50", 0.5), ("p99", 0.99)] {
        tell(Row {
            target: "T9",
            what: format!("publish to bytes on the wire, idle, {name}"),
            unit: "us",
            ours: ours.quantile(share) / 1000.0,
            floor: Some(floor.quantile(share) / 1000.0),
            goal: Goal::Times(2.0),
        });
    }
    Ok(())
}
