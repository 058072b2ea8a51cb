"""What the demo measures, with mean and standard deviation over the seeds."""

import json
import statistics
from dataclasses import asdict, dataclass
from operator import attrgetter


@dataclass(frozen=True)
class Losses:
    """Losses of a model on held-out text, in nats per token.

    Attributes:
        task: The loss on the task's text.
        general: The loss on the general text that the base was trained on.
    """

    task: float
    general: float


@dataclass(frozen=True)
class Outcome:
    """What a training method achieved with one seed.

    Attributes:
        losses: The losses of the trained model.
        trainable: The number of parameters that trained.
        step_seconds: Mean processor time of a step.
        bytes: Memory of parameters, gradients and optimizer state, without activations.
    """

    losses: Losses
    trainable: int
    step_seconds: float
    bytes: int


@dataclass(frozen=True)
class Trial:
    """The results of one seed.

    Attributes:
        seed: The seed.
        tuned: The losses of the tuned copy.
        selected: The selected heads, as (layer, head).
        random: The random heads, as (layer, head).
        outcomes: The outcome of each training method, by its name.
    """

    seed: int
    tuned: Losses
    selected: list[tuple[int, int]]
    random: list[tuple[int, int]]
    outcomes: dict[str, Outcome]


@dataclass(frozen=True)
class Results:
    """Everything that the demo measures.

    Attributes:
        base: The losses of the base.
        parameters: The number of parameters of the model.
        steps: The number of steps on the task, for each training method.
        trials: The results of each seed.
    """

    base: Losses
    parameters: int
    steps: int
    trials: list[Trial]

    @property
    def methods(self) -> list[str]:
        """The names of the training methods."""
        return list(self.trials[0].outcomes)

    def sample(self, method: str, measure: str) -> "Sample":
        """Returns a measure of a training method for every seed; `measure` is a field of `Outcome`, such as "losses.task"."""
        return Sample([attrgetter(measure)(trial.outcomes[method]) for trial in self.trials])

    def to_json(self) -> str:
        """Returns the results as JSON."""
        return json.dumps(asdict(self), indent=1) + "\n"


@dataclass(frozen=True)
class Sample:
    """The values of a measure for several seeds."""

    values: list[float]

    @property
    def mean(self) -> float:
        """The mean."""
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """The standard deviation, with n - 1; None for a single value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def text(self, digits: int, *, signed: bool = False) -> str:
        """Writes the mean, and the standard deviation of more than one value."""
        deviation = "" if self.deviation is None else f" ± {self.deviation:.{digits}f}"
        return f"{self.mean:{'+' if signed else ''}.{digits}f}{deviation}"
