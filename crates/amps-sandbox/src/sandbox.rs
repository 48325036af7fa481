//! Starting and stopping a sandbox on sockets.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use amps_client::connector::{MemoryConnector, MemoryListener, Stream};
use amps_client::uri::{Scheme, Uri, UriError};
#[cfg(unix)]
use tokio::net::UnixListener;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinHandle, JoinSet};

use crate::journal::{Journal, JournalEntry, JournalError};
use crate::net::{Observer, Shared, stopping};
use crate::server::Server;
#[cfg(feature = "tls")]
use crate::tls::TlsIdentity;
use crate::{Candidate, Config, Dialect, Fault, Told};

/// Frames above this are refused, as real transports do (`docs/protocol.md` §1).
const MAX_FRAME: usize = 200 * 1024 * 1024;
/// Links per listener.
const MAX_LINKS: usize = 1024;

/// A running sandbox. Dropping it stops it without waiting; [`Sandbox::stop`] waits.
#[derive(Debug)]
pub struct Sandbox {
    shared: Arc<Shared>,
    uris: Vec<Uri>,
    connector: MemoryConnector,
    tasks: Vec<JoinHandle<()>>,
    sockets: Vec<PathBuf>,
}

/// Why a sandbox did not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// An address to listen on cannot be read.
    #[error("cannot listen on \"{uri}\": {source}")]
    Uri {
        /// What was given.
        uri: String,
        /// What is wrong with it.
        source: UriError,
    },
    /// An address cannot be listened on.
    #[error("cannot listen on {uri}: {source}")]
    Listen {
        /// The address.
        uri: String,
        /// What the operating system reported.
        source: io::Error,
    },
    /// The scheme needs something that the sandbox was not given.
    #[error("cannot listen on {uri}: {needed}")]
    Unsupported {
        /// The address.
        uri: String,
        /// What is missing.
        needed: &'static str,
    },
    /// The journal cannot be used.
    #[error(transparent)]
    Journal(#[from] JournalError),
}

/// Sets up a [`Sandbox`].
#[derive(Default)]
#[must_use = "a builder does nothing until started"]
pub struct Builder {
    config: Config,
    listen: Vec<String>,
    journal: Option<PathBuf>,
    faults: Vec<Fault>,
    connector: MemoryConnector,
    max_frame: Option<usize>,
    identity: Identity,
    observer: Option<Observer>,
}

impl fmt::Debug for Builder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Builder")
            .field("config", &self.config)
            .field("listen", &self.listen)
            .field("journal", &self.journal)
            .finish_non_exhaustive()
    }
}

