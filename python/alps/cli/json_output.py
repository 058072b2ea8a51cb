"""The JSON documents that the command prints with --json."""

import json
import math
from dataclasses import asdict
from typing import Any

from alps.compare import Comparison
from alps.heads import HeadSet
from alps.inspection import Inspection
from alps.remote import store
from alps.scores import HeadScores


def document(content: HeadScores | HeadSet | Comparison | Inspection) -> dict[str, Any]:
    """What a command found, of types that JSON has; a head set is as it is saved, with its report."""
    match content:
        case HeadScores():
            statistics = {
                name: [[_number(value) for value in row] for row in values.tolist()]
                for name, values in content.items()
            }
            return {
                "geometry": content.geometry.to_fields(),
                "provenance": content.provenance,
                "statistics": statistics,
            }
        case HeadSet():
            report = content.report
            saved: dict[str, Any] = json.loads(content.to_json())
            return saved | {"report": asdict(report) | {"share": report.share}}
        case Comparison():
            return {
                "statistic": content.statistic,
                "heads": {name: document(heads) for name, heads in content.heads.items()},
                "pairs": [
                    asdict(pair) | {"rank_correlation": _number(pair.rank_correlation)}
                    for pair in content.pairs
                ],
            }
        case Inspection():
            return {
                "geometry": content.geometry.to_fields(),
                "modules": [asdict(module) for module in content.modules],
                "left_out": [{"what": what, "why": why} for what, why in content.left_out],
                "bytes": content.bytes,
                "weight_files": list(content.weight_files),
                "weight_bytes": content.weight_bytes,
                "quantisation": content.quantisation,
            }


def fetched() -> dict[str, int]:
    """What this process has fetched: requests, repeated ones, bytes, and the bytes of all files of weights."""
    return asdict(store.TOTAL)


def _number(value: float) -> float | None:
    """`value`, or None where it is not finite, since JSON has no such number."""
    return value if math.isfinite(value) else None
