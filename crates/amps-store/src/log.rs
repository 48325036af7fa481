//! The log while it is open: appending, settling, refusing. One thread at a time.
//!
//! Everything that must be remembered is appended here as a record; `space.rs` finds the
//! room for it and `recover.rs` reads it back.

use std::collections::{BTreeMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::Arc;

use crate::api::{Appended, Bounds, Durable, Rebase, Rejected, Rejection, StoredMessage};
use crate::batch::Batch;
use crate::draft::Draft;
use crate::envelope::{Envelope, EnvelopeError, Origin};
use crate::error::{AppendError, DamagedRange, ReadError, StoreError};
use crate::format::{
    ACCEPTANCE, CHARGE, Epoch, GRANT_LAST, Kind, LostBody, MAX_OPENING, MAX_REJECTION, MAX_SETTLED,
    Mark, RECORD_HEADER, RecordHeader, RejectionBody, Superblock, UserTag, record_is_intact,
    stride,
};
use crate::index::Entry;
use crate::medium::{Device, Medium};
use crate::planted::{self, Bug};
use crate::recover::Recovered;
use crate::scan::Geometry;
use crate::space::{Segments, Space};
use crate::state::{Standing, State};
use crate::unsynced::Extent;
use crate::watermark::Watermark;

/// Most lost records that one open writes.
const MAX_LOST: usize = 32;

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
    /// The oldest ordinal needed, as the last mark says.
    pub(crate) needed_from: u64,
    pub(crate) next: u64,
    first_of_run: u64,
    found_grant: u64,
    /// User tag of the newest publish that had one.
    tag: Option<UserTag>,
    pub(crate) durable: Durable,
    /// The first failed sync, for good.
    pub(crate) failed: Option<String>,
    pub(crate) closed: bool,
    /// Refusals that came after a failed sync and found no room in the log.
    unlogged: BTreeMap<u64, RejectionBody>,
    /// Looked at by who tells of it, without the lock.
    pub(crate) watermark: Watermark,
    draft: Draft,
    /// The body of the record that is put together.
    body: Vec<u8>,
}

impl Log {
    /// Takes over what recovery found and opens a new epoch behind it. The superblock
    /// already names this run; free segments are stamped and durable.
    pub(crate) fn start(
        medium: Box<dyn Medium>,
        superblock: Superblock,
        recovered: Recovered,
    ) -> Result<Log, StoreError> {
        let next = match planted::is(Bug::SequenceReset) {
            true => recovered.state.last() + 1,
            false => recovered.next.max(recovered.max_sequence + 1),
        };
        let in_place = recovered.resumes_in_place();
        let chain: VecDeque<_> = recovered
            .chain
            .iter()
            .map(|c| (c.segment, c.first_ordinal))
            .collect();
        let last: Vec<usize> = {
            let mut is_new = vec![true; superblock.segments as usize];
            let held = recovered.set_aside.iter();
            held.map(|s| recovered.geometry.segment_of(s.offset))
                .filter(|s| std::mem::take(&mut is_new[*s]))
                .collect()
        };
        let tail = recovered.chain.last().map(|c| (c.segment, c.end));
        // With damage that is given up, what was ignorable is named too: what proved it so
        // may be gone at the next open.
        let ignored = recovered.ignored.iter().map(|r| DamagedRange {
            sequences: None,
            ..r.clone()
        });
        let gives_up = !recovered.damaged.is_empty();
        let mut lost: Vec<LostBody> = recovered
            .damaged
            .iter()
            .cloned()
            .chain(ignored.filter(|_| gives_up))
            .filter(|r| r.first_ordinal != 0)
            .map(|r| LostBody {
                first_ordinal: r.first_ordinal,
                last_ordinal: r.last_ordinal.unwrap_or(r.first_ordinal),
                first_sequence: r.sequences.map_or(0, |s| s.0),
                last_sequence: r.sequences.map_or(0, |s| s.1),
            })
            .collect();
        if lost.len() > MAX_LOST {
            lost = name_together(lost);
        }
        let mut log = Log {
            geometry: recovered.geometry,
            space: Space::new(
                recovered.geometry,
                Segments::new(superblock.segments as usize, chain, last),
            ),
            generation: superblock.generation,
            ordinal: recovered.last_ordinal,
            unmarked: 0,
            needed_from: recovered.oldest_needed,
            next,
            first_of_run: next,
            found_grant: superblock.grant,
            tag: recovered.tag.as_deref().map(UserTag::new),
            durable: Durable {
                ordinal: recovered.durable,
                sequence: 0,
            },
            failed: None,
            closed: false,
            unlogged: BTreeMap::new(),
            watermark: Watermark::new(None, 0),
            draft: Draft::new(),
            body: Vec::with_capacity(MAX_SETTLED * 8),
            state: recovered.state,
            medium,
            superblock,
        };
        let follows = recovered.last_ordinal;
        let epoch = Epoch {
            follows,
            last_before: log.state.last(),
            first_after: next,
            mark: log.mark(false),
        };
        let mut body = Vec::new();
        epoch.encode(&mut body);
        if let Some((segment, end)) = tail {
            log.space.resume(segment, end);
        }
        log.space.begin_epoch();
        // Where no segment is free, the room left belongs to the collection that frees one:
        // epochs of runs that die in their open must not use it up.
        let kept = log.space.collection_needs(&log.state);
        let fits = in_place && log.space.fits(stride(RECORD_HEADER + body.len()) + kept);
        // The ordinals go on without a gap, so an epoch that finds no room is no loss: the
        // previous run died while it was freeing a segment, and this one goes on with that.
        let can_wait = in_place && log.space.is_starved() && lost.is_empty();
        if !fits && !can_wait {
            log.ordinal = if in_place {
                follows
            } else {
                recovered.max_ordinal
            };
            let fallback = tail.filter(|_| !in_place);
            let first_ordinal = log.ordinal + 1;
            log.space.open_for_epoch(
                &mut *log.medium,
                log.generation,
                first_ordinal,
                next,
                fallback,
            )?;
        }
        if fits || !can_wait {
            log.write_internal(Kind::Epoch, 0, &body)?;
            log.needed_from = epoch.mark.oldest_needed;
        }
        for range in lost {
            let mut body = Vec::new();
            range.encode(&mut body);
            log.write_internal(Kind::Lost, 0, &body)?;
        }
        log.space.end_upkeep(&log.state);
        Ok(log)
    }

