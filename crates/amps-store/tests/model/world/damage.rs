//! Flipped bits, and what may come of them.

use amps_store::testkit::{Rng, SimDisk, has_failed, last_ordinal, record_places};
use amps_store::{DamagedRange, OpenError, Recovery, RecoveryReport, Stop, Store};

use super::super::state::{GONE, State, describe, observe};
use super::{LATE, World, last_but_marks};

const EPOCH: u8 = 7;

/// Whether the end of the log is one that may have been behind this.
fn is_told(report: &RecoveryReport) -> bool {
    matches!(report.stop, Stop::Torn { .. } | Stop::Stale { .. })
        || matches!(report.stop, Stop::Hole { .. }) && report.set_aside > 0
}

impl World {
    /// Flips a bit anywhere. The result is unchanged, or reported; never other bytes. Life
    /// goes on with it.
    pub(super) fn flip(&mut self) {
        if has_failed(self.store()) {
            return;
        }
        let now = self.now();
        let (durable, last) = (self.store().durable().ordinal, last_ordinal(self.store()));
        self.store = None;
        let len = self.disk.bytes().len() as u64;
        // A sync that covers nothing but marks is told by no mark: those may go, and nothing else.
        let durable = last_but_marks(&self.disk.bytes(), durable);
        let (at, bit) = (self.rng.below(len), self.rng.below(8));
        if self.flip_several(&now, Rng::new(at << 3 | bit)) {
            self.meet("several flipped bits, judged");
        }
        self.disk.clear_faults();
        self.disk.scribble(at, |bytes| bytes[0] ^= 1 << bit);
        self.trace.push(format!("bit {bit} of byte {at} flips"));
        let store = match self.disk.open(self.options.clone()) {
            Ok(store) => {
                self.judge_flipped(&store, &now, durable, last);
                let ignored = !store.report().ignored.is_empty();
                self.meet(if ignored {
                    "damage nobody minds"
                } else {
                    "a flipped bit at the end, or nowhere"
                });
                store
            }
            Err(OpenError::Damaged { ranges, .. }) => {
                assert!(!ranges.is_empty());
                let options = self.options.clone().recovery(Recovery::Salvage);
                self.trace.push(format!("refused: {ranges:?}"));
                self.meet("a salvage");
                let before = self.disk.bytes();
                let salvaged = match self.disk.open(options.clone()) {
                    // It may need a segment, and the disk has none.
                    Err(OpenError::NoSpace { .. }) => {
                        assert!(self.disk.bytes() == before);
                        self.disk.limit(None);
                        self.disk.open(options)
                    }
                    salvaged => salvaged,
                };
                let store = salvaged.expect("salvage opens");
                self.trace.push(format!("salvaged: {}", store.report()));
                let found = observe(&store);
                self.judge_salvaged(&found, &now, &ranges);
                drop(store);
                // Damage so named never refuses again.
                let store = self
                    .disk
                    .open(self.options.clone())
                    .unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(observe(&store), found);
                store
            }
            Err(e) => panic!("bit {bit} of byte {at}: {e}"),
        };
        self.live_on(store);
    }

    /// Several bits of a copy at once: that is damage, never what no store writes. A salvage opens
    /// it, invents nothing, comes to the same again, and no loss is silent. Whether there was damage
    /// to judge by that.
    fn flip_several(&self, now: &State, mut rng: Rng) -> bool {
        let mut bytes = self.disk.bytes();
        let places = record_places(&bytes).into_iter();
        let records: Vec<_> = places.map(|p| p.0 as usize).collect();
        let segments = (12288..bytes.len()).step_by(8192);
        let mut pillars: Vec<_> = segments.flat_map(|at| [at, at + 64]).collect();
        pillars.extend(records.iter().filter(|at| bytes[**at + 8] == EPOCH));
        for _ in 0..2 + rng.below(3) {
            let places = match rng.one_in(3) {
                true if !records.is_empty() => &records,
                _ => &pillars,
            };
            let at = places[rng.below(places.len() as u64) as usize];
            bytes[at + rng.below(40) as usize] ^= 1 << rng.below(8);
        }
        let disk = SimDisk::new();
        disk.restore(bytes);
        let (store, damaged) = match disk.open(self.options.clone()) {
            Err(OpenError::Damaged { ranges, .. }) => {
                let salvage = self.options.clone().recovery(Recovery::Salvage);
                (disk.open(salvage).expect("a salvage of damage"), ranges)
            }
            other => (other.expect("open or damaged"), Vec::new()),
        };
        let found = observe(&store);
        self.judge_payloads(&found);
        let judged = !is_told(store.report());
        if judged {
            self.judge_several(&found, now, &damaged);
        }
        drop(store);
        let store = disk.open(self.options.clone());
        assert_eq!(observe(&store.expect("damage so named is over")), found);
        judged && !damaged.is_empty()
    }

