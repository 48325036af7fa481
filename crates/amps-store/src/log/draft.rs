//! A record before it is in the log: laid out, checksummed, and written with its commit word
//! last.

use crate::envelope::{Envelope, EnvelopeError};
use crate::format::{Checksum, RECORD_HEADER, RecordHeader, commit_word, seed, stride};
use crate::medium::Medium;

/// A record up to this length is put together as a whole: until the payload is large, one
/// checksum call and one copy are faster than three of each.
const SMALL: usize = 640;

/// Padding, and the next place's commit word.
const TAIL: usize = 16;

/// Capacity that is kept for the next record after a large envelope.
const KEEP: usize = 64 << 10;

pub(crate) struct Draft {
    /// Header and envelope; the rest as well if the record is small.
    bytes: Vec<u8>,
    checksum: Checksum,
}

impl Draft {
    pub(crate) fn new() -> Self {
        Draft {
            bytes: vec![0; SMALL + TAIL],
            checksum: Checksum::new(),
        }
    }

    /// Lays an envelope out behind the header, and returns its length.
    ///
    /// # Errors
    /// The envelope cannot be stored.
    #[inline(always)]
    pub(crate) fn envelope(&mut self, envelope: &Envelope<'_>) -> Result<usize, EnvelopeError> {
        envelope.check()?;
        loop {
            if let Some(len) = envelope.encode_into(&mut self.bytes[RECORD_HEADER..]) {
                return Ok(len);
            }
            self.grow();
        }
    }

    #[cold]
    fn grow(&mut self) {
        let more = 2 * self.bytes.len();
        self.bytes.resize(more, 0);
    }

    /// The envelope that was laid out, of this length.
    #[cfg(feature = "testkit")]
    pub(crate) fn encoded(&self, len: usize) -> &[u8] {
        &self.bytes[RECORD_HEADER..RECORD_HEADER + len]
    }

    /// Writes a record at `offset`: `header`, the envelope that was laid out (unless it is part
    /// of `rest`), and `rest`. The commit word is written last, and until then the place still
    /// reads as the end of the log. `next` bytes behind the record, a commit word or none, are
    /// cleared.
    #[inline(always)]
    pub(crate) fn write(
        &mut self,
        medium: &mut dyn Medium,
        (key, offset): (u32, u64),
        header: &RecordHeader,
        rest: &[u8],
        next: usize,
    ) {
        let len = header.len as usize;
        let stride = stride(len) as usize;
        let head = len - rest.len();
        // A copy has its envelope in `rest`.
        let laid_out = [0, header.envelope_len as usize];
        debug_assert!(laid_out.contains(&(head - RECORD_HEADER)));
        header.encode_into(&mut self.bytes, seed(key, offset));
        if len > SMALL {
            return self.write_long(medium, offset, len, rest, next);
        }
        let record = &mut self.bytes[..SMALL + TAIL];
        record[head..len].copy_from_slice(rest);
        record[len..len + TAIL].copy_from_slice(&[0; TAIL]);
        let crc = self.checksum.of([&record[4..stride], &[], &[]]);
        record[..8].copy_from_slice(&commit_word(crc, header.len).to_le_bytes());
        medium.write_committed(offset, &record[..stride + next]);
    }

    #[inline(never)]
    fn write_long(
        &mut self,
        medium: &mut dyn Medium,
        offset: u64,
        len: usize,
        rest: &[u8],
        next: usize,
    ) {
        let head = len - rest.len();
        let padding = stride(len) as usize - len;
        let tail = [0; TAIL];
        let crc = self
            .checksum
            .of([&self.bytes[4..head], rest, &tail[..padding]]);
        medium.write(offset + head as u64, rest);
        medium.write(offset + len as u64, &tail[..padding + next]);
        self.bytes[..8].copy_from_slice(&commit_word(crc, len as u32).to_le_bytes());
        medium.write_committed(offset, &self.bytes[..head]);
        if self.bytes.len() > KEEP {
            *self = Draft::new();
        }
    }
}
