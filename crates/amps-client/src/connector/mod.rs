//! How a byte stream to a server is opened: TCP, Unix, TLS, in memory, or yours.

mod memory;
#[cfg(feature = "jetstream")]
mod nats;
#[cfg(feature = "tls")]
pub mod pem;
mod tcp;
#[cfg(feature = "tls")]
mod tls;
#[cfg(unix)]
mod unix;

use std::fmt;
use std::future::Future;
use std::io;
use std::pin::Pin;
#[cfg(feature = "tls")]
use std::sync::{Arc, OnceLock};
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncRead, AsyncWrite};

use crate::helper::{Helper, NotDone};
use crate::uri::{Scheme, Uri};

pub use memory::{MemoryConnector, MemoryListener};
#[cfg(feature = "jetstream")]
pub(crate) use nats::NatsOpener;
pub use tcp::TcpConnector;
#[cfg(feature = "tls")]
pub use tls::{TlsConnector, TlsConnectorBuilder, TlsSetupError};
#[cfg(unix)]
pub use unix::UnixConnector;

/// A byte stream in both directions. Implemented for every type that can be one.
pub trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin + ?Sized> Stream for T {}

/// The future of a connection being opened. Dropping it gives up and closes whatever was open.
pub type Connecting<'a> =
    Pin<Box<dyn Future<Output = Result<Box<dyn Stream>, ConnectError>> + Send + 'a>>;

/// Opens byte streams. It does not decide when or how often, and has no time limits: these are
/// the client's.
pub trait Connector: Send + Sync + fmt::Debug {
    /// Opens a stream to the server that `uri` names.
    ///
    /// # Errors
    /// A [`ConnectError`]. Each of them may be tried again, and none says anything about
    /// messages.
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a>;

    /// Whether such an address can be opened at all, whichever server answers there. Called when
    /// a client is opened, for each server that is known then, and before anything is connected.
    ///
    /// # Errors
    /// What would make every attempt fail. The client is not opened.
    fn check(&self, _uri: &Uri) -> Result<(), ConnectError> {
        Ok(())
    }
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
        /// What the operating system reported.
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
    /// No address could be connected to; the error is that of the last one tried.
    #[error("cannot connect to {target}: {source}")]
    Io {
        /// The address, or the socket's file.
        target: String,
        /// What the operating system reported.
        source: io::Error,
    },
    /// The connector does not know this scheme, or was built without it.
    #[error(
        "this connector does not open {scheme}:// addresses{}",
        without(scheme)
    )]
    UnsupportedScheme {
        /// The scheme.
        scheme: &'static str,
    },
    /// No thread can be made for what has to block, for instance looking up a name.
    #[error(
        "cannot make a thread to find the server: {source}; allow this user or container more of \
         them (ulimit -u, pids.max)"
    )]
    NoThread {
        /// What the operating system reported.
        source: io::Error,
    },
    /// TLS cannot be set up.
    #[cfg(feature = "tls")]
    #[error(transparent)]
    TlsSetup(#[from] TlsSetupError),
    /// The TLS handshake failed.
    #[error("no TLS connection to {target}: {source}")]
    Tls {
        /// The address.
        target: String,
        /// What went wrong.
        source: io::Error,
    },
}

fn without(scheme: &str) -> &'static str {
    match [Scheme::Tcps.as_str(), "tls"].contains(&scheme) && !cfg!(feature = "tls") {
        true => "; build amps-client with its feature tls",
        false => "",
    }
}

/// Picks the connector by the URI's scheme. A client uses it unless it is given another one.
///
/// Certificates of servers at `tcps` addresses are checked against the system's root
/// certificates, or as the connector given with [`with_tls`](Self::with_tls) is set up. Without
/// the feature `tls` such addresses are refused, as is `unix` on platforms without Unix sockets.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct SchemeConnector {
    /// Empty until the system's root certificates are needed.
    #[cfg(feature = "tls")]
    tls: Arc<OnceLock<TlsConnector>>,
}

impl SchemeConnector {
    /// A connector for every scheme there is.
    pub fn new() -> Self {
        SchemeConnector::default()
    }

    /// The same with `tcps` opened by `tls`: for a certificate authority or a client
    /// certificate of your own.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn with_tls(mut self, tls: TlsConnector) -> Self {
        self.tls = Arc::new(OnceLock::from(tls));
        self
    }

    /// The connector for `tcps`. Reads the system's files, unless one was given.
    #[cfg(feature = "tls")]
    fn tls(&self) -> Result<&TlsConnector, TlsSetupError> {
        match self.tls.get() {
            Some(tls) => Ok(tls),
            None => {
                let tls = TlsConnector::builder().build()?;
                Ok(self.tls.get_or_init(|| tls))
            }
        }
    }

    #[cfg(feature = "tls")]
    fn connect_tls<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        Box::pin(async move { self.loaded_tls().await?.connect(uri).await })
    }

    /// The same, read on a thread that may wait for the disk.
    #[cfg(feature = "tls")]
    async fn loaded_tls(&self) -> Result<&TlsConnector, ConnectError> {
        if self.tls.get().is_none() {
            let connector = self.clone();
            let read = move || connector.tls().map(drop);
            match system()?.call(read).await {
                Ok(read) => read?,
                Err(why) => return Err(not_done(&why)),
            }
        }
        Ok(self.tls()?)
    }
}

impl Connector for SchemeConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        match uri.scheme() {
            Scheme::Tcp => TcpConnector.connect(uri),
            #[cfg(unix)]
            Scheme::Unix => UnixConnector.connect(uri),
            #[cfg(feature = "tls")]
            Scheme::Tcps => self.connect_tls(uri),
            #[allow(
                unreachable_patterns,
                reason = "which arms remain depends on the platform"
            )]
            _ => unsupported(uri),
        }
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        match uri.scheme() {
            Scheme::Tcp => TcpConnector.check(uri),
            #[cfg(unix)]
            Scheme::Unix => Ok(()),
            #[cfg(feature = "tls")]
            Scheme::Tcps => self.tls()?.check(uri),
            #[allow(
                unreachable_patterns,
                reason = "which arms remain depends on the platform"
            )]
            _ => Err(unsupported_scheme(uri)),
        }
    }
}

/// The thread for blocking system calls, shared by all connectors. It is made when a client is
/// opened whose servers have names, or otherwise at the first attempt that needs it.
fn system() -> Result<Helper, ConnectError> {
    static SYSTEM: Mutex<Option<Helper>> = Mutex::new(None);
    let mut system = SYSTEM.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(system) = &*system {
        return Ok(system.clone());
    }
    let made = Helper::start("amps names").map_err(|source| ConnectError::NoThread { source })?;
    Ok(system.insert(made).clone())
}

fn not_done(why: &NotDone) -> ConnectError {
    let source = io::Error::other(why.to_string());
    ConnectError::NoThread { source }
}

fn unsupported_scheme(uri: &Uri) -> ConnectError {
    let scheme = uri.scheme().as_str();
    ConnectError::UnsupportedScheme { scheme }
}

fn unsupported(uri: &Uri) -> Connecting<'_> {
    Box::pin(std::future::ready(Err(unsupported_scheme(uri))))
}

/// The check of a connector for one scheme.
fn only(scheme: Scheme, uri: &Uri) -> Result<(), ConnectError> {
    match uri.scheme() == scheme {
        true => Ok(()),
        false => Err(unsupported_scheme(uri)),
    }
}
