"""Gates on the outputs of heads: a gate is a factor of 1, whose gradient says what the loss loses without the head."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from alps.errors import ModelError
from alps.live.grafting import LiveHeads


class GateGradients:
    """The gradients of the loss by the gates of all heads.

    Attributes:
        total: The absolute gradients of each batch, added up: float64 [layers, heads].
    """

    def __init__(self, heads: LiveHeads) -> None:
        self._heads = heads
        self.total = torch.zeros(heads.geometry.shape, dtype=torch.float64)
        self._batch = torch.zeros_like(self.total)

    @contextmanager
    def observed(self, model: nn.Module) -> Iterator[None]:
        """Observes the gates in every backward pass inside the block.

        Raises:
            ModelError: The module that takes the outputs of the heads of a layer cannot be told.
        """
        with ExitStack() as hooks:
            for row, module in enumerate(_output_projections(model, self._heads)):
                hooks.enter_context(module.register_forward_pre_hook(self._forward_hook(row)))
            yield

    def finish_batch(self) -> None:
        """Adds the absolute gradients of the backward passes since the last call."""
        self.total += self._batch.abs()
        self._batch.zero_()

    def _forward_hook(self, row: int) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        count = self._heads.geometry.sizes[row].query_heads
        sums = self._batch[row, :count]

        def hook(_module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            outputs = arguments[0]
            if not outputs.requires_grad:
                return
            values = outputs.detach()

            def add(gradient: Tensor) -> None:
                products = (values.double() * gradient.double()).reshape(-1, count, values.shape[-1] // count)
                sums.add_(products.sum(dim=(0, 2)).to(sums.device))

            outputs.register_hook(add)

        return hook


def _output_projections(model: nn.Module, heads: LiveHeads) -> list[nn.Module]:
    """The module of each layer that takes the outputs of all heads.

    Raises:
        ModelError: There is none, or more than one, near the queries of a layer.
    """
    matrices, projections = heads.attention.matrices, set(heads.attention.modules)
    found = []
    for layer_index, sizes in enumerate(heads.geometry.sizes):
        query = place = next(
            it.module for it in matrices if (it.layer_index, it.role) == (layer_index, "query")
        )
        width = sizes.query_heads * sizes.value_size
        candidates: list[nn.Module] = []
        for _ in range(2):
            place = place.rpartition(".")[0]
            candidates = [
                module
                for name, module in model.get_submodule(place).named_modules(prefix=place)
                if name not in projections and _in_features(module) == width
            ]
            if candidates:
                break
        if len(candidates) != 1:
            raise ModelError(
                f"{query}: expected one projection of the outputs of {sizes.query_heads} heads beside it, found "
                f"{len(candidates)}; leave out michel and michel_layer"
            )
        found += candidates
    return found


def _in_features(module: nn.Module) -> int | None:
    """The in features of a linear layer; None for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features
    return module.weight.shape[0] if isinstance(module, Conv1D) else None
