//! Plain TCP.

use std::collections::VecDeque;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use socket2::{SockRef, TcpKeepalive};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use super::{ConnectError, Connecting, Connector, not_done, only, system, unsupported};
use crate::uri::{IpPreference, Scheme, Uri};

/// Opens `tcp` addresses and honours the options of the URI. All addresses of the host are tried,
/// the preferred family first. The next one is tried when one fails, or beside it when it does
/// not answer for 250 ms. The first connection counts.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpConnector;

impl Connector for TcpConnector {
    fn connect<'a>(&'a self, uri: &'a Uri) -> Connecting<'a> {
        if uri.scheme() != Scheme::Tcp {
            return unsupported(uri);
        }
        Box::pin(async move { Ok(Box::new(open(uri).await?) as _) })
    }

    fn check(&self, uri: &Uri) -> Result<(), ConnectError> {
        only(Scheme::Tcp, uri)?;
        can_find(uri)
    }
}

pub(super) async fn open(uri: &Uri) -> Result<TcpStream, ConnectError> {
    let host = || uri.host().to_owned();
    let found = find(uri).await?;
    let addresses = in_order(found.into_iter(), uri.bind(), uri.ip_preference());
    let open_one = |address| open_one(uri.clone(), address);
    match first_of(addresses, open_one).await {
        Ok(stream) => Ok(stream),
        Err(Some((address, source))) => Err(ConnectError::Io {
            target: address.to_string(),
            source,
        }),
        Err(None) => {
            let bind = uri
                .bind()
                .map_or_else(|| "here".to_owned(), |bind| bind.to_string());
            Err(ConnectError::NoAddress { host: host(), bind })
        }
    }
}

/// The host, if it is written as an address.
fn address(uri: &Uri) -> Option<IpAddr> {
    uri.host().trim_matches(['[', ']']).parse().ok()
}

/// If the host is a name, checks that there is a thread to look it up on.
pub(super) fn can_find(uri: &Uri) -> Result<(), ConnectError> {
    match address(uri) {
        Some(_) => Ok(()),
        None => system().map(drop),
    }
}

/// The host's addresses.
async fn find(uri: &Uri) -> Result<Vec<SocketAddr>, ConnectError> {
    let port = uri.port();
    if let Some(address) = address(uri) {
        return Ok(vec![SocketAddr::new(address, port)]);
    }
    let host = uri.host().to_owned();
    let name = host.clone();
    let look_up = move || (name.as_str(), port).to_socket_addrs().map(Vec::from_iter);
    match system()?.call(look_up).await {
        Ok(found) => found.map_err(|source| ConnectError::Resolve { host, source }),
        Err(why) => Err(not_done(&why)),
    }
}

/// How long one address is tried alone before the next one is tried beside it (RFC 8305
/// recommends this). An address that swallows everything must not use up the time of all.
const HEAD_START: Duration = Duration::from_millis(250);

/// The first connection that can be made to one of these addresses, or otherwise the last error.
///
/// Cancel safe: attempts end with the future.
async fn first_of<T, F>(
    addresses: Vec<SocketAddr>,
    open: impl Fn(SocketAddr) -> F,
) -> Result<T, Option<(SocketAddr, io::Error)>>
where
    T: Send + 'static,
    F: Future<Output = io::Result<T>> + Send + 'static,
{
    let mut waiting = VecDeque::from(addresses);
    let mut attempts = JoinSet::new();
    let mut last = None;
    loop {
        if let Some(address) = waiting.pop_front() {
            let opening = open(address);
            attempts.spawn(async move { (address, opening.await) });
        }
        tokio::select! {
            ended = attempts.join_next() => match ended {
                None => return Err(last),
                Some(Ok((_, Ok(stream)))) => return Ok(stream),
                Some(Ok((address, Err(error)))) => last = Some((address, error)),
                // No task is ever aborted here, and a panic is passed on to the caller.
                Some(Err(error)) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    Err(_) => return Err(last),
                },
            },
            () = tokio::time::sleep(HEAD_START), if !waiting.is_empty() => {}
        }
    }
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

