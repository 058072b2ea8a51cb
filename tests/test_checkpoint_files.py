"""Checkpoints with consolidated weights, with variants, and with several sets of files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import alps
from support.checkpoints import Shape, Tensors, name, random_weights, write
from support.oracle import statistics

SHAPE = Shape(layers=2, query_heads=4, key_value_heads=2, head_size=6, hidden_size=24)


def consolidated(folder: Path, tensors: Tensors, parameters: dict[str, int] | None = None) -> Tensors:
    """Writes the weights of a Llama as Meta does; the inverse of the permutation of transformers' conversion."""
    written = {}
    for layer in range(SHAPE.layers):
        for matrix in "qkv":
            weight = tensors[name(layer, matrix)]
            if matrix in "qk":
                split = weight.view(-1, 2, SHAPE.head_size // 2, SHAPE.hidden_size)
                weight = split.transpose(1, 2).reshape(weight.shape)
            written[f"layers.{layer}.attention.w{matrix}.weight"] = weight.contiguous()
    folder.mkdir()
    save_file(written, folder / "consolidated.safetensors")
    sizes = {"dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "head_dim": 6, "hidden_dim": 64}
    (folder / "params.json").write_text(json.dumps(sizes if parameters is None else parameters))
    return written


def theta(written: Tensors, layer: int, head: int) -> np.ndarray:
    size, group = SHAPE.head_size, head // 2
    parts = [(matrix, head if matrix == "q" else group) for matrix in "qkv"]
    rows = [
        written[f"layers.{layer}.attention.w{matrix}.weight"][index * size : (index + 1) * size]
        for matrix, index in parts
    ]
    return torch.cat(rows).numpy().ravel()


def test_consolidated_weights_are_compared_in_their_own_order(tmp_path: Path) -> None:
    sides = random_weights(SHAPE, 1), random_weights(SHAPE, 2)
    folders = tmp_path / "base", tmp_path / "tuned"
    written = [consolidated(folder, tensors) for folder, tensors in zip(folders, sides, strict=True)]
    scores = alps.scan(*folders)
    assert scores.provenance["base_files"] == "consolidated.safetensors"
    for layer in range(SHAPE.layers):
        for head in range(SHAPE.query_heads):
            expected = statistics(theta(written[0], layer, head), theta(written[1], layer, head))
            for statistic in ("wasserstein", "kl", "delta_norm"):
                assert scores[statistic][layer, head] == pytest.approx(expected[statistic], rel=1e-6)
    # What does not depend on the order of rows is as after conversion.
    usual = [write(tmp_path / f"usual {side}", SHAPE.config(), tensors) for side, tensors in enumerate(sides)]
    np.testing.assert_allclose(alps.scan(*usual)["delta_norm"], scores["delta_norm"], rtol=1e-9)


def test_consolidated_weights_are_not_compared_with_converted_ones(tmp_path: Path) -> None:
    tensors = random_weights(SHAPE, 1)
    consolidated(tmp_path / "base", tensors)
    tuned = write(tmp_path / "tuned", SHAPE.config(), tensors)
    for pair in ((tmp_path / "base", tuned), (tuned, tmp_path / "base")):
        with pytest.raises(alps.PairError, match=r"rows within a head in another order.*convert"):
            alps.scan(*pair)


def test_a_folder_with_both_kinds_is_read_as_by_transformers(tmp_path: Path) -> None:
    tensors = random_weights(SHAPE, 1)
    consolidated(tmp_path / "base", {key: -weight for key, weight in tensors.items()})
    both = tmp_path / "both"
    write(both, SHAPE.config(), tensors)
    for file in ("consolidated.safetensors", "params.json"):
        shutil.copy(tmp_path / "base" / file, both / file)
    scores = alps.scan(both, write(tmp_path / "usual", SHAPE.config(), tensors))
    assert (scores["delta_norm"] == 0).all()
    assert scores.provenance["base_files"] == "model.safetensors"
    assert (alps.scan(both / "consolidated.safetensors", tmp_path / "base")["delta_norm"] == 0).all()


def test_missing_head_sizes(tmp_path: Path) -> None:
    """Meta's files have no `head_dim`, and old ones no `n_kv_heads`."""
    tensors = random_weights(SHAPE, 1)
    consolidated(tmp_path / "base", tensors, {"dim": 24, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2})
    assert alps.geometry(tmp_path / "base").shape == (2, 4)
    (tmp_path / "base" / "params.json").write_text(json.dumps({"dim": 24, "n_layers": 2, "n_heads": 4}))
    with pytest.raises(alps.ModelError, match=r"layers.0.attention.wk"):
        alps.geometry(tmp_path / "base")


def test_a_variant_is_read_if_it_is_alone_or_named(tmp_path: Path) -> None:
    tensors = random_weights(SHAPE, 1)
    usual = write(tmp_path / "usual", SHAPE.config(), tensors)
    half = write(tmp_path / "half", SHAPE.config(), {key: it.half() for key, it in tensors.items()})
    variant = (half / "model.safetensors").rename(half / "model.fp16.safetensors")
    scores = alps.scan(usual, half)
    assert scores.provenance["tuned_files"] == "model.fp16.safetensors"
    assert (scores["delta_norm"] > 0).all()
    shutil.copy(usual / "model.safetensors", half / "model.safetensors")
    assert (alps.scan(usual, half)["delta_norm"] == 0).all()
    assert alps.scan(usual, variant)["delta_norm"].tolist() == scores["delta_norm"].tolist()
    assert load_file(variant)[name(0, "q")].dtype == torch.float16
