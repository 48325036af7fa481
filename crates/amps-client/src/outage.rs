//! What is worth reporting about outages, and when, decided from events and the time alone. A
//! server that is away for a night fails thousands of attempts, which are one thing to know.

use std::time::Duration;

/// How often to look at what waits.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// How many outages are reported one by one between two looks; more are reported together.
/// Otherwise a server that accepts every logon and hangs up would fill the log.
const TOLD_EACH: u32 = 5;

/// Times are counted from any fixed start.
#[derive(Debug, Default)]
pub(crate) struct Outages {
    current: Option<Outage>,
    next_look: Duration,
    /// Outages that began since the last look.
    begun: u32,
    /// Messages settled at the last look, and whether any waited.
    before: Backlog,
}

#[derive(Debug)]
struct Outage {
    since: Duration,
    attempts: u32,
    told: bool,
}

/// How much the store holds for the server, and how much was settled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Backlog {
    /// Messages that are not settled.
    pub(crate) waiting: u64,
    /// Messages settled so far.
    pub(crate) settled: u64,
}

/// Something to report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Word {
    /// There is no link any more, or the first attempt failed.
    Began,
    /// There still is none, and messages wait.
    GoesOn {
        /// Since the outage began.
        lasted: Duration,
        /// Attempts that failed, including the link that was lost.
        attempts: u32,
    },
    /// There is a link, and messages wait, but none was settled since the last look.
    Stuck,
    /// More outages began since the last look than were reported one by one.
    Flaps {
        /// How many.
        links: u32,
    },
}

/// What to report about a logon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LoggedOn {
    /// False if this link is reported together with others.
    pub(crate) tell: bool,
    pub(crate) over: Option<Over>,
}

/// The outage that a logon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Over {
    pub(crate) lasted: Duration,
    pub(crate) attempts: u32,
}

impl Outages {
    /// When to look next, with or without a link.
    pub(crate) fn deadline(&self) -> Duration {
        self.next_look
    }

    /// A link was lost, or an attempt failed.
    pub(crate) fn lost(&mut self, now: Duration) -> Option<Word> {
        if let Some(outage) = &mut self.current {
            outage.attempts = outage.attempts.saturating_add(1);
            return None;
        }
        self.begun += 1;
        let told = self.begun <= TOLD_EACH;
        self.current = Some(Outage {
            since: now,
            attempts: 1,
            told,
        });
        // Whoever was told of the outage also heard what waits.
        if told {
            self.next_look = now + LOOK_EVERY;
        }
        told.then_some(Word::Began)
    }

    /// How many attempts have failed so far.
    pub(crate) fn attempts(&self) -> u32 {
        self.current.as_ref().map_or(0, |outage| outage.attempts)
    }

    /// A server accepted the logon.
    pub(crate) fn logged_on(&mut self, now: Duration) -> LoggedOn {
        // What waited during the outage gets a whole minute from now on.
        self.before = Backlog::default();
        let Some(outage) = self.current.take() else {
            return LoggedOn {
                tell: true,
                over: None,
            };
        };
        let over = Over {
            lasted: now.saturating_sub(outage.since),
            attempts: outage.attempts,
        };
        LoggedOn {
            tell: outage.told,
            over: Some(over),
        }
    }

    /// Whether it is time to look.
    pub(crate) fn is_due(&self, now: Duration) -> bool {
        now >= self.next_look
    }

