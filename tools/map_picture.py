"""Draws docs/images/map.png: the map of a synthetic pair with the heads of Llama-3.1-8B.

    python tools/map_picture.py

The checkpoints have 32 layers of 32 heads in 8 key/value groups, and are narrow otherwise. The change of each head has a
size of its own, larger in some layers than in others.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

import alps

LAYERS, HEADS, GROUPS, HEAD_SIZE, WIDTH = 32, 32, 8, 8, 256
PICTURE = Path(__file__).parents[1] / "docs" / "images" / "map.png"


def write_pair(folder: Path) -> None:
    """Writes the folders `base` and `tuned`."""
    random = np.random.default_rng(8)
    layers = np.arange(LAYERS)
    by_layer = 0.02 + 0.03 * np.exp(-(((layers - 14) / 5) ** 2)) + 0.02 * np.exp(-(((layers - 26) / 3) ** 2))
    by_group = by_layer[:, None] * random.lognormal(sigma=0.25, size=(LAYERS, GROUPS))
    by_head = by_group.repeat(HEADS // GROUPS, axis=1) * random.lognormal(sigma=0.35, size=(LAYERS, HEADS))
    sizes = {"q_proj": by_head, "k_proj": by_group, "v_proj": by_group}
    base, tuned = {}, {}
    for layer in layers:
        for projection, of_heads in sizes.items():
            name = f"model.layers.{layer}.self_attn.{projection}.weight"
            factors = of_heads[layer].repeat(HEAD_SIZE)[:, None]
            weights = random.normal(scale=0.02, size=(len(factors), WIDTH))
            base[name] = weights.astype(np.float32)
            tuned[name] = (weights * (1 + factors * random.normal(size=weights.shape))).astype(np.float32)
    config = {
        "model_type": "llama",
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": GROUPS,
        "head_dim": HEAD_SIZE,
        "hidden_size": WIDTH,
    }
    for name, tensors in (("base", base), ("tuned", tuned)):
        (folder / name).mkdir()
        save_file(tensors, folder / name / "model.safetensors")
        (folder / name / "config.json").write_text(json.dumps(config), encoding="utf-8")


def main() -> None:
    """Scans the pair and draws its map."""
    with tempfile.TemporaryDirectory() as folder:
        write_pair(Path(folder))
        scores = alps.scan(Path(folder, "base"), Path(folder, "tuned"))
    names = {**scores.provenance, "base": "synthetic base", "tuned": "synthetic tuned copy"}
    scores = alps.HeadScores(scores, scores.geometry, names)
    scores.plot(scores.select(ratio=0.1), kind="map").savefig(PICTURE, dpi=110)


if __name__ == "__main__":
    main()
