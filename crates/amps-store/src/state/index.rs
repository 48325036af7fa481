//! Maps a sequence to where its newest record stands, and whether it is settled.
//!
//! One word per sequence, in chunks of a thousand. Nothing is ever doubled, the index is never
//! larger than the records in the file justify, and a jump in the numbers costs one new chunk.
//! The words of settled messages stay until their segment is reused.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{ControlFlow, Range};

const CHUNK: usize = 1024;
/// Spare chunks that the helper keeps ready: a fresh one costs two page faults, for which
/// publishers should not have to wait.
const SPARES: usize = 16;
/// With fewer than this many it makes more.
const FEW_SPARES: usize = 8;
/// Chunks that were forgotten are used again, but no more than this many are kept.
const MOST_SPARES: usize = 64;
/// A jump by more numbers than this begins a new chunk instead of filling up with zeros.
const GAP: u64 = 16;

/// Where a record stands: offset and stride in units of 8 bytes, and two flags. Both flags
/// together mean that a refusal waits, the second alone that it was accepted.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Entry(u64);

const SETTLED: u64 = 1 << 63;
const REJECTED: u64 = 1 << 62;
const LEN_BITS: u32 = 22;
const OFFSET_MASK: u64 = (1 << 40) - 1;

impl Entry {
    /// The record is nowhere and takes no room.
    pub(crate) const NOWHERE: Entry = Entry(0);

    pub(crate) fn new(offset: u64, stride: u64) -> Self {
        debug_assert!(offset / 8 <= OFFSET_MASK && stride / 8 < 1 << LEN_BITS);
        Entry(((stride / 8) << 40) | (offset / 8))
    }

    pub(crate) fn offset(self) -> u64 {
        (self.0 & OFFSET_MASK) * 8
    }

    pub(crate) fn stride(self) -> u64 {
        (self.0 >> 40 & ((1 << LEN_BITS) - 1)) * 8
    }

    /// Persisted or refused.
    pub(crate) fn is_settled(self) -> bool {
        self.0 & (SETTLED | REJECTED) != 0
    }

    /// Refused, and the refusal waits for the application.
    pub(crate) fn is_rejected(self) -> bool {
        self.0 & (SETTLED | REJECTED) == SETTLED | REJECTED
    }

    /// Refused, and the application accepted the refusal.
    pub(crate) fn is_accepted(self) -> bool {
        self.0 & (SETTLED | REJECTED) == REJECTED
    }

    /// Must be copied before its segment is reused.
    pub(crate) fn is_needed(self) -> bool {
        !self.is_settled() || self.is_rejected()
    }

    pub(crate) fn settled(self) -> Self {
        Entry(self.0 | SETTLED)
    }

    pub(crate) fn rejected(self) -> Self {
        Entry(self.0 | SETTLED | REJECTED)
    }

    pub(crate) fn accepted(self) -> Self {
        Entry((self.0 | REJECTED) & !SETTLED)
    }

    /// This place, with the flags of another entry.
    pub(crate) fn marked_as(self, other: Entry) -> Self {
        Entry(self.0 | (other.0 & (SETTLED | REJECTED)))
    }
}

struct Chunk {
    first: u64,
    /// Zero where a sequence has no record.
    words: Vec<u64>,
    present: u32,
}

impl Chunk {
    fn end(&self) -> u64 {
        self.first + self.words.len() as u64
    }

    #[inline]
    fn holds(&self, sequence: u64) -> bool {
        sequence.wrapping_sub(self.first) < self.words.len() as u64
    }
}

/// The chunk of a sequence, if all chunks are full and no number was jumped over from `first` on.
#[inline]
fn guess(first: u64, sequence: u64) -> usize {
    (sequence.wrapping_sub(first) / CHUNK as u64) as usize
}

#[derive(Default)]
pub(crate) struct Index {
    chunks: VecDeque<Chunk>,
    /// Empty chunks with all of their room, and the pages for it, ready.
    spares: Vec<Vec<u64>>,
    /// Words of sequences below others that have no chunk: those of copies, while records are
    /// read back. They get chunks once all of them are known.
    strays: BTreeMap<u64, u64>,
}

