//! Maps ranges of files into memory, so that weights are read without a copy.
//!
//! # How mapping works
//!
//! A file that was written or read lately is in the page cache. Copying weights from there takes more than half as
//! long as everything else that a scan does with them. A mapping takes a fraction of that, and the core fetches the
//! next bytes while it computes with these. Mapping has three costs, each of which is dealt with here:
//!
//! - A range that is not in the page cache would arrive page by page. [`MappedFile::map`] asks the kernel first
//!   (`preadv2` with `RWF_NOWAIT`) and maps nothing unless the range is there.
//! - When a mapped file becomes shorter, access to the lost pages raises SIGBUS, which ends the process. While a file
//!   is mapped, a process-wide handler is installed, which replaces the whole mapping by zero pages and records the
//!   loss; the file itself is not touched. [`MappedRange::has_lost_bytes`] reports it, and the scan then fails with
//!   `Error::Truncated` or `Error::Changed` (`RangeBuffer::check` in `checkpoint/range.rs`).
//! - Mapped pages count as memory of the process until [`MappedRange::unmap_pages`] returns them.
//!
//! Files are mapped on Linux only, since other systems cannot say what is in the page cache. `mmap=False`,
//! `--no-mmap` or ALPS_MMAP=0 in the environment turns mapping off (`python/alps/scan.py`).

#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod platform;
#[cfg(target_os = "linux")]
mod sigbus;

use std::fs::{self, File};
use std::path::Path;
use std::ptr;
use std::sync::OnceLock;

use self::platform::{Mapping, is_in_page_cache, unblock_sigbus};

/// A file that is mapped as a whole when a range of it is first asked for.
#[derive(Debug, Default)]
pub(super) struct MappedFile(OnceLock<Option<Mapping>>);

impl MappedFile {
    /// Maps `length` bytes of `file`, the same at every call, from `offset` on. The file is at `path`.
    ///
    /// Returns nothing if the range is not in the page cache, if the file cannot be mapped, or if it has lost bytes.
    pub(super) fn map<'a>(
        &'a self,
        file: &File,
        path: &'a Path,
        offset: u64,
        length: usize,
    ) -> Option<MappedRange<'a>> {
        if !is_in_page_cache(file, offset, length) {
            return None;
        }
        let mapping = self.0.get_or_init(|| Mapping::new(file)).as_ref()?;
        let start = usize::try_from(offset).ok()?;
        let bytes = mapping.bytes().get(start..start.checked_add(length)?)?;
        let range = MappedRange { bytes, mapping, path };
        (!range.has_lost_bytes()).then_some(range)
    }
}

/// A range of a mapped file.
#[derive(Clone, Copy, Debug)]
pub(super) struct MappedRange<'a> {
    bytes: &'a [u8],
    mapping: &'a Mapping,
    path: &'a Path,
}

impl<'a> MappedRange<'a> {
    /// The bytes, to be read by this thread only, for which SIGBUS is unblocked here. They are zeros if the file has
    /// become shorter, and may have changed if it was written to.
    pub(super) fn bytes(&self) -> &'a [u8] {
        unblock_sigbus();
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    pub(super) fn address(&self) -> usize {
        self.bytes.as_ptr().addr()
    }

    /// Whether the file has become shorter since it was mapped. Its length is compared as well, since the kernel raises
    /// no signal for the rest of the last page and shows zeros there.
    pub(super) fn has_lost_bytes(&self) -> bool {
        let length = self.mapping.bytes().len() as u64;
        self.mapping.has_lost_bytes() || fs::metadata(self.path).is_ok_and(|now| now.len() < length)
    }

    /// Both ranges as one, if `next` begins where this one ends.
    pub(super) fn joined(&self, next: Self) -> Option<Self> {
        let adjoin = self.bytes.as_ptr_range().end == next.bytes.as_ptr();
        let file = self.mapping.bytes();
        let start = self.address().wrapping_sub(file.as_ptr().addr());
        (adjoin && ptr::eq(self.mapping, next.mapping))
            .then(|| Self { bytes: &file[start..start + self.len() + next.len()], ..*self })
    }

