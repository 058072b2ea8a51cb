//! One way to lock.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks, even if a thread has panicked while it held the lock: what is behind a lock here is whole at any time, or is
/// not looked at again, since the panic ends the call.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
