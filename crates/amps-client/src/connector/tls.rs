//! TLS over TCP, by rustls with the ring provider (feature `tls`).

use std::io;
use std::sync::Arc;

use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore};

use super::{ConnectError, Connecting, Connector, only, tcp, unsupported};
use crate::uri::{Scheme, Uri};

/// Opens `tcps` addresses: TCP with the options of the URI, then TLS. The server must show
/// a certificate for the URI's host, or for the name set in the builder.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    config: Arc<ClientConfig>,
    server_name: Option<ServerName<'static>>,
}

/// Sets up a [`TlsConnector`].
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until built"]
pub struct TlsConnectorBuilder {
    authorities: Vec<Vec<u8>>,
    no_system_roots: bool,
    identity: Option<(Vec<u8>, Vec<u8>)>,
    server_name: Option<String>,
}

/// Why a [`TlsConnector`] could not be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// Given PEM text holds nothing of the kind needed, or cannot be read.
    #[error("no usable {what} in the PEM text: {reason}")]
    Pem {
        /// What was looked for.
        what: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// There is nobody to trust: no root certificate of the system, and none given.
    #[error(
        "no root certificates: the system has none, and no authority was given to trust ({reason})"
    )]
    NoRoots {
        /// What the system's store said.
        reason: String,
    },
    /// The server name is neither a DNS name nor an address.
    #[error("\"{name}\" is not a server name")]
    ServerName {
        /// What was given.
        name: String,
    },
    /// TLS refuses the combination, for instance a key that is not the certificate's.
    #[error("TLS cannot be set up: {reason}")]
    Refused {
        /// What rustls said.
        reason: String,
    },
}

impl TlsConnector {
    /// Starts to set one up: the system's root certificates, no client certificate.
    pub fn builder() -> TlsConnectorBuilder {
        TlsConnectorBuilder::default()
    }
}

impl TlsConnectorBuilder {
    /// Trusts the certificates in this PEM text as well.
    pub fn authority_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(pem.into());
        self
    }

    /// Does not trust the system's root certificates.
    pub fn without_system_roots(mut self) -> Self {
        self.no_system_roots = true;
        self
    }

    /// Shows the server this certificate chain, with its private key, both PEM.
    pub fn client_certificate_pem(
        mut self,
        chain: impl Into<Vec<u8>>,
        key: impl Into<Vec<u8>>,
    ) -> Self {
        self.identity = Some((chain.into(), key.into()));
        self
    }

    /// Expects the server's certificate to be for this name instead of the URI's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the certificates and makes the connector. Reads files of the system, unless
    /// its roots are not wanted.
    ///
    /// # Errors
    /// A [`TlsSetupError`].
    pub fn build(self) -> Result<TlsConnector, TlsSetupError> {
        let mut roots = RootCertStore::empty();
        let mut complaints = "not asked for".to_owned();
        if !self.no_system_roots {
            let found = rustls_native_certs::load_native_certs();
            complaints = format!("{:?}", found.errors);
            roots.add_parsable_certificates(found.certs);
        }
        for pem in &self.authorities {
            for certificate in certificates(pem)? {
                roots.add(certificate).map_err(refused)?;
            }
        }
        if roots.is_empty() {
            return Err(TlsSetupError::NoRoots { reason: complaints });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots);
        let config = match &self.identity {
            None => config.with_no_client_auth(),
            Some((chain, key)) => {
                let key =
                    PrivateKeyDer::from_pem_slice(key).map_err(|error| TlsSetupError::Pem {
                        what: "private key",
                        reason: error.to_string(),
                    })?;
                config
                    .with_client_auth_cert(certificates(chain)?, key)
                    .map_err(refused)?
            }
        };
        let server_name = self.server_name.map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| TlsSetupError::ServerName { name })
        });
        Ok(TlsConnector {
            config: Arc::new(config),
            server_name: server_name.transpose()?,
        })
    }
}

impl Connector for TlsConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        if uri.scheme() != Scheme::Tcps {
            return unsupported(uri);
        }
        Box::pin(async move {
            let name = self.expected(uri)?;
            let plain = tcp::open(uri).await?;
            let connector = tokio_rustls::TlsConnector::from(self.config.clone());
            let opened = connector.connect(name, plain).await;
            Ok(Box::new(opened.map_err(|source| failed(uri, source))?) as _)
        })
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        only(Scheme::Tcps, uri)?;
        self.expected(uri).map(drop)
    }
}

impl TlsConnector {
    /// Whose certificate the server must show.
    fn expected(&self, uri: &Uri) -> Result<ServerName<'static>, ConnectError> {
        if let Some(name) = &self.server_name {
            return Ok(name.clone());
        }
        ServerName::try_from(uri.host().to_owned())
            .map_err(|error| failed(uri, io::Error::new(io::ErrorKind::InvalidInput, error)))
    }
}

fn failed(uri: &Uri, source: io::Error) -> ConnectError {
    ConnectError::Tls {
        target: uri.authority(),
        source,
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsSetupError> {
    let bad = |reason| TlsSetupError::Pem {
        what: "certificate",
        reason,
    };
    let found = CertificateDer::pem_slice_iter(pem).collect::<Result<Vec<_>, _>>();
    let found = found.map_err(|error| bad(error.to_string()))?;
    if found.is_empty() {
        return Err(bad("there is none".to_owned()));
    }
    Ok(found)
}

fn refused(error: tokio_rustls::rustls::Error) -> TlsSetupError {
    TlsSetupError::Refused {
        reason: error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_input_is_named() {
        let build = |pem: &str| {
            TlsConnector::builder()
                .without_system_roots()
                .authority_pem(pem)
                .build()
        };
        assert!(matches!(
            build("nothing"),
            Err(TlsSetupError::Pem {
                what: "certificate",
                ..
            })
        ));
        let none = TlsConnector::builder().without_system_roots().build();
        assert!(matches!(none, Err(TlsSetupError::NoRoots { .. })));
    }
}
