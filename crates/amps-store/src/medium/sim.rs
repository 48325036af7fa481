//! A disk that forgets: what was written can be read at once, but only what was synced survives.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{Device, Medium};
use crate::faults::planted::{self, Bug};

/// A sector is written as a whole or not at all.
const SECTOR: usize = 512;
/// The kernel writes back whole pages.
const PAGE: usize = 4096;

/// A source of choices: one seed, or one tape, determines one run.
#[derive(Clone, Debug)]
pub struct Rng {
    state: u64,
    tape: VecDeque<u8>,
}

impl Rng {
    /// The choices that follow from this seed.
    pub fn new(seed: u64) -> Self {
        Rng {
            state: seed,
            tape: VecDeque::new(),
        }
    }

    /// Choices read from these bytes, each taking as few as it needs, so that a fuzzer that
    /// changes one byte changes one choice. Behind their end the choices are those of seed 0.
    pub fn from_tape(bytes: &[u8]) -> Self {
        Rng {
            state: 0,
            tape: bytes.iter().copied().collect(),
        }
    }

    /// Whether no byte of a tape is left.
    pub fn is_played(&self) -> bool {
        self.tape.is_empty()
    }

    /// 64 fresh bits.
    pub fn bits(&mut self) -> u64 {
        if !self.tape.is_empty() {
            return self.play(8);
        }
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `n` (0 for 0).
    pub fn below(&mut self, n: u64) -> u64 {
        match n {
            0 => 0,
            _ if self.tape.is_empty() => self.bits() % n,
            1..=256 => self.play(1) % n,
            257..=65536 => self.play(2) % n,
            _ => self.play(8) % n,
        }
    }

    fn play(&mut self, bytes: usize) -> u64 {
        (0..bytes).fold(0, |value, _| {
            value << 8 | u64::from(self.tape.pop_front().unwrap_or(0))
        })
    }

    /// True once in `n`.
    pub fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }
}

/// A failure to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The n-th sync from now (0: the next) fails once. An arbitrary part of what it should have
    /// written is lost, and the simulated kernel takes it for clean. The kernel tells of this
    /// once, to whoever asks first: another sync or write around the mapping that begins and ends
    /// while this one is under way may be told instead.
    Sync(u64),
    /// The n-th write around the mapping fails.
    WriteAround(u64),
    /// The n-th extension fails for lack of space.
    Reserve(u64),
    /// The n-th cut of the file's length fails.
    Truncate(u64),
}

/// What a power cut leaves of pages that were written but not synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// Nothing that was not synced.
    None,
    /// Everything.
    All,
    /// Any subset of pages.
    Pages,
    /// Any subset of sectors, in any version that they have had since the last sync.
    Sectors,
}

/// A sector that was written and not synced.
#[derive(Clone, Default)]
struct Dirty {
    /// Numbers of the first write that made it dirty, and of the last one.
    first: u64,
    last: u64,
    /// What it held before later writes, each with the number of that write.
    versions: Vec<(u64, [u8; SECTOR])>,
}

#[derive(Clone, Default)]
struct Image {
    seen: Vec<u8>,
    durable: Vec<u8>,
    /// Sectors written since the last sync.
    dirty: BTreeMap<usize, Dirty>,
    /// Counts the writes.
    writes: u64,
    /// A write-back failed, and nobody has been told of it yet.
    untold: bool,
    faults: Vec<Fault>,
    syncs: u64,
    around: u64,
    reserves: u64,
    truncates: u64,
    written_back: u64,
    room: Option<u64>,
    /// The disk before each call, if that is wanted.
    before_calls: Option<Vec<SimDisk>>,
}

/// A handle to a simulated disk with one file on it. Clones share it.
#[derive(Clone, Default)]
pub struct SimDisk {
    image: Arc<Mutex<Image>>,
}

impl SimDisk {
    /// An empty disk.
    pub fn new() -> Self {
        Self::default()
    }

