//! Real servers, started by the test that wants them and ended by it; and a look into them.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test binary uses a part of it"
)]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

use std::collections::BTreeSet;
use std::env;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use amps_jetstream::api::{self, API, Ask, Stored, StreamInfo};
use amps_jetstream::codec::{self, Decoder, Frame};
use tempfile::TempDir;

/// How long a server may take for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// The programs of servers on this machine: what `AMPS_NATS_SERVERS` lists, or else the
/// `nats-server` that is installed. None: the test is skipped, unless `AMPS_NATS=1` says that it
/// must not be.
pub fn programs() -> Vec<PathBuf> {
    let listed = env::var_os("AMPS_NATS_SERVERS");
    let found: BTreeSet<PathBuf> = match &listed {
        Some(listed) => env::split_paths(listed).collect(),
        None => {
            let paths = env::var_os("PATH").unwrap_or_default();
            let dirs = env::split_paths(&paths).chain(["/usr/sbin".into()]);
            let program = dirs
                .map(|dir| dir.join("nats-server"))
                .find(|p| p.is_file());
            program.into_iter().collect()
        }
    };
    if found.is_empty() {
        assert!(
            env::var_os("AMPS_NATS").is_none_or(|value| value != "1"),
            "AMPS_NATS=1, and no nats-server is installed or in AMPS_NATS_SERVERS"
        );
        println!("skipped: no nats-server is installed, and AMPS_NATS_SERVERS lists none");
    }
    found.into_iter().collect()
}

/// Ports that nobody listened to a moment ago.
pub fn free_ports<const N: usize>() -> [u16; N] {
    let held = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    held.map(|listener| listener.local_addr().unwrap().port())
}

/// A server that runs until it is dropped.
pub struct Server {
    program: PathBuf,
    arguments: Vec<String>,
    running: Option<Child>,
    pub port: u16,
    pub directory: TempDir,
}

impl Server {
    /// Starts one with this in its configuration, beside where it listens and stores.
    pub fn start(program: &Path, configuration: &str) -> Self {
        let [port] = free_ports();
        Server::start_at(program, port, configuration)
    }

    pub fn start_at(program: &Path, port: u16, configuration: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("server.conf");
        let all = format!(
            "listen: \"127.0.0.1:{port}\"\njetstream {{ store_dir: {:?} }}\n{configuration}\n",
            directory.path().join("js")
        );
        std::fs::write(&file, all).unwrap();
        let arguments = vec!["-c".to_owned(), file.to_string_lossy().into_owned()];
        let mut server = Server {
            program: program.to_owned(),
            arguments,
            running: None,
            port,
            directory,
        };
        server.restart();
        server
    }

