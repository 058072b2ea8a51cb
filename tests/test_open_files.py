"""Checkpoints of more shards than a process may have open."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import save_file

import alps
from support.checkpoints import Shape, Tensors, random_weights, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no such limit")

SHAPE = Shape(layers=100)

SCAN = """
import resource, sys
import alps
# Files that are open before it is set stay open.
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
base, tuned, scores, mmap = sys.argv[1:]
alps.scan(base, tuned, mmap=mmap == "True", threads=4).save(scores)
"""


def shard(folder: Path, weights: Tensors) -> Path:
    """Writes a shard for every layer."""
    folder.mkdir()
    shards = {
        key: f"model-{int(key.split('.')[2]) + 1:05}-of-{SHAPE.layers:05}.safetensors" for key in weights
    }
    for file in set(shards.values()):
        save_file({key: weights[key] for key in weights if shards[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "config.json").write_text(json.dumps(SHAPE.config()))
    return folder


@pytest.mark.parametrize("mmap", [True, False])
def test_a_hundred_shards_of_attention_on_either_side_within_64_open_files(
    tmp_path: Path, mmap: bool
) -> None:
    sides = [random_weights(SHAPE, seed) for seed in (1, 2)]
    shards = [shard(tmp_path / f"shards {seed}", weights) for seed, weights in enumerate(sides)]
    whole = [write(tmp_path / f"whole {seed}", SHAPE.config(), weights) for seed, weights in enumerate(sides)]
    subprocess.run(
        [sys.executable, "-c", SCAN, *shards, tmp_path / "scores.safetensors", str(mmap)],
        check=True,
        timeout=300,
    )
    expected = alps.scan(*whole)
    found = alps.HeadScores.load(tmp_path / "scores.safetensors")
    for statistic in expected:
        np.testing.assert_array_equal(found[statistic], expected[statistic])
