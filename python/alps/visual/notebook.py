"""What a notebook shows of the objects of alps: HTML that needs no other package.

Text and lines have the colour of the surrounding text, and nothing has a ground, so that every theme suits.
"""

from collections.abc import Iterable, Iterator
from html import escape
from typing import TYPE_CHECKING

import numpy as np

from alps.audits import Audit
from alps.compare import Comparison
from alps.heads import HeadSet, Report
from alps.inspection import Inspection, Layout
from alps.scores import HeadScores
from alps.statistics import DEFAULT
from alps.visual import text
from alps.visual.colours import BLUE, SELECTED, SHADES
from alps.visual.page_map import PageMap

if TYPE_CHECKING:
    from alps.training import Restriction

_TOP, _STATISTICS = 5, 4
_LONGEST = 60
"""Characters of a text from a file in a table."""
_SPOTS = 1024
"""Places of a map that say something where the pointer rests: more would make large notebooks of large models."""
_SIZE, _LEFT, _BELOW = 0.75, 34, 30
"""The size of a map beside that of a report, and pixels for the numbers of its layers and heads."""


def scores_html(scores: HeadScores) -> str:
    """The geometry, a map by the statistic that ranks heads, the best heads, where the scores come from."""
    name = DEFAULT if DEFAULT in scores else scores.statistics[0]
    geometry = scores.geometry
    drawing = PageMap.of_scores(geometry, scores[name], name)
    low, high = drawing.grid.limits
    names = [name, *(other for other in scores if other != name)]
    shown, left = names[:_STATISTICS], names[_STATISTICS:]
    rows = (cells for _, *cells in text.ranked_cells(scores, name, shown, _TOP))
    return _block(
        f"<b>HeadScores</b> {escape(text.model(geometry))}",
        _map(drawing, f"heads by {text.statistic(name)}"),
        _small(f"{text.statistic(name)}: stronger is higher, from {low:.3g} to {high:.3g}"),
        _table(("layer", "head", "K/V group", *(text.elided(it, _LONGEST) for it in shown)), rows),
        _small(f"also: {', '.join(text.elided(other, _LONGEST) for other in left)}" if left else ""),
        _small(text.checkpoints(scores.provenance), text.method(scores.provenance)),
    )


def set_html(heads: HeadSet) -> str:
    """The geometry, a map of the heads, how many they are, how they were selected."""
    return _block(
        f"<b>HeadSet</b> {escape(text.model(heads.geometry))}",
        _map(PageMap.of_set(heads), "the selected heads"),
        _small(text.head_set(heads), text.checkpoints(heads.provenance)),
    )


def report_html(report: Report) -> str:
    """How many heads, key/value groups and parameters a set has, and the model."""
    counts = (
        ("heads", report.heads, report.total_heads),
        ("key/value groups", report.key_value_groups, report.total_key_value_groups),
        ("Q/K/V parameters", report.trainable_parameters, report.total_parameters),
    )
    rows = (
        (what, f"{part:,}", f"{total:,}", f"{100 * part / total:.1f} %" if total else "")
        for what, part, total in counts
    )
    return _block("<b>Report</b>", _table(("", "selected", "of", "share"), rows))


def comparison_html(comparison: Comparison) -> str:
    """How alike every two tasks are, and a map of how many tasks select each head."""
    columns = ("first", "second", "shared heads", "shared by chance", "Jaccard overlap", "rank correlation")
    drawing = PageMap.of_counts(comparison)
    return _block(
        f"<b>Comparison</b> {escape(text.model(comparison.geometry))}",
        _table(columns, map(text.pair_cells, comparison.pairs)),
        _map(drawing, "how many tasks select each head"),
        _small(f"stronger: selected by more tasks, from 0 to {len(comparison.names)}"),
    )


def audit_html(audit: Audit) -> str:
    """The shares of the tuning that the chosen heads and random sets carry."""
    rows = (
        (
            trial.name,
            f"{100 * trial.chosen:.1f} %",
            f"{100 * np.median(trial.random):.1f} %",
            f"{trial.rank} of {1 + len(trial.random)}",
            f"{trial.p_value:.3g}",
            f"{trial.p_within_layers:.3g}",
        )
        for trial in (audit.sufficiency, audit.necessity)
    )
    return _block(
        f"<b>Audit</b> {escape(audit.heads.report.summary)}",
        _table(("", "share of the tuning", "random sets", "rank", "p", "p within the same layers"), rows),
        _small(
            f"loss: base {audit.base_loss:.4g}, tuned {audit.tuned_loss:.4g}",
            f"the Q/K/V rows of all heads carry {100 * audit.all_heads:.1f} % of the difference",
        ),
    )


