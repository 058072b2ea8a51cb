"""What a notebook shows of scores and head sets: HTML that needs no other package."""

from collections.abc import Iterable
from html import escape

import numpy as np
from numpy.typing import NDArray

from alps import wording
from alps.borders import runs
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.statistics import DEFAULT

_BLUE, _ORANGE = "#2171b5", "#d9480f"
_SHADES = 12
_LARGEST_CELL, _SMALLEST_CELL, _WIDTH = 18, 4, 640
_TOP = 5


def scores_html(scores: HeadScores) -> str:
    """The geometry, a map by the statistic that ranks heads, the best heads, where the scores come from."""
    name = DEFAULT if DEFAULT in scores else scores.statistics[0]
    numbers = np.where(np.isfinite(scores[name]), scores[name], np.nan)
    low, high = min(0.0, _extreme(np.fmin, numbers)), max(0.0, _extreme(np.fmax, numbers))
    share = (numbers - low) / (high - low) if high > low else np.where(np.isnan(numbers), np.nan, 0.0)
    rows = (
        (
            layer,
            head,
            scores.geometry.group_of(head, layer),
            *(f"{array[row, head]:.4g}" for array in scores.values()),
        )
        for layer, head, _ in scores.top(_TOP, name)
        for row in (scores.geometry.row_of(layer),)
    )
    return _block(
        f"<b>HeadScores</b> {escape(wording.size(scores.geometry))}",
        _map(scores.geometry, share, _BLUE, f"heads by {name}"),
        _small(f"{wording.printable(name)}: darker is higher, from {low:.3g} to {high:.3g}"),
        _table(("layer", "head", "K/V group", *scores.statistics), rows),
        _small(wording.pair(scores.provenance), wording.method(scores.provenance)),
    )


def set_html(heads: HeadSet) -> str:
    """The geometry, a map of the heads, what they amount to, how they were chosen."""
    return _block(
        f"<b>HeadSet</b> {escape(wording.size(heads.geometry))}",
        _map(heads.geometry, heads.mask.astype(np.float64), _ORANGE, "the selected heads"),
        _small(wording.amount(heads), wording.choice(heads.provenance), wording.pair(heads.provenance)),
    )


def _extreme(of: "np.ufunc", numbers: NDArray[np.float64]) -> float:
    value = float(of.reduce(numbers, axis=None, initial=np.nan))
    return 0.0 if np.isnan(value) else value


def _block(*parts: str) -> str:
    return "<div>" + "".join(f"<div>{part}</div>" for part in parts if part) + "</div>"


def _small(*parts: str) -> str:
    text = "; ".join(part for part in parts if part)
    return f"<small>{escape(text)}</small>" if text else ""


def _table(head: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    def cells(kind: str, values: Iterable[object]) -> str:
        return "<tr>" + "".join(f"<{kind}>{escape(str(value))}</{kind}>" for value in values) + "</tr>"

    body = "".join(cells("td", row) for row in rows)
    return f"<table><thead>{cells('th', head)}</thead><tbody>{body}</tbody></table>"


def _map(geometry: Geometry, share: NDArray[np.float64], color: str, label: str) -> str:
    """Layers x heads in shades of one colour, opaque where the share is 1; no cell where it is not a number."""
    layers, heads = geometry.shape
    cell = int(np.clip(_WIDTH // max(heads, 1), _SMALLEST_CELL, _LARGEST_CELL))
    levels = np.where(np.isnan(share), -1, np.rint(np.nan_to_num(share) * _SHADES)).astype(np.int64)
    ground = _path(levels >= 0, 'fill="currentColor" fill-opacity="0.08"')
    shades = "".join(
        _path(levels == level, f'fill="{color}" fill-opacity="{level / _SHADES:.3g}"')
        for level in range(1, _SHADES + 1)
    )
    lines = "".join(f"M{head} {row}v{rows}" for head, row, rows in runs(geometry))
    groups = (
        f'<path d="{lines}" stroke="currentColor" stroke-width="0.1" stroke-opacity="0.6"/>' if lines else ""
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}, layers from top to bottom" '
        f'width="{cell * heads}" height="{cell * layers}" viewBox="0 0 {heads} {layers}" '
        f'shape-rendering="crispEdges">{ground}{shades}{groups}</svg>'
    )


def _path(cells: NDArray[np.bool_], fill: str) -> str:
    """One path around every run of cells of a row, as long as it is."""
    steps = np.diff(np.pad(cells, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = np.nonzero(steps == 1)
    _, ends = np.nonzero(steps == -1)
    path = "".join(
        f"M{start} {row}h{end - start}v1h{start - end}z"
        for row, start, end in zip(rows, starts, ends, strict=True)
    )
    return f'<path d="{path}" {fill}/>' if path else ""
