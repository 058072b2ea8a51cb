"""Finds the attention heads that carry a task, by comparing a base and a tuned checkpoint.

The method is ALPS (https://arxiv.org/abs/2505.18799). Reading and scoring need no torch.
"""

from alps._alps import __version__
from alps.errors import (
    AlpsError,
    ArgumentError,
    CheckpointError,
    ModelError,
    PairError,
    WeightsError,
)
from alps.geometry import Geometry
from alps.heads import HeadSet, Report
from alps.scan import geometry, scan
from alps.scores import HeadScores
from alps.statistics import STATISTICS

__all__ = [
    "STATISTICS",
    "AlpsError",
    "ArgumentError",
    "CheckpointError",
    "Geometry",
    "HeadScores",
    "HeadSet",
    "ModelError",
    "PairError",
    "Report",
    "WeightsError",
    "__version__",
    "geometry",
    "scan",
]
