//! What happens when a mapped file has become shorter: SIGBUS, for which a process ends unless it has a handler.
//!
//! The handler is there while files are mapped, answers for their addresses and for no others, which it leaves to
//! whatever handled the signal before.

use std::cell::UnsafeCell;
use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr::{null, null_mut};
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use libc::{SA_ONSTACK, SA_SIGINFO, SIGBUS, raise, sigaction, siginfo_t};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// As long as this lives, zeros are shown where something is missing that was mapped at some addresses.
#[derive(Debug)]
pub(super) struct Watch {
    entry: &'static Entry,
}

impl Watch {
    /// None if signals cannot be handled, or if somebody else has begun to.
    pub(super) fn over(start: usize, length: usize) -> Option<Self> {
        Handler::hold()?;
        let entry = Entry::free();
        entry.gap.store(false, Ordering::Relaxed);
        entry.length.store(length, Ordering::Relaxed);
        entry.start.store(start, Ordering::Release);
        Some(Self { entry })
    }

    /// Whether something was missing.
    pub(super) fn has_gap(&self) -> bool {
        self.entry.gap.load(Ordering::Acquire)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.entry.start.store(0, Ordering::Release);
        self.entry.taken.store(false, Ordering::Release);
        Handler::release();
    }
}

/// What the handler knows of a watch. A handler may take no lock and no memory, so entries stand in a list that only
/// grows: one whose watch is gone is used again.
#[derive(Debug)]
struct Entry {
    taken: AtomicBool,
    /// Addresses; a start of 0 if there are none.
    start: AtomicUsize,
    length: AtomicUsize,
    /// Whether something was missing there.
    gap: AtomicBool,
    next: *const Entry,
}

// SAFETY: `next` is written before others see the entry, and points to what lives as long as the process.
unsafe impl Sync for Entry {}

static ENTRIES: AtomicPtr<Entry> = AtomicPtr::new(null_mut());

impl Entry {
    fn all() -> impl Iterator<Item = &'static Entry> {
        // SAFETY: entries are never freed.
        let entry = |entry: *const Entry| unsafe { entry.as_ref() };
        std::iter::successors(entry(ENTRIES.load(Ordering::Acquire)), move |last| entry(last.next))
    }

    /// One that no watch has, now the caller's.
    fn free() -> &'static Self {
        let takes = |entry: &&Entry| !entry.taken.swap(true, Ordering::Acquire);
        if let Some(entry) = Self::all().find(takes) {
            return entry;
        }
        let entry: *mut Self = Box::leak(Box::new(Self {
            taken: AtomicBool::new(true),
            start: AtomicUsize::new(0),
            length: AtomicUsize::new(0),
            gap: AtomicBool::new(false),
            next: null(),
        }));
        let mut first = ENTRIES.load(Ordering::Acquire);
        loop {
            // SAFETY: nobody else knows of the entry yet, and it is never freed.
            unsafe { (*entry).next = first };
            match ENTRIES.compare_exchange(first, entry, Ordering::AcqRel, Ordering::Acquire) {
                // SAFETY: as above; from here on it is only shared.
                Ok(_) => return unsafe { &*entry },
                Err(other) => first = other,
            }
        }
    }

    fn contains(&self, address: usize) -> bool {
        let start = self.start.load(Ordering::Acquire);
        start != 0
            && address.checked_sub(start).is_some_and(|place| place < self.length.load(Ordering::Relaxed))
    }

    /// Shows zeros at all addresses, since none of what is seen there counts any more.
    fn fill(&self) -> bool {
        // Before anyone can see a zero.
        self.gap.store(true, Ordering::Release);
        let (start, length) = (self.start.load(Ordering::Acquire), self.length.load(Ordering::Relaxed));
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE | MapFlags::FIXED;
        // SAFETY: there is a mapping that is only read, and that the thread which is stopped here is looking at, so it is
        // not going away.
        unsafe { mmap_anonymous(start as *mut c_void, length, ProtFlags::READ, flags) }.is_ok()
    }
}

/// How many watches need the handler, and whether it can be put in place.
struct Handler {
    holders: usize,
    /// Another handler was put over this one and may go on to call it, so that nothing may be changed any more.
    is_covered: bool,
}

static HANDLER: Mutex<Handler> = Mutex::new(Handler { holders: 0, is_covered: false });

/// What handled the signal before.
struct Previous(UnsafeCell<MaybeUninit<sigaction>>);

// SAFETY: it is written under the lock of `HANDLER`, and before the handler is in place that reads it.
unsafe impl Sync for Previous {}

static PREVIOUS: Previous = Previous(UnsafeCell::new(MaybeUninit::uninit()));

impl Handler {
    fn lock() -> MutexGuard<'static, Self> {
        HANDLER.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the handler in place, if it is not there, until it is released as often as it was held.
    fn hold() -> Option<()> {
        let mut handler = Self::lock();
        if handler.is_covered {
            return None;
        }
        if handler.holders == 0 {
            // SAFETY: all zeros is a valid action, in which what is not said is as it should be.
            let mut action: sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
            action.sa_sigaction = address();
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: nobody reads `PREVIOUS` while the handler is not in place; `on_fault` does nothing that a handler
            // may not.
            let failed = unsafe {
                sigaction(SIGBUS, null(), PREVIOUS.0.get().cast()) != 0
                    || sigaction(SIGBUS, &raw const action, null_mut()) != 0
            };
            if failed {
                return None;
            }
        }
        handler.holders += 1;
        Some(())
    }

    fn release() {
        let mut handler = Self::lock();
        handler.holders -= 1;
        if handler.holders > 0 {
            return;
        }
        // SAFETY: `PREVIOUS` was written when the handler was put in place.
        unsafe {
            let mut present = MaybeUninit::<sigaction>::zeroed();
            sigaction(SIGBUS, null(), present.as_mut_ptr());
            if present.assume_init().sa_sigaction == address() {
                sigaction(SIGBUS, PREVIOUS.0.get().cast(), null_mut());
            } else {
                handler.is_covered = true;
            }
        }
    }
}

/// How the kernel is told of the handler.
fn address() -> usize {
    on_fault as extern "C" fn(_, _, _) as usize
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, _: *mut c_void) {
    // SAFETY: the kernel passes what it knows of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Of a signal that somebody sent the address means nothing.
    let is_access = code > 0;
    if is_access && Entry::all().find(|entry| entry.contains(address)).is_some_and(Entry::fill) {
        return;
    }
    // SAFETY: `PREVIOUS` was written before this handler was put in place.
    unsafe {
        // An access that failed is repeated after this, and fails again.
        sigaction(signal, PREVIOUS.0.get().cast(), null_mut());
        if !is_access {
            raise(signal);
        }
    }
}
