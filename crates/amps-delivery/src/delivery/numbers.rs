//! A logon and what it says of numbers: the figure, the grant, the rebase (`docs/promises.md`,
//! Numbers).

use amps_store::{PublishStore, Rebase, StoreError};

use super::figures::{self, Figure};
use super::{
    Acks, Delivery, DropReason, GapPolicy, Known, Logon, Note, Now, Output, Phase, RAISE_AGAIN,
    RebasePolicy, Resume, Via,
};

impl Delivery {
    pub(super) fn logged_on(&mut self, store: &dyn PublishStore, now: Now, known: Known) {
        if self.phase != Phase::Offline {
            return;
        }
        if self.rebasing && !planted!(RebaseForgotten) {
            self.phase = Phase::Rebasing(Logon::Behind(known));
            return;
        }
        self.flight.reset();
        self.handed_here = 0;
        self.raise_again_at = None;
        let resume = self.resume(known.resume);
        self.asks_by_id = resume == Resume::ById;
        self.unproved = match resume {
            Resume::ById | Resume::Unknown if known.acks == Acks::Single => self.figures.reach(),
            _ => 0,
        };
        let figure = match resume {
            Resume::HighWater(figure) if !planted!(FigureIgnored) => figure,
            Resume::ById => {
                self.links.logged_on(now.at);
                return self.begin_recall(store);
            }
            Resume::HighWater(_) | Resume::Unknown => {
                // Unknown is not zero: nothing is settled and no gap can be seen
                // (`docs/promises.md` C2).
                self.links.logged_on(now.at);
                return self.go_live(store);
            }
        };
        let judged = match self.figures.at_logon(figure) {
            Figure::Foreign if planted!(ForeignBelieved) => Figure::Within(store.bounds().last),
            judged => judged,
        };
        match judged {
            Figure::Impossible => {
                self.links.suspect();
                self.drop_link(DropReason::BadFigure);
            }
            Figure::Foreign => {
                if known.acks == Acks::Single {
                    // Its ids name this store: somebody else sends under them, or did.
                    self.note(Note::NameShared {
                        figure,
                        stopped: false,
                    });
                }
                self.foreign_at_logon(store, figure);
            }
            // A figure below the rebase was moved up to it.
            Figure::Below => self.go_live(store),
            Figure::Within(through) => {
                if self.figures.runs_ahead(through) && self.links.last_was_short() {
                    self.links.suspect();
                    self.note(Note::NameShared {
                        figure,
                        stopped: false,
                    });
                }
                self.links.logged_on(now.at);
                self.figures.judged(through);
                let settled = match known.acks {
                    Acks::Figures => self.figures.settled_floor(store),
                    // A mark does not cover refusals, as a figure does.
                    Acks::Single => self.figures.held(),
                };
                let via = match planted!(LogonTakenForAck) {
                    true => Via::Ack,
                    false => Via::Logon,
                };
                self.settle_through(store, through, via);
                if through < settled {
                    self.note(Note::PublishGap {
                        server: through,
                        settled,
                        unknown_publisher: figure == 0,
                    });
                    if self.config.gap == GapPolicy::NextServer {
                        return self.drop_link(DropReason::PublishGap);
                    }
                }
                self.go_live(store);
            }
        }
    }

    fn foreign_at_logon(&mut self, store: &dyn PublishStore, figure: u64) {
        self.note(Note::ForeignFigure {
            figure,
            may_have_sent: self.figures.reach(),
        });
        if self.config.rebase == RebasePolicy::Stop {
            self.links.suspect();
            return self.drop_link(DropReason::ForeignFigure);
        }
        if !self.figures.may_rebase() {
            // Two publishers that rebase above each other would never end.
            self.links.suspect();
            self.note(Note::NameShared {
                figure,
                stopped: true,
            });
            return self.drop_link(DropReason::ForeignFigure);
        }
        self.phase = Phase::Rebasing(Logon::Asked);
        self.rebasing = true;
        let above = match planted!(NoHeadroom) {
            true => figure,
            false => figures::rebase_above(figure),
        };
        self.outputs.push_back(Output::Rebase { above });
        if planted!(RebaseNotAwaited) {
            self.go_live(store);
        }
    }

