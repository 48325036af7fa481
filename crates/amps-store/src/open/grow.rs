//! A larger capacity for a store that exists. It is decided before the store is mapped, and takes
//! effect with the superblock that begins the run.

use std::io;

use super::take_over::lengthen;
use crate::format::{Superblock, most_segments};
use crate::medium::Medium;
use crate::options::Options;
use crate::report::Growth;

/// What an open should do about the capacity.
pub(super) struct Plan {
    /// In segments: the most that may be mapped.
    pub(super) cap_segments: u64,
    /// What is to be reported; `None`: nothing was asked for that the store does not have
    /// already.
    pub(super) growth: Option<Growth>,
}

impl Plan {
    /// `has_room` says whether the device takes a file of that length.
    pub(super) fn of(
        superblock: &Superblock,
        options: &Options,
        has_room: impl FnOnce(u64) -> io::Result<()>,
    ) -> Plan {
        let (size, now) = (superblock.segment_size, superblock.cap_segments);
        let bytes = |segments| superblock.segments_at + segments * size;
        let keep = |growth| Plan {
            cap_segments: now,
            growth,
        };
        let Some(asked) = options.grow_to else {
            return keep(None);
        };
        let segments = asked.saturating_sub(superblock.segments_at) / size;
        if segments == now {
            return keep(None);
        }
        if segments < now {
            return keep(Some(Growth::Larger {
                capacity: bytes(now),
                asked,
            }));
        }
        let refused = |error: String| Growth::Refused {
            capacity: bytes(now),
            asked,
            error,
        };
        if segments > most_segments(size) {
            let most = bytes(most_segments(size));
            return keep(Some(refused(format!("a store takes at most {most} bytes"))));
        }
        match has_room(bytes(segments)) {
            Ok(()) => Plan {
                cap_segments: segments,
                growth: Some(Growth::Grown {
                    from: bytes(now),
                    to: bytes(segments),
                }),
            },
            Err(error) => keep(Some(refused(error.to_string()))),
        }
    }

    /// Carries it out, except for the superblock, and returns how many segments there are then. A
    /// preallocated store gets all of them at once, or keeps what it has. `reach`: how far the
    /// file goes.
    pub(super) fn carry_out(
        &mut self,
        superblock: &mut Superblock,
        medium: &mut dyn Medium,
        segments: u64,
        reach: u64,
    ) -> u64 {
        let Some(Growth::Grown { from, to }) = self.growth else {
            return segments;
        };
        let mut there = segments;
        if superblock.preallocated {
            let end = superblock.len_of(segments);
            if let Err(error) = lengthen(medium, end, reach, to) {
                self.growth = Some(Growth::Refused {
                    capacity: from,
                    asked: to,
                    error: error.to_string(),
                });
                return segments;
            }
            there = self.cap_segments;
        }
        superblock.cap_segments = self.cap_segments;
        there
    }
}
