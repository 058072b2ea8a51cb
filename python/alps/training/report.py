"""What a restricted model trains, and what it does not."""

from dataclasses import dataclass

from torch import nn

from alps.heads import HeadSet
from alps.training.attention import Attention
from alps.training.projection import RestrictedProjection

KINDS = ("query", "key", "value", "bias", "other")
"""Weights of the three projections by what they hold; their biases; all else in the model."""


@dataclass(frozen=True, repr=False)
class Restriction:
    """What a restricted model trains, and what it does not.

    Attributes:
        trainable: Parameters that train, for each of "query", "key" and "value" (weights of the
            projections), "bias" (biases of the projections) and "other" (all else in the model).
        frozen: Parameters that do not train, likewise.
        heads: The heads that train, for each layer that has some.
        key_value_groups: The key/value groups that train, for each layer that has some.
    """

    trainable: dict[str, int]
    frozen: dict[str, int]
    heads: dict[int, tuple[int, ...]]
    key_value_groups: dict[int, tuple[int, ...]]

    @property
    def share(self) -> float:
        """Trainable parameters as a share of all, 0 to 1."""
        trainable, frozen = sum(self.trainable.values()), sum(self.frozen.values())
        return trainable / (trainable + frozen)

    def __repr__(self) -> str:
        table = [("", "trainable", "frozen")]
        table += [(kind, f"{self.trainable[kind]:,}", f"{self.frozen[kind]:,}") for kind in KINDS]
        table.append(("total", f"{sum(self.trainable.values()):,}", f"{sum(self.frozen.values()):,}"))
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            f"  {name:<{widths[0]}}  {trainable:>{widths[1]}}  {frozen:>{widths[2]}}"
            for name, trainable, frozen in table
        ]
        lines += [
            f"  layer {layer}: heads {_list(heads)}; key/value groups {_list(self.key_value_groups[layer])}"
            for layer, heads in self.heads.items()
        ]
        return "\n".join([f"{100 * self.share:.1f} % of the parameters train", *lines])


def report(model: nn.Module, attention: Attention, heads: HeadSet) -> Restriction:
    """Counts the parameters of a restricted model; one that is shared counts once."""
    trainable, frozen = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    chosen = set(attention.chosen(heads))
    for matrix in attention.matrices:
        counts = trainable if matrix in chosen else frozen
        counts[matrix.role] += matrix.count * attention.width(matrix)
    projections = [module for module in model.modules() if isinstance(module, RestrictedProjection)]
    for projection in projections:
        if projection.bias is not None:
            trained = len(projection.indices)
            trainable["bias"] += trained
            frozen["bias"] += len(projection.bias) - trained
    inside = {id(parameter) for projection in projections for parameter in projection.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            (trainable if parameter.requires_grad else frozen)["other"] += parameter.numel()
    layers = attention.geometry.layers
    masks = (heads.mask, heads.key_value_groups)
    by_layer = [
        {layer: tuple(mask[row].nonzero()[0].tolist()) for row, layer in enumerate(layers) if mask[row].any()}
        for mask in masks
    ]
    return Restriction(trainable, frozen, *by_layer)


def _list(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))
