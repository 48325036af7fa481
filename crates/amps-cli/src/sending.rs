//! What publish and drain share: send what the store holds and what comes in, wait for the
//! acknowledgements, and report.

mod notes;
mod progress;
mod report;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use amps_client::connector::Connector;
use amps_client::{Client, LinkEnd, LogonError, Message, PublishError, PublishFailure};
use amps_sandbox::Sandbox;
use amps_store::{AppendError, PublishStore, Store, StoreError};
use tokio::time::Instant;

use crate::failure::{Exit, Failure};
use crate::lines::{Line, Lines};
use crate::output::{SideOutput, object, say};
use crate::publish::store_name;

use self::progress::Progress;
use self::report::{Refused, Report};

/// A close that finds the disk or the server slow gives up after this; nothing is lost by
/// it but the tidy end.
const CLOSE: Duration = Duration::from_secs(10);

/// What to send, where, and how to tell.
pub(crate) struct Job {
    pub(crate) store: Store,
    /// Where the store is, `None` for memory.
    pub(crate) path: Option<PathBuf>,
    pub(crate) servers: Vec<String>,
    pub(crate) connector: Arc<dyn Connector>,
    pub(crate) flush_timeout: Duration,
    pub(crate) input: Option<Input>,
    pub(crate) json: bool,
}

/// Lines to publish behind what the store holds.
pub(crate) struct Input {
    pub(crate) lines: Lines,
    pub(crate) message: Box<dyn Fn(&Line) -> Message + Send>,
    /// Lines skipped because an earlier run stored them.
    pub(crate) resumed_at: u64,
    /// Messages a second.
    pub(crate) rate: Option<u64>,
    pub(crate) announce: bool,
}

/// Why reading ended before the end of input.
struct Stopped {
    failure: Failure,
    /// Waiting again would wait for the same thing.
    skip_flush: bool,
}

/// Does the job.
///
/// # Errors
/// What kept it from starting. What went wrong later is told on the way, and the exit code
/// is the first of design section 8 that applies.
pub(crate) async fn run(job: Job) -> Result<Exit, Failure> {
    let Job {
        store,
        path,
        servers,
        connector,
        flush_timeout,
        input,
        json,
    } = job;
    let out = SideOutput::stdout(json)?;
    let refused = Refused::before(&store);
    let recovered = store.bounds().unsettled;
    tell_recovered(&out, recovered, path.as_deref(), &store);

    let mut builder = Client::builder(store.client_name())
        .store(store.clone())
        .connector(connector)
        // A person decides what becomes of a refusal: it waits in the store.
        .on_failed_write(|_| async { Err("it waits for `amps failed`".into()) });
    for server in &servers {
        builder = builder.server(server.as_str());
    }
    let client = builder.open().await.map_err(|e| client_failure(&e))?;
    let mut progress = Progress::start(&client);
    let notes = tokio::spawn(notes::tell(client.events(), store_name(path.as_deref())));

    let mut exits = vec![Exit::Ok];
    let mut accepted = 0;
    let mut skip_flush = false;
    let resumed_at = input.as_ref().map_or(0, |input| input.resumed_at);
    if let Some(input) = input {
        let fed = feed(&client, input, flush_timeout, &out, &mut accepted).await;
        if let Err(stopped) = fed {
            skip_flush = stopped.skip_flush;
            exits.push(stopped.failure.exit());
            say(&format!("error: {}", stopped.failure));
        }
    }
    // What is left is in the report, whatever the reason. Acknowledgements had their time:
    // a close that finds some missing does not wait for them again.
    let flushed = !skip_flush && client.publish_flush(flush_timeout).await.is_ok();
    let patience = if flushed { CLOSE } else { Duration::ZERO };
    let refusal = match client.wait_logged_on(Duration::ZERO).await {
        Err(LogonError::Refused { server, reason })
        | Err(LogonError::Deadline {
            last: Some((server, LinkEnd::LogonRefused(reason))),
            ..
        }) => Some((server, reason.to_string())),
        _ => None,
    };
    progress.finish();
    let rejected = refused.tell_new(&store, &out).await;
    let closed = client.close(patience).await;
    let counts = client.health().counts;
    // The events end with the client; a teller that does not must not hide the report.
    let _ = tokio::time::timeout(Duration::from_secs(1), notes).await;

    let report = Report {
        published: counts.published,
        persisted: counts.persisted,
        persisted_at_logon: counts.persisted_at_logon,
        rejected: counts.rejected,
        left: closed.left,
        resent: counts.resent,
        recovered,
        lines: accepted,
        resumed_at,
    };
    if let Some(error) = closed.error {
        say(&format!(
            "note: {} was not closed cleanly: {error}",
            store_name(path.as_deref())
        ));
    }
    if report.left > 0 {
        exits.push(Exit::Left);
        if let Some((server, reason)) = refusal {
            exits.push(Exit::LogonRefused);
            say(&format!(
                "error: {server} refused the logon: {reason}; check user, password and client \
                 name. {}",
                advice(&report, path.as_deref())
            ));
        } else {
            say(&format!(
                "error: the flush timeout of {flush_timeout:?} ended first. {}",
                advice(&report, path.as_deref())
            ));
        }
    }
    if report.rejected > 0 {
        exits.push(Exit::Rejected);
        if let Some(path) = &path {
            say(&format!(
                "note: {} message(s) were refused and wait for you: amps failed list {}",
                report.rejected,
                path.display()
            ));
        }
    }
    if report.rejected > rejected {
        say(&format!(
            "note: {} of them came too late for the list",
            report.rejected - rejected
        ));
    }
    drop((client, store));
    report.tell(&out);
    out.written().await;
    exits.push(out.exit());
    Ok(exits.into_iter().min().unwrap_or(Exit::Ok))
}