async fn open_one(uri: Uri, address: SocketAddr) -> io::Result<TcpStream> {
    let socket = if address.is_ipv4() {
        TcpSocket::new_v4()?
    } else {
        TcpSocket::new_v6()?
    };
    // The window scale is fixed by the handshake, so the buffers are set before it.
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
    watch(&stream)?;
    Ok(stream)
}

/// After this time the kernel gives up on a peer that answers nothing. This is a second line
/// behind heartbeats, for servers that have none. It is longer because on Linux it also counts
/// the time in which a live peer takes no data.
const GONE: Duration = Duration::from_secs(120);

/// On an idle connection half of that time passes before the first probe.
fn watch(stream: &TcpStream) -> io::Result<()> {
    let socket = SockRef::from(stream);
    let probes = TcpKeepalive::new().with_time(GONE / 2);
    #[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
    let probes = probes.with_interval(GONE / 2 / PROBES).with_retries(PROBES);
    socket.set_tcp_keepalive(&probes)?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(GONE))?;
    Ok(())
}

#[cfg(any(target_os = "linux", target_os = "macos", target_os = "freebsd"))]
const PROBES: u32 = 3;

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn the_kernel_gives_up_on_a_peer_that_is_gone() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let uri: Uri = format!("tcp://{address}/amps/json").parse().unwrap();
        let stream = open(&uri).await.unwrap();
        let socket = SockRef::from(&stream);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(GONE));
        assert!(socket.keepalive().unwrap());
        let (idle, between, probes) = (
            socket.tcp_keepalive_time().unwrap(),
            socket.tcp_keepalive_interval().unwrap(),
            socket.tcp_keepalive_retries().unwrap(),
        );
        assert_eq!(idle + between * probes, GONE);
    }

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

    fn addresses() -> Vec<SocketAddr> {
        ["192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"]
            .map(|address| address.parse().unwrap())
            .into()
    }

    #[tokio::test(start_paused = true)]
    async fn an_address_that_swallows_everything_does_not_use_up_the_time_of_the_next() {
        let open = |address: SocketAddr| async move {
            match address.to_string().as_str() {
                "192.0.2.1:1" => std::future::pending().await,
                "192.0.2.2:1" => Err(io::ErrorKind::ConnectionRefused.into()),
                _ => Ok(address),
            }
        };
        let begun = tokio::time::Instant::now();
        let found = tokio::time::timeout(Duration::from_secs(10), first_of(addresses(), open));
        let found = found.await.expect("long before the connect timeout");
        assert_eq!(found.unwrap().to_string(), "192.0.2.3:1");
        assert_eq!(begun.elapsed(), HEAD_START, "a failure needs no waiting");
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_connection_counts_and_ends_the_other_attempts() {
        let open = |address: SocketAddr| async move {
            if address.to_string() == "192.0.2.1:1" {
                tokio::time::sleep(HEAD_START * 3 / 2).await;
                return Ok(address);
            }
            std::future::pending().await
        };
        let found = first_of(addresses(), open).await;
        assert_eq!(found.unwrap().to_string(), "192.0.2.1:1");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_connection_the_last_error_is_told() {
        let open = |_| async { Err::<(), io::Error>(io::ErrorKind::ConnectionRefused.into()) };
        let (address, _) = first_of(addresses(), open).await.unwrap_err().unwrap();
        assert_eq!(address.to_string(), "192.0.2.3:1");
        assert!(first_of(Vec::new(), open).await.unwrap_err().is_none());
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
        // Linux doubles the value, for its own bookkeeping.
        #[cfg(target_os = "linux")]
        assert_eq!(SockRef::from(&mine).send_buffer_size().unwrap(), 2 << 16);
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
