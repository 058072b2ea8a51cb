"""Batches for a causal language model from a text file."""

import os
from pathlib import Path

import torch

from alps.errors import ArgumentError
from alps.live.losses import Batch

SHORTEST = 16
"""The fewest tokens of a window; a loss of fewer says little."""

USUAL = 256
"""The tokens of a window when no length is given."""


def windows(
    path: str | os.PathLike[str],
    tokenizer_of: str | os.PathLike[str],
    *,
    length: int | None = None,
    count: int = 16,
) -> list[Batch]:
    """Cuts a text into windows of tokens, one for each batch, spread evenly over the text.

    Args:
        path: The text, UTF-8.
        tokenizer_of: A model on this machine, whose tokenizer is used.
        length: The tokens of a window; 256, or what the model takes if that is less, when not given.
        count: How many windows to take at most.

    Raises:
        ArgumentError: `length` or `count` is too small, the model takes no windows of `length`, the file is not
            UTF-8, or the text is shorter than one window.
        OSError: A file cannot be read, or there is no tokenizer.
    """
    from transformers import AutoTokenizer

    if (length is not None and length < SHORTEST) or count < 1:
        raise ArgumentError(
            f"expected windows of {SHORTEST} tokens or more and at least one, found {count} of {length or USUAL}"
        )
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{os.fspath(path)}: expected a text in UTF-8: {error}") from None
    tokenizer = AutoTokenizer.from_pretrained(os.fspath(tokenizer_of))
    most = tokenizer.model_max_length
    length = length or min(USUAL, most)
    if length > most:
        raise ArgumentError(
            f"{os.fspath(tokenizer_of)}: expected windows of at most {most} tokens, which its tokenizer says the model "
            f"takes; found {length} (--length)"
        )
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt", verbose=False)["input_ids"][0]
    if len(ids) < length:
        raise ArgumentError(
            f"{os.fspath(path)}: expected at least {length} tokens, one window; found {len(ids)}. Give a longer text, "
            "or shorter windows (--length)"
        )
    starts = torch.linspace(0, len(ids) - length, min(count, len(ids) // length)).long().tolist()
    return [
        {"input_ids": ids[None, at : at + length], "labels": ids[None, at : at + length]} for at in starts
    ]
