"""The map of layers x heads of a page: the outlines of its cells, its axes, and the text of every cell."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from alps.compare import Comparison
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.visual import text
from alps.visual.colours import SHADES
from alps.visual.head_grid import HeadGrid, group_borders

_WIDE, _HIGH = 880, 640
_SMALLEST_CELL, _LARGEST_CELL, _LOWEST_CELL = 5, 24, 4
_PHONE = 290
_LABEL_WIDTH, _LABEL_HEIGHT = 22, 14
"""Pixels: of a map, of its cells, of a map on a phone, and between numbers of an axis."""


class Label(NamedTuple):
    """The number of a row or a column, and where its middle is, in percent of the axis."""

    place: float
    number: int


class Spot(NamedTuple):
    """Some heads of a layer that stand side by side, and what is said of them."""

    row: int
    first: int
    heads: int
    says: str


@dataclass(frozen=True)
class PageMap:
    """A map whose cells are parts of an SVG of one unit for each head, so that any size and any colours fit.

    Attributes:
        grid: The cells, and the marks on them.
        name: What the numbers are ("relative change"); empty on a map of marks alone.
        numbers: The number of each cell in words, [layers][heads]; empty on a map of marks alone.
        unit: What follows a number (" of 3 tasks").
        filled: Whether the marks fill their cells, instead of surrounding them.
        counts: Whether the shades are numbers of tasks.
    """

    grid: HeadGrid
    name: str = ""
    numbers: Sequence[Sequence[str]] = field(default=(), repr=False)
    unit: str = ""
    filled: bool = False
    counts: bool = False

    @classmethod
    def of_scores(
        cls, geometry: Geometry, scores: NDArray[np.float64], statistic: str, heads: HeadSet | None = None
    ) -> "PageMap":
        """A map of scores, with the heads of a set marked."""
        numbers = [[f"{score:.4g}" for score in row] for row in scores.tolist()]
        return cls(HeadGrid.of_scores(geometry, scores, heads), text.statistic(statistic), numbers)

    @classmethod
    def of_set(cls, heads: HeadSet) -> "PageMap":
        """A map of a set."""
        return cls(HeadGrid.of_set(heads), filled=True)

    @classmethod
    def of_counts(cls, comparison: Comparison) -> "PageMap":
        """A map of how many tasks select each head."""
        counts, tasks = comparison.counts, len(comparison.names)
        grid = HeadGrid(comparison.geometry, counts.astype(np.float64), (0.0, float(tasks)), None)
        numbers = [[str(count) for count in row] for row in counts.tolist()]
        return cls(grid, "selected by", numbers, f" of {tasks} tasks", counts=True)

    @property
    def geometry(self) -> Geometry:
        """The model that the heads belong to."""
        return self.grid.geometry

    @cached_property
    def cell(self) -> tuple[float, float]:
        """The width and the height of a cell in pixels where there is room."""
        rows, columns = self.geometry.shape
        wide = float(np.clip(_WIDE / columns, _SMALLEST_CELL, _LARGEST_CELL))
        high = float(np.clip(_HIGH / rows, _SMALLEST_CELL, _LARGEST_CELL))
        return min(wide, 2 * high), min(high, 2 * wide)

    @property
    def width(self) -> int:
        """The width in pixels where there is room."""
        return round(self.cell[0] * self.geometry.shape[1])

    @property
    def height(self) -> int:
        """The height in pixels at that width."""
        return round(self.cell[1] * self.geometry.shape[0])

    @property
    def least_height(self) -> int:
        """The height in pixels below which rows cannot be told apart."""
        return round(min(self.cell[1], _LOWEST_CELL) * self.geometry.shape[0])

    @property
    def columns(self) -> list[Label]:
        """Numbers of heads, as many as a phone has room for."""
        count = self.geometry.shape[1]
        return _labels(range(count), min(self.cell[0], _PHONE / count), _LABEL_WIDTH)

    @property
    def rows(self) -> list[Label]:
        """Numbers of layers, likewise."""
        shrunk = self.cell[1] * min(1, _PHONE / self.width)
        return _labels(self.geometry.layers, max(shrunk, min(self.cell[1], _LOWEST_CELL)), _LABEL_HEIGHT)

    @property
    def shades(self) -> Iterator[tuple[int, str]]:
        """The shades that occur, from 0 to `SHADES`, each with a path around all its cells."""
        known = self._has_number
        levels = np.where(known, np.rint(np.nan_to_num(self.grid.shades) * SHADES), -1)
        if self.filled:
            levels = np.where(self.geometry.is_head, 0, -1)
        for level in np.unique(levels[levels >= 0]):
            yield int(level), _cells_path(levels == level)

    @property
    def marks(self) -> str:
        """A path around the marked cells, inside each where its shade is to be seen; empty without marks."""
        if self.grid.selected is None:
            return ""
        if self.filled:
            return _cells_path(self.grid.selected)
        return "".join(f"M{head}.1 {row}.1h.8v.8h-.8z" for row, head in np.argwhere(self.grid.selected))

    @property
    def blanks(self) -> str:
        """A stroke through every head without a finite number."""
        missing = self.geometry.is_head & ~self._has_number
        return "".join(f"M{head}.1 {row}.9l.8-.8" for row, head in np.argwhere(missing))

    @property
    def groups(self) -> str:
        """The borders between the heads that share keys and values; empty where none do."""
        return "".join(f"M{head} {row}v{rows}" for head, row, rows in group_borders(self.geometry))

    @property
    def _has_number(self) -> NDArray[np.bool_]:
        return self.geometry.is_head & ~np.isnan(self.grid.values)

    def spots(self, most: int) -> Iterator[Spot]:
        """What is said of every head, or, where they are more than `most`, of every few heads."""
        rows, columns = self.geometry.shape
        together = -(-rows * columns // most)
        for row in range(rows):
            heads = self.geometry.sizes[row].query_heads
            for first in range(0, heads, together):
                size = min(together, heads - first)
                yield Spot(row, first, size, self._says(row, first, size))

    def _says(self, row: int, first: int, size: int) -> str:
        layer = self.geometry.layers[row]
        if size == 1:
            return f"layer {layer}, head {first}: {self._cell_says(row, first)}"
        of = f"layer {layer}, heads {first} to {first + size - 1}"
        values = self.grid.values[row, first : first + size]
        if self.filled:
            return f"{of}: {int(values.sum())} selected"
        if np.isnan(values).all():
            return f"{of}: no number"
        best = first + int(np.nanargmax(values))
        return f"{of}: highest at head {best}, {self._cell_says(row, best)}"

    def _cell_says(self, row: int, head: int) -> str:
        marked = self.grid.selected is not None and bool(self.grid.selected[row, head])
        if self.filled:
            return "selected" if marked else "not selected"
        return f"{self.name} {self.numbers[row][head]}{self.unit}" + (", selected" if marked else "")

    @property
    def data(self) -> str:
        """A JSON document from which the script of a page reads what it says of a cell; safe within HTML."""
        selected = self.grid.selected
        document = {
            "name": self.name,
            "unit": self.unit,
            "layers": self.geometry.layers,
            "heads": [sizes.query_heads for sizes in self.geometry.sizes],
            "groups": [sizes.heads_per_group for sizes in self.geometry.sizes],
            "numbers": [" ".join(row) for row in self.numbers],
            "selected": None if selected is None else [np.flatnonzero(row).tolist() for row in selected],
        }
        written = json.dumps(document, separators=(",", ":"))
        return written.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _labels(numbers: Sequence[int], size: float, apart: float) -> list[Label]:
    """Every number, or every second, fourth, ..., so that they are `apart` pixels from one another."""
    step = 1
    while step * size < apart and step < len(numbers):
        step *= 2
    count = len(numbers)
    return [Label(100 * (place + 0.5) / count, numbers[place]) for place in range(0, count, step)]


def _cells_path(cells: NDArray[np.bool_]) -> str:
    """One path around all runs of cells of a row, so that a large map stays a small page."""
    steps = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    return "".join(
        f"M{start} {row}h{end - start}v1h{start - end}z"
        for row, start, end in zip(rows.tolist(), starts.tolist(), ends.tolist(), strict=True)
    )
