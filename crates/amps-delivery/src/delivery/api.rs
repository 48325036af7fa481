//! What goes into [`Delivery`](super::Delivery) and what comes out. These enums are the seam
//! between the settle rules and whatever carries messages to a server.

use std::time::Duration;

use amps_store::{EnvelopeError, MessageRef, ReadError, Rebase, StoreError};

use super::Flushed;

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

/// How a [`Delivery`](super::Delivery) behaves.
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
    /// to that many numbers, which AMPS does not mind (`docs/protocol.md` §13).
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
    /// (`docs/protocol.md` §14).
    Persisted,
    /// Refused: this message alone.
    Refused(&'a str),
    /// Refused, under a command id that this client never gave out: whatever number comes with
    /// it, it names none of its messages for sure.
    Stray(&'a str),
}

/// What a server knows of messages that earlier links brought it. Numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resume {
    /// Every message up to this one that this server was ever given under this identity is stored
    /// or was refused, and none above it is stored. Who cannot prove that says one of the others.
    HighWater(u64),
    /// Nothing as a whole; it can be asked for each message by its id.
    ById,
    /// Nothing: everything that is unsettled is sent again.
    Unknown,
}

impl Resume {
    /// A figure, if the server named one. Unknown is not zero.
    pub fn figure(figure: Option<u64>) -> Self {
        figure.map_or(Resume::Unknown, Resume::HighWater)
    }
}

/// What acks speak of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Acks {
    /// Everything up to a figure: [`Input::Ack`].
    #[default]
    Figures,
    /// One message each: [`Input::One`] and its like.
    Single,
}

/// What shows that a message is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// The server stored it now.
    Stored,
    /// The server has seen its id before, and drops what comes under it: it took the message
    /// then, and need not hold it any more.
    Duplicate,
}

/// Something that happened to the link, the store or the application.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum Input<'a> {
    /// The server accepted the logon.
    LoggedOn {
        /// What it knows of messages sent before.
        resume: Resume,
        /// What its acks speak of.
        acks: Acks,
    },
    /// An ack for publishes.
    Ack(PublishAck<'a>),
    /// With single acks: the message that went out under this number is stored.
    One {
        /// Its number on the wire.
        wire: u64,
        /// What shows it.
        evidence: Evidence,
    },
    /// With single acks: a mark, as [`Resume::HighWater`], found out while the link is up.
    Mark {
        /// The number on the wire.
        wire: u64,
    },
    /// With single acks: this message was refused, alone and for good.
    Refused {
        /// Its number on the wire.
        wire: u64,
        /// The server's reason.
        reason: &'a str,
        /// It was sent before, and may have been stored then.
        may_be_stored: bool,
    },
    /// With single acks: the server did not take this message now. Once for each time it was
    /// sent.
    TryAgain {
        /// Its number on the wire.
        wire: u64,
        /// Why.
        why: &'a str,
        /// Nothing is wrong with it or the server: one before it was not taken.
        at_once: bool,
    },
    /// The server takes nothing, whatever it is.
    LineStopped {
        /// Why.
        why: &'a str,
    },
    /// It takes messages again.
    LineFree,
    /// A message that was asked for ([`Delivery::recall`](super::Delivery::recall)) is stored.
    Found {
        /// Its number on the wire.
        wire: u64,
    },
    /// A message that was asked for is not known to be stored.
    Absent {
        /// Its number on the wire.
        wire: u64,
    },
    /// The wait is over that [`Delivery::drained`](super::Delivery::drained) asked for: what was
    /// turned away goes out again.
    Again,
    /// What is heard on this link counts for nothing any more.
    Unusable,
    /// Every ack that was read together was given. Successes are applied no later than
    /// here, once for the whole batch.
    AcksEnd,
    /// The link is gone, in whatever state it was.
    LinkLost,
    /// Nothing but time has passed.
    Tick,
    /// Tell me when everything stored up to `through` is settled, or when it is `until`.
    Flush {
        /// Returned in [`Output::Flushed`].
        id: u64,
        /// The last sequence covered; what is not stored yet is not.
        through: u64,
        /// A moment in terms of [`Now::at`]; `None` waits for ever.
        until: Option<Duration>,
    },
    /// Nobody waits for this flush any more.
    FlushCancelled {
        /// As given before.
        id: u64,
    },
    /// The client ends: every flush is over, whatever is left.
    Closing,
    /// [`Output::RaiseGrant`] was carried out.
    GrantRaised(Result<(), StoreError>),
    /// [`Output::Rebase`] was carried out.
    Rebased(Result<Rebase, StoreError>),
    /// The application allows one more rebase in this run.
    AllowRebase,
    /// An operator gives up on a message that no server will settle: it becomes a refusal,
    /// so that what is behind it can go on. The server may have it all the same.
    GiveUp {
        /// The message.
        sequence: u64,
        /// Kept as the reason of the refusal.
        reason: &'a str,
    },
    /// The store can make nothing durable any more.
    SyncFailed,
    /// The store's file was removed: nothing becomes durable, but numbers are granted as before,
    /// since nobody opens that file again.
    StoreGone,
}

