"""Whoever reads or writes the weights of a restricted model by their ordinary names gets the trained rows."""

from __future__ import annotations

import copy
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import torch.distributed.checkpoint
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import alps
from support.distributed_worker import resume, sharded_state
from support.training import Model, chosen, loss_of, masks, states, tiny_model, tokens, train, trainable

checkpoint: Any = torch.distributed.checkpoint
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def restricted(dtype: torch.dtype = torch.float32, model_type: str = "llama") -> Model:
    model = tiny_model(model_type, dtype)
    alps.restrict(model, chosen(model))
    return model


def optimizer_of(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), lr=1e-2)


def named(model: Model) -> dict[str, torch.Tensor]:
    """The parameters by their ordinary names, as an inference engine is sent them."""
    return {name: it.detach() for name, it in model.named_parameters() if not name.endswith("rows")}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen2", "falcon", "xlnet"])
def test_parameters_are_those_of_the_state_after_every_step(model_type: str, dtype: torch.dtype) -> None:
    model = restricted(dtype, model_type)
    before, optimizer = states(model), optimizer_of(model)
    for step in range(3):
        train(model, optimizer, 1, step)
        state = model.state_dict()
        parameters = named(model)
        assert all(torch.equal(it, state[name]) for name, it in parameters.items())
    mask = masks(tiny_model(model_type), chosen(model)) if model_type in ("llama", "gpt2", "qwen2") else {}
    for name, entries in mask.items():
        assert torch.equal(before[name][~entries], parameters[name][~entries]), name
        if entries.any():
            assert not torch.equal(before[name][entries], parameters[name][entries]), name


def test_a_step_that_no_hook_sees_is_in_the_next_outputs_and_the_next_state() -> None:
    """As of an optimizer of its own class, or one that writes to `.data`."""
    model = restricted()
    loss_of(model, 0).backward()
    for parameter in trainable(model):
        if parameter.grad is not None:
            parameter.data -= parameter.grad
    plain = tiny_model("llama", torch.float32)
    with torch.no_grad():
        found = model(input_ids=tokens()).logits
        plain.load_state_dict(model.state_dict())
        assert torch.equal(found, plain(input_ids=tokens()).logits)


def test_averages_that_are_written_into_a_state() -> None:
    """What timm's ModelEmaV2 and many loops by hand do."""
    model = restricted()
    average = copy.deepcopy(model)
    train(model, optimizer_of(model), 3)
    expected = {name: (it + model.state_dict()[name]) / 2 for name, it in states(average).items()}
    with torch.no_grad():
        for own, other in zip(average.state_dict().values(), model.state_dict().values(), strict=True):
            own.copy_((own + other) / 2)
        outputs = average(input_ids=tokens()).logits
    assert all(torch.equal(it, expected[name]) for name, it in average.state_dict().items())
    plain = tiny_model("llama", torch.float32)
    plain.load_state_dict(expected)
    with torch.no_grad():
        assert torch.equal(outputs, plain(input_ids=tokens()).logits)
    train(average, optimizer_of(average), 1)  # and it trains from there
    moved = average.state_dict()["model.layers.0.self_attn.q_proj.weight"]
    assert (moved - expected["model.layers.0.self_attn.q_proj.weight"]).abs().max() < 0.02


def test_averages_of_parameters() -> None:
    model = restricted()
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5))
    optimizer = optimizer_of(model)
    expected = states(model)
    average.update_parameters(model)  # the first copies
    for step in range(3):
        train(model, optimizer, 1, step)
        average.update_parameters(model)
        expected = {name: (it + model.state_dict()[name]) / 2 for name, it in expected.items()}
    found = average.module.state_dict()
    for name, it in expected.items():
        torch.testing.assert_close(found[name], it, rtol=1e-5, atol=1e-7)


def test_the_recipe_of_distributed_checkpoints_resumes_to_the_same_bits(tmp_path: Path) -> None:
    whole = restricted(torch.bfloat16)
    optimizer = optimizer_of(whole)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        train(whole, optimizer, 4)
        checkpoint.save(sharded_state(whole, optimizer), checkpoint_id=tmp_path, no_dist=True)
        train(whole, optimizer, 4, 4)
        again = restricted(torch.bfloat16)
        optimizer = optimizer_of(again)
        resume(again, optimizer, tmp_path)
        train(again, optimizer, 4, 4)
    assert all(torch.equal(it, again.state_dict()[name]) for name, it in whole.state_dict().items())


FSDP1 = """
import os, torch, torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel
os.environ.update(RANK="0", WORLD_SIZE="1", MASTER_ADDR="localhost", MASTER_PORT="0")
dist.init_process_group("gloo", init_method="tcp://localhost:0", rank=0, world_size=1)
import alps
from support.distributed_worker import resume, sharded_state
from support.training import chosen, tiny_model, train, trainable

def tuned(wrap):
    model = tiny_model("llama", torch.float32)
    alps.restrict(model, chosen(model))
    model = wrap(model)
    train(model, torch.optim.AdamW(trainable(model), lr=1e-2), 3)
    return model.state_dict()

found = tuned(lambda it: FullyShardedDataParallel(it, use_orig_params=True, device_id=torch.device("cpu")))
expected = tuned(lambda it: it)
assert {name for name in found if not name.endswith("rows")} == set(expected)
for name, it in expected.items():
    torch.testing.assert_close(found[name], it, rtol=1e-5, atol=1e-7)
dist.destroy_process_group()
"""


def test_fsdp1_saves_what_was_trained() -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-W", "ignore", "-c", FSDP1]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


# Training that does not train


def test_lora_that_is_added_later_and_freezes_the_rows_is_told() -> None:
    model = restricted()
    tuned = peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"]))
    with pytest.warns(
        alps.AlpsWarning, match=r"frozen after the model was restricted.* add its adapters first"
    ):
        loss_of(tuned.train(), 0).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", alps.AlpsWarning)  # once
        loss_of(tuned, 0).backward()


def test_lora_before_restrict_trains_both() -> None:
    model = tiny_model("llama", torch.float32)
    peft.get_peft_model(model, peft.LoraConfig(target_modules=["up_proj"]))
    alps.restrict(model, chosen(model))
    with warnings.catch_warnings():
        warnings.simplefilter("error", alps.AlpsWarning)
        train(model, optimizer_of(model), 1)
    assert all(it.grad is None for it in trainable(model))


def test_rows_that_the_code_does_not_use_are_named_at_the_first_step() -> None:
    model = tiny_model("llama", torch.float32)
    alps.restrict(model, chosen(model))
    optimizer = optimizer_of(model)
    for name in ("q_proj", "k_proj", "v_proj"):
        # As code that computes with the weight itself, where its source does not show it.
        projection = model.model.layers[2].self_attn.get_submodule(name)
        weight = projection.weight.detach().clone()
        projection.forward = lambda inputs, weight=weight: torch.nn.functional.linear(inputs, weight)
    loss_of(model, 0).backward()
    with pytest.warns(
        alps.AlpsWarning, match="3 of 6 restricted parameters .*: model.layers.2.self_attn.k_proj.rows"
    ):
        optimizer.step()
    loss_of(model, 0).backward()
    with warnings.catch_warnings():
        warnings.simplefilter("error", alps.AlpsWarning)
        optimizer.step()