    fn image(&self) -> MutexGuard<'_, Image> {
        self.image.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An independent disk with the same contents, including what is not durable yet.
    pub fn fork(&self) -> SimDisk {
        let mut image = self.image().clone();
        image.before_calls = None;
        SimDisk {
            image: Arc::new(Mutex::new(image)),
        }
    }

    /// Takes over the contents of another disk.
    pub fn become_like(&self, other: &SimDisk) {
        let image = other.image().clone();
        *self.image() = image;
    }

    /// From now on, keeps a [`fork`](Self::fork) of the disk as it was before each call that
    /// syncs, writes around the mapping, or changes the length.
    pub fn keep_moments(&self) {
        self.image().before_calls = Some(Vec::new());
    }

    /// The forks that were kept, oldest first. From then on none is kept any more.
    pub fn take_moments(&self) -> Vec<SimDisk> {
        self.image().before_calls.take().unwrap_or_default()
    }

    /// Called before each such call.
    fn moment(&self) {
        if self.image().before_calls.is_some() {
            let fork = self.fork();
            self.image().before_calls.get_or_insert_default().push(fork);
        }
    }

    /// Plans a failure.
    pub fn fail(&self, fault: Fault) {
        let mut image = self.image();
        let fault = match fault {
            Fault::Sync(n) => Fault::Sync(image.syncs + n),
            Fault::WriteAround(n) => Fault::WriteAround(image.around + n),
            Fault::Reserve(n) => Fault::Reserve(image.reserves + n),
            Fault::Truncate(n) => Fault::Truncate(image.truncates + n),
        };
        image.faults.push(fault);
    }

    /// Forgets planned failures.
    pub fn clear_faults(&self) {
        self.image().faults.clear();
    }

    /// Planned failures that no call has met yet.
    pub fn planned_faults(&self) -> usize {
        self.image().faults.len()
    }

    /// Limits the bytes that the file may have; `None`: no limit.
    pub fn limit(&self, bytes: Option<u64>) {
        self.image().room = bytes;
    }

    /// Syncs that were asked for so far.
    pub fn syncs(&self) -> u64 {
        self.image().syncs
    }

    /// Bytes that syncs have written so far.
    pub fn written_back(&self) -> u64 {
        self.image().written_back
    }

    /// Cuts the power: what was synced is left, and of the sectors written since, those for whose
    /// offset `keep` says so.
    pub fn cut_sectors(&self, keep: impl Fn(u64) -> bool) {
        let mut image = self.image();
        let image = &mut *image;
        image.durable.resize(image.seen.len(), 0);
        for sector in std::mem::take(&mut image.dirty).into_keys() {
            let at = sector * SECTOR;
            if at + SECTOR <= image.seen.len() && keep(at as u64) {
                image.durable[at..at + SECTOR].copy_from_slice(&image.seen[at..at + SECTOR]);
            }
        }
        image.seen = image.durable.clone();
        image.faults.clear();
    }

    /// Cuts the power: what was synced is left, and of the rest as much as `cut` says. Every
    /// store on this disk must be dropped first.
    pub fn power_cut(&self, cut: Cut, rng: &mut Rng) {
        let mut image = self.image();
        let image = &mut *image;
        // The length belongs to the journal of the file system, so it is the present one or that
        // of the last sync. Behind a cut that was not synced stands what stood there before.
        let as_seen = match cut {
            Cut::None => false,
            Cut::All => true,
            Cut::Pages | Cut::Sectors => rng.one_in(2),
        };
        if as_seen {
            image.durable.resize(image.seen.len(), 0);
        }
        let len = image.durable.len().min(image.seen.len());
        let mut page = (usize::MAX, false);
        for (&sector, Dirty { versions, .. }) in &image.dirty {
            let at = sector * SECTOR;
            if at + SECTOR > len {
                continue;
            }
            if page.0 != at / PAGE {
                page = (at / PAGE, rng.one_in(2));
            }
            let new: Option<Vec<u8>> = match cut {
                Cut::None => None,
                Cut::All => Some(image.seen[at..at + SECTOR].to_vec()),
                Cut::Pages => page.1.then(|| image.seen[at..at + SECTOR].to_vec()),
                Cut::Sectors => match rng.below(2 + versions.len() as u64) {
                    0 => None,
                    1 => Some(image.seen[at..at + SECTOR].to_vec()),
                    n => Some(versions[n as usize - 2].1.to_vec()),
                },
            };
            if let Some(new) = new {
                image.durable[at..at + SECTOR].copy_from_slice(&new);
            }
        }
        image.dirty.clear();
        image.untold = false;
        image.seen = image.durable.clone();
        image.faults.clear();
    }

