//! Unix domain sockets.

use tokio::net::UnixStream;

use super::{ConnectError, Connecting, Connector, only, unsupported};
use crate::uri::{Scheme, Uri};

/// Opens `unix` addresses: the file named by the option `path`.
#[derive(Clone, Copy, Debug, Default)]
pub struct UnixConnector;

impl Connector for UnixConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        let Some(path) = uri.path() else {
            return unsupported(uri);
        };
        Box::pin(async move {
            let stream = UnixStream::connect(path)
                .await
                .map_err(|source| ConnectError::Io {
                    target: path.display().to_string(),
                    source,
                })?;
            Ok(Box::new(stream) as _)
        })
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        only(Scheme::Unix, uri)
    }
}
