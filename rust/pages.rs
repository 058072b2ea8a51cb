//! Memory in pages of its own.

use std::io;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::{MmapMut, MmapOptions};
use pulp::bytemuck::{Pod, cast_slice, cast_slice_mut};

use crate::memory;

/// Numbers whose memory goes back to the system when it is dropped. An allocator may keep it, because smaller pieces lie
/// behind it, and take more for the next matrix.
#[derive(Debug, Default)]
pub(crate) struct Pages<T> {
    map: Option<MmapMut>,
    length: usize,
    number: PhantomData<T>,
}

impl<T: Pod> Pages<T> {
    /// Makes room for so many numbers: zeros, or what was there before.
    ///
    /// # Errors
    ///
    /// As of [`memory::reserve`].
    pub(crate) fn resize(&mut self, length: usize) -> io::Result<()> {
        let bytes = length.saturating_mul(size_of::<T>());
        if self.map.as_ref().is_none_or(|map| map.len() < bytes) {
            *self = Self { map: None, length: 0, number: PhantomData };
            self.map =
                Some(memory::tried(MmapOptions::new().len(bytes).populate().map_anon(), bytes as u64)?);
        }
        self.length = length;
        Ok(())
    }

    fn bytes(&self) -> usize {
        self.length * size_of::<T>()
    }
}

impl<T: Pod> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.map.as_ref().map_or(&[], |map| cast_slice(&map[..self.bytes()]))
    }
}

impl<T: Pod> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let bytes = self.bytes();
        self.map.as_mut().map_or(&mut [], |map| cast_slice_mut(&mut map[..bytes]))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn pages_hold_as_many_numbers_as_were_asked_for() {
        let mut pages = Pages::<f64>::default();
        assert!(pages.is_empty());
        for length in [3, 0, 100_000, 7] {
            pages.resize(length).unwrap();
            assert_eq!(pages.len(), length);
            pages.fill(1.5);
            assert!(pages.iter().all(|number| *number == 1.5));
        }
        let error = pages.resize(1 << 58).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
        assert!(pages.is_empty());
    }
}
