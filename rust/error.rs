//! The errors of the crate and their messages.
//!
//! A message names the file, the tensor, what was expected, what was found and, where there is one, what to do. Each
//! variant belongs to one exception class in Python, whose attributes are the fields.

use std::fmt::{self, Display, Formatter};
use std::io;
use std::path::{Path, PathBuf};

/// The reason for which a call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused an access.
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
    /// A file became shorter after it was opened.
    #[error(
        "{}: the file had {opened_length} bytes when it was opened, but ended before byte {end} while {reading} was \
         read: it was truncated meanwhile",
        path.display(),
        reading = tensor.as_ref().map_or_else(|| "its header".into(), |tensor| format!("tensor {}", quote(tensor)))
    )]
    Truncated {
        /// The file.
        path: PathBuf,
        /// The tensor that was read; none for the header.
        tensor: Option<String>,
        /// The bytes of the file when it was opened.
        opened_length: u64,
        /// The end of the bytes that were read for, which the file no longer had.
        end: u64,
    },
    /// A file lost bytes after it was opened, and has them again.
    #[error(
        "{}: the file, of {opened_length} bytes when it was opened and {current_length} now, was shorter while tensor \
         {} was read: it changed meanwhile",
        path.display(),
        quote(tensor)
    )]
    Changed {
        /// The file.
        path: PathBuf,
        /// The tensor that was read.
        tensor: String,
        /// The bytes of the file when it was opened.
        opened_length: u64,
        /// The bytes of the file now.
        current_length: u64,
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
    #[error(
        "{} and {} are not two states of one model: {}",
        base.display(),
        tuned.display(),
        differences.iter().map(Difference::to_string).collect::<Vec<_>>().join("; ")
    )]
    Pair {
        /// The base checkpoint.
        base: PathBuf,
        /// The tuned checkpoint.
        tuned: PathBuf,
        /// What differs.
        differences: Vec<Difference>,
    },
    /// A weight is not finite, or too far from that of the other checkpoint.
    #[error("{}: {weight}", path.display())]
    Weight {
        /// The file that holds the weight, or that of the adapter which changes it.
        path: PathBuf,
        /// The weight.
        weight: BadWeight,
    },
    /// Weights are not numbers that a score can be made of.
    #[error("{}: {problem}", path.display())]
    Weights {
        /// The file that holds the weights.
        path: PathBuf,
        /// The tensor or the head, what was expected, what was found.
        problem: String,
    },
    /// An argument is out of its domain.
    #[error("{0}")]
    Argument(String),
    /// The system starts no further thread.
    #[error("a thread cannot be started: {source}")]
    Threads {
        /// The reason.
        source: io::Error,
    },
    /// The caller asked to stop.
    #[error("interrupted")]
    Interrupted,
}

/// What differs between the models of a pair.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// A size, a number or a name.
    #[error(
        "{quantity} is {base} in the one, {tuned} in the other{}",
        layer.map_or(String::new(), |layer| format!(" (layer {layer})"))
    )]
    Quantity {
        /// What it is.
        quantity: &'static str,
        /// The number of the layer, of a quantity that layers have.
        layer: Option<usize>,
        /// What the base model has.
        base: String,
        /// What the tuned model has.
        tuned: String,
    },
    /// Only one of the two is in the consolidated form.
    #[error(
        "consolidated weights have the rows within a head in another order; compare them with others of that form, or \
         convert them with transformers first"
    )]
    RowOrder,
    /// The layers with attention have other numbers.
    #[error("their layers with attention are not the same")]
    LayerNumbers,
}

/// The name of a query head, or of the key or value head of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{role} head {index} of layer {layer}")]
pub struct HeadName {
    /// "query", "key" or "value".
    pub role: &'static str,
    /// The number of the head within its layer.
    pub index: usize,
    /// The number of the layer.
    pub layer: usize,
}

/// A weight that no score can be made of: NaN, infinite, or too far from that of the other checkpoint. Made by
/// `HeadRows::refusal` in `scan/head_rows.rs`.
#[derive(Clone, Debug, PartialEq)]
pub struct BadWeight {
    /// The tensor.
    pub tensor: String,
    /// Whether an adapter changes the tensor.
    pub is_adapted: bool,
    /// The place in the tensor, as stored.
    pub position: [usize; 2],
    /// The head that the weight belongs to.
    pub head: HeadName,
    /// The weight.
    pub value: f64,
}

impl Display for BadWeight {
    fn fmt(&self, formatter: &mut Formatter) -> fmt::Result {
        let Self { tensor, is_adapted, position: [row, column], head, value } = self;
        let tensor = format!("{tensor}{}", if *is_adapted { ", as the adapter changes it," } else { "" });
        let place = format!("at [{row}, {column}] ({head})");
        if value.is_finite() {
            let problem = "is too far from that of the other checkpoint";
            write!(formatter, "the weight {value:e} of tensor {tensor} {place} {problem}")
        } else {
            write!(formatter, "tensor {tensor} holds {value} {place}; every weight has to be finite")
        }
    }
}

/// The result of a call that can fail.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// The operating system, or a store of files, refused something about `path`; or the call was cancelled.
    pub fn io(path: &Path, source: io::Error) -> Self {
        match source.kind() {
            io::ErrorKind::Interrupted => Error::Interrupted,
            _ => Error::Io { path: path.to_path_buf(), source },
        }
    }

    /// The content of `path` cannot be held or is not valid.
    pub(crate) fn in_file(path: &Path, error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::InvalidData => Error::checkpoint(path, error.to_string()),
            _ => Error::io(path, error),
        }
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
