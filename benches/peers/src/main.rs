//! The store beside other crates that keep messages in files, all at the same work:
//! `cargo run --release --manifest-path benches/peers/Cargo.toml -- [--quick] [--crash] [NAME …]`.
//!
//! A message has a topic of 16 bytes and a payload. When an append returns, the message is safe at
//! a crash of the process, not at a power cut. 10,000 messages are unsettled at any time, and
//! after every 100 appends the oldest 100 are discarded by one call, whose effect is as safe as
//! an append. Each peer has its fastest configuration that does this; what that is stands in its
//! file.

mod fjall;
mod khata;
mod lmdb;
mod ours;
mod raft_engine;
mod redb;
mod sqlite;

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

type Failure = Box<dyn std::error::Error + Send + Sync>;

const TOPIC: &str = "a-topic-16-bytes";
/// Messages unsettled after each discard.
const LIVE: u64 = 10_000;
/// Appends between two discards.
const DISCARD: u64 = 100;
const SIZES: [usize; 4] = [64, 256, 1024, 8192];

/// One that keeps messages, by ascending numbers from 1.
trait Peer {
    /// Keeps a message. When this returns it is safe at a crash of the process.
    fn append(&mut self, sequence: u64, payload: &[u8]) -> Result<(), Failure>;

    /// Discards all messages up to this one, which is [`DISCARD`] after the last time's.
    fn discard_through(&mut self, sequence: u64) -> Result<(), Failure>;

    /// What a user would do or wait for now and then: reclaiming, compaction. Not counted.
    fn tidy(&mut self) -> Result<(), Failure> {
        Ok(())
    }

    /// The numbers of all messages that are there, by reading each.
    fn unsettled(&mut self) -> Result<Vec<u64>, Failure>;
}

type Open = fn(&Path) -> Result<Box<dyn Peer>, Failure>;

/// All contenders; the first is what the others are compared with.
const PEERS: [(&str, Open); 7] = [
    ("amps-store", ours::open),
    ("raft-engine", raft_engine::open),
    ("LMDB", lmdb::open),
    ("SQLite", sqlite::open),
    ("redb", redb::open),
    ("fjall", fjall::open),
    ("khata", khata::open),
];

/// A topic and a payload in one value, for those that know no topics.
fn joined<'a>(scratch: &'a mut Vec<u8>, payload: &[u8]) -> &'a [u8] {
    scratch.clear();
    scratch.extend_from_slice(TOPIC.as_bytes());
    scratch.extend_from_slice(payload);
    scratch
}

/// The number of the message that was joined so.
fn number_joined(value: &[u8]) -> Result<u64, Failure> {
    let payload = value.strip_prefix(TOPIC.as_bytes());
    number(payload.ok_or("a message lost its topic")?)
}

const FILLER: u8 = 0x5A;

/// A payload begins with its message's number.
fn number(payload: &[u8]) -> Result<u64, Failure> {
    match payload.split_first_chunk() {
        Some((number, rest)) if rest.iter().all(|b| *b == FILLER) => {
            Ok(u64::from_le_bytes(*number))
        }
        _ => Err("a message is damaged".into()),
    }
}

/// A peer and how far it has come.
struct Contender {
    name: &'static str,
    peer: Box<dyn Peer>,
    payload: Vec<u8>,
    last: u64,
    nanos: Vec<f64>,
}

impl Contender {
    fn new(name: &'static str, open: Open, dir: &Path, size: usize) -> Result<Self, Failure> {
        std::fs::create_dir(dir)?;
        Ok(Contender {
            name,
            peer: open(dir)?,
            payload: vec![FILLER; size],
            last: 0,
            nanos: Vec::new(),
        })
    }

    /// 100 appends, and the discard that follows.
    fn step(&mut self) -> Result<(), Failure> {
        for _ in 0..DISCARD {
            self.last += 1;
            self.payload[..8].copy_from_slice(&self.last.to_le_bytes());
            self.peer.append(self.last, &self.payload)?;
        }
        match self.last.checked_sub(LIVE) {
            None | Some(0) => Ok(()),
            Some(through) => self.peer.discard_through(through),
        }
    }

    /// Nanoseconds per message of steps that took this long together.
    fn turn(&mut self, long: Duration) -> Result<f64, Failure> {
        let (begun, first) = (Instant::now(), self.last);
        while begun.elapsed() < long {
            self.step()?;
        }
        let nanos = begun.elapsed().as_nanos() as f64 / (self.last - first) as f64;
        self.peer.tidy()?;
        Ok(nanos)
    }
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[(values.len() - 1) / 2]
}

