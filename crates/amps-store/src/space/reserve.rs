//! Room that is kept for the future of the messages in the log, should nothing be freed any more.
//!
//! What is charged for a message is room that freeing segments would give. A device that fails ends
//! that from one moment to the next, and what the server then settles or refuses must find its room
//! all the same: so a publish leaves as much as is charged in what is free already.

use super::{SLACK, Space};
use crate::faults::planted::{self, Bug};
use crate::format::{CHARGE, MAX_OPENING, MAX_SETTLEMENT, SEGMENT_HEADER};
use crate::log::Log;
use crate::recover::scan::Geometry;
use crate::state::State;

/// What records that are no messages may leave of a segment's end.
const END: u64 = SLACK + MAX_SETTLEMENT;

/// Segments that a run whose device failed leaves to the next one: for its epoch, and what it copies
/// to free the first.
pub(super) const FOR_THE_NEXT: usize = 1;

/// What surely fits into one segment of records that are no messages.
fn whole(geometry: &Geometry) -> u64 {
    geometry.segment_size - SEGMENT_HEADER - MAX_OPENING - END
}

impl Space {
    /// Bytes of records that are no messages for which there surely is room behind a record of
    /// `stride` bytes, without anything being freed.
    #[inline]
    fn unfreed(&self, stride: u64) -> u64 {
        let whole = whole(&self.geometry);
        let (begun, ready) = match self.fits(stride) {
            true => (self.remaining(), self.ready()),
            false => (whole + END, self.ready().saturating_sub(1)),
        };
        let segments = ready.saturating_sub(FOR_THE_NEXT) as u64;
        segments * whole + begun.saturating_sub(stride + END)
    }

    /// Bytes that freeing the oldest segment copies.
    #[inline]
    fn to_copy(&self, state: &State) -> u64 {
        match self.chain.front() {
            Some(oldest) if self.chain.len() > 1 => state.segment_live(oldest.segment),
            _ => 0,
        }
    }
}

impl Log {
    /// Whether a record of `stride` bytes, for whose future `charge` is charged, leaves room for
    /// everything that is charged and a last mark, were nothing freed any more.
    #[inline]
    pub(crate) fn leaves_reserve(&self, stride: u64, charge: u64) -> bool {
        if planted::is(Bug::ReserveSpent) {
            return true;
        }
        let charges = self.state.charges() + charge;
        let needed = match self.failed {
            // While segments are freed the copies of one may be under way, and marks are written
            // that nothing is charged for. What is charged fits all the same once everything is
            // copied together: a segment takes a quarter more of small records than admission
            // counts on.
            None => charges + charges / 4 + self.space.to_copy(&self.state),
            Some(_) => charges,
        };
        needed + MAX_OPENING <= self.space.unfreed(stride)
    }

    /// Whether the next message, of whatever size, has to wait for its reserve.
    pub(super) fn is_reserve_short(&self) -> bool {
        !self.leaves_reserve(self.geometry.max_record, CHARGE)
    }
}
