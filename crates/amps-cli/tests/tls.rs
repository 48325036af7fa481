//! `tcps://` addresses: who is trusted, and what is reported if nobody is.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test ends where it cannot go on"
)]

mod common;

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use common::{Dir, NOBODY, Running, Server, amps, run, run_with_input};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

const SECURE: &str = "tcps://127.0.0.1:0/amps/json";

/// Certificates in a directory: an authority, a server's and a client's, and a stranger.
struct Files {
    dir: Dir,
}

impl Files {
    /// The server's certificate is for this name.
    fn new(server: &str) -> Self {
        let dir = Dir::new();
        let (issuer, pem) = authority("ours");
        let (_, other) = authority("stranger");
        for name in [server, "client"] {
            let params = CertificateParams::new([name.to_owned()]).unwrap();
            let key = KeyPair::generate().unwrap();
            let chain = params.signed_by(&key, &issuer).unwrap().pem();
            let file = if name == server { "server" } else { "client" };
            dir.file(&format!("{file}.pem"), chain);
            dir.file(&format!("{file}.key"), key.serialize_pem());
        }
        dir.file("ca.pem", pem);
        dir.file("stranger.pem", other);
        Files { dir }
    }

    fn text(&self, name: &str) -> String {
        self.dir.path(name).to_str().unwrap().to_owned()
    }

    fn server(&self, extra: &[&str]) -> Server {
        let (chain, key) = (self.text("server.pem"), self.text("server.key"));
        let options = ["--tls-cert", &chain, "--tls-key", &key];
        let journal = self.dir.path("journal");
        Server::start_at(SECURE, Some(&journal), &[&options[..], extra].concat())
    }

    fn publish(&self, server: &str) -> Command {
        let mut command = amps();
        command
            .args(["publish", "--topic", "t", "--server", server, "--json"])
            .arg("--store")
            .arg(self.dir.path("s.store"));
        command
    }
}

fn authority(name: &str) -> (Issuer<'static, KeyPair>, String) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, name);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    (Issuer::new(params, key), pem)
}

#[test]
fn what_is_published_over_tls_is_drained_and_subscribed_to_over_tls() {
    let files = Files::new("orders.example");
    let mut server = files.server(&[]);
    let name = ["--tls-server-name", "orders.example"];
    let tls = |command: &mut Command| {
        command.args(["--tls-ca", &files.text("ca.pem")]).args(name);
    };
    let mut publish = files.publish(&server.uri);
    tls(&mut publish);
    let report = run_with_input(&mut publish, b"1\n2\n").expect(0).report();
    assert_eq!(report["persisted"], 2);

    server.kill();
    let mut publish = files.publish(&server.uri);
    tls(publish.args(["--flush-timeout", "0s"]));
    run_with_input(&mut publish, b"3\n").expect(5);
    server.begin();
    let mut drain = amps();
    drain
        .args(["drain", "--json", "--server", &server.uri, "--store"])
        .arg(files.dir.path("s.store"));
    tls(&mut drain);
    assert_eq!(run(&mut drain).expect(0).report()["persisted"], 1);

    let mut subscribe = amps();
    subscribe
        .args(["subscribe", "--topic", "t", "--from-start", "-n", "3"])
        .args(["--server", &server.uri]);
    tls(&mut subscribe);
    assert_eq!(run(&mut subscribe).expect(0).text(), "1\n2\n3\n");
}

