//! Looking back into a stream, from its last message on, for messages of ours.
//!
//! Many places are asked for at once. Answers come in any order, and are looked at from the last
//! place down.

use std::collections::{BTreeSet, VecDeque};

use crate::api::Stored;
use crate::ids::Ids;

/// Places asked for at once.
const AT_ONCE: usize = 256;

/// The most places looked at. A server answers some 10,000 in a second.
pub(crate) const DEEPEST: u64 = 1 << 20;

/// How much a server's clock may be behind the publisher's, in microseconds.
const CLOCKS: u64 = 300_000_000;

/// When to look no further.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    /// Messages with lower numbers are settled.
    pub(crate) from: u64,
    /// With a message of ours below that: what is stored has no holes. Else only with one stored
    /// before any that is looked for was published, at this time.
    pub(crate) since: Option<u64>,
}

/// A walk from the last place of a stream down.
#[derive(Debug)]
pub(crate) struct Walk {
    bounds: Bounds,
    /// The next place to ask for, and the first there is.
    next: u64,
    first: u64,
    /// Asked for, from the last place down, with what was answered.
    asked: VecDeque<(u64, Option<Seen>)>,
    looked_at: u64,
    over: bool,
    result: Found,
}

/// What there is in a place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Nothing,
    Ours { wire: u64, stored_at: Option<u64> },
    Foreign { stored_at: Option<u64> },
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Messages of ours, by their numbers.
    pub(crate) wires: BTreeSet<u64>,
    /// The last message of ours.
    pub(crate) last: Option<u64>,
    /// A message of somebody else's lies among or behind them.
    pub(crate) foreign: bool,
    /// Not all of ours rise from place to place.
    pub(crate) disordered: bool,
    /// There were more places than are looked at.
    pub(crate) cut: bool,
}

impl Walk {
    pub(crate) fn new(bounds: Bounds, first: u64, last: u64) -> Self {
        Walk {
            bounds,
            next: last,
            // What is empty begins behind its end.
            first: first.max(1),
            asked: VecDeque::new(),
            looked_at: 0,
            over: false,
            result: Found::default(),
        }
    }

    /// A place to ask for; none: no more for now.
    pub(crate) fn ask(&mut self) -> Option<u64> {
        if self.over || self.next < self.first || self.asked.len() >= AT_ONCE {
            return None;
        }
        if self.looked_at + self.asked.len() as u64 >= DEEPEST {
            self.result.cut = true;
            return None;
        }
        let place = self.next;
        self.next -= 1;
        self.asked.push_back((place, None));
        Some(place)
    }

    /// What there is in a place that was asked for.
    pub(crate) fn answer(&mut self, ids: &Ids, place: u64, stored: Option<&Stored>) {
        let seen = match stored {
            None => Seen::Nothing,
            Some(stored) => match stored.id.as_deref().and_then(|id| ids.read(id)) {
                Some(ours) => Seen::Ours {
                    wire: ours.wire,
                    stored_at: stored.stored_at,
                },
                None => Seen::Foreign {
                    stored_at: stored.stored_at,
                },
            },
        };
        // Places fall by one.
        let first = self.asked.front().map_or(0, |(place, _)| *place);
        let at = first.checked_sub(place).map(|at| at as usize);
        if let Some((_, answer)) = at.and_then(|at| self.asked.get_mut(at)) {
            *answer = Some(seen);
        }
        while let Some((_, Some(seen))) = self.asked.front() {
            let seen = *seen;
            self.asked.pop_front();
            self.looked_at += 1;
            if !self.over {
                self.look(seen);
            }
        }
    }

    fn look(&mut self, seen: Seen) {
        let stored_at = match seen {
            Seen::Nothing => return,
            Seen::Ours { stored_at, .. } | Seen::Foreign { stored_at } => stored_at,
        };
        if let (Some(since), Some(stored_at)) = (self.bounds.since, stored_at)
            && stored_at < since.saturating_sub(CLOCKS)
        {
            self.over = true;
            return;
        }
        match seen {
            Seen::Ours { wire, .. } => {
                let before = self.result.wires.first().copied();
                self.result.disordered |= before.is_some_and(|before| wire >= before);
                self.result.last = self.result.last.max(Some(wire));
                if wire >= self.bounds.from {
                    self.result.wires.insert(wire);
                } else if self.bounds.since.is_none() {
                    self.over = true;
                }
            }
            Seen::Foreign { .. } | Seen::Nothing => {
                self.result.foreign = true;
                // A chain is not one.
                self.over |= self.bounds.since.is_none();
            }
        }
    }

