"""Whether training many arms at once is what `alps.restrict` and transformers do with one.

    PYTHONPATH=benches python -m evidence.check FOLDER --model DIR

Prints, in float32: how far the logits are from those of transformers, and for one of several arms that
train together how far its weights are, after some steps, from those that a plain loop with `alps.restrict`
and torch's AdamW gives.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

import alps
from alps.training import attention
from evidence import checkpoint, llama, tasks
from evidence.checkpoint import Sizes, Tensors
from evidence.llama import Weights
from evidence.tasks import Windows
from evidence.train import BETAS, DECAY, EPSILON, Arm, Others, rate_factor, train


def far(found: Tensor, expected: Tensor) -> float:
    """The norm of the difference over the norm of what is expected."""
    return float((found.double() - expected.double()).norm() / expected.double().norm())


def model_of(path: Path, tensors: Tensors) -> Any:
    """The model in float32, with weights that are exactly those of the experiment."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    model.load_state_dict({name: it.float() for name, it in tensors.items()}, strict=False)
    model.tie_weights()
    return model.train()


def restricted(
    model: Any,
    groups: Sequence[int],
    sizes: Sizes,
    windows: Windows,
    batches: Tensor,
    rate: float,
    others: Others,
) -> Tensors:
    """Trains one arm with `alps.restrict`; its weights by name."""
    geometry = attention.find(model).geometry
    heads_of_group = sizes.heads // sizes.groups
    pairs = [
        (number // sizes.groups, number % sizes.groups * heads_of_group + head)
        for number in groups
        for head in range(heads_of_group)
    ]
    alps.restrict(model, alps.HeadSet.from_pairs(pairs, geometry), others=others)
    optimizer = torch.optim.AdamW(
        [it for it in model.parameters() if it.requires_grad],
        lr=rate, betas=BETAS, eps=EPSILON, weight_decay=DECAY,
    )  # fmt: skip
    for number, batch in enumerate(batches):
        tokens, targets = windows.batch(batch, 1)
        logits = model(input_ids=tokens[0]).logits[:, windows.columns].flatten(0, 1)
        torch.nn.functional.cross_entropy(logits, targets[0]).backward()
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(number, len(batches))
        optimizer.step()
        optimizer.zero_grad()
    alps.release(model)
    return {name: it.detach() for name, it in model.state_dict().items()}


def compared(
    path: Path, tensors: Tensors, base: Weights, sizes: Sizes, windows: Windows, steps: int, others: Others
) -> dict[str, float]:
    """One arm among three, against the plain loop."""
    every = sizes.layers * sizes.groups
    rate = 1e-3 if others == "freeze" else 1e-4
    arms = [Arm(tuple(range(start, every, 10)), rate) for start in (0, 1, 2)]
    seeded = torch.Generator().manual_seed(0)
    batches = torch.randint(0, len(windows), (steps, 1, 4), generator=seeded)
    trained = train(base, sizes, arms, windows, batches, others)
    expected = restricted(model_of(path, tensors), arms[1].groups, sizes, windows, batches, rate, others)
    plain = llama.arrange({name: it.float() for name, it in tensors.items()}, sizes)
    goal = llama.arrange(expected, sizes)
    found = trained.weights.map(lambda it: it[1] if len(it) == len(arms) else it)
    change = far(
        torch.cat([(a - b).flatten() for a, b in zip(found.qkv, plain.qkv, strict=True)]),
        torch.cat([(a - b).flatten() for a, b in zip(goal.qkv, plain.qkv, strict=True)]),
    )
    figures = {"change of Q, K and V": change}
    if others == "train":
        figures["change of the others"] = far(
            torch.cat([(a - b).flatten() for a, b in zip(found.others(), plain.others(), strict=True)]),
            torch.cat([(a - b).flatten() for a, b in zip(goal.others(), plain.others(), strict=True)]),
        )
    kept = sum(
        int(((a == b) != (c == d)).sum())
        for a, b, c, d in zip(found.qkv, plain.qkv, goal.qkv, plain.qkv, strict=True)
    )
    return {**figures, "entries that one way moves and the other does not": kept}


def main() -> None:
    """Prints the figures as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="windows of the tasks")
    parser.add_argument("--model", type=Path, required=True, help="folder of a Llama")
    parser.add_argument("--steps", type=int, default=10)
    options = parser.parse_args()
    sizes, tensors = checkpoint.read(options.model)
    base = llama.arrange({name: it.float() for name, it in tensors.items()}, sizes)
    windows = next(iter(tasks.load(options.folder, torch.device("cpu")).values()))["train"]
    with torch.no_grad():
        tokens = windows.tokens[:2]
        hidden = llama.hidden_states(base, tokens[None], sizes)[0]
        logits = far(hidden @ base.embedding.T, model_of(options.model, tensors)(input_ids=tokens).logits)
    figures: dict[str, Any] = {"steps": options.steps, "logits": logits}
    for others in ("freeze", "train"):
        figures[others] = compared(options.model, tensors, base, sizes, windows, options.steps, others)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
