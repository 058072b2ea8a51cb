"""Finds the attention heads that carry a task, by comparing a base and a tuned checkpoint.

The method is ALPS (https://arxiv.org/abs/2505.18799). Reading and scoring need no torch.
"""

from __future__ import annotations

import sys

from alps.peft_import import register_with_peft

# The module typing takes longer to import than all that this one needs, and until the command `alps` has begun, Ctrl-C
# prints a traceback.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    from alps.live import audit, grafted, measure
    from alps.parts import Part
    from alps.report import write_report
    from alps.scan import geometry, merge, scan, scan_part
    from alps.scores import HeadScores
    from alps.sources import RemotePath
    from alps.statistics import STATISTICS
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

_NAMES = {
    "_alps": "__version__",
    "audits": "Audit Trial",
    "compare": "Comparison compare",
    "errors": "AlpsError AlpsWarning ArgumentError CheckpointError MissingPackageError ModelError PairError "
    "UnchangedError WeightsError WorkerError",
    "geometry": "Geometry LayerSizes",
    "graft": "Graft graft",
    "heads": "HeadSet Report",
    "inspection": "Inspection Layout inspect layouts",
    "live": "audit grafted measure",
    "parts": "Part",
    "report": "write_report",
    "scan": "geometry merge scan scan_part",
    "scores": "HeadScores",
    "sources": "RemotePath",
    "statistics": "STATISTICS",
    "training": "AlpsConfig RestrictCallback Restriction release restrict",
}
"""The names that each module has. It is imported when one of them is first asked for."""

_MODULES = {name: f"alps.{module}" for module, names in _NAMES.items() for name in names.split()}
_NEED_TRAINING = ("alps.live", "alps.training")


class _Package(type(sys)):  # type: ignore[misc]  # the type of modules
    def __setattr__(self, name: str, value: Any) -> None:
        # The import of the module alps.scan would put it in the place of the function.
        if not (name in _MODULES and isinstance(value, type(sys))):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
register_with_peft()


def __getattr__(name: str) -> Any:
    from importlib import import_module

    if name not in _MODULES:
        if name in _NAMES:
            return import_module(f"alps.{name}")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        module = import_module(_MODULES[name])
    except ImportError as error:
        if _MODULES[name] not in _NEED_TRAINING:
            raise
        raise ImportError(
            f"alps.{name} needs more packages: pip install 'alps-heads[train]' ({error})"
        ) from error
    return globals().setdefault(name, getattr(module, name))


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