    /// Looks at what waits.
    pub(crate) fn look(&mut self, now: Duration, found: Backlog) -> Option<Word> {
        let before = std::mem::replace(&mut self.before, found);
        self.next_look = now + LOOK_EVERY;
        let links = std::mem::take(&mut self.begun);
        if links > TOLD_EACH {
            return Some(Word::Flaps { links });
        }
        if found.waiting == 0 {
            return None;
        }
        match &mut self.current {
            Some(outage) => {
                outage.told = true;
                Some(Word::GoesOn {
                    lasted: now.saturating_sub(outage.since),
                    attempts: outage.attempts,
                })
            }
            None => (before.waiting > 0 && before.settled == found.settled).then_some(Word::Stuck),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn waiting(waiting: u64) -> Backlog {
        Backlog {
            waiting,
            settled: 0,
        }
    }

    /// Drives the machine as the driver does: an attempt fails every five seconds.
    fn night(outages: &mut Outages, from: u64, to: u64, backlog: Backlog) -> Vec<(u64, Word)> {
        let mut words = Vec::new();
        for second in from..to {
            if second % 5 == 0 {
                words.extend(outages.lost(at(second)).map(|word| (second, word)));
            }
            if outages.is_due(at(second)) {
                words.extend(outages.look(at(second), backlog).map(|word| (second, word)));
            }
        }
        words
    }

    #[test]
    fn an_outage_is_told_when_it_begins_and_once_a_minute_while_something_waits() {
        let mut outages = Outages::default();
        let words = night(&mut outages, 10, 200, waiting(3));
        let goes_on = |second: u64, attempts| {
            let lasted = at(second - 10);
            (second, Word::GoesOn { lasted, attempts })
        };
        assert_eq!(
            words,
            [
                (10, Word::Began),
                goes_on(70, 13),
                goes_on(130, 25),
                goes_on(190, 37)
            ]
        );
        let over = Over {
            lasted: at(190),
            attempts: 38,
        };
        let told = outages.logged_on(at(200));
        assert_eq!((told.tell, told.over), (true, Some(over)));
        assert_eq!(outages.attempts(), 0);
    }

    #[test]
    fn an_outage_that_nobody_waits_for_is_told_once() {
        let mut outages = Outages::default();
        let words = night(&mut outages, 0, 36_000, waiting(0));
        assert_eq!(words, [(0, Word::Began)]);
        let words = night(&mut outages, 36_000, 36_060, waiting(1));
        assert!(matches!(words[..], [(_, Word::GoesOn { .. })]), "{words:?}");
    }

    #[test]
    fn a_first_logon_is_told_and_has_no_outage() {
        let told = Outages::default().logged_on(at(3));
        assert_eq!((told.tell, told.over), (true, None));
    }

    #[test]
    fn links_that_are_lost_at_once_are_told_together() {
        let mut outages = Outages::default();
        let (mut began, mut flaps, mut logons) = (0, 0, 0);
        for second in 0..600 {
            match outages.lost(at(second)) {
                Some(Word::Began) => began += 1,
                Some(word) => panic!("{word:?}"),
                None => {}
            }
            logons += u32::from(outages.logged_on(at(second)).tell);
            if outages.is_due(at(second)) {
                match outages.look(at(second), waiting(1)) {
                    Some(Word::Flaps { links }) => {
                        assert!((60..=66).contains(&links), "{links}");
                        flaps += 1;
                    }
                    Some(word) => panic!("{word:?}"),
                    None => {}
                }
            }
        }
        assert_eq!(began, logons, "each that is told is told to be over");
        assert!(
            began <= 10 * TOLD_EACH + 5 && flaps >= 8,
            "{began}, {flaps}"
        );
    }

    #[test]
    fn a_backlog_that_does_not_move_on_a_live_link_is_told_once_a_minute() {
        let mut outages = Outages::default();
        outages.logged_on(at(0));
        let mut look = |second, waiting, settled| {
            assert!(outages.is_due(at(second)));
            outages.look(at(second), Backlog { waiting, settled })
        };
        assert_eq!(look(0, 5, 0), None, "it has its minute");
        assert_eq!(look(60, 5, 1), None, "it moves");
        assert_eq!(look(120, 4, 1), Some(Word::Stuck));
        assert_eq!(look(180, 4, 1), Some(Word::Stuck));
        assert_eq!(look(240, 0, 5), None);
        assert_eq!(look(300, 2, 5), None, "they came a moment ago");
    }
}
