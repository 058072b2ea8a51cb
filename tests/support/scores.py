"""Builders of small geometries, scores and head sets, and the comparison of scores with definitions."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from alps import Geometry, HeadScores, HeadSet

NULL_MEAN = math.sqrt(math.pi / 32)
NULL_SPREAD = math.sqrt(7 / 60 - math.pi / 32)
"""The mean and the standard deviation that `wasserstein_z` assumes of wasserstein / euclidean."""


def small_geometry(**changes: Any) -> Geometry:
    """Makes a geometry of three layers with attention, each with four heads in two groups."""
    fields: dict[str, Any] = {
        "model_type": "llama",
        "layout": "separate",
        "layers": (0, 2, 3),
        "query_heads": 4,
        "key_value_heads": 2,
        "head_size": 2,
        "value_size": 3,
        "hidden_size": 10,
    }
    return Geometry(**fields | changes)


def small_scores() -> HeadScores:
    """Makes distinct scores, one of which is not a number."""
    values = np.array([[0.1, 0.9, 0.8, 0.2], [0.7, 0.3, 0.0, 0.6], [0.25, 0.35, 0.15, 0.05]])
    z = values.copy()
    z[0, 1] = np.nan
    return HeadScores(
        {"relative_delta": values, "kl": -values, "wasserstein_z": z},
        small_geometry(),
        {
            "base": "base",
            "base_files": "model.safetensors",
            "tuned": "tuned",
            "tuned_files": "model.safetensors",
            "form": "qkv",
            "temperature": "1.0",
            "alps": "0.1.0",
        },
    )


@st.composite
def geometries(draw: st.DrawFn) -> Geometry:
    size = st.integers(1, 5)
    groups = draw(size)
    return Geometry(
        model_type=draw(st.text(max_size=5)),
        layout="separate",
        layers=tuple(sorted(draw(st.sets(st.integers(0, 99), min_size=1, max_size=5)))),
        query_heads=groups * draw(size),
        key_value_heads=groups,
        head_size=draw(size),
        value_size=draw(size),
        hidden_size=draw(size),
    )


@st.composite
def scores(draw: st.DrawFn, ties: bool = True) -> HeadScores:
    """Draws scores by "relative_delta". Without ties, they are all different numbers."""
    geometry = draw(geometries())
    if ties:
        number = st.one_of(st.integers(-2, 2).map(float), st.floats())
        matrix = draw(arrays.arrays(np.float64, geometry.shape, elements=number))
    else:
        order = draw(st.permutations(range(geometry.heads)))
        matrix = np.array(order, dtype=np.float64).reshape(geometry.shape)
    return HeadScores({"relative_delta": matrix}, geometry)


@st.composite
def head_sets(draw: st.DrawFn) -> HeadSet:
    geometry = draw(geometries())
    provenance = draw(st.dictionaries(st.text(), st.text(), max_size=3))
    return HeadSet(draw(arrays.arrays(np.bool_, geometry.shape)), geometry, provenance)


def assert_statistics(
    found: HeadScores, head: tuple[int, int], expected: Mapping[str, float], tolerance: float
) -> None:
    """Compares the statistics of one head with their definitions."""
    for statistic, value in expected.items():
        got = float(found[statistic][head])
        if statistic == "wasserstein_z":
            # A difference may be 0, so the quotient that it standardises is compared instead.
            got, value = (z * NULL_SPREAD + NULL_MEAN for z in (got, value))
        assert got == pytest.approx(value, rel=tolerance, abs=0), (statistic, head)
