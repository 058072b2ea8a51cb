"""Continual learning: a loss that holds the outputs and the attention of a model to those that it had before."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from alps.errors import ArgumentError
from alps.heads import HeadSet
from alps.training.attention_maps import attention_maps


@dataclass(frozen=True)
class Distillation:
    """Holds the parts of a loss, as `distill` returns them: scalars that can be differentiated.

    Examples:
        >>> import torch
        >>> part = torch.tensor(1.0)
        >>> found = alps.training.Distillation(loss=3 * part, task=part, logits=part, attention=part)
        >>> found.loss.item()
        3.0

    Attributes:
        loss: The weighted sum of the others.
        task: The loss that the model itself returns.
        logits: The divergence of the distributions of tokens.
        attention: The divergence of the attention maps of the chosen heads.
    """

    loss: Tensor
    task: Tensor
    logits: Tensor
    attention: Tensor


def distill(
    model: nn.Module,
    teacher: nn.Module,
    heads: HeadSet,
    batch: dict[str, Any],
    *,
    task_weight: float = 0.5,
    logits_weight: float = 0.5,
    attention_weight: float = 1000.0,
    temperature: float = 1.0,
) -> Distillation:
    """Measures a batch of an earlier task while the model learns another one (SEEKR).

    Add the loss to that of the new task, on as many replayed batches as you can afford. It holds the outputs of the model
    and the attention of the chosen heads to those of `teacher`. The publication replays one per cent of the earlier data
    and takes the 128 heads that `alps.measure(statistics=["seekr"])` finds most important; the default weights are its own.

    Examples:
        >>> import copy, torch
        >>> from transformers import AutoModelForCausalLM
        >>> options = {"attn_implementation": "eager"}  # to return attention maps
        >>> model = AutoModelForCausalLM.from_pretrained("tuned", **options)
        >>> teacher = copy.deepcopy(model).eval()
        >>> heads = alps.HeadSet.load("heads.json")
        >>> windows = torch.arange(32).reshape(2, 1, 16)  # the tokens of two texts
        >>> old, new = ({"input_ids": ids, "labels": ids} for ids in windows)
        >>> held = alps.training.distill(model, teacher, heads, old)
        >>> (model(**new).loss + held.loss).backward()

    Args:
        model: The model that trains, restricted or not.
        teacher: The model before it trains on; its weights are left alone.
        heads: The heads whose attention is held.
        batch: The arguments of the model by name, with `labels`.
        task_weight: The weight a of the model's own loss on the batch.
        logits_weight: The weight b of the divergence of the next tokens.
        attention_weight: The weight c of the mean divergence of the attention maps.
        temperature: The temperature τ of the distributions of the next token, above 0.

    Returns:
        The loss and its parts.

    Raises:
        ArgumentError: There are no heads, the model returns no loss, or the temperature is not above 0.
        ModelError: A model returns no attention maps, or not those of the heads' geometry; both have to have
            `attn_implementation="eager"`.

    Definitions:
        p is the distribution of the next token at temperature τ, A the attention map of a head, whose rows are
        distributions over the keys, and L the model's own loss. p′ and A′ are those of `teacher`. The loss is

        a · L + b · τ² · KL(p′ ‖ p) + c · mean over the heads of KL(A′ ‖ A)

        KL(p′ ‖ p) is the mean over the tokens that are labelled (all if there are no labels), KL(A′ ‖ A) that over the
        queries that `attention_mask` keeps.

    References:
        SEEKR, arXiv 2411.06171: <https://arxiv.org/abs/2411.06171>
    """
    if not temperature > 0:
        raise ArgumentError(f"temperature: expected a number above 0, found {temperature}")
    if not heads:
        raise ArgumentError("heads: expected at least one head, found none")
    geometry = heads.geometry
    named = {**batch, "output_attentions": True}
    outputs: Any = model(**named)
    task = getattr(outputs, "loss", None)
    if task is None:
        raise ArgumentError("batch: the model returned no loss; expected a batch with `labels`")
    with torch.no_grad():
        before: Any = teacher(**named)
    causal = geometry.component == "decoder" and not getattr(model.config, "is_encoder_decoder", False)
    logits = temperature**2 * _divergence_of_tokens(
        before.logits / temperature, outputs.logits / temperature, batch.get("labels"), causal
    )
    of_heads: list[Tensor] = []
    keep = batch.get("attention_mask")
    maps = zip(attention_maps(before, geometry), attention_maps(outputs, geometry), strict=True)
    for row, (old, new) in enumerate(maps):
        chosen = torch.from_numpy(heads.mask[row, : new.shape[1]].copy())
        if chosen.any():
            of_heads += _divergences_of_maps(old[:, chosen], new[:, chosen], keep).to(task.device).unbind()
    divergence = torch.stack(of_heads).mean()
    loss = task_weight * task + logits_weight * logits + attention_weight * divergence
    return Distillation(loss, task, logits, divergence)


def _divergence_of_tokens(old: Tensor, new: Tensor, labels: Tensor | None, causal: bool) -> Tensor:
    """The mean of KL(old || new) over the predictions that are labelled.

    A causal model predicts the label of the next position, any other one that of the same position.
    """
    old, new = (_wide(it).log_softmax(-1) for it in (old, new))
    divergences = functional.kl_div(new, old, reduction="none", log_target=True).sum(-1)
    if labels is None:
        return divergences.mean()
    counted = labels.ne(-100)
    return divergences[:, :-1][counted[:, 1:]].mean() if causal else divergences[counted].mean()


def _divergences_of_maps(old: Tensor, new: Tensor, keep: Tensor | None) -> Tensor:
    """KL(old || new) of each head of [batch, heads, queries, keys], its mean over the queries that are kept: [heads]."""
    old, new = _wide(old), _wide(new)
    smallest = torch.finfo(new.dtype).tiny
    terms = torch.where(old > 0, old * (old.clamp(min=smallest).log() - new.clamp(min=smallest).log()), 0)
    divergences = terms.sum(-1)
    if keep is None:
        return divergences.mean(dim=(0, 2))
    kept = keep[:, -divergences.shape[-1] :].to(divergences)[:, None]
    return (divergences * kept).sum(dim=(0, 2)) / kept.sum().clamp(min=1)


def _wide(numbers: Tensor) -> Tensor:
    return numbers.to(torch.promote_types(numbers.dtype, torch.float32))
