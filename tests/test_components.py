"""Scans of one component of several, of layers of unequal sizes, and of models with different prefixes."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import alps
from support import oracle
from support.checkpoints import Tensors, write, write_pair

HEAD_SIZE = 4
HIDDEN_SIZE = 24


def weights(names: dict[str, tuple[int, int]], seed: int = 0) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05
        for name, shape in names.items()
    }


def with_moved_rows(tensors: Tensors, name: str, first: int, count: int) -> Tensors:
    moved = dict(tensors)
    moved[name] = tensors[name].clone()
    moved[name][first : first + count] += 0.01
    return moved


BART: dict[str, Any] = {
    "model_type": "bart",
    "d_model": HIDDEN_SIZE,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 3,
    "decoder_attention_heads": 6,
}
BART_STACKS = {
    "encoder": ["model.encoder.layers.0.self_attn"],
    "decoder": [f"model.decoder.layers.{layer}.self_attn" for layer in range(2)],
    "cross": [f"model.decoder.layers.{layer}.encoder_attn" for layer in range(2)],
}


def bart() -> Tensors:
    return weights(
        {
            f"{path}.{matrix}_proj.weight": (HIDDEN_SIZE, HIDDEN_SIZE)
            for paths in BART_STACKS.values()
            for path in paths
            for matrix in "qkv"
        }
    )


@pytest.mark.parametrize("component", BART_STACKS)
def test_a_component_is_scanned_apart_from_the_others(component: Any, tmp_path: Path) -> None:
    heads = 3 if component == "encoder" else 6
    size = HIDDEN_SIZE // heads
    path = BART_STACKS[component][-1]
    base, tuned = write_pair(
        tmp_path, BART, bart(), with_moved_rows(bart(), f"{path}.q_proj.weight", 2 * size, size)
    )
    for scanned in BART_STACKS:
        scores = alps.scan(base, tuned, component=scanned)  # type: ignore[arg-type]
        assert scores.geometry.component == scanned
        moved = np.zeros(scores.geometry.shape, dtype=bool)
        if scanned == component:
            moved[-1, 2] = True
        np.testing.assert_array_equal(scores["delta_norm"] > 0, moved)
    assert alps.geometry(base).component == "decoder"


def test_heads_of_one_component_are_not_those_of_another(tmp_path: Path) -> None:
    base = write(tmp_path / "base", BART, bart())
    tuned = write(tmp_path / "tuned", BART, {key: tensor + 0.01 for key, tensor in bart().items()})
    decoder, cross = (alps.scan(base, tuned, component=of).select(0.5) for of in ("decoder", "cross"))
    with pytest.raises(alps.ArgumentError, match="component decoder and cross"):
        decoder.union(cross)
    cross.save(tmp_path / "heads.json")
    loaded = alps.HeadSet.load(tmp_path / "heads.json")
    assert loaded == cross
    assert loaded.geometry.component == "cross"


def test_a_missing_component(tmp_path: Path) -> None:
    base = write(tmp_path / "base", BART, bart())
    with pytest.raises(
        alps.ModelError, match="no attention stack `vision`; there is decoder, encoder, cross"
    ):
        alps.geometry(base, component="vision")
    with pytest.raises(alps.ArgumentError, match='no component "tower"; the components are decoder'):
        alps.geometry(base, component="tower")  # type: ignore[arg-type]


GEMMA: dict[str, Any] = {
    "model_type": "gemma4_text",
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
    "num_kv_shared_layers": 1,
    "attention_k_eq_v": True,
}


def gemma() -> Tensors:
    """Two groups of heads of size 4; one of heads of size 8, whose keys are its values; no keys and values."""
    names: dict[str, tuple[int, int]] = {}
    for layer, size, groups in ((0, HEAD_SIZE, 2), (1, 2 * HEAD_SIZE, 1), (2, HEAD_SIZE, 0)):
        path = f"model.layers.{layer}.self_attn"
        names[f"{path}.q_proj.weight"] = (4 * size, HIDDEN_SIZE)
        if groups:
            names[f"{path}.k_proj.weight"] = (groups * size, HIDDEN_SIZE)
    names["model.layers.0.self_attn.v_proj.weight"] = (2 * HEAD_SIZE, HIDDEN_SIZE)
    norms = {
        f"model.layers.{layer}.self_attn.q_norm.weight": torch.ones(size)
        for layer, size in enumerate((HEAD_SIZE, 2 * HEAD_SIZE, HEAD_SIZE))
    }
    return weights(names) | norms


def test_layers_of_unequal_sizes_have_the_values_of_the_definition(tmp_path: Path) -> None:
    before = gemma()
    after = {
        name: tensor + 0.01 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7))
        if tensor.dim() == 2
        else tensor
        for name, tensor in before.items()
    }
    base, tuned = write_pair(tmp_path, GEMMA, before, after)
    scores = alps.scan(base, tuned)
    assert [sizes.key_value_heads for sizes in scores.geometry.sizes] == [2, 1, 4]

    def theta(tensors: Tensors, layer: int, head: int) -> np.ndarray[Any, Any]:
        path, size = f"model.layers.{layer}.self_attn", (HEAD_SIZE, 2 * HEAD_SIZE, HEAD_SIZE)[layer]
        group = head // 2 if layer == 0 else 0
        parts = {0: ("q", "k", "v"), 1: ("q", "k", "k"), 2: ("q",)}[layer]
        rows = [
            tensors[f"{path}.{part}_proj.weight"][(head if part == "q" else group) * size :][:size]
            for part in parts
        ]
        return np.concatenate([matrix.double().numpy().ravel() for matrix in rows])

    for layer in range(3):
        expected = oracle.statistics(theta(before, layer, 3), theta(after, layer, 3))
        for statistic in ("wasserstein", "kl", "delta_norm"):
            assert scores[statistic][layer, 3] == pytest.approx(expected[statistic], rel=1e-6)

    with pytest.raises(alps.ModelError, match="form product is not defined for layer 2, which has no keys"):
        alps.scan(base, tuned, form="product")
    heads = scores.select(1.0)
    assert heads.report.total_parameters == sum(
        tensor.numel() for name, tensor in before.items() if tensor.dim() == 2
    )


OF_UNEQUAL_NUMBER: dict[str, Any] = {
    "model_type": "laguna",
    "hidden_size": HIDDEN_SIZE,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_attention_heads_per_layer": [6, 2],
    "num_key_value_heads": 2,
    "head_dim": HEAD_SIZE,
}


def test_layers_with_fewer_heads_are_padded_and_never_selected(tmp_path: Path) -> None:
    names = {}
    for layer, heads in enumerate((6, 2)):
        for matrix, count in (("q", heads), ("k", 2), ("v", 2)):
            names[f"model.layers.{layer}.self_attn.{matrix}_proj.weight"] = (count * HEAD_SIZE, HIDDEN_SIZE)
    base, tuned = write_pair(tmp_path, OF_UNEQUAL_NUMBER, weights(names), weights(names, seed=1))
    scores = alps.scan(base, tuned)
    there = np.arange(6) < np.array([[6], [2]])
    np.testing.assert_array_equal(np.isnan(scores["wasserstein"]), ~there)
    assert (scores.geometry.heads, scores.geometry.heads_of(1)) == (8, 2)
    for rule in ("global", "per_layer", "key_value_groups", "random", "layer_consistent"):
        np.testing.assert_array_equal(scores.select(1.0, rule=rule).mask, there)
    assert len(scores.top(100)) == 8
    with pytest.raises(alps.ArgumentError, match="layer 1 has heads 0 to 1"):
        alps.HeadSet.from_pairs([(1, 2)], scores.geometry)

    scores.save(tmp_path / "scores.safetensors")
    loaded = alps.HeadScores.load(tmp_path / "scores.safetensors")
    assert loaded == scores
    half = scores.select(0.5)
    half.save(tmp_path / "heads.json")
    assert alps.HeadSet.load(tmp_path / "heads.json") == half


@pytest.mark.parametrize("prefix", ["", "model.", "bert.", "a.name.of.another.library."])
def test_prefixes_of_base_and_tuned_may_differ(prefix: str, tmp_path: Path) -> None:
    config = {
        "model_type": "bert",
        "num_hidden_layers": 1,
        "num_attention_heads": 6,
        "hidden_size": HIDDEN_SIZE,
    }
    names = {
        f"encoder.layer.0.attention.self.{matrix}.weight": (HIDDEN_SIZE, HIDDEN_SIZE)
        for matrix in ("query", "key", "value")
    }
    before = weights(names)
    after = with_moved_rows(before, "encoder.layer.0.attention.self.key.weight", 4, 4)
    base, tuned = write_pair(
        tmp_path, config, before, {prefix + name: tensor for name, tensor in after.items()}
    )
    assert (alps.scan(base, tuned)["delta_norm"] > 0).tolist() == [[False, True, False, False, False, False]]


def test_a_fused_base_and_a_separate_tuned_model(tmp_path: Path) -> None:
    config = {
        "model_type": "nomic_bert",
        "num_hidden_layers": 1,
        "num_attention_heads": 3,
        "hidden_size": HIDDEN_SIZE,
    }
    fused = weights({"encoder.layers.0.attn.Wqkv.weight": (3 * HIDDEN_SIZE, HIDDEN_SIZE)})
    (together,) = fused.values()
    apart = {
        f"layers.0.self_attn.{matrix}_proj.weight": part
        for matrix, part in zip("qkv", together.clone().chunk(3), strict=True)
    }
    base = write(tmp_path / "base", config, fused)
    same = write(tmp_path / "same", config, apart)
    assert (alps.scan(base, same)["delta_norm"] == 0).all()
    tuned = write(
        tmp_path / "tuned", config, with_moved_rows(apart, "layers.0.self_attn.v_proj.weight", 8, 8)
    )
    assert (alps.scan(base, tuned)["delta_norm"] > 0).tolist() == [[False, True, False]]


def test_an_inspection_lists_what_is_read_and_what_is_not(tmp_path: Path) -> None:
    tensors = bart()
    extra = "model.decoder.layers.2.self_attn.q_proj.weight"
    base = write(tmp_path / "base", BART, tensors | weights({extra: (HIDDEN_SIZE, HIDDEN_SIZE)}))
    found = alps.inspect(base)
    assert found.geometry == alps.geometry(base)
    assert [module.name for module in found.modules][:2] == [
        "model.decoder.layers.0.self_attn.q_proj",
        "model.decoder.layers.0.self_attn.k_proj",
    ]
    assert {module.dtype for module in found.modules} == {"F64"}
    assert found.bytes == 6 * HIDDEN_SIZE * HIDDEN_SIZE * 8
    reasons = dict(found.left_out)
    assert reasons["1 layers from number 2 on"].startswith("the configuration says that there are 2 layers")
    assert reasons["model.encoder.layers.#.self_attn (1 layers)"] == "it is the attention of the encoder"


def test_a_layout_names_a_model_type_once_per_component() -> None:
    layouts = {layout.name: layout for layout in alps.layouts()}
    assert "llama" in layouts["separate"].model_types["decoder"]
    assert layouts["cross"].model_types.keys() == {"cross"}
