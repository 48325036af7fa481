//! The `amps` binary as users see it: processes, files and exit codes.
#![allow(
    dead_code,
    unreachable_pub,
    reason = "each test file uses its own part"
)]
#![allow(clippy::expect_used, reason = "a test ends where it cannot go on")]

pub mod rig;

use std::fs;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio};
use std::sync::Once;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use tokio::signal::unix::{SignalKind, signal};

/// A server that nobody runs: the discard port of the loopback interface.
pub const NOBODY: &str = "tcp://127.0.0.1:9/amps/json";

/// The binary under test, without anything inherited from the terminal.
pub fn amps() -> Command {
    signals_by_default();
    let mut command = Command::new(env!("CARGO_BIN_EXE_amps"));
    command.stdin(Stdio::null());
    command
}

/// Signals that were ignored when the tests were started, as by nohup, stay ignored in every
/// program that they start, and whoever waits for such a program to end waits for ever. Signals
/// that are caught here have their default in those programs.
fn signals_by_default() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let status = fs::read_to_string("/proc/self/status").expect("what is ignored is known");
        let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
        let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok());
        let ignored = ignored.expect("a mask of signals");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build()
            .expect("a runtime");
        let _entered = runtime.enter();
        for kind in [
            SignalKind::hangup(),
            SignalKind::interrupt(),
            SignalKind::terminate(),
        ] {
            if ignored >> (kind.as_raw_value() - 1) & 1 == 1 {
                // Caught from here on, whether or not anything listens.
                drop(signal(kind).expect("it can be caught"));
            }
        }
    });
}

/// What a finished run has printed and returned.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Ran {
    /// Fails the test, and prints everything that the run said, unless it ended with `code`.
    #[track_caller]
    pub fn expect(self, code: i32) -> Self {
        assert_eq!(
            self.code,
            Some(code),
            "stdout:\n{}\nstderr:\n{}",
            self.text(),
            self.stderr
        );
        assert!(!self.stderr.contains("panicked"), "{}", self.stderr);
        assert!(!self.stderr.contains("RUST_BACKTRACE"), "{}", self.stderr);
        self
    }

    /// Fails the test unless standard error names all of `words`.
    #[track_caller]
    pub fn says(self, words: &[&str]) -> Self {
        for word in words {
            assert!(
                self.stderr.contains(word),
                "no {word:?} in:\n{}",
                self.stderr
            );
        }
        self
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard output as JSON, one value per line.
    #[track_caller]
    pub fn objects(&self) -> Vec<Value> {
        self.text()
            .lines()
            .map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}")))
            .collect()
    }

    /// The last object, the report.
    #[track_caller]
    pub fn report(&self) -> Value {
        self.objects().pop().expect("a report")
    }
}

/// Runs a command to its end.
pub fn run(command: &mut Command) -> Ran {
    ran(command.output().expect("the binary starts"))
}

/// Runs a command to its end with `input` on standard input.
pub fn run_with_input(command: &mut Command, input: &[u8]) -> Ran {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary starts");
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let input = input.to_vec();
    let writer = std::thread::spawn(move || {
        // A run that ends early closes the pipe; the test goes by its exit code.
        let _ = stdin.write_all(&input);
    });
    let output = child.wait_with_output().expect("the run ends");
    writer.join().expect("the writer ends");
    ran(output)
}

