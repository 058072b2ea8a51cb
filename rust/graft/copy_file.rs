//! Copies a file without reading it into this process, and without filling its holes.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::Ordering;

use crate::error::{Error, Result};
use crate::progress::Progress;

/// Copies `from` to the new file `to`. Where the file system can, both share their blocks until one of them changes.
#[cfg(target_os = "linux")]
pub(super) fn copy_file(from: &Path, to: &Path, progress: &Progress) -> Result<()> {
    use rustix::fs::{SeekFrom, copy_file_range, fdatasync, ioctl_ficlone, seek};
    use rustix::io::Errno;

    /// The bytes after which the copy checks whether it was cancelled.
    const PIECE: u64 = 64 << 20;
    let source = File::open(from).map_err(|error| Error::io(from, error))?;
    let target = File::create_new(to).map_err(|error| Error::io(to, error))?;
    let length = source.metadata().map_err(|error| Error::io(from, error))?.len();
    if ioctl_ficlone(&target, &source).is_ok() {
        progress.done.fetch_add(length, Ordering::Relaxed);
        return Ok(());
    }
    target.set_len(length).map_err(|error| Error::io(to, error))?;
    let mut place = 0;
    while place < length {
        // A file system that knows no holes has data up to the end.
        let (first, end) = match seek(&source, SeekFrom::Data(place)) {
            Ok(first) => (first, seek(&source, SeekFrom::Hole(first)).unwrap_or(length).min(length)),
            Err(Errno::NXIO) => break,
            Err(_) => (place, length),
        };
        progress.done.fetch_add(first - place, Ordering::Relaxed);
        place = first;
        while place < end {
            progress.check_cancelled()?;
            let (mut read_from, mut write_to) = (place, place);
            let wanted = usize::try_from((end - place).min(PIECE)).unwrap_or(usize::MAX);
            let copied = copy_file_range(&source, Some(&mut read_from), &target, Some(&mut write_to), wanted)
                .or_else(|_| copy_by_hand(&source, &target, place, wanted))
                .map_err(|error| Error::io(to, error.into()))?;
            if copied == 0 {
                let ended = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
                return Err(Error::io(from, ended));
            }
            // A single call at the end could take minutes, during which nothing would hear of a cancellation.
            fdatasync(&target).map_err(|error| Error::io(to, error.into()))?;
            place += copied as u64;
            progress.done.fetch_add(copied as u64, Ordering::Relaxed);
        }
    }
    progress.done.fetch_add(length - place.min(length), Ordering::Relaxed);
    Ok(())
}

/// Copies some bytes where the two file systems cannot do it by themselves.
#[cfg(target_os = "linux")]
fn copy_by_hand(source: &File, target: &File, place: u64, wanted: usize) -> rustix::io::Result<usize> {
    let mut buffer = vec![0; wanted.min(1 << 20)];
    let read = rustix::io::pread(source, &mut buffer, place)?;
    rustix::io::pwrite(target, &buffer[..read], place)
}

/// Copies `from` to the new file `to`.
#[cfg(not(target_os = "linux"))]
pub(super) fn copy_file(from: &Path, to: &Path, progress: &Progress) -> Result<()> {
    progress.check_cancelled()?;
    let mut source = File::open(from).map_err(|error| Error::io(from, error))?;
    let mut target = File::create_new(to).map_err(|error| Error::io(to, error))?;
    let copied = std::io::copy(&mut source, &mut target).map_err(|error| Error::io(to, error))?;
    progress.done.fetch_add(copied, Ordering::Relaxed);
    Ok(())
}
