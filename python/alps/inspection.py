"""What a scan would read of a checkpoint, and the layouts of storage that are known."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import alps._alps as _alps
from alps import sources
from alps.geometry import Geometry
from alps.scan import Component


@dataclass(frozen=True)
class Module:
    """A linear layer that holds weights of attention heads.

    Attributes:
        name: The name of its tensor, without ".weight".
        dtype: The number format that its weights are read in ("BF16").
        out_features: Rows of its weight.
        in_features: Entries of a row.
    """

    name: str
    dtype: str
    out_features: int
    in_features: int


@dataclass(frozen=True)
class Inspection:
    """What a scan would read of a checkpoint.

    Attributes:
        geometry: The heads.
        modules: The linear layers that hold them, layer by layer.
        left_out: What is in the checkpoint but not scanned, each with the reason.
        bytes: Bytes of weights that a scan reads.
        files: The file of weights, or the index of several; of an adapter its own, and those that it changes.
        quantisation: How the weights are quantised ("GPTQ int4"); None if they are not. A scan reads what they
            stand for.
    """

    geometry: Geometry
    modules: tuple[Module, ...]
    left_out: tuple[tuple[str, str], ...]
    bytes: int
    files: str
    quantisation: str | None


@dataclass(frozen=True)
class Layout:
    """How models of some types store their attention.

    Attributes:
        name: Its name ("separate").
        description: One line about it.
        model_types: The model types that store the attention of a component so, by component.
    """

    name: str
    description: str
    model_types: Mapping[str, tuple[str, ...]]


def inspect(path: str | os.PathLike[str], *, component: Component | None = None) -> Inspection:
    """Says what a scan would read of a checkpoint, without reading weights.

    Args:
        path: A folder, a file, an adapter, or the `owner/name[@revision]` of one in the hub's local cache.
        component: Whose heads, as for `scan`.

    Raises:
        ArgumentError: There is no such component.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        OSError: A file cannot be read.
    """
    found = _alps.inspect(sources.find(path).paths, component)
    return Inspection(
        geometry=Geometry.of_layers(**found["geometry"]),
        modules=tuple(Module(**module) for module in found["modules"]),
        left_out=tuple(found["left_out"]),
        bytes=found["bytes"],
        files=found["files"],
        quantisation=found["quantisation"],
    )


def layouts() -> tuple[Layout, ...]:
    """The known layouts, in order of name."""
    return tuple(Layout(**layout) for layout in _alps.layouts())
