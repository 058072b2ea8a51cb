//! Starts threads that end before the call that starts them.

use std::panic::resume_unwind;
use std::thread::{Builder, Scope, ScopedJoinHandle, scope};

use crate::error::{Error, Result};

/// Starts a thread; fails if the system has none left, where the standard library's `spawn` panics.
pub(crate) fn start<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>> {
    Builder::new().spawn_scoped(scope, work).map_err(|source| Error::Threads { source })
}

/// The result of a thread, or its panic.
pub(crate) fn join<T>(thread: ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

/// The results of `work` by so many threads. If one of them cannot be started, `stop` ends the work of the others.
///
/// This thread works only if one is enough. Otherwise it starts all of them and waits: the system may start a thread on the
/// core of the thread that asks, where both would work at half the speed for a while.
pub(crate) fn in_threads<T: Send>(
    threads: usize,
    work: impl Fn() -> T + Sync,
    stop: impl Fn(),
) -> Result<Vec<T>> {
    if threads == 1 {
        return Ok(vec![work()]);
    }
    scope(|scope| {
        let mut started = Vec::new();
        for _ in 0..threads {
            started.push(start(scope, &work).inspect_err(|_| stop())?);
        }
        Ok(started.into_iter().map(join).collect())
    })
}
