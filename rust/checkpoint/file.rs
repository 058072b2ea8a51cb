//! Files from which bytes are read at any position.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::mapping::{MappedFile, MappedRange};
use crate::{Error, Result};

/// A file that is kept open and can be read by several threads at once.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    file: File,
    /// The number of bytes when the file was opened.
    pub(super) length: u64,
    mapping: MappedFile,
}

impl OpenFile {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let refuse = |error| Error::io(path, error);
        // Opening a named pipe would wait for a writer, so the type is checked first.
        if !fs::metadata(path).map_err(refuse)?.is_file() {
            return Err(Error::checkpoint(path, "expected a regular file, found something else"));
        }
        let file = File::open(path).map_err(refuse)?;
        let length = file.metadata().map_err(refuse)?.len();
        Ok(Self { path: path.to_path_buf(), file, length, mapping: MappedFile::default() })
    }

    /// Fills `buffer` from `offset` on. `tensor` names the tensor that is read, if it is not the header, for an error.
    pub(super) fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        tensor: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        self.read_exact_at(offset, buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                path: self.path.clone(),
                tensor: tensor(),
                opened_length: self.length,
                end: offset + buffer.len() as u64,
            },
            _ => Error::io(&self.path, error),
        })
    }

    /// Maps `length` bytes from `offset` on, if they are in the page cache.
    pub(super) fn map(&self, offset: u64, length: usize) -> Option<MappedRange<'_>> {
        self.mapping.map(&self.file, offset, length)
    }

    /// The error of a file that lost bytes of a tensor while they were mapped, and has them again.
    pub(super) fn changed(&self, tensor: String) -> Error {
        let (path, opened_length) = (self.path.clone(), self.length);
        match self.file.metadata() {
            Ok(now) => Error::Changed { path, tensor, opened_length, current_length: now.len() },
            Err(error) => Error::io(&path, error),
        }
    }

    /// Fills `buffer` from `offset` on, or fails with [`io::ErrorKind::UnexpectedEof`].
    #[cfg(unix)]
    pub(super) fn read_exact_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        std::os::unix::fs::FileExt::read_exact_at(&self.file, buffer, offset)
    }

    #[cfg(windows)]
    pub(super) fn read_exact_at(&self, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
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
