//! Sequences, wire numbers and the server's figures, as `docs/promises.md` has them under
//! Numbers, and nothing else.

use amps_store::{PublishStore, Rebase, StoredMessage};

use super::Via;
use super::api::wire;

/// The highest number any publisher can reach; a figure above it is the server's error.
pub(super) const MAX_FIGURE: u64 = (1 << 63) - 1;

/// Messages that are looked at one by one to count them: some milliseconds.
const MOST_COUNTED: u64 = 1 << 18;

/// Numbers that a rebase leaves free above the server's figure.
///
/// The figure counts what the server has settled. What else it holds under the name, from a
/// publisher that was just replaced, has higher numbers, and the figure says nothing of
/// them: new messages right above it would be dropped as duplicates of those, and be
/// covered by their acks. Gaps do no harm (`docs/protocol.md` §13).
const HEADROOM: u64 = 1 << 32;

/// What a rebase above a server's figure leaves free, at the end of the numbers less.
pub(super) fn rebase_above(figure: u64) -> u64 {
    match figure < MAX_FIGURE - 2 * HEADROOM {
        true => figure + HEADROOM,
        false => figure,
    }
}

/// A server's figure, translated and judged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Figure {
    /// It covers our messages up to this sequence.
    Within(u64),
    /// It belongs to a numbering that a rebase has ended; settles nothing.
    Below,
    /// It is beyond anything this store can have sent.
    Foreign,
    /// No publisher can have reached it.
    Impossible,
}

#[derive(Debug)]
pub(super) struct Figures {
    rebase: Option<Rebase>,
    /// M: the highest sequence that may have been sent, in this run or before.
    reach: u64,
    /// The highest sequence that may have been sent under any numbering: what a rebase does
    /// not lower. It tells of duplicates, and settles nothing.
    sent: u64,
    /// The first sequence of this run, and how many unsettled ones there were before it.
    first_new: u64,
    recovered: u64,
    /// G: sequences up to here may be handed to a transport.
    grant: u64,
    /// Rebases still allowed in this run.
    rebases_left: u32,
    /// The highest figure at a logon or sequence handed over, in this run.
    known: Option<u64>,
    /// The highest message that a server settled, as far as is known.
    settled: u64,
    /// The highest message that a server was known to hold, in this run.
    stored: u64,
}

impl Figures {
    pub(super) fn new(store: &dyn PublishStore) -> Self {
        let (numbers, bounds) = (store.numbers(), store.bounds());
        Figures {
            rebase: numbers.rebase,
            reach: numbers.found_grant,
            sent: numbers.found_grant,
            first_new: bounds.next,
            recovered: bounds.unsettled,
            grant: numbers.grant,
            rebases_left: 1,
            known: None,
            settled: settled_before(store),
            stored: 0,
        }
    }

    pub(super) fn rebase(&self) -> Option<Rebase> {
        self.rebase
    }

    pub(super) fn reach(&self) -> u64 {
        self.reach
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent
    }

    pub(super) fn grant(&self) -> u64 {
        self.grant
    }

    pub(super) fn wire(&self, sequence: u64) -> u64 {
        wire(self.rebase, sequence)
    }

    pub(super) fn at_logon(&self, figure: u64) -> Figure {
        match (self.judge(figure), self.rebase) {
            (Figure::Below, Some(rebase)) => Figure::Within(rebase.from - 1),
            (judged, _) => judged,
        }
    }

    pub(super) fn on_ack(&self, figure: u64) -> Figure {
        self.judge(figure)
    }

    fn judge(&self, figure: u64) -> Figure {
        if figure > MAX_FIGURE {
            return Figure::Impossible;
        }
        let sequence = match self.rebase {
            None => figure,
            Some(rebase) if figure < self.wire(rebase.from) => return Figure::Below,
            Some(rebase) => figure.wrapping_add_signed(rebase.delta.wrapping_neg()),
        };
        match sequence > self.reach {
            true => Figure::Foreign,
            false => Figure::Within(sequence),
        }
    }

    pub(super) fn may_have_sent(&self, sequence: u64) -> bool {
        sequence <= self.reach
    }

    pub(super) fn handed_over(&mut self, sequence: u64) {
        self.reach = self.reach.max(sequence);
        self.sent = self.sent.max(sequence);
        self.known = Some(self.known.unwrap_or(0).max(sequence));
    }

