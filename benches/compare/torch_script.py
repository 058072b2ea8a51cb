"""Computes the same statistics in torch, in float64, with one layer in memory at a time."""

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from safetensors import safe_open

from compare.workers import workers
from support.checkpoints import Shape, name


def heads(file: Path, shape: Shape, layer: int) -> Iterator[torch.Tensor]:
    """Yields the weight vector of each head of a layer: Q, then K, then V, as stored."""
    with safe_open(file, "pt") as tensors:
        query, key, value = (
            tensors.get_tensor(name(layer, matrix)).view(-1, shape.head_size * shape.hidden_size)
            for matrix in ("q", "k", "v")
        )
    for head in range(shape.query_heads):
        group = head * shape.key_value_heads // shape.query_heads
        yield torch.cat([query[head], key[group], value[group]])


def scan(
    base: Path, tuned: Path, shape: Shape, layers: Iterable[int], threads: int
) -> list[dict[str, float]]:
    """Computes every statistic that needs no sort, for every head of some layers."""
    with workers(threads) as pool:
        return [
            of_head
            for layer in layers
            for of_head in pool.map(statistics, heads(base, shape, layer), heads(tuned, shape, layer))
        ]


def statistics(base: torch.Tensor, tuned: torch.Tensor) -> dict[str, float]:
    """Computes the statistics of one head from theta_B and theta_T."""
    changed = (base != tuned).double().mean()
    base, tuned = base.double(), tuned.double()
    log_b, log_t = torch.log_softmax(base, 0), torch.log_softmax(tuned, 0)
    p_b, p_t = log_b.exp(), log_t.exp()
    difference = p_t - p_b
    log_mean = ((p_b + p_t) / 2).log()
    wasserstein = difference.cumsum(0)[:-1].abs().sum() / (len(base) - 1)
    euclidean = difference.norm()
    delta = tuned - base
    delta_norm = delta.norm()
    null_mean, null_spread = math.sqrt(math.pi / 32), math.sqrt(7 / 60 - math.pi / 32)
    values = {
        "wasserstein": wasserstein,
        "kl": p_t @ (log_t - log_b),
        "js": (p_t @ (log_t - log_mean) + p_b @ (log_b - log_mean)) / 2,
        "cosine": 1 - p_b @ p_t / (p_b.norm() * p_t.norm()),
        "euclidean": euclidean,
        "delta_norm": delta_norm,
        "relative_delta": delta_norm / base.norm(),
        "max_delta": delta.abs().max(),
        "changed": changed,
        "wasserstein_z": (wasserstein / euclidean - null_mean) / null_spread,
    }
    return {statistic: value.item() for statistic, value in values.items()}
