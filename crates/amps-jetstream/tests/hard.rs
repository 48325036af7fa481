//! Servers, stores and networks that lose what they had, or come back as others, at real servers of
//! NATS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

#[path = "servers/rig.rs"]
mod rig;
mod servers;

use std::fs;
use std::path::Path;

use amps_delivery::LinkEnd;
use amps_delivery::delivery::Note;
use amps_jetstream::{Config, Create, Credentials, Mode};
use amps_store::{Options, Store};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use nkeys::KeyPair;
use rig::{CLIENT, Rig};
use servers::{Proxy, Server, programs};

const BOTH: [Mode; 2] = [Mode::Chained, Mode::Unchained];

fn memory() -> Store {
    Store::memory(Options::new().client_name(CLIENT)).unwrap()
}

fn open(path: &Path) -> Store {
    Store::open(path, Options::new().client_name(CLIENT)).unwrap()
}

fn config(mode: Mode) -> Config {
    let mut config = Config::new("t");
    config.mode = mode;
    config
}

fn making(mut config: Config) -> Config {
    config.create = Some(Create {
        name: "S".to_owned(),
        replicas: 1,
    });
    config
}

/// The bodies that the stream holds: in its order if that is promised.
fn bodies(server: &Server, mode: Mode) -> Vec<u64> {
    let contents = server.admin().contents("S").into_iter();
    let bodies = contents.map(|(_, body)| String::from_utf8(body).unwrap().parse().unwrap());
    let mut bodies: Vec<u64> = bodies.collect();
    if mode == Mode::Unchained {
        bodies.sort_unstable();
    }
    bodies
}

fn numbers(range: std::ops::RangeInclusive<u64>) -> Vec<u64> {
    range.collect()
}

/// A store in memory begins with number 1 each time, under the same client name: its messages are
/// taken for nobody else's, and nobody else's for them.
#[tokio::test]
async fn a_memory_store_that_begins_anew_loses_nothing() {
    for program in programs() {
        let server = Server::start(&program, "");
        for round in 0..3 {
            let mut rig = Rig::new(memory(), making(config(Mode::Auto)), &[server.port]);
            rig.publish(round * 10 + 1..=(round + 1) * 10);
            rig.drain().await;
            let totals = rig.engine.totals();
            assert_eq!((totals.persisted, totals.duplicates), (10, 0));
        }
        assert_eq!(bodies(&server, Mode::Auto), numbers(1..=30));
    }
}

/// A copy of the store from before its last messages is put back. What it gives the same numbers is
/// not taken for those. Where a chain ends with a number that the copy cannot have sent, nothing is
/// settled by it: what waits in the copy goes out above it, and that it may be there twice is told.
#[tokio::test]
async fn an_old_copy_of_the_store_that_is_put_back_loses_nothing_and_tells_what_it_doubles() {
    for program in programs() {
        for (mode, closed) in [
            (Mode::Chained, true),
            (Mode::Chained, false),
            (Mode::Unchained, true),
            (Mode::Unchained, false),
        ] {
            let server = Server::start(&program, "");
            server.admin().stream("S", "");
            let directory = tempfile::tempdir().unwrap();
            let (path, copy) = (
                directory.path().join("store"),
                directory.path().join("copy"),
            );
            let mut rig = Rig::new(open(&path), config(mode), &[server.port]);
            rig.publish(1..=100);
            rig.drain().await;
            match closed {
                true => drop(rig.close().await),
                false => {
                    // They wait in the copy, and are sent by the original.
                    rig.publish(101..=120);
                    drop(rig);
                }
            }
            fs::copy(&path, &copy).unwrap();
            let mut rig = Rig::new(open(&path), config(mode), &[server.port]);
            let next = if closed { 101 } else { 121 };
            rig.publish(next..=200);
            rig.drain().await;
            drop(rig);
            fs::rename(&copy, &path).unwrap();
            let mut rig = Rig::new(open(&path), config(mode), &[server.port]);
            rig.publish(201..=300);
            rig.drain().await;
            let mut expected = numbers(1..=300);
            let doubled = mode == Mode::Chained && !closed;
            if doubled {
                expected.splice(200..200, 101..=120);
            }
            assert_eq!(bodies(&server, mode), expected, "{mode:?}, {closed}");
            let told = rig.engine.totals().possible_duplicates;
            assert_eq!(told, if doubled { 20 } else { 0 }, "{mode:?}, {closed}");
        }
    }
}

/// The server comes back with nothing: that is told, and what follows is stored.
#[tokio::test]
async fn a_server_that_comes_back_without_its_disk_is_a_gap() {
    for program in programs() {
        for mode in BOTH {
            let mut server = Server::start(&program, "");
            let mut rig = Rig::new(memory(), making(config(mode)), &[server.port]);
            rig.publish(1..=100);
            rig.drain().await;
            server.kill();
            fs::remove_dir_all(server.directory.path().join("js")).unwrap();
            server.restart();
            rig.publish(101..=200);
            rig.drain().await;
            let gap = |note: &Note| {
                matches!(
                    note,
                    Note::PublishGap {
                        server: 0,
                        settled: 100,
                        ..
                    }
                )
            };
            assert!(rig.has_note(gap), "{:?}", rig.told.notes);
            assert_eq!(bodies(&server, mode), numbers(101..=200), "{mode:?}");
        }
    }
}

