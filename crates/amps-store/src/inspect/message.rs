//! Messages by sequence, with what became of them.

use std::io;
use std::ops::RangeInclusive;

use super::Inspection;
use super::view::View;
use crate::api::Rejection;
use crate::debug_with_excerpt;
use crate::envelope::Envelope;
use crate::error::OpenError;
use crate::format::{Kind, RECORD_HEADER, RecordHeader, RejectionBody, record_is_intact};
use crate::recover::scan::Source;
use crate::state::Standing;
use crate::state::index::Entry;

/// How often a message is looked up again when its place was reused before it could be read.
const CHASES: u32 = 5;

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MessageState {
    /// It will be sent, or sent again.
    Unsettled,
    /// It was refused, and the refusal waits for the application.
    Rejected,
    /// It was settled; its bytes are still there.
    Settled,
    /// It stands behind a hole and will not be delivered; `repair` saves it.
    SetAside,
}

impl std::fmt::Display for MessageState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            MessageState::Unsettled => "unsettled",
            MessageState::Rejected => "rejected",
            MessageState::Settled => "settled",
            MessageState::SetAside => "set aside",
        })
    }
}

/// A message, where it stands, and what became of it.
#[derive(Clone)]
#[non_exhaustive]
pub struct Message {
    /// Its sequence.
    pub sequence: u64,
    /// Where its newest record stands in the file.
    pub offset: u64,
    /// That record's place in the log.
    pub ordinal: u64,
    /// The open that wrote that record.
    pub generation: u64,
    /// The record is a copy of an older one.
    pub is_copy: bool,
    /// It does not move the resume point: it was requeued or imported.
    pub quiet: bool,
    /// What became of it.
    pub state: MessageState,
    /// The envelope; `None` when it is not of a version this program knows.
    pub envelope: Option<Envelope<'static>>,
    /// The bytes of the envelope.
    pub envelope_bytes: Vec<u8>,
    /// The payload, byte for byte as published.
    pub payload: Vec<u8>,
    /// The refusal that waits.
    pub rejection: Option<Rejection>,
}

debug_with_excerpt!(
    Message: Message,
    [sequence, offset, ordinal, generation, is_copy, quiet, state, envelope, rejection],
    payload
);

/// Which messages to show: the unsettled ones unless set.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct Filter {
    states: Vec<MessageState>,
    topic: Option<String>,
    sequences: Option<RangeInclusive<u64>>,
    published: Option<RangeInclusive<u64>>,
}

impl Filter {
    /// Unsettled messages.
    pub fn new() -> Self {
        Self::default()
    }

    /// Messages in any state whose bytes are still there.
    pub fn all() -> Self {
        use MessageState::{Rejected, SetAside, Settled, Unsettled};
        [Unsettled, Rejected, Settled, SetAside]
            .into_iter()
            .fold(Self::new(), Self::state)
    }

    /// Messages in this state; repeat it for more than one.
    pub fn state(mut self, state: MessageState) -> Self {
        self.states.push(state);
        self
    }

    /// Only messages for this topic.
    pub fn topic(mut self, topic: impl Into<String>) -> Self {
        self.topic = Some(topic.into());
        self
    }

    /// Only these sequences.
    pub fn sequences(mut self, range: RangeInclusive<u64>) -> Self {
        self.sequences = Some(range);
        self
    }

    /// Only messages published in this range of microseconds since the Unix epoch.
    pub fn published(mut self, range: RangeInclusive<u64>) -> Self {
        self.published = Some(range);
        self
    }

    fn wants(&self, state: MessageState) -> bool {
        if self.states.is_empty() {
            state == MessageState::Unsettled
        } else {
            self.states.contains(&state)
        }
    }

    fn takes(&self, message: &Message) -> bool {
        let envelope = message.envelope.as_ref();
        self.wants(message.state)
            && self
                .topic
                .as_ref()
                .is_none_or(|t| envelope.is_some_and(|e| e.topic == *t))
            && self
                .published
                .as_ref()
                .is_none_or(|r| envelope.is_some_and(|e| r.contains(&e.published_at)))
    }

