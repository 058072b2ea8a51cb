"""The cross-entropy, without keeping the logits of all arms."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

_LOGITS = 2**29
"""Logits that are held at one time."""


def _chunks(hidden: Tensor, embedding: Tensor) -> list[slice]:
    arms, tokens, _ = hidden.shape
    step = 1 if embedding.dim() == 3 else max(1, _LOGITS // (tokens * embedding.shape[-2]))
    return [slice(start, min(start + step, arms)) for start in range(0, arms, step)]


def _logits(hidden: Tensor, embedding: Tensor, arms: slice) -> Tensor:
    part = hidden[arms].flatten(0, 1)
    return part @ (embedding[arms.start] if embedding.dim() == 3 else embedding).T


class _SumOfMeans(Function):
    """The sum over arms of the mean cross-entropy of each; the gradient is made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
        share = 1 / targets.shape[1]
        of_hidden = torch.empty_like(hidden)
        trained = ctx.needs_input_grad[1]
        of_embedding = torch.zeros_like(embedding) if trained else None
        total = torch.zeros(len(hidden), device=hidden.device)
        for arms in _chunks(hidden, embedding):
            chances = torch.softmax(_logits(hidden, embedding, arms), dim=-1)
            index = targets[arms].flatten()[:, None]
            chance = chances.gather(1, index)[:, 0].float()
            chances.scatter_(1, index, 0.0)
            # What the target lacks is the sum of the others: exact also where the target is near certain.
            missing = chances.sum(dim=-1, dtype=torch.float32)
            chances.scatter_(1, index, -missing[:, None].to(chances.dtype))
            found = torch.where(
                missing < 0.5, torch.log1p(-missing.clamp(max=0.5)), chance.clamp(min=1e-30).log()
            )
            total[arms] = -found.view_as(targets[arms]).mean(dim=1)
            weight = embedding[arms.start] if embedding.dim() == 3 else embedding
            of_hidden[arms] = ((chances @ weight) * share).view_as(hidden[arms])
            if of_embedding is not None:
                part = chances.T @ hidden[arms].flatten(0, 1) * share
                if embedding.dim() == 3:
                    of_embedding[arms.start] = part
                else:
                    of_embedding += part
        ctx.save_for_backward(of_hidden, of_embedding)
        return total

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        of_hidden, of_embedding = ctx.saved_tensors  # `upstream` is all ones: losses of arms are only added
        return of_hidden, of_embedding, None


def losses(hidden: Tensor, embedding: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy of each arm, float32 [arms]; only their plain sum may be differentiated.

    Args:
        hidden: [arms, tokens, hidden].
        embedding: [vocabulary, hidden], or one of each arm.
        targets: [arms, tokens].
    """
    result: Tensor = _SumOfMeans.apply(hidden, embedding, targets)
    return result


def evaluated(hidden: Tensor, embedding: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Without a gradient and in float32: the cross-entropy of every token, and whether it was the likeliest.

    Args:
        hidden: [arms, tokens, hidden].
        embedding: [vocabulary, hidden], or one of each arm.
        targets: [arms, tokens].

    Returns:
        float32 and bool, each [arms, tokens].
    """
    entropies = torch.empty(targets.shape, device=hidden.device)
    right = torch.empty(targets.shape, dtype=torch.bool, device=hidden.device)
    for arms in _chunks(hidden, embedding):
        logits = _logits(hidden, embedding, arms).float()
        index = targets[arms].flatten()
        found = torch.logsumexp(logits, dim=-1) - logits.gather(1, index[:, None])[:, 0]
        entropies[arms] = found.view_as(targets[arms])
        right[arms] = logits.argmax(dim=-1).eq(index).view_as(targets[arms])
    return entropies, right