    /// The bytes as a reader sees them now.
    pub fn bytes(&self) -> Vec<u8> {
        self.image().seen.clone()
    }

    /// Looks at the bytes as a reader sees them now, and at those that a power cut would leave if
    /// nothing more were written back.
    pub(crate) fn look<T>(&self, at: impl FnOnce(&[u8], &[u8]) -> T) -> T {
        let image = self.image();
        at(&image.seen, &image.durable)
    }

    /// Changes bytes behind the store's back, durably.
    pub fn scribble(&self, offset: u64, change: impl FnOnce(&mut [u8])) {
        let mut image = self.image();
        let image = &mut *image;
        change(&mut image.seen[offset as usize..]);
        image.durable = image.seen.clone();
        image.dirty.clear();
    }

    /// Replaces the contents of the file, as restoring an old copy does.
    pub fn restore(&self, bytes: Vec<u8>) {
        let mut image = self.image();
        image.seen = bytes.clone();
        image.durable = bytes;
        image.dirty.clear();
    }

    /// Makes what was written into whole pages durable: as it is now or, for a sync that was
    /// begun earlier, as it was then.
    fn sync_pages(&self, from: usize, to: usize, begun: Option<&Begun>) -> io::Result<()> {
        self.moment();
        let mut image = self.image();
        let image = &mut *image;
        let number = image.syncs;
        image.syncs += 1;
        if planted::is(Bug::NoSync) {
            return Ok(());
        }
        let mut rng = Rng::new(number);
        let told = image.is_told(begun.is_some(), &mut rng);
        let failed = image.hit(Fault::Sync(number));
        // Growth is needed to read what was synced. A shorter length becomes durable with a sync
        // of everything.
        if image.durable.len() < image.seen.len() || (to == usize::MAX && !failed) {
            image.durable.resize(image.seen.len(), 0);
        }
        let sectors = from / SECTOR..to.div_ceil(SECTOR);
        let mut synced: Vec<usize> = image.dirty.range(sectors).map(|(s, _)| *s).collect();
        if let Some(begun) = begun {
            // What was clean when the sync began, or was cleaned since, does not concern it.
            synced.retain(|s| image.dirty[s].first <= begun.writes);
        }
        if planted::is(Bug::ShortSync) {
            let last = synced.pop();
            image.dirty.retain(|sector, _| Some(*sector) != last);
        }
        for sector in synced {
            image.write_back(sector, begun, failed, &mut rng);
        }
        match failed || told {
            true => Err(io::Error::other("simulated write-back error")),
            false => Ok(()),
        }
    }

    /// Begins a sync: records what it vouches for.
    fn begin(&self) -> Begun {
        let mut image = self.image();
        let image = &mut *image;
        let number = image.syncs;
        let begun = Begun {
            disk: self.clone(),
            writes: image.writes,
            seen: image
                .dirty
                .keys()
                .filter_map(|sector| Some((*sector, image.sector(*sector)?)))
                .collect(),
        };
        // It is written back while others go on, and whoever of them asks first is told of the
        // failure.
        if image.hit(Fault::Sync(number)) {
            image.syncs += 1;
            image.untold = true;
            if image.durable.len() < image.seen.len() {
                image.durable.resize(image.seen.len(), 0);
            }
            let mut rng = Rng::new(number);
            for sector in begun.seen.keys() {
                image.write_back(*sector, None, true, &mut rng);
            }
        }
        begun
    }

