//! Looking at bytes: is there a record here, and is it the one that should follow? P1 to P7 are
//! rows of `store-format.md` §5.

use std::io;
use std::ops::Range;

use crate::format::{
    BLOCK, Kind, RECORD_HEADER, RecordHeader, SEGMENT_HEADER, Superblock, committed_len,
    max_record, record_is_intact,
};

/// Bytes to read from: a medium, or a file opened for inspection.
pub(crate) trait Source {
    /// Copies bytes out; what lies beyond the end reads as zeros.
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()>;

    /// The first place from `offset` on that may hold something other than zeros; what lies
    /// before it reads as zeros. [`u64::MAX`]: there is nothing more. A file may claim to be
    /// longer than anybody can read in a lifetime, and hold next to nothing.
    ///
    /// # Errors
    /// It cannot be determined.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        Ok(offset)
    }

    /// Where the data ends, if that is before the length that readers see: behind it they see
    /// zeros.
    fn end(&self) -> u64 {
        u64::MAX
    }

    /// The same bytes for another thread, if two may read at once.
    fn shared(&self) -> Option<&(dyn Source + Sync)> {
        None
    }
}

impl Source for dyn crate::medium::Medium + '_ {
    fn fetch(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.read(offset, into);
        Ok(())
    }
}

/// What stands at a place where a record could be (the first half of the recovery table
/// in `store-format.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// A whole record. Whether it follows is decided by its ordinal.
    Intact(RecordHeader),
    /// The commit word is zero: nothing was written here since the segment was opened.
    Unwritten,
    /// A commit word and a possible header, but the checksum does not fit.
    Torn(RecordHeader),
    /// Neither: bytes of an earlier lap, or damage.
    Garbage,
    /// Too close to the end of the segment for a record.
    SegmentEnd,
}

/// An intact record, by what the header tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) offset: u64,
    pub(crate) header: RecordHeader,
}

/// Where segments lie and how to check what is in them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    pub(crate) key: u32,
    pub(crate) segments_at: u64,
    pub(crate) segment_size: u64,
    pub(crate) max_record: u64,
}

impl Geometry {
    pub(crate) fn of(superblock: &Superblock) -> Self {
        Geometry {
            key: superblock.key,
            segments_at: superblock.segments_at,
            segment_size: superblock.segment_size,
            max_record: max_record(superblock.segment_size),
        }
    }

    pub(crate) fn segment_at(&self, segment: usize) -> u64 {
        self.segments_at + segment as u64 * self.segment_size
    }

    pub(crate) fn records_at(&self, segment: usize) -> u64 {
        self.segment_at(segment) + SEGMENT_HEADER
    }

    pub(crate) fn end_of(&self, segment: usize) -> u64 {
        self.segment_at(segment) + self.segment_size
    }

    #[inline]
    pub(crate) fn segment_of(&self, offset: u64) -> usize {
        // Segments are whole blocks, and a file has fewer than 2^31 of them: dividing 32
        // bits costs half of what 64 cost.
        let block = (offset - self.segments_at) / BLOCK;
        (block as u32 / (self.segment_size / BLOCK) as u32) as usize
    }
}

/// Small enough to stay in a processor's own cache from being copied to being checked.
const WINDOW: usize = 64 << 10;

/// Reads records through a window, so that checksums run over ordinary memory.
pub(crate) struct Scanner<'a, S: Source + ?Sized> {
    source: &'a S,
    geometry: Geometry,
    window: Vec<u8>,
    at: u64,
    /// A record that does not fit into the window.
    one: Vec<u8>,
}

impl<'a, S: Source + ?Sized> Scanner<'a, S> {
    pub(crate) fn new(source: &'a S, geometry: Geometry) -> Self {
        Scanner {
            source,
            geometry,
            window: Vec::new(),
            at: 0,
            one: Vec::new(),
        }
    }

    fn is_shown(&self, offset: u64, len: usize) -> bool {
        offset >= self.at && offset + len as u64 <= self.at + self.window.len() as u64
    }

    /// `len` bytes at `offset`, which end at or before `end`.
    fn bytes(&mut self, offset: u64, len: usize, end: u64) -> io::Result<&[u8]> {
        if !self.is_shown(offset, len) {
            let size = (end - offset).min(WINDOW.max(len) as u64) as usize;
            self.window.resize(size, 0);
            self.at = offset;
            self.source.fetch(offset, &mut self.window)?;
        }
        let from = (offset - self.at) as usize;
        Ok(&self.window[from..from + len])
    }

    /// Says what stands at `offset`, in a segment that ends at `end`.
    pub(crate) fn look(&mut self, offset: u64, end: u64) -> io::Result<Verdict> {
        if offset.saturating_add(RECORD_HEADER as u64) > end {
            return Ok(Verdict::SegmentEnd); // P1
        }
        let (key, max) = (self.geometry.key, self.geometry.max_record);
        let head = self.bytes(offset, RECORD_HEADER, end)?;
        if committed_len(head) == 0 {
            return Ok(if head[..4] == [0; 4] {
                Verdict::Unwritten // P2
            } else {
                Verdict::Garbage // P3
            });
        }
        let Some(header) = RecordHeader::decode(head, max.min(end - offset)) else {
            return Ok(Verdict::Garbage); // P4
        };
        let record = self.bytes(offset, header.stride() as usize, end)?;
        Ok(if record_is_intact(record, key, offset) {
            Verdict::Intact(header) // P6
        } else {
            // P5, and P7: the place is part of the checksum, so a record does not fit at another
            // place, whether a misdirected write put it there or it is the payload of a message.
            Verdict::Torn(header)
        })
    }

