//! Handles SIGBUS, which the kernel raises on access to mapped pages that their file has lost.
//!
//! # How the handler works
//!
//! The handler is installed while any file is mapped. Each mapping has a [`Guard`], whose addresses are in a table that
//! the handler reads. After a fault at one of these addresses, the handler maps zeros at all addresses of the guard and
//! sets its flag. The thread then goes on, and the scan fails with `Error::Truncated`, or with `Error::Changed` if the file
//! has the bytes again, when it checks the range (`RangeBuffer::check` in `checkpoint/range.rs`). For
//! every other fault or signal, the handler calls the one that was installed before. A signal handler may neither lock
//! nor allocate, so the table has a fixed size and atomic fields.
//!
//! The lock of the handler's state is held over a fork by the thread that forks, so that no other thread holds it in the
//! child, which has none of the other threads ([`survive_forks`]).

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicU8, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{
    BUS_ADRERR, BUS_MCEERR_AR, SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIG_IGN, SIG_UNBLOCK, SIGBUS, pthread_atfork,
    pthread_sigmask, raise, sigaction, sigaddset, sigemptyset, siginfo_t,
};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Unblocks SIGBUS in the calling thread, once: a fault whose signal is blocked ends the process.
pub(super) fn unblock_sigbus() {
    thread_local!(static IS_UNBLOCKED: Cell<bool> = const { Cell::new(false) });
    if IS_UNBLOCKED.replace(true) {
        return;
    }
    let mut signals = MaybeUninit::uninit();
    // SAFETY: the first call initialises the set that the others read.
    unsafe {
        sigemptyset(signals.as_mut_ptr());
        sigaddset(signals.as_mut_ptr(), SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, signals.as_ptr(), null_mut());
    }
}

/// A range of addresses. While it lives, the handler handles faults at them.
#[derive(Debug)]
pub(super) struct Guard {
    entry: &'static Entry,
}

impl Guard {
    /// Returns nothing if the handler cannot be installed, if another one was installed over it, or if the table is
    /// full.
    pub(super) fn new(start: usize, length: usize) -> Option<Self> {
        Handler::acquire()?;
        let is_free = |entry: &&Entry| !entry.is_claimed.swap(true, Ordering::Acquire);
        let Some(entry) = ENTRIES.iter().find(is_free) else {
            Handler::release();
            return None;
        };
        entry.has_lost_bytes.store(false, Ordering::Relaxed);
        entry.length.store(length, Ordering::Release);
        entry.start.store(start, Ordering::Release);
        Some(Self { entry })
    }

    /// Whether the handler has mapped zeros at these addresses.
    pub(super) fn has_lost_bytes(&self) -> bool {
        // Accesses made before this call stay before it.
        fence(Ordering::SeqCst);
        self.entry.has_lost_bytes.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.entry.start.store(0, Ordering::Release);
        self.entry.generation.fetch_add(1, Ordering::Release);
        self.entry.is_claimed.store(false, Ordering::Release);
        Handler::release();
    }
}

/// What the handler knows of one guard.
#[derive(Debug)]
struct Entry {
    is_claimed: AtomicBool,
    /// The number of guards that had this entry.
    generation: AtomicUsize,
    /// The first address, 0 if there is none.
    start: AtomicUsize,
    length: AtomicUsize,
    has_lost_bytes: AtomicBool,
}

/// One entry for each file that can be mapped at a time. The largest checkpoints known have some hundred files.
static ENTRIES: [Entry; 4096] = [const { Entry::new() }; 4096];

impl Entry {
    const fn new() -> Self {
        Self {
            is_claimed: AtomicBool::new(false),
            generation: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            has_lost_bytes: AtomicBool::new(false),
        }
    }

    /// The start and length of the guarded addresses, if `address` is one of them.
    fn range_around(&self, address: usize) -> Option<(usize, usize)> {
        let generation = self.generation.load(Ordering::Acquire);
        let start = self.start.load(Ordering::Acquire);
        let length = self.length.load(Ordering::Acquire);
        // Another guard may have claimed the entry between these loads, even one that begins at the same address.
        let is_consistent = start != 0 && generation == self.generation.load(Ordering::Acquire);
        let is_inside = address.checked_sub(start).is_some_and(|distance| distance < length);
        (is_consistent && is_inside).then_some((start, length))
    }

    /// Maps zeros at all guarded addresses, since no byte of the file is used any more.
    fn map_zeros(&self, (start, length): (usize, usize)) -> bool {
        // Set before any thread can read a zero.
        self.has_lost_bytes.store(true, Ordering::SeqCst);
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: the addresses are those of one guard, and the thread stopped here is reading one of them, so they hold a
        // read-only mapping, which stays while it is borrowed. They show zeros from now on, as they do where a file ends.
        unsafe { mmap_anonymous(start as *mut c_void, length, ProtFlags::READ, flags) }.is_ok()
    }
}

/// The state of the process-wide handler.
struct Handler {
    guards: usize,
    /// Another handler was installed over this one and may call it, so neither can be removed any more.
    is_covered: bool,
}

static HANDLER: Mutex<Handler> = Mutex::new(Handler { guards: 0, is_covered: false });

/// The action that was installed before. It is never freed, since the handler may be reading it.
static PREVIOUS: AtomicPtr<sigaction> = AtomicPtr::new(null_mut());

