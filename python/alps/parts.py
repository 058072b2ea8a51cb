"""The scores of some layers of a pair: what is kept of an unfinished scan, and what one of several machines finds."""

import os
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from alps.errors import ArgumentError
from alps.files import check_document, open_tensors, write_tensors
from alps.geometry import Geometry, geometry_of

_FORMAT = "alps-part"
_VERSION = 1
_SAVED_EVERY = 1.0
"""Seconds between two times that an unfinished scan is saved."""


@dataclass
class Part:
    """Holds the scores of some layers, as `scan_part` returns them.

    Examples:
        >>> part = alps.scan_part("base", "tuned", 2, 2)
        >>> sorted(part.rows)  # the second half of 4 layers
        [2, 3]
        >>> part.save("part2.safetensors")

    Attributes:
        geometry: The heads of the whole model.
        identity: What the scores are of: the files of both checkpoints with their versions, the form, the temperature,
            the statistics that were asked for and the version of alps. Only parts with the same identity are put together.
        provenance: Where the weights come from, as in the scores.
        rows: Each statistic that the form has by head, for each layer that is done, by its place among those with
            attention.
    """

    geometry: Geometry
    identity: Mapping[str, Any]
    provenance: dict[str, str]
    rows: dict[int, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def arrays(self) -> dict[str, NDArray[np.float64]]:
        """Returns each statistic as an array [layers, heads], with not-a-number in the layers that are not done."""
        shape = len(self.geometry.layers), self.geometry.query_heads
        names = next(iter(self.rows.values()), {})
        arrays = {name: np.full(shape, np.nan) for name in names}
        for place, values in self.rows.items():
            for name, array in arrays.items():
                array[place] = values[name]
        return arrays

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes the part as safetensors, whole or not at all.

        Args:
            path: The file to write; an older one is replaced.

        Raises:
            OSError: The file cannot be written.
        """
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "layers": sorted(self.rows),
            "geometry": self.geometry.to_fields(),
            "identity": self.identity,
            "provenance": self.provenance,
        }
        write_tensors(path, self.arrays(), document)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "Part":
        """Reads what `save` wrote.

        Args:
            path: The file to read.

        Returns:
            The part.

        Raises:
            CheckpointError: The file is no part, or contradicts itself.
            OSError: The file cannot be read.
        """
        with open_tensors(path, "a part of a scan") as (document, file):
            names = file.keys()
            return _parse(document, {name: file.get_tensor(name) for name in names})


class KeptPart:
    """Keeps a part in a file while it grows; does nothing without a file."""

    def __init__(self, part: Part, path: str | os.PathLike[str] | None):
        self._part, self._path, self._saved = part, path, time.monotonic()

    def update(self) -> None:
        """Saves the part if that is a second ago."""
        if time.monotonic() - self._saved >= _SAVED_EVERY:
            self.save()

    def save(self) -> None:
        """Saves the part."""
        if self._path is not None:
            self._part.save(self._path)
            self._saved = time.monotonic()


def _parse(document: Mapping[str, Any], arrays: dict[str, NDArray[np.float64]]) -> Part:
    kinds: dict[str, Any] = {"layers": list, "geometry": dict, "identity": dict, "provenance": dict}
    check_document(document, _FORMAT, _VERSION, kinds)
    geometry, identity = geometry_of(document["geometry"]), document["identity"]
    named = identity.get("statistics")
    if not isinstance(named, list) or (document["layers"] and not set(map(str, named)) <= set(arrays)):
        raise ArgumentError(f"statistics: expected some of {sorted(arrays)}, found {named!r}")
    shape = len(geometry.layers), geometry.query_heads
    for name, array in arrays.items():
        if array.dtype != np.float64 or array.shape != shape:
            raise ArgumentError(f"{name}: expected float64 {shape}, found {array.dtype} {array.shape}")
    part = Part(geometry, identity, document["provenance"])
    for place in document["layers"]:
        if type(place) is not int or not 0 <= place < len(geometry.layers) or place in part.rows:
            raise ArgumentError(
                f"layers: expected different places below {len(geometry.layers)}, found {place!r}"
            )
        part.rows[place] = {name: array[place] for name, array in arrays.items()}
    return part


def merge(parts: Iterable[tuple[str, Part]]) -> Part:
    """Puts parts together that have all layers of one scan, each once. Each comes with its name, for messages.

    Raises:
        ArgumentError: There is none; parts are of different scans; a layer is in two of them, or in none.
    """
    merged: Part | None = None
    owners: dict[int, str] = {}
    first = ""
    for name, part in parts:
        if merged is None:
            merged, first = Part(part.geometry, part.identity, part.provenance), name
        if difference := differences(merged.identity, part.identity):
            raise ArgumentError(f"{name} is no part of the scan of {first}: {difference}")
        for place, values in part.rows.items():
            if place in owners:
                layer = part.geometry.layers[place]
                raise ArgumentError(
                    f"layer {layer} is in {owners[place]} and in {name}; expected every layer once"
                )
            owners[place], merged.rows[place] = name, values
    if merged is None:
        raise ArgumentError("expected at least one part, found none")
    layers = merged.geometry.layers
    if missing := [layers[place] for place in range(len(layers)) if place not in merged.rows]:
        raise ArgumentError(f"expected all {len(layers)} layers, found no part with {_shown(missing)}")
    return merged


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """What differs between two identities, for a message; empty if nothing does."""

    def difference(name: str) -> str:
        values = one.get(name), other.get(name)
        if any(isinstance(value, dict | list) for value in values):
            return f"{name} differs"
        return f"{name} is {values[0]!r} in the one, {values[1]!r} in the other"

    return "; ".join(difference(name) for name in sorted({*one, *other}) if one.get(name) != other.get(name))


def split(count: int, part: int, parts: int) -> list[int]:
    """The places of the layers in one of several parts, as even as possible; `part` counts from 1.

    Raises:
        ArgumentError: There is no such part.
    """
    if not 1 <= part <= parts:
        raise ArgumentError(f"expected a part from 1 to {parts}, found {part}")
    return list(range(count * (part - 1) // parts, count * part // parts))


def _shown(layers: Sequence[int]) -> str:
    shown = ", ".join(str(layer) for layer in layers[:12])
    return (
        f"layer {shown}"
        if len(layers) == 1
        else f"layers {shown}" + (" and others" if len(layers) > 12 else "")
    )
