//! From lines of the input to messages in the store.

use std::time::Duration;

use amps_client::{Client, Message, PublishError, PublishFailure, Receipt};
use amps_store::{AppendError, StoreError};
use tokio::time::Instant;

use crate::failure::{Exit, Failure};
use crate::lines::{Line, Lines};
use crate::output::{SideOutput, object};
use crate::signals::Stop;
use crate::units::span;

/// Lines to publish after what the store holds.
pub(crate) struct Input {
    pub(crate) lines: Lines,
    pub(crate) message: Box<dyn Fn(&Line) -> Message + Send>,
    /// Lines skipped because an earlier run stored them.
    pub(crate) resumed_at: u64,
    /// If a last line is not finished, the run is no success.
    pub(crate) unfinished_waits: bool,
    /// Messages a second.
    pub(crate) rate: Option<u64>,
    pub(crate) announce: bool,
}

/// How far the input got.
#[derive(Default)]
pub(super) struct Fed {
    /// Lines in the store.
    pub(super) accepted: u64,
    /// Bytes of a last line that has no end.
    pub(super) unfinished: u64,
    /// Lines that were read but not stored, from an input that cannot be read again.
    pub(super) unstored: u64,
    /// Reading ended before the input did.
    pub(super) cut: bool,
    pub(super) failed: Option<Stopped>,
}

/// Why reading ended before the end of input.
pub(super) struct Stopped {
    pub(super) failure: Failure,
    /// Waiting at the end would be waiting for the same thing again.
    pub(super) skip_flush: bool,
}

impl Stopped {
    fn go_on(failure: Failure) -> Self {
        Stopped {
            failure,
            skip_flush: false,
        }
    }
}

/// How long a store may be making room before that counts as an error.
const GROWTH: Duration = Duration::from_secs(30);

/// Pause between two looks at whether it still makes room.
const GROWTH_SLICE: Duration = Duration::from_millis(20);

/// Takes lines until the input ends, a signal comes, the store stays full, or something breaks.
///
/// A signal ends the reading. What was read from a pipe or a terminal is then stored at once,
/// since nobody can read it again; with a file, this stops after the last line that was stored.
pub(super) async fn feed(
    client: &Client,
    input: Input,
    patience: Duration,
    out: &SideOutput,
    stop: &Stop,
) -> Fed {
    let mut feeder = Feeder {
        client,
        patience,
        out,
        stop,
        stopping: false,
        keeps: input.lines.has_known_end(),
        pace: input.rate.map(Pace::new),
        fed: Fed::default(),
        input,
    };
    if let Err(stopped) = feeder.run().await {
        feeder.fed.failed = Some(stopped);
        feeder.fed.cut = true;
    }
    let unread = feeder.input.lines.give_up();
    let mut fed = feeder.fed;
    if !feeder.keeps {
        fed.unstored += unread;
    }
    fed.unfinished = feeder.input.lines.ended().unfinished;
    fed
}

struct Feeder<'a> {
    client: &'a Client,
    input: Input,
    patience: Duration,
    out: &'a SideOutput,
    stop: &'a Stop,
    stopping: bool,
    /// The input can be read again.
    keeps: bool,
    pace: Option<Pace>,
    fed: Fed,
}

