"""The text that the demo trains on: docstrings of the Python standard library, and the code around them."""

import ast
import sysconfig
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alps.errors import ArgumentError

_HELD_OUT = 10
"""The last 1/10 of the characters of a text is held out from training."""


def standard_library(characters: int) -> tuple[str, str]:
    """Reads the docstrings of the standard library, and its code without them.

    Args:
        characters: The length of each of the two texts.

    Raises:
        ArgumentError: This Python comes without the source of its library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    docstrings: list[str] = []
    code: list[str] = []
    for path in sorted(folder.glob("[a-z]*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the style of the library's code
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    docstrings.append(docstring)
                    node.body = node.body[1:] or [ast.Pass()]
        if sum(map(len, code)) < characters:
            code.append(ast.unparse(tree))
        if min(sum(map(len, docstrings)), sum(map(len, code))) >= characters:
            return "\n\n".join(docstrings)[:characters], "\n\n".join(code)[:characters]
    raise ArgumentError(
        f"{folder}: expected {characters:,} characters of docstrings and as many of code in Python's own library, "
        f"found {sum(map(len, docstrings)):,} and {sum(map(len, code)):,}"
    )


def train_tokenizer(text: str, vocabulary: int, window: int) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer of at most `vocabulary` tokens; digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    end = "<|end|>"
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=[end],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=end, pad_token=end, model_max_length=window
    )


class Text:
    """The tokens of a text, divided into a training part and a held-out part."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
        cut = len(text) - len(text) // _HELD_OUT
        self._training, self._held_out = (
            torch.tensor(tokenizer.backend_tokenizer.encode(part).ids) for part in (text[:cut], text[cut:])
        )

    def batch(self, size: int, window: int, generator: torch.Generator) -> torch.Tensor:
        """Windows at random positions of the training part: int64 [size, window]."""
        starts = torch.randint(len(self._training) - window, (size, 1), generator=generator)
        return self._training[starts + torch.arange(window)]

    def held_out(self, count: int, window: int) -> torch.Tensor:
        """The first windows of the held-out part: int64 [count, window]."""
        return self._held_out[: count * window].view(count, window)
