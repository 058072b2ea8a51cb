"""Times of several ways to do a thing, taken in turns."""

import math
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
    before: Callable[[], object] | None = None,
    least: float = 0.25,
) -> dict[str, list[float]]:
    """The seconds of each way in each round, after a round that is not counted.

    The order changes from round to round, so that neither a drift of the machine nor the state in which one
    way leaves it favours another. For the same reason a way that takes less than `least` seconds is repeated until it
    has taken that long, and the mean counts: one run of a few hundredths of a second, after a neighbour that took
    seconds, would time what the neighbour left behind. With `before`, which is called before each run and is not
    counted, there is but one run.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    repetitions = dict.fromkeys(ways, 1)
    for turn in range(rounds + 1):
        for name in list(ways) if turn % 2 else reversed(list(ways)):
            if before is not None:
                before()
            start = time.perf_counter()
            for _ in range(repetitions[name]):
                ways[name]()
            elapsed = time.perf_counter() - start
            if turn:
                seconds[name].append(elapsed / repetitions[name])
            elif before is None:
                repetitions[name] = max(1, math.ceil(least / max(elapsed, 1e-6)))
    return seconds


def quotient(over: Iterable[float], under: Iterable[float]) -> Spread:
    """One way's seconds over those of another, round by round."""
    return Spread.of(a / b for a, b in zip(over, under, strict=True))
