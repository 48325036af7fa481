//! What an ack settles or refuses, and what the application gives up (`docs/promises.md` C2
//! to C5).

use amps_store::{PublishStore, Rejected, StoreError};

use super::figures::Figure;
use super::{Delivery, DropReason, Note, Now, Output, Phase, PublishAck, Verdict, Via};
use crate::cut;

impl Delivery {
    pub(super) fn ack(&mut self, store: &dyn PublishStore, now: Now, ack: PublishAck<'_>) {
        if self.phase != Phase::Live {
            // Nothing was sent on this link yet, or it must not be trusted any more: what an
            // ack covers here is not known to be ours, and a refusal is told all the same.
            if let Verdict::Refused(reason) | Verdict::Stray(reason) = ack.verdict {
                self.unattributed(ack.figure, reason);
            }
            return;
        }
        if let Verdict::Stray(reason) = ack.verdict {
            return self.unattributed(ack.figure, reason);
        }
        let figure = self.figure(ack.figure);
        let judged = match figure {
            Some(figure) => match self.figures.on_ack(figure) {
                Figure::Within(sequence) => Some(sequence),
                Figure::Below => None,
                Figure::Impossible => {
                    self.links.suspect();
                    return self.drop_link(DropReason::BadFigure);
                }
                Figure::Foreign if planted!(AckBeyondSentBelieved) => Some(self.figures.reach()),
                Figure::Foreign => {
                    self.note(Note::NameShared {
                        figure,
                        stopped: false,
                    });
                    return self.drop_link(DropReason::ForeignFigure);
                }
            },
            None => None,
        };
        match (ack.verdict, judged) {
            (Verdict::Persisted, Some(through)) => {
                // Where number and id differ, both cover what is up to the lower one.
                let through = ack.sequence.map_or(through, |id| id.min(through));
                let so_far = self.pending.through.get_or_insert(through);
                *so_far = through.max(*so_far);
            }
            (Verdict::Persisted, None) => {
                if let (None, Some(sequence)) = (figure, ack.sequence) {
                    match self.figures.may_have_sent(sequence) {
                        true => self.settled_single(store, sequence, Via::Ack),
                        false => self.untaken(sequence),
                    }
                }
            }
            (Verdict::Refused(reason) | Verdict::Stray(reason), judged) => {
                if let (Some(number), Some(id)) = (judged, ack.sequence)
                    && number != id
                {
                    return self.unattributed(ack.figure, reason);
                }
                // A number below the rebase is another numbering's; the command id, if
                // there is one, is still ours.
                match judged.or(ack.sequence.filter(|s| self.figures.may_have_sent(*s))) {
                    Some(sequence) => {
                        let before = self.totals.rejected;
                        self.refuse(store, now, sequence, reason, ack.figure);
                        self.by_servers += self.totals.rejected - before;
                        self.figures.settled(sequence);
                    }
                    None if planted!(FailureGuessed) => {
                        let first = store.bounds().first_unsettled.unwrap_or(0);
                        self.refuse(store, now, first, reason, None);
                    }
                    None => self.unattributed(ack.figure, reason),
                }
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        reason: &str,
    ) {
        // What a store that cannot sync held in memory only would never be durable, and
        // everything behind it would wait for that.
        if let Err(error) = self.request_sync(store) {
            return self.note(Note::StoreFailed {
                doing: "give up on a message",
                error,
            });
        }
        let ordinal = self.refuse(store, now, sequence, reason, None);
        if !store.is_unsettled(sequence) {
            self.hold_until_durable(store, ordinal);
        }
    }

    /// What was refused here, and by no server, is durable before anything goes out behind it.
    pub(super) fn hold_until_durable(&mut self, store: &dyn PublishStore, ordinal: Option<u64>) {
        if planted!(GiveUpNotAwaited) {
            return;
        }
        if !matches!(self.request_sync(store), Ok(false)) {
            self.wait_for = Some(ordinal.unwrap_or(u64::MAX));
        }
    }

    /// Asks that what is stored become durable. `false` where it need not: what does not outlive
    /// this process, in memory or in a file that was removed, cannot come back unsettled.
    fn request_sync(&self, store: &dyn PublishStore) -> Result<bool, StoreError> {
        if self.store_gone {
            return Ok(false);
        }
        // The store may know of a failed sync before anybody told us, and the other way round.
        if self.sync_failed {
            let why = "nothing can be made durable, and a give-up must be";
            return Err(StoreError::SyncFailed(why.to_owned()));
        }
        match store.request_sync() {
            Ok(()) => Ok(true),
            Err(StoreError::InMemory | StoreError::Gone) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// A device that fails now stops sending for good, the level notwithstanding: rather
    /// that than to call persisted what was given up.
    pub(super) fn waits_for_give_up(&mut self, store: &dyn PublishStore) -> bool {
        let durable = store.durable().ordinal;
        self.wait_for = self.wait_for.filter(|at| *at > durable && !self.store_gone);
        if self.wait_for.is_some() && self.sync_failed && !self.stop_told {
            self.stop_told = true;
            let through = self.cursor - 1;
            self.note(Note::SendingStopped { through });
        }
        self.wait_for.is_some()
    }

    /// Where the refusal is in the log, if it is there now.
    pub(super) fn refuse(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        reason: &str,
        figure: Option<u64>,
    ) -> Option<u64> {
        // The server acks what came before a refusal first; keeping its order decides
        // which refusals are late.
        if planted!(CumulativeFailure) {
            self.pending.through = Some(sequence - 1);
        }
        self.apply_pending(store);
        let attempts = match planted!(AttemptsForgotten) {
            true => 1,
            false => self.links.attempts(sequence),
        };
        let rejected = store.reject(sequence, reason, now.unix_micros);
        let ordinal = match &rejected {
            Ok(Rejected::Logged { ordinal, .. }) => Some(*ordinal),
            _ => None,
        };
        match rejected {
            Ok(Rejected::Logged { late, .. } | Rejected::Held { late }) => {
                if late {
                    self.totals.late += 1;
                } else {
                    self.totals.rejected += 1;
                    self.left_flight(sequence);
                    self.flushes.refused(sequence);
                }
                self.outputs.push_back(Output::Refused {
                    sequence,
                    reason: cut(reason).to_owned(),
                    late,
                    attempts,
                    ordinal,
                });
                self.report_flushes(store, now);
            }
            Ok(Rejected::Known) if planted!(RefusalCountedTwice) => self.totals.rejected += 1,
            Ok(Rejected::Known) => {}
            Ok(Rejected::NoRoom) => {
                self.totals.late += 1;
                self.outputs.push_back(Output::RefusalNotLogged {
                    sequence,
                    reason: cut(reason).to_owned(),
                    attempts,
                });
            }
            Ok(Rejected::Unknown) => self.unattributed(figure, reason),
            Err(error) => self.note(Note::StoreFailed {
                doing: "log a refusal",
                error,
            }),
        }
        ordinal
    }

    pub(super) fn unattributed(&mut self, figure: Option<u64>, reason: &str) {
        self.totals.unattributed += 1;
        self.outputs.push_back(Output::Unattributed {
            figure,
            reason: cut(reason).to_owned(),
        });
    }

    pub(super) fn apply_pending(&mut self, store: &dyn PublishStore) {
        if let Some(through) = self.pending.through.take() {
            self.settle_through(store, through, Via::Ack);
        }
        self.apply_singles(store);
    }

    /// Settles messages one by one.
    pub(super) fn settle_each(&mut self, store: &dyn PublishStore, singles: &[(u64, Via)]) {
        if singles.is_empty() {
            return;
        }
        let sequences: Vec<u64> = singles.iter().map(|(sequence, _)| *sequence).collect();
        match store.settle(&sequences) {
            Ok(count) => {
                self.by_servers += count;
                for &(sequence, via) in singles {
                    self.totals.settled(1, via);
                    self.left_flight(sequence);
                    self.figures.settled_via(sequence, via);
                    self.flushes.settled_one(sequence, via);
                    self.outputs.push_back(Output::Settled { sequence, via });
                }
            }
            Err(error) => self.note(Note::StoreFailed {
                doing: "settle messages",
                error,
            }),
        }
    }

    pub(super) fn settle_through(&mut self, store: &dyn PublishStore, through: u64, via: Via) {
        match store.settle_through(through) {
            Ok(0) if planted!(RoomFreedTwice) => self.flight.settled(1),
            Ok(0) => {}
            Ok(count) => {
                self.totals.settled(count, via);
                self.by_servers += count;
                self.figures.settled_via(through, via);
                self.left_flight_through(through, count);
                self.flushes.settled_through(through, count, via);
                self.outputs
                    .push_back(Output::SettledThrough { through, via });
            }
            Err(error) => self.note(Note::StoreFailed {
                doing: "settle messages",
                error,
            }),
        }
    }
}
