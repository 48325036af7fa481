//! The demo tells the truth: it ends with 0 only because what it shows is so.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::fs;

use common::{Dir, amps, run};

#[test]
fn the_demo_proves_its_story() {
    let dir = Dir::new();
    let ran = run(amps().args(["demo", "--keep"]).arg(dir.path("kept"))).expect(0);
    let text = ran.text();
    for word in ["SIGKILL", "recovered", "resent", "refused", "exactly once"] {
        assert!(text.contains(word), "no {word:?} in:\n{text}");
    }
    assert!(!text.contains('\x1b'), "plain text has no escape sequences");

    let store = dir.path("kept").join("orders.store");
    let waiting = run(amps().args(["failed", "list", "--json"]).arg(&store))
        .expect(0)
        .objects();
    assert_eq!(waiting.iter().filter(|o| o["sequence"].is_u64()).count(), 1);
}

#[test]
fn the_demo_does_not_reuse_a_directory_with_something_in_it() {
    let dir = Dir::new();
    fs::create_dir(dir.path("used")).unwrap();
    dir.file("used/orders.store", "something of somebody's");
    run(amps().args(["demo", "--keep"]).arg(dir.path("used")))
        .expect(1)
        .says(&["used"]);
    assert_eq!(
        fs::read(dir.path("used/orders.store")).unwrap(),
        b"something of somebody's"
    );
}
