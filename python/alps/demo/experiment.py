"""The experiment: trains a base, and for every seed a tuned copy and the base again by every training method."""

import logging
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# PEFT imports bitsandbytes where it is installed, which then warns of kernels that the demo does not use.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import numpy as np  # noqa: E402
import peft  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast  # noqa: E402

import alps  # noqa: E402
from alps.demo.data import Text, docstrings, repeated_numbers, train_tokenizer  # noqa: E402
from alps.demo.results import Losses, Outcome  # noqa: E402
from alps.draws import random_like  # noqa: E402
from alps.heads import HeadSet  # noqa: E402
from alps.scores import HeadScores  # noqa: E402

_RATE = 2e-3
"""The peak learning rate of the base, the tuned copy, and the methods that train most of the model."""

_HIGH_RATE = 1e-2
"""The peak learning rate of the methods that train a few per cent of the model; they learn less with the lower one.

Task losses on another base and copy, at 0.005, 0.01, 0.02, 0.04: LoRA 2.62, 2.55, 2.56, 2.92; selected heads alone
2.74, 2.71, 2.70, 2.80; random heads alone 2.78, 2.74, 2.78, 3.00.
"""

_TUNING_SEED, _METHOD_SEED = 1000, 2000
"""Added to a seed, so that the tuned copy and the training methods draw different batches."""


@dataclass(frozen=True)
class Settings:
    """The sizes of the demo; with the default ones it takes one to two minutes on two cores.

    Attributes:
        seeds: The number of repetitions of everything but the base.
        base_steps: Steps on general text that make the base.
        steps: Steps on the task, for the tuned copy and for every training method.
        batch: Windows of text in a step.
        window: Tokens in a window.
        measured: Windows of held-out text that a loss is the mean of.
        characters: The length of each text, held-out part included.
        vocabulary: The most tokens of the tokenizer.
        layers: Layers of the model.
        query_heads: Query heads of each layer.
        key_value_heads: Key/value heads of each layer, shared by the query heads.
        hidden_size: The width of the model.
        intermediate_size: The width of its feed-forward layers.
        ratio: The share of the heads to select.
    """

    seeds: int = 3
    base_steps: int = 350
    steps: int = 50
    batch: int = 8
    window: int = 64
    measured: int = 64
    characters: int = 400_000
    vocabulary: int = 384
    layers: int = 4
    query_heads: int = 8
    key_value_heads: int = 4
    hidden_size: int = 128
    intermediate_size: int = 256
    ratio: float = 0.10


@dataclass(frozen=True)
class Method:
    """A training method.

    Attributes:
        name: Its name in tables.
        rate: The peak learning rate.
        heads: The heads to restrict training to: "selected", "random" or "none"; None to restrict nothing.
        others: Whether the parameters outside Q, K and V train, as for `alps.restrict`.
        lora: Whether to train LoRA adapters instead.
    """

    name: str
    rate: float = _RATE
    heads: str | None = None
    others: Literal["train", "freeze"] = "train"
    lora: bool = False

    def prepare(self, model: Any, heads: dict[str, HeadSet]) -> Any:
        """Restricts the model in place, or wraps it with adapters; returns the model to train."""
        if self.lora:
            projections = ["q_proj", "k_proj", "v_proj"]
            config = peft.LoraConfig(r=8, lora_alpha=16, target_modules=projections, task_type="CAUSAL_LM")
            return peft.get_peft_model(model, config)
        if self.heads is not None:
            alps.restrict(model, heads[self.heads], others=self.others)
        return model


EVERYTHING = Method("everything")
FROZEN = Method("Q/K/V frozen", heads="none")
RANDOM = Method("random heads", heads="random")
SELECTED = Method("selected heads", heads="selected")
LORA = Method("LoRA on Q/K/V", _HIGH_RATE, lora=True)
RANDOM_ALONE = Method("random heads alone", _HIGH_RATE, heads="random", others="freeze")
SELECTED_ALONE = Method("selected heads alone", _HIGH_RATE, heads="selected", others="freeze")

METHODS = (EVERYTHING, FROZEN, RANDOM, SELECTED, LORA, RANDOM_ALONE, SELECTED_ALONE)
"""The paper compares the first five; the last two show the heads by themselves."""

METHOD_GROUPS = (METHODS[:4], METHODS[4:])
"""The methods that train most of the model, and those that train little of it: each group trains side by side."""


class Learner:
    """A model in training.

    AdamW with a weight decay of 0.1; the learning rate rises in the first tenth of the steps and falls by a cosine to
    a tenth of its peak. Gradients are clipped to a norm of 1.

    Attributes:
        model: The model.
        seconds: Processor time of all steps; other work on the machine would lengthen the time by the clock.
    """

    def __init__(self, model: Any, peak_rate: float, steps: int) -> None:
        self.model = model
        self.seconds = 0.0
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._parameters, lr=peak_rate, weight_decay=0.1, fused=True)
        self._schedule = transformers.get_cosine_with_min_lr_schedule_with_warmup(
            self._optimizer, steps // 10, steps, min_lr_rate=0.1
        )
        self._gradient_bytes = 0

    def step(self, windows: torch.Tensor) -> None:
        """Trains on a batch: int64 [batch, window]."""
        start = time.thread_time()
        self.model(input_ids=windows, labels=windows).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters, 1.0)
        self._optimizer.step()
        self._schedule.step()
        self._gradient_bytes = _bytes(it.grad for it in self._parameters)
        self._optimizer.zero_grad()
        self.seconds += time.thread_time() - start

    @property
    def trainable(self) -> int:
        """The number of parameters that train."""
        return sum(parameter.numel() for parameter in self._parameters)

    @property
    def bytes(self) -> int:
        """Memory of all parameters, gradients and optimizer state, without activations."""
        state = (value for values in self._optimizer.state.values() for value in values.values())
        return _bytes(self.model.parameters()) + self._gradient_bytes + _bytes(state)


