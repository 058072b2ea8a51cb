"""Measures a scan of files that are not in memory."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from compare import cache, reading
from compare.bench import Bench, median
from compare.result import Result, Target, megabytes
from compare.timing import Spread, quotient, time_in_turns


def disk(bench: Bench) -> Iterator[Result]:
    """The throughput of a scan against that of `cat`, for files that are not in the page cache."""
    model = next(iter(bench.shapes))
    # The files are much larger than the memory of a disk.
    pair = bench.pair(model, 4 * bench.layers)
    left: list[float] = []

    def drop_files() -> None:
        cache.drop(pair.files)
        left.append(cache.resident(pair.files))

    functions: dict[str, Callable[[], object]] = {
        "scan": bench.scan(pair),
        "cat": partial(reading.concatenate, pair.files),
    }
    seconds = time_in_turns(functions, bench.rounds, before=drop_files)
    warm = time_in_turns({"scan": bench.scan(pair)}, bench.rounds)["scan"]
    share = quotient(seconds["cat"], seconds["scan"])
    # A scan waits for the disk only if the disk is slower than a scan of cached files.
    slower = statistics.median(seconds["cat"]) > statistics.median(warm)
    remark = "" if slower else "; this disk is faster than the scan of cached files"
    yield Result(
        row="disk",
        what=f"{model}, `qkv`",
        against=f"`cat` of the {megabytes(pair.bytes)}, {max(left):.0%} cached{remark}",
        ours=median(seconds["scan"]),
        theirs=median(seconds["cat"]),
        figure=Spread(*(100 * it for it in share)),
        unit=" % of the throughput",
        target=Target(95, least=True) if slower and max(left) < 0.01 else None,
    )
    bench.pairs.delete(pair)
