//! `amps subscribe`: bodies, byte for byte.

mod read;

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::time::Duration;

use amps_client::{
    Client, CommandError, ConnectionState, Delivered, Event, Events, LinkEnd, LogonError,
    Subscription, SubscriptionEnd,
};

use crate::args::Subscribe;
use crate::failure::{Exit, Failure};
use crate::output::{SideOutput, object, say};
use crate::signals::Stop;
use crate::{body, carried, login, tls};

/// Messages that are held while standard output is slow. If even this is not enough, the
/// subscription ends and is placed again behind the last message printed.
const BUFFER: usize = 1 << 16;

/// Longer than anybody waits for a server.
const FOR_EVER: Duration = Duration::MAX;

/// Prints messages until enough were seen.
///
/// # Errors
/// A bad URI, a refused logon or a refused subscription.
pub(crate) async fn run(args: Subscribe, json: bool) -> Result<Exit, Failure> {
    if args.topic.is_empty() {
        let text = "--topic: the topic is empty; name the topic to subscribe to";
        return Err(Failure::new(Exit::Usage, text));
    }
    let stop = Stop::listen()?;
    let servers = login::servers(&args.server, &args.login, &stop)?;
    if let Some(reader) = carried::reader(&servers, &args, &stop)? {
        return read::run(reader, &servers, args.count, json, &stop).await;
    }
    let connector = tls::connector(&servers, &args.tls, &stop)?;
    let mut builder = Client::builder(format!("amps-subscribe-{:016x}", random()))
        .connector(connector)
        .heartbeat(args.watching.heartbeat.0);
    for server in &servers {
        builder = builder.server(server.as_str());
    }
    let client = builder
        .open()
        .await
        .map_err(|e| Failure::other(e.to_string()))?;
    // It ends with the client.
    tokio::spawn(tell_outages(client.events()));
    let mut printer = Printer {
        out: SideOutput::stdout(json)?,
        left: args.count.unwrap_or(u64::MAX),
        printed: 0,
        bookmark: args.from_start.then(|| "0".to_owned()),
    };
    let ended = tokio::select! {
        biased;
        ended = printer.print_all(&client, &args.topic) => ended,
        () = stop.first() => Ok(()),
    };
    if json && ended.is_ok() {
        report(&printer.out, printer.printed, &stop);
    }
    let closed = client.close(Duration::from_secs(1));
    tokio::select! {
        _ = closed => {}
        () = stop.second() => {}
    }
    ended?;
    finish(
        &printer.out,
        args.count.is_some() && printer.left > 0,
        &stop,
    )
    .await
}

/// The last object of a run under `--json`.
fn report(out: &SideOutput, printed: u64, stop: &Stop) {
    out.object(object! {
        "event": "report",
        "received": printed,
        "stopped": stop.asked().is_some(),
        "signal": stop.asked(),
    });
}

/// Waits for the reader of standard output. `lacks`: a number of messages was asked for, and was not
/// reached.
async fn finish(out: &SideOutput, lacks: bool, stop: &Stop) -> Result<Exit, Failure> {
    tokio::select! {
        biased;
        () = out.written() => out.check()?,
        () = stop.second() => return Ok(Exit::Other),
    }
    Ok(match lacks {
        true => Exit::Other,
        false => Exit::Ok,
    })
}

/// Waits as long as it takes; only a refusal ends it.
async fn logged_on(client: &Client) -> Result<(), Failure> {
    match client.wait_logged_on(FOR_EVER).await {
        Ok(()) => Ok(()),
        Err(LogonError::Refused { server, reason }) => Err(logon_refused(&server, &reason)),
        Err(error) => Err(Failure::other(error.to_string())),
    }
}

fn logon_refused(server: &str, reason: &dyn std::fmt::Display) -> Failure {
    Failure::new(
        Exit::LogonRefused,
        format!(
            "{server} refused the logon: {reason}; give a user with --user and a password with \
             --password-file or AMPS_PASSWORD"
        ),
    )
}

/// Says why nothing comes: once when a server cannot be reached or is gone, and once when there
/// is one again.
async fn tell_outages(mut events: Events) {
    let mut out = false;
    while let Some(event) = events.next().await {
        match event {
            Event::LinkLost { server, why, .. } if !out => match why {
                // The end of the run, or its failure, which reports this.
                LinkEnd::Shutdown | LinkEnd::LogonRefused(_) => {}
                LinkEnd::Connect(why) => {
                    out = true;
                    say(&format!("note: {why}; trying on"));
                }
                why => {
                    out = true;
                    say(&format!("note: {server}: {why}; trying on"));
                }
            },
            Event::State {
                state: ConnectionState::LoggedOn,
                server,
            } if out => {
                out = false;
                say(&format!("note: logged on to {server}"));
            }
            _ => {}
        }
    }
}

fn refused(topic: &str, error: &CommandError) -> Failure {
    Failure::other(format!(
        "cannot subscribe to {topic}: {error}; check the topic"
    ))
}

/// Prints what arrives, and remembers how far it got.
struct Printer {
    out: SideOutput,
    left: u64,
    printed: u64,
    /// Where to begin, or behind which message to continue.
    bookmark: Option<String>,
}

impl Printer {
    /// Prints until enough messages were seen, over any number of subscriptions. Cancel safe: a
    /// message is either printed or not taken.
    async fn print_all(&mut self, client: &Client, topic: &str) -> Result<(), Failure> {
        while self.left > 0 {
            logged_on(client).await?;
            let mut wanted = amps_client::Subscribe::topic(topic).buffer(BUFFER);
            if let Some(bookmark) = &self.bookmark {
                wanted = wanted.bookmark(bookmark.as_str());
            }
            match client.subscribe(wanted).await {
                Ok(subscription) => self.print(subscription).await?,
                Err(
                    CommandError::Disconnected
                    | CommandError::NotConnected
                    | CommandError::Unreachable { .. }
                    | CommandError::Timeout,
                ) => {}
                Err(error) => return Err(refused(topic, &error)),
            }
        }
        Ok(())
    }

    /// Prints until enough messages were seen, or the subscription must be placed again.
    async fn print(&mut self, mut subscription: Subscription) -> Result<(), Failure> {
        while self.left > 0 {
            // A slow reader slows down what is read from the server.
            self.out.room().await;
            self.out.check()?;
            match subscription.next().await {
                Some(Ok(delivered)) => self.one(delivered),
                Some(Err(SubscriptionEnd::Command(error @ CommandError::Refused(_)))) => {
                    return Err(Failure::other(format!("the subscription ended: {error}")));
                }
                Some(Err(SubscriptionEnd::Lagged)) if self.bookmark.is_none() => {
                    return Err(Failure::other(
                        "standard output was too slow, and this server gives no bookmark to go \
                         on behind; read faster, or use a server that keeps its messages",
                    ));
                }
                Some(Err(_)) | None => return Ok(()),
            }
        }
        Ok(())
    }

    fn one(&mut self, delivered: Delivered) {
        if self.out.is_json() {
            let mut message = object! {
                "event": "message",
                "topic": &*delivered.topic,
                "bookmark": delivered.bookmark.clone(),
            };
            body::insert(&mut message, &delivered.data);
            self.out.object(message);
        } else {
            self.out.bytes(&delivered.data);
        }
        self.left -= 1;
        self.printed += 1;
        if delivered.bookmark.is_some() {
            self.bookmark = delivered.bookmark;
        }
    }
}

/// Enough randomness for a name that no other subscriber has.
fn random() -> u64 {
    RandomState::new().build_hasher().finish()
}
