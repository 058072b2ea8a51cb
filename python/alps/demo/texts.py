"""Text to learn from, out of the Python installation: English docstrings, and the code around them."""

import ast
import sysconfig
import warnings
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from alps.demo.settings import Settings
from alps.errors import ArgumentError

_HELD_OUT = 10
"""One in so many characters, the last ones, is never learnt from."""


def standard_library(characters: int) -> tuple[str, str]:
    """The docstrings of the standard library, and its code without them.

    Args:
        characters: How many of each.

    Raises:
        ArgumentError: This Python comes without the source of its library.
    """
    folder = Path(sysconfig.get_path("stdlib"))
    docstrings: list[str] = []
    code: list[str] = []
    for path in sorted(folder.glob("[a-z]*.py")):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the style of other people's code
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


def train_tokenizer(text: str, settings: Settings) -> PreTrainedTokenizerFast:
    """A byte-level BPE of what is in `text`; digits stay single."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|end|>"]
    tokenizer.train_from_iterator(
        text.splitlines(keepends=True),
        trainers.BpeTrainer(
            vocab_size=settings.vocabulary,
            initial_alphabet=alphabet,
            special_tokens=special,
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=special[0],
        pad_token=special[0],
        model_max_length=settings.window,
    )


class Text:
    """A text as tokens, in two parts: one to learn from, and one to be measured on."""

    def __init__(self, text: str, tokenizer: PreTrainedTokenizerFast, settings: Settings) -> None:
        cut = len(text) - len(text) // _HELD_OUT
        self._settings = settings
        self.learnt, self.held_out = (
            torch.tensor(tokenizer.backend_tokenizer.encode(part).ids) for part in (text[:cut], text[cut:])
        )

    def windows(self, generator: torch.Generator) -> torch.Tensor:
        """One batch from places drawn at random: int64 [batch, window]."""
        batch, window = self._settings.batch, self._settings.window
        starts = torch.randint(len(self.learnt) - window, (batch, 1), generator=generator)
        return self.learnt[starts + torch.arange(window)]

    def unseen(self) -> torch.Tensor:
        """What losses are measured on, always the same: int64 [windows, window]."""
        measured, window = self._settings.measured, self._settings.window
        return self.held_out[: measured * window].view(measured, window)
