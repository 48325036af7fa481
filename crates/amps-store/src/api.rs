//! The publish store as its users see it: one trait, and the values that are passed through it.

use std::fmt;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use crate::batch::{Batch, MessageRef};
use crate::envelope::{Envelope, EnvelopeError, Origin};
use crate::error::{AppendError, ReadError, StoreError};
use crate::excerpt::Excerpt;
use crate::format::RECORD_HEADER;
use crate::open::Place;
use crate::report::RecoveryReport;

/// Longest user tag in bytes.
pub const MAX_TAG: usize = 64;

/// Longest refusal reason kept, in bytes; a longer one is cut and the cut is marked.
pub const MAX_REASON: usize = 128;

/// When a message is safe from a power cut. A process crash loses nothing at any level.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Level {
    /// The operating system writes when it likes; on Linux that is within some 35 seconds. A
    /// power cut may take what was stored since then, unless a sync came later. The store syncs
    /// by itself only what stands in for another record (copies of messages that outlive their
    /// segment, requeues, acceptances), before the space of the original is used again, and the
    /// send grant, a rebase and the close. The only level of a store in memory.
    #[default]
    Os,
    /// Synced at least this often while there is something to sync.
    Interval(Duration),
    /// Synced continuously; a message is sent only after it is durable.
    Disk,
}

impl Level {
    /// Whether the store syncs by itself what is appended.
    pub fn syncs(self) -> bool {
        match self {
            Level::Os => false,
            Level::Interval(_) | Level::Disk => true,
        }
    }

    /// Whether nothing of a message may be seen outside before it is durable: it is not sent, and
    /// no handler is told of its refusal.
    pub fn is_durable_first(self) -> bool {
        match self {
            Level::Os | Level::Interval(_) => false,
            Level::Disk => true,
        }
    }
}

/// A message as it stands in the store, in a buffer that can be reused.
#[derive(Clone, Default)]
pub struct StoredMessage {
    /// Its sequence, 0 while the buffer is empty.
    pub sequence: u64,
    /// The raw record: header, envelope, payload. Longer than `len` when reused.
    pub(crate) bytes: Vec<u8>,
    pub(crate) len: usize,
    pub(crate) envelope_end: usize,
    /// Does not move the resume point.
    pub(crate) quiet: bool,
}

impl fmt::Debug for StoredMessage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoredMessage")
            .field("sequence", &self.sequence)
            .field("envelope", &self.envelope())
            .field("payload", &Excerpt(self.payload()))
            .finish_non_exhaustive()
    }
}

impl StoredMessage {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// Puts a message into the buffer. Your own implementation of a store calls this when it is
    /// read.
    ///
    /// # Errors
    /// A user tag longer than [`MAX_TAG`]; the buffer is empty then.
    pub fn set(
        &mut self,
        sequence: u64,
        envelope: &Envelope<'_>,
        payload: &[u8],
    ) -> Result<(), EnvelopeError> {
        (self.sequence, self.len, self.envelope_end) = (0, 0, 0);
        envelope.check()?;
        let written = loop {
            let room = self.bytes.get_mut(RECORD_HEADER..).unwrap_or_default();
            match envelope.encode_into(room) {
                Some(written) => break written,
                None => self.bytes.resize(2 * self.bytes.len().max(256), 0),
            }
        };
        self.envelope_end = RECORD_HEADER + written;
        self.len = self.envelope_end + payload.len();
        if self.bytes.len() < self.len {
            self.bytes.resize(self.len, 0);
        }
        self.bytes[self.envelope_end..self.len].copy_from_slice(payload);
        self.quiet = envelope.origin != Origin::Publish;
        self.sequence = sequence;
        Ok(())
    }

    /// The decoded envelope, borrowing from the buffer.
    ///
    /// # Errors
    /// The record is intact, but its envelope is not of a version this program knows.
    pub fn envelope(&self) -> Result<Envelope<'_>, EnvelopeError> {
        self.as_ref().envelope()
    }

    /// The payload, byte for byte as published.
    pub fn payload(&self) -> &[u8] {
        self.as_ref().payload()
    }

    /// The message in the buffer.
    pub fn as_ref(&self) -> MessageRef<'_> {
        MessageRef {
            sequence: self.sequence,
            envelope: self
                .bytes
                .get(RECORD_HEADER..self.envelope_end)
                .unwrap_or_default(),
            payload: self
                .bytes
                .get(self.envelope_end..self.len)
                .unwrap_or_default(),
        }
    }
}

