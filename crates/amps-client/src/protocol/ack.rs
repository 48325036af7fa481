//! Ack kinds and the status an ack carries (`docs/protocol.md` §2.3, §6).

/// One kind of ack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AckKind {
    /// The server read the command.
    Received,
    /// The server parsed the command.
    Parsed,
    /// The command was carried out, or refused; says nothing about durability.
    Processed,
    /// The command, and with success every earlier one of this publisher, is settled.
    Persisted,
    /// All that the command asked for has happened.
    Completed,
    /// Counts of what the command touched.
    Stats,
}

impl AckKind {
    const ALL: [AckKind; 6] = [
        AckKind::Received,
        AckKind::Parsed,
        AckKind::Processed,
        AckKind::Persisted,
        AckKind::Completed,
        AckKind::Stats,
    ];

    /// The kind as it is spelled on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            AckKind::Received => "received",
            AckKind::Parsed => "parsed",
            AckKind::Processed => "processed",
            AckKind::Persisted => "persisted",
            AckKind::Completed => "completed",
            AckKind::Stats => "stats",
        }
    }

    fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// A set of ack kinds: what a command asks for, or the one kind an ack frame is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct AckKinds(u8);

impl AckKinds {
    /// No ack.
    pub const NONE: AckKinds = AckKinds(0);
    /// Only `processed`.
    pub const PROCESSED: AckKinds = AckKinds(1 << AckKind::Processed as u8);
    /// Only `persisted`.
    pub const PERSISTED: AckKinds = AckKinds(1 << AckKind::Persisted as u8);
    /// Only `completed`.
    pub const COMPLETED: AckKinds = AckKinds(1 << AckKind::Completed as u8);
    /// Only `stats`.
    pub const STATS: AckKinds = AckKinds(1 << AckKind::Stats as u8);

    /// This set and `kind`.
    #[must_use]
    pub fn with(self, kind: AckKind) -> Self {
        AckKinds(self.0 | kind.bit())
    }

    /// Whether `kind` is in the set.
    pub fn contains(self, kind: AckKind) -> bool {
        self.0 & kind.bit() != 0
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The kinds in the set.
    pub fn iter(self) -> impl Iterator<Item = AckKind> {
        AckKind::ALL
            .into_iter()
            .filter(move |kind| self.contains(*kind))
    }

    /// The only kind in the set, if it holds exactly one.
    pub fn single(self) -> Option<AckKind> {
        let mut kinds = self.iter();
        kinds.next().filter(|_| kinds.next().is_none())
    }

    /// Reads a comma list. Kinds this crate does not know, `none` among them, count as absent.
    pub fn from_wire(list: &str) -> Self {
        list.split(',').fold(AckKinds::NONE, |set, word| {
            let known = AckKind::ALL
                .into_iter()
                .find(|kind| kind.as_str() == word.trim());
            known.map_or(set, |kind| set.with(kind))
        })
    }

    #[inline]
    pub(super) fn write(self, out: &mut Vec<u8>) {
        if self == AckKinds::PERSISTED {
            // Every publish of a stored message asks for this.
            return out.extend_from_slice(b"persisted");
        }
        for (i, kind) in self.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            out.extend_from_slice(kind.as_str().as_bytes());
        }
    }
}

impl From<AckKind> for AckKinds {
    fn from(kind: AckKind) -> Self {
        AckKinds::NONE.with(kind)
    }
}

/// The outcome an ack reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Status {
    /// It worked.
    Success,
    /// It did not.
    Failure,
    /// Logon only: answer the challenge and log on again.
    Retry,
    /// A word this crate does not know; never to be taken for success.
    Unknown,
}

impl Status {
    /// Reads the wire's word.
    pub fn from_wire(word: &str) -> Self {
        match word {
            "success" => Status::Success,
            "failure" => Status::Failure,
            "retry" => Status::Retry,
            _ => Status::Unknown,
        }
    }

    /// The word on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Status::Success => "success",
            Status::Failure => "failure",
            Status::Retry => "retry",
            Status::Unknown => "unknown",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        let set = AckKinds::from_wire("persisted, processed,whatever");
        assert!(set.contains(AckKind::Persisted) && set.contains(AckKind::Processed));
        assert!(!set.contains(AckKind::Stats));
        assert_eq!(set.single(), None);
        assert_eq!(
            AckKinds::from_wire("persisted").single(),
            Some(AckKind::Persisted)
        );
        assert!(AckKinds::from_wire("none").is_empty());
        assert!(AckKinds::from_wire("").is_empty());
        let mut out = Vec::new();
        set.write(&mut out);
        assert_eq!(out, b"processed,persisted");
    }

    #[test]
    fn the_constants_match_the_kinds() {
        for (set, kind) in [
            (AckKinds::PROCESSED, AckKind::Processed),
            (AckKinds::PERSISTED, AckKind::Persisted),
            (AckKinds::COMPLETED, AckKind::Completed),
            (AckKinds::STATS, AckKind::Stats),
        ] {
            assert_eq!(set, AckKinds::from(kind));
        }
    }
}
