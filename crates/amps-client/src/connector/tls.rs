//! TLS over TCP, by rustls with the ring provider (feature `tls`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{CertificateError, ClientConfig, Error, RootCertStore};

use super::{ConnectError, Connecting, Connector, only, pem, tcp, unsupported};
use crate::uri::{Scheme, Uri};

/// Opens `tcps` addresses: TCP with the options of the URI, then TLS. The server must show
/// a certificate for the URI's host, or for the name set in the builder.
///
/// Files given by name are read again for each attempt, so that renewed certificates need no
/// restart. An attempt that finds a file missing or half renewed fails, and the next one reads
/// again.
#[derive(Clone, Debug)]
pub struct TlsConnector {
    setup: Arc<Setup>,
    server_name: Option<ServerName<'static>>,
}

#[derive(Debug)]
struct Setup {
    /// What is trusted in addition to what files say.
    system: RootCertStore,
    complaints: String,
    authorities: Vec<Pem>,
    identity: Option<(Pem, Pem)>,
    made: Mutex<Option<Made>>,
}

/// What was made of the files with these contents.
#[derive(Debug)]
struct Made {
    texts: Vec<Vec<u8>>,
    config: Arc<ClientConfig>,
}

#[derive(Clone, Debug)]
enum Pem {
    Text(Vec<u8>),
    File(PathBuf),
}

impl Pem {
    fn read(&self) -> Result<Vec<u8>, TlsSetupError> {
        match self {
            Pem::Text(text) => Ok(text.clone()),
            Pem::File(file) => std::fs::read(file).map_err(|error| TlsSetupError::File {
                file: file.clone(),
                reason: error.to_string(),
            }),
        }
    }
}

/// Sets up a [`TlsConnector`].
#[derive(Debug, Default)]
#[must_use = "a builder does nothing until built"]
pub struct TlsConnectorBuilder {
    authorities: Vec<Pem>,
    no_system_roots: bool,
    identity: Option<(Pem, Pem)>,
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
    /// A file cannot be read.
    #[error("cannot read {}: {reason}", file.display())]
    File {
        /// Its name.
        file: PathBuf,
        /// What the operating system reported.
        reason: String,
    },
    /// There is nothing to trust: no root certificate of the system, and none that was given.
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
    /// Begins to set one up, with the system's root certificates and no client certificate.
    pub fn builder() -> TlsConnectorBuilder {
        TlsConnectorBuilder::default()
    }
}

impl TlsConnectorBuilder {
    /// Trusts the certificates in this PEM text as well.
    pub fn authority_pem(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.authorities.push(Pem::Text(pem.into()));
        self
    }

    /// Trusts the certificates in this PEM file as well, as it is at each attempt. It must be a
    /// regular file: a pipe would be empty the second time.
    pub fn authority_file(mut self, file: impl AsRef<Path>) -> Self {
        self.authorities.push(Pem::File(file.as_ref().to_owned()));
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
        self.identity = Some((Pem::Text(chain.into()), Pem::Text(key.into())));
        self
    }

    /// Shows the server the certificate chain in this PEM file, with the private key in the other
    /// one, as they are at each attempt. Regular files, as for
    /// [`authority_file`](Self::authority_file).
    pub fn client_certificate_files(
        mut self,
        chain: impl AsRef<Path>,
        key: impl AsRef<Path>,
    ) -> Self {
        let file = |file: &Path| Pem::File(file.to_owned());
        self.identity = Some((file(chain.as_ref()), file(key.as_ref())));
        self
    }

    /// Expects the server's certificate to be for this name instead of the URI's host.
    pub fn server_name(mut self, name: impl Into<String>) -> Self {
        self.server_name = Some(name.into());
        self
    }

    /// Reads the certificates and makes the connector. Reads the system's files, unless its roots
    /// are not wanted.
    ///
    /// # Errors
    /// A [`TlsSetupError`].
    pub fn build(self) -> Result<TlsConnector, TlsSetupError> {
        let mut system = RootCertStore::empty();
        let mut complaints = "not asked for".to_owned();
        if !self.no_system_roots {
            let found = rustls_native_certs::load_native_certs();
            let said: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
            complaints = said.join("; ");
            system.add_parsable_certificates(found.certs);
        }
        let server_name = self.server_name.map(|name| {
            ServerName::try_from(name.clone()).map_err(|_| TlsSetupError::ServerName { name })
        });
        let connector = TlsConnector {
            setup: Arc::new(Setup {
                system,
                complaints,
                authorities: self.authorities,
                identity: self.identity,
                made: Mutex::default(),
            }),
            server_name: server_name.transpose()?,
        };
        connector.setup.config()?;
        Ok(connector)
    }
}