    pub(super) fn rebased(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        result: Result<Rebase, StoreError>,
    ) {
        self.rebasing = false;
        // Its figure leaves no numbers above it: nothing is wrong with the store.
        let full = matches!(result, Err(StoreError::OutOfRange(_)));
        let done = match result {
            Ok(rebase) => {
                let possible_duplicates = self.figures.may_be_duplicates(store, rebase.from);
                self.figures.rebased(store, rebase);
                self.totals.possible_duplicates += possible_duplicates;
                self.note(Note::Rebased {
                    from: rebase.from,
                    first_wire: self.figures.wire(rebase.from),
                    possible_duplicates: match planted!(DuplicatesUntold) {
                        true => 0,
                        false => possible_duplicates,
                    },
                });
                true
            }
            Err(_) if full => false,
            Err(error) => {
                self.note(Note::StoreFailed {
                    doing: "rebase above the server's figure",
                    error,
                });
                false
            }
        };
        let done = done || planted!(FailedRebaseGoesLive);
        match self.phase {
            Phase::Rebasing(Logon::Asked) if done => self.go_live(store),
            Phase::Rebasing(Logon::Asked) if full => {
                self.links.suspect();
                self.drop_link(DropReason::NoNumbersLeft);
            }
            Phase::Rebasing(Logon::Asked) => self.drop_link(DropReason::StoreFailed),
            Phase::Rebasing(Logon::Behind(known)) => {
                self.phase = Phase::Offline;
                self.logged_on(store, now, known);
            }
            // The link went while the device was writing.
            Phase::Offline | Phase::Recalling | Phase::Live | Phase::Dropping => {}
        }
    }

    pub(super) fn go_live(&mut self, store: &dyn PublishStore) {
        let bounds = store.bounds();
        self.phase = Phase::Live;
        self.open_queue();
        self.cursor = bounds.first_unsettled.unwrap_or(bounds.next);
        if planted!(Overtaking) {
            self.cursor = self.cursor.max(bounds.last);
        }
        self.links.started(self.cursor);
        self.replay_through = Some(bounds.last);
        if bounds.first_unsettled.is_none() {
            self.replayed();
        }
    }

    /// Asks for a higher grant ahead of need, and only while logged on with the figure
    /// judged: a grant above a foreign figure would make it look like our own at the next
    /// open (`docs/promises.md`, Numbers).
    pub(super) fn want_grant(&mut self, store: &dyn PublishStore, now: Now) {
        let ask = self.phase == Phase::Live
            && !self.raising
            && self.raise_again_at.is_none_or(|at| now.at >= at)
            && !self.sync_failed
            // Messages may lie above the grant although little of it is used: numbers are
            // skipped, and an operator can settle what was never sent.
            && (self.figures.grant_is_low(self.config.grant_step)
                || store.bounds().last > self.figures.grant());
        if ask {
            self.raising = true;
            // Numbers may be skipped right below the next one (set aside after a power
            // cut): a grant that ends among them would cover no message, ever.
            let base = self.figures.grant().max(store.bounds().next - 1);
            let to = base
                .saturating_add(self.config.grant_step)
                .min(figures::MAX_FIGURE);
            self.outputs.push_back(Output::RaiseGrant { to });
        }
    }

    pub(super) fn grant_raised(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        result: Result<(), StoreError>,
    ) {
        self.raising = false;
        match result {
            Ok(()) => {
                self.raise_again_at = None;
                self.figures.reload_grant(store);
                if std::mem::take(&mut self.grant_stop_told) {
                    self.note(Note::SendingResumed);
                }
            }
            Err(error) => {
                self.raise_again_at = Some(now.at + RAISE_AGAIN);
                if !std::mem::replace(&mut self.grant_stop_told, true) {
                    self.note(Note::StoreFailed {
                        doing: "raise the send grant",
                        error,
                    });
                    self.note(Note::SendingStopped {
                        through: self.figures.grant(),
                    });
                }
            }
        }
    }
}