/// Evidence for a success (`docs/promises.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Via {
    /// The server's ack covered it.
    Ack,
    /// The server's figure covered it at a logon and no ack was ever read: AMPS does not
    /// say whether it was persisted, or refused and the refusal lost.
    Logon,
    /// The server answered that it has seen the message's id before. It took it then; whether it
    /// still holds it, nobody said.
    Duplicate,
    /// The server was asked for the message by its id after a link had ended, and holds it.
    Found,
}

/// Why this link must not be used any longer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DropReason {
    /// The server speaks of messages that were never sent.
    ForeignFigure,
    /// The server named a number of 2^63 or more.
    BadFigure,
    /// The server's figure is so high that the store gives out no numbers above it.
    NoNumbersLeft,
    /// The server is behind and the policy is to try the next.
    PublishGap,
    /// The store could not write what a rebase needs.
    StoreFailed,
}

/// Something the driver has to carry out or pass on.
#[derive(Clone, Debug)]
pub enum Output {
    /// Call `raise_grant(to)` off the I/O path and answer [`Input::GrantRaised`].
    RaiseGrant {
        /// The grant wanted.
        to: u64,
    },
    /// Call `rebase(above)` off the I/O path and answer [`Input::Rebased`].
    Rebase {
        /// The highest number to leave free: the server's figure, and some room for what
        /// the server may hold beyond it.
        above: u64,
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
    /// A refusal waits for the application.
    Refused {
        /// The message.
        sequence: u64,
        /// The server's reason, cut to [`amps_store::MAX_REASON`] bytes.
        reason: String,
        /// It came after a success that covered the message; the success stands.
        late: bool,
        /// How often this run handed the message to a transport.
        attempts: u32,
        /// Where the refusal is in the log; nowhere, but in memory, when the log takes no
        /// more after a failed sync.
        ordinal: Option<u64>,
    },
    /// A late refusal the log has no room for.
    RefusalNotLogged {
        /// The message.
        sequence: u64,
        /// The server's reason, cut as in [`Refused`](Self::Refused).
        reason: String,
        /// How often this run handed the message to a transport.
        attempts: u32,
    },
    /// A refusal that concerns no message known here.
    Unattributed {
        /// The server's number, if it sent one.
        figure: Option<u64>,
        /// The server's reason, cut as in [`Refused`](Self::Refused).
        reason: String,
    },
    /// Without a store: a link ended, and nothing is known of the messages up to `through` that
    /// were not settled before.
    Lost {
        /// The highest number given out.
        through: u64,
        /// So many of them the link never took.
        unsent: u64,
    },
    /// Without a store: a success that names no message which waits for one.
    Untaken {
        /// The number that it names.
        sequence: u64,
    },
    /// A flush ended: with nothing left, or because its time is over.
    Flushed {
        /// As given in [`Input::Flush`].
        id: u64,
        /// What became of the messages it covers.
        result: Flushed,
    },
    /// Something to watch.
    Note(Note),
}

/// Things worth telling that ask for nothing.
#[derive(Clone, Debug)]
pub enum Note {
    /// The server has less than it acknowledged before: messages `server + 1 ..= settled` may be
    /// missing there, and can no longer be resent.
    PublishGap {
        /// The server's figure as a sequence.
        server: u64,
        /// Settled before.
        settled: u64,
        /// The figure was 0.
        unknown_publisher: bool,
    },
    /// The server speaks of more than this store can have sent; nothing was settled on that
    /// claim.
    ForeignFigure {
        /// The server's number.
        figure: u64,
        /// The highest sequence that may have been sent.
        may_have_sent: u64,
    },
    /// Numbering on the wire goes on above the server's figure.
    Rebased {
        /// First sequence concerned.
        from: u64,
        /// The number it goes out under.
        first_wire: u64,
        /// Unsettled messages that may have been sent before.
        possible_duplicates: u64,
    },
    /// Another live publisher seems to use the same client name.
    NameShared {
        /// The server's number.
        figure: u64,
        /// Sending stopped.
        stopped: bool,
    },
    /// The same first message was unsettled at the end of several links, was turned away several
    /// times in a row, or no server that was asked can take it.
    Stalled {
        /// The message.
        sequence: u64,
        /// Links lost in a row with it at the head, times it was turned away in a row, or servers
        /// that cannot take it.
        links: u32,
    },
    /// A message is intact, and its envelope is not of a version this program knows: it becomes
    /// a refusal.
    Unreadable {
        /// The message.
        sequence: u64,
        /// What is wrong with its envelope.
        error: EnvelopeError,
    },
    /// The server did not take a message, for now: it goes out again after a while, and nothing
    /// before it. Told once until something is settled.
    TurnedAway {
        /// The message.
        sequence: u64,
        /// The server's reason, cut to [`amps_store::MAX_REASON`] bytes.
        why: String,
    },
    /// The server takes nothing, whatever it is; nothing is sent to it for now. Told once until
    /// something is settled.
    LineStopped {
        /// The server's reason, cut to [`amps_store::MAX_REASON`] bytes.
        why: String,
    },
    /// A link can never take a message.
    Unsendable {
        /// The message.
        sequence: u64,
        /// Why, cut to [`amps_store::MAX_REASON`] bytes.
        why: String,
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
    /// Nothing above `through` is sent for now.
    SendingStopped {
        /// Highest sequence that may still be sent.
        through: u64,
    },
    /// What stopped it is mended.
    SendingResumed,
}

/// The ack that a message wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AckWish {
    /// It stands in a store until it is settled, in whatever way the server's acks do that.
    #[default]
    Kept,
    /// No store numbers it, and it asks for an ack that names this very message.
    Asked,
    /// No store numbers it, and it asks for none.
    Unasked,
}

/// A message to put on the wire now.
#[derive(Clone, Copy, Debug)]
pub struct ToSend<'a> {
    /// Its sequence.
    pub sequence: u64,
    /// The number to send it under.
    pub wire: u64,
    /// It may have been sent before, under this number or another.
    pub again: bool,
    /// The ack it wants.
    pub ack: AckWish,
    /// What to send.
    pub message: MessageRef<'a>,
}

