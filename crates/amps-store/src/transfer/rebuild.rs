//! A fresh store with the contents of another: what a repair and an evacuation write.

use std::io;
use std::path::Path;

use crate::api::Rejection;
use crate::error::{OpenError, StoreError};
use crate::format::{Kind, Mark, RejectionBody, SEGMENTS_AT, Superblock, UserTag};
use crate::log::Log;
use crate::open::{self, Missing};
use crate::options::{MIN_CAPACITY, Options};
use crate::recover::scan::Geometry;
use crate::space::limit;

/// What is taken over besides messages and refusals.
pub(crate) struct Heritage<'a> {
    /// Geometry, name, grant and rebase.
    pub(crate) superblock: &'a Superblock,
    /// Everything up to here is settled.
    pub(crate) floor: u64,
    /// No number below this one is given out again.
    pub(crate) next: u64,
    /// The resume point.
    pub(crate) tag: Option<Vec<u8>>,
    /// Bytes of all messages, with the room charged for their future.
    pub(crate) bytes: u64,
}

/// A fresh store that is being written. It owns nothing durable until [`finish`].
///
/// [`finish`]: Self::finish
pub(crate) struct Rebuild {
    log: Log,
    grant: u64,
    /// The capacity, if it had to be larger than that of the old store.
    pub(crate) enlarged_to: Option<u64>,
}

impl Rebuild {
    /// Creates the store at `to`, where there is no file, or an empty one.
    pub(crate) fn start(to: &Path, heritage: Heritage<'_>) -> Result<Self, OpenError> {
        let before = heritage.superblock;
        let size = before.segment_size;
        let geometry = Geometry::of(before);
        let mut cap_segments = before.cap_segments;
        // One segment more than the records add up to, since segments are not filled to the end.
        while limit(&geometry, cap_segments - 1) < heritage.bytes {
            cap_segments += 1;
        }
        // The fewest segments may need less than the least capacity.
        let capacity = (SEGMENTS_AT + cap_segments * size).max(MIN_CAPACITY);
        let options = Options::new()
            .capacity(capacity)
            .segment_size(size)
            .client_name(before.client_name.clone());
        let (mut log, _) = open::open(to, &options, Missing::Create)?;
        inherit(&mut log, &heritage).map_err(|error| OpenError::Io {
            path: to.to_owned(),
            what: "begin",
            error: io::Error::other(error),
        })?;
        Ok(Rebuild {
            log,
            grant: before.grant,
            enlarged_to: (cap_segments > before.cap_segments).then_some(capacity),
        })
    }

    /// Writes a message under its old sequence; messages come in rising order. `body` is
    /// the envelope's bytes and the payload.
    pub(crate) fn message(
        &mut self,
        sequence: u64,
        quiet: bool,
        envelope_len: usize,
        body: &[u8],
    ) -> Result<(), StoreError> {
        let entry = self
            .log
            .write_kept(Kind::Copy, quiet, sequence, envelope_len, body)?;
        self.log.state.message(sequence, entry);
        Ok(())
    }

    /// Writes a refusal that waits, behind its message.
    pub(crate) fn rejection(&mut self, rejection: &Rejection) -> Result<(), StoreError> {
        let mut body = Vec::new();
        RejectionBody {
            at: rejection.at,
            cut: rejection.reason_cut,
            late: rejection.late,
            reason: rejection.reason.clone(),
        }
        .encode(&mut body);
        let sequence = rejection.sequence;
        let entry = self
            .log
            .write_kept(Kind::Rejection, false, sequence, 0, &body)?;
        self.log.state.reject(sequence, entry);
        Ok(())
    }

    /// Syncs and closes the store. From here on it can take the old one's place.
    pub(crate) fn finish(mut self) -> Result<(), StoreError> {
        let device = self.log.medium.device();
        self.log.close(&device, self.grant)
    }
}

/// Takes over numbers, floor and resume point, which the records to come do not show.
fn inherit(log: &mut Log, heritage: &Heritage<'_>) -> Result<(), StoreError> {
    let before = heritage.superblock;
    let mut superblock = log.superblock.clone();
    superblock.grant = before.grant;
    superblock.number_floor = before.number_floor.max(heritage.next - 1);
    superblock.rebase_from = before.rebase_from;
    superblock.rebase_delta = before.rebase_delta;
    superblock.reserved = before.reserved.clone();
    log.write_superblock(superblock)?;
    log.state.settle_through(heritage.floor);
    let mut mark: Mark = log.mark(false);
    mark.floor = heritage.floor;
    mark.next = heritage.next;
    mark.tag = heritage.tag.as_deref().map(UserTag::new);
    let mut body = Vec::new();
    mark.encode(&mut body);
    log.write_kept(Kind::Mark, false, 0, 0, &body).map(drop)
}
