//! A long call that its caller can watch and stop.

use std::panic::resume_unwind;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use crate::error::{Error, Result};

/// What a long call and its caller say to one another.
#[derive(Debug, Default)]
pub struct Control {
    /// The caller wants the work to stop.
    pub cancelled: AtomicBool,
    /// Bytes done so far.
    pub done: AtomicU64,
    /// Bytes to do; 0 until it is known.
    pub total: AtomicU64,
}

impl Control {
    /// Fails with [`Error::Interrupted`] once the caller wants the work to stop.
    pub fn check(&self) -> Result<()> {
        if self.cancelled.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
    }

    /// Bytes done and bytes to do.
    pub fn progress(&self) -> (u64, u64) {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed))
    }
}

/// Runs `work` on a thread of its own; meanwhile calls `look` on this one, every `interval` and once
/// more when the work has succeeded.
///
/// When `look` fails, the work is told to stop and waited for, and the failure of `look` is the result.
/// Returns as soon as the work ends, and passes its panic on.
pub fn watch<T: Send, E: From<Error>>(
    interval: Duration,
    work: impl FnOnce(&Control) -> Result<T> + Send,
    mut look: impl FnMut(&Control) -> std::result::Result<(), E>,
) -> std::result::Result<T, E> {
    let control = Control::default();
    thread::scope(|scope| {
        let (at_end, ended) = channel::<()>();
        let control = &control;
        let worker = scope.spawn(move || {
            let _at_end = at_end; // dropped, and so noticed, however the work ends
            work(control)
        });
        let mut seen = Ok(());
        while seen.is_ok() && ended.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
            seen = look(control);
        }
        if seen.is_err() {
            control.cancelled.store(true, Ordering::Relaxed);
        }
        let result = worker.join().unwrap_or_else(|panic| resume_unwind(panic));
        seen?;
        let value = result?;
        look(control)?;
        Ok(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    const LONG: Duration = Duration::from_secs(600);
    const SHORT: Duration = Duration::from_millis(1);

    fn until_cancelled(control: &Control) -> Result<()> {
        loop {
            control.check()?;
            thread::sleep(SHORT);
        }
    }

    #[test]
    fn returns_as_soon_as_the_work_ends() {
        let start = Instant::now();
        let mut looks = 0;
        let result = watch(
            LONG,
            |_| Ok(7),
            |_| {
                looks += 1;
                Ok::<_, Error>(())
            },
        );
        assert_eq!((result.ok(), looks), (Some(7), 1));
        assert!(start.elapsed() < LONG / 10);
    }

    #[test]
    fn a_failed_look_stops_the_work_and_is_the_result() {
        let result = watch(SHORT, until_cancelled, |_| Err(Error::Argument("stop".into())));
        assert!(matches!(result, Err(Error::Argument(reason)) if reason == "stop"));
    }

    #[test]
    fn a_failure_of_the_work_is_the_result() {
        let work = |_: &Control| Err::<(), _>(Error::Argument("broken".into()));
        let result = watch(LONG, work, |_| Ok::<_, Error>(()));
        assert!(matches!(result, Err(Error::Argument(reason)) if reason == "broken"));
    }

    #[test]
    fn progress_is_seen_while_the_work_runs_and_at_its_end() {
        let mut seen = Vec::new();
        let work = |control: &Control| {
            control.total.store(2, Ordering::Relaxed);
            control.done.store(1, Ordering::Relaxed);
            thread::sleep(Duration::from_millis(100));
            control.done.store(2, Ordering::Relaxed);
            Ok(())
        };
        let look = |control: &Control| {
            seen.push(control.progress());
            Ok::<_, Error>(())
        };
        assert!(watch(SHORT, work, look).is_ok());
        assert!(seen.contains(&(1, 2)));
        assert_eq!(seen.last(), Some(&(2, 2)));
    }

    #[test]
    #[should_panic(expected = "a bug")]
    fn a_panic_of_the_work_is_passed_on() {
        let _ = watch(LONG, |_| -> Result<()> { panic!("a bug") }, |_| Ok::<_, Error>(()));
    }
}
