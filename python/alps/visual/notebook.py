"""What a notebook shows of scores and head sets: HTML that needs no other package."""

from collections.abc import Iterable
from html import escape

import numpy as np
from numpy.typing import NDArray

from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.statistics import DEFAULT
from alps.visual import text
from alps.visual.colours import BLUE, SELECTED
from alps.visual.head_grid import HeadGrid, group_borders

_SHADES = 12
_LARGEST_CELL, _SMALLEST_CELL, _WIDTH = 18, 4, 640
"""Pixels."""
_TOP = 5


def scores_html(scores: HeadScores) -> str:
    """The geometry, a map by the statistic that ranks heads, the best heads, where the scores come from."""
    name = DEFAULT if DEFAULT in scores else scores.statistics[0]
    geometry = scores.geometry
    grid = HeadGrid.of_scores(geometry, scores[name])
    low, high = grid.limits
    rows = (cells for _, *cells in text.ranked_cells(scores, name, scores, _TOP))
    return _block(
        f"<b>HeadScores</b> {escape(text.model(geometry))}",
        _map(grid, BLUE, f"heads by {name}"),
        _small(f"{text.elided(name, 40)}: darker is higher, from {low:.3g} to {high:.3g}"),
        _table(("layer", "head", "K/V group", *scores.statistics), rows),
        _small(text.checkpoints(scores.provenance), text.method(scores.provenance)),
    )


def set_html(heads: HeadSet) -> str:
    """The geometry, a map of the heads, how many they are, how they were selected."""
    return _block(
        f"<b>HeadSet</b> {escape(text.model(heads.geometry))}",
        _map(HeadGrid.of_set(heads), SELECTED, "the selected heads"),
        _small(text.head_set(heads), text.checkpoints(heads.provenance)),
    )


def _block(*parts: str) -> str:
    return "<div>" + "".join(f"<div>{part}</div>" for part in parts if part) + "</div>"


def _small(*phrases: str) -> str:
    sentence = text.joined(*phrases)
    return f"<small>{escape(sentence)}</small>" if sentence else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    def cells(kind: str, values: Iterable[object]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(str(value))}</{kind}>" for value in values) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f"<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table>"


def _map(grid: HeadGrid, color: str, label: str) -> str:
    """An SVG in shades of one colour, opaque for the last shade; no cell where there is no number."""
    layers, heads = grid.geometry.shape
    cell = int(np.clip(_WIDTH // max(heads, 1), _SMALLEST_CELL, _LARGEST_CELL))
    levels = np.where(np.isnan(grid.shades), -1, np.rint(np.nan_to_num(grid.shades) * _SHADES))
    ground = _path(levels >= 0, 'fill="currentColor" fill-opacity="0.08"')
    shades = "".join(
        _path(levels == level, f'fill="{color}" fill-opacity="{level / _SHADES:.3g}"')
        for level in range(1, _SHADES + 1)
    )
    lines = "".join(f"M{head} {row}v{rows}" for head, row, rows in group_borders(grid.geometry))
    groups = (
        f'<path d="{lines}" stroke="currentColor" stroke-width="0.1" stroke-opacity="0.6"/>' if lines else ""
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}, layers from top to bottom" '
        f'width="{cell * heads}" height="{cell * layers}" viewBox="0 0 {heads} {layers}" '
        f'shape-rendering="crispEdges">{ground}{shades}{groups}</svg>'
    )


def _path(cells: NDArray[np.bool_], fill: str) -> str:
    """One path around all runs of cells of a row, so that a large map stays a small page."""
    steps = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    path = "".join(
        f"M{start} {row}h{end - start}v1h{start - end}z"
        for row, start, end in zip(rows, starts, ends, strict=True)
    )
    return f'<path d="{path}" {fill}/>' if path else ""
