"""Times several functions in turns, and summarises repeated measurements."""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Spread(NamedTuple):
    """The median and the range of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Summarises one value or more."""
        values = list(values)
        return cls(statistics.median(values), min(values), max(values))


def time_in_turns(
    functions: Mapping[str, Callable[[], object]],
    rounds: int,
    before: Callable[[], object] | None = None,
    least: float = 0.25,
) -> dict[str, list[float]]:
    """Returns the seconds of each function in each round, after a round that is not counted.

    The order changes from round to round, so that neither a drift of the machine nor the state in which one function
    leaves it favours another. For the same reason a function that takes less than `least` seconds is repeated until it
    has taken that long, and its mean time counts. A single short run after a function that took seconds would measure
    the state that the other function left behind. `before` is called before each run and is not counted; with it, a
    function runs once per round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    repetitions = dict.fromkeys(functions, 1)
    for turn in range(rounds + 1):
        for name in list(functions) if turn % 2 else reversed(list(functions)):
            if before is not None:
                before()
            start = time.perf_counter()
            for _ in range(repetitions[name]):
                functions[name]()
            elapsed = time.perf_counter() - start
            if turn:
                seconds[name].append(elapsed / repetitions[name])
            elif before is None:
                repetitions[name] = max(1, math.ceil(least / max(elapsed, 1e-6)))
    return seconds


def quotient(over: Iterable[float], under: Iterable[float]) -> Spread:
    """Summarises the ratio of two times, round by round."""
    return Spread.of(a / b for a, b in zip(over, under, strict=True))