impl Builder {
    /// Shows this certificate on `tcps` addresses.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, identity: TlsIdentity) -> Self {
        self.identity.tls = Some(identity);
        self
    }

    /// Replaces everything except addresses, journal and faults.
    pub fn config(mut self, config: Config) -> Self {
        self.config = config;
        self
    }

    /// Listens on a connection string, repeatable; port 0 picks a free one.
    pub fn listen(mut self, uri: impl Into<String>) -> Self {
        self.listen.push(uri.into());
        self
    }

    /// Keeps messages and sequences in this directory. Without it they are lost when the process
    /// ends.
    pub fn journal(mut self, directory: impl AsRef<Path>) -> Self {
        self.journal = Some(directory.as_ref().to_owned());
        self
    }

    /// As [`Config::reject_topic`].
    pub fn reject_topic(mut self, topic: impl Into<String>) -> Self {
        self.config = self.config.reject_topic(topic);
        self
    }

    /// As [`Config::reject_invalid_json`].
    pub fn reject_invalid_json(mut self, topic: impl Into<String>) -> Self {
        self.config = self.config.reject_invalid_json(topic);
        self
    }

    /// As [`Config::reject_when`].
    pub fn reject_when(
        mut self,
        rule: impl Fn(&Candidate<'_>) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.config = self.config.reject_when(rule);
        self
    }

    /// As [`Config::ack_interval`].
    pub fn ack_interval(mut self, interval: Duration) -> Self {
        self.config = self.config.ack_interval(interval);
        self
    }

    /// As [`Config::user`].
    pub fn require_auth(mut self, user: impl Into<String>, password: impl Into<String>) -> Self {
        self.config = self.config.user(user, password);
        self
    }

    /// As [`Config::challenge`].
    pub fn challenge(mut self) -> Self {
        self.config = self.config.challenge();
        self
    }

    /// As [`Config::logon_within`].
    pub fn logon_within(mut self, time: Duration) -> Self {
        self.config = self.config.logon_within(time);
        self
    }

    /// As [`Config::max_subscriptions`].
    pub fn max_subscriptions(mut self, count: usize) -> Self {
        self.config = self.config.max_subscriptions(count);
        self
    }

    /// As [`Config::dialect`].
    pub fn dialect(mut self, dialect: Dialect) -> Self {
        self.config = self.config.dialect(dialect);
        self
    }

    /// As [`Config::sow_topic`].
    pub fn sow_topic(mut self, topic: impl Into<String>) -> Self {
        self.config = self.config.sow_topic(topic);
        self
    }

    /// As [`Config::unlogged_topic`].
    pub fn unlogged_topic(mut self, topic: impl Into<String>) -> Self {
        self.config = self.config.unlogged_topic(topic);
        self
    }

    /// Puts a fault in force from the start.
    pub fn fault(mut self, fault: Fault) -> Self {
        self.faults.push(fault);
        self
    }

    /// Calls `observer` with logons and refusals as they happen, on the task that serves the
    /// link: it must not block.
    pub fn on_told(mut self, observer: impl Fn(&Told) + Send + Sync + 'static) -> Self {
        self.observer = Some(Box::new(observer));
        self
    }

    /// Closes links that announce a frame of more than this many bytes, 200 MiB by default.
    pub fn max_frame(mut self, bytes: usize) -> Self {
        self.max_frame = Some(bytes);
        self
    }

    /// Listens on this connector instead of one of its own, so that a client finds a sandbox that
    /// was started again.
    pub fn connector(mut self, connector: &MemoryConnector) -> Self {
        self.connector = connector.clone();
        self
    }

    /// Starts without sockets; the connector reaches it whatever the URI says.
    ///
    /// # Errors
    /// As [`Builder::start`].
    pub async fn start_in_memory(self) -> Result<(Sandbox, MemoryConnector), StartError> {
        let sandbox = self.start().await?;
        let connector = sandbox.connector();
        Ok((sandbox, connector))
    }

    /// Opens the journal and starts to listen, on all given addresses and in memory. When
    /// it returns, connections are accepted.
    ///
    /// # Errors
    /// A [`StartError`]; nothing is left running then.
    pub async fn start(mut self) -> Result<Sandbox, StartError> {
        let uris = self.listen.iter().map(|text| {
            text.parse::<Uri>().map_err(|source| StartError::Uri {
                uri: text.clone(),
                source,
            })
        });
        let uris = uris.collect::<Result<Vec<_>, _>>()?;
        if self.config.message_type.is_none() {
            let first = uris.first().and_then(Uri::message_type);
            if let Some(first) = first.filter(|_| uris.iter().all(|u| u.message_type() == first)) {
                self.config = self.config.message_type(first);
            }
        }
        let mut listeners = vec![Listener::Memory(self.connector.listen())];
        let mut bound = Vec::new();
        for uri in uris {
            let (listener, uri) = Listener::bind(uri, &self.identity).await?;
            listeners.push(listener);
            bound.push(uri);
        }
        let shared = open(
            self.config,
            self.journal.as_deref(),
            self.max_frame,
            self.observer,
        )?;
        for fault in &self.faults {
            shared.step(None, |server, out, _| server.inject(fault, out));
        }
        let mut tasks = vec![tokio::spawn(shared.clone().keep_time())];
        tasks.extend(
            listeners
                .into_iter()
                .map(|l| tokio::spawn(l.accept_all(shared.clone()))),
        );
        let sockets = bound
            .iter()
            .filter_map(|uri| uri.path().map(Path::to_owned))
            .collect();
        Ok(Sandbox {
            shared,
            uris: bound,
            connector: self.connector,
            tasks,
            sockets,
        })
    }
}

impl Sandbox {
    /// Begins to set one up.
    pub fn builder() -> Builder {
        Builder::default()
    }

    /// The first address that it listens on, with the port that it got; for a sandbox in memory
    /// the address has no meaning.
    pub fn uri(&self) -> String {
        self.uris
            .first()
            .map_or_else(|| "tcp://memory:0/amps/json".to_owned(), Uri::to_string)
    }

    /// All addresses it listens on, with the ports they got.
    pub fn uris(&self) -> &[Uri] {
        &self.uris
    }

