"""Checkpoints with consolidated weights, with variants, and with several sets of files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
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


# Indices


def shards(folder: Path, seed: int = 1) -> Path:
    """Writes a checkpoint with one shard for each layer, without an index."""
    weights = random_weights(SHAPE, seed)
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE.config()))
    for layer in range(SHAPE.layers):
        own = {key: it for key, it in weights.items() if f".{layer}." in key}
        save_file(own, folder / f"model-{layer + 1:05}-of-00002.safetensors")
    return folder


def index(folder: Path, place: str = "", more: dict[str, str] | None = None) -> Path:
    """Writes the index of such a checkpoint, whose shards lie in a folder within."""
    weight_map = {
        key: f"{place}model-{layer + 1:05}-of-00002.safetensors"
        for layer in range(SHAPE.layers)
        for key in random_weights(SHAPE, 1)
        if f".{layer}." in key
    }
    target = folder / place
    target.mkdir(parents=True, exist_ok=True)
    for file in folder.glob("*.safetensors"):
        if target.resolve() != folder.resolve():
            shutil.move(file, target / file.name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": weight_map | (more or {})})
    )
    return folder


@pytest.mark.parametrize("place", ["", "./", "shards/", "./a/b/", "a//b/./"])
def test_shards_may_lie_in_folders_within(place: str, tmp_path: Path) -> None:
    base = write(tmp_path / "base", SHAPE.config(), random_weights(SHAPE, 2))
    whole = write(tmp_path / "whole", SHAPE.config(), random_weights(SHAPE, 1))
    found = alps.scan(base, index(shards(tmp_path / "tuned"), place))
    expected = alps.scan(base, whole)
    assert all(np.array_equal(found[statistic], expected[statistic]) for statistic in expected)


@pytest.mark.parametrize("extra", ["mtp.fc.weight", "mtp.layers.0.self_attn.q_proj.weight", "lm_head.weight"])
def test_an_index_may_name_tensors_that_no_head_needs(extra: str, tmp_path: Path) -> None:
    folder = index(shards(tmp_path / "base"), more={extra: "model-00001-of-00002.safetensors"})
    assert alps.geometry(folder).shape == (2, 4)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("matrix", ["q", "k", "v"])
def test_a_tensor_of_a_head_that_its_shard_lacks_is_named(layer: int, matrix: str, tmp_path: Path) -> None:
    folder = index(shards(tmp_path / "base"))
    shard = f"model-{layer + 1:05}-of-00002.safetensors"
    tensors = load_file(folder / shard)
    del tensors[name(layer, matrix)]
    save_file(tensors, folder / shard)
    with pytest.raises(
        alps.CheckpointError, match=f"tensor `{name(layer, matrix)}` is in `{shard}`, but that file"
    ):
        alps.geometry(folder)


def test_shards_without_an_index_say_how_to_write_one(tmp_path: Path) -> None:
    folder = shards(tmp_path / "base")
    with pytest.raises(alps.CheckpointError, match="found 2 of 2 shards without an index") as caught:
        alps.geometry(folder)
    command = str(caught.value).split("this writes the index: `")[1].removesuffix("`")
    assert "pass the path" not in str(caught.value)
    program = command.split("python -c ")[1].strip("'")
    subprocess.run([sys.executable, "-c", program], cwd=folder, check=True)
    assert alps.geometry(folder).shape == (2, 4)
