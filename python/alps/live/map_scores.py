"""Scores heads by their attention maps: how much the loss depends on a map, and how far tuning has changed it."""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from alps.errors import ModelError, UnchangedError
from alps.geometry import Geometry
from alps.live.gradients import head_weights, only_gradients_of
from alps.live.grafting import LiveHeads, Tuned
from alps.live.losses import Batch, evaluating, loss_and_outputs, to_device
from alps.live.models import load
from alps.live.process_sums import add_up
from alps.scores import EQUAL_WEIGHTS
from alps.training.attention_maps import attention_maps


def map_scores(
    model: nn.Module, tuned: Tuned | None, heads: LiveHeads, batches: Iterable[Batch]
) -> NDArray[np.float64]:
    """The scores [layers, heads] of SEEKR (https://arxiv.org/abs/2411.06171), which `alps.measure` describes.

    Raises:
        ArgumentError: There are no batches, or the model returns no loss or one that is not finite.
        ModelError: A model does not return the maps of all layers.
        UnchangedError: Both models have the same maps.
    """
    assert tuned is not None
    other = tuned if isinstance(tuned, nn.Module) else load(tuned).to(next(model.parameters()).device)
    sums = _MapSums(heads.geometry)
    count = 0
    with only_gradients_of(model, head_weights(model, heads).values()), _returning_maps(model, other):
        for number, batch in enumerate(batches):
            sums.add(model, other, batch, number)
            count += 1
    count = add_up(count, [sums.sensitivity, sums.change])
    if not sums.change.any():
        raise UnchangedError(EQUAL_WEIGHTS)
    return np.where(heads.geometry.is_head, sums.scores(count).numpy(), np.nan)


class _MapSums:
    """Sums over batches, float64 [layers, heads].

    Attributes:
        sensitivity: Of the squared gradients of the loss by the entries of the maps.
        change: Of the squared differences of the maps of the model before and after tuning.
    """

    def __init__(self, geometry: Geometry) -> None:
        self._geometry = geometry
        self.sensitivity = torch.zeros(geometry.shape, dtype=torch.float64)
        self.change = torch.zeros(geometry.shape, dtype=torch.float64)

    def add(self, model: nn.Module, tuned: nn.Module, batch: Batch, number: int) -> None:
        """Adds a batch; both models return their attention maps."""
        batch = {**batch, "output_attentions": True}
        with torch.enable_grad():
            loss, outputs = loss_and_outputs(model, batch, number)
            maps = attention_maps(outputs, self._geometry)
            gradients = torch.autograd.grad(loss, maps, allow_unused=True)
        with torch.no_grad():
            others = attention_maps(tuned(**to_device(batch, tuned)), self._geometry)
        for row, (own, gradient, other) in enumerate(zip(maps, gradients, others, strict=True)):
            if gradient is None:
                raise ModelError(
                    f"layer {self._geometry.layers[row]}: expected a loss that depends on the attention maps that the "
                    "model returns, found one that does not; leave out seekr"
                )
            heads = own.shape[1]
            self.sensitivity[row, :heads] += _squares(gradient)
            self.change[row, :heads] += _squares(other.to(own.device).double() - own.detach().double())

    def scores(self, count: int) -> Tensor:
        """The mean sensitivity, divided by the sum of its layer, times the mean change."""
        layers = self.sensitivity.sum(dim=1, keepdim=True)
        shares = self.sensitivity / torch.where(layers > 0, layers, 1)
        return shares * self.change / count


@contextmanager
def _returning_maps(*models: nn.Module) -> Iterator[None]:
    """Switches models to the attention that returns maps, and to evaluation mode; restores both at the end."""
    before: list[tuple[Any, str]] = []
    try:
        for model in models:
            implementation = getattr(model.config, "_attn_implementation", None)
            if implementation not in (None, "eager"):
                before.append((model, implementation))
                model.set_attn_implementation("eager")  # type: ignore[operator]
        with ExitStack() as modes:
            for model in models:
                modes.enter_context(evaluating(model))
            yield
    finally:
        for model, implementation in before:
            model.set_attn_implementation(implementation)


def _squares(maps: Tensor) -> Tensor:
    return maps.double().square().sum(dim=(0, 2, 3)).cpu()
