//! What becomes of messages one by one, on links whose server acks each by itself.
//!
//! Here a server speaks of messages by the numbers they went out under, on the link on which they
//! did: a number that this link was not given is somebody else's, and nothing that is heard twice
//! counts twice.

use amps_store::PublishStore;

use super::figures::Figure;
use super::{Delivery, DropReason, Evidence, Note, Now, Phase, Via};
use crate::cut;

/// What a message's refusal begins with if it was sent before and may have been stored then.
pub const MAY_BE_STORED: &str = "may be stored: ";

/// Singles kept until they are applied, at most: as many as one read of a link brings.
pub(super) const SINGLES: usize = 1024;

/// Numbers without a message that a run of settled ones may step over.
const STEP: u64 = 64;

/// Successes of single messages that were read and not applied: by sequence, each once.
#[derive(Debug, Default)]
pub(super) struct Singles(Vec<Single>);

/// A message and what shows that it is stored.
type Single = (u64, Via);

impl Singles {
    fn place(&self, sequence: u64) -> Result<usize, usize> {
        match self.0.last() {
            Some((last, _)) if *last < sequence => Err(self.0.len()),
            _ => self.0.binary_search_by_key(&sequence, |(one, _)| *one),
        }
    }

    pub(super) fn contains(&self, sequence: u64) -> bool {
        self.place(sequence).is_ok()
    }

