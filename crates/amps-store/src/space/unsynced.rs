//! What the next sync has to write: the stretches that were written since the last one began.
//!
//! A sync of the whole file would also write what is in segments that were freed, none of which
//! needs to last, and would make pages unready that were made ready ahead of the writer. So the
//! log says what it has written.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;

use crate::medium::Device;

/// More stretches than this are not worth a call each, since each call may flush the device's
/// cache.
const MOST: usize = 6;

/// Stretches (offset, end) that together hold everything that a sync has to cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Extent(Vec<(u64, u64)>);

impl Extent {
    /// The fewest stretches that hold all of these. If there are too many, those with the least
    /// between them are joined.
    pub(crate) fn of(stretches: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut stretches: Vec<(u64, u64)> = stretches
            .into_iter()
            .filter(|(from, to)| from < to)
            .collect();
        stretches.sort_unstable();
        let mut joined: Vec<(u64, u64)> = Vec::new();
        for (from, to) in stretches {
            match joined.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => joined.push((from, to)),
            }
        }
        let mut between: Vec<u64> = joined.windows(2).map(|w| w[1].0 - w[0].1).collect();
        between.sort_unstable();
        let worth = match joined.len().checked_sub(MOST) {
            None | Some(0) => return Extent(joined),
            Some(too_many) => between[too_many - 1],
        };
        let mut few: Vec<(u64, u64)> = Vec::with_capacity(MOST);
        for (from, to) in joined {
            match few.last_mut() {
                Some(last) if from - last.1 <= worth => last.1 = to,
                _ => few.push((from, to)),
            }
        }
        Extent(few)
    }

    /// Makes them durable.
    ///
    /// # Errors
    /// As [`Device::sync`].
    pub(crate) fn sync(&self, device: &dyn Device) -> io::Result<()> {
        let mut stretches = self.0.iter();
        stretches.try_for_each(|&(from, to)| device.sync_range(from, to - from))
    }
}

/// Collects what is written between the beginnings of two syncs.
pub(crate) struct Unsynced {
    /// In the order in which they were written; none of them reaches over the end of a segment.
    stretches: VecDeque<(u64, u64)>,
    /// Where the stretch begins that appends are extending.
    appending_from: u64,
}

impl Unsynced {
    /// Everything is durable; appends go on at `position`.
    pub(crate) fn nothing(position: u64) -> Self {
        Unsynced {
            stretches: VecDeque::new(),
            appending_from: position,
        }
    }

    /// Appends went on up to `end`, and continue at `next`.
    pub(crate) fn jump(&mut self, end: u64, next: u64) {
        if self.appending_from < end {
            self.stretches.push_back((self.appending_from, end));
        }
        self.appending_from = next;
    }

    /// The oldest segment was freed: nothing in it needs to last.
    pub(crate) fn forget(&mut self, segment: &Range<u64>) {
        while self
            .stretches
            .front()
            .is_some_and(|s| segment.contains(&s.0))
        {
            self.stretches.pop_front();
        }
    }

    /// A sync begins: appends have written up to `end` and continue at `next`.
    pub(crate) fn begin_sync(&mut self, end: u64, next: u64) -> Extent {
        self.jump(end, next);
        Extent::of(std::mem::take(&mut self.stretches))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_was_written_since_the_last_sync_began() {
        let mut unsynced = Unsynced::nothing(200);
        assert_eq!(unsynced.begin_sync(308, 300), Extent(vec![(200, 308)]));
        unsynced.jump(400, 1000);
        let two = Extent(vec![(300, 400), (1000, 1108)]);
        assert_eq!(unsynced.begin_sync(1108, 1100), two);
        assert_eq!(unsynced.begin_sync(1308, 1300), Extent(vec![(1100, 1308)]));
        assert_eq!(unsynced.begin_sync(1300, 1300), Extent::default());
    }

    #[test]
    fn what_was_freed_is_not_synced() {
        let mut unsynced = Unsynced::nothing(164);
        unsynced.jump(200, 300);
        unsynced.jump(400, 100);
        unsynced.jump(200, 200);
        unsynced.forget(&(100..200));
        let left = Extent(vec![(100, 208), (300, 400)]);
        assert_eq!(unsynced.begin_sync(208, 208), left);
    }

    #[test]
    fn neighbours_are_one_stretch_and_of_many_the_nearest_are() {
        assert_eq!(
            Extent::of([(200, 300), (100, 200), (5, 5)]),
            Extent(vec![(100, 300)])
        );
        let many = (0..9).map(|n| (n * n * 100, n * n * 100 + 50));
        let few = Extent::of(many);
        assert_eq!(few.0.len(), MOST);
        assert_eq!(few.0[0], (0, 950));
        assert_eq!(few.0[1], (1600, 1650));
    }
}
