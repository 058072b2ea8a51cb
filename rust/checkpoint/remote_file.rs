//! Files in a store, from which bytes are read at any position.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use super::Location;
use super::store::{FileStatus, Question, Reply, Store, StoredBytes, ask, check_length};
use super::transfers::{FileTransfers, Planned};
use crate::synchronisation::RwLock;
use crate::{Error, Result};

/// The most bytes that are asked for at a time, other than by a plan.
const LARGEST_READ: u64 = 16 << 20;

/// A file in a store. Ranges that are planned are fetched before they are read; all others are fetched when they are.
#[derive(Debug)]
pub(super) struct RemoteFile {
    path: PathBuf,
    name: String,
    store: Arc<dyn Store>,
    opened: FileStatus,
    planned: RwLock<Option<FileTransfers>>,
}

impl RemoteFile {
    pub(super) fn open(location: &Location, store: Arc<dyn Store>) -> Result<Self> {
        let (path, name) = (location.path().to_path_buf(), location.text());
        let opened = ask(&*store, |reply| store.status(&name, false, reply))
            .map_err(|error| Error::io(&path, error))?;
        Ok(Self { path, name, store, opened, planned: RwLock::default() })
    }

    /// The number of bytes when the file was opened.
    pub(super) fn length(&self) -> u64 {
        self.opened.length
    }

    /// The version when the file was opened.
    pub(super) fn version(&self) -> &str {
        &self.opened.version
    }

    pub(super) fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// Asks for the bytes of a range.
    pub(super) fn request(&self, range: Range<u64>, reply: Reply<StoredBytes>) {
        let asked = range.clone();
        let checked = move |answer: io::Result<StoredBytes>| {
            reply(answer.and_then(|bytes| check_length(bytes, &asked)));
        };
        self.store.read(&self.name, range, Box::new(checked));
    }

    /// Reads planned ranges from these transfers from now on; with `None`, all ranges from the store.
    pub(super) fn set_transfers(&self, planned: Option<FileTransfers>) {
        *self.planned.write().unwrap_or_else(PoisonError::into_inner) = planned;
    }

    /// Fills `buffer` from `offset` on.
    pub(super) fn read(&self, mut offset: u64, mut buffer: &mut [u8]) -> Result<()> {
        let refusal = |error| Error::io(&self.path, error);
        let planned = self.planned.read().unwrap_or_else(PoisonError::into_inner);
        while !buffer.is_empty() {
            let end = offset + buffer.len() as u64;
            let found = match &*planned {
                Some(planned) => planned.find(offset).map_err(refusal)?,
                None => Planned::No { until: end },
            };
            let filled = match found {
                Planned::Fetched { bytes, from } => fill(buffer, &AsRef::as_ref(&**bytes)[from..]),
                Planned::No { until } => {
                    let range = offset..end.min(until).min(offset + LARGEST_READ);
                    let bytes = ask(&*self.store, |reply| self.request(range, reply)).map_err(refusal)?;
                    fill(buffer, AsRef::as_ref(&*bytes))
                }
            };
            offset += filled as u64;
            buffer = &mut buffer[filled..];
        }
        Ok(())
    }

    /// The error of a file that changed.
    pub(super) fn changed(&self) -> Error {
        let problem = "the file changed while it was read; scan again when nothing writes to it";
        Error::checkpoint(&self.path, problem)
    }

    /// Asks for the status of the file as it is now.
    pub(super) fn ask_status(&self) -> Question<FileStatus> {
        Question::ask(|reply| self.store.status(&self.name, true, reply))
    }

    /// Fails if this status is not that with which the file was opened.
    pub(super) fn check_unchanged(&self, now: Question<FileStatus>) -> Result<()> {
        let now = now.wait(&*self.store).map_err(|error| Error::io(&self.path, error))?;
        if now == self.opened { Ok(()) } else { Err(self.changed()) }
    }
}

/// Copies as many bytes as fit. Returns their number.
fn fill(buffer: &mut [u8], bytes: &[u8]) -> usize {
    let count = buffer.len().min(bytes.len());
    buffer[..count].copy_from_slice(&bytes[..count]);
    count
}
