"""Every statistic against its definition, for every number format, size of change and temperature."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import alps
from alps.statistics import Form
from support import oracle
from support.checkpoints import (
    DTYPES,
    Shape,
    Tensors,
    matrices,
    name,
    random_weights,
    theta,
    write,
    write_pair,
)
from support.scores import assert_statistics

Weights = NDArray[np.float64]

TOLERANCE = {"qkv": 1e-6, "product": 1e-5}

# Four heads, two groups; a segment of 256 entries is no divisor of any matrix.
SHAPE = Shape(head_size=4, hidden_size=99)
SMALL = Shape(query_heads=2, key_value_heads=1, head_size=3, hidden_size=5)


def shifted(weights: Tensors, shift: float | None, dtype: torch.dtype, seed: int) -> Tensors:
    """The weights moved by about `shift` of themselves, or others of the same size.

    Where the format cannot hold so small a change, a few weights move to their next neighbour instead.
    """
    generator = torch.Generator().manual_seed(seed)
    moved: Tensors = {}
    for key, weight in weights.items():
        noise = torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        if shift is None:
            moved[key] = (noise * weight.std()).to(dtype)
            continue
        moved[key] = (weight.to(torch.float64) * (1 + shift * noise)).to(dtype)
        if torch.equal(moved[key], weight):
            bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
            choice = torch.rand(weight.shape, generator=generator) < 0.02
            moved[key] = (weight.view(bits) + choice.to(bits)).view(dtype)
    return moved


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("shift", [1e-7, 1e-4, 1e-2, None], ids=["1e-7", "1e-4", "1e-2", "unrelated"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_qkv_against_the_definition(
    tmp_path: Path, dtype: str, shift: float | None, temperature: float
) -> None:
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(SHAPE, seed=1).items()}
    tuned = shifted(base, shift, DTYPES[dtype], seed=2)
    paths = write_pair(tmp_path, SHAPE.config(), base, tuned)
    found = alps.scan(*paths, temperature=temperature, statistics=alps.STATISTICS)
    for head in (0, 3):
        theta_b, theta_t = theta(base, SHAPE, 0, head), theta(tuned, SHAPE, 0, head)
        expected = oracle.statistics(theta_b, theta_t, temperature)
        assert_statistics(found, (0, head), expected, TOLERANCE["qkv"])
        assert found["changed"][0, head] == np.mean(theta_b != theta_t)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("shift", [1e-7, 1e-4, 1e-2, None], ids=["1e-7", "1e-4", "1e-2", "unrelated"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_product_against_the_definition(
    tmp_path: Path, dtype: str, shift: float | None, temperature: float
) -> None:
    shape = Shape(head_size=5, hidden_size=30)
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, seed=3).items()}
    tuned = shifted(base, shift, DTYPES[dtype], seed=4)
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    found = alps.scan(*paths, form="product", temperature=temperature)
    head = 2
    sides = matrices(base, shape, 0, head), matrices(tuned, shape, 0, head)
    expected = oracle.product_statistics(*sides, temperature)
    del expected["sorted_wasserstein"]
    assert_statistics(found, (0, head), expected, TOLERANCE["product"])


def undone(weights: Tensors, shape: Shape, how: str) -> Tensors:
    """The weights with Q and K changed so that their product stays nearly, or exactly, the same.

    The change that is left is the rounding of the stored format; "order" leaves none.
    """
    q, k = (weights[name(0, matrix)].to(torch.float64) for matrix in "qk")
    if how == "scaled":
        q, k = q * 1.01, k / 1.01
    else:
        generator = torch.Generator().manual_seed(1)
        size = shape.head_size
        if how == "order":
            turn = torch.eye(size, dtype=torch.float64)[torch.randperm(size, generator=generator)]
        else:
            turn, _ = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64))
        q, k = ((turn @ rows.reshape(-1, size, shape.hidden_size)).reshape(rows.shape) for rows in (q, k))
    changed = {name(0, "q"): q, name(0, "k"): k}
    return {key: changed.get(key, weight).to(weight.dtype) for key, weight in weights.items()}


def unmoved() -> AbstractContextManager[object]:
    """Expects the warning of a scan that finds no difference."""
    return pytest.warns(alps.AlpsWarning, match="no head has moved")


@pytest.mark.parametrize("how", ["scaled", "turned", "order"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_products_whose_changes_undo_one_another(tmp_path: Path, dtype: str, how: str) -> None:
    shape = Shape(head_size=5, hidden_size=30)
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, seed=3).items()}
    tuned = undone(base, shape, how)
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    with unmoved() if how == "order" else nullcontext():
        found = alps.scan(*paths, form="product")
    for head in (0, 2):
        sides = matrices(base, shape, 0, head), matrices(tuned, shape, 0, head)
        expected = oracle.product_statistics(*sides)
        del expected["sorted_wasserstein"]
        if how == "order":
            assert expected["relative_delta"] < 1e-50
            expected = dict.fromkeys(set(expected) - {"wasserstein_z"}, 0.0)
        assert_statistics(found, (0, head), expected, TOLERANCE["product"])


def long_product(query: Weights, key: Weights, value: Weights) -> NDArray[np.longdouble]:
    q, k, v = (matrix.astype(np.longdouble) for matrix in (query, key, value))
    return q.T @ (k @ v.T)


@pytest.mark.parametrize("how", ["scaled", "turned", "order", "alternating"])
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_long_products_whose_changes_undo_one_another(tmp_path: Path, dtype: str, how: str) -> None:
    """Matrices that are multiplied in single precision unless their changes undo one another."""
    shape = Shape(query_heads=2, key_value_heads=1, head_size=64, hidden_size=1100)
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, 3, scale=0.05).items()}
    if how == "alternating":  # along each row of the product
        tuned = {key: weight.clone() for key, weight in base.items()}
        moved = 0.01 * random_weights(shape, 4, scale=0.05)[name(0, "v")][:1]
        tuned[name(0, "v")][0::2] += moved.to(DTYPES[dtype])
        tuned[name(0, "v")][1::2] -= moved.to(DTYPES[dtype])
    else:
        tuned = undone(base, shape, how)
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    with unmoved() if how == "order" else nullcontext():
        found = alps.scan(*paths, form="product")
    for head in range(2):
        sides = matrices(base, shape, 0, head), matrices(tuned, shape, 0, head)
        theta_b, theta_t = (long_product(*side) for side in sides)
        expected = oracle.long_statistics(theta_b, theta_t)
        del expected["sorted_wasserstein"]
        if how == "order":
            expected = dict.fromkeys(set(expected) - {"wasserstein_z"}, 0.0)
        assert_statistics(found, (0, head), expected, TOLERANCE["product"])


@pytest.mark.parametrize("temperature", [0.01, 0.1, 1.0, 100.0])
@pytest.mark.parametrize("shift", [1e-7, 1e-3, 0.1, None], ids=["1e-7", "1e-3", "0.1", "unrelated"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_long_vectors(tmp_path: Path, dtype: str, shift: float | None, temperature: float) -> None:
    """Many blocks, most of them without a change of sign, in the widths that large models take."""
    shape = Shape(query_heads=2, key_value_heads=1, head_size=64, hidden_size=1100)
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, 5, scale=0.03).items()}
    tuned = shifted(base, shift, DTYPES[dtype], seed=6)
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    names = [statistic for statistic in alps.STATISTICS if statistic != "changed"]
    found = alps.scan(*paths, temperature=temperature, statistics=names)
    for head in range(2):
        sides = theta(base, shape, 0, head), theta(tuned, shape, 0, head)
        assert_statistics(found, (0, head), oracle.long_statistics(*sides, temperature), TOLERANCE["qkv"])


@pytest.mark.parametrize("count", [1, 3, 40])
@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_few_changed_entries_of_many(tmp_path: Path, dtype: str, count: int) -> None:
    """Between them the running sums drift apart, and meet again, by the normalisers alone."""
    shape = Shape(query_heads=1, key_value_heads=1, head_size=64, hidden_size=1100)
    names = [statistic for statistic in alps.STATISTICS if statistic != "changed"]
    for seed in range(4):
        base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(shape, seed, 0.03).items()}
        tuned = {key: weight.clone() for key, weight in base.items()}
        generator = torch.Generator().manual_seed(seed)
        for weight in tuned.values():
            flat = weight.view(-1)
            flat[torch.randint(flat.numel(), (count,), generator=generator)] *= 1.05
        paths = write_pair(tmp_path, shape.config(), base, tuned)
        found = alps.scan(*paths, statistics=names)
        sides = theta(base, shape, 0, 0), theta(tuned, shape, 0, 0)
        assert_statistics(found, (0, 0), oracle.long_statistics(*sides), TOLERANCE["qkv"])


def test_equal_changes_of_many_entries(tmp_path: Path) -> None:
    """Equal numbers, added one after the other in single precision, are all rounded in the same direction."""
    shape = Shape(query_heads=1, key_value_heads=1, head_size=64, hidden_size=1100)
    for seed, change in enumerate(np.linspace(1e-4, 1.9e-3, 7)):
        base = {key: torch.zeros_like(weight).float() for key, weight in random_weights(shape, seed).items()}
        tuned = {key: weight + float(change) for key, weight in base.items()}
        paths = write_pair(tmp_path, shape.config(), base, tuned)
        expected = float(np.float32(change)) * math.sqrt(3 * 64 * 1100)
        assert alps.scan(*paths)["delta_norm"][0, 0] == pytest.approx(expected, rel=3e-7, abs=0)


@pytest.mark.parametrize("dtype", ["f16", "bf16", "f32"])
def test_changes_that_alternate(tmp_path: Path, dtype: str) -> None:
    """The running sums stay together: what is left between them is a hundredth of what chance would leave."""
    shape = Shape(head_size=32, hidden_size=2200)
    base, tuned = {}, {}
    for key, weight in random_weights(shape, seed=1, scale=0.02).items():
        signs = torch.ones(weight.numel(), dtype=torch.float64)
        signs[1::2] = -1
        base[key] = weight.to(DTYPES[dtype])
        tuned[key] = (weight + 1e-3 * signs.reshape(weight.shape)).to(DTYPES[dtype])
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    names = [statistic for statistic in alps.STATISTICS if statistic != "changed"]
    found = alps.scan(*paths, statistics=names)
    for head in range(shape.query_heads):
        sides = theta(base, shape, 0, head), theta(tuned, shape, 0, head)
        assert_statistics(found, (0, head), oracle.long_statistics(*sides), TOLERANCE["qkv"])


def test_ten_million_entries(tmp_path: Path) -> None:
    shape = Shape(query_heads=1, key_value_heads=1, head_size=256, hidden_size=13021)
    base = {key: weight.to(torch.bfloat16) for key, weight in random_weights(shape, 7, scale=0.02).items()}
    tuned = shifted(base, 0.02, torch.bfloat16, seed=8)
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    expected = oracle.long_statistics(theta(base, shape, 0, 0), theta(tuned, shape, 0, 0))
    del expected["sorted_wasserstein"]
    assert_statistics(alps.scan(*paths), (0, 0), expected, TOLERANCE["qkv"])


def test_both_references_agree() -> None:
    random = np.random.default_rng(9)
    base = random.normal(size=700) * 0.05
    for shift in (1e-7, 1e-3, 1.0):
        tuned = base + random.normal(size=base.size) * shift
        slow, fast = oracle.statistics(base, tuned), oracle.long_statistics(base, tuned)
        for statistic, value in slow.items():
            assert fast[statistic] == pytest.approx(value, rel=1e-9, abs=0), (statistic, shift)


@pytest.mark.parametrize("form", ["qkv", "product"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_identical_checkpoints_score_exactly_zero(tmp_path: Path, dtype: str, form: Form) -> None:
    base = {key: weight.to(DTYPES[dtype]) for key, weight in random_weights(SHAPE, seed=10).items()}
    path = write(tmp_path / "base", SHAPE.config(), base)
    for temperature in (0.01, 1.0, 100.0):
        found = alps.scan(path, path, form=form, temperature=temperature)
        for statistic in found:
            if statistic == "wasserstein_z":
                assert np.isnan(found[statistic]).all()
            else:
                assert (found[statistic] == 0).all(), statistic


def single(folder: Path, weights: tuple[float, float, float]) -> Path:
    """A model of one head with one weight in each matrix."""
    shape = Shape(query_heads=1, key_value_heads=1, head_size=1, hidden_size=1)
    tensors = {
        name(0, matrix): torch.tensor([[weight]], dtype=torch.float64)
        for matrix, weight in zip("qkv", weights, strict=True)
    }
    return write(folder, shape.config(), tensors)


def test_the_softmax_of_one_entry_never_changes(tmp_path: Path) -> None:
    paths = single(tmp_path / "base", (0.3, -0.2, 0.5)), single(tmp_path / "tuned", (0.4, -0.1, 0.6))
    found = alps.scan(*paths, form="product")
    for statistic in ("wasserstein", "kl", "js", "cosine", "euclidean"):
        assert found[statistic].item() == 0, statistic
    delta = 0.4 * -0.1 * 0.6 - 0.3 * -0.2 * 0.5
    assert found["delta_norm"].item() == pytest.approx(abs(delta), rel=1e-12)


# Numbers whose differences float64 holds exactly: what is lost there, nothing later can bring back.
weights = st.integers(-(10**7), 10**7).map(lambda number: number / 1024)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(weights, min_size=6, max_size=6), st.sampled_from([0.01, 0.5, 1.0, 30.0]))
def test_any_weights_at_any_temperature(tmp_path: Path, values: list[float], temperature: float) -> None:
    """Three entries to a side, from equal to so far apart that one of them has all the probability."""
    base, tuned = (values[0], values[1], values[2]), (values[3], values[4], values[5])
    found = alps.scan(
        single(tmp_path / "base", base), single(tmp_path / "tuned", tuned), temperature=temperature
    )
    expected = oracle.statistics(np.array(base), np.array(tuned), temperature, digits=700)
    for statistic in ("wasserstein", "kl", "js", "cosine", "euclidean", "delta_norm", "max_delta"):
        got = found[statistic].item()
        # The squares in a norm leave the range of float64 below 1e-154.
        assert got == pytest.approx(expected[statistic], rel=1e-6, abs=1e-150), statistic


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.floats(-0.2, 0.2), st.sampled_from([1e-9, 1e-5, 1e-2]))
def test_a_shift_common_to_all_entries_changes_no_softmax(
    tmp_path: Path, seed: int, common: float, noise: float
) -> None:
    """The normalisation cancels the common part, and what is left has to keep its digits."""
    base = random_weights(SMALL, seed)
    tuned = {key: weight + common for key, weight in shifted(base, noise, torch.float64, seed + 1).items()}
    found = alps.scan(*write_pair(tmp_path, SMALL.config(), base, tuned))
    expected = oracle.statistics(theta(base, SMALL, 0, 0), theta(tuned, SMALL, 0, 0))
    # float64 weights hold the noise to about 1e-17 beside the common part.
    for statistic in ("wasserstein", "kl", "js", "cosine", "euclidean"):
        assert found[statistic][0, 0] == pytest.approx(expected[statistic], rel=1e-6, abs=0), statistic


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 2**32 - 1), st.sampled_from([1e-6, 1e-3, 0.3]))
def test_symmetries(tmp_path: Path, seed: int, scale: float) -> None:
    """What is a distance is the same both ways, and what has no order keeps no order."""
    base = random_weights(SMALL, seed)
    tuned = shifted(base, scale, torch.float64, seed + 1)
    order = torch.randperm(SMALL.hidden_size, generator=torch.Generator().manual_seed(seed))
    paths = [
        write(tmp_path / folder, SMALL.config(), tensors)
        for folder, tensors in {
            "base": base,
            "tuned": tuned,
            "base shuffled": {key: weight[:, order] for key, weight in base.items()},
            "tuned shuffled": {key: weight[:, order] for key, weight in tuned.items()},
        }.items()
    ]
    forth, back, shuffled = (
        alps.scan(paths[i], paths[j], statistics=alps.STATISTICS) for i, j in ((0, 1), (1, 0), (2, 3))
    )
    for statistic in ("wasserstein", "js", "cosine", "euclidean", "delta_norm", "max_delta", "changed"):
        np.testing.assert_allclose(back[statistic], forth[statistic], rtol=1e-9, err_msg=statistic)
    for statistic in set(alps.STATISTICS) - {"wasserstein", "wasserstein_z"}:
        np.testing.assert_allclose(shuffled[statistic], forth[statistic], rtol=1e-9, err_msg=statistic)


def test_z_is_near_zero_for_changes_in_random_order(tmp_path: Path) -> None:
    shape = Shape(query_heads=40, key_value_heads=40, head_size=8, hidden_size=256)
    base = random_weights(shape, 11)
    tuned = shifted(base, 1e-3, torch.float64, 12)
    found = alps.scan(*write_pair(tmp_path, shape.config(), base, tuned))
    z = found["wasserstein_z"]
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert 0.6 < z.std() < 1.5
