"""Training a model step by step, with the optimizer and the schedule of the paper."""

import time
from typing import Any

import torch
from transformers import get_cosine_with_min_lr_schedule_with_warmup


class Learner:
    """A model that learns from what it is shown.

    AdamW with a weight decay of 0.1; the learning rate warms up in a tenth of the steps and falls by a cosine to a
    tenth of its peak. Gradients are clipped to a norm of 1.

    Attributes:
        model: The model.
        seconds: Processor time that the steps have taken. The clock on the wall would count what else the
            machine does.
    """

    def __init__(self, model: Any, peak_rate: float, steps: int) -> None:
        self.model = model
        self.seconds = 0.0
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, lr=peak_rate, weight_decay=0.1, fused=True)
        self._schedule = get_cosine_with_min_lr_schedule_with_warmup(
            self._optimizer, steps // 10, steps, min_lr_rate=0.1
        )
        self._gradient_bytes = 0

    def step(self, windows: torch.Tensor) -> None:
        """Learns from a batch: int64 [batch, window]."""
        start = time.thread_time()
        self.model(input_ids=windows, labels=windows).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._gradient_bytes = _bytes(it.grad for it in self._trained)
        self._optimizer.zero_grad()
        self.seconds += time.thread_time() - start

    @property
    def trainable(self) -> int:
        """How many parameters train."""
        return sum(parameter.numel() for parameter in self._trained)

    @property
    def bytes(self) -> int:
        """What training holds from step to step, to the byte: all parameters, gradients, the optimizer's state.

        Activations are not in it; they depend on the batch.
        """
        state = (value for values in self._optimizer.state.values() for value in values.values())
        return _bytes(self.model.parameters()) + self._gradient_bytes + _bytes(state)


def loss(model: Any, windows: torch.Tensor) -> float:
    """The mean loss, in nats for each token, on int64 [windows, window]."""
    model.eval()
    with torch.no_grad():
        mean = float(model(input_ids=windows, labels=windows).loss)
    model.train()
    return mean


def _bytes(tensors: Any) -> int:
    return sum(it.numel() * it.element_size() for it in tensors if isinstance(it, torch.Tensor))
