"""What a Trainer logs of the chosen heads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import alps
from alps.training import log_heads
from support.training import Model, TokenDataset, chosen, tiny_model

pytestmark = pytest.mark.filterwarnings("ignore")


class Reporter(TrainerCallback):
    """Takes what a service for logs would get."""

    def __init__(self) -> None:
        self.taken: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        self.taken.append(dict(logs))


def trainer_of(model: Model, folder: Path, steps: int, reporter: Reporter, **changes: Any) -> Trainer:
    arguments = TrainingArguments(
        str(folder), max_steps=steps, per_device_train_batch_size=4, learning_rate=1e-3, logging_steps=2,
        save_steps=2, report_to=[], disable_tqdm=True, use_cpu=True, **changes,
    )  # fmt: skip
    trainer = Trainer(model, arguments, train_dataset=TokenDataset())
    trainer.callback_handler.callbacks.insert(0, reporter)  # as early as those of the services
    return trainer


def change_of(before: dict[str, torch.Tensor], after: Model, layer: int, head: int) -> float:
    geometry = chosen(after).geometry
    shared = geometry.query_heads // geometry.key_value_heads
    total = 0.0
    for name, index in (("q", head), ("k", head // shared), ("v", head // shared)):
        key = f"model.layers.{layer}.self_attn.{name}_proj.weight"
        size = geometry.head_size
        moved = after.state_dict()[key] - before[key]
        total += float(moved[index * size : (index + 1) * size].double().square().sum())
    return float(np.sqrt(total))


@pytest.mark.parametrize("others", ["train", "freeze"])
def test_the_numbers_are_those_of_the_weights(others: Any, tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    before = {name: it.clone() for name, it in model.state_dict().items()}
    heads = chosen(model)
    share = alps.restrict(model, heads, others=others).share
    reporter = Reporter()
    trainer = trainer_of(model, tmp_path, 4, reporter)
    callback = log_heads(trainer, heads)
    trainer.train()
    logged = [it for it in reporter.taken if "loss" in it]
    assert len(logged) == 2
    names = {f"alps/change/{layer}.{head}" for layer, head in heads.pairs()}
    for entry, kept in zip(logged, trainer.state.log_history, strict=False):
        assert names < entry.keys()
        assert entry["alps/trainable"] == kept["alps/trainable"] == pytest.approx(share)
    for layer, head in heads.pairs():
        expected = change_of(before, model, layer, head)
        assert expected > 0
        assert logged[-1][f"alps/change/{layer}.{head}"] == pytest.approx(expected, rel=1e-6)
    scores = alps.HeadScores.load(tmp_path / "alps_change.safetensors")
    np.testing.assert_array_equal(scores["delta_norm"], callback.changes()["delta_norm"])
    assert (scores["delta_norm"][~heads.mask] == 0).all()
    assert (tmp_path / "alps_change.png").read_bytes().startswith(b"\x89PNG")


def test_a_training_that_resumes_counts_from_the_base(tmp_path: Path) -> None:
    found = []
    checkpoint: Path | None
    for steps, checkpoint in ((4, None), (4, tmp_path / "checkpoint-2")):
        model = tiny_model(dtype=torch.float32)
        heads = chosen(model)
        alps.restrict(model, heads)
        trainer = trainer_of(model, tmp_path, steps, Reporter())
        callback = log_heads(trainer, heads)
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        found.append(callback.changes()["delta_norm"])
    np.testing.assert_allclose(found[1], found[0], rtol=1e-6)


def test_heads_of_another_model_are_refused(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    trainer = trainer_of(model, tmp_path, 1, Reporter())
    with pytest.raises(alps.ArgumentError, match="not restricted"):
        log_heads(trainer, chosen(model))
    alps.restrict(model, chosen(model))
    with pytest.raises(alps.ArgumentError, match="not those of this model"):
        log_heads(trainer, chosen(tiny_model("gpt2")))
