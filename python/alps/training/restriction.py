"""Restricts the training of a model to chosen attention heads, and releases the model again.

The chosen rows train as parameters of their own; `alps.training.projection` says why no optimizer moves the others.
"""

import inspect
import re
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alps.errors import ArgumentError, ModelError
from alps.heads import HeadSet
from alps.training import attention
from alps.training.projection import freeze, restrict_rows, restricted_projections
from alps.training.summary import Restriction, summarize

_FROZEN = "_alps_frozen"
"""The attribute of a restricted model that names the parameters which `restrict` froze."""


def restrict(
    model: nn.Module, heads: HeadSet, *, others: Literal["train", "freeze"] = "train"
) -> Restriction:
    """Lets training change the chosen heads, and no other entry of Q, K and V.

    Works in place: every module that projects to queries, keys or values stays the object that it is and changes its
    class. Its weight and bias are frozen, and the rows of the chosen heads, and of the key/value groups that they
    read, train as parameters of their own, in float32 or wider, so that neither gradients nor optimizer state hold
    anything else. After every step of an optimizer the weights hold the trained rows, so that averages of weights,
    inference engines and generation read what was trained. Make the optimizer after this call, and restrict before
    the model is wrapped, sharded or compiled, but after adapters of PEFT are added, which freeze all else.

    An adapter (`AlpsConfig`) trains nothing outside the chosen heads by default; here, everything outside Q, K and V
    trains unless `others` is "freeze".

    The model saves and loads as before, with `state_dict`, `load_state_dict`, `save_pretrained` and the Trainer,
    under the same names and in the same dtypes. A checkpoint of a 16-bit model rounds the float32 rows; the state
    of the optimizer keeps them, so that training resumes exactly. Under FSDP2 a 16-bit model with others="train"
    needs `fully_shard` of each `RestrictedProjection` before that of its layer, since the trainable parameters of a
    group must have one dtype. FSDP1 keeps the rows in its state dict besides, under names that end in `rows`. The empty
    set freezes Q, K and V whole; the full set trains them.

    torch's `ignore_frozen_params` leaves the weights and the rows out of a state: save the whole state. Write averages of
    weights to the parameters, not to their `.data`: autograd counts no change of `.data`, so it is overwritten.

    Args:
        model: A transformers model of any layout that `scan` knows.
        heads: The heads to train, of this model's geometry.
        others: Whether the parameters outside Q, K and V train. "train", the setting of the paper, leaves them as
            they are, so that what was frozen stays frozen; "freeze" freezes them all, which saves most of the
            memory. With "freeze" and reentrant gradient checkpointing, also call
            `model.enable_input_require_grads()`.

    Returns:
        What trains and what does not.

    Raises:
        ArgumentError: The heads are not those of this model, the model is restricted already, or `others` is neither
            "train" nor "freeze".
        ModelError: The model has no known layout, contradicts its configuration, is quantised, sharded, partitioned by
            DeepSpeed's ZeRO-3 or offloaded, or two of its projections are one module. The model is unchanged.

    Warns:
        AlpsWarning: At the first step, of rows that had no gradient though other parameters had; in training, of rows
            that somebody froze.
    """
    if others not in ("train", "freeze"):
        raise ArgumentError(f'others: expected "train" or "freeze", found {others!r}')
    if isinstance(model, nn.Module) and restricted_projections(model):
        raise ArgumentError("the model is restricted already; alps.release(model) ends that")
    if not isinstance(heads, HeadSet):
        raise ArgumentError(f"heads: expected an alps.HeadSet, found {type(heads).__name__}")
    found = attention.find(model, heads.geometry.component)
    rows = found.rows(heads)
    owners: dict[torch.Tensor, str] = {}
    for name, weights in found.parameters.items():
        module = model.get_submodule(name)
        for weight in weights:
            attention.check_parameter(f"{name}.{weight}", module, parameter := module.get_parameter(weight))
            if (other := owners.setdefault(parameter, name)) != name:
                raise ModelError(f"{name}: expected a weight of its own, found that of {other}")
    restricted = [
        restrict_rows(
            model.get_submodule(name), rows[name], axis, found.parameters[name], name, _is_read(model, name)
        )
        for name, axis in found.modules.items()
    ]
    for projection in restricted:
        projection.freeze()
    if others == "freeze":
        inside = {id(p) for projection in restricted for p in projection.restricted_parameters()}
        frozen = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
        for name in frozen:
            freeze(model.get_parameter(name))
        setattr(model, _FROZEN, tuple(frozen))
    return summarize(model, found, heads)


def release(model: nn.Module) -> None:
    """Ends the restriction of a model: restores ordinary modules, with the trained rows in their weights.

    Works in place. The rows are rounded to the dtype of the weight, as in every forward pass. Parameters that
    `restrict` froze can train again.

    Args:
        model: A model that `restrict` was called on, or a wrapper around one.

    Raises:
        ArgumentError: The model is not restricted.
        ModelError: Its weights are sharded. The model is unchanged.
    """
    restricted = restricted_projections(model)
    if not restricted:
        raise ArgumentError("the model is not restricted")
    for name, projection in restricted.items():
        if isinstance(projection.weight, DTensor):
            raise ModelError(
                f"{name}: expected a plain tensor, found a shard of one; save the model and load it anew instead"
            )
    for projection in restricted.values():
        projection.release()
    for module in model.modules():
        for name in vars(module).pop(_FROZEN, ()):
            module.get_parameter(name).requires_grad_(True)


def _is_read(model: nn.Module, name: str) -> bool:
    """Whether the code of the module around a projection reads the projection's parameters instead of calling it."""
    parent, _, own = name.rpartition(".")
    surrounding: Any = type(model.get_submodule(parent))
    return own in _read_children(surrounding)


@cache
def _read_children(cls: type[nn.Module]) -> frozenset[str]:
    """The names of the modules whose weight or bias the code of a class reads."""
    try:
        source = inspect.getsource(cls)
    except (OSError, TypeError):  # a class without a file
        return frozenset()
    return frozenset(re.findall(r"self\.(\w+)\.(?:weight|bias)\b", source))
