//! The client over every kind of link: TCP, TLS and Unix sockets, and a network that delays,
//! cuts and goes dead.
//!
//! Time is virtual where a test says so: all sockets are loopback ones of one thread, so
//! nothing is ever under way while that thread waits.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use amps_client::connector::{SchemeConnector, TlsConnector, TlsConnectorBuilder};
use amps_client::uri::Uri;
use amps_client::{Backoff, Builder, Client, ConnectionState, Event, Events, LinkEnd};
use amps_sandbox::proxy::{Proxy, Weather};
use amps_sandbox::{Fault, Sandbox, TlsIdentity};
use amps_store::{Options, Store};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use tokio::time::Instant;

const LONG: Duration = Duration::from_secs(60);
const PLAIN: &str = "tcp://127.0.0.1:0/amps/json";
const SECURE: &str = "tcps://127.0.0.1:0/amps/json";

fn listening(uri: &str) -> amps_sandbox::Builder {
    Sandbox::builder()
        .listen(uri)
        .ack_interval(Duration::from_millis(5))
}

fn publisher(server: &str) -> Builder {
    let store = Store::memory(Options::new().capacity(4 << 20).client_name("pub"));
    Client::builder("pub")
        .server(server)
        .store(store.unwrap())
        .backoff(Backoff::new(
            Duration::from_millis(1),
            Duration::from_millis(20),
        ))
}

/// Publishes these messages, each once some earlier ones are settled.
async fn publish(client: &Client, numbers: std::ops::Range<u64>) {
    for n in numbers {
        client.publish("orders", format!("{n}")).await.unwrap();
        if n % 100 == 99 {
            client.publish_flush(LONG).await.unwrap();
        }
    }
}

#[track_caller]
fn assert_once_and_in_order(sandbox: &Sandbox, count: u64) {
    let entries = sandbox.journal().unwrap();
    let bodies = entries.into_iter().map(|e| String::from_utf8(e.bytes));
    let bodies: Vec<String> = bodies.map(Result::unwrap).collect();
    let expected: Vec<String> = (0..count).map(|n| n.to_string()).collect();
    assert!(bodies == expected, "{} of {count} messages", bodies.len());
}

async fn link_lost(events: &mut Events) -> LinkEnd {
    loop {
        if let Event::LinkLost { why, .. } = events.next().await.unwrap() {
            return why;
        }
    }
}

async fn logged_on(events: &mut Events) {
    let logged_on = |event: &Event| {
        let state = ConnectionState::LoggedOn;
        matches!(event, Event::State { state: now, .. } if *now == state)
    };
    while !logged_on(&events.next().await.unwrap()) {}
}

/// Runs something that must come to an end.
async fn soon<T>(work: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, work).await.expect("it ends")
}

/// Publishes while one link after the other breaks.
async fn over_breaking_links(client: &Client, sandbox: &Sandbox, strike: impl Fn()) {
    const BREAKS: u64 = 5;
    let mut events = client.events();
    for round in 0..BREAKS {
        soon(async {
            let publishing = publish(client, round * 300..(round + 1) * 300);
            let breaking = async {
                client.wait_logged_on(LONG).await.unwrap();
                strike();
                link_lost(&mut events).await;
            };
            tokio::join!(publishing, breaking);
        })
        .await;
    }
    let report = soon(client.publish_flush(LONG)).await.unwrap();
    assert_eq!(report.left, 0);
    let counts = client.health().counts;
    assert_eq!(counts.persisted + counts.persisted_at_logon, BREAKS * 300);
    assert_once_and_in_order(sandbox, BREAKS * 300);
}

/// A certificate authority, and what it signs.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

/// A certificate chain and its key.
struct Identity {
    chain: String,
    key: String,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(params, key);
        Authority { issuer, pem }
    }

    fn sign(&self, name: &str) -> Identity {
        let params = CertificateParams::new([name.to_owned()]).unwrap();
        let key = KeyPair::generate().unwrap();
        Identity {
            chain: params.signed_by(&key, &self.issuer).unwrap().pem(),
            key: key.serialize_pem(),
        }
    }

    fn trusted(&self) -> TlsConnectorBuilder {
        TlsConnector::builder()
            .without_system_roots()
            .authority_pem(self.pem.as_str())
    }
}

