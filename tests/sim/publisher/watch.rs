//! What a client says of its own sending (that a message goes out again, how often it was
//! tried, that nothing moves), held against what it handed over in this run. The bytes
//! themselves are judged by the link's tap.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use amps_client::delivery::{Config, Note};

use super::super::ledger::Book;
use super::super::tap::Tap;

/// Links whose attempts a client keeps apart; of more it may count less.
const LINKS: u32 = 64;
/// Unused time that a paced replay may catch up on.
const BURST: Duration = Duration::from_millis(50);

/// How often something worth judging happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub resent: u64,
    pub possible_duplicates: u64,
    pub retried_refusals: u64,
    pub stalls: u64,
    pub at_bound: u64,
    pub above_figure: u64,
    pub paced: u64,
    pub acks_applied: u64,
    pub challenges: u64,
    pub refused_logons: u64,
    pub no_frames: u64,
}

/// One run's watch.
#[derive(Debug)]
pub(super) struct Watch {
    stall_after: u32,
    interval: Option<Duration>,
    found_grant: u64,
    /// Sent by this run under any numbering, or before it under the one in force then: a
    /// rebase makes nothing unsent.
    sent: BTreeSet<u64>,
    /// How often this run handed each over.
    handed: BTreeMap<u64, u32>,
    on_link: BTreeSet<u64>,
    links: u32,
    again: u64,
    replay_through: u64,
    not_before: Duration,
    /// First unsettled at the end of the latest links, and how many of them.
    head: Option<(u64, u32)>,
    pub(super) counts: Counts,
}

impl Watch {
    pub(super) fn new(config: &Config, found_grant: u64, book: &Book) -> Self {
        Watch {
            stall_after: config.stall_after,
            interval: config.replay_rate.map(|rate| Duration::from_secs(1) / rate),
            found_grant,
            sent: book.sent.keys().copied().collect(),
            handed: BTreeMap::new(),
            on_link: BTreeSet::new(),
            links: 0,
            again: 0,
            replay_through: 0,
            not_before: Duration::ZERO,
            head: None,
            counts: Counts::default(),
        }
    }

    pub(super) fn connected(&mut self) {
        self.on_link.clear();
        self.replay_through = 0;
    }

    /// Everything up to `last` is replayed on this link.
    pub(super) fn logged_on(&mut self, last: u64) {
        self.links += 1;
        self.replay_through = last;
    }

    pub(super) fn handed_over(&mut self, sequence: u64, again: bool, now: Duration) {
        let sent = self.was_sent(sequence);
        assert!(
            again || !sent,
            "{sequence} was sent before and goes out as if it had not been"
        );
        assert!(
            !again || self.handed.contains_key(&sequence) || sent || sequence <= self.found_grant,
            "{sequence} was never sent and is said to go out again"
        );
        assert!(
            self.on_link.insert(sequence),
            "{sequence} goes out twice on one link"
        );
        self.again += u64::from(again);
        self.counts.resent += u64::from(again);
        self.sent.insert(sequence);
        *self.handed.entry(sequence).or_default() += 1;
        if let Some(interval) = self.interval.filter(|_| sequence <= self.replay_through) {
            assert!(
                now >= self.not_before,
                "{sequence} is replayed at {now:?}, the pace allows it at {:?}",
                self.not_before
            );
            self.not_before = self.not_before.max(now.saturating_sub(BURST)) + interval;
            self.counts.paced += 1;
        }
    }

    /// What the total says went out again.
    pub(super) fn resent(&self, total: u64) {
        assert_eq!(total, self.again, "messages are said to have been resent");
    }

    pub(super) fn refused(&mut self, sequence: u64, attempts: u32, late: bool) {
        let handed = self.handed.get(&sequence).copied().unwrap_or(0);
        self.counts.retried_refusals += u64::from(handed > 1 && !late);
        match late || self.links >= LINKS {
            true => assert!(attempts <= handed),
            false => assert_eq!(
                attempts, handed,
                "{sequence} was refused, and its attempts are wrong"
            ),
        }
    }

    /// The numbering changes from `from` on.
    pub(super) fn rebased(&mut self, from: u64, possible_duplicates: u64, book: &Book) {
        let open: Vec<u64> = book.unsettled().filter(|s| *s >= from).collect();
        let sent = open.iter().filter(|s| self.was_sent(**s)).count() as u64;
        assert!(
            possible_duplicates >= sent,
            "{sent} messages were sent before, {possible_duplicates} are said to be"
        );
        assert!(
            possible_duplicates <= open.len() as u64,
            "{possible_duplicates} possible duplicates among {}",
            open.len()
        );
        let may = open
            .iter()
            .any(|s| self.was_sent(*s) || *s <= self.found_grant);
        assert!(
            may || possible_duplicates == 0,
            "nothing was sent, and {possible_duplicates} are possible duplicates"
        );
        self.counts.possible_duplicates += possible_duplicates;
    }

    /// The link is gone. `live`: messages could go out on it. `told`: what was said then.
    pub(super) fn link_lost(&mut self, live: bool, first: Option<u64>, told: &[Note]) {
        let mut stalled = None;
        match first {
            None => self.head = None,
            Some(first) if live && self.on_link.contains(&first) => {
                let links = match self.head {
                    Some((head, links)) if head == first => links + 1,
                    _ => 1,
                };
                self.head = Some((first, links));
                stalled = self.head.filter(|_| links >= self.stall_after);
            }
            Some(_) => {}
        }
        let said = told.iter().find_map(|note| match note {
            Note::Stalled { sequence, links } => Some((*sequence, *links)),
            _ => None,
        });
        assert_eq!(said, stalled, "a message breaks every link");
        self.counts.stalls += u64::from(stalled.is_some());
    }

    fn was_sent(&self, sequence: u64) -> bool {
        self.sent.contains(&sequence)
    }
}

impl Counts {
    /// Adds what went over a link.
    pub fn heard(&mut self, tap: &Tap) {
        self.at_bound += u64::from(tap.at_bound);
        self.above_figure += tap.above_figure;
    }
}

impl std::ops::AddAssign for Counts {
    fn add_assign(&mut self, other: Counts) {
        self.resent += other.resent;
        self.possible_duplicates += other.possible_duplicates;
        self.retried_refusals += other.retried_refusals;
        self.stalls += other.stalls;
        self.at_bound += other.at_bound;
        self.above_figure += other.above_figure;
        self.paced += other.paced;
        self.acks_applied += other.acks_applied;
        self.challenges += other.challenges;
        self.refused_logons += other.refused_logons;
        self.no_frames += other.no_frames;
    }
}
