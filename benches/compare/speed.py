"""Compares the time of a scan with that of other programs, which compute the same numbers or less."""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from compare import machine, published, reading, torch_script
from compare.bench import Bench, median
from compare.pairs import CheckpointPair
from compare.products import Products
from compare.result import Result, Target, megabytes
from compare.timing import quotient, time_in_turns


def read(bench: Bench) -> Iterator[Result]:
    """Time against reading the same bytes from the page cache, without any arithmetic."""
    for model, pair in bench.everyday():
        yield _read(bench, f"{model}, `qkv`, {pair.shape.layers} layers", pair)
    for model, pair in bench.everyday(whole=True):
        yield _read(bench, f"{model}, `qkv`, all {pair.shape.layers} layers", pair)
        bench.pairs.delete(pair)


def _read(bench: Bench, what: str, pair: CheckpointPair) -> Result:
    read_only = partial(reading.read_bytes_only, pair.files, bench.threads)
    if read_only() != pair.bytes:
        raise RuntimeError(
            f"{pair.folder}: the read without arithmetic does not read the bytes that a scan reads"
        )
    seconds = time_in_turns({"scan": bench.scan(pair), "read": read_only}, bench.rounds)
    return Result(
        row="read",
        what=what,
        against=f"reading the {megabytes(pair.bytes)}, cached",
        ours=median(seconds["scan"]),
        theirs=median(seconds["read"]),
        figure=quotient(seconds["scan"], seconds["read"]),
        unit="x the time",
        target=Target(2),
    )


def instructions(bench: Bench) -> Iterator[Result]:
    """Time with each instruction set of this machine, against reading the same bytes from the page cache."""
    sets = [*machine.vector_sets(), "portable"]
    for model, pair in bench.everyday():
        read_only = partial(reading.read_bytes_only, pair.files, bench.threads)
        scans = {name: partial(_with_instructions, name, bench.scan(pair)) for name in sets}
        seconds = time_in_turns({**scans, "read": read_only}, bench.rounds)
        for name in sets:
            yield Result(
                row="instructions",
                what=f"{model}, `qkv`, {name}",
                against=f"reading the {megabytes(pair.bytes)}, cached",
                ours=median(seconds[name]),
                theirs=median(seconds["read"]),
                figure=quotient(seconds[name], seconds["read"]),
                unit="x the time",
                target=INSTRUCTIONS_TARGETS.get(name),
            )


INSTRUCTIONS_TARGETS = {"AVX-512": Target(1.75), "AVX2": Target(2), "NEON": Target(2)}


def formats(bench: Bench) -> Iterator[Result]:
    """Time for a byte of float16 and of float32 weights, with each instruction set, against a byte of bfloat16."""
    model, usual = next(iter(bench.everyday()))
    pairs = {dtype: bench.pair(model, bench.layers, dtype=dtype) for dtype in (torch.float16, torch.float32)}
    for name in [*machine.vector_sets(), "portable"]:
        scans = {
            str(dtype): partial(_with_instructions, name, bench.scan(pair))
            for dtype, pair in {torch.bfloat16: usual, **pairs}.items()
        }
        seconds = time_in_turns(scans, bench.rounds)
        theirs = [1e9 * it / usual.bytes for it in seconds[str(torch.bfloat16)]]
        for dtype, pair in pairs.items():
            ours = [1e9 * it / pair.bytes for it in seconds[str(dtype)]]
            yield Result(
                row="formats",
                what=f"{model}, `qkv`, {str(dtype).removeprefix('torch.')}, {name}, per GB",
                against="bfloat16",
                ours=median(ours),
                theirs=median(theirs),
                figure=quotient(ours, theirs),
                unit="x the time",
                target=None if name == "portable" else Target(1.5),
            )


def _with_instructions(name: str, scan: Callable[[], object]) -> None:
    before = os.environ.get("ALPS_INSTRUCTIONS")
    os.environ["ALPS_INSTRUCTIONS"] = name
    try:
        scan()
    finally:
        if before is None:
            del os.environ["ALPS_INSTRUCTIONS"]
        else:
            os.environ["ALPS_INSTRUCTIONS"] = before


