"""The Python module `alps._alps`."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from alps.geometry import Geometry

__all__ = [
    "DEBUG_BUILD",
    "STATISTICS",
    "Adapter",
    "Scan",
    "__version__",
    "adapter",
    "attention",
    "geometry",
    "inspect",
    "layouts",
    "ranking",
    "report",
    "scan",
    "select_random",
    "select_ranked",
    "select_within_budget",
]

DEBUG_BUILD: bool
"""Whether the extension was built for finding mistakes, which makes it many times slower."""

STATISTICS: list[tuple[str, bool, bool]]
"""The name of each statistic, whether it needs stored entries, whether it is computed only on request."""

__version__: str

@final
class Scan:
    """What a scan found."""

    @property
    def statistics(self) -> dict[str, NDArray[np.float64]]:
        """A float64 array [layers, heads] for each statistic."""
    @property
    def geometry(self) -> dict[str, Any]:
        """The arguments of `Geometry.of_layers`."""
    @property
    def bytes(self) -> int:
        """Bytes of weights read, from both sides."""
    @property
    def base(self) -> dict[str, str]:
        """What the base was read from: "files", and where there are, "adapter", "quantisation" and "note"."""
    @property
    def tuned(self) -> dict[str, str]:
        """What the tuned side was read from, likewise."""

def scan(
    base: tuple[str, str | None],
    tuned: tuple[str, str | None],
    form: str,
    temperature: float,
    sorted: bool,  # noqa: A002
    threads: int | None,
    mmap: bool,
    progress: Callable[[int, int], object] | None,
    component: str | None,
) -> Scan:
    """Reads two checkpoints, each with the folder of an adapter that changes it, and scores every head."""

@final
class Adapter:
    """What an adapter says of itself."""

    @property
    def folder(self) -> str:
        """Its folder."""
    @property
    def is_whole(self) -> bool:
        """Whether the folder holds the weights of a model as well."""
    @property
    def base(self) -> str | None:
        """What its base was called where it was trained."""
    @property
    def revision(self) -> str | None:
        """The revision of the base on the hub."""

def adapter(path: str) -> Adapter | None:
    """Reads the configuration of the adapter at `path`; nothing if there is something else."""

def geometry(path: tuple[str, str | None], component: str | None) -> dict[str, Any]:
    """Reads the geometry of one checkpoint."""

def inspect(path: tuple[str, str | None], component: str | None) -> dict[str, Any]:
    """What a scan would read of one checkpoint, and what it leaves out and why.

    The arguments of `Geometry.of_layers`, of every `Module`, pairs of what and why, and a number of bytes.
    """

def layouts() -> list[tuple[str, str, list[tuple[str, str]]]]:
    """The layouts of storage that are known: name, description, (component, model type) of all stored so."""

def attention(
    name: str, config: str, tensors: dict[str, list[int]], component: str | None
) -> tuple[dict[str, Any], list[tuple[int, str, int, str, int, int, int]]]:
    """Finds every head in a live model, given its configuration as JSON and the shapes of its tensors by name.

    `name` is what messages call the model. Returns the arguments of `Geometry.of_layers`, and for each matrix
    (row of the layer, role, index, tensor, axis of the tensor, first, count).
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

def report(mask: NDArray[np.bool_], geometry: Geometry) -> dict[str, int]:
    """Counts the heads, groups and parameters of a selection."""
