//! Locks, conditions and counters: those of the standard library, or with `--cfg shuttle` those of shuttle, which tries many
//! orders of the threads' steps (`make schedules`).

#[cfg(shuttle)]
pub(crate) use shuttle::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
#[cfg(not(shuttle))]
pub(crate) use std::sync::{Condvar, Mutex, MutexGuard, RwLock, atomic};
