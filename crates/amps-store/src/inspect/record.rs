//! Every record of every segment, in file order.

use std::{fmt, io};

use super::Inspection;
use crate::api::Rejection;
use crate::envelope::Envelope;
use crate::excerpt::Excerpt;
use crate::format::{
    Epoch, Kind, LostBody, Mark, RecordHeader, RejectionBody, SEGMENT_HEADER, settled_sequences,
};
use crate::recover::scan::{Scanner, Seen, Verdict};
use crate::report::Stop;
use crate::state::Standing;

use super::view::View;

/// Bytes that are checksummed in vain, per byte of a segment, at places where a record might
/// begin.
const SEARCH_BUDGET: u64 = 4;

/// Kinds of record; see `store-format.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordKind {
    /// A message.
    Publish,
    /// Up to 64 messages settled one by one.
    Settlement,
    /// A refusal.
    Rejection,
    /// A refusal the application took over.
    Acceptance,
    /// A message appended again, so that its old segment could be freed.
    Copy,
    /// Floor, durable mark, next sequence, oldest needed ordinal, resume tag.
    Mark,
    /// The first record of an open.
    Epoch,
    /// A range that a salvage gave up.
    Lost,
    /// A settled message, appended again because a refusal of it follows and must not lose it.
    Original,
}

impl From<Kind> for RecordKind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Publish => RecordKind::Publish,
            Kind::Settlement => RecordKind::Settlement,
            Kind::Rejection => RecordKind::Rejection,
            Kind::Acceptance => RecordKind::Acceptance,
            Kind::Copy => RecordKind::Copy,
            Kind::Mark => RecordKind::Mark,
            Kind::Epoch => RecordKind::Epoch,
            Kind::Lost => RecordKind::Lost,
            Kind::Original => RecordKind::Original,
        }
    }
}

impl std::fmt::Display for RecordKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RecordKind::Publish => "publish",
            RecordKind::Settlement => "settlement",
            RecordKind::Rejection => "rejection",
            RecordKind::Acceptance => "acceptance",
            RecordKind::Copy => "copy",
            RecordKind::Mark => "mark",
            RecordKind::Epoch => "epoch",
            RecordKind::Lost => "lost",
            RecordKind::Original => "original",
        })
    }
}

/// What a stretch of a segment holds, and whether it still counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum RecordVerdict {
    /// The newest record of an unsettled message, or a record of the log's own bookkeeping.
    Live,
    /// A message that was settled, or a refusal that was accepted.
    Settled,
    /// The newest record of a refused message, or of its refusal, that waits.
    Rejected,
    /// A later copy of the same message stands elsewhere.
    Superseded,
    /// Intact, but of an earlier lap of the ring, or given up by a later open.
    Stale,
    /// Intact, behind a hole: it will not be delivered, and `repair` saves it.
    SetAside,
    /// The last record: it was being written, or a power cut took part of it.
    Torn,
    /// Bytes in the log where a record should be and none is.
    Damaged,
}

impl std::fmt::Display for RecordVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            RecordVerdict::Live => "live",
            RecordVerdict::Settled => "settled",
            RecordVerdict::Rejected => "rejected",
            RecordVerdict::Superseded => "superseded",
            RecordVerdict::Stale => "stale",
            RecordVerdict::SetAside => "set aside",
            RecordVerdict::Torn => "torn",
            RecordVerdict::Damaged => "damaged",
        })
    }
}

/// A record, or a stretch of damage.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Record {
    /// Where it stands in the file.
    pub offset: u64,
    /// The segment.
    pub segment: usize,
    /// Bytes it takes, padding included.
    pub bytes: u64,
    /// What it is; `None` for damage.
    pub kind: Option<RecordKind>,
    /// The message it concerns, 0 for none.
    pub sequence: u64,
    /// Its place in the log, 0 for damage.
    pub ordinal: u64,
    /// The open that wrote it.
    pub generation: u64,
    /// Header, envelope and payload, without padding.
    pub length: u32,
    /// The message does not move the resume point: it was requeued or imported.
    pub quiet: bool,
    /// Whether it still counts.
    pub verdict: RecordVerdict,
    /// What it says.
    pub body: Body,
}

