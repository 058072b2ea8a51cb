"""Reports: one HTML file with tables, pictures and provenance that needs nothing else to be read.

Needs jinja2 and matplotlib, and is imported only where a report is asked for.
"""

import base64
import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from numpy.typing import NDArray

import alps._alps as _alps
from alps.audits import Audit
from alps.compare import Comparison
from alps.errors import ArgumentError
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores, Kind
from alps.statistics import MEANINGS, UNITS
from alps.visual import image_file, text
from alps.visual.audit_figure import audit_figure
from alps.visual.colours import INK, PAGE
from alps.visual.figures import comparison_figure, scores_figure, set_figure
from alps.visual.head_grid import HeadGrid

_TOP = 50
"""How many heads a report lists when none are selected."""

_PIXELS_PER_INCH = 112


def document(
    content: HeadScores | HeadSet | Comparison | Audit,
    heads: HeadSet | None = None,
    *,
    statistic: str | None = None,
) -> str:
    """A report as an HTML document; see `alps.write_report`."""
    if isinstance(content, HeadScores):
        return render("scores.html", of_scores(content, heads, statistic))
    if heads is not None or statistic is not None:
        raise ArgumentError("heads and a statistic go with scores only")
    if isinstance(content, HeadSet):
        return render("scores.html", _of_set(content))
    if isinstance(content, Audit):
        return render("audit.html", _of_audit(content))
    return render("comparison.html", _of_comparison(content))


