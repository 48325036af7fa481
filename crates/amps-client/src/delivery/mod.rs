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

mod figures;
mod flight;
mod flush;
mod links;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::Duration;

use amps_store::{Level, PublishStore, ReadError, Rebase, Rejected, StoreError, StoredMessage};

use figures::{Figure, Figures};
use flight::Flight;
use flush::Flushes;
use links::Links;

/// What to do when the server's figure at logon is beyond anything this store can have
/// sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebasePolicy {
    /// Number on the wire above the server's figure and send everything unsettled.
    #[default]
    Rebase,
    /// Send nothing to that server.
    Stop,
}

/// What to do when a server is behind what was settled before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum GapPolicy {
    /// Report it and go on with this server.
    #[default]
    Report,
    /// Report it, leave this server and try the next.
    NextServer,
}

/// How a [`Delivery`] behaves.
#[derive(Clone, Debug)]
pub struct Config {
    /// Most messages on one link without an answer.
    pub max_in_flight: u64,
    /// Most payload bytes on one link without an answer. A single message may exceed it.
    pub max_in_flight_bytes: u64,
    /// Most messages per second that are sent again after a logon; none: as fast as the
    /// link takes them.
    pub replay_rate: Option<u32>,
    /// Figures beyond what was sent.
    pub rebase: RebasePolicy,
    /// Servers that are behind.
    pub gap: GapPolicy,
    /// The send grant is raised by this many sequences at a time. An unclean stop skips up
    /// to that many numbers, which AMPS does not mind (`amps-publish-semantics.md` §2).
    pub grant_step: u64,
    /// Lost links in a row with the same first unsettled message before it counts as
    /// stalled.
    pub stall_after: u32,
    /// A link that ends sooner after its logon is short-lived.
    pub short_link: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            max_in_flight: 1 << 20,
            max_in_flight_bytes: 64 << 20,
            replay_rate: None,
            rebase: RebasePolicy::Rebase,
            gap: GapPolicy::Report,
            grant_step: 1 << 20,
            stall_after: 3,
            short_link: Duration::from_secs(10),
        }
    }
}

/// A moment, as the driver sees it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Now {
    /// Time since any fixed start; never goes back.
    pub at: Duration,
    /// Wall clock: microseconds since the Unix epoch.
    pub unix_micros: u64,
}

/// An ack that concerns a publish, as it came from the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PublishAck<'a> {
    /// The server's number, a wire number; `None` if the ack has none (or 0).
    pub figure: Option<u64>,
    /// The message's sequence from the command id, with `publish_ids` only.
    pub sequence: Option<u64>,
    /// Success, or a refusal with the server's reason (empty if it gave none).
    pub verdict: Verdict<'a>,
}

/// What an ack says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Persisted: this message and, if the ack has a figure, everything before it
    /// (`amps-publish-semantics.md` §4).
    Persisted,
    /// Refused: this message alone.
    Refused(&'a str),
}

/// Something that happened to the link, the store or the application.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// The server accepted the logon and named this figure, if any.
    LoggedOn {
        /// The `s` of the logon ack.
        figure: Option<u64>,
    },
    /// An ack for publishes.
    Ack(PublishAck<'a>),
    /// Every ack that was read together was given. Successes are applied no later than
    /// here, once for the whole batch.
    AcksEnd,
    /// The link is gone, in whatever state it was.
    LinkLost,
    /// Nothing but time has passed.
    Tick,
    /// Tell me when everything stored up to now is settled, or when it is `until`.
    Flush {
        /// Returned in [`Output::Flushed`].
        id: u64,
        /// A moment in terms of [`Now::at`]; `None` waits for ever.
        until: Option<Duration>,
    },
    /// Nobody waits for this flush any more.
    FlushCancelled {
        /// As given before.
        id: u64,
    },
    /// [`Output::RaiseGrant`] was carried out.
    GrantRaised(Result<(), StoreError>),
    /// [`Output::Rebase`] was carried out.
    Rebased(Result<Rebase, StoreError>),
    /// The application allows one more rebase in this run.
    AllowRebase,
    /// The store can make nothing durable any more.
    SyncFailed,
}

/// Evidence for a success (charter §1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Via {
    /// The server's ack covered it.
    Ack,
    /// The server's figure covered it at a logon and no ack was ever read: AMPS does not
    /// say whether it was persisted, or refused and the refusal lost.
    Logon,
}

