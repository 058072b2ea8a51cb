"""The loss of a live model on some batches."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import nn

from alps.errors import ArgumentError

Batch: TypeAlias = Mapping[str, Any]
"""The arguments of the model by name, `labels` among them."""

Loss: TypeAlias = Callable[[nn.Module], float] | Iterable[Batch]
"""A function that returns the loss of a model, or batches, over which the model's own loss is averaged."""


def to_device(batch: Batch, model: nn.Module) -> dict[str, Any]:
    """The batch with its tensors beside the model's first parameter."""
    device = next(model.parameters()).device
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()
    }


def loss_and_outputs(model: nn.Module, batch: Batch, number: int) -> tuple[torch.Tensor, Any]:
    """The loss that the model returns for a batch, a scalar, and all that it returns.

    Raises:
        ArgumentError: The batch is no mapping, the model returns no loss, or the loss is not finite.
    """
    if not isinstance(batch, Mapping):
        raise ArgumentError(
            f"batch {number}: expected what the model takes, by name; found {type(batch).__name__}"
        )
    outputs = model(**to_device(batch, model))
    loss = getattr(outputs, "loss", None)
    if not isinstance(loss, torch.Tensor):
        raise ArgumentError(
            f"batch {number}: the model {type(model).__name__} returned no loss; expected a model with a head for a "
            "task, and batches with `labels`"
        )
    if not bool(torch.isfinite(loss)):
        raise ArgumentError(f"batch {number}: expected a loss that is finite, found {float(loss)}")
    return loss, outputs


def weight_of_batch(batch: Batch) -> float:
    """The number of labels of a batch that count; 1 if it has none that can be counted."""
    labels = batch.get("labels")
    return float((labels != -100).sum()) if isinstance(labels, torch.Tensor) else 1.0


def loss_function(loss: Loss) -> Callable[[nn.Module], float]:
    """A function that returns the loss of a model.

    Raises:
        ArgumentError: There are no batches, or `loss` is neither.
    """
    if callable(loss):

        def checked(model: nn.Module) -> float:
            value = float(loss(model))
            if not math.isfinite(value):
                raise ArgumentError(f"loss: expected a finite number, found {value}")
            return value

        return checked
    if isinstance(loss, (str, bytes, Mapping)) or not isinstance(loss, Iterable):
        raise ArgumentError(f"loss: expected a function of the model or batches, found {type(loss).__name__}")
    batches = list(loss)
    if not batches:
        raise ArgumentError("loss: expected at least one batch, found none")

    def mean(model: nn.Module) -> float:
        total = weights = 0.0
        with torch.inference_mode():
            for number, batch in enumerate(batches):
                value = float(loss_and_outputs(model, batch, number)[0])
                weight = weight_of_batch(batch)
                total += value * weight
                weights += weight
        if weights == 0:
            raise ArgumentError("loss: expected labels that count, found only -100")
        return total / weights

    return mean


@contextmanager
def evaluating(model: nn.Module) -> Iterator[nn.Module]:
    """Puts a model into evaluation mode; its modules return to their own modes at the end."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield model
    finally:
        for module in training:
            module.training = True
