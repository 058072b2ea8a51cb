"""Model types that load by remote code or live in other libraries."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import alps
from support import types_elsewhere
from support.checkpoints import Shape, Tensors, name, write_pair
from support.types_elsewhere import HEAD_SIZE, HIDDEN, LATENT_TYPES, LAYERS, QUERY_HEADS, TYPES, TypeElsewhere


def matrices_of(groups: int, generator: torch.Generator) -> list[types_elsewhere.Matrices]:
    rows = {"q": QUERY_HEADS * HEAD_SIZE, "k": groups * HEAD_SIZE, "v": groups * HEAD_SIZE}
    return [
        {kind: torch.randn(count, HIDDEN, generator=generator) for kind, count in rows.items()}
        for _ in range(LAYERS)
    ]


def random_tensors(shapes: Mapping[str, tuple[int, ...]], generator: torch.Generator) -> Tensors:
    return {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}


@pytest.mark.parametrize("one", TYPES, ids=lambda one: f"{one.model_type}-{one.published.split('/')[-1]}")
def test_the_scores_are_those_of_the_same_matrices_in_a_llama(one: TypeElsewhere, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    base, tuned = matrices_of(one.groups, generator), matrices_of(one.groups, generator)

    def stored(layers: list[types_elsewhere.Matrices]) -> Tensors:
        own = {key: it for layer, them in enumerate(layers) for key, it in one.store(layer, them).items()}
        return own | random_tensors(one.others, generator)

    def as_llama(layers: list[types_elsewhere.Matrices]) -> Tensors:
        return {name(layer, kind): it for layer, them in enumerate(layers) for kind, it in them.items()}

    config = one.config | {"model_type": one.model_type}
    found = alps.scan(
        *write_pair(tmp_path / one.model_type, config, stored(base), stored(tuned)), component=one.component
    )
    shape = Shape(LAYERS, QUERY_HEADS, one.groups, HEAD_SIZE, HIDDEN)
    expected = alps.scan(*write_pair(tmp_path / "llama", shape.config(), as_llama(base), as_llama(tuned)))
    assert found.geometry.component == one.component
    assert found.geometry.sizes == expected.geometry.sizes
    for statistic in expected.statistics:
        np.testing.assert_array_equal(found[statistic], expected[statistic])
    if one.component == "decoder":
        assert alps.geometry(tmp_path / one.model_type / "base") == found.geometry


@pytest.mark.parametrize("model_type", LATENT_TYPES)
def test_latent_attention_is_read_as_that_of_deepseek(model_type: str, tmp_path: Path) -> None:
    _, config, layers, others = LATENT_TYPES[model_type]
    shapes = types_elsewhere.latent_shapes(config, layers)
    generator = torch.Generator().manual_seed(0)
    base, tuned = random_tensors(shapes, generator), random_tensors(shapes, generator)
    pair = write_pair(
        tmp_path / model_type,
        config | {"model_type": model_type},
        base | random_tensors(others, generator),
        tuned | random_tensors(others, generator),
    )
    inner = config.get("text_config") or config.get("language_config") or config

    def renamed(tensors: Tensors) -> Tensors:
        return {key.replace(layers, "model.layers", 1): it for key, it in tensors.items()}

    deepseek = write_pair(
        tmp_path / "deepseek", inner | {"model_type": "deepseek_v3"}, renamed(base), renamed(tuned)
    )
    found, expected = alps.scan(*pair), alps.scan(*deepseek)
    assert found.geometry.component == "decoder"
    for statistic in expected.statistics:
        np.testing.assert_array_equal(found[statistic], expected[statistic])


def test_groups_may_differ_from_layer_to_layer(tmp_path: Path) -> None:
    """OpenELM has more heads in its later layers; a Nemotron-NAS has layers without attention."""
    config = {
        "model_type": "openelm",
        "head_dim": 4,
        "model_dim": 16,
        "num_transformer_layers": 2,
        "num_query_heads": [2, 4],
        "num_kv_heads": [1, 2],
    }
    tensors = {
        f"transformer.layers.{layer}.attn.qkv_proj.weight": torch.randn(rows, 16)
        for layer, rows in enumerate((16, 32))
    }
    base, _ = write_pair(tmp_path / "openelm", config, tensors, tensors)
    assert [(layer.query_heads, layer.key_value_heads) for layer in alps.geometry(base).sizes] == [
        (2, 1),
        (4, 2),
    ]
    config = {
        "model_type": "nemotron-nas",
        "hidden_size": 16,
        "num_attention_heads": 4,
        "num_hidden_layers": 3,
        "num_key_value_heads": None,
        "block_configs": [
            {"attention": {"n_heads_in_group": 4, "no_op": False, "replace_with_linear": False}},
            {"attention": {"n_heads_in_group": None, "no_op": True, "replace_with_linear": False}},
            {"attention": {"n_heads_in_group": 2, "no_op": False, "replace_with_linear": False}},
        ],
    }
    tensors = {
        f"model.layers.{layer}.self_attn.{matrix}_proj.weight": torch.randn(rows, 16)
        for layer, groups in ((0, 1), (2, 2))
        for matrix, rows in (("q", 16), ("k", 4 * groups), ("v", 4 * groups))
    }
    base, _ = write_pair(tmp_path / "nas", config, tensors, tensors)
    geometry = alps.geometry(base)
    assert geometry.layers == (0, 2)
    assert [layer.key_value_heads for layer in geometry.sizes] == [1, 2]


REFUSED = {
    # ChatGLM-6B stores the queries, the key and the value of one head after the other.
    "chatglm": (
        {"hidden_size": 32, "num_attention_heads": 4, "num_layers": 1, "position_encoding_2d": True},
        {"transformer.layers.0.attention.query_key_value.weight": (96, 32)},
        "should have an attention stack",
    ),
    "cogvlm": (
        types_elsewhere.MULTI_HEAD,
        {
            f"model.layers.0.self_attn.{kind}_expert_query_key_value.weight": (96, 32)
            for kind in ("vision", "language")
        },
        "separate weights",
    ),
    # Phi-4-multimodal keeps LoRA matrices for images and for speech beside the weights.
    "phi4mm": (
        types_elsewhere.LLAMA | {"num_hidden_layers": 1},
        {
            "model.layers.0.self_attn.qkv_proj.base_layer.weight": (64, 32),
            "model.layers.0.self_attn.qkv_proj.lora_A.speech.weight": (2, 32),
            "model.layers.0.self_attn.qkv_proj.lora_B.speech.weight": (64, 2),
        },
        "adapter",
    ),
    # Hunyuan-Large shares keys and values between two layers where `use_cla` is set.
    "hunyuan": (
        types_elsewhere.LLAMA | {"use_cla": True, "cla_share_factor": 2},
        {
            f"model.layers.{layer}.self_attn.{matrix}_proj.weight": (rows, 32)
            for layer, matrices in ((0, "qkv"), (1, "q"))
            for matrix, rows in (("q", 32), ("k", 16), ("v", 16))
            if matrix in matrices
        },
        "k_proj",
    ),
}


@pytest.mark.parametrize("model_type", REFUSED)
def test_what_is_stored_otherwise_is_refused(model_type: str, tmp_path: Path) -> None:
    config, shapes, reason = REFUSED[model_type]
    tensors = random_tensors(shapes, torch.Generator().manual_seed(0))
    pair = write_pair(
        tmp_path, config | {"model_type": model_type}, tensors, {k: it + 1 for k, it in tensors.items()}
    )
    with pytest.raises(alps.AlpsError, match=reason):
        alps.scan(*pair)
