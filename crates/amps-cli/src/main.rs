//! The `amps` command. Everything it does is in the library `amps_cli`.

fn main() -> std::process::ExitCode {
    amps_cli::main()
}
