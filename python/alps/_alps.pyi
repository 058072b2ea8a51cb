"""The Python module `alps._alps`."""

from collections.abc import Callable
from typing import TypeAlias, TypedDict, final

import numpy as np
from numpy.typing import NDArray

from alps.geometry import Geometry
from alps.remote.store import Store

__all__ = [
    "DEBUG_BUILD",
    "STATISTICS",
    "Adapter",
    "HeadWeights",
    "Pair",
    "Reply",
    "__version__",
    "adapter",
    "check_document",
    "check_options",
    "geometry",
    "graft",
    "index_shards",
    "inspect",
    "layouts",
    "live_attention",
    "ranking",
    "report",
    "select_random",
    "select_ranked",
    "select_within_budget",
]

__version__: str

DEBUG_BUILD: bool
"""Whether the extension was built without optimisation, which makes it many times slower."""

STATISTICS: list[_Statistic]
"""Every statistic, in the order in which they are shown."""

class _Statistic(TypedDict):
    name: str
    of_stored_entries: bool  # the form "product" has none
    on_request: bool  # computed only when it is named

class _LayerSizes(TypedDict):
    query_heads: int
    key_value_heads: int
    query_size: int
    key_size: int
    value_size: int
    query_width: int
    key_width: int
    value_width: int

class _Geometry(TypedDict):
    model_type: str
    layout: str
    component: str
    layers: list[int]  # the number of each layer that has attention
    sizes: list[_LayerSizes]

class _SourceFiles(TypedDict):
    files: str
    adapter: str | None
    quantisation: str | None
    note: str | None

class _Scan(TypedDict):
    base: _SourceFiles
    tuned: _SourceFiles

def check_options(form: str, temperature: float, threads: int | None) -> None:
    """Refuses options of a scan that are out of their domains."""

_Location: TypeAlias = tuple[str, Store | None]
"""A path, and the store that has it if it is not on this machine."""

_Paths: TypeAlias = tuple[_Location, _Location | None]
"""A checkpoint, and the folder of an adapter that changes it."""

_Files: TypeAlias = list[tuple[str, int, str]]
"""Files of weights, each with its name, its number of bytes and its version."""

@final
class Reply:
    """Takes the answer to a question to a store: `deliver` or `fail` is called once."""

    def deliver(self, result: object) -> None: ...
    def fail(self, exception: BaseException) -> None: ...

@final
class Pair:
    """Two checkpoints of one model, opened."""

    def __new__(cls, base: _Paths, tuned: _Paths, component: str | None) -> Pair: ...
    def geometry(self) -> _Geometry: ...
    def files(self) -> tuple[_Files, _Files]:
        """The files of the base and of the tuned weights."""
    def layer_bytes(self) -> list[int]:
        """The bytes of weights that a scan reads of each layer with attention, from both checkpoints."""
    def scan(
        self,
        form: str,
        temperature: float,
        sorted: bool,  # noqa: A002
        threads: int | None,
        mmap: bool,
        memory: int | None,
        layers: list[int] | None,
        finished: Callable[[int, dict[str, NDArray[np.float64]]], object] | None,
        progress: Callable[[int, int], object] | None,
    ) -> _Scan:
        """Scores every head of the layers with attention at these places, or of all.

        `finished` is called with the place of every layer that is done, and its statistics by head. Returns what the
        weights were read from.
        """

@final
class Adapter:
    """What the configuration of an adapter says."""

    @property
    def folder(self) -> str: ...
    @property
    def is_whole(self) -> bool:
        """Whether the folder holds the weights of a model as well."""
    @property
    def base(self) -> str | None:
        """What its base was called where it was trained."""
    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub."""

def check_document(text: bytes, most: int) -> None:
    """Raises a ValueError for a JSON document that is malformed, or whose values would take more than `most` bytes."""

def index_shards(path: str) -> list[str]:
    """The names of the shards that an index of this machine names."""

def adapter(location: _Location) -> Adapter | None:
    """Reads the configuration of the adapter at `location`; None if there is no adapter."""

def geometry(paths: _Paths, component: str | None) -> _Geometry:
    """Reads the geometry of one checkpoint."""

def graft(
    base: _Paths,
    donors: list[tuple[_Paths, NDArray[np.bool_], NDArray[np.bool_], float]],
    component: str | None,
    folder: str,
    progress: Callable[[int, int], object] | None,
) -> int:
    """Writes the weights of a checkpoint with the chosen heads of others into a folder.

    A donor is its files, its query heads and its key/value groups [layers, heads], and the scale of its change.
    Returns the bytes of the rows.
    """

@final
class HeadWeights:
    """The weights of the heads of one checkpoint."""

    def __new__(cls, paths: _Paths, component: str | None) -> HeadWeights: ...
    def geometry(self) -> _Geometry: ...
    def matrix(self, role: str, layer_index: int, index: int) -> NDArray[np.float64]:
        """The matrix of a query head, or the key or value matrix of a key/value group: [rows, in features]."""
    def bias(self, role: str, layer_index: int, index: int) -> NDArray[np.float64] | None:
        """The entries of the bias beside that matrix."""

class _Module(TypedDict):
    name: str
    dtype: str
    out_features: int
    in_features: int

class _Inspection(TypedDict):
    geometry: _Geometry
    modules: list[_Module]
    left_out: list[tuple[str, str]]  # what, and why
    bytes: int
    weight_files: list[str]  # of all weights
    weight_bytes: int  # of all these files
    files: str
    quantisation: str | None

def inspect(paths: _Paths, component: str | None) -> _Inspection:
    """Says what a scan would read of one checkpoint, and what it leaves out and why."""

class _Layout(TypedDict):
    name: str
    description: str
    model_types: dict[str, tuple[str, ...]]  # by component

def layouts() -> list[_Layout]:
    """The known layouts, in order of name."""

class _HeadMatrix(TypedDict):
    layer_index: int  # the position of the layer among those with attention
    role: str  # "query", "key" or "value"
    index: int  # of the query head, or of the key/value group
    tensor: str
    axis: int
    first: int
    count: int

def live_attention(
    name: str, config: str, tensors: dict[str, list[int]], component: str | None
) -> tuple[_Geometry, list[_HeadMatrix]]:
    """Finds every head in a live model, given its configuration as JSON and the shapes of its tensors by name.

    `name` is what messages call the model. Returns its geometry and where each matrix is.
    """

def ranking(scores: NDArray[np.float64]) -> NDArray[np.int64]:
    """The heads, counted through all layers, best first."""

def select_ranked(
    scores: NDArray[np.float64], geometry: Geometry, rule: str, ratio: float
) -> NDArray[np.bool_]:
    """Selects by rank: "global", "per_layer" or "key_value_groups"."""

def select_within_budget(scores: NDArray[np.float64], geometry: Geometry, budget: int) -> NDArray[np.bool_]:
    """Selects the longest prefix of the global ranking whose parameters stay within a budget."""

def select_random(geometry: Geometry, rule: str, ratio: float, seed: int) -> NDArray[np.bool_]:
    """Selects by lot: "random" or "layer_consistent"."""

class _Report(TypedDict):
    heads: int
    total_heads: int
    key_value_groups: int
    total_key_value_groups: int
    trainable_parameters: int
    total_parameters: int

def report(mask: NDArray[np.bool_], geometry: Geometry) -> _Report:
    """Counts the heads, groups and parameters of a selection."""
