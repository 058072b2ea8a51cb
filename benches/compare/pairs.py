"""Writes pairs of checkpoints with random weights and the attention shapes of well-known models."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from support.checkpoints import Shape, name, write_sparse

SHAPES = {
    "Llama-3.1-8B": Shape(layers=32, query_heads=32, key_value_heads=8, head_size=128, hidden_size=4096),
    "Qwen2.5-7B": Shape(layers=28, query_heads=28, key_value_heads=4, head_size=128, hidden_size=3584),
    "Llama-3.1-405B": Shape(layers=126, query_heads=128, key_value_heads=8, head_size=128, hidden_size=16384),
}
"""The attention of each model, with all its layers."""

SCALE = 0.02
"""The standard deviation of the weights."""

CHANGE = 0.02
"""The standard deviation of the changes, relative to `SCALE`."""

POOL = 2**23
"""The number of weights that are drawn. Each tensor repeats them, starting at another place."""

WEIGHTS = "model.safetensors"

STORED = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32"}
"""The formats by the names that safetensors gives them."""


@dataclass(frozen=True)
class CheckpointPair:
    """Two checkpoints of one shape."""

    folder: Path
    shape: Shape
    dtype: torch.dtype = torch.bfloat16

    @property
    def base(self) -> Path:
        """The folder of the base."""
        return self.folder / "base"

    @property
    def tuned(self) -> Path:
        """The folder of the tuned checkpoint."""
        return self.folder / "tuned"

    @property
    def files(self) -> tuple[Path, Path]:
        """The files with the weights."""
        return self.base / WEIGHTS, self.tuned / WEIGHTS

    @property
    def bytes(self) -> int:
        """Bytes of Q, K and V in both checkpoints together."""
        return (
            2
            * self.dtype.itemsize
            * self.shape.layers
            * sum(self.shape.rows().values())
            * self.shape.hidden_size
        )

    @property
    def heads(self) -> int:
        """The number of query heads in all layers."""
        return self.shape.layers * self.shape.query_heads


class CheckpointPairs:
    """The pairs in a folder. Each is written when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()
        self._written: dict[tuple[Shape, int, torch.dtype], CheckpointPair] = {}

    def pair(self, shape: Shape, experts: int = 0, dtype: torch.dtype = torch.bfloat16) -> CheckpointPair:
        """Returns a pair, and writes it if it is new.

        Args:
            shape: The shape of its attention.
            experts: The number of experts in each layer. Each is as large as the attention; all are holes in the file.
            dtype: The format of the weights.
        """
        key = shape, experts, dtype
        if key not in self._written:
            pair = CheckpointPair(self._folder / str(len(self._written)), shape, dtype)
            self._write(pair, experts)
            self._written[key] = pair
        return self._written[key]

    def delete(self, pair: CheckpointPair) -> None:
        """Removes a pair from the disk."""
        self._written = {key: kept for key, kept in self._written.items() if kept != pair}
        shutil.rmtree(pair.folder)

    @cached_property
    def _weights(self) -> dict[str, torch.Tensor]:
        """The drawn weights, by the name of the checkpoint."""
        generator = torch.Generator().manual_seed(0)
        base, noise = (SCALE * torch.randn(POOL, generator=generator) for _ in range(2))
        return {"base": base, "tuned": base + CHANGE * noise}

    def drawn(self, role: str, dtype: torch.dtype = torch.bfloat16) -> memoryview:
        """The bytes of the drawn weights of a checkpoint, "base" or "tuned"."""
        return memoryview(self._weights[role].to(dtype).view(torch.uint8).numpy().tobytes())

    def _write(self, pair: CheckpointPair, experts: int) -> None:
        shape = pair.shape
        tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
        rows = shape.rows()
        for layer in range(shape.layers):
            tensors |= {
                name(layer, matrix): (STORED[pair.dtype], (rows[matrix], shape.hidden_size))
                for matrix in rows
            }
            for expert in range(experts):
                for matrix in ("w1", "w2", "w3"):
                    key = f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{matrix}.weight"
                    tensors[key] = (STORED[pair.dtype], (sum(rows.values()) // 3, shape.hidden_size))
        config = shape.config() | {"model_type": "mixtral" if experts else "llama"}
        names = [name(layer, matrix) for layer in range(shape.layers) for matrix in rows]
        for role, folder in (("base", pair.base), ("tuned", pair.tuned)):
            folder.mkdir(parents=True)
            pool = self.drawn(role, pair.dtype)
            (folder / "config.json").write_text(json.dumps(config))
            written = {
                key: _pieces(pool, place, tensors[key][1], pair.dtype.itemsize)
                for place, key in enumerate(names)
            }
            write_sparse(folder / WEIGHTS, tensors, written)
            with (folder / WEIGHTS).open("rb") as file:
                os.fsync(file.fileno())  # or the system would write it during a measurement


def _pieces(pool: memoryview, place: int, shape: tuple[int, ...], size: int) -> Mapping[int, memoryview]:
    """Returns the bytes of a tensor, `size` for each weight, in pieces, by their offsets in it."""
    length = size * shape[0] * shape[1]
    start = place * 500_001 * size % len(pool)
    pieces = {}
    offset = 0
    while offset < length:
        piece = pool[start : start + length - offset]
        pieces[offset] = piece
        offset += len(piece)
        start = 0
    return pieces
