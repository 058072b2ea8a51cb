"""Logs how far the chosen heads have moved, wherever the Trainer of transformers logs."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback

import alps._alps as _alps
from alps.errors import ArgumentError, MissingPackageError, ModelError
from alps.heads import HeadSet
from alps.optional import visual
from alps.scores import HeadScores
from alps.training import attention
from alps.training.attention import HeadRows
from alps.training.projection import restricted_projections
from alps.training.summary import summarize

SCORES, PICTURE = "alps_change.safetensors", "alps_change.png"
"""What is left in the output folder at the end."""


class HeadsCallback(TrainerCallback):
    """Logs the share of the parameters that train, and how far each chosen head has moved.

    `log_heads` makes one and adds it to a Trainer. The logged names are `alps/trainable` and `alps/change/LAYER.HEAD`.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> heads = alps.HeadSet.load("heads.json")
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> restriction = alps.restrict(model, heads)
        >>> callback = alps.training.HeadsCallback(model, heads)
        >>> callback.changes().statistics
        ('delta_norm',)
    """

    def __init__(self, model: nn.Module | None, heads: HeadSet) -> None:
        """Keeps the rows of the heads as they are now.

        Args:
            model: The restricted model.
            heads: The heads to log, of the model's geometry.

        Raises:
            ArgumentError: The model is not restricted, or the heads are those of another model.
            ModelError: The model has no known layout, or its weights are sharded.
        """
        if not isinstance(model, nn.Module) or not restricted_projections(model):
            raise ArgumentError("the model is not restricted; call alps.restrict(model, heads) first")
        self._model, self._heads = model, heads
        self._attention = attention.find(model, heads.geometry.component)
        self._before = {matrix: self._rows(matrix) for matrix in self._attention.chosen(heads)}

    def changes(self) -> HeadScores:
        """Measures the norm of the change of each chosen head's rows since the callback was made; 0 for all other heads."""
        squares = {
            matrix: float((self._rows(matrix).double() - before.double()).square().sum())
            for matrix, before in self._before.items()
        }
        norms = np.sqrt(self._attention.by_head(squares))
        # The other heads of a group with a chosen one read its keys and values, but are not chosen.
        norms[self._attention.geometry.is_head & ~self._heads.mask] = 0
        provenance = {"measured": "change of the rows in training", "alps": _alps.__version__}
        return HeadScores({"delta_norm": norms}, self._attention.geometry, provenance)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Adds its numbers to what is logged of a training step."""
        if logs is None or "loss" not in logs:
            return
        norms = self.changes()["delta_norm"]
        own = {"alps/trainable": summarize(self._model, self._attention, self._heads).share}
        own |= {
            f"alps/change/{layer}.{head}": float(norms[self._heads.geometry.row_of(layer), head])
            for layer, head in self._heads.pairs()
        }
        logs |= own
        if state.log_history:
            state.log_history[-1] |= own

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Leaves the changes in the output folder, and a map of them where matplotlib is installed."""
        if not state.is_world_process_zero:
            return
        changes = self.changes()
        folder = Path(args.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        changes.save(folder / SCORES)
        try:
            figure = changes.plot(self._heads, kind="map")
        except MissingPackageError:
            return
        visual("image_file", "a picture").save(figure, folder / PICTURE)

    def _rows(self, matrix: HeadRows) -> Tensor:
        weight = self._model.get_submodule(matrix.module).get_parameter(matrix.parameter).detach()
        if type(weight) is not Tensor:
            raise ModelError(
                f"{matrix.module}.{matrix.parameter}: expected a tensor that is whole, found a {type(weight).__name__}"
            )
        return matrix.rows_of(weight).clone()


def log_heads(trainer: Trainer, heads: HeadSet) -> HeadsCallback:
    """Lets a Trainer log the trainable share and how far the chosen heads have moved, and leave a map of it.

    The numbers go where the Trainer's own go (TensorBoard, Weights & Biases, ...), as `alps/trainable` and
    `alps/change/LAYER.HEAD`, the norm of the change of the head's query rows and its group's key and value rows. At the
    end the output folder has `alps_change.safetensors`, which `alps show` prints, and `alps_change.png`. The norms are of
    the change since this call. For a training that resumes, call this while the model still holds the weights of the base,
    before `trainer.train(resume_from_checkpoint=...)`.

    Examples:
        >>> import torch
        >>> from transformers import AutoModelForCausalLM, Trainer, TrainingArguments
        >>> heads = alps.HeadSet.load("heads.json")
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> restriction = alps.restrict(model, heads)
        >>> data = [{"input_ids": torch.arange(16), "labels": torch.arange(16)}]
        >>> options = {"max_steps": 1, "logging_steps": 1, "disable_tqdm": True}
        >>> arguments = TrainingArguments("out", report_to="none", **options)
        >>> trainer = Trainer(model, arguments, train_dataset=data)
        >>> callback = alps.training.log_heads(trainer, heads)
        >>> result = trainer.train()
        {'loss': ..., 'alps/trainable': ..., 'alps/change/0.5': ..., 'alps/change/3.6': ...}
        ...
        >>> alps.HeadScores.load("out/alps_change.safetensors").statistics
        ('delta_norm',)

    Args:
        trainer: A Trainer of transformers or TRL, whose model is whole on each device.
        heads: The heads to log, of the model's geometry.

    Returns:
        The callback, which has been added; `changes()` gives the numbers as scores.

    Raises:
        ArgumentError: The model is not restricted, or the heads are those of another model.
        ModelError: The model has no known layout, or its weights are sharded.
    """
    callback = HeadsCallback(trainer.model, heads)
    # Callbacks are called in order, and those that report what is logged stand first.
    trainer.callback_handler.callbacks.insert(0, callback)
    return callback
