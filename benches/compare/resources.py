"""Measures the memory of a scan and the time of `import alps`."""

import math
import statistics
from collections.abc import Iterator

from alps.statistics import Form
from compare import processes
from compare.bench import Bench
from compare.result import Result, Target, duration
from compare.timing import Spread


def memory(bench: Bench) -> Iterator[Result]:
    """The peak of resident memory, less that of `import alps`."""
    everyday, _, very_large = bench.shapes
    forms: tuple[Form, ...] = ("qkv", "product")
    for model, layers, limit in ((everyday, bench.layers, 128), (very_large, 1, 256)):
        pair = bench.pair(model, layers)
        for form in forms:
            peaks = {
                threads: [processes.peak_memory(pair, form, threads) / 1e6 for _ in range(bench.few_rounds)]
                for threads in (2, 4, 8)
            }
            yield Result(
                row="memory",
                what=f"{model}, `{form}`, 2 threads",
                against="`import alps`",
                ours=f"{statistics.median(peaks[2]):.0f} MB",
                theirs="",
                figure=Spread.of(peaks[2]),
                unit=" MB more",
                target=Target(limit),
            )
            for threads in (4, 8):
                more = [
                    (many - two) / (threads - 2) for many, two in zip(peaks[threads], peaks[2], strict=True)
                ]
                yield Result(
                    row="memory",
                    what=f"{model}, `{form}`, {threads} threads",
                    against="2 threads",
                    ours=f"{statistics.median(peaks[threads]):.0f} MB",
                    theirs=f"{statistics.median(peaks[2]):.0f} MB",
                    figure=Spread.of(more),
                    unit=" MB for each further thread",
                    target=Target(32),
                )
        if model == very_large:
            bench.pairs.delete(pair)


def imports(bench: Bench) -> Iterator[Result]:
    """`import alps` with what a scan imports, against `import numpy`, the best of many fresh interpreters."""
    best = {"alps.scan": math.inf, "numpy": math.inf}
    for _ in range(4 * bench.rounds):
        for module, seconds in best.items():
            best[module] = min(seconds, processes.import_time(module))
    yield Result(
        row="import",
        what="`import alps`, and what a scan needs",
        against="`import numpy`",
        ours=duration(best["alps.scan"]),
        theirs=duration(best["numpy"]),
        figure=Spread.of([best["alps.scan"] / best["numpy"]]),
        unit="x the time",
        target=Target(1.5),
    )
