"""Step time and peak memory of full fine-tuning, of LoRA, and of training the selected heads only.

    python benches/training.py            a model of the shape of Llama-3.2-1B on a GPU, a small one without
    python benches/training.py --layer    one projection of 4096 x 4096, forward and backward

The weights are random. Every method trains with AdamW on the same tokens. Peak memory is the memory that is
allocated beyond the weights of the untouched model.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

import alps
from alps.training import attention
from alps.training.projection import restrict_rows

GPU = torch.cuda.is_available()
DEVICE = torch.device("cuda" if GPU else "cpu")
LLAMA_1B: dict[str, Any] = {
    "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32,
    "num_key_value_heads": 8, "head_dim": 64, "vocab_size": 128256, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = LLAMA_1B | {
    "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 4, "num_attention_heads": 8,
    "num_key_value_heads": 2, "vocab_size": 4096,
}  # fmt: skip


def build(sizes: dict[str, Any], dtype: torch.dtype) -> Any:
    """Builds a Llama with random weights."""
    torch.manual_seed(0)
    with torch.device(DEVICE):
        return AutoModelForCausalLM.from_config(LlamaConfig(**sizes), dtype=dtype).train()


def lora(model: Any) -> Any:
    """Applies LoRA to Q, K and V: the paper's strongest baseline."""
    names = ["q_proj", "k_proj", "v_proj"]
    return get_peft_model(model, LoraConfig(r=128, lora_alpha=256, target_modules=names))


def restricted(others: Any) -> Callable[[Any], Any]:
    """Returns a function that restricts training to a tenth of the heads, the same number in each layer."""

    def prepare(model: Any) -> Any:
        geometry = attention.find(model).geometry
        count = max(1, round(0.1 * geometry.query_heads))
        pairs = [(layer, head) for layer in geometry.layers for head in range(count)]
        alps.restrict(model, alps.HeadSet.from_pairs(pairs, geometry), others=others)
        return model

    return prepare


METHODS: dict[str, Callable[[Any], Any]] = {
    "full": lambda model: model,
    "LoRA r=128 on Q/K/V": lora,
    "restrict(train)": restricted("train"),
    "restrict(freeze)": restricted("freeze"),
}


def wait() -> None:
    """Waits until the device has finished."""
    if GPU:
        torch.cuda.synchronize()


def peak_on_cpu(step: Callable[[], None]) -> int:
    """Returns the peak of the bytes that a step allocates."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        step()
    current = peak = 0
    events = recorded.profiler.kineto_results.events()
    for event in sorted(events, key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def measure(
    method: str, sizes: dict[str, Any], dtype: torch.dtype, batch: int, length: int, steps: int
) -> tuple[float, int, int]:
    """Returns the seconds of a step, the peak bytes beyond the weights, and the number of trainable parameters."""
    model = build(sizes, dtype)
    before = torch.cuda.memory_allocated() if GPU else 0
    weights = sum(it.numel() * it.element_size() for it in model.parameters())
    model = METHODS[method](model)
    rows = sum(it.numel() * it.element_size() for it in model.parameters()) - weights
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)
    tokens = torch.randint(0, sizes["vocab_size"], (batch, length), device=DEVICE)

    def step() -> None:
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    if GPU:
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before
    else:
        peak = rows + peak_on_cpu(step)  # with the state of the optimizer, which the first step allocates
    times = []
    for _ in range(steps):
        wait()
        start = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - start)
    return statistics.median(times), peak, sum(it.numel() for it in parameters)


def compare_models(options: argparse.Namespace) -> None:
    """Prints a table of the methods to train a whole model."""
    sizes = LLAMA_1B if options.large or GPU else SMALL
    dtype = torch.bfloat16 if GPU else torch.float32
    batch, length = (8, 1024) if GPU else (4, 128)
    print(f"{DEVICE}, {dtype}, {batch} x {length} tokens, median of {options.steps} steps")
    print(f"{'':<22}{'parameters':>15}{'step':>12}{'':>8}{'peak over weights':>20}")
    first: tuple[float, int] | None = None
    for method in METHODS:
        seconds, peak, count = measure(method, sizes, dtype, batch, length, options.steps)
        gc.collect()
        first = first or (seconds, peak)
        print(
            f"{method:<22}{count:>15,}{1e3 * seconds:>9.1f} ms{seconds / first[0]:>8.2f}"
            f"{peak / 2**20:>16,.0f} MiB{peak / first[1]:>6.2f}"
        )


def compare_layers(options: argparse.Namespace) -> None:
    """Prints the times of a projection with an eighth of its rows trainable, and of a Linear."""
    size, count = 4096, 2048
    for dtype in (torch.float32, torch.bfloat16):
        linear = nn.Linear(size, size, bias=False, dtype=dtype, device=DEVICE)
        twin = nn.Linear(size, size, bias=False, dtype=dtype, device=DEVICE)
        projection = restrict_rows(twin, torch.arange(0, size // 8), 0)
        projection.freeze()
        inputs = torch.randn(count, size, dtype=dtype, device=DEVICE, requires_grad=True)
        upstream = torch.randn(count, size, dtype=dtype, device=DEVICE)
        times: dict[nn.Module, list[float]] = {linear: [], projection: []}
        for round_number in range(options.steps + 1):
            for module, seconds in times.items():
                module.zero_grad()
                inputs.grad = None
                wait()
                start = time.perf_counter()
                module(inputs).backward(upstream)
                wait()
                if round_number:
                    seconds.append(time.perf_counter() - start)
        whole, part = (statistics.median(seconds) for seconds in times.values())
        print(
            f"{DEVICE}, {dtype}: Linear {1e3 * whole:.1f} ms, restricted {1e3 * part:.1f} ms, {part / whole:.2f}"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layer", action="store_true", help="one projection instead of a model")
    parser.add_argument("--large", action="store_true", help="the shape of Llama-3.2-1B without a GPU too")
    parser.add_argument("--steps", type=int, default=7)
    chosen = parser.parse_args()
    (compare_layers if chosen.layer else compare_models)(chosen)
