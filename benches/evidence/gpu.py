"""What `alps.restrict` does on a GPU: whether frozen entries stay, and what a step costs.

    PYTHONPATH=benches python -m evidence.gpu --output benches/evidence/results/gpu-training.json

The weights are random. Peak memory is what is allocated above the weights of the untouched model.
"""

import argparse
import gc
import json
import statistics
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig

import alps
from alps.training import attention

LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = LLAMA_1B | {
    "hidden_size": 512, "intermediate_size": 1024, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 4096,
}  # fmt: skip
RATE, DECAY = 1e-3, 0.1


def build(sizes: dict[str, Any], dtype: torch.dtype) -> Any:
    """A Llama with random weights."""
    torch.manual_seed(0)
    with torch.device("cuda"):
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=dtype).train()


def tenth(model: Any) -> alps.HeadSet:
    """A tenth of the heads, as many in each layer."""
    geometry = attention.find(model).geometry
    number = max(1, round(0.1 * geometry.query_heads))
    pairs = [(layer, head) for layer in geometry.layers for head in range(number)]
    return alps.HeadSet.from_pairs(pairs, geometry)


def moved(dtype: torch.dtype, autocast: bool, others: Any, steps: int = 20) -> dict[str, int]:
    """How many frozen and how many chosen entries of Q, K and V some steps of AdamW moved."""
    model = build(SMALL, dtype)
    heads = tenth(model)
    projections = ("q_proj.weight", "k_proj.weight", "v_proj.weight")
    before = {name: it.clone() for name, it in model.state_dict().items() if name.endswith(projections)}
    alps.restrict(model, heads, others=others)
    optimizer = torch.optim.AdamW(
        [it for it in model.parameters() if it.requires_grad], lr=RATE, weight_decay=DECAY
    )
    tokens = torch.randint(0, SMALL["vocab_size"], (8, 128), device="cuda")
    for _ in range(steps):
        with torch.autocast("cuda", torch.bfloat16) if autocast else nullcontext():
            model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    alps.release(model)
    after = model.state_dict()
    found = {"frozen entries": 0, "frozen moved": 0, "chosen entries": 0, "chosen moved": 0}
    size = SMALL["head_dim"]
    for name, weight in before.items():
        layer = int(name.split(".")[2])
        flags = heads.mask[layer] if "q_proj" in name else heads.key_value_groups[layer]
        chosen = torch.from_numpy(flags.copy()).cuda().repeat_interleave(size)[:, None].expand(weight.shape)
        different = weight.view(torch.uint8).ne(after[name].view(torch.uint8))
        different = different.view(*weight.shape, -1).any(dim=-1)
        found["frozen entries"] += int((~chosen).sum())
        found["frozen moved"] += int((different & ~chosen).sum())
        found["chosen entries"] += int(chosen.sum())
        found["chosen moved"] += int((different & chosen).sum())
    return found


def prepared(way: str, model: Any) -> Any:
    """The model made ready for a way to train."""
    if way.startswith("LoRA"):
        names = ["q_proj", "k_proj", "v_proj"]
        return get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules=names))
    if way.startswith("restrict"):
        alps.restrict(model, tenth(model), others="freeze" if "freeze" in way else "train")
    return model


def cost(way: str, batch: int, length: int, steps: int) -> dict[str, float]:
    """Milliseconds of a step, and peak MiB over the weights."""
    model = build(LLAMA_1B, torch.bfloat16)
    before = torch.cuda.memory_allocated()
    model = prepared(way, model)
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=DECAY)
    tokens = torch.randint(0, LLAMA_1B["vocab_size"], (batch, length), device="cuda")
    times = []
    for number in range(steps + 2):
        torch.cuda.synchronize()
        if number == 1:
            torch.cuda.reset_peak_memory_stats()
        start = time.perf_counter()
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return {
        "trainable parameters": sum(it.numel() for it in parameters),
        "step ms": round(1e3 * statistics.median(times[2:]), 1),
        "peak MiB over the weights": round((torch.cuda.max_memory_allocated() - before) / 2**20),
    }


def main() -> None:
    """Writes the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=7)
    options = parser.parse_args()
    figures: dict[str, Any] = {
        "device": torch.cuda.get_device_name(),
        "torch": torch.__version__,
        "alps": alps.__version__,
        "moved": {},
        "model": LLAMA_1B,
        "dtype": "bfloat16",
        "tokens of a step": [options.batch, options.length],
        "cost": {},
    }
    for name, dtype, autocast in (
        ("float32", torch.float32, False),
        ("bfloat16", torch.bfloat16, False),
        ("float32 under autocast to bfloat16", torch.float32, True),
    ):
        for others in ("train", "freeze"):
            figures["moved"][f"{name}, others={others}"] = moved(dtype, autocast, others)
    for way in ("full", "LoRA r=16 on Q/K/V", "restrict(train)", "restrict(freeze)"):
        figures["cost"][way] = cost(way, options.batch, options.length, options.steps)
        gc.collect()
        torch.cuda.empty_cache()
        print(way, figures["cost"][way], flush=True)
        options.output.write_text(json.dumps(figures, indent=2) + "\n")
    print(json.dumps(figures["moved"]))


if __name__ == "__main__":
    main()