/// What a link takes now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Messages.
    pub messages: usize,
    /// Bytes of all of them but the first, which may be larger.
    pub bytes: usize,
}

impl Room {
    /// Nothing fits.
    pub const NONE: Room = Room {
        messages: 0,
        bytes: 0,
    };

    /// Everything fits.
    pub const ANY: Room = Room {
        messages: usize::MAX,
        bytes: usize::MAX,
    };

    /// Whether a message fits.
    pub fn is_none(self) -> bool {
        self.messages == 0 || self.bytes == 0
    }
}

/// Why [`Delivery::hand_over`](super::Delivery::hand_over) did not go on.
#[derive(Debug)]
pub enum NotSent<E> {
    /// The next message cannot be read.
    Read(ReadError),
    /// It was not taken.
    Refused {
        /// The message.
        sequence: u64,
        /// What was said.
        error: E,
    },
}

impl<E> From<ReadError> for NotSent<E> {
    fn from(error: ReadError) -> Self {
        NotSent::Read(error)
    }
}

/// The number a message goes out under.
pub(super) fn wire(rebase: Option<Rebase>, sequence: u64) -> u64 {
    match rebase {
        Some(rebase) if sequence >= rebase.from => sequence.wrapping_add_signed(rebase.delta),
        _ => sequence,
    }
}

/// Totals of this run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Settled as a success by an ack.
    pub persisted: u64,
    /// Settled as a success at a logon.
    pub persisted_at_logon: u64,
    /// Settled because the server had seen the message's id before.
    pub duplicates: u64,
    /// Settled because the server was asked for the message by its id, and holds it.
    pub found: u64,
    /// Messages that may be stored twice: at a server of single acks, settled by an ack after they
    /// went out again without proof that they were not stored before; and those that a rebase sent
    /// again under other numbers, at most.
    pub possible_duplicates: u64,
    /// Refused, with the refusal in the log (late ones not counted: the success stands).
    pub rejected: u64,
    /// Handed to a transport although they may have been sent before, under the same number or,
    /// before a rebase of this run, under another.
    pub resent: u64,
    /// Handed to a transport, all in all.
    pub sent: u64,
    /// Refusals after a success.
    pub late: u64,
    /// Refusals that could not be attributed to a message.
    pub unattributed: u64,
}

impl Totals {
    pub(super) fn settled(&mut self, count: u64, via: Via) {
        match via {
            Via::Ack => self.persisted += count,
            Via::Logon => self.persisted_at_logon += count,
            Via::Duplicate => self.duplicates += count,
            Via::Found => self.found += count,
        }
    }
}
