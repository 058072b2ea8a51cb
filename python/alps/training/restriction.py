"""Restricts the training of a model to chosen attention heads, and releases the model again.

The chosen rows train as parameters of their own; `alps.training.projection` says why no optimizer moves the others.
"""

import inspect
import re
from collections.abc import Iterable
from functools import cache
from typing import Any, Literal

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from alps.errors import ArgumentError, ModelError
from alps.heads import HeadSet
from alps.training import attention, quantised
from alps.training.packed_projection import PackedProjection
from alps.training.projection import RestrictedModule, freeze, restrict_rows, restricted_projections
from alps.training.summary import Restriction, summarize

_FROZEN = "_alps_frozen"
"""The attribute of a restricted model that names the parameters which `restrict` froze."""


def restrict(
    model: nn.Module, heads: HeadSet, *, others: Literal["train", "freeze"] = "train"
) -> Restriction:
    """Lets training change the chosen heads, and no other entry of Q, K and V.

    The rows of the chosen query heads, and of the key/value groups that they read, train as parameters of their own, in
    float32 or wider. Gradients and optimizer state hold nothing else of Q, K and V. After every step of an optimizer the
    weights hold the trained rows, so averages of weights, inference engines and generation read what was trained. The
    empty set freezes Q, K and V whole; the full set trains them.

    Everything outside Q, K and V trains, as in the paper, unless `others` is "freeze". An adapter (`AlpsConfig`) trains
    nothing outside the chosen heads by default.

    **Order of calls.** Restrict the model, then make the optimizer. Restrict before the model is wrapped, sharded or
    compiled, but after adapters of PEFT are added, since these freeze all else. The call works in place: every module that
    projects to queries, keys or values stays the object that it is and changes its class.

    **Saving.** The model saves and loads as before, with `state_dict`, `load_state_dict`, `save_pretrained` and the
    Trainer, under the same names and in the same dtypes. A checkpoint of a 16-bit model rounds the float32 rows; the state
    of the optimizer keeps them, so training resumes exactly. torch's `ignore_frozen_params` leaves the weights and the
    rows out of a state: save the whole state. Write averages of weights to the parameters, not to their `.data`: autograd
    counts no change of `.data`, so it is overwritten.

    **Sharding.** Under FSDP2 a 16-bit model with others="train" needs `fully_shard` of each `RestrictedProjection` before
    that of its layer, since the trainable parameters of a group must have one dtype. FSDP1 keeps the rows in its state dict
    besides, under names that end in `rows`.

    **Packed weights.** Weights that bitsandbytes has packed (int8, nf4, fp4) cannot hold the rows. Their modules are
    wrapped, and the outputs of the rows are computed from float32 rows, which begin as the dequantised ones. `state_dict`
    and `save_pretrained` then refuse, since they would lose the rows. After `alps.release`, Linear modules with the rows in
    place stand for the packed ones, and the model saves and loads with these in floating point. The Trainer trains no
    packed model without an adapter: train in your own loop, or use `AlpsConfig`, which can also be resumed.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> heads = alps.scan("base", "tuned").select(ratio=0.1)
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> alps.restrict(model, heads, others="freeze")
        3.6 % of the parameters train
                 trainable  frozen
          query        512   3,584
          key          384   1,664
          value        384   1,664
          bias           0       0
          other          0  26,912
          total      1,280  33,824
          layer 0: heads 5; key/value groups 2
          layer 1: heads 2, 3; key/value groups 1
          layer 3: heads 6; key/value groups 3
        >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        >>> ids = torch.arange(16)[None]  # the tokens of a text
        >>> batch = {"input_ids": ids, "labels": ids}
        >>> model(**batch).loss.backward()
        >>> optimizer.step()
        >>> model.save_pretrained("trained")  # an ordinary checkpoint
        >>> moved = alps.scan("base", "trained")["delta_norm"] > 0
        >>> moved.sum(axis=1)  # by layer: the chosen heads, and those of their groups
        array([2, 2, 0, 2])

    Args:
        model: A transformers model of any layout that `scan` knows.
        heads: The heads to train, of this model's geometry.
        others: Whether the parameters outside Q, K and V train. "train", the setting of the paper, leaves them as
            they are, so that what was frozen stays frozen; "freeze" freezes them all, which saves most of the
            memory. With "freeze" and reentrant gradient checkpointing, also call
            `model.enable_input_require_grads()`.

    Returns:
        The numbers of parameters that train and that do not, and the heads.

    Raises:
        ArgumentError: The heads are not those of this model, the model is restricted already, or `others` is neither
            "train" nor "freeze".
        ModelError: The model has no known layout, contradicts its configuration, is quantised otherwise than by
            bitsandbytes, sharded, partitioned by DeepSpeed's ZeRO-3 or offloaded, or two of its projections are one
            module. The model is unchanged.

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
    found = attention.find(model, heads.geometry.component, quantised=quantised.has_packed_weights(model))
    rows = found.rows(heads)
    owners: dict[torch.Tensor, str] = {}
    for name, weights in found.parameters.items():
        module = model.get_submodule(name)
        for weight in weights:
            attention.check_parameter(f"{name}.{weight}", module, parameter := module.get_parameter(weight))
            if quantised.is_packed(parameter):
                attention.check_projection(name, module, found.modules[name])
            if (other := owners.setdefault(parameter, name)) != name:
                raise ModelError(f"{name}: expected a weight of its own, found that of {other}")
    quantised.keep_order(model)
    restricted = [
        _restricted(model, name, rows[name], axis, found.parameters[name])
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
    """Ends the restriction of a model: ordinary modules return, with the trained rows in their weights.

    The call works in place. The rows are rounded to the dtype of the weight, as in every forward pass. Parameters that
    `restrict` froze can train again.

    Where bitsandbytes has packed the weight, a Linear takes the module's place, with the dequantised weight and the
    trained rows in the format that the model computes in. The configuration names these Linears as not to be packed
    (`llm_int8_skip_modules`), so that `from_pretrained` loads what is then saved. A projection of which no rows train
    stays packed. Call the model's `dequantize()` afterwards for a checkpoint without packed weights.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> restriction = alps.restrict(model, alps.HeadSet.load("heads.json"))
        >>> type(model.model.layers[0].self_attn.q_proj).__name__
        'RestrictedProjection'
        >>> alps.release(model)
        >>> type(model.model.layers[0].self_attn.q_proj).__name__
        'Linear'

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
    dtype = _format_of(model, restricted.values())
    unpacked = []
    for name, projection in restricted.items():
        module = projection.release(dtype)
        if module is not projection:
            model.set_submodule(name, module)
            if not quantised.is_packed(module.get_parameter("weight")):
                unpacked.append(name)
    quantised.note_unpacked(model, unpacked)
    for module in model.modules():
        for name in vars(module).pop(_FROZEN, ()):
            module.get_parameter(name).requires_grad_(True)


def _restricted(
    model: nn.Module, name: str, indices: torch.Tensor, axis: int, parameters: tuple[str, ...]
) -> RestrictedModule:
    """Lets only the rows at `indices` of a module of a model train."""
    module = model.get_submodule(name)
    if not quantised.is_packed(module.get_parameter(parameters[0])):
        return restrict_rows(module, indices, axis, parameters, name, _is_read(model, name))
    assert isinstance(module, nn.Linear)  # as both kinds of bitsandbytes are
    projection = PackedProjection(module, indices, name)
    model.set_submodule(name, projection)
    return projection


def _format_of(model: nn.Module, restricted: Iterable[RestrictedModule]) -> torch.dtype:
    """The number format that a model computes in: that of its first parameter which is neither packed nor a row."""
    inside = {id(parameter) for projection in restricted for parameter in projection.restricted_parameters()}
    formats = (
        parameter.dtype
        for parameter in model.parameters()
        if parameter.is_floating_point()
        and not quantised.is_packed(parameter)
        and id(parameter) not in inside
    )
    return next(formats, torch.get_default_dtype())


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