impl Setup {
    /// The configuration with the files as they are now.
    fn config(&self) -> Result<Arc<ClientConfig>, TlsSetupError> {
        let identity = self.identity.iter().flat_map(|(chain, key)| [chain, key]);
        let texts = self.authorities.iter().chain(identity).map(Pem::read);
        let texts = texts.collect::<Result<Vec<_>, _>>()?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        match &*made {
            Some(made) if made.texts == texts => Ok(made.config.clone()),
            _ => {
                let config = Arc::new(self.make(&texts)?);
                *made = Some(Made {
                    texts,
                    config: config.clone(),
                });
                Ok(config)
            }
        }
    }

    /// `texts` are those of the authorities, then the chain and the key.
    fn make(&self, texts: &[Vec<u8>]) -> Result<ClientConfig, TlsSetupError> {
        let (authorities, identity) = texts.split_at(self.authorities.len());
        let mut roots = self.system.clone();
        for text in authorities {
            for certificate in pem::certificates(text)? {
                roots.add(certificate).map_err(refused)?;
            }
        }
        if roots.is_empty() {
            return Err(TlsSetupError::NoRoots {
                reason: self.complaints.clone(),
            });
        }
        let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(refused)?
            .with_root_certificates(roots);
        let [chain, key] = identity else {
            return Ok(config.with_no_client_auth());
        };
        config
            .with_client_auth_cert(pem::certificates(chain)?, pem::private_key(key)?)
            .map_err(refused)
    }
}

impl Connector for TlsConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        if uri.scheme() != Scheme::Tcps {
            return unsupported(uri);
        }
        Box::pin(async move {
            // What is wrong with a name or a file is told before anything is opened.
            self.expected(uri)?;
            self.setup.config()?;
            let plain = tcp::open(uri).await?;
            Ok(Box::new(self.over(uri, plain).await?) as _)
        })
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        only(Scheme::Tcps, uri)?;
        self.expected(uri)?;
        tcp::can_find(uri)
    }
}

impl TlsConnector {
    /// TLS over a stream that is open.
    pub(super) async fn over(
        &self,
        uri: &Uri,
        plain: TcpStream,
    ) -> Result<TlsStream<TcpStream>, ConnectError> {
        let name = self.expected(uri)?;
        let connector = tokio_rustls::TlsConnector::from(self.setup.config()?);
        let opened = connector.connect(name, plain).await;
        opened.map_err(|source| failed(uri, source))
    }

    /// The name that the server's certificate must have.
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
        source: in_words(source),
    }
}

/// Rewords for people what rustls says about a server's certificate.
fn in_words(source: io::Error) -> io::Error {
    let inner = source.get_ref().and_then(|inner| inner.downcast_ref());
    let Some(Error::InvalidCertificate(wrong)) = inner else {
        return source;
    };
    let words = match wrong {
        CertificateError::UnknownIssuer => {
            "the server's certificate was issued by nobody who is trusted here; trust its \
             authority's certificate"
                .to_owned()
        }
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => {
            "the server's certificate has expired".to_owned()
        }
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "the server's certificate is not valid yet; are both clocks right?".to_owned()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "the server's certificate is for another name; expect that one, or connect by it"
                .to_owned()
        }
        // It is only known by the text that it shows for programs.
        CertificateError::Other(other) if other.to_string().contains("CaUsedAsEndEntity") => {
            "the server shows the certificate of an authority as its own, as self-signed ones often \
             are; give it one that the authority has signed, or a self-signed one that is no \
             authority (CA:FALSE)"
                .to_owned()
        }
        CertificateError::Other(other) => {
            format!("the server's certificate cannot be used ({other})")
        }
        other => format!("the server's certificate cannot be used: {other}"),
    };
    io::Error::new(source.kind(), words)
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
