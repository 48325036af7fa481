//! Streams inside one process: for tests, and for a sandbox embedded in its publisher.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{DuplexStream, duplex};
use tokio::sync::mpsc;

use super::{ConnectError, Connecting, Connector};
use crate::uri::Uri;

const BUFFER: usize = 256 * 1024;
const BACKLOG: usize = 16;

/// Opens streams to whoever holds the [`MemoryListener`], whatever the URI says. Clones
/// reach the same listener. Without a listener connections are refused, so a server can be
/// stopped and another one started under the same connector.
#[derive(Clone, Debug, Default)]
pub struct MemoryConnector {
    listener: Arc<Mutex<Option<mpsc::Sender<DuplexStream>>>>,
}

/// The accepting half of a [`MemoryConnector`].
#[derive(Debug)]
pub struct MemoryListener {
    incoming: mpsc::Receiver<DuplexStream>,
}

impl MemoryConnector {
    /// A connector that nobody listens to yet.
    pub fn new() -> Self {
        MemoryConnector::default()
    }

    /// Starts listening; an earlier listener gets no connections any more.
    pub fn listen(&self) -> MemoryListener {
        let (sender, incoming) = mpsc::channel(BACKLOG);
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        MemoryListener { incoming }
    }
}

impl MemoryListener {
    /// The next connection, or `None` once no connector reaches this listener any more.
    ///
    /// Cancel safe: no connection is lost by dropping the future.
    pub async fn accept(&mut self) -> Option<DuplexStream> {
        self.incoming.recv().await
    }
}

impl Connector for MemoryConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        let listener = self
            .listener
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        Box::pin(async move {
            let refused = || ConnectError::Io {
                target: uri.to_string(),
                source: io::Error::new(io::ErrorKind::ConnectionRefused, "nobody listens"),
            };
            let (mine, theirs) = duplex(BUFFER);
            listener
                .ok_or_else(refused)?
                .send(theirs)
                .await
                .map_err(|_| refused())?;
            Ok(Box::new(mine) as _)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn streams_reach_the_listener_and_only_while_it_lives() {
        let connector = MemoryConnector::new();
        let uri: Uri = "tcp://memory:0/amps/json".parse().unwrap();
        let refused = connector.connect(&uri).await.err().unwrap();
        assert!(matches!(refused, ConnectError::Io { .. }));

        let mut listener = connector.listen();
        let mut mine = connector.connect(&uri).await.unwrap();
        let mut theirs = listener.accept().await.unwrap();
        mine.write_all(b"ping").await.unwrap();
        let mut read = [0; 4];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"ping");

        drop(listener);
        assert!(connector.connect(&uri).await.is_err());
        let mut again = connector.listen();
        let (opened, accepted) = tokio::join!(connector.connect(&uri), again.accept());
        assert!(opened.is_ok() && accepted.is_some());
    }
}
