"""What every comparison needs."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import alps
from alps.scan import Form
from compare.pairs import Pair, Pairs
from compare.result import duration
from support.checkpoints import Shape


@dataclass
class Bench:
    """The pairs to scan, and how."""

    pairs: Pairs
    shapes: Mapping[str, Shape]
    """The attention by the name of its model: two of everyday size, then a very large one."""
    layers: int
    rounds: int
    threads: int

    @property
    def few_rounds(self) -> int:
        """How often to repeat what takes seconds."""
        return min(self.rounds, 3)

    def everyday(self, whole: bool = False) -> Iterator[tuple[str, Pair]]:
        """The pairs that most comparisons scan, or those of whole models, with the names of their models."""
        for model, shape in list(self.shapes.items())[:2]:
            yield model, self.pair(model, shape.layers if whole else self.layers)

    def pair(self, model: str, layers: int, experts: int = 0) -> Pair:
        """A pair with the attention of `model`."""
        return self.pairs.pair(dataclasses.replace(self.shapes[model], layers=layers), experts)

    def scan(self, pair: Pair, form: Form = "qkv", threads: int | None = None) -> "partial[alps.HeadScores]":
        """A scan to be timed."""
        return partial(alps.scan, pair.base, pair.tuned, form=form, threads=threads or self.threads)


def median(seconds: Iterable[float]) -> str:
    """The median of some times, to be read."""
    return duration(statistics.median(seconds))
