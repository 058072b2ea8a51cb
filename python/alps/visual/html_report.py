"""Reports: one HTML file with tables, pictures and provenance that needs nothing else to be read.

Needs jinja2 and matplotlib, and is imported only where a report is asked for.
"""

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure
from numpy.typing import NDArray

import alps._alps as _alps
from alps.audits import Audit
from alps.compare import Comparison
from alps.errors import ArgumentError
from alps.geometry import Geometry, ranges
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.statistics import MEANINGS, NAMES, UNITS
from alps.visual import image_file, text
from alps.visual.audit_figure import audit_figure
from alps.visual.colours import BLUE, INK, PAGE, PAGE_COUNTS, PAGE_SCORES, PALE, SELECTED, SHADES, shades
from alps.visual.figures import chart_of_page, check_same_geometry
from alps.visual.page_map import PageMap

_TOP = 50
"""How many heads a report lists when none are selected."""

_TOGETHER = 2
"""How many statistics stand in one of the further tables of heads."""

_LONGEST = 300
"""Characters of a text from a file."""

_LONGEST_WORD = 16
"""Characters, those of "Kullback-Leibler"."""

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
    script = files("alps.visual").joinpath("templates", "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment.globals |= {
        "version": _alps.__version__,
        "colours": PAGE | _scale("score", PAGE_SCORES) | _scale("count", PAGE_COUNTS),
        "shades": range(SHADES + 1),
        "has_long_word": _has_long_word,
        "script": Markup(script),
        "script_hash": f"sha256-{digest}",
    }
    return environment.get_template(template).render(content)


def _has_long_word(cell: str) -> bool:
    """Whether a cell of a table has a word that a phone may have to break."""
    return max(map(len, cell.split()), default=0) > _LONGEST_WORD


def _scale(name: str, schemes: tuple[tuple[str, ...], tuple[str, ...]]) -> dict[str, tuple[str, str]]:
    """The colours of a scale, light and dark, each by its name in a page."""
    light, dark = map(shades, schemes)
    return {f"{name}{level}": pair for level, pair in enumerate(zip(light, dark, strict=True))}


def of_scores(scores: HeadScores, heads: HeadSet | None, statistic: str | None) -> dict[str, Any]:
    """The content of the page of scores."""
    name = scores.ranking_statistic(statistic)
    geometry = scores.geometry
    if heads is not None:
        check_same_geometry(scores, heads)
    content = _content(geometry, scores.provenance, heads)
    others = [other for other in scores if other != name]
    drawing = PageMap.of_scores(geometry, scores[name], name, heads)
    low, high = drawing.grid.limits
    if geometry.heads:
        content |= {
            "map_drawing": drawing,
            "map_label": f"Scores of the attention heads by {text.statistic(name)}, layers by heads",
            "layers": picture(
                chart_of_page(scores, heads, "layers", name), "Scores of the heads, layer by layer"
            ),
            "ranks": picture(chart_of_page(scores, heads, "ranks", name), "Scores of the heads in order"),
        }
    best = f"The {min(_TOP, geometry.heads)} heads that moved most"
    names = [name, *others]
    listed = list(text.ranked_cells(scores, name, names, _TOP if heads is None else geometry.heads, heads))
    places = ["rank", "layer", "head"]
    return content | {
        "title": "How far each attention head moved",
        "facts": [*content["facts"], ("ranked by", text.statistic(name), _key(name))],
        "lowest": f"{low:.3g}",
        "highest": f"{high:.3g}",
        "heads_title": best if heads is None else "The selected heads",
        "columns": [*places, "K/V group", text.statistic(name)],
        "heads": [row[:5] for row in listed],
        "further": [
            (
                [*places[1:], *map(text.statistic, others[first : first + _TOGETHER])],
                [[*row[1:3], *row[5 + first : 5 + first + _TOGETHER]] for row in listed],
            )
            for first in range(0, len(others), _TOGETHER)
        ],
        "statistics": [_statistic(other, values) for other, values in scores.items()],
    }