/// Where an append landed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The message's sequence, for the rest of its life.
    pub sequence: u64,
    /// Position in the log; durable once [`PublishStore::durable`] reports it.
    pub ordinal: u64,
}

/// What survives a power cut now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durable {
    /// Every record with this ordinal or a lower one is on the device.
    pub ordinal: u64,
    /// Every message with this sequence or a lower one is on the device.
    pub sequence: u64,
}

/// A look at the store's numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// The lowest unsettled message.
    pub first_unsettled: Option<u64>,
    /// The highest message that has a number, settled or not (0: none yet).
    pub last: u64,
    /// The number the next message gets.
    pub next: u64,
    /// Everything up to here is settled: persisted, or refused with the refusal logged.
    pub floor: u64,
    /// Count of unsettled messages.
    pub unsettled: u64,
    /// Count of refusals that wait for the application.
    pub rejections: u64,
    /// Bytes taken by what is unsettled or refused, with the room charged for its future.
    pub live_bytes: u64,
    /// The most `live_bytes` may become.
    pub limit_bytes: u64,
}

/// What holds in memory only, because a sync failed before and the log had no room for the record of
/// it: it ends with this process. Room is kept for all of it when a message is admitted, so that this
/// is nothing but for late refusals, for which none is kept, and a log that lacked room when its
/// device failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Unrecorded {
    /// Messages that are settled or refused here, and unsettled in the log: the next open sends them
    /// again.
    pub messages: u64,
    /// Refusals that are not in the log, late ones too. Nobody finds them there; a server that gets
    /// the message again refuses it again.
    pub refusals: u64,
}

impl Unrecorded {
    /// So many messages, and so many refusals.
    pub fn new(messages: u64, refusals: u64) -> Self {
        Unrecorded { messages, refusals }
    }
}

/// A refusal as it is kept in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The refused message.
    pub sequence: u64,
    /// The server's reason, cut to [`MAX_REASON`] bytes on a character border.
    pub reason: String,
    /// The reason was longer.
    pub reason_cut: bool,
    /// When it was received: microseconds since the Unix epoch.
    pub at: u64,
    /// It came after a success that covered the message.
    pub late: bool,
}

/// What became of a refusal handed to [`PublishStore::reject`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejected {
    /// It is in the log, at this ordinal, and waits for the application.
    Logged {
        /// Durable once [`PublishStore::durable`] reports it.
        ordinal: u64,
        /// The message was already settled as a success; the rejection is marked late.
        late: bool,
    },
    /// A sync failed before, and the log takes no more. The refusal waits for the application in
    /// memory, and an evacuation takes it along. The next open knows nothing of it: the message is
    /// unsettled then, or settled if the refusal is late. See [`PublishStore::unrecorded`].
    Held {
        /// As in [`Logged`](Self::Logged).
        late: bool,
    },
    /// The same message was refused before; nothing changed.
    Known,
    /// The message was settled long ago, and no room is left for a late refusal.
    NoRoom,
    /// The store never gave out this sequence.
    Unknown,
}

/// Wire numbers differ from sequences from `from` on (`docs/promises.md`, Numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rebase {
    /// First sequence concerned; everything below is settled.
    pub from: u64,
    /// Added to a sequence from `from` on to give its wire number.
    pub delta: i64,
}

/// The durable numbers behind the rules in `docs/promises.md`, Numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Numbers {
    /// Sequences up to this one may be handed to a transport.
    pub grant: u64,
    /// The grant as it was found at open: sequences up to it may have been sent before.
    pub found_grant: u64,
    /// First sequence this run gives out; a lower one belongs to an earlier run.
    pub first_of_run: u64,
    /// The rebase in force.
    pub rebase: Option<Rebase>,
}

