//! Saving what is intact in a store into a new one.

use std::collections::BTreeMap;
use std::fs::{File, TryLockError};
use std::io;
use std::path::Path;
use std::sync::Arc;

use super::rebuild::{Heritage, Rebuild};
use crate::api::Rejection;
use crate::envelope::Origin;
use crate::error::{DamagedRange, OpenError, StoreError};
use crate::format::{CHARGE, GRANT_LAST, Kind, Superblock};
use crate::inspect::view::look_without_superblock;
use crate::inspect::{Body, Inspection, Message, MessageState, RecordKind};
use crate::open::{For, LockedFile, NewFile, fresh_name, refused as refused_look};
use crate::recover::{StandIn, most_records};
use crate::state::index::Entry;

/// What was saved, and exactly what was not.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct RepairReport {
    /// Unsettled messages that were written, with those that had been set aside.
    pub saved: u64,
    /// How many of them had been set aside.
    pub saved_set_aside: u64,
    /// Refusals written with their messages.
    pub rejections: u64,
    /// First and last sequence written.
    pub sequences: Option<(u64, u64)>,
    /// The new store gives out no number up to this one.
    pub next: u64,
    /// The new store is larger than the old one was allowed to become, because otherwise not
    /// everything would fit.
    pub enlarged_to: Option<u64>,
    /// What could not be saved.
    pub unsaved: Vec<Unsaved>,
    /// Both superblock copies of the old store were damaged.
    pub without_superblock: Option<WithoutSuperblock>,
}

/// How a store was repaired whose superblock copies are both damaged. What only they know is
/// lost: the send grant, the rebase, whether the store was closed, and whether it was evacuated.
/// The new store begins as one that has sent nothing. At its first logon it goes on above
/// whatever the server knows of its name, and sends everything that was saved, so that what had
/// been sent before may arrive twice.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WithoutSuperblock {
    /// The client name of the new store.
    pub client_name: String,
    /// Where the name comes from.
    pub name_from: NameFrom,
    /// Whether the store's identity is intact: a place that is written once and tells the client
    /// name, the key of all checksums and the size of a segment. A store that began in format
    /// version 1 has none.
    pub identity: bool,
    /// Bytes of a segment. Without an identity it follows from the segment headers.
    pub segment_size: u64,
    /// Segment headers that agree on the key of all checksums.
    pub headers: u64,
    /// Segment headers that belong to another store, or are damaged. Nothing was saved from those
    /// segments.
    pub other_headers: u64,
    /// Messages that may have been sent before, and are sent again.
    pub possible_duplicates: u64,
    /// A damaged copy of the superblock says that the store was evacuated to another file, which
    /// then sends the same messages. Since that copy is damaged it may be wrong; and where no
    /// copy says so, the store may have been evacuated all the same.
    pub says_evacuated: bool,
}

/// Where a client name comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NameFrom {
    /// It was given as [`RepairOptions::client_name`].
    Given,
    /// The identity of the store has it ([`WithoutSuperblock::identity`]).
    Identity,
    /// Both damaged copies of the superblock show the same one.
    Copies,
    /// Nothing shows a name, so one was made up.
    New,
}

/// Something that could not be saved.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Unsaved {
    /// Records that were durable are damaged.
    Damaged(DamagedRange),
    /// Records between the end of the log and those set aside: a power cut took them, or they
    /// were never complete.
    Hole {
        /// Where the hole starts.
        offset: u64,
        /// First missing ordinal.
        first_ordinal: u64,
        /// Last missing ordinal.
        last_ordinal: u64,
        /// Sequences that may be among them.
        sequences: Option<(u64, u64)>,
    },
    /// Sequences an earlier salvage had given up.
    Lost {
        /// The first.
        first: u64,
        /// The last.
        last: u64,
    },
    /// The original of a refused message. Its refusal is saved.
    Original {
        /// The refused message.
        sequence: u64,
    },
}