def _of_set(heads: HeadSet) -> dict[str, Any]:
    geometry = heads.geometry
    content = _content(geometry, heads.provenance, heads)
    if geometry.heads:
        content |= {
            "map_drawing": PageMap.of_set(heads),
            "map_label": "The selected heads, layers by heads",
        }
    return content | {
        "title": "The selected attention heads",
        "heads_title": "Layer by layer",
        "columns": ["layer", "head", "K/V group"],
        "heads": [[layer, head, geometry.group_of(head, layer)] for layer, head in heads],
    }


def _content(geometry: Geometry, provenance: dict[str, str], heads: HeadSet | None) -> dict[str, Any]:
    """The content that the pages of scores and of a head set have in common; what only one has is empty."""
    return {
        "checkpoints": text.checkpoints(provenance),
        "facts": _facts(geometry, heads),
        "map_drawing": None,
        "layers": None,
        "ranks": None,
        "lowest": "",
        "highest": "",
        "selection": "" if heads is None else text.selection(heads.provenance),
        "further": [],
        "statistics": [],
        "provenance": _origin(provenance),
        "geometry": _fields(geometry),
    }


def _of_audit(audit: Audit) -> dict[str, Any]:
    heads = audit.heads
    trials = audit.sufficiency, audit.necessity
    return {
        "title": "How much of the tuning the chosen heads carry",
        "facts": [
            *_facts(heads.geometry, heads),
            ("loss of the base", f"{audit.base_loss:.4g}", ""),
            ("loss of the tuned model", f"{audit.tuned_loss:.4g}", ""),
            ("carried by all heads", f"{100 * audit.all_heads:.1f} %", "of the difference"),
        ],
        "figure": picture(
            audit_figure(audit, of_page=True), "The shares of the chosen heads and of random sets"
        ),
        "trials": [
            ("share of the tuning", *(f"{100 * trial.chosen:.1f} %" for trial in trials)),
            ("random sets, median", *(f"{100 * np.median(trial.random):.1f} %" for trial in trials)),
            ("rank", *(f"{trial.rank} of {1 + len(trial.random)}" for trial in trials)),
            ("p", *(f"{trial.p_value:.3g}" for trial in trials)),
            ("p within the same layers", *(f"{trial.p_within_layers:.3g}" for trial in trials)),
        ],
        "map_drawing": PageMap.of_set(heads),
        "provenance": _origin(heads.provenance),
        "geometry": _fields(heads.geometry),
    }


def _of_comparison(comparison: Comparison) -> dict[str, Any]:
    geometry = comparison.geometry
    counts = comparison.counts
    several = sorted(np.argwhere(counts > 1).tolist(), key=lambda place: (-counts[place[0], place[1]], place))
    names = {name: text.elided(name, 60) for name in comparison.names}
    return {
        "title": "The attention heads of several tasks",
        "facts": [
            _model(geometry),
            *(
                (names[name], f"{len(heads):,}", f"of {geometry.heads:,} heads")
                for name, heads in comparison.heads.items()
            ),
        ],
        "pairs": [
            (f"{names[pair.first]}, {names[pair.second]}", *text.pair_cells(pair)[2:])
            for pair in comparison.pairs
        ],
        "maps": list(_maps(comparison, names)) if geometry.heads else [],
        "statistic": "" if comparison.statistic is None else text.statistic(comparison.statistic),
        "heads": [
            [
                geometry.layers[row],
                head,
                geometry.group_of(head, geometry.layers[row]),
                int(counts[row, head]),
                ", ".join(names[name] for name, heads in comparison.heads.items() if heads.mask[row, head]),
            ]
            for row, head in several
        ],
        "provenance": {
            f"Where {names[name]} comes from": _origin(heads.provenance)
            for name, heads in comparison.heads.items()
        },
        "geometry": _fields(geometry),
    }