def as_published(bench: Bench) -> Iterator[Result]:
    """Time against the code of the paper's authors, for two heads in memory."""
    for model, pair in bench.everyday():
        heads = [list(torch_script.heads(file, pair.shape, layer=0))[:2] for file in pair.files]
        compute = partial(_as_published, *heads)
        found = compute()
        worst = _worst(found, bench.scan(pair)()["wasserstein"][0, : len(found)])
        seconds = time_in_turns({"scan": bench.scan(pair), "other": compute}, bench.few_rounds)
        yield _faster(
            seconds,
            (pair.heads, len(found)),
            f"`wasserstein` off by {worst:.0e}",
            row="published",
            what=f"{model}, `qkv`, per head",
            against="softmax of torch, `scipy.stats.wasserstein_distance`",
            target=Target(500, least=True),
        )


def torch_implementation(bench: Bench) -> Iterator[Result]:
    """Time against a careful implementation of all statistics in torch, for one layer."""
    for model, pair in bench.everyday():
        compute = partial(torch_script.scan, *pair.files, pair.shape, layers=[0], threads=bench.threads)
        found, expected = compute(), bench.scan(pair)()
        # `wasserstein_z` is a difference that may be 0, so it has no relative error.
        names = [name for name in expected if name != "wasserstein_z"]
        worst, statistic = max(
            (_worst([of_head[name] for of_head in found], expected[name][0]), name) for name in names
        )
        seconds = time_in_turns({"scan": bench.scan(pair), "other": compute}, bench.few_rounds)
        yield _faster(
            seconds,
            (pair.heads, len(found)),
            f"`{statistic}` off by {worst:.0e}",
            row="torch",
            what=f"{model}, `qkv`, per head",
            against="the same statistics in torch, float64",
            target=Target(100, least=True),
        )


def matrix_products(bench: Bench) -> Iterator[Result]:
    """Time against the matrix products that the form `product` needs, for matrices in memory."""
    targets = {torch.float32: Target(1.3), torch.bfloat16: None, torch.float64: None}
    for model, pair in bench.everyday():
        functions: dict[str, Callable[[], object]] = {"scan": bench.scan(pair, "product")}
        for dtype in targets:
            products = Products(*pair.files, pair.shape, layer=0, dtype=dtype)
            functions[str(dtype)] = partial(products.multiply, bench.threads)
        seconds = time_in_turns(functions, bench.few_rounds)
        ours = [it / pair.heads for it in seconds["scan"]]
        for dtype, target in targets.items():
            theirs = [it / pair.shape.query_heads for it in seconds[str(dtype)]]
            yield Result(
                row="product",
                what=f"{model}, `product`, per head",
                against=f"`torch.matmul` of the same matrices, {str(dtype).removeprefix('torch.')}",
                ours=median(ours),
                theirs=median(theirs),
                figure=quotient(ours, theirs),
                unit="x the time",
                target=target,
            )


def _as_published(base: Iterable[torch.Tensor], tuned: Iterable[torch.Tensor]) -> list[float]:
    return [published.wasserstein(*pair) for pair in zip(base, tuned, strict=True)]


def _faster(seconds: Mapping[str, list[float]], heads: tuple[int, int], remark: str, **fields: Any) -> Result:
    """Returns how many times faster a scan is per head. `heads` are the heads of the scan and of the other program."""
    ours, theirs = (
        [it / count for it in seconds[name]] for name, count in zip(("scan", "other"), heads, strict=True)
    )
    return Result(
        ours=median(ours),
        theirs=f"{median(theirs)}, {remark}",
        figure=quotient(theirs, ours),
        unit="x faster",
        **fields,
    )


def _worst(found: Iterable[float], expected: NDArray[np.float64]) -> float:
    """Returns the largest relative difference from the values of alps."""
    return float(np.abs(np.array(list(found)) / expected - 1).max())
