"""Restores, writes back and saves the trained rows around the steps of optimizers.

Why frozen rows cannot move is said in `projection.py`.

Before a step, rows that were loaded with the state of the optimizer are restored. At the first step, rows that had no
gradient while other parameters had one are named in a warning: the model's code then does not use them. After a
step, the rows are written into their whole parameters, so that all who read those read what was trained.

The rows train in float32, but a checkpoint of a 16-bit model stores them rounded to its own dtype, and its format has no
place for the exact values. As in other mixed-precision training, the state of the optimizer holds them: after a
step it refers to each row parameter, which takes no memory, and saving the state saves the rows.
"""

import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from alps.errors import AlpsWarning

KEY = "alps_rows"
"""The key of the rows in the optimizer state of a parameter."""


class HasRows(Protocol):
    """A module with row parameters."""

    def row_parameters(self) -> list[tuple[nn.Parameter, torch.dtype]]:
        """The row parameters, each with the dtype that a checkpoint stores it in."""

    def write(self) -> None:
        """Writes the rows into their whole parameters."""

    def named_rows(self) -> Iterator[tuple[str, nn.Parameter]]:
        """The row parameters by their names in the model."""


_modules: "WeakKeyDictionary[HasRows, None]" = WeakKeyDictionary()
"""The restricted modules, in the same order in all processes of a training, since shards are written by all together."""
_checked: "WeakSet[Optimizer]" = WeakSet()
"""The optimizers that have made a step with gradients."""
_exporting: "WeakSet[Optimizer]" = WeakSet()
"""The optimizers whose exported states hold copies of the rows."""
_warned_of: "WeakSet[HasRows]" = WeakSet()
"""The modules whose frozen rows a warning has named."""


def keep_rows(module: HasRows) -> None:
    """Makes every optimizer write the rows of `module` back after a step.

    Its state then holds the float32 rows, which a 16-bit checkpoint would round.
    """
    _register_hooks()
    _modules[module] = None


def forget_rows(module: HasRows) -> None:
    """Ends what `keep_rows` began."""
    _modules.pop(module, None)


def warn_if_frozen(module: HasRows, rows: Tensor) -> None:
    """Warns once of rows that somebody froze after the model was restricted."""
    if rows.requires_grad or module in _warned_of:
        return
    # One warning for a model: what freezes the rows of one module freezes those of all.
    _warned_of.update(_modules)
    warnings.warn(
        "alps.restrict: the rows of the chosen heads were frozen after the model was restricted, so that they do not "
        "train. PEFT's get_peft_model does so: add its adapters first and restrict the model then, or call "
        "requires_grad_(True) on the parameters whose names end in 'rows'.",
        AlpsWarning,
        stacklevel=2,
    )


@cache
def _register_hooks() -> None:
    register_optimizer_step_pre_hook(_before_step)
    register_optimizer_step_post_hook(_after_step)


def _before_step(optimizer: Optimizer, *_: Any) -> None:
    own = _parameters_of(optimizer)
    _restore(optimizer, own)
    if optimizer not in _checked and any(parameter.grad is not None for parameter in own.values()):
        _checked.add(optimizer)
        rows = [(name, it) for module in _modules for name, it in module.named_rows() if id(it) in own]
        # FSDP1 leaves a process nothing of a parameter that others hold.
        used = {name for name, it in rows if it.grad is not None or not it.requires_grad or not it.numel()}
        if without := sorted({name for name, _ in rows} - used):
            shown = ", ".join(without[:5]) + (f" and {len(without) - 5} more" if len(without) > 5 else "")
            warnings.warn(
                f"alps.restrict: {len(without)} of {len(rows)} restricted parameters had no gradient at the first "
                f"step, though others had: {shown}. The model's code did not use them, so that they do not train.",
                AlpsWarning,
                stacklevel=2,
            )


@torch.no_grad()
def _restore(optimizer: Optimizer, own: dict[int, Tensor]) -> None:
    for rows, dtype in _rounded_rows(own):
        state = optimizer.state.get(rows, {})
        if KEY not in state or state[KEY] is rows:
            continue
        saved, current = _local(state[KEY]), _local(rows)
        # Saved rows that do not round to the loaded weights belong to another checkpoint; the weights prevail.
        if saved.shape == current.shape and torch.equal(saved.to(current.device, dtype), current.to(dtype)):
            current.copy_(saved)
        state[KEY] = rows


def _after_step(optimizer: Optimizer, *_: Any) -> None:
    own = _parameters_of(optimizer)
    for module in list(_modules):
        if any(id(rows) in own for rows, _ in module.row_parameters()):
            module.write()
    rounded = _rounded_rows(own)
    for rows, _dtype in rounded:
        # A parameter gets its state at its first step with a gradient; an earlier entry would prevent that.
        if rows.grad is not None and optimizer.state.get(rows, {}).get(KEY) is not rows:
            optimizer.state[rows][KEY] = rows
    if rounded and optimizer not in _exporting:
        _exporting.add(optimizer)
        optimizer.register_state_dict_post_hook(_export_copies)


def _export_copies(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Puts copies of the rows into an exported state: what is loaded into it must not change the rows themselves."""
    states = {
        number: {**state, KEY: state[KEY].detach().clone()} if KEY in state else state
        for number, state in state_dict["state"].items()
    }
    return {**state_dict, "state": states}


def _parameters_of(optimizer: Optimizer) -> dict[int, Tensor]:
    return {id(it): it for group in optimizer.param_groups for it in group["params"]}


def _rounded_rows(own: dict[int, Tensor]) -> list[tuple[nn.Parameter, torch.dtype]]:
    """The row parameters of an optimizer that a checkpoint rounds, with the dtype that it stores them in."""
    pairs = (pair for module in _modules for pair in module.row_parameters())
    return [(it, dtype) for it, dtype in pairs if id(it) in own and dtype.itemsize < it.dtype.itemsize]


def _local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
