"""Draws scores by layer and by rank with matplotlib."""

from typing import Any, Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike, NDArray

from alps.visual.colours import INK, PALE, SELECTED
from alps.visual.figure_layout import inches_of, label_step
from alps.visual.head_grid import HeadGrid
from alps.visual.style import TICK_STEPS, AxisNumbers

_MANY = 2000
"""For more heads than this, a vector picture holds its dots as one image."""


def draw_profile(axes: Axes, grid: HeadGrid, statistic: str) -> None:
    """For every layer, beside its row of the map: the range of the scores, their mean, the selected heads."""
    layers = len(grid.geometry.layers)
    axes.set_ylim(layers - 0.5, -0.5)
    axes.set_yticks([])
    rows, low, mean, high = _by_layer(grid.values)
    _, height = inches_of(axes)
    thickness = 72 * height / layers
    axes.hlines(rows, low, high, color=PALE, linewidth=float(np.clip(0.25 * thickness, 0.8, 3)), zorder=1)
    _dots(axes, mean, rows, float(np.clip(0.35 * thickness, 1.4, 4)) ** 2, INK, zorder=2)
    if grid.selected is not None:
        row, head = np.nonzero(grid.selected)
        size = float(np.clip(0.3 * thickness, 1.2, 3.4)) ** 2
        _dots(axes, grid.values[row, head], row, size, SELECTED, zorder=3)
    _score_axis(axes, "x", grid, statistic, ticks=3)


def draw_layers(axes: Axes, grid: HeadGrid, statistic: str) -> None:
    """For every layer, all its heads, their mean, and the selected ones."""
    layers = grid.geometry.layers
    rows = np.broadcast_to(np.arange(len(layers))[:, None], grid.values.shape)
    many = grid.geometry.heads > _MANY
    size = 4 if many else 9
    _dots(axes, rows.ravel(), grid.values.ravel(), size, PALE, "heads", alpha=0.5, rasterized=many)
    number, _, mean, _ = _by_layer(grid.values)
    axes.plot(number, mean, color=INK, linewidth=1.2, label="mean").pop().set_gid("mean")
    if grid.selected is not None:
        row, head = np.nonzero(grid.selected)
        _dots(axes, row, grid.values[row, head], 6 if many else 12, SELECTED, "selected", zorder=3)
    width, _ = inches_of(axes)
    ticks = range(0, len(layers), label_step(len(layers), width, 0.24))
    axes.set_xticks(ticks, [str(layers[row]) for row in ticks])
    axes.set_xlim(-0.6, len(layers) - 0.4)
    axes.set_xlabel("layer: a dot for each head, a line for their mean", labelpad=2)
    _score_axis(axes, "y", grid, statistic, ticks=5)


def _dots(
    axes: Axes, x: ArrayLike, y: ArrayLike, size: float, color: str, gid: str | None = None, **style: Any
) -> None:
    axes.scatter(x, y, s=size, color=color, linewidths=0, **style).set_gid(gid)


def _by_layer(
    values: NDArray[np.float64],
) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The rows that have numbers, with the lowest, the mean and the highest."""
    rows = np.flatnonzero(np.isfinite(values).any(axis=1))
    numbers = values[rows]
    return rows, np.nanmin(numbers, axis=1), np.nanmean(numbers, axis=1), np.nanmax(numbers, axis=1)


def draw_ranks(axes: Axes, grid: HeadGrid, statistic: str) -> None:
    """All scores in order, the selected heads among them, and the cut where they are the best ones."""
    numbers = np.isfinite(grid.values)
    order = np.argsort(-grid.values[numbers], kind="stable")  # ties stay in order of (layer, head)
    scores = grid.values[numbers][order]
    ranks = np.arange(1, len(order) + 1)
    many = len(order) > _MANY
    size = 12.0 if len(order) <= 64 else 5.0
    _dots(axes, ranks, scores, size, PALE, "heads", rasterized=many)
    if grid.selected is not None:
        selected = grid.selected[numbers][order]
        _dots(axes, ranks[selected], scores[selected], size, SELECTED, "selected", rasterized=many, zorder=3)
        count = int(selected.sum())
        if 0 < count < len(order) and selected[:count].all():
            axes.axvline(count + 0.5, color=INK, linewidth=0.7, linestyle=(0, (4, 3))).set_gid("cut")
            axes.annotate(
                f"the {count:,} best of {len(order):,} heads, from {scores[count - 1]:.3g} up",
                (count + 0.5, 1),
                xycoords=("data", "axes fraction"),
                xytext=(5, -3),
                textcoords="offset points",
                va="top",
                fontsize=7,
            )
    margin = 0.5 + 0.01 * len(order)
    axes.set_xlim(1 - margin, max(1, len(order)) + margin)
    between = MaxNLocator(8, integer=True, steps=TICK_STEPS).tick_values(1, max(2, len(order)))
    ticks = [1, *(int(rank) for rank in between if between[1] / 2 <= rank <= len(order) and rank > 1)]
    axes.set_xticks(ticks, [f"{rank:,}" for rank in ticks])
    axes.set_xlabel("rank", labelpad=2)
    _score_axis(axes, "y", grid, statistic, ticks=5)


def _score_axis(axes: Axes, which: Literal["x", "y"], grid: HeadGrid, statistic: str, ticks: int) -> None:
    low, high = grid.limits
    margin = 0.04 * (high - low)
    numbers = AxisNumbers.within(grid.limits)
    axis = axes.xaxis if which == "x" else axes.yaxis
    set_limits = axes.set_xlim if which == "x" else axes.set_ylim
    set_limits(low - margin if low < 0 else low, high + margin)
    axis.set_major_locator(MaxNLocator(ticks, steps=TICK_STEPS))
    axis.set_major_formatter(numbers.formatter)
    axis.set_label_text(numbers.label(statistic), fontsize=8)
    axis.labelpad = 3
    axes.spines[["top", "right"]].set_visible(False)
