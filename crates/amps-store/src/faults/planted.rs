//! Bugs that tests plant to see that the suite catches them. Without the feature `testkit` the
//! question is a constant, and none of this is compiled in.

/// Declares the bugs, and a list of them all that no new one can be missing from.
macro_rules! bugs {
    ($($(#[doc = $doc:literal])+ $name:ident,)+) => {
        /// A way to break the store.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[cfg_attr(not(feature = "testkit"), allow(dead_code, unreachable_pub))]
        pub enum Bug {
            $($(#[doc = $doc])+ $name,)+
        }

        #[cfg(feature = "testkit")]
        impl Bug {
            /// Each of them.
            pub const ALL: &[Bug] = &[$(Bug::$name),+];
        }
    };
}

bugs! {
    /// A sync returns without syncing.
    NoSync,
    /// A sync leaves out the last thing written.
    ShortSync,
    /// A sync of a stretch begins to write it and does not wait: `msync(MS_ASYNC)`.
    AsyncSync,
    /// A failed sync counts as done.
    SwallowedSyncError,
    /// A sync, or a superblock write, begins while a sync is under way, and the first of them
    /// that succeeds counts.
    OverlappingSyncs,
    /// A sync counts for what was appended while it ran.
    SyncVouchesForLater,
    /// The superblock names a grown segment that is not synced.
    GrownUnsynced,
    /// Checksums are not checked.
    NoChecksum,
    /// The checksum leaves out the header.
    ChecksumSkipsHeader,
    /// A record of any ordinal counts as the next one.
    NoLapCheck,
    /// Appending goes on at a cut as if nothing stood behind it, and what stands there is not
    /// recognised by its generation either.
    NoEpoch,
    /// A segment is reused before any superblock names a start behind it.
    EarlyReuse,
    /// A segment is reused when one superblock copy names a start behind it.
    OneCopy,
    /// The start passes messages whose copies are not synced.
    CopiesUncovered,
    /// The start passes a refused message whose requeue is not durable.
    RequeueUncovered,
    /// The start passes a refused message whose acceptance is not durable.
    AcceptanceUncovered,
    /// With the start the superblock names the present floor instead of that before the start.
    LatestFloor,
    /// With the start the superblock names the present resume tag instead of that before the
    /// start.
    LatestTag,
    /// Whoever needs a segment does not wait for the superblock write that is about to free some.
    NoTurn,
    /// A late refusal does not bring its message along while a start behind that message is being
    /// named.
    OriginalsLeftBehind,
    /// A recovery takes records below the start.
    NoStart,
    /// A recovery does not believe the durable mark of the superblock.
    NoNamedDurable,
    /// An open moves the start, and the opening that stands in for what came before, before it
    /// has reported what is missing.
    StartBeforeTold,
    /// What a segment still holds that is needed is not copied.
    NoCopies,
    /// Numbers continue right after the last record, whatever was granted.
    SequenceReset,
    /// The grant is raised in memory only.
    GrantNotSynced,
    /// A rebase leaves the grant where it was.
    RebaseKeepsGrant,
    /// A settled prefix leaves no mark.
    NoMark,
    /// A success overrides a refusal.
    SuccessOverridesRefusal,
    /// An unclean open does not write again what lies above the durable mark.
    NoRewrite,
    /// An open does not sync the stamps of segments that are no part of the log.
    StampsUnsynced,
    /// A close calls durable what it did not sync, even where the log does not begin behind it.
    CloseLeavesOut,
    /// The head of a torn record stays.
    NoWipe,
    /// Only half of a superblock is written.
    SplitHeader,
    /// A refusal's room is not charged in advance.
    NoCharge,
    /// Messages are admitted to room that the file has not grown to.
    AdmitUnreserved,
    /// Messages take the room that refusals need when nothing is freed any more.
    ReserveSpent,
    /// The file is cut before the superblock names less.
    CutBeforeNamed,
    /// The file gets its length and no blocks.
    SparseFile,
}

#[cfg(feature = "testkit")]
thread_local! {
    static PLANTED: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Plants a bug in what this thread does with stores; `None` takes it out.
#[cfg(feature = "testkit")]
pub fn plant(bug: Option<Bug>) {
    PLANTED.set(bug);
}

/// Whether this bug is planted.
#[cfg(feature = "testkit")]
#[inline]
pub(crate) fn is(bug: Bug) -> bool {
    PLANTED.get() == Some(bug)
}

/// Whether this bug is planted: never.
#[cfg(not(feature = "testkit"))]
#[inline]
pub(crate) const fn is(_bug: Bug) -> bool {
    false
}
