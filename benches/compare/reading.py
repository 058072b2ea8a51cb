"""Reads the bytes that a scan reads, without any arithmetic: a lower bound for the time of a scan that copies."""

import os
import subprocess
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from queue import Empty, SimpleQueue

BUFFER = 256 << 10
"""Bytes of the buffer of a thread. It fits into the cache of a core."""

REUSE = 16
"""How often one call fills the buffer. With many times, the cost of calls from Python is negligible."""


def read_bytes_only(files: Iterable[Path], threads: int) -> int:
    """Reads the data of safetensors files, each thread into one buffer. Returns the number of bytes."""
    with ExitStack() as stack:
        starts: SimpleQueue[tuple[int, int]] = SimpleQueue()
        for path in files:
            file = stack.enter_context(path.open("rb"))
            first = 8 + int.from_bytes(file.read(8), "little")
            for start in range(first, os.fstat(file.fileno()).st_size, BUFFER * REUSE):
                starts.put((file.fileno(), start))
        pool = stack.enter_context(ThreadPoolExecutor(threads))
        return sum(pool.map(_read, [starts] * threads))


def _read(starts: "SimpleQueue[tuple[int, int]]") -> int:
    buffers = [memoryview(bytearray(BUFFER))] * REUSE
    count = 0
    while True:
        try:
            file, start = starts.get_nowait()
        except Empty:
            return count
        count += os.preadv(file, buffers, start)


def concatenate(files: Iterable[Path]) -> None:
    """Runs `cat FILES > /dev/null`."""
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
