//! What was sent, what is settled, and what goes out next: charter §2, §5.3 and C2–C5 as
//! a state machine without sockets, clocks or tasks.
//!
//! A driver feeds [`Input`]s, carries out [`Output`]s and, whenever the link takes bytes,
//! asks [`Delivery::next_to_send`]. The store is borrowed for each call and time is an
//! argument, so a simulation can drive exactly this code.
//!
//! Three kinds of number meet here. A *sequence* is the store's. A *wire number* is a
//! sequence moved by the rebase in force ([`amps_store::Rebase`]). A server's *figure* is
//! a wire number that it sent: it is translated first and judged second, and it settles
//! nothing unless it lies within what this store may have sent.

mod api;
mod figures;
mod flight;
mod flush;
mod links;
#[cfg(test)]
mod tests;

pub use api::{
    Config, DropReason, GapPolicy, Input, Note, Now, Outgoing, Output, PublishAck, RebasePolicy,
    ToSend, Totals, Verdict, Via,
};

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::{Batch, Level, MessageRef, PublishStore, ReadError, Rebase, Rejected, StoreError};

use figures::{Figure, Figures};
use flight::Flight;
use flush::Flushes;
use links::Links;

use crate::protocol::cut;

/// Whether a test planted this defect (feature `testkit`; always false without it).
macro_rules! planted {
    ($defect:ident) => {{
        #[cfg(feature = "testkit")]
        let planted = crate::testkit::is_planted(crate::testkit::Planted::$defect);
        #[cfg(not(feature = "testkit"))]
        let planted = false;
        planted
    }};
}

/// Where a link stands for the purpose of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No logon accepted on this link, or no link.
    Offline,
    /// Waiting for a rebase to be durable.
    Rebasing(Logon),
    /// Messages may go out.
    Live,
    /// The link must go; nothing is sent or settled on it.
    Dropping,
}

/// What a logon waits for while a rebase is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Logon {
    /// Its foreign figure asked for it.
    Asked,
    /// An earlier link's did: what this one was told is judged by the new numbering.
    Behind { figure: Option<u64> },
}

/// The delivery state machine. See the module's page.
#[derive(Debug)]
pub struct Delivery {
    config: Config,
    level: Level,
    figures: Figures,
    flight: Flight,
    flushes: Flushes,
    links: Links,
    phase: Phase,
    cursor: u64,
    replay_through: Option<u64>,
    raising: bool,
    /// A rebase was asked for and its outcome is not known; it outlives its link.
    rebasing: bool,
    /// The grant could not be raised; the next try is not before this moment.
    raise_again_at: Option<Duration>,
    /// It was told that nothing above the grant is sent.
    grant_stop_told: bool,
    sync_failed: bool,
    stop_told: bool,
    /// Nothing goes out before this ordinal is durable: a give-up. Were a power cut to take
    /// it after higher numbers went out, the server's figure would cover a message that the
    /// server never had.
    wait_for: Option<u64>,
    pending: Pending,
    totals: Totals,
    outputs: VecDeque<Output>,
}

/// Successes read but not applied yet: one store call serves a whole batch.
#[derive(Debug, Default)]
struct Pending {
    through: Option<u64>,
    single: Vec<u64>,
}

/// Single settlements handed to the store together; as many as one record of the log holds
/// (charter §5.1).
const SINGLES: usize = 64;

/// Time before a grant that could not be raised is tried again.
const RAISE_AGAIN: Duration = Duration::from_secs(5);

