"""The colours and the type of pictures."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

from matplotlib.style import context as style

INK = "#1b1f24"
"""The colour of everything but data, and of nothing else: a report takes its own in its place."""

BORDER = "#2c3238"
"""Lines over a map, which stay dark where a report is light on dark."""

SCORES = "Blues"
"""One hue from pale to dark, which every kind of sight and a grey print keep in order."""

SELECTED = "#d9480f"
"""An orange: the hue that the common kinds of colour blindness keep farthest from blue."""

PALE = "#8a9099"
"""Heads beside those that are selected."""

FAINT = "#e6eaee"
"""Cells beside those that are filled."""

_STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "text.color": INK,
    "text.parse_math": False,
    "axes.labelcolor": INK,
    "axes.labelsize": 8,
    "axes.edgecolor": INK,
    "axes.linewidth": 0.6,
    "axes.facecolor": "none",
    "figure.facecolor": "white",
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.pad": 2.5,
    "ytick.major.pad": 2.5,
}

P = ParamSpec("P")
R = TypeVar("R")


def in_our_style(draw: Callable[P, R]) -> Callable[P, R]:
    """Draws the same whatever style the caller has set, and leaves the caller's as it was."""

    @wraps(draw)
    def drawn(*arguments: P.args, **named: P.kwargs) -> R:
        with style(["default", _STYLE]):
            return draw(*arguments, **named)

    return drawn
