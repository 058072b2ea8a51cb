"""Trains tiny models in one of several processes. The tests of distributed training start it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

import alps
from alps.training.projection import RestrictedProjection
from support.training import Model, chosen, tiny_model, tokens, trainable

STEPS = 6
FULL = StateDictOptions(full_state_dict=True)


def shard(model: Model) -> Model:
    """Shards a model as a user would: a group for each layer, and for each module with another number format."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    if model.dtype == torch.bfloat16:
        for module in model.modules():
            if isinstance(module, RestrictedProjection):
                fully_shard(module, mesh=mesh)
    for layer in model.model.layers if hasattr(model, "model") else model.transformer.h:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def steps(model: Model, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step in range(first, last):
        batch = tokens(step)
        batch = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def restricted(model_type: str, dtype: torch.dtype, others: Any) -> Model:
    model = tiny_model(model_type, dtype)
    alps.restrict(model, chosen(model), others=others)
    return model


def optimizer_of(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), lr=1e-3, weight_decay=0.1)


def measured(model_type: str, dtype: str) -> dict[str, torch.Tensor]:
    """Measures a model on four batches, which the processes share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tiny_model(model_type, getattr(torch, dtype))
    batches = [{"input_ids": tokens(step), "labels": tokens(step)} for step in range(rank, 4, world)]
    scores = alps.measure(model, batches, statistics=["fisher", "gradient", "michel"])
    return {name: torch.from_numpy(values.copy()) for name, values in scores.items()}


def work(method: str, model_type: str, others: str, dtype: str) -> dict[str, torch.Tensor]:
    """Trains a model with one method. Returns its state, complete on the first process."""
    whole = model = restricted(model_type, getattr(torch, dtype), others)
    if method == "ddp":
        model = DistributedDataParallel(model)
    elif method.startswith("fsdp"):
        model = whole = shard(model)
    optimizer = optimizer_of(whole)
    accelerator = Accelerator(cpu=True) if method == "accelerate" else None
    if accelerator is not None:
        model, optimizer = accelerator.prepare(model, optimizer)
    half = STEPS // 2
    steps(model, optimizer, 0, half)
    if method == "fsdp-resumed":
        states = (
            get_model_state_dict(whole, options=FULL),
            get_optimizer_state_dict(whole, optimizer, options=FULL),
        )
        shared: list[Any] = [states]
        dist.broadcast_object_list(shared)
        model = whole = shard(restricted(model_type, getattr(torch, dtype), others))
        optimizer = optimizer_of(whole)
        set_model_state_dict(whole, shared[0][0], options=FULL)
        set_optimizer_state_dict(whole, optimizer, shared[0][1], options=FULL)
    steps(model, optimizer, half, STEPS)
    if accelerator is not None:
        return dict(accelerator.get_state_dict(model))
    state: dict[str, Any] = get_model_state_dict(whole, options=FULL)
    return state


def main(folder: Path, jobs: list[str]) -> None:
    for job in jobs:
        if not dist.is_initialized() and not job.startswith("accelerate"):
            dist.init_process_group("gloo")
        method, *what = job.split(":")
        state = measured(*what) if method == "measure" else work(method, *what)
        if dist.get_rank() == 0:
            tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
            save_file(tensors, folder / f"{job}.safetensors")
    dist.barrier()  # gloo aborts a process whose peer has gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
