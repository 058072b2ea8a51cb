"""A scan of a checkpoint of a terabyte has correct scores and takes no more memory than a small one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

import alps
from support import oracle
from support.checkpoints import Shape, Tensors, name, random_weights, theta, write, write_pair, write_sparse
from support.scores import assert_statistics

MEBIBYTE = 1 << 20

# A mixture of experts: of more than a tebibyte, 48 MiB are Q, K and V.
SHAPE = Shape(layers=8, query_heads=16, key_value_heads=4, head_size=64, hidden_size=2048)
EXPERTS = ("BF16", (128, 1 << 18, SHAPE.hidden_size))
"""The experts of one layer: 128 GiB."""


@pytest.fixture(scope="module", autouse=True)
def _room(tmp_path_factory: pytest.TempPathFactory) -> None:
    probe = tmp_path_factory.mktemp("probe") / "sparse"
    try:
        with probe.open("wb") as file:
            file.truncate(1 << 37)
            file.seek(1 << 36)
            file.write(b"a few bytes")
        blocks = getattr(probe.stat(), "st_blocks", None)
    except OSError as error:
        pytest.skip(f"the file system has no files of 128 GiB: {error}")
    finally:
        probe.unlink(missing_ok=True)
    if blocks is None or blocks * 512 > MEBIBYTE:
        pytest.skip("the file system of the temporary folder has no sparse files")


def mixture(folder: Path, written: Mapping[str, Mapping[int, bytes]]) -> Path:
    """A model of one shard to a layer; what is not written is 0."""
    folder.mkdir()
    weight_map: dict[str, str] = {}
    for layer in range(SHAPE.layers):
        tensors = {
            f"model.layers.{layer}.mlp.experts.up_proj": EXPERTS,
            **{
                name(layer, matrix): ("BF16", (rows, SHAPE.hidden_size))
                for matrix, rows in SHAPE.rows().items()
            },
            f"model.layers.{layer}.self_attn.o_proj.weight": ("BF16", (SHAPE.hidden_size, 1024)),
        }
        file = f"model-{layer + 1:05}-of-{SHAPE.layers:05}.safetensors"
        weight_map |= dict.fromkeys(tensors, file)
        here = {key: pieces for key, pieces in written.items() if key in tensors}
        write_sparse(folder / file, tensors, here)
    (folder / "config.json").write_text(json.dumps(SHAPE.config() | {"model_type": "qwen3_moe"}))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def scan_apart(
    base: Path, tuned: Path, output: Path, form: str = "qkv", threads: int = 2
) -> tuple[alps.HeadScores, int, int]:
    """Scans in a process of its own: the scores, the bytes it read, and its peak of memory in bytes."""
    code = """
