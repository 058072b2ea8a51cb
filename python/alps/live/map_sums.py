"""Scores heads by their attention maps: how much the loss depends on a map, and how far tuning has changed it."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from alps.errors import ModelError
from alps.geometry import Geometry
from alps.live.losses import Batch, evaluating, loss_and_outputs, to_device
from alps.training.attention_maps import attention_maps


class MapSums:
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
        """Adds a batch; both models return their attention maps.

        Raises:
            ArgumentError: The model returns no loss, or one that is not finite.
            ModelError: A model does not return the maps of all layers.
        """
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
                    f"layer {self._geometry.layers[row]}: expected a loss that depends on the attention maps that the model "
                    "returns, found one that does not; leave out seekr"
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
def returning_maps(*models: nn.Module) -> Iterator[None]:
    """Lets models compute their attention in the way that has maps, in evaluation mode; restores both at the end."""
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
