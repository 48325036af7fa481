//! `amps subscribe` when there is no server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use common::{Server, amps, run_with_input};

/// It once said nothing for ten seconds, and then once and never again.
#[test]
fn an_empty_topic_is_refused_before_anybody_connects() {
    common::run(common::amps().args(["subscribe", "--topic", "", "--server", common::NOBODY]))
        .expect(2)
        .says(&["--topic", "empty"]);
}

#[test]
fn a_subscriber_says_that_nothing_listens_and_goes_on_when_something_does() {
    // A port on which certainly nothing else listens.
    let server = Server::start(None, &[]);
    let uri = server.uri.clone();
    drop(server);
    let mut subscriber = amps()
        .args(["subscribe", "--topic", "t", "-n", "1", "--server", &uri])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut words = BufReader::new(subscriber.stderr.take().unwrap()).lines();
    let said = words.next().unwrap().unwrap();
    let port = uri.split("://").nth(1).unwrap().split('/').next().unwrap();
    assert!(said.contains(port) && said.contains("trying on"), "{said}");
    let _server = Server::start_at(&uri, None, &[]);
    let said = words.next().unwrap().unwrap();
    assert!(said.contains("logged on") && said.contains(port), "{said}");
    // The subscription may begin after the first of these.
    let mut out = BufReader::new(subscriber.stdout.take().unwrap()).lines();
    let mut publishing = amps();
    publishing.args(["publish", "--topic", "t", "--server", &uri]);
    let publisher = std::thread::spawn(move || {
        while subscriber.try_wait().unwrap().is_none() {
            run_with_input(&mut publishing, b"there\n").expect(0);
        }
        subscriber.wait().unwrap()
    });
    assert_eq!(out.next().unwrap().unwrap(), "there");
    assert_eq!(publisher.join().unwrap().code(), Some(0));
    assert!(words.next().is_none(), "said once");
}
