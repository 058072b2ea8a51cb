"""The JSON documents that the command prints with --json."""

import json
import math
from dataclasses import asdict
from typing import Any

from alps.compare import Comparison
from alps.heads import HeadSet
from alps.inspection import Inspection
from alps.scores import HeadScores


def scores_document(scores: HeadScores) -> dict[str, Any]:
    """Scores with their geometry and provenance."""
    return {
        "geometry": scores.geometry.to_fields(),
        "provenance": scores.provenance,
        "statistics": {
            name: [[_number(value) for value in row] for row in array.tolist()]
            for name, array in scores.items()
        },
    }


def heads_document(heads: HeadSet) -> dict[str, Any]:
    """A head set as it is saved, with its report."""
    report = heads.report
    document: dict[str, Any] = json.loads(heads.to_json())
    return document | {"report": asdict(report) | {"share": report.share}}


def comparison_document(comparison: Comparison) -> dict[str, Any]:
    """The heads of every task, and every pair of tasks."""
    return {
        "statistic": comparison.statistic,
        "heads": {name: heads_document(heads) for name, heads in comparison.heads.items()},
        "pairs": [
            asdict(pair) | {"rank_correlation": _number(pair.rank_correlation)} for pair in comparison.pairs
        ],
    }


def inspection_document(found: Inspection) -> dict[str, Any]:
    """What a scan would read, and what it leaves out."""
    return {
        "geometry": found.geometry.to_fields(),
        "modules": [asdict(module) for module in found.modules],
        "left_out": [{"what": what, "why": why} for what, why in found.left_out],
        "bytes": found.bytes,
        "quantisation": found.quantisation,
    }


def _number(value: float) -> float | None:
    """`value`, or null where it is not finite, since JSON has no such number."""
    return value if math.isfinite(value) else None
