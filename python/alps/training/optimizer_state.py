"""Keeps the exact float32 rows of a 16-bit model in the state of the optimizer, so that training resumes exactly.

The rows train in float32, but a checkpoint of the model stores them rounded to its own dtype, and its format has no
place for the exact values. As in other mixed-precision training, the state of the optimizer holds them: after a
step it refers to each row parameter, which takes no memory, and saving the state saves the rows. Before the first
step after loading, the rows are restored from it.
"""

from functools import cache
from typing import Any, Protocol
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

KEY = "alps_rows"
"""The key of the rows in the optimizer state of a parameter."""


class HasRows(Protocol):
    """A module with row parameters."""

    def row_parameters(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The row parameters, each with the dtype that a checkpoint stores it in."""


_modules: "WeakSet[HasRows]" = WeakSet()


def keep_rows(module: HasRows) -> None:
    """Makes every optimizer save those row parameters of `module` that its checkpoint rounds."""
    _register_hooks()
    _modules.add(module)


@cache
def _register_hooks() -> None:
    register_optimizer_step_pre_hook(_restore)
    register_optimizer_step_post_hook(_remember)


def _rounded_rows() -> list[tuple[nn.Parameter, torch.dtype]]:
    pairs = (pair for module in _modules for pair in module.row_parameters())
    return [(rows, dtype) for rows, dtype in pairs if dtype.itemsize < rows.dtype.itemsize]


@torch.no_grad()
def _restore(optimizer: Optimizer, *_: Any) -> None:
    for rows, dtype in _rounded_rows():
        state = optimizer.state.get(rows, {})
        if KEY not in state or state[KEY] is rows:
            continue
        saved, own = _local(state[KEY]), _local(rows)
        # Saved rows that do not round to the loaded weights belong to another checkpoint; the weights prevail.
        if saved.shape == own.shape and torch.equal(saved.to(own.device, dtype), own.to(dtype)):
            own.copy_(saved)
        state[KEY] = rows


def _remember(optimizer: Optimizer, *_: Any) -> None:
    if not (rounded := _rounded_rows()):
        return
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for rows, _dtype in rounded:
        # A parameter gets its state at its first step with a gradient; an earlier entry would prevent that.
        if rows.grad is not None and id(rows) in own and optimizer.state.get(rows, {}).get(KEY) is not rows:
            optimizer.state[rows][KEY] = rows


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
