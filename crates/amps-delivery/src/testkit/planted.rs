//! Defects on demand, for simulations.
//!
//! A test that never fails proves nothing. [`plant`] puts a known protocol defect into the state
//! machines of the calling thread, so that a simulation can show that it would be caught.

use std::cell::Cell;

/// A defect of the protocol that loses messages or lies about them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// After a logon the newest message goes out first.
    Overtaking,
    /// A refusal settles everything before it.
    CumulativeFailure,
    /// A message is settled when it was sent.
    DiscardBeforeAck,
    /// The server's figure at logon is not looked at.
    FigureIgnored,
    /// What a logon settles is said to be acked.
    LogonTakenForAck,
    /// A figure beyond what was sent settles everything.
    ForeignBelieved,
    /// A flush waits for what was stored after it, too.
    FlushWaitsForEmpty,
    /// Messages go out above the durable send grant.
    GrantNotAwaited,
    /// A rebase numbers right above the server's figure.
    NoHeadroom,
    /// Messages go out under new numbers before the rebase is durable.
    RebaseNotAwaited,
    /// A rebase that an earlier link asked for is forgotten with it.
    RebaseForgotten,
    /// What is behind a give-up goes out before that is durable.
    GiveUpNotAwaited,
    /// At `Disk`, messages go out before they are durable.
    DurabilityNotAwaited,
    /// A failure that names nobody is taken for one of the oldest message.
    FailureGuessed,
    /// An ack beyond what was sent settles what was sent.
    AckBeyondSentBelieved,
    /// Messages that were sent before are not counted as resent.
    ResentUncounted,
    /// What was sent before a rebase goes out as if it had not been.
    AgainForgotten,
    /// A rebase tells of no possible duplicates.
    DuplicatesUntold,
    /// An ack that settles nothing gives room for another message.
    RoomFreedTwice,
    /// More bytes are on the way than may be.
    BytesUnbounded,
    /// A replay goes as fast as the link.
    PaceIgnored,
    /// A refusal does not say how often the message was tried.
    AttemptsForgotten,
    /// A message that breaks every link is not told.
    StallUntold,
    /// A rebase that failed lets messages out all the same.
    FailedRebaseGoesLive,
    /// Acks that were read are dropped with their link.
    AcksDroppedWithLink,
    /// A refusal that comes again is counted again.
    RefusalCountedTwice,
    /// An ack of any kind settles.
    KindIgnored,
    /// An ack settles unless it says that it failed.
    StatusIgnored,
    /// What a subscription is told settles publishes.
    SubscriptionAckSettles,
    /// Whatever is processed while logging on is the logon.
    AnyAckLogsOn,
    /// A refused logon is a logon.
    RefusedLogonBelieved,
    /// A message that was not answered in time is refused.
    OverdueIsFailure,
    /// New messages go out behind one that was turned away.
    TryAgainOvertakes,
    /// What is behind a message that no server can take goes out before its refusal is durable.
    UnsendableNotAwaited,
    /// A message that no server can take ends one link after the other.
    UnsendableLoops,
    /// After a rebase messages go out under the numbers, and so the ids, of before.
    IdReusedAfterRebase,
    /// That a server has seen an id settles its message, whether or not it was sent.
    DuplicateAboveSentBelieved,
    /// The ack of one message settles those before it.
    MarkAcrossHole,
    /// What waits to be written is written when the link has ended.
    WrittenAfterEnd,
}

impl Planted {
    /// Those that show where acks are single.
    pub const SINGLE: [Planted; 8] = [
        Planted::OverdueIsFailure,
        Planted::TryAgainOvertakes,
        Planted::UnsendableNotAwaited,
        Planted::UnsendableLoops,
        Planted::IdReusedAfterRebase,
        Planted::DuplicateAboveSentBelieved,
        Planted::MarkAcrossHole,
        Planted::WrittenAfterEnd,
    ];

    /// Those that show where acks have figures.
    pub const ALL: [Planted; 31] = [
        Planted::Overtaking,
        Planted::CumulativeFailure,
        Planted::DiscardBeforeAck,
        Planted::FigureIgnored,
        Planted::LogonTakenForAck,
        Planted::ForeignBelieved,
        Planted::FlushWaitsForEmpty,
        Planted::GrantNotAwaited,
        Planted::NoHeadroom,
        Planted::RebaseNotAwaited,
        Planted::RebaseForgotten,
        Planted::GiveUpNotAwaited,
        Planted::DurabilityNotAwaited,
        Planted::FailureGuessed,
        Planted::AckBeyondSentBelieved,
        Planted::ResentUncounted,
        Planted::AgainForgotten,
        Planted::DuplicatesUntold,
        Planted::RoomFreedTwice,
        Planted::BytesUnbounded,
        Planted::PaceIgnored,
        Planted::AttemptsForgotten,
        Planted::StallUntold,
        Planted::FailedRebaseGoesLive,
        Planted::AcksDroppedWithLink,
        Planted::RefusalCountedTwice,
        Planted::KindIgnored,
        Planted::StatusIgnored,
        Planted::SubscriptionAckSettles,
        Planted::AnyAckLogsOn,
        Planted::RefusedLogonBelieved,
    ];
}

thread_local! {
    static PLANTED: Cell<Option<Planted>> = const { Cell::new(None) };
}

/// Plants a defect in this thread, or removes it.
pub fn plant(defect: Option<Planted>) {
    PLANTED.set(defect);
}

/// Whether this thread has that defect.
pub fn is_planted(defect: Planted) -> bool {
    PLANTED.get() == Some(defect)
}
