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
from alps.heads import HeadSet, check_head_set
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
    """The heads of a live model, whose rows can be read and written by their places in this or another state of it.

    Attributes:
        attention: Where they are.
        geometry: Their numbers and sizes.
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
        self.geometry = self.attention.geometry
        self._matrices = {_place(matrix): matrix for matrix in self.attention.matrices}

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
        """Views of the weight and of the bias: to write them changes the model."""
        matrix = self._matrices[_place(matrix)]
        module = self._model.get_submodule(matrix.module)
        weight = _writable_tensor(matrix, module, matrix.parameter)
        # `view` fails where `reshape` would return a copy, whose writing does not change the model.
        view = matrix.rows_of(weight.view(weight.shape[0], -1))
        name = matrix.parameter.replace("weight", "bias")
        if name == matrix.parameter or getattr(module, name, None) is None:
            return view, None
        return view, _writable_tensor(matrix, module, name).narrow(0, matrix.first, matrix.count)


def _place(matrix: HeadRows) -> tuple[str, int, int]:
    """The place of a matrix, which is the same in all states of a model."""
    return matrix.role, matrix.layer_index, matrix.index


def _writable_tensor(matrix: HeadRows, module: nn.Module, name: str) -> Tensor:
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

    def __init__(self, path: str | os.PathLike[str], component: str) -> None:
        """Opens the files; reads no weights."""
        self._weights = _alps.HeadWeights(sources.find(path).paths, component)
        self.geometry = Geometry.of_layers(**self._weights.geometry())

    def read(self, matrix: HeadRows) -> Rows:
        """Reads the rows of a matrix, in float64."""
        weight, bias = self._weights.matrix(*_place(matrix)), self._weights.bias(*_place(matrix))
        return Rows(torch.from_numpy(weight), None if bias is None else torch.from_numpy(bias))


def other_heads(tuned: Tuned, geometry: Geometry) -> StoredHeads | LiveHeads:
    """The heads of another state of a model, whose geometry has to be that of the first.

    Raises:
        ArgumentError: It is another model.
    """
    if not isinstance(tuned, (nn.Module, str, os.PathLike)):
        raise ArgumentError(f"tuned: expected a model or a path, found {type(tuned).__name__}")
    component = geometry.component
    other = LiveHeads(tuned, component) if isinstance(tuned, nn.Module) else StoredHeads(tuned, component)
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
    biases, as `alps.graft` writes them. Everything happens in place. At the end the model has its weights again, bit for
    bit, also after an exception.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> ids = torch.arange(16)[None]  # the tokens of a text
        >>> batch = {"input_ids": ids, "labels": ids}
        >>> before = model(**batch).loss.item()
        >>> with alps.grafted(model, "tuned", alps.HeadSet.load("heads.json")):
        ...     grafted = model(**batch).loss.item()
        >>> grafted == before, model(**batch).loss.item() == before
        (False, True)

    Args:
        model: A transformers model of any layout that `scan` knows.
        tuned: Another state of the same model: a live model, or a checkpoint or adapter on this machine.
        heads: The chosen heads.
        scale: The factor s of the change.

    Yields:
        The model.

    Raises:
        ArgumentError: The heads are those of another model, `tuned` is another model, or the scale is no finite number.
        ModelError: The model has no known layout, or its weights are quantised, sharded or not in memory.
        OSError: A file of `tuned` cannot be read.

    Definitions:
        A row w becomes w + s · (w_T − w), where w_T is the tuned row.
    """
    check_head_set(heads)
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
