"""The JSON documents that the command prints with --json."""

import contextlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from alps.compare import Comparison
from alps.heads import HeadSet
from alps.inspection import Inspection
from alps.remote import store
from alps.scores import HEADS_MOVED, HeadScores

_NUMBERS: dict[str, Callable[[str], float]] = {
    "temperature": float,
    "ratio": float,
    "budget": int,
    "seed": int,
    HEADS_MOVED: int,
    **{f"{role}_{what}": int for role in ("base", "tuned") for what in ("bytes", "file_count")},
}
"""The fields of a provenance that are numbers."""


def document(content: HeadScores | HeadSet | Comparison | Inspection) -> dict[str, Any]:
    """What a command found. A head set is as it is saved, with its report, and with numbers in its provenance."""
    match content:
        case HeadScores():
            return {
                "geometry": content.geometry.to_fields(),
                "provenance": with_numbers(content.provenance),
                "statistics": {name: values.tolist() for name, values in content.items()},
            }
        case HeadSet():
            report = content.report
            saved: dict[str, Any] = json.loads(content.to_json())
            found = {"provenance": with_numbers(content.provenance)}
            return saved | found | {"report": asdict(report) | {"share": report.share}}
        case Comparison():
            return {
                "statistic": content.statistic,
                "heads": {name: document(heads) for name, heads in content.heads.items()},
                "pairs": [asdict(pair) for pair in content.pairs],
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


def with_numbers(provenance: Mapping[str, str]) -> dict[str, Any]:
    """Where something comes from, with numbers where files have their text; other text stays as it is."""
    fields: dict[str, Any] = dict(provenance)
    for name, number in _NUMBERS.items():
        with contextlib.suppress(KeyError, ValueError):
            fields[name] = number(provenance[name])
    return fields
