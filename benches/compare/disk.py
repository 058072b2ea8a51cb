"""A scan of files that are not in memory."""

import statistics
from collections.abc import Callable, Iterator
from functools import partial

from compare import cache, reading
from compare.bench import Bench, median
from compare.result import Bar, Result, megabytes
from compare.timing import Spread, in_turns, quotient


def disk(bench: Bench) -> Iterator[Result]:
    """Against `cat`, of files that are not in the page cache."""
    model = next(iter(bench.shapes))
    # So many bytes that what a disk keeps in a memory of its own does not count for much.
    pair = bench.pair(model, 4 * bench.layers)
    left: list[float] = []

    def forget() -> None:
        cache.drop(pair.files)
        left.append(cache.resident(pair.files))

    ways: dict[str, Callable[[], object]] = {
        "scan": bench.scan(pair),
        "cat": partial(reading.concatenate, pair.files),
    }
    seconds = in_turns(ways, bench.rounds, before=forget)
    warm = in_turns({"scan": bench.scan(pair)}, bench.rounds)["scan"]
    share = quotient(seconds["cat"], seconds["scan"])
    # Only a disk that is slower than the scan of cached files can be what a scan waits for.
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
        bar=Bar(95, least=True) if slower and max(left) < 0.01 else None,
    )
    bench.pairs.delete(pair)