/// What a record says.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Body {
    /// A publish or a copy.
    Message {
        /// The envelope.
        envelope: Envelope<'static>,
        /// The payload.
        payload: Vec<u8>,
    },
    /// Messages settled one by one.
    Settlement(Vec<u64>),
    /// A refusal.
    Rejection(Rejection),
    /// The refusal of [`Record::sequence`] was taken over.
    Acceptance,
    /// What a mark says.
    Mark {
        /// Every sequence up to here is settled.
        floor: u64,
        /// Every ordinal up to here was on the device.
        durable: u64,
        /// The next sequence to be given out.
        next: u64,
        /// No record with a lower ordinal is needed.
        oldest_needed: u64,
        /// It closed the store.
        clean: bool,
        /// Resume tag.
        tag: Option<Vec<u8>>,
    },
    /// The first record of an open, and what a mark in its place would say.
    Epoch {
        /// Ordinal of the record it follows.
        follows: u64,
        /// Highest sequence before this open.
        last_before: u64,
        /// First sequence of this open.
        first_after: u64,
        /// Every sequence up to here is settled.
        floor: u64,
        /// Every ordinal up to here was on the device.
        durable: u64,
    },
    /// A range given up: ordinals and sequences, zero where unknown.
    Lost {
        /// First ordinal.
        first_ordinal: u64,
        /// Last ordinal.
        last_ordinal: u64,
        /// First sequence.
        first_sequence: u64,
        /// Last sequence.
        last_sequence: u64,
    },
    /// The checksum fits, but the bytes behind the header are not those of a record of this kind;
    /// or they cannot be relied on.
    Unreadable(Vec<u8>),
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Body::Message { envelope, payload } => f
                .debug_struct("Message")
                .field("envelope", envelope)
                .field("payload", &Excerpt(payload))
                .finish(),
            Body::Settlement(sequences) => f.debug_tuple("Settlement").field(sequences).finish(),
            Body::Rejection(rejection) => f.debug_tuple("Rejection").field(rejection).finish(),
            Body::Acceptance => f.write_str("Acceptance"),
            Body::Mark {
                floor,
                durable,
                next,
                oldest_needed,
                clean,
                tag,
            } => f
                .debug_struct("Mark")
                .field("floor", floor)
                .field("durable", durable)
                .field("next", next)
                .field("oldest_needed", oldest_needed)
                .field("clean", clean)
                .field("tag", tag)
                .finish(),
            Body::Epoch {
                follows,
                last_before,
                first_after,
                floor,
                durable,
            } => f
                .debug_struct("Epoch")
                .field("follows", follows)
                .field("last_before", last_before)
                .field("first_after", first_after)
                .field("floor", floor)
                .field("durable", durable)
                .finish(),
            Body::Lost {
                first_ordinal,
                last_ordinal,
                first_sequence,
                last_sequence,
            } => f
                .debug_struct("Lost")
                .field("first_ordinal", first_ordinal)
                .field("last_ordinal", last_ordinal)
                .field("first_sequence", first_sequence)
                .field("last_sequence", last_sequence)
                .finish(),
            Body::Unreadable(bytes) => f.debug_tuple("Unreadable").field(&Excerpt(bytes)).finish(),
        }
    }
}

impl Inspection {
    /// Every record of every segment in file order: the log, what an earlier lap left, what is
    /// set aside, and stretches of damage. In a live store larger than 64 MiB, a place that was
    /// reused since the look shows what stands there now, as stale.
    pub fn records(&self) -> Records<'_> {
        Records {
            view: &self.view,
            scanner: Scanner::new(&self.view, self.view.recovered.geometry),
            segment: 0,
            position: 0,
            budget: 0,
            set_aside: {
                let mut set_aside: Vec<u64> = self
                    .view
                    .recovered
                    .set_aside
                    .iter()
                    .map(|s| s.offset)
                    .collect();
                set_aside.sort_unstable();
                set_aside
            },
        }
    }

    /// The records set aside, by ordinal: intact, behind a hole, not delivered.
    pub fn set_aside(&self) -> impl Iterator<Item = io::Result<Record>> + '_ {
        let mut records = self.records();
        let set_aside = self.view.recovered.set_aside.iter();
        set_aside.map(move |seen| records.record(seen.offset, seen.header))
    }
}

