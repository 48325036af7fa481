//! Where the last run stopped reading, and whether this is the same input.
//!
//! The user tag of a message published with `--resume` is `line:offset:checksum`: the number of
//! its line, counted from 1, the number of bytes of the input before its newline, and a running
//! checksum of all those bytes. The checksum of a single line would match a repeated line; this
//! one matches only the same beginning.

use std::fmt;

/// A place in an input: the end of a line, before its newline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    /// Lines up to here, including this one.
    pub(crate) line: u64,
    offset: u64,
    checksum: u64,
}

impl Place {
    /// FNV-1a, 64 bits: its offset basis and prime.
    pub(crate) const START: Place = Place {
        line: 0,
        offset: 0,
        checksum: 0xcbf2_9ce4_8422_2325,
    };

    /// Moves on behind these bytes, which contain no end of a line.
    pub(crate) fn pass(&mut self, bytes: &[u8]) {
        self.offset += bytes.len() as u64;
        for &byte in bytes {
            self.checksum ^= u64::from(byte);
            self.checksum = self.checksum.wrapping_mul(0x0000_0100_0000_01b3);
        }
    }

    /// Makes this place the end of the line that was begun before it.
    pub(crate) fn end_of_line(&mut self) -> Place {
        self.line += 1;
        *self
    }

    /// As the user tag of a message.
    pub(crate) fn tag(&self) -> String {
        let Place {
            line,
            offset,
            checksum,
        } = self;
        format!("{line}:{offset}:{checksum:016x}")
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "line {} to end at byte {} with checksum {:016x}",
            self.line, self.offset, self.checksum
        )
    }
}

/// How much of the input was stored before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stored {
    /// This many lines, whatever they were: from the tag of an earlier version, or because
    /// somebody said so.
    Lines(u64),
    /// Everything up to here, which must be the same input.
    Place(Place),
}

impl Stored {
    /// Reads a user tag; `None` if it is another program's.
    pub(crate) fn from_tag(tag: &[u8]) -> Option<Self> {
        let text = std::str::from_utf8(tag).ok()?;
        let mut parts = text.split(':');
        let mut next = || parts.next();
        let line = decimal(next()?)?;
        let Some(offset) = next() else {
            return Some(Stored::Lines(line));
        };
        let checksum = next()?;
        if next().is_some() || checksum.len() != 16 {
            return None;
        }
        Some(Stored::Place(Place {
            line,
            offset: decimal(offset)?,
            checksum: u64::from_str_radix(checksum, 16).ok()?,
        }))
    }

    /// Number of lines that are not published again.
    pub(crate) fn lines(self) -> u64 {
        match self {
            Stored::Lines(lines) => lines,
            Stored::Place(place) => place.line,
        }
    }

    /// Whether the line that ends at `found` may be the last of them.
    ///
    /// # Errors
    /// What was expected and what was found.
    pub(crate) fn check(self, found: &Place) -> Result<(), String> {
        match self {
            Stored::Place(expected) if expected != *found => Err(format!(
                "the last run stored {expected}, and it ends at byte {} with checksum {:016x}",
                found.offset, found.checksum
            )),
            _ => Ok(()),
        }
    }
}

/// A number exactly as it is written here: `u64::from_str` would accept a plus sign.
fn decimal(text: &str) -> Option<u64> {
    text.bytes()
        .all(|b| b.is_ascii_digit())
        .then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_fits_and_is_read_back() {
        let mut place = Place::START;
        place.pass(b"one");
        let end = place.end_of_line();
        assert_eq!(end.tag(), "1:3:1a08aa1921ca5caf");
        assert_eq!(
            Stored::from_tag(end.tag().as_bytes()),
            Some(Stored::Place(end))
        );
        let largest = Place {
            line: u64::MAX,
            offset: u64::MAX,
            checksum: u64::MAX,
        };
        assert!(largest.tag().len() <= 64);
        assert_eq!(
            Stored::from_tag(largest.tag().as_bytes()),
            Some(Stored::Place(largest))
        );
        assert_eq!(Stored::from_tag(b"17"), Some(Stored::Lines(17)));
        for other in [
            "",
            "x",
            "+1",
            "1:",
            "1:2",
            "1:2:3",
            "1:2:00000000000000001",
            "-1",
            "1:2:0000000000000000:",
        ] {
            assert_eq!(Stored::from_tag(other.as_bytes()), None, "{other:?}");
        }
    }

    #[test]
    fn a_checksum_runs_over_everything_before() {
        let at = |input: &[&[u8]]| {
            let mut place = Place::START;
            let mut end = place;
            for line in input {
                place.pass(line);
                end = place.end_of_line();
                place.pass(b"\n");
            }
            end
        };
        let stored = Stored::Place(at(&[b"a", b"same"]));
        assert!(stored.check(&at(&[b"a", b"same"])).is_ok());
        let other = stored.check(&at(&[b"b", b"same"])).unwrap_err();
        assert!(other.contains("line 2 to end at byte 6"), "{other}");
        assert!(stored.check(&at(&[b"", b"asame"])).is_err());
        assert!(Stored::Lines(2).check(&at(&[b"b", b"same"])).is_ok());
    }
}
