"""Threads that each run torch on one core.

Heads in parallel, each operation on one thread, is the fastest way for matrices as small as a head's.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


def workers(threads: int) -> ThreadPoolExecutor:
    """A pool of them."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
