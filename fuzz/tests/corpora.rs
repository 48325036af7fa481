//! Replays the committed corpora and every input that once found something, and a few thousand
//! meaningless inputs, so that no target passes just because there are no corpora.

use std::path::Path;

use amps_store::testkit::Rng;

fn replay(target: &str, random: u64, body: fn(&[u8])) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for kind in ["seeds", "regressions"] {
        let Ok(files) = std::fs::read_dir(here.join(kind).join(target)) else {
            continue;
        };
        let mut paths: Vec<_> = files.map(|f| f.expect("lists").path()).collect();
        paths.sort();
        for path in paths {
            // Shown with a failure: this is the input.
            println!("{}", path.display());
            body(&std::fs::read(path).expect("reads"));
            count += 1;
        }
    }
    assert!(count > 0, "no corpus of {target}");
    let mut rng = Rng::new(count);
    for n in 0..random {
        let len = rng.below(300);
        let data: Vec<u8> = (0..len).map(|_| rng.bits() as u8).collect();
        println!("{target}: random input {n}");
        body(&data);
    }
}

#[test]
fn open_bytes() {
    replay("open_bytes", 200, amps_fuzz::open_bytes);
}

#[test]
fn open_mutated() {
    replay("open_mutated", 500, amps_fuzz::open_mutated);
}

#[test]
fn model() {
    replay("model", 200, amps_fuzz::model);
}

#[test]
fn envelope() {
    replay("envelope", 200, amps_fuzz::envelope);
}

#[test]
fn ndjson() {
    replay("ndjson", 200, amps_fuzz::ndjson);
}

#[test]
fn protocol() {
    replay("protocol", 200, amps_fuzz::protocol);
}

#[test]
fn uri() {
    replay("uri", 200, amps_fuzz::uri);
}

#[test]
fn session() {
    replay("session", 200, amps_fuzz::session);
}
