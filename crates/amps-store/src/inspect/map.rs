//! How full each segment is: the ring, ready to be drawn.

use super::Inspection;
use crate::format::SegmentHeader;

/// What a segment's header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SegmentHeaderState {
    /// Its bytes may be reused.
    Free,
    /// It holds records from this ordinal on.
    Used {
        /// The first of them.
        first_ordinal: u64,
    },
    /// It cannot be read.
    Damaged,
}

/// One segment of the ring.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct SegmentMap {
    /// Its number, in file order.
    pub segment: usize,
    /// Where it starts.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
    /// What its header says.
    pub header: SegmentHeaderState,
    /// Its place in the log: 0 is the oldest; `None` for one that holds none of the log.
    pub position: Option<usize>,
    /// First ordinal of the log in it.
    pub first_ordinal: u64,
    /// Last ordinal of the log in it.
    pub last_ordinal: u64,
    /// Bytes from its start to the end of the log in it.
    pub written: u64,
    /// Bytes of records in it that are needed: unsettled messages, open refusals and their
    /// messages.
    pub live: u64,
    /// Records are appended here.
    pub is_tail: bool,
    /// Records set aside in it.
    pub set_aside: u64,
}

impl Inspection {
    /// Every segment in file order.
    pub fn map(&self) -> Vec<SegmentMap> {
        let recovered = &self.view.recovered;
        let geometry = recovered.geometry;
        let mut places = vec![None; self.view.stamps.len()];
        for (position, link) in recovered.chain.iter().enumerate() {
            places[link.segment] = Some((position, link));
        }
        let mut set_aside = vec![0; self.view.stamps.len()];
        for seen in &recovered.set_aside {
            set_aside[geometry.segment_of(seen.offset)] += 1;
        }
        let tail = recovered.chain.last().map(|c| c.segment);
        (0..self.view.stamps.len())
            .map(|segment| {
                let place = places[segment];
                SegmentMap {
                    segment,
                    offset: geometry.segment_at(segment),
                    bytes: geometry.segment_size,
                    header: match self.stamp(segment) {
                        Some(SegmentHeader::Free) => SegmentHeaderState::Free,
                        Some(SegmentHeader::Used { first_ordinal }) => {
                            SegmentHeaderState::Used { first_ordinal }
                        }
                        None => SegmentHeaderState::Damaged,
                    },
                    position: place.map(|(position, _)| position),
                    first_ordinal: place.map_or(0, |(_, link)| link.first_ordinal),
                    last_ordinal: place.map_or(0, |(_, link)| link.last_ordinal),
                    written: place.map_or(0, |(_, link)| link.end - geometry.segment_at(segment)),
                    live: recovered.state.segment_live(segment),
                    is_tail: tail == Some(segment),
                    set_aside: set_aside[segment],
                }
            })
            .collect()
    }
}
