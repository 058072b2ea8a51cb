"""Summarizes which parameters of a restricted model train."""

from dataclasses import dataclass

from torch import nn

from alps.heads import HeadSet
from alps.optional import visual
from alps.training.attention import Attention
from alps.training.projection import restricted_projections
from alps.training.quantised import entries

KINDS = ("query", "key", "value", "bias", "other")
"""The weights of the Q, K and V projections by role, their biases, and all other parameters of the model."""


@dataclass(frozen=True, repr=False)
class Restriction:
    """Counts the parameters of a restricted model that train, as `restrict` returns it.

    Printed, it is a table with the heads by layer.

    Examples:
        >>> from transformers import AutoModelForCausalLM
        >>> model = AutoModelForCausalLM.from_pretrained("base")
        >>> heads = alps.HeadSet.load("heads.json")
        >>> restriction = alps.restrict(model, heads, others="freeze")
        >>> restriction.trainable
        {'query': 512, 'key': 384, 'value': 384, 'bias': 0, 'other': 0}
        >>> restriction.heads
        {0: (5,), 1: (2, 3), 3: (6,)}
        >>> round(restriction.share, 4)
        0.0365

    Attributes:
        trainable: The number of parameters that train, by kind: "query", "key" and "value" (weights of the
            projections), "bias" (biases of the projections) and "other" (all other parameters).
        frozen: The number of parameters that do not train, by kind.
        heads: The heads that train, by layer; layers without any are left out.
        key_value_groups: The key/value groups that train, by layer; layers without any are left out.
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
        counts = [(kind, self.trainable[kind], self.frozen[kind]) for kind in KINDS]
        counts.append(("total", sum(self.trainable.values()), sum(self.frozen.values())))
        table = [("", "trainable", "frozen"), *((kind, f"{a:,}", f"{b:,}") for kind, a, b in counts)]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [f"  {kind:<{widths[0]}}  {a:>{widths[1]}}  {b:>{widths[2]}}" for kind, a, b in table]
        for layer, heads in self.heads.items():
            numbers, groups = (", ".join(map(str, it)) for it in (heads, self.key_value_groups[layer]))
            lines.append(f"  layer {layer}: heads {numbers}; key/value groups {groups}")
        return "\n".join([f"{100 * self.share:.1f} % of the parameters train", *lines])

    def _repr_html_(self) -> str:
        html: str = visual("notebook", "a notebook").restriction_html(self)
        return html


def summarize(model: nn.Module, attention: Attention, heads: HeadSet) -> Restriction:
    """Counts the parameters of a restricted model; a shared parameter counts once."""
    trainable, frozen = dict.fromkeys(KINDS, 0), dict.fromkeys(KINDS, 0)
    chosen = set(attention.chosen(heads))
    for matrix in attention.matrices:
        width = getattr(attention.geometry.sizes[matrix.layer_index], f"{matrix.role}_width")
        (trainable if matrix in chosen else frozen)[matrix.role] += matrix.count * width
    projections = restricted_projections(model).values()
    inside = set()
    for projection in projections:
        inside |= {id(parameter) for parameter in projection.restricted_parameters()}
        for bias in projection.biases():
            trainable["bias"] += len(projection.indices)
            frozen["bias"] += len(bias) - len(projection.indices)
    for parameter in model.parameters():
        if id(parameter) not in inside:
            (trainable if parameter.requires_grad else frozen)["other"] += entries(parameter)
    by_layer = [
        {
            layer: tuple(mask[row].nonzero()[0].tolist())
            for row, layer in enumerate(heads.geometry.layers)
            if mask[row].any()
        }
        for mask in (heads.mask, heads.key_value_groups)
    ]
    return Restriction(trainable, frozen, *by_layer)
