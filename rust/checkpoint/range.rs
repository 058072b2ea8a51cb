//! Reads ranges of files for several threads, mapped where that is faster and copied elsewhere.
//!
//! # How a range is read
//!
//! A [`RangeBuffer`] holds the bytes of one matrix after another. [`RangeBuffer::start`] maps the range if it can, and
//! otherwise makes room for a copy, which [`RangeBuffer::fill`] reads piece by piece, so that each piece is summed
//! while it is in the core's cache. [`RangeBuffer::finish`] ends the use of the bytes. A file that became shorter while
//! a range of it was mapped shows zeros, so `finish` then fails, and no result made of such bytes may be kept.
//!
//! Mapped pages count as memory of the process. A thread maps at most [`MAPPED_PER_THREAD`] bytes: the matrices that it
//! is using and some that it no longer uses, which are returned to the kernel together, in as few stretches as
//! possible, since each return interrupts every core that runs a thread of the process.

use std::io;
use std::mem::take;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::mapping::MappedRange;
use super::transfers::Plan;
use super::{Checkpoint, Tensor};
use crate::error::{Error, Result};
use crate::memory;
use crate::pages::Pages;

/// The most bytes that a thread has mapped, in use or not.
const MAPPED_PER_THREAD: usize = 28 << 20;

/// The matrices that a thread uses at a time: queries, keys and values, base and tuned.
const MATRICES_IN_USE: usize = 6;

/// The most unused matrices that stay mapped for each thread.
const MATRICES_UNUSED: usize = 8;

/// A contiguous range of the bytes of a tensor.
#[derive(Clone, Copy, Debug)]
pub struct ByteRange<'a> {
    checkpoint: &'a Checkpoint,
    tensor: &'a Tensor,
    offset: u64,
    length: usize,
}

impl<'a> ByteRange<'a> {
    /// `length` bytes of a tensor of the checkpoint, from its byte `offset` on; nothing if the tensor has fewer.
    pub(crate) fn new(
        checkpoint: &'a Checkpoint,
        tensor: &'a Tensor,
        offset: u64,
        length: usize,
    ) -> Option<Self> {
        tensor.has_bytes(offset, length as u64).then_some(Self { checkpoint, tensor, offset, length })
    }

    fn map(&self) -> Option<MappedRange<'a>> {
        let file = &self.checkpoint.files[self.tensor.file];
        file.map(self.tensor.offset + self.offset, self.length)
    }

    /// Adds the range to what a step will read, unless the file is on this machine.
    pub(crate) fn add_to(&self, plan: &mut Plan, step: usize) {
        if let Some(file) = self.checkpoint.files[self.tensor.file].remote() {
            let start = self.tensor.offset + self.offset;
            plan.add(step, file, start..start + self.length as u64);
        }
    }

    /// Rereads a range whose file became shorter, to report where the file ends, or else that it changed.
    fn report_lost_bytes(&self) -> Error {
        let reread = memory::zeros(self.length)
            .map_err(|error| Error::io(self.checkpoint.path(), error))
            .and_then(|mut bytes| self.checkpoint.read_at(self.tensor, self.offset, &mut bytes));
        let file = &self.checkpoint.files[self.tensor.file];
        reread.err().unwrap_or_else(|| file.changed(self.checkpoint.name_of(self.tensor)))
    }
}

/// Maps the ranges that may be mapped, and keeps those that no thread of the scan uses any longer.
#[derive(Debug)]
pub(crate) struct RangeMapper<'a> {
    threads: usize,
    may_map: bool,
    unused: Mutex<Vec<MappedRange<'a>>>,
}

impl<'a> RangeMapper<'a> {
    /// A mapper for `threads` threads. Without `may_map` every range is copied.
    pub(crate) fn new(threads: usize, may_map: bool) -> Self {
        Self { threads, may_map, unused: Mutex::default() }
    }

    /// Maps a range, unless [`MATRICES_IN_USE`] ranges of its length would exceed [`MAPPED_PER_THREAD`]. The two large
    /// pages at the ends of a range count as two more matrices.
    fn map(&self, range: &ByteRange<'a>) -> Option<MappedRange<'a>> {
        let is_short = range.length <= MAPPED_PER_THREAD / (MATRICES_IN_USE + 2);
        if self.may_map && is_short { range.map() } else { None }
    }

    /// Takes back a range, and returns all unused ones to the kernel once they are too many.
    fn take_back(&self, range: MappedRange<'a>) {
        let length = range.len();
        let spare = MAPPED_PER_THREAD.saturating_sub(MATRICES_IN_USE * length).min(MATRICES_UNUSED * length);
        let mut unused = self.unused.lock().unwrap_or_else(PoisonError::into_inner);
        unused.push(range);
        if unused.iter().map(MappedRange::len).sum::<usize>() < self.threads * spare {
            return;
        }
        let mut stretches = take(&mut *unused);
        drop(unused);
        stretches.sort_unstable_by_key(MappedRange::address);
        stretches.dedup_by(|next, last| last.joined(*next).map(|both| *last = both).is_some());
        stretches.into_iter().for_each(MappedRange::unmap_pages);
    }
}

/// The bytes of one matrix, mapped or copied. The memory of copies is kept from one matrix to the next.
#[derive(Debug, Default)]
pub(crate) struct RangeBuffer<'a> {
    mapped: Option<(ByteRange<'a>, MappedRange<'a>)>,
    /// It begins with a cache line, since a vector load that reaches into a second line costs twice as much.
    copy: Pages<u8>,
}

