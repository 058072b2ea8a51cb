"""Makes a pair of checkpoints to try alps on: a tiny Llama, and the same model tuned on something else.

The base learns English from the docstrings of Python's standard library, letter by letter; the tuned model
goes on to learn Python from the code that is around them. Nothing is downloaded.

    python examples/make_pair.py FOLDER     # makes FOLDER/base and FOLDER/tuned
"""

import argparse
import ast
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

ALPHABET = "\n" + "".join(map(chr, range(ord(" "), ord("~") + 1)))
WINDOW = 64
"""How many characters the model sees at once."""
BATCH = 16
LARGEST_TEXT = 400_000


def standard_library() -> tuple[str, str]:
    """The docstrings of the standard library, and its code without them."""
    prose: list[str] = []
    code: list[str] = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("[a-z]*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    prose.append(docstring)
                    node.body = node.body[1:] or [ast.Pass()]
        code.append(ast.unparse(tree))
        if min(sum(map(len, prose)), sum(map(len, code))) > LARGEST_TEXT:
            break
    return "\n\n".join(prose)[:LARGEST_TEXT], "\n\n".join(code)[:LARGEST_TEXT]


def encode(text: str) -> torch.Tensor:
    """The characters as numbers; those outside the alphabet are left out."""
    number = {character: index for index, character in enumerate(ALPHABET)}
    return torch.tensor([number[character] for character in text if character in number])


class Text:
    """A text in two parts: one to learn from, and the last tenth to be measured on."""

    def __init__(self, text: str) -> None:
        characters = encode(text)
        cut = len(characters) * 9 // 10
        self.learned, self.held_out = characters[:cut], characters[cut:]

    def draw(self, generator: torch.Generator) -> torch.Tensor:
        """Windows [BATCH, WINDOW] from places drawn at random."""
        starts = torch.randint(len(self.learned) - WINDOW, (BATCH, 1), generator=generator)
        return self.learned[starts + torch.arange(WINDOW)]

    def loss(self, model: LlamaForCausalLM) -> float:
        """The mean loss on the held-out part, in nats for each character."""
        windows = self.held_out[: 64 * WINDOW].view(-1, WINDOW)
        with torch.no_grad():
            return float(model(input_ids=windows, labels=windows).loss)


def tiny_llama() -> LlamaForCausalLM:
    """Four layers of eight query heads, which share four key/value heads."""
    # Some versions of transformers have types for this and some do not.
    create: Callable[[LlamaConfig], LlamaForCausalLM] = LlamaForCausalLM
    return create(
        LlamaConfig(
            vocab_size=len(ALPHABET),
            hidden_size=128,
            intermediate_size=256,
            num_hidden_layers=4,
            num_attention_heads=8,
            num_key_value_heads=4,
            max_position_embeddings=WINDOW,
            bos_token_id=None,
            eos_token_id=None,
        )
    )


def train(model: LlamaForCausalLM, text: Text, steps: int, peak_rate: float, seed: int) -> None:
    """AdamW with a warm-up and a cosine decay."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, weight_decay=0.1)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, steps // 10, steps)
    for _ in range(steps):
        windows = text.draw(generator)
        model(input_ids=windows, labels=windows).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()


def make_pair(folder: Path, steps: int) -> None:
    """Writes `folder`/base and `folder`/tuned; nothing has these names until both are whole."""
    torch.set_num_threads(1)  # so small a model gains little from more, and the weights do not depend on them
    torch.manual_seed(0)
    quiet: Any = transformers.utils.logging
    quiet.disable_progress_bar()
    prose, code = map(Text, standard_library())
    model = tiny_llama()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"A Llama of {parameters:,} parameters: 4 layers, 8 query heads, 4 key/value heads.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}-", dir=folder.parent) as temporary:
        unfinished = Path(temporary) / folder.name
        for name, text, about, count, rate in (
            ("base", prose, "docstrings", steps, 3e-3),
            ("tuned", code, "Python code", steps // 3, 1e-3),
        ):
            start = time.perf_counter()
            train(model, text, count, rate, seed=count)
            seconds = time.perf_counter() - start
            model.save_pretrained(unfinished / name)
            print(
                f"{name:>5}: {count} steps on {about} in {seconds:.0f} s; loss per character "
                f"{prose.loss(model):.2f} on docstrings, {code.loss(model):.2f} on code",
                flush=True,
            )
        unfinished.rename(folder)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("folder", type=Path, help="must not exist yet")
    parser.add_argument(
        "--steps", type=int, default=240, help="of the base; a third of it for the tuned model"
    )
    arguments = parser.parse_args()
    if arguments.folder.exists():
        parser.error(f"{arguments.folder} exists already")
    try:
        make_pair(arguments.folder, arguments.steps)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
