"""Drops files from the page cache, and measures how much of them is in it."""

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path


def drop(files: Iterable[Path]) -> None:
    """Asks the system to drop files from the page cache. `resident` tells whether it did."""
    for path in files:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a page that is not yet written cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def resident(files: Iterable[Path]) -> float:
    """Returns the share of the pages of files that are in memory, 0 to 1."""
    flags = b"".join(_pages(path) for path in files)
    return sum(flag & 1 for flag in flags) / len(flags)


def _pages(path: Path) -> bytes:
    """Returns a byte for each page; its lowest bit is 1 if the page is in memory."""
    size = path.stat().st_size
    flags = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
    libc = ctypes.CDLL(None, use_errno=True)
    # ctypes finds the address of a mapping only if it may write to it.
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapping:
        start = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), flags)
        del start  # or the mapping could not be closed
    if failed:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), os.fspath(path))
    return bytes(flags)
