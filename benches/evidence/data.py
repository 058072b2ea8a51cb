"""Making the windows of all tasks, from files and from random numbers."""

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from evidence import tasks, texts

LENGTH = 128
TEXT_WINDOWS = {"train": 6000, "validation": 32, "test": 96}
ANSWER_WINDOWS = {"train": 12000, "validation": 128, "test": 384}
_PER_DOCUMENT = 40
"""Windows that one document gives at most."""

Encode = Callable[[str], list[int]]


def text_task(documents: Iterable[str], encode: Encode, wanted: dict[str, int]) -> dict[str, Any]:
    """Windows of running text; a document is of one split only."""
    draw = random.Random(0)
    shuffled = list(documents)
    draw.shuffle(shuffled)
    found: dict[str, list[list[int]]] = {split: [] for split in wanted}
    small_first = sorted(wanted, key=lambda split: wanted[split])
    for text in shuffled:
        split = next((it for it in small_first if len(found[it]) < 3 * wanted[it]), None)
        if split is None:
            break
        tokens = encode(text[: 8 * LENGTH * _PER_DOCUMENT])
        starts = range(0, len(tokens) - LENGTH, LENGTH)
        found[split] += [tokens[start : start + LENGTH] for start in starts][:_PER_DOCUMENT]
    for split, windows in found.items():
        draw.shuffle(windows)
        if len(windows) < wanted[split]:
            raise ValueError(f"{split}: expected {wanted[split]} windows, found {len(windows)}")
    return {split: np.array(found[split][: wanted[split]], np.uint16) for split in wanted}


def sums(draw: random.Random) -> str:
    """Two numbers and their sum, of three digits all."""
    first, second = draw.randint(100, 499), draw.randint(100, 499)
    return f"{first} + {second} = {first + second}"


def reversal(draw: random.Random) -> str:
    """Eight letters and the same from the last to the first."""
    letters = draw.sample("abcdefghijklmnopqrstuvwxyz", 8)
    return f"Reverse: {' '.join(letters)} -> {' '.join(reversed(letters))}"


def answer_task(example: Callable[[random.Random], str], encode: Encode) -> dict[str, Any]:
    """Questions with their answers; no question is in two splits."""
    draw = random.Random(0)
    count = sum(ANSWER_WINDOWS.values())
    examples: dict[str, None] = {}
    while len(examples) < count:
        examples[example(draw)] = None
    rows = np.array([encode(text) for text in examples], np.uint16)
    bounds = np.cumsum(list(ANSWER_WINDOWS.values()))[:-1]
    return dict(zip(ANSWER_WINDOWS, np.split(rows, bounds), strict=True))


def make(
    output: Path, tokenizer: Path, german: Path, python: Path, english: Path, gguf_file: str | None
) -> None:
    """Writes the windows of all tasks into a folder.

    Args:
        output: The folder.
        tokenizer: A folder with a tokenizer of transformers.
        german: A folder with compressed manual pages.
        python: A folder with Python sources.
        english: A folder with HTML pages; what the model forgets is measured on them.
        gguf_file: The file of `tokenizer` that holds it, if it is a GGUF file.
    """
    from transformers import AutoTokenizer

    found: Any = AutoTokenizer.from_pretrained(tokenizer, gguf_file=gguf_file)

    def encode(text: str) -> list[int]:
        tokens: list[int] = found(text)["input_ids"]
        return tokens

    everywhere = list(range(LENGTH - 1))
    texts_of = {"german": texts.manual_pages(german), "python": texts.python_code(python)}
    for name, documents in texts_of.items():
        tasks.save(output, name, text_task(documents, encode, TEXT_WINDOWS), everywhere)
    for name, example, answer in (("sums", sums, 3), ("reverse", reversal, 8)):
        splits = answer_task(example, encode)
        length = splits["train"].shape[1]
        tasks.save(output, name, splits, list(range(length - 1 - answer, length - 1)))
    general = text_task(texts.handbook(english), encode, {"test": 32})
    tasks.save(output, "general", general, everywhere)
    names = {"tasks": ["german", "sums", "python", "reverse", "general"]}
    (output / "tasks.json").write_text(json.dumps(names))
