"""The time of a scan against that of other ways to come by the same numbers, or by less."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compare import careful, published, reading
from compare.bench import Bench, median
from compare.pairs import Pair
from compare.products import Products
from compare.result import Bar, Result, megabytes
from compare.timing import in_turns, quotient


def read(bench: Bench) -> Iterator[Result]:
    """Reading the same bytes, which the page cache holds, and doing nothing with them."""
    for model, pair in bench.everyday():
        yield _read(bench, f"{model}, `qkv`, {pair.shape.layers} layers", pair)
    for model, pair in bench.everyday(whole=True):
        yield _read(bench, f"{model}, `qkv`, all {pair.shape.layers} layers", pair)
        bench.pairs.delete(pair)


def _read(bench: Bench, what: str, pair: Pair) -> Result:
    bare = partial(reading.read_bare, pair.files, bench.threads)
    if bare() != pair.bytes:
        raise RuntimeError(f"{pair.folder}: the bare read does not read what a scan reads")
    seconds = in_turns({"scan": bench.scan(pair), "read": bare}, bench.rounds)
    return Result(
        row="read",
        what=what,
        against=f"reading the {megabytes(pair.bytes)}, cached",
        ours=median(seconds["scan"]),
        theirs=median(seconds["read"]),
        figure=quotient(seconds["scan"], seconds["read"]),
        unit="x the time",
        bar=Bar(2),
    )


def as_published(bench: Bench) -> Iterator[Result]:
    """The authors' way to compute the score, of two heads in memory."""
    for model, pair in bench.everyday():
        heads = [list(careful.heads(file, pair.shape, layer=0))[:2] for file in pair.files]
        compute = partial(_as_published, *heads)
        found = compute()
        worst = _worst(found, bench.scan(pair)()["wasserstein"][0, : len(found)])
        seconds = in_turns({"scan": bench.scan(pair), "other": compute}, bench.few_rounds)
        yield _faster(
            seconds,
            (pair.heads, len(found)),
            f"`wasserstein` off by {worst:.0e}",
            row="published",
            what=f"{model}, `qkv`, per head",
            against="softmax of torch, `scipy.stats.wasserstein_distance`",
            bar=Bar(500, least=True),
        )


def careful_script(bench: Bench) -> Iterator[Result]:
    """What a good engineer would write in torch, all statistics, of one layer."""
    for model, pair in bench.everyday():
        compute = partial(careful.scan, *pair.files, pair.shape, layers=[0], threads=bench.threads)
        found, expected = compute(), bench.scan(pair)()
        # `wasserstein_z` is a difference that may be 0, so it has no relative error.
        names = [name for name in expected if name != "wasserstein_z"]
        worst, statistic = max(
            (_worst([of_head[name] for of_head in found], expected[name][0]), name) for name in names
        )
        seconds = in_turns({"scan": bench.scan(pair), "other": compute}, bench.few_rounds)
        yield _faster(
            seconds,
            (pair.heads, len(found)),
            f"`{statistic}` off by {worst:.0e}",
            row="torch",
            what=f"{model}, `qkv`, per head",
            against="the same statistics in torch, float64",
            bar=Bar(100, least=True),
        )


def multiplications(bench: Bench) -> Iterator[Result]:
    """The multiplications that the form `product` needs, of matrices in memory."""
    bars = {torch.float32: Bar(1.3), torch.bfloat16: None, torch.float64: None}
    for model, pair in bench.everyday():
        ways: dict[str, Callable[[], object]] = {"scan": bench.scan(pair, "product")}
        for dtype in bars:
            products = Products(*pair.files, pair.shape, layer=0, dtype=dtype)
            ways[str(dtype)] = partial(products.multiply, bench.threads)
        seconds = in_turns(ways, bench.few_rounds)
        ours = [it / pair.heads for it in seconds["scan"]]
        for dtype, bar in bars.items():
            theirs = [it / pair.shape.query_heads for it in seconds[str(dtype)]]
            yield Result(
                row="product",
                what=f"{model}, `product`, per head",
                against=f"`torch.matmul` of the same matrices, {str(dtype).removeprefix('torch.')}",
                ours=median(ours),
                theirs=median(theirs),
                figure=quotient(ours, theirs),
                unit="x the time",
                bar=bar,
            )


def _as_published(base: Iterable[torch.Tensor], tuned: Iterable[torch.Tensor]) -> list[float]:
    return [published.wasserstein(*sides) for sides in zip(base, tuned, strict=True)]


def _faster(seconds: Mapping[str, list[float]], heads: tuple[int, int], remark: str, **fields: Any) -> Result:
    """How many times faster a scan does a head than what does fewer heads in its time."""
    ours, theirs = (
        [it / count for it in seconds[way]] for way, count in zip(("scan", "other"), heads, strict=True)
    )
    return Result(
        ours=median(ours),
        theirs=f"{median(theirs)}, {remark}",
        figure=quotient(theirs, ours),
        unit="x faster",
        **fields,
    )


def _worst(found: Iterable[float], expected: NDArray[np.float64]) -> float:
    """The largest relative difference from what alps finds."""
    return float(np.abs(np.array(list(found)) / expected - 1).max())
