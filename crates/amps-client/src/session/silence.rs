//! Decides when a server has said nothing for too long.

use std::time::Duration;

/// The interval of heartbeats unless another one is asked for.
pub const DEFAULT_HEARTBEAT: Duration = Duration::from_secs(10);

/// How long a server that has not said whether it knows heartbeats may owe an answer and say
/// nothing.
const OWED: Duration = Duration::from_secs(30);

/// This many more bytes of an incomplete frame are a sign of life. If fewer were, a server could
/// hold a link with a frame that drips for ever; if none were, a large message on a slow link
/// would be cut off again and again.
const PART: usize = 64 * 1024;

/// What the server's silence means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Meaning {
    /// Nothing: it was not asked for heartbeats, or refused them.
    Nothing,
    /// It has not said whether it knows heartbeats. Its silence means something only while it
    /// owes an answer; otherwise an idle link to a server without heartbeats would be given up
    /// again and again.
    Unanswered,
    /// It promised to send something in every interval.
    Confirmed { interval: Duration },
}

/// Watches one link at a time.
#[derive(Debug)]
pub(super) struct Silence {
    meaning: Meaning,
    heard: Duration,
    /// Bytes of the incomplete frame at its last sign of life.
    part: usize,
    /// Since when publishes have been waiting for an answer without a break.
    publishes_since: Option<Duration>,
}

impl Silence {
    pub(super) fn new() -> Self {
        Silence {
            meaning: Meaning::Nothing,
            heard: Duration::ZERO,
            part: 0,
            publishes_since: None,
        }
    }

    /// Heartbeats were asked for.
    pub(super) fn asked(&mut self) {
        self.meaning = Meaning::Unanswered;
    }

    pub(super) fn confirmed(&mut self, interval: Duration) {
        self.meaning = Meaning::Confirmed { interval };
    }

    pub(super) fn refused(&mut self) {
        self.meaning = Meaning::Nothing;
    }

    /// A whole frame came.
    pub(super) fn heard(&mut self, now: Duration) {
        self.heard = now;
        self.part = 0;
    }

    /// This much of an incomplete frame has come.
    pub(super) fn heard_part(&mut self, now: Duration, bytes: usize) {
        if bytes >= self.part + PART {
            self.part = bytes;
            self.heard = now;
        }
    }

    pub(super) fn publishes_wait(&mut self, now: Duration, wait: bool) {
        self.publishes_since = wait.then(|| self.publishes_since.unwrap_or(now));
    }

    /// When the silence will have lasted too long. `commands_since`: when the oldest command was
    /// given that still waits for an answer.
    pub(super) fn too_long_at(&self, commands_since: Option<Duration>) -> Option<Duration> {
        match self.meaning {
            Meaning::Nothing => None,
            Meaning::Unanswered => {
                let owed_since = [commands_since, self.publishes_since]
                    .into_iter()
                    .flatten()
                    .min()?;
                Some(owed_since.max(self.heard) + OWED)
            }
            // Half an interval more than the two after which a server gives its client up, since
            // a delayed beat does not mean a dead link.
            Meaning::Confirmed { interval } => Some(self.heard + interval * 5 / 2),
        }
    }
}
