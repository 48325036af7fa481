//! What the records mean, taken together: which messages are open, refused or settled,
//! and how much room they hold. Live operation and recovery feed the same functions.

pub(crate) mod index;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};

use crate::format::{ACCEPTANCE, CHARGE, Kind, RecordHeader};
use crate::recover::scan::Geometry;
use crate::state::index::{Entry, Index};

pub(crate) struct State {
    geometry: Geometry,
    index: Index,
    /// Refusals that wait, and where their records stand; after a failed sync that may be
    /// nowhere.
    rejections: BTreeMap<u64, Entry>,
    floor: u64,
    last: u64,
    unsettled: u64,
    live: u64,
    charges: u64,
    /// Bytes in each segment that are still needed.
    segment_live: Vec<u64>,
    /// Records are being read back. A message may still follow whose number is below others that
    /// are settled, so only a mark may move the floor.
    replaying: bool,
}

/// The entries of this many messages fit into a processor's own cache.
const CACHED: u64 = 32 << 10;

/// Entries whose room is given up. They come in runs within a segment, so the segment is looked
/// up once per run.
#[derive(Default)]
struct Run {
    start: u64,
    end: u64,
    bytes: u64,
    all: u64,
}

impl Run {
    #[inline]
    fn take(&mut self, entry: Entry, geometry: &Geometry, segment_live: &mut [u64]) {
        let offset = entry.offset();
        if offset < self.start || offset >= self.end {
            self.end(geometry, segment_live);
            let segment = geometry.segment_of(offset);
            self.start = geometry.segment_at(segment);
            self.end = geometry.end_of(segment);
        }
        self.bytes += entry.stride();
    }

    /// How much room all entries had together.
    fn end(&mut self, geometry: &Geometry, segment_live: &mut [u64]) -> u64 {
        if self.bytes > 0 {
            segment_live[geometry.segment_of(self.start)] -= self.bytes;
            self.all += std::mem::take(&mut self.bytes);
        }
        self.all
    }
}

/// What a refusal changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    Unsettled,
    /// The message had been settled as a success.
    Settled,
    /// A refusal of it waits already.
    Rejected,
    /// It was refused, and the application accepted the refusal.
    Accepted,
    /// No record of it is left.
    Gone,
}

impl State {
    pub(crate) fn new(geometry: Geometry, segments: usize) -> Self {
        State {
            geometry,
            index: Index::default(),
            rejections: BTreeMap::new(),
            floor: 0,
            last: 0,
            unsettled: 0,
            live: 0,
            charges: 0,
            segment_live: vec![0; segments],
            replaying: true,
        }
    }

    /// All records have been read back.
    pub(crate) fn replayed(&mut self) {
        self.replaying = false;
        self.index.place_strays();
        self.raise_floor();
    }

    pub(crate) fn resize(&mut self, segments: usize) {
        self.segment_live.resize(segments, 0);
    }

