//! Files from which bytes are read at any position, on this machine or in a store.

use std::path::Path;
use std::sync::Arc;

use super::Location;
use super::local_file::{LocalFile, RecentFiles};
use super::mapping::MappedRange;
use super::remote_file::RemoteFile;
use crate::{Error, Result, memory};

/// The bytes that are read of a header or a document before a look whether the call was cancelled.
const PIECE: usize = 16 << 20;

/// A file that several threads can read at once.
#[derive(Debug)]
pub(super) struct OpenFile {
    location: Location,
    /// The number of bytes when the file was opened.
    pub(super) length: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Local(LocalFile),
    Remote(Arc<RemoteFile>),
}

impl OpenFile {
    /// Opens a file, which has this number among those of `recent`.
    pub(super) fn open(location: &Location, number: usize, recent: &Arc<RecentFiles>) -> Result<Self> {
        let (length, content) = match location.store() {
            None => {
                let file = LocalFile::open(location.path(), number, recent)?;
                (file.length, Content::Local(file))
            }
            Some(store) => {
                let file = RemoteFile::open(location, Arc::clone(store))?;
                (file.length(), Content::Remote(Arc::new(file)))
            }
        };
        Ok(Self { location: location.clone(), length, content })
    }

    pub(super) fn path(&self) -> &Path {
        self.location.path()
    }

    /// Fills `buffer` from `offset` on. `tensor` names the tensor that is read, if it is not the header, for an error.
    pub(super) fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        tensor: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        match &self.content {
            Content::Local(file) => file.read(offset, buffer, tensor),
            Content::Remote(file) => file.read(offset, buffer),
        }
    }

    /// Bytes from `offset` on, in new memory. They are read in pieces, between which the call can be cancelled.
    pub(super) fn read_bytes(&self, offset: u64, length: u64) -> Result<Vec<u8>> {
        let mut bytes = memory::zeros(usize::try_from(length).unwrap_or(usize::MAX))
            .map_err(|error| Error::io(self.path(), error))?;
        let mut at = offset;
        for piece in bytes.chunks_mut(PIECE) {
            self.location.check_cancelled()?;
            self.read(at, piece, || None)?;
            at += piece.len() as u64;
        }
        Ok(bytes)
    }

    /// Bytes from `offset` on, of which the first ones are known.
    pub(super) fn read_rest(&self, offset: u64, length: u64, known: &[u8]) -> Result<Vec<u8>> {
        let count = known.len() as u64;
        let mut bytes = known.to_vec();
        memory::reserve(&mut bytes, (length - count) as usize)
            .map_err(|error| Error::io(self.path(), error))?;
        for start in (count..length).step_by(PIECE) {
            self.location.check_cancelled()?;
            bytes.resize(length.min(start + PIECE as u64) as usize, 0);
            self.read(offset + start, &mut bytes[start as usize..], || None)?;
        }
        Ok(bytes)
    }

    /// Fails once the call that reads the file is to stop.
    pub(super) fn check_cancelled(&self) -> Result<()> {
        self.location.check_cancelled()
    }

    /// Maps `length` bytes from `offset` on, if they are in this machine's page cache.
    pub(super) fn map(&self, offset: u64, length: usize) -> Option<MappedRange<'_>> {
        match &self.content {
            Content::Local(file) => file.map(offset, length),
            Content::Remote(_) => None,
        }
    }

    /// The error of a file that lost bytes of a tensor while they were mapped, and has them again.
    pub(super) fn changed(&self, tensor: String) -> Error {
        match &self.content {
            Content::Local(file) => file.changed(tensor),
            Content::Remote(file) => file.changed(),
        }
    }

    /// The name of the file, without its folder.
    pub(super) fn name(&self) -> String {
        self.location.file_name()
    }

    /// What tells the file from other states of itself.
    pub(super) fn version(&self) -> String {
        match &self.content {
            Content::Local(file) => file.version(),
            Content::Remote(file) => file.version().to_owned(),
        }
    }

    /// The file, if it is in a store.
    pub(super) fn remote(&self) -> Option<&Arc<RemoteFile>> {
        match &self.content {
            Content::Local(_) => None,
            Content::Remote(file) => Some(file),
        }
    }

    /// The file, if it is on this machine.
    pub(super) fn local(&self) -> Option<&LocalFile> {
        match &self.content {
            Content::Local(file) => Some(file),
            Content::Remote(_) => None,
        }
    }
}
