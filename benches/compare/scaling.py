"""Measures how the time of a scan depends on threads, on the bytes of Q, K and V, and on all other bytes."""

from collections.abc import Iterator

from compare import machine
from compare.bench import Bench, median
from compare.result import Result, megabytes
from compare.timing import quotient, time_in_turns


def threads(bench: Bench) -> Iterator[Result]:
    """Time against the number of threads, up to that of the cores."""
    for model, pair in bench.everyday():
        counts = range(1, machine.cores() + 1)
        seconds = time_in_turns({str(n): bench.scan(pair, threads=n) for n in counts}, bench.rounds)
        for count in counts:
            yield Result(
                row="threads",
                what=f"{model}, `qkv`, {count} thread{'s' * (count > 1)}",
                against="1 thread",
                ours=median(seconds[str(count)]),
                theirs=median(seconds["1"]),
                figure=quotient(seconds["1"], seconds[str(count)]),
                unit="x faster",
            )


def layers(bench: Bench) -> Iterator[Result]:
    """Time against the bytes of Q, K and V."""
    model = next(iter(bench.shapes))
    pairs = [bench.pair(model, count) for count in (2, 8, 32)]
    seconds = time_in_turns({pair.folder.name: bench.scan(pair) for pair in pairs}, bench.rounds)
    first = pairs[0]
    for pair in pairs:
        of_pair, of_first = seconds[pair.folder.name], seconds[first.folder.name]
        yield Result(
            row="layers",
            what=f"{model}, `qkv`, {pair.shape.layers} layers, {megabytes(pair.bytes)}",
            against=f"{first.shape.layers} layers",
            ours=median(of_pair),
            theirs=median(of_first),
            figure=quotient([it / pair.bytes for it in of_pair], [it / first.bytes for it in of_first]),
            unit="x the time for a byte",
        )
    for pair in pairs:
        if pair.shape.layers != bench.layers:
            bench.pairs.delete(pair)


def experts(bench: Bench) -> Iterator[Result]:
    """Time against the bytes that are not Q, K and V."""
    model, pair = next(bench.everyday())
    large = bench.pair(model, bench.layers, experts=19)
    seconds = time_in_turns({"small": bench.scan(pair), "large": bench.scan(large)}, bench.rounds)
    sizes = [sum(file.stat().st_size for file in it.files) for it in (large, pair)]
    yield Result(
        row="experts",
        what=f"{model}, `qkv`, with experts, {megabytes(sizes[0])}",
        against=f"without, {megabytes(sizes[1])}",
        ours=median(seconds["large"]),
        theirs=median(seconds["small"]),
        figure=quotient(seconds["large"], seconds["small"]),
        unit="x the time",
    )