    fn first(&self) -> u64 {
        self.sequences.as_ref().map_or(0, |r| *r.start())
    }

    fn last(&self) -> u64 {
        self.sequences.as_ref().map_or(u64::MAX, |r| *r.end())
    }
}

impl Inspection {
    /// Messages that pass the filter: those of the log in order of sequence, then those set
    /// aside in order of sequence.
    pub fn messages(&self, filter: Filter) -> Messages<'_> {
        let mut aside: Vec<(u64, u64, u64)> = self
            .view
            .recovered
            .set_aside
            .iter()
            .filter(|s| s.kind().is_message() && filter.wants(MessageState::SetAside))
            .map(|s| (s.header.sequence, s.ordinal(), s.offset))
            .collect();
        aside.sort_unstable();
        Messages {
            inspection: self,
            fresh: None,
            from: filter.first(),
            filter,
            aside: aside.into_iter(),
            in_log: true,
        }
    }

    /// One message, settled or not, while its bytes are there; set aside ones included.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn get(&self, sequence: u64) -> io::Result<Option<Message>> {
        self.messages(Filter::all().sequences(sequence..=sequence))
            .next()
            .transpose()
    }
}

/// Iterator over [`Inspection::messages`].
pub struct Messages<'a> {
    inspection: &'a Inspection,
    /// A later look, taken when a record was gone from its place.
    fresh: Option<Inspection>,
    filter: Filter,
    from: u64,
    aside: std::vec::IntoIter<(u64, u64, u64)>,
    in_log: bool,
}

impl Iterator for Messages<'_> {
    type Item = io::Result<Message>;

    fn next(&mut self) -> Option<Self::Item> {
        self.advance().transpose()
    }
}

impl Messages<'_> {
    fn advance(&mut self) -> io::Result<Option<Message>> {
        let mut chases = 0;
        while self.in_log {
            let inspection = self.fresh.as_ref().unwrap_or(self.inspection);
            let state = &inspection.view.recovered.state;
            let only_unsettled = self
                .filter
                .states
                .iter()
                .all(|s| *s == MessageState::Unsettled);
            let found = if only_unsettled {
                state.next_unsettled(self.from, self.filter.last())
            } else {
                state.next_present(self.from, self.filter.last())
            };
            let Some((sequence, entry)) = found else {
                self.in_log = false;
                break;
            };
            let standing = match state.standing(sequence) {
                Standing::Rejected => MessageState::Rejected,
                Standing::Unsettled => MessageState::Unsettled,
                Standing::Settled | Standing::Accepted | Standing::Gone => MessageState::Settled,
            };
            if !self.filter.wants(standing) {
                self.from = sequence + 1;
                continue;
            }
            let message = inspection.message_at(sequence, entry, standing)?;
            let Some(message) = message else {
                // The place was reused since the look: the message was copied, or settled.
                if standing == MessageState::Settled {
                    self.from = sequence + 1;
                    continue;
                }
                chases += 1;
                if chases > CHASES {
                    return Err(io::Error::other(format!(
                        "message {sequence} moves faster than it can be read; try again"
                    )));
                }
                self.fresh = Some(inspection.again()?);
                continue;
            };
            self.from = sequence + 1;
            if self.filter.takes(&message) {
                return Ok(Some(message));
            }
        }
        let range = self.filter.first()..=self.filter.last();
        while let Some((sequence, _, offset)) = self.aside.next() {
            // Of two records of one message the later one counts.
            let superseded = self
                .aside
                .as_slice()
                .first()
                .is_some_and(|n| n.0 == sequence);
            if superseded || !range.contains(&sequence) {
                continue;
            }
            let entry = Entry::new(offset, 0);
            let aside = MessageState::SetAside;
            if let Some(message) = self.inspection.message_at(sequence, entry, aside)?
                && self.filter.takes(&message)
            {
                return Ok(Some(message));
            }
        }
        Ok(None)
    }
}

