//! TLS on both sides: who trusts whom.

#![cfg(feature = "tls")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

use amps_client::connector::{ConnectError, Connector, SchemeConnector, TlsConnector};
use amps_client::protocol::{Command, FrameDecoder, Header, Status};
use amps_client::uri::Uri;
use amps_sandbox::{Sandbox, TlsIdentity};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Pem {
    certificate: String,
    key: String,
}

fn self_signed(name: &str) -> Pem {
    let CertifiedKey { cert, signing_key } =
        generate_simple_self_signed([name.to_owned()]).unwrap();
    Pem {
        certificate: cert.pem(),
        key: signing_key.serialize_pem(),
    }
}

async fn start(server: &Pem, clients: Option<&Pem>) -> Sandbox {
    let identity = TlsIdentity::from_pem(
        server.certificate.as_bytes(),
        server.key.as_bytes(),
        clients.map(|pem| pem.certificate.as_bytes()),
    );
    let builder = Sandbox::builder().listen("tcps://127.0.0.1:0/amps/json");
    builder.tls(identity.unwrap()).start().await.unwrap()
}

/// Whether a logon through this connector succeeds.
async fn logs_on(sandbox: &Sandbox, tls: TlsConnector) -> Result<bool, ConnectError> {
    let uri: Uri = sandbox.uri().parse().unwrap();
    let mut stream = SchemeConnector::new().with_tls(tls).connect(&uri).await?;
    let mut out = Vec::new();
    Command::logon("0", "p").encode(&mut out).unwrap();
    // With TLS 1.3 the client may think that it is connected before the server refuses.
    if stream.write_all(&out).await.is_err() || stream.flush().await.is_err() {
        return Ok(false);
    }
    let mut decoder = FrameDecoder::new();
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Ok(Header::parse(&frame).unwrap().0.status == Some(Status::Success));
        }
        if !matches!(stream.read_buf(decoder.read_buffer()).await, Ok(1..)) {
            return Ok(false);
        }
    }
}

#[tokio::test]
async fn a_given_authority_is_trusted_and_nobody_else() {
    let server = self_signed("sandbox.test");
    let sandbox = start(&server, None).await;
    let trusting = |pem: &Pem| {
        TlsConnector::builder()
            .without_system_roots()
            .authority_pem(pem.certificate.as_str())
    };
    let named = trusting(&server)
        .server_name("sandbox.test")
        .build()
        .unwrap();
    assert!(logs_on(&sandbox, named).await.unwrap());

    let by_host = trusting(&server).build().unwrap();
    let refused = logs_on(&sandbox, by_host).await.err().unwrap();
    assert!(
        matches!(refused, ConnectError::Tls { .. }),
        "127.0.0.1 is not in the certificate"
    );

    let stranger = trusting(&self_signed("sandbox.test")).server_name("sandbox.test");
    let refused = logs_on(&sandbox, stranger.build().unwrap())
        .await
        .err()
        .unwrap();
    assert!(matches!(refused, ConnectError::Tls { .. }));
    sandbox.stop().await;
}

#[tokio::test]
async fn a_client_certificate_is_shown_and_demanded() {
    let (server, client) = (self_signed("127.0.0.1"), self_signed("client"));
    let sandbox = start(&server, Some(&client)).await;
    let trusting = || {
        TlsConnector::builder()
            .without_system_roots()
            .authority_pem(server.certificate.as_str())
    };
    let known = trusting()
        .client_certificate_pem(client.certificate.as_str(), client.key.as_str())
        .build()
        .unwrap();
    assert!(logs_on(&sandbox, known).await.unwrap());
    let nameless = logs_on(&sandbox, trusting().build().unwrap()).await;
    assert!(!matches!(nameless, Ok(true)));
    sandbox.stop().await;
}

#[tokio::test]
async fn tls_without_a_certificate_is_refused() {
    let refused = Sandbox::builder()
        .listen("tcps://127.0.0.1:0/amps/json")
        .start()
        .await;
    assert!(refused.unwrap_err().to_string().contains("certificate"));
}
