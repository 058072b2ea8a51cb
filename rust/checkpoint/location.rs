//! Paths of files on this machine and elsewhere.

use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::store::{Store, ask};
use crate::error::{Error, Result};

/// The path of a file or folder, and the store that has it if it is not on this machine. Parts of a path in a store are
/// divided by `/`.
#[derive(Clone, Debug)]
pub struct Location {
    path: PathBuf,
    store: Option<Arc<dyn Store>>,
    /// Set when the call that reads it is to stop.
    cancelled: Arc<AtomicBool>,
}

impl<P: AsRef<Path>> From<P> for Location {
    /// A path on this machine.
    fn from(path: P) -> Self {
        Self { path: path.as_ref().to_path_buf(), store: None, cancelled: Arc::default() }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, formatter: &mut fmt::Formatter) -> fmt::Result {
        self.path.display().fmt(formatter)
    }
}

impl Location {
    /// A path in a store.
    pub fn in_store(path: &str, store: Arc<dyn Store>) -> Self {
        Self { path: path.trim_end_matches('/').into(), store: Some(store), cancelled: Arc::default() }
    }

    /// The same path. What reads it stops once `cancelled` is set.
    pub fn cancelled_by(self, cancelled: &Arc<AtomicBool>) -> Self {
        Self { cancelled: Arc::clone(cancelled), ..self }
    }

    /// Fails with [`Error::Interrupted`] once the call that reads it is to stop.
    pub(crate) fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// The path, for messages as well.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The store that has the file; nothing if it is on this machine.
    pub(crate) fn store(&self) -> Option<&Arc<dyn Store>> {
        self.store.as_ref()
    }

    /// The path as text, as stores take it.
    pub(super) fn text(&self) -> String {
        self.path.to_string_lossy().into_owned()
    }

    pub(crate) fn file_name(&self) -> String {
        self.path.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// The file or folder of this name in this folder. A name in a store may have several parts.
    pub(crate) fn join(&self, name: &str) -> Self {
        let path = match &self.store {
            None => self.path.join(name),
            Some(_) => format!("{}/{name}", self.path.display()).into(),
        };
        Self { path, ..self.clone() }
    }

    /// The folder that it is in.
    pub(crate) fn parent(&self) -> Self {
        Self { path: self.path.parent().unwrap_or(Path::new("")).to_path_buf(), ..self.clone() }
    }

    /// The file of this name in the same folder.
    pub(crate) fn with_file_name(&self, name: &str) -> Self {
        if self.store.is_some() {
            return self.parent().join(name);
        }
        Self { path: self.path.with_file_name(name), ..self.clone() }
    }

    /// The names of the files and folders in a folder, sorted; nothing if it is a file.
    pub(super) fn names(&self) -> io::Result<Option<Vec<String>>> {
        let mut names = match &self.store {
            Some(store) => match ask(&**store, |reply| store.names(&self.text(), reply)) {
                Err(error) if error.kind() == io::ErrorKind::NotADirectory => return Ok(None),
                names => names?,
            },
            None if !fs::metadata(&self.path)?.is_dir() => return Ok(None),
            None => fs::read_dir(&self.path)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect::<io::Result<_>>()?,
        };
        names.sort_unstable();
        Ok(Some(names))
    }

    /// Whether it is a file. A store that cannot say it is an error.
    pub(crate) fn is_file(&self) -> Result<bool> {
        let Some(store) = &self.store else { return Ok(self.path.is_file()) };
        match ask(&**store, |reply| store.status(&self.text(), false, reply)) {
            Ok(_) => Ok(true),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(false)
            }
            Err(error) => Err(Error::io(&self.path, error)),
        }
    }

    /// Whether there is a file or a folder. In a store, only files are looked for.
    pub(crate) fn exists(&self) -> Result<bool> {
        if self.store.is_some() { self.is_file() } else { Ok(self.path.exists()) }
    }
}
