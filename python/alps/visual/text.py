"""Scores and head sets in words, for figures, reports and notebooks."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from alps.compare import Pair
from alps.escaping import escape
from alps.geometry import Geometry, LayerSizes, ranges
from alps.heads import HeadSet
from alps.scores import HeadScores
from alps.statistics import NAMES

_ELLIPSIS = "…"


def elided(text: str, longest: int) -> str:
    """The end of `text`, at most `longest` characters, without any that has no shape: paths differ at their ends."""
    text = escape(text if len(text) <= longest else _ELLIPSIS + text[1 - longest :])
    return text if len(text) <= longest else _ELLIPSIS + text[1 - longest :]


def statistic(name: str) -> str:
    """What people call a statistic."""
    return NAMES.get(name) or elided(name, 40)


def joined(*phrases: str) -> str:
    """The phrases that are not empty, in one sentence."""
    return "; ".join(phrase for phrase in phrases if phrase)


def checkpoints(provenance: Mapping[str, str], longest: int = 60) -> str:
    """The base and the tuned checkpoint; empty where the provenance does not name both."""
    if not {"base", "tuned"} <= provenance.keys():
        return ""
    return f"{elided(provenance['base'], longest)} → {elided(provenance['tuned'], longest)}"


def method(provenance: Mapping[str, str]) -> str:
    """The form and the temperature, as far as they are known."""
    known = ((name, provenance[name]) for name in ("form", "temperature") if name in provenance)
    return ", ".join(f"{name} {elided(value.removesuffix('.0'), 20)}" for name, value in known)


SELECTION = ("rule", "statistic", "ratio", "budget", "seed")
"""The fields of the provenance that say how heads were selected."""


def selection(provenance: Mapping[str, str]) -> str:
    """How heads were selected, as far as it is known."""
    return ", ".join(f"{name} {elided(provenance[name], 30)}" for name in SELECTION if name in provenance)


def model(geometry: Geometry) -> str:
    """The model type and its number of layers, heads and key/value groups."""
    layers, heads = geometry.shape
    groups = geometry.key_value_heads
    return f"{elided(geometry.model_type, 30)}: {layers} layers × {heads} heads, {groups} key/value groups"


def head_set(heads: HeadSet) -> str:
    """How many heads a set has, and how they were selected."""
    return joined(heads.report.summary, selection(heads.provenance))


def ranked_cells(
    scores: HeadScores, by: str, names: Iterable[str], count: int, heads: HeadSet | None = None
) -> Iterator[list[Any]]:
    """A row for each of the `count` best heads by a statistic, or for those that are in `heads`.

    Rank, layer, head, key/value group, and the scores by the statistics of these names.
    """
    geometry = scores.geometry
    for rank, (layer, head, _) in enumerate(scores.top(count, by), start=1):
        row = geometry.row_of(layer)
        if heads is None or heads.mask[row, head]:
            numbers = (f"{scores[name][row, head]:.4g}" for name in names)
            yield [rank, layer, head, geometry.group_of(head, layer), *numbers]


def layer_rows(geometry: Geometry) -> Iterator[tuple[str, ...]]:
    """A row for all layers of the same sizes: their numbers, heads, groups, and the rows and entries of Q, K and V."""
    layers: dict[LayerSizes, list[int]] = {}
    for layer, sizes in zip(geometry.layers, geometry.sizes, strict=True):
        layers.setdefault(sizes, []).append(layer)
    for sizes, numbers in layers.items():
        matrices = (
            (sizes.query_size, sizes.query_width),
            (sizes.key_size, sizes.key_width),
            (sizes.value_size, sizes.value_width),
        )
        heads, groups = str(sizes.query_heads), str(sizes.key_value_heads)
        shapes = (f"{rows} x {width}" if rows else "-" for rows, width in matrices)
        yield ranges(numbers), heads, groups, *shapes


def pair_cells(pair: Pair) -> tuple[str, ...]:
    """A row of the table of a comparison: two tasks, and the numbers that say how alike they are."""
    correlation = "" if math.isnan(pair.rank_correlation) else f"{pair.rank_correlation:.3f}"
    numbers = f"{pair.shared:,}", f"{pair.by_chance:,.1f}", f"{pair.jaccard:.3f}", correlation
    return elided(pair.first, 60), elided(pair.second, 60), *numbers
