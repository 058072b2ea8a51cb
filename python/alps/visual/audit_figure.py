"""The figure of an audit: the chosen heads among the random sets.

Needs matplotlib, and is imported only where a figure is asked for.
"""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from alps.audits import Audit, Trial
from alps.visual import text
from alps.visual.colours import INK, PALE, SELECTED
from alps.visual.figure_layout import LEFT, RIGHT, FigureLayout
from alps.visual.style import in_our_style

# Inches.
_WIDTH, _PAGE_WIDTH, _HEIGHT, _GAP, _BELOW = 5.6, 2.5, 1.15, 0.75, 0.6
_LABELS = 1.1

_TITLES = {
    "sufficiency": "The tuned rows of the heads in the base",
    "necessity": "The base's rows of the heads in the tuned model",
}


@in_our_style
def audit_figure(audit: Audit, *, of_page: bool = False) -> Figure:
    """A picture of an audit; see `Audit.plot`. That of a page has no title and is narrow enough for a phone."""
    trials = (audit.sufficiency, audit.necessity)
    lines = [] if of_page else [text.model(audit.heads.geometry), audit.heads.report.summary]
    title = "" if of_page else "How much of the tuning the chosen heads carry"
    height = len(trials) * (_HEIGHT + _GAP) + _BELOW
    left, width = (_LABELS, _PAGE_WIDTH) if of_page else (LEFT + _LABELS, _WIDTH)
    layout = FigureLayout.titled(left + width + RIGHT, height, title, lines)
    shares = np.concatenate([[0.0, it.chosen, *it.random, *it.matched] for it in trials])
    low, high = float(shares.min()), float(shares.max())
    margin = 0.06 * (high - low or 1.0)
    for number, trial in enumerate(trials):
        top = number * (_HEIGHT + _GAP) + 0.35
        axes = layout.axes(left, top, width, _HEIGHT)
        layout.heading(RIGHT, top, f"{_TITLES[trial.name]}: p = {trial.p_value:.2g}")
        axes.set_xlim(low - margin, high + margin)
        _draw(axes, trial)
        if trial is trials[-1]:
            axes.set_xlabel("share of the tuning", labelpad=2)
    return layout.figure


def _draw(axes: Axes, trial: Trial) -> None:
    """A row of dots for each kind of random sets, and a line for the chosen heads."""
    generator = np.random.default_rng(0)
    for row, values in enumerate((trial.random, trial.matched)):
        heights = row + generator.uniform(-0.28, 0.28, len(values))
        axes.scatter(values, heights, s=9, color=PALE, alpha=0.6, linewidths=0).set_gid("random")
        axes.vlines(np.median(values), row - 0.36, row + 0.36, color=INK, linewidth=1.2)
    axes.axvline(trial.chosen, color=SELECTED, linewidth=1.6).set_gid("chosen")
    axes.set_ylim(1.5, -0.5)
    axes.set_yticks([0, 1], ["random sets", "in the same layers"])
    axes.xaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g} %"))
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)
