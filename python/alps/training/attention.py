"""Finds the attention heads of a live model: which rows of which modules hold each head."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from transformers.pytorch_utils import Conv1D

import alps._alps as _alps
from alps.errors import ArgumentError, ModelError
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.training.quantised import is_packed

Projection: TypeAlias = nn.Linear | Conv1D
"""A module whose rows can train. The outputs are axis 0 of the weight of a Linear and axis 1 of that of a Conv1D."""

TRAINABLE_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class HeadRows:
    """The rows of a weight that hold the query matrix of a head, or the key or value matrix of a key/value group.

    Attributes:
        layer_index: The position of the layer among those with attention.
        role: "query", "key" or "value".
        index: The number of the head or of the group.
        module: The name of the module that has the weight.
        parameter: The name of the weight in the module.
        axis: The axis of the weight that holds the outputs. With axis 1, all axes from there on count as one.
        first: The first of the rows, on that axis.
        count: The number of rows.
    """

    layer_index: int
    role: str
    index: int
    module: str
    parameter: str
    axis: int
    first: int
    count: int

    def rows_of(self, weight: torch.Tensor) -> torch.Tensor:
        """The rows in the weight, or in a tensor of its shape: [rows, in features], a view where that is possible."""
        flat = weight.reshape(weight.shape[0], -1).narrow(self.axis, self.first, self.count)
        return flat.T if self.axis else flat


@dataclass(frozen=True)
class Attention:
    """The attention heads of a live model.

    Attributes:
        geometry: Their numbers and sizes.
        matrices: The rows of every head and every key/value group.
    """

    geometry: Geometry
    matrices: tuple[HeadRows, ...]

    @property
    def modules(self) -> dict[str, int]:
        """The modules that project to queries, keys and values, by name, with the axis of the outputs."""
        return {matrix.module: matrix.axis for matrix in self.matrices}

    def chosen(self, heads: HeadSet) -> list[HeadRows]:
        """The matrices of the heads in the set and of the key/value groups that they read.

        Raises:
            ArgumentError: The set belongs to another model.
        """
        if difference := heads.geometry.difference(self.geometry):
            raise ArgumentError(f"the heads are not those of this model (heads and model): {difference}")
        masks = {"query": heads.mask, "key": heads.key_value_groups, "value": heads.key_value_groups}
        return [matrix for matrix in self.matrices if masks[matrix.role][matrix.layer_index, matrix.index]]

    def by_head(self, values: Mapping[HeadRows, float]) -> NDArray[np.float64]:
        """The sum of the values of each head's queries and of its group's keys and values: [layers, heads].

        A matrix without a value counts 0. The places of a layer with fewer heads are not-a-number.
        """
        table = np.where(self.geometry.is_head, 0.0, np.nan)
        for matrix, value in values.items():
            sizes = self.geometry.sizes[matrix.layer_index]
            shared = 1 if matrix.role == "query" else sizes.heads_per_group
            table[matrix.layer_index, matrix.index * shared : (matrix.index + 1) * shared] += value
        return table

    @property
    def parameters(self) -> dict[str, tuple[str, ...]]:
        """The names of the weights in each of the modules."""
        names: dict[str, dict[str, None]] = {}
        for matrix in self.matrices:
            names.setdefault(matrix.module, {})[matrix.parameter] = None
        return {module: tuple(weights) for module, weights in names.items()}

    def rows(self, heads: HeadSet) -> dict[str, torch.Tensor]:
        """The rows of the `chosen` matrices by module: int64, ascending, empty for a module without any.

        Raises:
            ArgumentError: The set belongs to another model.
            ModelError: The weights of a module differ in their rows, which no known layout has.
        """
        rows: dict[str, dict[str, list[int]]] = {
            module: {weight: [] for weight in weights} for module, weights in self.parameters.items()
        }
        for matrix in self.chosen(heads):
            numbers = range(matrix.first, matrix.first + matrix.count)
            rows[matrix.module][matrix.parameter].extend(numbers)
        found = {}
        for module, weights in rows.items():
            first, *others = (sorted(numbers) for numbers in weights.values())
            if any(numbers != first for numbers in others):
                raise ModelError(f"{module}: expected the same rows of its weights {', '.join(weights)}")
            found[module] = torch.tensor(first, dtype=torch.int64)
        return found


def find(
    model: nn.Module, component: str | None = None, wrapper: str = "", quantised: bool = False
) -> Attention:
    """Finds the heads of a model from its configuration and the names and shapes of its parameters.

    Args:
        model: A transformers model.
        component: The component whose heads to find, as for `alps.scan`.
        wrapper: A part to leave out of the names of parameters, which the wrappers of their modules have added.
        quantised: Whether weights may be quantised.

    Raises:
        ArgumentError: The model has no configuration, or has no such component.
        ModelError: The model has no known layout, contradicts its configuration, or is quantised.
    """
    config = getattr(model, "config", None)
    if not isinstance(model, nn.Module) or config is None or not hasattr(config, "to_dict"):
        raise ArgumentError(
            f"model: expected a model of transformers, with a configuration; found {type(model).__name__}"
        )
    name = type(model).__name__
    if getattr(model, "is_quantized", False) and not quantised:
        method = getattr(getattr(config, "quantization_config", None), "quant_method", "method unknown")
        raise ModelError(
            f"{name}: expected weights that are floating-point numbers, found quantised ones ({method}); "
            "load the model without quantisation"
        )
    parameters = model.named_parameters(remove_duplicate=False)
    shapes = {parameter.replace(wrapper, ""): list(tensor.shape) for parameter, tensor in parameters}
    for module_name, module in model.named_modules():
        if quantised and isinstance(module, nn.Linear) and is_packed(module.weight):
            weight = f"{module_name}.weight".replace(wrapper, "")
            shapes[weight] = [module.out_features, module.in_features]
    geometry, matrices = _alps.live_attention(
        name, json.dumps(config.to_dict(), default=str), shapes, component
    )
    found = []
    for matrix in matrices:
        module, _, parameter = matrix["tensor"].rpartition(".")
        rows = (matrix["axis"], matrix["first"], matrix["count"])
        found.append(
            HeadRows(matrix["layer_index"], matrix["role"], matrix["index"], module, parameter, *rows)
        )
    return Attention(Geometry.of_layers(**geometry), tuple(found))


RESTRICTED = "_alps_restricted"
"""The attribute of the classes of modules of which `alps.restrict` trains some rows."""


def is_restricted(model: nn.Module) -> bool:
    """Whether `alps.restrict` was called on a model."""
    return any(hasattr(type(module), RESTRICTED) for module in model.modules())


def is_ordinary(module: nn.Module, axis: int) -> bool:
    """Whether a module computes what a Linear (axis 0) or a Conv1D (axis 1) does, and nothing more."""
    kind: type[Projection] = nn.Linear if axis == 0 else Conv1D
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return (
        isinstance(module, kind)
        and type(module).forward is kind.forward
        and "forward" not in vars(module)
        and not any(getattr(module, hook) for hook in hooks)
    )


def features(module: nn.Module, axis: int) -> tuple[int, int]:
    """The out and in features of a projection, also of one whose weight is packed."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    shape = module.get_parameter("weight").shape
    return shape[axis], shape[1 - axis]


