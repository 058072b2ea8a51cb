//! What happens when a mapped file has become shorter: SIGBUS, for which a process ends unless it has a handler.
//!
//! The handler is there while files are mapped, answers for their addresses, and leaves all others to whatever
//! handled the signal before.

use std::ffi::{c_int, c_void};
use std::mem::{self, MaybeUninit};
use std::ptr::{null, null_mut};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering, fence};

use libc::{
    BUS_ADRERR, BUS_MCEERR_AR, SA_ONSTACK, SA_SIGINFO, SIG_DFL, SIG_IGN, SIG_UNBLOCK, SIGBUS,
    pthread_sigmask, raise, sigaction, sigaddset, sigemptyset, siginfo_t,
};
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

use crate::lock::lock;

/// Makes a thread ready to look at files that are mapped: where the signal is blocked, it ends the process.
pub(crate) fn prepare_thread() {
    let mut signals = MaybeUninit::uninit();
    // SAFETY: the set is made by the first call, and read by the others.
    unsafe {
        sigemptyset(signals.as_mut_ptr());
        sigaddset(signals.as_mut_ptr(), SIGBUS);
        pthread_sigmask(SIG_UNBLOCK, signals.as_ptr(), null_mut());
    }
}

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
        entry.length.store(length, Ordering::Release);
        entry.start.store(start, Ordering::Release);
        Some(Self { entry })
    }

    /// Whether something was missing.
    pub(super) fn has_gap(&self) -> bool {
        // What was looked at, was looked at before this.
        fence(Ordering::SeqCst);
        self.entry.gap.load(Ordering::Relaxed)
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

    /// Start and length, if the address is one of the watch's.
    fn stretch_around(&self, address: usize) -> Option<(usize, usize)> {
        let start = self.start.load(Ordering::Acquire);
        let length = self.length.load(Ordering::Acquire);
        // The two belong together if the entry was not taken over in between.
        let is_whole = start != 0 && start == self.start.load(Ordering::Acquire);
        let is_inside = address.checked_sub(start).is_some_and(|place| place < length);
        (is_whole && is_inside).then_some((start, length))
    }

    /// Shows zeros at all addresses of the watch, since none of what is seen there counts any more.
    fn fill(&self, (start, length): (usize, usize)) -> bool {
        // Before anyone can see a zero.
        self.gap.store(true, Ordering::SeqCst);
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

/// What handled the signal before. Never freed, since a handler may be reading it.
static PREVIOUS: AtomicPtr<sigaction> = AtomicPtr::new(null_mut());

impl Handler {
    /// Puts the handler in place, if it is not there, until it is released as often as it was held.
    fn hold() -> Option<()> {
        let mut handler = lock(&HANDLER);
        let present = present()?;
        if handler.is_covered || (handler.holders > 0 && present.sa_sigaction != address()) {
            return None;
        }
        if handler.holders == 0 {
            keep(present);
            let mut action = none();
            action.sa_sigaction = address();
            action.sa_flags = SA_SIGINFO | SA_ONSTACK;
            // SAFETY: `on_fault` does nothing that a handler may not.
            if unsafe { sigaction(SIGBUS, &raw const action, null_mut()) } != 0 {
                return None;
            }
        }
        handler.holders += 1;
        Some(())
    }

    fn release() {
        let mut handler = lock(&HANDLER);
        handler.holders -= 1;
        if handler.holders > 0 {
            return;
        }
        if present().is_some_and(|present| present.sa_sigaction == address()) {
            // SAFETY: it was an action of this process before.
            unsafe { sigaction(SIGBUS, PREVIOUS.load(Ordering::Acquire), null_mut()) };
        } else {
            handler.is_covered = true;
        }
    }
}

/// What handles the signal now.
fn present() -> Option<sigaction> {
    let mut present = none();
    // SAFETY: this only asks.
    (unsafe { sigaction(SIGBUS, null(), &raw mut present) } == 0).then_some(present)
}

/// Keeps an action as the previous one, in memory of its own unless it was the last time as well.
fn keep(action: sigaction) {
    let bytes = |action: &sigaction| {
        // SAFETY: all of it is initialised, since it was all zeros to begin with.
        unsafe { mem::transmute_copy::<sigaction, [u8; size_of::<sigaction>()]>(action) }
    };
    // SAFETY: what is there is never freed.
    let last = unsafe { PREVIOUS.load(Ordering::Acquire).as_ref() };
    if last.is_none_or(|last| bytes(last) != bytes(&action)) {
        PREVIOUS.store(Box::leak(Box::new(action)), Ordering::Release);
    }
}

/// The default action.
fn none() -> sigaction {
    // SAFETY: all zeros is an action.
    unsafe { MaybeUninit::zeroed().assume_init() }
}

type Function = extern "C" fn(c_int, *mut siginfo_t, *mut c_void);

/// How the kernel is told of the handler.
fn address() -> usize {
    on_fault as Function as usize
}

extern "C" fn on_fault(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes what it knows of the signal.
    let (code, address) = unsafe { ((*info).si_code, (*info).si_addr().addr()) };
    // Of a signal that somebody sent, or that is about something else, the address means nothing.
    let is_access = code == BUS_ADRERR || code == BUS_MCEERR_AR;
    let is_filled = |entry: &Entry| entry.stretch_around(address).is_some_and(|stretch| entry.fill(stretch));
    if is_access && Entry::all().any(is_filled) {
        return;
    }
    // SAFETY: it was kept before this handler was put in place, as the kernel gave it.
    unsafe {
        let previous = *PREVIOUS.load(Ordering::Acquire);
        match previous.sa_sigaction {
            SIG_IGN if !is_access => {}
            SIG_DFL | SIG_IGN => {
                // An access that failed is repeated after this, and fails again.
                let default = none();
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
