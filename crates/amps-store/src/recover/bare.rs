//! Finds free segments that hold nothing that could be a record, while the log is walked.
//!
//! A power cut may leave records in any segment, so everything that was not walked is searched,
//! and most of it was never written. Finding that out takes as long as reading it, which two
//! threads do in half the time. A segment that was not proved to be bare is searched as if nobody
//! had looked.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::format::RECORD_HEADER;
use crate::recover::scan::{Geometry, Scanner, Source};

/// What one thread looks through at a time.
const PIECE: u64 = 4 << 20;

/// A thread is started for more than this; in tests always.
const MANY: u64 = if cfg!(test) { 0 } else { 4 * PIECE };

pub(crate) struct Bare {
    pieces: Vec<(usize, Range<u64>)>,
    /// The next piece that no thread has taken.
    next: AtomicUsize,
    /// For each segment, whether all of its pieces have been bare so far.
    bare: Vec<AtomicBool>,
}

impl Bare {
    /// For looking through these segments, out of `count`.
    pub(crate) fn new(geometry: &Geometry, count: usize, segments: &[usize]) -> Self {
        let mut pieces = Vec::new();
        for &segment in segments {
            let (mut from, end) = (geometry.records_at(segment), geometry.end_of(segment));
            while from < end {
                let to = end.min(from + PIECE);
                // A header may begin in one piece and end in the next.
                let reach = end.min(to + RECORD_HEADER as u64 - 8);
                pieces.push((segment, from..reach));
                from = to;
            }
        }
        let mut bare: Vec<AtomicBool> = Vec::new();
        bare.resize_with(count, AtomicBool::default);
        for &segment in segments {
            bare[segment].store(true, Ordering::Relaxed);
        }
        Bare {
            pieces,
            next: AtomicUsize::new(0),
            bare,
        }
    }

    /// Whether there is enough to look at to start a second thread.
    pub(crate) fn is_much(&self) -> bool {
        let bytes: u64 = self.pieces.iter().map(|(_, p)| p.end - p.start).sum();
        bytes > MANY
    }

    /// Takes one piece after the other until none is left.
    pub(crate) fn look<S: Source + ?Sized>(&self, scanner: &mut Scanner<'_, S>) {
        while let Some((segment, piece)) =
            self.pieces.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let bare = &self.bare[*segment];
            // What cannot be read is searched later, and the error is found there.
            if bare.load(Ordering::Relaxed) && !scanner.is_bare(piece.clone()).unwrap_or(false) {
                bare.store(false, Ordering::Relaxed);
            }
        }
    }

    /// Tells the threads that nobody needs the result any more.
    pub(crate) fn stop(&self) {
        self.next.store(self.pieces.len(), Ordering::Relaxed);
    }

    /// Whether the segment is bare; final once all threads that looked have ended.
    pub(crate) fn is_bare(&self, segment: usize) -> bool {
        self.bare
            .get(segment)
            .is_some_and(|bare| bare.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::format::{Kind, RecordHeader, SEGMENTS_AT, max_record};

    const SIZE: u64 = 2 * PIECE;

    /// Zeros, but for the head of a record.
    struct Head(u64, [u8; RECORD_HEADER]);

    impl Source for Head {
        fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
            for (at, byte) in (offset..).zip(into) {
                let nth = at.checked_sub(self.0).and_then(|n| self.1.get(n as usize));
                *byte = nth.copied().unwrap_or(0);
            }
            Ok(())
        }
    }

    /// Wherever a search finds a record, its segment is not bare, even across two pieces.
    #[test]
    fn a_segment_with_a_head_anywhere_is_not_bare() {
        let geometry = Geometry {
            key: 0,
            segments_at: SEGMENTS_AT,
            segment_size: SIZE,
            max_record: max_record(SIZE),
        };
        let header = RecordHeader {
            len: RECORD_HEADER as u32,
            kind: Kind::Acceptance,
            quiet: false,
            envelope_len: 0,
            sequence: 1,
            ordinal: 1,
            generation: 1,
        };
        let mut head = [0; RECORD_HEADER];
        header.encode_into(&mut head, 0);
        // `encode_into` does not write the commit word; here it has a wrong checksum.
        head[..8].copy_from_slice(&crate::format::commit_word(7, header.len).to_le_bytes());
        let first = geometry.records_at(1);
        let seam = first + PIECE;
        let last = geometry.end_of(1) - RECORD_HEADER as u64;
        let near = (seam - 48..=seam + 8).step_by(8);
        for place in [first, first + 8, last].into_iter().chain(near) {
            let source = Head(place, head);
            let bare = Bare::new(&geometry, 3, &[0, 1]);
            bare.look(&mut Scanner::new(&source, geometry));
            let told = [0, 1, 2].map(|segment| bare.is_bare(segment));
            assert_eq!(told, [true, false, false], "a head at {place}");
            let (mut budget, mut found) = (64, Vec::new());
            let mut scanner = Scanner::new(&source, geometry);
            let range = (first, geometry.end_of(1));
            scanner
                .search(range.0, range.1, 0, &mut budget, &mut found)
                .unwrap();
            assert_eq!(budget, 24, "the search met it");
        }
        assert_eq!(SEGMENTS_AT, geometry.segment_at(0));
    }
}