impl Feeder<'_> {
    async fn run(&mut self) -> Result<(), Stopped> {
        while let Some(line) = self.next().await.map_err(Stopped::go_on)? {
            if let Some(pace) = self.pace.as_mut().filter(|_| !self.stopping) {
                tokio::select! {
                    biased;
                    () = self.stop.first() => self.stopping = true,
                    () = pace.wait() => {}
                }
            }
            let sent = match self.stopping && self.keeps {
                true => None,
                false => self.send(&line).await,
            };
            let receipt = match sent {
                Some(Ok(receipt)) => receipt,
                Some(Err(error)) => {
                    self.fed.unstored += u64::from(!self.keeps);
                    return Err(stopped(&error, &line, self.fed.accepted, self.patience));
                }
                None => {
                    self.fed.unstored += u64::from(!self.keeps);
                    break;
                }
            };
            self.fed.accepted += 1;
            if self.input.announce {
                self.out.object(object! {
                    "event": "stored", "line": line.end.line, "sequence": receipt.sequence(),
                });
                self.heard().await;
            }
        }
        self.fed.cut = self.stopping;
        Ok(())
    }

    /// The next line to store.
    async fn next(&mut self) -> Result<Option<Line>, Failure> {
        if !self.stopping {
            tokio::select! {
                biased;
                () = self.stop.first() => self.stopping = true,
                line = self.input.lines.next() => return line,
            }
        }
        match self.keeps {
            true => Ok(None),
            // The same signal has woken the reader, which ends.
            false => self.input.lines.next().await,
        }
    }

    /// Stores a line; `None` if it should not be stored any more. Room that the store is making
    /// does not depend on a server, so it is waited for at least that long.
    async fn send(&mut self, line: &Line) -> Option<Result<Receipt, PublishError>> {
        let grown = Instant::now() + GROWTH;
        let mut patience = self.patience;
        loop {
            match self.send_within(line, patience).await {
                Some(Err(error)) if is_making_room(&error) && Instant::now() < grown => {
                    patience = self.patience.max(GROWTH_SLICE);
                }
                sent => return sent,
            }
        }
    }

    async fn send_within(
        &mut self,
        line: &Line,
        patience: Duration,
    ) -> Option<Result<Receipt, PublishError>> {
        let message = (self.input.message)(line);
        let mut sending = std::pin::pin!(self.client.send_deadline(message, patience));
        loop {
            tokio::select! {
                biased;
                sent = &mut sending => return Some(sent),
                () = self.stop.first(), if !self.stopping => {
                    self.stopping = true;
                    if self.keeps {
                        return None;
                    }
                }
                () = self.stop.second(), if self.stopping => return None,
            }
        }
    }

    /// A reader that does not take reports of stored lines holds up the reading of more, and
    /// nothing else.
    async fn heard(&mut self) {
        if !self.stopping {
            tokio::select! {
                biased;
                () = self.stop.first() => self.stopping = true,
                () = self.out.room() => {}
            }
        }
    }
}

/// An upper limit on messages a second. What a timer overslept is caught up, but a longer pause
/// is not, since it must not be followed by a burst.
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

fn is_making_room(error: &PublishError) -> bool {
    let reason = match &error.reason {
        PublishFailure::Deadline(last) => last,
        reason => reason,
    };
    matches!(
        reason,
        PublishFailure::Store(AppendError::MakingRoom { .. })
    )
}

/// Says why a line could not be stored, and how far the run got.
fn stopped(error: &PublishError, line: &Line, accepted: u64, patience: Duration) -> Stopped {
    let so_far = format!(
        "{accepted} line(s) were accepted; line {} was not",
        line.end.line
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
        PublishFailure::Store(AppendError::MakingRoom { .. }) => (
            Exit::Left,
            format!(
                "the store was still making room after {}: {so_far}. Its disk is too \
                 slow to let it grow; nothing accepted is lost",
                span(patience.max(GROWTH))
            ),
            waited,
        ),
        PublishFailure::Store(AppendError::Full { .. }) => (
            Exit::Left,
            format!(
                "the store stayed full for {}: {so_far}. Check that the server is \
                 reachable, or give the store a larger --capacity; nothing accepted is lost",
                span(patience)
            ),
            true,
        ),
        PublishFailure::Store(AppendError::Store(StoreError::NoSpace { .. })) => (
            Exit::NoSpace,
            format!("{reason}: {so_far}; nothing accepted is lost"),
            waited,
        ),
        // As with a store that stays full: what was accepted is sent, and nothing more.
        PublishFailure::Store(AppendError::Store(StoreError::Gone)) => (
            Exit::Left,
            format!("the file of the store was removed while it was open: {so_far}"),
            false,
        ),
        PublishFailure::Store(AppendError::TooLarge { .. }) | PublishFailure::TooLarge { .. } => (
            Exit::Other,
            format!(
                "line {} ({} bytes) is too large: {error}. {so_far}; nothing accepted is lost",
                line.end.line,
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
        // The timer overslept by two periods, so the next two are due at once.
        pace.due = pace.after(start + Duration::from_millis(3));
        assert_eq!(pace.due, start + Duration::from_millis(2));
        let later = start + Duration::from_secs(60);
        pace.due = pace.after(later);
        assert_eq!(pace.due, later - Pace::GRAIN);
    }
}
