"""The multiplications that the form `product` needs, and nothing else."""

from pathlib import Path

import torch
from safetensors import safe_open

from checkpoints import Shape, name


class Products:
    """One layer of a pair, ready to be multiplied.

    With M = K V^T and d for the difference of tuned and base, a head's theta is Q^T M, and its change is
    dQ^T M_T + Q_B^T dM, where dM = dK V_T^T + K_B dV^T: three multiplications for a group, three for a head.
    """

    def __init__(self, base: Path, tuned: Path, shape: Shape, layer: int, dtype: torch.dtype) -> None:
        self._shape = shape
        self._base: dict[str, torch.Tensor] = {}
        self._tuned: dict[str, torch.Tensor] = {}
        self._delta: dict[str, torch.Tensor] = {}
        with safe_open(base, "pt") as of_base, safe_open(tuned, "pt") as of_tuned:
            for matrix in ("q", "k", "v"):
                b, t = (
                    file.get_tensor(name(layer, matrix)).double().view(-1, shape.head_size, shape.hidden_size)
                    for file in (of_base, of_tuned)
                )
                self._base[matrix], self._tuned[matrix] = b.to(dtype), t.to(dtype)
                self._delta[matrix] = (t - b).to(dtype)
        self._middle, self._middle_delta = (
            torch.empty(shape.head_size, shape.head_size, dtype=dtype) for _ in range(2)
        )
        self.theta, self.delta = (
            torch.empty(shape.hidden_size, shape.head_size, dtype=dtype) for _ in range(2)
        )

    def multiply(self) -> None:
        """Multiplies for every head; `theta` and `delta` are those of the last one."""
        heads = self._shape.query_heads // self._shape.key_value_heads
        for group in range(self._shape.key_value_heads):
            middle_tuned = self._multiply_group(group)
            for head in range(group * heads, (group + 1) * heads):
                query, change = self._base["q"][head].T, self._delta["q"][head].T
                torch.matmul(query, self._middle, out=self.theta)
                torch.matmul(change, middle_tuned, out=self.delta)
                self.delta.addmm_(query, self._middle_delta)

    def _multiply_group(self, group: int) -> torch.Tensor:
        key, value = self._base["k"][group], self._base["v"][group].T
        torch.matmul(key, value, out=self._middle)
        torch.matmul(self._delta["k"][group], self._tuned["v"][group].T, out=self._middle_delta)
        self._middle_delta.addmm_(key, self._delta["v"][group].T)
        return self._middle + self._middle_delta
