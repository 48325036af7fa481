//! The `amps` command. Everything it does is in the library `amps_cli`.

#![deny(clippy::print_stdout, clippy::print_stderr)]

fn main() -> std::process::ExitCode {
    amps_cli::main()
}
