"""Every selection rule."""

import math
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alps import ArgumentError, HeadScores
from alps.arguments import RandomRule, RankedRule, Rule
from support.scores import scores, small_geometry, small_scores

ratios = st.one_of(st.floats(0, 1), st.integers(0, 100).map(lambda percent: percent / 100))
rules = st.sampled_from([*get_args(RankedRule), *get_args(RandomRule)])


def expected_count(scores: HeadScores, rule: Rule, ratio: float) -> int:
    def count(total: int) -> int:
        exact = ratio * total
        return round(exact) if math.isclose(exact, round(exact), rel_tol=1e-9) else math.ceil(exact)

    geometry = scores.geometry
    layers, heads = geometry.shape
    if rule in ("per_layer", "layer_consistent"):
        return layers * count(heads)
    if rule == "key_value_groups":
        return count(layers * geometry.key_value_heads) * geometry.heads_per_group
    return count(geometry.heads)


@given(scores(), rules, ratios)
def test_every_rule_selects_its_count(scores: HeadScores, rule: Rule, ratio: float) -> None:
    assert len(scores.select(ratio, rule=rule)) == expected_count(scores, rule, ratio)


@given(scores(), rules, ratios, ratios)
def test_a_smaller_ratio_selects_a_subset(scores: HeadScores, rule: Rule, one: float, other: float) -> None:
    small = scores.select(min(one, other), rule=rule)
    assert len(small - scores.select(max(one, other), rule=rule)) == 0


@given(scores(), ratios)
def test_global_selects_the_best_and_ties_go_to_the_lower(scores: HeadScores, ratio: float) -> None:
    numbers = scores["relative_delta"].reshape(-1).tolist()
    flat = [(math.isnan(score), 0.0 if math.isnan(score) else -score, i) for i, score in enumerate(numbers)]
    heads = scores.select(ratio)
    best = sorted(flat)[: len(heads)]
    assert sorted(index for _, _, index in best) == np.flatnonzero(heads.mask).tolist()


@given(scores(ties=False), ratios, st.data())
def test_permuting_heads_permutes_the_selection(
    scores: HeadScores, ratio: float, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(scores.geometry.heads))))
    permuted = scores["relative_delta"].reshape(-1)[order].reshape(scores.geometry.shape)
    selected = HeadScores({"relative_delta": permuted}, scores.geometry).select(ratio)
    assert np.array_equal(selected.mask.reshape(-1), scores.select(ratio).mask.reshape(-1)[order])


@given(scores(), ratios)
def test_groups_are_selected_whole(scores: HeadScores, ratio: float) -> None:
    heads = scores.select(ratio, rule="key_value_groups")
    assert np.array_equal(
        heads.mask, np.repeat(heads.key_value_groups, scores.geometry.heads_per_group, axis=1)
    )


@given(scores(), st.integers(0, 3000))
def test_a_budget_is_kept_and_used_up(scores: HeadScores, budget: int) -> None:
    heads = scores.select(budget=budget)
    assert heads.report.trainable_parameters <= budget
    ranked = [(layer, head) for layer, head, _ in scores.top(scores.geometry.heads)]
    assert heads.pairs() == sorted(ranked[: len(heads)])
    if len(heads) < len(ranked):
        one_more = type(heads).from_pairs(ranked[: len(heads) + 1], scores.geometry)
        assert one_more.report.trainable_parameters > budget


@given(scores(), st.sampled_from(get_args(RandomRule)), ratios, st.integers(0, 2**64 - 1))
def test_a_seed_means_the_same_heads(scores: HeadScores, rule: Rule, ratio: float, seed: int) -> None:
    assert scores.select(ratio, rule=rule, seed=seed) == scores.select(ratio, rule=rule, seed=seed)


def test_random_heads_never_change() -> None:
    geometry = small_geometry(layers=(0, 1, 2, 3), query_heads=8)
    scores = HeadScores({"relative_delta": np.zeros(geometry.shape)}, geometry)

    def drawn(rule: Rule, seed: int | None) -> list[int]:
        mask = scores.select(0.2, rule=rule, seed=seed).mask
        return [int(index) for index in np.flatnonzero(mask)]

    # tests/rust/select.rs says where these come from
    assert drawn("random", 0) == drawn("random", None) == [4, 13, 14, 16, 19, 22, 26]
    assert drawn("random", 2505) == [2, 8, 11, 12, 15, 18, 20]
    assert drawn("layer_consistent", 2**64 - 1) == [4, 7, 10, 13, 16, 21, 29, 31]


def test_ten_percent_is_the_default_and_rounds_correctly() -> None:
    geometry = small_geometry(query_heads=10)
    assert len(HeadScores({"relative_delta": np.zeros(geometry.shape)}, geometry).select()) == 3


def test_the_provenance_of_a_head_set_gives_the_rule() -> None:
    scores = small_scores()
    assert scores.select().provenance == {
        "rule": "global",
        "statistic": "relative_delta",
        "ratio": "0.1",
        **scores.provenance,
    }
    assert scores.select(budget=100, statistic="kl").provenance["budget"] == "100"
    assert scores.select(0.5, rule="random").provenance["seed"] == "0"
    assert "statistic" not in scores.select(0.5, rule="random").provenance


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"ratio": -0.1}, "-0.1"),
        ({"ratio": 1.5}, "1.5"),
        ({"ratio": math.nan}, "NaN"),
        ({"ratio": 7, "rule": "random"}, "7"),
        ({"ratio": 0.1, "budget": 5}, "ratio 0.1"),
        ({"budget": -1}, "-1"),
        ({"budget": 5, "rule": "per_layer"}, "per_layer"),
        ({"budget": 5, "rule": "random"}, "budget 5"),
        ({"seed": 1}, "seed 1"),
        ({"rule": "random", "seed": -1}, "-1"),
        ({"rule": "random", "seed": 2**64}, str(2**64)),
        ({"rule": "random", "statistic": "kl"}, "kl"),
        ({"rule": "layer_consistent", "statistic": "kl"}, "kl"),
        ({"rule": "best"}, "best"),
        ({"statistic": "cosine"}, "cosine"),
    ],
)
def test_every_argument_is_honoured_or_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        small_scores().select(**arguments)


def test_a_very_large_budget_selects_everything() -> None:
    assert len(small_scores().select(budget=2**70)) == 12


def test_the_binding_refuses_arrays_of_the_wrong_shape() -> None:
    from alps import _alps

    geometry = small_geometry()
    with pytest.raises(ArgumentError, match=r"\[3, 4\]"):
        _alps.select_ranked(np.zeros((4, 3)), geometry, "global", 0.1)
    with pytest.raises(ArgumentError, match="median"):
        _alps.select_ranked(np.zeros((3, 4)), geometry, "median", 0.1)
    with pytest.raises(ArgumentError, match="median"):
        _alps.select_random(geometry, "median", 0.1, 0)
    transposed = np.asfortranarray(small_scores()["relative_delta"])
    assert np.array_equal(
        _alps.select_ranked(transposed, geometry, "global", 0.3), small_scores().select(0.3).mask
    )