/// Iterator over [`Inspection::records`].
pub struct Records<'a> {
    view: &'a View,
    scanner: Scanner<'a, View>,
    segment: usize,
    /// Zero: the segment has not been entered yet.
    position: u64,
    budget: u64,
    set_aside: Vec<u64>,
}

impl Iterator for Records<'_> {
    type Item = io::Result<Record>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Records<'_> {
    fn advance(&mut self) -> io::Result<Option<Record>> {
        let geometry = self.view.recovered.geometry;
        while self.segment < self.view.stamps.len() {
            let (start, end) = (
                geometry.segment_at(self.segment),
                geometry.end_of(self.segment),
            );
            if self.position == 0 {
                self.position = geometry.records_at(self.segment);
                self.budget = geometry.segment_size * SEARCH_BUDGET;
                if self.view.stamps[self.segment].is_none() {
                    return Ok(Some(damage(start, self.segment, SEGMENT_HEADER)));
                }
            }
            if let Some(record) = self.next_in(end)? {
                self.position = record.offset + record.bytes;
                return Ok(Some(record));
            }
            self.segment += 1;
            self.position = 0;
        }
        Ok(None)
    }

    /// The next record from the position on, or the damage before it.
    fn next_in(&mut self, end: u64) -> io::Result<Option<Record>> {
        let log_end = self
            .view
            .recovered
            .chain
            .iter()
            .find(|c| c.segment == self.segment)
            .map_or(0, |c| c.end);
        let from = self.position;
        // What begins with a hole may be one to its end.
        let mut at = match from == self.view.recovered.geometry.records_at(self.segment) {
            true => self.scanner.behind_hole(from)?,
            false => from,
        };
        loop {
            let verdict = if self.budget == 0 {
                Verdict::SegmentEnd
            } else {
                self.scanner.look(at, end)?
            };
            match verdict {
                Verdict::Intact(_) if at > from && from < log_end => {
                    return Ok(Some(damage(from, self.segment, at.min(log_end) - from)));
                }
                Verdict::Intact(header) => return self.record(at, header).map(Some),
                Verdict::Torn(header) if at >= log_end && self.is_stop(at) => {
                    let mut record = damage(at, self.segment, header.stride());
                    record.kind = Some(header.kind.into());
                    record.sequence = header.sequence;
                    record.ordinal = header.ordinal;
                    record.generation = header.generation;
                    record.length = header.len;
                    record.verdict = RecordVerdict::Torn;
                    // What stands behind this place may be intact: search on from there.
                    record.bytes = 8;
                    return Ok(Some(record));
                }
                Verdict::SegmentEnd => {
                    return Ok((from < log_end).then(|| damage(from, self.segment, log_end - from)));
                }
                Verdict::Torn(header) => {
                    self.budget = self.budget.saturating_sub(header.stride());
                    at += 8;
                }
                Verdict::Unwritten | Verdict::Garbage => {
                    at = self.scanner.next_possible(at + 8, end)?;
                }
            }
        }
    }

    fn is_stop(&self, at: u64) -> bool {
        matches!(self.view.recovered.stop, Stop::Torn { offset } | Stop::Hole { offset } if offset == at)
    }

    fn record(&mut self, offset: u64, header: RecordHeader) -> io::Result<Record> {
        let seen = Seen { offset, header };
        let verdict = self.verdict(&seen);
        let body = decode(self.scanner.body(&seen)?, &header);
        Ok(Record {
            offset,
            segment: self.view.recovered.geometry.segment_of(offset),
            bytes: header.stride(),
            kind: Some(header.kind.into()),
            sequence: header.sequence,
            ordinal: header.ordinal,
            generation: header.generation,
            length: header.len,
            quiet: header.quiet,
            verdict,
            body,
        })
    }

    fn verdict(&self, seen: &Seen) -> RecordVerdict {
        let recovered = &self.view.recovered;
        if self.set_aside.binary_search(&seen.offset).is_ok() {
            return RecordVerdict::SetAside;
        }
        let segment = recovered.geometry.segment_of(seen.offset);
        let in_log = recovered.chain.iter().any(|c| {
            c.segment == segment
                && seen.offset < c.end
                && (c.first_ordinal..=c.last_ordinal).contains(&seen.ordinal())
        });
        if !in_log {
            return RecordVerdict::Stale;
        }
        let (state, sequence) = (&recovered.state, seen.header.sequence);
        match seen.kind() {
            Kind::Publish | Kind::Copy | Kind::Original => match state.get(sequence) {
                Some(entry) if entry.offset() != seen.offset => RecordVerdict::Superseded,
                _ => match state.standing(sequence) {
                    Standing::Unsettled => RecordVerdict::Live,
                    Standing::Rejected => RecordVerdict::Rejected,
                    Standing::Settled | Standing::Accepted | Standing::Gone => {
                        RecordVerdict::Settled
                    }
                },
            },
            Kind::Rejection => match state.rejection(sequence) {
                Some(entry) if entry.offset() == seen.offset => RecordVerdict::Rejected,
                Some(_) => RecordVerdict::Superseded,
                None => RecordVerdict::Settled,
            },
            _ => RecordVerdict::Live,
        }
    }
}

