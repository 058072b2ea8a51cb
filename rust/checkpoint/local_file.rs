//! Files of this machine, from which bytes are read at any position.

use std::collections::VecDeque;
use std::fs::{self, File, Metadata};
use std::io;
#[cfg(unix)]
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime};

use super::mapping::{MappedFile, MappedRange};
use crate::{Error, Result, failing};

/// Two changes that are less apart may have the same time: twice the step in which kernels count it.
const STEP_OF_TIMES: Duration = Duration::from_millis(20);

/// The most files that a checkpoint keeps open. A checkpoint may have more shards than a process may open.
const MOST_OPEN: usize = 8;

/// The files of a checkpoint that were read last, each with its number, the last one first.
#[derive(Debug, Default)]
pub(super) struct RecentFiles(Mutex<VecDeque<(usize, Arc<File>)>>);

/// A file that several threads can read at once. It is opened again when it is read after many others.
#[derive(Debug)]
pub(super) struct LocalFile {
    path: PathBuf,
    number: usize,
    recent: Arc<RecentFiles>,
    /// The number of bytes when the file was opened first.
    pub(super) length: u64,
    identity: Identity,
    mapping: MappedFile,
}

/// What tells a file from one that replaced it, and from itself after it was written to.
#[derive(Debug, PartialEq, Eq)]
struct Identity {
    length: u64,
    modified: Option<SystemTime>,
    /// The time of the last change of the content or of what is known of it, which no program can set back.
    #[cfg(unix)]
    changed: (i64, i64),
    #[cfg(unix)]
    inode: (u64, u64),
}

impl Identity {
    fn of(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::of_metadata(&metadata))
    }

    fn of_metadata(metadata: &Metadata) -> Self {
        Self {
            length: metadata.len(),
            modified: metadata.modified().ok(),
            #[cfg(unix)]
            changed: (metadata.ctime(), metadata.ctime_nsec()),
            #[cfg(unix)]
            inode: (metadata.dev(), metadata.ino()),
        }
    }

    /// The identity of a file that was changed long enough ago for the next change to have another time.
    fn settled(file: &File) -> io::Result<Self> {
        let mut identity = Self::of(file)?;
        for _ in 0..5 {
            let age = identity.modified.and_then(|time| SystemTime::now().duration_since(time).ok());
            match age.and_then(|age| STEP_OF_TIMES.checked_sub(age)) {
                Some(rest) if !rest.is_zero() => thread::sleep(rest),
                _ => break,
            }
            identity = Self::of(file)?;
        }
        Ok(identity)
    }
}

impl LocalFile {
    /// Opens a file, which has this number among those of `recent`.
    pub(super) fn open(path: &Path, number: usize, recent: &Arc<RecentFiles>) -> Result<Self> {
        let refusal = |error| Error::io(path, error);
        // Opening a named pipe would wait for a writer, so the type is checked first.
        if !fs::metadata(path).map_err(refusal)?.is_file() {
            return Err(Error::checkpoint(path, "expected a regular file, found something else"));
        }
        let file = open(path).map_err(refusal)?;
        let identity = Identity::settled(&file).map_err(refusal)?;
        let (length, recent) = (identity.length, Arc::clone(recent));
        let opened = Self {
            path: path.to_path_buf(),
            number,
            recent,
            length,
            identity,
            mapping: MappedFile::default(),
        };
        opened.keep(Arc::new(file));
        Ok(opened)
    }

    /// The file, opened again unless it is among those that were read last.
    fn file(&self) -> Result<Arc<File>> {
        let mut recent = self.recent.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = recent.iter().position(|(number, _)| *number == self.number) {
            recent.make_contiguous()[..=place].rotate_right(1);
            return Ok(Arc::clone(&recent[0].1));
        }
        drop(recent);
        let file = open(&self.path).map_err(|error| Error::io(&self.path, error))?;
        let now = Identity::of(&file).map_err(|error| Error::io(&self.path, error))?;
        if now != self.identity {
            return Err(self.identity_refusal(&now));
        }
        let file = Arc::new(file);
        self.keep(Arc::clone(&file));
        Ok(file)
    }

    /// Keeps the file open until enough others were read.
    fn keep(&self, file: Arc<File>) {
        let mut recent = self.recent.0.lock().unwrap_or_else(PoisonError::into_inner);
        recent.push_front((self.number, file));
        recent.truncate(MOST_OPEN);
    }

    /// Fills `buffer` from `offset` on. `tensor` names the tensor that is read, if it is not the header, for an error.
    pub(super) fn read(
        &self,
        offset: u64,
        buffer: &mut [u8],
        tensor: impl FnOnce() -> Option<String>,
    ) -> Result<()> {
        let file = self.file()?;
        read_exact_at(&file, offset, buffer).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Truncated {
                path: self.path.clone(),
                tensor: tensor(),
                opened_length: self.length,
                end: offset + buffer.len() as u64,
            },
            _ => Error::io(&self.path, error),
        })
    }

    /// The time of the last change, in nanoseconds since 1970, as text; empty where the system has none.
    pub(super) fn version(&self) -> String {
        let since = self.identity.modified.and_then(|time| time.duration_since(SystemTime::UNIX_EPOCH).ok());
        since.map_or_else(String::new, |since| since.as_nanos().to_string())
    }

    /// Fails if the file was replaced or written to since it was opened.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        let now =
            Identity::of_metadata(&fs::metadata(&self.path).map_err(|error| Error::io(&self.path, error))?);
        if now == self.identity { Ok(()) } else { Err(self.identity_refusal(&now)) }
    }

    fn identity_refusal(&self, now: &Identity) -> Error {
        let problem = format!(
            "the file changed while it was read: it had {} bytes, and has {} now or was written to meanwhile; scan again \
             when nothing writes to it",
            self.length, now.length
        );
        Error::checkpoint(&self.path, problem)
    }

    /// Maps `length` bytes from `offset` on, if they are in the page cache.
    pub(super) fn map(&self, offset: u64, length: usize) -> Option<MappedRange<'_>> {
        let file = self.file().ok()?;
        self.mapping.map(&file, &self.path, offset, length)
    }

    /// The error of a file that lost bytes of a tensor while they were mapped, and has them again.
    pub(super) fn changed(&self, tensor: String) -> Error {
        let (path, opened_length) = (self.path.clone(), self.length);
        match fs::metadata(&path) {
            Ok(now) => Error::Changed { path, tensor, opened_length, current_length: now.len() },
            Err(error) => Error::io(&path, error),
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    if failing::is_due() { Err(io::Error::other("injected")) } else { File::open(path) }
}

/// Fills `buffer` from `offset` on, or fails with [`io::ErrorKind::UnexpectedEof`].
#[cfg(unix)]
fn read_exact_at(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
    if failing::is_due() {
        return Err(io::Error::other("injected"));
    }
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut offset: u64, mut buffer: &mut [u8]) -> io::Result<()> {
    use std::os::windows::fs::FileExt;
    while !buffer.is_empty() {
        match file.seek_read(buffer, offset) {
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