/// A store could not be repaired. The old one is as it was.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// The old store cannot be looked at, or the new one cannot be created.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is something at the place of the new store.
    #[error("{0} exists; a repair writes a new file only")]
    Exists(std::path::PathBuf),
    /// The old store is being written.
    #[error("the store {0} is in use; stop its owner first")]
    InUse(std::path::PathBuf),
    /// The old store is on a file system without locks: it cannot be told whether somebody writes
    /// it.
    #[error(
        "the store {path} cannot be locked ({error}), so nothing tells whether it is in use; make sure that nobody has it open, and say so with --unlocked"
    )]
    NoLock {
        /// The old store.
        path: std::path::PathBuf,
        /// What the operating system reported.
        #[source]
        error: io::Error,
    },
    /// The old store was evacuated: another file goes on with its numbers.
    #[error(
        "the store {0} was evacuated to another file, which sends the same messages under the same numbers; repair that one, or, if it is gone for good, say --evacuated"
    )]
    Evacuated(std::path::PathBuf),
    /// No record of the old store is left; nothing was written.
    #[error(
        "nothing of the store {0} is left but its superblocks: no record of it is intact; nothing was written"
    )]
    NothingLeft(std::path::PathBuf),
    /// The new store would have to begin with numbers above the highest that a store may give
    /// out.
    #[error(
        "the new store would give out no number up to {0}, and no store gets so far: choose a lower --number-floor"
    )]
    NumberFloor(u64),
    /// The old store cannot be read.
    #[error("cannot read the old store: {0}")]
    Read(#[source] io::Error),
    /// The new store cannot be written.
    #[error("cannot write the new store: {}; free some space or choose another place", .0.cause())]
    Write(#[from] StoreError),
    /// The new store cannot be reached.
    #[error("cannot create the new store: {0}")]
    Create(#[source] io::Error),
}

/// What a repair does only when told to, or differently then.
#[derive(Clone, Debug, Default)]
#[must_use]
pub struct RepairOptions {
    unlocked: bool,
    evacuated: bool,
    client_name: Option<String>,
    number_floor: u64,
    mode: Option<u32>,
}

impl RepairOptions {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// The new file's mode, in place of 0600. It is never made more open than the old file
    /// ([`NewFile`]).
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Also repair where the file system has no locks: the caller knows that nobody writes the
    /// store.
    pub fn unlocked(mut self, yes: bool) -> Self {
        self.unlocked = yes;
        self
    }

    /// Also repair a store that was evacuated: the caller knows that nobody sends from the file
    /// that it was evacuated to.
    pub fn evacuated(mut self, yes: bool) -> Self {
        self.evacuated = yes;
        self
    }

    /// The client name, for a store whose superblock copies are both damaged. Any other store
    /// keeps its name.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = Some(name.into());
        self
    }

    /// A number up to which none is given out again, for a store whose superblock copies are both
    /// damaged: the highest that is known to have been used. Any other store knows it.
    pub fn number_floor(mut self, sequence: u64) -> Self {
        self.number_floor = sequence;
        self
    }
}

/// Writes everything that is intact and needed in the store at `from` to a new store at `to`: the
/// same client name, sequences, order, grant, rebase and resume tag; refusals that wait, with
/// their messages; and records that were set aside. The old file is only read. What a record that
/// was set aside settles counts as settled. The resume tag does not move across a hole, so lines
/// of input that were lost in it are published again.
///
/// The old store is locked for reading meanwhile: the copy sends the same messages under the same
/// numbers, so nobody may have the old one open.
///
/// A store without an intact superblock is saved as far as it is intact, too, and
/// [`RepairReport::without_superblock`] says so: see [`WithoutSuperblock`]. The first number that
/// the copy gives out is above all that are seen in the old store and above
/// [`RepairOptions::number_floor`], and beyond that by as many records as the file has room for,
/// one for every 40 bytes.
///
/// The new store is closed cleanly. After an error it is removed.
///
/// # Errors
/// See [`RepairError`].
pub fn repair_to(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
) -> Result<RepairReport, RepairError> {
    repair_with(from, to, &RepairOptions::new())
}

/// As [`repair_to`], with what it does only when told to.
///
/// # Errors
/// See [`RepairError`].
pub fn repair_with(
    from: impl AsRef<Path>,
    to: impl AsRef<Path>,
    options: &RepairOptions,
) -> Result<RepairReport, RepairError> {
    let (from, to) = (from.as_ref(), to.as_ref());
    let source = lock_source(from, options)?;
    let file = source.try_clone().map_err(RepairError::Read)?;
    let (old, stand_in) = look(from, &Arc::new(file))?;
    if old.is_moving() {
        return Err(RepairError::InUse(from.to_owned()));
    }
    if old.view.header.superblock.is_given_up() && !options.evacuated {
        return Err(RepairError::Evacuated(from.to_owned()));
    }
    let mut plan = Plan::of(&old).map_err(RepairError::Read)?;
    plan.is_worth_it(&old)?;
    if let Some(stand_in) = stand_in {
        plan.do_without_superblock(&old, stand_in, options)?;
    }
    let metadata = source.metadata().map_err(RepairError::Read)?;
    let new = options
        .mode
        .map_or_else(NewFile::new, |mode| NewFile::new().mode(mode));
    match new.copy_of(&metadata).create(to) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            return Err(RepairError::Exists(to.to_owned()));
        }
        Err(error) => return Err(RepairError::Create(error)),
    }
    let written = write(&old, &plan, to);
    if written.is_err()
        && let Err(error) = std::fs::remove_file(to)
    {
        tracing::warn!(path = %to.display(), %error, "the unfinished store could not be removed");
    }
    written
}