impl Delivery {
    /// A machine for a store that was just opened, before anything is published to it in
    /// this run.
    pub fn new(store: &dyn PublishStore, config: Config) -> Self {
        Delivery {
            level: store.level(),
            figures: Figures::new(store),
            flight: Flight::new(&config),
            flushes: Flushes::default(),
            links: Links::new(&config),
            phase: Phase::Offline,
            cursor: 1,
            replay_through: None,
            raising: false,
            rebasing: false,
            raise_again_at: None,
            grant_stop_told: false,
            sync_failed: false,
            stop_told: false,
            wait_for: None,
            pending: Pending::default(),
            totals: Totals::default(),
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Takes in what happened. Afterwards [`poll`](Self::poll) until it is empty.
    pub fn handle(&mut self, store: &dyn PublishStore, now: Now, input: Input<'_>) {
        match input {
            Input::Ack(ack) => return self.ack(store, now, ack),
            Input::AcksEnd | Input::Tick => {}
            _ => self.apply_pending(store),
        }
        match input {
            Input::Ack(_) => {}
            Input::AcksEnd => self.apply_pending(store),
            Input::Tick => {}
            Input::LoggedOn { figure } => self.logged_on(store, now, figure),
            Input::LinkLost => self.link_lost(store, now),
            Input::Flush { id, through, until } => {
                self.flushes.start(id, through, until, &store.bounds());
            }
            Input::FlushCancelled { id } => self.flushes.cancel(id),
            Input::GrantRaised(result) => self.grant_raised(store, now, result),
            Input::Rebased(result) => self.rebased(store, now, result),
            Input::AllowRebase => {
                self.figures.allow_rebase();
                self.links.clear_suspicion();
            }
            Input::GiveUp { sequence, reason } => {
                if store.is_unsettled(sequence) {
                    self.give_up(store, now, sequence, reason);
                }
            }
            Input::SyncFailed => self.sync_failed = true,
        }
        self.report_flushes(store, now);
        if self.links.is_stalled() {
            self.links.settled(store.bounds().first_unsettled);
        }
        self.want_grant(store, now);
    }

    /// The next thing to carry out.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with [`Input::Tick`], or to ask for messages again, at the latest, in
    /// terms of [`Now::at`].
    pub fn deadline(&self) -> Option<Duration> {
        let raise = self
            .raise_again_at
            .filter(|_| self.is_live() && !self.sync_failed);
        [self.flushes.deadline(), self.flight.paced_until(), raise]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next messages for this link, read into `into`, as many as it takes and the link
    /// may have; none when there is nothing to send, or nothing may be sent now.
    ///
    /// Live sending, resending and replay are this one walk: a reconnect moves the cursor
    /// back to the first unsettled message and nothing else changes, so a higher number
    /// can never overtake a lower one (charter §2). Returned messages count as handed to
    /// the transport: their first byte may be written as soon as this returns, because the
    /// grant above them is durable. They must go out, in this order, before anything else
    /// is handed to [`handle`](Self::handle), or the link must end: what is settled
    /// meanwhile would go out late.
    ///
    /// # Errors
    /// A record is damaged. Nothing is sent until it is settled, accepted or repaired:
    /// skipping it would let higher numbers overtake it for ever.
    pub fn next_to_send<'b>(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        into: &'b mut Batch,
    ) -> Result<Outgoing<'b>, ReadError> {
        into.clear();
        self.read_ahead(store, now, into)?;
        let reach = self.figures.reach();
        self.take_out(now, into);
        if self.figures.grant_is_low(self.config.grant_step) {
            self.want_grant(store, now);
        }
        Ok(Outgoing {
            nth: 0,
            rebase: self.figures.rebase(),
            reach,
            batch: into,
        })
    }

    fn read_ahead(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        into: &mut Batch,
    ) -> Result<(), ReadError> {
        if self.phase != Phase::Live || self.waits_for_give_up(store) {
            return Ok(());
        }
        let replaying = self.replay_through.is_some();
        let Some((messages, bytes)) = self.flight.room(replaying, now.at) else {
            return Ok(());
        };
        let mut through = self.figures.grant();
        if planted!(GrantNotAwaited) {
            through = u64::MAX;
        }
        if self.level == Level::Disk && !planted!(DurabilityNotAwaited) {
            through = through.min(store.durable().sequence);
        }
        if self.cursor <= through {
            into.narrow(messages, bytes);
            store.read_unsettled(self.cursor, through, into)?;
        }
        if into.is_empty() {
            self.nothing_found(store, now, through);
        }
        Ok(())
    }

    fn take_out(&mut self, now: Now, batch: &Batch) {
        let (Some(first), Some(last)) = (batch.get(0), batch.get(batch.len().wrapping_sub(1)))
        else {
            return;
        };
        let (first, last, count) = (first.sequence, last.sequence, batch.len() as u64);
        if self.figures.may_have_sent(first) {
            let again = |message: &MessageRef<'_>| self.figures.may_have_sent(message.sequence);
            self.totals.resent += batch.iter().filter(again).count() as u64;
        }
        self.totals.sent += count;
        self.figures.handed_over(last);
        self.links.handed_over(last);
        let replaying = self.replay_through.is_some();
        self.flight
            .handed_over(count, batch.payload_bytes(), replaying, now.at);
        self.cursor = last + 1;
        if self.replay_through.is_some_and(|through| last >= through) {
            self.replayed();
        }
        if planted!(DiscardBeforeAck) {
            self.pending.through = Some(last);
        }
    }

    /// Whether messages may go out on this link.
    pub fn is_live(&self) -> bool {
        self.phase == Phase::Live
    }

    /// Whether the next attempt to connect should wait for the longest delay: the same
    /// message, or the same name, broke several links.
    pub fn wants_longest_delay(&self) -> bool {
        self.links.is_suspect() || self.links.is_stalled()
    }

    /// The highest sequence handed to a transport, in this run or before (M of charter
    /// §5.3): what [`PublishStore::close`] wants to know.
    pub fn handed_over(&self) -> u64 {
        self.figures.reach()
    }

    /// Totals of this run.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// Messages on this link without an answer.
    pub fn in_flight(&self) -> u64 {
        self.flight.messages()
    }

    fn logged_on(&mut self, store: &dyn PublishStore, now: Now, figure: Option<u64>) {
        if self.phase != Phase::Offline {
            return;
        }
        if self.rebasing && !planted!(RebaseForgotten) {
            self.phase = Phase::Rebasing(Logon::Behind { figure });
            return;
        }
        self.flight.reset();
        self.raise_again_at = None;
        let figure = figure.filter(|_| !planted!(FigureIgnored));
        let Some(figure) = figure else {
            // Unknown is not zero: nothing is settled and no gap can be seen (C2).
            self.links.logged_on(now.at);
            return self.go_live(store);
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
            Figure::Foreign => self.foreign_at_logon(store, figure),
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
                let settled = self.figures.settled_floor(store);
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

    fn rebased(&mut self, store: &dyn PublishStore, now: Now, result: Result<Rebase, StoreError>) {
        self.rebasing = false;
        let done = match result {
            Ok(rebase) => {
                let reach = self.figures.reach();
                let possible_duplicates = match reach >= rebase.from {
                    true => store.bounds().unsettled.min(reach - rebase.from + 1),
                    false => 0,
                };
                self.figures.rebased(store, rebase);
                self.note(Note::Rebased {
                    from: rebase.from,
                    first_wire: self.figures.wire(rebase.from),
                    possible_duplicates,
                });
                true
            }
            Err(error) => {
                self.note(Note::StoreFailed {
                    doing: "rebase above the server's figure",
                    error,
                });
                false
            }
        };
        match self.phase {
            Phase::Rebasing(Logon::Asked) if done => self.go_live(store),
            Phase::Rebasing(Logon::Asked) => self.drop_link(DropReason::StoreFailed),
            Phase::Rebasing(Logon::Behind { figure }) => {
                self.phase = Phase::Offline;
                self.logged_on(store, now, figure);
            }
            // The link went while the device was writing.
            Phase::Offline | Phase::Live | Phase::Dropping => {}
        }
    }

    fn go_live(&mut self, store: &dyn PublishStore) {
        let bounds = store.bounds();
        self.phase = Phase::Live;
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

    fn link_lost(&mut self, store: &dyn PublishStore, now: Now) {
        let live = self.phase == Phase::Live;
        self.phase = Phase::Offline;
        self.replay_through = None;
        self.flight.reset();
        let first = store.bounds().first_unsettled;
        if let Some((sequence, links)) = self.links.lost(now.at, live, first) {
            self.note(Note::Stalled { sequence, links });
        }
    }

    fn ack(&mut self, store: &dyn PublishStore, now: Now, ack: PublishAck<'_>) {
        if self.phase != Phase::Live {
            // Nothing was sent on this link yet, or it must not be trusted any more: what an
            // ack covers here is not known to be ours, and a refusal is told all the same.
            if let Verdict::Refused(reason) = ack.verdict {
                self.unattributed(ack.figure, reason);
            }
            return;
        }
        let judged = match ack.figure {
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
                let so_far = self.pending.through.get_or_insert(through);
                *so_far = through.max(*so_far);
            }
            (Verdict::Persisted, None) => {
                if let (None, Some(sequence)) = (ack.figure, ack.sequence) {
                    self.single(store, sequence);
                }
            }
            (Verdict::Refused(reason), judged) => {
                // A number below the rebase is another numbering's; the command id, if
                // there is one, is still ours.
                match judged.or(ack.sequence.filter(|s| self.figures.may_have_sent(*s))) {
                    Some(sequence) => {
                        self.refuse(store, now, sequence, reason, ack.figure);
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

    fn single(&mut self, store: &dyn PublishStore, sequence: u64) {
        if !self.figures.may_have_sent(sequence) || !store.is_unsettled(sequence) {
            return;
        }
        if !self.pending.single.contains(&sequence) {
            self.pending.single.push(sequence);
        }
        if self.pending.single.len() == SINGLES {
            self.apply_pending(store);
        }
    }

    fn give_up(&mut self, store: &dyn PublishStore, now: Now, sequence: u64, reason: &str) {
        if self.sync_failed {
            let error = "nothing can be made durable, and a give-up must be".to_owned();
            return self.note(Note::StoreFailed {
                doing: "give up on a message",
                error: StoreError::SyncFailed(error),
            });
        }
        let ordinal = self.refuse(store, now, sequence, reason, None);
        if planted!(GiveUpNotAwaited) || store.is_unsettled(sequence) {
            return;
        }
        // What does not outlive the process cannot come back unsettled.
        if !matches!(store.request_sync(), Err(StoreError::InMemory)) {
            self.wait_for = Some(ordinal.unwrap_or(u64::MAX));
        }
    }

    /// A device that fails now stops sending for good, the level notwithstanding: rather
    /// that than to call persisted what was given up.
    fn waits_for_give_up(&mut self, store: &dyn PublishStore) -> bool {
        self.wait_for = self.wait_for.filter(|at| *at > store.durable().ordinal);
        if self.wait_for.is_some() && self.sync_failed && !self.stop_told {
            self.stop_told = true;
            let through = self.cursor - 1;
            self.note(Note::SendingStopped { through });
        }
        self.wait_for.is_some()
    }

    /// Where the refusal is in the log, if it is there now.
    fn refuse(
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
        let attempts = self.links.attempts(sequence);
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
                    if sequence < self.cursor {
                        self.flight.settled(1);
                    }
                    self.flushes.settled_one(sequence);
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

    fn unattributed(&mut self, figure: Option<u64>, reason: &str) {
        self.totals.unattributed += 1;
        self.outputs.push_back(Output::Unattributed {
            figure,
            reason: cut(reason).to_owned(),
        });
    }

    fn apply_pending(&mut self, store: &dyn PublishStore) {
        if let Some(through) = self.pending.through.take() {
            self.settle_through(store, through, Via::Ack);
        }
        if self.pending.single.is_empty() {
            return;
        }
        let singles = std::mem::take(&mut self.pending.single);
        let open: Vec<u64> = singles
            .into_iter()
            .filter(|s| store.is_unsettled(*s))
            .collect();
        match store.settle(&open) {
            Ok(count) => {
                self.totals.persisted += count;
                self.flight.settled(count);
                for sequence in open {
                    self.figures.settled(sequence);
                    self.flushes.settled_one(sequence);
                    self.outputs.push_back(Output::Settled {
                        sequence,
                        via: Via::Ack,
                    });
                }
            }
            Err(error) => self.note(Note::StoreFailed {
                doing: "settle messages",
                error,
            }),
        }
    }

    fn settle_through(&mut self, store: &dyn PublishStore, through: u64, via: Via) {
        match store.settle_through(through) {
            Ok(0) => {}
            Ok(count) => {
                match via {
                    Via::Ack => self.totals.persisted += count,
                    Via::Logon => self.totals.persisted_at_logon += count,
                }
                self.figures.settled(through);
                self.flight.settled(count);
                self.flushes.settled_through(through, count);
                self.outputs
                    .push_back(Output::SettledThrough { through, via });
            }
            Err(error) => self.note(Note::StoreFailed {
                doing: "settle messages",
                error,
            }),
        }
    }

    fn nothing_found(&mut self, store: &dyn PublishStore, now: Now, through: u64) {
        if self.replay_through.is_some_and(|last| through >= last) {
            self.replayed();
        }
        self.want_grant(store, now);
        // What cannot become durable is never sent at `Disk`; what the grant does not
        // cover is never sent at all.
        let blocked = self.sync_failed && store.bounds().last > through;
        if blocked && !self.stop_told {
            self.stop_told = true;
            self.note(Note::SendingStopped { through });
        }
    }

    fn replayed(&mut self) {
        self.replay_through = None;
        self.note(Note::Replayed);
    }

    /// Asks for a higher grant ahead of need, and only while logged on with the figure
    /// judged: a grant above a foreign figure would make it look like our own at the next
    /// open (charter §5.3).
    fn want_grant(&mut self, store: &dyn PublishStore, now: Now) {
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

    fn grant_raised(&mut self, store: &dyn PublishStore, now: Now, result: Result<(), StoreError>) {
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

    fn report_flushes(&mut self, store: &dyn PublishStore, now: Now) {
        if planted!(FlushWaitsForEmpty) && store.bounds().unsettled > 0 {
            return;
        }
        let first_unsettled = || store.bounds().first_unsettled;
        self.flushes
            .report(now.at, first_unsettled, &mut self.outputs);
    }

    fn drop_link(&mut self, why: DropReason) {
        self.phase = Phase::Dropping;
        self.outputs.push_back(Output::DropLink { why });
    }

    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }
}
