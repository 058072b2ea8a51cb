"""The words that arguments take. The command line knows them without importing what computes with them."""

from typing import Literal, TypeAlias

Component: TypeAlias = Literal["decoder", "encoder", "cross", "vision", "audio"]
"""An attention stack of a model."""

RankedRule: TypeAlias = Literal["global", "per_layer", "key_value_groups"]
RandomRule: TypeAlias = Literal["random", "layer_consistent"]
Rule: TypeAlias = Literal[RankedRule, RandomRule]
"""How heads are chosen from scores."""

Measure: TypeAlias = Literal[
    "fisher", "gradient", "saliency", "taylor", "michel", "michel_layer", "seekr", "lift"
]
"""The statistics of `alps.measure`."""

MEASURES: tuple[Measure, ...] = ("fisher", "gradient", "saliency", "michel")
"""Those that `alps.measure` computes unless others are named."""

DEFAULT_RATIO = 0.10
"""The share of the heads that the paper trains."""
