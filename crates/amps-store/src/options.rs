//! How a store is opened.

use std::time::Duration;

use crate::api::Level;
use crate::format::{BLOCK, MAX_NAME, MIN_SEGMENTS, SEGMENTS_AT, geometry_is_sound};
use crate::open::check_mode;

/// Segments of a new file that is not preallocated; none that grew is cut to fewer.
pub(crate) const FIRST_SEGMENTS: u64 = 4;

/// The largest segment that a new store gets unless another size is asked for.
const DEFAULT_SEGMENT: u64 = 4 << 20;

/// Room for a record's header and for whatever travels with a payload, where a store is made for
/// messages of a chosen size.
const BESIDES_PAYLOAD: u64 = 1 << 10;

/// The largest message that a store can be made for: an entry of the index has no bits for a
/// longer one.
const MOST_MESSAGE: u64 = (32 << 20) - BESIDES_PAYLOAD;

/// The least capacity of a new store, in bytes.
pub(crate) const MIN_CAPACITY: u64 = 64 << 10;

/// What to do about damage at or below the durable mark.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recovery {
    /// Refuse to open, naming every damaged range.
    #[default]
    Strict,
    /// Keep what is intact, record in the log what is lost, and go on. Where the store has no
    /// room to record it, it gets two segments more, and as many as it needs for messages that
    /// have to be copied again because their copies are lost. If that exceeds the capacity, the
    /// capacity is raised for good, and
    /// [`RecoveryReport::enlarged_to`](crate::RecoveryReport::enlarged_to) says so.
    Salvage,
}

/// Options of [`Store::open`](crate::Store::open). Those about the shape of the file are used
/// when it is created; later the file itself knows them.
#[derive(Clone, Debug)]
#[must_use]
pub struct Options {
    pub(crate) capacity: u64,
    pub(crate) segment_size: Option<u64>,
    pub(crate) max_message: Option<u64>,
    pub(crate) client_name: Option<String>,
    pub(crate) level: Level,
    pub(crate) recovery: Recovery,
    pub(crate) preallocate: bool,
    pub(crate) watermarks: Option<(u8, u8)>,
    pub(crate) lock_timeout: Duration,
    pub(crate) mode: Option<u32>,
    pub(crate) grow_to: Option<u64>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            capacity: 256 << 20,
            segment_size: None,
            max_message: None,
            client_name: None,
            level: Level::Os,
            recovery: Recovery::Strict,
            preallocate: false,
            watermarks: Some((50, 80)),
            lock_timeout: Duration::ZERO,
            mode: None,
            grow_to: None,
        }
    }
}

impl Options {
    /// 256 MiB, of which 16 MiB are there from the start, messages of up to 1 MiB with all that
    /// travels with them, level [`Level::Os`], strict recovery, growing on demand, watermarks at 50
    /// and 80 percent.
    pub fn new() -> Self {
        Self::default()
    }

    /// Most bytes the whole file may take, at least 64 KiB. Used at creation; see
    /// [`grow_to`](Self::grow_to) for a file that exists.
    pub fn capacity(mut self, bytes: u64) -> Self {
        self.capacity = bytes;
        self
    }

    /// Bytes of one segment: a multiple of 4096, at least 8192, at most a sixth of the capacity
    /// and 128 MiB. The largest record is a quarter of it. Default: a sixteenth of the capacity
    /// (less the superblocks), at most 4 MiB. A new file has four segments. Used at creation.
    ///
    /// Most applications use [`max_message`](Self::max_message) instead; only one of the two may
    /// be given.
    pub fn segment_size(mut self, bytes: u64) -> Self {
        self.segment_size = Some(bytes);
        self
    }

    /// The largest message that the store has to take, in bytes of payload, with up to 900 bytes
    /// besides for topic, keys, user tag and the like: 1 to 33,553,408 (32 MiB less 1 KiB). It
    /// decides the size of the file. A segment is four times the message plus 1 KiB, rounded up
    /// to 4 KiB and at least 8 KiB. A new file has four of them, since with fewer the ring cannot
    /// go round when the disk is full; the capacity must have room for six. Used at creation.
    ///
    /// For 64 KiB a new file has 1,052 KiB, for 1 MiB some 16 MiB.
    pub fn max_message(mut self, bytes: u64) -> Self {
        self.max_message = Some(bytes);
        self
    }