    /// Most bytes that may be needed or charged once the file has grown as far as it can.
    pub(crate) fn limit(&self) -> u64 {
        self.space.limit(self.superblock.cap_segments)
    }

    /// Tells of these watermarks from now on.
    pub(crate) fn watch(&mut self, percent: Option<(u8, u8)>) {
        self.watermark = Watermark::new(percent, self.limit());
    }

    /// Whether a watermark is crossed that was not told.
    #[inline]
    pub(crate) fn is_watermark_crossed(&self) -> bool {
        self.watermark.is_crossed(self.state.charged())
    }

    /// Takes one crossing of a watermark as told; whether there was one.
    pub(crate) fn cross_watermark(&mut self) -> bool {
        let (live, limit) = (self.state.charged(), self.limit());
        self.watermark.cross(live, limit)
    }

    /// Most bytes that may be needed or charged now: in the segments that are there for
    /// good. A refusal must find its room even if the disk is full by then.
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

    /// Stores a message under the next sequence.
    #[inline(always)]
    pub(crate) fn append(
        &mut self,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<Appended, AppendError> {
        self.usable()?;
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
        if live + stride + CHARGE > limit {
            return Err(self.full(stride));
        }
        if !self.space.fits(stride) {
            if !self.rotate_for_publish()? {
                return Err(self.full(stride));
            }
            // The mark that opens the segment was put together in the same place.
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
            // No segment is reused after a failed sync: this room will not come back.
            return StoreError::SyncFailed(why.clone()).into();
        }
        self.space.demand();
        let (live, limit, needed) = (self.state.charged(), self.limit(), stride + CHARGE);
        match self.space.growth_error() {
            Some(error) => AppendError::NoSpace {
                error: error.to_string(),
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

    /// Writes a record of `len` bytes for which there is room; what does not stand in the
    /// draft is `rest`.
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
        // The next commit word reads zero as soon as this one is there.
        let next = if self.space.remaining() >= 8 { 8 } else { 0 };
        let place = (self.geometry.key, offset);
        self.draft
            .write(&mut *self.medium, place, &header, rest, next);
        Entry::new(offset, stride(len))
    }

    /// Appends one of the log's own records; it takes any room there is.
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
        if kind == Kind::Copy {
            self.space.copied(sequence);
        }
        Ok(entry)
    }

    /// What a mark written now says.
    pub(crate) fn mark(&self, clean: bool) -> Mark {
        // A refusal that is in memory only must not be settled by a mark: the next open would
        // know neither the refusal nor that the message is to be sent.
        let unlogged = self.unlogged.first_key_value();
        let settled = unlogged.map_or(u64::MAX, |(sequence, _)| sequence - 1);
        Mark {
            floor: self.state.floor().min(settled),
            durable: self.durable.ordinal,
            next: self.next,
            oldest_needed: self.space.oldest_needed(&self.state),
            clean,
            tag: self.tag,
        }
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
            self.write_mark(false)?;
        }
        Ok(settled)
    }

    /// Settles single messages.
    pub(crate) fn settle(&mut self, sequences: &[u64]) -> Result<u64, StoreError> {
        self.usable()?;
        let floor = self.state.floor();
        let before = self.state.unsettled();
        for batch in sequences.chunks(MAX_SETTLED) {
            let most = stride(RECORD_HEADER + batch.len() * 8);
            let recorded = unless_failed(self.make_room(most))?;
            let mut body = [[0; 8]; MAX_SETTLED];
            let count = self.state.settle(batch, |nth, sequence| {
                body[nth % MAX_SETTLED] = sequence.to_le_bytes();
            });
            if recorded.is_some() && count > 0 {
                let body = body[..count].as_flattened();
                self.write_internal(Kind::Settlement, 0, body)?;
            }
        }
        if self.state.floor() > floor {
            unless_failed(self.write_mark(false))?;
        }
        Ok(before - self.state.unsettled())
    }

    /// Logs a refusal.
    pub(crate) fn reject(
        &mut self,
        sequence: u64,
        reason: &str,
        at: u64,
    ) -> Result<Rejected, StoreError> {
        self.usable()?;
        if sequence == 0 || sequence >= self.next {
            return Ok(Rejected::Unknown);
        }
        let standing = self.state.standing(sequence);
        if matches!(standing, Standing::Rejected | Standing::Accepted) {
            return Ok(Rejected::Known);
        }
        let late = standing != Standing::Unsettled;
        if late {
            let message = self.state.get(sequence).map_or(0, Entry::stride);
            let needed = message + MAX_REJECTION + ACCEPTANCE;
            if self.state.charged() + needed > self.room() {
                return Ok(Rejected::NoRoom);
            }
        }
        let rejection = RejectionBody::new(reason, at, late);
        let mut body = Vec::with_capacity(MAX_REJECTION as usize);
        rejection.encode(&mut body);
        let floor = self.state.floor();
        let record = unless_failed(self.write_internal(Kind::Rejection, sequence, &body))?;
        let ordinal = self.ordinal;
        self.state
            .reject(sequence, record.unwrap_or(Entry::NOWHERE));
        if record.is_none() {
            self.unlogged.insert(sequence, rejection);
        }
        if self.state.floor() > floor {
            unless_failed(self.write_mark(false))?;
        }
        Ok(match record {
            Some(_) => Rejected::Logged { ordinal, late },
            None => Rejected::Held { late },
        })
    }

    /// The application took a refusal over.
    pub(crate) fn accept(&mut self, sequence: u64) -> Result<bool, StoreError> {
        self.usable()?;
        if self.state.rejection(sequence).is_none() {
            return Ok(false);
        }
        if self.unlogged.remove(&sequence).is_none() {
            unless_failed(self.write_internal(Kind::Acceptance, sequence, &[]))?;
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

    /// Reads a message if its bytes are still there. The checksum is checked by the caller
    /// of [`check`], without the lock.
    pub(crate) fn copy_out(&self, sequence: u64, into: &mut StoredMessage) -> Option<Place> {
        let entry = self.state.get(sequence)?;
        into.sequence = sequence;
        // The buffer only ever grows to the largest message read through it.
        let len = entry.stride() as usize;
        if into.bytes.len() < len {
            into.bytes.resize(len, 0);
        }
        into.len = len;
        self.medium.read(entry.offset(), &mut into.bytes[..len]);
        Some(Place {
            offset: entry.offset(),
            key: self.geometry.key,
            max: self.geometry.max_record,
        })
    }

    /// Reads unsettled messages until the batch is full. Their checksums are checked by the
    /// caller of [`check_all`], without the lock.
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

    fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError> {
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

    /// Ends the log: a mark that says so, a sync, and a superblock that names the mark and
    /// gives unused numbers back.
    pub(crate) fn close(
        &mut self,
        device: &Arc<dyn Device>,
        handed_over: u64,
    ) -> Result<(), StoreError> {
        self.usable()?;
        // A sync first, so that the closing mark can say everything before it is durable.
        let ticket = self.begin_sync();
        let result = ticket.extent.sync(&**device);
        self.finish_sync(ticket, result)?;
        self.write_mark(true)?;
        let ticket = self.begin_sync();
        let result = ticket.extent.sync(&**device);
        self.closed = true;
        self.finish_sync(ticket, result)?;
        let mut superblock = self.superblock.clone();
        superblock.closed_at = self.ordinal;
        superblock.segments = self.segments_at_close();
        superblock.grant = superblock.grant.min(handed_over.max(self.state.floor()));
        self.write_superblock(superblock)?;
        self.cut_to_named(device);
        Ok(())
    }

    /// A sync was started: what it will cover.
    pub(crate) fn begin_sync(&mut self) -> Ticket {
        let (number, extent) = self.space.sync_started();
        Ticket {
            number,
            extent,
            durable: Durable {
                ordinal: self.ordinal,
                sequence: self.next - 1,
            },
            marks_only: self.unmarked <= self.durable.ordinal,
        }
    }

    /// A sync ended. A failure is final: nothing is called durable ever after.
    pub(crate) fn finish_sync(
        &mut self,
        ticket: Ticket,
        result: std::io::Result<()>,
    ) -> Result<(), StoreError> {
        if let Err(error) = result
            && !planted::is(Bug::SwallowedSyncError)
        {
            self.failed.get_or_insert_with(|| error.to_string());
        }
        if let Some(why) = &self.failed {
            return Err(StoreError::SyncFailed(why.clone()));
        }
        if ticket.durable.ordinal > self.durable.ordinal {
            self.durable = ticket.durable;
        }
        self.space.sync_finished(ticket.number);
        self.space.reserve(&self.state);
        if !ticket.marks_only && !self.closed {
            self.write_mark(false)?;
        }
        Ok(())
    }
}

/// Names neighbours by one record: more records would not surely find room in the segments that
/// are kept for recovery.
fn name_together(mut lost: Vec<LostBody>) -> Vec<LostBody> {
    lost.sort_unstable_by_key(|l| l.first_ordinal);
    let join = |all: &[LostBody]| {
        let known = || all.iter().filter(|l| l.first_sequence != 0);
        LostBody {
            first_ordinal: all.iter().map(|l| l.first_ordinal).min().unwrap_or(0),
            last_ordinal: all.iter().map(|l| l.last_ordinal).max().unwrap_or(0),
            first_sequence: known().map(|l| l.first_sequence).min().unwrap_or(0),
            last_sequence: known().map(|l| l.last_sequence).max().unwrap_or(0),
        }
    };
    lost.chunks(lost.len().div_ceil(MAX_LOST))
        .map(join)
        .collect()
}

/// After a failed sync no room comes back: what no longer fits into the log still holds in
/// memory, and is not durable (charter S8).
fn unless_failed<T>(done: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match done {
        Ok(value) => Ok(Some(value)),
        Err(StoreError::SyncFailed(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a sync covers once it returns.
#[derive(Clone, Debug)]
pub(crate) struct Ticket {
    number: u64,
    /// What must be written for that.
    pub(crate) extent: Extent,
    durable: Durable,
    marks_only: bool,
}

/// Where a message was copied from.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    offset: u64,
    key: u32,
    max: u64,
}

/// Checks a message copied out, and makes the buffer show it.
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

/// Checks the messages copied out, and makes the batch show them: up to the first that is
/// damaged, if there are any.
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

/// The header of a record that is whole, and the one that was looked for.
fn intact(bytes: &[u8], sequence: u64, place: Place) -> Option<RecordHeader> {
    RecordHeader::decode(bytes, place.max)
        .filter(|h| {
            h.kind.is_message() && h.sequence == sequence && h.stride() as usize == bytes.len()
        })
        .filter(|_| record_is_intact(bytes, place.key, place.offset))
}