fn damage(offset: u64, segment: usize, bytes: u64) -> Record {
    Record {
        offset,
        segment,
        bytes,
        kind: None,
        sequence: 0,
        ordinal: 0,
        generation: 0,
        length: 0,
        quiet: false,
        verdict: RecordVerdict::Damaged,
        body: Body::Unreadable(Vec::new()),
    }
}

/// What the body of an intact record says.
fn decode(bytes: &[u8], header: &RecordHeader) -> Body {
    let body = match header.kind {
        Kind::Publish | Kind::Copy | Kind::Original => {
            let (envelope, payload) = bytes.split_at(header.envelope_len as usize);
            Envelope::decode(envelope)
                .ok()
                .map(|envelope| Body::Message {
                    envelope: envelope.into_owned(),
                    payload: payload.to_vec(),
                })
        }
        Kind::Settlement => settled_sequences(bytes).map(|s| Body::Settlement(s.collect())),
        Kind::Rejection => RejectionBody::decode(bytes).map(|r| {
            Body::Rejection(Rejection {
                sequence: header.sequence,
                reason: r.reason,
                reason_cut: r.cut,
                at: r.at,
                late: r.late,
            })
        }),
        Kind::Acceptance => Some(Body::Acceptance),
        Kind::Mark => Mark::decode(bytes, header.ordinal).map(|m| Body::Mark {
            floor: m.floor,
            durable: m.durable,
            next: m.next,
            oldest_needed: m.oldest_needed,
            clean: m.clean,
            tag: m.tag.map(|tag| tag.as_bytes().to_vec()),
        }),
        Kind::Epoch => Epoch::decode(bytes, header.ordinal).map(|e| Body::Epoch {
            follows: e.follows,
            last_before: e.last_before,
            first_after: e.first_after,
            floor: e.mark.floor,
            durable: e.mark.durable,
        }),
        Kind::Lost => LostBody::decode(bytes).map(|l| Body::Lost {
            first_ordinal: l.first_ordinal,
            last_ordinal: l.last_ordinal,
            first_sequence: l.first_sequence,
            last_sequence: l.last_sequence,
        }),
    };
    body.unwrap_or_else(|| Body::Unreadable(bytes.to_vec()))
}