/// Why this link must not be used any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DropReason {
    /// The server speaks of messages that were never sent.
    ForeignFigure,
    /// The server named a number of 2^63 or more.
    BadFigure,
    /// The server is behind and the policy is to try the next.
    PublishGap,
    /// The store could not write what a rebase needs.
    StoreFailed,
}

/// Something the driver has to carry out or pass on.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Output {
    /// Call `raise_grant(to)` off the I/O path and answer [`Input::GrantRaised`].
    RaiseGrant {
        /// The grant wanted.
        to: u64,
    },
    /// Call `rebase(figure)` off the I/O path and answer [`Input::Rebased`].
    Rebase {
        /// The server's figure.
        figure: u64,
    },
    /// Close the link.
    DropLink {
        /// Why.
        why: DropReason,
    },
    /// Everything up to `through` is settled as a success, but for messages refused.
    SettledThrough {
        /// The highest sequence covered.
        through: u64,
        /// The evidence.
        via: Via,
    },
    /// One message is settled as a success.
    Settled {
        /// The message.
        sequence: u64,
        /// The evidence.
        via: Via,
    },
    /// A refusal is in the log.
    Refused {
        /// The message.
        sequence: u64,
        /// The server's reason, uncut.
        reason: String,
        /// It came after a success that covered the message; the success stands.
        late: bool,
        /// How often this run handed the message to a transport.
        attempts: u32,
        /// Where the refusal is in the log.
        ordinal: u64,
    },
    /// A late refusal the log has no room for.
    RefusalNotLogged {
        /// The message.
        sequence: u64,
        /// The server's reason.
        reason: String,
        /// How often this run handed the message to a transport.
        attempts: u32,
    },
    /// A refusal that concerns no message known here.
    Unattributed {
        /// The server's number, if it sent one.
        figure: Option<u64>,
        /// The server's reason.
        reason: String,
    },
    /// A flush ended: with nothing left, or because its time is over.
    Flushed {
        /// As given in [`Input::Flush`].
        id: u64,
        /// Covered and unsettled.
        left: u64,
    },
    /// Something to watch.
    Note(Note),
}

/// Things worth telling that ask for nothing.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Note {
    /// See [`Event::PublishGap`](crate::Event::PublishGap).
    PublishGap {
        /// The server's figure as a sequence.
        server: u64,
        /// Settled before.
        settled: u64,
        /// The figure was 0.
        unknown_publisher: bool,
    },
    /// See [`Event::ForeignFigure`](crate::Event::ForeignFigure).
    ForeignFigure {
        /// The server's number.
        figure: u64,
        /// The highest sequence that may have been sent.
        may_have_sent: u64,
    },
    /// See [`Event::Rebased`](crate::Event::Rebased).
    Rebased {
        /// The server's number.
        figure: u64,
        /// First sequence concerned.
        from: u64,
        /// Unsettled messages that may have been sent before.
        possible_duplicates: u64,
    },
    /// See [`Event::NameShared`](crate::Event::NameShared).
    NameShared {
        /// The server's number.
        figure: u64,
        /// Sending stopped.
        stopped: bool,
    },
    /// See [`Event::Stalled`](crate::Event::Stalled).
    Stalled {
        /// The message.
        sequence: u64,
        /// Links lost in a row with it at the head.
        links: u32,
    },
    /// Everything stored at logon was sent.
    Replayed,
    /// The store refused something.
    StoreFailed {
        /// What was being done.
        doing: &'static str,
        /// Its word.
        error: StoreError,
    },
    /// Nothing above `through` is sent any more.
    SendingStopped {
        /// Highest sequence that may still be sent.
        through: u64,
    },
}

/// A message to put on the wire now; its bytes are in the buffer given to
/// [`Delivery::next_to_send`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ToSend {
    /// Its sequence.
    pub sequence: u64,
    /// The number to send it under.
    pub wire: u64,
    /// It may have been sent before.
    pub again: bool,
}

