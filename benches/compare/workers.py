"""Threads that each run torch on one core.

For matrices as small as those of a head, parallel heads with one thread per operation are the fastest.
"""

from concurrent.futures import ThreadPoolExecutor

import torch


def workers(threads: int) -> ThreadPoolExecutor:
    """Makes a pool of such threads."""
    return ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))
