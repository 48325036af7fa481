//! What the next sync has to write: the stretches written since the last one began.
//!
//! A sync of the whole file would also write the pages that were made ready ahead of the
//! writer, and take their readiness away. So the log names what it wrote. Where it cannot
//! be sure, everything is synced.

use std::io;

use crate::medium::Device;

/// More stretches than this are not worth a call each.
const MOST: usize = 6;

/// What a sync covers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Extent {
    /// The whole file.
    All,
    /// These stretches (offset, end), which hold everything written since the last sync
    /// that succeeded.
    Stretches(Vec<(u64, u64)>),
}

impl Extent {
    /// Makes it durable.
    ///
    /// # Errors
    /// As [`Device::sync`].
    pub(crate) fn sync(&self, device: &dyn Device) -> io::Result<()> {
        match self {
            Extent::All => device.sync(),
            Extent::Stretches(stretches) => stretches
                .iter()
                .try_for_each(|&(from, to)| device.sync_range(from, to - from)),
        }
    }
}

/// Collects what is written between the beginnings of two syncs.
pub(crate) struct Unsynced {
    extent: Extent,
    /// Where the stretch begins that appends make longer.
    appending_from: u64,
}

impl Unsynced {
    /// Anything may be unsynced; appends go on at `position`.
    pub(crate) fn everything(position: u64) -> Self {
        Unsynced {
            extent: Extent::All,
            appending_from: position,
        }
    }

    /// This stretch was written.
    pub(crate) fn touch(&mut self, from: u64, to: u64) {
        if let Extent::Stretches(stretches) = &mut self.extent {
            stretches.push((from, to));
            if stretches.len() > MOST {
                self.extent = Extent::All;
            }
        }
    }

    /// Appends went on up to `end`, and continue at `next`.
    pub(crate) fn jump(&mut self, end: u64, next: u64) {
        self.touch(self.appending_from, end);
        self.appending_from = next;
    }

    /// A sync begins: appends wrote up to `end` and continue at `next`.
    pub(crate) fn begin_sync(&mut self, end: u64, next: u64) -> Extent {
        self.jump(end, next);
        std::mem::replace(&mut self.extent, Extent::Stretches(Vec::new()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_was_written_since_the_last_sync_began() {
        let mut unsynced = Unsynced::everything(100);
        assert_eq!(unsynced.begin_sync(208, 200), Extent::All);
        let stretch = |from, to| Extent::Stretches(vec![(from, to)]);
        assert_eq!(unsynced.begin_sync(308, 300), stretch(200, 308));
        unsynced.jump(350, 1000);
        unsynced.touch(0, 64);
        let three = Extent::Stretches(vec![(300, 350), (0, 64), (1000, 1108)]);
        assert_eq!(unsynced.begin_sync(1108, 1100), three);
        assert_eq!(unsynced.begin_sync(1308, 1300), stretch(1100, 1308));
        (0..=MOST).for_each(|_| unsynced.touch(0, 64));
        assert_eq!(unsynced.begin_sync(1408, 1400), Extent::All);
    }
}