/// The old store, and what stands in for its superblock if there is none.
fn look(from: &Path, file: &Arc<File>) -> Result<(Inspection, Option<StandIn>), RepairError> {
    let refused = match Inspection::of(from, file) {
        Ok(old) => return Ok((old, None)),
        Err(refused) => refused,
    };
    if !matches!(refused, OpenError::NoSuperblock { .. }) {
        return Err(refused.into());
    }
    let found = look_without_superblock(file).map_err(|r| refused_look(from, r))?;
    let (view, stand_in) = found.ok_or(refused)?;
    Ok((Inspection::with(from, view), Some(stand_in)))
}

/// Opens the old store and keeps its owner out for as long as what is returned lives.
fn lock_source(from: &Path, options: &RepairOptions) -> Result<Arc<LockedFile>, RepairError> {
    loop {
        let file = LockedFile::of(crate::inspect::regular_file(from)?);
        match file.try_lock(For::Copying) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(RepairError::InUse(from.to_owned())),
            Err(TryLockError::Error(_)) if options.unlocked => {}
            Err(TryLockError::Error(error)) => {
                let path = from.to_owned();
                return Err(RepairError::NoLock { path, error });
            }
        }
        if file.is_at(from).map_err(RepairError::Read)? {
            return Ok(file);
        }
    }
}

/// What is to be written.
struct Plan {
    messages: BTreeMap<u64, Saved>,
    floor: u64,
    next: u64,
    unsaved: Vec<Unsaved>,
    superblock: Superblock,
    without_superblock: Option<WithoutSuperblock>,
}

/// A message by its sequence.
#[derive(Default)]
struct Saved {
    /// Where it stands, unless its original is gone.
    place: Option<Entry>,
    set_aside: bool,
    rejection: Option<Rejection>,
}

impl Plan {
    fn of(old: &Inspection) -> io::Result<Self> {
        let recovered = &old.view.recovered;
        let mut plan = Plan {
            messages: BTreeMap::new(),
            floor: recovered.state.floor(),
            next: old.report().next,
            unsaved: Vec::new(),
            superblock: old.view.header.superblock.clone(),
            without_superblock: None,
        };
        let mut from = 0;
        while let Some((sequence, entry)) = recovered.state.next_unsettled(from, u64::MAX) {
            plan.messages.entry(sequence).or_default().place = Some(entry);
            from = sequence + 1;
        }
        for rejection in old.rejections()? {
            let refused = plan.messages.entry(rejection.sequence).or_default();
            refused.place = recovered.state.get(rejection.sequence);
            refused.rejection = Some(rejection);
        }
        plan.add_set_aside(old)?;
        plan.name_unsaved(old);
        Ok(plan)
    }

