"""Times of several ways to do a thing, taken in turns."""

import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Spread(NamedTuple):
    """What repetitions of one measurement gave."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Sums up one value or more."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


def in_turns(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] = lambda: None,
) -> dict[str, list[float]]:
    """The seconds of each way in each round, after a round that is not counted.

    The order changes from round to round, so that neither a drift of the machine nor the state in which one
    way leaves it favours another. `before` is called before each, and is not counted.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            before()
            start = time.perf_counter()
            ways[name]()
            elapsed = time.perf_counter() - start
            if turn:
                seconds[name].append(elapsed)
    return seconds


def quotient(over: Iterable[float], under: Iterable[float]) -> Spread:
    """One way's seconds over those of another, round by round."""
    return Spread.of(a / b for a, b in zip(over, under, strict=True))
