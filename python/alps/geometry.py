"""The sizes of a model's attention."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from alps import limits
from alps.errors import ArgumentError
from alps.escaping import escape

_LARGEST_SIZE = 2**32 - 1


class LayerSizes(NamedTuple):
    """The sizes of one layer's attention.

    `Geometry.sizes` gives them for every layer. They differ between layers in some models only.

    Examples:
        >>> sizes = alps.geometry("base").sizes[0]
        >>> sizes.query_heads, sizes.key_value_heads, sizes.query_size
        (8, 4, 4)
        >>> sizes.heads_per_group
        2

    Attributes:
        query_heads: The number of query heads, H.
        key_value_heads: The number of key/value groups, G; divides H.
        query_size: Rows of a query head.
        key_size: Rows of the keys of a group; 0 if the layer reuses those of an earlier one.
        value_size: Rows of the values of a group; 0 if the layer reuses those of an earlier one, or its keys.
        query_width: Entries of a row of a query head.
        key_width: Entries of a row of the keys.
        value_width: Entries of a row of the values.
    """

    query_heads: int
    key_value_heads: int
    query_size: int
    key_size: int
    value_size: int
    query_width: int
    key_width: int
    value_width: int

    @property
    def heads_per_group(self) -> int:
        """The number of query heads that share a key/value group."""
        return self.query_heads // self.key_value_heads


_MAY_BE_ZERO = {"key_size", "value_size", "key_width", "value_width"}

_LARGEST_OF = {
    "query_heads": "query_heads",
    "key_value_heads": "key_value_heads",
    "head_size": "query_size",
    "value_size": "value_size",
    "hidden_size": "query_width",
}
"""The sizes of a `Geometry`, each the largest of this size of its layers."""


@dataclass(frozen=True)
class Geometry:
    """The sizes of a model's attention: its layers, heads and key/value groups.

    Scores and head sets hold the geometry of their model, so that those of another model are refused.

    Examples:
        >>> geometry = alps.geometry("base")
        >>> geometry.shape  # layers, heads
        (4, 8)
        >>> geometry.key_value_heads, geometry.head_size, geometry.hidden_size
        (4, 4, 32)

        Without a checkpoint, from sizes:

        >>> print(
        ...     alps.Geometry(
        ...         model_type="llama",
        ...         layout="separate",
        ...         layers=tuple(range(16)),
        ...         query_heads=32,
        ...         key_value_heads=8,
        ...         head_size=64,
        ...         value_size=64,
        ...         hidden_size=2048,
        ...     )
        ... )
        llama, 16 layers x 32 heads, 8 key/value groups

    Attributes:
        model_type: The name of the model type in the configuration ("llama").
        layout: The layout that its tensors follow.
        layers: The layer number of each row of a score matrix. A layer without attention is absent.
        query_heads: The number of query heads of a layer, H. Heads are numbered by query head.
        key_value_heads: The number of key/value groups of a layer, G; divides H.
        head_size: Rows of a query head, and of the keys of a group.
        value_size: Rows of the values of a group.
        hidden_size: Entries of such a row: the width of the model.
        component: The attention that it describes: "decoder", "encoder", "cross", "vision" or "audio".
        per_layer: The sizes of each layer, where they differ; the sizes above are then the largest ones.

    Raises:
        ArgumentError: A size is not positive, G does not divide H, the layers do not ascend, or the sizes of
            the layers contradict the largest ones.
    """

    model_type: str
    layout: str
    layers: tuple[int, ...]
    query_heads: int
    key_value_heads: int
    head_size: int
    value_size: int
    hidden_size: int
    component: str = "decoder"
    per_layer: tuple[LayerSizes, ...] = ()

    def __post_init__(self) -> None:
        for name in ("model_type", "layout", "component"):
            text = getattr(self, name)
            if not isinstance(text, str):
                raise ArgumentError(f"{name}: expected a string, found {text!r}")
            if len(text) > limits.LONGEST_NAME:
                raise ArgumentError(
                    f"{name}: expected at most {limits.LONGEST_NAME} characters, found {len(text)}"
                )
        for name in _LARGEST_OF:
            _check_size(name, getattr(self, name), least=0 if name == "value_size" and self.per_layer else 1)
        if not self.per_layer:
            _check_groups("key_value_heads", self.query_heads, self.key_value_heads)
        object.__setattr__(self, "layers", tuple(self.layers))
        _check_limits(len(self.layers), self.query_heads)
        for layer in self.layers:
            if not _is_whole(layer) or not 0 <= layer <= _LARGEST_SIZE:
                raise ArgumentError(f"layers: expected layer numbers, found {layer!r}")
        if any(lower >= upper for lower, upper in pairwise(self.layers)):
            raise ArgumentError(f"layers: expected ascending layer numbers, found {list(self.layers)}")
        object.__setattr__(self, "per_layer", tuple(LayerSizes(*sizes) for sizes in self.per_layer))
        self._check_per_layer()

    def _check_per_layer(self) -> None:
        if not self.per_layer:
            return
        if len(self.per_layer) != len(self.layers):
            raise ArgumentError(
                f"per_layer: expected sizes of {len(self.layers)} layers, found {len(self.per_layer)}"
            )
        for sizes in self.per_layer:
            for name, size in sizes._asdict().items():
                _check_size(f"per_layer.{name}", size, least=0 if name in _MAY_BE_ZERO else 1)
            _check_groups("per_layer.key_value_heads", sizes.query_heads, sizes.key_value_heads)
        for name, largest in _largest(self.per_layer).items():
            if getattr(self, name) != largest:
                raise ArgumentError(
                    f"{name}: expected {largest}, the largest of the layers, found {getattr(self, name)}"
                )

    @classmethod
    def of_layers(
        cls,
        model_type: str,
        layout: str,
        component: str,
        layers: Iterable[int],
        sizes: Iterable[Mapping[str, Any]],
    ) -> "Geometry":
        """Makes a geometry of layers whose sizes may differ.

        Args:
            model_type: The name of the model type.
            layout: The layout that its tensors follow.
            component: The attention that it describes.
            layers: The layer numbers, ascending.
            sizes: The fields of a `LayerSizes` for each of them.

        Returns:
            The geometry.

        Raises:
            ArgumentError: There is no layer, or a size is out of its domain.
        """
        per_layer = tuple(LayerSizes(**of_layer) for of_layer in sizes)
        if not per_layer:
            raise ArgumentError("layers: expected at least one layer")
        largest = _largest(per_layer)
        uniform = _uniform(**largest)
        return cls(
            model_type=model_type,
            layout=layout,
            layers=tuple(layers),
            component=component,
            per_layer=() if all(of_layer == uniform for of_layer in per_layer) else per_layer,
            **largest,
        )

    @property
    def sizes(self) -> tuple[LayerSizes, ...]:
        """The sizes of each layer."""
        if self.per_layer:
            return self.per_layer
        uniform = _uniform(
            self.query_heads, self.key_value_heads, self.head_size, self.value_size, self.hidden_size
        )
        return (uniform,) * len(self.layers)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape [layers, heads] of a score matrix; where a layer has fewer heads, its row is padded."""
        return len(self.layers), self.query_heads

    @property
    def is_head(self) -> NDArray[np.bool_]:
        """Where a table has a head: booleans [layers, heads], false beyond the heads of a layer that has fewer."""
        counts = np.array([sizes.query_heads for sizes in self.sizes])
        found: NDArray[np.bool_] = np.arange(self.shape[1]) < counts[:, None]
        return found

    @property
    def heads(self) -> int:
        """The number of heads in all layers."""
        return sum(sizes.query_heads for sizes in self.sizes)

    @property
    def heads_per_group(self) -> int:
        """The number of query heads that share a key/value group; where layers differ, the largest."""
        largest = self.query_heads // self.key_value_heads
        return max((sizes.heads_per_group for sizes in self.per_layer), default=largest)

    def heads_of(self, layer: int) -> int:
        """Counts the heads of a layer.

        Args:
            layer: The number of the layer.

        Returns:
            The number of its heads.

        Raises:
            ArgumentError: There is no such layer, or it has no attention.
        """
        return self.sizes[self.row_of(layer)].query_heads

    def group_of(self, head: int, layer: int | None = None) -> int:
        """Finds the key/value group that a query head reads.

        Examples:
            >>> alps.geometry("base").group_of(head=5)  # 8 heads in 4 groups
            2

        Args:
            head: The number of the head, h.
            layer: The number of the layer; the first that has so many heads when not given.

        Returns:
            The number of the group, ⌊h · G / H⌋.

        Raises:
            ArgumentError: There is no such layer or head.
        """
        layers = (self.per_layer or (self,)) if layer is None else (self.sizes[self.row_of(layer)],)
        most = max(sizes.query_heads for sizes in layers)
        if not 0 <= head < most:
            where = "a layer" if layer is None else f"layer {layer}"
            raise ArgumentError(f"there is no head {head}: {where} has heads 0 to {most - 1}")
        sizes = next(sizes for sizes in layers if head < sizes.query_heads)
        return head // sizes.heads_per_group

    def row_of(self, layer: int) -> int:
        """Finds the row of a score matrix that holds a layer.

        Args:
            layer: The number of the layer.

        Returns:
            The row, which differs from the layer's number where an earlier layer has no attention.

        Raises:
            ArgumentError: There is no such layer, or it has no attention.
        """
        if layer not in self.layers:
            raise ArgumentError(
                f"there is no attention in layer {layer}: the layers are {ranges(self.layers)}"
            )
        return self.layers.index(layer)

    def __str__(self) -> str:
        layers, heads = self.shape
        most = "up to " if any(sizes.query_heads != heads for sizes in self.per_layer) else ""
        return (
            f"{escape(self.model_type)}{'' if self.component == 'decoder' else ' ' + escape(self.component)}, {layers} layers x "
            f"{most}{heads} heads, {self.key_value_heads} key/value groups"
        )

    def to_fields(self) -> dict[str, Any]:
        """Returns the fields by name, of types that JSON has; "per_layer" only where the layers differ."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        del values["per_layer"]
        if self.per_layer:
            columns = zip(LayerSizes._fields, zip(*self.per_layer, strict=True), strict=True)
            values["per_layer"] = {
                name: sizes[0] if len(set(sizes)) == 1 else list(sizes) for name, sizes in columns
            }
        return values | {"layers": list(self.layers)}

    @classmethod
    def from_fields(cls, values: Mapping[str, Any]) -> "Geometry":
        """Makes the geometry of fields that `to_fields` returned.

        Args:
            values: The fields by name: every field and nothing else.

        Returns:
            The geometry.

        Raises:
            ArgumentError: A field is missing, unknown or out of its domain.
        """
        if "family" in values and "layout" not in values:  # the name of the field in older files
            values = {"layout" if name == "family" else name: value for name, value in values.items()}
        expected = {field.name for field in fields(cls)} - {"per_layer"}
        for name in sorted(expected ^ (set(values) - {"per_layer"})):
            raise ArgumentError(f"{name}: {'missing' if name in expected else 'unknown'} field")
        if not isinstance(values["layers"], list | tuple):
            raise ArgumentError(f"layers: expected layer numbers, found {values['layers']!r}")
        per_layer = (
            _parse_per_layer(values["per_layer"], len(values["layers"])) if "per_layer" in values else ()
        )
        return cls(**{**values, "per_layer": per_layer})

    def difference(self, other: "Geometry") -> str:
        """Says in words what differs between two geometries; the text is empty when nothing does."""

        def text(name: str, value: Any) -> str:
            if name == "per_layer":
                return f"of {len(set(value))} kinds" if value else "all alike"
            return ranges(value) if name == "layers" else escape(str(value))

        return ", ".join(
            f"{name} {text(name, mine)} and {text(name, theirs)}"
            for name, mine, theirs in (
                (field.name, getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
            )
            if mine != theirs
        )


def _uniform(
    query_heads: int, key_value_heads: int, head_size: int, value_size: int, hidden_size: int
) -> LayerSizes:
    widths = (hidden_size,) * 3
    return LayerSizes(query_heads, key_value_heads, head_size, head_size, value_size, *widths)


def _largest(per_layer: Sequence[LayerSizes]) -> dict[str, int]:
    return {name: max(getattr(sizes, of) for sizes in per_layer) for name, of in _LARGEST_OF.items()}


def _parse_per_layer(columns: Any, layers: int) -> tuple[LayerSizes, ...]:
    if not isinstance(columns, dict) or set(columns) != set(LayerSizes._fields):
        raise ArgumentError(
            f"per_layer: expected an object of {', '.join(LayerSizes._fields)}, found {columns!r}"
        )
    lists = []
    for name in LayerSizes._fields:
        column = columns[name] if isinstance(columns[name], list) else [columns[name]] * layers
        if len(column) != layers:
            raise ArgumentError(f"per_layer.{name}: expected {layers} sizes, found {len(column)}")
        lists.append(column)
    return tuple(LayerSizes(*sizes) for sizes in zip(*lists, strict=True))


def _check_size(name: str, size: object, least: int) -> None:
    if not _is_whole(size) or not least <= size <= _LARGEST_SIZE:  # type: ignore[operator]
        positive = "a positive whole number" if least else "a whole number"
        raise ArgumentError(f"{name}: expected {positive}, found {size!r}")


def _check_limits(layers: int, heads: int) -> None:
    for what, most, found in (
        ("layers", limits.MOST_LAYERS, layers),
        ("query_heads", limits.MOST_HEADS, heads),
        ("layers times query_heads", limits.MOST_CELLS, layers * heads),
    ):
        if found > most:
            raise ArgumentError(f"{what}: expected at most {most}, found {found}")


def _check_groups(name: str, query_heads: int, key_value_heads: int) -> None:
    if query_heads % key_value_heads:
        raise ArgumentError(f"{name}: {query_heads} query heads cannot share {key_value_heads} evenly")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def ranges(numbers: Iterable[int]) -> str:
    """Ascending numbers in short: "0-3, 7"."""
    runs: list[tuple[int, int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return ", ".join(f"{first}-{last}" if first != last else str(first) for first, last in runs) or "none"


def geometry_of(values: Mapping[str, Any]) -> Geometry:
    """The geometry in the field "geometry" of a file; messages name the field."""
    try:
        return Geometry.from_fields(values)
    except ArgumentError as error:
        raise ArgumentError(f"geometry.{error}") from None
