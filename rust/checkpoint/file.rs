//! Files from which bytes are read at any position.

use std::fmt::Debug;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use super::mapping::{MappedFile, MappedRange};
use crate::{Error, Result};

/// Bytes that can be read from any position, by several threads at once.
pub(super) trait ByteSource: Debug + Send + Sync {
    /// The number of bytes when the source was opened.
    fn length(&self) -> u64;

    /// Fills `buffer` from `offset` on, or fails with [`io::ErrorKind::UnexpectedEof`] if there are too few
    /// bytes.
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// The number of bytes now.
    fn current_length(&self) -> io::Result<u64>;

    /// Maps `length` bytes from `offset` on, if they are in the page cache.
    fn map(&self, _offset: u64, _length: usize) -> Option<MappedRange<'_>> {
        None
    }
}

/// A local file, kept open.
#[derive(Debug)]
pub(super) struct LocalFile {
    file: File,
    length: u64,
    mapping: MappedFile,
}

impl LocalFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        // Opening a named pipe would wait for a writer, so the type is checked first.
        if !fs::metadata(path).map_err(|error| Error::io(path, error))?.is_file() {
            return Err(Error::checkpoint(path, "expected a regular file, found something else"));
        }
        let file = File::open(path).map_err(|error| Error::io(path, error))?;
        let length = file.metadata().map_err(|error| Error::io(path, error))?.len();
        Ok(LocalFile { file, length, mapping: MappedFile::default() })
    }
}

impl ByteSource for LocalFile {
    fn length(&self) -> u64 {
        self.length
    }

    fn current_length(&self) -> io::Result<u64> {
        self.file.metadata().map(|metadata| metadata.len())
    }

    fn map(&self, offset: u64, length: usize) -> Option<MappedRange<'_>> {
        self.mapping.map(&self.file, offset, length)
    }

    #[cfg(unix)]
    fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
        use std::os::windows::fs::FileExt;
        while !buffer.is_empty() {
            match self.file.seek_read(buffer, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => {
                    buffer = &mut buffer[count..];
                    offset += count as u64;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}
