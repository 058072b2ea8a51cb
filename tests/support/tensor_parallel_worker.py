"""Checks in one of two processes that tensor parallelism is refused. The tests of distributed training start it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from transformers import AutoModelForCausalLM

import alps
from support.training import Model, chosen, tiny_model

LAYERS = "model.layers.{}.self_attn.{}_proj"


def llama() -> Model:
    return tiny_model("llama", torch.float32)


def parallelised(model: Model, prefix: str = "") -> Model:
    """Shards Q, K and V by their outputs."""
    plan: Any = {
        prefix + LAYERS.format(layer, name): ColwiseParallel() for layer in range(3) for name in "qkv"
    }
    return parallelize_module(model, init_device_mesh("cpu", (2,)), plan)


def loaded(folder: Path) -> Model:
    """Loads a model as transformers shards it."""
    if dist.get_rank() == 0:
        llama().save_pretrained(folder)
    dist.barrier()
    return AutoModelForCausalLM.from_pretrained(folder, tp_plan="auto", dtype=torch.float32)


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    heads = chosen(llama())
    ways: list[Callable[[Model], Any]] = [
        lambda model: alps.restrict(model, heads),
        lambda model: get_peft_model(model, alps.AlpsConfig(heads=heads)),
    ]
    for model in (parallelised(llama()), loaded(folder)):
        before = [(name, id(it), it.requires_grad) for name, it in model.named_parameters()]
        modules = [(name, id(it)) for name, it in model.named_modules()]
        for add in ways:
            with pytest.raises(
                alps.ModelError, match=r"found a DTensor.*tensor parallelism is not supported"
            ):
                add(model)
            assert before == [(name, id(it), it.requires_grad) for name, it in model.named_parameters()]
            assert modules == [(name, id(it)) for name, it in model.named_modules()]
    restricted, adapted = llama(), llama()
    alps.restrict(restricted, heads)
    adapted = get_peft_model(adapted, alps.AlpsConfig(heads=heads))
    for model, prefix in ((restricted, ""), (adapted, "base_model.model.")):
        with pytest.raises(NotImplementedError, match=r"ColwiseParallel currently only support nn\.Linear"):
            parallelised(model, prefix)
    dist.barrier()  # gloo aborts a process whose peer has gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
