"""Scores by each instruction set of this machine, which `ALPS_INSTRUCTIONS` forces."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
import torch

import alps
from alps.statistics import Form
from support.checkpoints import DTYPES, Shape, random_weights, write_pair

VARIABLE = "ALPS_INSTRUCTIONS"

# 71,680 entries in each matrix of a head: summed and multiplied in single precision.
SHAPE = Shape(query_heads=2, key_value_heads=1, head_size=64, hidden_size=1120)

FUSED, UNFUSED = 1e-9, 5e-7
"""The largest relative difference between sets that round a multiply-add once, and from the set that does not."""


@pytest.fixture
def pair(tmp_path: Path, dtype: str) -> tuple[Path, Path]:
    base = random_weights(SHAPE, seed=1, scale=0.02)
    noise = random_weights(SHAPE, seed=2, scale=4e-4)
    tuned = {key: weight + noise[key] for key, weight in base.items()}
    stored = [{key: weight.to(DTYPES[dtype]) for key, weight in side.items()} for side in (base, tuned)]
    return write_pair(tmp_path, SHAPE.config(), *stored)


@pytest.fixture
def sets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The names of the sets, the widest first. A name that is none makes a scan tell them."""
    zeros = {key: torch.zeros_like(weight) for key, weight in random_weights(Shape(), seed=1).items()}
    paths = write_pair(tmp_path / "zeros", Shape().config(), zeros, zeros)
    monkeypatch.setenv(VARIABLE, "MMX")
    with pytest.raises(alps.ArgumentError, match='ALPS_INSTRUCTIONS is "MMX"') as refused:
        alps.scan(*paths)
    found = re.search(r"this machine has (.*)$", str(refused.value))
    assert found is not None
    return found[1].split(", ")


@pytest.mark.parametrize("form", ["qkv", "product"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_set_gives_the_same_scores(
    pair: tuple[Path, Path], sets: list[str], form: Form, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert sets[-1] == "portable"
    scores = {}
    for name in sets:
        monkeypatch.setenv(VARIABLE, name)
        scores[name] = alps.scan(*pair, form=form)
    monkeypatch.delenv(VARIABLE)
    widest = alps.scan(*pair, form=form)
    for statistic, values in widest.items():
        np.testing.assert_array_equal(scores[sets[0]][statistic], values)
        for name in sets[1:]:
            tolerance = FUSED if name in ("AVX2", "NEON") else UNFUSED
            np.testing.assert_allclose(
                scores[name][statistic], values, rtol=tolerance, err_msg=f"{name} {statistic}"
            )


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("sides", [("base",), ("tuned",), ("base", "tuned")])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_set_refuses_weights_that_are_not_finite(
    tmp_path: Path,
    sets: list[str],
    dtype: str,
    sides: tuple[str, ...],
    bad: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weights = {side: random_weights(SHAPE, seed=1, scale=0.02) for side in ("base", "tuned")}
    key = next(key for key in weights["base"] if "k_proj" in key)
    for side in sides:
        weights[side][key][3, 7] = bad
    stored = ({key: weight.to(DTYPES[dtype]) for key, weight in it.items()} for it in weights.values())
    paths = write_pair(tmp_path, SHAPE.config(), *stored)
    for name in sets:
        monkeypatch.setenv(VARIABLE, name)
        with pytest.raises(alps.WeightsError, match=r"at \[3, 7\]"):
            alps.scan(*paths)


@pytest.mark.parametrize("dtype", ["bf16"])
@pytest.mark.parametrize("name", ["", "avx2", "AVX-512 ", "SVE"])
def test_other_names_are_refused(
    pair: tuple[Path, Path], sets: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, name)
    with pytest.raises(alps.ArgumentError, match=f"{VARIABLE} is .*; this machine has {', '.join(sets)}"):
        alps.scan(*pair)


def test_products_in_twice_the_digits_on_every_set(
    tmp_path: Path, sets: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Q and K undo the changes of each other down to the rounding of float64."""
    shape = Shape(head_size=5, hidden_size=30)
    base = random_weights(shape, seed=1)
    factors = {"q": 1.01, "k": 1 / 1.01, "v": 1.0}
    tuned = {key: weight * factors[key.split(".")[-2][0]] for key, weight in base.items()}
    paths = write_pair(tmp_path / "pair", shape.config(), base, tuned)
    scores = {}
    for name in sets:
        monkeypatch.setenv(VARIABLE, name)
        scores[name] = alps.scan(*paths, form="product")
    for statistic, values in scores[sets[0]].items():
        for name in sets[1:]:
            np.testing.assert_allclose(
                scores[name][statistic], values, rtol=FUSED, err_msg=f"{name} {statistic}"
            )
