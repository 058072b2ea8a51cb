//! Bounds the memory that one input may take.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

/// The most bytes that an input may take beside a multiple of its length.
const MOST: usize = 16 << 20;

/// The most bytes for each byte of an input.
const MOST_PER_BYTE: usize = 64;

/// A piece of so many bytes or more counts from the next request of its thread on. So what is asked for and given back at
/// once, as `rust/memory.rs` does to see whether there is so much, counts as nothing.
const LARGE: usize = 32 << 20;

/// The bytes that are allocated now, and the most since an input began.
static HELD: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    /// The large piece that was this thread's last request: its address and its bytes.
    static LAST: Cell<(usize, usize)> = const { Cell::new((0, 0)) };
}

/// Counts the bytes of a request that was granted.
fn count(pointer: *mut u8, bytes: usize) -> *mut u8 {
    if pointer.is_null() {
        return pointer;
    }
    let is_large = bytes >= LARGE;
    let (_, before) = LAST.replace(if is_large { (pointer.addr(), bytes) } else { (0, 0) });
    let more = before + if is_large { 0 } else { bytes };
    let held = HELD.fetch_add(more as isize, Ordering::Relaxed) + more as isize;
    // Most requests are no peak, and to read takes less time than to write.
    if held > PEAK.load(Ordering::Relaxed) {
        PEAK.fetch_max(held, Ordering::Relaxed);
    }
    pointer
}

/// Takes away the bytes of a piece that is given back.
fn uncount(pointer: *mut u8, bytes: usize) {
    if bytes >= LARGE && LAST.get().0 == pointer.addr() {
        LAST.set((0, 0));
    } else {
        HELD.fetch_sub(bytes as isize, Ordering::Relaxed);
    }
}

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

// SAFETY: every call is passed on as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let moved = count(unsafe { System.realloc(pointer, layout, size) }, size);
        if !moved.is_null() {
            HELD.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        }
        moved
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        uncount(pointer, layout.size());
        unsafe { System.dealloc(pointer, layout) }
    }
}

/// Runs a target on an input, and fails if that took too much memory.
pub fn run(target: fn(&[u8]) -> bool, input: &[u8]) {
    let before = HELD.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    target(input);
    let taken = PEAK.load(Ordering::Relaxed) - before;
    let most = MOST + MOST_PER_BYTE * input.len();
    assert!(
        taken <= most as isize,
        "an input of {} bytes took {taken} bytes of memory, more than {most}",
        input.len()
    );
}