/// Makes chunks that an index may need for the next messages, and touches their memory.
pub(crate) fn make_spares(count: usize) -> Vec<Vec<u64>> {
    let spare = || {
        let mut words = Vec::with_capacity(CHUNK);
        words.resize(CHUNK, u64::MAX);
        std::hint::black_box(&mut words).clear();
        words
    };
    std::iter::repeat_with(spare).take(count).collect()
}

impl Index {
    /// The chunk that may hold `sequence`, or the first one behind it.
    #[inline]
    fn chunk_at(&self, sequence: u64) -> usize {
        let guess = guess(self.first(), sequence);
        match self.chunks.get(guess) {
            Some(chunk) if chunk.holds(sequence) => guess,
            // Recovery asks for every message whether it is known, and most are new.
            _ if self.chunks.back().is_none_or(|back| back.end() <= sequence) => self.chunks.len(),
            _ => self.search(sequence),
        }
    }

    #[inline]
    fn first(&self) -> u64 {
        self.chunks.front().map_or(0, |front| front.first)
    }

    #[cold]
    fn search(&self, sequence: u64) -> usize {
        self.chunks.partition_point(|c| c.end() <= sequence)
    }

    pub(crate) fn get(&self, sequence: u64) -> Option<Entry> {
        let chunk = self.chunks.get(self.chunk_at(sequence))?;
        let Some(place) = sequence.checked_sub(chunk.first) else {
            return self.strays.get(&sequence).copied().map(Entry);
        };
        let word = *chunk.words.get(usize::try_from(place).ok()?)?;
        (word != 0).then_some(Entry(word))
    }

    /// How many spare chunks to add; 0 while enough are left.
    #[inline]
    pub(crate) fn spares_wanted(&self) -> usize {
        match self.spares.len() {
            0..FEW_SPARES => SPARES - self.spares.len(),
            _ => 0,
        }
    }

    pub(crate) fn add_spares(&mut self, spares: Vec<Vec<u64>>) {
        self.spares.extend(spares);
    }

    /// Enters the next sequence, or one above every other.
    #[inline]
    pub(crate) fn append(&mut self, sequence: u64, entry: Entry) {
        match self.chunks.back_mut() {
            Some(back) if sequence == back.end() && back.words.len() < CHUNK => {
                back.words.push(entry.0);
                back.present += 1;
            }
            _ => self.put(sequence, entry),
        }
    }

    /// Enters or replaces a word. New sequences mostly rise; lower ones come from recovery only.
    pub(crate) fn put(&mut self, sequence: u64, entry: Entry) {
        match self.chunks.back_mut() {
            Some(back) if sequence >= back.end() => {
                let gap = sequence - back.end();
                if gap <= GAP && back.words.len() as u64 + gap < CHUNK as u64 {
                    back.words.resize(back.words.len() + gap as usize, 0);
                    back.words.push(entry.0);
                    back.present += 1;
                } else {
                    self.push_chunk(sequence, entry);
                }
            }
            None => self.push_chunk(sequence, entry),
            Some(_) => self.put_low(sequence, entry),
        }
    }

    fn push_chunk(&mut self, sequence: u64, entry: Entry) {
        // Behind a full chunk the next one will be filled too, so it need not grow step by step.
        let full = |back: &Chunk| back.words.len() == CHUNK;
        let mut words = match self.chunks.back().is_some_and(full) {
            true => match self.spares.pop() {
                Some(spare) => spare,
                None => Vec::with_capacity(CHUNK),
            },
            false => Vec::with_capacity(1),
        };
        words.push(entry.0);
        self.chunks.push_back(Chunk {
            first: sequence,
            words,
            present: 1,
        });
    }

