"""Step time and peak memory of full fine-tuning, of LoRA, and of training the selected heads only.

    python benches/training.py            a model of the shape of Llama-3.2-1B on a GPU, a small one without
    python benches/training.py --equal    a small model: restrict(freeze) and LoRA with as many parameters, in turns
    python benches/training.py --layer    one projection of 4096 x 4096: forward and backward, and one token without
    python benches/training.py --count    the operations of one projection and the bytes that they move, on any machine

The weights are random. Every method trains with AdamW on the same tokens. Peak memory is the memory that is
allocated beyond the weights of the untouched model. `--compile` and `--checkpointing` are for the first form.
"""

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
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


def lora(rank: int) -> Callable[[Any], Any]:
    """Returns a function that adds LoRA to Q, K and V: the paper's strongest baseline."""

    def prepare(model: Any) -> Any:
        names = ["q_proj", "k_proj", "v_proj"]
        return get_peft_model(model, LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=names))

    return prepare


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
    "LoRA r=16 on Q/K/V": lora(16),
    "LoRA r=128 on Q/K/V": lora(128),
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


def prepare(
    method: str,
    sizes: dict[str, Any],
    dtype: torch.dtype,
    batch: int,
    length: int,
    compiled: bool = False,
    checkpointing: bool = False,
) -> tuple[Callable[[], None], int, int, int]:
    """Returns a step of training, the bytes of the untouched model and of what the method added, and how many train."""
    model = build(sizes, dtype)
    weights = sum(it.numel() * it.element_size() for it in model.parameters())
    model = METHODS[method](model)
    rows = sum(it.numel() * it.element_size() for it in model.parameters()) - weights
    parameters = [it for it in model.parameters() if it.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5, weight_decay=0.1)
    tokens = torch.randint(0, sizes["vocab_size"], (batch, length), device=DEVICE)
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    run = torch.compile(model) if compiled else model

    def step() -> None:
        run(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step, weights, rows, sum(it.numel() for it in parameters)


def seconds_of(step: Callable[[], None]) -> float:
    """Returns the seconds of one step."""
    wait()
    start = time.perf_counter()
    step()
    wait()
    return time.perf_counter() - start


def measure(
    method: str,
    sizes: dict[str, Any],
    dtype: torch.dtype,
    batch: int,
    length: int,
    steps: int,
    compiled: bool = False,
    checkpointing: bool = False,
) -> tuple[float, int, int]:
    """Returns the seconds of a step, the peak bytes beyond the weights, and the number of trainable parameters."""
    before = torch.cuda.memory_allocated() if GPU else 0
    step, weights, rows, count = prepare(method, sizes, dtype, batch, length, compiled, checkpointing)
    if GPU:
        step()
        torch.cuda.reset_peak_memory_stats()
        step()
        peak = torch.cuda.max_memory_allocated() - before - weights
    else:
        peak = rows + peak_on_cpu(step)  # with the state of the optimizer, which the first step allocates
    return statistics.median(seconds_of(step) for _ in range(steps)), peak, count


def compare_models(options: argparse.Namespace) -> None:
    """Prints a table of the methods to train a whole model."""
    sizes = LLAMA_1B if options.large or GPU else SMALL
    dtype = torch.bfloat16 if GPU else torch.float32
    batch, length = (8, 1024) if GPU else (4, 128)
    print(f"{DEVICE}, {dtype}, {batch} x {length} tokens, median of {options.steps} steps")
    print(f"{'':<22}{'parameters':>15}{'step':>12}{'':>8}{'peak over weights':>20}")
    first: tuple[float, int] | None = None
    for method in METHODS:
        seconds, peak, count = measure(
            method, sizes, dtype, batch, length, options.steps, options.compile, options.checkpointing
        )
        gc.collect()
        first = first or (seconds, peak)
        print(
            f"{method:<22}{count:>15,}{1e3 * seconds:>9.1f} ms{seconds / first[0]:>8.2f}"
            f"{peak / 2**20:>16,.0f} MiB{peak / first[1]:>6.2f}"
        )


def compare_with_lora(options: argparse.Namespace) -> None:
    """Prints the time of a step of restrict(freeze) against one of LoRA with as many parameters, made in turns."""
    METHODS["LoRA"] = lora(43)
    for dtype in (torch.float32, torch.bfloat16):
        trainings = {name: prepare(name, SMALL, dtype, 4, 128) for name in ("LoRA", "restrict(freeze)")}
        rounds = [
            {name: seconds_of(step) for name, (step, *_) in trainings.items()}
            for _ in range(2 + options.steps)  # the first steps allocate and warm up
        ][2:]
        medians = {name: statistics.median(it[name] for it in rounds) for name in trainings}
        shown = ", ".join(
            f"{name} ({trainings[name][-1]:,} parameters) {1e3 * it:.1f} ms" for name, it in medians.items()
        )
        ratio = statistics.median(it["restrict(freeze)"] / it["LoRA"] for it in rounds)
        print(
            f"{DEVICE}, {dtype}, 4 x 128 tokens: {shown}; median ratio of {options.steps} pairs {ratio:.2f}"
        )


def projections(size: int, dtype: torch.dtype) -> dict[str, nn.Module]:
    """Square projections without a bias: trained whole, frozen, with LoRA, and with an eighth of the rows trained."""

    def linear() -> nn.Linear:
        return nn.Linear(size, size, bias=False, dtype=dtype, device=DEVICE)

    restricted_linear = restrict_rows(linear(), torch.arange(0, size // 8), 0)
    restricted_linear.freeze()
    with_lora: Any = get_peft_model(
        nn.Sequential(linear()),
        LoraConfig(r=16, lora_alpha=32, target_modules=["0"]),
    )
    return {
        "trained": linear(),
        "frozen": linear().requires_grad_(False),
        "LoRA r=16": with_lora.base_model.model[0],
        "an eighth of the rows": restricted_linear,
    }


def pass_through(module: nn.Module, inputs: Tensor, upstream: Tensor) -> float:
    """Returns the seconds of a forward and a backward pass, or of a forward pass if the inputs need no gradient."""
    module.zero_grad()
    inputs.grad = None
    wait()
    start = time.perf_counter()
    with torch.set_grad_enabled(inputs.requires_grad):
        outputs = module(inputs)
    if inputs.requires_grad:
        outputs.backward(upstream)
    wait()
    return time.perf_counter() - start


def compare_layers(options: argparse.Namespace) -> None:
    """Prints the times of projections."""
    size = 4096
    for dtype in (torch.float32, torch.bfloat16):
        modules = projections(size, dtype)
        for count in (2048, 512, 1):
            inputs = torch.randn(count, size, dtype=dtype, device=DEVICE, requires_grad=count > 1)
            upstream = torch.randn(count, size, dtype=dtype, device=DEVICE)
            rounds = [
                {name: pass_through(module, inputs, upstream) for name, module in modules.items()}
                for _ in range(1 + options.steps * (1 if count > 1 else 50))
            ]
            medians = {name: statistics.median(it[name] for it in rounds[1:]) for name in modules}
            shares = ", ".join(f"{name} {it / medians['trained']:.2f}" for name, it in medians.items())
            what = "forward and backward" if count > 1 else "forward"
            print(
                f"{DEVICE}, {dtype}, {count} tokens, {what}: trained {1e3 * medians['trained']:.2f} ms; {shares}"
            )


class Operations(TorchDispatchMode):
    """Counts the operations that compute something, each a launch on a GPU, and the bytes that they read and write.

    Attributes:
        launches: Operations that return no view.
        bytes: Of their inputs and outputs; of operations on rows, only those of the rows.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.launches = self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        is_view = bool(returns) and returns[0].alias_info is not None and not returns[0].alias_info.is_write
        if not is_view and not func.__name__.startswith(("empty", "new_empty")):
            self.launches += 1
            tensors = [it for it in tree_leaves((args, kwargs, result)) if isinstance(it, Tensor)]
            if func.__name__.startswith("index_copy"):
                tensors = [args[3], args[3].to(args[0].dtype)]
            elif func.__name__.startswith("index_select"):
                tensors = [result, result]
            self.bytes += sum(it.numel() * it.element_size() for it in tensors)
        return result


def count_operations(options: argparse.Namespace) -> None:
    """Prints the operations of projections in bfloat16, forward and backward, and the bytes that they move."""
    print("| | launches | MB, 1 token | MB, 512 | MB, 2,048 | MB, 8,192 |\n|---|---:|---:|---:|---:|---:|")
    for size in (2048, 4096, 8192):
        for name, module in projections(size, torch.bfloat16).items():
            found = []
            for count in (16, 16, 32):  # the first pass is not like the later ones
                inputs = torch.randn(count, size, dtype=torch.bfloat16, requires_grad=True)
                upstream = torch.randn(count, size, dtype=torch.bfloat16)
                with Operations() as counted:
                    module(inputs).backward(upstream)
                module.zero_grad()
                found.append((counted.launches, counted.bytes))
            (launches, at_16), (_, at_32) = found[1:]
            of_token = (at_32 - at_16) / 16
            cells = [f"{(at_16 + (count - 16) * of_token) / 1e6:,.0f}" for count in (1, 512, 2048, 8192)]
            print(f"| {size} x {size}, {name} | {launches} | {' | '.join(cells)} |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--equal", action="store_true", help="restrict(freeze) and LoRA, as many parameters")
    parser.add_argument("--layer", action="store_true", help="one projection instead of a model")
    parser.add_argument("--count", action="store_true", help="operations and bytes of one projection")
    parser.add_argument("--compile", action="store_true", help="compile the model")
    parser.add_argument("--checkpointing", action="store_true", help="with gradient checkpointing")
    parser.add_argument("--large", action="store_true", help="the shape of Llama-3.2-1B without a GPU too")
    parser.add_argument("--steps", type=int, default=7)
    chosen = parser.parse_args()
    if chosen.count:
        count_operations(chosen)
    elif chosen.layer:
        compare_layers(chosen)
    elif chosen.equal:
        compare_with_lora(chosen)
    else:
        compare_models(chosen)
