"""Restricts the training of a model to chosen attention heads, and ends it."""

from typing import Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alps.errors import ArgumentError, ModelError
from alps.heads import HeadSet
from alps.training import attention
from alps.training.projection import RestrictedProjection, freeze
from alps.training.report import Restriction, report

_FROZEN = "_alps_frozen"
"""The attribute of a restricted model that names the parameters which restrict froze."""

Others = Literal["train", "freeze"]


def restrict(model: nn.Module, heads: HeadSet, *, others: Others = "train") -> Restriction:
    """Lets training move the chosen heads, and no other entry of Q, K and V.

    Works in place: every module that projects to queries, keys or values gives way to one whose weight and
    bias are frozen, but for the rows of the chosen heads and of the key/value groups that they
    read. Those train as parameters of their own, in float32 or wider, and nothing else is in the
    gradients or in the state of an optimizer. Make the optimizer after this, and restrict before the
    model is wrapped, sharded or compiled.

    The model saves and loads as before, with `state_dict`, `load_state_dict`, `save_pretrained` and the
    Trainer, under the same names and in the same number formats. The float32 rows of a 16-bit model, which
    such a checkpoint rounds, are kept in the state of the optimizer, so that training resumes exactly.
    Under FSDP2 a 16-bit model with others="train" needs `fully_shard` of each `RestrictedProjection` before that
    of its layer, since a group of parameters that train has to be of one number format.
    Before generating text call `release`: for single tokens the restricted projections are slow.

    The empty set freezes Q, K and V whole; the full set trains them.

    Args:
        model: A model of transformers, of any layout that `scan` knows.
        heads: The heads to train; a set of this model's geometry.
        others: What of the parameters outside Q, K and V: "train" is the setting of the paper
            and leaves them as they are, so that what was frozen stays frozen; "freeze" freezes them all, which
            saves most of the memory. With "freeze" and reentrant gradient checkpointing, also call
            `model.enable_input_require_grads()`.

    Returns:
        What trains and what does not.

    Raises:
        ArgumentError: The heads are not those of this model, the model is restricted already, or
            `others` is neither "train" nor "freeze".
        ModelError: The model is of no known layout, contradicts its configuration, is quantised or
            sharded, or two of its projections are one module. The model is as it was.
    """
    if others not in ("train", "freeze"):
        raise ArgumentError(f'others: expected "train" or "freeze", found {others!r}')
    if isinstance(model, nn.Module) and any(_restricted(model)):
        raise ArgumentError("the model is restricted already; alps.release(model) ends that")
    found = attention.find(model, component=attention.component_of(heads))
    rows = found.rows(heads)
    replacements: dict[str, RestrictedProjection] = {}
    names: dict[torch.Tensor, str] = {}
    for name, axis in found.modules.items():
        module = attention.check_projection(name, model.get_submodule(name), axis)
        if (other := names.setdefault(module.weight, name)) != name:
            raise ModelError(f"{name}: expected a weight of its own, found that of {other}")
        replacements[name] = RestrictedProjection(module, rows[name], axis)
    for name, replacement in replacements.items():
        replacement.freeze()
        _replace(model, name, replacement)
    if others == "freeze":
        inside = {id(p) for projection in replacements.values() for p in projection.parameters()}
        frozen = [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in inside]
        for name in frozen:
            freeze(model.get_parameter(name))
        setattr(model, _FROZEN, tuple(frozen))
    return report(model, found, heads)


def release(model: nn.Module) -> None:
    """Ends what `restrict` began: folds the trained rows back and leaves plain modules.

    Works in place. The rows are rounded to the number format of the weight, as in every forward pass.
    Parameters that `restrict` froze can be trained again.

    Args:
        model: A model that `restrict` was called on, or a wrapper around one.

    Raises:
        ArgumentError: The model is not restricted.
        ModelError: Its weights are sharded. The model is as it was.
    """
    restricted = dict(_restricted(model))
    if not restricted:
        raise ArgumentError("the model is not restricted")
    for name, projection in restricted.items():
        if isinstance(projection.weight, DTensor):
            raise ModelError(
                f"{name}: expected a plain tensor, found a shard of one; save the model and load it anew instead"
            )
    for name, projection in restricted.items():
        _replace(model, name, projection.released())
    for module in model.modules():
        for name in vars(module).pop(_FROZEN, ()):
            module.get_parameter(name).requires_grad_(True)


def _restricted(model: nn.Module) -> list[tuple[str, RestrictedProjection]]:
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, RestrictedProjection)
    ]


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)
