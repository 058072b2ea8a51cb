"""The words that arguments take. The command line knows them without importing what computes with them."""

from typing import Literal, TypeAlias

Component: TypeAlias = Literal["decoder", "encoder", "cross", "vision", "audio"]
"""An attention stack of a model: that of the text decoder, the encoder, the vision or the audio tower, or the
cross-attention of the decoder to the encoder.
"""

RankedRule: TypeAlias = Literal["global", "per_layer", "key_value_groups"]
RandomRule: TypeAlias = Literal["random", "layer_consistent"]
Rule: TypeAlias = Literal[RankedRule, RandomRule]
"""A rule by which `HeadScores.select` chooses heads."""

Measure: TypeAlias = Literal[
    "fisher", "gradient", "saliency", "taylor", "michel", "michel_layer", "seekr", "lift"
]
"""The statistics of `alps.measure`."""

MEASURES: tuple[Measure, ...] = ("fisher", "gradient", "saliency", "michel")
"""Those that `alps.measure` computes unless others are named."""

DEFAULT_RATIO = 0.10
"""The share of the heads that the paper trains."""
