//! The log while it is open: appending, settling, refusing. One thread at a time.
//!
//! Everything that must be remembered is appended here as a record; `space.rs` finds room for it,
//! and `recover.rs` reads it back.

pub(crate) mod draft;
mod durable;
#[cfg(test)]
mod large;
mod read;
mod start;
mod watermark;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::ControlFlow;

use crate::api::{Appended, Bounds, Durable, Rebase, Rejected, StoredMessage, Unrecorded};
use crate::envelope::{Envelope, EnvelopeError, Origin};
use crate::error::{AppendError, ReadError, StoreError};
use crate::faults::planted::{self, Bug};
use crate::format::{
    ACCEPTANCE, CHARGE, GRANT_LAST, Kind, MAX_OPENING, MAX_REJECTION, MAX_SETTLED, Mark,
    RECORD_HEADER, RecordHeader, RejectionBody, Superblock, UserTag, stride,
};
use crate::log::draft::Draft;
use crate::log::watermark::Watermark;
use crate::medium::Medium;
use crate::recover::scan::Geometry;
use crate::space::Space;
use crate::state::index::Entry;
use crate::state::{Standing, State};

pub(crate) use self::durable::Ticket;
pub(crate) use self::read::{check, check_all};
pub(crate) use self::start::{segments_for_stranded, starts_in_last_segment};

pub(crate) struct Log {
    pub(crate) medium: Box<dyn Medium>,
    pub(crate) geometry: Geometry,
    pub(crate) superblock: Superblock,
    pub(crate) state: State,
    pub(crate) space: Space,
    generation: u64,
    /// Ordinal of the last record.
    pub(crate) ordinal: u64,
    /// Ordinal of the last record that is not a mark.
    pub(crate) unmarked: u64,
    /// The oldest ordinal that is needed, according to the marks or the superblock. It never
    /// falls.
    pub(crate) needed_from: u64,
    /// Ordinal of the last record that stands in for another one (a copy, a requeue, an
    /// acceptance). The start of the log may pass the other one only when this is durable.
    pub(crate) cover: u64,
    pub(crate) next: u64,
    first_of_run: u64,
    found_grant: u64,
    /// User tag of the newest publish that had one.
    tag: Option<UserTag>,
    pub(crate) durable: Durable,
    /// The error of the first failed sync. It is final.
    pub(crate) failed: Option<String>,
    pub(crate) closed: bool,
    /// The file has no name any more, so nobody can open it again.
    pub(crate) gone: bool,
    /// Refusals that came after a failed sync and found no room in the log.
    unlogged: BTreeMap<u64, RejectionBody>,
    /// Messages whose success found none, and that no mark has covered since.
    unrecorded: BTreeSet<u64>,
    /// Looked at by who tells of it, without the lock.
    pub(crate) watermark: Watermark,
    draft: Draft,
    /// The body of the record being put together.
    body: Vec<u8>,
}

impl Log {
    /// The most bytes that may be needed or charged once the file has grown as far as it can.
    pub(crate) fn limit(&self) -> u64 {
        self.space.limit(self.superblock.cap_segments)
    }

    /// Reports these watermarks from now on.
    pub(crate) fn watch(&mut self, percent: Option<(u8, u8)>) {
        self.watermark = Watermark::new(percent, self.limit());
    }

    /// Whether a watermark was crossed and that was not reported.
    #[inline]
    pub(crate) fn is_watermark_crossed(&self) -> bool {
        self.watermark.is_crossed(self.state.charged())
    }

    /// Takes one crossing of a watermark as reported; returns whether there was one.
    pub(crate) fn cross_watermark(&mut self) -> bool {
        let (live, limit) = (self.state.charged(), self.limit());
        self.watermark.cross(live, limit)
    }

    /// The most bytes that may be needed or charged now, in the segments that are certainly
    /// there: a refusal must find its room even if the disk is full by then.
    fn room(&self) -> u64 {
        match planted::is(Bug::AdmitUnreserved) {
            true => self.limit(),
            false => crate::space::limit(&self.geometry, self.superblock.segments),
        }
    }

    pub(crate) fn usable(&self) -> Result<(), StoreError> {
        if self.closed {
            Err(StoreError::Closed)
        } else {
            Ok(())
        }
    }

    /// Whether messages are taken.
    fn takes_more(&self) -> Result<(), StoreError> {
        self.usable()?;
        match self.gone {
            true => Err(StoreError::Gone),
            false => Ok(()),
        }
    }

