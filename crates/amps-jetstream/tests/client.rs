//! The client, with JetStream in the place of AMPS, at real servers.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod servers;

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use amps_client::connector::TlsConnector;
use amps_client::jetstream::{self, Config, Create, Credentials, JetStream, Mode};
use amps_client::{Client, Event, Message, Outcome, PublishFailure, Via};
use amps_store::{Options, Store};
use servers::{Server, programs};

const MINUTE: Duration = Duration::from_secs(60);

fn config() -> Config {
    let mut config = Config::new("t");
    config.create = Some(Create {
        name: "S".to_owned(),
        replicas: 1,
    });
    config
}

async fn client(store: Store, transport: JetStream, server: &str) -> Client {
    let builder = Client::builder("me").store(store).transport(transport);
    builder.server(server).open().await.unwrap()
}

fn memory() -> Store {
    Store::memory(Options::new().client_name("me")).unwrap()
}

fn nats(server: &Server) -> String {
    format!("nats://127.0.0.1:{}", server.port)
}

#[tokio::test]
async fn a_receipt_resolves_when_the_stream_has_the_message() {
    for program in programs() {
        let server = Server::start(&program, "");
        let client = client(memory(), jetstream::transport(config()), &nats(&server)).await;
        let receipt = client.send(Message::publish("t", "one")).await.unwrap();
        let outcome = receipt.await;
        assert!(
            matches!(outcome, Outcome::Persisted { via: Via::Ack, .. }),
            "{outcome:?}"
        );
        let stored = server.admin().contents("S");
        assert_eq!(stored[0].1, b"one");

        // What no stream can hold does not get into the store.
        let wrong = client.send(Message::delta_publish("t", "x")).await;
        let refused = wrong.unwrap_err();
        assert!(
            matches!(refused.reason, PublishFailure::Unsendable(_)),
            "{refused:?}"
        );
        let report = client.close(MINUTE).await;
        assert_eq!(report.left, 0);
    }
}

/// The publisher dies with the refusal unheard by its handler; the next one is told, with the
/// original.
#[tokio::test]
async fn a_refusal_is_told_with_the_original_after_a_restart() {
    for program in programs() {
        let server = Server::start(&program, "");
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        let open = || Store::open(&path, Options::new().client_name("me")).unwrap();
        let first = client(open(), jetstream::transport(config()), &nats(&server)).await;
        let stored = first.send(Message::publish("t", "1")).await.unwrap();
        assert!(matches!(stored.await, Outcome::Persisted { .. }));
        let smaller =
            "{\"name\":\"S\",\"subjects\":[\"t\"],\"storage\":\"file\",\"max_msg_size\":300}";
        server.admin().api("STREAM.UPDATE.S", smaller);
        let original = "x".repeat(400);
        let refused = first
            .send(Message::publish("t", original.clone()))
            .await
            .unwrap();
        assert!(matches!(refused.await, Outcome::Rejected { .. }));
        first.close(MINUTE).await;

        let told = Arc::new(Mutex::new(Vec::new()));
        let hear = told.clone();
        let builder = Client::builder("me")
            .store(open())
            .transport(jetstream::transport(config()))
            .server(nats(&server));
        let second = builder
            .on_failed_write(move |failed| {
                let original = failed.original.as_ref().map(|one| one.payload().to_vec());
                let reason = failed.reason.as_str().to_owned();
                hear.lock().unwrap().push((original, reason));
                async { Ok(()) }
            })
            .open()
            .await
            .unwrap();
        second.publish_flush(MINUTE).await.unwrap();
        second.close(MINUTE).await;
        let told = told.lock().unwrap();
        let reason = "message size exceeds maximum allowed".to_owned();
        assert_eq!(*told, [(Some(original.into_bytes()), reason)]);
    }
}

/// The publisher that sent it dies while the stream is full; the stream refuses it when the next one
/// sends it again. Its handler gets what the first one had published.
#[tokio::test]
async fn what_is_refused_only_after_its_publisher_died_comes_back_as_it_was() {
    for program in programs() {
        for mode in [Mode::Chained, Mode::Unchained] {
            let server = Server::start(&program, "");
            let full = ",\"max_msgs\":1,\"discard\":\"new\"";
            server.admin().stream("S", full);
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("store");
            let open = || Store::open(&path, Options::new().client_name("me")).unwrap();
            let mut config = Config::new("t");
            config.mode = mode;
            let transport = || jetstream::transport(config.clone());
            let first = client(open(), transport(), &nats(&server)).await;
            let stored = first.send(Message::publish("t", "1")).await.unwrap();
            assert!(matches!(stored.await, Outcome::Persisted { .. }));
            let original = "x".repeat(400);
            let mut events = first.events();
            let message = Message::publish("t", original.clone());
            drop(first.send(message).await.unwrap());
            turned_away(&mut events).await;
            // As a crash leaves it: nothing more is said of it.
            assert_eq!(first.close(Duration::ZERO).await.left, 1);

            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            let builder = Client::builder("me")
                .store(open())
                .transport(transport())
                .server(nats(&server));
            let second = builder
                .on_failed_write(move |failed| {
                    let original = failed.original.as_ref().map(|one| one.payload().to_vec());
                    tell.send((
                        original,
                        failed.earlier_run,
                        failed.reason.as_str().to_owned(),
                    ))
                    .unwrap();
                    async { Ok(()) }
                })
                .open()
                .await
                .unwrap();
            turned_away(&mut second.events()).await;
            let smaller =
                "{\"name\":\"S\",\"subjects\":[\"t\"],\"storage\":\"file\",\"max_msg_size\":300}";
            server.admin().api("STREAM.UPDATE.S", smaller);
            let (refused, earlier, reason) = told.recv().await.unwrap();
            assert_eq!(refused, Some(original.into_bytes()), "{mode:?}");
            assert!(earlier);
            assert_eq!(reason, "message size exceeds maximum allowed");
            second.close(MINUTE).await;
        }
    }
}

