"""Maps of layers x heads."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from alps.borders import groups_in_common, runs
from alps.drawing.look import BORDER, FAINT, PALE, SCORES, SELECTED
from alps.drawing.sheet import inches_of, step
from alps.geometry import Geometry
from alps.heads import HeadSet

# Inches.
_GROUP_AXIS, _NO_GROUP_AXIS = 0.42, 0.12
_SIDE, _SMALLEST_CELL, _LARGEST_CELL = 6.4, 0.065, 0.5
WIDEST = 14.0
_LABEL_WIDTH, _LABEL_HEIGHT = 0.28, 0.15


def map_size(geometry: Geometry, side: float = _SIDE) -> tuple[float, float]:
    """Width and height in inches: square cells where that gives a picture of a sensible size."""
    layers, heads = geometry.shape
    smallest = _SMALLEST_CELL * side / _SIDE
    wide, high = (float(np.clip(side / count, smallest, _LARGEST_CELL)) for count in (heads, layers))
    wide, high = min(wide, 1.4 * high), min(high, 1.4 * wide)
    return min(wide * heads, WIDEST), min(high * layers, WIDEST)


def group_axis(geometry: Geometry) -> float:
    """The height in inches of what stands above a map."""
    return _GROUP_AXIS if groups_in_common(geometry) else _NO_GROUP_AXIS


def draw_cells(
    axes: Axes, numbers: NDArray[np.float64], limits: tuple[float, float], geometry: Geometry
) -> ScalarMappable:
    """Shades, between limits as the shades' own, and a hatch where there is no number."""
    image = axes.imshow(
        np.ma.masked_invalid(numbers),
        cmap=mpl.colormaps[SCORES],
        norm=Normalize(*limits),
        interpolation="nearest",
        aspect="auto",
    )
    image.set_gid("scores")
    axes.patch.set(
        facecolor="none", edgecolor=PALE, hatch="//////", hatch_linewidth=0.4
    )  # where there is no number
    separate_groups(axes, geometry)
    return image


def frame(axes: Axes, geometry: Geometry) -> None:
    """The numbers of the layers and of the heads, and above them those of the key/value groups they share."""
    layers, heads = geometry.shape
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    width, height = inches_of(axes)
    columns = range(0, heads, step(heads, width, _LABEL_WIDTH))
    rows = range(0, layers, step(layers, height, _LABEL_HEIGHT))
    axes.set_xticks(columns, [str(head) for head in columns])
    axes.set_yticks(rows, [str(geometry.layers[row]) for row in rows])
    axes.set_xlabel("head", labelpad=2)
    axes.set_ylabel("layer", labelpad=3)
    axes.spines[:].set(color=PALE, linewidth=0.5)
    size = geometry.heads_per_group
    if groups_in_common(geometry):
        groups = range(0, geometry.key_value_heads, step(geometry.key_value_heads, width, _LABEL_WIDTH))
        above = axes.secondary_xaxis("top")
        above.set_xticks(
            [group * size + (size - 1) / 2 for group in groups], [str(group) for group in groups]
        )
        above.set_xlabel("K/V group", labelpad=3)
        above.spines[:].set_visible(False)
        above.tick_params(length=0)


def separate_groups(axes: Axes, geometry: Geometry) -> None:
    """A line wherever the heads of another key/value group begin."""
    borders = runs(geometry)
    if not borders:
        return
    lines = LineCollection(
        [[(head - 0.5, row - 0.5), (head - 0.5, row + rows - 0.5)] for head, row, rows in borders],
        colors=BORDER,
        linewidths=float(np.clip(0.06 * _cell_points(axes), 0.5, 1.0)),
        capstyle="butt",
    )
    lines.set_gid("groups")
    axes.add_collection(lines, autolim=False)


def mark(axes: Axes, heads: HeadSet) -> None:
    """Outlines that lie inside their cells, so that neighbours keep one each."""
    cell = _cell_points(axes)
    line = float(np.clip(0.16 * cell, 0.4, 2.0))
    outlines = PatchCollection(
        _rectangles(heads, 0.65 * line / cell),
        facecolors="none",
        edgecolors=SELECTED,
        linewidths=line,
        joinstyle="miter",
    )
    outlines.set_gid("selected")
    axes.add_collection(outlines, autolim=False)


def fill(axes: Axes, heads: HeadSet) -> None:
    """Cells of one colour for the heads of the set, of a faint one for the others."""
    image = axes.imshow(
        heads.mask,
        cmap=ListedColormap([FAINT, SELECTED]),
        vmin=0,
        vmax=1,
        interpolation="nearest",
        aspect="auto",
    )
    image.set_gid("selected")
    separate_cells(axes, heads.geometry)


def separate_cells(axes: Axes, geometry: Geometry) -> None:
    """White between all cells, so that those of one colour can be told apart."""
    layers, heads = geometry.shape
    cell = _cell_points(axes)
    if cell < 4:
        return  # lines would be all that is seen
    line = min(0.08 * cell, 1.5)
    axes.hlines(np.arange(1, layers) - 0.5, -0.5, heads - 0.5, color="white", linewidth=line)
    axes.vlines(np.arange(1, heads) - 0.5, -0.5, layers - 0.5, color="white", linewidth=line)


def _rectangles(heads: HeadSet, inset: float) -> list[Rectangle]:
    side = 1 - 2 * inset
    return [
        Rectangle((head - 0.5 + inset, row - 0.5 + inset), side, side)
        for row, head in np.argwhere(heads.mask)
    ]


def _cell_points(axes: Axes) -> float:
    """The shorter side of a cell, in points."""
    width, height = inches_of(axes)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return 72 * min(width / abs(right - left), height / abs(high - low))
