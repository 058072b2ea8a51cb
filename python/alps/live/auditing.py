"""Audits a choice of heads: grafts of them against grafts of random sets."""

import os
from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from torch import nn

from alps.audits import Audit, Trial
from alps.draws import random_like
from alps.errors import ArgumentError, UnchangedError
from alps.heads import HeadSet, check_head_set
from alps.live.grafting import LiveHeads, Rows, other_heads, written
from alps.live.losses import Loss, evaluating, loss_function
from alps.live.models import load
from alps.progress import Progress, reported
from alps.scores import EQUAL_WEIGHTS
from alps.training.attention import HeadRows

Model: TypeAlias = nn.Module | str | os.PathLike[str]
"""A live model of transformers, or a checkpoint on this machine."""


def audit(
    base: Model,
    tuned: Model,
    heads: HeadSet,
    loss: Loss,
    *,
    draws: int = 100,
    seed: int = 0,
    progress: Progress = None,
) -> Audit:
    """Measures how much of a tuning the chosen heads carry, against random sets of the same size.

    An audit trains nothing. It puts rows of one model into the other and evaluates the loss, with forward passes only:
    `4 * draws + 5` evaluations. Sufficiency: the tuned Q/K/V rows of the chosen heads are put into the base. Necessity:
    the base's rows of the chosen heads are put into the tuned model. The same is done with `draws` random sets that have
    as many heads in as many key/value groups, and with `draws` that have as many in each layer as well. Both models are
    in memory at once.

    Examples:
        >>> import torch
        >>> heads = alps.scan("base", "tuned").select(ratio=0.1)
        >>> windows = torch.arange(48).reshape(3, 1, 16)  # the tokens of a text
        >>> batches = [{"input_ids": ids, "labels": ids} for ids in windows]
        >>> print(alps.audit("base", "tuned", heads, batches, draws=3))
        4 of 32 heads, 3 of 16 key/value groups, 15.6 % of Q/K/V parameters
        loss: base ..., tuned ...; the Q/K/V rows of all heads carry 100.0 % of the difference
        sufficiency: ... % of the tuning, random sets ... %; rank ... of 4, p = ...
        necessity: ... % of the tuning, random sets ... %; rank ... of 4, p = ...

    Args:
        base: The model before tuning: a live transformers model, or a checkpoint on this machine, which is loaded as a
            causal language model. A live model is put into evaluation mode for the audit; its weights are restored.
        tuned: The model after tuning, given in the same ways; an adapter is merged into `base` first.
        heads: The chosen heads.
        loss: A function that returns the loss of a model, less being better; or batches of what the model takes, with
            `labels`, whose losses are averaged, weighted by the number of labels that count.
        draws: The number of random sets of each of the two kinds.
        seed: The seed of the random sets.
        progress: True for a progress bar, in a terminal or a notebook; or a function, called on this thread now and then
            with the evaluations done so far and the evaluations to do.

    Returns:
        The shares of the tuning, and how the chosen heads rank.

    Raises:
        ArgumentError: The heads are those of another model or none, there are fewer than one draw, the model has no
            loss, a loss is not finite, or both models have the same loss, so that there is nothing to share.
        UnchangedError: The attention weights of both models are equal.
        ModelError: The model has no known layout, or its weights are quantised, sharded or not in memory.
        OSError: A file cannot be read.

    Definitions:
        L is the loss. For a set S of heads, S→base is the base with the tuned rows of S, and S→tuned is the tuned model
        with the base's rows of S.

        - sufficiency: (L(base) − L(S→base)) / (L(base) − L(tuned))
        - necessity: (L(S→tuned) − L(tuned)) / (L(base) − L(tuned))
        - p-value: the share of the sets, the chosen one included, that carry as much as the chosen one
    """
    if draws < 1:
        raise ArgumentError(f"draws: expected at least 1, found {draws}")
    if not check_head_set(heads):
        raise ArgumentError("heads: expected at least one head, found none")
    measure = loss_function(loss)
    total, done = 4 * draws + 5, 0

    def measured(model: nn.Module) -> float:
        nonlocal done
        value = measure(model)
        done += 1
        if report is not None:
            report(done, total)
        return value

    with (
        evaluating(_live(base, None)) as first,
        evaluating(_live(tuned, base)) as second,
        reported(progress, "evaluations") as report,
    ):
        in_base, in_tuned = _GraftedModel(first, second, heads), _GraftedModel(second, first, heads)
        if in_base.is_unchanged():
            raise UnchangedError(EQUAL_WEIGHTS)
        base_loss, tuned_loss = measured(first), measured(second)
        if base_loss == tuned_loss:
            raise ArgumentError(
                f"loss: both models have the loss {base_loss:.6g}, so there is no tuning to divide; use a loss of the "
                "task that the model was tuned on"
            )
        difference = base_loss - tuned_loss
        generator = np.random.default_rng(seed)
        sets = [
            [random_like(heads, generator, within_layers=within) for _ in range(draws)]
            for within in (False, True)
        ]
        everything = HeadSet(heads.geometry.is_head, heads.geometry)
        all_heads = (base_loss - in_base.loss(everything, measured)) / difference

        def trial(name: str, share: Callable[[HeadSet], float]) -> Trial:
            chosen = share(heads)
            random, matched = (np.array([share(drawn) for drawn in of_kind]) for of_kind in sets)
            return Trial(name, chosen, random, matched)

        sufficiency = trial(
            "sufficiency", lambda chosen: (base_loss - in_base.loss(chosen, measured)) / difference
        )
        necessity = trial(
            "necessity", lambda chosen: (in_tuned.loss(chosen, measured) - tuned_loss) / difference
        )
    return Audit(heads, base_loss, tuned_loss, all_heads, sufficiency, necessity, seed)


class _GraftedModel:
    """One of the two models, whose rows are replaced by those of the other for each loss."""

    def __init__(self, model: nn.Module, other: nn.Module, heads: HeadSet) -> None:
        self._model = model
        self._heads = LiveHeads(model, heads.geometry.component)
        if difference := heads.geometry.difference(self._heads.geometry):
            raise ArgumentError(f"the heads are not those of this model (heads and model): {difference}")
        source = other_heads(other, self._heads.geometry)
        self._rows: dict[HeadRows, Rows] = {
            matrix: source.read(matrix) for matrix in self._heads.attention.matrices
        }

    def is_unchanged(self) -> bool:
        """Whether the other model has the same weights in all heads."""
        for matrix, rows in self._rows.items():
            own = self._heads.read(matrix).weight
            if not torch.equal(rows.weight.to(own.device), own):
                return False
        return True

    def loss(self, heads: HeadSet, measure: Callable[[nn.Module], float]) -> float:
        chosen = self._heads.attention.chosen(heads)
        with written(self._heads, ((matrix, self._rows[matrix]) for matrix in chosen)):
            return measure(self._model)


def _live(model: Model, under: Model | None) -> nn.Module:
    """A model in memory; an adapter is merged into what it changes."""
    if isinstance(model, nn.Module):
        return model
    return load(model, None if under is None or isinstance(under, nn.Module) else under)
