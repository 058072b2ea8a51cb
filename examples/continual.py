"""Trains a causal language model on two texts in turn, and shows what is forgotten of the first, with SEEKR and without.

    python examples/continual.py MODEL first.txt second.txt

The model learns the first text, and from there the second one twice: by itself, and with a loss that holds the outputs
and the attention of chosen heads on a few replayed windows of the first text to what they were.
"""

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import alps
from alps.training import distill


def windows(path: Path, tokenizer: Any, length: int) -> torch.Tensor:
    """Cuts a text into windows of tokens: int64 [windows, length]."""
    text = path.read_text(encoding="utf-8")
    ids = torch.tensor(tokenizer(text, verbose=False)["input_ids"])
    count = len(ids) // length
    if count < 2:
        raise SystemExit(f"{path}: expected 2 windows of {length} tokens or more, found {len(ids)} tokens")
    return ids[: count * length].view(count, length)


def batch_of(rows: torch.Tensor) -> dict[str, torch.Tensor]:
    """What the model takes."""
    return {"input_ids": rows, "labels": rows}


@torch.no_grad()
def loss_of(model: Any, rows: torch.Tensor) -> float:
    """The loss in nats per token."""
    return float(model.eval()(**batch_of(rows)).loss)


def train(model: Any, rows: torch.Tensor, options: argparse.Namespace, replay: Any = None) -> Any:
    """Trains a model on windows; `replay` gives a further loss at each step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.learning_rate)
    generator = torch.Generator().manual_seed(options.seed)
    model.train()
    for _ in range(options.steps):
        chosen = rows[torch.randint(len(rows), (options.batch,), generator=generator)]
        loss = model(**batch_of(chosen)).loss
        if replay is not None:
            loss = loss + replay(model)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model


def main() -> None:
    """Runs the example."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model", help="a path or an id of the hub")
    parser.add_argument("first", type=Path, help="a text in UTF-8, of which a tenth is held out")
    parser.add_argument("second", type=Path, help="another text")
    parser.add_argument("--steps", type=int, default=50, help="on each text")
    parser.add_argument("--batch", type=int, default=8, help="windows of a step")
    parser.add_argument("--length", type=int, default=64, help="tokens of a window")
    parser.add_argument("--replayed", type=int, default=4, help="windows of the first text that are kept")
    parser.add_argument(
        "--ratio", type=float, default=0.125, help="share of the heads whose attention is held"
    )
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(options.model)
    first, second = (windows(path, tokenizer, options.length) for path in (options.first, options.second))
    held_out = first[-max(1, len(first) // 10) :]
    first = first[: -len(held_out)]
    before = AutoModelForCausalLM.from_pretrained(options.model, attn_implementation="eager")

    teacher = train(copy.deepcopy(before), first, options).eval()
    kept = first[: options.replayed]
    # The heads whose attention matters for the first text, and that learning it has changed.
    scores = alps.measure(before, [batch_of(row[None]) for row in kept], tuned=teacher, statistics=["seekr"])
    heads = scores.select(options.ratio)

    plain = train(copy.deepcopy(teacher), second, options)
    held = train(
        copy.deepcopy(teacher),
        second,
        options,
        lambda model: distill(model, teacher, heads, batch_of(kept)).loss,
    )
    print(heads.report.summary)
    print(f"{'loss on':<24}{'first text':>12}{'second text':>13}")
    for name, model in (("before", before), ("first", teacher), ("second", plain), ("second, held", held)):
        print(f"{name:<24}{loss_of(model, held_out):>12.3f}{loss_of(model, second[:64]):>13.3f}")


if __name__ == "__main__":
    main()
