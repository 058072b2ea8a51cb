"""Figures of scores, head sets and comparisons; drawn with matplotlib, which leaves pyplot alone.

Needs matplotlib, and is imported only where a figure is asked for.
"""

import math
from collections.abc import Callable
from typing import Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from alps.compare import Comparison
from alps.errors import ArgumentError
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores, Kind
from alps.statistics import UNITS
from alps.visual import text
from alps.visual.colours import COUNTS, FAINT
from alps.visual.figure_layout import BOTTOM, LEFT, RIGHT, FigureLayout, shortened
from alps.visual.head_grid import HeadGrid
from alps.visual.maps import (
    WIDEST,
    draw_counts,
    draw_scores,
    draw_set,
    height_above_map,
    label_axes,
    map_size,
)
from alps.visual.profiles import draw_layers, draw_profile, draw_ranks
from alps.visual.style import TICK_STEPS, AxisNumbers, in_our_style

# Inches.
_BAR, _BAR_GAP, _BAR_LABELS, _SHORTEST_BAR, _TALLEST_BAR = 0.11, 0.14, 0.56, 2.1, 3.0
_PROFILE, _RANKS = 1.7, 1.7
_ALONE_WIDTH, _PAGE_WIDTH, _ALONE_HEIGHT = 7.0, 3.3, 2.8
_SWATCH, _SWATCH_STEP, _SWATCH_LINE = 0.12, 0.36, 0.2
_PANEL_SIZE, _NARROWEST_PANEL, _PANEL_HEADING = 3.2, 2.2, 0.42

_CHARTS: dict[str, Callable[[Axes, HeadGrid, str], None]] = {"layers": draw_layers, "ranks": draw_ranks}


@in_our_style
def scores_figure(
    scores: HeadScores,
    heads: HeadSet | None = None,
    *,
    kind: Kind = "overview",
    statistic: str | None = None,
) -> Figure:
    """A picture of scores; see `HeadScores.plot`."""
    if kind not in get_args(Kind):
        raise ArgumentError(f"there is no picture {kind!r}; there are {', '.join(get_args(Kind))}")
    geometry = scores.geometry
    if heads is not None:
        check_same_geometry(scores, heads)
    _check_attention(geometry)
    name = scores.ranking_statistic(statistic)
    grid = HeadGrid.of_scores(geometry, scores[name], heads)
    title = f"How far each attention head moved, by {text.elided(name, 40)}"
    lines = _lines(scores, grid, heads)
    if kind in ("map", "overview"):
        return _map_figure(grid, name, title, lines, alone=kind == "map")
    width = float(np.clip(len(geometry.layers) * 0.16, 4.6, 12.0)) if kind == "layers" else _ALONE_WIDTH
    layout = FigureLayout.titled(LEFT + width + RIGHT, _ALONE_HEIGHT + BOTTOM, title, lines)
    _CHARTS[kind](layout.axes(LEFT, 0.0, width, _ALONE_HEIGHT), grid, name)
    return layout.figure


@in_our_style
def chart_of_page(
    scores: HeadScores, heads: HeadSet | None, kind: Literal["layers", "ranks"], statistic: str
) -> Figure:
    """One of the charts without its title, narrow enough for a phone."""
    grid = HeadGrid.of_scores(scores.geometry, scores[statistic], heads)
    layout = FigureLayout.titled(LEFT + _PAGE_WIDTH + RIGHT, _ALONE_HEIGHT + BOTTOM)
    _CHARTS[kind](layout.axes(LEFT, 0.0, _PAGE_WIDTH, _ALONE_HEIGHT), grid, text.statistic(statistic))
    return layout.figure


def check_same_geometry(scores: HeadScores, heads: HeadSet) -> None:
    """Raises ArgumentError unless both are of one geometry."""
    if difference := scores.geometry.difference(heads.geometry):
        raise ArgumentError(f"the scores and the heads are of two geometries: {difference}")


@in_our_style
def set_figure(heads: HeadSet) -> Figure:
    """A picture of a head set; see `HeadSet.plot`."""
    geometry = heads.geometry
    _check_attention(geometry)
    width, height = map_size(geometry)
    top = height_above_map(geometry)
    lines = [text.checkpoints(heads.provenance), text.model(geometry), text.head_set(heads)]
    layout = FigureLayout.titled(LEFT + width + RIGHT, top + height + BOTTOM, "The selected heads", lines)
    axes = layout.axes(LEFT, top, width, height)
    label_axes(axes, geometry)
    draw_set(axes, HeadGrid.of_set(heads))
    return layout.figure


