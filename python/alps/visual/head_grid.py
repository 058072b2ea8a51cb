"""The cells of a map of layers x heads, which terminals, notebooks and figures draw."""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from alps.geometry import Geometry
from alps.heads import HeadSet


@dataclass(frozen=True)
class HeadGrid:
    """The cells of a map of layers x heads.

    Attributes:
        geometry: The model that the heads belong to.
        values: What shades the cells, float64 [layers, columns]; not-a-number where there is no finite number.
        limits: The values that the first and the last shade stand for.
        selected: The cells to mark, booleans [layers, columns]; None on a map without marks.
        heads_per_cell: How many heads of a layer share a cell.
    """

    geometry: Geometry
    values: NDArray[np.float64]
    limits: tuple[float, float]
    selected: NDArray[np.bool_] | None
    heads_per_cell: int = 1

    @classmethod
    def of_scores(
        cls,
        geometry: Geometry,
        scores: NDArray[np.float64],
        heads: HeadSet | None = None,
        *,
        from_zero: bool = True,
    ) -> "HeadGrid":
        """Cells shaded by `scores`, with the heads of a set marked.

        The shades reach from 0, where nothing has moved, to the highest score, or from the lowest where that is
        below 0. Without `from_zero` they begin at the lowest score, for a map of few shades.
        """
        values = np.where(np.isfinite(scores), scores, np.nan)
        return cls(geometry, values, _limits(values, from_zero), None if heads is None else heads.mask)

    @classmethod
    def of_set(cls, heads: HeadSet) -> "HeadGrid":
        """Cells of value 1 for the heads of a set, of value 0 for the others."""
        return cls(heads.geometry, heads.mask.astype(np.float64), (0.0, 1.0), heads.mask)

    @classmethod
    def of_counts(cls, geometry: Geometry, counts: NDArray[np.int64], tasks: int) -> "HeadGrid":
        """Cells shaded by how many of several tasks select the head; those that all select are marked."""
        return cls(geometry, counts.astype(np.float64), (0.0, tasks - 1.0), counts == tasks)

    @property
    def shades(self) -> NDArray[np.float64]:
        """The values on a linear scale from 0 at the lower limit to 1 at the upper one."""
        low, high = self.limits
        return (self.values - low) / (high - low)

    def merged(self, heads_per_cell: int) -> "HeadGrid":
        """Cells of several heads each, with the highest of their values, marked where one of them is."""
        starts = np.arange(0, self.values.shape[1], heads_per_cell)
        return replace(
            self,
            values=np.fmax.reduceat(self.values, starts, axis=1),
            selected=None if self.selected is None else np.logical_or.reduceat(self.selected, starts, axis=1),
            heads_per_cell=heads_per_cell,
        )


def _limits(values: NDArray[np.float64], from_zero: bool) -> tuple[float, float]:
    """The values of the first and the last shade, which differ even where all values are equal."""
    low, high = (float(of.reduce(values, axis=None, initial=np.nan)) for of in (np.fmin, np.fmax))
    if np.isnan(low):
        return 0.0, 1.0
    if from_zero:
        low, high = min(0.0, low), max(0.0, high)
    return (low, high) if low < high else (low, low + max(1.0, abs(low)))


def have_uniform_groups(geometry: Geometry) -> bool:
    """Whether several heads share each key/value group, and all layers have the same groups."""
    borders = _borders(geometry)
    return geometry.heads_per_group > 1 and bool((borders == borders[:1]).all())


def group_borders(geometry: Geometry) -> list[tuple[int, int, int]]:
    """The borders between key/value groups as (head, first row, rows); none where no heads share a group."""
    if geometry.heads_per_group == 1:
        return []
    steps = np.diff(np.pad(_borders(geometry), ((1, 1), (0, 0))).astype(np.int8), axis=0).T
    starts, ends = np.argwhere(steps == 1), np.argwhere(steps == -1)
    return [(int(head), int(row), int(end - row)) for (head, row), (_, end) in zip(starts, ends, strict=True)]


def _borders(geometry: Geometry) -> NDArray[np.bool_]:
    """Flags [layers, heads]: whether a head is of another key/value group than the head before it."""
    borders = np.zeros(geometry.shape, dtype=np.bool_)
    for row, sizes in enumerate(geometry.sizes):
        borders[row, sizes.heads_per_group : sizes.query_heads : sizes.heads_per_group] = True
    return borders
