"""The callback that restricts the model of a Trainer, and releases it at the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

import alps
from alps.training import log_heads
from alps.training.projection import restricted_projections
from support.training import Model, TokenDataset, chosen, masks, states, tiny_model, trainable

pytestmark = [
    # PEFT still asks what transformers deprecates.
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "max_steps": 4,
        "save_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
    }
    return TrainingArguments(
        str(folder), per_device_train_batch_size=4, learning_rate=1e-3, **settings | changes
    )


def trainer_of(model: Model, folder: Path, *callbacks: Any, **changes: Any) -> Trainer:
    data = TokenDataset()
    return Trainer(
        model, arguments(folder, **changes), train_dataset=data, eval_dataset=data, callbacks=[*callbacks]
    )


@pytest.mark.parametrize("others", ["train", "freeze"])
def test_it_trains_what_restrict_trains(others: Any, tmp_path: Path) -> None:
    expected = tiny_model(dtype=torch.float32)
    alps.restrict(expected, chosen(expected), others=others)
    trainer_of(expected, tmp_path / "expected").train()

    model = tiny_model(dtype=torch.float32)
    before = states(model)
    callback = alps.RestrictCallback(chosen(model), others=others)
    trainer = trainer_of(model, tmp_path / "out", callback)
    assert callback.restriction is not None
    assert callback.restriction.heads == {0: (1, 3), 2: (5,)}
    assert len(trainable(model)) < len(before)
    trainer.train()
    assert not restricted_projections(model)
    assert all(torch.equal(it, model.state_dict()[name]) for name, it in expected.state_dict().items())
    trainer.save_model()
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, entries in masks(model, chosen(model)).items():
        assert torch.equal(saved[name][~entries], before[name][~entries])
        assert not entries.any() or (saved[name] != before[name])[entries].float().mean() > 0.9
    assert (others == "train") != torch.equal(saved["lm_head.weight"], before["lm_head.weight"])
    assert alps.HeadSet.from_pretrained(tmp_path / "out") == chosen(model)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_training_resumes(dtype: torch.dtype, tmp_path: Path) -> None:
    found = []
    for checkpoint in (None, str(tmp_path / "checkpoint-2")):
        model = tiny_model(dtype=dtype)
        trainer = trainer_of(model, tmp_path, alps.RestrictCallback(chosen(model)))
        trainer.train(resume_from_checkpoint=checkpoint)
        found.append(states(model))
    assert all(torch.equal(it, found[1][name]) for name, it in found[0].items())


def test_the_best_checkpoint_is_loaded_before_the_release(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    trainer = trainer_of(
        model, tmp_path, alps.RestrictCallback(chosen(model)), load_best_model_at_end=True, eval_strategy="steps",
        eval_steps=2, metric_for_best_model="loss", greater_is_better=True,  # the worst, so that it is an earlier one
    )  # fmt: skip
    trainer.train()
    best = trainer.state.best_model_checkpoint
    assert best is not None
    assert best.endswith("checkpoint-2")
    saved = AutoModelForCausalLM.from_pretrained(best).state_dict()
    assert all(torch.equal(it, saved[name]) for name, it in model.state_dict().items())
    assert not restricted_projections(model)


def test_a_pair_is_scanned_when_the_trainer_is_made(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    model.save_pretrained(tmp_path / "base")
    tuned = tiny_model(dtype=torch.float32)
    with torch.no_grad():
        for name, entries in masks(tuned, chosen(tuned)).items():
            tuned.get_parameter(name)[entries] += 0.1
    tuned.save_pretrained(tmp_path / "tuned")
    ratio = len(chosen(model)) / chosen(model).geometry.heads
    callback = alps.RestrictCallback(base=tmp_path / "base", tuned=tmp_path / "tuned", ratio=ratio)
    assert callback.heads is None
    trainer = trainer_of(model, tmp_path / "out", callback)
    scores = alps.scan(tmp_path / "base", tmp_path / "tuned")
    assert callback.heads == scores.select(ratio)
    trainer.train()
    kept = alps.HeadSet.from_pretrained(tmp_path / "out")
    assert kept.provenance["tuned"] == str(tmp_path / "tuned")


def test_heads_by_the_name_of_a_file(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    chosen(model).save(tmp_path / "heads.json")
    for name in (tmp_path, str(tmp_path / "heads.json")):
        assert alps.RestrictCallback(name).heads == chosen(model)
    with pytest.raises(FileNotFoundError):
        alps.RestrictCallback(tmp_path / "nothing")


def test_it_logs_beside_log_heads(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    trainer = trainer_of(model, tmp_path, alps.RestrictCallback(chosen(model)), logging_steps=2)
    logging = log_heads(trainer, chosen(model))
    trainer.train()
    assert (logging.changes()["delta_norm"][chosen(model).mask] > 0).all()
    assert "alps/trainable" in trainer.state.log_history[0]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({}, "found nothing"),
        ({"base": "base"}, "found base"),
        ({"base": "base", "tuned": "tuned", "ratio": 1.5}, "ratio"),
        ({"base": "base", "tuned": "tuned", "others": "thaw"}, "others"),
        ({"heads": "heads.json", "tuned": "tuned", "ratio": 0.1}, "found heads and tuned, ratio"),
    ],
)
def test_arguments_that_are_refused(given: Any, message: str) -> None:
    with pytest.raises(alps.ArgumentError, match=message):
        alps.RestrictCallback(**given)


def test_models_and_trainers_that_are_refused(tmp_path: Path) -> None:
    heads = chosen(tiny_model(dtype=torch.float32))
    callback = alps.RestrictCallback(heads)
    adapted = peft.get_peft_model(tiny_model(dtype=torch.float32), alps.AlpsConfig(heads=heads))
    lora = peft.get_peft_model(tiny_model(dtype=torch.float32), peft.LoraConfig(target_modules=["q_proj"]))
    for model in (adapted, lora):
        with pytest.raises(alps.ArgumentError, match="the model has an adapter"):
            trainer_of(model, tmp_path, callback)
    model = tiny_model(dtype=torch.float32)
    optimizer = torch.optim.SGD(model.parameters())
    with pytest.raises(alps.ArgumentError, match="the Trainer was given an optimizer"):
        Trainer(model, arguments(tmp_path), optimizers=(optimizer, None), callbacks=[callback])
    other = alps.RestrictCallback(chosen(tiny_model("gpt2")))
    with pytest.raises(alps.ArgumentError, match="not those of this model"):
        trainer_of(tiny_model(dtype=torch.float32), tmp_path, other)


def test_fsdp1_is_refused_before_the_first_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The Trainer shards with FSDP1 on accelerators only, so its class is a stand-in here."""
    model = tiny_model(dtype=torch.float32)
    trainer = trainer_of(model, tmp_path, alps.RestrictCallback(chosen(model)))
    monkeypatch.setattr("alps.training.restrict_callback.FullyShardedDataParallel", type(model))
    before = states(model)
    with pytest.raises(alps.ModelError, match="FSDP1"):
        trainer.train()
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())


def test_a_model_that_is_not_restricted_does_not_train(tmp_path: Path) -> None:
    model = tiny_model(dtype=torch.float32)
    heads, before = chosen(model), states(model)
    late = trainer_of(model, tmp_path)
    late.add_callback(alps.RestrictCallback(heads))  # after the Trainer was made
    by_function = Trainer(
        model_init=lambda: tiny_model(dtype=torch.float32), args=arguments(tmp_path), train_dataset=TokenDataset(),
        callbacks=[alps.RestrictCallback(heads)],
    )  # fmt: skip
    for trainer in (late, by_function):
        with pytest.raises(alps.ArgumentError, match="the model that trains is not restricted"):
            trainer.train()
    assert all(torch.equal(it, before[name]) for name, it in model.state_dict().items())
    once = trainer_of(model, tmp_path, alps.RestrictCallback(heads))
    once.train()
    with pytest.raises(alps.ArgumentError, match="make a new Trainer for every training"):
        once.train()
