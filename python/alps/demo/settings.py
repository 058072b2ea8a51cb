"""The sizes of the demo."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """The sizes of the demo; as they are, it takes about a minute on two cores.

    Attributes:
        seeds: How often everything but the base is done anew.
        base_steps: Steps on general text that make the base.
        steps: Steps on the task, of the tuned copy and of every way to train.
        batch: Windows of text for each step.
        window: Tokens that the model sees at once.
        measured: Windows of unseen text that a loss is the mean of.
        characters: Of each text, unseen part included.
        vocabulary: Tokens that the tokenizer knows at most.
        layers: Of the model.
        query_heads: Of each layer.
        key_value_heads: Of each layer; they are shared by the query heads.
        hidden_size: The width of the model.
        intermediate_size: The width of its feed-forward layers.
        ratio: The share of the heads that are selected.
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
