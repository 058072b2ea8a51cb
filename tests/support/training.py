"""Builders of small models, head sets and masks for the tests of training, and two ways to train."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from alps import HeadSet
from alps.training import attention
from alps.training.projection import RestrictedProjection
from support.tiny_models import VOCABULARY, tiny

PAIRS = [(0, 1), (0, 3), (2, 5)]
"""The heads to train: two in one layer, none in the next, one in the last."""

Model = Any

torch.set_num_threads(1)  # a second thread slows tiny models down


def tokens(seed: int = 0, batch: int = 4, length: int = 12) -> Tensor:
    """Random token numbers [batch, length]."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def tiny_model(model_type: str = "llama", dtype: torch.dtype = torch.float64) -> Model:
    """Builds a tiny model without dropout in the given number format, the same at every call."""
    model, _ = tiny(model_type)
    for parameter in model.parameters():  # not the buffers, which from_pretrained leaves in float32 too
        parameter.data = parameter.data.to(dtype)
    return model


def chosen(model: Model, pairs: list[tuple[int, int]] | None = None) -> HeadSet:
    """Returns the set of these heads, by default `PAIRS`."""
    return HeadSet.from_pairs(PAIRS if pairs is None else pairs, attention.find(model).geometry)


def loss_of(model: Model, step: int) -> Tensor:
    """Computes a loss to train on, for any model with tokens as inputs."""
    batch = tokens(step)
    output = model(input_ids=batch)
    logits = output.logits if hasattr(output, "logits") else output[0]
    return nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1).double(), batch[:, 1:].flatten())


def train(model: Model, optimizer: torch.optim.Optimizer, steps: int, first: int = 0) -> None:
    for step in range(first, first + steps):
        loss_of(model, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def trainable(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def states(model: nn.Module) -> dict[str, Tensor]:
    """A copy of the state dict."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def masks(model: Model, heads: HeadSet) -> dict[str, Tensor]:
    """Returns the entries that train, for each weight and bias of Q, K and V.

    Unlike the library, this function relies on the names of tiny models.
    """
    config = model.config
    heads_count, groups = config.num_attention_heads, getattr(config, "num_key_value_heads", None)
    groups = groups or heads_count
    result = {}
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if parts[-2] not in {"q_proj", "k_proj", "v_proj", "query", "key", "value", "c_attn"}:
            continue
        layer = int(next(part for part in parts if part.isdigit()))
        mask = torch.zeros(parameter.shape, dtype=torch.bool)
        fused = parts[-2] == "c_attn"
        outputs = mask.t() if fused and mask.dim() == 2 else mask
        size = len(outputs) // (3 * heads_count) if fused else 0
        for at, head in heads:
            if at != layer:
                continue
            group = head * groups // heads_count
            if fused:
                for part in range(3):
                    start = (part * heads_count + head) * size
                    outputs[start : start + size] = True
            else:
                count, index = (heads_count, head) if parts[-2][0] == "q" else (groups, group)
                rows = len(outputs) // count
                outputs[index * rows : (index + 1) * rows] = True
        result[name] = mask
    return result


def projections(model: nn.Module) -> Iterator[RestrictedProjection]:
    return (module for module in model.modules() if isinstance(module, RestrictedProjection))


MakeOptimizer = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


class TokenDataset(Dataset[dict[str, torch.Tensor]]):
    """24 rows of random tokens."""

    def __len__(self) -> int:
        return 24

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = tokens(index, batch=1)[0]
        return {"input_ids": row, "labels": row}


def run_trainer(
    model: Model, folder: Path, steps: int, resume: Path | None = None, **changes: Any
) -> Trainer:
    """Trains with the Trainer of transformers."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.1,
        "save_steps": 3,
        "logging_steps": 1000,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    trainer = Trainer(model=model, args=TrainingArguments(**settings | changes), train_dataset=TokenDataset())
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return trainer