    pub(super) fn judged(&mut self, through: u64) {
        self.known = Some(self.known.unwrap_or(0).max(through));
    }

    /// Whether a figure at logon is above everything this run has seen or sent: someone
    /// else may be counting.
    pub(super) fn runs_ahead(&self, through: u64) -> bool {
        self.known.is_some_and(|known| through > known)
    }

    /// Whether less than half a step is granted above the highest number in use.
    pub(super) fn grant_is_low(&self, step: u64) -> bool {
        self.grant < MAX_FIGURE && self.grant.saturating_sub(self.reach) < step.div_ceil(2)
    }

    pub(super) fn reload_grant(&mut self, store: &dyn PublishStore) {
        self.grant = store.numbers().grant;
    }

    pub(super) fn may_rebase(&self) -> bool {
        self.rebases_left > 0
    }

    pub(super) fn allow_rebase(&mut self) {
        self.rebases_left = 1;
    }

    /// How many unsettled messages from `from` on may have been sent, at most.
    pub(super) fn may_be_duplicates(&self, store: &dyn PublishStore, from: u64) -> u64 {
        let bounds = store.bounds();
        // Those that were sent may be settled by now, and others stored.
        let from = bounds.first_unsettled.map_or(from, |first| from.max(first));
        if self.sent < from {
            return 0;
        }
        // Numbers are skipped at an open, and settled one by one, so a span of them says less than
        // a count of it, or of what lies behind it.
        let count = |from: u64, through: u64| {
            let looks = (from..=through).filter(|sequence| store.is_unsettled(*sequence));
            looks.count() as u64
        };
        let (span, behind) = (self.sent - from + 1, bounds.last.saturating_sub(self.sent));
        if span.min(behind) > MOST_COUNTED {
            let of_this_run = (self.sent + 1).saturating_sub(self.first_new);
            return span.min(self.recovered + of_this_run).min(bounds.unsettled);
        }
        match span <= behind {
            true => count(from, self.sent),
            false => bounds.unsettled - count(self.sent + 1, bounds.last).min(bounds.unsettled),
        }
    }

    pub(super) fn rebased(&mut self, store: &dyn PublishStore, rebase: Rebase) {
        self.rebases_left = self.rebases_left.saturating_sub(1);
        self.rebase = Some(rebase);
        self.reach = rebase.from.saturating_sub(1);
        if planted!(AgainForgotten) {
            self.sent = self.reach;
        }
        self.known = Some(self.reach);
        self.reload_grant(store);
    }

    /// Everything up to here was settled by a server with everything below it, as far as is
    /// known: what the application gave up on is settled, and no server ever said so.
    pub(super) fn settled_floor(&self, store: &dyn PublishStore) -> u64 {
        store.bounds().floor.min(self.settled)
    }

    /// A server settled this message as a success in this run, with this evidence.
    pub(super) fn settled_via(&mut self, sequence: u64, via: Via) {
        // What was stored once need not be there any more.
        if via != Via::Duplicate {
            self.stored = self.stored.max(sequence);
        }
        self.settled(sequence);
    }

    /// The highest message that a server was known to hold in this run: what a mark may not be
    /// below. Messages of earlier runs do not count: the last of them may have been refused.
    pub(super) fn held(&self) -> u64 {
        self.stored
    }

    /// A server settled this message in this run.
    pub(super) fn settled(&mut self, sequence: u64) {
        self.settled = self.settled.max(sequence);
    }
}

/// What earlier runs had settled.
///
/// The store's floor may stand on numbers that an unclean stop skipped; no server ever saw
/// those, so they are no evidence. Right below the first unsettled message the floor counts
/// only if there is a message: otherwise a healthy server would be taken for one that is
/// behind. Nor does it count above what may have been sent: an import or an operator settled what is
/// there, and which of the numbers below are messages of ours nobody knows.
fn settled_before(store: &dyn PublishStore) -> u64 {
    let bounds = store.bounds();
    let floor = bounds.floor.min(bounds.last);
    let below_unsettled = bounds.first_unsettled == Some(floor + 1);
    let never_sent = floor > store.numbers().found_grant;
    match never_sent || (below_unsettled && !is_there(store, floor)) {
        true => 0,
        false => floor,
    }
}

fn is_there(store: &dyn PublishStore, sequence: u64) -> bool {
    // A damaged record is a message all the same.
    store
        .get(sequence, &mut StoredMessage::new())
        .unwrap_or(true)
}
