"""Keeps what a checkpoint of a 16-bit model rounds off its trained rows, in the state of the optimizer.

The rows train in float32, while the checkpoint of a bfloat16 model holds bfloat16. To train on from a
checkpoint to the same bits, the float32 rows have to be somewhere, and a file of weights that any library
can load has no place for them. They go where other ways of training in mixed precision have them too:
to the optimizer. After a step its state holds each row parameter itself, which takes no memory; when
it is saved, so are the rows. Before the first step after loading, they are put back.
"""

from functools import cache
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

if TYPE_CHECKING:
    from alps.training.projection import RestrictedProjection

KEY = "alps_rows"
"""The name under which the state of an optimizer holds the rows."""

_watched: "WeakSet[RestrictedProjection]" = WeakSet()


def watch(projection: "RestrictedProjection") -> None:
    """Sees to it that optimizers save the rows of `projection` where its checkpoint would round them."""
    _hook()
    _watched.add(projection)


@cache
def _hook() -> None:
    register_optimizer_step_pre_hook(_restore)
    register_optimizer_step_post_hook(_remember)


def _rounded() -> list[tuple[nn.Parameter, torch.dtype]]:
    return [
        (rows, dtype)
        for projection in _watched
        for rows, dtype in projection.trained()
        if dtype.itemsize < rows.dtype.itemsize
    ]


@torch.no_grad()
def _restore(optimizer: Optimizer, *_: Any) -> None:
    for rows, dtype in _rounded():
        state = optimizer.state.get(rows, {})
        if KEY not in state or state[KEY] is rows:
            continue
        saved, own = _local(state[KEY]), _local(rows)
        # The weights have the last word: rows that do not round to them are those of another state.
        if saved.shape == own.shape and torch.equal(saved.to(own.device, dtype), own.to(dtype)):
            own.copy_(saved)
        state[KEY] = rows


def _remember(optimizer: Optimizer, *_: Any) -> None:
    if not (rounded := _rounded()):
        return
    own = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    for rows, _dtype in rounded:
        # Optimizers make a parameter's state at its first step with a gradient, if it has none yet.
        if rows.grad is None or optimizer.state.get(rows, {}).get(KEY) is rows:
            continue
        if id(rows) in own:
            optimizer.state[rows][KEY] = rows


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
