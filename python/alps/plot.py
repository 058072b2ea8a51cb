"""Pictures of scores and head sets: figures of matplotlib, which know nothing of pyplot.

Needs matplotlib, and is imported only where a picture is asked for.
"""

import math
from typing import Literal, get_args

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import MaxNLocator

from alps import wording
from alps.compare import Comparison
from alps.drawing.look import FAINT, in_our_style
from alps.drawing.maps import (
    WIDEST,
    draw_cells,
    fill,
    frame,
    group_axis,
    map_size,
    mark,
    separate_cells,
    separate_groups,
)
from alps.drawing.profiles import draw_layers, draw_profile, draw_ranks
from alps.drawing.scale import STEPS, Scale, limits
from alps.drawing.sheet import BOTTOM, LEFT, RIGHT, Sheet, new_sheet, shortened
from alps.drawing.view import View
from alps.errors import ArgumentError
from alps.heads import HeadSet
from alps.scores import HeadScores

Kind = Literal["overview", "map", "layers", "ranks"]

# Inches.
_BAR, _BAR_GAP, _BAR_LABELS, _SHORTEST_BAR, _TALLEST_BAR = 0.11, 0.14, 0.56, 2.1, 3.0
_PROFILE, _RANKS = 1.7, 1.7
_ALONE_WIDTH, _ALONE_HEIGHT = 7.0, 2.8
_SWATCH, _SWATCH_STEP, _SWATCH_LINE = 0.12, 0.36, 0.2
_PANEL_SIDE, _NARROWEST_PANEL, _PANEL_HEADING = 3.2, 2.2, 0.42


@in_our_style
def scores_figure(
    scores: HeadScores,
    heads: HeadSet | None = None,
    *,
    kind: Kind = "overview",
    statistic: str | None = None,
    titled: bool = True,
) -> Figure:
    """A picture of scores; see `HeadScores.plot`. Without its title it is for a page that has one."""
    if kind not in get_args(Kind):
        raise ArgumentError(f"there is no picture {kind!r}; there are {', '.join(get_args(Kind))}")
    if heads is not None and (difference := scores.geometry.difference(heads.geometry)):
        raise ArgumentError(f"the scores and the heads are of two geometries: {difference}")
    if not scores.geometry.heads:
        raise ArgumentError("there is nothing to draw: the model has no attention")
    name = scores.ranking_statistic(statistic)
    view = View(scores, name, heads, titled)
    match kind:
        case "map":
            return _map_figure(view)
        case "layers":
            return _layers_figure(view)
        case "ranks":
            return _ranks_figure(view)
        case "overview":
            return _overview_figure(view)


@in_our_style
def set_figure(heads: HeadSet, *, titled: bool = True) -> Figure:
    """A picture of a head set; see `HeadSet.plot`."""
    geometry = heads.geometry
    if not geometry.heads:
        raise ArgumentError("there is nothing to draw: the model has no attention")
    width, height = map_size(geometry)
    top = group_axis(geometry)
    lines = [
        wording.pair(heads.provenance),
        wording.size(geometry),
        wording.joined(wording.amount(heads), wording.choice(heads.provenance)),
    ]
    sheet = new_sheet(
        LEFT + width + RIGHT,
        top + height + BOTTOM,
        "The selected heads" if titled else "",
        lines if titled else [],
    )
    axes = sheet.axes(LEFT, top, width, height)
    frame(axes, geometry)
    fill(axes, heads)
    separate_groups(axes, geometry)
    return sheet.figure


@in_our_style
def comparison_figure(comparison: Comparison, *, titled: bool = True) -> Figure:
    """A picture of several tasks; see `Comparison.plot`."""
    geometry = comparison.geometry
    if not geometry.heads:
        raise ArgumentError("there is nothing to draw: the model has no attention")
    width, height = map_size(geometry, _PANEL_SIDE)
    width_of_panel = max(width, _NARROWEST_PANEL)
    panels = len(comparison.names) + 1
    fit = max(1, min(panels, 4, int((WIDEST - RIGHT) / (LEFT + width_of_panel))))
    rows = math.ceil(panels / fit)
    across = math.ceil(panels / rows)
    above = _PANEL_HEADING + group_axis(geometry)
    below = BOTTOM + 0.1
    lines = [wording.size(geometry), "Orange: the selected heads" + _shades(comparison)]
    sheet = new_sheet(
        across * (LEFT + width_of_panel) + RIGHT,
        rows * (above + height + below) + 0.1,
        "The heads of each task, and how many tasks share them" if titled else "",
        lines if titled else [],
    )

    def axes(number: int, title: str, note: str) -> Axes:
        down, right = divmod(number, across)
        left = right * (LEFT + width_of_panel) + LEFT
        top = down * (above + height + below)
        sheet.panel_title(
            left, top, shortened(title, width_of_panel, 9, "bold"), shortened(note, width_of_panel, 7)
        )
        axes = sheet.axes(left, top + above, width, height)
        frame(axes, geometry)
        return axes

    for number, (name, heads) in enumerate(comparison.heads.items()):
        note = f"{len(heads):,} of {geometry.heads:,} heads"
        if name in comparison.scores:
            numbers = np.where(np.isfinite(comparison.scores[name]), comparison.scores[name], np.nan)
            low, high = limits(numbers)
            panel = axes(number, name, f"{note}; shades from {low:.3g} to {high:.3g}")
            draw_cells(panel, numbers, (low, high), geometry)
            mark(panel, heads)
        else:
            panel = axes(number, name, note)
            fill(panel, heads)
            separate_groups(panel, geometry)
    panel = axes(panels - 1, "selected by how many tasks", "")
    _draw_counts(sheet, panel, comparison)
    separate_groups(panel, geometry)
    return sheet.figure


