//! Passwords come from the environment or a file, and are never shown.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::process::Command;

use common::{Dir, Server, amps, run, run_with_input};

const PASSWORD: &str = "s3:cr/t@?%";

fn server() -> Server {
    Server::start(None, &["--require-auth", &format!("anna:{PASSWORD}")])
}

fn publish() -> Command {
    let mut command = amps();
    command.args(["publish", "--topic", "t", "--flush-timeout", "5s"]);
    command
}

#[test]
fn user_and_password_come_from_the_environment() {
    let server = server();
    let mut command = publish();
    command.env(
        "AMPS_SERVER",
        format!("tcp://127.0.0.1:1/amps/json {}", server.uri),
    );
    command
        .env("AMPS_USER", "anna")
        .env("AMPS_PASSWORD", PASSWORD);
    run_with_input(&mut command, b"1\n").expect(0);
    // The command line takes precedence over the environment, and the URI over both.
    let mut command = publish();
    command.env("AMPS_SERVER", "tcp://127.0.0.1:1/amps/json");
    command
        .env("AMPS_USER", "bob")
        .env("AMPS_PASSWORD", PASSWORD);
    command.args(["--user", "carl", "--server"]);
    command.arg(server.uri.replace("://", "://anna@"));
    run_with_input(&mut command, b"1\n").expect(0);
    let mut command = publish();
    command
        .env("AMPS_USER", "anna")
        .env("AMPS_PASSWORD", "another");
    let refused = run_with_input(command.args(["--server", &server.uri]), b"1\n").expect(7);
    assert!(!refused.stderr.contains("another"), "{}", refused.stderr);
}

#[test]
fn a_password_comes_from_a_file() {
    let dir = Dir::new();
    let server = server();
    for (content, code) in [
        (PASSWORD.to_owned(), 0),
        (format!("{PASSWORD}\n"), 0),
        (format!("{PASSWORD}\r\n"), 0),
        (format!("{PASSWORD}\nmore\n"), 0),
        (format!("\n{PASSWORD}\n"), 7),
        ("x".repeat(100_000), 1),
    ] {
        let file = dir.file("password", content);
        let mut command = publish();
        command.args(["--server", &server.uri, "--user", "anna", "--password-file"]);
        let ran = run_with_input(command.arg(file), b"1\n").expect(code);
        assert!(!ran.stderr.contains("s3"), "{}", ran.stderr);
    }
    let mut command = publish();
    command.args(["--server", &server.uri, "--password-file", "/nonexistent"]);
    run_with_input(&mut command, b"1\n").expect(1);
    let file = dir.file("password", PASSWORD);
    let mut command = publish();
    command.args(["--server", &server.uri, "--password-file"]);
    run_with_input(command.arg(file), b"1\n")
        .expect(2)
        .says(&["--user"]);
}

#[test]
fn no_command_shows_a_password_that_it_cannot_parse() {
    let dir = Dir::new();
    let store = dir.path("s.store");
    for uri in [
        "tcp://me:s3/cret@h:1/amps/json",
        "tcp://me:s3?cret@h:1/amps",
        "tcp://me:s3cret",
        "nats://me:s3cret",
        "tls://s3 cret",
    ] {
        for command in [
            &["publish", "--topic", "t", "--server", uri, "--store"][..],
            &["drain", "--server", uri, "--store"],
            &["subscribe", "--server", uri, "--topic"],
            &["serve", "--listen", uri, "--journal"],
        ] {
            let ran = run(amps().args(command).arg(&store));
            assert_eq!(ran.code, Some(2), "{}", ran.stderr);
            let said = format!("{}{}", ran.stderr, ran.text());
            assert!(!said.contains("s3") && !said.contains("cret"), "{said}");
        }
    }
    assert!(!store.exists());
}
