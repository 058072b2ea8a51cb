"""The settings that every comparison shares, and the scans that it times."""

import dataclasses
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import torch

import alps
from alps.statistics import Form
from compare.pairs import CheckpointPair, CheckpointPairs
from compare.result import duration
from support.checkpoints import Shape


@dataclass
class Bench:
    """The checkpoints to scan, and the settings of the scans."""

    pairs: CheckpointPairs
    shapes: Mapping[str, Shape]
    """The attention of each model: two of everyday size, then a very large one."""
    layers: int
    rounds: int
    threads: int

    @property
    def few_rounds(self) -> int:
        """Repetitions of a measurement that takes seconds."""
        return min(self.rounds, 3)

    def everyday(self, whole: bool = False) -> Iterator[tuple[str, CheckpointPair]]:
        """Yields the everyday models, each with a pair of `layers` layers or, if `whole`, of all its layers."""
        for model, shape in list(self.shapes.items())[:2]:
            yield model, self.pair(model, shape.layers if whole else self.layers)

    def pair(
        self, model: str, layers: int, experts: int = 0, dtype: torch.dtype = torch.bfloat16
    ) -> CheckpointPair:
        """Writes a pair of checkpoints with the attention of `model`."""
        return self.pairs.pair(dataclasses.replace(self.shapes[model], layers=layers), experts, dtype)

    def scan(
        self, pair: CheckpointPair, form: Form = "qkv", threads: int | None = None
    ) -> "partial[alps.HeadScores]":
        """Returns a scan to be timed."""
        return partial(alps.scan, pair.base, pair.tuned, form=form, threads=threads or self.threads)


def median(seconds: Iterable[float]) -> str:
    """Formats the median of some times."""
    return duration(statistics.median(seconds))
