"""Scores heads by the gradients of a loss."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alps.errors import ModelError
from alps.live.gates import GateGradients
from alps.live.grafting import LiveHeads
from alps.live.losses import Batch, evaluating, loss_and_outputs
from alps.live.process_sums import add_up
from alps.training.attention import HeadRows

_OF_MEAN = frozenset({"gradient", "saliency", "taylor"})
"""The statistics of the mean gradient, which takes as much memory as the weights."""

_OF_GATES = frozenset({"michel", "michel_layer"})
"""The statistics of gates on the outputs of heads."""

_Weight: TypeAlias = tuple[str, str]
"""The names of a module and of its weight."""


def gradient_scores(
    model: nn.Module,
    heads: LiveHeads,
    batches: Iterable[Batch],
    statistics: set[str],
    changes: Mapping[HeadRows, Tensor],
) -> dict[str, NDArray[np.float64]]:
    """Those of the statistics that need gradients, which `alps.measure` describes; "taylor" needs the `changes`.

    Raises:
        ArgumentError: There are no batches, or the model returns no loss or one that is not finite.
        ModelError: A weight gets no gradient, or the output projection of a layer cannot be told.
    """
    matrices = heads.attention.matrices
    weights = head_weights(model, heads)
    squares = torch.zeros(len(matrices), dtype=torch.float64)
    means: dict[_Weight, Tensor] = {}
    gates = GateGradients(heads)
    count = 0
    observed = gates.observed(model) if statistics & _OF_GATES else nullcontext()
    with only_gradients_of(model, weights.values()), observed:
        for number, batch in enumerate(batches):
            with torch.enable_grad():
                loss_and_outputs(model, batch, number)[0].backward()
            gates.finish_batch()
            count += 1
            gradients: dict[_Weight, Tensor] = {}
            for name, weight in weights.items():
                if weight.grad is None:
                    raise ModelError(f"{name[0]}.{name[1]}: expected a gradient, found none")
                gradients[name], weight.grad = weight.grad, None
                if statistics & _OF_MEAN:
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    mean = means.setdefault(name, torch.zeros_like(weight, dtype=wide))
                    mean += gradients[name]
            if "fisher" in statistics:
                for place, matrix in enumerate(matrices):
                    rows = matrix.rows_of(gradients[matrix.module, matrix.parameter])
                    squares[place] += rows.double().square().sum().cpu()
    count = add_up(count, [squares, gates.total, *means.values()])

    def mean_of(matrix: HeadRows) -> Tensor:
        return matrix.rows_of(means[matrix.module, matrix.parameter]).double() / count

    found: dict[str, NDArray[np.float64]] = {}
    if "fisher" in statistics:
        found["fisher"] = heads.attention.by_head(
            dict(zip(matrices, (squares / count).tolist(), strict=True))
        )
    factors: dict[str, Callable[[HeadRows], Tensor | float]] = {
        "gradient": lambda _: 1.0,
        "saliency": lambda matrix: heads.read(matrix).weight.double(),
        "taylor": lambda matrix: changes[matrix].double(),
    }
    for statistic in statistics & _OF_MEAN:
        sums = {it: float((mean_of(it) * factors[statistic](it)).abs().sum()) for it in matrices}
        found[statistic] = heads.attention.by_head(sums)
    if statistics & _OF_GATES:
        michel = np.where(heads.geometry.is_head, (gates.total / count).numpy(), np.nan)
        norms = np.sqrt(np.nansum(michel**2, axis=1, keepdims=True))
        found |= {"michel": michel, "michel_layer": michel / np.where(norms > 0, norms, 1)}
    return found


def head_weights(model: nn.Module, heads: LiveHeads) -> dict[_Weight, nn.Parameter]:
    """The weights that hold the rows of heads."""
    names = {(matrix.module, matrix.parameter) for matrix in heads.attention.matrices}
    return {name: model.get_submodule(name[0]).get_parameter(name[1]) for name in sorted(names)}


@contextmanager
def only_gradients_of(model: nn.Module, weights: Iterable[nn.Parameter]) -> Iterator[None]:
    """Lets these weights have gradients, and no other parameter; restores all at the end."""
    chosen = {id(weight) for weight in weights}
    before = [(parameter, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    # Gradient checkpointing works in training mode only, and dropout must not act.
    checkpointed = [
        module
        for module in model.modules()
        if module.training and getattr(module, "gradient_checkpointing", False)
    ]
    with evaluating(model):
        for module in checkpointed:
            module.training = True
        try:
            for parameter, _, _ in before:
                parameter.requires_grad_(id(parameter) in chosen)
                parameter.grad = None
            yield
        finally:
            for parameter, required, gradient in before:
                parameter.requires_grad_(required)
                parameter.grad = gradient