/// The first server is away, and the other one takes only small messages: nothing is given up, the
/// large one waits for the first.
#[tokio::test]
async fn what_a_small_standby_cannot_take_waits_for_the_server_that_can() {
    for program in programs() {
        for mode in BOTH {
            let mut first = Server::start(&program, "");
            let standby = Server::start(&program, "max_payload: 1000");
            for server in [&first, &standby] {
                server.admin().stream("S", "");
            }
            first.kill();
            let mut rig = Rig::new(memory(), config(mode), &[first.port, standby.port]);
            rig.publish(1..=3);
            rig.publish_body(&[b'7'; 2_000]);
            let tried = |end: &&LinkEnd| matches!(end, LinkEnd::Unsendable { sequence: 4, .. });
            let over_and_over = |rig: &Rig| rig.told.ends.iter().filter(tried).count() >= 3;
            rig.until("the standby is tried", over_and_over).await;
            assert_eq!(rig.store.bounds().unsettled, 1);
            first.restart();
            rig.drain().await;
            assert!(rig.told.refused.is_empty(), "{:?}", rig.told.refused);
            let large = first.admin().contents("S").pop().unwrap().1;
            assert_eq!(large, [b'7'; 2_000]);
        }
    }
}

/// Something on the way takes nothing more. The link is left, its connection is closed, and what the
/// network still held of it comes to the server last of all: it changes nothing.
#[tokio::test]
async fn what_a_network_held_back_comes_late_and_changes_nothing() {
    for program in programs() {
        for mode in BOTH {
            let server = Server::start(&program, "");
            server.admin().stream("S", "");
            let proxy = Proxy::start(server.port);
            let mut rig = Rig::new(memory(), config(mode), &[proxy.port]);
            rig.publish(1..=100);
            rig.drain().await;
            proxy.hold_first();
            rig.publish(101..=5_000);
            rig.until("the link is left", |rig| !rig.told.ends.is_empty())
                .await;
            let overdue = matches!(rig.told.ends[0], LinkEnd::AckOverdue { sequence: 101 });
            assert!(overdue, "{:?}", rig.told.ends);
            rig.drain().await;
            // Everything that was written on it, and that nothing more will be.
            let late = proxy.release_first();
            assert!(late > 0, "the network held nothing");
            server.admin().at_rest("S");
            assert_eq!(bodies(&server, mode), numbers(1..=5_000), "{mode:?}");
            assert_eq!(rig.told.ends.len(), 1, "{:?}", rig.told.ends);
        }
    }
}

/// A token of what an issuer says of a subject.
fn jwt(issuer: &KeyPair, subject: &KeyPair, name: &str, nats: &str) -> String {
    let encode = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = encode(r#"{"typ":"JWT","alg":"ed25519-nkey"}"#);
    let claims = format!(
        r#"{{"jti":"{name}","iat":1700000000,"iss":"{}","name":"{name}","sub":"{}","nats":{nats}}}"#,
        issuer.public_key(),
        subject.public_key()
    );
    let signed = format!("{header}.{}", encode(&claims));
    let signature = issuer.sign(signed.as_bytes()).unwrap();
    format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))
}

/// An operator vouches for an account, and the account for a user, who logs on with a file.
#[tokio::test]
async fn a_creds_file_logs_on() {
    let (operator, user) = (KeyPair::new_operator(), KeyPair::new_user());
    let (account, system) = (KeyPair::new_account(), KeyPair::new_account());
    let vouched = jwt(
        &operator,
        &operator,
        "O",
        r#"{"type":"operator","version":2}"#,
    );
    let limits = r#"{"subs":-1,"data":-1,"payload":-1,"imports":-1,"exports":-1,"wildcards":true,
        "conn":-1,"leaf":-1,"mem_storage":-1,"disk_storage":-1,"streams":-1,"consumer":-1}"#;
    let nats = format!(r#"{{"limits":{limits},"type":"account","version":2}}"#);
    let of_account = jwt(&operator, &account, "A", &nats);
    let of_system = jwt(
        &operator,
        &system,
        "SYS",
        &nats.replace("_storage\":-1", "_storage\":0"),
    );
    let user_of = |issuer: &KeyPair| {
        let nats =
            r#"{"pub":{},"sub":{},"subs":-1,"data":-1,"payload":-1,"type":"user","version":2}"#;
        let jwt = jwt(issuer, &user, "U", nats);
        let seed = user.seed().unwrap();
        let file = format!(
            "-----BEGIN NATS USER JWT-----\n{jwt}\n------END NATS USER JWT------\n\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n------END USER NKEY SEED------\n"
        );
        Credentials::from_creds(&file).unwrap()
    };
    let configuration = format!(
        "operator: {vouched}\nsystem_account: {system}\nresolver: MEMORY\n\
         resolver_preload: {{ {}: {of_account}, {system}: {of_system} }}",
        account.public_key(),
        system = system.public_key()
    );
    for program in programs() {
        let server = Server::start(&program, &configuration);
        let mut config = making(config(Mode::Auto));
        config.credentials = user_of(&account);
        let mut rig = Rig::new(memory(), config.clone(), &[server.port]);
        rig.publish(1..=3);
        rig.drain().await;
        // Nobody vouches for an account that is not there.
        config.credentials = user_of(&KeyPair::new_account());
        let mut rig = Rig::new(memory(), config, &[server.port]);
        rig.until("it is refused", |rig| !rig.told.ends.is_empty())
            .await;
        assert!(
            matches!(rig.told.ends[0], LinkEnd::LogonRefused(_)),
            "{:?}",
            rig.told.ends
        );
    }
}
