"""Finds the attention heads that carry a task, by comparing a base and a tuned checkpoint.

The method is ALPS (https://arxiv.org/abs/2505.18799). Reading and scoring need no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from alps._alps import __version__
from alps.audits import Audit, Trial
from alps.compare import Comparison, compare
from alps.errors import (
    AlpsError,
    AlpsWarning,
    ArgumentError,
    CheckpointError,
    MissingPackageError,
    ModelError,
    PairError,
    UnchangedError,
    WeightsError,
    WorkerError,
)
from alps.geometry import Geometry, LayerSizes
from alps.graft import Graft, graft
from alps.heads import HeadSet, Report
from alps.inspection import Inspection, Layout, inspect, layouts
from alps.parts import Part
from alps.peft_import import register_with_peft
from alps.report import write_report
from alps.scan import geometry, merge, scan, scan_part
from alps.scores import HeadScores
from alps.sources import RemotePath
from alps.statistics import STATISTICS

if TYPE_CHECKING:
    from alps.live import audit, grafted, measure
    from alps.training import AlpsConfig, RestrictCallback, Restriction, release, restrict

__all__ = [
    "STATISTICS",
    "AlpsConfig",
    "AlpsError",
    "AlpsWarning",
    "ArgumentError",
    "Audit",
    "CheckpointError",
    "Comparison",
    "Geometry",
    "Graft",
    "HeadScores",
    "HeadSet",
    "Inspection",
    "LayerSizes",
    "Layout",
    "MissingPackageError",
    "ModelError",
    "PairError",
    "Part",
    "RemotePath",
    "Report",
    "RestrictCallback",
    "Restriction",
    "Trial",
    "UnchangedError",
    "WeightsError",
    "WorkerError",
    "__version__",
    "audit",
    "compare",
    "geometry",
    "graft",
    "grafted",
    "inspect",
    "layouts",
    "measure",
    "merge",
    "release",
    "restrict",
    "scan",
    "scan_part",
    "write_report",
]

_LAZY = {
    "alps.live": ("audit", "grafted", "measure"),
    "alps.training": ("AlpsConfig", "RestrictCallback", "Restriction", "release", "restrict"),
}
"""What is imported when it is first asked for, since it needs torch, transformers and PEFT: names by package."""


register_with_peft()


def __getattr__(name: str) -> Any:
    package = next((package for package, names in _LAZY.items() if name in names), None)
    if package is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(package)
    except ImportError as error:
        raise ImportError(
            f"alps.{name} needs more packages: pip install 'alps-heads[train]' ({error})"
        ) from error
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