    /// A copy without any record, of a log that had some, would be a fresh store that looks as if
    /// all were well, although nobody can know what it lacks.
    fn is_worth_it(&self, old: &Inspection) -> Result<(), RepairError> {
        let recovered = &old.view.recovered;
        let nothing = recovered.chain.is_empty() && recovered.set_aside.is_empty();
        match nothing && !recovered.damaged.is_empty() {
            true => Err(RepairError::NothingLeft(old.path().to_owned())),
            false => Ok(()),
        }
    }

    /// For a store without superblock: settles nothing that no mark settles, skips every number
    /// that may have been used, and finds a name.
    fn do_without_superblock(
        &mut self,
        old: &Inspection,
        stand_in: StandIn,
        options: &RepairOptions,
    ) -> Result<(), RepairError> {
        self.floor = old.view.recovered.marked_floor;
        let known = options.number_floor.max(self.next - 1);
        let floor = known.saturating_add(most_records(old.view.file_len));
        if floor >= GRANT_LAST {
            return Err(RepairError::NumberFloor(floor));
        }
        self.next = floor + 1;
        let (client_name, name_from) = match (&options.client_name, stand_in.client_name) {
            (Some(given), _) => (given.clone(), NameFrom::Given),
            (None, Some(told)) if stand_in.by_identity => (told, NameFrom::Identity),
            (None, Some(shown)) => (shown, NameFrom::Copies),
            (None, None) => (fresh_name(), NameFrom::New),
        };
        self.superblock.client_name.clone_from(&client_name);
        self.without_superblock = Some(WithoutSuperblock {
            client_name,
            name_from,
            identity: stand_in.by_identity,
            segment_size: self.superblock.segment_size,
            headers: stand_in.headers,
            other_headers: stand_in.foreign,
            possible_duplicates: self.unsettled(),
            says_evacuated: stand_in.says_evacuated,
        });
        Ok(())
    }

    fn unsettled(&self) -> u64 {
        self.messages
            .values()
            .filter(|m| m.rejection.is_none())
            .count() as u64
    }

    /// Bytes needed, with the charges for their future.
    fn bytes(&self) -> u64 {
        let message = |saved: &Saved| saved.place.map_or(0, Entry::stride) + CHARGE;
        self.messages.values().map(message).sum()
    }

    /// Takes the records behind the hole in order, as if they followed the log.
    fn add_set_aside(&mut self, old: &Inspection) -> io::Result<()> {
        let mut original = None;
        // Their numbers count towards the next one that is given out, like all that recovery saw.
        for record in old.set_aside() {
            let record = record?;
            match (record.kind, record.body) {
                // This includes messages with an envelope that this program does not know: their
                // bytes are copied.
                (Some(RecordKind::Publish | RecordKind::Copy), body) => {
                    // As in the log, a copy accepts no refusal.
                    if let Body::Message { envelope, .. } = body
                        && record.kind == Some(RecordKind::Publish)
                        && record.quiet
                        && let Origin::Requeue { accepts } = envelope.origin
                        && accepts < record.sequence
                    {
                        self.accept(accepts);
                    }
                    let saved = self.messages.entry(record.sequence).or_default();
                    saved.place = Some(Entry::new(record.offset, record.bytes));
                    saved.set_aside = true;
                }
                (Some(RecordKind::Original), _) => {
                    original = Some((record.sequence, Entry::new(record.offset, record.bytes)));
                }
                (_, Body::Settlement(sequences)) => {
                    for sequence in sequences {
                        self.settle(sequence);
                    }
                }
                (_, Body::Mark { floor, .. } | Body::Epoch { floor, .. }) => {
                    self.settle_through(floor);
                }
                (Some(RecordKind::Rejection), body) => {
                    let rejection = match body {
                        Body::Rejection(rejection) => rejection,
                        // A reason that cannot be read must not hide the refusal.
                        _ => Rejection::without_reason(record.sequence),
                    };
                    let refused = self.messages.entry(record.sequence).or_default();
                    let original = original.filter(|o| o.0 == record.sequence);
                    refused.place = original
                        .map(|o| o.1)
                        .or(refused.place)
                        .or_else(|| old.view.recovered.state.get(record.sequence));
                    refused.rejection = Some(rejection);
                }
                (Some(RecordKind::Acceptance), _) => self.accept(record.sequence),
                _ => {}
            }
        }
        Ok(())
    }