    /// A connector that reaches this sandbox without a socket.
    pub fn connector(&self) -> MemoryConnector {
        self.connector.clone()
    }

    /// The messages that were accepted so far, in order.
    ///
    /// # Errors
    /// The journal cannot be read back.
    pub fn journal(&self) -> io::Result<Vec<JournalEntry>> {
        self.shared.journal()
    }

    /// The figure that a logon with this client name would be told.
    pub fn settled(&self, client_name: &str) -> u64 {
        self.shared.settled(client_name)
    }

    /// Puts a fault in force, also for links that are open.
    pub fn inject(&self, fault: &Fault) {
        self.shared
            .step(None, |server, out, _| server.inject(fault, out));
    }

    /// Ends all faults; a link that one has broken stays as it is.
    pub fn clear_faults(&self) {
        self.shared.step(None, |server, _, _| server.clear_faults());
    }

    /// Closes every link and waits until all is closed and the journal unlocked.
    pub async fn stop(mut self) {
        self.shared.stop();
        for task in std::mem::take(&mut self.tasks) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a part of the sandbox failed");
            }
        }
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        self.shared.stop();
        for socket in self.sockets.iter().filter(|path| is_socket(path)) {
            if let Err(error) = std::fs::remove_file(socket) {
                tracing::debug!(%error, socket = %socket.display(), "socket file left behind");
            }
        }
    }
}

fn open(
    config: Config,
    directory: Option<&Path>,
    max_frame: Option<usize>,
    observer: Option<Observer>,
) -> Result<Arc<Shared>, StartError> {
    let mut server = Server::new(config, 0);
    let journal = match directory {
        None => Journal::memory(),
        Some(directory) => {
            Journal::open(directory, |entry, position| server.recover(entry, position))?
        }
    };
    server.resume_at(journal.end());
    let max_frame = max_frame.unwrap_or(MAX_FRAME);
    Ok(Shared::new(server, journal, max_frame, observer))
}

enum Listener {
    Memory(MemoryListener),
    Tcp(TcpListener),
    #[cfg(feature = "tls")]
    Tls(TcpListener, TlsIdentity),
    #[cfg(unix)]
    Unix(UnixListener),
}

/// A link that was accepted. There may be a handshake before it can be used.
type Opening = Pin<Box<dyn Future<Output = io::Result<Box<dyn Stream>>> + Send>>;

/// What listening needs besides the address.
#[derive(Debug, Default)]
struct Identity {
    #[cfg(feature = "tls")]
    tls: Option<TlsIdentity>,
}

impl Identity {
    async fn listen(&self, uri: Uri) -> Result<(Listener, Uri), StartError> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return match bind_tcp(&uri).await {
                Ok((listener, port)) => {
                    Ok((Listener::Tls(listener, tls.clone()), uri.with_port(port)))
                }
                Err(source) => Err(StartError::Listen {
                    uri: uri.to_string(),
                    source,
                }),
            };
        }
        Err(StartError::Unsupported {
            uri: uri.to_string(),
            needed: match cfg!(feature = "tls") {
                true => "TLS needs a certificate to show",
                false => "build amps-sandbox with its feature tls",
            },
        })
    }
}

async fn bind_tcp(uri: &Uri) -> io::Result<(TcpListener, u16)> {
    let listener = TcpListener::bind((uri.host(), uri.port())).await?;
    let port = listener.local_addr()?.port();
    Ok((listener, port))
}

impl Listener {
    async fn bind(uri: Uri, identity: &Identity) -> Result<(Listener, Uri), StartError> {
        let fail = |source| StartError::Listen {
            uri: uri.to_string(),
            source,
        };
        match uri.scheme() {
            Scheme::Tcp => {
                let (listener, port) = bind_tcp(&uri).await.map_err(fail)?;
                Ok((Listener::Tcp(listener), uri.with_port(port)))
            }
            Scheme::Tcps => identity.listen(uri).await,
            #[cfg(unix)]
            Scheme::Unix => {
                let listener = bind_unix(uri.path().unwrap_or(Path::new(""))).map_err(fail)?;
                Ok((Listener::Unix(listener), uri))
            }
            #[cfg(not(unix))]
            Scheme::Unix => Err(StartError::Unsupported {
                uri: uri.to_string(),
                needed: "this system has no Unix sockets",
            }),
        }
    }