/// Starts a sandbox on a free port of the loopback interface.
///
/// # Errors
/// No port could be had.
pub(crate) async fn embedded_sandbox() -> Result<Sandbox, Failure> {
    Sandbox::builder()
        .listen("tcp://127.0.0.1:0/amps/json")
        .ack_interval(Duration::from_millis(100))
        .start()
        .await
        .map_err(|e| Failure::other(format!("cannot start the embedded sandbox server: {e}")))
}

/// Takes lines until the input ends, the store stays full, or something breaks.
async fn feed(
    client: &Client,
    mut input: Input,
    patience: Duration,
    out: &SideOutput,
    accepted: &mut u64,
) -> Result<(), Stopped> {
    let go_on = |failure| Stopped {
        failure,
        skip_flush: false,
    };
    let mut pace = input.rate.map(Pace::new);
    while let Some(line) = input.lines.next().await.map_err(go_on)? {
        if let Some(pace) = &mut pace {
            pace.wait().await;
        }
        let message = (input.message)(&line);
        let deadline = Instant::now() + patience;
        let receipt = match client.send_deadline(message, deadline).await {
            Ok(receipt) => receipt,
            Err(error) => return Err(stopped(&error, &line, *accepted, patience)),
        };
        *accepted += 1;
        if input.announce {
            let stored = object! {
                "event": "stored", "line": line.number, "sequence": receipt.sequence(),
            };
            out.room().await;
            out.object(stored);
        }
    }
    Ok(())
}

/// An upper bound on messages a second. What a timer overslept is made up for, a longer
/// pause is not: it must not be followed by a burst.
struct Pace {
    period: Duration,
    due: Instant,
}

impl Pace {
    /// Timers are this coarse.
    const GRAIN: Duration = Duration::from_millis(5);

    fn new(per_second: u64) -> Self {
        Pace {
            period: Duration::from_secs_f64(1.0 / per_second as f64),
            due: Instant::now(),
        }
    }

    async fn wait(&mut self) {
        tokio::time::sleep_until(self.due).await;
        self.due = self.after(Instant::now());
    }

    fn after(&self, now: Instant) -> Instant {
        let earliest = now.checked_sub(Self::GRAIN).unwrap_or(now);
        (self.due + self.period).max(earliest)
    }
}

