"""The result of one comparison: a row of the table."""

from dataclasses import dataclass

from compare.timing import Spread


@dataclass(frozen=True)
class Target:
    """The limit that a figure has to keep."""

    limit: float
    least: bool = False
    """Whether the limit is the lowest acceptable figure, not the highest."""

    def met(self, figure: float) -> bool:
        """Tells whether a figure keeps the limit."""
        return figure >= self.limit if self.least else figure <= self.limit


@dataclass(frozen=True)
class Result:
    """One comparison."""

    row: str
    """The name of the comparison in `ROWS`."""
    what: str
    """The scan."""
    against: str
    """What the scan is compared with."""
    ours: str
    """The time or memory of the scan."""
    theirs: str
    """The time or memory of the other program."""
    figure: Spread
    """The ratio or difference of the two."""
    unit: str
    """The unit, written after the figure."""
    target: Target | None = None


def duration(seconds: float) -> str:
    """Formats a time."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.3g} ms"


def megabytes(count: float) -> str:
    """Formats a number of bytes."""
    return f"{count / 1e6:,.0f} MB"