    fn put_low(&mut self, sequence: u64, entry: Entry) {
        let at = self.chunk_at(sequence);
        let chunk = &mut self.chunks[at];
        if sequence >= chunk.first {
            let word = &mut chunk.words[(sequence - chunk.first) as usize];
            chunk.present += u32::from(*word == 0);
            *word = entry.0;
        } else {
            self.strays.insert(sequence, entry.0);
        }
    }

    /// Moves strays into chunks, all in one pass. Until then only [`get`](Self::get), entering
    /// and settling see them.
    pub(crate) fn place_strays(&mut self) {
        if self.strays.is_empty() {
            return;
        }
        let strays = std::mem::take(&mut self.strays);
        let mut chunks = std::mem::take(&mut self.chunks).into_iter().peekable();
        for (sequence, word) in strays {
            while let Some(chunk) = chunks.next_if(|chunk| chunk.first < sequence) {
                self.chunks.push_back(chunk);
            }
            self.put(sequence, Entry(word));
        }
        self.chunks.extend(chunks);
    }

    /// Forgets, in one chunk, what stands in `place` and is not needed: in the first chunk that
    /// holds `from` or a higher sequence. Returns where to continue.
    pub(crate) fn remove_within(&mut self, from: u64, place: &Range<u64>) -> Option<u64> {
        let at = self.chunk_at(from);
        let chunk = self.chunks.get_mut(at)?;
        let next = chunk.end();
        for word in &mut chunk.words {
            let entry = Entry(*word);
            if *word != 0 && place.contains(&entry.offset()) {
                debug_assert!(!entry.is_needed(), "a message is still needed");
                *word = 0;
                chunk.present -= 1;
            }
        }
        if chunk.present == 0
            && let Some(mut gone) = self.chunks.remove(at)
            && gone.words.capacity() == CHUNK
            && self.spares.len() < MOST_SPARES
        {
            gone.words.clear();
            self.spares.push(gone.words);
        }
        Some(next)
    }

    /// Calls back with what is unsettled in `from..=through`, in rising order, until told to
    /// stop.
    #[inline]
    pub(crate) fn each_unsettled(
        &self,
        from: u64,
        through: u64,
        mut show: impl FnMut(u64, Entry) -> ControlFlow<()>,
    ) {
        let mut at = self.chunk_at(from);
        while let Some(chunk) = self.chunks.get(at)
            && chunk.first <= through
        {
            let skip = from.saturating_sub(chunk.first) as usize;
            for (i, &word) in chunk.words.iter().enumerate().skip(skip) {
                let sequence = chunk.first + i as u64;
                if sequence > through {
                    return;
                }
                if word != 0 && !Entry(word).is_settled() && show(sequence, Entry(word)).is_break()
                {
                    return;
                }
            }
            at += 1;
        }
    }

    /// The lowest unsettled sequence in `from..=through`.
    pub(crate) fn next_unsettled(&self, from: u64, through: u64) -> Option<(u64, Entry)> {
        let mut found = None;
        self.each_unsettled(from, through, |sequence, entry| {
            found = Some((sequence, entry));
            ControlFlow::Break(())
        });
        found
    }

    /// The lowest sequence in `from..=through` that has a record.
    pub(crate) fn next_present(&self, from: u64, through: u64) -> Option<(u64, Entry)> {
        self.chunks
            .iter()
            .skip(self.chunk_at(from))
            .take_while(|chunk| chunk.first <= through)
            .find_map(|chunk| {
                let skip = from.saturating_sub(chunk.first) as usize;
                let words = chunk.words.iter().enumerate().skip(skip);
                let (i, word) = words.into_iter().find(|(_, word)| **word != 0)?;
                Some((chunk.first + i as u64, Entry(*word)))
            })
            .filter(|(sequence, _)| *sequence <= through)
    }

    /// The highest sequence below this one that has a record.
    pub(crate) fn last_below(&self, sequence: u64) -> Option<u64> {
        let at = self.chunk_at(sequence);
        let chunks = self.chunks.iter().take(at + 1).rev();
        chunks
            .filter(|chunk| chunk.first < sequence)
            .find_map(|chunk| {
                let below = (sequence - chunk.first).min(chunk.words.len() as u64) as usize;
                let there = chunk.words[..below].iter().rposition(|w| *w != 0);
                there.map(|i| chunk.first + i as u64)
            })
    }