    /// Opened as if nothing had been: then all that was durable is there, and what is missing
    /// behind it was told.
    fn judge_flipped(&self, store: &Store, now: &State, durable: u64, last: u64) {
        let (found, report) = (observe(store), store.report());
        let is = |state: &State| {
            let mut found = found.clone();
            if !report.ignored.is_empty() {
                // What no mark needs may be damaged, and a late refusal be all that asks for it.
                let late = |(payload, reason): &(Vec<u8>, String)| {
                    *payload == GONE && (reason.is_empty() || reason.starts_with(LATE))
                };
                for (sequence, refused) in found.rejected.iter_mut().filter(|(_, r)| late(r)) {
                    if let Some(original) = state.rejected.get(sequence) {
                        refused.0.clone_from(&original.0);
                    }
                }
            }
            self.is(&found, state)
        };
        if is(now) {
            return;
        }
        let end = report.last_ordinal;
        assert!(
            end >= durable && end < last,
            "{end} of {durable}..{last}, {report}\nfound {}\nexpected {}",
            describe(&found),
            describe(now)
        );
        let states = self.states_at(end);
        let is_less = |state: &State| is(state) || self.is_less_settled(&found, state, end);
        assert!(states.iter().any(is_less), "{}", describe(&found));
        assert!(is_told(report), "{report}");
    }

    /// What is there is what was published.
    fn judge_payloads(&self, found: &State) {
        for (sequence, payload) in &found.unsettled {
            assert_eq!(Some(payload), self.payloads.get(sequence), "{sequence}");
        }
        for (sequence, (payload, _)) in &found.rejected {
            let published = self.payloads.get(sequence);
            assert!(
                payload == GONE || Some(payload) == published,
                "refused message {sequence}"
            );
        }
    }

    /// Everything that is missing was named, and what is there is what was published.
    fn judge_salvaged(&self, found: &State, now: &State, damaged: &[DamagedRange]) {
        self.judge_payloads(found);
        let covers = |r: &DamagedRange, s: u64| {
            let range = r.sequences;
            range.is_none_or(|(first, last)| (first..=last).contains(&s))
        };
        let named = |s: u64| damaged.iter().any(|r| covers(r, s));
        // The damaged record may be the epoch that set others aside.
        let bridge = damaged.iter().any(|r| r.earlier);
        let unsaid = |s: &u64| !(named(*s) || bridge && self.came_back(found, now, *s));
        let gone: Vec<_> = gone(found, now).filter(unsaid).collect();
        assert!(
            gone.is_empty(),
            "{gone:?} are gone, and {damaged:?} do not name them"
        );
    }

    /// Where the epoch is damaged that set them aside, records of an earlier run come back, and with
    /// them what the server settled or refused, and what was accepted, before the power cut.
    fn came_back(&self, found: &State, now: &State, sequence: u64) -> bool {
        let waits = now.rejected.contains_key(&sequence);
        let refused = found.rejected.contains_key(&sequence) && self.refused.contains(&sequence);
        let settled = sequence <= self.settled_through || self.settled.contains(&sequence);
        self.accepted.contains(&sequence) || !waits && (refused || settled)
    }

    /// As for one flipped bit; but a refusal may be damaged together with a publish.
    fn judge_several(&self, found: &State, now: &State, damaged: &[DamagedRange]) {
        let covers = |r: &DamagedRange, s: u64| {
            let range = r.sequences;
            range.is_none_or(|(first, last)| s <= last && (r.earlier || s >= first))
        };
        let named = |s: u64| damaged.iter().any(|r| covers(r, s));
        let unsaid = |s: &u64| !named(*s) && !self.came_back(found, now, *s);
        let gone: Vec<_> = gone(found, now).filter(unsaid).collect();
        assert!(
            gone.is_empty(),
            "{gone:?} are gone, and {damaged:?} do not name them"
        );
    }
}

/// Messages that are not as they were. A refusal whose record is lost leaves its message unsettled.
fn gone(found: &State, now: &State) -> impl Iterator<Item = u64> {
    let waits = |s: &&u64| !found.unsettled.contains_key(s);
    let refused = |s: &&u64| !found.rejected.contains_key(s) && !found.unsettled.contains_key(s);
    let unsettled = now.unsettled.keys().filter(waits);
    unsettled
        .chain(now.rejected.keys().filter(refused))
        .copied()
}
