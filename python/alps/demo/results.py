"""What the demo measures, and its mean and spread over the seeds."""

import json
import math
import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Losses:
    """Of a model, in nats for each token of unseen text.

    Attributes:
        task: On the task's text.
        general: On general text, which the base was trained on.
    """

    task: float
    general: float


@dataclass(frozen=True)
class Outcome:
    """What one way to train came to with one seed.

    Attributes:
        losses: Of the trained model.
        trainable: How many parameters trained.
        step_seconds: Processor time of a step, the mean of all.
        bytes: Parameters, gradients and the optimizer's state; no activations.
    """

    losses: Losses
    trainable: int
    step_seconds: float
    bytes: int


@dataclass(frozen=True)
class Trial:
    """What was done with one seed.

    Attributes:
        seed: The seed.
        tuned: Losses of the tuned copy.
        selected: The selected heads, as (layer, head).
        random: The random heads.
        outcomes: Of each way to train, by its name.
    """

    seed: int
    tuned: Losses
    selected: list[tuple[int, int]]
    random: list[tuple[int, int]]
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Results:
    """All that the demo measures.

    Attributes:
        base: Losses of the base.
        parameters: Of the model.
        steps: On the task, of each way to train.
        trials: One for each seed.
    """

    base: Losses
    parameters: int
    steps: int
    trials: list[Trial]

    @property
    def ways(self) -> list[str]:
        """The names of the ways to train."""
        return list(self.trials[0].outcomes)

    def measured(self, way: str, measure: Callable[[Outcome], float]) -> "Measured":
        """A measure of a way to train, over the seeds."""
        return Measured.of([measure(trial.outcomes[way]) for trial in self.trials])

    def to_json(self) -> str:
        """Everything, as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Measured:
    """A number that was measured with several seeds.

    Attributes:
        mean: Over the seeds.
        spread: The standard deviation, with n - 1; not-a-number for a single seed.
        each: The number for each seed.
    """

    mean: float
    spread: float
    each: list[float]

    @classmethod
    def of(cls, each: list[float]) -> "Measured":
        """The mean and spread of these."""
        return cls(statistics.fmean(each), statistics.stdev(each) if len(each) > 1 else math.nan, each)

    def text(self, digits: int, *, signed: bool = False) -> str:
        """The mean and, where there is one, the spread."""
        spread = "" if math.isnan(self.spread) else f" ± {self.spread:.{digits}f}"
        return f"{self.mean:{'+' if signed else ''}.{digits}f}{spread}"
