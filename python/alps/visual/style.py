"""The type and the number formats of figures."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import ParamSpec, TypeVar

from matplotlib.style import context as style
from matplotlib.ticker import FuncFormatter

from alps.visual.colours import INK
from alps.visual.text import elided

TICK_STEPS = (1, 2, 5, 10)

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
    """Makes a function draw in the style of alps, whatever style the caller has set."""

    @wraps(draw)
    def drawn(*arguments: P.args, **named: P.kwargs) -> R:
        with style(["default", _STYLE]):
            return draw(*arguments, **named)

    return drawn


@dataclass(frozen=True)
class AxisNumbers:
    """Numbers on an axis without their power of ten, which stands in the axis label."""

    exponent: int

    @classmethod
    def within(cls, limits: tuple[float, float]) -> "AxisNumbers":
        """Numbers of few digits for an axis between these limits."""
        exponent = math.floor(math.log10(max(map(abs, limits))))
        return cls(exponent if exponent < -2 or exponent > 3 else 0)

    @property
    def formatter(self) -> FuncFormatter:
        """Writes the numbers of ticks."""
        return FuncFormatter(lambda number, _: f"{number / 10.0**self.exponent:.4g}".replace("-", "−"))

    def label(self, statistic: str, unit: str = "") -> str:
        """The axis label: the statistic, with the power of ten and the unit where there are any."""
        power = str(self.exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        scale = f"10{power} {unit}" if self.exponent else unit
        name = elided(statistic, 28)
        return f"{name} ({scale.strip()})" if scale else name
