//! Takes memory whose amount follows from a file, so that too little of it is an error instead of the end of the process.

use std::io;

use crate::failing;

/// Makes room for `more` items.
///
/// # Errors
///
/// [`io::ErrorKind::OutOfMemory`]; the message says how much was asked for.
pub(crate) fn reserve<T>(items: &mut Vec<T>, more: usize) -> io::Result<()> {
    let bytes = || (items.len().saturating_add(more) as u64).saturating_mul(size_of::<T>() as u64);
    let wanted = bytes();
    tried(items.try_reserve(more), wanted)
}

/// Makes room for `more` bytes of text.
///
/// # Errors
///
/// As of [`reserve`].
pub(crate) fn reserve_text(text: &mut String, more: usize) -> io::Result<()> {
    let wanted = text.len().saturating_add(more) as u64;
    tried(text.try_reserve(more), wanted)
}

/// Some zeros.
///
/// # Errors
///
/// As of [`reserve`].
pub(crate) fn zeros<T: Clone + Default>(count: usize) -> io::Result<Vec<T>> {
    let mut items = Vec::new();
    tried(items.try_reserve_exact(count), (count as u64).saturating_mul(size_of::<T>() as u64))?;
    items.resize(count, T::default());
    Ok(items)
}

/// The items in a vector.
///
/// # Errors
///
/// As of [`reserve`].
pub(crate) fn collect<T>(items: impl Iterator<Item = T>) -> io::Result<Vec<T>> {
    let mut collected = Vec::new();
    reserve(&mut collected, items.size_hint().0)?;
    for item in items {
        reserve(&mut collected, 1)?;
        collected.push(item);
    }
    Ok(collected)
}

/// The memory that a call takes in small pieces, whose failure would end the process, besides what the threads of a scan take.
/// 128 MiB of it are what glibc's malloc maps for a moment when it makes the arena of a thread. 40 MiB are for the pieces: more
/// than 32 MiB, the largest value of its mmap threshold, which a request of less would raise.
pub(crate) const SMALL_PIECES: usize = 168 << 20;

/// Fails if the system has not so much memory at the moment.
///
/// # Errors
///
/// As of [`reserve`].
pub(crate) fn check(bytes: usize) -> io::Result<()> {
    tried(Vec::<u8>::new().try_reserve_exact(bytes), bytes as u64)
}

/// The result of a request for so many bytes.
///
/// # Errors
///
/// As of [`reserve`].
pub(crate) fn tried<T, E>(reserved: std::result::Result<T, E>, bytes: u64) -> io::Result<T> {
    match reserved {
        Ok(reserved) if bytes == 0 || !failing::is_due() => Ok(reserved),
        _ => {
            let problem = format!("{bytes} bytes of memory were asked for, which the system has not");
            Err(io::Error::new(io::ErrorKind::OutOfMemory, problem))
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn too_much_memory_is_an_error_that_says_how_much() {
        for error in [
            zeros::<u64>(1 << 58).unwrap_err(),
            reserve(&mut vec![0_u64], (1 << 58) - 1).unwrap_err(),
            reserve_text(&mut String::new(), 1 << 61).unwrap_err(),
        ] {
            assert_eq!(error.kind(), io::ErrorKind::OutOfMemory);
            assert!(error.to_string().starts_with("2305843009213693952 bytes of memory"), "{error}");
        }
        assert_eq!(zeros::<u8>(3).unwrap(), [0; 3]);
        assert_eq!(collect(0..3).unwrap(), [0, 1, 2]);
    }
}