pub fn ran(output: Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: output.stdout,
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Waits until a process handles signals itself: until then they end it.
pub fn listens(pid: u32) {
    let status = format!("/proc/{pid}/status");
    loop {
        let status = std::fs::read_to_string(&status).expect("it runs");
        let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        // SIGTERM and SIGINT.
        if caught & (1 << 14) != 0 && caught & (1 << 1) != 0 {
            return;
        }
        std::thread::yield_now();
    }
}

/// A running process of the binary. It is killed when this is dropped.
pub struct Running {
    child: Child,
    lines: BufReader<ChildStdout>,
    stdin: Option<ChildStdin>,
}

impl Running {
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("the binary starts");
        let lines = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let stdin = child.stdin.take();
        Running {
            child,
            lines,
            stdin,
        }
    }

    /// The next line of its standard output, `None` when it has ended.
    pub fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.lines.read_line(&mut line).expect("stdout can be read") {
            0 => None,
            // A line without its newline was cut by a kill.
            _ if !line.ends_with('\n') => None,
            _ => Some(line.trim_end().to_owned()),
        }
    }

    pub fn write_line(&mut self, line: &str) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .expect("the process reads");
    }

    /// Sends it a signal, to its own pid.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.child.id().cast_signed()).expect("a pid");
        kill_process(pid, signal).expect("it is our child");
    }

    /// Writes to its standard input in one call, and leaves it open.
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("stdin is open");
        stdin
            .write_all(bytes)
            .and_then(|()| stdin.flush())
            .expect("the process reads");
    }

    /// Reads standard output until an object is this event and `wanted`.
    #[track_caller]
    pub fn hear(&mut self, event: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        while let Some(line) = self.line() {
            let object: Value = serde_json::from_str(&line).expect("one object per line");
            if object["event"] == event && wanted(&object) {
                return object;
            }
        }
        panic!("no such {event}");
    }

    /// Waits for its end with its standard input still open; returns the exit code and the
    /// report.
    #[track_caller]
    pub fn end(mut self) -> (Option<i32>, Value) {
        let report = self.hear("report", |_| true);
        assert!(self.line().is_none(), "the report is the last object");
        (self.child.wait().expect("it ends").code(), report)
    }

    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Sends SIGKILL to its own pid, and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("it is our child");
        self.child.wait().expect("it ends");
    }

    /// Sends SIGKILL, and passes on everything that it had printed before.
    pub fn kill_and_hear(mut self, mut hear: impl FnMut(&str)) {
        self.child.kill().expect("it is our child");
        while let Some(line) = self.line() {
            hear(&line);
        }
        self.child.wait().expect("it ends");
    }

    /// Waits for its end with its standard input still open.
    pub fn wait_open(mut self) -> Option<i32> {
        while self.line().is_some() {}
        self.child.wait().expect("it ends").code()
    }

    pub fn wait(mut self) -> Option<i32> {
        self.stdin = None;
        while self.line().is_some() {}
        self.child.wait().expect("it ends").code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().ok().flatten().is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// A sandbox server in a process of its own.
pub struct Server {
    pub uri: String,
    journal: Option<PathBuf>,
    extra: Vec<String>,
    process: Option<Running>,
}

impl Server {
    pub fn start(journal: Option<&Path>, extra: &[&str]) -> Self {
        Server::start_at("tcp://127.0.0.1:0/amps/json", journal, extra)
    }

    pub fn start_at(uri: &str, journal: Option<&Path>, extra: &[&str]) -> Self {
        let mut server = Server {
            uri: uri.to_owned(),
            journal: journal.map(Path::to_owned),
            extra: extra.iter().map(|&s| s.to_owned()).collect(),
            process: None,
        };
        server.begin();
        server
    }

    /// Sends SIGKILL, and starts a new process at the same address with the same journal.
    pub fn kill_and_restart(&mut self) {
        self.kill();
        self.begin();
    }

    pub fn kill(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
    }

    pub fn begin(&mut self) {
        let mut command = amps();
        command.args(["serve", "--listen", &self.uri, "--ack-interval", "20ms"]);
        if let Some(journal) = &self.journal {
            command.arg("--journal").arg(journal);
        }
        command.args(&self.extra);
        let mut process = Running::start(&mut command);
        let line = process.line().expect("the server says where it listens");
        self.uri = line
            .strip_prefix("listening ")
            .expect("listening URI")
            .to_owned();
        self.process = Some(process);
    }
}

/// A temporary directory, and paths in it.
pub struct Dir(tempfile::TempDir);

impl Dir {
    pub fn new() -> Self {
        Dir(tempfile::tempdir().expect("a temporary directory"))
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).expect("a file can be written");
        path
    }
}

/// `count` lines that differ, each exactly `len` bytes without its newline.
pub fn numbered_lines(count: u64, len: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(count as usize * (len + 1));
    for n in 1..=count {
        let start = out.len();
        write!(out, "{{\"n\":{n},\"pad\":\"").expect("memory");
        let pad = len.saturating_sub(out.len() - start + 2);
        out.extend(std::iter::repeat_n(b'.', pad));
        out.extend_from_slice(b"\"}\n");
    }
    out
}

/// Small random numbers that can be reproduced.
pub struct Random(u64);

impl Random {
    /// Seeded from `AMPS_SEED`, or otherwise freshly; the seed is printed.
    pub fn new(test: &str) -> Self {
        let seed = match std::env::var("AMPS_SEED") {
            Ok(text) => text.parse().expect("AMPS_SEED is a number"),
            Err(_) => RandomState::new().build_hasher().finish(),
        };
        println!("{test}: AMPS_SEED={seed}");
        Random(seed)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % bound
    }
}

/// Whether the full size is asked for.
pub fn full_size() -> bool {
    std::env::var_os("AMPS_FULL").is_some_and(|v| v == "1")
}
