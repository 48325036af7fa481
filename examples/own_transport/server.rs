//! The server of this example.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

/// The server: it keeps messages in memory, refuses bodies that begin with `no`, and takes so many
/// at most until somebody makes room.
#[derive(Clone)]
pub struct OwnServer(Arc<Mutex<Kept>>);

/// What outlives connections.
pub struct Kept {
    /// Topics and bodies.
    pub messages: Vec<(String, Vec<u8>)>,
    pub most: usize,
    publishers: HashMap<String, Publisher>,
}

#[derive(Default)]
struct Publisher {
    /// Everything up to here is stored or refused.
    mark: u64,
    /// Turned away: nothing behind it is taken before it.
    first: Option<u64>,
    /// The connection in use. What comes on an earlier one counts for nothing, or the mark that a
    /// later one was greeted with would not be true.
    connection: u64,
}

/// The largest body.
const LARGEST: usize = 64 << 10;

impl OwnServer {
    pub fn new(most: usize) -> Self {
        OwnServer(Arc::new(Mutex::new(Kept {
            messages: Vec::new(),
            most,
            publishers: HashMap::new(),
        })))
    }

    pub fn kept<T>(&self, look: impl FnOnce(&mut Kept) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Serves connections, until it is dropped and they with it.
    pub async fn serve(self, listener: TcpListener) -> io::Result<()> {
        let mut connections = JoinSet::new();
        loop {
            let (stream, _) = listener.accept().await?;
            // How one connection ends concerns no other.
            while connections.try_join_next().is_some() {}
            connections.spawn(self.clone().connection(stream));
        }
    }

    async fn connection(self, stream: TcpStream) -> io::Result<()> {
        let wrong = || io::Error::from(io::ErrorKind::InvalidData);
        let (reader, mut writer) = stream.into_split();
        let mut reader = BufReader::new(reader);
        let mut line = String::new();
        reader.read_line(&mut line).await?;
        let name = line.trim_end().strip_prefix("HI ").ok_or_else(wrong)?;
        let name = name.to_owned();
        let (mark, connection) = self.kept(|kept| {
            let publisher = kept.publishers.entry(name.clone()).or_default();
            publisher.connection += 1;
            publisher.first = None;
            (publisher.mark, publisher.connection)
        });
        let greeting = format!("HI {LARGEST} {mark}\n");
        writer.write_all(greeting.as_bytes()).await?;
        loop {
            line.clear();
            if reader.read_line(&mut line).await? == 0 {
                return Ok(());
            }
            let put = line.trim_end().strip_prefix("PUT ").ok_or_else(wrong)?;
            let mut words = put.splitn(3, ' ');
            let mut number = || words.next()?.parse::<u64>().ok();
            let (wire, length) = (number().ok_or_else(wrong)?, number().ok_or_else(wrong)?);
            let topic = words.next().ok_or_else(wrong)?.to_owned();
            let length = usize::try_from(length).map_err(|_| wrong())?;
            if length > LARGEST {
                return Err(wrong());
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body).await?;
            let answer = self.kept(|kept| kept.take(&name, connection, wire, (topic, body)));
            let answer = answer.ok_or_else(|| io::Error::other("another connection took over"))?;
            writer.write_all(answer.as_bytes()).await?;
        }
    }
}

impl Kept {
    fn take(
        &mut self,
        name: &str,
        connection: u64,
        number: u64,
        message: (String, Vec<u8>),
    ) -> Option<String> {
        let publisher = self.publishers.get_mut(name)?;
        if publisher.connection != connection {
            return None;
        }
        let waits = publisher.first.is_some_and(|first| number > first);
        if waits || self.messages.len() >= self.most {
            publisher.first.get_or_insert(number);
            return Some(format!("BUSY {number}\n"));
        }
        publisher.first = None;
        publisher.mark = publisher.mark.max(number);
        if message.1.starts_with(b"no") {
            return Some(format!("NO {number} it says no\n"));
        }
        self.messages.push(message);
        Some(format!("OK {number}\n"))
    }
}
