"""Computes the matrix products that the form `product` needs, and nothing else."""

from pathlib import Path

import torch
from safetensors import safe_open

from compare.workers import workers
from support.checkpoints import Shape, name


class Products:
    """The matrices of one layer of a pair, in memory.

    With M = K V^T and d for the difference of tuned and base, a head's theta is Q^T M, and its change is
    dQ^T M_T + Q_B^T dM, where dM = dK V_T^T + K_B dV^T: three matrix products for a group, three for a head.
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

    def multiply(self, threads: int) -> None:
        """Computes the products of every head."""
        with workers(threads) as pool:
            for _ in pool.map(self._multiply_groups, range(threads), [threads] * threads):
                pass

    def _multiply_groups(self, first: int, step: int) -> None:
        heads = self._shape.query_heads // self._shape.key_value_heads
        theta, change = (self._empty(self._shape.hidden_size) for _ in range(2))
        for group in range(first, self._shape.key_value_heads, step):
            key_value_product = self.key_value_product(group)
            for head in range(group * heads, (group + 1) * heads):
                self.head(head, key_value_product, theta, change)

    def key_value_product(self, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Returns M_B, M_T and M_T - M_B of a group, [head size, head size] each."""
        of_base, difference = (self._empty(self._shape.head_size) for _ in range(2))
        torch.matmul(self._base["k"][group], self._base["v"][group].T, out=of_base)
        torch.matmul(self._delta["k"][group], self._tuned["v"][group].T, out=difference)
        difference.addmm_(self._base["k"][group], self._delta["v"][group].T)
        return of_base, of_base + difference, difference

    def head(
        self,
        head: int,
        key_value_product: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        theta: torch.Tensor,
        change: torch.Tensor,
    ) -> None:
        """Writes theta_B and theta_T - theta_B of a head, [hidden size, head size] each."""
        of_base, of_tuned, difference = key_value_product
        torch.matmul(self._base["q"][head].T, of_base, out=theta)
        torch.matmul(self._delta["q"][head].T, of_tuned, out=change)
        change.addmm_(self._base["q"][head].T, difference)

    def _empty(self, rows: int) -> torch.Tensor:
        return torch.empty(rows, self._shape.head_size, dtype=self._base["q"].dtype)
