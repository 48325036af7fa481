//! When to try again, and when to give up.

use std::time::Duration;

use crate::backoff::DelayStrategy;

pub(super) struct Attempts {
    backoff: Box<dyn DelayStrategy>,
    give_up_after: Option<Duration>,
    /// No link has been up since.
    alone_since: Duration,
}

impl Attempts {
    pub(super) fn new(
        backoff: Box<dyn DelayStrategy>,
        give_up_after: Option<Duration>,
        now: Duration,
    ) -> Self {
        Attempts {
            backoff,
            give_up_after,
            alone_since: now,
        }
    }

    /// An attempt or a link ended. How long to wait for the next one.
    ///
    /// `was_up`: the server had accepted the logon. `healthy`: the link was good, and the back-off
    /// starts anew. `longest`: what ended it, time alone will not mend.
    ///
    /// # Errors
    /// There is no next one, for this reason.
    pub(super) fn next(
        &mut self,
        now: Duration,
        was_up: bool,
        healthy: bool,
        longest: bool,
    ) -> Result<Duration, &'static str> {
        if healthy {
            self.backoff.reset();
        }
        if was_up {
            self.alone_since = now;
        }
        let alone = now.saturating_sub(self.alone_since);
        let left = self.give_up_after.map(|limit| limit.saturating_sub(alone));
        if left.is_some_and(|left| left.is_zero()) {
            return Err("no server has accepted a logon for as long as it may take");
        }
        let delay = self.delay(false, longest);
        let delay = delay.ok_or("the back-off has waited as long as it may")?;
        Ok(left.map_or(delay, |left| delay.min(left)))
    }

    /// How long to wait on a link that is up before messages go out again that were turned away;
    /// none: as long as it may was waited. `progress`: the delays start anew.
    pub(super) fn delay(&mut self, progress: bool, longest: bool) -> Option<Duration> {
        if progress {
            self.backoff.reset();
        }
        match longest {
            true => self.backoff.longest_delay(),
            false => self.backoff.next_delay(),
        }
    }
}