/// Something an owner of the store may wait for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// There may be room now, or there will never be any again; try an append that was turned
    /// away once more. Every append that was turned away is followed by this signal at the next
    /// change that may have made room, even if somebody else took that room meanwhile. It may
    /// come at once, so register the observer before you try.
    Room,
    /// [`PublishStore::durable`] moved.
    Durable,
    /// A sync or a superblock write failed, or the store ended with something unsynced:
    /// `durable` will never move again.
    SyncFailed,
    /// The store's file was moved or removed. This is noticed within a second, and looked for
    /// once more before the store is closed. With [`Place::Gone`] the store takes nothing more
    /// and `durable` will never move again; what it holds is still sent.
    Moved(Place),
    /// The backlog crossed a watermark of [`Options::watermarks`](crate::Options::watermarks).
    /// Crossings alternate: each watermark is told once and then not again until the other one
    /// was. Two crossings that undo each other while an observer is being called are not told.
    Watermark {
        /// The high watermark was reached from below; otherwise the low one from above.
        high: bool,
        /// As in [`Bounds`], read a moment later.
        live_bytes: u64,
        /// As in [`Bounds`].
        limit_bytes: u64,
    },
}

/// Receives [`Signal`]s. Called from the store's own thread or the caller's, never under the
/// store's lock; it must not block. An observer that returns [`ControlFlow::Break`] is not called
/// again.
pub type Observer = Arc<dyn Fn(Signal) -> ControlFlow<()> + Send + Sync>;

