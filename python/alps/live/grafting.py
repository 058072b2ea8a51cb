"""Puts rows of the heads of another model into a live one, and takes them out again."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

import alps._alps as _alps
from alps import sources
from alps.errors import ArgumentError, ModelError
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.training import attention
from alps.training.attention import Attention, HeadRows

Model = TypeVar("Model", bound=nn.Module)
Tuned: TypeAlias = nn.Module | str | os.PathLike[str]
"""Another state of a model: live, or a checkpoint or adapter on this machine."""


@dataclass(frozen=True)
class Rows:
    """The numbers of one matrix of one head: its weight, and its entries of the bias if there is one."""

    weight: Tensor
    bias: Tensor | None


class LiveHeads:
    """The heads of a live model, whose rows can be read and written.

    Attributes:
        attention: Where they are.
    """

    def __init__(self, model: nn.Module, component: str | None = None) -> None:
        """Finds the heads.

        Raises:
            ArgumentError: `model` is no model of transformers, has no such component, or is restricted.
            ModelError: The model has no known layout, contradicts its configuration, or has weights that are quantised,
                sharded or not in memory.
        """
        if isinstance(model, nn.Module) and attention.is_restricted(model):
            raise ArgumentError("the model is restricted; alps.release(model) ends that")
        self._model = model
        self.attention: Attention = attention.find(model, component)

    @property
    def geometry(self) -> Geometry:
        """The sizes of the heads."""
        return self.attention.geometry

    def read(self, matrix: HeadRows) -> Rows:
        """Copies the rows of a matrix."""
        weight, bias = self._views(matrix)
        return Rows(weight.clone(), None if bias is None else bias.clone())

    def write(self, matrix: HeadRows, rows: Rows) -> None:
        """Overwrites the rows of a matrix.

        Raises:
            ModelError: One of the two models has a bias there, and the other has none.
        """
        weight, bias = self._views(matrix)
        if (bias is None) != (rows.bias is None):
            raise ModelError(f"{matrix.module}: expected a bias in both models or in none")
        weight.copy_(rows.weight.reshape(weight.shape))
        if bias is not None and rows.bias is not None:
            bias.copy_(rows.bias)

    def _views(self, matrix: HeadRows) -> tuple[Tensor, Tensor | None]:
        """Views of the weight and of the bias, whose writing changes the model."""
        module = self._model.get_submodule(matrix.module)
        weight = _plain(matrix, module, matrix.parameter)
        # `view` fails where `reshape` would copy, and the model keep its rows.
        view = matrix.rows_of(weight.view(weight.shape[0], -1))
        name = matrix.parameter.replace("weight", "bias")
        if name == matrix.parameter or getattr(module, name, None) is None:
            return view, None
        return view, _plain(matrix, module, name).narrow(0, matrix.first, matrix.count)


def _plain(matrix: HeadRows, module: nn.Module, name: str) -> Tensor:
    """A parameter as a tensor that can be written without a gradient.

    Raises:
        ModelError: It is sharded, or not in memory.
    """
    data = module.get_parameter(name).data
    if type(data) is not Tensor or data.device.type == "meta":
        raise ModelError(
            f"{matrix.module}.{name}: expected a tensor that is whole and in memory, found a {type(data).__name__} on "
            f"{data.device}"
        )
    return data


class StoredHeads:
    """The heads of a checkpoint or adapter, read row by row."""

    def __init__(self, path: str | os.PathLike[str], component: str, over: str | None = None) -> None:
        """Opens the files; reads no weights.

        Args:
            path: A checkpoint, or an adapter.
            component: Whose heads.
            over: The checkpoint that an adapter changes, if its configuration does not say.
        """
        source = sources.find(path) if over is None else sources.find_both(over, path, None)[1]
        self._weights = _alps.HeadWeights((source.path, source.adapter), component)
        self.geometry = Geometry.of_layers(**self._weights.geometry())

    def read(self, matrix: HeadRows) -> Rows:
        """Reads the rows of a matrix, in float64."""
        place = (matrix.role, matrix.layer_index, matrix.index)
        bias = self._weights.bias(*place)
        return Rows(
            torch.from_numpy(self._weights.matrix(*place)), None if bias is None else torch.from_numpy(bias)
        )


class _OtherHeads:
    """The heads of another live model, by their places in the first."""

    def __init__(self, model: nn.Module, component: str) -> None:
        self._heads = LiveHeads(model, component)
        self.geometry = self._heads.geometry
        self._matrices = {
            (matrix.role, matrix.layer_index, matrix.index): matrix
            for matrix in self._heads.attention.matrices
        }

    def read(self, matrix: HeadRows) -> Rows:
        return self._heads.read(self._matrices[matrix.role, matrix.layer_index, matrix.index])


def other_heads(tuned: Tuned, geometry: Geometry) -> StoredHeads | _OtherHeads:
    """The heads of another state of a model, whose geometry has to be that of the first.

    Raises:
        ArgumentError: It is another model.
    """
    other: StoredHeads | _OtherHeads
    if isinstance(tuned, nn.Module):
        other = _OtherHeads(tuned, geometry.component)
    elif isinstance(tuned, (str, os.PathLike)):
        other = StoredHeads(tuned, geometry.component)
    else:
        raise ArgumentError(f"tuned: expected a model or a path, found {type(tuned).__name__}")
    if difference := geometry.difference(other.geometry):
        raise ArgumentError(f"the models are not two states of one (first and second): {difference}")
    return other


def changed(base: Rows, tuned: Rows, scale: float, dtype: torch.dtype) -> Rows:
    """`base + scale * (tuned - base)`, in float32 or wider."""
    if scale == 1:
        return tuned
    wide = torch.promote_types(dtype, torch.float32)

    def added(one: Tensor, other: Tensor) -> Tensor:
        own = one.to(wide)
        return own + scale * (other.to(own.device, wide) - own)

    bias = None if base.bias is None or tuned.bias is None else added(base.bias, tuned.bias)
    return Rows(added(base.weight, tuned.weight), bias)


@contextmanager
def written(heads: LiveHeads, rows: Iterable[tuple[HeadRows, Rows]]) -> Iterator[None]:
    """Overwrites rows of a live model, and restores them at the end."""
    before: list[tuple[HeadRows, Rows]] = []
    try:
        with torch.no_grad():
            for matrix, values in rows:
                before.append((matrix, heads.read(matrix)))
                heads.write(matrix, values)
        yield
    finally:
        with torch.no_grad():
            for matrix, values in reversed(before):
                heads.write(matrix, values)


@contextmanager
def grafted(model: Model, tuned: Tuned, heads: HeadSet, *, scale: float = 1.0) -> Iterator[Model]:
    """Puts the tuned rows of the chosen heads into a live model, and takes them out again at the end.

    The rows are those of Q, K and V of the heads and of the key/value groups that they read, with their entries of the
    biases: `base + scale * (tuned - base)`, as `alps.graft` writes them. Everything happens in place; at the end the model
    has its weights again, bit for bit, also after an exception.

        with alps.grafted(model, "tuned", heads):
            loss = evaluate(model)

    Args:
        model: A transformers model of any layout that `scan` knows.
        tuned: Another state of the same model: a live model, or a checkpoint or adapter on this machine.
        heads: The chosen heads.
        scale: Of the change.

    Yields:
        The model.

    Raises:
        ArgumentError: The heads are those of another model, `tuned` is another model, or the scale is no finite number.
        ModelError: The model has no known layout, or its weights are quantised, sharded or not in memory.
        OSError: A file of `tuned` cannot be read.
    """
    if not isinstance(heads, HeadSet):
        raise ArgumentError(f"heads: expected a HeadSet, found {type(heads).__name__}")
    if not math.isfinite(scale):
        raise ArgumentError(f"scale: expected a finite number, found {scale!r}")
    own = LiveHeads(model, heads.geometry.component)
    chosen = own.attention.chosen(heads)
    other = other_heads(tuned, own.geometry)

    def rows() -> Iterator[tuple[HeadRows, Rows]]:
        for matrix in chosen:
            before = own.read(matrix)
            yield matrix, changed(before, other.read(matrix), scale, before.weight.dtype)

    with written(own, rows()):
        yield model
