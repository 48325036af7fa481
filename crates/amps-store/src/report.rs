//! What recovery found, as a value, and as the one line that an operator needs.

use std::fmt;
use std::time::Duration;

use crate::DamagedRange;
use crate::open::volume::Volume;

/// Where the log ended, and why there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Stop {
    /// After the last record of a clean close.
    #[default]
    CleanClose,
    /// After the last record of a process that died: nothing is written behind it.
    Unwritten,
    /// At a record that was still being written, or that was changed since.
    Torn {
        /// Where.
        offset: u64,
    },
    /// At bytes of an earlier lap: a power cut took what was written over them, or nothing was.
    Stale {
        /// Where.
        offset: u64,
    },
    /// At a hole: records are missing above the durable mark, and intact ones stand behind it.
    Hole {
        /// Where the hole starts.
        offset: u64,
    },
}

impl fmt::Display for Stop {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Stop::CleanClose => f.write_str("clean close"),
            Stop::Unwritten => f.write_str("end of what was written"),
            Stop::Torn { offset } => write!(f, "torn record at offset {offset}"),
            Stop::Stale { offset } => write!(f, "bytes of an earlier lap at offset {offset}"),
            Stop::Hole { offset } => write!(f, "hole above the durable mark at offset {offset}"),
        }
    }
}

/// What became of [`Options::grow_to`](crate::Options::grow_to), all in bytes of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Growth {
    /// The capacity was raised.
    Grown {
        /// From this.
        from: u64,
        /// To this: what was asked for, in whole segments.
        to: u64,
    },
    /// The capacity was larger already, and stays.
    Larger {
        /// The capacity.
        capacity: u64,
        /// What was asked for.
        asked: u64,
    },
    /// The capacity stays as it was: the disk has no room for more.
    Refused {
        /// The capacity.
        capacity: u64,
        /// What was asked for.
        asked: u64,
        /// What the operating system reported.
        error: String,
    },
}

impl fmt::Display for Growth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Growth::Grown { from, to } => {
                write!(f, "the capacity was raised from {from} to {to} bytes")
            }
            Growth::Larger { capacity, asked } => write!(
                f,
                "the capacity stays at {capacity} bytes, more than the {asked} asked for: a store \
                 does not shrink"
            ),
            Growth::Refused {
                capacity,
                asked,
                error,
            } => write!(
                f,
                "the capacity stays at {capacity} bytes, and cannot be raised to {asked}: {error}"
            ),
        }
    }
}

/// What an open found and did. Counts are of messages unless they say otherwise.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RecoveryReport {
    /// The file was created by this open.
    pub created: bool,
    /// Unsettled messages recovered.
    pub recovered: u64,
    /// The lowest of them.
    pub first: Option<u64>,
    /// The highest of them.
    pub last: Option<u64>,
    /// The sequence the next message gets.
    pub next: u64,
    /// Refusals that wait for the application.
    pub rejections: u64,
    /// Why the log ends where it ends.
    pub stop: Stop,
    /// The durable mark: every record up to this ordinal had reached the device.
    pub durable_ordinal: u64,
    /// The last record of the log.
    pub last_ordinal: u64,
    /// Generation of the run that this open began; in a look, that of the last run.
    pub generation: u64,
    /// Bytes of the record that stood unfinished where the log ends, 0 for none.
    pub torn_bytes: u64,
    /// Intact records behind the hole. They are not delivered, and their numbers are never used
    /// again.
    pub set_aside: u64,
    /// Sequences of the messages among them: lowest and highest.
    pub set_aside_sequences: Option<(u64, u64)>,
    /// Sequences of refusals among them.
    pub set_aside_rejections: Vec<u64>,
    /// Damage at or below the durable mark that `Salvage` went past.
    pub damaged: Vec<DamagedRange>,
    /// Damage where nothing that is needed can have stood.
    pub ignored: Vec<DamagedRange>,
    /// Ranges given up by this open or an earlier one.
    pub lost: Vec<(u64, u64)>,
    /// One superblock copy was damaged or behind the other; both are whole again.
    pub superblock_repaired: bool,
    /// The format version that the file had until this open, which converted it to the newest
    /// one: older programs cannot open it any more.
    pub converted_from: Option<u32>,
    /// The capacity in bytes, if a salvage raised it because too few segments were free to go on
    /// in.
    pub enlarged_to: Option<u64>,
    /// What became of a wish for more capacity, if the store did not have it already.
    pub growth: Option<Growth>,
    /// The file system that the store is on, if the store cannot keep all of its promises there.
    /// A warning is logged.
    pub volume: Option<Volume>,
    /// Bytes of log read.
    pub bytes: u64,
    /// Time taken by the scan.
    pub scan: Duration,
    /// Time taken to write again and sync what lay above the durable mark.
    pub resync: Duration,
}