    async fn accept_all(mut self, shared: Arc<Shared>) {
        let mut stop = shared.stopped();
        let mut links = JoinSet::new();
        let mut strangers = Strangers::default();
        loop {
            let opening = tokio::select! {
                accepted = self.accept() => match accepted {
                    Ok(Some(opening)) => opening,
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(%error, "a connection could not be accepted");
                        // Out of descriptors: this does not improve before a link ends.
                        tokio::time::sleep(Duration::from_millis(50)).await;
                        continue;
                    }
                },
                Some(ended) = links.join_next() => {
                    if let Err(error) = ended && !error.is_cancelled() {
                        tracing::error!(%error, "a link failed");
                    }
                    continue;
                }
                () = stopping(&mut stop) => break,
            };
            if links.len() >= MAX_LINKS {
                if !strangers.end_oldest() {
                    tracing::warn!("{MAX_LINKS} clients are logged on; one more was turned away");
                    continue;
                }
                // Its place is free only when its task has ended.
                links.join_next().await;
            }
            let known = Arc::new(AtomicBool::new(false));
            let task = links.spawn(serve(shared.clone(), opening, known.clone()));
            strangers.came(task, known);
        }
        while links.join_next().await.is_some() {}
    }

    async fn accept(&mut self) -> io::Result<Option<Opening>> {
        let stream: Box<dyn Stream> = match self {
            Listener::Memory(listener) => match listener.accept().await {
                Some(stream) => Box::new(stream),
                None => return Ok(None),
            },
            Listener::Tcp(listener) => Box::new(accept_tcp(listener).await?),
            #[cfg(feature = "tls")]
            Listener::Tls(listener, identity) => {
                let (plain, identity) = (accept_tcp(listener).await?, identity.clone());
                return Ok(Some(Box::pin(async move { identity.accept(plain).await })));
            }
            #[cfg(unix)]
            Listener::Unix(listener) => Box::new(listener.accept().await?.0),
        };
        Ok(Some(Box::pin(std::future::ready(Ok(stream)))))
    }
}

/// Connections that have not logged on, the oldest first. When no place is left the oldest makes
/// room: a connection that says nothing must not keep out one that would.
#[derive(Default)]
struct Strangers(VecDeque<(AbortHandle, Arc<AtomicBool>)>);

impl Strangers {
    fn came(&mut self, task: AbortHandle, known: Arc<AtomicBool>) {
        if self.0.len() >= 2 * MAX_LINKS {
            self.0.retain(|(task, known)| is_stranger(task, known));
        }
        self.0.push_back((task, known));
    }

    /// Ends the oldest one; returns whether there was one.
    fn end_oldest(&mut self) -> bool {
        while let Some((task, known)) = self.0.pop_front() {
            if is_stranger(&task, &known) {
                tracing::debug!("a connection without a logon makes room for another");
                task.abort();
                return true;
            }
        }
        false
    }
}

fn is_stranger(task: &AbortHandle, known: &AtomicBool) -> bool {
    !task.is_finished() && !known.load(Ordering::Relaxed)
}

async fn accept_tcp(listener: &TcpListener) -> io::Result<TcpStream> {
    let (stream, _) = listener.accept().await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn serve(shared: Arc<Shared>, opening: Opening, known: Arc<AtomicBool>) {
    let mut stop = shared.stopped();
    tokio::select! {
        opened = opening => match opened {
            Ok(stream) => shared.serve(stream, known).await,
            Err(error) => tracing::debug!(%error, "no link came of a connection"),
        },
        () = stopping(&mut stop) => {}
    }
}

/// Whether this path itself is a socket, not a link to one.
#[cfg(unix)]
fn is_socket(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt as _;
    std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket())
}

#[cfg(not(unix))]
fn is_socket(_: &Path) -> bool {
    false
}

/// Binds a socket file, taking the place of one that a dead process left behind.
#[cfg(unix)]
fn bind_unix(path: &Path) -> io::Result<UnixListener> {
    match UnixListener::bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match std::os::unix::net::UnixStream::connect(path) {
                // Connecting to something that is no socket is refused as well.
                Err(dead) if dead.kind() == io::ErrorKind::ConnectionRefused && is_socket(path) => {
                    std::fs::remove_file(path)?;
                    UnixListener::bind(path)
                }
                _ => Err(error),
            }
        }
        other => other,
    }
}
