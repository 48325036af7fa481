//! How streams of bytes to servers of NATS are opened (feature `jetstream`).

#[cfg(feature = "tls")]
use std::io;
#[cfg(feature = "tls")]
use std::pin::Pin;
#[cfg(feature = "tls")]
use std::task::{Context, Poll};

use amps_jetstream::{Address, Opener, Opening};
#[cfg(feature = "tls")]
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, ReadBuf};
#[cfg(feature = "tls")]
use tokio::net::TcpStream;

use super::{ConnectError, SchemeConnector, tcp};
use crate::uri::Uri;

/// The longest greeting that is read in front of TLS.
#[cfg(feature = "tls")]
const LONGEST: usize = 64 * 1024;

/// TCP to `nats` addresses, and TLS over it to `tls` ones, set up as `tcps` is for AMPS. Such a
/// server greets in plain text, and what follows is encrypted; one that wants TLS before its
/// greeting (`handshake_first`) is not served.
#[derive(Clone, Debug, Default)]
pub(crate) struct NatsOpener(pub(crate) SchemeConnector);

impl Opener for NatsOpener {
    fn open<'a>(&'a self, address: &'a Address) -> Opening<'a> {
        Box::pin(async move {
            let opened = self.connect(address).await;
            opened.map_err(|error| error.to_string())
        })
    }
}

impl NatsOpener {
    async fn connect(
        &self,
        address: &Address,
    ) -> Result<Box<dyn amps_jetstream::Stream>, ConnectError> {
        let (host, port) = (address.host(), address.port());
        let uri = format!("tcp://{host}:{port}/amps").parse::<Uri>();
        let uri = uri.map_err(|error| ConnectError::Io {
            target: address.to_string(),
            source: std::io::Error::other(error),
        })?;
        if !address.is_encrypted() {
            return Ok(Box::new(tcp::open(&uri).await?));
        }
        #[cfg(feature = "tls")]
        {
            let tls = self.0.loaded_tls().await?;
            let mut plain = tcp::open(&uri).await?;
            let greeting = greeting(&mut plain).await;
            let greeting = greeting.map_err(|source| ConnectError::Tls {
                target: address.to_string(),
                source,
            })?;
            let stream = tls.over(&uri, plain).await?;
            Ok(Box::new(Greeted {
                greeting,
                read: 0,
                stream,
            }))
        }
        #[cfg(not(feature = "tls"))]
        Err(ConnectError::UnsupportedScheme { scheme: "tls" })
    }
}

/// The server's first line. It says nothing more before TLS begins.
#[cfg(feature = "tls")]
async fn greeting(plain: &mut TcpStream) -> io::Result<Vec<u8>> {
    let (mut said, mut part) = (Vec::new(), [0; 4096]);
    loop {
        let count = plain.read(&mut part).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        said.extend_from_slice(&part[..count]);
        match said.iter().position(|byte| *byte == b'\n') {
            Some(end) if end + 1 == said.len() => return Ok(said),
            Some(_) => {
                return Err(io::Error::other(
                    "it says more in plain text than a greeting",
                ));
            }
            None if said.len() > LONGEST => {
                return Err(io::Error::other("its greeting has no end"));
            }
            None => {}
        }
    }
}

/// A stream that begins with what was read before it was encrypted.
#[cfg(feature = "tls")]
struct Greeted<S> {
    greeting: Vec<u8>,
    read: usize,
    stream: S,
}

#[cfg(feature = "tls")]
impl<S: AsyncRead + Unpin> AsyncRead for Greeted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.greeting[self.read..];
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, into);
        }
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        self.read += count;
        Poll::Ready(Ok(()))
    }
}

#[cfg(feature = "tls")]
impl<S: AsyncWrite + Unpin> AsyncWrite for Greeted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
