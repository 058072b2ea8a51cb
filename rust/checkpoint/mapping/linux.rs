//! Maps whole files on Linux.

use std::ffi::c_void;
use std::fs::File;
use std::io::IoSliceMut;
use std::ptr::{NonNull, null_mut};
use std::slice;

use rustix::io::{ReadWriteFlags, preadv2};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::sigbus::Guard;
pub(super) use super::sigbus::unblock_sigbus;

/// The distance of the bytes by which the page cache is sampled.
const SAMPLE_DISTANCE: usize = 1 << 20;

/// As much as the kernel maps at once where the page cache has it in one piece.
const LARGE_PAGE: usize = 2 << 20;

/// Whether a range is in the page cache, judged by samples from its last byte backwards: the kernel fetches pages in
/// their order and many at a time, and fetches the few that are missing nevertheless when they are accessed. The answer
/// is no where the file system cannot tell.
pub(super) fn is_in_page_cache(file: &File, offset: u64, length: usize) -> bool {
    (0..length).rev().step_by(SAMPLE_DISTANCE).all(|byte| {
        let mut sample = [0];
        offset.checked_add(byte as u64).is_some_and(|offset| {
            preadv2(file, &mut [IoSliceMut::new(&mut sample)], offset, ReadWriteFlags::NOWAIT) == Ok(1)
        })
    })
}

/// A whole file in the address space of this process, which takes no memory until pages are accessed.
#[derive(Debug)]
pub(super) struct Mapping {
    // Dropped first, so that the handler never handles faults at addresses that no longer belong to the mapping.
    guard: Guard,
    addresses: Addresses,
}

impl Mapping {
    /// Maps `file`; returns nothing if the system refuses or if the signal of a shortened file cannot be handled.
    pub(super) fn new(file: &File) -> Option<Self> {
        let addresses = Addresses::map(file)?;
        let guard = Guard::new(addresses.start.addr().get(), addresses.length)?;
        Some(Self { guard, addresses })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let Addresses { start, length } = self.addresses;
        // SAFETY: the bytes are mapped as long as `self` lives, no longer than an address space, and this process cannot
        // write to them. Rust promises nothing where another process writes to the file; every read is one of a byte that
        // exists, two reads of it may differ, and the bytes are only used as numbers in arithmetic: no length, no index and
        // no choice of a variant is made of them.
        unsafe { slice::from_raw_parts(start.as_ptr().cast(), length) }
    }

    pub(super) fn has_lost_bytes(&self) -> bool {
        self.guard.has_lost_bytes()
    }

    /// Returns the pages of `bytes`, a part of this mapping, to the kernel.
    pub(super) fn unmap_pages(&self, bytes: &[u8]) {
        let Addresses { start, length } = self.addresses;
        let first = bytes.as_ptr().addr().wrapping_sub(start.addr().get());
        let end = first.wrapping_add(bytes.len());
        assert!(first <= end && end <= length, "the bytes are not of this mapping");
        // An access maps a large page as a whole, so whole ones are released.
        let first = first - first % LARGE_PAGE;
        let end = end.next_multiple_of(LARGE_PAGE).min(length);
        // SAFETY: the pages belong to the mapping, as was just checked. Nothing was written to them, so an access maps them
        // again with what the file, or the zeros that took its place, have there.
        let _ = unsafe { madvise(start.as_ptr().byte_add(first), end - first, Advice::LinuxDontNeed) };
    }
}

#[derive(Debug)]
struct Addresses {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: the mapping is the same for all threads, and none writes to it.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Addresses {
    fn map(file: &File) -> Option<Self> {
        if cfg!(target_pointer_width = "32") || is_address_space_limited() {
            return None;
        }
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        // SAFETY: the kernel chooses addresses where nothing is mapped. It aligns those of a whole file so that large
        // pages of the page cache can be mapped as they are.
        let start = unsafe { mmap(null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }.ok()?;
        Some(Self { start: NonNull::new(start)?, length })
    }
}

/// Whether the process has a limit on its address space, which a mapping of a large file could use up.
fn is_address_space_limited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the limit and nothing else.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) != 0 || limit.rlim_cur != libc::RLIM_INFINITY }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: every slice of the mapping borrows from what is dropped here.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}
