//! What was sent, what is settled, and what goes out next: C2 to C5 of `docs/promises.md`, and
//! what stands there under Numbers, as a state machine without sockets, clocks or tasks.
//!
//! A driver feeds [`Input`]s, carries out [`Output`]s and, whenever the link takes bytes,
//! calls [`Delivery::hand_over`]. The store is borrowed for each call and time is an
//! argument, so a simulation can drive exactly this code.
//!
//! Three kinds of number meet here. A *sequence* is the store's. A *wire number* is a
//! sequence moved by the rebase in force ([`amps_store::Rebase`]). A server's *figure* is
//! a wire number that it sent: it is translated first and judged second, and it settles
//! nothing unless it lies within what this store may have sent.

mod acks;
mod api;
mod figures;
mod flight;
mod flush;
mod hold;
mod links;
mod numbers;
mod recall;
mod single;
#[cfg(test)]
mod tests;
mod unkept;
mod unreadable;

pub use flush::Flushed;

pub use api::{
    AckWish, Acks, Config, DropReason, Evidence, GapPolicy, Input, NotSent, Note, Now, Output,
    PublishAck, RebasePolicy, Resume, Room, ToSend, Totals, Verdict, Via,
};
pub use hold::Drained;
pub use single::MAY_BE_STORED;

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::{Batch, Level, MessageRef, PublishStore, ReadError, StoreError};

use figures::Figures;
use flight::Flight;
use flush::Flushes;
use hold::{Hold, Rounds};
use links::Links;
use recall::{Doubts, Recall};
use single::Singles;
use unkept::Unkept;
use unreadable::Unreadable;

/// Where a link stands for the purpose of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No logon accepted on this link, or no link.
    Offline,
    /// Waiting for a rebase to be durable.
    Rebasing(Logon),
    /// The server is asked which messages it holds.
    Recalling,
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
    Behind(Known),
}

/// What a server said at a logon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Known {
    resume: Resume,
    acks: Acks,
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
    store_gone: bool,
    stop_told: bool,
    /// Nothing goes out before this ordinal is durable: a give-up. Were a power cut to take
    /// it after higher numbers went out, the server's figure would cover a message that the
    /// server never had.
    wait_for: Option<u64>,
    unreadable: Unreadable,
    /// There is no store, but a queue.
    unkept: Option<Unkept>,
    /// The highest sequence handed over on this link.
    handed_here: u64,
    /// Nothing new is handed over before that is over.
    hold: Option<Hold>,
    rounds: Rounds,
    /// The server of this link can be asked for messages by their ids.
    asks_by_id: bool,
    /// Up to here the server of this link said for no message that it has it or that it has not.
    unproved: u64,
    recall: Recall,
    doubts: Doubts,
    pending: Pending,
    totals: Totals,
    /// Messages that servers settled or refused, in this run.
    by_servers: u64,
    outputs: VecDeque<Output>,
}

