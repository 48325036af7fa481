//! `amps torture`: the store under a crash rig, which judges from outside, only by the contract
//! in `docs/torture.md`. Every payload follows from (seed, run, sequence), so a rig needs no
//! memory of what was written.

mod dump;
mod payload;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::ExitCode;
use std::sync::{Barrier, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use amps_store::{AppendError, Envelope, OpenError, Options, PublishStore as _, Store, StoreError};

use crate::args::{TortureCommand, TortureWrite};
use crate::output::{Patient, data_on_stderr, unbuffered};

use self::payload::Payloads;

/// Name of the store in its directory.
const FILE: &str = "torture.store";

/// Topic of every message; the contract does not name one.
const TOPIC: &str = "torture";

/// How far the grant goes beyond the sequence that needs it: far enough that not every message
/// waits for a sync, and near enough that a run raises it many times.
const GRANT_STEP: u64 = 4096;

/// How long room may take to come although nothing is unsettled any more.
const ROOM: Duration = Duration::from_secs(30);

/// Payloads above this size need segments made for them.
const LONG: u64 = 1_000_000;

/// Pause between two looks at why there is no room.
const ROOM_SLICE: Duration = Duration::from_millis(20);

/// Exit codes of the contract; they are not those of the other commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Code {
    Ok = 0,
    Usage = 2,
    Io = 3,
    NoStore = 4,
    Locked = 5,
    Damaged = 6,
}

/// Why a run ended before its end.
struct Fatal {
    code: Code,
    text: String,
}

impl Fatal {
    fn io(text: impl ToString) -> Self {
        Fatal {
            code: Code::Io,
            text: text.to_string(),
        }
    }
}

impl From<StoreError> for Fatal {
    fn from(error: StoreError) -> Self {
        Fatal::io(error)
    }
}

impl From<OpenError> for Fatal {
    fn from(error: OpenError) -> Self {
        let code = match error {
            OpenError::Missing { .. } => Code::NoStore,
            OpenError::Locked { .. } => Code::Locked,
            OpenError::Damaged { .. }
            | OpenError::NoSuperblock { .. }
            | OpenError::Broken { .. }
            | OpenError::NotAStore { .. }
            | OpenError::Features { .. }
            | OpenError::Version { .. } => Code::Damaged,
            OpenError::Options(_) => Code::Usage,
            _ => Code::Io,
        };
        Fatal {
            code,
            text: error.to_string(),
        }
    }
}

/// Runs `torture write` or `torture dump`.
pub(crate) fn run(command: &TortureCommand) -> ExitCode {
    let code = match command {
        TortureCommand::Write(args) => write(args),
        TortureCommand::Dump(args) => dump::dump(args),
    };
    ExitCode::from(code as u8)
}

fn write(args: &TortureWrite) -> Code {
    if args.min_len > args.max_len {
        tell(&format!(
            "--min-len {} is above --max-len {}",
            args.min_len, args.max_len
        ));
        return Code::Usage;
    }
    let mut says = match unbuffered() {
        Ok(stdout) => Says(stdout),
        Err(failure) => {
            tell(&failure.to_string());
            return Code::Io;
        }
    };
    match try_write(args, &mut says) {
        Ok(()) => Code::Ok,
        Err(Fatal {
            code: Code::Io,
            text,
        }) => {
            tell(&text);
            // A rig has the exit code even when its pipe is gone.
            let _ = says.line(&format!("fatal {}", text.replace('\n', " ")));
            Code::Io
        }
        Err(Fatal { code, text }) => {
            tell(&text);
            code
        }
    }
}

/// Says what went wrong. A rig that does not listen has the exit code.
fn tell(text: &str) {
    let _ = data_on_stderr(&format!("error: {text}"));
}

fn try_write(args: &TortureWrite, says: &mut Says) -> Result<(), Fatal> {
    let store = open(args)?;
    let report = store.report();
    says.line(&format!(
        "open first={} last={} next={} run={}",
        report.first.unwrap_or(0),
        report.last.unwrap_or(0),
        store.bounds().next,
        args.run
    ))?;

    let writer = Writer {
        store: &store,
        payloads: Payloads::new(args.seed, args.run, args.min_len, args.max_len),
        lag: args.discard_lag,
        round: Mutex::new(Round {
            says,
            left: 0,
            failed: None,
        }),
    };
    writer.run(args)?;
    let last = store.bounds().last;
    store.close(last.max(store.numbers().found_grant))?;
    says.line("end")
}

fn open(args: &TortureWrite) -> Result<Store, Fatal> {
    let dir = &args.dir;
    if !dir.join(FILE).exists() {
        make_directory(dir, &|parent| File::open(parent)?.sync_all())
            .map_err(|e| Fatal::io(format!("cannot create {}: {e}", dir.display())))?;
    }
    let mut options = Options::new().preallocate(true);
    if let Some(capacity) = args.capacity {
        options = options.capacity(capacity);
    }
    if args.max_len > LONG {
        options = options.max_message(args.max_len);
    }
    Ok(Store::open(dir.join(FILE), options)?)
}

/// Makes a directory that survives a power cut: each missing one on the way to it is made durable
/// in the one above. Its own entry is made durable even if it exists, since the run that made it
/// may have died before that.
fn make_directory(dir: &Path, sync: &impl Fn(&Path) -> io::Result<()>) -> io::Result<()> {
    let parent = match dir.parent() {
        Some(parent) if parent.as_os_str().is_empty() => Path::new("."),
        Some(parent) => parent,
        None => return Ok(()),
    };
    if !parent.exists() {
        make_directory(parent, sync)?;
    }
    match std::fs::create_dir(dir) {
        Err(error) if !(error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir()) => Err(error),
        _ => sync(parent),
    }
}