async fn secured(server: &Identity, clients: Option<&Authority>) -> Sandbox {
    let clients = clients.map(|authority| authority.pem.as_bytes());
    let identity = TlsIdentity::from_pem(server.chain.as_bytes(), server.key.as_bytes(), clients);
    let builder = listening(SECURE).tls(identity.unwrap());
    builder.start().await.unwrap()
}

fn through(tls: TlsConnectorBuilder) -> Arc<SchemeConnector> {
    Arc::new(SchemeConnector::new().with_tls(tls.build().unwrap()))
}

#[tokio::test]
async fn over_tls_with_an_authority_of_ones_own() {
    let authority = Authority::new("ours");
    let sandbox = secured(&authority.sign("127.0.0.1"), None).await;
    let client = publisher(&sandbox.uri())
        .connector(through(authority.trusted()))
        .open()
        .await
        .unwrap();
    let broken = || sandbox.inject(&Fault::CutAfter(20));
    over_breaking_links(&client, &sandbox, broken).await;
    assert!(client.close(LONG).await.clean);
    sandbox.stop().await;
}

#[tokio::test]
async fn over_tls_that_is_cut_inside_a_record() {
    let authority = Authority::new("ours");
    let sandbox = secured(&authority.sign("127.0.0.1"), None).await;
    // A proxy can do nothing with what is encrypted.
    let port = sandbox.uris()[0].port();
    let behind: Uri = format!("tcp://127.0.0.1:{port}/amps/json").parse().unwrap();
    let proxy = Proxy::start(&behind).await.unwrap();
    let uri = format!("tcps://127.0.0.1:{}/amps/json", proxy.uri().port());
    let client = publisher(&uri)
        .connector(through(authority.trusted()))
        .open()
        .await
        .unwrap();
    over_breaking_links(&client, &sandbox, || proxy.cut_after(33)).await;
    assert!(client.close(LONG).await.clean);
    proxy.stop().await;
    sandbox.stop().await;
}

/// Whatever the client tries, no link is made, and no message is lost by that.
async fn never_connects(sandbox: &Sandbox, tls: TlsConnectorBuilder) -> LinkEnd {
    let client = publisher(&sandbox.uri())
        .connector(through(tls))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    publish(&client, 0..10).await;
    let end = soon(link_lost(&mut events)).await;
    assert_eq!(soon(link_lost(&mut events)).await, end, "it tries on");
    assert_eq!(client.health().logons, 0);
    assert_eq!(client.close(Duration::ZERO).await.left, 10);
    assert!(sandbox.journal().unwrap().is_empty());
    end
}

#[tokio::test]
async fn a_certificate_for_another_name_or_by_nobody_known_is_not_taken() {
    let authority = Authority::new("ours");
    let sandbox = secured(&authority.sign("orders.example"), None).await;
    let end = never_connects(&sandbox, authority.trusted()).await;
    assert!(
        matches!(&end, LinkEnd::Connect(text) if text.contains("for another name")),
        "{end}"
    );
    let end = never_connects(
        &sandbox,
        authority.trusted().server_name("elsewhere.example"),
    )
    .await;
    assert!(
        matches!(&end, LinkEnd::Connect(text) if text.contains("for another name")),
        "{end}"
    );
    let stranger = Authority::new("stranger")
        .trusted()
        .server_name("orders.example");
    let end = never_connects(&sandbox, stranger).await;
    assert!(
        matches!(&end, LinkEnd::Connect(text) if text.contains("issued by nobody who is trusted here")),
        "{end}"
    );
    let client = publisher(&sandbox.uri())
        .connector(through(authority.trusted().server_name("orders.example")))
        .open()
        .await
        .unwrap();
    publish(&client, 0..10).await;
    assert_eq!(client.publish_flush(LONG).await.unwrap().persisted, 10);
    client.close(LONG).await;
    sandbox.stop().await;
}

#[tokio::test]
async fn a_client_certificate_opens_what_is_closed_without_it() {
    let authority = Authority::new("ours");
    let sandbox = secured(&authority.sign("127.0.0.1"), Some(&authority)).await;
    let known = authority.sign("client");
    let stranger = Authority::new("stranger").sign("client");
    let with = |identity: &Identity| {
        let (chain, key) = (identity.chain.as_str(), identity.key.as_str());
        authority.trusted().client_certificate_pem(chain, key)
    };
    // With TLS 1.3 the server refuses only after the client thinks that it is connected.
    never_connects(&sandbox, authority.trusted()).await;
    never_connects(&sandbox, with(&stranger)).await;
    let client = publisher(&sandbox.uri())
        .connector(through(with(&known)))
        .open()
        .await
        .unwrap();
    publish(&client, 0..10).await;
    assert_eq!(client.publish_flush(LONG).await.unwrap().persisted, 10);
    client.close(LONG).await;
    sandbox.stop().await;
}

