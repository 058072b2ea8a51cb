"""Every selection rule."""

import math
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import alps
from alps import ArgumentError, HeadScores
from alps.scores import RandomRule, RankedRule, Rule
from support.checkpoints import write_pair
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
    numbers = scores["wasserstein"].reshape(-1).tolist()
    flat = [(math.isnan(score), 0.0 if math.isnan(score) else -score, i) for i, score in enumerate(numbers)]
    heads = scores.select(ratio)
    best = sorted(flat)[: len(heads)]
    assert sorted(index for _, _, index in best) == np.flatnonzero(heads.mask).tolist()


@given(scores(ties=False), ratios, st.data())
def test_permuting_heads_permutes_the_selection(
    scores: HeadScores, ratio: float, data: st.DataObject
) -> None:
    order = np.array(data.draw(st.permutations(range(scores.geometry.heads))))
    permuted = scores["wasserstein"].reshape(-1)[order].reshape(scores.geometry.shape)
    selected = HeadScores({"wasserstein": permuted}, scores.geometry).select(ratio)
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
    scores = HeadScores({"wasserstein": np.zeros(geometry.shape)}, geometry)

    def drawn(rule: Rule, seed: int | None) -> list[int]:
        mask = scores.select(0.2, rule=rule, seed=seed).mask
        return [int(index) for index in np.flatnonzero(mask)]

    # tests/rust/select.rs says where these come from
    assert drawn("random", 0) == drawn("random", None) == [4, 13, 14, 16, 19, 22, 26]
    assert drawn("random", 2505) == [2, 8, 11, 12, 15, 18, 20]
    assert drawn("layer_consistent", 2**64 - 1) == [4, 7, 10, 13, 16, 21, 29, 31]


def test_ten_percent_is_the_default_and_rounds_correctly() -> None:
    geometry = small_geometry(query_heads=10)
    assert len(HeadScores({"wasserstein": np.zeros(geometry.shape)}, geometry).select()) == 3


def test_the_provenance_of_a_head_set_gives_the_rule() -> None:
    scores = small_scores()
    assert scores.select().provenance == {
        "rule": "global",
        "statistic": "wasserstein",
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
    transposed = np.asfortranarray(small_scores()["wasserstein"])
    assert np.array_equal(
        _alps.select_ranked(transposed, geometry, "global", 0.3), small_scores().select(0.3).mask
    )


# Heads that have not moved


def scanned(tmp_path: Path, moved: dict[tuple[int, int], float], **options: Any) -> HeadScores:
    """The scores of a tiny model of which these heads have moved, each by this much."""
    names = {"q": 32, "k": 32, "v": 32}
    base = {
        f"model.layers.{layer}.self_attn.{name}_proj.weight": torch.randn(
            rows, 32, generator=torch.Generator().manual_seed(layer)
        )
        for layer in range(4)
        for name, rows in names.items()
    }
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    for (layer, head), by in moved.items():
        tuned[f"model.layers.{layer}.self_attn.q_proj.weight"][8 * head : 8 * head + 8] += by * torch.rand(
            8, 32
        )
    config = {"model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 4}
    return alps.scan(*write_pair(tmp_path, config, base, tuned), **options)


@pytest.mark.parametrize("statistics", [None, *([name] for name in alps.STATISTICS)])
@pytest.mark.parametrize("rule", get_args(RankedRule))
def test_equal_weights_select_no_head(rule: RankedRule, statistics: Any, tmp_path: Path) -> None:
    with pytest.warns(alps.AlpsWarning, match="the attention weights of both checkpoints are equal"):
        scores = scanned(tmp_path, {}, statistics=statistics)
    with pytest.raises(alps.UnchangedError, match="no head has moved"):
        scores.select(rule=rule)
    assert len(scores.select(0.0, rule=rule)) == 0
    assert len(scores.select(0.25, rule="random")) == 4
    scores.save(tmp_path / "scores.safetensors")
    with pytest.raises(alps.UnchangedError):
        HeadScores.load(tmp_path / "scores.safetensors").select(rule=rule)


@pytest.mark.parametrize("statistics", [None, ["wasserstein"], ["wasserstein_z"], ["cosine"], ["changed"]])
def test_heads_that_have_not_moved_are_never_selected(statistics: Any, tmp_path: Path) -> None:
    moved = {(1, 2): 0.5, (3, 0): 0.1, (3, 1): 0.3}
    scores = scanned(tmp_path, moved, statistics=statistics)
    assert len(scores.select(2 / 16)) == 2
    tries: list[tuple[Rule, float]] = [("global", 0.5), ("per_layer", 0.75), ("global", 1.0)]
    for rule, ratio in tries:
        with pytest.warns(alps.AlpsWarning, match="only 3 heads are selected instead of"):
            assert scores.select(ratio, rule=rule).pairs() == sorted(moved)
    with pytest.warns(alps.AlpsWarning, match="only 3 heads"):
        assert scores.select(budget=10**9).pairs() == sorted(moved)


def test_groups_of_a_moved_head_are_selected_whole(tmp_path: Path) -> None:
    names = {"q": 32, "k": 16, "v": 16}
    base = {
        f"model.layers.0.self_attn.{name}_proj.weight": torch.randn(rows, 32) for name, rows in names.items()
    }
    tuned = {name: tensor.clone() for name, tensor in base.items()}
    tuned["model.layers.0.self_attn.q_proj.weight"][24:] += 0.1
    config = {
        "model_type": "llama", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 2,
        "num_hidden_layers": 1,
    }  # fmt: skip
    scores = alps.scan(*write_pair(tmp_path, config, base, tuned))
    with pytest.warns(alps.AlpsWarning, match="only 2 heads are selected instead of 4"):
        assert scores.select(1.0, rule="key_value_groups").pairs() == [(0, 2), (0, 3)]
