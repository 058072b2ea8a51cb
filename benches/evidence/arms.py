"""Which sets of key/value groups are trained: chosen by a score, drawn at random, and controls.

An arm is a name and one or more sets; the sets of an arm are draws of the same rule. Names are "top:SCORE",
"lowest:SCORE", "within:SCORE" (compared with the other groups of the layer), "layers:SCORE" (random groups
in the layers of the chosen ones), "norm:SCORE" (random groups of the base norms of the chosen ones),
"seed:SCORE" (the choice for another seed's tuned copy), "TASK:SCORE" (the choice for another task), "random",
"none" and "all".
"""

import math
import zlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from evidence.checkpoint import Sizes

Scores = dict[str, NDArray[np.float64]]
"""[groups of all layers] by name."""
Set = tuple[int, ...]
Sets = dict[str, list[Set]]
"""By the name of the arm."""

LOWEST = (
    "wasserstein",
    "delta_norm",
    "relative_delta",
    "product.delta_norm",
    "product.relative_delta",
    "fisher",
    "gradient",
    "trapezoid",
    "graft",
    "alone.delta_norm",
)
WITHIN = (
    "wasserstein",
    "delta_norm",
    "relative_delta",
    "product.relative_delta",
    "gradient",
    "taylor",
    "trapezoid",
)
LAYER_MATCHED = ("delta_norm", "relative_delta", "product.relative_delta", "gradient", "trapezoid", "graft")
NORM_MATCHED = ("relative_delta",)
ELSEWHERE = ("delta_norm", "relative_delta", "trapezoid")
"""Scores whose choices for another seed or task are trained too."""
TRAINED_WITH_OTHERS = (
    "top:wasserstein",
    "top:delta_norm",
    "top:relative_delta",
    "top:product.wasserstein",
    "top:product.relative_delta",
    "top:gradient",
    "top:taylor",
    "top:trapezoid",
    "top:graft",
    "lowest:relative_delta",
)
"""Arms of the setting in which everything outside Q, K and V trains too."""
SWEPT = ("relative_delta", "wasserstein", "gradient")
"""Scores that are tried at other ratios."""
MATCHED_DRAWS = 2
RANDOM_DRAWS = 12
_SIGNED = {
    "first_order",
    "trapezoid",
    "graft",
    "ungraft",
    "alone.first_order",
    "agreement",
    "agreement_cosine",
}


def count(ratio: float, groups: int) -> int:
    """How many groups a ratio is: ceil(ratio * groups)."""
    return math.ceil(round(ratio * groups, 9))


def top(values: NDArray[np.float64], number: int) -> Set:
    """The groups of the highest scores, ties to the lower number, not-a-number last."""
    order = np.argsort(np.where(np.isnan(values), np.inf, -values), kind="stable")
    return tuple(sorted(int(it) for it in order[:number]))


def generator(*names: object) -> np.random.Generator:
    """Random numbers of their own for each use, the same on every machine."""
    return np.random.default_rng(zlib.crc32("/".join(map(str, names)).encode()))


def drawn(number: int, groups: int, *names: object) -> Set:
    """A random set."""
    return tuple(sorted(int(it) for it in generator(*names).choice(groups, number, replace=False)))


def in_same_layers(chosen: Set, per_layer: int, *names: object) -> Set:
    """A random set with as many groups of each layer."""
    draw = generator(*names)
    found: list[int] = []
    layers, counts = np.unique(np.array(chosen, np.int64) // per_layer, return_counts=True)
    for layer, number in zip(layers, counts, strict=True):
        found += (layer * per_layer + draw.choice(per_layer, number, replace=False)).tolist()
    return tuple(sorted(found))


def of_same_norms(chosen: Set, norms: NDArray[np.float64], *names: object) -> Set:
    """A random set of which each group is a neighbour, by norm, of a chosen one; none of the chosen if it can be."""
    draw = generator(*names)
    free = set(range(len(norms))) - set(chosen)
    found: list[int] = []
    for group in draw.permutation(list(chosen)):
        near = sorted(free, key=lambda it: abs(norms[it] - norms[group]))[:3]
        found.append(int(draw.choice(near)))
        free.remove(found[-1])
    return tuple(sorted(found))


def relative_to_layer(values: NDArray[np.float64], per_layer: int, signed: bool) -> NDArray[np.float64]:
    """Scores over the mean of the layer, or minus it where they have signs."""
    by_layer = values.reshape(-1, per_layer)
    mean = by_layer.mean(axis=1, keepdims=True)
    return np.asarray(by_layer - mean if signed else by_layer / mean, np.float64).ravel()


def sets_of(
    scores: Mapping[tuple[str, int], Scores], task: str, seed: int, sizes: "Sizes", ratio: float
) -> Sets:
    """The sets of all arms.

    Args:
        scores: By task and seed.
        task: That is trained.
        seed: Of the tuned copy, the batches and the draws.
        sizes: Of the model.
        ratio: Of the groups.
    """
    groups = sizes.layers * sizes.groups
    number = count(ratio, groups)
    own = scores[task, seed]
    sets: Sets = {
        "random": [drawn(number, groups, "random", task, seed, draw) for draw in range(RANDOM_DRAWS)]
    }
    for name, values in own.items():
        sets[f"top:{name}"] = [top(values, number)]
    for name in LOWEST:
        sets[f"lowest:{name}"] = [top(-own[name], number)]
    for name in WITHIN:
        values = relative_to_layer(own[name], sizes.groups, name in _SIGNED)
        sets[f"within:{name}"] = [top(values, number)]

    def matched(kind: str, name: str, draw: Callable[..., Set], *arguments: object) -> None:
        chosen = top(own[name], number)
        sets[f"{kind}:{name}"] = [
            draw(chosen, *arguments, kind, name, task, seed, it) for it in range(MATCHED_DRAWS)
        ]

    for name in LAYER_MATCHED:
        matched("layers", name, in_same_layers, sizes.groups)
    for name in NORM_MATCHED:
        matched("norm", name, of_same_norms, own["base_norm"])
    seeds = sorted(it for of, it in scores if of == task)
    for name in ELSEWHERE:
        other = seeds[(seeds.index(seed) + 1) % len(seeds)]
        sets[f"seed:{name}"] = [top(scores[task, other][name], number)]
        for of, it in scores:
            if of != task and it == seed:
                sets[f"{of}:{name}"] = [top(scores[of, it][name], number)]
    return sets
