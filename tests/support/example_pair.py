"""Writes the checkpoints that the examples of docstrings use: a tiny Llama, and two of it with four heads moved."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

import alps

MOVED = {"tuned": ((0, 5), (1, 2), (1, 3), (3, 6)), "german": ((0, 5), (2, 0), (2, 1), (3, 6))}
"""The heads, as (layer, head), whose queries move by half, by checkpoint; all other heads move by a hundredth."""

_LAYERS, _HEADS, _GROUPS, _HEAD_SIZE = 4, 8, 4, 4
_HIDDEN_SIZE, _INNER_SIZE, _VOCABULARY = 32, 48, 64

_CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "num_hidden_layers": _LAYERS,
    "num_attention_heads": _HEADS,
    "num_key_value_heads": _GROUPS,
    "head_dim": _HEAD_SIZE,
    "hidden_size": _HIDDEN_SIZE,
    "intermediate_size": _INNER_SIZE,
    "vocab_size": _VOCABULARY,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}

Tensors = dict[str, NDArray[np.float32]]


def write_example(folder: Path) -> None:
    """Writes `base`, `tuned`, `german`, `scores.safetensors` and `heads.json` into a folder; needs no torch."""
    generator = np.random.default_rng(0)
    base = _weights(generator)
    _write(folder / "base", base)
    for tuned, moved in MOVED.items():
        _write(folder / tuned, {name: _tuned(name, base[name], moved, generator) for name in base})
    scores = alps.scan(folder / "base", folder / "tuned")
    scores.save(folder / "scores.safetensors")
    scores.select(ratio=0.1).save(folder / "heads.json")


def _write(folder: Path, tensors: Tensors) -> None:
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(_CONFIG), encoding="utf-8")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _weights(generator: np.random.Generator) -> Tensors:
    rows = {"q": _HEADS * _HEAD_SIZE, "k": _GROUPS * _HEAD_SIZE, "v": _GROUPS * _HEAD_SIZE}
    shapes = {"model.embed_tokens": (_VOCABULARY, _HIDDEN_SIZE), "lm_head": (_VOCABULARY, _HIDDEN_SIZE)}
    norms = ["model.norm"]
    for layer in range(_LAYERS):
        name = f"model.layers.{layer}"
        shapes |= {f"{name}.self_attn.{which}_proj": (count, _HIDDEN_SIZE) for which, count in rows.items()}
        shapes[f"{name}.self_attn.o_proj"] = (_HIDDEN_SIZE, _HEADS * _HEAD_SIZE)
        shapes |= {f"{name}.mlp.{which}_proj": (_INNER_SIZE, _HIDDEN_SIZE) for which in ("gate", "up")}
        shapes[f"{name}.mlp.down_proj"] = (_HIDDEN_SIZE, _INNER_SIZE)
        norms += [f"{name}.input_layernorm", f"{name}.post_attention_layernorm"]
    weights = {f"{name}.weight": _normal(generator, shape) for name, shape in shapes.items()}
    return weights | {f"{name}.weight": np.ones(_HIDDEN_SIZE, np.float32) for name in norms}


def _tuned(
    name: str, weight: NDArray[np.float32], moved: tuple[tuple[int, int], ...], generator: np.random.Generator
) -> NDArray[np.float32]:
    """Moves the weights of Q, K and V."""
    parts = name.split(".")
    if "self_attn" not in parts or "o_proj" in parts:
        return weight
    change = 0.01 * _normal(generator, weight.shape)
    if "q_proj" in parts:
        for layer, head in moved:
            if layer == int(parts[2]):
                change[head * _HEAD_SIZE : (head + 1) * _HEAD_SIZE] *= 50
    return weight + change


def _normal(generator: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.float32]:
    return generator.normal(scale=0.1, size=shape).astype(np.float32)
