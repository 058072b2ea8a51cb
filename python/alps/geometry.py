"""The sizes of a model's attention."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any

from alps.errors import ArgumentError

_LARGEST_SIZE = 2**32 - 1


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model's attention.

    Attributes:
        model_type: What the configuration calls the model ("llama").
        family: The layout that its tensors follow.
        layers: The layer number of each row of a score matrix. A layer without attention is absent.
        query_heads: H, the query heads of a layer. Heads are numbered by query head.
        key_value_heads: G, the key/value groups of a layer; divides H.
        head_size: Rows of a query head, and of the keys of a group.
        value_size: Rows of the values of a group.
        hidden_size: Entries of such a row: the width of the model.

    Raises:
        ArgumentError: A size is not positive, G does not divide H, or the layers do not ascend.
    """

    model_type: str
    family: str
    layers: tuple[int, ...]
    query_heads: int
    key_value_heads: int
    head_size: int
    value_size: int
    hidden_size: int

    def __post_init__(self) -> None:
        for name in ("model_type", "family"):
            if not isinstance(getattr(self, name), str):
                raise ArgumentError(f"{name}: expected a string, found {getattr(self, name)!r}")
        for name in ("query_heads", "key_value_heads", "head_size", "value_size", "hidden_size"):
            size = getattr(self, name)
            if not _is_whole(size) or not 1 <= size <= _LARGEST_SIZE:
                raise ArgumentError(f"{name}: expected a positive whole number, found {size!r}")
        if self.query_heads % self.key_value_heads:
            raise ArgumentError(
                f"key_value_heads: {self.query_heads} query heads cannot share {self.key_value_heads} evenly"
            )
        object.__setattr__(self, "layers", tuple(self.layers))
        for layer in self.layers:
            if not _is_whole(layer) or not 0 <= layer <= _LARGEST_SIZE:
                raise ArgumentError(f"layers: expected layer numbers, found {layer!r}")
        if any(lower >= upper for lower, upper in pairwise(self.layers)):
            raise ArgumentError(f"layers: expected ascending layer numbers, found {list(self.layers)}")

    @property
    def shape(self) -> tuple[int, int]:
        """The shape [layers, heads] of a score matrix."""
        return len(self.layers), self.query_heads

    @property
    def heads(self) -> int:
        """The number of heads in all layers."""
        return len(self.layers) * self.query_heads

    @property
    def heads_per_group(self) -> int:
        """The number of query heads that share a key/value group."""
        return self.query_heads // self.key_value_heads

    def group_of(self, head: int) -> int:
        """The key/value group that query head `head` of a layer reads: floor(head * G / H).

        Raises:
            ArgumentError: There is no such head.
        """
        if not 0 <= head < self.query_heads:
            raise ArgumentError(f"there is no head {head}: a layer has heads 0 to {self.query_heads - 1}")
        return head // self.heads_per_group

    def row_of(self, layer: int) -> int:
        """The row of a score matrix that holds the layer number `layer`.

        Raises:
            ArgumentError: There is no such layer, or it has no attention.
        """
        try:
            return self.layers.index(layer)
        except ValueError:
            raise ArgumentError(
                f"there is no attention in layer {layer}: the layers are {_ranges(self.layers)}"
            ) from None

    def __str__(self) -> str:
        layers, heads = self.shape
        return f"{self.model_type}, {layers} layers x {heads} heads, {self.key_value_heads} key/value groups"

    def to_fields(self) -> dict[str, Any]:
        """The fields by name, of types that JSON has."""
        return {field.name: getattr(self, field.name) for field in fields(self)} | {
            "layers": list(self.layers)
        }

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> "Geometry":
        """The geometry of `values`, which name every field and nothing else.

        Raises:
            ArgumentError: A field is missing, unknown or out of its domain.
        """
        expected = {field.name for field in fields(cls)}
        for name in sorted(expected ^ set(values)):
            raise ArgumentError(f"{name}: {'missing' if name in expected else 'unknown'} field")
        if not isinstance(values["layers"], list | tuple):
            raise ArgumentError(f"layers: expected layer numbers, found {values['layers']!r}")
        return cls(**values)

    def difference(self, other: "Geometry") -> str:
        """What differs between two geometries, in words; empty when nothing does."""

        def text(value: object) -> str:
            return _ranges(value) if isinstance(value, tuple) else str(value)

        return ", ".join(
            f"{name} {text(mine)} and {text(theirs)}"
            for name, mine, theirs in (
                (field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
            )
            if mine != theirs
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers as a person writes them: "0-3, 7"."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs) or "none"
