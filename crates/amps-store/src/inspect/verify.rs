//! Reads everything once, and says what that covered.

use std::io;

use super::{Body, Inspection, Record, RecordKind, RecordVerdict};
use crate::error::OpenError;
use crate::format::{BLOCK, IDENTITY_AT, SEGMENT_HEADER, SUPERBLOCKS, SuperblockVerdict};
use crate::open::unopenable;
use crate::report::Stop;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// Worth knowing; nothing that was durable and is needed is missing.
    Notice,
    /// Something is missing or wrong that should not be.
    Damage,
}

/// Something found.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Problem {
    /// How bad it is.
    pub severity: Severity,
    /// Where it starts in the file.
    pub offset: u64,
    /// How many bytes it concerns, 0 when it concerns only a place.
    pub bytes: u64,
    /// What it is, for people.
    pub text: String,
}

/// What was checked, and what was found.
#[derive(Debug, Default)]
#[non_exhaustive]
pub struct Verification {
    /// Bytes of the file that were checked: superblocks and every segment, including holes, which
    /// need not be read.
    pub bytes: u64,
    /// Superblock copies whose checksum fits.
    pub superblocks: u64,
    /// Segment headers whose checksum fits.
    pub segment_headers: u64,
    /// Segments in the file.
    pub segments: u64,
    /// Intact records of the log.
    pub records: u64,
    /// Intact records that are not of the log: of earlier laps, or set aside.
    pub other_records: u64,
    /// Checksums that were computed and fit.
    pub checksums: u64,
    /// Messages of the log whose envelope was decoded.
    pub messages: u64,
    /// Every finding, by offset.
    pub problems: Vec<Problem>,
    /// Why every open refuses the file although nothing in it need be damaged: it was evacuated,
    /// or says what no store ever writes.
    pub refused: Option<OpenError>,
    /// The store changed while it was read. No finding is about the place that was being written.
    pub moving: bool,
}

impl Verification {
    /// Whether nothing is missing or wrong, so that a strict open takes it. Notices do not count
    /// as damage.
    pub fn is_sound(&self) -> bool {
        self.refused.is_none() && !self.problems.iter().any(|p| p.severity == Severity::Damage)
    }

    fn problem(&mut self, severity: Severity, offset: u64, bytes: u64, text: impl Into<String>) {
        self.problems.push(Problem {
            severity,
            offset,
            bytes,
            text: text.into(),
        });
    }
}

