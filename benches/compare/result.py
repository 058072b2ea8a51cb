"""A line of the table."""

from dataclasses import dataclass

from compare.timing import Spread


@dataclass(frozen=True)
class Bar:
    """What a figure must not pass."""

    limit: float
    least: bool = False
    """Whether it is the lowest that will do, not the highest."""

    def met(self, figure: float) -> bool:
        """Whether a figure will do."""
        return figure >= self.limit if self.least else figure <= self.limit


@dataclass(frozen=True)
class Result:
    """One comparison."""

    row: str
    """The name of the row of comparisons that it belongs to."""
    what: str
    """What alps did."""
    against: str
    """What it is compared with."""
    ours: str
    """What it cost."""
    theirs: str
    """What the other cost."""
    figure: Spread
    """The comparison in one number."""
    unit: str
    """What that number counts, to be written after it."""
    bar: Bar | None = None


def duration(seconds: float) -> str:
    """A time as a person would write it."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def megabytes(count: float) -> str:
    """A number of bytes as a person would write it."""
    return f"{count / 1e6:,.0f} MB"
