"""What a picture of scores shows."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from alps import wording
from alps.drawing.scale import limits
from alps.geometry import Geometry
from alps.heads import HeadSet
from alps.scores import HeadScores


@dataclass(frozen=True)
class View:
    """Scores by one statistic, and the heads to mark."""

    scores: HeadScores
    statistic: str
    heads: HeadSet | None
    titled: bool

    @property
    def geometry(self) -> Geometry:
        """The model that the heads belong to."""
        return self.scores.geometry

    @property
    def numbers(self) -> NDArray[np.float64]:
        """The scores; not-a-number for what cannot be drawn."""
        numbers = self.scores[self.statistic]
        return np.where(np.isfinite(numbers), numbers, np.nan)

    @property
    def range(self) -> tuple[float, float]:
        """What the shades and the axes reach from and to."""
        return limits(self.numbers)

    @property
    def title(self) -> str:
        """What the picture shows."""
        if not self.titled:
            return ""
        return f"How far each attention head moved, by {wording.printable(self.statistic)}"

    @property
    def lines(self) -> list[str]:
        """Where the scores come from, and what the marks are."""
        if not self.titled:
            return []
        provenance = self.scores.provenance
        lines = [
            wording.pair(provenance),
            wording.joined(wording.size(self.geometry), wording.method(provenance)),
        ]
        if self.heads is not None:
            lines.append(
                wording.joined(f"Orange: {wording.amount(self.heads)}", wording.choice(self.heads.provenance))
            )
        if blank := int(np.isnan(self.numbers).sum()):
            lines.append(f"Hatched: {blank:,} without a number")
        return lines