    pub(crate) fn medium(&self) -> Box<dyn Medium> {
        // Whoever opens the file now hears nothing of earlier failures.
        self.image().untold = false;
        Box::new(SimMedium {
            disk: self.clone(),
            len: self.image().seen.len() as u64,
        })
    }
}

impl Image {
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let (from, to) = (offset as usize, offset as usize + bytes.len());
        self.writes += 1;
        let write = self.writes;
        for sector in from / SECTOR..to.div_ceil(SECTOR) {
            let before = self.sector(sector);
            let dirty = self.dirty.entry(sector).or_insert_with(|| Dirty {
                first: write,
                ..Dirty::default()
            });
            if let Some(before) = before
                && dirty.first < write
                && dirty.versions.len() < 3
            {
                dirty.versions.push((write, before));
            }
            dirty.last = write;
        }
        self.seen[from..to].copy_from_slice(bytes);
    }

    fn sector(&self, sector: usize) -> Option<[u8; SECTOR]> {
        let bytes = self.seen.get(sector * SECTOR..(sector + 1) * SECTOR)?;
        bytes.try_into().ok()
    }

    /// Writes a dirty sector back, as it is or as it was when a sync began; or fails to, and
    /// takes it for clean all the same.
    fn write_back(&mut self, sector: usize, begun: Option<&Begun>, failed: bool, rng: &mut Rng) {
        let Some(mut dirty) = self.dirty.remove(&sector) else {
            return;
        };
        self.written_back += SECTOR as u64;
        let is_new = begun.is_some_and(|begun| dirty.last > begun.writes);
        // While the sync runs, either version may be written.
        let then = begun.filter(|_| is_new && rng.one_in(2));
        let bytes = match then {
            Some(begun) => begun.seen.get(&sector).copied(),
            None => self.sector(sector),
        };
        let at = sector * SECTOR;
        if let (Some(bytes), true) = (bytes, !failed || rng.one_in(2)) {
            self.durable[at..at + SECTOR].copy_from_slice(&bytes);
        }
        if let (true, Some(begun)) = (is_new, begun) {
            dirty.first = begun.writes + 1;
            dirty.versions.retain(|(write, _)| *write > begun.writes);
            self.dirty.insert(sector, dirty);
        }
    }

    /// Whether this call is told of a write-back that failed. A call that began after that sync
    /// and ends before it may ask first.
    fn is_told(&mut self, is_own: bool, rng: &mut Rng) -> bool {
        let told = self.untold && (is_own || rng.one_in(2));
        self.untold &= !told;
        told
    }

    fn cut(&mut self, len: usize) {
        self.seen.truncate(len);
        self.dirty.retain(|sector, _| (sector + 1) * SECTOR <= len);
    }

    fn hit(&mut self, fault: Fault) -> bool {
        let before = self.faults.len();
        self.faults.retain(|f| *f != fault);
        self.faults.len() < before
    }
}

/// A sync that was begun: it vouches for what had been written by then.
struct Begun {
    disk: SimDisk,
    /// The number of writes up to then.
    writes: u64,
    /// The sectors that were dirty then, with their contents.
    seen: BTreeMap<usize, [u8; SECTOR]>,
}

impl Begun {
    fn sync_pages(&self, from: usize, to: usize) -> io::Result<()> {
        self.disk.sync_pages(from, to, Some(self))
    }
}

impl Device for Begun {
    fn sync(&self) -> io::Result<()> {
        self.sync_pages(0, usize::MAX)
    }

    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let (from, to) = pages(offset, len);
        self.sync_pages(from, to)
    }

    fn write_around(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.disk.write_around(offset, bytes)
    }

    fn has_room(&self, len: u64, to: u64) -> io::Result<()> {
        self.disk.has_room(len, to)
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        self.disk.reserve(from, to)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.disk.truncate(len)
    }

    fn release(&self) {}

    fn prefault(&self, _offset: u64, _len: u64) {}
}

