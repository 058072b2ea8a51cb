"""Uses an installed alps as a user would.

The interpreter that alps was installed for runs this file. It needs only alps and its dependencies.
"""

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import alps

HEADS, GROUPS, HEAD_SIZE, HIDDEN_SIZE = 4, 2, 4, 16
CHANGED = (1, 2)
"""The (layer, head) that differs between the checkpoints."""


def write_pair(folder: Path) -> dict[str, float]:
    """Writes folder/base and folder/tuned. Returns the scores of the changed head by their definitions."""
    random = np.random.default_rng(0)
    config = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "hidden_size": HIDDEN_SIZE,
    }
    weights = {
        f"model.layers.{layer}.self_attn.{matrix}_proj.weight": random.normal(
            size=(count * HEAD_SIZE, HIDDEN_SIZE)
        ).astype(np.float32)
        for layer in range(2)
        for matrix, count in (("q", HEADS), ("k", GROUPS), ("v", GROUPS))
    }
    layer, head = CHANGED
    query = f"model.layers.{layer}.self_attn.q_proj.weight"
    tuned = weights | {query: weights[query].copy()}
    rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
    tuned[query][rows] += random.normal(size=(HEAD_SIZE, HIDDEN_SIZE)).astype(np.float32)
    for name, tensors in (("base", weights), ("tuned", tuned)):
        (folder / name).mkdir()
        (folder / name / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / name / "model.safetensors")

    group = head * GROUPS // HEADS
    shared = [
        weights[query.replace("q_proj", f"{matrix}_proj")][group * HEAD_SIZE : (group + 1) * HEAD_SIZE]
        for matrix in "kv"
    ]
    distributions = []
    for queries in (weights[query][rows], tuned[query][rows]):
        powers = np.exp(np.concatenate([queries, *shared]).ravel().astype(np.float64))
        distributions.append(powers / powers.sum())
    base, moved = distributions
    return {
        "wasserstein": float(np.abs(np.cumsum(moved - base))[:-1].sum() / (base.size - 1)),
        "kl": float((moved * np.log(moved / base)).sum()),
    }


def main() -> None:
    """Scans, selects, saves, loads and runs the command."""
    folder = Path(sys.argv[1])
    assert folder not in Path(alps.__file__).parents
    expected = write_pair(folder)

    scores = alps.scan(folder / "base", folder / "tuned")
    row, head = CHANGED
    for name, value in expected.items():
        assert math.isclose(scores[name][row, head], value, rel_tol=1e-6), (name, scores[name], value)
        assert np.count_nonzero(scores[name]) == 1, (name, scores[name])
    heads = scores.select(ratio=0.1)
    assert heads.pairs() == [CHANGED], heads.pairs()

    scores.save(folder / "scores.safetensors")
    assert alps.HeadScores.load(folder / "scores.safetensors") == scores
    heads.save(folder / "heads.json")
    assert alps.HeadSet.load(folder / "heads.json") == heads

    command = Path(sys.executable).with_name("alps.exe" if sys.platform == "win32" else "alps")
    version = subprocess.run([command, "--version"], capture_output=True, text=True, check=True).stdout
    assert version == f"alps {alps.__version__}\n", version
    subprocess.run([command, "--help"], stdout=subprocess.DEVNULL, check=True)
    scan = [str(command), "scan", str(folder / "base"), str(folder / "tuned"), "--json"]
    scanned = subprocess.run(scan, capture_output=True, text=True, check=True).stdout
    assert json.loads(scanned)["scores"]["statistics"]["kl"] == scores["kl"].tolist()


if __name__ == "__main__":
    main()