    /// The highest unsettled sequence.
    pub(crate) fn last_unsettled(&self) -> Option<u64> {
        self.chunks.iter().rev().find_map(|chunk| {
            let open = |w: &u64| *w != 0 && !Entry(*w).is_settled();
            chunk
                .words
                .iter()
                .rposition(open)
                .map(|i| chunk.first + i as u64)
        })
    }

    /// Touches entries that are needed soon, so that their cache misses overlap.
    pub(crate) fn fetch(&self, sequences: &[u64]) {
        let (first, mut all) = (self.first(), 0);
        for &sequence in sequences {
            if let Some(chunk) = self.chunks.get(guess(first, sequence)) {
                let place = sequence.wrapping_sub(chunk.first) as usize;
                all |= chunk.words.get(place).copied().unwrap_or(0);
            }
        }
        std::hint::black_box(all);
    }

    /// Marks single sequences as settled and calls back with each that was not.
    #[inline]
    pub(crate) fn settle(&mut self, sequences: &[u64], mut each: impl FnMut(u64, Entry)) {
        let first = self.first();
        for &sequence in sequences {
            let chunk = match self.chunks.get_mut(guess(first, sequence)) {
                Some(chunk) if chunk.holds(sequence) => chunk,
                _ => {
                    let at = self.search(sequence);
                    match self.chunks.get_mut(at) {
                        Some(chunk) if chunk.holds(sequence) => chunk,
                        _ => {
                            if let Some(word) = self.strays.get_mut(&sequence)
                                && !Entry(*word).is_settled()
                            {
                                each(sequence, Entry(*word));
                                *word |= SETTLED;
                            }
                            continue;
                        }
                    }
                }
            };
            let word = &mut chunk.words[(sequence - chunk.first) as usize];
            let entry = Entry(*word);
            if *word != 0 && !entry.is_settled() {
                *word |= SETTLED;
                each(sequence, entry);
            }
        }
    }

    /// Marks everything in `from..=through` as settled and calls back with each that was not.
    pub(crate) fn settle_range(&mut self, from: u64, through: u64, mut each: impl FnMut(Entry)) {
        if from <= through && !self.strays.is_empty() {
            for (_, word) in self.strays.range_mut(from..=through) {
                if !Entry(*word).is_settled() {
                    each(Entry(*word));
                    *word |= SETTLED;
                }
            }
        }
        let mut at = self.chunk_at(from);
        while let Some(chunk) = self.chunks.get_mut(at) {
            if chunk.first > through {
                return;
            }
            let skip = from.saturating_sub(chunk.first) as usize;
            let take = (through - chunk.first)
                .saturating_add(1)
                .min(chunk.words.len() as u64);
            let words = chunk.words.get_mut(skip..take as usize).unwrap_or(&mut []);
            for word in words {
                let entry = Entry(*word);
                if *word != 0 && !entry.is_settled() {
                    each(entry);
                    *word |= SETTLED;
                }
            }
            at += 1;
        }
    }

