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
from alps.sharing import Shareable

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from pandas import Series

_FORMAT = "alps-heads"
_VERSION = 1


@dataclass(frozen=True)
class Report:
    """Counts the heads, key/value groups and parameters of a head set.

    Parameters are entries of the Q, K and V weights; biases are left out. A selected head trains its query rows and the
    key and value rows of its group. Where heads share a group, the share of the parameters is therefore larger than the
    share of the heads.

    Examples:
        >>> report = alps.HeadSet.load("heads.json").report
        >>> print(report)
        4 of 32 heads, 3 of 16 key/value groups, 1,280 of 8,192 Q/K/V parameters (15.6 %)
        >>> report.share
        0.15625

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

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").report_html(self)
        return html

    @property
    def _counts(self) -> str:
        return (
            f"{self.heads:,} of {self.total_heads:,} heads, "
            f"{self.key_value_groups:,} of {self.total_key_value_groups:,} key/value groups"
        )

    def __str__(self) -> str:
        parameters = f"{self.trainable_parameters:,} of {self.total_parameters:,} Q/K/V parameters"
        return f"{self._counts}, {parameters} ({100 * self.share:.1f} %)"


class HeadSet(Shareable):
    """An immutable set of attention heads of one model.

    It iterates over (layer, head) in ascending order, where layer is the number of the layer. Sets of one model are
    combined as Python's sets are. Two sets are equal when they hold the same heads of the same geometry. Sets of
    different geometry cannot be combined, which raises `ArgumentError`.

    Examples:
        >>> heads = alps.scan("base", "tuned").select(ratio=0.1)
        >>> for layer, head in heads:
        ...     print(f"layer {layer}, head {head}")
        layer 0, head 5
        layer 1, head 2
        layer 1, head 3
        layer 3, head 6
        >>> by_hand = alps.HeadSet.from_pairs([(1, 2), (2, 0)], heads.geometry)
        >>> len(heads | by_hand), len(heads & by_hand), len(heads - by_hand)
        (5, 1, 3)
        >>> heads.save("heads.json")
    """

    __slots__ = ("_geometry", "_mask", "_provenance")
    _file = "heads.json"

    def __init__(
        self, mask: NDArray[np.bool_], geometry: Geometry, provenance: Mapping[str, str] | None = None
    ) -> None:
        """Makes a set of the heads whose flag in `mask` is set.

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
        """Makes a set of the heads whose flag in a mask is set.

        Examples:
            >>> scores = alps.HeadScores.load("scores.safetensors")
            >>> mask = scores["relative_delta"] > 0.3
            >>> alps.HeadSet.from_mask(mask, scores.geometry).pairs()
            [(0, 5), (1, 3)]

        Args:
            mask: Booleans [layers, heads].
            geometry: The model that the heads belong to.

        Returns:
            The set.

        Raises:
            ArgumentError: `mask` is not boolean, or not of the geometry's shape.
        """
        return cls(mask, geometry)

    @classmethod
    def from_pairs(cls, pairs: Iterable[tuple[int, int]], geometry: Geometry) -> "HeadSet":
        """Makes a set of heads given by their numbers.

        Examples:
            >>> geometry = alps.geometry("base")
            >>> alps.HeadSet.from_pairs([(0, 5), (3, 6)], geometry)
            HeadSet(2 of 32 heads: llama, 4 layers x 8 heads, 4 key/value groups)

        Args:
            pairs: The heads as (layer number, head).
            geometry: The model that the heads belong to.

        Returns:
            The set.

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
        """The set as read-only booleans [layers, heads]."""
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
        """The key/value groups that a head of the set reads: booleans [layers, groups]."""
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
        """Lists the heads as (layer number, head), ascending."""
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
        """Makes a column with a flag for every (layer, head), to be joined with `HeadScores.to_pandas`.

        Examples:
            >>> scores = alps.HeadScores.load("scores.safetensors")
            >>> heads = alps.HeadSet.load("heads.json")
            >>> table = scores.to_pandas().join(heads.to_pandas())
            >>> int(table["selected"].sum())
            4

        Returns:
            A Series of pandas, named "selected", with the index (layer, head).

        Raises:
            MissingPackageError: pandas is not installed.
        """
        series: Series[bool] = visual("pandas", "a table of pandas", "pandas").set_series(self)
        return series

    def plot(self) -> "Figure":
        """Draws a map of layers x heads with the heads of the set filled.

        Examples:
            >>> alps.HeadSet.load("heads.json").plot().savefig("heads.svg")

        Returns:
            A figure of matplotlib, which pyplot does not know of.

        Raises:
            ArgumentError: The model has no attention.
            MissingPackageError: matplotlib is not installed.
        """
        figure: Figure = visual("figures", "a picture").set_figure(self)
        return figure

    def union(self, other: "HeadSet") -> "HeadSet":
        """Returns the heads of either set, as `self | other` does."""
        return self._combine(other, np.logical_or)

    def intersection(self, other: "HeadSet") -> "HeadSet":
        """Returns the heads of both sets, as `self & other` does."""
        return self._combine(other, np.logical_and)

    def difference(self, other: "HeadSet") -> "HeadSet":
        """Returns the heads of this set that are not in the other, as `self - other` does."""
        return self._combine(other, np.greater)

    def symmetric_difference(self, other: "HeadSet") -> "HeadSet":
        """Returns the heads of one set or the other but not of both, as `self ^ other` does."""
        return self._combine(other, np.logical_xor)

    __or__, __and__, __sub__, __xor__ = union, intersection, difference, symmetric_difference

    def jaccard(self, other: "HeadSet") -> float:
        """Measures how far two sets overlap.

        Examples:
            >>> heads = alps.HeadSet.load("heads.json")
            >>> other = alps.HeadSet.from_pairs([(0, 5), (2, 0)], heads.geometry)
            >>> heads.jaccard(other)  # 1 shared head of 5
            0.2

        Args:
            other: A set of the same geometry.

        Returns:
            |A ∩ B| / |A ∪ B|, the heads of both sets over the heads of either: 0 to 1; 1 for two empty sets.

        Raises:
            ArgumentError: The sets are of two geometries.
        """
        either = len(self.union(other))
        return len(self.intersection(other)) / either if either else 1.0

    def _combine(self, other: "HeadSet", operation: Callable[..., Any]) -> "HeadSet":
        if not isinstance(other, HeadSet):
            raise TypeError(f"expected a HeadSet, found {other!r}")
        if difference := self._geometry.difference(other._geometry):
            raise ArgumentError(f"the head sets are of two geometries: {difference}")
        return HeadSet(operation(self._mask, other._mask), self._geometry)

    def to_json(self) -> str:
        """Returns the set as a JSON document with one line for each layer."""
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

        Examples:
            >>> heads = alps.scan("base", "tuned").select(ratio=0.1)
            >>> heads.save("heads.json")
            >>> alps.HeadSet.load("heads.json") == heads
            True

        Args:
            path: The file to write; an older one is replaced.

        Raises:
            OSError: The file cannot be written.
        """
        write_whole(path, self._encoded())

    def _encoded(self) -> bytes:
        return self.to_json().encode()

    def _map(self) -> "Figure":
        return self.plot()

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "HeadSet":
        """Reads what `save` wrote.

        Examples:
            >>> alps.HeadSet.load("heads.json").pairs()
            [(0, 5), (1, 2), (1, 3), (3, 6)]

        Args:
            path: The file to read.

        Returns:
            The set.

        Raises:
            CheckpointError: The file is not a head set, or contradicts itself; names the field.
            OSError: The file cannot be read.
        """
        file = Path(path)
        if (size := check_regular(file)) > limits.LARGEST_DOCUMENT:
            raise CheckpointError(f"{file}: expected a head set, found a file of {size} bytes")
        return cls.from_json(file.read_bytes(), file)

    @classmethod
    def from_json(cls, text: str | bytes, source: str | os.PathLike[str] = "head set") -> "HeadSet":
        """Reads what `to_json` returned.

        Args:
            text: The document.
            source: The name of the document in error messages.

        Returns:
            The set.

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