def _map_figure(view: View) -> Figure:
    width, height = map_size(view.geometry)
    top = group_axis(view.geometry)
    beside = _BAR_GAP + _BAR + _BAR_LABELS
    sheet = new_sheet(
        LEFT + width + beside + RIGHT, top + max(height, _SHORTEST_BAR) + BOTTOM, view.title, view.lines
    )
    _draw_map(sheet, view, top, width, height)
    return sheet.figure


def _overview_figure(view: View) -> Figure:
    width, height = map_size(view.geometry)
    top = group_axis(view.geometry)
    profile = LEFT + width + _BAR_GAP + _BAR + _BAR_LABELS + 0.12
    total = profile + _PROFILE + RIGHT
    ranks = top + max(height, _SHORTEST_BAR) + BOTTOM + 0.3
    sheet = new_sheet(total, ranks + _RANKS + BOTTOM, view.title, view.lines)
    _draw_map(sheet, view, top, width, height)

    axes = sheet.axes(profile, top, max(_PROFILE, sheet.width - RIGHT - profile), height)
    draw_profile(axes, view)
    sheet.heading(
        profile, top, "by layer: range, mean, selected" if view.heads is not None else "by layer: range, mean"
    )

    axes = sheet.axes(LEFT, ranks, sheet.width - LEFT - RIGHT, _RANKS)
    draw_ranks(axes, view)
    sheet.heading(LEFT, ranks, "by rank")
    return sheet.figure


def _layers_figure(view: View) -> Figure:
    layers = len(view.geometry.layers)
    width = float(np.clip(layers * 0.16, 4.6, 12.0))
    sheet = new_sheet(LEFT + width + RIGHT, _ALONE_HEIGHT + BOTTOM, view.title, view.lines)
    axes = sheet.axes(LEFT, 0.0, width, _ALONE_HEIGHT)
    draw_layers(axes, view)
    return sheet.figure


def _ranks_figure(view: View) -> Figure:
    width = _ALONE_WIDTH
    sheet = new_sheet(LEFT + width + RIGHT, _ALONE_HEIGHT + BOTTOM, view.title, view.lines)
    axes = sheet.axes(LEFT, 0.0, width, _ALONE_HEIGHT)
    draw_ranks(axes, view)
    return sheet.figure


def _draw_map(sheet: Sheet, view: View, top: float, width: float, height: float) -> None:
    axes = sheet.axes(LEFT, top, width, height)
    frame(axes, view.geometry)
    colors = draw_cells(axes, view.numbers, view.range, view.geometry)
    if view.heads is not None:
        mark(axes, view.heads)
    bar_height = float(np.clip(height, _SHORTEST_BAR, _TALLEST_BAR))
    bar = sheet.axes(LEFT + width + _BAR_GAP, top, _BAR, bar_height)
    sheet.figure.colorbar(colors, cax=bar)
    bar.set_gid("colour bar")
    bar.minorticks_off()
    scale = Scale.of(view.range)
    bar.yaxis.set_major_locator(MaxNLocator(max(2, min(6, int(bar_height / 0.3))), steps=STEPS))
    bar.yaxis.set_major_formatter(scale.formatter)
    bar.set_ylabel(scale.label(view.statistic, wording.UNITS.get(view.statistic, "")), fontsize=7, labelpad=3)


def _shades(comparison: Comparison) -> str:
    if comparison.statistic is None:
        return ""
    return f"; blue: {wording.elided(comparison.statistic, 30)}, on a scale of each task's own"


def _draw_counts(sheet: "Sheet", axes: Axes, comparison: Comparison) -> None:
    tasks, geometry = len(comparison.names), comparison.geometry
    shades = mpl.colormaps["Oranges"](np.linspace(0.35, 1, tasks))
    colors = ListedColormap([FAINT, *shades])
    image = axes.imshow(
        comparison.counts, cmap=colors, vmin=-0.5, vmax=tasks + 0.5, interpolation="nearest", aspect="auto"
    )
    image.set_gid("counts")
    separate_cells(axes, geometry)
    box = axes.get_position()
    left = box.x0 * sheet.width
    top = (1 - box.y1) * sheet.height - group_axis(geometry) - _SWATCH_LINE
    for count in range(tasks + 1):
        place = left + count * _SWATCH_STEP
        sheet.figure.add_artist(
            Rectangle(
                (place / sheet.width, 1 - (top + _SWATCH) / sheet.height),
                _SWATCH / sheet.width,
                _SWATCH / sheet.height,
                facecolor=colors(count),
                linewidth=0,
            )
        )
        sheet.figure.text(
            (place + 1.4 * _SWATCH) / sheet.width,
            1 - (top + _SWATCH / 2) / sheet.height,
            str(count),
            va="center_baseline",
            fontsize=7,
        )
