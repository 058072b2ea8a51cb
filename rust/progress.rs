//! Progress and cancellation of a long call.
//!
//! Ctrl-C stops a call from Python as follows. [`run_with_progress`] runs the call on another thread, while `long_call`
//! in `python/mod.rs` looks for signals and cancels the call when one has come. The threads of a scan check for the
//! cancellation between pieces of work (`scan/group.rs`).
//!
//! A call that only reads, and can therefore be left alone, is run by [`run_or_leave`], which does not wait for it once it is
//! cancelled: to sort a million names takes a while. Its thread ends at its next look at the cancellation.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};
use crate::threads;

/// The state of a long call, shared by the call and its caller.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set to stop the call.
    pub cancelled: Arc<AtomicBool>,
    /// Bytes done so far.
    pub done: AtomicU64,
    /// Bytes to do; 0 until it is known.
    pub total: AtomicU64,
}

impl Progress {
    /// Fails with [`Error::Interrupted`] once the caller has cancelled the call.
    pub fn check_cancelled(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Bytes done and bytes to do.
    pub fn bytes(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// Runs `work`, which changes nothing, on a thread of its own, and `check` on this one every `interval`. A failure of `check`
/// cancels the work and is returned at once, while the work comes to its end by itself.
pub fn run_or_leave<T: Send + 'static, E: From<Error>>(
    progress: &Arc<Progress>,
    interval: Duration,
    work: impl FnOnce(&Progress) -> Result<T> + Send + 'static,
    mut check: impl FnMut() -> std::result::Result<(), E>,
) -> std::result::Result<T, E> {
    let (at_end, ended) = channel();
    let shared = Arc::clone(progress);
    let worker = thread::Builder::new()
        .spawn(move || drop(at_end.send(work(&shared))))
        .map_err(|source| Error::Threads { source })?;
    loop {
        match ended.recv_timeout(interval) {
            Ok(result) => {
                check()?;
                return Ok(result?);
            }
            Err(RecvTimeoutError::Timeout) => {
                check().inspect_err(|_| progress.cancelled.store(true, Ordering::Relaxed))?;
            }
            Err(RecvTimeoutError::Disconnected) => {
                return match worker.join() {
                    Ok(()) => Err(Error::Interrupted.into()),
                    Err(panic) => resume_unwind(panic),
                };
            }
        }
    }
}

/// Runs `work` on a thread of its own, and `report` on this one every `interval` and once more after success.
///
/// Both see `progress`. A failure of `report` cancels the work and is the result once the work has stopped. The call
/// returns as soon as the
/// work ends, and passes its panic on.
pub fn run_with_progress<T: Send, E: From<Error>>(
    progress: &Progress,
    interval: Duration,
    work: impl FnOnce(&Progress) -> Result<T> + Send,
    mut report: impl FnMut(&Progress) -> std::result::Result<(), E>,
) -> std::result::Result<T, E> {
    thread::scope(|scope| {
        let (at_end, ended) = channel::<()>();
        let worker = threads::start(scope, move || {
            let _at_end = at_end; // Dropped, and so noticed, however the work ends.
            work(progress)
        })?;
        let mut reported = Ok(());
        while reported.is_ok() && ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            reported = report(progress);
        }
        if reported.is_err() {
            progress.cancelled.store(true, Ordering::Relaxed);
        }
        let result = threads::join(worker);
        reported?;
        let value = result?;
        report(progress)?;
        Ok(value)
    })
}
