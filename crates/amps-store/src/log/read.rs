//! Reads messages and refusals from the log. What is copied under the lock is checked after it
//! was released.

use std::ops::ControlFlow;

use super::Log;
use crate::api::{Rejection, StoredMessage};
use crate::batch::Batch;
use crate::error::ReadError;
use crate::format::{RECORD_HEADER, RecordHeader, RejectionBody, record_is_intact};
use crate::recover::scan::Geometry;
use crate::state::index::Entry;

impl Log {
    /// Reads a message if its bytes are still there. The caller of [`check`] checks the checksum
    /// without the lock.
    pub(crate) fn copy_out(&self, sequence: u64, into: &mut StoredMessage) -> Option<Place> {
        let entry = self.state.get(sequence)?;
        Some(self.copy_from(entry, sequence, into))
    }

    fn copy_from(&self, entry: Entry, sequence: u64, into: &mut StoredMessage) -> Place {
        into.sequence = sequence;
        // The buffer only grows to the largest message that is read through it.
        let len = entry.stride() as usize;
        if into.bytes.len() < len {
            into.bytes.resize(len, 0);
        }
        into.len = len;
        self.medium.read(entry.offset(), &mut into.bytes[..len]);
        Place {
            offset: entry.offset(),
            key: self.geometry.key,
            max: self.geometry.max_record,
        }
    }

    /// The message at this place, if it is there: the file may have become shorter.
    pub(super) fn message_at(&self, entry: Entry, sequence: u64) -> Option<StoredMessage> {
        if entry.offset() + entry.stride() > self.medium.len() {
            return None;
        }
        let mut message = StoredMessage::new();
        let place = self.copy_from(entry, sequence, &mut message);
        check(place, &mut message).is_ok().then_some(message)
    }

    /// Reads unsettled messages until the batch is full. The caller of [`check_all`] checks their
    /// checksums without the lock.
    pub(crate) fn copy_unsettled(&self, from: u64, through: u64, into: &mut Batch) {
        self.state.each_unsettled(from, through, |sequence, entry| {
            let (offset, len) = (entry.offset(), entry.stride() as usize);
            let Some(room) = into.take(sequence, offset, len) else {
                return ControlFlow::Break(());
            };
            self.medium.read(offset, room);
            ControlFlow::Continue(())
        });
    }

    pub(super) fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
        match self.copy_out(sequence, into) {
            Some(place) => check(place, into).map(|()| true),
            None => Ok(false),
        }
    }

    pub(crate) fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection> {
        let read = |(&sequence, entry): (&u64, &Entry)| {
            let body = match self.unlogged.get(&sequence) {
                Some(body) => Some(body.clone()),
                None => self.rejection_at(*entry),
            };
            // A damaged record must not hide that the message was refused.
            let body = body.unwrap_or_else(|| {
                RejectionBody::new("(the record of the reason is damaged)", 0, false)
            });
            Rejection {
                sequence,
                reason: body.reason,
                reason_cut: body.cut,
                at: body.at,
                late: body.late,
            }
        };
        self.state
            .rejections()
            .range(from..)
            .take(limit)
            .map(read)
            .collect()
    }

    fn rejection_at(&self, entry: Entry) -> Option<RejectionBody> {
        let mut bytes = vec![0; entry.stride() as usize];
        self.medium.read(entry.offset(), &mut bytes);
        let header = RecordHeader::decode(&bytes, self.geometry.max_record)?;
        let intact = record_is_intact(&bytes, self.geometry.key, entry.offset());
        let body = intact.then(|| &bytes[RECORD_HEADER..header.len as usize])?;
        RejectionBody::decode(body)
    }
}

/// Where a message was copied from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    offset: u64,
    key: u32,
    max: u64,
}

/// Checks a message that was copied out, and makes the buffer show it.
pub(crate) fn check(place: Place, message: &mut StoredMessage) -> Result<(), ReadError> {
    let bytes = &message.bytes[..message.len];
    let Some(header) = intact(bytes, message.sequence, place) else {
        let sequence = std::mem::take(&mut message.sequence);
        message.len = 0;
        return Err(ReadError::Damaged {
            sequence,
            offset: place.offset,
        });
    };
    message.quiet = header.quiet;
    message.envelope_end = RECORD_HEADER + header.envelope_len as usize;
    message.len = header.len as usize;
    Ok(())
}

/// Checks the messages that were copied out, and makes the batch show those before the first
/// damaged one.
pub(crate) fn check_all(geometry: &Geometry, batch: &mut Batch) -> Result<(), ReadError> {
    let damaged = batch.keep_good(|at, bytes| {
        let place = Place {
            offset: at.offset,
            key: geometry.key,
            max: geometry.max_record,
        };
        let header = intact(bytes, at.sequence, place);
        if let Some(header) = &header {
            at.envelope_end = at.start + RECORD_HEADER + header.envelope_len as usize;
            at.payload_end = at.start + header.len as usize;
        }
        header.is_some()
    });
    match damaged {
        Some(at) if batch.is_empty() => Err(ReadError::Damaged {
            sequence: at.sequence,
            offset: at.offset,
        }),
        _ => Ok(()),
    }
}

/// The header of a record, if it is intact and the one that was looked for.
fn intact(bytes: &[u8], sequence: u64, place: Place) -> Option<RecordHeader> {
    RecordHeader::decode(bytes, place.max)
        .filter(|h| {
            h.kind.is_message() && h.sequence == sequence && h.stride() as usize == bytes.len()
        })
        .filter(|_| record_is_intact(bytes, place.key, place.offset))
}
