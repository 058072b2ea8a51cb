//! Bytes of files looked at where they lie in memory, without a copy.
//!
//! A file that was written or read lately is in the page cache. To copy weights from there takes more than half as
//! long as all that a scan does with them; to map them takes a fraction of that, and the core fetches the next bytes
//! while the arithmetic is busy with these. Three things have to be seen to:
//!
//! - What is not in memory is read, not mapped: through a mapping it would come in smaller pieces.
//! - A file may be shortened while it is looked at. The kernel then has nothing to show and sends SIGBUS, for which
//!   a process ends. A handler shows zeros instead, and the mapping [knows](View::has_gap) that what was seen does
//!   not count.
//! - What is mapped counts as the process' memory until it is [let go](View::let_go).
//!
//! It is done on Linux, which can say what is in memory.

#[cfg(target_os = "linux")]
mod fault;
#[cfg_attr(target_os = "linux", path = "linux.rs")]
#[cfg_attr(not(target_os = "linux"), path = "unsupported.rs")]
mod of_system;

use std::fs::File;
use std::ptr;
use std::sync::OnceLock;

pub(crate) use self::of_system::prepare_thread;
use self::of_system::{Mapping, is_in_memory};

/// A file that is mapped when somebody first looks at it.
#[derive(Debug, Default)]
pub(crate) struct Mapped(OnceLock<Option<Mapping>>);

impl Mapped {
    /// Looks at `length` bytes of `file`, always the same, from `offset` on. Nothing if they are not in memory or cannot
    /// be mapped, or if the file was found to have become shorter.
    pub(crate) fn view<'a>(&'a self, file: &'a File, offset: u64, length: usize) -> Option<View<'a>> {
        if !is_in_memory(file, offset, length) {
            return None;
        }
        let mapping = self.0.get_or_init(|| Mapping::of(file)).as_ref()?;
        let start = usize::try_from(offset).ok()?;
        let bytes = mapping.bytes().get(start..start.checked_add(length)?)?;
        let view = View { bytes, mapping, file };
        (!view.has_gap()).then_some(view)
    }
}

/// Bytes of a file, where they lie in memory.
#[derive(Clone, Copy, Debug)]
pub struct View<'a> {
    bytes: &'a [u8],
    mapping: &'a Mapping,
    file: &'a File,
}

impl<'a> View<'a> {
    /// The bytes. Zeros if the file has become shorter, others if somebody has written to it.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// Whether bytes of the file may have been looked at, by anyone, that it no longer had. Of its last page the kernel
    /// shows zeros without a word.
    pub(crate) fn has_gap(&self) -> bool {
        let whole = self.mapping.bytes().len() as u64;
        self.mapping.has_gap() || self.file.metadata().is_ok_and(|now| now.len() < whole)
    }

    /// Both as one, if `next` begins where this ends.
    pub(crate) fn followed_by(&self, next: Self) -> Option<Self> {
        let all = self.mapping.bytes();
        let place = |bytes: &[u8]| bytes.as_ptr().addr().wrapping_sub(all.as_ptr().addr());
        let (start, end) = (place(self.bytes), place(next.bytes).wrapping_add(next.bytes.len()));
        let adjoin = self.bytes.as_ptr_range().end == next.bytes.as_ptr();
        (adjoin && ptr::eq(self.mapping, next.mapping)).then(|| Self { bytes: &all[start..end], ..*self })
    }

    /// Counts them no longer as memory of the process. They can still be looked at, and then count again.
    pub(crate) fn let_go(self) {
        self.mapping.let_go(self.bytes);
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::io::Write;

    use proptest::prelude::*;

    const LENGTH: usize = 3_000_000;

    fn noise() -> (Vec<u8>, File) {
        let random = |place: u64| (place.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8;
        let bytes: Vec<u8> = (0..LENGTH as u64).map(random).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&bytes).unwrap();
        (bytes, file)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20))]

        #[test]
        fn a_view_shows_what_the_file_holds(
            stretches in prop::collection::vec((0..LENGTH, 0..LENGTH, any::<bool>()), 1..12),
        ) {
            let ((bytes, file), mapped) = (noise(), Mapped::default());
            for (start, end, keep) in stretches {
                let (start, end) = (start.min(end), start.max(end));
                let view = mapped.view(&file, start as u64, end - start).unwrap();
                prop_assert!(view.bytes() == &bytes[start..end]);
                if !keep {
                    view.let_go();
                    prop_assert!(view.bytes() == &bytes[start..end]);
                }
                prop_assert!(!view.has_gap());
            }
        }
    }

    #[test]
    fn a_file_that_becomes_shorter_leaves_a_gap_and_is_looked_at_no_more() {
        let ((bytes, file), mapped) = (noise(), Mapped::default());
        let view = mapped.view(&file, 1000, 2_000_000).unwrap();
        assert!(!view.has_gap());
        file.set_len(500_000).unwrap();
        assert_eq!(view.bytes()[..400_000], bytes[1000..401_000]);
        assert_eq!(view.bytes()[900_000..], [0; 1_100_000]);
        assert!(view.has_gap());
        assert!(mapped.view(&file, 1000, 400_000).is_none());
    }

    #[test]
    fn a_gap_within_the_last_page_is_one() {
        let ((_, file), mapped) = (noise(), Mapped::default());
        let view = mapped.view(&file, LENGTH as u64 - 100, 100).unwrap();
        file.set_len(LENGTH as u64 - 90).unwrap();
        assert_eq!(view.bytes()[10..], [0; 90]);
        assert!(view.has_gap());
        assert!(mapped.view(&file, 0, 10).is_none());
    }

    #[test]
    fn of_a_file_that_becomes_shorter_no_other_suffers() {
        let (cut, whole) = ((noise(), Mapped::default()), (noise(), Mapped::default()));
        let [view, other] = [&cut, &whole].map(|((_, file), mapped)| mapped.view(file, 0, LENGTH).unwrap());
        cut.0.1.set_len(0).unwrap();
        assert!(view.bytes().iter().all(|byte| *byte == 0));
        assert!(view.has_gap());
        assert!(other.bytes() == whole.0.0);
        assert!(!other.has_gap());
    }

    #[test]
    fn what_is_not_there_cannot_be_looked_at() {
        let ((_, file), mapped) = (noise(), Mapped::default());
        assert!(mapped.view(&file, 5, LENGTH).is_none());
        assert!(mapped.view(&file, LENGTH as u64 + 10_000, 1).is_none());
        assert!(mapped.view(&file, u64::MAX - 5, 3).is_none());
        assert!(mapped.view(&file, u64::MAX, usize::MAX).is_none());
        assert!(mapped.view(&file, LENGTH as u64, 0).is_some());
    }
}