    /// Starts it again, with what it stored.
    pub fn restart(&mut self) {
        self.kill();
        let log = std::fs::File::create(self.directory.path().join("log")).unwrap();
        let child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        self.running = Some(child.unwrap());
        let until = Instant::now() + PATIENCE;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            let child = self.running.as_mut().unwrap();
            assert!(child.try_wait().unwrap().is_none(), "{}", self.log());
            assert!(Instant::now() < until, "{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Ends it at once.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.running.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    /// Sends it a signal, by its name.
    pub fn signal(&self, name: &str) {
        let child = self.running.as_ref().unwrap();
        let done = Command::new("kill")
            .args([format!("-{name}"), child.id().to_string()])
            .status();
        assert!(done.unwrap().success());
    }

    pub fn admin(&self) -> Admin {
        Admin::open(self.port, "")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A plain connection to a server, for looking into streams and changing them.
pub struct Admin {
    stream: TcpStream,
    decoder: Decoder,
    asked: u64,
}

impl Admin {
    /// `logon`: what is added to the line that logs on, `"user":"u","pass":"p",`.
    pub fn open(port: u16, logon: &str) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let mut admin = Admin {
            stream,
            decoder: Decoder::new(64 << 20),
            asked: 0,
        };
        let hello = format!(
            "CONNECT {{{logon}\"verbose\":false,\"headers\":true,\"no_responders\":true}}\r\n\
             SUB admin.> 1\r\nPING\r\n"
        );
        admin.write(hello.as_bytes());
        admin
            .read(PATIENCE, |frame| (*frame == Frame::Pong).then_some(()))
            .expect("it answers");
        admin
    }

    fn write(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Reads until something is found, for so long.
    fn read<T>(
        &mut self,
        patience: Duration,
        mut find: impl FnMut(&Frame<'_>) -> Option<T>,
    ) -> Option<T> {
        let until = Instant::now() + patience;
        loop {
            while let Some(frame) = self.decoder.next_frame().unwrap() {
                if let Frame::Err(text) = frame {
                    panic!("the server says: {text}");
                }
                let ping = frame == Frame::Ping;
                if let Some(found) = find(&frame) {
                    return Some(found);
                }
                if ping {
                    self.stream.write_all(codec::PONG).unwrap();
                }
            }
            let left = until.checked_duration_since(Instant::now())?;
            let left = left.max(Duration::from_millis(1));
            self.stream.set_read_timeout(Some(left)).unwrap();
            let count = match self.stream.read(self.decoder.space()) {
                Ok(count) => count,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) if error.kind() == ErrorKind::WouldBlock => continue,
                Err(error) => panic!("no answer: {error}"),
            };
            assert!(count > 0, "the server closed the connection");
            self.decoder.filled(count);
        }
    }

    /// Asks until there is an answer.
    pub fn request(&mut self, subject: &str, body: &[u8]) -> Vec<u8> {
        let until = Instant::now() + PATIENCE;
        loop {
            if let Some(answer) = self.try_request(subject, body) {
                return answer;
            }
            assert!(Instant::now() < until, "no answer on {subject}");
        }
    }

    /// Asks, and waits a second for the answer: who has no leader says nothing.
    pub fn try_request(&mut self, subject: &str, body: &[u8]) -> Option<Vec<u8>> {
        self.asked += 1;
        let reply = format!("admin.{}", self.asked);
        let mut out = Vec::new();
        codec::publish(&mut out, subject, &reply, body);
        self.write(&out);
        self.read(Duration::from_secs(1), |frame| match frame {
            Frame::Msg(msg) if msg.subject == reply => Some(msg.payload.to_vec()),
            _ => None,
        })
    }

    pub fn ask(&mut self, ask: Ask<'_>) -> Vec<u8> {
        let (subject, body) = ask.request(API);
        self.request(&subject, &body)
    }

    /// Asks for something that is to be done until the server says that it is.
    pub fn api(&mut self, operation: &str, body: &str) {
        let until = Instant::now() + PATIENCE;
        loop {
            let answer = self.request(&format!("{API}.{operation}"), body.as_bytes());
            let answer = String::from_utf8(answer).unwrap();
            if !answer.is_empty() && !answer.contains("\"error\"") {
                return;
            }
            assert!(Instant::now() < until, "{operation}: {answer}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// Makes a stream for the subject `t`, with this in its configuration.
    pub fn stream(&mut self, name: &str, more: &str) {
        let body =
            format!("{{\"name\":\"{name}\",\"subjects\":[\"t\"],\"storage\":\"file\"{more}}}");
        self.api(&format!("STREAM.CREATE.{name}"), &body);
    }

    pub fn info(&mut self, stream: &str) -> StreamInfo {
        let answer = self.ask(Ask::Info(stream));
        api::info(&answer).unwrap()
    }

    /// Waits until the stream holds more than that.
    pub fn stored_more(&mut self, stream: &str, than: u64) {
        let until = Instant::now() + PATIENCE;
        while self.info(stream).state.last_seq <= than {
            assert!(Instant::now() < until, "nothing was stored");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until the server is done with what it had read of a link that ended, which may be
    /// nothing.
    pub fn at_rest(&mut self, stream: &str) {
        let until = Instant::now() + PATIENCE;
        let mut held = None;
        loop {
            let now = self.info(stream).state.last_seq;
            if held.replace(now) == Some(now) {
                return;
            }
            assert!(Instant::now() < until, "it is never at rest");
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    /// What a stream holds, in its order: ids and bodies.
    pub fn contents(&mut self, stream: &str) -> Vec<(Option<String>, Vec<u8>)> {
        let state = self.info(stream).state;
        let mut found = Vec::new();
        for place in state.first_seq..=state.last_seq {
            let answer = self.ask(Ask::Get(stream, place));
            let stored: Option<Stored> = api::message(&answer).unwrap();
            if let Some(stored) = stored {
                let answer: serde_json::Value = serde_json::from_slice(&answer).unwrap();
                let data = answer["message"]["data"].as_str().unwrap_or_default();
                let engine = base64::engine::general_purpose::STANDARD;
                let body = base64::Engine::decode(&engine, data).unwrap();
                found.push((stored.id, body));
            }
        }
        found
    }
}

/// Somebody who answers every message of a subject.
pub struct Liar {
    stop: Arc<AtomicBool>,
    answered: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

impl Liar {
    pub fn start(port: u16, subject: &str, lie: &'static [u8]) -> Self {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let hello = format!("CONNECT {{\"headers\":true}}\r\nSUB {subject} 1\r\nPING\r\n");
        stream.write_all(hello.as_bytes()).unwrap();
        let mut lines = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        while line.trim() != "PONG" {
            line.clear();
            lines.read_line(&mut line).unwrap();
        }
        let pause = Some(Duration::from_millis(50));
        stream.set_read_timeout(pause).unwrap();
        let (stop, answered) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (stopped, count) = (stop.clone(), answered.clone());
        let thread = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                // A line may come in parts.
                match lines.read_until(b'\n', &mut bytes) {
                    Ok(0) => break,
                    Ok(_) => {}
                    Err(_) => continue,
                }
                let text = String::from_utf8_lossy(&bytes).into_owned();
                bytes.clear();
                let parts: Vec<&str> = text.split_whitespace().collect();
                if let ["HMSG", _, _, reply, ..] = parts[..] {
                    let mut out = format!("PUB {reply} {}\r\n", lie.len()).into_bytes();
                    out.extend_from_slice(lie);
                    out.extend_from_slice(b"\r\n");
                    stream.write_all(&out).unwrap();
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Liar {
            stop,
            answered,
            thread,
        }
    }

    /// How many messages it answered.
    pub fn answered(&self) -> usize {
        self.answered.load(Ordering::Relaxed)
    }

    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// Passes on what clients and a server say, each connection in both directions, and can hold back
/// what comes from the first client, as a network does that takes nothing more.
pub struct Proxy {
    pub port: u16,
    first: Arc<Held>,
    ended: std::sync::mpsc::Receiver<usize>,
}

#[derive(Default)]
struct Held {
    holds: std::sync::Mutex<bool>,
    changed: std::sync::Condvar,
}

impl Held {
    fn set(&self, holds: bool) {
        *self.holds.lock().unwrap() = holds;
        self.changed.notify_all();
    }

    /// Waits while it holds; whether it did.
    fn pass(&self) -> bool {
        let mut holds = self.holds.lock().unwrap();
        let held = *holds;
        while *holds {
            holds = self.changed.wait(holds).unwrap();
        }
        held
    }
}

impl Proxy {
    pub fn start(server: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let first = Arc::<Held>::default();
        let (tell, ended) = std::sync::mpsc::channel();
        let held = first.clone();
        std::thread::spawn(move || {
            let mut first = Some((held, tell));
            for client in listener.incoming() {
                // It ends with the process of the test.
                let (Ok(client), Ok(server)) = (client, TcpStream::connect(("127.0.0.1", server)))
                else {
                    continue;
                };
                let back = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || pass_on(back.0, back.1, None));
                let first = first.take();
                std::thread::spawn(move || {
                    let (held, tell) = first.unzip();
                    let late = pass_on(client, server, held);
                    if let Some(tell) = tell {
                        // Nobody may have asked.
                        let _ = tell.send(late);
                    }
                });
            }
        });
        Proxy { port, first, ended }
    }

    /// Reads nothing more of the first client.
    pub fn hold_first(&self) {
        self.first.set(true);
    }

    /// Passes on what it said since, and waits until it has closed its connection; how many bytes
    /// that were.
    pub fn release_first(&self) -> usize {
        self.first.set(false);
        self.ended.recv_timeout(PATIENCE).expect("it is closed")
    }
}

/// Passes on until one side ends; the bytes that came after it had held them back.
fn pass_on(mut from: TcpStream, mut to: TcpStream, held: Option<Arc<Held>>) -> usize {
    let (mut part, mut late, mut was_held) = (vec![0; 1 << 16], 0, false);
    loop {
        // What it is waiting for when it is told to hold may still come through.
        was_held |= held.as_ref().is_some_and(|held| held.pass());
        let count = match from.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        was_held |= held.as_ref().is_some_and(|held| held.pass());
        late += if was_held { count } else { 0 };
        if to.write_all(&part[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Write);
    late
}
