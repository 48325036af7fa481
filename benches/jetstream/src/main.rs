//! Publishing to NATS JetStream beside async-nats alone:
//! `cargo run --release --manifest-path benches/jetstream/Cargo.toml -- SERVER [MESSAGES] [ROUNDS]`,
//! where SERVER is the program of a `nats-server`.
//!
//! Each publishes messages of 256 bytes to a stream in files, at most 1,000 of them without an
//! acknowledgement, until all are acknowledged. They take turns at one server; each turn has a
//! stream of its own, which is deleted behind it, so that every one finds the same server. Ours
//! writes each message to a store in a file first.

use std::collections::VecDeque;
use std::error::Error;
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use amps_client::Client;
use amps_client::jetstream::{self, Config, Mode};
use amps_store::{Options, Store};
use async_nats::HeaderMap;
use async_nats::jetstream::Context;
use async_nats::jetstream::context::PublishAckFuture;
use async_nats::jetstream::stream;
use bytes::Bytes;
use rustix::time::{ClockId, clock_gettime};
use tempfile::TempDir;

type Failure = Box<dyn Error + Send + Sync>;

const WINDOW: usize = 1_000;
const PAYLOAD: [u8; 256] = [0x5A; 256];
const TOPIC: &str = "orders";

/// Who publishes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Who {
    /// async-nats: publish, and the futures of the acknowledgements.
    Floor,
    /// The same with an id in each message, as ours has.
    FloorWithIds,
    Ours(Mode),
}

const ALL: [(&str, Who); 4] = [
    ("async-nats", Who::Floor),
    ("async-nats, ids", Who::FloorWithIds),
    ("ours, chained", Who::Ours(Mode::Chained)),
    ("ours, unchained", Who::Ours(Mode::Unchained)),
];

/// What one turn took.
#[derive(Clone, Copy)]
struct Turn {
    per_second: f64,
    /// Of this process, and of the server, for each message.
    cpu_nanos: f64,
    server_nanos: f64,
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let program = arguments
        .next()
        .ok_or("name the program of a nats-server")?;
    let mut number = |else_: u64| -> Result<u64, Failure> {
        arguments.next().map_or(Ok(else_), |text| Ok(text.parse()?))
    };
    let (messages, rounds) = (number(20_000)?, number(41)?);
    let directory = match std::env::var_os("AMPS_BENCH_DIR") {
        Some(dir) => TempDir::new_in(dir)?,
        None => TempDir::new()?,
    };
    let server = Server::start(&program, &directory)?;
    let admin = async_nats::jetstream::new(async_nats::connect(&server.address).await?);
    let mut turns = [const { Vec::new() }; ALL.len()];
    for round in 0..rounds {
        for at in 0..ALL.len() {
            // Who comes first differs from round to round.
            let at = (at + round as usize) % ALL.len();
            let turn = turn(&server, &admin, &directory, ALL[at].1, messages).await?;
            // One round to warm up.
            if round > 0 {
                turns[at].push(turn);
            }
        }
    }
    for ((name, _), of) in ALL.iter().zip(&turns) {
        let rates: Vec<f64> = of.iter().map(|turn| turn.per_second).collect();
        let against = |floor: &[Turn]| -> Vec<f64> {
            let both = of.iter().zip(floor);
            both.map(|(one, floor)| one.per_second / floor.per_second)
                .collect()
        };
        let (ratios, with_ids) = (against(&turns[0]), against(&turns[1]));
        let (low, high) = quartiles(&ratios);
        let mean = |of: &mut dyn Iterator<Item = f64>| of.sum::<f64>() / ratios.len() as f64;
        println!(
            "{name:16} {:8.0}/s  ratio {:.2} ({low:.2} to {high:.2}), with ids {:.2}  CPU {:5.0} ns, of the server \
             {:5.0} ns",
            median(&rates),
            median(&ratios),
            median(&with_ids),
            mean(&mut of.iter().map(|turn| turn.cpu_nanos)),
            mean(&mut of.iter().map(|turn| turn.server_nanos)),
        );
    }
    Ok(())
}

