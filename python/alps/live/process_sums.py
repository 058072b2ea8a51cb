"""Sums over the processes of torch.distributed."""

import torch
import torch.distributed as distributed
from torch import Tensor

from alps.errors import ArgumentError


def add_up(batches: int, sums: list[Tensor]) -> int:
    """Adds up sums over batches, in place, and returns the number of batches of all processes.

    Raises:
        ArgumentError: No process has a batch.
    """
    if distributed.is_available() and distributed.is_initialized():
        device = "cuda" if distributed.get_backend() == "nccl" else "cpu"
        total = torch.tensor(batches, device=device)
        distributed.all_reduce(total)
        batches = int(total)
        for tensor in sums:
            there = tensor.to(device)
            distributed.all_reduce(there)
            tensor.copy_(there)
    if not batches:
        raise ArgumentError("batches: expected at least one, found none")
    return batches