    /// The client that this store belongs to, at most 512 bytes. Without it, a new store makes up
    /// a name and an existing one keeps its own. An existing store refuses a different name.
    pub fn client_name(mut self, name: impl Into<String>) -> Self {
        self.client_name = Some(name.into());
        self
    }

    /// When messages become durable.
    pub fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    /// What to do about damage.
    pub fn recovery(mut self, recovery: Recovery) -> Self {
        self.recovery = recovery;
        self
    }

    /// Reserves the whole capacity at creation, so that a full disk can never matter later. The
    /// file remembers this and gives nothing back. Without it the file grows with the backlog,
    /// and when publishers are faster than the device frees segments; it is shortened again at a
    /// close, and after 30 seconds without a message. Used at creation.
    pub fn preallocate(mut self, yes: bool) -> Self {
        self.preallocate = yes;
        self
    }

    /// Reports when the backlog reaches `high` percent of the limit, and when it is back at `low`
    /// percent ([`Signal::Watermark`](crate::Signal::Watermark)). `low` must be below `high`, and
    /// `high` at most 100.
    pub fn watermarks(mut self, low: u8, high: u8) -> Self {
        self.watermarks = Some((low, high));
        self
    }

    /// Reports nothing about the size of the backlog.
    pub fn no_watermarks(mut self) -> Self {
        self.watermarks = None;
        self
    }

    /// How long an open waits, blocking its thread, while another process has the store open or a
    /// repair reads it. Zero unless set: the open is refused at once. If this very process has
    /// the store open, it waits a quarter of a second in any case, since another thread may just
    /// be dropping it.
    pub fn lock_timeout(mut self, wait: Duration) -> Self {
        self.lock_timeout = wait;
        self
    }

    /// Most bytes that an existing file may take from this open on, if that is more than it may
    /// take now. The file remembers it, so it is for good. A power cut leaves either the old or
    /// the new capacity in force. A preallocated file gets all of its blocks at once. Segments
    /// keep their size, and so does the largest record.
    ///
    /// A file with a larger capacity keeps it, and so does a file on a disk without room for
    /// more. Neither makes the open fail;
    /// [`RecoveryReport::growth`](crate::RecoveryReport::growth) says what happened.
    pub fn grow_to(mut self, bytes: u64) -> Self {
        self.grow_to = Some(bytes);
        self
    }

    /// The mode of the file, in place of 0600: from 0600 to 0777, whatever the umask says. Used
    /// at creation; an existing file keeps its own. An evacuation uses it too, but makes its file
    /// no more open than the store's own file is ([`NewFile`](crate::NewFile)).
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = Some(mode);
        self
    }

    /// Checks what does not depend on the store.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.mode.map_or(Ok(()), check_mode)?;
        match self.watermarks {
            Some((low, high)) if low >= high || high > 100 => Err(format!(
                "watermarks at {low} and {high} percent: the low one must be below the high one, and that at most 100"
            )),
            _ => Ok(()),
        }
    }

    /// Segment size and count for a new file.
    pub(crate) fn shape(&self) -> Result<Shape, String> {
        if self.capacity < MIN_CAPACITY {
            return Err(format!(
                "a capacity of {} bytes: the least is {MIN_CAPACITY}",
                self.capacity
            ));
        }
        let room = self.capacity.saturating_sub(SEGMENTS_AT);
        let size = match (self.segment_size, self.max_message) {
            (Some(_), Some(_)) => {
                return Err(
                    "a segment size and a largest message: one follows from the other".into(),
                );
            }
            (Some(size), None) => size,
            (None, Some(message)) => segment_for(message, self.capacity)?,
            (None, None) => {
                // The superblocks count towards the capacity, and must not cost a segment.
                let sixteenth = room / 16 / BLOCK * BLOCK;
                sixteenth.clamp(2 * BLOCK, DEFAULT_SEGMENT)
            }
        };
        if size == 0 || !size.is_multiple_of(BLOCK) {
            return Err(format!(
                "a segment of {size} bytes is not a multiple of {BLOCK}"
            ));
        }
        let cap_segments = room / size;
        if cap_segments < MIN_SEGMENTS || !geometry_is_sound(size, 1, cap_segments) {
            return Err(format!(
                "a capacity of {} bytes with segments of {size} bytes: at least {MIN_SEGMENTS} segments of 8 KiB to 128 MiB must fit, and at most 8 TiB in all",
                self.capacity
            ));
        }
        if self
            .client_name
            .as_ref()
            .is_some_and(|n| n.is_empty() || n.len() > MAX_NAME)
        {
            return Err(format!("a client name has 1 to {MAX_NAME} bytes"));
        }
        let segments = match self.preallocate {
            true => cap_segments,
            false => FIRST_SEGMENTS,
        };
        Ok(Shape {
            segment_size: size,
            cap_segments,
            segments,
        })
    }
}