impl<'a> RangeBuffer<'a> {
    /// Makes the buffer ready for a matrix of `length` bytes, those of `range` where they lie in one.
    ///
    /// # Errors
    ///
    /// [`std::io::ErrorKind::OutOfMemory`].
    pub(crate) fn start(
        &mut self,
        mapper: &RangeMapper<'a>,
        range: Option<ByteRange<'a>>,
        length: usize,
    ) -> io::Result<()> {
        self.mapped = range.and_then(|range| Some((range, mapper.map(&range)?)));
        if self.mapped.is_none() {
            self.copy.resize(length)?;
        }
        Ok(())
    }

    /// Fills these bytes of the buffer by `read`, unless they are there already.
    pub(crate) fn fill(
        &mut self,
        bytes: Range<usize>,
        read: impl FnOnce(&mut [u8]) -> Result<()>,
    ) -> Result<()> {
        if self.mapped.is_some() { Ok(()) } else { read(&mut self.copy[bytes]) }
    }

    /// The bytes that were filled, for use by the calling thread.
    pub(crate) fn bytes(&self) -> &[u8] {
        match &self.mapped {
            Some((_, mapped)) => mapped.bytes(),
            None => &self.copy,
        }
    }

    /// Fails if the file became shorter while the bytes were mapped: they may be zeros.
    ///
    /// # Errors
    ///
    /// Those of [`Checkpoint::read_at`]; [`Error::Changed`] if the bytes can be read again.
    pub(crate) fn check(&self) -> Result<()> {
        match &self.mapped {
            Some((range, mapped)) if mapped.has_lost_bytes() => Err(range.report_lost_bytes()),
            _ => Ok(()),
        }
    }

    /// Ends the use of the bytes and [checks](Self::check) them.
    pub(crate) fn finish(&mut self, mapper: &RangeMapper<'a>) -> Result<()> {
        self.check()?;
        if let Some((_, mapped)) = self.mapped.take() {
            mapper.take_back(mapped);
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    #[cfg(target_os = "linux")]
    use std::fs::{self, File};

    #[test]
    fn copies_begin_with_a_cache_line_whatever_their_length() {
        let (mapper, mut buffer) = (RangeMapper::new(1, true), RangeBuffer::default());
        assert!(buffer.bytes().is_empty());
        for length in [1, 1000, 3, 70_000] {
            buffer.start(&mapper, None, length).unwrap();
            buffer
                .fill(0..length, |into| {
                    into.fill(7);
                    Ok(())
                })
                .unwrap();
            assert_eq!(buffer.bytes().as_ptr().addr() % 64, 0);
            assert!(buffer.bytes() == vec![7; length]);
        }
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn a_file_that_loses_bytes_while_it_is_mapped_is_an_error() {
        const LENGTH: usize = 100_000;
        let header = format!(r#"{{"a":{{"dtype":"U8","shape":[{LENGTH}],"data_offsets":[0,{LENGTH}]}}}}"#);
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_bytes(), &[7; LENGTH]].concat();
        let whole = bytes.len() as u64;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        for grows_again in [false, true] {
            fs::write(&path, &bytes).unwrap();
            let checkpoint = Checkpoint::open(&path).unwrap();
            let range = ByteRange::new(&checkpoint, checkpoint.tensor("a").unwrap(), 10, 50_000).unwrap();
            let (mapper, mut buffer) = (RangeMapper::new(1, true), RangeBuffer::default());
            buffer.start(&mapper, Some(range), 50_000).unwrap();
            assert!(buffer.bytes() == [7; 50_000]);
            let file = File::options().write(true).open(&path).unwrap();
            file.set_len(1000).unwrap();
            assert_eq!(buffer.bytes()[40_000], 0);
            if grows_again {
                file.set_len(whole).unwrap();
            }
            match buffer.finish(&mapper).unwrap_err() {
                Error::Truncated { path: at, tensor, opened_length, end } if !grows_again => {
                    let expected = (&path, Some("a"), whole, 8 + header.len() as u64 + 50_010);
                    assert_eq!((&at, tensor.as_deref(), opened_length, end), expected);
                }
                Error::Changed { path: at, tensor, opened_length, current_length } if grows_again => {
                    assert_eq!((&at, &*tensor, opened_length, current_length), (&path, "a", whole, whole));
                }
                error => panic!("{error}"),
            }
            // The file is not mapped again.
            buffer.start(&mapper, Some(range), 3).unwrap();
            buffer
                .fill(0..3, |into| {
                    into.fill(9);
                    Ok(())
                })
                .unwrap();
            assert_eq!(buffer.bytes(), [9; 3]);
        }
    }
}
