"""Scores of key/value groups: by the change of weights, by gradients, by both, and by trying each group.

Every function returns numbers [layers, heads] or [layers, groups]. The score of a group is the mean of its
heads' scores, as the rule "key_value_groups" of `alps.HeadScores.select` has it.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import alps
from alps.statistics import ON_REQUEST, Form
from evidence import checkpoint, llama
from evidence.arms import Scores
from evidence.checkpoint import Sizes, Tensors
from evidence.graft import losses_of_grafts
from evidence.llama import Weights
from evidence.loss import losses
from evidence.tasks import Windows

_RANK = 128
"""Of the part of a projection that LIFT (arXiv 2506.00772) keeps."""


def by_group(values: NDArray[np.float64], sizes: Sizes) -> NDArray[np.float64]:
    """The means over the heads of each group of numbers [layers, heads]."""
    return np.asarray(values.reshape(sizes.layers * sizes.groups, -1).mean(axis=1), np.float64)


@dataclass(frozen=True)
class Gradients:
    """Of the loss with respect to Q, K and V and to gates on the outputs of heads.

    Attributes:
        mean: [layers, groups, rows * hidden].
        square: The mean of the squares of each window's gradient, likewise.
        gate: The mean of the absolute values of each window's, [layers, heads].
    """

    mean: Tensor
    square: Tensor
    gate: Tensor


def gradients(weights: Weights, sizes: Sizes, windows: Windows, at_once: int = 32) -> Gradients:
    """Runs each window through a copy of Q, K and V of its own, so that its gradient stands alone."""
    shape = (sizes.layers, sizes.groups, sizes.rows * sizes.hidden)
    device = windows.tokens.device
    mean = torch.zeros(shape, device=device)
    square = torch.zeros(shape, device=device)
    gate = torch.zeros(sizes.layers, sizes.heads, device=device)
    for numbers in torch.arange(len(windows), device=device).split(at_once):
        count = len(numbers)
        copies = [it.expand(count, *it.shape).clone().requires_grad_() for it in weights.qkv]
        gates = [
            torch.ones(count, sizes.heads, device=device, dtype=copies[0].dtype).requires_grad_()
            for _ in copies
        ]
        tokens, targets = windows.batch(numbers[:, None], count)
        hidden = llama.hidden_states(replace(weights, qkv=copies), tokens, sizes, gates=gates)
        found = losses(hidden[:, :, windows.columns].flatten(1, 2), weights.embedding, targets)
        of_all = torch.autograd.grad(found.sum(), [*copies, *gates])
        for layer, gradient in enumerate(of_all[: sizes.layers]):
            of_layer = gradient.float().reshape(count, *shape[1:])
            mean[layer] += of_layer.sum(dim=0)
            square[layer] += of_layer.square_().sum(dim=0)
        gate += torch.stack([it.float().abs().sum(dim=0) for it in of_all[sizes.layers :]])
    return Gradients(mean / len(windows), square / len(windows), gate / len(windows))


def heads_of(values: Tensor, sizes: Sizes) -> NDArray[np.float64]:
    """Sums of [layers, groups, rows * hidden] over the rows of each head and of its group's key and value."""
    parts = values.view(sizes.layers, sizes.groups, sizes.rows // sizes.head_size, -1).sum(
        dim=-1, dtype=torch.float64
    )
    queries = parts[..., :-2] + parts[..., -2:].sum(dim=-1, keepdim=True)
    return np.asarray(queries.flatten(1).cpu().numpy(), np.float64)


def stacked(weights: Sequence[Tensor], sizes: Sizes) -> Tensor:
    """Q, K and V of all layers in float32, [layers, groups, rows * hidden]."""
    return torch.stack([it.float().view(sizes.groups, -1) for it in weights])


def scanned(base: Tensor, tuned: Tensor, sizes: Sizes, folder: Path) -> Scores:
    """Everything that `alps.scan` says of Q, K and V [layers, groups, rows * hidden]; forms "qkv" and "product"."""
    scores: Scores = {}
    with tempfile.TemporaryDirectory(dir=folder) as name:
        paths = [Path(name) / "base", Path(name) / "tuned"]
        for path, values in zip(paths, (base.cpu(), tuned.cpu()), strict=True):
            tensors: Tensors = {}
            for layer in range(sizes.layers):
                tensors |= llama.ungroup_rows(values[layer], layer, sizes)
            checkpoint.write(path, sizes, tensors)
        forms: tuple[Form, ...] = ("qkv", "product")
        for form in forms:
            plain = alps.scan(*paths, form=form)
            sort = alps.scan(*paths, form=form, statistics=sorted(ON_REQUEST))
            for statistic, numbers in [*plain.items(), *sort.items()]:
                if statistic != "changed":
                    scores[statistic if form == "qkv" else f"product.{statistic}"] = by_group(numbers, sizes)
    return scores


