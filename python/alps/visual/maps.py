"""Draws maps of layers x heads with matplotlib."""

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.colors import Colormap, ListedColormap, Normalize
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from numpy.typing import ArrayLike, NDArray

from alps.geometry import Geometry
from alps.visual.colours import BORDER, FAINT, PALE, SCORES, SELECTED, SEPARATOR
from alps.visual.figure_layout import inches_of, label_step
from alps.visual.head_grid import HeadGrid, group_borders, have_uniform_groups

# Inches.
_GROUP_AXIS, _NO_GROUP_AXIS = 0.42, 0.12
_MAP_SIZE, _SMALLEST_CELL, _LARGEST_CELL = 6.4, 0.065, 0.5
WIDEST = 14.0
_LABEL_WIDTH, _LABEL_HEIGHT = 0.28, 0.15


def map_size(geometry: Geometry, size: float = _MAP_SIZE) -> tuple[float, float]:
    """The width and height of a map in inches; cells are square unless that makes it too narrow or too wide."""
    layers, heads = geometry.shape
    smallest = _SMALLEST_CELL * size / _MAP_SIZE
    wide, high = (float(np.clip(size / count, smallest, _LARGEST_CELL)) for count in (heads, layers))
    wide, high = min(wide, 1.4 * high), min(high, 1.4 * wide)
    return min(wide * heads, WIDEST), min(high * layers, WIDEST)


def height_above_map(geometry: Geometry) -> float:
    """The height in inches of the numbers of the key/value groups, or of the margin in their place."""
    return _GROUP_AXIS if have_uniform_groups(geometry) else _NO_GROUP_AXIS


def label_axes(axes: Axes, geometry: Geometry) -> None:
    """Numbers the layers and the heads, and above them the key/value groups that the heads share."""
    layers, heads = geometry.shape
    axes.set_xlim(-0.5, heads - 0.5)
    axes.set_ylim(layers - 0.5, -0.5)
    width, height = inches_of(axes)
    columns = range(0, heads, label_step(heads, width, _LABEL_WIDTH))
    rows = range(0, layers, label_step(layers, height, _LABEL_HEIGHT))
    axes.set_xticks(columns, [str(head) for head in columns])
    axes.set_yticks(rows, [str(geometry.layers[row]) for row in rows])
    axes.set_xlabel("head", labelpad=2)
    axes.set_ylabel("layer", labelpad=3)
    axes.spines[:].set(color=PALE, linewidth=0.5)
    size = geometry.heads_per_group
    if have_uniform_groups(geometry):
        groups = range(0, geometry.key_value_heads, label_step(geometry.key_value_heads, width, _LABEL_WIDTH))
        above = axes.secondary_xaxis("top")
        above.set_xticks(
            [group * size + (size - 1) / 2 for group in groups], [str(group) for group in groups]
        )
        above.set_xlabel("K/V group", labelpad=3)
        above.spines[:].set_visible(False)
        above.tick_params(length=0)


def draw_scores(axes: Axes, grid: HeadGrid) -> ScalarMappable:
    """Shades for the scores, a hatch where there is no number, an outline around each selected head."""
    image = _image(
        axes, np.ma.masked_invalid(grid.values), "scores", mpl.colormaps[SCORES], Normalize(*grid.limits)
    )
    axes.patch.set(facecolor="none", edgecolor=PALE, hatch="//////", hatch_linewidth=0.4)
    _separate_groups(axes, grid.geometry)
    if grid.selected is not None:
        _outline(axes, grid.selected)
    return image


def draw_set(axes: Axes, grid: HeadGrid) -> None:
    """Cells of one colour for the selected heads, of a faint one for the others."""
    assert grid.selected is not None
    _image(axes, grid.selected, "selected", ListedColormap([FAINT, SELECTED]), Normalize(0, 1))
    _separate_cells(axes, grid.geometry)
    _separate_groups(axes, grid.geometry)


def draw_counts(axes: Axes, grid: HeadGrid, colors: ListedColormap) -> None:
    """A colour for every number of tasks that select a head, from none to all of `colors`."""
    _image(axes, grid.values, "counts", colors, Normalize(-0.5, colors.N - 0.5))
    _separate_cells(axes, grid.geometry)
    _separate_groups(axes, grid.geometry)


def _image(axes: Axes, cells: ArrayLike, gid: str, colors: Colormap, norm: Normalize) -> AxesImage:
    image = axes.imshow(cells, cmap=colors, norm=norm, interpolation="nearest", aspect="auto")
    image.set_gid(gid)
    return image


def _separate_groups(axes: Axes, geometry: Geometry) -> None:
    """A line wherever the heads of another key/value group begin."""
    borders = group_borders(geometry)
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


def _outline(axes: Axes, selected: NDArray[np.bool_]) -> None:
    """Outlines that lie inside their cells, so that neighbours keep one each."""
    cell = _cell_points(axes)
    line = float(np.clip(0.16 * cell, 0.4, 2.0))
    inset = 0.65 * line / cell
    edge = 1 - 2 * inset
    outlines = PatchCollection(
        [
            Rectangle((head - 0.5 + inset, row - 0.5 + inset), edge, edge)
            for row, head in np.argwhere(selected)
        ],
        facecolors="none",
        edgecolors=SELECTED,
        linewidths=line,
        joinstyle="miter",
    )
    outlines.set_gid("selected")
    axes.add_collection(outlines, autolim=False)


def _separate_cells(axes: Axes, geometry: Geometry) -> None:
    """Lines between all cells, so that those of one colour can be told apart."""
    layers, heads = geometry.shape
    cell = _cell_points(axes)
    if cell < 4:
        return  # the lines would cover the cells
    line = min(0.08 * cell, 1.5)
    axes.hlines(np.arange(1, layers) - 0.5, -0.5, heads - 0.5, color=SEPARATOR, linewidth=line)
    axes.vlines(np.arange(1, heads) - 0.5, -0.5, layers - 0.5, color=SEPARATOR, linewidth=line)


def _cell_points(axes: Axes) -> float:
    """The shorter edge of a cell, in points."""
    width, height = inches_of(axes)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    return 72 * min(width / abs(right - left), height / abs(high - low))