/// A publisher gets no connection, and says why. Then it is killed.
#[track_caller]
fn is_refused(publish: &mut Command, why: &str) {
    let mut child = publish
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // At the end of its input it would not wait for a connection.
    let input = child.stdin.take();
    let said = BufReader::new(child.stderr.take().unwrap());
    let mut heard = Vec::new();
    // That the server hangs up may be noticed before its reason is read: the next attempt reports
    // it.
    let told = said.lines().map(Result::unwrap).any(|line| {
        heard.push(line.clone());
        line.contains("no connection to") && line.contains(why)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    drop(input);
    assert!(told, "{heard:#?}");
}

#[test]
fn nobody_is_sent_anything_without_a_certificate_to_trust() {
    let files = Files::new("orders.example");
    let server = files.server(&[]);
    let ca = files.text("ca.pem");
    let publish = || files.publish(&server.uri);
    is_refused(publish().args(["--tls-ca", &ca]), "is for another name");
    let stranger = files.text("stranger.pem");
    let named = ["--tls-server-name", "orders.example", "--tls-ca"];
    is_refused(
        publish().args(named).arg(&stranger),
        "issued by nobody who is trusted",
    );
    let mut publish = files.publish(&server.uri);
    publish.args(named).arg(&ca);
    let report = run_with_input(&mut publish, b"1\n").expect(0).report();
    assert_eq!(report["persisted"], 1);
}

#[test]
fn a_client_certificate_opens_what_is_closed_without_it() {
    let files = Files::new("127.0.0.1");
    let ca = files.text("ca.pem");
    let server = files.server(&["--tls-client-ca", &ca]);
    let mut publish = files.publish(&server.uri);
    is_refused(publish.args(["--tls-ca", &ca]), "CertificateRequired");
    let (chain, key) = (files.text("client.pem"), files.text("client.key"));
    let mut publish = files.publish(&server.uri);
    publish.args(["--tls-ca", &ca, "--tls-cert", &chain, "--tls-key", &key]);
    let report = run_with_input(&mut publish, b"1\n").expect(0).report();
    assert_eq!(report["persisted"], 1);
}

#[test]
fn the_certificates_of_the_system_are_trusted_unless_others_are_named() {
    let files = Files::new("127.0.0.1");
    let server = files.server(&[]);
    let nothing = files.dir.path("nothing");
    std::fs::create_dir(&nothing).unwrap();
    // Sets where the system's certificates are.
    let publish = |system: &str| {
        let mut publish = files.publish(&server.uri);
        publish
            .env("SSL_CERT_FILE", files.dir.path(system))
            .env("SSL_CERT_DIR", &nothing);
        publish
    };
    let report = run_with_input(&mut publish("ca.pem"), b"1\n")
        .expect(0)
        .report();
    assert_eq!(report["persisted"], 1);

    let others = files.text("stranger.pem");
    is_refused(
        publish("ca.pem").args(["--tls-ca", &others]),
        "issued by nobody who is trusted",
    );

    files.dir.file("empty.pem", "");
    let ran = run_with_input(&mut publish("empty.pem"), b"2\n").expect(1);
    ran.says(&["no root certificates", "--tls-ca"]);
}

#[test]
fn options_that_make_no_sense_are_refused_before_anything_is_created() {
    let files = Files::new("127.0.0.1");
    let ca = files.text("ca.pem");
    let (chain, key) = (files.text("client.pem"), files.text("client.key"));
    let refused = |uri: &str, options: &[&str], code: i32, words: &[&str]| {
        let ran = run(files.publish(uri).args(options)).expect(code);
        ran.says(words);
        assert!(!files.dir.path("s.store").exists());
    };
    let somebody = "tcps://127.0.0.1:9/amps/json";
    refused(NOBODY, &["--tls-ca", &ca], 2, &["--tls-ca", "tcps://"]);
    refused(somebody, &["--tls-cert", &chain], 2, &["--tls-key"]);
    refused(somebody, &["--tls-key", &key], 2, &["--tls-cert"]);
    refused(somebody, &["--tls-ca", &key], 2, &["no usable certificate"]);
    refused(somebody, &["--tls-ca", "/nowhere"], 1, &["/nowhere"]);
    let swapped = ["--tls-ca", &ca, "--tls-cert", &chain, "--tls-key", &chain];
    refused(somebody, &swapped, 2, &["no usable private key"]);
    let others = files.text("server.key");
    let others = ["--tls-ca", &ca, "--tls-cert", &chain, "--tls-key", &others];
    refused(somebody, &others, 2, &["KeyMismatch"]);
    let name = ["--tls-ca", &ca, "--tls-server-name", "a name"];
    refused(somebody, &name, 2, &["--tls-server-name", "a name"]);

    let serve = |options: &[&str]| {
        let mut command = amps();
        run(command.arg("serve").args(options)).expect(2)
    };
    serve(&["--listen", SECURE]).says(&["--tls-cert", "--tls-key"]);
    serve(&[
        "--listen",
        "tcp://127.0.0.1:0/amps",
        "--tls-cert",
        &chain,
        "--tls-key",
        &key,
    ])
    .says(&["--tls-cert", "tcps://"]);
    serve(&["--listen", SECURE, "--tls-cert", &chain, "--tls-key", &ca])
        .says(&["no certificate to show", "PEM"]);
    serve(&["--listen", SECURE, "--tls-client-ca", &ca]).says(&["--tls-cert"]);
}

/// Certificates were once read only at the start: whoever renewed one had to restart every
/// publisher.
#[test]
fn certificates_renewed_on_disk_need_no_restart() {
    let files = Files::new("127.0.0.1");
    let later = Files::new("127.0.0.1");
    let mut server = files.server(&[]);
    let mut command = files.publish(&server.uri);
    command.args(["--announce", "--tls-ca", &files.text("ca.pem")]);
    command.args(["--status-interval", "10ms", "--flush-timeout", "60s"]);
    let mut publisher = Running::start(&mut command);
    publisher.write_line("1");
    publisher.hear("status", |status| status["persisted"] == 1);
    server.kill();
    // A renewal writes one file after the other.
    for name in ["server.pem", "server.key", "ca.pem"] {
        std::fs::copy(later.text(name), files.text(name)).unwrap();
    }
    publisher.write_line("2");
    publisher.hear("status", |status| status["state"] != "logged_on");
    server.begin();
    publisher.close_stdin();
    let (code, report) = publisher.end();
    assert_eq!(code, Some(0), "{report}");
    assert_eq!(report["left"], 0);
}

/// For an encrypted key the error once said "no usable private key". For a chain with a byte
/// order mark there was none, since the second certificate was taken for the first.
#[test]
fn files_that_are_no_plain_pem_are_told_what_they_are() {
    let files = Files::new("127.0.0.1");
    let (ca, chain, key) = (
        files.text("ca.pem"),
        files.text("server.pem"),
        files.text("server.key"),
    );
    let marked = |name: &str| {
        let text = std::fs::read_to_string(files.text(name)).unwrap();
        files
            .dir
            .file(&format!("marked-{name}"), format!("\u{feff}{text}"));
        files.text(&format!("marked-{name}"))
    };
    let encrypted =
        "-----BEGIN ENCRYPTED PRIVATE KEY-----\nMAA=\n-----END ENCRYPTED PRIVATE KEY-----\n";
    files.dir.file("encrypted.key", encrypted);
    let encrypted = files.text("encrypted.key");
    for (cert, key, words) in [
        (&chain, &encrypted, "openssl pkey"),
        (&chain, &marked("server.key"), "byte order mark"),
        (&marked("server.pem"), &key, "byte order mark"),
        (&key, &chain, "exchanged"),
    ] {
        let pair = ["--tls-cert", cert, "--tls-key", key];
        let mut serve = amps();
        serve.args(["serve", "--listen", SECURE]).args(pair);
        run(&mut serve).expect(2).says(&[words]);
        let mut publish = files.publish("tcps://127.0.0.1:9/amps/json");
        publish.args(["--tls-ca", &ca]).args(pair);
        run_with_input(&mut publish, b"1\n")
            .expect(2)
            .says(&[words]);
    }
    let mut publish = files.publish("tcps://127.0.0.1:9/amps/json");
    publish.args(["--tls-ca", &marked("ca.pem")]);
    run_with_input(&mut publish, b"1\n")
        .expect(2)
        .says(&["byte order mark"]);
}

#[test]
fn certificates_from_a_pipe_are_read_once() {
    let files = Files::new("127.0.0.1");
    let server = files.server(&[]);
    let pipe = files.dir.path("pipe");
    assert!(
        Command::new("mkfifo")
            .arg(&pipe)
            .status()
            .unwrap()
            .success()
    );
    let ca = std::fs::read(files.text("ca.pem")).unwrap();
    let mut command = files.publish(&server.uri);
    command.arg("--tls-ca").arg(&pipe).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().unwrap();
    std::fs::write(&pipe, ca).unwrap();
    common::ran(child.wait_with_output().unwrap()).expect(0);
}

#[test]
fn a_self_signed_certificate_is_refused_in_words() {
    let files = Files::new("127.0.0.1");
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let pem = params.self_signed(&key).unwrap().pem();
    files.dir.file("server.pem", &pem);
    files.dir.file("server.key", key.serialize_pem());
    let server = files.server(&[]);
    for trusted in ["server.pem", "ca.pem"] {
        let mut command = files.publish(&server.uri);
        command.args(["--flush-timeout", "2s", "--tls-ca", &files.text(trusted)]);
        let ran = run_with_input(&mut command, b"1\n").expect(5);
        assert!(ran.stderr.contains("the server"), "{}", ran.stderr);
        for debug in ["OtherError", "CaUsedAsEndEntity", "UnknownIssuer", "Error("] {
            assert!(!ran.stderr.contains(debug), "{}", ran.stderr);
        }
    }
}