/// Successes read but not applied yet: one store call serves a whole batch.
#[derive(Debug, Default)]
struct Pending {
    through: Option<u64>,
    single: Singles,
}

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
            store_gone: false,
            stop_told: false,
            wait_for: None,
            unreadable: Unreadable::default(),
            unkept: None,
            handed_here: 0,
            hold: None,
            rounds: Rounds::default(),
            asks_by_id: false,
            unproved: 0,
            recall: Recall::default(),
            doubts: Doubts::default(),
            pending: Pending::default(),
            totals: Totals::default(),
            by_servers: 0,
            outputs: VecDeque::new(),
            config,
        }
    }

    /// Takes in what happened. Afterwards [`poll`](Self::poll) until it is empty.
    pub fn handle(&mut self, store: &dyn PublishStore, now: Now, input: Input<'_>) {
        match input {
            Input::Ack(ack) => return self.ack(store, now, ack),
            Input::One { wire, evidence } => return self.one(store, wire, evidence),
            Input::Refused {
                wire,
                reason,
                may_be_stored,
            } => return self.refused_single(store, now, wire, reason, may_be_stored),
            Input::TryAgain { wire, why, at_once } => {
                return self.turned_away(store, now, wire, why, at_once);
            }
            Input::Found { wire } => return self.found(store, wire),
            Input::Absent { wire } => return self.absent(store, now, wire),
            Input::AcksEnd | Input::Tick => {}
            Input::LinkLost if planted!(AcksDroppedWithLink) => self.pending = Pending::default(),
            _ => self.apply_pending(store),
        }
        match input {
            Input::Ack(_)
            | Input::One { .. }
            | Input::Refused { .. }
            | Input::TryAgain { .. }
            | Input::Found { .. }
            | Input::Absent { .. } => {}
            Input::AcksEnd => self.apply_pending(store),
            Input::Tick => {}
            Input::LoggedOn { resume, acks } => {
                self.logged_on(store, now, Known { resume, acks });
            }
            Input::Mark { wire } => self.mark(store, wire),
            Input::LineStopped { why } => self.line_stopped(why),
            Input::LineFree => self.line_free(),
            Input::Again => self.again(store),
            Input::Unusable => self.phase = Phase::Dropping,
            Input::LinkLost => self.link_lost(store, now),
            Input::Flush { id, through, until } => {
                self.flushes.start(id, through, until, store);
            }
            Input::FlushCancelled { id } => self.flushes.cancel(id),
            Input::Closing => {
                let first_unsettled = || store.bounds().first_unsettled;
                self.flushes
                    .report(None, first_unsettled, &mut self.outputs);
            }
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
            Input::SyncFailed => self.cannot_sync(store),
            Input::StoreGone => self.store_gone = true,
        }
        self.report_flushes(store, now);
        if self.links.is_stalled() {
            self.links.settled(store.bounds().first_unsettled);
        }
        self.want_grant(store, now);
    }

    /// Told when it happens, whatever the level: what is acknowledged from here on may be sent
    /// again after a power cut.
    fn cannot_sync(&mut self, store: &dyn PublishStore) {
        self.sync_failed = true;
        let error = match store.request_sync() {
            // It ended, and its owner knows.
            Err(StoreError::Closed | StoreError::Forked | StoreError::InMemory) => return,
            Err(error) => error,
            Ok(()) => StoreError::SyncFailed("the store said so".to_owned()),
        };
        let doing = "make messages durable";
        self.note(Note::StoreFailed { doing, error });
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

    /// Gives `send` the next messages for this link, read into `batch`, as many as that takes,
    /// the link has room for and may have; how many. None when there is nothing to send, or
    /// nothing may be sent now.
    ///
    /// Live sending, resending and replay are this one walk: a reconnect moves the cursor
    /// back to the first unsettled message and nothing else changes, so a higher number
    /// can never overtake a lower one. What `send` takes counts as handed over
    /// when this returns, and no byte of it may go out before: the grant above it is durable.
    /// It must go out, in this order, before anything else is handed to
    /// [`handle`](Self::handle), or the link must end: what is settled meanwhile would go out
    /// late.
    ///
    /// A message whose envelope this program does not know is refused here, as one that the
    /// application gives up on ([`Note::Unreadable`], [`Output::Refused`]), and what is behind it
    /// goes on: poll afterwards, also when there is nothing to send.
    ///
    /// # Errors
    /// A record is damaged: nothing is sent until it is settled, accepted or repaired, since
    /// skipping it would let higher numbers overtake it for ever. Or `send` did not take a
    /// message: those before it are handed over.
    pub fn hand_over<E>(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        room: Room,
        batch: &mut Batch,
        mut send: impl FnMut(&ToSend<'_>) -> Result<(), E>,
    ) -> Result<usize, NotSent<E>> {
        batch.clear();
        self.read_ahead(store, now, room, batch)?;
        self.look_for_wishes(batch);
        let (rebase, sent) = (self.figures.rebase(), self.figures.sent());
        let (mut taken, mut refused) = (0, None);
        for message in batch.iter() {
            let sequence = message.sequence;
            let to_send = ToSend {
                sequence,
                wire: match planted!(IdReusedAfterRebase) {
                    true => sequence,
                    false => api::wire(rebase, sequence),
                },
                again: sequence <= sent,
                ack: unkept::wish(self.unkept.as_ref(), sequence),
                message,
            };
            if let Err(error) = send(&to_send) {
                refused = Some(NotSent::Refused { sequence, error });
                break;
            }
            taken += 1;
        }
        batch.truncate(taken);
        self.take_out(now, batch);
        if self.figures.grant_is_low(self.config.grant_step) {
            self.want_grant(store, now);
        }
        match refused {
            Some(refused) => Err(refused),
            None => Ok(taken),
        }
    }

    fn read_ahead(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        room: Room,
        into: &mut Batch,
    ) -> Result<(), ReadError> {
        let held = self.hold.is_some() && !planted!(TryAgainOvertakes);
        if self.phase != Phase::Live || held || room.is_none() || self.waits_for_give_up(store) {
            return Ok(());
        }
        let replaying = self.replay_through.is_some() && !planted!(PaceIgnored);
        let Some((messages, mut bytes)) = self.flight.room(replaying, now.at) else {
            return Ok(());
        };
        if planted!(BytesUnbounded) {
            bytes = usize::MAX;
        }
        let mut through = self.figures.grant();
        if planted!(GrantNotAwaited) {
            through = u64::MAX;
        }
        if self.level.is_durable_first() && !planted!(DurabilityNotAwaited) {
            through = through.min(store.durable().sequence);
        }
        into.narrow(messages.min(room.messages), bytes.min(room.bytes));
        while self.cursor <= through {
            store.read_unsettled(self.cursor, through, into)?;
            if into.is_empty() || self.unreadable.keep_readable(into) {
                break;
            }
            if !self.refuse_unreadable(store, now, into) || self.waits_for_give_up(store) {
                return Ok(());
            }
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
        let sent = self.figures.sent();
        if first <= sent {
            let again = |message: &MessageRef<'_>| message.sequence <= sent;
            self.totals.resent += batch.iter().filter(again).count() as u64;
        }
        self.totals.sent += count;
        self.handed_here = self.handed_here.max(last);
        self.figures.handed_over(last);
        if planted!(ResentUncounted) {
            self.totals.resent = 0;
        }
        self.links.handed_over(last);
        let replaying = self.replay_through.is_some();
        let owed = self.done_unless_asked(batch);
        self.flight
            .handed_over(owed, batch.payload_bytes(), replaying, now.at);
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

    /// The highest sequence handed to a transport, in this run or before (M in
    /// `docs/promises.md`): what [`PublishStore::close`] wants to know.
    pub fn handed_over(&self) -> u64 {
        self.figures.reach()
    }

    /// The number that a message goes out under by now.
    pub fn wire(&self, sequence: u64) -> u64 {
        self.figures.wire(sequence)
    }

    /// Totals of this run.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// How many unsettled messages may have been sent before, at most: what a logon sends again.
    pub fn may_be_sent_again(&self, store: &dyn PublishStore) -> u64 {
        let first = store.bounds().first_unsettled;
        first.map_or(0, |first| self.figures.may_be_duplicates(store, first))
    }

    /// Messages that servers settled or refused, in this run: what an operator gave up on, and
    /// what could not be sent, is not among them.
    pub fn settled_by_servers(&self) -> u64 {
        self.by_servers
    }

    /// The oldest message on this link without an answer, and its number on the wire; while nothing
    /// is handed over, and which it is would have to be remembered, the last one.
    pub fn unanswered(&self, store: &dyn PublishStore) -> Option<(u64, u64)> {
        if self.phase != Phase::Live || self.flight.messages() == 0 {
            return None;
        }
        let last = self.cursor.saturating_sub(1);
        let oldest = match self.hold {
            Some(_) => last,
            None => store.bounds().first_unsettled.filter(|one| *one <= last)?,
        };
        Some((oldest, self.figures.wire(oldest)))
    }

    /// Messages on this link without an answer.
    pub fn in_flight(&self) -> u64 {
        self.flight.messages()
    }

    fn link_lost(&mut self, store: &dyn PublishStore, now: Now) {
        let live = self.phase == Phase::Live;
        self.tell_doubts(store, now);
        self.release();
        self.recall = Recall::default();
        self.handed_here = 0;
        self.phase = Phase::Offline;
        self.replay_through = None;
        self.unreadable.retry();
        self.flight.reset();
        self.leave_behind();
        let first = store.bounds().first_unsettled;
        if let Some((sequence, links)) = self.links.lost(now.at, live, first)
            && !planted!(StallUntold)
        {
            self.note(Note::Stalled { sequence, links });
        }
    }

    fn nothing_found(&mut self, store: &dyn PublishStore, now: Now, through: u64) {
        if self.replay_through.is_some_and(|last| through >= last) {
            self.replayed();
        }
        self.want_grant(store, now);
        // What cannot become durable is never sent at `Disk`; what the grant does not
        // cover is never sent at all.
        if self.stop_told || !self.is_durability_over() {
            return;
        }
        let through = match self.sync_failed {
            true => through,
            // Numbers are granted all the same.
            false if self.level.is_durable_first() => store.durable().sequence,
            false => return,
        };
        if store.bounds().last > through {
            self.stop_told = true;
            self.note(Note::SendingStopped { through });
        }
    }

    /// Whether what is not durable never will be.
    fn is_durability_over(&self) -> bool {
        self.sync_failed || self.store_gone
    }

    fn replayed(&mut self) {
        self.replay_through = None;
        self.note(Note::Replayed);
    }

    fn report_flushes(&mut self, store: &dyn PublishStore, now: Now) {
        if planted!(FlushWaitsForEmpty) && store.bounds().unsettled > 0 {
            return;
        }
        let first_unsettled = || store.bounds().first_unsettled;
        self.flushes
            .report(Some(now.at), first_unsettled, &mut self.outputs);
    }

    fn drop_link(&mut self, why: DropReason) {
        self.phase = Phase::Dropping;
        self.outputs.push_back(Output::DropLink { why });
    }

    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }
}