async fn turned_away(events: &mut amps_client::Events) {
    loop {
        let event = events.next().await.expect("the client runs");
        if matches!(event, Event::TurnedAway { .. }) {
            return;
        }
    }
}

#[tokio::test]
async fn what_an_address_says_of_credentials_counts() {
    for program in programs() {
        let server = Server::start(&program, "authorization { user: u, password: \"p@\" }");
        let mut config = config();
        config.credentials = Credentials::Token("of no use".to_owned());
        let address = format!("nats://u:p%40@127.0.0.1:{}", server.port);
        let client = client(memory(), jetstream::transport(config), &address).await;
        let receipt = client.send(Message::publish("t", "x")).await.unwrap();
        assert!(matches!(receipt.await, Outcome::Persisted { .. }));
        client.close(MINUTE).await;
    }
}

/// A certificate for this machine, with its key, and one for a client.
fn certificates(directory: &Path) {
    for name in ["server", "client"] {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(directory.join(format!("{name}.pem")), made.cert.pem()).unwrap();
        let key = made.signing_key.serialize_pem();
        fs::write(directory.join(format!("{name}.key")), key).unwrap();
    }
}

#[tokio::test]
async fn tls_is_spoken_behind_the_greeting_and_both_sides_show_who_they_are() {
    for program in programs() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        certificates(directory.path());
        let tls = format!(
            "tls {{ cert_file: {:?}, key_file: {:?}, ca_file: {:?}, verify: true }}",
            at("server.pem"),
            at("server.key"),
            at("client.pem")
        );
        let server = Server::start(&program, &tls);
        let trusting = || {
            TlsConnector::builder()
                .without_system_roots()
                .authority_file(at("server.pem"))
        };
        let showing = trusting()
            .client_certificate_files(at("client.pem"), at("client.key"))
            .build()
            .unwrap();
        let address = format!("tls://localhost:{}", server.port);
        let transport = jetstream::transport_with_tls(config(), showing);
        let client = self::client(memory(), transport, &address).await;
        let receipt = client.send(Message::publish("t", "x")).await.unwrap();
        assert!(matches!(receipt.await, Outcome::Persisted { .. }));
        client.close(MINUTE).await;

        // Without a certificate of its own, and without encryption, nobody gets in.
        let silent = trusting().build().unwrap();
        for (transport, address) in [
            (jetstream::transport_with_tls(config(), silent), address),
            (jetstream::transport(config()), nats(&server)),
        ] {
            let client = self::client(memory(), transport, &address).await;
            client.send(Message::publish("t", "x")).await.unwrap();
            let flushed = client.publish_flush(Duration::from_secs(1)).await;
            assert!(flushed.is_err(), "{flushed:?}");
            assert_eq!(client.close(Duration::ZERO).await.left, 1);
        }
    }
}

#[tokio::test]
async fn without_a_store_it_publishes_too() {
    for program in programs() {
        let server = Server::start(&program, "");
        let mut stored = 0;
        for mode in [Mode::Unchained, Mode::Chained] {
            let mut config = config();
            config.mode = mode;
            let builder = Client::builder("me").transport(jetstream::transport(config));
            let client = builder.server(nats(&server)).open().await.unwrap();
            client.wait_logged_on(MINUTE).await.unwrap();
            let asking = client
                .send(Message::publish("t", "x").ask_ack())
                .await
                .unwrap();
            let silent = client.send(Message::publish("t", "y")).await.unwrap();
            assert!(
                matches!(asking.await, Outcome::Persisted { .. }),
                "{mode:?}"
            );
            assert!(matches!(silent.await, Outcome::Unknown));
            client.publish_flush(MINUTE).await.unwrap();
            // That one asked for nothing, and nobody says when it is there.
            server.admin().stored_more("S", stored + 1);
            stored += 2;
            client.close(MINUTE).await;
            server.admin().api("STREAM.PURGE.S", "");
        }
    }
}