def low_rank_norm(base: Tensor, sizes: Sizes) -> NDArray[np.float64]:
    """LIFT without data: the norm of a head's rows in the rank-128 parts of its projections."""
    size, queries = sizes.head_size, sizes.rows // sizes.head_size - 2
    parts = base.view(sizes.layers, sizes.groups, queries + 2, size, sizes.hidden)
    kept = torch.empty(parts.shape[:3], device=base.device)
    for which in (slice(0, queries), slice(queries, queries + 1), slice(queries + 1, queries + 2)):
        matrices = parts[:, :, which].reshape(sizes.layers, -1, sizes.hidden)
        squared, vectors = torch.linalg.eigh(matrices.double() @ matrices.double().transpose(1, 2))
        scaled = (vectors[..., -_RANK:].square() * squared[:, None, -_RANK:]).sum(dim=-1).float()
        kept[:, :, which] = scaled.view(sizes.layers, sizes.groups, -1, size).sum(dim=-1)
    heads = kept[..., :-2] + kept[..., -2:].sum(dim=-1, keepdim=True)
    return by_group(heads.flatten(1).sqrt().double().cpu().numpy(), sizes)


def of_base(base: Weights, sizes: Sizes) -> Scores:
    """The scores that need nothing but the base."""
    qkv = stacked(base.qkv, sizes)
    norms = by_group(np.sqrt(heads_of(qkv.square(), sizes)), sizes)
    return {"base_norm": norms, "lift": low_rank_norm(qkv, sizes)}


def concentration(change: Tensor, sizes: Sizes) -> NDArray[np.float64]:
    """The largest squared singular value of a group's change over the sum of all, its rows one matrix."""
    matrices = change.view(-1, sizes.rows, sizes.hidden)
    products = matrices @ matrices.transpose(1, 2)
    vector = products.sum(dim=-1, keepdim=True)
    for _ in range(64):
        vector = products @ (vector / vector.norm(dim=1, keepdim=True))
    largest = vector.norm(dim=1)[:, 0]
    return np.asarray((largest / products.diagonal(dim1=1, dim2=2).sum(dim=-1)).double().cpu().numpy())


@dataclass(frozen=True)
class Copies:
    """The weights that scores are made of.

    Attributes:
        base: The model.
        tuned: The tuned copy: other weights as the forward pass takes them.
        tuned_qkv: Its Q, K and V in float32, [layers, groups, rows * hidden].
        second_qkv: Those of a copy tuned with another seed.
        alone_qkv: Those of a copy of which nothing but Q, K and V was tuned.
    """

    base: Weights
    tuned: Weights
    tuned_qkv: Tensor
    second_qkv: Tensor
    alone_qkv: Tensor


def all_scores(
    copies: Copies, sizes: Sizes, windows: Windows, tried: Windows, folder: Path, fixed: Scores
) -> tuple[Scores, float, float]:
    """Every score of every group.

    Args:
        copies: What is compared.
        sizes: Of the model.
        windows: Of the task, to take gradients on.
        tried: Of the task, to try each group on.
        folder: Where a temporary folder can be made.
        fixed: Scores of the base alone.

    Returns:
        The scores, and the losses of base and tuned on `tried`.
    """
    base = stacked(copies.base.qkv, sizes)
    change = copies.tuned_qkv - base
    scores = scanned(base, copies.tuned_qkv, sizes, folder)

    def heads(values: Tensor) -> NDArray[np.float64]:
        return by_group(heads_of(values, sizes), sizes)

    def norms(values: Tensor) -> NDArray[np.float64]:
        return by_group(np.sqrt(heads_of(values.square(), sizes)), sizes)

    scores |= fixed
    scores["concentration"] = concentration(change, sizes)
    second = copies.second_qkv - base
    scores["agreement"] = heads(change * second)
    scores["agreement_cosine"] = scores["agreement"] / (norms(change) * norms(second))
    alone = copies.alone_qkv - base
    scores["alone.delta_norm"] = norms(alone)
    scores["alone.relative_delta"] = norms(alone) / norms(base)

    at_base = gradients(copies.base, sizes, windows)
    at_tuned = gradients(replace(copies.tuned, qkv=_matrices(copies.tuned_qkv, copies.base)), sizes, windows)
    scores["fisher"] = heads(at_base.square)
    scores["gradient"] = heads(at_base.mean.abs())
    scores["gradient_norm"] = norms(at_base.mean)
    scores["saliency"] = heads((at_base.mean * base).abs())
    gate = at_base.gate.double().cpu().numpy()
    scores["michel"] = by_group(gate, sizes)
    scores["michel_layer"] = by_group(gate / np.linalg.norm(gate, axis=1, keepdims=True), sizes)
    scores["taylor"] = heads((at_base.mean * change).abs())
    scores["first_order"] = heads(-at_base.mean * change)
    scores["trapezoid"] = heads(-(at_base.mean + at_tuned.mean) / 2 * change)
    scores["fisher_delta"] = heads(at_base.square * change.square())
    scores["alone.first_order"] = heads(-at_base.mean * alone)

    every = [(number,) for number in range(sizes.layers * sizes.groups)]
    tuned = replace(copies.tuned, qkv=_matrices(copies.tuned_qkv, copies.base))
    plain = losses_of_grafts(copies.base, tuned.qkv, sizes, [()], tried)[0]
    whole = losses_of_grafts(tuned, copies.base.qkv, sizes, [()], tried)[0]
    scores["graft"] = plain - losses_of_grafts(copies.base, tuned.qkv, sizes, every, tried)
    scores["ungraft"] = losses_of_grafts(tuned, copies.base.qkv, sizes, every, tried) - whole
    return scores, float(plain), float(whole)


def _matrices(qkv: Tensor, like: Weights) -> list[Tensor]:
    return [it.view(like.qkv[0].shape).to(like.qkv[0].dtype) for it in qkv]
