"""The numbers of a colour bar or an axis."""

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.ticker import FuncFormatter
from numpy.typing import NDArray

from alps import wording

STEPS = (1, 2, 5, 10)


def limits(numbers: NDArray[np.float64]) -> tuple[float, float]:
    """From 0, where nothing has moved, to the highest score; from the lowest where it is below 0."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (min(finite.min(), 0.0), max(finite.max(), 0.0)) if finite.size else (0.0, 0.0)
    return (float(low), float(high)) if low < high else (0.0, 1.0)


@dataclass(frozen=True)
class Scale:
    """Numbers on an axis without their power of ten, which stands in its label."""

    exponent: int

    @classmethod
    def of(cls, limits: tuple[float, float]) -> "Scale":
        """The scale on which the larger limit is a number of few digits."""
        exponent = math.floor(math.log10(max(map(abs, limits))))
        return cls(exponent if exponent < -2 or exponent > 3 else 0)

    @property
    def formatter(self) -> FuncFormatter:
        """Writes the numbers of ticks."""
        return FuncFormatter(lambda number, _: f"{number / 10.0**self.exponent:.4g}".replace("-", "−"))

    def label(self, statistic: str, unit: str = "") -> str:
        """What the axis says of its numbers."""
        power = str(self.exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
        scale = f"10{power} {unit}" if self.exponent else unit
        name = wording.elided(statistic, 24)
        return f"{name} ({scale.strip()})" if scale else name
