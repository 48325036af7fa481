//! The file under a mapping: what is asked of it without touching the mapped bytes.

use std::fs::File;
use std::io;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::Arc;

use memmap2::{Advice, MmapRaw};
use rustix::fs::{FallocateFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::Device;
use crate::faults::calls::{self, Call};
use crate::faults::planted::{self, Bug};
use crate::format::BLOCK;
use crate::open::LockedFile;

/// A stretch of at least this length is taken out of the page tables before it is synced. Whoever
/// accesses it next takes a page fault for every 64 KiB.
const UNMAPPED: u64 = 64 << 10;

pub(super) struct MappedFile {
    pub(super) file: Arc<LockedFile>,
    /// The mapping begins here in the file.
    pub(super) base: u64,
    /// Unmapped by the process that mapped it, and not by its forked children.
    pub(super) map: ManuallyDrop<MmapRaw>,
}

impl Device for MappedFile {
    fn sync(&self) -> io::Result<()> {
        calls::check(Call::SyncData).and_then(|()| self.file.sync_data())
    }

    fn sync_range(&self, offset: u64, len: u64) -> io::Result<()> {
        // Before a page that is mapped for stores is written back it is write-protected, and each
        // time this interrupts all processors that run this program, including whoever appends,
        // for some 15 µs. Out of the page tables, thousands of pages are write-protected at once.
        let (from, to) = (
            offset.next_multiple_of(BLOCK),
            (offset + len) / BLOCK * BLOCK,
        );
        if from + UNMAPPED <= to {
            self.unmap(from, to - from);
        }
        uninterrupted(|| {
            calls::check::<io::Error>(Call::SyncRange)?;
            let (offset, len) = ((offset - self.base) as usize, len as usize);
            match planted::is(Bug::AsyncSync) {
                true => self.map.flush_async_range(offset, len),
                false => self.map.flush_range(offset, len),
            }
        })
    }

    fn write_around(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < bytes.len() {
            let rest = [io::IoSlice::new(&bytes[done..])];
            let at = offset + done as u64;
            let written = calls::check(Call::WriteAround).and_then(|()| {
                rustix::io::pwritev2(&**self.file, &rest, at, ReadWriteFlags::DSYNC)
            });
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(Errno::OPNOTSUPP | Errno::NOSYS | Errno::INVAL) => {
                    self.file.write_all_at(&bytes[done..], at)?;
                    return self.sync();
                }
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn reserve(&self, from: u64, to: u64) -> io::Result<()> {
        reserve(&self.file, from, to)
    }

    fn has_room(&self, len: u64, to: u64) -> io::Result<()> {
        has_room(&self.file, len, to)
    }

    fn fill_holes(&self, from: u64, to: u64) -> io::Result<()> {
        fill_holes(&self.file, from, to)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        calls::check(Call::Truncate).and_then(|()| self.file.set_len(len))
    }

    fn release(&self) {
        self.file.release();
    }

    fn file(&self) -> Option<&LockedFile> {
        Some(&self.file)
    }

    fn prefault(&self, offset: u64, len: u64) {
        // Kernels before 5.14 refuse this; then the first store to each page takes the fault.
        let from = (offset - self.base) as usize;
        let _ = self
            .map
            .advise_range(Advice::PopulateWrite, from, len as usize);
    }
}

/// Allocates `from..to` of a file and fills it with zeros. If that fails, the file is cut back to
/// `from`.
///
/// Filling by single blocks keeps the page cache in small folios, so that a later small
/// record dirties 4 KiB and not a megabyte (`docs/performance.md` §2).
pub(crate) fn reserve(file: &File, from: u64, to: u64) -> io::Result<()> {
    fill(file, from, to).inspect_err(|_| {
        // Best effort: what remains is above every length that the store knows.
        let _ = file.set_len(from);
    })
}

fn fill(file: &File, from: u64, to: u64) -> io::Result<()> {
    within_file_size_limit(to)?;
    if planted::is(Bug::SparseFile) {
        return file.set_len(to);
    }
    // Where nothing can be allocated ahead, writing the zeros allocates as well.
    allocate(file, from, to)?;
    let zeros = [0; BLOCK as usize];
    let mut at = from;
    while at < to {
        let n = (to - at).min(BLOCK) as usize;
        calls::check(Call::Fill).and_then(|()| file.write_all_at(&zeros[..n], at))?;
        at += n as u64;
    }
    Ok(())
}

/// Allocates a range; false: this file system cannot do it.
fn allocate(file: &File, from: u64, to: u64) -> io::Result<bool> {
    let mut can = true;
    uninterrupted(|| {
        let allocated = calls::check(Call::Allocate)
            .and_then(|()| rustix::fs::fallocate(file, FallocateFlags::empty(), from, to - from));
        match allocated {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => {
                can = false;
                Ok(())
            }
            Err(e) => Err(e.into()),
        }
    })?;
    Ok(can)
}

/// Checks whether a file of `len` bytes can be made `to` bytes long, as far as that can be told
/// in advance.
///
/// # Errors
/// No space, or the file size limit.
pub(crate) fn has_room(file: &File, len: u64, to: u64) -> io::Result<()> {
    within_file_size_limit(to)?;
    is_left(file, to.saturating_sub(len))
}

/// Checks that this many bytes are free on the file's file system.
fn is_left(file: &File, bytes: u64) -> io::Result<()> {
    let volume = rustix::fs::fstatvfs(file)?;
    let left = volume.f_bavail.saturating_mul(volume.f_frsize);
    match volume.f_blocks > 0 && bytes > left {
        true => Err(Errno::NOSPC.into()),
        false => Ok(()),
    }
}

/// Gives blocks to the holes of a range. Only zeros that were read as zeros are written: if a
/// file system calls something a hole that is none, its contents stay as they were.
fn fill_holes(file: &File, from: u64, to: u64) -> io::Result<()> {
    let holes = holes(file, from, to)?;
    if holes.is_empty() {
        return Ok(());
    }
    // A file that claims terabytes must not use up the disk before it is refused. What was
    // allocated and not written since counts as a hole, but already has its blocks.
    let metadata = file.metadata()?;
    let missing = metadata.len().saturating_sub(metadata.blocks() * 512);
    let bytes: u64 = holes.iter().map(|hole| hole.end - hole.start).sum();
    is_left(file, bytes.min(missing))?;
    for hole in holes {
        within_file_size_limit(hole.end)?;
        if allocate(file, hole.start, hole.end)? {
            continue;
        }
        let mut block = [0; BLOCK as usize];
        let mut at = hole.start;
        while at < hole.end {
            let block = &mut block[..(hole.end - at).min(BLOCK) as usize];
            file.read_exact_at(block, at)?;
            calls::check(Call::Fill).and_then(|()| file.write_all_at(block, at))?;
            at += block.len() as u64;
        }
    }
    Ok(())
}

/// The holes of a range; none if the file system cannot tell.
fn holes(file: &File, from: u64, to: u64) -> io::Result<Vec<Range<u64>>> {
    let mut holes = Vec::new();
    let mut at = from;
    while at < to {
        let Some(start) = found(rustix::fs::seek(file, SeekFrom::Hole(at)))? else {
            break;
        };
        let end = found(rustix::fs::seek(file, SeekFrom::Data(start)))?;
        let hole = start..end.unwrap_or(to).min(to);
        if hole.is_empty() {
            break;
        }
        at = hole.end;
        holes.push(hole);
    }
    Ok(holes)
}

/// `None`: there is none up to the end of the file, or this file system cannot tell.
fn found(sought: Result<u64, Errno>) -> io::Result<Option<u64>> {
    match sought {
        Ok(at) => Ok(Some(at)),
        Err(Errno::NXIO | Errno::INVAL | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Repeats a call that a signal interrupted before it did anything, since that says nothing about
/// the device.
fn uninterrupted(mut call: impl FnMut() -> io::Result<()>) -> io::Result<()> {
    loop {
        match call() {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            done => return done,
        }
    }
}

/// A write beyond RLIMIT_FSIZE raises SIGXFSZ, which kills the process; so the limit is checked
/// first.
fn within_file_size_limit(len: u64) -> io::Result<()> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Fsize).current;
    match limit {
        Some(limit) if len > limit => Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("the file size limit of this process is {limit} bytes"),
        )),
        _ => Ok(()),
    }
}

#[cfg(all(test, feature = "testkit"))]
mod tests {
    use super::*;
    use crate::faults::calls::{FailingCalls, fail_calls};
    use crate::medium::{Mapped, Medium};

    /// An interrupted `fallocate` once counted as a full disk, and an interrupted `msync` as a
    /// failed sync, for good.
    #[test]
    fn a_call_that_a_signal_interrupted_is_made_again() {
        let file = tempfile::tempfile().unwrap();
        let interrupt = |call| {
            fail_calls(Some(FailingCalls {
                call,
                after: 0,
                for_ever: false,
                errno: Errno::INTR.raw_os_error(),
            }))
        };
        interrupt(Call::Allocate);
        reserve(&file, 0, 8192).unwrap();
        let mut mapped = Mapped::new(LockedFile::of(file), 4096, 8192, 8192).unwrap();
        mapped.write(4096, b"x");
        assert_eq!(interrupt(Call::SyncRange), 1);
        mapped.device().sync_range(4096, 4096).unwrap();
        assert_eq!(fail_calls(None), 1);
    }

    /// A stretch that is taken out of the page tables for its sync loses no byte, whether stored
    /// before or after, and can be stored to as before. This must also hold where the mapping
    /// begins within a page, as it does on a machine whose pages are larger than the superblocks.
    #[test]
    fn what_was_unmapped_for_a_sync_is_there() {
        let len = 4 * UNMAPPED;
        for base in [0, 8, 1024, BLOCK] {
            let file = tempfile::tempfile().unwrap();
            reserve(&file, 0, len).unwrap();
            let reader = file.try_clone().unwrap();
            let mut mapped = Mapped::new(LockedFile::of(file), base, len, len).unwrap();
            let mut bytes: Vec<u8> = (base..len).map(|n| (n / 7) as u8).collect();
            mapped.write(base, &bytes);
            mapped.device().prefault(base, len - base);
            mapped
                .device()
                .sync_range(base + 100, len - base - 200)
                .unwrap();
            mapped.write(UNMAPPED, b"again");
            mapped.commit(UNMAPPED + 8, 7);
            let again = &mut bytes[(UNMAPPED - base) as usize..][..16];
            again[..5].copy_from_slice(b"again");
            again[8..].copy_from_slice(&7u64.to_le_bytes());
            let mut read = vec![0; (len - base) as usize];
            mapped.read(base, &mut read);
            assert!(read == bytes, "mapped from {base}");
            reader.read_exact_at(&mut read, base).unwrap();
            assert!(read == bytes, "the file, mapped from {base}");
        }
    }

    /// What is written around the mapping must not also be in the mapping.
    #[test]
    #[should_panic(expected = "outside of 8192 to 16384")]
    fn what_is_written_around_the_mapping_is_not_in_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(16384).unwrap();
        let reader = file.try_clone().unwrap();
        let mut mapped = Mapped::new(LockedFile::of(file), 8192, 16384, 32768).unwrap();
        mapped.write(8192, b"first");
        mapped.write(16379, b"last.");
        let mut read = [0; 5];
        reader.read_exact_at(&mut read, 8192).unwrap();
        assert_eq!(&read, b"first");
        mapped.device().sync_range(8192, 8192).unwrap();
        mapped.read(8191, &mut read);
    }
}
