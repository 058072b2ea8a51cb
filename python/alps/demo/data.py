"""The texts that the demo trains on: docstrings of the Python standard library, and lines of random numbers."""

import ast
import random
import sysconfig
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alps.errors import ArgumentError

_HELD_OUT = 10
"""The last 1/10 of the characters of a text is held out from training."""


def docstrings(characters: int) -> str:
    """Reads docstrings of the standard library: the general text.

    Args:
        characters: The length of the text.

    Raises:
        ArgumentError: This Python comes without the source of its library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    found: list[str] = []
    for path in sorted(folder.glob("[a-z]*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about the style of the library's code
            tree = ast.parse(path.read_text(encoding="utf-8", errors="replace"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring is not None:
                    found.append(docstring)
        if sum(map(len, found)) >= characters:
            return "\n\n".join(found)[:characters]
    raise ArgumentError(
        f"{folder}: expected {characters:,} characters of docstrings in Python's own library, "
        f"found {sum(map(len, found)):,}"
    )


def repeated_numbers(characters: int) -> str:
    """Makes lines in which a random number of eight digits stands twice, as in 04839165=04839165: the task.

    The first eight digits cannot be foreseen. What is learnt first is that eight digits end with "=" or with the line;
    to count them needs attention to what came before. To copy them takes more steps than the demo has.

    Args:
        characters: The length of the text.
    """
    digits = random.Random(0)
    numbers = (f"{digits.randrange(10**8):08}" for _ in range(-(-characters // 18)))
    return "".join(f"{number}={number}\n" for number in numbers)[:characters]


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
    """The tokens of a text, divided into a training part and a held-out part.

    Attributes:
        unseen: The held-out part as it is written.
    """

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast) -> None:
        cut = len(text) - len(text) // _HELD_OUT
        self.unseen = text[cut:]
        self._training, self._held_out = (
            torch.tensor(tokenizer.backend_tokenizer.encode(part).ids) for part in (text[:cut], self.unseen)
        )

    def batch(self, size: int, window: int, generator: torch.Generator) -> torch.Tensor:
        """Windows at random positions of the training part: int64 [size, window]."""
        starts = torch.randint(len(self._training) - window, (size, 1), generator=generator)
        return self._training[starts + torch.arange(window)]

    def held_out(self, count: int, window: int) -> torch.Tensor:
        """The first windows of the held-out part: int64 [count, window]."""
        return self._held_out[: count * window].view(count, window)
