"""Training many arms at once: each its own key/value groups, at its own rate, on batches that arms share."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor

from evidence import llama
from evidence.checkpoint import Sizes
from evidence.llama import Weights
from evidence.loss import losses
from evidence.tasks import Windows

BETAS = (0.9, 0.999)
EPSILON = 1e-8
DECAY = 0.01
Others = Literal["freeze", "train"]


@dataclass(frozen=True)
class Arm:
    """What one copy of the model trains.

    Attributes:
        groups: Numbers of key/value groups, layer * groups of a layer + group.
        rate: The highest learning rate.
    """

    groups: tuple[int, ...]
    rate: float


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up over a tenth of the steps, then a cosine down to a tenth."""
    warm = max(1, round(0.1 * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.1 + 0.45 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


class Rows:
    """The chosen rows of Q, K and V of every arm: in float32, and where the forward pass reads them."""

    def __init__(self, base: Weights, sizes: Sizes, arms: Sequence[Arm]) -> None:
        shape = (len(arms), sizes.groups, sizes.rows * sizes.hidden)
        self.all = torch.stack([qkv.view(1, *shape[1:]).expand(shape) for qkv in base.qkv])
        where = [
            ((number // sizes.groups * len(arms) + arm) * sizes.groups + number % sizes.groups, arm)
            for arm, it in enumerate(arms)
            for number in sorted(it.groups)
        ]
        where.sort()
        device = self.all.device
        self.index = torch.tensor([place for place, _ in where], device=device)
        self.arm = torch.tensor([arm for _, arm in where], device=device)
        rates = torch.tensor([it.rate for it in arms], device=device)
        self.rates = rates[self.arm][:, None]
        self.flat = self.all.view(-1, shape[-1])
        self.values = self.flat[self.index].float()
        self.first = torch.zeros_like(self.values)
        self.second = torch.zeros_like(self.values)
        per_layer = len(arms) * sizes.groups
        bounds = torch.searchsorted(
            self.index, torch.arange(0, sizes.layers + 1, device=device) * per_layer
        ).tolist()
        places = [
            self.index[start:end] - layer * per_layer for layer, (start, end) in enumerate(pairwise(bounds))
        ]
        self.of_layer = [(it // sizes.groups, it % sizes.groups) for it in places]
        self.rows_of_group = (sizes.groups, sizes.rows)
        matrices = self.all.view(sizes.layers, len(arms), sizes.groups * sizes.rows, sizes.hidden)
        self.leaves = [it.detach().requires_grad_() for it in matrices.unbind(0)]

    def step(self, gradients: Sequence[Tensor], number: int, factor: float) -> None:
        """One step of AdamW; the other rows are never written."""
        gradient = torch.cat(
            [
                it.unflatten(1, self.rows_of_group)[index].flatten(1)
                for it, index in zip(gradients, self.of_layer, strict=True)
            ]
        ).float()
        rates = self.rates * factor
        self.first.lerp_(gradient, 1 - BETAS[0])
        self.second.mul_(BETAS[1]).addcmul_(gradient, gradient, value=1 - BETAS[1])
        below = (self.second / (1 - BETAS[1] ** number)).sqrt_().add_(EPSILON)
        self.values.mul_(1 - rates * DECAY)
        self.values.sub_(below.reciprocal_().mul_(self.first).mul_(rates / (1 - BETAS[0] ** number)))
        self.write()

    def write(self) -> None:
        """Puts the rows where the forward pass reads them."""
        self.flat[self.index] = self.values.to(self.flat.dtype)


class OtherWeights:
    """Copies of everything but Q, K and V, one for each arm, in float32 and in the format of the forward pass."""

    def __init__(self, base: Weights, arms: Sequence[Arm]) -> None:
        rates = {arm.rate for arm in arms}
        if len(rates) != 1:
            raise ValueError(f"arms whose other weights train need one rate, found {sorted(rates)}")
        count = len(arms)
        stacked = base.map(lambda it: it.expand(count, *it.shape).clone().requires_grad_())
        self.weights = replace(stacked, qkv=base.qkv)
        self.leaves = stacked.others()
        self.masters = [it.detach().float().requires_grad_() for it in self.leaves]
        self.rate = rates.pop()
        self.optimizer = torch.optim.AdamW(
            self.masters, lr=self.rate, betas=BETAS, eps=EPSILON, weight_decay=DECAY, fused=True
        )

    def step(self, gradients: Sequence[Tensor], factor: float) -> None:
        """One step of AdamW."""
        for master, gradient in zip(self.masters, gradients, strict=True):
            # The fused optimizer reads memory in order, and gradients of products come transposed.
            master.grad = torch.empty_like(master).copy_(gradient)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * factor
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_copy_(self.leaves, self.masters)


@dataclass
class Trained:
    """What training left.

    Attributes:
        weights: Of all arms, in the format of the forward pass.
        rows: Of Q, K and V.
        masters: Everything else in float32, in the order of `Weights.others`; empty if it was frozen.
        losses: The mean loss of each arm over the last tenth of the steps.
    """

    weights: Weights
    rows: Rows
    masters: list[Tensor]
    losses: list[float]


def train(
    base: Weights,
    sizes: Sizes,
    arms: Sequence[Arm],
    windows: Windows,
    batches: Tensor,
    others: Others,
    run: Callable[..., Tensor] = llama.layer,
) -> Trained:
    """Trains all arms from the base.

    Args:
        base: The weights that all begin with.
        sizes: Of the model.
        arms: What they train.
        windows: What they train on.
        batches: Numbers of windows, [steps, 1 or arms, rows of a batch].
        others: Whether everything but Q, K and V trains.
        run: The layer, perhaps compiled.
    """
    rows = Rows(base, sizes, arms)
    beside = OtherWeights(base, arms) if others == "train" else None
    weights = replace(beside.weights if beside else base, qkv=rows.leaves)
    leaves = [*rows.leaves, *(beside.leaves if beside else [])]
    steps = len(batches)
    recent = torch.zeros(len(arms), device=rows.all.device)
    tail = max(1, steps // 10)
    for number, batch in enumerate(batches):
        tokens, targets = windows.batch(batch, len(arms))
        hidden = llama.hidden_states(weights, tokens, sizes, run=run)
        found = losses(hidden[:, :, windows.columns].flatten(1, 2), weights.embedding, targets)
        gradients = torch.autograd.grad(found.sum(), leaves)
        factor = rate_factor(number, steps)
        rows.step(gradients[: sizes.layers], number + 1, factor)
        if beside:
            beside.step(gradients[sizes.layers :], factor)
        if number >= steps - tail:
            recent += found.detach() / tail
    masters = [it.detach() for it in beside.masters] if beside else []
    return Trained(weights.map(Tensor.detach), rows, masters, recent.tolist())
