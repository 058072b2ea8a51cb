"""Selection from scans of heads of which some, or all, have not moved."""

from pathlib import Path
from typing import Any, get_args

import pytest
import torch

import alps
from alps import HeadScores
from alps.arguments import RankedRule, Rule
from support.checkpoints import write_pair


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
