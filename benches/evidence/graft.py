"""Losses of one model with the chosen groups' rows of another."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evidence.checkpoint import Sizes
from evidence.evaluate import evaluate
from evidence.llama import Weights
from evidence.tasks import Windows

_AT_ONCE = 45


def losses_of_grafts(
    into: Weights, source: Sequence[Tensor], sizes: Sizes, sets: Sequence[Sequence[int]], windows: Windows
) -> NDArray[np.float64]:
    """The loss of `into` with each set's rows of Q, K and V taken from `source`.

    Args:
        into: The model.
        source: Q, K and V of the other one, a tensor for each layer.
        sizes: Of both.
        sets: Numbers of groups, layer * groups of a layer + group.
        windows: What the loss is measured on.
    """
    found = []
    for start in range(0, len(sets), _AT_ONCE):
        part = sets[start : start + _AT_ONCE]
        qkv = []
        for layer, (own, other) in enumerate(zip(into.qkv, source, strict=True)):
            rows = own.view(sizes.groups, sizes.rows, -1)
            taken = [
                [number % sizes.groups for number in it if number // sizes.groups == layer] for it in part
            ]
            if any(taken):
                copies = rows.expand(len(part), *rows.shape).clone()
                for arm, groups in enumerate(taken):
                    for group in groups:
                        copies[arm, group] = other.view_as(rows)[group]
                qkv.append(copies.flatten(1, 2))
            else:
                qkv.append(own)
        found.append(evaluate(replace(into, qkv=qkv), sizes, windows, len(part)).loss)
    return torch.cat(found).numpy()