    /// Whether it is new.
    fn add(&mut self, sequence: u64, via: Via) -> bool {
        match self.place(sequence) {
            Ok(_) => false,
            Err(at) => {
                self.0.insert(at, (sequence, via));
                true
            }
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes those out that are still unsettled: the ones that follow each other from the first
    /// unsettled message on, unless each is settled by itself, and the others.
    fn take(&mut self, store: &dyn PublishStore, each: bool) -> (Vec<Single>, Vec<Single>) {
        let mut all = std::mem::take(&mut self.0);
        all.retain(|(sequence, _)| store.is_unsettled(*sequence));
        let mut run = 0;
        let first = all.first().map(|(sequence, _)| *sequence);
        if !each && first == store.bounds().first_unsettled {
            let settled = |from: u64, to: u64| {
                to - from <= STEP && !(from + 1..to).any(|between| store.is_unsettled(between))
            };
            let follows = all.windows(2).take_while(|two| settled(two[0].0, two[1].0));
            run = follows.count() + usize::from(!all.is_empty());
        }
        let rest = all.split_off(run);
        (all, rest)
    }
}

impl Delivery {
    /// The sequence of a message that went out on this link under this number. A number that did
    /// not is somebody else's: `None`, and the link goes.
    pub(super) fn sent_here(&mut self, wire: u64) -> Option<u64> {
        match self.figures.on_ack(wire) {
            Figure::Within(sequence) if sequence <= self.handed_here => Some(sequence),
            // From before a rebase: settled, or going out again under another number.
            Figure::Below => None,
            Figure::Impossible => {
                self.links.suspect();
                self.drop_link(DropReason::BadFigure);
                None
            }
            Figure::Within(_) | Figure::Foreign => {
                self.note(Note::NameShared {
                    figure: wire,
                    stopped: false,
                });
                self.drop_link(DropReason::ForeignFigure);
                None
            }
        }
    }

    pub(super) fn one(&mut self, store: &dyn PublishStore, wire: u64, evidence: Evidence) {
        if self.phase != Phase::Live {
            // Nothing was sent on this link, or it must not be believed any more.
            return;
        }
        if planted!(DuplicateAboveSentBelieved) && evidence == Evidence::Duplicate {
            return self.settled_single(store, wire, Via::Duplicate);
        }
        let Some(sequence) = self.sent_here(wire) else {
            return;
        };
        if planted!(MarkAcrossHole) {
            self.pending.through = self.pending.through.max(Some(sequence));
        }
        let via = match evidence {
            Evidence::Stored => Via::Ack,
            Evidence::Duplicate => Via::Duplicate,
        };
        self.settled_single(store, sequence, via);
    }

    /// Settles one message, with the others that are read with it. One that is settled, or refused,
    /// stays so.
    pub(super) fn settled_single(&mut self, store: &dyn PublishStore, sequence: u64, via: Via) {
        if !store.is_unsettled(sequence) {
            return self.untaken(sequence);
        }
        if self.pending.single.add(sequence, via) {
            self.doubts.forget(sequence);
            if via == Via::Ack && sequence <= self.unproved {
                self.totals.possible_duplicates += 1;
            }
            if self.pending.single.0.len() >= SINGLES {
                self.apply_singles(store);
            }
        }
    }

    pub(super) fn mark(&mut self, store: &dyn PublishStore, wire: u64) {
        if self.phase != Phase::Live || self.sends_once() {
            return;
        }
        match self.figures.on_ack(wire) {
            Figure::Within(through) => {
                self.figures.judged(through);
                self.settle_through(store, through, Via::Logon);
            }
            Figure::Below => {}
            Figure::Impossible => {
                self.links.suspect();
                self.drop_link(DropReason::BadFigure);
            }
            Figure::Foreign => {
                self.note(Note::NameShared {
                    figure: wire,
                    stopped: false,
                });
                self.drop_link(DropReason::ForeignFigure);
            }
        }
    }

    pub(super) fn refused_single(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        wire: u64,
        reason: &str,
        may_be_stored: bool,
    ) {
        if self.phase != Phase::Live {
            return self.unattributed(Some(wire), reason);
        }
        let Some(sequence) = self.sent_here(wire) else {
            return self.unattributed(Some(wire), reason);
        };
        if may_be_stored && store.is_unsettled(sequence) && !self.pending.single.contains(sequence)
        {
            // A server that can be asked says first whether it holds the message.
            return match self.asks_by_id {
                true => self.doubts.add(sequence, cut(reason)),
                false => self.refuse_in_doubt(store, now, sequence, reason),
            };
        }
        self.refused_by_server(store, now, sequence, reason);
    }

    /// Refuses a message that the server may hold all the same.
    pub(super) fn refuse_in_doubt(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        reason: &str,
    ) {
        let reason = format!("{MAY_BE_STORED}{reason}");
        self.refused_by_server(store, now, sequence, &reason);
    }

    pub(super) fn refused_by_server(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        reason: &str,
    ) {
        let before = self.totals.rejected;
        self.refuse(store, now, sequence, reason, None);
        self.by_servers += self.totals.rejected - before;
    }

    /// Applies what was read of single messages: those that follow each other from the first
    /// unsettled one on cost the store one record.
    pub(super) fn apply_singles(&mut self, store: &dyn PublishStore) {
        if self.pending.single.is_empty() {
            return;
        }
        let (run, rest) = self.pending.single.take(store, self.sends_once());
        let mut run = run.as_slice();
        while let Some(&(first, via)) = run.first() {
            let same = run.iter().take_while(|(_, with)| *with == via).count();
            let through = run.get(same - 1).map_or(first, |(sequence, _)| *sequence);
            self.settle_through(store, through, via);
            run = &run[same..];
        }
        self.settle_each(store, &rest);
    }
}

#[cfg(test)]
mod tests {
    use amps_store::{Envelope, Options, Store};

    use super::*;

    #[test]
    fn what_follows_the_first_unsettled_message_without_a_gap_is_a_run() {
        let store = Store::memory(Options::new().client_name("me")).unwrap();
        for _ in 0..9 {
            store.append(&Envelope::publish("t"), b"x").unwrap();
        }
        store.settle(&[3]).unwrap();
        let take = |sequences: &[u64]| {
            let mut singles = Singles::default();
            for sequence in sequences {
                assert!(singles.add(*sequence, Via::Ack));
                assert!(!singles.add(*sequence, Via::Ack), "each once");
            }
            let (run, rest) = singles.take(&store, false);
            let numbers = |of: Vec<Single>| of.into_iter().map(|one| one.0).collect::<Vec<_>>();
            (numbers(run), numbers(rest))
        };
        // 3 is settled.
        assert_eq!(take(&[4, 2, 1, 6]), (vec![1, 2, 4], vec![6]));
        assert_eq!(take(&[2, 4]), (vec![], vec![2, 4]));
        assert_eq!(take(&[1, 3]), (vec![1], vec![]));
        assert_eq!(take(&[3]), (vec![], vec![]));
    }
}
