//! Files that are not on this machine: what a store of them can do, and how its answers are awaited.
//!
//! # How a store is asked
//!
//! A [`Store`] is told what is wanted and returns at once. It answers later, from a thread of its own, through the
//! [`Reply`] that came with the question. So no thread of a scan is ever inside the code of a store, and a scan that is
//! cancelled leaves questions unanswered instead of waiting for a network.

use std::fmt::Debug;
use std::io;
use std::ops::Range;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// The bytes of a range, in whatever memory the store has them.
pub type StoredBytes = Box<dyn AsRef<[u8]> + Send + Sync>;

/// Takes the answer to a question.
pub type Reply<T> = Box<dyn FnOnce(io::Result<T>) + Send>;

/// What a store says of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileStatus {
    /// The number of bytes.
    pub length: u64,
    /// A text that changes when the file is written to, such as an ETag or the time of the last change.
    pub version: String,
}

/// A place elsewhere that holds files: a hub, an object store, a web server. Paths are those of [`super::Location`].
pub trait Store: Debug + Send + Sync {
    /// Asks for the names of the files and folders in a folder; fails with [`io::ErrorKind::NotADirectory`] for a file.
    fn names(&self, folder: &str, reply: Reply<Vec<String>>);

    /// Asks for the status of a file. Unless it has to be `fresh`, an earlier answer may be given again.
    fn status(&self, file: &str, fresh: bool, reply: Reply<FileStatus>);

    /// Asks for the bytes of a range of a file, which lies within the file.
    fn read(&self, file: &str, range: Range<u64>, reply: Reply<StoredBytes>);

    /// Whether the caller no longer wants the answers.
    fn is_cancelled(&self) -> bool;
}

/// How often a thread that waits for an answer looks whether the call was cancelled.
pub(super) const CANCELLATION_INTERVAL: Duration = Duration::from_millis(50);

/// The error of a question whose answer is no longer wanted.
pub(super) fn cancelled() -> io::Error {
    io::Error::new(io::ErrorKind::Interrupted, "the call was cancelled")
}

/// A question whose answer is awaited.
pub(super) struct Question<T>(Receiver<io::Result<T>>);

impl<T: Send + 'static> Question<T> {
    /// Asks a question, without waiting for the answer.
    pub(super) fn ask(question: impl FnOnce(Reply<T>)) -> Self {
        let (sender, receiver) = channel();
        question(Box::new(move |answer| drop(sender.send(answer))));
        Self(receiver)
    }

    /// Waits for the answer of `store`.
    pub(super) fn wait(self, store: &dyn Store) -> io::Result<T> {
        loop {
            if store.is_cancelled() {
                return Err(cancelled());
            }
            match self.0.recv_timeout(CANCELLATION_INTERVAL) {
                Ok(answer) => return answer,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(io::Error::other("the store of the file gave no answer"));
                }
            }
        }
    }
}

/// Asks a question and waits for the answer.
pub(super) fn ask<T: Send + 'static>(store: &dyn Store, question: impl FnOnce(Reply<T>)) -> io::Result<T> {
    Question::ask(question).wait(store)
}

/// Refuses bytes of another number than were asked for, as servers send that know no ranges.
pub(super) fn check_length(bytes: StoredBytes, range: &Range<u64>) -> io::Result<StoredBytes> {
    let (expected, found) = (range.end - range.start, (*bytes).as_ref().len() as u64);
    if found == expected {
        return Ok(bytes);
    }
    let problem = format!(
        "expected the {expected} bytes from byte {} to {}, found {found}: the server may not know ranges",
        range.start, range.end
    );
    Err(io::Error::new(io::ErrorKind::InvalidData, problem))
}
