"""Trains tiny models in one of several processes. The tests of distributed training start it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint
from accelerate import Accelerator
from peft import get_peft_model
from safetensors.torch import save_file
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    get_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
    set_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import distribute_tensor
from torch.nn.parallel import DistributedDataParallel

import alps
from alps.training.projection import RestrictedProjection
from support.training import Model, chosen, masks, tiny_model, tokens, trainable

checkpoint: Any = torch.distributed.checkpoint
STEPS = 6
FULL = StateDictOptions(full_state_dict=True)


def shard(model: Model, computed_in: torch.dtype | None = None) -> Model:
    """Shards a model as a user would: a group for each layer, and for each module with another number format."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    policy = MixedPrecisionPolicy(
        param_dtype=computed_in, reduce_dtype=torch.float32 if computed_in else None
    )
    if model.dtype == torch.bfloat16:
        for module in model.modules():
            if isinstance(module, RestrictedProjection):
                fully_shard(module, mesh=mesh, mp_policy=policy)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    for layer in whole.model.layers if hasattr(whole, "model") else whole.transformer.h:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    return fully_shard(model, mesh=mesh, mp_policy=policy)


def steps(model: Model, optimizer: torch.optim.Optimizer, first: int, last: int) -> None:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    for step in range(first, last):
        batch = tokens(step)
        batch = batch[rank * len(batch) // world : (rank + 1) * len(batch) // world]
        model(input_ids=batch, labels=batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def restricted(model_type: str, dtype: torch.dtype, others: Any) -> Model:
    """A tiny model that is restricted, or that has an adapter ("adapter"), or neither ("masked")."""
    model = tiny_model(model_type, dtype)
    if others == "adapter":
        return get_peft_model(model, alps.AlpsConfig(heads=chosen(model)))
    if others != "masked":
        alps.restrict(model, chosen(model), others=others)
    return model


class Masked(torch.optim.AdamW):
    """Restores the frozen entries of Q, K and V after each step: the plain way to train some rows."""

    def __init__(self, model: Model, model_type: str, **settings: Any) -> None:
        super().__init__(trainable(model), **settings)
        plain = tiny_model(model_type)
        self.frozen = []
        for name, mask in masks(plain, chosen(plain)).items():
            parameter: Any = model.get_parameter(name)
            own: Any = distribute_tensor(mask, parameter.device_mesh, parameter.placements)
            local = parameter.detach().to_local()
            self.frozen.append((local, ~own.to_local(), local.clone()))

    def step(self, closure: Any = None) -> Any:
        super().step(closure)
        for parameter, frozen, start in self.frozen:
            parameter[frozen] = start[frozen]


def optimizer_of(model: Model) -> torch.optim.Optimizer:
    return torch.optim.AdamW(trainable(model), lr=1e-3, weight_decay=0.1)


def measured(model_type: str, dtype: str) -> dict[str, torch.Tensor]:
    """Measures a model on four batches, which the processes share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    model = tiny_model(model_type, getattr(torch, dtype))
    batches = [{"input_ids": tokens(step), "labels": tokens(step)} for step in range(rank, 4, world)]
    scores = alps.measure(model, batches, statistics=["fisher", "gradient", "michel"])
    return {name: torch.from_numpy(values.copy()) for name, values in scores.items()}


def work(folder: Path, method: str, model_type: str, others: str, dtype: str) -> dict[str, torch.Tensor]:
    """Trains a model with one method. Returns its state, complete on the first process.

    Args:
        folder: For checkpoints of torch.distributed.
        method: "single", "ddp", "accelerate", "fsdp1", "fsdp", "fsdp-resumed", "fsdp-dcp", or "fsdp-" and the format that FSDP2
            computes in.
        model_type: Of transformers.
        others: As `restricted` takes it.
        dtype: Of the model.
    """
    whole = model = restricted(model_type, getattr(torch, dtype), others)
    computed_in = getattr(torch, method.removeprefix("fsdp-"), None)
    if method == "ddp":
        model = DistributedDataParallel(model)
    elif method == "fsdp1":
        model = whole = FullyShardedDataParallel(model, use_orig_params=True, device_id=torch.device("cpu"))
    elif method.startswith("fsdp"):
        model = whole = shard(model, computed_in)
    settings = {"lr": 1e-3, "weight_decay": 0.1}
    optimizer = Masked(whole, model_type, **settings) if others == "masked" else optimizer_of(whole)
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
    elif method == "fsdp-dcp":
        place = folder / f"dcp-{model_type}-{others}-{dtype}"
        checkpoint.async_save(sharded_state(whole, optimizer), checkpoint_id=place).result()
        model = whole = shard(restricted(model_type, getattr(torch, dtype), others))
        optimizer = optimizer_of(whole)
        resume(whole, optimizer, place)
    steps(model, optimizer, half, STEPS)
    if accelerator is not None:
        return dict(accelerator.get_state_dict(model))
    state: dict[str, Any] = get_model_state_dict(whole, options=FULL)
    # FSDP1 keeps the rows of `restrict` besides the weights that hold them.
    return {name: it for name, it in state.items() if others == "adapter" or not name.endswith("rows")}


def sharded_state(model: Model, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What the recipe of torch's distributed checkpoints saves."""
    state, of_optimizer = get_state_dict(model, optimizer)
    return {"model": state, "optimizer": of_optimizer}


def resume(model: Model, optimizer: torch.optim.Optimizer, place: Path) -> None:
    """Loads a distributed checkpoint, whatever the number of processes that saved it."""
    state = sharded_state(model, optimizer)
    checkpoint.load(state, checkpoint_id=place)
    set_state_dict(model, optimizer, model_state_dict=state["model"], optim_state_dict=state["optimizer"])


def main(folder: Path, jobs: list[str]) -> None:
    for job in jobs:
        if not dist.is_initialized() and not job.startswith("accelerate"):
            dist.init_process_group("gloo")
        method, *what = job.split(":")
        state = measured(*what) if method == "measure" else work(folder, method, *what)
        if dist.get_rank() == 0:
            tensors = {name: tensor.contiguous().clone() for name, tensor in state.items()}
            save_file(tensors, folder / f"{job}.safetensors")
    dist.barrier()  # gloo aborts a process whose peer has gone
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
