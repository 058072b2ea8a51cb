"""Computes every statistic from its definition, in as many digits as needed.

These functions are slow and obvious. They share no method with the code under test: they subtract the two softmaxes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import mpmath
import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
LongWeights = NDArray[np.floating[Any]]

_DIGITS = 60


def statistics(
    base: Weights, tuned: Weights, temperature: float = 1.0, digits: int = _DIGITS
) -> dict[str, float]:
    """Computes all statistics of two weight vectors, except `changed`.

    Args:
        base: theta_B, float64 of any shape.
        tuned: theta_T, of the same shape.
        temperature: The temperature of the softmax.
        digits: The number of decimal digits. A difference of 1e-k needs more than k.
    """
    with mpmath.workdps(digits):
        theta_b = [mpmath.mpf(float(weight)) for weight in base.ravel()]
        theta_t = [mpmath.mpf(float(weight)) for weight in tuned.ravel()]
        return _statistics(theta_b, theta_t, temperature)


def product_statistics(
    base: Sequence[Weights], tuned: Sequence[Weights], temperature: float = 1.0
) -> dict[str, float]:
    """Computes the same in the form `product`, from the matrices Q_h, K_g, V_g of both checkpoints."""
    with mpmath.workdps(_DIGITS):
        theta_b, theta_t = (_product(*matrices) for matrices in (base, tuned))
        return _statistics(theta_b, theta_t, temperature)


def _product(query: Weights, key: Weights, value: Weights) -> list[mpmath.mpf]:
    q, k, v = (mpmath.matrix(matrix.tolist()) for matrix in (query, key, value))
    return list(q.T * (k * v.T))


def _softmax(theta: list[mpmath.mpf], temperature: float) -> list[mpmath.mpf]:
    largest = max(theta)
    powers = [mpmath.exp((weight - largest) / mpmath.mpf(temperature)) for weight in theta]
    total = mpmath.fsum(powers)
    return [power / total for power in powers]


def _statistics(theta_b: list[mpmath.mpf], theta_t: list[mpmath.mpf], temperature: float) -> dict[str, float]:
    p_b, p_t = _softmax(theta_b, temperature), _softmax(theta_t, temperature)
    entries = len(p_b)
    running, area = mpmath.mpf(0), mpmath.mpf(0)
    for b, t in zip(p_b[:-1], p_t[:-1], strict=True):
        running += t - b
        area += abs(running)
    wasserstein = area / (entries - 1) if entries > 1 else mpmath.mpf(0)
    mean = [(b + t) / 2 for b, t in zip(p_b, p_t, strict=True)]
    deltas = [t - b for b, t in zip(theta_b, theta_t, strict=True)]
    delta_norm, euclidean = mpmath.norm(deltas), mpmath.norm([t - b for b, t in zip(p_b, p_t, strict=True)])
    base_norm = mpmath.norm(theta_b)
    values = {
        "wasserstein": wasserstein,
        "kl": _relative_entropy(p_t, p_b),
        "js": (_relative_entropy(p_t, mean) + _relative_entropy(p_b, mean)) / 2,
        "cosine": 1 - mpmath.fdot(p_b, p_t) / (mpmath.norm(p_b) * mpmath.norm(p_t)),
        "euclidean": euclidean,
        "delta_norm": delta_norm,
        "relative_delta": delta_norm / base_norm if base_norm else mpmath.inf,
        "max_delta": max(map(abs, deltas)),
        "sorted_wasserstein": mpmath.fsum(
            abs(t - b) for b, t in zip(sorted(theta_b), sorted(theta_t), strict=True)
        )
        / entries,
    }
    if euclidean:
        null_mean = mpmath.sqrt(mpmath.pi / 32)
        null_spread = mpmath.sqrt(mpmath.mpf(7) / 60 - mpmath.pi / 32)
        values["wasserstein_z"] = (wasserstein / euclidean - null_mean) / null_spread
    return {name: float(value) for name, value in values.items()}


def _relative_entropy(p: list[mpmath.mpf], q: list[mpmath.mpf]) -> mpmath.mpf:
    return mpmath.fsum(a * mpmath.log(a / b) for a, b in zip(p, q, strict=True))


def long_statistics(base: LongWeights, tuned: LongWeights, temperature: float = 1.0) -> dict[str, float]:
    """Computes the statistics of long weight vectors in extended precision.

    80-bit numbers are not precise enough for the difference of two softmaxes, so the difference is computed from the
    differences of the weights. A test compares this function with `statistics`.
    """
    theta = base.ravel().astype(np.longdouble)
    delta = tuned.ravel().astype(np.longdouble) - theta
    v = np.exp((theta - theta.max()) / temperature)
    u = v * np.expm1(delta / temperature)
    ratio = u.sum() / v.sum()
    p_b = v / v.sum()
    difference = (u - ratio * v) / (v.sum() + u.sum())
    z = delta / temperature - np.log1p(ratio)
    growth = np.expm1(z)
    half = np.log1p(growth / 2)  # log((1 + e^z) / 2)
    kl = (p_b * (z + z * growth - growth)).sum()
    js = (p_b * (z * (1 + growth) - (2 + growth) * half)).sum() / 2
    p_t = p_b + difference
    norm_b, norm_t, euclidean = (np.sqrt((x * x).sum()) for x in (p_b, p_t, difference))
    chord = p_t / norm_t - p_b / norm_b
    wasserstein = np.abs(np.cumsum(difference)[:-1]).sum() / (theta.size - 1)
    spread = math.sqrt(7 / 60 - math.pi / 32)
    values = {
        "wasserstein": wasserstein,
        "kl": kl,
        "js": js,
        "cosine": (chord * chord).sum() / 2,
        "euclidean": euclidean,
        "delta_norm": np.sqrt((delta * delta).sum()),
        "relative_delta": np.sqrt((delta * delta).sum() / (theta * theta).sum()),
        "max_delta": np.abs(delta).max(),
        "sorted_wasserstein": np.abs(np.sort(theta + delta) - np.sort(theta)).mean(),
        "wasserstein_z": (wasserstein / euclidean - math.sqrt(math.pi / 32)) / spread,
    }
    return {name: float(value) for name, value in values.items()}
