"""Tasks as windows of tokens, cut into what is trained on, validated on and tested on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Windows:
    """Windows of one length.

    Attributes:
        tokens: int64 [windows, length].
        columns: The positions whose next token is predicted.
        targets: int64 [windows, columns].
    """

    tokens: Tensor
    columns: Tensor
    targets: Tensor

    @classmethod
    def of(cls, tokens: Tensor, columns: Tensor) -> "Windows":
        """Windows of which the token after each column is predicted."""
        return cls(tokens, columns, tokens[:, columns + 1])

    def to(self, device: torch.device) -> "Windows":
        """The same on a device."""
        return Windows(self.tokens.to(device), self.columns.to(device), self.targets.to(device))

    def first(self, count: int) -> "Windows":
        """The first windows."""
        return Windows(self.tokens[:count], self.columns, self.targets[:count])

    def batch(self, numbers: Tensor, arms: int) -> tuple[Tensor, Tensor]:
        """The windows of these numbers for each arm.

        Args:
            numbers: [1 or arms, rows].
            arms: How many there are.

        Returns:
            Tokens [arms, rows, length] and targets [arms, rows * columns].
        """
        tokens = self.tokens[numbers].expand(arms, -1, -1)
        targets = self.targets[numbers].flatten(1).expand(arms, -1)
        return tokens, targets

    def __len__(self) -> int:
        return len(self.tokens)


Task = dict[str, Windows]
"""By split."""


def save(folder: Path, name: str, splits: Mapping[str, NDArray[np.uint16]], columns: list[int]) -> None:
    """Writes a task's windows as one file of arrays."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {**splits, "columns": np.array(columns, np.uint16)}
    np.savez_compressed(folder / f"{name}.npz", **arrays)  # type: ignore[arg-type, unused-ignore]


def load(folder: Path, device: torch.device) -> dict[str, Task]:
    """The tasks of a folder by name, in the order of its tasks.json.

    Raises:
        OSError: A file cannot be read.
    """
    tasks = {}
    for name in json.loads((folder / "tasks.json").read_text())["tasks"]:
        with np.load(folder / f"{name}.npz") as arrays:
            columns = torch.from_numpy(arrays["columns"].astype(np.int64))
            tasks[name] = {
                split: Windows.of(torch.from_numpy(arrays[split].astype(np.int64)), columns).to(device)
                for split in SPLITS
                if split in arrays
            }
    return tasks
