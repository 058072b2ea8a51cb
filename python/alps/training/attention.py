"""Finds the attention heads of a live model: which rows of which modules each of them owns."""

import json
from dataclasses import dataclass
from itertools import chain
from typing import TypeAlias

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from alps import _alps
from alps.errors import ArgumentError, ModelError
from alps.geometry import Geometry
from alps.heads import HeadSet

Projection: TypeAlias = nn.Linear | Conv1D

_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_WEIGHT = ".weight"


@dataclass(frozen=True)
class Matrix:
    """The query matrix of a head, or the key or value matrix of a key/value group.

    Attributes:
        row: The row of the layer in a score matrix.
        role: "query", "key" or "value".
        index: The number of the head or of the group.
        tensor: The name of the weight that it is a part of.
        axis: The axis of the weight that is the outputs.
        first: The first of its rows on that axis.
        count: How many rows it has.
    """

    row: int
    role: str
    index: int
    tensor: str
    axis: int
    first: int
    count: int

    @property
    def module(self) -> str:
        """The name of the module that has the weight."""
        return self.tensor.removesuffix(_WEIGHT)


@dataclass(frozen=True)
class Attention:
    """The heads of a live model.

    Attributes:
        geometry: How many there are, and of what size.
        matrices: Where each of them is.
    """

    geometry: Geometry
    matrices: tuple[Matrix, ...]

    @property
    def modules(self) -> dict[str, int]:
        """The names of the modules that project to queries, keys and values, with the axis of the outputs."""
        return {matrix.module: matrix.axis for matrix in self.matrices}

    def width(self, matrix: Matrix) -> int:
        """The entries of a row of the matrix."""
        width: int = getattr(self.geometry.sizes[matrix.row], f"{matrix.role}_width")
        return width

    def chosen(self, heads: HeadSet) -> list[Matrix]:
        """The matrices of the heads in the set, and of their key/value groups.

        Raises:
            ArgumentError: The set is of another model.
        """
        if difference := heads.geometry.difference(self.geometry):
            raise ArgumentError(f"the heads are not those of this model (heads and model): {difference}")
        masks = {"query": heads.mask, "key": heads.key_value_groups, "value": heads.key_value_groups}
        return [matrix for matrix in self.matrices if masks[matrix.role][matrix.row, matrix.index]]

    def rows(self, heads: HeadSet) -> dict[str, torch.Tensor]:
        """The rows that `chosen` owns: int64, ascending, for each of `modules`.

        Raises:
            ArgumentError: The set is of another model.
        """
        ranges: dict[str, list[range]] = {name: [] for name in self.modules}
        for matrix in self.chosen(heads):
            ranges[matrix.module].append(range(matrix.first, matrix.first + matrix.count))
        return {
            name: torch.from_numpy(np.sort(np.fromiter(chain.from_iterable(parts), np.int64)))
            for name, parts in ranges.items()
        }


def component_of(heads: HeadSet) -> str:
    """The component whose heads are in the set.

    Raises:
        ArgumentError: `heads` is something else.
    """
    if not isinstance(heads, HeadSet):
        raise ArgumentError(f"heads: expected an alps.HeadSet, found {type(heads).__name__}")
    return heads.geometry.component


def find(
    model: nn.Module, shapes: dict[str, list[int]] | None = None, component: str | None = None
) -> Attention:
    """Finds the heads of a model by its configuration and the names and shapes of its tensors.

    Args:
        model: A model of transformers.
        shapes: The names and shapes, where they are not those of the model's parameters.
        component: Whose heads, as for `alps.scan`.

    Raises:
        ArgumentError: The model has no configuration, or there is no such component.
        ModelError: The model is of no known layout, contradicts its configuration, or is quantised.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(config, "to_dict"):
        raise ArgumentError(
            f"model: expected a model of transformers, with a configuration; found {type(model).__name__}"
        )
    name = type(model).__name__
    if getattr(model, "is_quantized", False):
        method = getattr(getattr(config, "quantization_config", None), "quant_method", "method unknown")
        raise ModelError(
            f"{name}: expected weights that are floating-point numbers, found quantised ones ({method}); "
            "load the model without quantisation"
        )
    fields, matrices = _alps.attention(
        name,
        json.dumps(config.to_dict(), default=str),
        parameter_shapes(model) if shapes is None else shapes,
        component,
    )
    for matrix in matrices:
        if not (tensor := matrix[3]).endswith(_WEIGHT):
            raise ModelError(
                f"{name}.{tensor}: expected the weight of a Linear or Conv1D, found a parameter of another module, "
                "whose rows cannot train apart"
            )
    return Attention(Geometry.of_layers(**fields), tuple(Matrix(*matrix) for matrix in matrices))


def parameter_shapes(model: nn.Module) -> dict[str, list[int]]:
    """The names of all parameters, of one that is shared every name, with their shapes."""
    return {name: list(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}


def check_projection(name: str, module: nn.Module, axis: int) -> Projection:
    """The module, if it is one whose rows can train.

    Raises:
        ModelError: It computes something else than a Linear (axis 0) or Conv1D (axis 1), or its weight
            is not of a floating-point format that trains.
    """
    kind: type[Projection] = nn.Linear if axis == 0 else Conv1D
    if not isinstance(module, kind) or type(module).forward is not kind.forward:
        raise ModelError(f"{name}: expected a {kind.__name__}, found a {_kind(module)}")
    hooks = (
        module._forward_hooks,
        module._forward_pre_hooks,
        module._backward_hooks,
        module._backward_pre_hooks,
    )
    if "forward" in vars(module) or any(hooks):
        raise ModelError(
            f"{name}: expected a {kind.__name__} without hooks, found some, which would be lost; restrict "
            "the model before anything else is attached to it"
        )
    for part, tensor in module.named_parameters():
        if tensor.dtype not in _DTYPES:
            raise ModelError(
                f"{name}.{part}: expected float16, bfloat16, float32 or float64, found "
                f"{str(tensor.dtype).removeprefix('torch.')}; quantised weights cannot train"
            )
        if type(tensor.data) is not torch.Tensor:
            raise ModelError(
                f"{name}.{part}: expected a plain tensor, found a {type(tensor.data).__name__}; restrict the "
                "model before it is sharded"
            )
    return module


def _kind(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__name__}"