impl RecoveryReport {
    /// Whether nothing is missing and nothing was set aside.
    pub fn is_clean(&self) -> bool {
        self.set_aside == 0 && self.damaged.is_empty()
    }
}

impl fmt::Display for RecoveryReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(volume) = self.volume {
            write!(f, "on {}, which is no place for a store: ", volume.name())?;
        }
        if self.created {
            return write!(f, "created, next {}", self.next);
        }
        write!(f, "recovered {} message(s)", self.recovered)?;
        if let (Some(first), Some(last)) = (self.first, self.last) {
            write!(f, " {first}..{last}")?;
        }
        write!(
            f,
            ", next {}, generation {}, stopped at {}",
            self.next, self.generation, self.stop
        )?;
        if self.torn_bytes > 0 {
            write!(f, ", {} byte(s) cut as torn", self.torn_bytes)?;
        }
        if self.rejections > 0 {
            write!(f, ", {} refusal(s) waiting", self.rejections)?;
        }
        if self.set_aside > 0 {
            write!(f, ", {} record(s) set aside", self.set_aside)?;
            if let Some((a, b)) = self.set_aside_sequences {
                write!(f, " (messages {a}..{b})")?;
            }
        }
        if let Some(bytes) = self.enlarged_to {
            write!(f, ", capacity raised to {bytes} bytes")?;
        }
        if let Some(growth) = &self.growth {
            write!(f, ", {growth}")?;
        }
        if let Some(version) = self.converted_from {
            write!(f, ", converted from format version {version}")?;
        }
        for (what, ranges) in [("ignored", &self.ignored), ("DAMAGED", &self.damaged)] {
            for range in ranges {
                let (offset, bytes) = (range.offset, range.bytes);
                write!(f, ", {what} at offset {offset} ({bytes} bytes)")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_line_says_what_an_operator_needs() {
        let range = |offset| DamagedRange {
            offset,
            bytes: 64,
            first_ordinal: 1,
            last_ordinal: Some(1),
            sequences: None,
            earlier: true,
        };
        let report = RecoveryReport {
            recovered: 3,
            first: Some(4),
            last: Some(9),
            next: 11,
            generation: 7,
            rejections: 1,
            stop: Stop::Torn { offset: 9000 },
            torn_bytes: 120,
            set_aside: 2,
            set_aside_sequences: Some((12, 13)),
            ignored: vec![range(8256)],
            damaged: vec![range(8512)],
            enlarged_to: Some(81_920),
            converted_from: Some(1),
            ..RecoveryReport::default()
        };
        assert_eq!(
            report.to_string(),
            "recovered 3 message(s) 4..9, next 11, generation 7, stopped at torn record at offset \
             9000, 120 byte(s) cut as torn, 1 refusal(s) waiting, 2 record(s) set aside (messages \
             12..13), capacity raised to 81920 bytes, converted from format version 1, ignored at offset 8256 (64 bytes), DAMAGED at offset 8512 (64 bytes)"
        );
    }
}