def render(template: str, content: Mapping[str, Any]) -> str:
    """A page with this content, from a template of this package."""
    environment = Environment(
        loader=PackageLoader("alps.visual"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(content, version=_alps.__version__, colours=PAGE)


def of_scores(scores: HeadScores, heads: HeadSet | None, statistic: str | None) -> dict[str, Any]:
    """The content of the page of scores."""
    name = scores.ranking_statistic(statistic)
    geometry = scores.geometry
    grid = HeadGrid.of_scores(geometry, scores[name])
    low, high = grid.limits
    names = [name, *(other for other in scores if other != name)]
    pictures: dict[str, Any] = dict.fromkeys(("map", "layers", "ranks"))
    kinds: dict[Kind, str] = {"map": "layers by heads", "layers": "by layer", "ranks": "by rank"}
    if geometry.heads:
        for kind, order in kinds.items():
            figure = scores_figure(scores, heads, kind=kind, statistic=name, titled=False)
            pictures[kind] = picture(figure, f"Scores of the attention heads by {name}, {order}")
    best = f"The {min(_TOP, geometry.heads)} heads that moved most"
    listed = list(text.ranked_cells(scores, name, names, _TOP if heads is None else geometry.heads, heads))
    content = _content(geometry, scores.provenance, heads)
    return (
        content
        | pictures
        | {
            "title": "How far each attention head moved",
            "facts": [*content["facts"], ("ranked by", text.printable(name), "")],
            "statistic": name,
            "lowest": f"{low:.3g}",
            "highest": f"{high:.3g}",
            "blank": int(np.isnan(grid.values).sum()),
            "cut": heads is not None and len(heads) > 0 and all(rank <= len(heads) for rank, *_ in listed),
            "heads_title": best if heads is None else "The selected heads",
            "columns": ["rank", "layer", "head", "K/V group", *names],
            "heads": listed,
            "statistics": [_statistic(other, values) for other, values in scores.items()],
        }
    )


def _of_set(heads: HeadSet) -> dict[str, Any]:
    geometry = heads.geometry
    return _content(geometry, heads.provenance, heads) | {
        "title": "The selected attention heads",
        "map": picture(set_figure(heads, titled=False), "The selected heads, layers by heads")
        if geometry.heads
        else None,
        "layers": None,
        "ranks": None,
        "statistic": None,
        "blank": 0,
        "heads_title": "The selected heads",
        "columns": ["layer", "head", "K/V group"],
        "heads": [[layer, head, geometry.group_of(head, layer)] for layer, head in heads],
        "statistics": [],
    }


def _content(geometry: Geometry, provenance: dict[str, str], heads: HeadSet | None) -> dict[str, Any]:
    """The content that the pages of scores and of a head set have in common."""
    return {
        "checkpoints": text.checkpoints(provenance, 200),
        "facts": _facts(geometry, heads),
        "selected": heads is not None,
        "grouped": geometry.heads_per_group > 1,
        "selection": "" if heads is None else text.selection(heads.provenance),
        "provenance": provenance,
        "geometry": _fields(geometry),
    }


def _of_audit(audit: Audit) -> dict[str, Any]:
    heads = audit.heads
    return {
        "title": "How much of the tuning the chosen heads carry",
        "facts": [
            *_facts(heads.geometry, heads),
            ("loss of the base", f"{audit.base_loss:.4g}", ""),
            ("loss of the tuned model", f"{audit.tuned_loss:.4g}", ""),
            ("carried by all heads", f"{100 * audit.all_heads:.1f} %", "of the difference"),
        ],
        "figure": picture(
            audit_figure(audit, titled=False), "The shares of the chosen heads and of random sets"
        ),
        "trials": [
            [
                what,
                f"{100 * trial.chosen:.1f} %",
                f"{100 * np.median(trial.random):.1f} %",
                f"{trial.rank} of {1 + len(trial.random)}",
                f"{trial.p_value:.3g}",
                f"{trial.p_within_layers:.3g}",
            ]
            for what, trial in (
                ("the tuned rows in the base", audit.sufficiency),
                ("the base's rows in the tuned model", audit.necessity),
            )
        ],
        "map": picture(set_figure(heads, titled=False), "The chosen heads, layers by heads"),
        "provenance": heads.provenance,
        "geometry": _fields(heads.geometry),
    }


def _of_comparison(comparison: Comparison) -> dict[str, Any]:
    geometry = comparison.geometry
    counts = comparison.counts
    several = sorted(np.argwhere(counts > 1).tolist(), key=lambda place: (-counts[place[0], place[1]], place))
    return {
        "title": "The attention heads of several tasks",
        "facts": [
            ("model", geometry.model_type, ""),
            *(
                (name, f"{len(heads):,}", f"of {geometry.heads:,} heads")
                for name, heads in comparison.heads.items()
            ),
        ],
        "pairs": [text.pair_cells(pair) for pair in comparison.pairs],
        "map": picture(comparison_figure(comparison, titled=False), "The heads of each task, layers by heads")
        if geometry.heads
        else None,
        "statistic": comparison.statistic,
        "heads": [
            [
                geometry.layers[row],
                head,
                geometry.group_of(head, geometry.layers[row]),
                int(counts[row, head]),
                ", ".join(name for name, heads in comparison.heads.items() if heads.mask[row, head]),
            ]
            for row, head in several
        ],
        "provenance": {name: heads.provenance for name, heads in comparison.heads.items()},
        "geometry": _fields(geometry),
    }


def _facts(geometry: Geometry, heads: HeadSet | None) -> list[tuple[str, str, str]]:
    """The numbers at the head of a page: the name of each, its value, and a note in small type."""
    layers, across = geometry.shape
    facts = [("model", geometry.model_type, f"{layers} layers × {across} heads")]
    if heads is None:
        return facts
    report = heads.report
    return [
        *facts,
        ("selected heads", f"{report.heads:,}", f"of {report.total_heads:,}"),
        ("their key/value groups", f"{report.key_value_groups:,}", f"of {report.total_key_value_groups:,}"),
        ("their Q/K/V parameters", f"{100 * report.share:.1f} %", f"{report.trainable_parameters:,}"),
    ]


def _statistic(name: str, numbers: NDArray[np.float64]) -> tuple[str, ...]:
    """A row of the table of statistics: name, lowest, median, highest, meaning."""
    finite = numbers[np.isfinite(numbers)]
    summary = [f"{of(finite):.4g}" if finite.size else "" for of in (np.min, np.median, np.max)]
    meaning = MEANINGS.get(name, "")
    if unit := UNITS.get(name):
        meaning += f" ({unit})"
    return name, *summary, meaning


def _fields(geometry: Geometry) -> dict[str, str]:
    fields = geometry.to_fields()
    fields["layers"] = f"{len(geometry.layers)}: {', '.join(map(str, geometry.layers))}"
    return {name.replace("_", " "): str(value) for name, value in fields.items()}


def picture(figure: Figure, alternative: str) -> dict[str, Any]:
    """The figure as an SVG picture inside a data address; its lines are light where the page is dark."""
    width, height = (round(float(inches) * _PIXELS_PER_INCH) for inches in figure.get_size_inches())
    svg = image_file.encode(figure, "svg", transparent=True).decode()
    light, dark = PAGE["ink"]
    style = f"<style>svg{{color:{light}}}@media(prefers-color-scheme:dark){{svg{{color:{dark}}}}}</style>"
    svg = re.sub(r"<svg [^>]*>", lambda start: start[0] + style, svg.replace(INK, "currentColor"), count=1)
    source = "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()
    return {"source": source, "width": width, "height": height, "alternative": alternative}