/// The whole pages that these bytes lie in.
fn pages(offset: u64, len: u64) -> (usize, usize) {
    let (from, to) = (offset as usize, (offset + len) as usize);
    (from / PAGE * PAGE, to.next_multiple_of(PAGE))
}

struct SimMedium {
    disk: SimDisk,
    len: u64,
}

impl Medium for SimMedium {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, offset: u64, into: &mut [u8]) {
        assert!(
            offset + into.len() as u64 <= self.len,
            "read beyond the end"
        );
        into.copy_from_slice(&self.disk.image().seen[offset as usize..][..into.len()]);
    }

    fn write(&mut self, offset: u64, bytes: &[u8]) {
        assert!(
            offset + bytes.len() as u64 <= self.len,
            "write beyond the end"
        );
        self.disk.image().write(offset, bytes);
    }

    fn commit(&mut self, offset: u64, word: u64) {
        assert!(offset.is_multiple_of(8), "unaligned commit");
        self.write(offset, &word.to_le_bytes());
    }

    fn adopt(&mut self, len: u64) {
        self.len = len;
    }

    fn leave(&mut self, len: u64) {
        self.len = self.len.min(len);
    }

    fn device(&self) -> Arc<dyn Device> {
        Arc::new(self.disk.clone())
    }
}

impl Device for SimDisk {
    fn sync(&self) -> io::Result<()> {
        self.sync_pages(0, usize::MAX, None)
    }

    fn begin_sync(&self) -> Option<Arc<dyn Device>> {
        Some(Arc::new(self.begin()))
    }

    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        let (from, to) = pages(offset, len);
        self.sync_pages(from, to, None)
    }

    fn write_around(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.moment();
        let mut image = self.image();
        let number = image.around;
        image.around += 1;
        let bytes = match planted::is(Bug::SplitHeader) {
            true => &bytes[..bytes.len() / 2],
            false => bytes,
        };
        let told = image.is_told(false, &mut Rng::new(number));
        if image.hit(Fault::WriteAround(number)) {
            // Some sectors may have been written.
            let half = bytes.len() / 2 / SECTOR * SECTOR;
            image.seen[offset as usize..][..half].copy_from_slice(&bytes[..half]);
            image.durable[offset as usize..][..half].copy_from_slice(&bytes[..half]);
            return Err(io::Error::other("simulated write error"));
        }
        image.seen[offset as usize..][..bytes.len()].copy_from_slice(bytes);
        let end = offset as usize + bytes.len();
        if image.durable.len() < end {
            image.durable.resize(end, 0);
        }
        image.durable[offset as usize..end].copy_from_slice(bytes);
        for sector in offset as usize / SECTOR..end.div_ceil(SECTOR) {
            image.dirty.remove(&sector);
        }
        match told {
            true => Err(io::Error::other("simulated write-back error")),
            false => Ok(()),
        }
    }

    fn has_room(&self, _len: u64, to: u64) -> io::Result<()> {
        match self.image().room.is_some_and(|room| to > room) {
            true => Err(io::ErrorKind::StorageFull.into()),
            false => Ok(()),
        }
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        self.moment();
        let mut image = self.image();
        let number = image.reserves;
        image.reserves += 1;
        if image.hit(Fault::Reserve(number)) || image.room.is_some_and(|room| to > room) {
            image.cut(from as usize);
            return Err(io::ErrorKind::StorageFull.into());
        }
        let len = image.seen.len().max(to as usize);
        image.seen.resize(len, 0);
        image.write(from, &vec![0; (to - from) as usize]);
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.moment();
        let mut image = self.image();
        let number = image.truncates;
        image.truncates += 1;
        if image.hit(Fault::Truncate(number)) {
            return Err(io::Error::other("simulated error of a truncation"));
        }
        image.cut(len as usize);
        Ok(())
    }

    fn release(&self) {}

    fn prefault(&self, _offset: u64, _len: u64) {}
}
