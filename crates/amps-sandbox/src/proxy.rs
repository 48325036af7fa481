//! A proxy for tests: a network between client and server that delays, cuts, or goes dead.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use amps_client::uri::{Scheme, Uri};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;

use crate::net::stopping;

const BUFFER: usize = 16 * 1024;

/// What the network does at the moment, to all links through the proxy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Weather {
    /// Everything passes.
    #[default]
    Fair,
    /// Everything passes, in order, but this much later.
    Delay(Duration),
    /// Links stay open but nothing passes, as over a half-open connection. What was under way
    /// passes when this ends.
    Dead,
    /// No connection is accepted; open ones are closed.
    Down,
}

/// A TCP proxy in front of a server, with changing weather.
#[derive(Debug)]
pub struct Proxy {
    uri: Uri,
    weather: watch::Sender<Weather>,
    cut: watch::Sender<Cut>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

/// Orders to cut links: how many there were, and how many bytes the last one lets through.
#[derive(Clone, Copy, Debug, Default)]
struct Cut {
    orders: u64,
    after: usize,
}

impl Proxy {
    /// Starts a proxy in front of the `tcp` server that `server` names, on a free port.
    ///
    /// # Errors
    /// The server is not a `tcp` one, or no port can be listened on.
    pub async fn start(server: &Uri) -> io::Result<Proxy> {
        if server.scheme() != Scheme::Tcp {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "only tcp can be proxied",
            ));
        }
        let target = format!("{}:{}", server.host(), server.port());
        let target = tokio::net::lookup_host(target).await?.next();
        let target = target.ok_or(io::ErrorKind::AddrNotAvailable)?;
        let local = if target.is_ipv4() {
            "127.0.0.1:0"
        } else {
            "[::1]:0"
        };
        let listener = TcpListener::bind(local).await?;
        let address = listener.local_addr()?;
        let message_type = server
            .message_type()
            .map_or(String::new(), |mt| format!("/{mt}"));
        let uri = format!("tcp://{address}/{}{message_type}", server.protocol());
        let uri = uri.parse().map_err(io::Error::other)?;
        let (weather, cut, stop) = (
            watch::Sender::new(Weather::Fair),
            watch::Sender::new(Cut::default()),
            watch::Sender::new(false),
        );
        let network = Network {
            weather: weather.subscribe(),
            cut: cut.subscribe(),
            stop: stop.subscribe(),
        };
        let task = tokio::spawn(network.accept_all(listener, target));
        Ok(Proxy {
            uri,
            weather,
            cut,
            stop,
            task,
        })
    }

    /// Where clients connect to.
    pub fn uri(&self) -> &Uri {
        &self.uri
    }

    /// Changes the weather, for open links as well.
    pub fn set(&self, weather: Weather) {
        self.weather.send_replace(weather);
    }

    /// Cuts every open link once the server has sent this many more bytes, even inside a frame.
    /// With 0, at once.
    pub fn cut_after(&self, bytes: usize) {
        self.cut.send_modify(|cut| {
            *cut = Cut {
                orders: cut.orders + 1,
                after: bytes,
            }
        });
    }

    /// Closes everything and waits until it is closed.
    pub async fn stop(self) {
        self.stop.send_replace(true);
        if let Err(error) = self.task.await {
            tracing::error!(%error, "the proxy failed");
        }
    }
}

#[derive(Clone)]
struct Network {
    weather: watch::Receiver<Weather>,
    cut: watch::Receiver<Cut>,
    stop: watch::Receiver<bool>,
}

impl Network {
    async fn accept_all(mut self, listener: TcpListener, target: SocketAddr) {
        let mut links = JoinSet::new();
        let mut stop = self.stop.clone();
        loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((client, _)) if *self.weather.borrow() != Weather::Down => {
                        self.cut.mark_unchanged();
                        links.spawn(self.clone().link(client, target));
                    }
                    Ok(_) => {}
                    Err(error) => tracing::warn!(%error, "the proxy cannot accept"),
                },
                Some(_) = links.join_next() => {}
                () = stopping(&mut stop) => return,
            }
        }
    }

    async fn link(mut self, client: TcpStream, target: SocketAddr) {
        let Ok(server) = TcpStream::connect(target).await else {
            return;
        };
        let (from_client, to_client) = split(client);
        let (from_server, to_server) = split(server);
        let (mut up, mut weather) = (self.clone(), self.weather.clone());
        let down = async {
            // An error means that the proxy itself is gone.
            let _ = weather.wait_for(|weather| *weather == Weather::Down).await;
        };
        tokio::select! {
            _ = up.carry(from_client, to_server, false) => {}
            _ = self.carry(from_server, to_client, true) => {}
            () = down => {}
        }
    }

    /// Carries bytes one way until either end closes, or the link is cut.
    async fn carry(
        &mut self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        cuttable: bool,
    ) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        let mut left = None;
        loop {
            if left == Some(0) {
                return Ok(());
            }
            let limit = left.unwrap_or(BUFFER).min(BUFFER);
            let read = tokio::select! {
                biased;
                ordered = self.cut.changed(), if cuttable => {
                    if ordered.is_err() {
                        return Ok(());
                    }
                    left = Some(self.cut.borrow_and_update().after);
                    continue;
                }
                read = from.read(&mut buffer[..limit]) => read?,
            };
            if read == 0 {
                return to.shutdown().await;
            }
            let arrived = Instant::now();
            let weather = self
                .weather
                .wait_for(|weather| *weather != Weather::Dead)
                .await;
            let delay = match weather.map(|weather| *weather) {
                Ok(Weather::Delay(delay)) => delay,
                Ok(_) => Duration::ZERO,
                Err(_) => return Ok(()),
            };
            tokio::time::sleep_until(arrived + delay).await;
            to.write_all(&buffer[..read]).await?;
            left = left.map(|left| left - read);
        }
    }
}
