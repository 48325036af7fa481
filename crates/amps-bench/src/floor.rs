//! The floors: the least work that could do the same job, without any of a store's duties.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::Path;

use amps_store::testkit::{Mapping, MappingSync};

use crate::TOPIC;

/// Bytes before the topic: checksum, length, sequence.
const HEADER: usize = 16;
const HEAD: usize = HEADER + TOPIC.len();
const SMALL: usize = 1024;

/// F2: copy and crc32fast into a ring in a shared file mapping, filled by 4 KiB writes and
/// populated in advance.
pub(crate) struct Ring {
    map: Mapping,
    len: u64,
    at: u64,
    sequence: u64,
    scratch: [u8; HEAD + SMALL],
}

/// Where a record is in the ring.
#[derive(Clone, Copy)]
pub(crate) struct Spot {
    pub(crate) offset: u64,
    pub(crate) len: u32,
}

impl Ring {
    pub(crate) fn create(path: &Path, len: u64) -> io::Result<Self> {
        Ok(Self::over(Mapping::create(path, len)?, len))
    }

    /// Maps an existing ring again.
    pub(crate) fn open(path: &Path, len: u64) -> io::Result<Self> {
        Ok(Self::over(Mapping::open(path, len)?, len))
    }

    fn over(map: Mapping, len: u64) -> Self {
        let mut scratch = [0; HEAD + SMALL];
        scratch[HEADER..HEAD].copy_from_slice(TOPIC.as_bytes());
        Ring {
            map,
            len,
            at: 0,
            sequence: 0,
            scratch,
        }
    }

    pub(crate) fn syncer(&self) -> MappingSync {
        self.map.syncer()
    }

    #[inline]
    pub(crate) fn append(&mut self, payload: &[u8]) -> Spot {
        let len = HEAD + payload.len();
        let stride = len.next_multiple_of(8) as u64;
        if self.at + stride > self.len {
            self.at = 0;
        }
        let offset = self.at;
        self.at += stride;
        self.sequence += 1;
        self.scratch[4..8].copy_from_slice(&(len as u32).to_le_bytes());
        self.scratch[8..16].copy_from_slice(&self.sequence.to_le_bytes());
        if payload.len() <= SMALL {
            self.scratch[HEAD..len].copy_from_slice(payload);
            let crc = crc32fast::hash(&self.scratch[4..len]);
            self.scratch[..4].copy_from_slice(&crc.to_le_bytes());
            self.map.write(offset, &self.scratch[..len]);
        } else {
            let mut crc = crc32fast::Hasher::new();
            crc.update(&self.scratch[4..HEAD]);
            crc.update(payload);
            self.scratch[..4].copy_from_slice(&crc.finalize().to_le_bytes());
            self.map.write(offset, &self.scratch[..HEAD]);
            self.map.write(offset + HEAD as u64, payload);
        }
        Spot {
            offset,
            len: len as u32,
        }
    }

    /// Copies a record out and checks it.
    #[inline]
    pub(crate) fn get(&self, spot: Spot, into: &mut Vec<u8>) -> bool {
        let len = spot.len as usize;
        if into.len() < len {
            into.resize(len, 0);
        }
        self.map.read(spot.offset, &mut into[..len]);
        is_intact(&into[..len])
    }

    /// Walks the first `count` records, and checks and indexes each. It reads through a window,
    /// as the store does, since there is no safe reference into a shared mapping.
    pub(crate) fn scan(&self, count: u64) -> Option<Vec<Spot>> {
        const WINDOW: usize = 64 << 10;
        let mut index = Vec::with_capacity(count as usize);
        let mut window = vec![0; WINDOW];
        let mut base = 0;
        self.map.read(base, &mut window);
        let mut offset = 0;
        while (index.len() as u64) < count {
            let at = (offset - base) as usize;
            let len = match window.get(at..at + HEADER) {
                Some(b) => u32::from_le_bytes([b[4], b[5], b[6], b[7]]),
                None => u32::MAX,
            };
            let Some(record) = window.get(at..at.saturating_add(len as usize)) else {
                if base == offset {
                    return None;
                }
                base = offset;
                let size = (self.len - base).min(WINDOW as u64) as usize;
                self.map.read(base, &mut window[..size]);
                continue;
            };
            if record.len() < HEAD || !is_intact(record) {
                return None;
            }
            index.push(Spot { offset, len });
            offset += u64::from(len).next_multiple_of(8);
        }
        Some(index)
    }
}

#[inline]
fn is_intact(record: &[u8]) -> bool {
    let crc = u32::from_le_bytes([record[0], record[1], record[2], record[3]]);
    crc32fast::hash(&record[4..]) == crc
}

/// Small durable writes without a mapping: one block to a preallocated file by
/// `pwritev2(RWF_DSYNC)`.
pub(crate) struct DirectLog {
    file: File,
    len: u64,
    at: u64,
}

impl DirectLog {
    pub(crate) fn create(path: &Path, len: u64) -> io::Result<Self> {
        // Filled in the store's own way, so that both write into blocks that exist.
        drop(Mapping::create(path, len)?);
        let file = OpenOptions::new().read(true).write(true).open(path)?;
        file.sync_all()?;
        Ok(DirectLog { file, len, at: 0 })
    }

    /// Writes `bytes` after the last ones. When this returns they are on the device.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.at + bytes.len() as u64 > self.len {
            self.at = 0;
        }
        let mut done = 0;
        while done < bytes.len() {
            let rest = [io::IoSlice::new(&bytes[done..])];
            let at = self.at + done as u64;
            done += rustix::io::pwritev2(&self.file, &rest, at, rustix::io::ReadWriteFlags::DSYNC)?;
        }
        self.at += bytes.len() as u64;
        Ok(())
    }
}
