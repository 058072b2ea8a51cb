//! Everything that can go wrong, and how it is said.
//!
//! A message names the file, the tensor, what was expected, what was found and, where there is one,
//! what to do. Each variant is one exception class in Python.

use std::io;
use std::path::{Path, PathBuf};

/// What a refusal is about.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file is not what its name promises: truncated, malformed, inconsistent, of another format.
    #[error("{}: {problem}", path.display())]
    Checkpoint {
        /// The file or folder.
        path: PathBuf,
        /// What was expected, what was found.
        problem: String,
    },
    /// The model is of no known layout, or contradicts its own configuration.
    #[error("{}: {problem}", path.display())]
    Model {
        /// The checkpoint.
        path: PathBuf,
        /// What was expected, what was found.
        problem: String,
    },
    /// The two checkpoints are not two states of one model.
    #[error("{base} and {tuned} are not two states of one model: {problem}", base = base.display(), tuned = tuned.display())]
    Pair {
        /// The base checkpoint.
        base: PathBuf,
        /// The tuned checkpoint.
        tuned: PathBuf,
        /// What differs.
        problem: String,
    },
    /// A weight is not a number that a score can be made of.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file that holds the weight.
        path: PathBuf,
        /// The tensor, the head and the value.
        problem: String,
    },
    /// An argument is out of its domain.
    #[error("{0}")]
    Argument(String),
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// The result of everything that can be refused.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The operating system refused something about `path`.
    pub fn io(path: &Path, source: io::Error) -> Self {
        Error::Io { path: path.to_path_buf(), source }
    }

    /// `path` is not a checkpoint, or not a whole one.
    pub fn checkpoint(path: &Path, problem: impl Into<String>) -> Self {
        Error::Checkpoint { path: path.to_path_buf(), problem: problem.into() }
    }

    /// The model at `path` cannot be read as one of the known layouts.
    pub fn model(path: &Path, problem: impl Into<String>) -> Self {
        Error::Model { path: path.to_path_buf(), problem: problem.into() }
    }

    /// A weight in `path` is unusable.
    pub fn weights(path: &Path, problem: impl Into<String>) -> Self {
        Error::Weights { path: path.to_path_buf(), problem: problem.into() }
    }
}

/// A name taken from a file, fit for a message: quoted, on one line, not too long.
pub(crate) fn quote(name: &str) -> String {
    format!("`{}`", shorten(name, 200).escape_debug())
}

/// The text, cut to `longest` characters.
pub(crate) fn shorten(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoting_keeps_a_message_on_one_short_line() {
        assert_eq!(quote("a\nb"), "`a\\nb`");
        assert_eq!(quote(&"é".repeat(1000)).chars().count(), 200 + 3);
    }
}