    /// Stores a message under the next sequence.
    #[inline(always)]
    pub(crate) fn append(
        &mut self,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<Appended, AppendError> {
        self.takes_more()?;
        if let Origin::Requeue { accepts } = envelope.origin
            && accepts >= self.next
        {
            // It would settle itself.
            return Err(EnvelopeError::accepts(accepts, self.next).into());
        }
        let envelope_len = self.draft.envelope(envelope)?;
        let len = RECORD_HEADER + envelope_len + payload.len();
        let stride = stride(len);
        if stride > self.geometry.max_record {
            return Err(AppendError::TooLarge {
                needed: stride,
                max: self.geometry.max_record,
            });
        }
        let (live, limit) = match planted::is(Bug::NoCharge) {
            true => (self.state.live(), self.room() + CHARGE),
            false => (self.state.charged(), self.room()),
        };
        if live + stride + CHARGE > limit || !self.leaves_reserve(stride, CHARGE) {
            return Err(self.full(stride));
        }
        if !self.space.fits(stride) {
            if !self.rotate_for_publish()? {
                return Err(self.full(stride));
            }
            // The mark at the beginning of a new segment was put together in the same buffer.
            self.draft.envelope(envelope)?;
        }
        self.space.satisfied();
        let sequence = self.next;
        let quiet = envelope.origin != Origin::Publish;
        let entry = self.write(Kind::Publish, quiet, sequence, envelope_len, len, payload);
        self.unmarked = self.ordinal;
        self.next += 1;
        self.state.append(sequence, entry, self.space.current());
        if quiet {
            if let Origin::Requeue { accepts } = envelope.origin {
                self.unlogged.remove(&accepts);
                self.state.accept(accepts);
                if !planted::is(Bug::RequeueUncovered) {
                    self.cover = self.ordinal;
                }
            }
        } else if !envelope.user_tag.is_empty() {
            match &mut self.tag {
                Some(tag) => tag.set(&envelope.user_tag),
                none => *none = Some(UserTag::new(&envelope.user_tag)),
            }
        }
        Ok(Appended {
            sequence,
            ordinal: self.ordinal,
        })
    }

    #[cold]
    fn full(&mut self, stride: u64) -> AppendError {
        if let Some(why) = &self.failed {
            // No segment is reused after a failed sync: this room will not come back, and what is
            // left is for what becomes of the messages that are stored.
            return StoreError::SyncFailed(why.clone()).into();
        }
        self.space.turned_away();
        if self.unneeded() > 0 {
            // This waits only for the superblock.
            self.space.press();
        }
        let (live, limit, needed) = (self.state.charged(), self.limit(), stride + CHARGE);
        match self.space.growth_error() {
            Some(error) => AppendError::NoSpace {
                error: match error {
                    StoreError::NoSpace { error, .. } | StoreError::Io { error, .. } => {
                        error.clone()
                    }
                    other => other.to_string(),
                },
                live,
                limit,
                needed,
            },
            None if live + needed <= limit => AppendError::MakingRoom {
                live,
                limit,
                needed,
            },
            None => AppendError::Full {
                live,
                limit,
                needed,
            },
        }
    }

    /// Writes a record of `len` bytes, for which there is room. What is not in the draft is in
    /// `rest`.
    #[inline(always)]
    fn write(
        &mut self,
        kind: Kind,
        quiet: bool,
        sequence: u64,
        envelope_len: usize,
        len: usize,
        rest: &[u8],
    ) -> Entry {
        let offset = self.space.take(stride(len));
        self.ordinal += 1;
        let header = RecordHeader {
            len: len as u32,
            kind,
            quiet,
            envelope_len: envelope_len as u32,
            sequence,
            ordinal: self.ordinal,
            generation: self.generation,
        };
        // The next commit word must read as zero as soon as this record is there.
        let next = if self.space.remaining() >= 8 { 8 } else { 0 };
        let place = (self.geometry.key, offset);
        self.draft
            .write(&mut *self.medium, place, &header, rest, next);
        Entry::new(offset, stride(len))
    }

    /// Appends one of the log's own records, which may take any room there is.
    fn write_internal(
        &mut self,
        kind: Kind,
        sequence: u64,
        body: &[u8],
    ) -> Result<Entry, StoreError> {
        self.write_kept(kind, false, sequence, 0, body)
    }

    /// Appends a record of any kind without admission.
    pub(crate) fn write_kept(
        &mut self,
        kind: Kind,
        quiet: bool,
        sequence: u64,
        envelope_len: usize,
        body: &[u8],
    ) -> Result<Entry, StoreError> {
        let len = RECORD_HEADER + body.len();
        self.make_room(stride(len))?;
        let entry = self.write(kind, quiet, sequence, envelope_len, len, body);
        if kind != Kind::Mark {
            self.unmarked = self.ordinal;
        }
        if kind.is_message() {
            self.space.copied(sequence);
        }
        Ok(entry)
    }

    /// What a mark written now says.
    pub(crate) fn mark(&self, clean: bool) -> Mark {
        Mark {
            floor: self.state.floor().min(self.markable()),
            durable: self.durable.ordinal,
            next: self.next,
            oldest_needed: self.space.oldest_needed(&self.state).max(self.needed_from),
            clean,
            tag: self.tag,
        }
    }

    /// The highest floor that a mark may tell. A refusal that is in memory only must not be settled
    /// by one: the next open would know neither the refusal nor that the message is to be sent.
    fn markable(&self) -> u64 {
        let mut first = self.unlogged.iter().filter(|(_, body)| !body.late);
        first.next().map_or(u64::MAX, |(sequence, _)| sequence - 1)
    }

    /// What holds in memory only.
    pub(crate) fn unrecorded(&self) -> Unrecorded {
        let refused = self.unlogged.values().filter(|body| !body.late).count();
        Unrecorded {
            messages: (refused + self.unrecorded.len()) as u64,
            refusals: self.unlogged.len() as u64,
        }
    }

    /// Everything stands in another file, what holds in memory only included.
    pub(crate) fn saved_elsewhere(&mut self) {
        self.unlogged.clear();
        self.unrecorded.clear();
    }

    pub(crate) fn write_mark(&mut self, clean: bool) -> Result<(), StoreError> {
        let mark = self.mark(clean);
        let mut body = std::mem::take(&mut self.body);
        body.clear();
        mark.encode(&mut body);
        let written = self.write_internal(Kind::Mark, 0, &body);
        self.body = body;
        written?;
        self.needed_from = mark.oldest_needed;
        if !self.unrecorded.is_empty() {
            self.unrecorded = self.unrecorded.split_off(&(mark.floor + 1));
        }
        Ok(())
    }

    /// Settles a prefix.
    pub(crate) fn settle_through(&mut self, sequence: u64) -> Result<u64, StoreError> {
        self.usable()?;
        let sequence = sequence.min(self.next - 1);
        if sequence <= self.state.floor() {
            return Ok(0);
        }
        let recorded = unless_failed(self.make_room(MAX_OPENING))?;
        let marked = recorded.map_or(0, |()| self.markable());
        if marked < sequence {
            let unrecorded = &mut self.unrecorded;
            self.state.each_unsettled(marked + 1, sequence, |open, _| {
                unrecorded.insert(open);
                ControlFlow::Continue(())
            });
        }
        let settled = self.state.settle_through(sequence);
        if planted::is(Bug::SuccessOverridesRefusal) {
            let refused: Vec<u64> = self
                .state
                .rejections()
                .range(..=sequence)
                .map(|r| *r.0)
                .collect();
            for refused in refused {
                self.state.accept(refused);
            }
        }
        if recorded.is_some() && !planted::is(Bug::NoMark) {
            let marked = self.write_mark(false);
            self.holds_in_memory(marked);
        }
        Ok(settled)
    }

    /// Settles at most [`MAX_SETTLED`] single messages. `begun`: they belong to a list of which
    /// others are settled already.
    pub(crate) fn settle(&mut self, batch: &[u64], begun: bool) -> Result<u64, StoreError> {
        self.usable()?;
        let floor = self.state.floor();
        let before = self.state.unsettled();
        let room = self.make_room(stride(RECORD_HEADER + batch.len() * 8));
        let recorded = match begun {
            true => self.holds_in_memory(room),
            false => unless_failed(room)?,
        };
        let mut body = [[0; 8]; MAX_SETTLED];
        let count = self.state.settle(batch, |nth, sequence| {
            body[nth % MAX_SETTLED] = sequence.to_le_bytes();
        });
        let recorded = recorded.filter(|()| count > 0).and_then(|()| {
            let written = self.write_internal(Kind::Settlement, 0, body[..count].as_flattened());
            self.holds_in_memory(written)
        });
        if recorded.is_none() {
            let settled = body[..count].iter().map(|s| u64::from_le_bytes(*s));
            self.unrecorded.extend(settled);
        }
        self.mark_floor_above(floor);
        Ok(before - self.state.unsettled())
    }

    /// Something was settled, which its own record says: so does a mark if it was the first that was
    /// open, and unless it took the room that other messages need.
    fn mark_floor_above(&mut self, floor: u64) {
        if self.state.floor() > floor && self.leaves_reserve(MAX_OPENING, 0) {
            let marked = self.write_mark(false);
            self.holds_in_memory(marked);
        }
    }

    /// What was changed in memory stays changed, and the caller is told so. If the log cannot
    /// take the record of it, that counts as a failed sync: nothing more becomes durable.
    pub(super) fn holds_in_memory<T>(&mut self, done: Result<T, StoreError>) -> Option<T> {
        match done {
            Ok(value) => Some(value),
            Err(error) => {
                self.failed.get_or_insert_with(|| error.cause());
                None
            }
        }
    }

    /// The message as it stands now. Whoever releases the lock before the refusal of this message
    /// is logged keeps this copy, since the message's segment may be freed meanwhile.
    pub(crate) fn original(&self, sequence: u64) -> Option<Original> {
        let entry = self.state.get(sequence)?;
        let entry = Entry::new(entry.offset(), entry.stride());
        // If it is damaged, that is reported when it is read, like any other.
        let message = self.message_at(entry, sequence)?;
        Some(Original { entry, message })
    }

    /// The answer to a refusal that changes nothing.
    pub(crate) fn refused_before(&self, sequence: u64) -> Result<Option<Rejected>, StoreError> {
        self.usable()?;
        if sequence == 0 || sequence >= self.next {
            return Ok(Some(Rejected::Unknown));
        }
        let standing = self.state.standing(sequence);
        let is_known = matches!(standing, Standing::Rejected | Standing::Accepted);
        Ok(is_known.then_some(Rejected::Known))
    }

    /// Logs a refusal. `taken`: its message, if the lock was released since the refusal came.
    pub(crate) fn reject(
        &mut self,
        sequence: u64,
        reason: &str,
        at: u64,
        taken: Option<Original>,
    ) -> Result<Rejected, StoreError> {
        if let Some(answer) = self.refused_before(sequence)? {
            return Ok(answer);
        }
        let late = self.state.standing(sequence) != Standing::Unsettled;
        if late {
            let entry = self.state.get(sequence);
            let message = entry.or(taken.as_ref().map(|o| o.entry));
            let message = message.map_or(0, Entry::stride);
            let needed = message + MAX_REJECTION + ACCEPTANCE;
            if self.state.charged() + needed > self.room() {
                return Ok(Rejected::NoRoom);
            }
        }
        let rejection = RejectionBody::new(reason, at, late);
        let mut body = Vec::with_capacity(MAX_REJECTION as usize);
        rejection.encode(&mut body);
        let floor = self.state.floor();
        let original = match late {
            true => taken.or_else(|| self.original(sequence)),
            false => None,
        };
        let message = original.as_ref().map_or(0, |o| o.entry.stride());
        // Nothing is charged for a late one: it takes nothing from those that are open.
        let may_log = !late
            || self.failed.is_none()
            || self.leaves_reserve(message + MAX_REJECTION, ACCEPTANCE);
        let is_kept = match original {
            Some(original) => self.keep(original, stride(RECORD_HEADER + body.len()), may_log)?,
            None => may_log,
        };
        let record = match is_kept {
            true => unless_failed(self.write_internal(Kind::Rejection, sequence, &body))?,
            // It would be in the log without its message.
            false => None,
        };
        let ordinal = self.ordinal;
        self.state
            .reject(sequence, record.unwrap_or(Entry::NOWHERE));
        if late {
            self.look_through_again();
        }
        if record.is_none() {
            self.unlogged.insert(sequence, rejection);
        }
        self.mark_floor_above(floor);
        Ok(match record {
            Some(_) => Rejected::Logged { ordinal, late },
            None => Rejected::Held { late },
        })
    }

    /// Nothing holds a message that is settled: the marks may say that its segment is needed no
    /// more, or room for its late refusal is made by freeing that segment. Writes it again then,
    /// with room for the refusal that follows. False: a sync failed, and there is no room for it, as
    /// there is not unless it `may` be written.
    fn keep(&mut self, original: Original, refusal: u64, may: bool) -> Result<bool, StoreError> {
        let Original { entry, message } = original;
        let sequence = message.sequence;
        let header = RecordHeader::decode(&message.bytes, self.geometry.max_record);
        let ordinal = header.map_or(0, |header| header.ordinal);
        let stays = |log: &Self| log.needed_from <= ordinal && log.state.get(sequence).is_some();
        if may && stays(self) && self.space.fits(refusal) {
            return Ok(true);
        }
        if may {
            unless_failed(self.make_room(refusal + stride(message.len)))?;
        }
        if stays(self) {
            return Ok(may);
        }
        let envelope_len = message.envelope_end - RECORD_HEADER;
        let body = &message.bytes[RECORD_HEADER..message.len];
        let record = match may {
            true => {
                let kind = Kind::Original;
                let written = self.write_kept(kind, message.quiet, sequence, envelope_len, body);
                unless_failed(written)?
            }
            false => None,
        };
        if let Some(entry) = record {
            self.cover = self.ordinal;
            self.state.settled_message(sequence, entry);
        } else if self.state.get(sequence).is_none() && self.message_at(entry, sequence).is_some() {
            // Its segment was freed for this, and after the failure it is not used again.
            self.state.settled_message(sequence, entry);
        }
        Ok(record.is_some())
    }

    /// The application accepted a refusal.
    pub(crate) fn accept(&mut self, sequence: u64) -> Result<bool, StoreError> {
        self.usable()?;
        if self.state.rejection(sequence).is_none() {
            return Ok(false);
        }
        match self.unlogged.remove(&sequence) {
            // The log knows nothing of the refusal.
            Some(refusal) if refusal.late => {}
            Some(_) => drop(self.unrecorded.insert(sequence)),
            None => {
                unless_failed(self.write_internal(Kind::Acceptance, sequence, &[]))?;
                if !planted::is(Bug::AcceptanceUncovered) {
                    self.cover = self.ordinal;
                }
            }
        }
        Ok(self.state.accept(sequence))
    }

    /// Publishes a refused message again; the record itself accepts the refusal.
    pub(crate) fn requeue(
        &mut self,
        sequence: u64,
        now: u64,
    ) -> Result<Option<Appended>, AppendError> {
        self.usable()?;
        if self.state.rejection(sequence).is_none() {
            return Ok(None);
        }
        let mut message = StoredMessage::new();
        match self.get(sequence, &mut message) {
            Ok(true) => {}
            Ok(false) => return Ok(None),
            Err(ReadError::Store(error)) => return Err(error.into()),
            Err(ReadError::Damaged { offset, .. }) => {
                return Err(StoreError::Damaged { offset }.into());
            }
        }
        let mut envelope = message.envelope()?;
        envelope.origin = Origin::Requeue { accepts: sequence };
        envelope.published_at = now;
        self.append(&envelope, message.payload()).map(Some)
    }

    pub(crate) fn bounds(&self) -> Bounds {
        Bounds {
            first_unsettled: self.state.first_unsettled(),
            last: self.state.last(),
            next: self.next,
            floor: self.state.floor(),
            unsettled: self.state.unsettled(),
            rejections: self.state.rejections().len() as u64,
            live_bytes: self.state.charged(),
            limit_bytes: self.limit(),
        }
    }

    pub(crate) fn numbers(&self) -> crate::Numbers {
        crate::Numbers {
            grant: self.superblock.grant,
            found_grant: self.found_grant,
            first_of_run: self.first_of_run,
            rebase: (self.superblock.rebase_from != 0).then_some(Rebase {
                from: self.superblock.rebase_from,
                delta: self.superblock.rebase_delta,
            }),
        }
    }

    /// The rebase above this wire number, and the superblock that makes it so.
    pub(crate) fn plan_rebase(&self, above: u64) -> Result<(Rebase, Superblock), StoreError> {
        self.usable()?;
        let from = self.state.first_unsettled().unwrap_or(self.next);
        let first_wire = above
            .checked_add(1)
            .filter(|f| *f <= GRANT_LAST)
            .ok_or(StoreError::OutOfRange(above))?;
        let delta = first_wire.cast_signed() - from.cast_signed();
        let mut superblock = self.superblock.clone();
        superblock.number_floor = superblock
            .number_floor
            .max(superblock.grant)
            .max(self.next - 1);
        if !planted::is(Bug::RebaseKeepsGrant) {
            superblock.grant = from - 1;
        }
        superblock.rebase_from = from;
        superblock.rebase_delta = delta;
        Ok((Rebase { from, delta }, superblock))
    }

    pub(crate) fn resume_tag(&self) -> Option<Vec<u8>> {
        let tag = self.tag.as_ref().map(UserTag::as_bytes);
        tag.filter(|t| !t.is_empty()).map(<[u8]>::to_vec)
    }
}

/// A message that its late refusal brings along.
pub(crate) struct Original {
    /// Where it stood.
    entry: Entry,
    message: StoredMessage,
}

/// After a failed sync no more room comes. What does not fit into the log any more still counts
/// in memory, and is not durable (`docs/promises.md` S8).
fn unless_failed<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::SyncFailed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}
