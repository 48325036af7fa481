//! The `amps` command: publish lines through a durable store, look inside one, and run a
//! sandbox server to try it all against.
//!
//! Names, fields and exit codes are an interface: the README lists them.

// Anything that writes past `output` can block the work, or end it.
#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod bench;
mod body;
mod carried;
mod demo;
mod drain;
mod failed;
mod failure;
#[cfg(test)]
mod hints;
mod lines;
mod locked;
mod login;
mod meta;
mod output;
mod publish;
mod resume;
mod sending;
mod serve;
mod show;
mod signals;
mod store;
mod subscribe;
mod terminal;
mod tls;
mod torture;
mod units;

use std::future::Future;
use std::io;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use clap::Parser;
use tokio::runtime::{Builder, Runtime};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, Command, FailedCommand, StoreCommand};
use crate::failure::{Exit, Failure};
use crate::output::Output;

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let code = run();
    output::finish();
    code
}

fn run() -> ExitCode {
    let Cli { json, command } = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => return not_parsed(error),
    };
    // The output of these is not a list of objects.
    let objects = json
        && !matches!(
            command,
            Command::Store {
                command: StoreCommand::Export(_)
            } | Command::Failed {
                command: FailedCommand::Export { .. }
            } | Command::Torture { .. }
                | Command::Completions { .. }
                | Command::Man
        );
    let result = match command {
        Command::Serve(args) => on_runtime(serve::run(args, json)),
        Command::Publish(args) => on_runtime(publish::run(args, json)),
        Command::Subscribe(args) => on_runtime(subscribe::run(args, json)),
        Command::Drain(args) => on_runtime(drain::run(args, json)),
        Command::Demo(args) => on_runtime(demo::run(args, json)),
        // It listens for signals while it reads.
        Command::Store {
            command: command @ StoreCommand::Import(_),
        } => on_runtime(store::run(command, json)),
        Command::Store { command } => on_this_thread(store::run(command, json)),
        Command::Failed { command } => match command.changes() {
            true => on_runtime(failed::run(command, json)),
            false => on_this_thread(failed::run(command, json)),
        },
        Command::Torture { command } => {
            return match on_this_thread(async { Ok(torture::run(&command)) }) {
                Ok(code) => code,
                Err(failure) => told(&failure, objects),
            };
        }
        Command::Bench(args) => bench::run(args, json),
        Command::Completions { shell } => meta::completions(shell),
        Command::Man => meta::man(),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => told(&failure, objects),
    }
}

/// Reports why a command failed: to people and, instead of a report, as an object.
fn told(failure: &Failure, objects: bool) -> ExitCode {
    if failure.is_silent() {
        return failure.exit().into();
    }
    output::say(&format!("error: {failure}"));
    if objects {
        tell(failure);
    }
    failure.exit().into()
}

/// Reports it as an object. If the output has no reader, the exit code remains that of the
/// failure, which is more important than that nobody reads.
fn tell(failure: &Failure) {
    let printed = Output::stdout(true).and_then(|mut out| {
        out.object(failure.object())?;
        out.flush()
    });
    if let Err(unprinted) = printed
        && !unprinted.is_silent()
        && unprinted.to_string() != failure.to_string()
    {
        output::say(&format!("error: {unprinted}"));
    }
}

/// Whether a command line that makes no sense asks for objects all the same, and is not for a
/// command whose output is something else.
fn wants_objects() -> bool {
    let words: Vec<_> = std::env::args_os()
        .skip(1)
        .take_while(|word| word != "--")
        .collect();
    let has = |word: &str| words.iter().any(|given| given == word);
    let others = ["export", "torture", "completions", "man"];
    has("--json") && !others.into_iter().any(has)
}

/// Prints help, the version, or why the command line makes no sense.
fn not_parsed(error: clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() {
        output::say_text(text.trim_end());
        if wants_objects() {
            // What is wrong stands before the first empty line; the usage follows.
            let said = text.lines().take_while(|line| !line.is_empty());
            let said: Vec<&str> = said.map(str::trim).collect();
            let why = said.join(" ");
            tell(&Failure::new(
                Exit::Usage,
                why.trim_start_matches("error: "),
            ));
        }
        return Exit::Usage.into();
    }
    match output::raw(text.as_bytes()) {
        Ok(()) => Exit::Ok.into(),
        Err(failure) => told(&failure, false),
    }
}

/// Runs `work` where timers, sockets and signals are available, with threads for what runs beside
/// it.
fn on_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    threads_can_be_had(threads).map_err(|e| {
        Failure::other(format!(
            "cannot start {threads} thread(s): {e}; allow this user or container more of them \
             (ulimit -u, pids.max)"
        ))
    })?;
    let runtime = Builder::new_multi_thread()
        .worker_threads(threads)
        .enable_all()
        .build();
    run_on(runtime, work)
}

/// The same for work with nothing beside it.
fn on_this_thread<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    run_on(Builder::new_current_thread().enable_all().build(), work)
}

fn run_on<T>(
    runtime: io::Result<Runtime>,
    work: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    let runtime = runtime.map_err(|e| Failure::other(format!("cannot start the runtime: {e}")))?;
    let done = runtime.block_on(async {
        let _ignored = survive_file_size_limit();
        work.await
    });
    // Nothing that is still under way, such as the answer of a name server, may delay the end.
    runtime.shutdown_background();
    done
}

/// Checks that this many threads can be made: otherwise the runtime panics, or waits for ever.
fn threads_can_be_had(count: usize) -> io::Result<()> {
    let (keep, wait) = std::sync::mpsc::channel::<()>();
    let wait = Arc::new(Mutex::new(wait));
    let mut made = Vec::new();
    let mut all = Ok(());
    for _ in 0..count {
        let wait = Arc::clone(&wait);
        let hold = move || {
            let wait = wait.lock().unwrap_or_else(PoisonError::into_inner);
            // An error means that all of them were made.
            let _ = wait.recv();
        };
        match std::thread::Builder::new().spawn(hold) {
            Ok(thread) => made.push(thread),
            Err(error) => {
                all = Err(error);
                break;
            }
        }
    }
    drop(keep);
    for thread in made {
        // The thread does nothing that could panic.
        let _ = thread.join();
    }
    all
}

/// A file size limit should be an error of a write, and not a signal that ends the process.
fn survive_file_size_limit() -> Option<tokio::signal::unix::Signal> {
    const SIGXFSZ: i32 = 25;
    // Where the signal has another number, the limit acts as it does on any other program.
    cfg!(target_os = "linux")
        .then(|| signal(SignalKind::from_raw(SIGXFSZ)).ok())
        .flatten()
}
