//! `amps subscribe` at servers of NATS: what a stream holds of a topic, and what comes.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use amps_client::LinkEnd;
use amps_client::Transport as _;
use amps_client::jetstream::{self, Config, Read, Reader};
use tokio::time::{Instant, sleep, sleep_until};

use crate::failure::{Exit, Failure};
use crate::output::{SideOutput, object, say};
use crate::signals::Stop;
use crate::{body, subscribe};

/// Between two attempts to connect.
const AGAIN: Duration = Duration::from_secs(1);

/// Prints messages until enough were seen.
///
/// # Errors
/// A refused logon, or an output that fails.
pub(super) async fn run(
    reader: Reader,
    servers: &[String],
    count: Option<u64>,
    json: bool,
    stop: &Stop,
) -> Result<Exit, Failure> {
    let mut printing = Printing {
        reader,
        out: SideOutput::stdout(json)?,
        left: count.unwrap_or(u64::MAX),
        printed: 0,
        stream: String::new(),
        told: None,
        began: Instant::now(),
    };
    let ended = tokio::select! {
        biased;
        ended = printing.print_all(servers) => ended,
        () = stop.first() => Ok(()),
    };
    if json && ended.is_ok() {
        subscribe::report(&printing.out, printing.printed, stop);
    }
    ended?;
    subscribe::finish(&printing.out, count.is_some() && printing.left > 0, stop).await
}

struct Printing {
    reader: Reader,
    out: SideOutput,
    left: u64,
    printed: u64,
    stream: String,
    /// Why there is no connection, as it was said.
    told: Option<String>,
    began: Instant,
}

impl Printing {
    /// Prints until enough messages were seen, over any number of connections. Cancel safe: a
    /// message is either printed or not taken.
    async fn print_all(&mut self, servers: &[String]) -> Result<(), Failure> {
        for server in servers.iter().cycle() {
            let shown = shown(server);
            let end = match self.reader.connect(server).await {
                Ok(()) => self.print(&shown).await?,
                Err(end) => Some(end),
            };
            match end {
                None => return Ok(()),
                Some(LinkEnd::LogonRefused(reason)) => {
                    return Err(subscribe::logon_refused(&shown, &reason));
                }
                Some(end) => self.tell(&shown, &end),
            }
            sleep(AGAIN).await;
        }
        Ok(())
    }

    /// Prints until enough messages were seen, or the connection ends with what is returned.
    async fn print(&mut self, server: &str) -> Result<Option<LinkEnd>, Failure> {
        while self.left > 0 {
            // A slow reader slows down what is read from the server.
            self.out.room().await;
            self.out.check()?;
            match self.next().await {
                Ok(Read::Found { stream, anew }) => self.found(server, stream, anew),
                Ok(Read::Message { place, body }) => self.one(place, &body),
                Ok(_) => {}
                Err(end) => return Ok(Some(end)),
            }
        }
        Ok(None)
    }

    async fn next(&mut self) -> Result<Read, LinkEnd> {
        loop {
            let due = self.reader.deadline().map(|at| self.began + at);
            let mut due = pin!(sleep_until(due.unwrap_or_else(Instant::now)));
            let (reader, began) = (&mut self.reader, self.began);
            let read = poll_fn(|cx| match reader.poll_next(cx, began.elapsed()) {
                Poll::Ready(read) => Poll::Ready(Some(read)),
                Poll::Pending => due.as_mut().poll(cx).map(|()| None),
            });
            if let Some(read) = read.await {
                return read;
            }
        }
    }

    fn found(&mut self, server: &str, stream: String, anew: bool) {
        if anew {
            say(&format!(
                "note: stream {stream} was deleted and made anew; it is read from its beginning"
            ));
        }
        if self.told.take().is_some() {
            say(&format!("note: reading stream {stream} at {server}"));
        }
        self.stream = stream;
    }

    /// Says why nothing comes, each reason once.
    fn tell(&mut self, server: &str, end: &LinkEnd) {
        let why = match end {
            LinkEnd::Connect(why) => why.clone(),
            why => format!("{server}: {why}"),
        };
        if self.told.as_ref() != Some(&why) {
            say(&format!("note: {why}; trying on"));
            self.told = Some(why);
        }
    }

    fn one(&mut self, place: u64, data: &[u8]) {
        if self.out.is_json() {
            let mut message = object! {
                "event": "message",
                "stream": self.stream.as_str(),
                "stream_sequence": place,
            };
            body::insert(&mut message, data);
            self.out.object(message);
        } else {
            self.out.bytes(data);
        }
        self.left -= 1;
        self.printed += 1;
    }
}

/// A server's address without what is secret in it.
fn shown(server: &str) -> String {
    let transport = jetstream::transport(Config::new(""));
    transport.name(server).unwrap_or_default()
}
