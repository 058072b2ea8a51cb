"""Small restricted models, and training the slow, obvious way, for the tests of training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from alps import HeadSet
from alps.training import attention
from alps.training.projection import RestrictedProjection
from support.tiny_models import VOCABULARY, tiny

PAIRS = [(0, 1), (0, 3), (2, 5)]
"""The heads to train: two in one layer, none in the next, one in the last."""

Model = Any

torch.set_num_threads(1)  # tiny models lose more than they win by a second one


def tokens(seed: int = 0, batch: int = 4, length: int = 12) -> Tensor:
    """Random token numbers [batch, length]."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_model(model_type: str = "llama", dtype: torch.dtype = torch.float64) -> Model:
    """A tiny model without dropout, in the given number format: the same one every time."""
    model, _ = tiny(model_type)
    for parameter in model.parameters():  # not the buffers, which from_pretrained leaves in float32 too
        parameter.data = parameter.data.to(dtype)
    return model


def chosen(model: Model, pairs: list[tuple[int, int]] | None = None) -> HeadSet:
    return HeadSet.from_pairs(PAIRS if pairs is None else pairs, attention.find(model).geometry)


def loss_of(model: Model, step: int) -> Tensor:
    """A loss to train on: that of a language model where it is one."""
    batch = tokens(step)
    output = model(input_ids=batch)
    logits = output.logits if hasattr(output, "logits") else output[0]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), batch[:, 1:].flatten())


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def states(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def masks(model: Model, heads: HeadSet) -> dict[str, Tensor]:
    """For each weight and bias of Q, K and V, the entries that train: by hand, for tiny models.

    Other than the library this knows the names.
    """
    config = model.config
    heads_count, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    groups = groups or heads_count
    result = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[-2] not in {"q_proj", "k_proj", "v_proj", "query", "key", "value", "c_attn"}:
            continue
        layer = int(next(part for part in parts if part.isdigit()))
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        fused = parts[-2] == "c_attn"
        outputs = mask.t() if fused and mask.dim() == 2 else mask
        size = len(outputs) // (3 * heads_count) if fused else 0
        for at, head in heads:
            if at != layer:
                continue
            group = head * groups // heads_count
            if fused:
                for part in range(3):
                    start = (part * heads_count + head) * size
                    outputs[start : start + size] = True
            else:
                count, index = (heads_count, head) if parts[-2][0] == "q" else (groups, group)
                rows = len(outputs) // count
                outputs[index * rows : (index + 1) * rows] = True
        result[name] = mask
    return result


def projections(model: nn.Module) -> Iterator[RestrictedProjection]:
    return (module for module in model.modules() if isinstance(module, RestrictedProjection))


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]