/// Says why a line could not be stored, and how far the run got.
fn stopped(error: &PublishError, line: &Line, accepted: u64, patience: Duration) -> Stopped {
    let so_far = format!(
        "{accepted} line(s) were accepted; line {} was not",
        line.number
    );
    let (reason, waited) = match &error.reason {
        PublishFailure::Deadline(last) => (&**last, true),
        reason => (reason, false),
    };
    let (exit, text, skip_flush) = match reason {
        PublishFailure::Store(AppendError::NoSpace { .. }) => (
            Exit::NoSpace,
            format!("{reason}: {so_far}; nothing accepted is lost"),
            waited,
        ),
        PublishFailure::Store(AppendError::Full { .. }) => (
            Exit::Left,
            format!(
                "the store stayed full for {patience:?}: {so_far}. Check that the server is \
                 reachable, or use a store with a larger --capacity; nothing accepted is lost"
            ),
            true,
        ),
        PublishFailure::Store(AppendError::Store(StoreError::NoSpace { .. })) => (
            Exit::NoSpace,
            format!("{reason}: {so_far}; nothing accepted is lost"),
            waited,
        ),
        PublishFailure::Store(AppendError::TooLarge { .. }) | PublishFailure::TooLarge { .. } => (
            Exit::Other,
            format!(
                "line {} ({} bytes) is too large: {error}. {so_far}; nothing accepted is lost",
                line.number,
                line.bytes.len()
            ),
            false,
        ),
        _ => (
            Exit::Other,
            format!("{error}: {so_far}; nothing accepted is lost"),
            false,
        ),
    };
    Stopped {
        failure: Failure::new(exit, text),
        skip_flush,
    }
}

fn client_failure(error: &amps_client::OpenError) -> Failure {
    let exit = match error {
        amps_client::OpenError::Uri(_) | amps_client::OpenError::BadClientName(_) => Exit::Usage,
        _ => Exit::Other,
    };
    Failure::new(exit, error.to_string())
}

fn tell_recovered(out: &SideOutput, recovered: u64, path: Option<&std::path::Path>, store: &Store) {
    let report = store.report();
    let found = report.set_aside > 0 || !report.lost.is_empty() || !report.ignored.is_empty();
    if out.is_json() && (recovered > 0 || found) {
        let (first, last) = report.set_aside_sequences.unzip();
        let lost = report.lost.iter().filter(|(_, last)| *last > 0);
        let lost: Vec<_> = lost.map(|&(first, last)| vec![first, last]).collect();
        out.object(object! {
            "event": "recovered",
            "recovered": recovered,
            "first": store.bounds().first_unsettled,
            "last": store.bounds().last,
            "set_aside": report.set_aside,
            "set_aside_first": first,
            "set_aside_last": last,
            "set_aside_rejections": report.set_aside_rejections.clone(),
            "damage_ignored": report.ignored.len(),
            "given_up": lost,
        });
    }
    if recovered > 0 && !out.is_json() {
        say(&format!(
            "note: {} holds {recovered} unsettled message(s) of an earlier run; they go first",
            store_name(path)
        ));
    }
}

fn advice(report: &Report, path: Option<&std::path::Path>) -> String {
    match path {
        Some(path) => format!(
            "{} message(s) stay in the store {p}; send them with: amps drain --store {p} --server URI",
            report.left,
            p = path.display()
        ),
        None => format!(
            "{} message(s) were not acknowledged and are gone with this process; use --store FILE \
             to keep them",
            report.left
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pause_is_not_followed_by_a_burst() {
        let start = Instant::now();
        let mut pace = Pace {
            period: Duration::from_millis(1),
            due: start,
        };
        pace.due = pace.after(start);
        assert_eq!(pace.due, start + Duration::from_millis(1));
        // Overslept by two periods: the next two are due at once.
        pace.due = pace.after(start + Duration::from_millis(3));
        assert_eq!(pace.due, start + Duration::from_millis(2));
        let later = start + Duration::from_secs(60);
        pace.due = pace.after(later);
        assert_eq!(pace.due, later - Pace::GRAIN);
    }
}
