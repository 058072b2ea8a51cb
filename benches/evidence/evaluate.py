"""Losses of many arms on windows that they share."""

from dataclasses import dataclass

import torch
from torch import Tensor

from evidence import llama
from evidence.checkpoint import Sizes
from evidence.llama import Weights
from evidence.loss import evaluated
from evidence.tasks import Windows

_TOKENS = {"cuda": 2**17, "cpu": 2**10}
"""Tokens of all arms that go through the model at one time."""


@dataclass(frozen=True)
class Outcome:
    """How arms do on some windows.

    Attributes:
        loss: Nats for each predicted token, float64 [arms].
        exact: The share of windows all of whose predicted tokens were the likeliest, [arms].
    """

    loss: Tensor
    exact: Tensor


@torch.no_grad()
def evaluate(weights: Weights, sizes: Sizes, windows: Windows, arms: int) -> Outcome:
    """Runs all arms over all windows."""
    length = windows.tokens.shape[1]
    step = max(1, _TOKENS[windows.tokens.device.type] // (arms * length))
    loss = torch.zeros(arms, dtype=torch.float64)
    exact = torch.zeros(arms, dtype=torch.float64)
    numbers = torch.arange(len(windows), device=windows.tokens.device)
    for part in numbers.split(step):
        tokens, targets = windows.batch(part[None], arms)
        hidden = llama.hidden_states(weights, tokens, sizes)[:, :, windows.columns].flatten(1, 2)
        entropies, right = evaluated(hidden, weights.embedding, targets)
        loss += entropies.double().sum(dim=1).cpu()
        exact += right.view(arms, len(part), -1).all(dim=2).sum(dim=1).double().cpu()
    return Outcome(loss / windows.targets.numel(), exact / len(windows))