@dataclass(frozen=True)
class TunedCopy:
    """A tuned copy, compared with the base.

    `heads` holds the "selected" heads, "random" ones with as many parameters, and "none".
    """

    losses: Losses
    scores: HeadScores
    heads: dict[str, HeadSet]


@dataclass(frozen=True)
class Experiment:
    """Trains one base, and for every seed a tuned copy and the base again by every training method.

    A seed decides the batches of the tuned copy, and so the selected heads; the batches of the training methods, the
    same for all; the random heads; the initial weights of LoRA. The base is the same for all seeds, like a base that
    was downloaded. `tick` is called after each step.
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
        general, task = docstrings(settings.characters), repeated_numbers(settings.characters)
        tokenizer = train_tokenizer(general, settings.vocabulary, settings.window)
        return cls(settings, tokenizer, Text(general, tokenizer), Text(task, tokenizer), tick)

    def losses(self, model: Any) -> Losses:
        """Measures a model on held-out text."""
        texts = (
            text.held_out(self.settings.measured, self.settings.window) for text in (self.task, self.general)
        )
        return Losses(*(loss(model, windows) for windows in texts))

    def make_base(self, folder: Path) -> tuple[Losses, int]:
        """Trains a Llama from random weights on the general text, and saves it; counts its parameters as well."""
        settings = self.settings
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=settings.vocabulary,
            hidden_size=settings.hidden_size,
            intermediate_size=settings.intermediate_size,
            num_hidden_layers=settings.layers,
            num_attention_heads=settings.query_heads,
            num_key_value_heads=settings.key_value_heads,
            max_position_embeddings=settings.window,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=0,
        )
        learner = Learner(AutoModelForCausalLM.from_config(config), _RATE, settings.base_steps)
        self._train([learner], self.general, 0, settings.base_steps)
        self._save(learner.model, folder)
        return self.losses(learner.model), learner.trainable

    def tune(self, base: Path, seed: int, folder: Path) -> TunedCopy:
        """Trains all of a copy of the base on the task, saves it in `folder`, and compares it with the base."""
        learner = Learner(_load(base), _RATE, self.settings.steps)
        self._train([learner], self.task, _TUNING_SEED + seed, self.settings.steps)
        self._save(learner.model, folder)
        scores = alps.scan(base, folder)
        selected = scores.select(self.settings.ratio)
        heads = {
            "selected": selected,
            "random": random_like(selected, np.random.default_rng(seed), within_layers=False),
            "none": HeadSet.from_pairs([], scores.geometry),
        }
        return TunedCopy(self.losses(learner.model), scores, heads)

    def train(
        self, base: Path, heads: dict[str, HeadSet], seed: int, methods: Sequence[Method], folder: Path | None
    ) -> dict[str, Outcome]:
        """Trains the base on the task by several methods side by side: every batch goes to all before the next.

        Args:
            base: The folder of the base.
            heads: The heads of a tuned copy.
            seed: Decides the batches, which are the same for all methods.
            methods: The training methods.
            folder: Where to save the model of `SELECTED`, if anywhere.
        """
        steps = self.settings.steps
        learners: dict[Method, Learner] = {}
        for method in methods:
            torch.manual_seed(seed)
            learners[method] = Learner(method.prepare(_load(base), heads), method.rate, steps)
        self._train(list(learners.values()), self.task, _METHOD_SEED + seed, steps)
        outcomes = {
            method.name: Outcome(self.losses(it.model), it.trainable, it.seconds / steps, it.bytes)
            for method, it in learners.items()
        }
        if folder is not None:
            model = learners[SELECTED].model
            alps.release(model)
            self._save(model, folder)
        return outcomes

    def _train(self, learners: list[Learner], text: Text, seed: int, steps: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(steps):
            windows = text.batch(self.settings.batch, self.settings.window, generator)
            for learner in learners:
                learner.step(windows)
                self.tick()

    def _save(self, model: Any, folder: Path) -> None:
        model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def _load(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).train()


def loss(model: Any, windows: torch.Tensor) -> float:
    """The mean loss, in nats per token, on int64 [windows, window]."""
    model.eval()
    with torch.no_grad():
        mean = float(model(input_ids=windows, labels=windows).loss)
    model.train()
    return mean


@contextmanager
def training_environment() -> Iterator[None]:
    """Uses one thread, keeps torch's random state, and hides progress bars and a warning.

    A model this small gains little from more threads, and with one the same machine gives the same numbers.
    """
    threads = torch.get_num_threads()
    logging: Any = transformers.utils.logging
    progress_bars = logging.is_progress_bar_enabled()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    try:
        with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
            # PEFT reads what transformers deprecates.
            warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
            yield
    finally:
        torch.set_num_threads(threads)
        if progress_bars:
            logging.enable_progress_bar()


def _bytes(tensors: Any) -> int:
    return sum(it.numel() * it.element_size() for it in tensors if isinstance(it, torch.Tensor))