    /// Everything up to here is settled.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    /// The highest sequence of any record.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    pub(crate) fn unsettled(&self) -> u64 {
        self.unsettled
    }

    /// Bytes that are needed, with the room charged for their future.
    pub(crate) fn charged(&self) -> u64 {
        self.live + self.charges
    }

    /// Room for the future of what is unsettled or refused.
    pub(crate) fn charges(&self) -> u64 {
        self.charges
    }

    /// Bytes that are needed.
    pub(crate) fn live(&self) -> u64 {
        self.live
    }

    pub(crate) fn segment_live(&self, segment: usize) -> u64 {
        self.segment_live[segment]
    }

    /// Spare chunks for the index are running out; this many should be added.
    #[inline]
    pub(crate) fn spares_wanted(&self) -> usize {
        self.index.spares_wanted()
    }

    pub(crate) fn add_spares(&mut self, spares: Vec<Vec<u64>>) {
        self.index.add_spares(spares);
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Entry> {
        self.index.get(sequence)
    }

    pub(crate) fn rejection(&self, sequence: u64) -> Option<Entry> {
        self.rejections.get(&sequence).copied()
    }

    pub(crate) fn rejections(&self) -> &BTreeMap<u64, Entry> {
        &self.rejections
    }

    pub(crate) fn next_unsettled(&self, from: u64, through: u64) -> Option<(u64, Entry)> {
        self.index.next_unsettled(from.max(self.floor + 1), through)
    }

    /// Calls back with what is unsettled in `from..=through`, in rising order, until told to
    /// stop.
    #[inline]
    pub(crate) fn each_unsettled(
        &self,
        from: u64,
        through: u64,
        show: impl FnMut(u64, Entry) -> ControlFlow<()>,
    ) {
        self.index
            .each_unsettled(from.max(self.floor + 1), through, show);
    }

    /// The lowest sequence in `from..=through` whose message is readable, settled or not.
    pub(crate) fn next_present(&self, from: u64, through: u64) -> Option<(u64, Entry)> {
        self.index.next_present(from, through)
    }

    pub(crate) fn first_unsettled(&self) -> Option<u64> {
        (self.unsettled > 0)
            .then(|| {
                self.index
                    .next_unsettled(self.floor + 1, u64::MAX)
                    .map(|(s, _)| s)
            })
            .flatten()
    }

    /// The highest unsettled message.
    pub(crate) fn last_unsettled(&self) -> Option<u64> {
        self.index.last_unsettled()
    }

    pub(crate) fn standing(&self, sequence: u64) -> Standing {
        if self.rejections.contains_key(&sequence) {
            return Standing::Rejected;
        }
        match self.index.get(sequence) {
            Some(e) if e.is_accepted() => Standing::Accepted,
            Some(e) if e.is_settled() => Standing::Settled,
            Some(_) => Standing::Unsettled,
            None => Standing::Gone,
        }
    }

    fn hold(&mut self, entry: Entry) {
        if entry != Entry::NOWHERE {
            self.live += entry.stride();
            self.segment_live[self.geometry.segment_of(entry.offset())] += entry.stride();
        }
    }

    fn release(&mut self, entry: Entry) {
        if entry != Entry::NOWHERE {
            self.live -= entry.stride();
            self.segment_live[self.geometry.segment_of(entry.offset())] -= entry.stride();
        }
    }

    /// A message's newest record: a publish, or a copy of one.
    pub(crate) fn message(&mut self, sequence: u64, entry: Entry) {
        self.last = self.last.max(sequence);
        if let Some(old) = self.index.get(sequence) {
            if old.is_needed() {
                self.release(old);
                self.hold(entry);
            }
            // The marks stay; the place is new, and in a hostile file the length may be too.
            self.index.update(sequence, entry.marked_as(old));
        } else if self.rejections.contains_key(&sequence) {
            self.index.put(sequence, entry.rejected());
            self.hold(entry);
        } else if sequence <= self.floor {
            // A copy of a refused message whose refusal follows; or there is no such refusal.
            self.index.put(sequence, entry.settled());
        } else {
            self.index.put(sequence, entry);
            self.hold(entry);
            self.unsettled += 1;
            self.charges += CHARGE;
        }
        if !self.replaying {
            self.index.place_strays();
        }
    }

    /// The newest record of a message that was settled before.
    pub(crate) fn settled_message(&mut self, sequence: u64, entry: Entry) {
        self.message(sequence, entry);
        self.settle(&[sequence], |_, _| {});
    }

    /// A new message, above every other: the hot path of [`message`](Self::message).
    #[inline]
    pub(crate) fn append(&mut self, sequence: u64, entry: Entry, segment: usize) {
        debug_assert!(sequence > self.last);
        self.last = sequence;
        self.index.append(sequence, entry);
        self.live += entry.stride();
        self.segment_live[segment] += entry.stride();
        self.unsettled += 1;
        self.charges += CHARGE;
    }

    /// Settles a prefix; returns how many messages this concerned.
    pub(crate) fn settle_through(&mut self, sequence: u64) -> u64 {
        let before = self.unsettled;
        let (mut run, mut count) = (Run::default(), 0);
        self.index.settle_range(self.floor + 1, sequence, |entry| {
            run.take(entry, &self.geometry, &mut self.segment_live);
            count += 1;
        });
        self.live -= run.end(&self.geometry, &mut self.segment_live);
        self.unsettled -= count;
        self.charges -= count * CHARGE;
        self.last = self.last.max(sequence);
        self.floor = self.floor.max(sequence);
        self.raise_floor();
        before - self.unsettled
    }

    /// Settles single messages, and calls back with those that were unsettled, numbered from 0.
    #[inline]
    pub(crate) fn settle(&mut self, sequences: &[u64], mut each: impl FnMut(usize, u64)) -> usize {
        if self.unsettled > CACHED {
            self.index.fetch(sequences);
        }
        let (mut run, mut count) = (Run::default(), 0);
        self.index.settle(sequences, |sequence, entry| {
            run.take(entry, &self.geometry, &mut self.segment_live);
            each(count, sequence);
            count += 1;
        });
        self.live -= run.end(&self.geometry, &mut self.segment_live);
        self.unsettled -= count as u64;
        self.charges -= count as u64 * CHARGE;
        let lowest = self.index.get(self.floor + 1);
        if count > 0 && (self.unsettled == 0 || lowest.is_some_and(Entry::is_settled)) {
            self.raise_floor();
        }
        count
    }

    /// Moves the floor over what is settled already. Amortised O(1): no message is looked at
    /// twice.
    fn raise_floor(&mut self) {
        if self.replaying {
            return;
        }
        self.floor = match self.first_unsettled() {
            // A number that was skipped is no message, and the floor is always that of a message.
            Some(first) => self.floor.max(self.index.last_below(first).unwrap_or(0)),
            None => self.floor.max(self.last),
        };
    }

    /// A refusal's newest record.
    pub(crate) fn reject(&mut self, sequence: u64, record: Entry) {
        self.last = self.last.max(sequence);
        match self.rejections.insert(sequence, record) {
            Some(old) => self.release(old),
            None => self.charges += ACCEPTANCE,
        }
        self.hold(record);
        if let Some(entry) = self.index.get(sequence) {
            if !entry.is_settled() {
                self.unsettled -= 1;
                self.charges -= CHARGE;
            } else if !entry.is_rejected() {
                self.hold(entry);
            }
            self.index.update(sequence, entry.rejected());
            if sequence == self.floor + 1 || self.unsettled == 0 {
                self.raise_floor();
            }
        }
    }

    /// The application accepted a refusal; returns whether one waited.
    pub(crate) fn accept(&mut self, sequence: u64) -> bool {
        let Some(record) = self.rejections.remove(&sequence) else {
            return false;
        };
        self.release(record);
        self.charges -= ACCEPTANCE;
        if let Some(entry) = self.index.get(sequence) {
            self.release(entry);
            self.index.update(sequence, entry.accepted());
        }
        true
    }

    /// The application accepted a refusal whose record is no longer in the log.
    pub(crate) fn accepted_before(&mut self, sequence: u64) {
        self.settle(&[sequence], |_, _| {});
        if let Some(entry) = self.index.get(sequence) {
            self.index.update(sequence, entry.accepted());
        }
    }

    /// Whether a message or a refusal still needs the record at `offset`.
    pub(crate) fn needs(&self, header: &RecordHeader, offset: u64) -> bool {
        let newest = match header.kind {
            Kind::Rejection => self.rejection(header.sequence),
            kind if kind.is_message() => self.get(header.sequence).filter(|e| e.is_needed()),
            _ => None,
        };
        newest.is_some_and(|e| e.offset() == offset)
    }

    /// The first needed record in `place`. This looks at every message, so it is only for when
    /// something went wrong.
    pub(crate) fn needed_within(&self, place: &Range<u64>) -> Option<Entry> {
        let mut from = 0;
        let messages = std::iter::from_fn(|| {
            let (sequence, entry) = self.index.next_present(from, u64::MAX)?;
            from = sequence + 1;
            Some(entry)
        });
        messages
            .filter(|e| e.is_needed())
            .chain(self.rejections.values().copied())
            .filter(|e| place.contains(&e.offset()))
            .min_by_key(|e| e.offset())
    }

    /// The bytes in `place` are about to be reused: forgets the messages whose newest record
    /// stands there. Does a bounded part, from sequence `from` on, and returns where to continue.
    pub(crate) fn forget(&mut self, from: u64, place: &Range<u64>) -> Option<u64> {
        self.index.remove_within(from, place)
    }
}
