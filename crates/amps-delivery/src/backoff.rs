//! How long to wait before the next attempt to connect. Pure.

use std::time::Duration;

/// Decides how long to wait between attempts to connect. Called from the client's task: it
/// must not block.
pub trait DelayStrategy: Send {
    /// The wait before the next attempt; `None` to give up.
    fn next_delay(&mut self) -> Option<Duration>;

    /// The wait when the link broke for a reason that time alone will not mend: a name that
    /// is shared, a message that breaks every link. `None` to give up.
    fn longest_delay(&mut self) -> Option<Duration> {
        self.next_delay()
    }

    /// A connection was good: it lived long after its logon, or settled something.
    fn reset(&mut self) {}
}

/// The same wait every time. Clients that lost the same server come back together; see
/// [`Backoff`] for what avoids that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FixedDelay(pub Duration);

impl DelayStrategy for FixedDelay {
    fn next_delay(&mut self) -> Option<Duration> {
        Some(self.0.min(YEAR))
    }
}

/// Exponential delays with full jitter: each wait is drawn evenly from nothing up to a
/// bound that doubles from `first` to `longest`. The whole range, because clients that
/// lost the same server must not come back together. A year is as long as a delay gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    give_up_after: Option<Duration>,
    attempt: u32,
    waited: Duration,
    random: u64,
}

/// Far beyond any sensible delay, far below what overflows a clock.
const YEAR: Duration = Duration::from_secs(365 * 86_400);

impl Default for Backoff {
    fn default() -> Self {
        Backoff::new(Duration::from_millis(200), Duration::from_secs(20))
    }
}

impl Backoff {
    /// Bounds from `first` (the default is 200 ms) to `longest` (20 s).
    pub fn new(first: Duration, longest: Duration) -> Self {
        let first = first.min(YEAR);
        Backoff {
            first,
            longest: longest.min(YEAR).max(first),
            give_up_after: None,
            attempt: 0,
            waited: Duration::ZERO,
            random: 0x9E37_79B9_7F4A_7C15,
        }
    }

    /// Gives up once it has waited this long in a row, the time of the attempts apart: see
    /// `Builder::give_up_after` of the client for that. The default is never.
    #[must_use]
    pub fn give_up_after(mut self, total: Duration) -> Self {
        self.give_up_after = Some(total);
        self
    }

    /// Seeds the jitter; the same seed gives the same delays.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.random = seed | 1;
        self
    }

    fn wait(&mut self, delay: Duration) -> Option<Duration> {
        if self.give_up_after.is_some_and(|total| self.waited >= total) {
            return None;
        }
        self.waited = self.waited.saturating_add(delay);
        Some(delay)
    }

    fn random(&mut self) -> u64 {
        // xorshift64*: jitter needs spread, not secrecy.
        self.random ^= self.random >> 12;
        self.random ^= self.random << 25;
        self.random ^= self.random >> 27;
        self.random.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }
}

impl DelayStrategy for Backoff {
    fn next_delay(&mut self) -> Option<Duration> {
        let bound = self
            .first
            .checked_mul(1 << self.attempt.min(30))
            .map_or(self.longest, |bound| bound.min(self.longest));
        self.attempt = self.attempt.saturating_add(1);
        let share = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
        self.wait(bound.mul_f64(share))
    }

    /// Half of it is fixed, the rest drawn.
    fn longest_delay(&mut self) -> Option<Duration> {
        let share = (self.random() >> 11) as f64 / (1u64 << 53) as f64;
        self.wait(self.longest / 2 + (self.longest / 2).mul_f64(share))
    }

    /// Starts from `first` again.
    fn reset(&mut self) {
        self.attempt = 0;
        self.waited = Duration::ZERO;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_stay_within_bounds_that_double() {
        let mut backoff = Backoff::default().seed(7);
        for attempt in 0..40 {
            let bound = Duration::from_millis(200 << attempt.min(7)).min(Duration::from_secs(20));
            assert!(backoff.next_delay().unwrap() <= bound);
        }
        backoff.reset();
        assert!(backoff.next_delay().unwrap() <= Duration::from_millis(200));
        assert!(backoff.longest_delay().unwrap() >= Duration::from_secs(10));
    }

    #[test]
    fn jitter_uses_the_whole_range_and_follows_the_seed() {
        let draw = |seed| {
            let mut backoff =
                Backoff::new(Duration::from_secs(1), Duration::from_secs(1)).seed(seed);
            (0..200)
                .map(|_| backoff.next_delay().unwrap())
                .collect::<Vec<_>>()
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(99));
        assert!(draw(3).iter().any(|d| *d < Duration::from_millis(100)));
        assert!(draw(3).iter().any(|d| *d > Duration::from_millis(900)));
    }

    #[test]
    fn no_bound_is_too_long() {
        let mut backoff = Backoff::new(Duration::MAX, Duration::MAX).give_up_after(Duration::MAX);
        for _ in 0..1000 {
            assert!(backoff.next_delay().unwrap() <= YEAR);
            assert!(backoff.longest_delay().unwrap() <= YEAR);
        }
    }

    #[test]
    fn a_fixed_delay_is_the_same_for_ever() {
        let mut fixed = FixedDelay(Duration::from_secs(3));
        for _ in 0..100 {
            assert_eq!(fixed.next_delay(), Some(Duration::from_secs(3)));
            assert_eq!(fixed.longest_delay(), Some(Duration::from_secs(3)));
        }
        assert_eq!(FixedDelay(Duration::MAX).next_delay(), Some(YEAR));
    }

    #[test]
    fn it_gives_up_only_when_told_to() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(1))
            .give_up_after(Duration::from_secs(3));
        let delays = std::iter::from_fn(|| backoff.next_delay()).count();
        assert!(delays >= 3, "{delays}");
        assert_eq!(backoff.next_delay(), None);
        backoff.reset();
        assert!(backoff.next_delay().is_some());
    }
}