/// Totals of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Settled as a success by an ack.
    pub persisted: u64,
    /// Settled as a success at a logon.
    pub persisted_at_logon: u64,
    /// Refused, with the refusal in the log (late ones not counted: the success stands).
    pub rejected: u64,
    /// Handed to a transport although they may have been sent before.
    pub resent: u64,
    /// Handed to a transport, all in all.
    pub sent: u64,
    /// Refusals after a success.
    pub late: u64,
    /// Refusals that could not be attributed to a message.
    pub unattributed: u64,
}

/// Where a link stands for the purpose of sending.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// No logon accepted on this link, or no link.
    Offline,
    /// The server's figure is foreign; waiting for the durable rebase.
    Rebasing { figure: u64 },
    /// Messages may go out.
    Live,
    /// The link must go; nothing is sent or settled on it.
    Dropping,
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
    raise_failed: bool,
    sync_failed: bool,
    stop_told: bool,
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
            raise_failed: false,
            sync_failed: false,
            stop_told: false,
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
            Input::Flush { id, until } => self.flushes.start(id, until, &store.bounds()),
            Input::FlushCancelled { id } => self.flushes.cancel(id),
            Input::GrantRaised(result) => self.grant_raised(store, result),
            Input::Rebased(result) => self.rebased(store, result),
            Input::AllowRebase => {
                self.figures.allow_rebase();
                self.links.clear_suspicion();
            }
            Input::SyncFailed => self.sync_failed = true,
        }
        self.flushes.report(now.at, &mut self.outputs);
        if self.links.is_stalled() {
            self.links.settled(store.bounds().first_unsettled);
        }
        self.want_grant(store);
    }

    /// The next thing to carry out.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call with [`Input::Tick`], or to ask for messages again, at the latest, in
    /// terms of [`Now::at`].
    pub fn deadline(&self) -> Option<Duration> {
        [self.flushes.deadline(), self.flight.paced_until()]
            .into_iter()
            .flatten()
            .min()
    }

    /// The next message for this link, read into `into`; `None` when there is nothing to
    /// send, or nothing may be sent now.
    ///
    /// Live sending, resending and replay are this one walk: a reconnect moves the cursor
    /// back to the first unsettled message and nothing else changes, so a higher number
    /// can never overtake a lower one (charter §2). A returned message counts as handed to
    /// the transport: its first byte may be written as soon as this returns, because the
    /// grant above it is durable.
    ///
    /// # Errors
    /// A record is damaged. Nothing is sent until it is settled, accepted or repaired:
    /// skipping it would let higher numbers overtake it for ever.
    pub fn next_to_send(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        into: &mut StoredMessage,
    ) -> Result<Option<ToSend>, ReadError> {
        if self.phase != Phase::Live {
            return Ok(None);
        }
        let replaying = self.replay_through.is_some();
        if !self.flight.may_send(replaying, now.at) {
            return Ok(None);
        }
        let mut through = self.figures.grant();
        if self.level == Level::Disk {
            through = through.min(store.durable().sequence);
        }
        let found = match self.cursor <= through {
            true => store.read_next(self.cursor, through, into)?,
            false => None,
        };
        let Some(sequence) = found else {
            self.nothing_found(store, through);
            return Ok(None);
        };
        let again = self.figures.may_have_sent(sequence);
        self.figures.handed_over(sequence);
        self.links.handed_over(sequence);
        self.flight
            .handed_over(into.payload().len() as u64, replaying, now.at);
        self.cursor = sequence + 1;
        self.totals.sent += 1;
        self.totals.resent += u64::from(again);
        if self.replay_through.is_some_and(|last| sequence >= last) {
            self.replayed();
        }
        if self.figures.grant_is_low(self.config.grant_step) {
            self.want_grant(store);
        }
        Ok(Some(ToSend {
            sequence,
            wire: self.figures.wire(sequence),
            again,
        }))
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
        self.flight.reset();
        self.raise_failed = false;
        let Some(figure) = figure else {
            // Unknown is not zero: nothing is settled and no gap can be seen (C2).
            self.links.logged_on(now.at);
            return self.go_live(store);
        };
        match self.figures.at_logon(figure) {
            Figure::Impossible => {
                self.links.suspect();
                self.drop_link(DropReason::BadFigure);
            }
            Figure::Foreign => self.foreign_at_logon(figure),
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
                self.settle_through(store, through, Via::Logon);
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

    fn foreign_at_logon(&mut self, figure: u64) {
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
        self.phase = Phase::Rebasing { figure };
        self.outputs.push_back(Output::Rebase { figure });
    }

    fn rebased(&mut self, store: &dyn PublishStore, result: Result<Rebase, StoreError>) {
        match result {
            Ok(rebase) => {
                let bounds = store.bounds();
                let possible_duplicates = match self.figures.reach() >= rebase.from {
                    true => bounds.unsettled.min(self.figures.reach() - rebase.from + 1),
                    false => 0,
                };
                self.figures.rebased(store, rebase);
                let figure = (rebase.from as i64).wrapping_add(rebase.delta) as u64 - 1;
                self.note(Note::Rebased {
                    figure,
                    from: rebase.from,
                    possible_duplicates,
                });
                // The link may have gone while the device was writing.
                if matches!(self.phase, Phase::Rebasing { .. }) {
                    self.go_live(store);
                }
            }
            Err(error) => {
                self.note(Note::StoreFailed {
                    doing: "rebase above the server's figure",
                    error,
                });
                if matches!(self.phase, Phase::Rebasing { .. }) {
                    self.drop_link(DropReason::StoreFailed);
                }
            }
        }
    }

    fn go_live(&mut self, store: &dyn PublishStore) {
        let bounds = store.bounds();
        self.phase = Phase::Live;
        self.cursor = bounds.first_unsettled.unwrap_or(bounds.next);
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
            // Nothing was sent on this link yet, so no ack on it can be about us.
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
                    Some(sequence) => self.refuse(store, now, sequence, reason, ack.figure),
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

    fn refuse(
        &mut self,
        store: &dyn PublishStore,
        now: Now,
        sequence: u64,
        reason: &str,
        figure: Option<u64>,
    ) {
        // The server acks what came before a refusal first; keeping its order decides
        // which refusals are late.
        self.apply_pending(store);
        let attempts = self.links.attempts(sequence);
        match store.reject(sequence, reason, now.unix_micros) {
            Ok(Rejected::Logged { ordinal, late }) => {
                if late {
                    self.totals.late += 1;
                } else {
                    self.totals.rejected += 1;
                    self.flight.settled(1);
                    self.flushes.settled_one(sequence);
                }
                self.outputs.push_back(Output::Refused {
                    sequence,
                    reason: reason.to_owned(),
                    late,
                    attempts,
                    ordinal,
                });
                self.flushes.report(now.at, &mut self.outputs);
            }
            Ok(Rejected::Known) => {}
            Ok(Rejected::NoRoom) => {
                self.totals.late += 1;
                self.outputs.push_back(Output::RefusalNotLogged {
                    sequence,
                    reason: reason.to_owned(),
                    attempts,
                });
            }
            Ok(Rejected::Unknown) => self.unattributed(figure, reason),
            Err(error) => self.note(Note::StoreFailed {
                doing: "log a refusal",
                error,
            }),
        }
    }

    fn unattributed(&mut self, figure: Option<u64>, reason: &str) {
        self.totals.unattributed += 1;
        self.outputs.push_back(Output::Unattributed {
            figure,
            reason: reason.to_owned(),
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

    fn nothing_found(&mut self, store: &dyn PublishStore, through: u64) {
        if self.replay_through.is_some_and(|last| through >= last) {
            self.replayed();
        }
        self.want_grant(store);
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
    fn want_grant(&mut self, store: &dyn PublishStore) {
        let ask = self.phase == Phase::Live
            && !self.raising
            && !self.raise_failed
            && !self.sync_failed
            && self.figures.grant_is_low(self.config.grant_step);
        if ask {
            self.raising = true;
            let base = self.figures.grant().max(store.bounds().last);
            let to = base
                .saturating_add(self.config.grant_step)
                .min(figures::MAX_FIGURE);
            self.outputs.push_back(Output::RaiseGrant { to });
        }
    }

    fn grant_raised(&mut self, store: &dyn PublishStore, result: Result<(), StoreError>) {
        self.raising = false;
        match result {
            Ok(()) => self.figures.reload_grant(store),
            Err(error) => {
                self.raise_failed = true;
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

    fn drop_link(&mut self, why: DropReason) {
        self.phase = Phase::Dropping;
        self.outputs.push_back(Output::DropLink { why });
    }

    fn note(&mut self, note: Note) {
        self.outputs.push_back(Output::Note(note));
    }
}