impl Inspection {
    fn again(&self) -> io::Result<Inspection> {
        Self::of(&self.path, &self.view.file).map_err(|error| match error {
            OpenError::Io { error, .. } => error,
            other => io::Error::other(other),
        })
    }

    /// The message whose record stands at a place; `None`: it is not there any more.
    pub(crate) fn message_at(
        &self,
        sequence: u64,
        entry: Entry,
        state: MessageState,
    ) -> io::Result<Option<Message>> {
        let Some((header, bytes)) = read_message(&self.view, sequence, entry.offset())? else {
            return Ok(None);
        };
        let envelope_end = RECORD_HEADER + header.envelope_len as usize;
        let envelope_bytes = bytes[RECORD_HEADER..envelope_end].to_vec();
        let mut payload = bytes;
        payload.drain(..envelope_end);
        Ok(Some(Message {
            sequence,
            offset: entry.offset(),
            ordinal: header.ordinal,
            generation: header.generation,
            is_copy: header.kind != Kind::Publish,
            quiet: header.quiet,
            state,
            envelope: Envelope::decode(&envelope_bytes)
                .ok()
                .map(Envelope::into_owned),
            envelope_bytes,
            payload,
            rejection: if state == MessageState::Rejected {
                self.rejection(sequence)?
            } else {
                None
            },
        }))
    }
}

impl Inspection {
    /// Refusals that wait for the application, by sequence. One whose record was overwritten
    /// since the look is left out: the application accepted it, or it was copied and a later look
    /// shows it.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn rejections(&self) -> io::Result<Vec<Rejection>> {
        let mut out = Vec::new();
        for &sequence in self.view.recovered.state.rejections().keys() {
            out.extend(self.rejection(sequence)?);
        }
        Ok(out)
    }

    /// The refusal of a message, while it waits.
    fn rejection(&self, sequence: u64) -> io::Result<Option<Rejection>> {
        let Some(entry) = self.view.recovered.state.rejection(sequence) else {
            return Ok(None);
        };
        let Some((header, bytes)) = read_record(&self.view, entry.offset())? else {
            return Ok(None);
        };
        let is_it = header.kind == Kind::Rejection && header.sequence == sequence;
        // As the store's owner gets it: a reason that cannot be read must not hide the refusal.
        let rejection = match RejectionBody::decode(&bytes[RECORD_HEADER..]) {
            Some(body) => Rejection {
                sequence,
                reason: body.reason,
                reason_cut: body.cut,
                at: body.at,
                late: body.late,
            },
            None => Rejection::without_reason(sequence),
        };
        Ok(is_it.then_some(rejection))
    }
}

impl Rejection {
    /// A refusal whose record does not say why.
    pub(crate) fn without_reason(sequence: u64) -> Self {
        Rejection {
            sequence,
            reason: "(the reason cannot be read)".into(),
            reason_cut: false,
            at: 0,
            late: false,
        }
    }
}

/// Copies a record out first and checks the copy, so that what was checked is what is shown.
fn read_message(
    view: &View,
    sequence: u64,
    offset: u64,
) -> io::Result<Option<(RecordHeader, Vec<u8>)>> {
    let record = read_record(view, offset)?;
    Ok(record.filter(|(header, _)| header.kind.is_message() && header.sequence == sequence))
}

/// The intact record at a place, without padding.
fn read_record(view: &View, offset: u64) -> io::Result<Option<(RecordHeader, Vec<u8>)>> {
    let geometry = view.recovered.geometry;
    let end = geometry.end_of(geometry.segment_of(offset));
    let mut bytes = vec![0; RECORD_HEADER];
    view.fetch(offset, &mut bytes)?;
    let Some(header) = RecordHeader::decode(&bytes, geometry.max_record.min(end - offset)) else {
        return Ok(None);
    };
    bytes.resize(header.stride() as usize, 0);
    view.fetch(offset, &mut bytes)?;
    let fits = RecordHeader::decode(&bytes, geometry.max_record) == Some(header)
        && record_is_intact(&bytes, geometry.key, offset);
    bytes.truncate(header.len as usize);
    Ok(fits.then_some((header, bytes)))
}
