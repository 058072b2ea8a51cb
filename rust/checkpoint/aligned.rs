//! Bytes where vectors of numbers can be loaded from one line of the cache each.

use std::ops::{Deref, DerefMut};

/// Bytes of a line of the cache, and of the widest vectors.
const LINE: usize = 64;

/// A buffer that begins with a line. A load that reaches into a second line costs twice as much.
#[derive(Debug, Default)]
pub(crate) struct AlignedBytes {
    memory: Vec<u8>,
    length: usize,
}

impl AlignedBytes {
    /// Takes another length; what the bytes are is not said.
    pub(crate) fn set_length(&mut self, length: usize) {
        self.memory.resize(length + LINE - 1, 0);
        self.length = length;
    }

    fn start(&self) -> usize {
        self.memory.as_ptr().align_offset(LINE).min(self.memory.len())
    }
}

impl Deref for AlignedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.memory[self.start()..][..self.length]
    }
}

impl DerefMut for AlignedBytes {
    fn deref_mut(&mut self) -> &mut [u8] {
        let start = self.start();
        &mut self.memory[start..][..self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_begin_with_a_line_whatever_their_length() {
        let mut bytes = AlignedBytes::default();
        assert!(bytes.is_empty());
        for length in [1, 1000, 3, 70_000] {
            bytes.set_length(length);
            bytes.fill(7);
            assert_eq!(bytes.len(), length);
            assert_eq!(bytes.as_ptr().addr() % LINE, 0);
            assert!(bytes.iter().all(|byte| *byte == 7));
        }
    }
}
