//! How a byte stream to a server is opened: TCP, Unix, TLS, in memory, or yours.

mod memory;
mod tcp;
#[cfg(feature = "tls")]
mod tls;
#[cfg(unix)]
mod unix;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;

use tokio::io::{AsyncRead, AsyncWrite};

use crate::uri::{Scheme, Uri};

pub use memory::{MemoryConnector, MemoryListener};
pub use tcp::TcpConnector;
#[cfg(feature = "tls")]
pub use tls::{TlsConnector, TlsConnectorBuilder, TlsSetupError};
#[cfg(unix)]
pub use unix::UnixConnector;

/// A byte stream in both directions. Implemented for everything that can be one.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Stream for T {}

/// The future of a connection being opened. Dropping it gives up and closes what was open.
pub type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, ConnectError>> + Send + 'a>>;

/// Opens byte streams. It decides nothing about when or how often: that is the client's
/// part, and so are time limits.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Opens a stream to the server that `uri` names.
    ///
    /// # Errors
    /// A [`ConnectError`]; every one of them may be tried again, and none says anything
    /// about messages.
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a>;
}

/// Why no stream could be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConnectError {
    /// The host's addresses could not be found.
    #[error("cannot find the address of \"{host}\": {source}")]
    Resolve {
        /// The host.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The host has no address of the family that `bind` asks for.
    #[error("\"{host}\" has no address that can be reached from {bind}")]
    NoAddress {
        /// The host.
        host: String,
        /// The local address to connect from.
        bind: String,
    },
    /// No address could be connected to; the error is of the last one tried.
    #[error("cannot connect to {target}: {source}")]
    Io {
        /// The address, or the socket's file.
        target: String,
        /// What the system said.
        source: io::Error,
    },
    /// The connector does not know this scheme, or was built without it.
    #[error("this connector does not open {scheme}:// addresses")]
    UnsupportedScheme {
        /// The scheme.
        scheme: &'static str,
    },
    /// The TLS handshake failed.
    #[error("no TLS connection to {target}: {source}")]
    Tls {
        /// The address.
        target: String,
        /// What went wrong.
        source: io::Error,
    },
}

/// Picks the connector by the URI's scheme; what a client uses unless given another.
/// Without the feature `tls`, or a TLS connector, `tcps` is refused.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SchemeConnector {
    #[cfg(feature = "tls")]
    tls: Option<TlsConnector>,
}

impl SchemeConnector {
    /// A connector for `tcp` and, where the platform has them, `unix`.
    pub fn new() -> Self {
        SchemeConnector::default()
    }

    /// The same with `tcps` opened by `tls`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConnector) -> Self {
        self.tls = Some(tls);
        self
    }
}

impl Connector for SchemeConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        match uri.scheme() {
            Scheme::Tcp => TcpConnector.connect(uri),
            #[cfg(unix)]
            Scheme::Unix => UnixConnector.connect(uri),
            #[cfg(feature = "tls")]
            Scheme::Tcps => match &self.tls {
                Some(tls) => tls.connect(uri),
                None => unsupported(uri),
            },
            #[allow(
                unreachable_patterns,
                reason = "which arms remain depends on the platform"
            )]
            _ => unsupported(uri),
        }
    }
}

fn unsupported(uri: &Uri) -> Connecting<'_> {
    let scheme = uri.scheme().as_str();
    Box::pin(async move { Err(ConnectError::UnsupportedScheme { scheme }) })
}