def inspection_html(found: Inspection) -> str:
    """What a scan would read, layer by layer, and what it leaves out."""
    geometry = found.geometry
    formats = ", ".join(sorted({module.dtype for module in found.modules}))
    return _block(
        f"<b>Inspection</b> {escape(text.model(geometry))}",
        _table(("layers", "heads", "groups", "query", "key", "value"), text.layer_rows(geometry)),
        _small(
            f"component {geometry.component}, layout {text.elided(geometry.layout, 30)}, {formats}",
            f"{found.bytes:,} of {found.weight_bytes:,} bytes to read from {text.elided(found.files, _LONGEST)}",
            "" if found.quantisation is None else f"quantised: {text.elided(found.quantisation, _LONGEST)}",
        ),
        *(
            _small(f"left out: {text.elided(what, _LONGEST)}: {text.elided(why, 2 * _LONGEST)}")
            for what, why in found.left_out
        ),
    )


def layouts_html(layouts: Iterable[Layout]) -> str:
    """The layouts with their model types."""
    rows = ((layout.name, layout.description, "; ".join(_types(layout))) for layout in layouts)
    return _block(_table(("layout", "description", "model types"), rows))


def _types(layout: Layout) -> Iterator[str]:
    for component, types in layout.model_types.items():
        yield f"{component}: {', '.join(types)}"


def restriction_html(restriction: "Restriction") -> str:
    """How many parameters of each kind train, and the heads of each layer."""
    counts = [(kind, count, restriction.frozen[kind]) for kind, count in restriction.trainable.items()]
    counts.append(("total", sum(restriction.trainable.values()), sum(restriction.frozen.values())))
    layers = (
        (layer, ", ".join(map(str, heads)), ", ".join(map(str, restriction.key_value_groups[layer])))
        for layer, heads in restriction.heads.items()
    )
    heads = _table(("layer", "heads", "key/value groups"), layers)
    return _block(
        f"<b>Restriction</b> {100 * restriction.share:.1f} % of the parameters train",
        _table(("", "trainable", "frozen"), ((kind, f"{a:,}", f"{b:,}") for kind, a, b in counts)),
        f"<details><summary>the heads that train</summary>{heads}</details>" if restriction.heads else "",
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


def _map(drawing: PageMap, label: str) -> str:
    """An SVG in shades of one colour, opaque for the last shade; no cell where there is no number."""
    if not drawing.geometry.heads:
        return ""
    rows, columns = drawing.geometry.shape
    width, height = (round(_SIZE * size) for size in (drawing.width, drawing.height))
    color = SELECTED if drawing.counts else BLUE
    shades = "".join(
        f'<path d="{path}" fill="{color}" fill-opacity="{level / SHADES:.3g}"/>'
        if level
        else f'<path d="{path}" fill="currentColor" fill-opacity="0.06"/>'
        for level, path in drawing.shades
    )
    spots = "".join(
        f'<rect x="{spot.first}" y="{spot.row}" width="{spot.heads}" height="1"><title>{escape(spot.says)}</title></rect>'
        for spot in drawing.spots(_SPOTS)
    )
    marks = f'<path d="{drawing.marks}" fill="{SELECTED}"/>' if drawing.marks else ""
    groups = (
        f'<path d="{drawing.groups}" stroke="currentColor" stroke-width="0.08" stroke-opacity="0.5"/>'
        if drawing.groups
        else ""
    )
    return (
        f'<svg role="img" aria-label="{escape(label)}, layers from top to bottom" '
        f'width="{_LEFT + width}" height="{height + _BELOW}" viewBox="0 0 {_LEFT + width} {height + _BELOW}" '
        f'style="max-width: 100%; height: auto">'
        f'<svg x="{_LEFT}" width="{width}" height="{height}" viewBox="0 0 {columns} {rows}" '
        f'preserveAspectRatio="none" shape-rendering="crispEdges">{shades}{marks}{groups}'
        f'<g fill="none" pointer-events="all">{spots}</g></svg>'
        f'<g fill="currentColor" fill-opacity="0.7" font-size="10" font-family="sans-serif">'
        f"{''.join(_axes(drawing, width, height))}</g></svg>"
    )


def _axes(drawing: PageMap, width: int, height: int) -> Iterator[str]:
    """The numbers of the layers and of the heads, and what they are."""
    for label in drawing.rows:
        y = height * label.place / 100 + 3.5
        yield f'<text x="{_LEFT - 4}" y="{y:.1f}" text-anchor="end">{label.number}</text>'
    for label in drawing.columns:
        x = _LEFT + width * label.place / 100
        yield f'<text x="{x:.1f}" y="{height + 12}" text-anchor="middle">{label.number}</text>'
    yield f'<text x="{_LEFT + width / 2:.1f}" y="{height + 25}" text-anchor="middle">head</text>'
    yield f'<text transform="translate(9 {height / 2:.1f}) rotate(-90)" text-anchor="middle">layer</text>'
