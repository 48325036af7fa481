//! Bodies of records that are not messages.

use std::fmt;

use super::{MAX_SETTLED, NUMBERS_END, cut, u16_at, u32_at, u64_at};
use crate::MAX_REASON;
use crate::MAX_TAG;

const MARK_TAG: usize = 40;
pub(super) const MARK_BODY: usize = MARK_TAG + MAX_TAG;
pub(super) const EPOCH_EXTRA: usize = 24;
pub(super) const REJECTION_BODY: usize = 16;

/// A user tag, of at most [`MAX_TAG`] bytes.
#[derive(Clone, Copy)]
pub(crate) struct UserTag {
    len: u8,
    bytes: [u8; MAX_TAG],
}

impl UserTag {
    pub(crate) fn new(tag: &[u8]) -> Self {
        let mut this = UserTag {
            len: 0,
            bytes: [0; MAX_TAG],
        };
        this.set(tag);
        this
    }

    #[inline]
    pub(crate) fn set(&mut self, tag: &[u8]) {
        let len = tag.len().min(MAX_TAG);
        self.len = len as u8;
        if len > 0 {
            self.bytes[..len].copy_from_slice(&tag[..len]);
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl PartialEq for UserTag {
    fn eq(&self, other: &Self) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl Eq for UserTag {}

impl fmt::Debug for UserTag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_bytes().fmt(f)
    }
}

/// What a mark, and every epoch, says about the log before it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Mark {
    /// Every sequence up to here is settled.
    pub(crate) floor: u64,
    /// Every ordinal up to here was on the device when this was written.
    pub(crate) durable: u64,
    /// The next sequence to be given out.
    pub(crate) next: u64,
    /// No record with a lower ordinal is needed.
    pub(crate) oldest_needed: u64,
    /// Last record of a clean close.
    pub(crate) clean: bool,
    /// User tag of the newest publish before this record.
    pub(crate) tag: Option<UserTag>,
}

impl Mark {
    pub(crate) const SIZE: usize = MARK_BODY;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.floor.to_le_bytes());
        out.extend_from_slice(&self.durable.to_le_bytes());
        out.extend_from_slice(&self.next.to_le_bytes());
        out.extend_from_slice(&self.oldest_needed.to_le_bytes());
        let flags = u32::from(self.clean) | u32::from(self.tag.is_some()) << 1;
        out.extend_from_slice(&flags.to_le_bytes());
        let tag = self.tag.as_ref().map_or(&[][..], UserTag::as_bytes);
        out.extend_from_slice(&(tag.len() as u32).to_le_bytes());
        // The size is always the same, so that what fits into one segment also fits into another
        // (`space.rs`).
        let mut field = [0; MAX_TAG];
        field[..tag.len()].copy_from_slice(tag);
        out.extend_from_slice(&field);
    }

    /// Decodes the body of the record with this ordinal. A mark speaks of what came before it,
    /// and a mark that speaks of later ordinals is not accepted: believing it would make every
    /// later open skip what is written from now on.
    pub(crate) fn decode(b: &[u8], ordinal: u64) -> Option<Self> {
        if b.len() != MARK_BODY {
            return None;
        }
        let (flags, tag_len) = (u32_at(b, 32), u32_at(b, 36) as usize);
        if (0..4).any(|i| u64_at(b, i * 8) >= NUMBERS_END) {
            return None;
        }
        if flags > 3 || tag_len > MAX_TAG {
            return None;
        }
        let (durable, oldest_needed) = (u64_at(b, 8), u64_at(b, 24));
        if durable.max(oldest_needed) > ordinal {
            return None;
        }
        Some(Mark {
            floor: u64_at(b, 0),
            durable,
            next: u64_at(b, 16),
            oldest_needed,
            clean: flags & 1 != 0,
            tag: (flags & 2 != 0).then(|| UserTag::new(&b[MARK_TAG..MARK_TAG + tag_len])),
        })
    }
}

/// The first record of an open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// Ordinal of the record that this one follows, however far its own is above that.
    pub(crate) follows: u64,
    /// Highest sequence before this open.
    pub(crate) last_before: u64,
    /// First sequence this open gives out.
    pub(crate) first_after: u64,
    pub(crate) mark: Mark,
}

impl Epoch {
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.follows.to_le_bytes());
        out.extend_from_slice(&self.last_before.to_le_bytes());
        out.extend_from_slice(&self.first_after.to_le_bytes());
        self.mark.encode(out);
    }

    /// As [`Mark::decode`]; the record that it follows must come before it as well.
    pub(crate) fn decode(b: &[u8], ordinal: u64) -> Option<Self> {
        if b.len() < EPOCH_EXTRA || (0..3).any(|i| u64_at(b, i * 8) >= NUMBERS_END) {
            return None;
        }
        let follows = u64_at(b, 0);
        if follows >= ordinal {
            return None;
        }
        Some(Epoch {
            follows,
            last_before: u64_at(b, 8),
            first_after: u64_at(b, 16),
            mark: Mark::decode(&b[EPOCH_EXTRA..], ordinal)?,
        })
    }
}

/// A refusal's body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RejectionBody {
    pub(crate) at: u64,
    pub(crate) cut: bool,
    pub(crate) late: bool,
    pub(crate) reason: String,
}

impl RejectionBody {
    /// Cuts the reason to the length that is kept.
    pub(crate) fn new(reason: &str, at: u64, late: bool) -> Self {
        let kept = cut(reason, MAX_REASON);
        RejectionBody {
            at,
            cut: kept.len() < reason.len(),
            late,
            reason: kept.to_owned(),
        }
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.at.to_le_bytes());
        let flags = u16::from(self.cut) | u16::from(self.late) << 1;
        out.extend_from_slice(&flags.to_le_bytes());
        out.extend_from_slice(&(self.reason.len() as u16).to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(self.reason.as_bytes());
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        if b.len() < REJECTION_BODY || b.len() > REJECTION_BODY + MAX_REASON {
            return None;
        }
        let flags = u16_at(b, 8);
        if flags > 3 || u16_at(b, 10) as usize != b.len() - REJECTION_BODY {
            return None;
        }
        Some(RejectionBody {
            at: u64_at(b, 0),
            cut: flags & 1 != 0,
            late: flags & 2 != 0,
            reason: String::from_utf8_lossy(&b[REJECTION_BODY..]).into_owned(),
        })
    }
}

/// A range that was given up: ordinals and sequences that no intact neighbour accounts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LostBody {
    pub(crate) first_ordinal: u64,
    pub(crate) last_ordinal: u64,
    pub(crate) first_sequence: u64,
    pub(crate) last_sequence: u64,
}

impl LostBody {
    pub(crate) const SIZE: usize = 32;

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        for word in [
            self.first_ordinal,
            self.last_ordinal,
            self.first_sequence,
            self.last_sequence,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    }

    pub(crate) fn decode(b: &[u8]) -> Option<Self> {
        let sound = b.len() == Self::SIZE && (0..4).all(|i| u64_at(b, i * 8) < NUMBERS_END);
        sound.then(|| LostBody {
            first_ordinal: u64_at(b, 0),
            last_ordinal: u64_at(b, 8),
            first_sequence: u64_at(b, 16),
            last_sequence: u64_at(b, 24),
        })
    }
}

/// The sequences of a settlement record.
pub(crate) fn settled_sequences(body: &[u8]) -> Option<impl Iterator<Item = u64> + '_> {
    let sound = body.len().is_multiple_of(8) && body.len() / 8 <= MAX_SETTLED && !body.is_empty();
    sound.then(|| body.chunks_exact(8).map(|word| u64_at(word, 0)))
}
