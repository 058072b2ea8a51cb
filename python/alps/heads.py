"""Sets of attention heads."""

import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

import alps._alps as _alps
from alps import limits
from alps.errors import ArgumentError, CheckpointError
from alps.escaping import one_line, shorten
from alps.files import check_document, check_regular, parse_json, write_whole
from alps.geometry import Geometry, geometry_of
from alps.optional import visual

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import Series

_FORMAT = "alps-heads"
_VERSION = 1
"""Bytes. A set of ten thousand layers takes less, and a checkpoint given by mistake is not read."""


@dataclass(frozen=True)
class Report:
    """How many heads, key/value groups and parameters a head set has.

    Parameters are entries of the Q, K and V weights; biases are left out. A selected head trains its
    query rows and the key and value rows of its group, so with grouped queries the share of the
    parameters is larger than the share of the heads.

    Attributes:
        heads: Heads in the set.
        total_heads: Heads of the model.
        key_value_groups: Key/value groups that a head of the set reads.
        total_key_value_groups: Key/value groups of the model.
        trainable_parameters: Query entries of the heads, and key and value entries of their groups.
        total_parameters: Entries of all Q, K and V weights.
    """

    heads: int
    total_heads: int
    key_value_groups: int
    total_key_value_groups: int
    trainable_parameters: int
    total_parameters: int

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all Q/K/V parameters, 0 to 1."""
        return self.trainable_parameters / self.total_parameters if self.total_parameters else 0.0

    @property
    def summary(self) -> str:
        """The heads, the key/value groups and the share of the parameters, in one line."""
        return f"{self._counts}, {100 * self.share:.1f} % of Q/K/V parameters"

    @property
    def _counts(self) -> str:
        return (
            f"{self.heads:,} of {self.total_heads:,} heads, "
            f"{self.key_value_groups:,} of {self.total_key_value_groups:,} key/value groups"
        )

    def __str__(self) -> str:
        parameters = f"{self.trainable_parameters:,} of {self.total_parameters:,} Q/K/V parameters"
        return f"{self._counts}, {parameters} ({100 * self.share:.1f} %)"


class HeadSet:
    """An immutable set of attention heads of one model.

    Iterates over (layer, head) in ascending order, where layer is the layer's number. Two sets are
    equal when they hold the same heads of the same geometry; sets of different geometry cannot be combined,
    which raises `ArgumentError`.
    """

    __slots__ = ("_geometry", "_mask", "_provenance")

    def __init__(
        self, mask: NDArray[np.bool_], geometry: Geometry, provenance: Mapping[str, str] | None = None
    ) -> None:
        """A set of the heads whose flag in `mask` is set.

        Args:
            mask: Booleans [layers, heads].
            geometry: The model that the heads belong to.
            provenance: How the heads were chosen.

        Raises:
            ArgumentError: `mask` is not boolean, or not of the geometry's shape.
        """
        flags = np.array(mask, order="C")
        if flags.dtype != np.bool_:
            raise ArgumentError(f"expected a boolean mask, found {flags.dtype}")
        if flags.shape != geometry.shape:
            raise ArgumentError(
                f"expected a mask [layers, heads] of {geometry.shape} for {geometry}; found {flags.shape}"
            )
        for row, sizes in enumerate(geometry.sizes):
            if flags[row, sizes.query_heads :].any():
                raise ArgumentError(
                    f"layer {geometry.layers[row]} has heads 0 to {sizes.query_heads - 1}; the mask has others"
                )
        flags.flags.writeable = False
        self._mask = flags
        self._geometry = geometry
        self._provenance = dict(provenance or {})

    @classmethod
    def from_mask(cls, mask: NDArray[np.bool_], geometry: Geometry) -> "HeadSet":
        """A set of the heads whose flag in `mask`, booleans [layers, heads], is set.

        Raises:
            ArgumentError: `mask` is not boolean, or not of the geometry's shape.
        """
        return cls(mask, geometry)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]], geometry: Geometry) -> "HeadSet":
        """A set of the heads given as (layer number, head).

        Raises:
            ArgumentError: A pair is not of two whole numbers, or the model has no such head.
        """
        mask = np.zeros(geometry.shape, dtype=np.bool_)
        for pair in pairs:
            try:
                layer, head = map(operator.index, pair)
            except (TypeError, ValueError):
                raise ArgumentError(f"expected (layer, head), found {pair!r}") from None
            geometry.group_of(head, layer)  # refuses a layer or a head that is out of range
            mask[geometry.row_of(layer), head] = True
        return cls(mask, geometry)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Read-only booleans [layers, heads]."""
        return self._mask

    @property
    def geometry(self) -> Geometry:
        """The model that the heads belong to."""
        return self._geometry

    @property
    def provenance(self) -> dict[str, str]:
        """How the heads were chosen; empty for a set made by hand or by set algebra."""
        return dict(self._provenance)

    @property
    def key_value_groups(self) -> NDArray[np.bool_]:
        """Booleans [layers, groups]: the key/value groups that a head of the set reads."""
        geometry = self._geometry
        groups = np.zeros((len(geometry.layers), geometry.key_value_heads), dtype=np.bool_)
        for row, sizes in enumerate(geometry.sizes):
            of_layer = self._mask[row, : sizes.query_heads].reshape(sizes.key_value_heads, -1)
            groups[row, : sizes.key_value_heads] = of_layer.any(axis=1)
        return groups

    @property
    def report(self) -> Report:
        """The numbers of heads and key/value groups, and the share of the parameters that they train."""
        return Report(**_alps.report(self._mask, self._geometry))

    def pairs(self) -> list[tuple[int, int]]:
        """The heads as (layer number, head), ascending."""
        return [(self._geometry.layers[row], int(head)) for row, head in np.argwhere(self._mask)]

    def __len__(self) -> int:
        return int(self._mask.sum())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter(self.pairs())

    def __contains__(self, pair: object) -> bool:
        return pair in self.pairs()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, HeadSet):
            return NotImplemented
        return self._geometry == other._geometry and np.array_equal(self._mask, other._mask)

    def __hash__(self) -> int:
        return hash((self._geometry, self._mask.tobytes()))

    def __repr__(self) -> str:
        return f"HeadSet({len(self)} of {self._geometry.heads} heads: {self._geometry})"

    def __reduce__(self) -> tuple[Any, ...]:
        return HeadSet, (self._mask, self._geometry, self._provenance)

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").set_html(self)
        return html

    def to_pandas(self) -> "Series[bool]":
        """A flag for every (layer, head), named "selected", to be joined with `HeadScores.to_pandas`.

        Raises:
            MissingPackageError: pandas is not installed.
        """
        series: Series[bool] = visual("pandas", "a table of pandas", "pandas").set_series(self)
        return series

    def plot(self) -> "Figure":
        """Draws a map of layers x heads with the heads of the set filled.

        Returns:
            A figure of matplotlib, which pyplot does not know of.

        Raises:
            ArgumentError: The model has no attention.
            MissingPackageError: matplotlib is not installed.
        """
        figure: Figure = visual("figures", "a picture").set_figure(self)
        return figure

    def union(self, other: "HeadSet") -> "HeadSet":
        """The heads of either set; also `a | b`."""
        return self._combine(other, np.logical_or)

    def intersection(self, other: "HeadSet") -> "HeadSet":
        """The heads of both sets; also `a & b`."""
        return self._combine(other, np.logical_and)

    def difference(self, other: "HeadSet") -> "HeadSet":
        """The heads of this set that are not in the other; also `a - b`."""
        return self._combine(other, np.greater)

    def symmetric_difference(self, other: "HeadSet") -> "HeadSet":
        """The heads of one set or the other, but not of both; also `a ^ b`."""
        return self._combine(other, np.logical_xor)

    __or__, __and__, __sub__, __xor__ = union, intersection, difference, symmetric_difference

    def jaccard(self, other: "HeadSet") -> float:
        """The overlap, 0 to 1: heads of both sets over heads of either; 1 for two empty sets."""
        either = len(self.union(other))
        return len(self.intersection(other)) / either if either else 1.0

    def _combine(self, other: "HeadSet", operation: Callable[..., Any]) -> "HeadSet":
        if not isinstance(other, HeadSet):
            raise TypeError(f"expected a HeadSet, found {other!r}")
        if difference := self._geometry.difference(other._geometry):
            raise ArgumentError(f"the head sets are of two geometries: {difference}")
        return HeadSet(operation(self._mask, other._mask), self._geometry)

    def to_json(self) -> str:
        """The set as a JSON document with one line for each layer."""
        geometry = self._geometry.to_fields()
        layers = geometry.pop("layers")  # they are the names in "heads"
        heads = {
            str(layer): np.flatnonzero(row).tolist() for layer, row in zip(layers, self._mask, strict=True)
        }
        return (
            "{\n"
            f'  "format": "{_FORMAT}",\n'
            f'  "version": {_VERSION},\n'
            f'  "geometry": {_lines(geometry)},\n'
            f'  "provenance": {_lines(self._provenance)},\n'
            f'  "heads": {_lines(heads)}\n'
            "}\n"
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the set as JSON that a person can read and diff, whole or not at all.

        Raises:
            OSError: The file cannot be written.
        """
        write_whole(path, self.to_json().encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadSet":
        """Reads what `save` wrote.

        Raises:
            CheckpointError: The file is not a head set, or contradicts itself; names the field.
            OSError: The file cannot be read.
        """
        file = Path(path)
        if (size := check_regular(file)) > limits.LARGEST_HEAD_SET:
            raise CheckpointError(f"{file}: expected a head set, found a file of {size} bytes")
        return cls.from_json(file.read_bytes(), file)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | os.PathLike[str] = "head set") -> "HeadSet":
        """Reads what `to_json` returned; messages call it `source`.

        Raises:
            CheckpointError: The text is not a head set, or contradicts itself; names the field.
        """
        document = parse_json(source, text)
        try:
            return _parse(document)
        except ArgumentError as error:
            raise CheckpointError(f"{os.fspath(source)}: {one_line(error)}") from None


def check_head_set(heads: object) -> HeadSet:
    """Returns `heads`.

    Raises:
        ArgumentError: It is no head set.
    """
    if not isinstance(heads, HeadSet):
        raise ArgumentError(f"heads: expected a HeadSet, found {type(heads).__name__}")
    return heads


def _lines(values: Mapping[str, Any]) -> str:
    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in values.items())
    return f"{{\n{lines}\n  }}" if lines else "{}"


def _parse(document: Mapping[str, Any]) -> HeadSet:
    check_document(document, _FORMAT, _VERSION, {"geometry": dict, "provenance": dict, "heads": dict})
    heads: dict[str, Any] = document["heads"]
    for layer in heads:
        is_number = layer.isascii() and layer.isdigit() and (layer == "0" or layer[0] != "0")
        if not is_number or len(layer) > limits.LONGEST_LAYER:
            raise ArgumentError(f"heads: expected a layer number, found {shorten(layer)!r}")
    if "layers" in document["geometry"]:
        raise ArgumentError("geometry.layers: unknown field")
    geometry = geometry_of(document["geometry"] | {"layers": list(map(int, heads))})
    mask = np.zeros(geometry.shape, dtype=np.bool_)
    for row, (layer, numbers) in enumerate(heads.items()):
        if not isinstance(numbers, list):
            raise ArgumentError(f"heads.{layer}: expected a list of heads, found {numbers!r}")
        for head in numbers:
            heads_of_layer = geometry.sizes[row].query_heads
            if type(head) is not int or not 0 <= head < heads_of_layer:
                raise ArgumentError(
                    f"heads.{layer}: expected heads 0 to {heads_of_layer - 1}, found {head!r}"
                )
            if mask[row, head]:
                raise ArgumentError(f"heads.{layer}: head {head} stands twice")
            mask[row, head] = True
    return HeadSet(mask, geometry, document["provenance"])
