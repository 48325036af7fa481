//! Repeats one operation under a tool that counts instructions; `.ci/instructions` drives it.

use std::process::ExitCode;

use amps_bench::{Counted, count};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let what = match arguments.first().map(String::as_str) {
        Some("append") => Counted::Append,
        Some("publish") => Counted::Publish,
        // Cargo runs every bench with `--bench` only.
        _ => {
            println!("count: run by .ci/instructions");
            return ExitCode::SUCCESS;
        }
    };
    let Some(Ok(times)) = arguments.get(1).map(|times| times.parse()) else {
        eprintln!("usage: count append|publish TIMES");
        return ExitCode::from(2);
    };
    match count(what, times, &std::env::temp_dir()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
