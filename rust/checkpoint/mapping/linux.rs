//! Maps files, on Linux.

use std::ffi::c_void;
use std::fs::File;
use std::io::IoSliceMut;
use std::ptr::{NonNull, null_mut};
use std::slice;

use rustix::io::{ReadWriteFlags, preadv2};
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, munmap};

use super::fault::Watch;
pub(crate) use super::fault::prepare_thread;

/// How far apart the bytes are that are asked for whether they are in memory.
const GRAIN: usize = 1 << 20;

/// As much as the kernel maps at once, where the page cache has it in one piece.
const LARGE_PAGE: usize = 2 << 20;

/// Whether the bytes are in memory, by samples from the last on: the kernel fetches pages in their order and many at a
/// time, and those that are missing nevertheless are fetched when they are looked at. Where the file system cannot
/// tell, they are not.
pub(super) fn is_in_memory(file: &File, offset: u64, length: usize) -> bool {
    (0..length).rev().step_by(GRAIN).all(|byte| {
        let mut sample = [0];
        offset.checked_add(byte as u64).is_some_and(|offset| {
            preadv2(file, &mut [IoSliceMut::new(&mut sample)], offset, ReadWriteFlags::NOWAIT) == Ok(1)
        })
    })
}

/// A whole file at addresses of this process. That alone takes no memory.
#[derive(Debug)]
pub(super) struct Mapping {
    // Ends before the addresses are somebody else's.
    watch: Watch,
    addresses: Addresses,
}

impl Mapping {
    /// Nothing if the system does not map it, or if nobody could be told when it becomes shorter.
    pub(super) fn of(file: &File) -> Option<Self> {
        let addresses = Addresses::of(file)?;
        let watch = Watch::over(addresses.start.addr().get(), addresses.length)?;
        Some(Self { watch, addresses })
    }

    pub(super) fn bytes(&self) -> &[u8] {
        let Addresses { start, length } = self.addresses;
        // SAFETY: they are mapped as long as `self` lives, and nobody in this process can write there. Where another
        // writes to the file, numbers may change between two looks; all that is done with them is arithmetic.
        unsafe { slice::from_raw_parts(start.as_ptr().cast(), length) }
    }

    pub(super) fn has_gap(&self) -> bool {
        self.watch.has_gap()
    }

    /// `bytes` are some of the mapping's.
    pub(super) fn let_go(&self, bytes: &[u8]) {
        let Addresses { start, length } = self.addresses;
        let first = bytes.as_ptr().addr().wrapping_sub(start.addr().get());
        let end = first.wrapping_add(bytes.len());
        assert!(first <= end && end <= length, "the bytes are not of this mapping");
        // The last look at any byte of a large page lets go of all that was mapped with it.
        let first = first - first % LARGE_PAGE;
        let end = end.next_multiple_of(LARGE_PAGE).min(length);
        // SAFETY: these are pages of the mapping, which are mapped again when somebody looks at them.
        let _ = unsafe { madvise(start.as_ptr().byte_add(first), end - first, Advice::LinuxDontNeed) };
    }
}

#[derive(Debug)]
struct Addresses {
    start: NonNull<c_void>,
    length: usize,
}

// SAFETY: what is there is the same for all threads, and nobody writes to it.
unsafe impl Send for Addresses {}
// SAFETY: as above.
unsafe impl Sync for Addresses {}

impl Addresses {
    fn of(file: &File) -> Option<Self> {
        if cfg!(target_pointer_width = "32") || are_limited() {
            return None;
        }
        let length = usize::try_from(file.metadata().ok()?.len()).ok()?;
        // SAFETY: the kernel takes addresses where there is nothing yet. Those for a whole file it chooses such that
        // large pages of the page cache can be mapped as they are.
        let start = unsafe { mmap(null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE, file, 0) }.ok()?;
        Some(Self { start: NonNull::new(start)?, length })
    }
}

/// Whether the process may only have so many addresses, which a file as long as they are many would take from others.
fn are_limited() -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: this writes the limit.
    unsafe { libc::getrlimit(libc::RLIMIT_AS, &raw mut limit) != 0 || limit.rlim_cur != libc::RLIM_INFINITY }
}

impl Drop for Addresses {
    fn drop(&mut self) {
        // SAFETY: whoever looked at the bytes has borrowed them from what is dropped here.
        let _ = unsafe { munmap(self.start.as_ptr(), self.length) };
    }
}