impl Handler {
    fn lock() -> MutexGuard<'static, Self> {
        HANDLER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Installs the handler for the first of several guards.
    fn acquire() -> Option<()> {
        survive_forks()?;
        let mut handler = Self::lock();
        let current = current_action()?;
        if handler.is_covered || (handler.guards > 0 && current.sa_sigaction != address_of_handler()) {
            return None;
        }
        if handler.guards == 0 {
            keep_previous(current);
            let mut action = default_action();
            action.sa_sigaction = address_of_handler();
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: `handle` has the signature that SA_SIGINFO asks for, and does only what a signal handler may do: it
            // reads atomics, and makes system calls that a handler may make.
            if unsafe { sigaction(SIGBUS, &raw const action, null_mut()) } != 0 {
                return None;
            }
        }
        handler.guards += 1;
        Some(())
    }

    /// Restores the previous action after the last guard.
    fn release() {
        let mut handler = Self::lock();
        handler.guards -= 1;
        if handler.guards > 0 {
            return;
        }
        if current_action().is_some_and(|current| current.sa_sigaction == address_of_handler()) {
            // SAFETY: the action is the one that was installed in this process before, kept by `keep_previous` and never
            // freed.
            unsafe { sigaction(SIGBUS, PREVIOUS.load(Ordering::Acquire), null_mut()) };
        } else {
            handler.is_covered = true;
        }
    }
}

/// Makes every fork of the process wait for the lock of the handler, once. Returns nothing if the system refuses, or while
/// another thread is at it.
fn survive_forks() -> Option<()> {
    const NO: u8 = 0;
    const BEGUN: u8 = 1;
    const YES: u8 = 2;
    static DONE: AtomicU8 = AtomicU8::new(NO);
    match DONE.compare_exchange(NO, BEGUN, Ordering::AcqRel, Ordering::Acquire) {
        Ok(_) => {
            // SAFETY: the functions take and give back a lock, which the thread that forks may do before and after.
            let refused = unsafe { pthread_atfork(Some(before_fork), Some(after_fork), Some(after_fork)) };
            DONE.store(if refused == 0 { YES } else { NO }, Ordering::Release);
            (refused == 0).then_some(())
        }
        Err(state) => (state == YES).then_some(()),
    }
}

thread_local!(static HELD_OVER_FORK: Cell<Option<MutexGuard<'static, Handler>>> = const { Cell::new(None) });

unsafe extern "C" fn before_fork() {
    // A thread that is ending has no such place any longer; it forks without the lock.
    let _ = HELD_OVER_FORK.try_with(|held| held.set(Some(Handler::lock())));
}

unsafe extern "C" fn after_fork() {
    let _ = HELD_OVER_FORK.try_with(Cell::take);
}

/// The action that is installed now.
fn current_action() -> Option<sigaction> {
    let mut current = default_action();
    // SAFETY: the call installs nothing and writes the current action.
    (unsafe { sigaction(SIGBUS, null(), &raw mut current) } == 0).then_some(current)
}

/// Keeps `action` as the previous one, in new memory unless it equals the one kept last.
fn keep_previous(action: sigaction) {
    // SAFETY: the pointer is null, or that of an action which was kept here, whole, and is never freed.
    let last = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    if last.is_none_or(|last| *last != action) {
        PREVIOUS.store(Box::leak(Box::new(action)), Ordering::Release);
    }
}

fn default_action() -> sigaction {
    // SAFETY: zeros are a valid action, the default one.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

type Function = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

fn address_of_handler() -> usize {
    handle as Function as usize
}

extern "C" fn handle(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid description of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // The address means nothing in a signal that was sent or that is about something else than an access.
    let is_access = code == BUS_ADRERR || code == BUS_MCEERR_AR;
    let is_answered = |entry: &Entry| entry.range_around(address).is_some_and(|range| entry.map_zeros(range));
    if is_access && ENTRIES.iter().any(is_answered) {
        return;
    }
    // SAFETY: the previous action was kept before this handler was installed, and is never freed. The kernel gave it, so
    // what is neither SIG_DFL nor SIG_IGN is a function, with the signature that its flags tell.
    unsafe {
        let previous = *PREVIOUS.load(Ordering::Acquire);
        match previous.sa_sigaction {
            SIG_IGN if !is_access => {}
            SIG_DFL | SIG_IGN => {
                // The access is repeated after this handler, and its second fault meets the default action.
                let default = default_action();
                sigaction(signal, &raw const default, null_mut());
                if !is_access {
                    raise(signal);
                }
            }
            function if previous.sa_flags & SA_SIGINFO != 0 => {
                mem::transmute::<usize, Function>(function)(signal, info, context);
            }
            function => mem::transmute::<usize, extern "C" fn(c_int)>(function)(signal),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_action_is_kept_in_new_memory_only_if_it_is_another_one() {
        let _state = Handler::lock();
        let before = PREVIOUS.load(Ordering::Acquire);
        let keep = |flags: c_int| {
            let mut action = default_action();
            action.sa_flags = flags;
            keep_previous(action);
            PREVIOUS.load(Ordering::Acquire)
        };
        let (first, second, other) = (keep(0), keep(0), keep(SA_ONSTACK));
        PREVIOUS.store(before, Ordering::Release);
        assert_eq!(first, second);
        assert_ne!(first, other);
    }

    #[test]
    fn addresses_are_those_of_one_guard() {
        let entry = Entry::new();
        entry.start.store(4096, Ordering::Release);
        entry.length.store(100, Ordering::Release);
        assert_eq!(entry.range_around(4195), Some((4096, 100)));
        assert_eq!([4095, 4196].map(|address| entry.range_around(address)), [None, None]);
        entry.start.store(0, Ordering::Release);
        assert_eq!(entry.range_around(50), None);
    }
}