    fn is_refused(&self, sequence: u64) -> Option<bool> {
        Some(self.messages.get(&sequence)?.rejection.is_some())
    }

    fn settle(&mut self, sequence: u64) {
        if self.is_refused(sequence) == Some(false) {
            self.messages.remove(&sequence);
        }
    }

    fn settle_through(&mut self, floor: u64) {
        self.messages
            .retain(|sequence, saved| *sequence > floor || saved.rejection.is_some());
        self.floor = self.floor.max(floor);
    }

    fn accept(&mut self, sequence: u64) {
        if self.is_refused(sequence) == Some(true) {
            self.messages.remove(&sequence);
        }
    }

    fn name_unsaved(&mut self, old: &Inspection) {
        let recovered = &old.view.recovered;
        for (&sequence, _) in self.messages.iter().filter(|m| m.1.place.is_none()) {
            self.unsaved.push(Unsaved::Original { sequence });
        }
        for range in &recovered.damaged {
            self.unsaved.push(Unsaved::Damaged(range.clone()));
        }
        for lost in recovered.lost.iter().filter(|l| l.first_sequence != 0) {
            let (first, last) = (lost.first_sequence, lost.last_sequence);
            self.unsaved.push(Unsaved::Lost { first, last });
        }
        let mut last = recovered.last_ordinal;
        let mut known = recovered.next.max(recovered.state.last() + 1);
        let first = recovered.geometry.segments_at;
        let mut offset = recovered.chain.last().map_or(first, |c| c.end);
        for seen in &recovered.set_aside {
            let publish = seen.kind() == Kind::Publish;
            if seen.ordinal() > last + 1 {
                let sequence = seen.header.sequence;
                self.unsaved.push(Unsaved::Hole {
                    offset,
                    first_ordinal: last + 1,
                    last_ordinal: seen.ordinal() - 1,
                    sequences: (publish && sequence > known).then(|| (known, sequence - 1)),
                });
            }
            last = last.max(seen.ordinal());
            offset = seen.offset + seen.header.stride();
            if publish {
                known = known.max(seen.header.sequence + 1);
            }
        }
    }
}

fn write(old: &Inspection, plan: &Plan, to: &Path) -> Result<RepairReport, RepairError> {
    let heritage = Heritage {
        superblock: &plan.superblock,
        floor: plan.floor,
        next: plan.next,
        tag: old.view.recovered.tag.clone(),
        bytes: plan.bytes(),
    };
    let mut fresh = Rebuild::start(to, heritage)?;
    let mut report = RepairReport {
        next: plan.next,
        enlarged_to: fresh.enlarged_to,
        unsaved: plan.unsaved.clone(),
        without_superblock: plan.without_superblock.clone(),
        ..RepairReport::default()
    };
    for (&sequence, saved) in &plan.messages {
        if let Some(place) = saved.place {
            let message = original(old, sequence, place)?;
            let mut body = message.envelope_bytes.clone();
            body.extend_from_slice(&message.payload);
            let envelope_len = message.envelope_bytes.len();
            fresh.message(sequence, message.quiet, envelope_len, &body)?;
        }
        if let Some(rejection) = &saved.rejection {
            fresh.rejection(rejection)?;
            report.rejections += 1;
        } else {
            report.saved += 1;
            report.saved_set_aside += u64::from(saved.set_aside);
        }
        let first = report.sequences.map_or(sequence, |s| s.0);
        report.sequences = Some((first, sequence));
    }
    fresh.finish()?;
    Ok(report)
}

fn original(old: &Inspection, sequence: u64, place: Entry) -> Result<Message, RepairError> {
    old.message_at(sequence, place, MessageState::Unsettled)
        .and_then(|message| {
            let moved = || format!("message {sequence} is not where it was");
            message.ok_or_else(|| io::Error::other(moved()))
        })
        .map_err(RepairError::Read)
}
