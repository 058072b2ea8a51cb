"""Comparisons of scores and head sets against their definitions."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from scipy.stats import ConstantInputWarning, spearmanr

import alps
from alps import ArgumentError, Geometry, HeadScores, HeadSet
from support.scores import geometries, small_geometry, small_scores


@st.composite
def tasks(draw: st.DrawFn) -> list[HeadScores]:
    geometry = draw(geometries())
    # Not `st.floats(width=16)`: hypothesis also tries the constants of the project, few of which have 16 bits.
    sixteenths = st.integers(-(2**15), 2**15).map(lambda number: number / 16)
    number = st.one_of(st.integers(-2, 2).map(float), sixteenths, st.just(math.nan))
    matrix = arrays.arrays(np.float64, geometry.shape, elements=number)
    return [HeadScores({"kl": draw(matrix)}, geometry) for _ in range(draw(st.integers(2, 4)))]


def expected_correlation(one: HeadScores, other: HeadScores) -> float:
    both = ~(np.isnan(one["kl"]) | np.isnan(other["kl"]))
    first, second = one["kl"][both], other["kl"][both]
    if len(set(first)) < 2 or len(set(second)) < 2:
        return math.nan  # as scipy says, with a warning
    return float(spearmanr(first, second).statistic)


def expected_by_lot(heads: int, one: int, other: int) -> Fraction:
    """The mean number of heads in both of two sets, over all sets of their sizes."""
    ways = (math.comb(one, both) * math.comb(heads - one, other - both) * both for both in range(other + 1))
    return Fraction(sum(ways), math.comb(heads, other))


@given(tasks=tasks(), ratio=st.floats(0, 1))
def test_the_numbers_are_those_of_their_definitions(tasks: list[HeadScores], ratio: float) -> None:
    named = {f"task {number}": scores for number, scores in enumerate(tasks)}
    comparison = alps.compare(named, ratio=ratio)
    assert comparison.names == tuple(named)
    assert comparison.statistic == "kl"
    chosen = {name: scores.select(ratio) for name, scores in named.items()}
    assert comparison.heads == chosen
    assert [(pair.first, pair.second) for pair in comparison.pairs] == list(itertools.combinations(named, 2))
    for pair in comparison.pairs:
        one, other = set(chosen[pair.first]), set(chosen[pair.second])
        assert pair.shared == len(one & other)
        assert pair.jaccard == (len(one & other) / len(one | other) if one | other else 1)
        heads = tasks[0].geometry.heads
        assert pair.by_chance == pytest.approx(float(expected_by_lot(heads, len(one), len(other))))
        expected = expected_correlation(named[pair.first], named[pair.second])
        assert pair.rank_correlation == pytest.approx(expected, abs=1e-12, nan_ok=True)
    counts = sum(heads.mask.astype(int) for heads in chosen.values())
    assert np.array_equal(comparison.counts, counts)


def test_equal_and_opposite_scores() -> None:
    scores = small_scores()
    (same,) = alps.compare({"a": scores, "b": scores}, ratio=0.25).pairs
    assert (same.shared, same.jaccard, same.rank_correlation) == (3, 1.0, 1.0)
    (opposite,) = alps.compare(
        {
            "a": HeadScores({"x": scores["relative_delta"]}, scores.geometry),
            "b": HeadScores({"x": scores["kl"]}, scores.geometry),
        }
    ).pairs
    assert (opposite.shared, opposite.rank_correlation) == (0, -1.0)
    constant = HeadScores({"x": np.ones((3, 4))}, scores.geometry)
    (unknown,) = alps.compare({"a": constant, "b": constant}).pairs
    with pytest.warns(ConstantInputWarning):
        assert math.isnan(spearmanr(constant["x"].ravel(), constant["x"].ravel()).statistic)
    assert math.isnan(unknown.rank_correlation)


def test_head_sets_are_taken_as_they_are() -> None:
    scores = small_scores()
    by_hand = HeadSet.from_pairs([(0, 1), (3, 3)], scores.geometry)
    comparison = alps.compare({"scores": scores, "by hand": by_hand}, ratio=0.25)
    assert comparison.heads["by hand"] is by_hand
    assert list(comparison.scores) == ["scores"]
    (pair,) = comparison.pairs
    assert (pair.shared, pair.by_chance, pair.jaccard) == (1, 0.5, 0.25)
    assert math.isnan(pair.rank_correlation)
    lines = str(comparison).splitlines()
    assert lines[0].split() == ["shared", "by", "chance", "jaccard", "rank", "correlation"]
    assert lines[1].split() == ["scores,", "by", "hand", "1", "0.5", "0.250", "nan"]
    assert alps.compare({"a": by_hand, "b": by_hand}).statistic is None


def test_a_model_without_attention_has_nothing_to_share() -> None:
    empty = HeadSet.from_pairs([], small_geometry(layers=()))
    (pair,) = alps.compare({"a": empty, "b": empty}).pairs
    assert (pair.shared, pair.by_chance, pair.jaccard) == (0, 0, 1)


def other_geometry() -> Geometry:
    return small_geometry(head_size=3)


@pytest.mark.parametrize(
    ("tasks", "options", "said"),
    [
        ({}, {}, "found 0"),
        ({"a": small_scores()}, {}, "found 1"),
        (
            {"a": small_scores(), "b": HeadSet.from_pairs([], other_geometry())},
            {},
            "a and b are of two geometries: head_size 2 and 3",
        ),
        ({"a": small_scores(), "b": small_scores()}, {"statistic": "js"}, "'js'"),
        ({"a": small_scores(), "b": small_scores()}, {"ratio": 2.0}, "ratio"),
        ({"a": small_scores().select(), "b": small_scores().select()}, {"ratio": 0.2}, "found ratio 0.2"),
        (
            {"a": small_scores().select(), "b": small_scores().select()},
            {"statistic": "kl"},
            "found statistic kl",
        ),
        (
            {"a": small_scores(), "b": HeadScores({"kl": small_scores()["kl"]}, small_geometry())},
            {},
            "a by relative_delta, b by kl",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(
    tasks: dict[str, HeadScores | HeadSet], options: dict[str, object], said: str
) -> None:
    with pytest.raises(ArgumentError, match=said):
        alps.compare(tasks, **options)  # type: ignore[arg-type]
