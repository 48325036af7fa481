//! The server's side of TLS (feature `tls`).

use std::io;
use std::sync::Arc;
use std::time::Duration;

use amps_client::connector::{Stream, pem};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

const HANDSHAKE: Duration = Duration::from_secs(10);

/// The certificate that a sandbox shows on `tcps` addresses, and the ones that it accepts.
#[derive(Clone)]
pub struct TlsIdentity {
    acceptor: TlsAcceptor,
}

impl std::fmt::Debug for TlsIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TlsIdentity")
    }
}

impl TlsIdentity {
    /// A certificate chain and its private key, both PEM. With `client_authority`, clients must
    /// show a certificate signed by one of those in that PEM text.
    ///
    /// # Errors
    /// `InvalidInput`, with what is wrong with the texts.
    pub fn from_pem(
        chain: &[u8],
        key: &[u8],
        client_authority: Option<&[u8]>,
    ) -> io::Result<TlsIdentity> {
        let chain = pem::certificates(chain).map_err(invalid)?;
        let key = pem::private_key(key).map_err(invalid)?;
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider.clone())
            .with_safe_default_protocol_versions()
            .map_err(invalid)?;
        let config = match client_authority {
            None => config.with_no_client_auth(),
            Some(authority) => {
                let mut roots = RootCertStore::empty();
                for certificate in pem::certificates(authority).map_err(invalid)? {
                    roots.add(certificate).map_err(invalid)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
                config.with_client_cert_verifier(verifier.build().map_err(invalid)?)
            }
        };
        let config = config.with_single_cert(chain, key).map_err(invalid)?;
        Ok(TlsIdentity {
            acceptor: TlsAcceptor::from(Arc::new(config)),
        })
    }

    pub(crate) async fn accept(&self, plain: TcpStream) -> io::Result<Box<dyn Stream>> {
        let handshake = tokio::time::timeout(HANDSHAKE, self.acceptor.accept(plain));
        Ok(Box::new(handshake.await??))
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, error)
}