fn median(of: &[f64]) -> f64 {
    let mut of = of.to_vec();
    of.sort_by(f64::total_cmp);
    of.get(of.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What half of them lie between.
fn quartiles(of: &[f64]) -> (f64, f64) {
    let mut of = of.to_vec();
    of.sort_by(f64::total_cmp);
    let at = |part: usize| of.get(part * of.len() / 4).copied().unwrap_or(f64::NAN);
    (at(1), at(3))
}

async fn turn(
    server: &Server,
    admin: &Context,
    directory: &TempDir,
    who: Who,
    messages: u64,
) -> Result<Turn, Failure> {
    let config = stream::Config {
        name: "S".to_owned(),
        subjects: vec![TOPIC.to_owned()],
        storage: stream::StorageType::File,
        ..Default::default()
    };
    let mut stream = admin.create_stream(config).await?;
    let before = server.cpu()?;
    let mut turn = match who {
        Who::Floor => floor(&server.address, messages, false).await?,
        Who::FloorWithIds => floor(&server.address, messages, true).await?,
        Who::Ours(mode) => ours(&server.address, directory, messages, mode).await?,
    };
    turn.server_nanos = (server.cpu()? - before).as_nanos() as f64 / messages as f64;
    let stored = stream.info().await?.state.messages;
    admin.delete_stream("S").await?;
    match stored == messages {
        true => Ok(turn),
        false => Err(format!("{who:?}: {stored} messages are stored").into()),
    }
}

/// Runs from when it is called.
struct Clock {
    wall: Instant,
    cpu: Duration,
}

impl Clock {
    fn start() -> Self {
        let (wall, cpu) = (Instant::now(), cpu());
        Clock { wall, cpu }
    }

    fn stop(self, messages: u64) -> Turn {
        let (wall, cpu) = (self.wall.elapsed(), cpu() - self.cpu);
        Turn {
            per_second: messages as f64 / wall.as_secs_f64(),
            cpu_nanos: cpu.as_nanos() as f64 / messages as f64,
            server_nanos: f64::NAN,
        }
    }
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

async fn floor(address: &str, messages: u64, ids: bool) -> Result<Turn, Failure> {
    let context = async_nats::jetstream::new(async_nats::connect(address).await?);
    let payload = Bytes::from_static(&PAYLOAD);
    let mut window = VecDeque::with_capacity(WINDOW);
    let clock = Clock::start();
    for number in 0..messages {
        if window.len() == WINDOW
            && let Some(oldest) = window.pop_front()
        {
            acked(oldest).await?;
        }
        let sent = match ids {
            false => context.publish(TOPIC, payload.clone()).await?,
            true => {
                let mut headers = HeaderMap::new();
                headers.insert("Nats-Msg-Id", format!("bench:1:{number}:0").as_str());
                let publish = context.publish_with_headers(TOPIC, headers, payload.clone());
                publish.await?
            }
        };
        window.push_back(sent);
    }
    for sent in window {
        acked(sent).await?;
    }
    Ok(clock.stop(messages))
}

async fn acked(sent: PublishAckFuture) -> Result<(), Failure> {
    sent.await?;
    Ok(())
}

async fn ours(
    address: &str,
    directory: &TempDir,
    messages: u64,
    mode: Mode,
) -> Result<Turn, Failure> {
    let path = directory.path().join("store");
    let options = Options::new()
        .capacity(256 << 20)
        .client_name("bench")
        .preallocate(true);
    let store = Store::open(&path, options)?;
    let mut config = Config::new(TOPIC);
    config.mode = mode;
    config.window = WINDOW;
    let client = Client::builder("bench")
        .store(store)
        .transport(jetstream::transport(config))
        .server(address)
        .open()
        .await?;
    client.wait_logged_on(Duration::from_secs(10)).await?;
    let clock = Clock::start();
    for _ in 0..messages {
        client.publish(TOPIC, PAYLOAD.as_slice()).await?;
    }
    client.publish_flush(Duration::from_secs(60)).await?;
    let turn = clock.stop(messages);
    let left = client.close(Duration::from_secs(10)).await.left;
    std::fs::remove_file(&path)?;
    match left {
        0 => Ok(turn),
        left => Err(format!("{left} messages are left").into()),
    }
}

struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(program: &str, directory: &TempDir) -> Result<Self, Failure> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let child = Command::new(program)
            .args(["-a", "127.0.0.1", "-p", &port.to_string(), "-js", "-sd"])
            .arg(directory.path().join("js"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let address = format!("nats://127.0.0.1:{port}");
        let server = Server { child, address };
        let until = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > until {
                return Err("the server does not listen".into());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }
}

impl Server {
    /// The processor time that it has taken, which the kernel tells in hundredths of a second.
    fn cpu(&self) -> Result<Duration, Failure> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let behind = stat.rsplit(')').next().unwrap_or_default();
        let mut ticks = behind.split_whitespace().skip(11);
        let mut next = || -> Result<u64, Failure> {
            Ok(ticks.next().ok_or("an unknown form of /proc")?.parse()?)
        };
        Ok(Duration::from_millis(10 * (next()? + next()?)))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // It ends with this process anyway if that fails.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