    /// Looks no further: it takes too long.
    pub(crate) fn cut_short(&mut self) -> Found {
        self.over = true;
        self.result.cut = true;
        std::mem::take(&mut self.result)
    }

    /// What was found, once everything was looked at.
    pub(crate) fn found(&mut self) -> Option<Found> {
        let done =
            self.over || self.asked.is_empty() && (self.next < self.first || self.result.cut);
        done.then(|| std::mem::take(&mut self.result))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000;

    /// Walks down a stream whose places hold these numbers, 0 for nothing and `u64::MAX` for
    /// somebody else's; each was stored in the second of its place. Answers come last first.
    fn walk(bounds: Bounds, first: u64, places: &[u64]) -> (Found, u64) {
        let ids = Ids::new("me", 1);
        let mut walk = Walk::new(bounds, first, places.len() as u64);
        let mut asked = 0;
        loop {
            let mut now: Vec<u64> = std::iter::from_fn(|| walk.ask()).collect();
            assert!(now.len() <= AT_ONCE);
            asked += now.len() as u64;
            now.reverse();
            for place in now {
                let wire = places[place as usize - 1];
                let mut id = Vec::new();
                ids.write(&mut id, wire, 0);
                let stored = Stored {
                    place,
                    id: (wire != u64::MAX).then(|| String::from_utf8(id).unwrap()),
                    stored_at: Some(1_000 * SECOND + place * SECOND),
                };
                walk.answer(&ids, place, (wire != 0).then_some(&stored));
            }
            if let Some(found) = walk.found() {
                return (found, asked);
            }
        }
    }

    const CHAIN: Bounds = Bounds {
        from: 12,
        since: None,
    };

    #[test]
    fn a_chain_is_read_down_to_what_is_settled() {
        let (found, _) = walk(CHAIN, 1, &[9, 10, 11, 12, 14, 15]);
        assert_eq!(found.wires, BTreeSet::from([12, 14, 15]));
        assert_eq!(found.last, Some(15));
        assert!(!found.foreign && !found.disordered && !found.cut);
        // Also where something was taken out.
        let (found, _) = walk(CHAIN, 3, &[0, 0, 13, 0, 14, 0]);
        assert_eq!(found.wires, BTreeSet::from([13, 14]));
        assert_eq!(found.last, Some(14));
        // Only settled ones.
        let (found, _) = walk(CHAIN, 1, &[9, 10]);
        assert_eq!((found.wires.len(), found.last), (0, Some(10)));
        // Nothing at all.
        assert_eq!(walk(CHAIN, 7, &[0; 6]).0, Found::default());
        assert_eq!(walk(CHAIN, 1, &[0; 6]).0, Found::default());
        assert_eq!(walk(CHAIN, 0, &[]).0, Found::default());
    }

    #[test]
    fn somebody_elses_message_among_ours_or_behind_them_is_seen() {
        assert!(walk(CHAIN, 1, &[11, 12, u64::MAX]).0.foreign);
        assert!(walk(CHAIN, 1, &[11, u64::MAX, 13]).0.foreign);
        assert!(
            !walk(CHAIN, 1, &[u64::MAX, 11, 12]).0.foreign,
            "it is below"
        );
        assert!(walk(CHAIN, 1, &[11, 13, 12]).0.disordered);
        assert!(walk(CHAIN, 1, &[11, 12, 12]).0.disordered);
    }

    #[test]
    fn without_a_chain_it_reads_down_to_a_time() {
        let since = |second| Bounds {
            from: 3,
            since: Some(1_000 * SECOND + CLOCKS + second * SECOND),
        };
        let places = [5, u64::MAX, 4, 1, u64::MAX, 6, 0];
        let (found, _) = walk(since(0), 1, &places);
        assert_eq!(found.wires, BTreeSet::from([4, 5, 6]));
        assert!(found.foreign);
        let (found, _) = walk(since(3), 1, &places);
        assert_eq!(found.wires, BTreeSet::from([4, 6]));
    }

    #[test]
    fn it_ends() {
        let places = vec![u64::MAX; 2 * AT_ONCE];
        let (found, asked) = walk(CHAIN, 1, &places);
        assert!(found.foreign);
        assert_eq!(asked, AT_ONCE as u64, "no more than were under way");
        let mut walk = Walk::new(CHAIN, 1, 2 * DEEPEST);
        let ids = Ids::new("me", 1);
        while let Some(place) = walk.ask() {
            walk.answer(&ids, place, None);
        }
        assert!(walk.found().unwrap().cut);
    }
}