def _maps(comparison: Comparison, names: Mapping[str, str]) -> Iterable[tuple[PageMap, str, str, str]]:
    """A map for each task and one of all, each with its title and the limits of its shades."""
    for name, heads in comparison.heads.items():
        if name in comparison.scores:
            assert comparison.statistic is not None
            scores = comparison.scores[name]
            drawing = PageMap.of_scores(comparison.geometry, scores, comparison.statistic, heads)
            low, high = drawing.grid.limits
            yield drawing, names[name], f"{low:.3g}", f"{high:.3g}"
        else:
            yield PageMap.of_set(heads), names[name], "", ""
    yield PageMap.of_counts(comparison), "all tasks", "0", f"{len(names)} tasks"


def _facts(geometry: Geometry, heads: HeadSet | None) -> list[tuple[str, str, str]]:
    """The numbers at the head of a page: the name of each, its value, and a note in small type."""
    facts = [_model(geometry)]
    if heads is None:
        return facts
    report = heads.report
    return [
        *facts,
        ("selected heads", f"{report.heads:,}", f"of {report.total_heads:,}"),
        ("their key/value groups", f"{report.key_value_groups:,}", f"of {report.total_key_value_groups:,}"),
        ("their Q/K/V parameters", f"{100 * report.share:.1f} %", f"{report.trainable_parameters:,}"),
    ]


def _model(geometry: Geometry) -> tuple[str, str, str]:
    layers, across = geometry.shape
    return "model", text.elided(geometry.model_type, 40), f"{layers} layers × {across} heads"


def _key(statistic: str) -> str:
    """The key of a statistic where people call it something else."""
    return statistic if statistic in NAMES else ""


def _statistic(name: str, numbers: NDArray[np.float64]) -> tuple[str, ...]:
    """The cells of the table of statistics: name, key, lowest, median, highest, meaning."""
    finite = numbers[np.isfinite(numbers)]
    summary = [f"{of(finite):.4g}" if finite.size else "" for of in (np.min, np.median, np.max)]
    meaning = MEANINGS.get(name, "")
    if unit := UNITS.get(name):
        meaning += f" ({unit})"
    return text.statistic(name), _key(name), *summary, meaning


def _origin(provenance: Mapping[str, str]) -> dict[str, str]:
    """The provenance for people, without how heads were selected."""
    return {
        text.elided(name.replace("_", " "), 60): text.elided(value, _LONGEST)
        for name, value in provenance.items()
        if name not in text.SELECTION
    }


def _fields(geometry: Geometry) -> dict[str, str]:
    fields = geometry.to_fields()
    fields["layers"] = f"{len(geometry.layers)}: {ranges(geometry.layers)}"
    return {name.replace("_", " "): text.elided(str(value), _LONGEST) for name, value in fields.items()}


def picture(figure: Figure, alternative: str) -> Markup:
    """The figure as an SVG element, whose colours are those of the page."""
    width, height = (round(float(inches) * _PIXELS_PER_INCH) for inches in figure.get_size_inches())
    svg = image_file.encode(figure, "svg", transparent=True).decode()
    for colour, name in ((INK, "ink"), (SELECTED, "accent"), (PALE, "pale"), (BLUE, "blue")):
        svg = svg.replace(colour, f"var(--{name})")
    body = re.sub(r"\s*<metadata>.*?</metadata>", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    view = re.search(r'viewBox="[^"]*"', body)
    assert view is not None
    # A style sheet within an element is one of the whole page.
    body = re.sub(r"\s*<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", body, flags=re.DOTALL)
    start = Markup(
        '<svg role="img" aria-label="{}" width="{}" height="{}" stroke-linejoin="round" stroke-linecap="butt" '
    ).format(alternative, width, height)
    # Several figures in one page must not have names in common.
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    body = re.sub(r'\bid="', f'id="{own}-', body)
    body = re.sub(r'(href="|url\()#', rf"\1#{own}-", body)
    return start + Markup(view[0]) + Markup(body[body.index(">", body.index("<svg")) :])
