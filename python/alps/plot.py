"""Figures of scores, head sets and comparisons, for callers that use no method; needs matplotlib."""

from alps.scores import Kind
from alps.visual.figures import comparison_figure, scores_figure, set_figure

__all__ = ["Kind", "comparison_figure", "scores_figure", "set_figure"]