/// A durable, bounded, ordered send queue (`docs/promises.md` S1 to S10).
///
/// Every method is short and may be called from any thread. Those marked *syncs* wait for the
/// device and must stay off async workers; the others do not, with one exception in
/// [`Store`](crate::Store): if the background thread is a whole segment behind, a settlement,
/// refusal or acceptance that finds only one free segment left frees one itself. That costs at
/// most one copy of each segment with its syncs, after the sync that is under way. Nothing here
/// knows a server: wire numbers, acknowledgements and the rules between them live in the client's
/// `Delivery`.
///
/// # Implementing your own store
///
/// The client sends what the store holds, in the store's order and under the store's numbers, and
/// believes what the store says is settled. So an implementation keeps the promises below. The
/// suite `amps_store::testkit::conformance` (feature `testkit`) tests them, and
/// `tests/own_store.rs` in the repository has a small store that passes it.
///
/// - **One owner.** Nobody else changes what the store holds while it is open, and it belongs
///   to one client name for ever.
/// - **Numbers.** Sequences start above 0, stay below 2⁶³ and rise by one within a run. A number
///   that was given out is never given to another message, whatever happened in between: at open
///   the next one is above every sequence ever given out and above the grant, unless
///   [`close`](Self::close) lowered the grant. Ordinals count records of every kind, and rise.
/// - **Order.** Appends happen one after the other: whoever sees a message in the store also sees
///   all messages with lower sequences. [`read_unsettled`](Self::read_unsettled) goes by
///   sequence.
/// - **Bytes.** Envelope and payload come back exactly as given, except that
///   [`requeue`](Self::requeue) sets origin and time.
/// - **Settling is monotone.** A message is unsettled, settled as a success, or refused. Once it
///   is no longer unsettled it never becomes so again, except possibly after a power cut. A
///   refusal waits until it is accepted or its message is requeued, and no success overrides it.
///   Until then [`get`](Self::get) finds its message.
/// - **Crashes.** Whatever a call changed is still there if the process dies after the call
///   returned. What [`durable`](Self::durable) covers survives a power cut, and so do the grant
///   and the rebase once [`raise_grant`](Self::raise_grant) and [`rebase`](Self::rebase)
///   returned. After a sync failed, nothing more may be called durable in this run. What is
///   settled or refused then may be kept in memory only where the store has no room left for it:
///   the next open finds such a message unsettled, and [`unrecorded`](Self::unrecorded) says how
///   many there are. A store that keeps nothing beyond the process always opens empty; the client
///   then has only the server's own figures to go by. It calls nothing durable, and answers
///   [`StoreError::InMemory`] to whoever asks for it.
/// - **Room.** The store is bounded. Settling, refusing, accepting and raising the grant never
///   fail for want of room, because room for them is charged when a message is admitted.
/// - **Signals.** Observers are called without holding any lock of the store, because they may
///   call back into it.
///
/// After [`close`](Self::close), methods that change or read anything fail with
/// [`StoreError::Closed`], and [`rejections`](Self::rejections) returns none; methods that return
/// plain numbers go on answering. In a forked child of the process that opened the store, methods
/// that can fail do so, with [`StoreError::Forked`], and the others answer with nothing.
pub trait PublishStore: Send + Sync + 'static {
    /// Stores a message and gives it a sequence. Once this has returned, a process crash loses
    /// nothing; a power cut loses nothing once [`durable`](Self::durable) reports the ordinal.
    ///
    /// # Errors
    /// [`AppendError::Full`] when there is no room, [`AppendError::MakingRoom`] when there is
    /// none yet (wait for [`Signal::Room`] in both cases), [`AppendError::TooLarge`] when there
    /// never will be, [`AppendError::Envelope`] for a user tag longer than [`MAX_TAG`] or for a
    /// requeued message that accepts itself or a later one, and [`StoreError::Gone`] once the
    /// store's file was found to be removed. In all these cases nothing was stored and no number
    /// was used.
    fn append(&self, envelope: &Envelope<'_>, payload: &[u8]) -> Result<Appended, AppendError>;

    /// Reads the unsettled messages in `from..=through` from the lowest on, in order of sequence
    /// and without a gap, as many as `into` takes. What was in `into` before is dropped. If it is
    /// empty afterwards there is no such message. A message that is settled meanwhile may still
    /// be in it.
    ///
    /// # Errors
    /// The checksum of the first record does not fit any more: the file was damaged under a live
    /// store. A damaged record behind it ends the batch, and is reported when it is the first of
    /// the next one.
    fn read_unsettled(&self, from: u64, through: u64, into: &mut Batch) -> Result<(), ReadError>;

    /// Reads one message, settled or not, while its bytes are still there.
    ///
    /// # Errors
    /// The record's checksum does not fit any more. For a message that is gone the result is
    /// `Ok(false)`.
    fn get(&self, sequence: u64, into: &mut StoredMessage) -> Result<bool, ReadError>;

    /// The current numbers, all taken at the same moment. Never waits for the device.
    fn bounds(&self) -> Bounds;

    /// Whether this message is unsettled.
    fn is_unsettled(&self, sequence: u64) -> bool;

    /// Settles everything up to `sequence` as a success; refusals stay refusals. Returns how many
    /// messages this settled. Sequences that were not given out yet are ignored: messages that
    /// get them later are unsettled.
    ///
    /// # Errors
    /// The log cannot take the record; nothing was settled.
    fn settle_through(&self, sequence: u64) -> Result<u64, StoreError>;

    /// Settles single messages as successes, in any order. Returns how many of them were
    /// unsettled; the others are left as they are. A long list may be recorded in pieces.
    ///
    /// # Errors
    /// The log cannot take a record; what earlier pieces settled stays settled.
    fn settle(&self, sequences: &[u64]) -> Result<u64, StoreError>;

    /// Logs a refusal; its record is the message's settlement. A late refusal, of a message that
    /// was settled before, is kept only while room remains. After a failed sync the refusal is
    /// held in memory, as a settlement is, if the log cannot take the record ([`Rejected::Held`]).
    ///
    /// # Errors
    /// As [`settle_through`](Self::settle_through).
    fn reject(&self, sequence: u64, reason: &str, at: u64) -> Result<Rejected, StoreError>;

    /// The application has taken over a refusal, which is gone afterwards. `false`: no such
    /// refusal waits.
    ///
    /// # Errors
    /// As [`settle_through`](Self::settle_through).
    fn accept(&self, sequence: u64) -> Result<bool, StoreError>;

    /// Publishes a refused message again under a new sequence and accepts the refusal, both in
    /// the same record: a crash can leave neither two messages nor none. `None`: no such refusal
    /// waits, or its message is gone.
    ///
    /// # Errors
    /// As [`append`](Self::append).
    fn requeue(&self, sequence: u64, now: u64) -> Result<Option<Appended>, AppendError>;

    /// Refusals that wait, with sequence `from` or above, at most `limit` of them.
    fn rejections(&self, from: u64, limit: usize) -> Vec<Rejection>;

    /// What has been granted, and which rebase is in force.
    fn numbers(&self) -> Numbers;

    /// Raises the send grant to at least `to`; durable when this returns. *Syncs.* It never
    /// lowers it.
    ///
    /// # Errors
    /// `to` is above 2⁶³ − 2⁴⁸ − 2⁴⁷: a store whose numbers are used up is opened by nobody. Or
    /// the device failed: this run counts the grant as unchanged, and the next open may find the
    /// new one.
    fn raise_grant(&self, to: u64) -> Result<(), StoreError>;

    /// Starts a rebase above the wire number `above`: the first unsettled message, or the
    /// next one, goes out as `above + 1`, the rest follow. The grant becomes `from - 1` in
    /// the same durable write. *Syncs.*
    ///
    /// # Errors
    /// `above` is as high as no grant may be: nothing changed. Or the device failed: this run
    /// counts it as not done, and the next open may find it done.
    fn rebase(&self, above: u64) -> Result<Rebase, StoreError>;

    /// The level the store was opened with.
    fn level(&self) -> Level;

    /// What is durable now. One atomic look.
    fn durable(&self) -> Durable;

    /// Asks for a sync of everything appended so far, without waiting: if some of it is not
    /// durable yet, `Signal::Durable` or `Signal::SyncFailed` follows.
    ///
    /// # Errors
    /// Nothing can become durable any more, and no signal follows: the store is in memory
    /// ([`StoreError::InMemory`]), a sync failed before, its file was removed
    /// ([`StoreError::Gone`]), or the store is closed.
    fn request_sync(&self) -> Result<(), StoreError>;

    /// Syncs everything appended so far. *Syncs.*
    ///
    /// # Errors
    /// The device failed now or before, or the file was removed ([`StoreError::Gone`]): `durable`
    /// never moves again. Or the store is in memory ([`StoreError::InMemory`]).
    fn sync(&self) -> Result<Durable, StoreError>;

    /// How long the device took for each sync that ended since the last call, the latest of them
    /// if they were many: for whoever watches the store, one of them. A store that does not say
    /// has none.
    fn sync_times(&self) -> Vec<Duration> {
        Vec::new()
    }

    /// What this run holds in memory only after a sync failed: who reports what is left, and where
    /// refusals wait, counts by it. A store whose log always takes what is settled has none.
    fn unrecorded(&self) -> Unrecorded {
        Unrecorded::default()
    }

    /// What was found when the store was opened. A client tells its user what of it is bad
    /// news. `None`: there is nothing to tell, as for a store that always starts empty.
    fn recovery(&self) -> Option<&RecoveryReport> {
        None
    }

    /// Registers an observer until it breaks, or the store ends. One that comes after a sync
    /// failed is told [`Signal::SyncFailed`] at once, one that comes after the file was moved is
    /// told [`Signal::Moved`], and one that comes while the backlog is above its high watermark is
    /// told that: it will not be said again.
    fn observe(&self, observer: Observer);

    /// The name of the client this store belongs to.
    fn client_name(&self) -> String;

    /// A number that no other store has, the same one at every open: with a sequence it names a
    /// message. `None` where there is none, because nothing is kept beyond the process.
    fn identity(&self) -> Option<u64> {
        None
    }

    /// User tag of the highest message recovered or settled that has one, moved only by
    /// publishes; the application resumes behind it.
    fn resume_tag(&self) -> Option<Vec<u8>>;

    /// Syncs, lowers the grant to `handed_over` (the highest sequence handed to a
    /// transport, in this run or before), but not below what is settled, and ends the store.
    /// Later calls fail. *Syncs.*
    ///
    /// # Errors
    /// The device failed: the next open treats this as an unclean stop. Or its file was removed
    /// ([`StoreError::Gone`]): what is unsettled ends with this process. Or it is closed, and whether
    /// its file is still there cannot be told.
    fn close(&self, handed_over: u64) -> Result<(), StoreError>;
}
