"""Whether training under DeepSpeed's ZeRO moves the chosen rows and nothing else, on two processes of a CPU.

    pip install deepspeed ninja
    DS_ACCELERATOR=cpu torchrun --nproc-per-node=2 benches/zero.py STAGE WAY [--bf16] [--resume ordinary|universal]

STAGE is 1, 2 or 3. WAY is "train" or "freeze" (what `alps.restrict` does with all else) or "adapter". Stage 3 refuses
the first two. The model is a small Llama with random weights, in float32 or with `--bf16` in bfloat16. What
`save_16bit_model` gathers has to be the trained model. With `--resume`, training goes on in a new engine from a
checkpoint, as it is or after `ds_to_universal` has converted it; the weights have to be those of a training without
interruption.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from peft import get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

import alps
from alps.training import attention

SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128,
}  # fmt: skip
PROJECTIONS = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
STEPS = 6


def build(way: str, bf16: bool) -> Any:
    """A small Llama, the same at every call, with some heads to train."""
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(
        LlamaConfig(**SIZES), dtype=torch.bfloat16 if bf16 else torch.float32
    )
    heads = alps.HeadSet.from_pairs([(0, 1), (1, 2)], attention.find(model).geometry)
    if way == "adapter":
        return get_peft_model(model, alps.AlpsConfig(heads=heads))
    alps.restrict(model, heads, others=way)  # type: ignore[arg-type]
    return model


def engine_of(model: Any, options: argparse.Namespace, **settings: Any) -> Any:
    """Prepares a model for training under ZeRO."""
    optimizer = torch.optim.AdamW([it for it in model.parameters() if it.requires_grad], lr=1e-3)
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "zero_optimization": {"stage": options.stage, "stage3_gather_16bit_weights_on_model_save": True},
        "bf16": {"enabled": options.bf16},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        **settings,
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def train(engine: Any, first: int, last: int) -> None:
    """Makes steps on batches that depend on the number of the step and on the process."""
    for step in range(first, last):
        generator = torch.Generator().manual_seed(2 * step + dist.get_rank())
        tokens = torch.randint(0, SIZES["vocab_size"], (2, 16), generator=generator)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()


def state_of(engine: Any, stage: int) -> dict[str, Tensor]:
    """The state of the model, whole on the first process."""
    state = engine._zero3_consolidated_16bit_state_dict() if stage == 3 else engine.module.state_dict()
    return {name: it.clone() for name, it in (state or {}).items()}


def plain(name: str) -> str:
    """The name that a parameter has in a model without adapters."""
    return name.removeprefix("base_model.model.").replace(".base_layer.", ".")


def report_moves(before: dict[str, Tensor], after: dict[str, Tensor], way: str, chosen: int) -> str:
    """Says how many entries of Q, K and V have moved."""
    start = {plain(name): it for name, it in before.items() if name.endswith(PROJECTIONS)}
    moved = sum(int((it != start[plain(name)]).sum()) for name, it in after.items() if plain(name) in start)
    expected = "none, since the adapter holds the rows" if way == "adapter" else f"at most {chosen:,}"
    return f"{moved:,} entries of Q, K and V moved; expected {expected}"


def resume(engine: Any, options: argparse.Namespace, folder: Path) -> Any:
    """Saves a checkpoint and resumes from it in a new engine, from a universal one after conversion."""
    information = {"universal_checkpoint_info": {"universal_checkpoint_version": 0.2}}
    engine.save_checkpoint(str(folder), tag="ordinary", client_state=information)
    dist.barrier()
    is_universal = options.resume == "universal"
    if is_universal and dist.get_rank() == 0:
        script = (
            "from deepspeed.checkpoint.ds_to_universal import main, parse_arguments; main(parse_arguments())"
        )
        places = ["--input_folder", str(folder / "ordinary"), "--output_folder", str(folder / "universal")]
        workers = ["--num_extract_workers", "1", "--num_merge_workers", "1"]
        subprocess.run(
            [sys.executable, "-c", script, *places, *workers], check=True, stdout=subprocess.DEVNULL
        )
    dist.barrier()
    model = build(options.way, options.bf16)
    resumed = engine_of(model, options, checkpoint={"load_universal": is_universal})
    resumed.load_checkpoint(str(folder), tag=options.resume)
    return resumed


def largest_difference(one: dict[str, Tensor], other: dict[str, Tensor]) -> float:
    """Of two states, which have to have the same names."""
    assert one.keys() == other.keys(), one.keys() ^ other.keys()
    return max(float((one[name].float() - other[name].float()).abs().max()) for name in one)


def main(options: argparse.Namespace) -> None:
    """Trains and prints what moved, and what the checks found."""
    deepspeed.init_distributed("gloo")
    model = build(options.way, options.bf16)
    before = {name: it.clone() for name, it in model.state_dict().items()}
    chosen = sum(it.numel() for name, it in model.named_parameters() if it.requires_grad and "rows" in name)
    engine = engine_of(model, options)
    shared = [tempfile.mkdtemp()]
    dist.broadcast_object_list(shared)
    folder = Path(shared[0])
    train(engine, 0, STEPS // 2)
    resumed = resume(engine, options, folder) if options.resume else engine
    train(engine, STEPS // 2, STEPS)
    after = state_of(engine, options.stage)
    other = after
    if options.resume:
        train(resumed, STEPS // 2, STEPS)
        other = state_of(resumed, options.stage)
    engine.save_16bit_model(str(folder), "gathered.bin")
    dist.barrier()
    if dist.get_rank() > 0:
        return
    gathered = torch.load(folder / "gathered.bin")
    found = [report_moves(before, after, options.way, chosen)]
    found += [f"all entries: moved by up to {largest_difference(before, after):.1e}"]
    found += [f"save_16bit_model differs from it by {largest_difference(after, gathered):.1e}"]
    if options.resume:
        found += [
            f"resumed from the {options.resume} checkpoint: differs by {largest_difference(after, other):.1e}"
        ]
    print(f"stage {options.stage}, {options.way}, {model.dtype}:", "; ".join(found))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("stage", type=int, choices=[1, 2, 3])
    parser.add_argument("way", choices=["train", "freeze", "adapter"])
    parser.add_argument("--bf16", action="store_true", help="a model in bfloat16")
    parser.add_argument("--resume", choices=["ordinary", "universal"], help="resume from a checkpoint too")
    main(parser.parse_args())
