//! What is fuzzed, as plain functions of bytes: libFuzzer drives them on nightly, and
//! `cargo test` replays the committed corpora through them on stable.
//!
//! Every function panics when a property does not hold. Time is bounded by the fuzzer
//! (`-timeout`), memory by [`bounded`].

mod client;
mod memory;
#[allow(
    dead_code,
    unused_imports,
    reason = "seeds and planted bugs are for the tests of the store"
)]
#[path = "../../crates/amps-store/tests/model/main.rs"]
mod reference;
mod store;

pub use client::{protocol, session, uri};
pub use memory::bounded;
pub use store::{envelope, ndjson, open_bytes, open_mutated};

/// Actions on the store, and the same on a reference model: every byte is a choice.
pub fn model(data: &[u8]) {
    bounded(64 << 20, || reference::play(data));
}

/// The entry of a target: libFuzzer's, or on stable a program that runs the files it is
/// given.
#[macro_export]
macro_rules! target {
    ($body:ident) => {
        #[cfg(fuzzing)]
        libfuzzer_sys::fuzz_target!(|data: &[u8]| amps_fuzz::$body(data));

        #[cfg(not(fuzzing))]
        fn main() -> std::io::Result<()> {
            for path in std::env::args_os().skip(1) {
                println!("{}", path.display());
                amps_fuzz::$body(&std::fs::read(path)?);
            }
            Ok(())
        }
    };
}
