//! Plain TCP.

use std::net::{IpAddr, SocketAddr};

use tokio::net::{TcpSocket, TcpStream, lookup_host};

use super::{ConnectError, Connecting, Connector, unsupported};
use crate::uri::{IpPreference, Scheme, Uri};

/// Opens `tcp` addresses and honours the options of the URI. All addresses of the host are
/// tried, the preferred family first.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        if uri.scheme() != Scheme::Tcp {
            return unsupported(uri);
        }
        Box::pin(async move { Ok(Box::new(open(uri).await?) as _) })
    }
}

pub(super) async fn open(uri: &Uri) -> Result<TcpStream, ConnectError> {
    let host = || uri.host().to_owned();
    let found = lookup_host((uri.host(), uri.port()))
        .await
        .map_err(|source| ConnectError::Resolve {
            host: host(),
            source,
        })?;
    let mut last = None;
    for address in in_order(found, uri.bind(), uri.ip_preference()) {
        match open_one(uri, address).await {
            Ok(stream) => return Ok(stream),
            Err(source) => {
                last = Some(ConnectError::Io {
                    target: address.to_string(),
                    source,
                })
            }
        }
    }
    let bind = uri
        .bind()
        .map_or_else(|| "here".to_owned(), |bind| bind.to_string());
    Err(last.unwrap_or(ConnectError::NoAddress { host: host(), bind }))
}

fn in_order(
    found: impl Iterator<Item = SocketAddr>,
    bind: Option<IpAddr>,
    prefer: IpPreference,
) -> Vec<SocketAddr> {
    let mut addresses: Vec<_> = found
        .filter(|address| bind.is_none_or(|bind| bind.is_ipv4() == address.is_ipv4()))
        .collect();
    addresses.sort_by_key(|address| address.is_ipv4() != (prefer == IpPreference::Ipv4));
    addresses
}

async fn open_one(uri: &Uri, address: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // The window scale is fixed by the handshake, so the buffers come before it.
    if let Some(bytes) = uri.receive_buffer() {
        socket.set_recv_buffer_size(bytes)?;
    }
    if let Some(bytes) = uri.send_buffer() {
        socket.set_send_buffer_size(bytes)?;
    }
    if let Some(bind) = uri.bind() {
        socket.bind(SocketAddr::new(bind, 0))?;
    }
    let stream = socket.connect(address).await?;
    stream.set_nodelay(uri.no_delay())?;
    Ok(stream)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn the_preferred_family_is_first_and_bind_decides_the_family() {
        let v4: SocketAddr = "1.2.3.4:1".parse().unwrap();
        let v6: SocketAddr = "[::5]:1".parse().unwrap();
        let order = |bind, prefer| in_order([v6, v4, v6].into_iter(), bind, prefer);
        assert_eq!(order(None, IpPreference::Ipv4), [v4, v6, v6]);
        assert_eq!(order(None, IpPreference::Ipv6), [v6, v6, v4]);
        let bind = Some("127.0.0.1".parse().unwrap());
        assert_eq!(order(bind, IpPreference::Ipv6), [v4]);
    }

    #[tokio::test]
    async fn options_reach_the_socket() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri: Uri = format!(
            "tcp://localhost:{port}/amps/json?bind=127.0.0.2&tcp_nodelay=1&tcp_sndbuf=65536"
        )
        .parse()
        .unwrap();
        let (mine, accepted) = tokio::join!(open(&uri), listener.accept());
        let (mut theirs, from) = accepted.unwrap();
        let mut mine = mine.unwrap();
        assert_eq!(from.ip().to_string(), "127.0.0.2");
        assert!(mine.nodelay().unwrap());
        mine.write_all(b"hello").await.unwrap();
        let mut read = [0; 5];
        theirs.read_exact(&mut read).await.unwrap();
        assert_eq!(&read, b"hello");
    }

    #[tokio::test]
    async fn failures_say_where() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let uri: Uri = format!("tcp://127.0.0.1:{port}/amps").parse().unwrap();
        let error = TcpConnector.connect(&uri).await.err().unwrap();
        assert!(
            matches!(&error, ConnectError::Io { target, .. } if target.ends_with(&port.to_string()))
        );

        let uri: Uri = "tcp://127.0.0.1:1/amps?bind=::1".parse().unwrap();
        let error = TcpConnector.connect(&uri).await.err().unwrap();
        assert!(matches!(error, ConnectError::NoAddress { .. }));

        let uri: Uri = "tcps://127.0.0.1:1/amps".parse().unwrap();
        let error = TcpConnector.connect(&uri).await.err().unwrap();
        assert!(matches!(
            error,
            ConnectError::UnsupportedScheme { scheme: "tcps" }
        ));
    }
}
