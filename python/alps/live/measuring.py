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

    With g the gradient of the loss of a batch, E the mean over batches, w the weights and delta their change to
    `tuned`, summed over the query rows of the head and the key and value rows of its group:

    - "fisher": E[g^2], the diagonal of the empirical Fisher information per batch (with batches of one sample, per
      sample);
    - "gradient": abs(E[g]);
    - "saliency": abs(E[g] w), as SPEFT (https://arxiv.org/abs/2412.13488);
    - "taylor": abs(E[g] delta), the first-order effect of the change (https://arxiv.org/abs/2411.16139); needs
      `tuned`;
    - "michel": E[abs(dL/dxi)] of a gate xi = 1 on the output of the head (https://arxiv.org/abs/1905.10650), and
      "michel_layer": that divided by the Euclidean norm of its layer, as there;
    - "seekr": S F, where S is E[(dL/dA)^2] of the attention map A of the head, divided by the sum over its layer, and
      F is E[(A' - A)^2] with the map A' of `tuned`, both summed over the entries of the map
      (https://arxiv.org/abs/2411.06171); needs `tuned` in memory, and attention that returns its maps: the model is
      switched to "eager" for it;
    - "lift": the norm of the rows in the rank-128 part of their projection (https://arxiv.org/abs/2506.00772); needs
      no data.

    docs/evidence.md measures what these are worth for choosing heads to train; over all layers none was better than
    random heads.

    The gradients of Q, K and V are held in memory, and their mean for "gradient", "saliency" and "taylor"; nothing
    else of the model has gradients meanwhile. Works in any floating-point format, under autocast, with gradient
    checkpointing (reentrant checkpointing needs `model.enable_input_require_grads()`), and over several processes of
    torch.distributed that each have batches of their own. The model is left as it was.

        batches = [dict(input_ids=ids, labels=ids) for ids in windows]
        alps.measure(model, batches, statistics=["taylor"], tuned="tuned").select(ratio=0.1)

    Args:
        model: A transformers model of any layout that `scan` knows, with a loss.
        batches: What the model takes, by name, with `labels`.
        tuned: Another state of the model, live or on this machine.
        statistics: What to compute.
        component: Whose heads, as for `scan`.

    Returns:
        float64 [layers, heads] for each statistic.

    Raises:
        ArgumentError: There is no such statistic, there are no batches, the model returns no loss or one that is not
            finite, or "taylor" or "seekr" is asked for without `tuned`.
        UnchangedError: `tuned` has the same attention weights, or the same attention maps on the batches.
        ModelError: The model has no known layout, its weights are quantised, sharded or not in memory, or the output
            projection of a layer cannot be told, or the model returns no attention maps.
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
