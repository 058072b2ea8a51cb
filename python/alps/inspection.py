"""What a scan would read of a checkpoint, and the layouts of storage that are known."""

from collections.abc import Mapping
from dataclasses import dataclass

import alps._alps as _alps
from alps import sources
from alps.arguments import Component
from alps.geometry import Geometry
from alps.optional import visual
from alps.sources import Name


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
    """What a scan would read of a checkpoint, as `inspect` returns it.

    Examples:
        >>> found = alps.inspect("base")
        >>> found.bytes  # that a scan reads
        32768
        >>> for module in found.modules[:2]:
        ...     print(module.name, module.dtype, module.out_features, module.in_features)
        model.layers.0.self_attn.q_proj F32 32 32
        model.layers.0.self_attn.k_proj F32 16 32

    Attributes:
        geometry: The number and the sizes of the heads in each layer.
        modules: The linear layers that hold them, layer by layer.
        left_out: What is in the checkpoint but not scanned, each with the reason.
        bytes: Bytes of weights that a scan reads.
        weight_files: The names of all files of weights, those of an adapter and of its base.
        weight_bytes: Bytes of these files.
        files: The file of weights, or the index of several; of an adapter its own, and those that it changes.
        quantisation: How the weights are quantised ("GPTQ int4"); None if they are not. A scan reads the numbers that
            they stand for.
    """

    geometry: Geometry
    modules: tuple[Module, ...]
    left_out: tuple[tuple[str, str], ...]
    bytes: int
    weight_files: tuple[str, ...]
    weight_bytes: int
    files: str
    quantisation: str | None

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").inspection_html(self)
        return html


@dataclass(frozen=True)
class Layout:
    """Describes how models of some types store their attention.

    Examples:
        >>> layouts = {layout.name: layout for layout in alps.layouts()}
        >>> "llama" in layouts["separate"].model_types["decoder"]
        True

    Attributes:
        name: Its name ("separate").
        description: One line about it.
        model_types: The model types that store the attention of a component so, by component.
    """

    name: str
    description: str
    model_types: Mapping[str, tuple[str, ...]]


class Layouts(tuple[Layout, ...]):
    """Holds layouts in order of name; a notebook shows them as a table.

    Examples:
        >>> layouts = alps.layouts()
        >>> "separate" in [layout.name for layout in layouts]
        True
    """

    __slots__ = ()

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").layouts_html(self)
        return html


def inspect(path: Name, *, component: Component | None = None, local_files_only: bool = False) -> Inspection:
    """Says what a scan would read of a checkpoint, without reading weights.

    Examples:
        >>> found = alps.inspect("base")
        >>> print(found.geometry)
        llama, 4 layers x 8 heads, 4 key/value groups
        >>> len(found.modules), found.quantisation
        (12, None)

    Args:
        path: A checkpoint or an adapter, as for `scan`. Of one that is not on this machine, only the headers are fetched.
        component: The attention to inspect, as for `scan`.
        local_files_only: Whether to ask nothing of the network.

    Returns:
        The heads, the linear layers that hold them, and the files.

    Raises:
        ArgumentError: There is no such component.
        CheckpointError: A file is truncated, malformed or of another format.
        ModelError: The model is of no known layout, or contradicts its configuration.
        OSError: A file cannot be read.
    """
    found = _alps.inspect(sources.find(path, local_files_only).paths, component)
    return Inspection(
        geometry=Geometry.of_layers(**found["geometry"]),
        modules=tuple(Module(**module) for module in found["modules"]),
        left_out=tuple(found["left_out"]),
        bytes=found["bytes"],
        weight_files=tuple(found["weight_files"]),
        weight_bytes=found["weight_bytes"],
        files=found["files"],
        quantisation=found["quantisation"],
    )


def layouts() -> Layouts:
    """Lists the layouts that alps knows, in order of name.

    Examples:
        >>> for layout in alps.layouts():
        ...     if "gpt2" in layout.model_types.get("decoder", ()):
        ...         print(layout.name)
        transposed

    Returns:
        The layouts, each with the model types that have it.
    """
    return Layouts(Layout(**layout) for layout in _alps.layouts())