import json, sys
from pathlib import Path
import alps
base, tuned, output, form, threads = sys.argv[1:]
done = []
scores = alps.scan(base, tuned, form=form, threads=int(threads), progress=lambda *bytes: done.append(bytes))
scores.save(output)
status = Path("/proc/self/status")
if status.exists():
    # On Linux a child's resource usage begins with the peak of its parent.
    (peak,) = (int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    import resource
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
assert done[-1][0] == done[-1][1]
print(json.dumps([done[-1][1], peak]))
"""
    command = [sys.executable, "-c", code, str(base), str(tuned), str(output), form, str(threads)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    read, peak = json.loads(result.stdout)
    return alps.HeadScores.load(output), read, peak


def to_bytes(weight: torch.Tensor) -> bytes:
    return weight.contiguous().view(torch.int16).numpy().tobytes()


def real_data(seed: int) -> tuple[Tensors, dict[str, dict[int, bytes]]]:
    """The whole of the few tensors that are not 0, and what of them to write where."""
    tensors: Tensors = {}
    written: dict[str, dict[int, bytes]] = {}
    generator = torch.Generator().manual_seed(seed)
    # A query head in the middle, the last of all, and a key and a value matrix of other groups.
    for layer, matrix, index in ((0, "k", 3), (2, "q", 5), (2, "v", 0), (7, "q", 15)):
        rows = slice(index * SHAPE.head_size, (index + 1) * SHAPE.head_size)
        weight = torch.zeros(SHAPE.rows()[matrix], SHAPE.hidden_size, dtype=torch.bfloat16)
        weight[rows] = torch.randn(SHAPE.head_size, SHAPE.hidden_size, generator=generator).bfloat16() * 0.05
        key = name(layer, matrix)
        tensors[key] = weight
        written[key] = {rows.start * SHAPE.hidden_size * 2: to_bytes(weight[rows])}
    return tensors, written


MOVED = {(0, 12), (0, 13), (0, 14), (0, 15), (2, 0), (2, 1), (2, 2), (2, 3), (2, 5), (7, 15)}


@pytest.fixture(scope="module")
def small_peak(tmp_path_factory: pytest.TempPathFactory) -> int:
    """The peak of memory for one layer of heads of the same size."""
    folder = tmp_path_factory.mktemp("small")
    shape = Shape(query_heads=4, key_value_heads=2, head_size=SHAPE.head_size, hidden_size=SHAPE.hidden_size)
    paths = []
    for seed, side in enumerate(("base", "tuned")):
        tensors = {key: weight.bfloat16() for key, weight in random_weights(shape, seed).items()}
        paths.append(write(folder / side, shape.config(), tensors))
    return scan_apart(paths[0], paths[1], folder / "scores")[2]


def test_a_terabyte_with_real_data_in_a_few_heads(tmp_path: Path, small_peak: int) -> None:
    (base_tensors, base_written), (tuned_tensors, tuned_written) = real_data(1), real_data(2)
    base, tuned = mixture(tmp_path / "base", base_written), mixture(tmp_path / "tuned", tuned_written)
    for path in (base, tuned):
        files = [file.stat() for file in path.iterdir()]
        assert sum(file.st_size for file in files) > 10**12
        assert sum(file.st_blocks for file in files) * 512 < 32 * MEBIBYTE

    found, read, peak = scan_apart(base, tuned, tmp_path / "scores")
    assert found.geometry.layout == "separate"
    assert read == 2 * SHAPE.layers * sum(SHAPE.rows().values()) * SHAPE.hidden_size * 2
    assert {(layer, head) for layer, head, score in found.top(1000) if score != 0} == MOVED
    moved = np.zeros(found.geometry.shape, dtype=bool)
    moved[tuple(zip(*MOVED, strict=True))] = True
    for statistic, values in found.items():
        still = values[~moved]
        assert (np.isnan(still) if statistic == "wasserstein_z" else still == 0).all(), statistic

    for layer, head in ((0, 12), (2, 5), (2, 3), (7, 15)):
        sides = []
        for tensors in (base_tensors, tuned_tensors):
            zeros = {name(layer, m): torch.zeros(rows, SHAPE.hidden_size) for m, rows in SHAPE.rows().items()}
            sides.append(theta(zeros | tensors, SHAPE, layer, head))
        expected = oracle.long_statistics(sides[0], sides[1])
        del expected["sorted_wasserstein"]
        assert_statistics(found, (layer, head), expected, 1e-6)

    assert peak < 300 * MEBIBYTE
    assert peak < small_peak + 8 * MEBIBYTE, (peak, small_peak)


def test_only_q_k_and_v_are_read(tmp_path: Path) -> None:
    """Not-a-numbers at the edges of the experts and of the output projection disturb nobody."""
    nan = b"\xff" * 4096
    _, written = real_data(3)
    end = 2 * 128 * (1 << 18) * SHAPE.hidden_size
    for layer in range(SHAPE.layers):
        written[f"model.layers.{layer}.mlp.experts.up_proj"] = {0: nan, end - 4096: nan}
        written[f"model.layers.{layer}.self_attn.o_proj.weight"] = {0: nan}
    path = mixture(tmp_path / "base", written)
    found = alps.scan(path, path)
    assert (found["wasserstein"] == 0).all()
    assert (found["delta_norm"] == 0).all()
    tuned = mixture(tmp_path / "tuned", written | {name(5, "q"): {(15 * 2048 + 2047) * 2: b"\xff\xff"}})
    with pytest.raises(alps.WeightsError, match=r"at \[15, 2047\] \(query head 0 of layer 5\)"):
        alps.scan(path, tuned)


@pytest.mark.parametrize("form", ["qkv", "product"])
def test_heads_of_a_llama_of_8_billion_parameters(tmp_path: Path, form: str) -> None:
    """One layer of Llama-3.1-8B's attention on eight threads."""
    shape = Shape(query_heads=32, key_value_heads=8, head_size=128, hidden_size=4096)
    generator = torch.Generator().manual_seed(1)
    base: Tensors = {
        name(0, matrix): (torch.randn(rows, shape.hidden_size, generator=generator) * 0.02).bfloat16()
        for matrix, rows in shape.rows().items()
    }
    tuned = {
        key: (weight.float() * (1 + 0.01 * torch.randn(weight.shape, generator=generator))).bfloat16()
        for key, weight in base.items()
    }
    paths = write_pair(tmp_path, shape.config(), base, tuned)
    found, read, peak = scan_apart(*paths, tmp_path / "scores", form, threads=8)
    assert read == 2 * 2 * sum(weight.numel() for weight in base.values())
    assert peak < 300 * MEBIBYTE, peak // MEBIBYTE
    assert (found["wasserstein"] > 0).all()
    if form == "qkv":
        for head in (0, 31):
            expected = oracle.long_statistics(theta(base, shape, 0, head), theta(tuned, shape, 0, head))
            del expected["sorted_wasserstein"]
            assert_statistics(found, (0, head), expected, 1e-6)