def check_projection(name: str, module: nn.Module, axis: int) -> nn.Module:
    """Returns the module if an adapter can replace some of its outputs.

    Raises:
        ModelError: The module is no Linear (axis 0) or Conv1D (axis 1), not even of a kind of its own, or has a
            parameter that is sharded, is not in memory, or is of a format that cannot be read.
    """
    kind: type[Projection] = nn.Linear if axis == 0 else Conv1D
    if not isinstance(module, kind):
        found = type(module)
        raise ModelError(f"{name}: expected a {kind.__name__}, found a {found.__module__}.{found.__name__}")
    for parameter, tensor in module.named_parameters():
        check_parameter(f"{name}.{parameter}", module, tensor)
    return module


def check_parameter(name: str, module: nn.Module, tensor: torch.Tensor) -> None:
    """Refuses a parameter of a module whose rows cannot train.

    Args:
        name: Of the parameter, for messages.
        module: That holds the parameter.
        tensor: The parameter.

    Raises:
        ModelError: It is sharded, not in memory, or of a format that cannot train.
    """
    if hasattr(tensor, "ds_id"):
        raise ModelError(
            f"{name}: expected a whole weight, found one that DeepSpeed's ZeRO-3 has partitioned; train with ZeRO-1 or "
            "2, with FSDP2, or an adapter (AlpsConfig) that is added before"
        )
    if getattr(getattr(module, "_hf_hook", None), "offload", False):
        raise ModelError(
            f"{name}: expected a weight in memory, found one that accelerate loads for each pass, which would lose "
            "what was trained; load the model without offloading"
        )
    if is_packed(tensor):  # rows train beside it
        return
    if tensor.dtype not in TRAINABLE_DTYPES:
        raise ModelError(
            f"{name}: expected float16, bfloat16, float32 or float64, or weights quantised by bitsandbytes, "
            f"found {str(tensor.dtype).removeprefix('torch.')}; quantised weights cannot train"
        )
    if type(tensor.data) is not torch.Tensor:
        raise ModelError(
            f"{name}: expected a plain tensor, found a {type(tensor.data).__name__}; restrict the model, or add the "
            "adapter, before FSDP2 shards it; tensor parallelism is not supported"
        )
