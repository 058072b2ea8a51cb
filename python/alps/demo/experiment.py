"""The experiment: one base, and for every seed a tuned copy, its heads, and every way to train."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import PreTrainedTokenizerFast

import alps
from alps.demo import model as models
from alps.demo.learning import Learner, loss
from alps.demo.results import Losses, Outcome
from alps.demo.settings import Settings
from alps.demo.texts import Text, standard_library, train_tokenizer
from alps.demo.ways import RATE, SELECTED, Heads, Way
from alps.scores import HeadScores

_TUNED, _WAYS = 1000, 2000
"""Added to a seed, so that the tuned copy and the ways to train draw different batches."""


@dataclass(frozen=True)
class Located:
    """Where a tuned copy says that the task is.

    Attributes:
        losses: Of the tuned copy.
        scores: Of every head.
        heads: The heads to train, and those to compare them with.
    """

    losses: Losses
    scores: HeadScores
    heads: Heads


@dataclass(frozen=True)
class Experiment:
    """One base, and for every seed a tuned copy, its heads, and every way to train.

    What a seed decides: which batches the tuned copy sees, and with that which heads are selected; which batches
    the ways to train see, all of them the same; the random heads; the first weights of LoRA. The base is the
    same for all seeds, as it is for people who have downloaded one.

    Attributes:
        settings: The sizes.
        tokenizer: Trained on the general text.
        general: What the base learns.
        task: What is learnt after that.
        tick: Called after each step.
    """

    settings: Settings
    tokenizer: PreTrainedTokenizerFast
    general: Text
    task: Text
    tick: Callable[[], object]

    @classmethod
    def prepare(cls, settings: Settings, tick: Callable[[], object]) -> "Experiment":
        """Reads the texts and trains the tokenizer.

        Raises:
            ArgumentError: This Python comes without the source of its library.
        """
        docstrings, code = standard_library(settings.characters)
        tokenizer = train_tokenizer(docstrings, settings)
        general, task = (Text(text, tokenizer, settings) for text in (docstrings, code))
        return cls(settings, tokenizer, general, task, tick)

    def losses(self, model: torch.nn.Module) -> Losses:
        """Of unseen text."""
        return Losses(loss(model, self.task.unseen()), loss(model, self.general.unseen()))

    def make_base(self, folder: Path) -> Losses:
        """Trains a model from random weights on the general text, and saves it."""
        torch.manual_seed(0)
        learner = Learner(models.create(self.settings), RATE, self.settings.base_steps)
        self._learn([learner], self.general, 0, self.settings.base_steps)
        models.save(learner.model, self.tokenizer, folder)
        return self.losses(learner.model)

    def locate(self, base: Path, seed: int, tuned: Path) -> "Located":
        """Trains all of a copy of the base on the task, saves it in `tuned`, and compares it with the base."""
        learner = Learner(models.load(base), RATE, self.settings.steps)
        self._learn([learner], self.task, _TUNED + seed, self.settings.steps)
        models.save(learner.model, self.tokenizer, tuned)
        scores = alps.scan(base, tuned)
        heads = Heads(
            selected=scores.select(self.settings.ratio),
            random=scores.select(self.settings.ratio, rule="random", seed=seed),
            none=alps.HeadSet.from_pairs([], scores.geometry),
        )
        return Located(self.losses(learner.model), scores, heads)

    def train(
        self, base: Path, heads: Heads, seed: int, ways: Sequence[Way], trained: Path | None
    ) -> dict[str, Outcome]:
        """Trains the base on the task in some ways, side by side: each batch goes to all before the next is drawn.

        Args:
            base: Where the base is.
            heads: To choose from.
            seed: Decides the batches; they are the same for all ways, trained at once or not.
            ways: The ways.
            trained: Where to save the base with its selected heads and the rest trained, if at all.
        """
        learners: dict[str, Learner] = {}
        for way in ways:
            torch.manual_seed(seed)
            learners[way.name] = Learner(way.prepare(models.load(base), heads), way.rate, self.settings.steps)
        self._learn(list(learners.values()), self.task, _WAYS + seed, self.settings.steps)
        outcomes = {name: self._outcome(learner) for name, learner in learners.items()}
        if trained is not None:
            model = learners[SELECTED.name].model
            alps.release(model)
            models.save(model, self.tokenizer, trained)
        return outcomes

    def _outcome(self, learner: Learner) -> Outcome:
        return Outcome(
            losses=self.losses(learner.model),
            trainable=learner.trainable,
            step_seconds=learner.seconds / self.settings.steps,
            bytes=learner.bytes,
        )

    def _learn(self, learners: list[Learner], text: Text, seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            windows = text.windows(generator)
            for learner in learners:
                learner.step(windows)
                self.tick()
