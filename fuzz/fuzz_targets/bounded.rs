//! Bounds the memory that one input may take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

/// The most bytes that an input may take beside a multiple of its length.
const MOST: usize = 16 << 20;

/// The most bytes for each byte of an input.
const MOST_PER_BYTE: usize = 64;

/// The bytes that are allocated now, and the most since an input began.
static HELD: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let held = HELD.fetch_add(layout.size(), Ordering::Relaxed) + layout.size();
        PEAK.fetch_max(held, Ordering::Relaxed);
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        HELD.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs a target on an input, and fails if that took too much memory.
pub fn run(target: fn(&[u8]) -> bool, input: &[u8]) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    target(input);
    let taken = PEAK.load(Ordering::Relaxed).saturating_sub(before);
    let most = MOST + MOST_PER_BYTE * input.len();
    assert!(
        taken <= most,
        "an input of {} bytes took {taken} bytes of memory, more than {most}",
        input.len()
    );
}