@in_our_style
def comparison_figure(comparison: Comparison) -> Figure:
    """A picture of several tasks; see `Comparison.plot`."""
    geometry = comparison.geometry
    _check_attention(geometry)
    width, height = map_size(geometry, _PANEL_SIZE)
    width_of_panel = max(width, _NARROWEST_PANEL)
    panels = len(comparison.names) + 1
    fit = max(1, min(panels, 4, int((WIDEST - RIGHT) / (LEFT + width_of_panel))))
    rows = math.ceil(panels / fit)
    across = math.ceil(panels / rows)
    above = _PANEL_HEADING + height_above_map(geometry)
    below = BOTTOM + 0.1
    colours = "Orange: the selected heads"
    if comparison.statistic is not None:
        colours += f"; blue: {text.elided(comparison.statistic, 30)}, on a scale of each task's own"
    layout = FigureLayout.titled(
        across * (LEFT + width_of_panel) + RIGHT,
        rows * (above + height + below) + 0.1,
        "The heads of each task, and how many tasks share them",
        [text.model(geometry), colours],
    )

    def place(number: int) -> tuple[float, float]:
        down, right = divmod(number, across)
        return right * (LEFT + width_of_panel) + LEFT, down * (above + height + below)

    def panel(number: int, title: str, note: str) -> Axes:
        left, top = place(number)
        layout.panel_title(
            left, top, shortened(title, width_of_panel, 9, "bold"), shortened(note, width_of_panel, 7)
        )
        axes = layout.axes(left, top + above, width, height)
        label_axes(axes, geometry)
        return axes

    for number, (name, heads) in enumerate(comparison.heads.items()):
        note = f"{len(heads):,} of {geometry.heads:,} heads"
        if name in comparison.scores:
            grid = HeadGrid.of_scores(geometry, comparison.scores[name], heads)
            low, high = grid.limits
            draw_scores(panel(number, name, f"{note}; shades from {low:.3g} to {high:.3g}"), grid)
        else:
            draw_set(panel(number, name, note), HeadGrid.of_set(heads))
    tasks = len(comparison.names)
    colors = ListedColormap([FAINT, *mpl.colormaps[COUNTS](np.linspace(0.35, 1, tasks))])
    grid = HeadGrid.of_counts(geometry, comparison.counts, tasks)
    draw_counts(panel(tasks, "selected by how many tasks", ""), grid, colors)
    left, top = place(tasks)
    for count in range(tasks + 1):
        swatch = left + count * _SWATCH_STEP, top + _PANEL_HEADING - _SWATCH_LINE
        layout.swatch(*swatch, _SWATCH, colors(count))
        layout.text(
            swatch[0] + 1.4 * _SWATCH, swatch[1] + _SWATCH / 2, str(count), va="center_baseline", fontsize=7
        )
    return layout.figure


def _check_attention(geometry: Geometry) -> None:
    if not geometry.heads:
        raise ArgumentError("there is nothing to draw: the model has no attention")


def _lines(scores: HeadScores, grid: HeadGrid, heads: HeadSet | None) -> list[str]:
    """Where the scores come from, and what the marks are."""
    lines = [
        text.checkpoints(scores.provenance),
        text.joined(text.model(scores.geometry), text.method(scores.provenance)),
    ]
    if heads is not None:
        lines.append(f"Orange: {text.head_set(heads)}")
    if blank := int(np.isnan(grid.values).sum()):
        lines.append(f"Hatched: {blank:,} without a number")
    return lines


def _map_figure(grid: HeadGrid, statistic: str, title: str, lines: list[str], alone: bool) -> Figure:
    """The map with its colour bar; unless it is alone, the profile beside it and the ranks below."""
    width, height = map_size(grid.geometry)
    top = height_above_map(grid.geometry)
    beside = LEFT + width + _BAR_GAP + _BAR + _BAR_LABELS
    body = top + max(height, _SHORTEST_BAR) + BOTTOM
    if alone:
        layout = FigureLayout.titled(beside + RIGHT, body, title, lines)
        _draw_map(layout, grid, statistic, top, width, height)
        return layout.figure

    profile, ranks = beside + 0.12, body + 0.3
    layout = FigureLayout.titled(profile + _PROFILE + RIGHT, ranks + _RANKS + BOTTOM, title, lines)
    _draw_map(layout, grid, statistic, top, width, height)
    axes = layout.axes(profile, top, max(_PROFILE, layout.width - RIGHT - profile), height)
    draw_profile(axes, grid, statistic)
    marked = "" if grid.selected is None else ", selected"
    layout.heading(profile, top, f"by layer: range, mean{marked}")
    draw_ranks(layout.axes(LEFT, ranks, layout.width - LEFT - RIGHT, _RANKS), grid, statistic)
    layout.heading(LEFT, ranks, "by rank")
    return layout.figure


def _draw_map(
    layout: FigureLayout, grid: HeadGrid, statistic: str, top: float, width: float, height: float
) -> None:
    axes = layout.axes(LEFT, top, width, height)
    label_axes(axes, grid.geometry)
    colors = draw_scores(axes, grid)
    bar_height = float(np.clip(height, _SHORTEST_BAR, _TALLEST_BAR))
    bar = layout.axes(LEFT + width + _BAR_GAP, top, _BAR, bar_height)
    layout.figure.colorbar(colors, cax=bar)
    bar.set_gid("colour bar")
    bar.minorticks_off()
    numbers = AxisNumbers.within(grid.limits)
    bar.yaxis.set_major_locator(MaxNLocator(max(2, min(6, int(bar_height / 0.3))), steps=TICK_STEPS))
    bar.yaxis.set_major_formatter(numbers.formatter)
    bar.set_ylabel(numbers.label(statistic, UNITS.get(statistic, "")), fontsize=7, labelpad=3)
