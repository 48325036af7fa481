//! The mapped file: the only file of the workspace with `unsafe` in it.
//!
//! Contract. The file is mapped once, shared, from behind the superblocks over the whole length
//! that its capacity allows; the mapping never moves and is never resized. Only bytes from its
//! base to `len` are touched, and `len` covers only blocks that were allocated and written, so a
//! store cannot run into a hole (a full disk raises no SIGBUS). The file is only ever cut behind
//! `len`, which is lowered first. There is no Rust reference into the mapping: bytes are copied
//! in and out through raw pointers, so another process that scribbles over the file can spoil
//! data, which the checksums notice, but cannot break what the compiler assumes of references.
//! What remains is a file that somebody else cuts short while it is mapped: the kernel ends the
//! process then.
#![allow(unsafe_code)]

use std::io;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};

use super::file::MappedFile;
use super::{Device, Medium};
use crate::faults::calls::{self, Call};
use crate::format::BLOCK;
use crate::open::LockedFile;

pub(crate) struct Mapped {
    len: u64,
    shared: Arc<MappedFile>,
}

impl Mapped {
    /// Maps `file` from `base` to `cap`; it exists up to `len`.
    pub(crate) fn new(file: Arc<LockedFile>, base: u64, len: u64, cap: u64) -> io::Result<Self> {
        let size = usize::try_from(cap.saturating_sub(base)).map_err(io::Error::other)?;
        calls::check::<io::Error>(Call::Map)?;
        let map = MmapOptions::new().offset(base).len(size).map_raw(&**file)?;
        // A child of fork() must not inherit pages that it must never write.
        map.advise(Advice::DontFork)?;
        Ok(Mapped {
            len,
            shared: Arc::new(MappedFile {
                file,
                base,
                map: ManuallyDrop::new(map),
            }),
        })
    }

    /// A pointer to `len` bytes at `offset`.
    ///
    /// # Panics
    /// The range is outside what exists. That is a defect of the log, stopped before it does
    /// harm.
    #[inline]
    fn at(&self, offset: u64, len: usize) -> *mut u8 {
        let base = self.shared.base;
        let end = offset.checked_add(len as u64);
        assert!(
            offset >= base && end.is_some_and(|end| end <= self.len),
            "access to {len} bytes at {offset} outside of {base} to {}",
            self.len
        );
        // SAFETY: `base <= offset` and `offset + len <= self.len <= base + map.len()`, so the
        // result stays within the mapping, which lives as long as `self.shared`.
        unsafe { self.shared.map.as_mut_ptr().add((offset - base) as usize) }
    }
}

impl Medium for Mapped {
    fn len(&self) -> u64 {
        self.len
    }

    #[inline]
    fn read(&self, offset: u64, into: &mut [u8]) {
        let from = self.at(offset, into.len());
        // SAFETY: `at` proves `into.len()` bytes from `from` lie in the mapping over
        // allocated blocks; `into` is a Rust slice, so it cannot overlap the mapping. No
        // thread of this process writes meanwhile: stores need `&mut self`.
        unsafe { ptr::copy_nonoverlapping(from, into.as_mut_ptr(), into.len()) }
    }

    #[inline]
    fn write(&mut self, offset: u64, bytes: &[u8]) {
        let to = self.at(offset, bytes.len());
        // SAFETY: as in `read`, with `&mut self` against other threads of this process.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len()) }
    }

    #[inline]
    fn commit(&mut self, offset: u64, word: u64) {
        assert!(offset.is_multiple_of(8), "unaligned commit at {offset}");
        let to = self.at(offset, 8).cast::<u64>();
        // SAFETY: eight bytes within the mapping by `at`. They are aligned: a byte has the same
        // place in its page of memory as in its page of the file, and `offset` is a multiple of
        // eight. All accesses to the mapping are serialised by `&mut self`; the atomic only keeps
        // the compiler and the processor from moving earlier stores behind this one.
        unsafe { AtomicU64::from_ptr(to).store(word.to_le(), Ordering::Release) }
    }

    #[inline]
    fn write_committed(&mut self, offset: u64, record: &[u8]) {
        let (word, rest) = record.split_at(8);
        let mut first = [0; 8];
        first.copy_from_slice(word);
        assert!(offset.is_multiple_of(8), "unaligned commit at {offset}");
        let to = self.at(offset, record.len());
        // SAFETY: `at` proves that all of `record` fits, of which `rest` is what follows
        // the first eight bytes; otherwise as in `write`.
        unsafe { ptr::copy_nonoverlapping(rest.as_ptr(), to.add(8), rest.len()) }
        // SAFETY: as in `commit`, for the first eight of those bytes.
        let commit = unsafe { AtomicU64::from_ptr(to.cast()) };
        commit.store(u64::from_le_bytes(first).to_le(), Ordering::Release);
    }

    fn adopt(&mut self, len: u64) {
        self.len = len.min(self.shared.base + self.shared.map.len() as u64);
    }

    fn leave(&mut self, len: u64) {
        self.len = self.len.min(len);
    }

    fn device(&self) -> Arc<dyn Device> {
        self.shared.clone()
    }
}

impl MappedFile {
    /// Takes whole pages out of the page tables. The next access brings each back from the page
    /// cache, with everything that was stored in it.
    pub(super) fn unmap(&self, offset: u64, len: u64) {
        let (from, len) = ((offset - self.base) as usize, len as usize);
        assert!(from + len <= self.map.len(), "beyond the mapping");
        // SAFETY: the range lies in the mapping, which is shared and backed by a file: the advice
        // drops page table entries and no data.
        let advised = unsafe {
            self.map
                .unchecked_advise_range(UncheckedAdvice::DontNeed, from, len)
        };
        // If this is refused (locked memory), a sync is slower, and that is all.
        drop(advised);
    }
}

impl Drop for MappedFile {
    fn drop(&mut self) {
        // A child of fork() did not get the mapping. Whatever is at that address now is memory of
        // its own, which unmapping would take away from it.
        if !self.file.is_child() {
            // SAFETY: it is dropped once, here, and not used again.
            unsafe { ManuallyDrop::drop(&mut self.map) }
        }
    }
}

/// Tells a forked child from the process that opened the store: without a system call where the
/// kernel wipes a page in children, otherwise by the process id.
pub(crate) struct ForkGuard {
    page: Option<MmapMut>,
    /// In a PID namespace of its own a child may have the same number as its parent. The page is
    /// for that case.
    pid: u32,
}

impl ForkGuard {
    pub(crate) fn new() -> Self {
        let page = wiped_in_children()
            .inspect_err(|error| {
                tracing::debug!(%error, "forked children are told by their process id");
            })
            .ok();
        let pid = std::process::id();
        ForkGuard { page, pid }
    }

    #[inline]
    pub(crate) fn is_child(&self) -> bool {
        match &self.page {
            Some(page) => page[0] == 0,
            None => std::process::id() != self.pid,
        }
    }
}

/// Sandboxes and kernels before 4.14 do not know the advice.
fn wiped_in_children() -> io::Result<MmapMut> {
    const PAGE: usize = BLOCK as usize;
    let mut page = MmapMut::map_anon(PAGE)?;
    calls::check::<io::Error>(Call::WipeOnFork)?;
    // SAFETY: the range is exactly the anonymous private mapping just made, and the
    // advice changes nothing in this process.
    unsafe {
        rustix::mm::madvise(
            page.as_mut_ptr().cast(),
            PAGE,
            rustix::mm::Advice::LinuxWipeOnFork,
        )?;
    }
    page[0] = 1;
    Ok(page)
}