impl Inspection {
    /// Checks everything a reader relies on: both superblock copies, every segment header,
    /// every record's checksum and body, the chain of ordinals, and the order of numbers.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn verify(&self) -> io::Result<Verification> {
        let mut out = Verification {
            moving: self.is_moving(),
            segments: self.view.stamps.len() as u64,
            ..Verification::default()
        };
        if !self.is_moving() {
            let superblock = &self.view.header.superblock;
            out.refused = unopenable(&self.path, self.view.end, superblock, &self.view.recovered);
        }
        self.verify_superblocks(&mut out);
        for (segment, stamp) in self.view.stamps.iter().enumerate() {
            if stamp.is_some() {
                out.segment_headers += 1;
                out.checksums += 1;
            } else {
                let at = self.view.recovered.geometry.segment_at(segment);
                let text = format!("the header of segment {segment} is damaged");
                out.problem(Severity::Notice, at, SEGMENT_HEADER, text);
            }
        }
        self.verify_recovery(&mut out);
        self.verify_records(&mut out)?;
        out.problems.sort_by_key(|p| p.offset);
        Ok(out)
    }

    fn verify_superblocks(&self, out: &mut Verification) {
        let in_force = &self.view.header.superblock;
        for (copy, verdict) in self.view.superblocks.iter().enumerate() {
            let text = match verdict {
                SuperblockVerdict::Intact(superblock) => {
                    out.superblocks += 1;
                    out.checksums += 1;
                    if **superblock == *in_force {
                        continue;
                    }
                    format!(
                        "superblock copy {copy} is behind (write {}, in force is {})",
                        superblock.counter, in_force.counter
                    )
                }
                SuperblockVerdict::Blank => {
                    format!("superblock copy {copy} is blank; the other is in force")
                }
                SuperblockVerdict::Version(v) => {
                    format!("superblock copy {copy} has format version {v}")
                }
                SuperblockVerdict::Features(f) => {
                    format!("superblock copy {copy} needs unknown features {f:#x}")
                }
                SuperblockVerdict::Damaged(why) => {
                    format!("superblock copy {copy} is damaged ({why}); the other is in force")
                }
            };
            out.problem(Severity::Notice, SUPERBLOCKS[copy], 4096, text);
        }
        if in_force.identity().is_some() && self.view.header.lacks_identity {
            let text = "what the store says of itself for good is damaged; the next open writes it";
            out.problem(Severity::Notice, IDENTITY_AT, BLOCK, text);
        }
        out.bytes += in_force.segments_at;
    }

    fn verify_recovery(&self, out: &mut Verification) {
        let recovered = &self.view.recovered;
        for range in &recovered.damaged {
            let mut text = match (range.first_ordinal, range.last_ordinal) {
                (0, _) => "damaged where records may have been".to_owned(),
                (first, Some(last)) => format!("records with ordinals {first} to {last} are lost"),
                (first, None) => format!("records from ordinal {first} on are lost"),
            };
            if let Some((first, last)) = range.sequences {
                text.push_str(&format!(", sequences {first} to {last} may be among them"));
            }
            if range.earlier && range.sequences.is_some() {
                text.push_str(", or copies and refusals of earlier ones");
            }
            out.problem(Severity::Damage, range.offset, range.bytes, text);
        }
        for range in &recovered.ignored {
            let text = "damaged, and nothing in it is needed";
            out.problem(Severity::Notice, range.offset, range.bytes, text);
        }
        for lost in &recovered.lost {
            let text = format!(
                "an earlier salvage gave up ordinals {} to {} (sequences {} to {})",
                lost.first_ordinal, lost.last_ordinal, lost.first_sequence, lost.last_sequence
            );
            out.problem(Severity::Notice, 0, 0, text);
        }
        if let Stop::Torn { offset } | Stop::Stale { offset } | Stop::Hole { offset } =
            recovered.stop
        {
            let aside = recovered.set_aside.len();
            let text = format!("the log ends here: {}; {aside} set aside", recovered.stop);
            out.problem(Severity::Notice, offset, 0, text);
        }
        let superblock = &self.view.header.superblock;
        let named = superblock.len_of(superblock.segments);
        if self.view.file_len > named {
            let text = "behind the last segment: growth that was not finished";
            out.problem(Severity::Notice, named, self.view.file_len - named, text);
        }
    }

    fn verify_records(&self, out: &mut Verification) -> io::Result<()> {
        let mut newest = (usize::MAX, 0);
        for record in self.records() {
            let record = record?;
            match record.verdict {
                // The recovery judges these.
                RecordVerdict::Damaged | RecordVerdict::Torn => continue,
                RecordVerdict::Stale => {
                    out.other_records += 1;
                    out.checksums += 1;
                    continue;
                }
                RecordVerdict::SetAside => out.other_records += 1,
                _ => out.records += 1,
            }
            out.checksums += 1;
            match record.body {
                Body::Message { .. } => out.messages += 1,
                Body::Unreadable(_) => {
                    let (severity, what) = unreadable(&record);
                    let text = format!("record {} is intact, and {what}", record.ordinal);
                    out.problem(severity, record.offset, record.bytes, text);
                }
                _ => {}
            }
            if record.kind == Some(super::RecordKind::Publish) {
                if newest.0 == record.segment && record.sequence <= newest.1 {
                    let text = format!("sequence {} was given out twice", record.sequence);
                    out.problem(Severity::Damage, record.offset, record.bytes, text);
                }
                newest = (record.segment, record.sequence);
            }
        }
        let size = self.view.recovered.geometry.segment_size;
        out.bytes += self.view.stamps.len() as u64 * size;
        Ok(())
    }
}

/// What an open does with a record whose body does not fit its kind.
fn unreadable(record: &Record) -> (Severity, String) {
    use RecordKind::{Copy, Lost, Original, Publish, Rejection};
    match record.kind {
        Some(Publish | Copy | Original) => {
            let text = format!(
                "the envelope of message {} is not of a version this program knows: unsettled, it \
                 will wait as a refusal",
                record.sequence
            );
            (Severity::Notice, text)
        }
        Some(Rejection) => {
            let text = format!(
                "the reason why message {} was refused cannot be read; the refusal waits",
                record.sequence
            );
            (Severity::Notice, text)
        }
        Some(Lost) => (Severity::Notice, "names nothing".into()),
        _ => (Severity::Damage, "its body is not of this version".into()),
    }
}
