"""Builders of small checkpoints with known weights, and of large ones that take no room on the disk."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32, "f64": torch.float64}

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Shape:
    """The sizes of the attention of a Llama."""

    layers: int = 1
    query_heads: int = 4
    key_value_heads: int = 2
    head_size: int = 4
    hidden_size: int = 24

    def config(self) -> dict[str, Any]:
        return {
            "model_type": "llama",
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.query_heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_size,
            "hidden_size": self.hidden_size,
        }

    def rows(self) -> dict[str, int]:
        key_value = self.key_value_heads * self.head_size
        return {"q": self.query_heads * self.head_size, "k": key_value, "v": key_value}


def name(layer: int, matrix: str) -> str:
    """Returns the name of a projection, `matrix` being "q", "k" or "v"."""
    return f"model.layers.{layer}.self_attn.{matrix}_proj.weight"


def random_weights(shape: Shape, seed: int, scale: float = 0.05) -> Tensors:
    """Draws normal weights in float64, under the names of a Llama."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name(layer, matrix): torch.randn(rows, shape.hidden_size, generator=generator, dtype=torch.float64)
        * scale
        for layer in range(shape.layers)
        for matrix, rows in shape.rows().items()
    }


def write(folder: Path, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> Path:
    """Writes a checkpoint with one file of weights. Returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, folder / "model.safetensors")
    return folder


def write_pair(folder: Path, config: Mapping[str, Any], base: Tensors, tuned: Tensors) -> tuple[Path, Path]:
    """Writes the checkpoints `base` and `tuned` of one configuration into a folder."""
    return write(folder / "base", config, base), write(folder / "tuned", config, tuned)


def write_sparse(
    path: Path,
    tensors: Mapping[str, tuple[str, tuple[int, ...]]],
    written: Mapping[str, Mapping[int, bytes | memoryview]],
) -> None:
    """Writes a safetensors file that takes hardly any room on the disk, however large its tensors are.

    Args:
        path: The file.
        tensors: The dtype, in the words of the format, and the shape of each tensor, in the order of the file.
        written: For some tensors, pieces of their bytes by offset. All other bytes are 0.
    """
    header, starts, end = {}, {}, 0
    for key, (dtype, shape) in tensors.items():
        starts[key] = end
        end += math.prod(shape) * {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}[dtype]
        header[key] = {"dtype": dtype, "shape": shape, "data_offsets": [starts[key], end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the writer of safetensors aligns the data as well
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
        for key, pieces in written.items():
            for offset, content in pieces.items():
                file.seek(8 + len(text) + starts[key] + offset)
                file.write(content)


def write_long_pair(folder: Path) -> tuple[Path, Path]:
    """Writes two checkpoints of zeros, 50 GB each by their sizes, which no scan reads in a few seconds."""
    shape = Shape(layers=1000, query_heads=32, key_value_heads=8, head_size=128, hidden_size=4096)
    return write_zeros(folder, shape)


def write_zeros(folder: Path, shape: Shape) -> tuple[Path, Path]:
    """Writes two checkpoints of zeros, which take no room on the disk."""
    tensors = {
        name(layer, matrix): ("BF16", (rows, shape.hidden_size))
        for layer in range(shape.layers)
        for matrix, rows in shape.rows().items()
    }
    for role in ("base", "tuned"):
        (folder / role).mkdir()
        (folder / role / "config.json").write_text(json.dumps(shape.config()))
        write_sparse(folder / role / "model.safetensors", tensors, {})
    return folder / "base", folder / "tuned"


def matrices(
    tensors: Tensors, shape: Shape, layer: int, head: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Returns Q_h, K_g and V_g of one head, float64 [head size, hidden size]."""
    group = head * shape.key_value_heads // shape.query_heads
    found = []
    for matrix, index in (("q", head), ("k", group), ("v", group)):
        weight = tensors[name(layer, matrix)].to(torch.float64).numpy()
        found.append(weight[index * shape.head_size : (index + 1) * shape.head_size])
    return found[0], found[1], found[2]


def theta(tensors: Tensors, shape: Shape, layer: int, head: int) -> NDArray[np.float64]:
    """Returns the weight vector of one head in the form `qkv`."""
    return np.concatenate([matrix.ravel() for matrix in matrices(tensors, shape, layer, head)])