    /// Replaces the entry of a sequence that is there.
    pub(crate) fn update(&mut self, sequence: u64, entry: Entry) {
        debug_assert!(self.get(sequence).is_some());
        self.put_low(sequence, entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_keeps_the_largest_place_and_length() {
        let entry = Entry::new((1 << 43) - 8, (1 << 25) - 8);
        assert_eq!(
            (entry.offset(), entry.stride()),
            ((1 << 43) - 8, (1 << 25) - 8)
        );
        assert!(entry.is_needed() && !entry.settled().is_needed());
        assert!(entry.rejected().is_needed() && entry.rejected().is_settled());
        let accepted = entry.rejected().accepted();
        assert!(accepted.is_settled() && accepted.is_accepted() && !accepted.is_needed());
        assert_eq!(entry.marked_as(accepted), accepted);
    }

    /// A file made on purpose may hold its sequences in any order. Each one below another once
    /// moved all chunks above it.
    #[test]
    fn agrees_with_a_map_in_any_order_of_arrival() {
        let mut index = Index::default();
        let mut model = BTreeMap::new();
        let mut x = 11u64;
        let mut open = 0;
        for round in 0..20_000u64 {
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            // Some are close together, some far apart, some come twice.
            let sequence = match x >> 62 {
                0 => x >> 33 & 0xFFFF_FFFF,
                1 => 70_000 + (x >> 33 & 0xFFF),
                _ => 1 + (x >> 33 & 0xFFFF),
            };
            let entry = Entry::new(8 + round * 8, 64);
            assert_eq!(index.get(sequence), model.get(&sequence).copied());
            index.put(sequence, entry);
            model.insert(sequence, entry);
            if x & 7 == 0 {
                index.settle(&[sequence, sequence + 1], |s, e| {
                    let settled = model.insert(s, e.settled());
                    assert_eq!(settled, Some(e));
                });
            }
        }
        index.settle_range(1, 9_000, |_| open += 1);
        for (_, entry) in model.range_mut(1..=9_000) {
            open -= i64::from(!entry.is_settled());
            *entry = entry.settled();
        }
        assert_eq!(open, 0);
        index.place_strays();
        for (sequence, entry) in &model {
            assert_eq!(index.get(*sequence), Some(*entry), "sequence {sequence}");
        }
        let mut from = 0;
        let present = std::iter::from_fn(|| {
            let (sequence, entry) = index.next_present(from, u64::MAX)?;
            from = sequence + 1;
            Some((sequence, entry))
        });
        assert!(present.eq(model.iter().map(|(s, e)| (*s, *e))));
        let ends: Vec<u64> = index.chunks.iter().map(Chunk::end).collect();
        let firsts = index.chunks.iter().map(|c| c.first);
        assert!(firsts.skip(1).zip(ends).all(|(first, end)| end <= first));
    }

    #[test]
    fn agrees_with_a_map_over_jumps_and_removals() {
        let mut index = Index::default();
        let mut model = BTreeMap::new();
        let mut sequence = 0u64;
        let mut x = 7u64;
        for round in 0..20_000u64 {
            x = x
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            sequence += match x >> 60 {
                0 => 5000,
                1 => 12,
                2 => 17,
                _ => 1,
            };
            let entry = Entry::new(8 + round * 8, 64);
            index.put(sequence, entry);
            model.insert(sequence, entry);
            if x >> 61 == 3 {
                let gone = *model.keys().nth(model.len() / 3).unwrap();
                let at = model[&gone].offset();
                index.settle(&[gone], |_, _| {});
                let next = index.remove_within(gone, &(at..at + 8));
                assert!(next.is_some_and(|next| next > gone));
                model.remove(&gone);
            }
            if x >> 61 == 5 {
                let settled = *model.keys().nth(model.len() / 2).unwrap();
                index.settle(&[settled], |_, _| {});
                model.get_mut(&settled).unwrap().0 |= SETTLED;
            }
        }
        for s in 0..sequence + 10 {
            if s % 97 == 0 || model.contains_key(&s) {
                assert_eq!(index.get(s), model.get(&s).copied(), "sequence {s}");
            }
        }
        let mut from = 0;
        let open: Vec<u64> = std::iter::from_fn(|| {
            let (s, _) = index.next_unsettled(from, u64::MAX)?;
            from = s + 1;
            Some(s)
        })
        .collect();
        let expected: Vec<u64> = model
            .iter()
            .filter(|(_, e)| !e.is_settled())
            .map(|(s, _)| *s)
            .collect();
        assert_eq!(open, expected);
        let mut count = 0;
        index.settle_range(0, sequence, |_| count += 1);
        assert_eq!(count, expected.len());
        assert_eq!(index.next_unsettled(0, u64::MAX), None);
    }
}