/// All peers in turn, round by round, so that whatever else the machine does hits all of them.
fn measure(dir: &Path, quick: bool, only: &[String]) -> Result<(), Failure> {
    let (rounds, long) = match quick {
        true => (3, Duration::from_millis(100)),
        false => (7, Duration::from_millis(500)),
    };
    println!("{:<12} {:>6} {:>10} {:>7}", "", "bytes", "ns", "times");
    for size in SIZES {
        let mut contenders = Vec::new();
        for (name, open) in PEERS {
            let is_wanted = only.is_empty() || only.iter().any(|n| n.eq_ignore_ascii_case(name));
            if name == PEERS[0].0 || is_wanted {
                let dir = dir.join(format!("{name}-{size}"));
                let mut contender = Contender::new(name, open, &dir, size)?;
                while contender.last < LIVE {
                    contender.step()?;
                }
                contenders.push(contender);
            }
        }
        // The first round warms all of them up.
        for round in 0..=rounds {
            for contender in &mut contenders {
                let nanos = contender.turn(long)?;
                if round > 0 {
                    contender.nanos.push(nanos);
                }
            }
        }
        let ours = median(&mut contenders[0].nanos);
        for mut contender in contenders {
            let nanos = median(&mut contender.nanos);
            let (name, times) = (contender.name, nanos / ours);
            println!("{name:<12} {size:>6} {nanos:>10.0} {times:>7.1}");
            drop(contender);
            std::fs::remove_dir_all(dir.join(format!("{name}-{size}")))?;
        }
    }
    Ok(())
}

/// Steps of the process that crashes: enough that the first messages are long discarded.
const CRASH_STEPS: u64 = 300;
const CRASH_SIZE: usize = 256;

/// Appends and discards, and then ends without any closing.
fn crash(name: &str, dir: &Path) -> Result<(), Failure> {
    let (name, open) = find(name)?;
    let mut contender = Contender::new(name, open, &dir.join(name), CRASH_SIZE)?;
    for _ in 0..CRASH_STEPS {
        contender.step()?;
    }
    std::process::abort()
}

/// Whether the configurations do the work: a process of each peer crashes, and then what it had
/// appended is there, and what it had discarded is not.
fn after_crashes(dir: &Path, only: &[String]) -> Result<(), Failure> {
    let last = CRASH_STEPS * DISCARD;
    let expected: RangeInclusive<u64> = last - LIVE + 1..=last;
    for (name, open) in PEERS {
        if !only.is_empty() && !only.iter().any(|n| n.eq_ignore_ascii_case(name)) {
            continue;
        }
        let crashed = Command::new(std::env::current_exe()?)
            .args(["--crashing", name])
            .env("AMPS_BENCH_DIR", dir)
            .status()?;
        if crashed.code().is_some() {
            return Err(format!("{name} ended before its crash").into());
        }
        let found = open(&dir.join(name))?.unsettled()?;
        let is_exact = found.iter().copied().eq(expected.clone());
        match (found.first(), found.last()) {
            _ if is_exact => println!("{name:<12} exact: {expected:?}"),
            (Some(first), Some(last)) => println!(
                "{name:<12} not {expected:?}: {} messages, {first} to {last}",
                found.len()
            ),
            _ => println!("{name:<12} not {expected:?}: nothing"),
        }
    }
    Ok(())
}

fn find(name: &str) -> Result<(&'static str, Open), Failure> {
    let found = PEERS
        .into_iter()
        .find(|(n, _)| n.eq_ignore_ascii_case(name));
    found.ok_or_else(|| format!("no peer is called {name}").into())
}

fn work(arguments: &[String]) -> Result<(), Failure> {
    let above = std::env::var_os("AMPS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let has = |option: &str| arguments.iter().any(|a| a == option);
    let names: Vec<String> = arguments
        .iter()
        .filter(|a| !a.starts_with('-'))
        .cloned()
        .collect();
    for name in &names {
        find(name)?;
    }
    if has("--crashing") {
        return crash(names.first().ok_or("no peer is named")?, &above);
    }
    let place = tempfile::Builder::new()
        .prefix("amps-peers-")
        .tempdir_in(above)?;
    match has("--crash") {
        true => after_crashes(place.path(), &names),
        false => measure(place.path(), has("--quick"), &names),
    }
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match work(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
