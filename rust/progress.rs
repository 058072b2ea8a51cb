//! Progress and cancellation of a long call.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// The state of a long call, shared by the call and its caller.
#[derive(Debug, Default)]
pub struct Progress {
    /// Set by the caller to stop the call.
    pub cancelled: AtomicBool,
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

/// Runs `work` on a thread of its own, and `report` on this one every `interval` and once more after success.
///
/// A failure of `report` cancels the work and is the result once the work has stopped. The call returns as soon as the
/// work ends, and passes its panic on.
pub fn run_with_progress<T: Send, E: From<Error>>(
    interval: Duration,
    work: impl FnOnce(&Progress) -> Result<T> + Send,
    mut report: impl FnMut(&Progress) -> std::result::Result<(), E>,
) -> std::result::Result<T, E> {
    let progress = Progress::default();
    thread::scope(|scope| {
        let (at_end, ended) = channel::<()>();
        let progress = &progress;
        let worker = scope.spawn(move || {
            let _at_end = at_end; // Dropped, and so noticed, however the work ends.
            work(progress)
        });
        let mut reported = Ok(());
        while reported.is_ok() && ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            reported = report(progress);
        }
        if reported.is_err() {
            progress.cancelled.store(true, Ordering::Relaxed);
        }
        let result = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        reported?;
        let value = result?;
        report(progress)?;
        Ok(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(1);

    fn until_cancelled(progress: &Progress) -> Result<()> {
        loop {
            progress.check_cancelled()?;
            thread::sleep(SHORT);
        }
    }

    #[test]
    fn returns_as_soon_as_the_work_ends() {
        let start = Instant::now();
        let mut reports = 0;
        let result = run_with_progress(
            LONG,
            |_| Ok(7),
            |_| {
                reports += 1;
                Ok::<_, Error>(())
            },
        );
        assert_eq!((result.ok(), reports), (Some(7), 1));
        assert!(start.elapsed() < LONG / 10);
    }

    #[test]
    fn a_failed_report_stops_the_work_and_is_the_result() {
        let result = run_with_progress(SHORT, until_cancelled, |_| Err(Error::Argument("stop".into())));
        assert!(matches!(result, Err(Error::Argument(reason)) if reason == "stop"));
    }

    #[test]
    fn a_failure_of_the_work_is_the_result() {
        let work = |_: &Progress| Err::<(), _>(Error::Argument("broken".into()));
        let result = run_with_progress(LONG, work, |_| Ok::<_, Error>(()));
        assert!(matches!(result, Err(Error::Argument(reason)) if reason == "broken"));
    }

    #[test]
    fn progress_is_reported_while_the_work_runs_and_at_its_end() {
        let mut seen = Vec::new();
        let work = |progress: &Progress| {
            progress.total.store(2, Ordering::Relaxed);
            progress.done.store(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100));
            progress.done.store(2, Ordering::Relaxed);
            Ok(())
        };
        let report = |progress: &Progress| {
            seen.push(progress.bytes());
            Ok::<_, Error>(())
        };
        assert!(run_with_progress(SHORT, work, report).is_ok());
        assert!(seen.contains(&(1, 2)));
        assert_eq!(seen.last(), Some(&(2, 2)));
    }

    #[test]
    #[should_panic(expected = "a bug")]
    fn a_panic_of_the_work_is_passed_on() {
        let _ = run_with_progress(LONG, |_| -> Result<()> { panic!("a bug") }, |_| Ok::<_, Error>(()));
    }
}
