"""The ways to train that the demo compares."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

# Where bitsandbytes is installed PEFT imports it, and it then tells of kernels that nothing here uses.
logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

import peft  # noqa: E402

import alps  # noqa: E402
from alps.heads import HeadSet  # noqa: E402

RATE = 2e-3
"""Peak learning rate of the base, of the tuned copy, and of the ways that train most of the model."""

_RATE_OF_FEW = 1e-2
"""Of the ways that train a few per cent of it, which at the lower rate would get less far in as many steps.

Task losses on one pair that is not in the demo: LoRA 4.09, 4.05, 4.04, 4.51 and heads alone 4.19, 4.16, 4.16, 4.17 at
0.005, 0.01, 0.02, 0.04.
"""


@dataclass(frozen=True)
class Heads:
    """What a seed has to choose from.

    Attributes:
        selected: Those that the scan found.
        random: As many, drawn by lot.
        none: The empty set.
    """

    selected: HeadSet
    random: HeadSet
    none: HeadSet


@dataclass(frozen=True)
class Way:
    """A way to train; it can be sent to another process.

    Attributes:
        name: What tables call it.
        trains: What it trains.
        rate: The peak learning rate.
        prepare: Makes a model ready to be trained this way; returns it, or what wraps it.
    """

    name: str
    trains: str
    rate: float
    prepare: Callable[[Any, Heads], Any]


def _untouched(model: Any, heads: Heads) -> Any:
    return model


def _restricted(model: Any, heads: Heads, *, which: str, others: Any) -> Any:
    alps.restrict(model, getattr(heads, which), others=others)
    return model


def _lora(model: Any, heads: Heads) -> Any:
    config = peft.LoraConfig(
        r=8, lora_alpha=16, target_modules=["q_proj", "k_proj", "v_proj"], task_type="CAUSAL_LM"
    )
    return peft.get_peft_model(model, config)


EVERYTHING = Way("everything", "all parameters", RATE, _untouched)
FROZEN = Way("Q/K/V frozen", "all but Q, K and V", RATE, partial(_restricted, which="none", others="train"))
RANDOM = Way(
    "random heads", "random heads, and all but Q, K and V", RATE,
    partial(_restricted, which="random", others="train"),
)  # fmt: skip
SELECTED = Way(
    "selected heads", "selected heads, and all but Q, K and V", RATE,
    partial(_restricted, which="selected", others="train"),
)  # fmt: skip
LORA = Way("LoRA on Q/K/V", "adapters of rank 8 on Q, K and V", _RATE_OF_FEW, _lora)
RANDOM_ALONE = Way(
    "random heads alone", "random heads and nothing else", _RATE_OF_FEW,
    partial(_restricted, which="random", others="freeze"),
)  # fmt: skip
SELECTED_ALONE = Way(
    "selected heads alone", "selected heads and nothing else", _RATE_OF_FEW,
    partial(_restricted, which="selected", others="freeze"),
)  # fmt: skip

WAYS = (EVERYTHING, FROZEN, RANDOM, SELECTED, LORA, RANDOM_ALONE, SELECTED_ALONE)
"""The first five are those that the paper compares; the last two show the heads by themselves."""

SIDE_BY_SIDE = (WAYS[:4], WAYS[4:])
"""Those that train most of the model, and those that train little of it."""