    /// Returns the pages to the kernel, so that they no longer count as memory of the process. Access maps them again.
    pub(super) fn unmap_pages(self) {
        self.mapping.unmap_pages(self.bytes);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    use tempfile::NamedTempFile;

    use proptest::prelude::*;

    const LENGTH: usize = 3_000_000;

    fn noise() -> (Vec<u8>, NamedTempFile) {
        let random = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let bytes: Vec<u8> = (0..LENGTH as u64).map(random).collect();
        let mut file = NamedTempFile::new().unwrap();
        file.write_all(&bytes).unwrap();
        (bytes, file)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn a_mapped_range_shows_what_the_file_holds(
            ranges in prop::collection::vec((0..LENGTH, 0..LENGTH, any::<bool>()), 1..12),
        ) {
            let ((bytes, file), mapped) = (noise(), MappedFile::default());
            for (start, end, keep) in ranges {
                let (start, end) = (start.min(end), start.max(end));
                let range = mapped.map(file.as_file(), file.path(), start as u64, end - start).unwrap();
                prop_assert!(range.bytes() == &bytes[start..end]);
                if !keep {
                    range.unmap_pages();
                    prop_assert!(range.bytes() == &bytes[start..end]);
                }
                prop_assert!(!range.has_lost_bytes());
            }
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_is_noticed_and_mapped_no_more() {
        let ((bytes, file), mapped) = (noise(), MappedFile::default());
        let range = mapped.map(file.as_file(), file.path(), 1000, 2_000_000).unwrap();
        assert!(!range.has_lost_bytes());
        file.as_file().set_len(500_000).unwrap();
        assert_eq!(range.bytes()[..400_000], bytes[1000..401_000]);
        assert_eq!(range.bytes()[900_000..], [0; 1_100_000]);
        assert!(range.has_lost_bytes());
        assert!(mapped.map(file.as_file(), file.path(), 1000, 400_000).is_none());
    }

    #[test]
    fn bytes_lost_within_the_last_page_are_noticed() {
        let ((_, file), mapped) = (noise(), MappedFile::default());
        let range = mapped.map(file.as_file(), file.path(), LENGTH as u64 - 100, 100).unwrap();
        file.as_file().set_len(LENGTH as u64 - 90).unwrap();
        assert_eq!(range.bytes()[10..], [0; 90]);
        assert!(range.has_lost_bytes());
        assert!(mapped.map(file.as_file(), file.path(), 0, 10).is_none());
    }

    #[test]
    fn a_file_that_becomes_shorter_affects_no_other() {
        let (cut, whole) = ((noise(), MappedFile::default()), (noise(), MappedFile::default()));
        let [range, other] = [&cut, &whole]
            .map(|((_, file), mapped)| mapped.map(file.as_file(), file.path(), 0, LENGTH).unwrap());
        cut.0.1.as_file().set_len(0).unwrap();
        assert!(range.bytes().iter().all(|byte| *byte == 0));
        assert!(range.has_lost_bytes());
        assert!(other.bytes() == whole.0.0);
        assert!(!other.has_lost_bytes());
    }

    #[test]
    fn a_range_outside_the_file_is_not_mapped() {
        let ((_, file), mapped) = (noise(), MappedFile::default());
        assert!(mapped.map(file.as_file(), file.path(), 5, LENGTH).is_none());
        assert!(mapped.map(file.as_file(), file.path(), LENGTH as u64 + 10_000, 1).is_none());
        assert!(mapped.map(file.as_file(), file.path(), u64::MAX - 5, 3).is_none());
        assert!(mapped.map(file.as_file(), file.path(), u64::MAX, usize::MAX).is_none());
        assert!(mapped.map(file.as_file(), file.path(), LENGTH as u64, 0).is_some());
    }
}