#[cfg(unix)]
#[tokio::test]
async fn over_a_unix_socket() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("amps.sock");
    let uri = format!("unix://localhost:0/amps/json?path={}", path.display());
    let sandbox = listening(&uri).start().await.unwrap();
    let client = publisher(&sandbox.uri()).open().await.unwrap();
    let broken = || sandbox.inject(&Fault::CutAfter(20));
    over_breaking_links(&client, &sandbox, broken).await;
    assert!(client.close(LONG).await.clean);
    sandbox.stop().await;
    assert!(!path.exists());
}

async fn behind_a_proxy() -> (Sandbox, Proxy) {
    let sandbox = listening(PLAIN).start().await.unwrap();
    let proxy = Proxy::start(&sandbox.uris()[0]).await.unwrap();
    (sandbox, proxy)
}

#[tokio::test]
async fn over_a_network_that_cuts_links_inside_a_frame() {
    let (sandbox, proxy) = behind_a_proxy().await;
    let client = publisher(&proxy.uri().to_string()).open().await.unwrap();
    over_breaking_links(&client, &sandbox, || proxy.cut_after(33)).await;
    assert!(client.close(LONG).await.clean);
    proxy.stop().await;
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn over_a_network_that_delays() {
    let (sandbox, proxy) = behind_a_proxy().await;
    let delay = Duration::from_secs(3);
    proxy.set(Weather::Delay(delay));
    // Before anything that may be sent.
    let begun = Instant::now();
    let client = publisher(&proxy.uri().to_string())
        .heartbeat(Duration::from_secs(10))
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    client.wait_logged_on(LONG).await.unwrap();
    assert!(begun.elapsed() >= delay * 2, "there and back");
    publish(&client, 0..100).await;
    assert_once_and_in_order(&sandbox, 100);
    assert!(client.close(LONG).await.clean);
    while let Some(event) = events.try_next() {
        assert!(
            !matches!(event, Event::LinkLost { ref why, .. } if *why != LinkEnd::Shutdown),
            "slow is not dead: {event:?}"
        );
    }
    proxy.stop().await;
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_link_that_went_dead_is_noticed_by_its_silence() {
    let (sandbox, proxy) = behind_a_proxy().await;
    let interval = Duration::from_secs(5);
    let client = publisher(&proxy.uri().to_string())
        .heartbeat(interval)
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    logged_on(&mut events).await;
    publish(&client, 0..100).await;
    // Neither side says anything for long, but both know that the other is there.
    let quiet = tokio::time::timeout(interval * 20, link_lost(&mut events)).await;
    assert!(quiet.is_err(), "{quiet:?}");

    proxy.set(Weather::Dead);
    let begun = Instant::now();
    client.publish("orders", "100").await.unwrap();
    let end = link_lost(&mut events).await;
    assert_eq!(end, LinkEnd::HeartbeatLost);
    let silence = begun.elapsed();
    assert!(silence <= interval * 5 / 2, "{silence:?}");
    assert!(silence > interval / 2, "{silence:?}");

    proxy.set(Weather::Fair);
    client.publish_flush(LONG).await.unwrap();
    assert_once_and_in_order(&sandbox, 101);
    assert!(client.close(LONG).await.clean);
    proxy.stop().await;
    sandbox.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_server_that_is_down_for_an_hour_is_found_again() {
    let (sandbox, proxy) = behind_a_proxy().await;
    let client = publisher(&proxy.uri().to_string())
        .backoff(Backoff::default())
        .open()
        .await
        .unwrap();
    let mut events = client.events();
    logged_on(&mut events).await;
    publish(&client, 0..100).await;
    proxy.set(Weather::Down);
    link_lost(&mut events).await;
    for n in 100..200 {
        client.publish("orders", format!("{n}")).await.unwrap();
    }
    tokio::time::sleep(Duration::from_secs(3600)).await;
    proxy.set(Weather::Fair);
    client.publish_flush(LONG).await.unwrap();
    assert_once_and_in_order(&sandbox, 200);
    client.close(LONG).await;
    proxy.stop().await;
    sandbox.stop().await;
}
