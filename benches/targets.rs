//! The performance targets, each beside its floor: `cargo bench -- [--quick] [T1 T5 …]`.

use std::path::PathBuf;
use std::process::ExitCode;

use amps_bench::{Plan, Row};

fn main() -> ExitCode {
    // Cargo passes `--bench`; anything else with a dash is ours.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let quick = arguments.iter().any(|a| a == "--quick");
    let only = arguments
        .into_iter()
        .filter(|a| !a.starts_with('-'))
        .collect();
    let dir = std::env::var_os("AMPS_BENCH_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let plan = Plan {
        dir,
        rounds: if quick { 3 } else { 7 },
        scale: if quick { 0.1 } else { 1.0 },
        only,
    };
    println!("{}", Row::head());
    match amps_bench::run(&plan, &mut |row| println!("{row}")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