/// Standard output as the contract wants it: one `write(2)` per line.
struct Says(Patient);

impl Says {
    fn line(&mut self, text: &str) -> Result<(), Fatal> {
        self.0
            .write_all(format!("{text}\n").as_bytes())
            .map_err(|e| Fatal::io(format!("cannot write to standard output: {e}")))
    }
}

/// What the threads of a round share. The lock is held over both number and append, because the
/// payload follows from the number.
struct Round<'a> {
    says: &'a mut Says,
    left: u64,
    failed: Option<Fatal>,
}

struct Writer<'a> {
    store: &'a Store,
    payloads: Payloads,
    lag: u64,
    round: Mutex<Round<'a>>,
}

impl<'a> Writer<'a> {
    /// Rounds of: append K, sync, settle.
    fn run(&self, args: &TortureWrite) -> Result<(), Fatal> {
        if args.threads == 1 {
            return self.rounds(args, |this| this.append_until_none_left());
        }
        let gate = Barrier::new(args.threads as usize + 1);
        let stop = Mutex::new(false);
        std::thread::scope(|scope| {
            for _ in 0..args.threads {
                scope.spawn(|| {
                    loop {
                        gate.wait();
                        if *stop.lock().unwrap_or_else(PoisonError::into_inner) {
                            return;
                        }
                        self.append_until_none_left();
                        gate.wait();
                    }
                });
            }
            let result = self.rounds(args, |_| {
                gate.wait();
                gate.wait();
            });
            *stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
            gate.wait();
            result
        })
    }

    fn rounds(&self, args: &TortureWrite, append: impl Fn(&Self)) -> Result<(), Fatal> {
        let mut appended = 0;
        while args.count == 0 || appended < args.count {
            let batch = match args.count {
                0 => args.sync_every,
                count => args.sync_every.min(count - appended),
            };
            let through = self.store.bounds().next - 1 + batch;
            {
                let mut round = self.round();
                round.says.line(&format!("begin {through}"))?;
                round.left = batch;
            }
            // As if logged on: a number is granted before its message is handed to a transport,
            // and here every appended message counts as handed over.
            if self.store.numbers().grant < through {
                self.store.raise_grant(through + GRANT_STEP)?;
            }
            append(self);
            let mut round = self.round();
            if let Some(fatal) = round.failed.take() {
                return Err(fatal);
            }
            self.sync(&mut round)?;
            let bounds = self.store.bounds();
            if self.lag == 0 || bounds.unsettled > self.lag.saturating_mul(2) {
                self.settle(&mut round, (bounds.next - 1).saturating_sub(self.lag))?;
            }
            appended += batch;
        }
        Ok(())
    }

    fn append_until_none_left(&self) {
        loop {
            let mut round = self.round();
            if round.left == 0 || round.failed.is_some() {
                return;
            }
            round.left -= 1;
            if let Err(fatal) = self.append_one(&mut round) {
                round.failed = Some(fatal);
            }
        }
    }

    fn append_one(&self, round: &mut Round<'_>) -> Result<(), Fatal> {
        let sequence = self.store.bounds().next;
        let payload = self.payloads.of(sequence);
        let envelope = Envelope::publish(TOPIC);
        let patience = Instant::now() + ROOM;
        let mut until = Instant::now();
        loop {
            match self.store.append_wait(&envelope, &payload, until) {
                Ok(at) if at.sequence == sequence => return Ok(()),
                Ok(at) => {
                    return Err(Fatal::io(format!(
                        "the store said {sequence} comes next and gave {}",
                        at.sequence
                    )));
                }
                Err(error) if error.is_retryable() && Instant::now() > patience => {
                    return Err(Fatal::io(error));
                }
                // A settled segment is about to be freed.
                Err(AppendError::MakingRoom { .. }) => until = Instant::now() + ROOM_SLICE,
                Err(AppendError::Full { .. }) => {
                    self.settle_older_half(round)?;
                    until = Instant::now();
                }
                Err(error) => return Err(Fatal::io(error)),
            }
        }
    }

    fn settle_older_half(&self, round: &mut Round<'_>) -> Result<(), Fatal> {
        self.sync(round)?;
        let bounds = self.store.bounds();
        match bounds.first_unsettled {
            Some(first) => self.settle(round, first + (bounds.last - first) / 2),
            None => Ok(()),
        }
    }

    fn sync(&self, round: &mut Round<'_>) -> Result<(), Fatal> {
        let durable = self.store.sync()?;
        round.says.line(&format!("durable {}", durable.sequence))
    }

    fn settle(&self, round: &mut Round<'_>, through: u64) -> Result<(), Fatal> {
        round.says.line(&format!("discarding {through}"))?;
        self.store.settle_through(through)?;
        self.store.sync()?;
        round.says.line(&format!("discarded {through}"))
    }

    fn round(&self) -> MutexGuard<'_, Round<'a>> {
        self.round.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn names_survive_from_the_first_directory_on() {
        let base = tempfile::tempdir().unwrap();
        let dir = base.path().join("a/b/c");
        let synced = RefCell::new(Vec::new());
        let sync = |parent: &Path| {
            synced.borrow_mut().push(parent.to_owned());
            Ok(())
        };
        make_directory(&dir, &sync).unwrap();
        assert!(dir.is_dir());
        let parents = ["", "a", "a/b"].map(|p| base.path().join(p));
        assert_eq!(synced.take(), parents);
        // A run that died right after the last mkdir looks the same as one that died after its
        // sync.
        make_directory(&dir, &sync).unwrap();
        assert_eq!(synced.take(), parents[2..]);
        let refused = make_directory(&dir, &|_| Err(io::Error::other("no such luck")));
        assert!(refused.is_err());
    }
}