/// Bytes of a segment that takes messages of this size.
fn segment_for(message: u64, capacity: u64) -> Result<u64, String> {
    if !(1..=MOST_MESSAGE).contains(&message) {
        return Err(format!(
            "a largest message of {message} bytes: from 1 to {MOST_MESSAGE} can be chosen"
        ));
    }
    let size = (4 * (message + BESIDES_PAYLOAD))
        .next_multiple_of(BLOCK)
        .max(2 * BLOCK);
    let least = (SEGMENTS_AT + MIN_SEGMENTS * size).max(MIN_CAPACITY);
    match capacity < least {
        true => Err(format!(
            "messages of up to {message} bytes need a capacity of at least {least} bytes, not {capacity}"
        )),
        false => Ok(size),
    }
}

/// The shape of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    pub(crate) segment_size: u64,
    pub(crate) cap_segments: u64,
    pub(crate) segments: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_default_shape_wastes_less_than_a_segment_and_has_at_least_sixteen_of_them() {
        for capacity in [64 << 10, 1 << 20, 5 << 20, 256 << 20, 1 << 30, 10 << 30] {
            let shape = Options::new().capacity(capacity).shape().unwrap();
            let used = SEGMENTS_AT + shape.cap_segments * shape.segment_size;
            assert!(used <= capacity && capacity - used < shape.segment_size);
            let segments = if capacity == 64 << 10 { 6 } else { 16 };
            assert!(shape.cap_segments >= segments, "{capacity}: {shape:?}");
        }
        let small = Options::new().capacity(64 << 10).shape().unwrap();
        assert_eq!(small.segment_size, 8 << 10);
    }

    /// New files once had 64 MiB, so that a hundred publishers took 6.4 GB before their first
    /// message.
    #[test]
    fn a_new_file_costs_little_more_than_sixteen_of_its_largest_messages() {
        let file = |shape: Shape| SEGMENTS_AT + shape.segments * shape.segment_size;
        for capacity in [256 << 20, 10 << 30] {
            let shape = Options::new().capacity(capacity).shape().unwrap();
            assert_eq!((shape.segment_size, shape.segments), (4 << 20, 4));
        }
        for message in [8 << 10, 64 << 10, 100_000, 1 << 20, 3 << 20, MOST_MESSAGE] {
            let options = Options::new().capacity(1 << 30).max_message(message);
            let shape = options.shape().unwrap();
            let besides = SEGMENTS_AT + 4 * (4 * BESIDES_PAYLOAD + BLOCK);
            assert!(
                file(shape) <= 16 * message + besides,
                "{message}: {shape:?}"
            );
            let room = crate::format::max_record(shape.segment_size);
            assert!(room >= message + 1000, "{message}: {shape:?}");
        }
        let shape = Options::new().max_message(64 << 10).shape().unwrap();
        assert_eq!(file(shape), 1052 << 10);
        assert_eq!(
            Options::new().max_message(1).shape().unwrap().segment_size,
            8 << 10
        );
    }

    #[test]
    fn a_largest_message_that_no_store_can_have_says_what_would_do() {
        let refused = |options: Options| options.shape().unwrap_err();
        for message in [0, MOST_MESSAGE + 1, u64::MAX] {
            let why = refused(Options::new().capacity(1 << 40).max_message(message));
            assert!(why.contains("33553408"), "{why}");
        }
        let why = refused(Options::new().capacity(64 << 10).max_message(64 << 10));
        let least: u64 = SEGMENTS_AT + 6 * 266_240;
        assert!(why.contains(&least.to_string()), "{why}");
        assert!(
            Options::new()
                .capacity(least)
                .max_message(64 << 10)
                .shape()
                .is_ok()
        );
        let both = Options::new().segment_size(8 << 10).max_message(1);
        assert!(refused(both).contains("one follows"));
    }
}
