"""Scores the heads of a live model."""

import os
from collections.abc import Iterable, Sequence
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import alps._alps as _alps
from alps.arguments import MEASURES, Component, Measure
from alps.errors import ArgumentError, UnchangedError
from alps.live.gradients import gradient_scores
from alps.live.grafting import LiveHeads, Tuned, other_heads
from alps.live.losses import Batch
from alps.live.low_rank import low_rank_scores
from alps.live.map_scores import map_scores
from alps.scores import EQUAL_WEIGHTS, HeadScores
from alps.training.attention import HeadRows

WITHOUT_DATA = frozenset({"lift"})
"""The statistics of the weights alone."""

_OF_TUNED = frozenset({"taylor", "seekr"})
"""The statistics that need the model after tuning."""


def measure(
    model: nn.Module,
    batches: Iterable[Batch] = (),
    *,
    tuned: Tuned | None = None,
    statistics: Sequence[Measure] = MEASURES,
    component: Component | None = None,
) -> HeadScores:
    """Scores every head of a live model on data.

    A scan compares weights alone; these statistics run the model. docs/evidence.md measures what they are worth for
    choosing heads to train: over all layers none was better than random heads.

    The gradients of Q, K and V are held in memory, and their mean for "gradient", "saliency" and "taylor"; nothing
    else of the model has gradients meanwhile. Any floating-point format works, also under autocast, with gradient
    checkpointing (reentrant checkpointing needs `model.enable_input_require_grads()`), and over several processes of
    torch.distributed that each have batches of their own. The model is left as it was.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> windows = torch.arange(48).reshape(3, 1, 16)  # the tokens of a text
        >>> batches = [{"input_ids": ids, "labels": ids} for ids in windows]
        >>> names = ["gradient", "taylor"]
        >>> scores = alps.measure(model, batches, tuned="tuned", statistics=names)
        >>> scores["taylor"].shape  # layers, heads
        (4, 8)
        >>> heads = scores.select(ratio=0.1, statistic="taylor")

    Args:
        model: A transformers model of any layout that `scan` knows, with a loss.
        batches: The arguments of the model by name, with `labels`.
        tuned: Another state of the model, live or on this machine.
        statistics: The names of the statistics to compute, of those below; "fisher", "gradient", "saliency" and
            "michel" when not given.
        component: The attention whose heads are scored, as for `scan`.

    Returns:
        The scores: float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: There is no such statistic, there are no batches, the model returns no loss or one that is not
            finite, or "taylor" or "seekr" is asked for without `tuned`.
        UnchangedError: `tuned` has the same attention weights, or the same attention maps on the batches.
        ModelError: The model has no known layout, its weights are quantised, sharded or not in memory, or the output
            projection of a layer cannot be told, or the model returns no attention maps.

    Definitions:
        L is the loss of a batch, g its gradient, E the mean over batches, w a weight and δ its change to `tuned`. The
        sums Σ are over the query rows of the head and the key and value rows of its group.

        - `fisher`: Σ E[g²], the diagonal of the empirical Fisher information per batch; with batches of one sample, per
          sample
        - `gradient`: Σ |E[g]|
        - `saliency`: Σ |E[g] · w|, as in SPEFT
        - `taylor`: Σ |E[g] · δ|, the first-order effect of the change; needs `tuned`
        - `michel`: E[|∂L/∂ξ|] of a gate ξ = 1 on the output of the head
        - `michel_layer`: `michel` divided by its Euclidean norm over the heads of the layer
        - `seekr`: S · F. S = Σ E[(∂L/∂A)²] over the entries of the attention map A of the head, divided by the sum of S
          over the layer; F = Σ E[(A′ − A)²], where A′ is the map of `tuned`. It needs `tuned` in memory, and attention
          that returns its maps: the model is switched to "eager" for it
        - `lift`: the norm of the rows in the rank-128 part of their projection; needs no data

    References:
        - `saliency`: SPEFT, arXiv 2412.13488, <https://arxiv.org/abs/2412.13488>
        - `taylor`: selective task arithmetic, arXiv 2411.16139, <https://arxiv.org/abs/2411.16139>
        - `michel`: arXiv 1905.10650, <https://arxiv.org/abs/1905.10650>
        - `seekr`: arXiv 2411.06171, <https://arxiv.org/abs/2411.06171>
        - `lift`: arXiv 2506.00772, <https://arxiv.org/abs/2506.00772>
    """
    names = list(dict.fromkeys(statistics))
    known = get_args(Measure)
    if not names or any(name not in known for name in names):
        unknown = next((name for name in names if name not in known), "none")
        raise ArgumentError(f"statistics: there is no {unknown!r}; there are {', '.join(known)}")
    for name in names:
        if name in _OF_TUNED and tuned is None:
            raise ArgumentError(f'tuned: "{name}" needs the model after tuning')
    heads = LiveHeads(model, component)
    changes = {} if tuned is None or "taylor" not in names else _changes(heads, tuned)
    found: dict[str, NDArray[np.float64]] = {}
    if "seekr" in names:
        batches = list(batches)  # the gradients need another pass over them
        found["seekr"] = map_scores(model, tuned, heads, batches)
    if set(names) - WITHOUT_DATA - {"seekr"}:
        found |= gradient_scores(model, heads, batches, set(names), changes)
    if "lift" in names:
        found["lift"] = low_rank_scores(heads)
    provenance = {"measured": str(getattr(model.config, "_name_or_path", "") or type(model).__name__)}
    if isinstance(tuned, (str, os.PathLike)):
        provenance["tuned"] = os.fspath(tuned)
    return HeadScores(
        {name: found[name] for name in names}, heads.geometry, provenance | {"alps": _alps.__version__}
    )


def _changes(heads: LiveHeads, tuned: Tuned) -> dict[HeadRows, Tensor]:
    """The change of each matrix to the tuned model."""
    other = other_heads(tuned, heads.geometry)
    changes = {}
    for matrix in heads.attention.matrices:
        own = heads.read(matrix).weight
        wide = torch.promote_types(own.dtype, torch.float32)
        changes[matrix] = other.read(matrix).weight.to(own.device, wide) - own.to(wide)
    if not any(bool(change.any()) for change in changes.values()):
        raise UnchangedError(EQUAL_WEIGHTS)
    return changes