    /// The body (envelope and payload included) of an intact record.
    pub(crate) fn body(&mut self, seen: &Seen) -> io::Result<&[u8]> {
        let len = seen.header.len as usize;
        if self.is_shown(seen.offset, len) {
            let from = (seen.offset - self.at) as usize;
            return Ok(&self.window[from + RECORD_HEADER..from + len]);
        }
        // Records that are looked at in an order other than that of the file must not cost a
        // whole window each.
        self.one.resize(len, 0);
        self.source.fetch(seen.offset, &mut self.one)?;
        Ok(&self.one[RECORD_HEADER..])
    }

    /// The first place from `at` on where the window shows something that could be a header;
    /// otherwise its last place, or one behind the hole that follows. Most of a file is no
    /// header, and saying so must cost no more than reading it. `at` is at most 8 bytes behind
    /// the place that was looked at last.
    pub(crate) fn next_possible(&self, at: u64, end: u64) -> io::Result<u64> {
        let shown = (self.at + self.window.len() as u64).min(end);
        let from = (at - self.at) as usize;
        let window = self.window.get(from..).unwrap_or(&[]);
        let mut place = 0;
        while let Some(words) = window.get(place..place + 16) {
            // What was never written is zeros, and that is most of what is searched.
            if window.get(place..place + BLANK).is_some_and(is_blank) {
                place += BLANK;
            } else if could_be_header(&words[..8], &words[8..]) {
                return Ok(at + place as u64);
            } else {
                place += 8;
            }
        }
        let last = (shown.saturating_sub(8) / 8 * 8).max(at);
        match self.behind_hole(shown)? {
            // The kind of a header at the last place would lie in the hole.
            behind if behind > shown => Ok(behind),
            _ => Ok(last),
        }
    }

    /// The first place from `at` on, outside holes, where a record may begin.
    pub(crate) fn behind_hole(&self, at: u64) -> io::Result<u64> {
        Ok((self.source.next_data(at)? / 8 * 8).max(at))
    }

    /// Whether nothing in a range could begin a record: a [`search`](Self::search) visits the
    /// same places, and would reject each of them at once.
    pub(crate) fn is_bare(&mut self, range: Range<u64>) -> io::Result<bool> {
        let mut at = self.behind_hole(range.start)?;
        while at.saturating_add(RECORD_HEADER as u64) <= range.end {
            if committed_len(self.bytes(at, RECORD_HEADER, range.end)?) != 0 {
                return Ok(false);
            }
            at = self.next_possible(at + 8, range.end)?;
        }
        Ok(true)
    }

    /// Finds every intact record with an ordinal greater than `above` between two places, trying
    /// every 8th byte. `budget` bounds the bytes checksummed in vain; the result is false if it
    /// ran out.
    pub(crate) fn search(
        &mut self,
        from: u64,
        end: u64,
        above: u64,
        budget: &mut u64,
        found: &mut Vec<Seen>,
    ) -> io::Result<bool> {
        let mut at = self.behind_hole(from)?;
        while at.saturating_add(RECORD_HEADER as u64) <= end {
            let max = self.geometry.max_record.min(end - at);
            let head = self.bytes(at, RECORD_HEADER, end)?;
            let candidate = (committed_len(head) != 0)
                .then(|| RecordHeader::decode(head, max))
                .flatten()
                .filter(|h| h.ordinal > above && h.generation != 0);
            let Some(header) = candidate else {
                at = self.next_possible(at + 8, end)?;
                continue;
            };
            let key = self.geometry.key;
            let record = self.bytes(at, header.stride() as usize, end)?;
            if record_is_intact(record, key, at) {
                found.push(Seen { offset: at, header });
                at += header.stride();
            } else {
                let Some(left) = budget.checked_sub(header.stride()) else {
                    return Ok(false);
                };
                *budget = left;
                at += 8;
            }
        }
        Ok(true)
    }
}

/// So many bytes are looked at together when they are zeros.
const BLANK: usize = 256;

#[inline]
fn is_blank(bytes: &[u8]) -> bool {
    // For anything that was written, the first word decides.
    bytes[..8] == [0; 8] && bytes.iter().fold(0, |all, byte| all | byte) == 0
}

/// Whether two words could begin a record: a length, and a kind with its flag and zeros.
/// [`RecordHeader::decode`] refuses whatever this refuses.
#[inline]
fn could_be_header(first: &[u8], second: &[u8]) -> bool {
    first[4..8] != [0; 4] && second[0] != 0 && second[1] <= 1 && second[2..4] == [0; 2]
}

impl Seen {
    pub(crate) fn kind(&self) -> Kind {
        self.header.kind
    }

    pub(crate) fn ordinal(&self) -> u64 {
        self.header.ordinal
    }
}
