//! The `amps` command: publish lines through a durable store, look inside one, and run a
//! sandbox server to try it all against.
//!
//! Names, fields and exit codes are an interface: the README lists them.

mod args;
mod bench;
mod body;
mod demo;
mod drain;
mod failed;
mod failure;
mod lines;
mod meta;
mod output;
mod publish;
mod sending;
mod serve;
mod show;
mod store;
mod subscribe;
mod tls;
mod torture;
mod units;

use std::future::Future;
use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::args::{Cli, Command};
use crate::failure::Failure;

/// Runs the command line of this process and returns its exit code.
pub fn main() -> ExitCode {
    let Cli { json, command } = Cli::parse();
    let result = match command {
        Command::Serve(args) => on_runtime(serve::run(args, json)),
        Command::Publish(args) => on_runtime(publish::run(args, json)),
        Command::Subscribe(args) => on_runtime(subscribe::run(args, json)),
        Command::Drain(args) => on_runtime(drain::run(args, json)),
        Command::Demo(args) => on_runtime(demo::run(args, json)),
        Command::Store { command } => on_runtime(async { store::run(command, json) }),
        Command::Failed { command } => on_runtime(async { failed::run(command, json) }),
        Command::Torture { command } => {
            return match on_runtime(async { Ok(torture::run(&command)) }) {
                Ok(code) => code,
                Err(failure) => told(&failure),
            };
        }
        Command::Bench(args) => bench::run(args, json),
        Command::Completions { shell } => meta::completions(shell),
        Command::Man => meta::man(),
    };
    match result {
        Ok(exit) => exit.into(),
        Err(failure) => told(&failure),
    }
}

fn told(failure: &Failure) -> ExitCode {
    if !failure.is_silent() {
        eprintln!("error: {failure}");
    }
    failure.exit().into()
}

/// Runs `work` where timers, sockets and signals work.
fn on_runtime<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::other(format!("cannot start the runtime: {e}")))?
        .block_on(async {
            let _ignored = survive_file_size_limit();
            work.await
        })
}

/// A file size limit is to be an error of a write, not the signal that ends the process.
fn survive_file_size_limit() -> Option<tokio::signal::unix::Signal> {
    const SIGXFSZ: i32 = 25;
    // Where the signal has another number, the limit acts as it does on every program.
    cfg!(target_os = "linux")
        .then(|| signal(SignalKind::from_raw(SIGXFSZ)).ok())
        .flatten()
}
